//! The clients: all kinds of producers and readers, and what they share.

mod fetchers;
mod producers;
mod readers;
mod regulars;
mod stamped;
mod zombies;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use quipu::client::{Client, ClientConfig};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};

pub(crate) use self::fetchers::{Forward, fetch};
use crate::groups;
pub(crate) use crate::groups::TOPIC;
use crate::history::{Event, History};
use crate::rng::Rng;

pub(crate) const CALL_MAX: Duration = Duration::from_secs(10);
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// What all clients share.
pub(crate) struct World {
    pub(crate) history: History,
    pub(crate) partitions: u32,
    /// Where nodes listen for clients, by place; `None` where none lives.
    servers: RwLock<Vec<Option<String>>>,
    /// What the members of the group share.
    pub(crate) group: Arc<groups::World>,
    /// Records of each partition that a quorum has acknowledged so far.
    acknowledged: Vec<AtomicU64>,
    numbers: AtomicU32,
    is_over: watch::Sender<bool>,
}

impl World {
    pub(crate) fn new(partitions: u32, places: usize) -> Self {
        Self {
            history: History::new(),
            partitions,
            servers: RwLock::new(vec![None; places]),
            group: Arc::new(groups::World::new(vec![None; places])),
            acknowledged: (0..partitions).map(|_| AtomicU64::new(0)).collect(),
            numbers: AtomicU32::new(0),
            is_over: watch::Sender::new(false),
        }
    }

    /// Says where the node of a place listens, if there is one.
    pub(crate) fn set_server(&self, place: usize, server: Option<String>) {
        let address = server.as_ref().map(|server| server.parse().expect("it is an address"));
        self.group.addresses.write().expect("no holder panics")[place] = address;
        self.servers.write().expect("no holder panics")[place] = server;
    }

    /// Takes note of a fault.
    pub(crate) fn fault(&self, what: impl Into<String>) {
        let (at, what) = (self.history.now(), what.into());
        println!("{:>9.3} {what}", at.as_secs_f64());
        groups::note_fault(&self.group, &what);
        self.history.note(Event::Fault { at, what });
    }

    /// Takes note that all is as it was: since when, how long it took until every partition went
    /// on, and which ones did not.
    pub(crate) fn healed(&self, at: Duration, took: Duration, stuck: Vec<u32>) {
        println!("{:>9.3} progress after {took:?}", at.as_secs_f64());
        groups::note_fault(&self.group, "healed");
        self.history.note(Event::Healed { at, took, stuck });
    }

    fn server(&self, place: usize) -> Option<String> {
        self.servers.read().expect("no holder panics")[place].clone()
    }

    fn servers(&self) -> Vec<String> {
        self.servers.read().expect("no holder panics").iter().flatten().cloned().collect()
    }

    /// A client that is told of all nodes.
    pub(crate) fn client(&self) -> Client {
        let config =
            ClientConfig { connect_timeout: CONNECT_MAX, ..ClientConfig::new(self.servers()) };
        Client::new(config).expect("there are servers")
    }

    /// A number that nobody else has.
    fn number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// How many records each partition has acknowledged.
    pub(crate) fn acknowledged(&self) -> Vec<u64> {
        self.acknowledged.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    fn count(&self, partition: u32, records: u64) {
        self.acknowledged[partition as usize].fetch_add(records, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        *self.is_over.borrow()
    }

    /// Waits, or until it is over.
    async fn pause(&self, time: Duration) {
        let mut over = self.is_over.subscribe();
        tokio::select! {
            () = sleep(time) => {}
            _ = over.wait_for(|is_over| *is_over) => {}
        }
    }

    /// A connection to the node of a place.
    async fn connect(&self, place: usize) -> Option<Channel> {
        connect(&self.server(place)?).await
    }

    /// A connection to any node.
    async fn connect_any(&self, rng: &mut Rng) -> Option<Channel> {
        let servers = self.servers();
        connect(rng.pick(&servers)?).await
    }
}

/// A connection to a server, if it takes one.
pub(crate) async fn connect(server: &str) -> Option<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{server}")).ok()?;
    endpoint.connect_timeout(CONNECT_MAX).timeout(CALL_MAX).connect().await.ok()
}

/// All of them, until they are told that it is over.
pub(crate) struct Crowd {
    world: Arc<World>,
    tasks: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// Starts them. What they draw is drawn from `rng`.
    pub(crate) fn gather(world: &Arc<World>, places: usize, rng: &mut Rng) -> Self {
        let mut tasks = Vec::new();
        let mut seed = || Rng::new(rng.next());
        for kind in producers::KINDS {
            tasks.push(tokio::spawn(producers::live(world.clone(), kind, seed())));
        }
        for _ in 0..2 {
            tasks.push(tokio::spawn(producers::call(world.clone(), seed())));
        }
        tasks.push(tokio::spawn(zombies::live(world.clone(), seed())));
        tasks.push(tokio::spawn(regulars::live(world.clone(), seed())));
        for place in 0..places {
            tasks.push(tokio::spawn(fetchers::live(world.clone(), place)));
        }
        tasks.push(tokio::spawn(readers::subscribe(world.clone())));
        tasks.push(tokio::spawn(readers::watch_tails(world.clone(), seed())));
        Self { world: world.clone(), tasks }
    }

    /// Tells them that it is over, and waits until each has noted what it knows.
    pub(crate) async fn disperse(self) {
        self.world.is_over.send_replace(true);
        for task in self.tasks {
            if let Err(error) = task.await {
                self.world.history.breach(format!("a client: {error}"));
            }
        }
    }
}

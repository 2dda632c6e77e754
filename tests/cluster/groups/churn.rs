//! Churn: members and servers come and go, and the checker judges what the members saw.
//!
//! `QUIPU_CHURN_SEED` repeats a schedule (not its timing), `QUIPU_CHURN_SECONDS` says how long the
//! members are kept busy. The seed is printed.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quipu::batch::{BatchBuilder, Codec, Limits, Record};
use quipu::proto::client::{
    FetchOffsetsRequest, GroupOffset, ResetOffsetsRequest, TopicPartitions,
};
use quipu::proto::server::ProduceRequest;
use quipu::proto::server::log_service_client::LogServiceClient;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::actor::{Manners, Order, Revenant, Rng, World, live};
use super::checker::{Rules, Verdict, judge};
use super::history::{Last, What};
use super::member::{GROUP, Groups, TOPIC, create_topic, earliest, group, groups};
use crate::support::Cluster;

const PARTITIONS: u32 = 12;
const SESSION: Duration = Duration::from_secs(3);
/// What a partition may take beyond a session: what was promised, and what a machine that is busy
/// with other tests may take more.
const PROMISED: Duration = Duration::from_secs(2);
const ALLOWANCE: Duration = Duration::from_secs(5);
const CALL_MAX: Duration = Duration::from_secs(10);
const DRAIN_MAX: Duration = Duration::from_secs(40);
/// How many members there are in each third of the time.
const SIZES: [usize; 3] = [2, 3, 10];

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

fn new_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 % 1_000_000
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_keeps_its_promises_whoever_comes_and_goes() {
    let seed = env("QUIPU_CHURN_SEED").unwrap_or_else(new_seed);
    let seconds = env("QUIPU_CHURN_SECONDS").unwrap_or(20);
    let verdict = churn(seed, Duration::from_secs(seconds)).await;
    eprintln!("QUIPU_CHURN_SEED={seed}: {verdict}");
    assert!(verdict.breaches.is_empty(), "QUIPU_CHURN_SEED={seed}");
    assert!(verdict.taken > 0 && verdict.refused > 0 && verdict.faults > 0, "nothing happened");
}

async fn churn(seed: u64, time: Duration) -> Verdict {
    let mut cluster = Cluster::start(3).await;
    create_topic(&cluster, TOPIC, PARTITIONS).await;
    groups(&cluster, 0).await.create_group(group()).await.unwrap();
    let addresses = cluster.servers.iter().map(|s| Some(s.as_ref()?.addresses().clients));
    let world = Arc::new(World::new(addresses.collect()));
    let mut rng = Rng(seed);
    let (ending, ended) = watch::channel(false);
    let others = [
        tokio::spawn(produce(world.clone(), Rng(rng.next()), ended.clone())),
        tokio::spawn(look(world.clone(), Rng(rng.next()), ended.clone())),
        tokio::spawn(reset(world.clone(), Rng(rng.next()), ended)),
    ];
    let until = Instant::now() + time;
    let mut crowd = Crowd::new(&world, Rng(rng.next()));
    tokio::join!(
        restart_servers(&mut cluster, &world, Rng(rng.next()), until),
        crowd.run(time, until),
    );
    let _ = ending.send(true);
    for other in others {
        other.await.unwrap();
    }
    crowd.disperse().await;
    let last = drain(&world, &mut Rng(seed)).await;
    crowd.end().await;
    let events = world.history.events();
    let orphan_max = SESSION + PROMISED + ALLOWANCE;
    let verdict = judge(&events, &last, Rules { partitions: PARTITIONS, orphan_max });
    if let Some(first) = verdict.breaches.first() {
        let from = first.event.saturating_sub(400);
        for (n, event) in events.iter().enumerate().take(first.event + 50).skip(from) {
            eprintln!("{n:>6} {:>9.3?} {:?}", event.at, event.what);
        }
    }
    for n in 0..3 {
        cluster.stop(n).await;
    }
    verdict
}

/// Stops one server after the other and starts it again: every other time the one that leads the
/// metadata.
async fn restart_servers(cluster: &mut Cluster, world: &World, mut rng: Rng, until: Instant) {
    for turn in 0.. {
        sleep(Duration::from_millis(1_500 + rng.below(1_500))).await;
        if Instant::now() >= until {
            return;
        }
        let leads = |n: &usize| cluster.server(*n).node().leads_metadata();
        let leader = (0..3).find(leads).filter(|_| turn % 2 == 0);
        let n = leader.unwrap_or(rng.below(3) as usize);
        world.history.note(What::Fault(format!("server {n} stops")));
        world.addresses.write().unwrap()[n] = None;
        cluster.stop(n).await;
        sleep(Duration::from_millis(100 + rng.below(900))).await;
        cluster.restart(n).await;
        world.addresses.write().unwrap()[n] = Some(cluster.server(n).addresses().clients);
        world.history.note(What::Fault(format!("server {n} is back")));
    }
}

type Life = (mpsc::Sender<Order>, JoinHandle<Revenant>);

/// The members.
struct Crowd {
    world: Arc<World>,
    rng: Rng,
    /// The first one stays to the end.
    members: Vec<Life>,
    /// Those that were told to end, and may go on committing for a while.
    ending: Vec<JoinHandle<Revenant>>,
    dead: Vec<Revenant>,
}

impl Crowd {
    fn new(world: &Arc<World>, rng: Rng) -> Self {
        let (members, ending, dead) = Default::default();
        let mut crowd = Self { world: world.clone(), rng, members, ending, dead };
        let (commit_every, release_after) =
            (Duration::from_millis(50), Some(Duration::from_millis(20)));
        crowd.start(Manners { commit_every, release_after }, Revenant::default());
        crowd
    }

    fn start(&mut self, manners: Manners, revenant: Revenant) {
        let (orders, ordered) = mpsc::channel(1);
        let seed = self.rng.next();
        let life = tokio::spawn(live(self.world.clone(), seed, manners, revenant, ordered));
        self.members.push((orders, life));
    }

    async fn run(&mut self, time: Duration, until: Instant) {
        loop {
            sleep(Duration::from_millis(50 + self.rng.below(350))).await;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let third = ((time - left).as_millis() * 3 / time.as_millis().max(1)) as usize;
            self.bury().await;
            let size = SIZES[third.min(2)];
            let is_full = self.members.len() >= size;
            if !is_full && (self.members.len() < 2 || self.rng.below(4) > 0) {
                self.add();
            } else if self.members.len() > 1 {
                self.end_one().await;
            }
        }
    }

    fn add(&mut self) {
        let release_after = match self.rng.below(6) {
            0 => None,
            1 => Some(Duration::from_millis(500 + self.rng.below(1_500))),
            _ => Some(Duration::from_millis(self.rng.below(100))),
        };
        let commit_every = Duration::from_millis(20 + self.rng.below(800));
        let revenant = match self.dead.len() as u64 {
            0 => Revenant::default(),
            dead if self.rng.below(3) > 0 => {
                let at = self.rng.below(dead);
                self.dead.swap_remove(at as usize)
            }
            _ => Revenant::default(),
        };
        self.start(Manners { commit_every, release_after }, revenant);
    }

    async fn end_one(&mut self) {
        let at = 1 + self.rng.below(self.members.len() as u64 - 1);
        let (orders, life) = self.members.swap_remove(at as usize);
        let order = match self.rng.below(4) {
            0 => Order::Leave,
            1 => Order::Vanish,
            2 => Order::Die,
            _ => Order::FallSilent,
        };
        let _ = orders.send(order).await;
        self.ending.push(life);
    }

    /// Keeps what is left of those that have ended.
    async fn bury(&mut self) {
        let (ended, ending) = self.ending.drain(..).partition(JoinHandle::is_finished);
        self.ending = ending;
        let ended: Vec<JoinHandle<Revenant>> = ended;
        for life in ended {
            self.dead.push(life.await.unwrap());
        }
    }

    /// Has all but the first leave, and waits until the last ghost is gone.
    async fn disperse(&mut self) {
        for (orders, life) in self.members.drain(1..) {
            let _ = orders.send(Order::Leave).await;
            self.ending.push(life);
        }
        for life in self.ending.drain(..) {
            life.await.unwrap();
        }
    }

    async fn end(&mut self) {
        for (orders, life) in self.members.drain(..) {
            let _ = orders.send(Order::Leave).await;
            life.await.unwrap();
        }
    }
}

/// Appends to all partitions, all the time.
async fn produce(world: Arc<World>, mut rng: Rng, ended: watch::Receiver<bool>) {
    let mut client = LogServiceClient::new(world.connect(&mut rng).await);
    while !*ended.borrow() {
        let mut builder = BatchBuilder::new(Limits::default());
        for n in 0..=rng.below(3) {
            let value = n.to_le_bytes();
            builder.append(&Record { value: Some(&value), ..Record::default() }).unwrap();
        }
        let (topic, batch) = (TOPIC.to_owned(), builder.build(Codec::None).unwrap());
        let partition = rng.below(PARTITIONS.into()) as u32;
        let request = ProduceRequest { topic, partition, batch, ..ProduceRequest::default() };
        // What a record says and whether it is there twice is of no interest here.
        if !matches!(timeout(CALL_MAX, client.produce(request)).await, Ok(Ok(_))) {
            client = LogServiceClient::new(world.connect(&mut rng).await);
        }
        sleep(Duration::from_millis(3)).await;
    }
}

async fn fetch(client: &mut Groups) -> Option<Vec<GroupOffset>> {
    let request = FetchOffsetsRequest { group: GROUP.to_owned(), topics: Vec::new() };
    let answer = timeout(CALL_MAX, client.fetch_offsets(request)).await;
    Some(answer.ok()?.ok()?.into_inner().offsets)
}

/// Looks where the group is, now and then.
async fn look(world: Arc<World>, mut rng: Rng, ended: watch::Receiver<bool>) {
    while !*ended.borrow() {
        sleep(Duration::from_millis(50 + rng.below(100))).await;
        let mut client = Groups::new(world.connect(&mut rng).await);
        let id = world.id();
        world.history.note(What::LookSent { id });
        for found in fetch(&mut client).await.unwrap_or_default() {
            if found.error.is_none() {
                let (partition, offset) = (found.partition, found.next_offset);
                world.history.note(What::Seen { id, partition, offset });
            }
        }
    }
}

/// Resets a partition to its beginning, now and then.
async fn reset(world: Arc<World>, mut rng: Rng, ended: watch::Receiver<bool>) {
    let mut due = Instant::now();
    while !*ended.borrow() {
        sleep(Duration::from_millis(20)).await;
        if Instant::now() < due {
            continue;
        }
        due = Instant::now() + Duration::from_millis(500 + rng.below(1_500));
        let partition = rng.below(PARTITIONS.into()) as u32;
        let topics = vec![TopicPartitions { topic: TOPIC.to_owned(), partitions: vec![partition] }];
        let request =
            ResetOffsetsRequest { group: GROUP.to_owned(), topics, to: earliest(), dry_run: false };
        let mut client = Groups::new(world.connect(&mut rng).await);
        world.history.note(What::ResetSent { partition, to: 0 });
        let answer = timeout(CALL_MAX, client.reset_offsets(request)).await;
        let Ok(Ok(answer)) = answer else { continue };
        if answer.into_inner().resets.iter().all(|reset| reset.error.is_none()) {
            world.history.note(What::ResetDone { partition });
        }
    }
}

/// Waits until the group is at the end. Returns where it is.
async fn drain(world: &World, rng: &mut Rng) -> Vec<Last> {
    let until = Instant::now() + DRAIN_MAX;
    let mut last = Vec::new();
    while Instant::now() < until {
        sleep(Duration::from_millis(100)).await;
        let mut client = Groups::new(world.connect(rng).await);
        let Some(found) = fetch(&mut client).await else { continue };
        let is_known = found.iter().all(|found| found.error.is_none());
        last = found
            .into_iter()
            .map(|found| Last {
                partition: found.partition,
                committed: found.next_offset,
                high_watermark: found.high_watermark,
            })
            .collect();
        if is_known && last.iter().all(|last| last.committed == last.high_watermark) {
            break;
        }
    }
    last
}

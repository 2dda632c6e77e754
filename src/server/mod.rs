//! The server: a node with its ports and its tasks, from start to stop.
//!
//! | noun | file | what it does |
//! |---|---|---|
//! | settings | `settings` | what a server is told |
//! | ports | `ports` | served from the start to the end |
//! | bootstrap | `bootstrap` | finds or founds the cluster |
//! | announce | `announce` | tells the others what this node leads |
//! | mover | `mover` | replicas and leaders of the partitions that this node leads |
//! | measure | `measure` | what the metrics are read from |
//! | controller | `controller` | nodes that come and go, on the metadata's leader |
//! | groups | `groups` | consumer groups: who is out, and who is to have what |
//! | retain | `retain` | what partitions may give up |
//! | upkeep | `upkeep` | replicas as the metadata wants them, registration |

mod announce;
mod bootstrap;
mod controller;
mod groups;
mod measure;
mod mover;
mod ports;
mod retain;
mod settings;
mod upkeep;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use self::bootstrap::{BootstrapError, Seed};
use self::mover::Mover;
use self::ports::{IsReady, Listeners, Ports, Readiness};
pub use self::settings::Settings;
use crate::cluster::{self, Identity, IdentityError, Node, StartError};
use crate::partition::Room;
use crate::raft::{HostConfig, OnFatal};
use crate::rpc::peer::{Door, FindAddress, HostKind, Transport};
use crate::rpc::{Channels, Context};
use crate::storage::fs::os::OsFs;
use crate::storage::{self, DataDir};

/// How long calls that are under way may go on when a node stops.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A port cannot be listened on.
    #[error("cannot listen on {address}: {source}; is another server running there?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The data directory is somebody else's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The node cannot become part of a cluster.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The node's replica of the metadata cannot be used.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Where a server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// For clients.
    pub clients: SocketAddr,
    /// For other nodes.
    pub peers: SocketAddr,
    /// For metrics and health.
    pub http: Option<SocketAddr>,
}

/// A server that runs.
///
/// Dropped without [`Server::stop`], it ends as a process does that is killed: its threads finish
/// what they are at, and nothing is closed in order.
#[derive(Debug)]
pub struct Server {
    node: Arc<Node>,
    context: Context,
    mover: Mover,
    addresses: Addresses,
    drain_timeout: Duration,
    ready: IsReady,
    fatal: watch::Receiver<Option<String>>,
    ports: Ports,
    tasks: JoinSet<()>,
}

impl Server {
    /// Starts a server and waits until its node is part of a cluster. It is ready to take calls a
    /// little later: see [`Self::wait_until_ready`].
    ///
    /// Not cancel safe: a dropped future leaves the data directory as after a kill.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn start(settings: Settings) -> Result<Self, ServeError> {
        let listeners = Listeners::bind(&settings)?;
        let addresses = listeners.addresses();
        let (fatal_sender, fatal) = watch::channel(None);
        let opened = Opened::open(&settings).await?;
        let registration = registration(&settings, addresses, &opened.door.identity());
        let (readiness, ready) = Readiness::starting();
        let mut ports = Ports::serve(&settings, listeners, &opened, ready.clone()).await?;
        let identity = become_part(&opened, &settings, &registration, &readiness).await?;
        readiness.wait_for("the node does not know the cluster's state yet");
        let peer_address = registration.peer_address.clone();
        let node = start_node(&settings, &opened, identity, peer_address, &fatal_sender).await?;
        opened.door.open(node.clone());
        let (limits, counters) = (settings.limits.clone(), ports.counters.clone());
        let context = Context::new(node.clone(), opened.channels.clone(), limits, counters);
        let fatal_sender = Arc::new(fatal_sender);
        let mut tasks = start_tasks(&settings, &context, registration, readiness, &fatal_sender);
        let low_water_bytes = settings.storage.low_water_bytes;
        measure::connect(&ports.metrics, &context, ready.clone(), low_water_bytes);
        tasks.spawn(measure::push(ports.metrics.clone(), context.clone()));
        ports.open(&context, ready.clone());
        let mover = Mover::new(context.clone());
        let drain_timeout = settings.drain_timeout;
        let server =
            Self { node, context, mover, addresses, drain_timeout, ready, fatal, ports, tasks };
        Ok(server)
    }

    /// The node.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Waits until the node knows the present and runs its replicas.
    ///
    /// Cancel safe: it changes nothing.
    pub async fn wait_until_ready(&self) {
        let mut ready = self.ready.clone();
        // The sender goes only if the node has failed, of which `failed` tells.
        let _ = ready.wait_for(Result::is_ok).await;
    }

    /// Waits for an error that ends the node, and says what it is.
    ///
    /// Cancel safe: it changes nothing.
    pub async fn failed(&self) -> String {
        let mut fatal = self.fatal.clone();
        match fatal.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().expect("it was waited for"),
            Err(_) => "the node's tasks ended".to_owned(),
        }
    }

    /// Stops in order: hands leadership over, lets calls end, closes all logs.
    pub async fn stop(mut self) {
        self.context.drain();
        self.ports.drain();
        announce::say_goodbye(&self.context).await;
        let deadline = Instant::now() + self.drain_timeout;
        self.mover.hand_over_all(deadline).await;
        if let Some(group) = self.node.inspect_metadata().await {
            controller::hand_over(&self.node, &group);
        }
        self.node.start_closing();
        self.ports.stop(LAST_CALLS).await;
        self.tasks.shutdown().await;
        let node = self.node;
        let stopped = tokio::task::spawn_blocking(move || node.stop());
        if let Err(error) = stopped.await {
            tracing::error!(%error, "the node did not stop in order");
        }
    }
}

/// What is open before the node is part of a cluster.
struct Opened {
    dir: Arc<DataDir>,
    door: Arc<Door>,
    channels: Arc<Channels>,
    find_address: FindAddress,
}

impl Opened {
    async fn open(settings: &Settings) -> Result<Self, ServeError> {
        let (root, config) = (settings.data_dir.clone(), settings.storage.clone());
        let node = settings.node;
        let opened = tokio::task::spawn_blocking(move || -> Result<_, ServeError> {
            let dir = Arc::new(DataDir::open(Arc::new(OsFs::new()), &root, config)?);
            let identity = Identity::load_or_create(&dir, node)?;
            Ok((dir, identity))
        });
        let (dir, identity) = opened.await.expect("opening a directory does not panic")?;
        let door = Arc::new(Door::new(dir.clone(), identity));
        let at = Arc::downgrade(&door);
        let find_address: FindAddress = Arc::new(move |node| at.upgrade()?.peer_address(node));
        let channels = Arc::new(Channels::default());
        Ok(Self { dir, door, channels, find_address })
    }
}

/// What the node says of itself to the metadata.
fn registration(
    settings: &Settings,
    addresses: Addresses,
    identity: &Identity,
) -> cluster::command::Node {
    let told = |advertise: &str, address: SocketAddr| match advertise.strip_suffix(":0") {
        Some(host) => format!("{host}:{}", address.port()),
        None => advertise.to_owned(),
    };
    cluster::command::Node {
        id: settings.node.0,
        incarnation: 0,
        directory: identity.directory,
        address: told(&settings.advertise, addresses.clients),
        peer_address: told(&settings.peer_advertise, addresses.peers),
        rack: settings.rack.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: cluster::command::NodeState::Active as i32,
        http_address: addresses.http.map(|http| http.to_string()).unwrap_or_default(),
    }
}

async fn become_part(
    opened: &Opened,
    settings: &Settings,
    registration: &cluster::command::Node,
    readiness: &Readiness,
) -> Result<Identity, BootstrapError> {
    let own = (settings.node, registration.peer_address.clone());
    let is_own = |seed: &&Seed| seed.0 == settings.node;
    let others = settings.seeds.iter().filter(|seed| !is_own(seed)).cloned();
    let is_seed = settings.seeds.is_empty() || settings.seeds.iter().any(|seed| is_own(&seed));
    // What it is told of its own address may have port 0.
    let seeds: Vec<_> = is_seed.then_some(own).into_iter().chain(others).collect();
    let (door, is_joining) = (&opened.door, settings.is_joining);
    let founding = bootstrap::find_cluster(door, &seeds, is_joining, readiness).await?;
    let joining = bootstrap::Joining { founding: &founding, registration, seeds: &seeds };
    bootstrap::take_part(door, &opened.dir, &joining, readiness).await
}

async fn start_node(
    settings: &Settings,
    opened: &Opened,
    identity: Identity,
    peer_address: String,
    fatal: &watch::Sender<Option<String>>,
) -> Result<Arc<Node>, ServeError> {
    let founding = identity.founding.as_ref().expect("it has just become part of a cluster");
    let (cluster, node) = (founding.cluster_id(), settings.node);
    let find_address = opened.find_address.clone();
    let runtime = tokio::runtime::Handle::current();
    let transport = Transport::new(cluster, node, peer_address, find_address, runtime);
    let fatal = fatal.clone();
    let on_fatal: OnFatal = Arc::new(move |error: &storage::Error| {
        fatal.send_replace(Some(error.to_string()));
    });
    let lets_guests_in = tokio::runtime::Handle::current().metrics().num_workers() > 1;
    let host = |kind: HostKind, shards: usize| HostConfig {
        cluster,
        node,
        raft: settings.raft.clone(),
        shards,
        // The metadata is not asked often, and its guests would be in the way of the partitions'.
        lets_guests_in: lets_guests_in && kind == HostKind::Partitions,
        readers: settings.readers,
        seed: node.0 ^ uuid::Uuid::new_v4().as_u64_pair().0,
        send: transport.sender(kind),
        on_fatal: on_fatal.clone(),
    };
    let metadata = host(HostKind::Metadata, 1);
    let partitions = host(HostKind::Partitions, settings.shards);
    let room = Room::new(settings.append_room_bytes);
    let dir = opened.dir.clone();
    let started = tokio::task::spawn_blocking(move || {
        Node::start(identity, &dir, metadata, partitions, room)
    });
    Ok(Arc::new(started.await.expect("starting a node does not panic")?))
}

fn start_tasks(
    settings: &Settings,
    context: &Context,
    registration: cluster::command::Node,
    readiness: Readiness,
    fatal: &Arc<watch::Sender<Option<String>>>,
) -> JoinSet<()> {
    let (found, present) = watch::channel(None);
    let (node, proposer) = (context.node(), context.proposer().clone());
    let mut tasks = Tasks { set: JoinSet::new(), fatal: fatal.clone() };
    let at = node.clone();
    tasks.spawn(async move { at.follow().await });
    tasks.spawn(upkeep::find_present(proposer.clone(), found));
    let failing = fatal.clone();
    let fail = move |reason: &str| drop(failing.send_replace(Some(reason.to_owned())));
    let known = present.clone();
    tasks.spawn(upkeep::reconcile(node.clone(), proposer.clone(), known, readiness, fail));
    let (at, failing) = (node.clone(), fatal.clone());
    tasks.spawn(async move {
        if let Err(refusal) = upkeep::register(at, proposer, registration, present).await {
            failing.send_replace(Some(refusal.to_string()));
        }
    });
    tasks.spawn(retain::retain(context.clone(), settings.retention_every));
    tasks.spawn(groups::tell(context.clone()));
    tasks.spawn(groups::watch_over(context.clone()));
    tasks.spawn(groups::forget(context.clone()));
    tasks.spawn(groups::coordinate(context.clone()));
    tasks.spawn(announce::announce(context.clone()));
    tasks.spawn(Mover::new(context.clone()).run());
    tasks.spawn(controller::control(context.clone()));
    tasks.set
}

/// Tasks that a node cannot be without.
struct Tasks {
    set: JoinSet<()>,
    fatal: Arc<watch::Sender<Option<String>>>,
}

impl Tasks {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        let alarm = Alarm(self.fatal.clone());
        self.set.spawn(async move {
            task.await;
            drop(alarm);
        });
    }
}

/// Ends the node when a task of it panics.
struct Alarm(Arc<watch::Sender<Option<String>>>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.send_replace(Some("a task of the node panicked".to_owned()));
        }
    }
}

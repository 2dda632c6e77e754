//! Nodes in one process: real files, threads and connections; Raft frames take a short cut.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quipu::batch::{BatchBuilder, Codec, Limits as BatchLimits, Record};
use quipu::cluster::command::{
    Command, CreateTopic, Id, Node as NodeRecord, Placement, RegisterNode, TopicConfig, Verb,
};
use quipu::cluster::{Answer, Founder, Founding, Identity, Metadata, Node};
use quipu::partition::Room;
use quipu::proto::server::log_service_client::LogServiceClient;
use quipu::proto::server::{ErrorReason, ProduceRequest};
use quipu::raft::{Config, Host, HostConfig, Machine, Membership, create_replica};
use quipu::rpc::limits::{Door, Limits, server_builder};
use quipu::rpc::{Channels, ClusterApi, Context, Counters, LogApi, TopicApi, accept, status};
use quipu::storage::{self, DataDir, SyncRequest};
use quipu::types::{ClusterId, LogId, NodeId, ReplicaId};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use crate::filling::FillingFs;

/// How long something may take that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);
const CLUSTER: Uuid = Uuid::from_u128(0xC1);

pub type Client = LogServiceClient<Channel>;

type Hosts<M> = [OnceLock<std::sync::Weak<Host<M>>>; 3];

/// Where frames go.
#[derive(Default)]
struct Network {
    metadata: Hosts<Metadata>,
    partitions: Hosts<quipu::partition::Replica>,
}

/// A node with its service on a port.
pub struct Served {
    pub node: Arc<Node>,
    pub context: Context,
    pub address: SocketAddr,
    /// Its disk has no room for more.
    pub is_full: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
}

/// Some nodes.
pub struct Cluster {
    pub nodes: Vec<Served>,
    dir: TempDir,
}

impl Cluster {
    /// Founds a cluster of `count` nodes and waits until its metadata is led.
    pub async fn found(count: u64, limits: Limits) -> Self {
        let dir = TempDir::new().unwrap();
        let mut listeners = Vec::new();
        for _ in 0..count {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let network: Arc<Network> = Arc::default();
        let full: Vec<Arc<AtomicBool>> = (0..count).map(|_| Arc::default()).collect();
        let dirs: Vec<_> =
            (1..=count).zip(&full).map(|(n, full)| open_dir(dir.path(), n, full)).collect();
        let founders: Vec<Founder> = (1..=count)
            .zip(&listeners)
            .map(|(node, listener)| Founder {
                node,
                directory: Uuid::from_u128(node.into()).into(),
                peer_address: listener.local_addr().unwrap().to_string(),
            })
            .collect();
        let founding = Founding { cluster: CLUSTER.into(), founders };
        let mut nodes = Vec::new();
        for ((n, dir), listener) in (1..=count).zip(dirs).zip(listeners) {
            let is_full = full[n as usize - 1].clone();
            let mut served = start(n, &dir, &founding, &network, listener, &limits);
            served.is_full = is_full;
            nodes.push(served);
        }
        let cluster = Self { nodes, dir };
        for founder in &founding.founders {
            cluster.propose(Verb::RegisterNode(registration(founder)).into()).await;
        }
        cluster
    }

    /// A cluster of one node with the usual limits.
    pub async fn of_one() -> Self {
        Self::found(1, Limits::default()).await
    }

    /// Has the metadata follow a command, on whichever node leads it.
    pub async fn propose(&self, command: Command) {
        let started = Instant::now();
        loop {
            for served in &self.nodes {
                match served.node.propose(command.clone()).await {
                    Answer::Followed { index, .. } => {
                        for other in &self.nodes {
                            other.node.wait_for_state(index).await;
                        }
                        return;
                    }
                    Answer::NotLeader { .. } => {}
                    other => panic!("{command:?}: {other:?}"),
                }
            }
            assert!(started.elapsed() < PATIENCE, "nobody leads the metadata");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Makes a topic whose partitions are on the nodes `placements` names, and waits for leaders.
    pub async fn create(&self, name: &str, config: TopicConfig, placements: &[&[u64]]) {
        let id = Id { high: Uuid::new_v4().as_u64_pair().0, low: 0 };
        let partitions: Vec<Placement> =
            placements.iter().map(|nodes| Placement { nodes: nodes.to_vec() }).collect();
        let create = CreateTopic { id, name: name.to_owned(), config, partitions };
        self.propose(Verb::CreateTopic(create).into()).await;
        for n in 0..placements.len() {
            self.leader(name, n as u32).await;
        }
    }

    /// Makes a topic with `partitions` partitions on all nodes.
    pub async fn topic(&self, name: &str, partitions: usize) {
        let nodes: Vec<u64> = self.nodes.iter().map(|served| served.node.id().0).collect();
        let placements = vec![nodes.as_slice(); partitions];
        self.create(name, TopicConfig::default(), &placements).await;
    }

    /// The log of a partition.
    pub fn log(&self, topic: &str, partition: u32) -> LogId {
        self.nodes[0].node.state().topic_named(topic).unwrap().log_id(partition)
    }

    /// The segments of a partition's log on a node, in order.
    pub fn segments(&self, node: u64, topic: &str, partition: u32) -> Vec<PathBuf> {
        let log = self.log(topic, partition).to_string();
        let files = self.dir.path().join(node.to_string()).join("logs").join(log);
        let files = std::fs::read_dir(files).unwrap().map(|file| file.unwrap().path());
        let mut segments: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
        segments.sort();
        segments
    }

    /// The node that leads a partition, once one does and all others know it.
    pub async fn leader(&self, topic: &str, partition: u32) -> &Served {
        let log = self.log(topic, partition);
        let started = Instant::now();
        loop {
            let leads = |served: &&Served| {
                served.node.replica(log).is_some_and(|handle| handle.is_leader())
            };
            if let Some(leader) = self.nodes.iter().find(leads) {
                let (id, term) =
                    (leader.node.id(), leader.node.replica(log).unwrap().status().term);
                self.nodes.iter().for_each(|other| other.node.leaders().learn(id, [(log, term)]));
                let knows = |served: &Served| {
                    served.node.leader_of(log).is_some_and(|known| known.node == id)
                };
                if self.nodes.iter().all(knows) {
                    return leader;
                }
            }
            assert!(started.elapsed() < PATIENCE, "nobody leads {topic}/{partition}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The nodes that do not lead a partition.
    pub async fn others(&self, topic: &str, partition: u32) -> Vec<&Served> {
        let leader = self.leader(topic, partition).await.node.id();
        self.nodes.iter().filter(|served| served.node.id() != leader).collect()
    }

    /// The high watermark of a partition on its leader.
    pub async fn high_watermark(&self, topic: &str, partition: u32) -> u64 {
        let leader = self.leader(topic, partition).await;
        leader.node.replica(self.log(topic, partition)).unwrap().barrier().await.unwrap()
    }
}

impl Served {
    /// A connection of its own.
    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// A client of its own connection.
    pub async fn client(&self) -> Client {
        LogServiceClient::new(self.channel().await)
            .max_encoding_message_size(64 << 20)
            .max_decoding_message_size(64 << 20)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

fn registration(founder: &Founder) -> RegisterNode {
    let node = NodeRecord {
        id: founder.node,
        directory: founder.directory,
        address: format!("client-{}", founder.node),
        peer_address: founder.peer_address.clone(),
        ..NodeRecord::default()
    };
    RegisterNode { node, is_founder: true, replaces: None }
}

fn open_dir(root: &Path, node: u64, is_full: &Arc<AtomicBool>) -> Arc<DataDir> {
    let config = storage::Config {
        segment_bytes: 4 << 20,
        low_water_bytes: 0,
        reserve_bytes: 0,
        ..storage::Config::default()
    };
    let dir =
        DataDir::open(Arc::new(FillingFs::new(is_full)), &root.join(node.to_string()), config);
    Arc::new(dir.unwrap())
}

fn start(
    n: u64,
    dir: &Arc<DataDir>,
    founding: &Founding,
    network: &Arc<Network>,
    listener: TcpListener,
    limits: &Limits,
) -> Served {
    let directory = Uuid::from_u128(n.into()).into();
    let identity =
        Identity { node: n, directory, founding: Some(founding.clone()), incarnation: 1 };
    identity.store(dir).unwrap();
    let voters = founding.founders.iter().map(|f| ReplicaId::new(NodeId(f.node), 1));
    found_metadata(dir, founding.metadata_log(), &Membership::of_voters(voters));
    let metadata = host_config(n, network, |network| &network.metadata);
    let partitions = host_config(n, network, |network| &network.partitions);
    let room = Room::new(64 << 20);
    let node = Arc::new(Node::start(identity, dir, metadata, partitions, room).unwrap());
    let at = n as usize - 1;
    network.metadata[at].set(Arc::downgrade(node.metadata_host())).unwrap();
    network.partitions[at].set(Arc::downgrade(node.partition_host())).unwrap();
    let following = node.clone();
    tokio::spawn(async move { following.follow().await });
    tokio::spawn(reconcile(node.clone()));
    // The metadata, which would give them out, is not asked over these connections.
    node.put_producer_ids(n * 1_000_000..(n + 1) * 1_000_000);
    let (channels, counters) = (Arc::new(Channels::default()), Arc::new(Counters::default()));
    let context = Context::new(node.clone(), channels, limits.clone(), counters.clone());
    let (stop, mut stopped) = watch::channel(false);
    let address = listener.local_addr().unwrap();
    let shutdown = async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let incoming = accept::incoming(listener, Door::Clients, limits, counters, shutdown);
    let router = server_builder(Door::Clients, limits)
        .add_service(LogApi::new(context.clone()).into_service())
        .add_service(TopicApi::new(context.clone()).into_service())
        .add_service(ClusterApi::new(context.clone()).into_service());
    tokio::spawn(router.serve_with_incoming(incoming));
    let is_full = Arc::default();
    Served { node, context, address, is_full, stop }
}

/// Keeps the replicas of a node as the metadata wants them.
async fn reconcile(node: Arc<Node>) {
    let mut states = node.watch_state();
    while states.changed().await.is_ok() {
        let (state, node) = (states.borrow_and_update().clone(), node.clone());
        let reconcile = move || node.registry().reconcile(&state, true).map(drop);
        tokio::task::spawn_blocking(reconcile).await.unwrap().unwrap();
    }
}

fn found_metadata(dir: &Arc<DataDir>, log: LogId, members: &Membership) {
    let (done, is_done) = sync_channel(1);
    let syncer = dir.start_syncer(Box::new(move |round| {
        done.send(round.map(<[u64]>::len).unwrap()).unwrap();
    }));
    let log = create_replica::<Metadata>(dir, log, Some(members)).unwrap();
    syncer.submit(SyncRequest { log: Some(log.syncer_handle()), token: 1 });
    assert_eq!(is_done.recv().unwrap(), 1);
    dir.journal().sync().unwrap();
}

fn host_config<M: Machine + Send + 'static>(
    node: u64,
    network: &Arc<Network>,
    hosts: fn(&Network) -> &Hosts<M>,
) -> HostConfig
where
    M::Ask: Send,
    M::Answer: Send,
{
    let ways = [0, 1, 2].map(|to| {
        let (way, frames) = sync_channel::<Bytes>(1024);
        let network = Arc::downgrade(network);
        std::thread::spawn(move || {
            for frame in frames {
                let Some(network) = network.upgrade() else { return };
                let host = hosts(&network)[to].get().and_then(std::sync::Weak::upgrade);
                if let Some(host) = host {
                    host.deliver(NodeId(node), frame).unwrap();
                }
            }
        });
        way
    });
    let network = network.clone();
    HostConfig {
        cluster: ClusterId(CLUSTER),
        node: NodeId(node),
        raft: Config { tick_ms: 20, election_ticks: 25, heartbeat_ticks: 5, ..Config::default() },
        shards: 1,
        lets_guests_in: true,
        readers: 1,
        seed: node,
        send: Arc::new(move |to, _lane, frame| {
            let _alive = &network;
            ways[to.0 as usize - 1].try_send(frame.to_bytes()).is_ok()
        }),
        // A panic would end the process. The directory goes while the last threads still run.
        on_fatal: Arc::new(|error| println!("the disk failed: {error}")),
    }
}

/// A batch of records that say `numbers`, each `len` bytes long.
pub fn batch_of(numbers: impl IntoIterator<Item = u64>, len: usize, codec: Codec) -> Bytes {
    let mut builder = BatchBuilder::new(BatchLimits::default());
    for number in numbers {
        let mut value = number.to_le_bytes().to_vec();
        value.resize(len.max(8), number as u8);
        builder.append(&Record { value: Some(&value), ..Record::default() }).unwrap();
    }
    builder.build(codec).unwrap()
}

/// A request to store one record that says `number`.
pub fn request(topic: &str, partition: u32, number: u64) -> ProduceRequest {
    ProduceRequest {
        topic: topic.to_owned(),
        partition,
        batch: batch_of([number], 8, Codec::None),
        ..ProduceRequest::default()
    }
}

/// The reason of a failed call.
#[track_caller]
pub fn reason<T: std::fmt::Debug>(outcome: Result<T, Status>) -> ErrorReason {
    let status = outcome.expect_err("the call did not fail");
    status::reason_of(&status).unwrap_or_else(|| panic!("no reason in {status:?}"))
}

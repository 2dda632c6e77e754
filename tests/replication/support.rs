//! Three nodes in one process: real files and threads, and a network of channels.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quipu::partition::{Batch, Handle, Replica, Room};
use quipu::raft::{
    Config, Durability, Host, HostConfig, Membership, SendFrame, create_replica, open_replica,
};
use quipu::storage::fs::Fs;
use quipu::storage::fs::os::OsFs;
use quipu::storage::{self, DataDir, SyncRequest};
use quipu::types::{ClusterId, LogId, NodeId, ReplicaId};
use uuid::Uuid;

pub const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(0xC1));
const PATIENCE: Duration = Duration::from_secs(60);

/// The partition with this number.
pub fn partition(n: u128) -> LogId {
    LogId(Uuid::from_u128(0xAA00_0000 + n))
}

/// Short times, so that elections do not make the tests long.
pub fn raft_config() -> Config {
    Config { tick_ms: 20, election_ticks: 25, heartbeat_ticks: 5, ..Config::default() }
}

/// Carries frames between nodes, each on a thread of its own. Nodes can be cut off.
#[derive(Default)]
pub struct Network {
    hosts: [OnceLock<Arc<Host<Replica>>>; 3],
    cut_off: Mutex<BTreeSet<NodeId>>,
}

impl Network {
    fn host(&self, node: NodeId) -> Option<&Arc<Host<Replica>>> {
        self.hosts[node.0 as usize - 1].get()
    }

    pub fn cut_off(&self, node: NodeId) {
        self.cut_off.lock().unwrap().insert(node);
    }

    pub fn heal(&self) {
        self.cut_off.lock().unwrap().clear();
    }

    fn passes(&self, from: NodeId, to: NodeId) -> bool {
        let cut_off = self.cut_off.lock().unwrap();
        !cut_off.contains(&from) && !cut_off.contains(&to)
    }
}

/// What a node sends on its way: a bounded queue and a thread for each way out.
fn sender(network: &Arc<Network>, from: NodeId) -> SendFrame {
    let ways = [1, 2, 3].map(|to| {
        let (way, frames) = sync_channel::<Bytes>(1024);
        let (network, to) = (Arc::downgrade(network), NodeId(to));
        std::thread::spawn(move || {
            for bytes in frames {
                let Some(network) = network.upgrade() else { return };
                if let Some(host) = network.host(to).filter(|_| network.passes(from, to)) {
                    host.deliver(from, bytes).unwrap();
                }
            }
        });
        way
    });
    Arc::new(move |to, _lane, frame| ways[to.0 as usize - 1].try_send(frame.to_bytes()).is_ok())
}

/// What kind of cluster.
#[derive(Clone)]
pub struct Setup {
    pub partitions: u128,
    pub durability: Durability,
    pub storage: storage::Config,
    pub raft: Config,
    /// The file system of each node.
    pub fs: [Arc<dyn Fs>; 3],
}

impl Setup {
    /// Small segments and short times.
    pub fn for_tests(partitions: u128, durability: Durability) -> Self {
        let (storage, raft, fs) = (small_segments(), raft_config(), real_files());
        Self { partitions, durability, storage, raft, fs }
    }
}

/// Three nodes, or what is left of them.
pub struct Cluster {
    pub network: Arc<Network>,
    pub handles: Vec<Vec<Handle>>,
}

impl Drop for Cluster {
    /// The nodes end before their directories go: on the network somebody may still hold on to one.
    fn drop(&mut self) {
        self.network.hosts.iter().filter_map(OnceLock::get).for_each(|host| host.stop());
    }
}

impl Cluster {
    /// Founds partitions on three nodes with directories below `root`.
    pub fn found(root: &Path, setup: &Setup) -> Self {
        let members = Membership::of_voters([1, 2, 3].map(|n| ReplicaId::new(NodeId(n), 1)));
        for node in 1..=3 {
            let dir = Arc::new(open_dir(root, NodeId(node), setup));
            let (done, is_done) = sync_channel(1);
            let syncer = dir.start_syncer(Box::new(move |round| {
                done.send(round.map(<[u64]>::len).unwrap()).unwrap();
            }));
            for n in 0..setup.partitions {
                let log = create_replica::<Replica>(&dir, partition(n), Some(&members)).unwrap();
                syncer.submit(SyncRequest { log: Some(log.syncer_handle()), token: 1 });
            }
            let mut synced = 0;
            while synced < setup.partitions {
                synced += is_done.recv().unwrap() as u128;
            }
            dir.journal().sync().unwrap();
        }
        Self::start(root, setup)
    }

    /// Starts three nodes that have been there before.
    pub fn start(root: &Path, setup: &Setup) -> Self {
        let network = Arc::new(Network::default());
        let handles = [1, 2, 3].map(NodeId).map(|node| {
            let dir = Arc::new(open_dir(root, node, setup));
            let config = HostConfig {
                cluster: CLUSTER,
                node,
                raft: setup.raft.clone(),
                shards: 1,
                lets_guests_in: true,
                readers: 1,
                seed: node.0,
                send: sender(&network, node),
                on_fatal: Arc::new(|error| panic!("the disk failed: {error}")),
            };
            let host = Arc::new(Host::start(config, dir.clone()));
            let room = Room::new(64 * 1024 * 1024);
            let open = |n| {
                let replica = ReplicaId::new(node, 1);
                let opened = open_replica(&dir, partition(n), replica, setup.durability).unwrap();
                let hosted = host.open(opened).unwrap();
                Handle::new(partition(n), host.clone(), hosted, room.clone())
            };
            let handles = (0..setup.partitions).map(open).collect();
            assert!(network.hosts[node.0 as usize - 1].set(host).is_ok());
            handles
        });
        Self { network, handles: handles.into() }
    }

    pub fn host(&self, node: NodeId) -> &Arc<Host<Replica>> {
        self.network.host(node).unwrap()
    }

    /// The handle of partition `n` on the node that leads it, once one does.
    pub fn leader(&self, n: usize) -> &Handle {
        let leads = |handle: &&Handle| handle.is_leader();
        wait_for("a leader", || {
            let leaders = self.handles.iter().map(|handles| &handles[n]).filter(leads);
            leaders.max_by_key(|handle| handle.status().term)
        })
    }
}

/// Waits until `look` finds something.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The file system of the machine, three times.
pub fn real_files() -> [Arc<dyn Fs>; 3] {
    [1, 2, 3].map(|_| -> Arc<dyn Fs> { Arc::new(OsFs::new()) })
}

fn small_segments() -> storage::Config {
    storage::Config {
        segment_bytes: 256 * 1024,
        low_water_bytes: 0,
        reserve_bytes: 0,
        ..storage::Config::default()
    }
}

fn open_dir(root: &Path, node: NodeId, setup: &Setup) -> DataDir {
    let (fs, config) = (setup.fs[node.0 as usize - 1].clone(), setup.storage.clone());
    DataDir::open(fs, &root.join(node.to_string()), config).unwrap()
}

/// A batch of one record without producer, `len` bytes long, that says `n`.
pub fn batch(n: u64, len: usize) -> Batch {
    let mut payload = n.to_le_bytes().to_vec();
    payload.resize(len.max(8), n as u8);
    let payload = Bytes::from(payload);
    Batch {
        payload_crc: crc32fast::hash(&payload),
        payload,
        record_count: 1,
        format: 0,
        producer_id: 0,
        producer_epoch: 0,
        base_sequence: 0,
    }
}

/// All that can be read of a partition on one node: each record's number, by offset.
pub fn read_all(handle: &Handle) -> Vec<u64> {
    let mut read = Vec::new();
    let mut offset = handle.reader().log_start_offset();
    loop {
        let fetched = handle.fetch(offset, 1 << 20, storage::Access::MayBlock).unwrap();
        if fetched.batches.is_empty() {
            return read;
        }
        for entry in &fetched.batches {
            assert_eq!(entry.header.base_offset, read.len() as u64, "offsets are dense");
            read.push(u64::from_le_bytes(entry.payload[..8].try_into().unwrap()));
        }
        offset = fetched.next_offset;
    }
}

//! Clusters of servers in one process, over loopback.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use quipu::server::{Server, Settings};
use quipu::types::NodeId;
use quipu::{raft, rpc, storage};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// Short times, so that elections do not make the tests long.
fn raft_config() -> raft::Config {
    raft::Config { tick_ms: 20, election_ticks: 20, heartbeat_ticks: 4, ..raft::Config::default() }
}

/// Ports below those that the system gives to whoever asks for any: nobody gets one of them between
/// the moment when it is found to be free and the one when it is used.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// An address that is free, and that this process gives out once.
pub fn free_address() -> SocketAddr {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(997);
    let is_free = |address: &SocketAddr| TcpListener::bind(address).is_ok();
    let next = || {
        let n = first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + (n % PORTS.len() as u32) as u16;
        Some(SocketAddr::from(([127, 0, 0, 1], port)))
    };
    std::iter::from_fn(next).find(is_free).expect("it is looked for until one is found")
}

/// What node `node` is told, to found a cluster with `seeds`.
pub fn settings(root: &Path, node: u64, peer: SocketAddr, seeds: &[(u64, SocketAddr)]) -> Settings {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    Settings {
        node: NodeId(node),
        data_dir: root.join(node.to_string()),
        listen: any,
        peer_listen: peer,
        http_listen: None,
        advertise: any.to_string(),
        peer_advertise: peer.to_string(),
        seeds: seeds.iter().map(|(node, address)| (NodeId(*node), address.to_string())).collect(),
        is_joining: false,
        rack: String::new(),
        shards: 1,
        readers: 1,
        append_room_bytes: 64 * 1024 * 1024,
        storage: storage::Config {
            segment_bytes: 1024 * 1024,
            low_water_bytes: 0,
            reserve_bytes: 0,
            ..storage::Config::default()
        },
        raft: raft_config(),
        retention_every: Duration::from_millis(200),
        drain_timeout: Duration::from_secs(5),
        http_connections_max: 8,
        limits: rpc::Limits::default(),
    }
}

/// Servers of one cluster, some of them maybe stopped.
pub struct Cluster {
    _root: tempfile::TempDir,
    pub settings: Vec<Settings>,
    pub servers: Vec<Option<Server>>,
}

impl Cluster {
    /// Starts `nodes` servers that found a cluster, and waits until all are ready.
    pub async fn start(nodes: u64) -> Self {
        Self::start_with(nodes, |_| {}).await
    }

    /// The same with other settings.
    pub async fn start_with(nodes: u64, change: impl Fn(&mut Settings)) -> Self {
        crate::log();
        let root = tempfile::tempdir().unwrap();
        let seeds: Vec<_> = (1..=nodes).map(|node| (node, free_address())).collect();
        let mut settings: Vec<_> =
            seeds.iter().map(|(node, peer)| settings(root.path(), *node, *peer, &seeds)).collect();
        settings.iter_mut().for_each(change);
        // They wait for each other: one that cannot start has to end all of it.
        let start = async |one| tokio::spawn(Server::start(one)).await.unwrap();
        let started = try_join_all(settings.iter().cloned().map(start)).await;
        let servers = started.expect("all servers start").into_iter().map(Some).collect();
        let cluster = Self { _root: root, settings, servers };
        for server in cluster.servers.iter().flatten() {
            server.wait_until_ready().await;
        }
        cluster
    }

    pub fn server(&self, n: usize) -> &Server {
        self.servers[n].as_ref().expect("the server runs")
    }

    /// Stops one in order.
    pub async fn stop(&mut self, n: usize) {
        self.servers[n].take().expect("the server runs").stop().await;
    }

    /// Starts one again.
    pub async fn restart(&mut self, n: usize) {
        let server = Server::start(self.settings[n].clone()).await.unwrap();
        server.wait_until_ready().await;
        self.servers[n] = Some(server);
    }
}

/// Waits until `look` finds something.
pub async fn wait_for<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

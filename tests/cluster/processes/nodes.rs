//! The processes of a cluster: started, killed and asked how they are.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::process::{ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use quipu::client::{Client, ClientConfig};
use quipu::proto::client::{CreateTopicRequest, DescribeClusterResponse, Topic};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{sleep, timeout};

use crate::support::free_address;

pub const TOPIC: &str = "cords";
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(25);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Elections within a second, nothing kept free on the disk, segments that roll soon.
const SETTINGS: [&str; 7] = [
    "--raft-tick-ms=20",
    "--raft-election-ticks=25",
    "--raft-heartbeat-ticks=4",
    "--storage-low-water-bytes=0",
    "--storage-reserve-bytes=0",
    "--storage-segment-bytes=1MiB",
    "--shards=1",
];

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A node, running or not.
pub struct Node {
    pub id: u64,
    pub data_dir: PathBuf,
    log: PathBuf,
    /// For clients, for nodes, for metrics.
    addresses: [String; 3],
    seeds: String,
    is_joining: bool,
    /// Killed when it is dropped.
    process: Option<Child>,
}

impl Node {
    pub fn spawn(&mut self) {
        let [clients, peers, http] = &self.addresses;
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let mut command = quipu();
        command
            .args(["serve", "--node-id", &self.id.to_string(), "--seeds", &self.seeds])
            .args(["--listen", clients, "--peer-listen", peers, "--http-listen", http])
            .args(SETTINGS)
            .arg("--data-dir")
            .arg(&self.data_dir)
            .stdout(Stdio::null())
            .stderr(log);
        if self.is_joining {
            command.arg("--join");
        }
        assert!(self.process.is_none(), "node {} runs already", self.id);
        self.process = Some(command.spawn().unwrap());
    }

    fn process(&mut self) -> &mut Child {
        self.process.as_mut().expect("the node runs")
    }

    pub fn signal(&mut self, signal: Signal) {
        self::signal(self.process(), signal);
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub async fn kill(&mut self) {
        self.process.take().expect("the node runs").kill().await.unwrap();
    }

    /// Ends it in order.
    pub async fn terminate(&mut self) {
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "node {} ended with {status}:\n{}", self.id, self.said());
    }

    /// Waits until it has ended.
    async fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the node runs");
        timeout(PATIENCE, process.wait()).await.expect("the node does not end").unwrap()
    }

    /// What it has logged.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where it listens for clients.
    pub fn address(&self) -> &str {
        &self.addresses[0]
    }

    /// A client that is told of this node only.
    pub fn client(&self) -> Client {
        Client::new(ClientConfig::new([self.addresses[0].clone()])).unwrap()
    }
}

/// The nodes of a cluster, by id from 1.
pub struct Cluster {
    root: tempfile::TempDir,
    nodes: Vec<Node>,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts `count` nodes and waits until they are one cluster.
    pub async fn start(count: u64) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let root = tempfile::tempdir().unwrap();
        let addresses: Vec<_> = (0..count).map(|_| free_addresses()).collect();
        let seeds =
            (1..).zip(&addresses).map(|(id, [_, peers, _]): (u64, _)| format!("{id}@{peers}"));
        let seeds = seeds.collect::<Vec<_>>().join(",");
        let mut cluster = Self { root, nodes: Vec::new(), _turn: turn };
        for addresses in addresses {
            cluster.add(addresses, seeds.clone(), false);
        }
        cluster.nodes.iter_mut().for_each(Node::spawn);
        cluster.wait_until_whole().await;
        cluster
    }

    fn add(&mut self, addresses: [String; 3], seeds: String, is_joining: bool) -> &mut Node {
        let id = self.nodes.len() as u64 + 1;
        let node = self.unstarted(id, &format!("node-{id}"), addresses, seeds, is_joining);
        self.nodes.push(node);
        self.node(id)
    }

    fn unstarted(
        &self,
        id: u64,
        name: &str,
        addresses: [String; 3],
        seeds: String,
        is_joining: bool,
    ) -> Node {
        let data_dir = self.root.path().join(name);
        let log = self.root.path().join(format!("{name}.log"));
        Node { id, data_dir, log, addresses, seeds, is_joining, process: None }
    }

    /// Starts one more node with `--join`.
    pub async fn join(&mut self) -> u64 {
        let seeds = self.nodes[0].seeds.clone();
        let node = self.add(free_addresses(), seeds, true);
        node.spawn();
        let id = node.id;
        self.wait_until_whole().await;
        id
    }

    /// A node with the id and the seeds of another, and its own ports and directory.
    pub fn double(&self, id: u64) -> Node {
        let seeds = self.nodes[id as usize - 1].seeds.clone();
        self.unstarted(id, "double", free_addresses(), seeds, false)
    }

    pub fn node(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    pub fn ids(&self) -> impl Iterator<Item = u64> + use<> {
        1..=self.nodes.len() as u64
    }

    fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.process.is_some())
    }

    /// A client that is told of all nodes.
    pub fn client(&self) -> Client {
        let servers = self.nodes.iter().map(|node| node.addresses[0].clone());
        Client::new(ClientConfig::new(servers)).unwrap()
    }

    /// The cluster as a node sees it.
    pub async fn seen_by(&self, id: u64) -> Option<DescribeClusterResponse> {
        let client = self.nodes[id as usize - 1].client();
        timeout(Duration::from_secs(2), client.describe_cluster()).await.ok()?.ok()
    }

    /// Waits until every node that runs sees every node that runs, and no partition without leader
    /// or on its way.
    pub async fn wait_until_whole(&mut self) {
        let ids: Vec<_> = self.running().map(|node| node.id).collect();
        for id in &ids {
            wait_for(&format!("node {id} as part of the cluster"), async || {
                self.expect_all_run();
                let seen = self.seen_by(*id).await?;
                let alive = seen.nodes.iter().filter(|node| node.is_alive).map(|node| node.id);
                let is_whole = ids.iter().all(|id| alive.clone().any(|alive| alive == *id));
                let is_led = seen.leaderless_partitions == 0 && seen.metadata_leader != 0;
                (is_whole && is_led && seen.moving_partitions == 0).then_some(())
            })
            .await;
        }
    }

    fn expect_all_run(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.process.is_some()) {
            if let Some(status) = node.process().try_wait().unwrap() {
                panic!("node {} ended with {status}:\n{}", node.id, node.said());
            }
        }
    }

    /// Makes the topic of the tests.
    pub async fn create_topic(&self, partitions: u32, replicas: u32) -> Topic {
        self.create(TOPIC, partitions, replicas).await
    }

    /// Makes a topic.
    pub async fn create(&self, name: &str, partitions: u32, replicas: u32) -> Topic {
        let request = CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            replicas,
            ..CreateTopicRequest::default()
        };
        self.client().create_topic(request).await.unwrap()
    }

    /// Runs a command against the cluster, and returns what it came to.
    pub async fn try_run(&self, args: &[&str]) -> Output {
        let server = &self.nodes[0].addresses[0];
        quipu().args(args).args(["--server", server]).output().await.unwrap()
    }

    /// Starts a command that is told of all nodes. What it prints goes to a file below the root.
    pub fn spawn(&self, args: &[&str], output: &str) -> (Child, PathBuf) {
        let path = self.root.path().join(output);
        let servers: Vec<_> = self.nodes.iter().map(Node::address).collect();
        let mut command = quipu();
        command.args(args).args(["--server", &servers.join(",")]);
        command.stdout(File::create(&path).unwrap()).stderr(Stdio::null());
        (command.spawn().unwrap(), path)
    }

    /// Runs a command against the cluster.
    pub async fn run(&self, args: &[&str]) {
        let run = self.try_run(args).await;
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "quipu {args:?}: {}: {said}", run.status);
    }
}

impl Drop for Cluster {
    /// What the nodes have said tells why a test failed.
    fn drop(&mut self) {
        for node in self.nodes.iter().filter(|_| std::thread::panicking()) {
            println!("node {} said:\n{}", node.id, node.said());
        }
    }
}

/// The program, told nothing by the environment.
fn quipu() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quipu"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUIPU_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Sends a signal to a process that has not ended.
pub fn signal(process: &Child, signal: Signal) {
    let id = process.id().expect("it has not ended by itself");
    let id = Pid::from_raw(id.try_into().unwrap()).unwrap();
    kill_process(id, signal).unwrap();
}

fn free_addresses() -> [String; 3] {
    [(); 3].map(|()| free_address().to_string())
}

/// Waits until `look` finds something.
pub async fn wait_for<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            println!("{what} after {} ms", started.elapsed().as_millis());
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what} does not come");
        sleep(LOOK_EVERY).await;
    }
}

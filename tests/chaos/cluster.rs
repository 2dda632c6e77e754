//! The nodes of a cluster, each in its place, and what clients are told of them.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use quipu::client::{Client, ClientConfig};
use quipu::proto::client::{CreateTopicRequest, DescribeClusterResponse, Topic};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use crate::bed::Bed;
use crate::clients::{TOPIC, World};
use crate::rng::Rng;

/// How long anything may take that nobody is in the way of.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Elections within a second, segments that roll soon, nothing kept free on the disk but a little.
const SETTINGS: [&str; 7] = [
    "--raft-tick-ms=20",
    "--raft-election-ticks=25",
    "--raft-heartbeat-ticks=4",
    "--storage-low-water-bytes=16MiB",
    "--storage-reserve-bytes=4MiB",
    "--storage-segment-bytes=1MiB",
    "--shards=1",
];

/// A node, running or not.
pub(crate) struct Node {
    pub(crate) id: u64,
    is_joining: bool,
    /// Something is done to it that it may end by.
    pub(crate) may_end: bool,
    is_stopped: bool,
    process: Option<Child>,
}

impl Node {
    /// The number of its process, if it runs.
    pub(crate) fn process_id(&self) -> Option<u32> {
        self.process.as_ref().and_then(Child::id)
    }
}

/// The nodes by place; some places are empty.
pub(crate) struct Cluster {
    pub(crate) bed: Bed,
    pub(crate) world: Arc<World>,
    nodes: Vec<Option<Node>>,
    last_id: u64,
    bug: Option<String>,
}

impl Cluster {
    /// Starts a node in all places but the last, and makes them one cluster with one topic.
    pub(crate) async fn start(
        bed: Bed,
        places: usize,
        world: Arc<World>,
        bug: Option<String>,
    ) -> Result<Self> {
        let nodes = (0..places).map(|_| None).collect();
        let mut cluster = Self { bed, world, nodes, last_id: 0, bug };
        for place in 0..places - 1 {
            cluster.settle(place, false);
        }
        for place in 0..places - 1 {
            cluster.spawn(place)?;
        }
        cluster.wait_until_whole().await?;
        let (name, partitions, replicas) = (TOPIC.to_owned(), cluster.world.partitions, 3);
        let request =
            CreateTopicRequest { name, partitions, replicas, ..CreateTopicRequest::default() };
        cluster.client().create_topic(request).await?;
        Ok(cluster)
    }

    /// A node of its own lives in a place from now on. It is not started.
    pub(crate) fn settle(&mut self, place: usize, is_joining: bool) -> u64 {
        assert!(self.nodes[place].is_none(), "place {place} is taken");
        self.last_id += 1;
        let (id, may_end, is_stopped, process) = (self.last_id, false, false, None);
        self.nodes[place] = Some(Node { id, is_joining, may_end, is_stopped, process });
        let server = self.bed.addresses(place)[0].clone();
        self.world.set_server(place, Some(server));
        id
    }

    /// The node of a place is no more, nor is its directory.
    pub(crate) fn clear_out(&mut self, place: usize) -> Result<()> {
        let node = self.nodes[place].take().expect("somebody lives there");
        assert!(node.process.is_none(), "node {} still runs", node.id);
        self.world.set_server(place, None);
        Ok(fs::remove_dir_all(self.bed.dir(place))?)
    }

    /// The places where nodes live, and one where none does.
    pub(crate) fn places(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|place| self.nodes[*place].is_some()).collect()
    }

    pub(crate) fn empty_place(&self) -> usize {
        let empty = (0..self.nodes.len()).find(|place| self.nodes[*place].is_none());
        empty.expect("a place is empty")
    }

    pub(crate) fn node(&mut self, place: usize) -> &mut Node {
        self.nodes[place].as_mut().expect("somebody lives there")
    }

    fn log_path(&self, id: u64) -> PathBuf {
        self.bed.root().join(format!("node-{id}.log"))
    }

    /// Starts the node of a place, unless it runs.
    pub(crate) fn spawn(&mut self, place: usize) -> Result<()> {
        let Node { id, is_joining, process, .. } = self.node(place);
        let (id, is_joining, runs) = (*id, *is_joining, process.is_some());
        if runs {
            return Ok(());
        }
        let lives =
            self.nodes.iter().enumerate().filter_map(|(at, node)| Some((at, node.as_ref()?)));
        let seeds = lives.filter(|(_, node)| !is_joining || node.id != id);
        let seeds = seeds.map(|(at, node)| format!("{}@{}", node.id, self.bed.addresses(at)[1]));
        let seeds = seeds.collect::<Vec<_>>().join(",");
        let log = OpenOptions::new().create(true).append(true).open(self.log_path(id))?;
        let [clients, peers, http] = self.bed.addresses(place);
        let program = std::env::var("QUIPU_CHAOS_SERVER");
        let program = program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_quipu"));
        let mut command = self.bed.command(place, program);
        command
            .args(["serve", "--node-id", &id.to_string(), "--seeds", &seeds])
            .args(["--listen", clients, "--peer-listen", peers, "--http-listen", http])
            .args(SETTINGS)
            .arg("--data-dir")
            .arg(self.bed.dir(place))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        if is_joining {
            command.arg("--join");
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("QUIPU_") {
                command.env_remove(name);
            }
        }
        if let Some(bug) = &self.bug {
            command.env("PLANTED_BUG", bug);
        }
        let process = command.spawn().context("start a node")?;
        self.node(place).process = Some(process);
        Ok(())
    }

    /// Sends a signal to the node of a place, if it runs.
    pub(crate) fn signal(&mut self, place: usize, signal: Signal) {
        let node = self.node(place);
        let id = node.process.as_ref().and_then(Child::id);
        if let Some(id) = id.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
            // It may have ended in this moment.
            let _ = kill_process(id, signal);
            node.is_stopped = signal == Signal::STOP;
        }
    }

    /// Kills the node of a place and waits until it is gone.
    pub(crate) async fn kill(&mut self, place: usize) -> Result<()> {
        let node = self.node(place);
        node.is_stopped = false;
        match node.process.take() {
            Some(mut process) => process.kill().await.context("kill a node"),
            None => Ok(()),
        }
    }

    /// Ends the node of a place in order.
    pub(crate) async fn terminate(&mut self, place: usize) -> Result<()> {
        self.signal(place, Signal::TERM);
        let node = self.node(place);
        let id = node.id;
        let Some(mut process) = node.process.take() else { return Ok(()) };
        let status = timeout(PATIENCE, process.wait()).await;
        let status = status.with_context(|| format!("node {id} does not end"))??;
        ensure!(status.success(), "node {id}, asked to end, ended with {status}");
        Ok(())
    }

    /// Everything is as it was: nodes run, packets arrive, disks have space.
    pub(crate) fn heal(&mut self) -> Result<()> {
        self.bed.clear();
        for place in self.places() {
            self.bed.empty(place)?;
            self.reap(place);
            let node = self.node(place);
            node.may_end = false;
            if node.is_stopped {
                self.signal(place, Signal::CONT);
            }
            self.spawn(place)?;
        }
        Ok(())
    }

    /// Takes note of a node that has ended by itself.
    pub(crate) fn reap(&mut self, place: usize) {
        let node = self.node(place);
        let Some(process) = &mut node.process else { return };
        let Ok(Some(status)) = process.try_wait() else { return };
        let (id, may_end) = (node.id, node.may_end);
        node.process = None;
        if !may_end {
            let said = self.last_words(id);
            self.world.history.breach(format!("node {id} ended with {status}: {said}"));
        }
    }

    /// The end of what a node has logged.
    pub(crate) fn last_words(&self, id: u64) -> String {
        let said = fs::read_to_string(self.log_path(id)).unwrap_or_default();
        let lines: Vec<_> = said.lines().rev().take(12).collect();
        lines.into_iter().rev().map(|line| format!("\n    {line}")).collect()
    }

    /// What nodes said of replicas that stopped for good. Nothing that happens here is a reason.
    pub(crate) fn stopped_replicas(&self) -> Vec<String> {
        let said = |id| fs::read_to_string(self.log_path(id)).unwrap_or_default();
        let said: String = (1..=self.last_id).map(said).collect();
        said.lines().filter(|line| line.contains("a replica stopped")).map(str::to_owned).collect()
    }

    /// A client that is told of all nodes.
    pub(crate) fn client(&self) -> Client {
        self.world.client()
    }

    /// A client that is told of the node of one place only.
    pub(crate) fn client_of(&self, place: usize) -> Client {
        let server = self.bed.addresses(place)[0].clone();
        let config =
            ClientConfig { timeout: Duration::from_secs(3), ..ClientConfig::new([server]) };
        Client::new(config).expect("there is a server")
    }

    /// The topic, as any node sees it.
    pub(crate) async fn topic(&self) -> Result<Topic> {
        Ok(self.client().describe_topic(TOPIC).await?)
    }

    /// A place whose node leads a partition of the topic: the metadata's or of the first one.
    pub(crate) async fn leading_place(&mut self, rng: &mut Rng) -> Option<usize> {
        let client = self.client();
        let leader = if rng.chance(500) {
            let asked = timeout(Duration::from_secs(2), client.describe_cluster()).await;
            asked.ok()?.ok()?.metadata_leader
        } else {
            let asked = timeout(Duration::from_secs(2), client.describe_topic(TOPIC)).await;
            rng.pick(&asked.ok()?.ok()?.partitions)?.leader
        };
        self.places().into_iter().find(|place| self.node(*place).id == leader)
    }

    /// Waits until all nodes run and see one another, all partitions have leaders, none is on its
    /// way, and all known damage is mended.
    pub(crate) async fn wait_until_whole(&mut self) -> Result<()> {
        let started = Instant::now();
        let mut missing = String::new();
        while started.elapsed() < PATIENCE {
            match self.is_whole().await {
                Ok(()) => return Ok(()),
                Err(why) => missing = why.to_string(),
            }
            sleep(LOOK_EVERY).await;
        }
        bail!("the cluster is not whole after {PATIENCE:?}: {missing}")
    }

    async fn is_whole(&mut self) -> Result<()> {
        let places = self.places();
        for place in &places {
            self.reap(*place);
            ensure!(self.node(*place).process.is_some(), "the node at {place} has ended");
        }
        let ids: Vec<_> = places.iter().map(|place| self.node(*place).id).collect();
        for place in places {
            let client = self.client_of(place);
            let seen: DescribeClusterResponse = client.describe_cluster().await?;
            let alive = seen.nodes.iter().filter(|node| node.is_alive).map(|node| node.id);
            let alive: Vec<_> = alive.collect();
            ensure!(ids.iter().all(|id| alive.contains(id)), "{place} sees {alive:?} of {ids:?}");
            ensure!(seen.metadata_leader != 0, "{place} sees no metadata leader");
            ensure!(seen.leaderless_partitions == 0, "{place} sees partitions without leader");
            ensure!(seen.moving_partitions == 0, "{place} sees partitions that move");
            let node = client.describe_node().await?;
            ensure!(node.damaged_logs == 0, "{place} has {} damaged logs", node.damaged_logs);
            let waiting = node.replicas_waiting_for_repair;
            ensure!(waiting == 0, "{place} has {waiting} replicas that wait for repair");
            ensure!(node.lagging_replicas.is_empty(), "{place} leads replicas that lag");
        }
        Ok(())
    }
}

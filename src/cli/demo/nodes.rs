//! The nodes of the demonstration: child processes that can be killed.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::client::{Client, ClientConfig};

const NODES: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Three nodes, some of them maybe dead.
pub(super) struct Nodes {
    nodes: Vec<Node>,
    seeds: String,
}

struct Node {
    id: u64,
    data_dir: PathBuf,
    log: PathBuf,
    /// For clients, for nodes, for metrics.
    addresses: [String; 3],
    /// Killed when it is dropped.
    process: Option<Child>,
}

impl Nodes {
    /// Starts three nodes with directories below `root`.
    pub(super) fn start(root: &std::path::Path) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for id in 1..=NODES {
            nodes.push(Node {
                id,
                data_dir: root.join(format!("node-{id}")),
                log: root.join(format!("node-{id}.log")),
                addresses: free_addresses()?,
                process: None,
            });
        }
        let seeds = nodes.iter().map(|node| format!("{}@{}", node.id, node.addresses[1]));
        let seeds = seeds.collect::<Vec<_>>().join(",");
        let mut all = Self { nodes, seeds };
        (1..=NODES).try_for_each(|id| all.spawn(id))?;
        Ok(all)
    }

    fn node(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    /// Starts a node, for the first time or again.
    pub(super) fn spawn(&mut self, id: u64) -> anyhow::Result<()> {
        let seeds = self.seeds.clone();
        let node = self.node(id);
        let program = std::env::current_exe().context("this program cannot find itself")?;
        let [clients, peers, http] = &node.addresses;
        let mut command = Command::new(program);
        // Nothing that this process was told is meant for the nodes.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("QUIPU_") {
                command.env_remove(name);
            }
        }
        command
            .arg("serve")
            .args(["--node-id", &id.to_string(), "--seeds", &seeds])
            .args(["--listen", clients, "--peer-listen", peers, "--http-listen", http])
            .arg("--data-dir")
            .arg(&node.data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file(&node.log)?)
            .kill_on_drop(true);
        node.process = Some(command.spawn().context("a node cannot be started")?);
        Ok(())
    }

    /// Kills a node with SIGKILL and waits until it is gone.
    pub(super) async fn kill(&mut self, id: u64) -> anyhow::Result<()> {
        let process = self.node(id).process.take();
        let mut process = process.context("the node is dead already")?;
        process.kill().await.context("the node cannot be killed")
    }

    /// A client of all nodes.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let servers = self.nodes.iter().map(|node| node.addresses[0].clone());
        Ok(Client::new(ClientConfig::new(servers))?)
    }

    /// Waits until all nodes live and every partition has a leader.
    pub(super) async fn wait_until_whole(&mut self, client: &Client) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            if let Ok(cluster) = client.describe_cluster().await {
                let alive = cluster.nodes.iter().filter(|node| node.is_alive).count();
                if alive as u64 == NODES && cluster.leaderless_partitions == 0 {
                    return Ok(());
                }
            }
            for node in &mut self.nodes {
                let ended = node.process.as_mut().and_then(|p| p.try_wait().ok().flatten());
                if let Some(status) = ended {
                    bail!("node {} ended ({status}): see {}", node.id, node.log.display());
                }
            }
            if started.elapsed() > PATIENCE {
                bail!("the nodes do not become one cluster: see {}", self.nodes[0].log.display());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Ends all nodes.
    pub(super) async fn stop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut process) = node.process.take() {
                // Their directories go as well: nothing has to be in order.
                let _ = process.kill().await;
            }
        }
    }
}

fn log_file(path: &std::path::Path) -> anyhow::Result<Stdio> {
    use crate::storage::fs::os::append_to;
    let file = append_to(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.into())
}

/// Three addresses that were free a moment ago.
fn free_addresses() -> anyhow::Result<[String; 3]> {
    let bind = || TcpListener::bind("127.0.0.1:0");
    let listeners = [bind()?, bind()?, bind()?];
    let mut addresses = [const { String::new() }; 3];
    for (address, listener) in addresses.iter_mut().zip(&listeners) {
        *address = listener.local_addr()?.to_string();
    }
    Ok(addresses)
}

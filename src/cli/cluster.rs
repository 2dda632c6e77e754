//! `quipu cluster`: the nodes, and who does what.

use clap::Subcommand;
use serde::Serialize;

use super::Verdict;
use super::output::{Format, Output, Table, optional};
use super::remote::{self, about_topic};
use crate::client::Client;
use crate::proto::client::{DescribeClusterResponse, Node, NodeState};

#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true, after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say whether all is well
    Status,
    /// List the nodes
    Nodes,
    /// Move all leadership off a node, so that it can be stopped
    Drain {
        /// The node's id
        node: u64,
    },
    /// Let a drained node lead again
    Undrain {
        /// The node's id
        node: u64,
    },
    /// Move the replicas of a partition to other nodes
    Move {
        /// The topic
        topic: String,
        /// The partition
        partition: u32,
        /// The nodes that are to have a replica, the preferred leader first
        #[arg(long, value_name = "NODE,…", value_delimiter = ',', required = true)]
        replicas: Vec<u64>,
    },
    /// Move the leadership of a partition to another of its replicas
    Transfer {
        /// The topic
        topic: String,
        /// The partition
        partition: u32,
        /// The node that is to lead
        #[arg(long, value_name = "NODE")]
        to: u64,
    },
    /// Move everything off a node and take it out of the cluster
    Decommission {
        /// The node's id
        node: u64,
        /// It will never come back: make its replicas anew on other nodes
        #[arg(long)]
        dead: bool,
    },
}

const AFTER_HELP: &str = "\
Examples:
  quipu cluster status                    exit code 1 if something is not well
  quipu cluster drain 3                   before node 3 is stopped for a while
  quipu cluster move orders 0 --replicas 1,2,4
  quipu cluster decommission 3 --dead     its disk is gone; refused while it is alive

JSON:
  status     {ok, cluster_id, metadata_leader, answered_by, topics, partitions,
             leaderless_partitions, moving_partitions, nodes: [as nodes]}
  nodes      [{node, address, peer_address, rack, version, state, is_alive,
             replicas, leaders, incarnation}]
  drain, undrain    {a node as above}
  move       {topic, partition, replicas}
  transfer   {topic, partition, leader, leader_epoch}
  decommission      {node, replicas_left}";

pub(super) fn run(
    args: &Args,
    remote: &remote::Args,
    output: &mut Output,
) -> anyhow::Result<Verdict> {
    remote.run(async |client| run_verb(&args.verb, &client, output).await)
}

async fn run_verb(verb: &Verb, client: &Client, output: &mut Output) -> anyhow::Result<Verdict> {
    match verb {
        Verb::Status => return print_status(&client.describe_cluster().await?, output),
        Verb::Nodes => print_nodes(&client.describe_cluster().await?.nodes, output)?,
        Verb::Drain { node } => print_node(&client.drain_node(*node).await?, output)?,
        Verb::Undrain { node } => print_node(&client.undrain_node(*node).await?, output)?,
        Verb::Move { topic, partition, replicas } => {
            let call = client.move_partition(topic, *partition, replicas.clone());
            about_topic(client, topic, call).await?;
            print_moved(&Moved { topic, partition: *partition, replicas }, output)?;
        }
        Verb::Transfer { topic, partition, to } => {
            let call = client.transfer_leadership(topic, *partition, *to);
            let leader_epoch = about_topic(client, topic, call).await?;
            let (partition, leader) = (*partition, *to);
            let transferred = Transferred { topic, partition, leader, leader_epoch };
            print_transferred(&transferred, output)?;
        }
        Verb::Decommission { node, dead } => {
            let replicas_left = client.decommission_node(*node, *dead).await?;
            print_leaving(&Leaving { node: *node, replicas_left }, output)?;
        }
    }
    Ok(Verdict::Good)
}

#[derive(Serialize)]
struct Status<'a> {
    ok: bool,
    cluster_id: &'a str,
    metadata_leader: Option<u64>,
    answered_by: u64,
    topics: u32,
    partitions: u32,
    leaderless_partitions: u32,
    moving_partitions: u32,
    nodes: Vec<DescribedNode<'a>>,
}

#[derive(Serialize)]
struct DescribedNode<'a> {
    node: u64,
    address: &'a str,
    peer_address: &'a str,
    rack: &'a str,
    version: &'a str,
    state: &'static str,
    is_alive: bool,
    replicas: u32,
    leaders: u32,
    incarnation: u64,
}

#[derive(Serialize)]
struct Moved<'a> {
    topic: &'a str,
    partition: u32,
    replicas: &'a [u64],
}

#[derive(Serialize)]
struct Transferred<'a> {
    topic: &'a str,
    partition: u32,
    leader: u64,
    leader_epoch: u64,
}

#[derive(Serialize)]
struct Leaving {
    node: u64,
    replicas_left: u32,
}

impl<'a> DescribedNode<'a> {
    fn of(node: &'a Node) -> Self {
        Self {
            node: node.id,
            address: &node.address,
            peer_address: &node.peer_address,
            rack: &node.rack,
            version: &node.version,
            state: state_name(node.state()),
            is_alive: node.is_alive,
            replicas: node.replicas,
            leaders: node.leaders,
            incarnation: node.incarnation,
        }
    }
}

fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Unspecified => "unknown",
        NodeState::Active => "active",
        NodeState::Draining => "draining",
        NodeState::Decommissioning => "decommissioning",
    }
}

fn print_status(cluster: &DescribeClusterResponse, output: &mut Output) -> anyhow::Result<Verdict> {
    let metadata_leader = Some(cluster.metadata_leader).filter(|node| *node > 0);
    let down = cluster.nodes.iter().filter(|node| !node.is_alive).count();
    let is_well = down == 0 && cluster.leaderless_partitions == 0 && metadata_leader.is_some();
    match output.format {
        Format::Json => output.json(&Status {
            ok: is_well,
            cluster_id: &cluster.cluster_id,
            metadata_leader,
            answered_by: cluster.answered_by,
            topics: cluster.topics,
            partitions: cluster.partitions,
            leaderless_partitions: cluster.leaderless_partitions,
            moving_partitions: cluster.moving_partitions,
            nodes: cluster.nodes.iter().map(DescribedNode::of).collect(),
        })?,
        Format::Table => {
            let word = if is_well { "well" } else { "NOT WELL" };
            output.line(&format!("cluster {}: {word}", cluster.cluster_id))?;
            let nodes = cluster.nodes.len();
            output.line(&format!("  nodes        {nodes}, {down} down"))?;
            let leader = optional(metadata_leader);
            output.line(&format!("  metadata     led by node {leader}"))?;
            output.line(&format!("  topics       {}", cluster.topics))?;
            let (all, leaderless) = (cluster.partitions, cluster.leaderless_partitions);
            let moving = cluster.moving_partitions;
            let line = format!("{all}, {leaderless} without a leader, {moving} being moved");
            output.line(&format!("  partitions   {line}"))?;
        }
    }
    Ok(if is_well { Verdict::Good } else { Verdict::Bad })
}

fn print_nodes(nodes: &[Node], output: &mut Output) -> anyhow::Result<()> {
    if output.format == Format::Json {
        return output.json(&nodes.iter().map(DescribedNode::of).collect::<Vec<_>>());
    }
    node_table(nodes).print(output, 0)
}

fn print_node(node: &Node, output: &mut Output) -> anyhow::Result<()> {
    match output.format {
        Format::Json => output.json(&DescribedNode::of(node)),
        Format::Table => node_table(std::slice::from_ref(node)).print(output, 0),
    }
}

fn node_table(nodes: &[Node]) -> Table {
    let headings = ["NODE", "ALIVE", "STATE", "ADDRESS", "RACK", "VERSION", "REPLICAS", "LEADERS"];
    let mut table = Table::new(&headings);
    for node in nodes {
        let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        table.push(vec![
            node.id.to_string(),
            if node.is_alive { "yes" } else { "NO" }.to_owned(),
            state_name(node.state()).to_owned(),
            or_dash(&node.address),
            or_dash(&node.rack),
            or_dash(&node.version),
            node.replicas.to_string(),
            node.leaders.to_string(),
        ]);
    }
    table
}

fn print_moved(moved: &Moved<'_>, output: &mut Output) -> anyhow::Result<()> {
    let Moved { topic, partition, replicas } = moved;
    match output.format {
        Format::Json => output.json(moved),
        Format::Table => output.line(&format!(
            "moving {topic}/{partition} to {replicas:?}; `quipu topic describe {topic}` shows when \
             it is done"
        )),
    }
}

fn print_transferred(transferred: &Transferred<'_>, output: &mut Output) -> anyhow::Result<()> {
    let Transferred { topic, partition, leader, leader_epoch } = transferred;
    match output.format {
        Format::Json => output.json(transferred),
        Format::Table => output
            .line(&format!("{topic}/{partition} is led by node {leader} in epoch {leader_epoch}")),
    }
}

fn print_leaving(leaving: &Leaving, output: &mut Output) -> anyhow::Result<()> {
    let Leaving { node, replicas_left } = leaving;
    match output.format {
        Format::Json => output.json(leaving),
        Format::Table => output.line(&format!(
            "node {node} is leaving, {replicas_left} replicas to be moved; `quipu cluster nodes` \
             shows how far it is"
        )),
    }
}

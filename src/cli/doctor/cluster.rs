//! A cluster, asked node by node.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Finding;
use crate::cli::output::bytes;
use crate::client::{Client, ClientConfig, Error};
use crate::proto::client::{
    DescribeClusterResponse, DescribeNodeResponse, Node, NodeState, Partition, Topic,
};

/// How long one node may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long to wait, in all, for leaders that are missing: leadership that is handed over or voted
/// for has no leader meanwhile, and that is no problem.
const ELECTION: Duration = Duration::from_secs(4);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Clocks that differ by more mix up the times of records.
const CLOCKS_MS: i64 = 500;

/// What there is, and what was found.
pub(super) struct Seen {
    pub(super) nodes: usize,
    pub(super) partitions: usize,
    pub(super) findings: Vec<Finding>,
}

/// What a node said of itself, and how far its clock is ahead of the one here.
struct Answer {
    said: DescribeNodeResponse,
    ahead_ms: i64,
    /// The clock may be off by so much, for want of a faster answer.
    within_ms: i64,
}

/// Looks at the cluster.
///
/// # Errors
/// If no node can be reached.
pub(super) async fn look(client: &Client) -> Result<Seen, Error> {
    let mut elections = Elections { patience: ELECTION, until: None };
    let has_leader = |cluster: &DescribeClusterResponse| cluster.metadata_leader != 0;
    let cluster = elections.wait(async || client.describe_cluster().await, has_leader).await?;
    let mut findings = of_cluster(&cluster);
    let mut answers = Vec::new();
    for node in &cluster.nodes {
        match ask(node).await {
            Ok(answer) => {
                findings.extend(of_node(node, &answer.said));
                answers.push((node.id, answer));
            }
            Err(error) => {
                let what = format!("does not answer at {}: {error}", node.address);
                let remedy = "start it, or check the address it advertises and the network; if it \
                              is gone for good: quipu cluster decommission --dead";
                findings.push(Finding::problem(&name(node.id), what, remedy));
            }
        }
    }
    findings.extend(of_clocks(&answers));
    let mut partitions = 0;
    for topic in client.list_topics("").await? {
        let describe = async || client.describe_topic(&topic.name).await;
        let has_leaders = |topic: &Topic| topic.partitions.iter().all(|p| p.leader != 0);
        // A topic that was deleted meanwhile needs no looking at.
        let Ok(topic) = elections.wait(describe, has_leaders).await else { continue };
        partitions += topic.partitions.len();
        let of = |partition| of_partition(&topic.name, partition, &cluster.nodes);
        findings.extend(topic.partitions.iter().flat_map(of));
    }
    Ok(Seen { nodes: cluster.nodes.len(), partitions, findings })
}

/// The patience with elections that go on, one for all that is looked at.
#[derive(Debug)]
struct Elections {
    patience: Duration,
    /// Known since the first leader was missed.
    until: Option<Instant>,
}

impl Elections {
    /// The answer to `ask`, which is asked again until all has a leader or patience is at its end.
    async fn wait<T>(
        &mut self,
        ask: impl AsyncFn() -> Result<T, Error>,
        has_leader: impl Fn(&T) -> bool,
    ) -> Result<T, Error> {
        loop {
            let answer = ask().await?;
            let now = Instant::now();
            if has_leader(&answer) || now >= *self.until.get_or_insert(now + self.patience) {
                return Ok(answer);
            }
            tokio::time::sleep(ASK_AGAIN_AFTER).await;
        }
    }
}

async fn ask(node: &Node) -> Result<Answer, Error> {
    let config = ClientConfig {
        timeout: PATIENCE,
        connect_timeout: PATIENCE,
        ..ClientConfig::new([node.address.clone()])
    };
    let client = Client::new(config)?;
    // The first call makes the connection, which the second one need not wait for.
    client.describe_node().await?;
    let before_ms = now_ms();
    let said = client.describe_node().await?;
    let after_ms = now_ms();
    let within_ms = (after_ms - before_ms).max(0);
    let ahead_ms = said.time_ms - (before_ms + within_ms / 2);
    Ok(Answer { said, ahead_ms, within_ms })
}

fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_1970.map_or(0, |elapsed| elapsed.as_millis() as i64)
}

fn name(node: u64) -> String {
    format!("node {node}")
}

fn of_cluster(cluster: &DescribeClusterResponse) -> Vec<Finding> {
    let mut findings = Vec::new();
    if cluster.metadata_leader == 0 {
        let what = format!("node {} knows no leader of the metadata", cluster.answered_by);
        let remedy = "see to it that a majority of the nodes runs and that they reach each other";
        findings.push(Finding::problem("cluster", what, remedy));
    }
    let mut versions: Vec<&str> = cluster.nodes.iter().map(|node| node.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    if versions.len() > 1 {
        let what = format!("the nodes have different versions: {}", versions.join(", "));
        findings.push(Finding::note("cluster", what, "finish the upgrade, one node at a time"));
    }
    for node in &cluster.nodes {
        findings.extend(of_membership(node, cluster.answered_by));
    }
    findings
}

fn of_membership(node: &Node, answered_by: u64) -> Vec<Finding> {
    let about = name(node.id);
    let mut findings = Vec::new();
    if !node.is_alive {
        let what = format!("node {answered_by} does not hear of it");
        let remedy = "see whether it runs, and whether nodes reach its peer address";
        findings.push(Finding::problem(&about, what, remedy));
    }
    match node.state() {
        NodeState::Draining => {
            let remedy = format!("quipu cluster undrain {} once it may lead again", node.id);
            findings.push(Finding::note(&about, "it is drained and leads nothing", remedy));
        }
        NodeState::Decommissioning => {
            let what = format!("it is leaving, with {} replicas left", node.replicas);
            findings.push(Finding::note(&about, what, "wait until it is gone, then stop it"));
        }
        NodeState::Active | NodeState::Unspecified => {}
    }
    findings
}

fn of_node(node: &Node, said: &DescribeNodeResponse) -> Vec<Finding> {
    let about = name(node.id);
    let problem = |what: String, remedy: &str| Finding::problem(&about, what, remedy);
    let mut findings = Vec::new();
    if said.node != node.id {
        let what = format!("node {} answers at its address {}", said.node, node.address);
        findings.push(problem(what, "correct --advertise of one of the two"));
    }
    if said.has_disk_failed {
        let remedy = "look into the kernel's log; restart the node once the disk is sound";
        findings.push(problem("a write or a sync has failed".to_owned(), remedy));
    }
    let (free, low) = (said.disk_free_bytes, said.disk_low_water_bytes);
    if free < low.saturating_mul(2) {
        let what = format!("{} are free, it needs {}", bytes(free), bytes(low));
        findings.push(problem(what, "make room, or lower retention, or move partitions away"));
    }
    if said.stalled_replicas > 0 {
        let what = format!("{} replicas wait for space", said.stalled_replicas);
        findings.push(problem(what, "make room on its disk: they go on by themselves"));
    }
    findings.extend(of_damage(&about, said));
    findings.extend(of_limits(&about, said));
    for lagging in &said.lagging_replicas {
        let about = format!("{}/{}", lagging.topic, lagging.partition);
        let (node, behind) = (lagging.node, lagging.entries_behind);
        let what = format!("the replica on node {node} lacks {behind} entries");
        let remedy = "wait if it is catching up; else look at that node's disk and network";
        findings.push(Finding::problem(&about, what, remedy));
    }
    findings
}

fn of_damage(about: &str, said: &DescribeNodeResponse) -> Option<Finding> {
    let (damaged, waiting) = (said.damaged_logs, said.replicas_waiting_for_repair);
    let what = format!("{damaged} logs are damaged, {waiting} replicas wait for their repair");
    let remedy = "keep the nodes with the other replicas running: they give what is missing";
    (damaged > 0).then(|| Finding::problem(about, what, remedy))
}

fn of_limits(about: &str, said: &DescribeNodeResponse) -> Vec<Finding> {
    let is_near = |used: u64, max: u64| max > 0 && used > max / 5 * 4;
    let mut findings = Vec::new();
    if is_near(said.open_files, said.open_files_max) {
        let what = format!("{} of {} files are open", said.open_files, said.open_files_max);
        findings.push(Finding::problem(about, what, "raise the limit (`ulimit -n`) and restart"));
    }
    if is_near(said.mappings, said.mappings_max) {
        let what = format!("{} of {} mappings are used", said.mappings, said.mappings_max);
        let remedy = "raise vm.max_map_count, or lower --storage-open-segments-max";
        findings.push(Finding::problem(about, what, remedy));
    }
    findings
}

fn of_clocks(answers: &[(u64, Answer)]) -> Option<Finding> {
    let first = answers.iter().min_by_key(|(_, answer)| answer.ahead_ms)?;
    let last = answers.iter().max_by_key(|(_, answer)| answer.ahead_ms)?;
    let apart_ms = last.1.ahead_ms - first.1.ahead_ms;
    let unsure_ms = (last.1.within_ms + first.1.within_ms) / 2;
    let what = format!("the clocks of nodes {} and {} are {apart_ms} ms apart", first.0, last.0);
    let remedy = "run NTP on all machines: times of records jump when leaders change";
    (apart_ms - unsure_ms > CLOCKS_MS).then(|| Finding::problem("cluster", what, remedy))
}

fn of_partition(topic: &str, partition: &Partition, nodes: &[Node]) -> Vec<Finding> {
    let about = format!("{topic}/{}", partition.partition);
    let mut findings = Vec::new();
    if partition.leader == 0 {
        let what = format!("it has no leader; its replicas are on nodes {:?}", partition.replicas);
        let remedy = "bring a majority of these nodes back";
        findings.push(Finding::problem(&about, what, remedy));
    }
    let is_alive = |id: &u64| nodes.iter().any(|node| node.id == *id && node.is_alive);
    let dead: Vec<_> = partition.replicas.iter().filter(|id| !is_alive(id)).collect();
    if !dead.is_empty() {
        let what = format!("of {} replicas those on {dead:?} are down", partition.replicas.len());
        let remedy = "bring the nodes back, or move the replicas: quipu cluster move";
        findings.push(Finding::problem(&about, what, remedy));
    }
    if !partition.target_replicas.is_empty() {
        let what = format!("its replicas move to nodes {:?}", partition.target_replicas);
        findings.push(Finding::note(&about, what, "wait"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    fn node(id: u64) -> Node {
        let version = "1".to_owned();
        Node { id, is_alive: true, version, ..Node::default() }
    }

    fn said(node: u64) -> DescribeNodeResponse {
        DescribeNodeResponse {
            node,
            disk_free_bytes: 100,
            disk_low_water_bytes: 10,
            open_files: 10,
            open_files_max: 100,
            mappings: 10,
            mappings_max: 100,
            ..DescribeNodeResponse::default()
        }
    }

    fn answer(ahead_ms: i64, within_ms: i64) -> Answer {
        Answer { said: said(1), ahead_ms, within_ms }
    }

    #[tokio::test]
    async fn leaders_that_change_are_waited_for_and_those_that_are_missing_only_once() {
        let mut elections = Elections { patience: 3 * ASK_AGAIN_AFTER, until: None };
        let asked = std::cell::Cell::new(0);
        let ask = async || Ok(asked.replace(asked.get() + 1));
        assert_eq!(elections.wait(ask, |n| *n == 1).await.unwrap(), 1);
        assert!(elections.wait(ask, |_| false).await.unwrap() > 2);
        let all = asked.get();
        assert_eq!(elections.wait(ask, |_| false).await.unwrap(), all, "patience is at its end");
    }

    #[test]
    fn a_sound_node_gives_no_findings_and_each_fault_one() {
        assert_eq!(of_node(&node(1), &said(1)), []);
        let faults: [fn(&mut DescribeNodeResponse); 8] = [
            |said| said.node = 2,
            |said| said.has_disk_failed = true,
            |said| said.disk_free_bytes = 15,
            |said| said.stalled_replicas = 1,
            |said| said.damaged_logs = 1,
            |said| said.open_files = 90,
            |said| said.mappings = 90,
            |said| said.lagging_replicas = vec![Default::default()],
        ];
        for (n, fault) in faults.into_iter().enumerate() {
            let mut said = said(1);
            fault(&mut said);
            let found = of_node(&node(1), &said);
            assert!(found.len() == 1 && found[0].severity == Severity::Problem, "{n}: {found:?}");
        }
    }

    #[test]
    fn clocks_are_compared_as_far_as_the_answers_were_quick() {
        let apart = |ms, within| of_clocks(&[(1, answer(0, within)), (2, answer(ms, within))]);
        assert_eq!(apart(400, 0), None);
        assert_eq!(apart(700, 300), None, "it may be the network");
        assert!(apart(700, 10).unwrap().what.contains("700 ms"));
        assert_eq!(of_clocks(&[]), None);
    }

    #[test]
    fn partitions_without_leaders_or_replicas_are_problems_and_moves_are_not() {
        let nodes = [node(1), Node { is_alive: false, ..node(2) }];
        let sound = Partition { leader: 1, replicas: vec![1], ..Partition::default() };
        assert_eq!(of_partition("t", &sound, &nodes), []);
        let short = Partition { replicas: vec![1, 2], ..sound.clone() };
        assert_eq!(of_partition("t", &short, &nodes)[0].severity, Severity::Problem);
        let leaderless = Partition { leader: 0, ..sound.clone() };
        assert_eq!(of_partition("t", &leaderless, &nodes)[0].severity, Severity::Problem);
        let moving = Partition { target_replicas: vec![2], ..sound };
        assert_eq!(of_partition("t", &moving, &nodes)[0].severity, Severity::Note);
    }

    #[test]
    fn a_cluster_is_told_apart_by_versions_leader_and_states() {
        let cluster = |nodes| DescribeClusterResponse {
            metadata_leader: 1,
            nodes,
            ..DescribeClusterResponse::default()
        };
        assert_eq!(of_cluster(&cluster(vec![node(1), node(2)])), []);
        let newer = Node { version: "2".into(), ..node(2) };
        assert_eq!(of_cluster(&cluster(vec![node(1), newer])).len(), 1);
        let drained = Node { state: NodeState::Draining.into(), ..node(2) };
        assert_eq!(of_cluster(&cluster(vec![drained]))[0].severity, Severity::Note);
        let dead = Node { is_alive: false, ..node(2) };
        assert_eq!(of_cluster(&cluster(vec![dead]))[0].severity, Severity::Problem);
        let leaderless = DescribeClusterResponse { metadata_leader: 0, ..cluster(vec![]) };
        assert_eq!(of_cluster(&leaderless)[0].severity, Severity::Problem);
    }
}

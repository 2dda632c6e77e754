//! Members of a group that are killed or stand still, and nodes that are killed under them.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Child;
use tokio::time::sleep;

use super::load::Load;
use super::nodes::{Cluster, TOPIC, signal, wait_for};

const GROUP: &str = "sailors";
const PARTITIONS: u32 = 12;
/// How long a member may be silent, and a little more than that.
const SESSION: &str = "4s";
const OVER_A_SESSION: Duration = Duration::from_secs(6);

/// A member, a process that writes down what it gets.
struct Member {
    process: Child,
    output: PathBuf,
}

impl Member {
    fn start(cluster: &Cluster, name: &str) -> Self {
        let args = ["consume", TOPIC, "--group", GROUP, "--auto-commit", "200ms"];
        let args = [&args[..], &["-o", "%p %o\\n"]].concat();
        let (process, output) = cluster.spawn(&args, name);
        Self { process, output }
    }

    /// The partitions and offsets that it got, in this order. The last line may not be whole.
    fn got(&self) -> Vec<(usize, u64)> {
        let text = fs::read_to_string(&self.output).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parse = |line: &str| {
            let (partition, offset) = line.split_once(' ').unwrap();
            (partition.parse().unwrap(), offset.parse().unwrap())
        };
        whole.lines().map(parse).collect()
    }

    /// Waits until it gets more than it has.
    async fn progress(&self, what: &str) {
        let before = self.got().len();
        wait_for(what, async || (self.got().len() > before).then_some(())).await;
    }
}

/// Whatever was sent reaches some member, and after the last fault each goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_misses_nothing_when_members_and_nodes_are_killed_or_stand_still() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(PARTITIONS, 3).await;
    let create = ["group", "create", GROUP, "--topic", TOPIC, "--start", "earliest"];
    cluster.run(&[&create[..], &["--session-timeout", SESSION]].concat()).await;
    let client = cluster.client();
    let mut load = Load::start(&client).await;
    let mut members: Vec<Member> =
        (0..3).map(|n| Member::start(&cluster, &format!("member-{n}"))).collect();
    for member in &members {
        member.progress("a member's first record").await;
    }

    members[0].process.kill().await.unwrap();
    members.push(Member::start(&cluster, "member-3"));
    members[3].progress("a record for who takes the place of a killed member").await;

    signal(&members[1].process, Signal::STOP);
    sleep(OVER_A_SESSION).await;
    members[2].progress("a record beside a member that stands still").await;
    signal(&members[1].process, Signal::CONT);
    members[1].progress("a record for a member that stood still").await;

    // One of the two leads the metadata or a partition, or serves a member; most often all of it.
    for victim in [1, 2] {
        cluster.node(victim).kill().await;
        load.progress(50).await;
        for member in &members[1..] {
            member.progress("a record without the killed node").await;
        }
        cluster.node(victim).spawn();
        cluster.wait_until_whole().await;
    }

    load.progress(50).await;
    let sent = load.stop().await;
    let all: BTreeSet<(usize, u64)> = (0..)
        .zip(&sent.0)
        .flat_map(|(partition, offsets)| offsets.iter().map(move |offset| (partition, *offset)))
        .collect();
    wait_for("the last record for the group", async || {
        let got: BTreeSet<_> = members.iter().flat_map(Member::got).collect();
        all.is_subset(&got).then_some(())
    })
    .await;
    wait_for("the last commit", async || {
        let lag = cluster.try_run(&["group", "lag", GROUP, "-o", "json"]).await;
        let lag: serde_json::Value = serde_json::from_slice(&lag.stdout).ok()?;
        let partitions = lag["partitions"].as_array()?;
        let is_done = partitions.len() == PARTITIONS as usize
            && partitions.iter().all(|partition| partition["lag"] == 0);
        is_done.then_some(())
    })
    .await;
    for member in &mut members[1..] {
        signal(&member.process, Signal::TERM);
        assert!(member.process.wait().await.unwrap().success(), "a member does not leave in order");
    }
}

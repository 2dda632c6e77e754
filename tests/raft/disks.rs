//! Disks that are full, slow, damaged or gone.

use std::path::PathBuf;

use quipu::partition::{Ask, Replica, Response};
use quipu::raft::{HardState, Persist, Step, Ticket};
use quipu::storage::FactKind;
use quipu::storage::fs::sim::SimFs;

use crate::support::{Cluster, GROUP, Node, others};

const LARGE: &[u8] = &[7; 1500];

#[test]
fn three_replicas_elect_a_leader_and_agree() {
    let mut cluster = Cluster::new(3);
    assert_eq!(cluster.put(b"one"), 0);
    assert_eq!(cluster.put(b"two"), 1);
    cluster.assert_alike();
}

/// Fills the disk of a leader that nobody hears, lets it take entries, and waits until another
/// leader has told it that they go.
#[test]
fn what_waits_for_space_is_dropped_when_another_leader_replaces_it() {
    let mut cluster = Cluster::new(3);
    cluster.put(b"one");
    let old = cluster.await_leader();
    cluster.mute.insert(old);
    let node = cluster.node(old);
    node.fs.set_capacity(Some(node.fs.used_bytes() + 600));
    (0..40).for_each(|ticket| node.append(ticket, LARGE));
    cluster.run(20);
    assert!(cluster.node(old).is_stalled(), "the disk of node {old} is full");
    cluster.run(2000);
    let node = cluster.node(old);
    assert!(node.group().last_index() < 10, "other entries take the place of those that wait");
    node.fs.set_capacity(None);
    node.retry().unwrap();
    cluster.mute.clear();
    cluster.put(b"two");
    cluster.assert_alike();
}

#[test]
fn a_failed_sync_is_final_and_takes_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::new(3);
    cluster.put(b"one");
    let leader = cluster.await_leader();
    let fs = cluster.node(leader).fs.clone();
    fs.fail_sync(0);
    cluster.node(leader).append(1, b"two");
    let now = cluster.now();
    assert!(cluster.node(leader).step(now).is_err(), "the node must stop");
    assert!(!cluster.node(leader).answers.contains_key(&Ticket(1)));
    fs.process_crash();
    cluster.restart(leader, &fs).unwrap();
    cluster.put(b"three");
    cluster.assert_alike();
}

#[test]
fn a_full_disk_of_a_leader_moves_leadership_and_a_later_one_comes_back() {
    let mut cluster = Cluster::new(3);
    cluster.put(b"one");
    let old = cluster.await_leader();
    let node = cluster.node(old);
    node.fs.set_capacity(Some(node.fs.used_bytes()));
    (0..20).for_each(|ticket| node.append(ticket, LARGE));
    cluster.run(3000);
    let new = cluster.await_leader();
    assert_ne!(new, old, "a leader with a full disk hands over");
    let acked = (0..20).filter(|n| cluster.nodes[&old].answers.contains_key(&Ticket(*n)));
    assert_eq!(acked.count(), 20, "everybody is told something");
    cluster.put(b"two");
    for _ in 0..50 {
        cluster.run(200);
        cluster.node(old).retry().unwrap();
    }
    assert!(cluster.node(old).is_stalled());
    cluster.node(old).fs.set_capacity(None);
    cluster.node(old).retry().unwrap();
    cluster.put(b"three");
    cluster.assert_alike();
}

/// The only voter that is left comes back by itself.
#[test]
fn a_single_replica_goes_on_once_its_disk_has_space() {
    let mut cluster = Cluster::new(1);
    cluster.put(b"one");
    let node = cluster.node(1);
    node.fs.set_capacity(Some(node.fs.used_bytes()));
    (0..20).for_each(|ticket| node.append(ticket, LARGE));
    cluster.run(5000);
    let node = cluster.node(1);
    assert!(node.is_stalled());
    node.fs.set_capacity(None);
    node.retry().unwrap();
    cluster.run(500);
    let answers = &cluster.nodes[&1].answers;
    let is_stored = |n: &u64| matches!(answers[&Ticket(*n)], Response::Appended { .. });
    assert_eq!((0..20).filter(is_stored).count(), 20);
    assert_eq!(cluster.put(b"two"), 21);
}

/// A disk that was wiped comes back under the id it had. Whoever made it again broke a rule, but
/// nothing may panic, and the others go on.
#[test]
fn a_wiped_disk_under_its_old_id_harms_nobody_else() {
    let mut cluster = Cluster::new(3);
    (0..5).for_each(|n| assert_eq!(cluster.put(b"one"), n));
    let leader = cluster.await_leader();
    let id = others(leader)[0];
    let fs = SimFs::new();
    cluster.nodes.remove(&id);
    let mut node = Node::open(id, &fs, cluster.now()).unwrap();
    node.create(None);
    node.step(cluster.now()).unwrap();
    cluster.nodes.insert(id, node);
    cluster.run(2000);
    assert_ne!(cluster.await_leader(), id);
    assert_eq!(cluster.put(b"two"), 5);
    assert!(cluster.nodes.values().all(|node| node.faults.is_empty()));
}

#[test]
fn a_follower_that_stood_still_for_a_minute_disturbs_nobody() {
    let mut cluster = Cluster::new(3);
    cluster.put(b"one");
    let leader = cluster.await_leader();
    let id = others(leader)[0];
    cluster.paused.insert(id);
    let term = cluster.node(leader).group().term();
    for _ in 0..60 {
        cluster.put(b"more");
        cluster.run(700);
    }
    cluster.paused.clear();
    cluster.run(1000);
    assert_eq!(cluster.await_leader(), leader);
    assert_eq!(cluster.node(leader).group().term(), term, "it did not stand for election");
    cluster.assert_alike();
}

#[test]
fn a_leader_that_is_cut_off_answers_and_acknowledges_nothing() {
    let mut cluster = Cluster::new(3);
    cluster.put(b"one");
    let old = cluster.await_leader();
    cluster.cut.insert(old);
    cluster.node(old).append(1, b"lost");
    cluster.node(old).ask(2, Ask::Barrier);
    cluster.run(3000);
    let answers = &cluster.nodes[&old].answers;
    assert_eq!(answers.get(&Ticket(1)), Some(&Response::Unknown));
    assert!(matches!(answers.get(&Ticket(2)), Some(Response::NotLeader { .. })));
    assert_eq!(cluster.put(b"two"), 1);
    cluster.node(old).append(3, b"later");
    cluster.run(100);
    let answers = &cluster.nodes[&old].answers;
    assert!(matches!(answers.get(&Ticket(3)), Some(Response::NotLeader { .. })));
    cluster.cut.clear();
    cluster.assert_alike();
}

/// A log can be damaged where only a follower that is far behind looks. Another replica has what it
/// needs.
#[test]
fn a_leader_with_damage_does_not_keep_a_follower_waiting() {
    let mut cluster = Cluster::new(3);
    cluster.put(b"one");
    let leader = cluster.await_leader();
    let id = others(leader)[0];
    cluster.cut.insert(id);
    for _ in 0..30 {
        cluster.put(LARGE);
    }
    assert_eq!(cluster.await_leader(), leader);
    let fs = cluster.node(leader).fs.clone();
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|name| name == "seg");
    let paths: Vec<_> = fs.paths().into_iter().filter(is_segment).collect();
    for path in &paths[1..5] {
        fs.damage(path, |bytes| {
            let at = bytes.windows(40).position(|found| found == [7; 40]).unwrap();
            bytes[at + 700..at + 760].fill(0x55);
        });
    }
    cluster.cut.clear();
    cluster.run(5000);
    assert_ne!(cluster.await_leader(), leader);
    cluster.put(b"two");
    cluster.assert_alike();
}

/// The hard state that a node has recorded.
fn recorded(node: &Node) -> Option<HardState> {
    let value = node.disk.dir().journal().get(GROUP, FactKind::HardState)?;
    HardState::decode(&value)
}

/// Performs each step as work of its own.
fn perform<const N: usize>(node: &mut Node, steps: [Step; N]) {
    let persist = |step| Persist { group: GROUP, token: 7, steps: vec![step], is_synced: false };
    let mut checkpoint = |_, _| unreachable!("no segment begins");
    let mut done = Vec::new();
    let persists = steps.map(persist).into();
    node.disk.perform(persists, &mut checkpoint, &node.syncer, &mut done).unwrap();
    assert_eq!(done, [7; N]);
}

#[test]
fn a_hint_is_recorded_in_time_and_never_after_a_later_record() {
    let mut cluster = Cluster::new(1);
    cluster.put(b"one");
    let node = cluster.node(1);
    let before = recorded(node).unwrap();
    let hint = |commit| {
        let state = HardState { commit, ..before };
        (state, Step::Hint(FactKind::HardState, state.encode()))
    };
    let (hinted, step) = hint(7);
    perform(node, [step]);
    assert_eq!(recorded(node), Some(before), "it waits for others");
    node.disk.tend(&node.syncer).unwrap();
    assert_eq!(recorded(node), Some(hinted));

    let voted = HardState { term: before.term + 1, ..before };
    let vote = || Step::Record(FactKind::HardState, voted.encode());
    perform(node, [hint(8).1]);
    perform(node, [vote()]);
    node.disk.tend(&node.syncer).unwrap();
    assert_eq!(recorded(node), Some(voted), "the vote is not taken back");

    let (hinted, step) = hint(8);
    perform(node, [vote(), step]);
    node.disk.tend(&node.syncer).unwrap();
    assert_eq!(recorded(node), Some(hinted), "of what comes together, the last counts");

    let (closed, step) = hint(9);
    perform(node, [step]);
    node.disk.close(GROUP).unwrap();
    assert_eq!(recorded(node), Some(closed));
}

#[test]
fn a_hint_does_not_outlive_the_log_that_it_speaks_of() {
    let mut cluster = Cluster::new(1);
    cluster.put(b"one");
    let last_index = cluster.node(1).group().last_index();
    let node = cluster.node(1);
    let before = recorded(node).unwrap();
    perform(node, [Step::Hint(FactKind::HardState, before.encode())]);
    node.disk.rewind::<Replica>(GROUP, last_index).unwrap();
    node.disk.tend(&node.syncer).unwrap();
    assert_eq!(recorded(node).unwrap().term, before.term + 1);
}

//! Damaged logs: promises are kept, and others bring back what was lost.

use std::path::PathBuf;

use quipu::raft::{Fault, Input, Role};
use quipu::storage::fs::sim::SimFs;
use quipu::storage::{Access, Policy};

use crate::support::{Cluster, GROUP, Node, others};

const NAMES: [&[u8]; 9] = [
    b"entry-0", b"entry-1", b"entry-2", b"entry-3", b"entry-4", b"entry-5", b"entry-6", b"entry-7",
    b"entry-8",
];

/// A cluster in which all replicas have the same entries, known to be on disk.
fn filled() -> Cluster {
    let mut cluster = Cluster::new(3);
    for (offset, name) in (0..).zip(NAMES) {
        assert_eq!(cluster.put(name), offset);
    }
    cluster.run(500);
    for node in cluster.nodes.values_mut() {
        node.disk.tend(&node.syncer).unwrap();
    }
    cluster.run(500);
    cluster
}

/// Damages the last place that has `needle`, in the newest segment with it.
fn damage_last(fs: &SimFs, needle: &[u8]) {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|name| name == "seg");
    let has_needle = |path: &PathBuf| {
        let bytes = fs.durable_bytes(path).unwrap_or_default();
        bytes.windows(needle.len()).any(|window| window == needle)
    };
    let path = fs.paths().into_iter().rfind(|path| is_segment(path) && has_needle(path)).unwrap();
    fs.damage(&path, |bytes| {
        let at = bytes.windows(needle.len()).rposition(|window| window == needle).unwrap();
        bytes[at] ^= 1;
    });
}

/// Ends the process of a node, damages its disk, and starts it again.
fn restart_damaged(cluster: &mut Cluster, id: u64, needles: &[&[u8]]) {
    let fs = cluster.node(id).fs.clone();
    cluster.nodes.remove(&id);
    fs.process_crash();
    needles.iter().for_each(|needle| damage_last(&fs, needle));
    cluster.restart(id, &fs).unwrap();
}

fn reads_all(node: &Node) -> bool {
    let reader = node.disk.reader(GROUP).unwrap();
    let reads = |index| {
        let mut entries = Vec::new();
        reader.read(index, index, 1, Access::MayBlock, &mut entries).is_ok()
    };
    (reader.first_index()..=reader.last_index()).all(reads) && reader.is_whole()
}

/// A replica whose last entries were on disk and are damaged must not go on as if it never had
/// them: they may be committed, and it would vote for somebody without them.
#[test]
fn a_replica_that_lost_its_tail_does_not_vote_as_if_it_never_had_it() {
    let mut cluster = Cluster::new(3);
    for _ in 0..3 {
        cluster.put(b"held");
    }
    let leader = cluster.await_leader();
    let id = others(leader)[0];
    let syncing = cluster.node(id);
    syncing.disk.tend(&syncing.syncer).unwrap();
    cluster.run(100);
    let before = cluster.node(id).group().last_index();
    let fs = cluster.node(id).fs.clone();
    cluster.nodes.remove(&id);
    fs.process_crash();
    damage_last(&fs, b"held");
    cluster.restart(id, &fs).unwrap();
    let group = cluster.node(id).group();
    let promised = group.promise().map_or(0, |promise| promise.index);
    let last = group.last_index();
    assert!(last < before && promised == before, "it had {before} entries, promises {promised}");
    // With one of the others it is a majority, and that one has all there is.
    cluster.cut.insert(leader);
    assert_eq!(cluster.await_leader(), 6 - leader - id);
    cluster.put(b"more");
    assert_eq!(cluster.node(id).group().promise(), None);
    cluster.cut.clear();
    cluster.assert_alike();
}

/// Of three replicas only two got an entry. One of them loses it, and the other is gone: nobody is
/// elected without it.
#[test]
fn nobody_is_elected_without_what_a_replica_lost() {
    let mut cluster = Cluster::new(3);
    cluster.put(b"held");
    let leader = cluster.await_leader();
    let [damaged, late] = others(leader);
    cluster.cut.insert(late);
    cluster.put(b"lost");
    let node = cluster.node(damaged);
    node.disk.tend(&node.syncer).unwrap();
    cluster.run(100);
    let fs = cluster.node(damaged).fs.clone();
    cluster.nodes.remove(&damaged);
    fs.process_crash();
    damage_last(&fs, b"lost");
    cluster.restart(damaged, &fs).unwrap();
    assert!(cluster.node(damaged).group().promise().is_some());
    cluster.cut.clear();
    cluster.cut.insert(leader);
    cluster.run(20_000);
    for id in [damaged, late] {
        assert!(cluster.node(id).group().role() != Role::Leader, "node {id} leads without it");
    }
    // The promise outlives another restart.
    cluster.nodes.remove(&damaged);
    fs.process_crash();
    cluster.restart(damaged, &fs).unwrap();
    assert!(cluster.node(damaged).group().promise().is_some());
    cluster.cut.clear();
    assert_eq!(cluster.put(b"more"), 2, "what was acknowledged is there");
    cluster.assert_alike();
    assert_eq!(cluster.node(damaged).group().promise(), None);
}

/// A damaged follower that hears its leader, and gets nothing from it, votes for the next one.
#[test]
fn a_replica_that_lost_its_tail_helps_to_elect_who_has_it() {
    let mut cluster = filled();
    let leader = cluster.await_leader();
    let [damaged, other] = others(leader);
    restart_damaged(&mut cluster, damaged, &[b"entry-8"]);
    cluster.starved.insert(damaged);
    cluster.run(2_000);
    assert_eq!(cluster.node(damaged).group().leader().map(|id| id.node().0), cluster.leader());
    let leader = cluster.await_leader();
    let next = if leader == other { 6 - damaged - other } else { other };
    cluster.cut.insert(leader);
    cluster.run(3_000);
    assert_eq!(cluster.node(next).group().role(), Role::Leader, "nobody else can lead");
    assert!(cluster.node(damaged).group().promise().is_some(), "it has not got it back yet");
    cluster.starved.clear();
    cluster.cut.clear();
    assert_eq!(cluster.put(b"more"), 9);
    cluster.assert_alike();
}

#[test]
fn replicas_that_are_damaged_in_different_places_bring_each_other_back() {
    let mut cluster = filled();
    let damaged: [&[&[u8]]; 3] = [&[b"entry-2", b"entry-7"], &[b"entry-4"], &[b"entry-5"]];
    let ids: Vec<_> = cluster.nodes.keys().copied().collect();
    let disks: Vec<_> = ids.iter().map(|id| (*id, cluster.node(*id).fs.clone())).collect();
    cluster.nodes.clear();
    for ((id, fs), needles) in disks.iter().zip(damaged) {
        fs.process_crash();
        needles.iter().for_each(|needle| damage_last(fs, needle));
        cluster.restart(*id, fs).unwrap();
        assert!(cluster.node(*id).shard.group(GROUP).is_none(), "node {id} cannot follow its log");
    }
    cluster.run(3_000);
    assert_eq!(cluster.put(b"more"), 9);
    cluster.assert_alike();
    for node in cluster.nodes.values() {
        assert!(reads_all(node), "node {} is not whole", node.id);
    }
}

#[test]
fn a_leader_has_the_damage_mended_that_it_meets_while_it_runs() {
    let mut cluster = filled();
    let leader = cluster.await_leader();
    damage_last(&cluster.node(leader).fs.clone(), b"entry-3");
    let reader = cluster.node(leader).disk.reader(GROUP).unwrap();
    let mut read = Vec::new();
    let index = reader.index_of_offset(3, Access::MayBlock).unwrap();
    assert!(reader.read(index, index, 1, Access::MayBlock, &mut read).is_err());
    cluster.run(1_000);
    reader.read(index, index, 1, Access::MayBlock, &mut read).unwrap();
    assert!(reads_all(cluster.node(leader)) && read[0].is_intact());
    assert_eq!(cluster.await_leader(), leader, "nothing else has stopped");
    cluster.put(b"more");
    cluster.assert_alike();
}

#[test]
fn what_nobody_has_any_more_is_neither_made_up_nor_cut() {
    let mut cluster = filled();
    let ids: Vec<_> = cluster.nodes.keys().copied().collect();
    let tip = cluster.node(1).disk.log(GROUP).unwrap().tip();
    let disks: Vec<_> = ids.iter().map(|id| (*id, cluster.node(*id).fs.clone())).collect();
    cluster.nodes.clear();
    for (id, fs) in &disks {
        fs.process_crash();
        damage_last(fs, b"entry-4");
        cluster.restart(*id, fs).unwrap();
    }
    cluster.run(20_000);
    for node in cluster.nodes.values() {
        assert!(node.shard.group(GROUP).is_none(), "node {} goes on without it", node.id);
        let log = node.disk.log(GROUP).unwrap();
        assert_eq!((log.tip(), log.reader().faulty().len()), (tip, 1));
        assert!(node.unrepaired > 0, "node {} says nothing", node.id);
    }
}

/// A payload of which a few fill a segment.
fn large(n: u8) -> &'static [u8] {
    Vec::leak(vec![b'a' + n; 500])
}

/// Applies retention until a node's log begins with the newest segment, if it may.
fn retain_least(node: &mut Node) {
    let settled = node.group().settled();
    let policy = Policy { bytes: Some(0), ..Policy::default() };
    if let Some(start) = node.disk.retain(GROUP, Some(&policy), 0, settled, 0).unwrap() {
        node.inputs.push(Input::StartAdvanced { group: GROUP, start });
    }
}

/// Where the newest segment of a node's log begins.
fn newest_base(node: &Node) -> u64 {
    let segments = node.disk.log(GROUP).unwrap().reader().segments();
    segments.last().unwrap().base_index()
}

/// Two replicas have the last entry, and one of them loses it. The other one cannot read an entry
/// from before that, which the first has given to retention: nobody needs it, but what comes after
/// it is the only copy there is.
#[test]
fn a_log_is_not_cut_for_a_replica_that_has_less_of_it() {
    let mut cluster = Cluster::new(3);
    cluster.put(large(0));
    cluster.put(large(1));
    let brief = cluster.await_leader();
    let [torn, late] = others(brief);
    let node = cluster.node(torn);
    node.disk.tend(&node.syncer).unwrap();
    cluster.run(100);
    // From here on its segments do not begin where those of the others do.
    restart_damaged(&mut cluster, torn, &[large(1)]);
    cluster.run(1_000);
    let damaged = newest_base(cluster.node(torn));
    let mut rest = 2..20;
    while newest_base(cluster.node(brief)) <= damaged {
        cluster.put(large(rest.next().expect("a few entries fill a segment")));
    }
    cluster.run(500);
    cluster.cut.insert(late);
    let last = cluster.put(b"last-entry");
    for id in [torn, brief] {
        let node = cluster.node(id);
        node.disk.tend(&node.syncer).unwrap();
    }
    retain_least(cluster.node(brief));
    cluster.run(100);
    let tip = cluster.node(torn).disk.log(GROUP).unwrap().tip();
    restart_damaged(&mut cluster, torn, &[large(1)]);
    restart_damaged(&mut cluster, brief, &[b"last-entry"]);
    assert!(cluster.node(brief).group().promise().is_some_and(|it| it.index == tip.index));
    assert!(cluster.node(brief).group().start().index >= damaged, "it does not have that");
    assert!(cluster.node(torn).shard.group(GROUP).is_none(), "it cannot follow its log");
    cluster.run(3_000);
    assert_eq!(cluster.node(torn).disk.log(GROUP).unwrap().tip(), tip, "it was cut");
    cluster.cut.clear();
    cluster.run(3_000);
    assert_eq!(cluster.put(b"more"), last + 1, "what was acknowledged is there");
    cluster.assert_alike();
}

/// Whoever has the end of a log that this replica lost may need what is left here.
#[test]
fn retention_waits_while_the_end_of_a_log_is_lost() {
    let mut cluster = Cluster::new(3);
    for n in 0..20 {
        cluster.put(large(n));
    }
    cluster.run(500);
    let leader = cluster.await_leader();
    let [damaged, _] = others(leader);
    let node = cluster.node(damaged);
    node.disk.tend(&node.syncer).unwrap();
    cluster.run(100);
    cluster.starved.insert(damaged);
    restart_damaged(&mut cluster, damaged, &[large(19)]);
    cluster.run(1_000);
    assert!(cluster.node(damaged).group().promise().is_some());
    let first = |node: &Node| node.disk.log(GROUP).unwrap().reader().first_index();
    let before = first(cluster.node(damaged));
    retain_least(cluster.node(damaged));
    assert_eq!(first(cluster.node(damaged)), before);
    cluster.starved.clear();
    cluster.run(1_000);
    assert_eq!(cluster.node(damaged).group().promise(), None);
    retain_least(cluster.node(damaged));
    assert!(first(cluster.node(damaged)) > before, "it is whole again");
}

/// A leader that nobody heard had entries of its own, and one of them is damaged. The others went
/// on without it.
#[test]
fn damage_in_what_was_never_committed_is_cut_once_a_leader_says_so() {
    let mut cluster = filled();
    let old = cluster.await_leader();
    cluster.cut.insert(old);
    cluster.node(old).append(1, b"own-1");
    cluster.node(old).append(2, b"own-2");
    cluster.run(200);
    let node = cluster.node(old);
    node.disk.tend(&node.syncer).unwrap();
    cluster.run(2_000);
    cluster.put(b"other");
    restart_damaged(&mut cluster, old, &[b"own-1"]);
    assert!(cluster.node(old).shard.group(GROUP).is_none());
    cluster.cut.clear();
    cluster.run(1_000);
    assert_eq!(cluster.put(b"more"), 10);
    cluster.assert_alike();
    assert!(cluster.node(old).faults.iter().all(|fault| !matches!(fault, Fault::Diverged(_))));
    assert!(reads_all(cluster.node(old)));
}

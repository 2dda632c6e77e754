//! Groups that have nothing to do fall asleep, all replicas alike, and miss nothing.

use quipu::raft::{Envelope, Input, MessageKind, Operation, Role, Ticket};

use crate::groups::{Follower, append, entries, message};
use crate::support::{Cluster, GROUP, others, replica};

/// Longer than it takes a leader to fall asleep, shorter than a follower waits for its word.
const A_WHILE_MS: u64 = 80;
/// After that while: too early for anybody to seek election.
const SOON_MS: u64 = 110;
const ELECTION_TIMEOUTS_MS: u64 = 1_000;

fn sleep(cluster: &Cluster) -> Vec<bool> {
    cluster.nodes.values().map(|node| node.group().is_quiescent()).collect()
}

fn committed(cluster: &Cluster) -> Vec<u64> {
    cluster.nodes.values().map(|node| node.group().committed()).collect()
}

/// A group of three that sleeps after an election.
fn asleep() -> (Cluster, u64) {
    let mut cluster = Cluster::new(3);
    let leader = cluster.await_leader();
    cluster.run(ELECTION_TIMEOUTS_MS);
    assert_eq!(sleep(&cluster), [true; 3]);
    (cluster, leader)
}

/// Appends an entry, and stops when its leader knows that it is committed. Returns the index of the
/// last entry before it.
fn commit(cluster: &mut Cluster, leader: u64) -> u64 {
    let before = cluster.node(leader).group().last_index();
    cluster.node(leader).append(before, b"one");
    while cluster.node(leader).group().committed() == before {
        cluster.run(10);
    }
    before
}

/// Appends an entry of which some do not hear that it is committed. Returns the index of the
/// last entry before it.
fn commit_unheard(cluster: &mut Cluster, leader: u64, deaf: &[u64]) -> u64 {
    cluster.untold.extend(deaf);
    let before = commit(cluster, leader);
    cluster.run(A_WHILE_MS);
    cluster.untold.clear();
    assert!(cluster.node(leader).group().is_quiescent(), "it cannot know");
    for deaf in deaf {
        assert_eq!(cluster.node(*deaf).group().persisted(), before + 1);
        assert_eq!(cluster.node(*deaf).group().committed(), before);
    }
    before
}

#[test]
fn who_is_woken_by_something_rare_sleeps_again_when_that_is_done() {
    let (mut cluster, leader) = asleep();
    commit(&mut cluster, leader);
    assert!(cluster.node(leader).group().is_quiescent(), "no tick is waited for");
    cluster.run(20);
    assert_eq!(sleep(&cluster), [true; 3]);
    let before = commit(&mut cluster, leader);
    assert!(!cluster.node(leader).group().is_quiescent(), "there may be more soon");
    cluster.run(A_WHILE_MS);
    assert_eq!(sleep(&cluster), [true; 3]);
    assert_eq!(committed(&cluster), [before + 1; 3]);
}

#[test]
fn the_word_to_sleep_is_the_news_of_the_commit() {
    let (mut cluster, leader) = asleep();
    let before = cluster.node(leader).group().last_index();
    cluster.node(leader).append(1, b"one");
    cluster.run(A_WHILE_MS);
    assert_eq!(sleep(&cluster), [true; 3], "a lone record keeps nobody awake");
    assert_eq!(committed(&cluster), [before + 1; 3], "and all know that it is committed");
    assert_eq!(cluster.leader(), Some(leader));
    cluster.assert_alike();
}

/// The follower that was not told finds out when it misses its leader, and nobody else leads.
#[test]
fn who_misses_the_word_to_sleep_wakes_the_leader() {
    let (mut cluster, leader) = asleep();
    let term = cluster.node(leader).group().term();
    let [deaf, _] = others(leader);
    let before = commit_unheard(&mut cluster, leader, &[deaf]);
    cluster.run(SOON_MS);
    assert_eq!(committed(&cluster), [before + 1; 3]);
    assert_eq!(sleep(&cluster), [true; 3]);
    assert_eq!(cluster.leader(), Some(leader));
    assert_eq!(cluster.node(leader).group().term(), term, "no election was held");
}

#[test]
fn nobody_sleeps_while_a_follower_lacks_something() {
    let (mut cluster, leader) = asleep();
    let [starved, _] = others(leader);
    cluster.starved.insert(starved);
    cluster.node(leader).append(1, b"one");
    cluster.run(A_WHILE_MS);
    assert_eq!(sleep(&cluster), [false; 3]);
    cluster.starved.clear();
    cluster.run(ELECTION_TIMEOUTS_MS);
    assert_eq!(sleep(&cluster), [true; 3]);
    cluster.assert_alike();
}

/// A follower with two entries in term 2, of which none is committed.
fn follower() -> (Follower, Envelope) {
    let mut follower = Follower::new();
    let start = follower.group.start();
    let written = follower.take(append(2, 2, start, &[2, 2]));
    follower.stored(written);
    follower.sent();
    let (index, commit) = (start.index + 2, start.index + 2);
    let quiesce = Envelope { index, commit, ..message(MessageKind::Quiesce, replica(2), 2) };
    (follower, quiesce)
}

#[test]
fn a_follower_sleeps_only_if_its_log_is_the_leaders() {
    let (mut follower, quiesce) = follower();
    let start = follower.group.start().index;
    let shorter = Envelope { index: start + 1, commit: start + 1, ..quiesce.clone() };
    follower.take(shorter);
    assert!(!follower.group.is_quiescent(), "it has more than that leader");
    assert_eq!(follower.group.committed(), start + 1);
    let longer = Envelope { index: start + 3, commit: start + 3, ..quiesce.clone() };
    assert!(follower.group.receive(longer).is_err(), "it does not have that");
    assert_eq!(follower.group.committed(), start + 1);
    follower.take(quiesce);
    assert!(follower.group.is_quiescent());
    assert_eq!(follower.group.committed(), start + 2);
}

/// It could not follow the leader's word in its own order: what is not on its disk may be gone.
#[test]
fn a_follower_does_not_sleep_over_what_is_not_on_its_disk() {
    let (mut follower, quiesce) = follower();
    let tip = entries(follower.group.start(), &[2, 2])[1].header.tip();
    let writing = follower.take(append(2, 2, tip, &[2]));
    let later = Envelope { index: tip.index + 1, commit: tip.index + 1, ..quiesce };
    follower.take(later.clone());
    assert!(!follower.group.is_quiescent());
    follower.stored(writing);
    follower.take(later);
    assert!(follower.group.is_quiescent());
}

/// A replica that was started again does not know who leads. Told to sleep, it knows.
#[test]
fn who_does_not_know_the_leader_takes_its_word_for_a_heartbeat() {
    let (mut follower, quiesce) = follower();
    let of_another = Envelope { from: replica(3), term: 3, ..quiesce };
    follower.take(of_another.clone());
    assert!(!follower.group.is_quiescent());
    assert_eq!(follower.group.role(), Role::Follower);
    assert_eq!(follower.group.leader(), Some(replica(3)));
    let term_written = follower.effects.persists.last().map(|persist| persist.token);
    follower.stored(term_written);
    let answers = follower.sent();
    assert!(answers.iter().any(|sent| sent.kind == MessageKind::HeartbeatResponse));
    follower.take(of_another);
    assert!(follower.group.is_quiescent());
}

/// Who hears nothing asks before anybody seeks election: two followers that both miss the leader
/// would elect another.
#[test]
fn a_leader_whose_word_nobody_heard_stays_leader() {
    let (mut cluster, leader) = asleep();
    let term = cluster.node(leader).group().term();
    let before = commit_unheard(&mut cluster, leader, &others(leader));
    cluster.run(SOON_MS);
    assert_eq!(committed(&cluster), [before + 1; 3]);
    assert_eq!(sleep(&cluster), [true; 3]);
    assert_eq!(cluster.node(leader).group().term(), term, "no election was held");
}

/// A learner seeks no election. It finds out all the same.
#[test]
fn a_learner_that_misses_the_word_to_sleep_asks_for_it() {
    let (mut cluster, leader) = asleep();
    let [learner, _] = others(leader);
    for operation in [Operation::Remove(replica(learner)), Operation::Learner(replica(learner))] {
        let (ticket, operations) = (Ticket(7), vec![operation]);
        let change = Input::Change { group: GROUP, ticket, operations };
        cluster.node(leader).inputs.push(change);
        cluster.run(A_WHILE_MS);
    }
    assert!(cluster.node(leader).group().membership().learners.contains(&replica(learner)));
    cluster.run(ELECTION_TIMEOUTS_MS);
    let before = commit_unheard(&mut cluster, leader, &[learner]);
    cluster.run(SOON_MS);
    assert_eq!(committed(&cluster), [before + 1; 3]);
    cluster.run(ELECTION_TIMEOUTS_MS);
    assert_eq!(sleep(&cluster), [true; 3]);
}

/// Both others are dead: a leader that slept on would seem to lead for ever.
#[test]
fn a_leader_that_has_lost_its_quorum_in_its_sleep_steps_down() {
    let (mut cluster, leader) = asleep();
    cluster.cut.insert(leader);
    cluster.run(2 * ELECTION_TIMEOUTS_MS);
    assert_ne!(cluster.node(leader).group().role(), Role::Leader);
    let successor = cluster.await_leader();
    assert_ne!(successor, leader);
    cluster.cut.clear();
    cluster.run(ELECTION_TIMEOUTS_MS);
    assert_eq!(sleep(&cluster), [true; 3]);
}

#[test]
fn a_group_sleeps_although_one_of_three_is_away() {
    let (mut cluster, leader) = asleep();
    let [away, _] = others(leader);
    cluster.cut.insert(away);
    cluster.run(2 * ELECTION_TIMEOUTS_MS);
    assert!(cluster.node(leader).group().is_quiescent());
    cluster.node(leader).append(1, b"one");
    cluster.run(A_WHILE_MS);
    assert!(!cluster.node(leader).group().is_quiescent(), "that one lacks a record now");
    cluster.cut.clear();
    cluster.run(2 * ELECTION_TIMEOUTS_MS);
    assert_eq!(sleep(&cluster), [true; 3]);
    cluster.assert_alike();
}

/// Nothing that was heard before the sleep counts any more, and the time since when is not known.
#[test]
fn a_leader_that_wakes_has_time_to_hear_the_others() {
    for records in 0..12 {
        let (mut cluster, leader) = asleep();
        for ticket in 0..records {
            cluster.node(leader).append(ticket, b"one");
            cluster.run(A_WHILE_MS);
        }
        let [away, restarted] = others(leader);
        cluster.cut.insert(away);
        cluster.run(ELECTION_TIMEOUTS_MS);
        assert!(cluster.node(leader).group().is_quiescent());
        let term = cluster.node(leader).group().term();
        let fs = cluster.node(restarted).fs.clone();
        cluster.restart(restarted, &fs).unwrap();
        cluster.run(ELECTION_TIMEOUTS_MS);
        assert_eq!(cluster.leader(), Some(leader), "after {records} records");
        assert_eq!(cluster.node(leader).group().term(), term, "after {records} records");
    }
}

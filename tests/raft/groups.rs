//! One group, told by hand what happens to it.

use bytes::Bytes;
use quipu::partition::Replica;
use quipu::raft::{
    Base, Boot, Checkpoint, Disk, Durability, Effects, Envelope, Group, Lane, Membership,
    MessageKind, Persist, Start, Step,
};
use quipu::storage::fs::sim::SimFs;
use quipu::storage::{Entry, Kind, Tip};
use quipu::types::ReplicaId;

use crate::support::{Cluster, GROUP, config, open_dir, others, replica, voters};

/// Three voters, founded: their log starts after entry 1.
pub struct Follower {
    pub group: Group,
    tokens: u64,
    pub effects: Effects,
}

impl Follower {
    pub fn new() -> Self {
        Self::of(Some(&voters(3)))
    }

    /// A replica of a group that `members` found, or that it joins.
    pub fn of(members: Option<&Membership>) -> Self {
        let dir = open_dir(&SimFs::new());
        let mut disk = Disk::new(dir);
        disk.create::<Replica>(GROUP, members).unwrap();
        let opened = disk.open::<Replica>(GROUP, replica(1), Durability::Fsync).unwrap();
        let Start::Ready(boot, _) = opened.0 else { panic!("it is not damaged") };
        let group = Group::new(&config(), *boot, 1);
        Self { group, tokens: 1, effects: Effects::default() }
    }

    /// Takes a message and gives the token to wait for, if there is something to be written.
    pub fn take(&mut self, envelope: Envelope) -> Option<u64> {
        self.group.receive(envelope).unwrap();
        self.advance()
    }

    pub fn advance(&mut self) -> Option<u64> {
        let before = self.effects.persists.len();
        self.group.advance(&mut self.tokens, &mut self.effects);
        self.effects.persists.get(before).map(|persist| persist.token)
    }

    pub fn stored(&mut self, token: Option<u64>) {
        self.group.stored(token.unwrap());
        self.advance();
    }

    pub fn sent(&mut self) -> Vec<Envelope> {
        self.effects.envelopes.drain(..).map(|(_, envelope): (Lane, _)| envelope).collect()
    }
}

/// Entries of these terms after `tip`, without records.
pub fn entries(mut tip: Tip, terms: &[u64]) -> Vec<Entry> {
    let next = |term: &u64| {
        let payload = Bytes::from(vec![0; 8]);
        let crc = crc32fast::hash(&payload);
        let mut entry = Entry::new(Kind::LogStart, tip.index + 1, *term, payload, crc);
        entry = entry.with_records(tip.end_offset, 0).at_time(tip.append_time_ms);
        entry.header.chain = entry.header.chain_after(tip.chain);
        tip = entry.header.tip();
        entry
    };
    terms.iter().map(next).collect()
}

pub fn message(kind: MessageKind, from: ReplicaId, term: u64) -> Envelope {
    Envelope {
        group: GROUP,
        from,
        to: replica(1),
        kind,
        term,
        index: 0,
        log_term: 0,
        commit: 0,
        commit_term: 0,
        reject_hint: 0,
        is_reject: false,
        is_transfer: false,
        read: None,
        entries: Vec::new(),
        body: Bytes::new(),
    }
}

/// An append of entries of these terms after `tip`.
pub fn append(from: u64, term: u64, tip: Tip, terms: &[u64]) -> Envelope {
    let entries = entries(tip, terms);
    let (index, log_term) = (tip.index, tip.term);
    Envelope { index, log_term, entries, ..message(MessageKind::Append, replica(from), term) }
}

/// Entries that are cut off and come back with the next leader were handed out twice. That the
/// first writing is done says nothing: the cut comes after it.
#[test]
fn entries_that_come_back_count_once_they_are_written_again() {
    let mut follower = Follower::new();
    let start = follower.group.start();
    let first = follower.take(append(2, 2, start, &[2, 2, 2]));
    let second = follower.take(append(3, 3, start, &[3]));
    let third = follower.take(append(2, 4, start, &[2, 2, 2, 4]));
    follower.stored(first);
    assert_eq!(follower.group.persisted(), 1, "the cut took the entries away again");
    assert!(follower.sent().iter().all(|sent| sent.index <= 1), "nothing is acknowledged");
    follower.stored(second);
    assert_eq!(follower.group.persisted(), 1);
    follower.stored(third);
    assert_eq!(follower.group.persisted(), 5);
    assert_eq!(follower.sent().iter().map(|sent| sent.index).max(), Some(5));
}

/// A peer that votes before it was asked must not make a leader of a replica whose entries are on
/// their way to the disk.
#[test]
fn a_replica_with_entries_on_their_way_to_the_disk_does_not_take_over() {
    let mut follower = Follower::new();
    let start = follower.group.start();
    let written = follower.take(append(2, 2, start, &[2]));
    let timeout = || message(MessageKind::TimeoutNow, replica(2), 2);
    let _ = follower.group.receive(timeout());
    let _ = follower.group.receive(message(MessageKind::VoteResponse, replica(2), 3));
    follower.advance();
    follower.stored(written);
    assert!(follower.group.receive(timeout()).is_ok());
}

/// Also the entry before an append must be the committed one. Else the replica would say that it
/// agrees up to its commit index, and be counted for entries that it does not have.
#[test]
fn a_leader_that_goes_on_from_another_entry_than_the_committed_one_stops_the_replica() {
    let mut follower = Follower::new();
    let start = follower.group.start();
    let ours = entries(start, &[2, 2]);
    let written = follower.take(append(2, 2, start, &[2, 2]));
    follower.stored(written);
    let commit = Envelope { commit: 3, ..append(2, 2, ours[1].header.tip(), &[]) };
    follower.take(commit);
    assert_eq!(follower.group.committed(), 3);
    follower.sent();
    let theirs = entries(start, &[3]);
    let _ = follower.group.receive(append(3, 3, theirs[0].header.tip(), &[]));
    follower.advance();
    assert!(follower.group.fault().is_some(), "entry 2 is another one");
    assert!(follower.sent().is_empty(), "and it says nothing of it");
}

/// Work for a full disk is not done once a snapshot takes its place.
#[test]
fn what_waits_for_space_is_dropped_when_a_snapshot_takes_its_place() {
    let fs = SimFs::new();
    let dir = open_dir(&fs);
    let syncer = dir.start_syncer(Box::new(|_| {}));
    let mut disk = Disk::new(dir);
    disk.create::<Replica>(GROUP, Some(&voters(3))).unwrap();
    let opened = disk.open::<Replica>(GROUP, replica(1), Durability::Fsync).unwrap();
    let Boot { start, .. } = *opened.0.boot().unwrap();
    fs.set_capacity(Some(fs.used_bytes() + 100));
    let tip = Tip { index: 500, term: 2, chain: 7, ..start };
    let base = Base { tip, state: Bytes::from_static(b"state") };
    let reset = Step::Reset { base, membership: voters(3) };
    let of = |token, steps| Persist { group: GROUP, token, steps, is_synced: true };
    let append = Step::Append(entries(start, &[2; 200]));
    let (mut first, mut done) = (true, Vec::new());
    for persist in [of(1, vec![append]), of(2, vec![reset])] {
        let mut checkpoint = |_, index: u64| {
            assert!(first || index >= 500, "the state at {index} is gone");
            Checkpoint { membership: voters(3), state: Bytes::new() }
        };
        disk.perform(vec![persist], &mut checkpoint, &syncer, &mut done).unwrap();
        first = false;
    }
    assert_eq!(disk.stalled().count(), 1);
    fs.set_capacity(None);
    let mut checkpoint = |_, index: u64| panic!("the state at {index} is gone");
    disk.retry(&mut checkpoint, &syncer, &mut done).unwrap();
    assert_eq!(disk.log(GROUP).unwrap().tip(), tip);
}

#[test]
fn a_leader_keeps_in_memory_what_a_follower_lacks_and_nobody_anything_else() {
    let mut cluster = Cluster::new(3);
    cluster.put(b"one");
    let leader = cluster.await_leader();
    let tails = |cluster: &mut Cluster| [1, 2, 3].map(|id| cluster.node(id).group().tail_bytes());
    assert_eq!(tails(&mut cluster), [0; 3]);
    let starved = others(leader)[0];
    cluster.starved.insert(starved);
    cluster.put(b"two");
    assert_eq!(cluster.leader(), Some(leader), "nobody else has a reason to lead");
    for id in [1, 2, 3] {
        let kept = cluster.node(id).group().tail_bytes();
        assert_eq!(kept > 0, id == leader, "{id} keeps {kept} bytes, {leader} leads");
    }
    cluster.starved.clear();
    cluster.run(300);
    assert_eq!(tails(&mut cluster), [0; 3]);
    cluster.assert_alike();
}

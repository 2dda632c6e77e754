//! What others may send, and must not get away with.

use bytes::{BufMut as _, Bytes, BytesMut};
use quipu::partition::Replica;
use quipu::proto::stream::Rope;
use quipu::raft::{
    Dropped, Envelope, Frame, FrameError, Input, Membership, MessageKind, Operation, Outputs, Role,
    Route, Ticket,
};
use quipu::storage::{Entry, Tip};
use quipu::types::{ClusterId, LogId, NodeId};
use uuid::Uuid;

use crate::groups::{Follower, append, entries, message};
use crate::support::{CLUSTER, Cluster, GROUP, replica, voters};

const ROUTE: Route = Route { cluster: CLUSTER, from: NodeId(2), to: NodeId(1) };

/// A frame with entries, a heartbeat and a snapshot.
fn sample() -> Bytes {
    let tip = Tip { index: 4, term: 2, ..Tip::EMPTY };
    let heartbeat = Envelope { read: Some(3), ..message(MessageKind::Heartbeat, replica(2), 3) };
    let snapshot = snapshot(&voters(3), tip);
    Frame::encode(&ROUTE, &[append(2, 3, tip, &[2, 3]), heartbeat, snapshot]).to_bytes()
}

fn snapshot(membership: &Membership, tip: Tip) -> Envelope {
    snapshot_of(membership, tip, tip.index)
}

/// A snapshot with the state after entry `applied`.
fn snapshot_of(membership: &Membership, tip: Tip, applied: u64) -> Envelope {
    let bytes = membership.encode();
    let mut body = BytesMut::new();
    body.put_u32_le(bytes.len() as u32);
    body.put_slice(&bytes);
    for number in [tip.index, tip.term, tip.end_offset] {
        body.put_u64_le(number);
    }
    body.put_i64_le(tip.append_time_ms);
    body.put_u32_le(tip.chain);
    body.put_slice(&<Replica as quipu::raft::Machine>::new(applied).state().checkpoint());
    let term = tip.term.max(2);
    Envelope { body: body.freeze(), ..message(MessageKind::Snapshot, replica(2), term) }
}

#[test]
fn a_frame_with_any_bit_flipped_or_cut_short_is_refused() {
    let bytes = sample();
    assert_eq!(Frame::decode(&ROUTE, bytes.clone()).unwrap().len(), 3);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Frame::decode(&ROUTE, Bytes::from(flipped)).is_err(), "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert!(Frame::decode(&ROUTE, bytes.slice(..len)).is_err(), "{len} bytes");
    }
    let more = [&bytes[..], &[0]].concat();
    assert_eq!(Frame::decode(&ROUTE, Bytes::from(more)), Err(FrameError::Length));
}

#[test]
fn a_frame_can_come_in_pieces() {
    let bytes = sample();
    let whole = Frame::decode(&ROUTE, bytes.clone()).unwrap();
    for cut in 0..=bytes.len() {
        let mut rope = Rope::from(bytes.slice(..cut));
        rope.push(bytes.slice(cut..));
        assert_eq!(Frame::decode(&ROUTE, rope).as_ref(), Ok(&whole), "cut at {cut}");
    }
}

/// Whoever lies knows how to compute a checksum.
#[test]
fn lies_in_a_frame_with_a_good_checksum_are_refused_and_allocate_nothing() {
    let bytes = sample();
    let head_bytes = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
    for at in (8..head_bytes - 4).step_by(4) {
        for lie in [0, 1, 0x7FFF_FFFF, u32::MAX, u32::MAX - 7] {
            let mut lying = bytes.to_vec();
            lying[at..at + 4].copy_from_slice(&lie.to_le_bytes());
            let crc = crc32fast::hash(&lying[8..head_bytes]);
            lying[4..8].copy_from_slice(&crc.to_le_bytes());
            // Some numbers are free; none may panic, nor be taken by a replica that way.
            let Ok(envelopes) = Frame::decode(&ROUTE, Bytes::from(lying)) else { continue };
            let mut follower = Follower::new();
            for envelope in envelopes {
                let _ = follower.group.receive(envelope);
                follower.advance();
            }
        }
    }
}

#[test]
fn frames_of_another_cluster_or_for_another_node_are_refused() {
    let bytes = sample();
    let other = Route { cluster: ClusterId(Uuid::from_u128(1)), ..ROUTE };
    assert_eq!(Frame::decode(&other, bytes.clone()), Err(FrameError::Cluster));
    let other = Route { from: NodeId(3), ..ROUTE };
    assert_eq!(Frame::decode(&other, bytes.clone()), Err(FrameError::Node));
    let route = Route { from: NodeId(3), ..ROUTE };
    let stranger = message(MessageKind::Heartbeat, replica(2), 3);
    let bytes = Frame::encode(&route, &[stranger]).to_bytes();
    assert_eq!(Frame::decode(&route, bytes.clone()), Err(FrameError::Contradiction("replicas")));
}

/// A quiet group that shares frames with a busy one must not keep all of them in memory.
#[test]
fn a_small_payload_does_not_keep_its_frame() {
    let tip = Tip { index: 4, term: 2, ..Tip::EMPTY };
    let mut large = append(2, 3, tip, &[3]);
    let payload = Bytes::from(vec![1; 100_000]);
    let header = entries(tip, &[3])[0].header;
    let crc = crc32fast::hash(&payload);
    let mut entry = Entry::new(header.kind, header.index, 3, payload, crc);
    entry.header.chain = entry.header.chain_after(tip.chain);
    large.entries = vec![entry];
    let bytes = Frame::encode(&ROUTE, &[append(2, 3, tip, &[3]), large]).to_bytes();
    let envelopes = Frame::decode(&ROUTE, bytes.clone()).unwrap();
    let is_within = |payload: &Bytes| bytes.as_ptr_range().contains(&payload.as_ptr());
    assert!(!is_within(&envelopes[0].entries[0].payload));
    assert!(is_within(&envelopes[1].entries[0].payload));
}

#[test]
fn numbers_out_of_range_are_dropped() {
    let mut follower = Follower::new();
    let of = |kind| message(kind, replica(2), 2);
    let (max, far) = (u64::MAX, 2_000_000);
    let bad = [
        (Dropped::OutOfRange, Envelope { commit: 9, ..of(MessageKind::Heartbeat) }),
        (Dropped::OutOfRange, Envelope { commit: max, ..of(MessageKind::Heartbeat) }),
        (Dropped::OutOfRange, Envelope { index: 9, ..of(MessageKind::AppendResponse) }),
        (Dropped::OutOfRange, Envelope { reject_hint: 1, ..of(MessageKind::AppendResponse) }),
        (Dropped::OutOfRange, Envelope { index: max, ..of(MessageKind::Append) }),
        (Dropped::OutOfRange, Envelope { index: 9, ..of(MessageKind::Append) }),
        (Dropped::OutOfRange, snapshot(&voters(3), Tip { index: 50, ..Tip::EMPTY })),
        (Dropped::OutOfRange, Envelope { commit: max, ..of(MessageKind::VoteResponse) }),
        (Dropped::OutOfRange, message(MessageKind::TimeoutNow, replica(9), 2)),
        (Dropped::FutureTerm, message(MessageKind::Vote, replica(2), far)),
        (Dropped::FutureTerm, message(MessageKind::PreVote, replica(2), max)),
        (Dropped::WrongReplica, Envelope { to: replica(3), ..of(MessageKind::Heartbeat) }),
        (Dropped::Stranger, message(MessageKind::AppendResponse, replica(9), 2)),
    ];
    for (reason, envelope) in bad {
        let text = format!("{envelope:?}");
        assert_eq!(follower.group.receive(envelope), Err(reason), "{text}");
        follower.advance();
    }
    assert_eq!((follower.group.term(), follower.group.last_index()), (1, 1));
}

/// A group may be of a high term when a replica joins it. One is known by the terms of entries.
#[test]
fn a_new_replica_believes_a_high_term_that_there_are_entries_of() {
    let far = 5_000_000;
    let heartbeat = message(MessageKind::Heartbeat, replica(2), far);
    let mut new = Follower::of(None);
    assert_eq!(new.group.receive(heartbeat.clone()), Err(Dropped::FutureTerm));
    let spoken_of = Envelope { log_term: far, ..heartbeat.clone() };
    new.take(spoken_of.clone());
    assert_eq!(new.group.term(), far);
    let mut old = Follower::new();
    assert_eq!(old.group.receive(spoken_of), Err(Dropped::FutureTerm));
    let entry = Tip { index: 7, term: far - 1, ..Tip::EMPTY };
    let mut new = Follower::of(None);
    new.take(append(2, far, entry, &[far]));
    assert_eq!(new.group.term(), far);
}

/// The library panics at a membership that no series of changes leads to.
#[test]
fn a_snapshot_with_an_impossible_membership_or_without_the_receiver_is_dropped() {
    let tip = Tip { index: 50, term: 2, ..Tip::EMPTY };
    let good = voters(3);
    let (one, four, none) = (vec![replica(1)], vec![replica(4)], vec![quipu::types::ReplicaId(0)]);
    let bad = [
        Membership { learners: one.clone(), ..good.clone() },
        Membership { learners: none.clone(), ..good.clone() },
        Membership { voters: [none, one.clone()].concat(), ..good.clone() },
        Membership { learners_next: four.clone(), ..good.clone() },
        Membership { learners_next: one.clone(), outgoing: one.clone(), ..good.clone() },
        Membership { outgoing: four.clone(), learners: four.clone(), ..good.clone() },
        Membership { voters: four.clone(), ..good.clone() },
        Membership { voters: four, learners_next: one, ..good.clone() },
        Membership { voters: Vec::new(), ..good.clone() },
    ];
    for membership in bad {
        let mut follower = Follower::new();
        let received = follower.group.receive(snapshot(&membership, tip));
        assert_eq!(received, Err(Dropped::OutOfRange), "{membership:?}");
    }
    let mut follower = Follower::new();
    assert!(follower.take(snapshot(&good, tip)).is_some());
}

/// A full disk can last for days, and a leader asks several times a second.
#[test]
fn answers_that_wait_for_a_disk_do_not_pile_up() {
    let mut follower = Follower::new();
    let start = follower.group.start();
    let written = follower.take(append(2, 2, start, &[2]));
    for n in 0..20_000 {
        let heartbeat = message(MessageKind::Heartbeat, replica(2), 2);
        follower.take(Envelope { read: Some(n), ..heartbeat });
    }
    for n in 0..20_000 {
        follower.take(message(MessageKind::PreVote, replica(3), 3 + n % 2));
    }
    follower.stored(written);
    let sent = follower.sent();
    assert!(sent.len() <= 600, "{} messages waited", sent.len());
}

/// Steps a node of a cluster once with these messages.
fn step(cluster: &mut Cluster, id: u64, envelopes: Vec<Envelope>) -> Outputs<Replica> {
    cluster.time_ms += 1;
    let now = cluster.now();
    let node = cluster.node(id);
    node.inputs.push(Input::Envelopes(envelopes));
    node.step(now).unwrap()
}

#[test]
fn a_leader_is_not_told_of_entries_that_it_does_not_have() {
    let mut cluster = Cluster::new(3);
    cluster.put(b"one");
    let leader = cluster.await_leader();
    let term = cluster.node(leader).group().term();
    let from = replica(leader % 3 + 1);
    let to = replica(leader);
    let lie = Envelope { to, index: 99, ..message(MessageKind::AppendResponse, from, term) };
    let other = Envelope { group: LogId(Uuid::from_u128(5)), ..lie.clone() };
    let out = step(&mut cluster, leader, vec![lie, other]);
    assert_eq!(out.dropped[&Dropped::OutOfRange], 1);
    assert_eq!(out.dropped[&Dropped::UnknownGroup], 1);
    cluster.put(b"two");
    cluster.assert_alike();
}

/// Whoever waits for a replica that has stopped would wait for ever.
#[test]
fn who_waits_for_a_replica_that_stops_is_told() {
    let mut cluster = Cluster::new(3);
    cluster.put(b"one");
    let leader = cluster.await_leader();
    cluster.mute.insert(leader);
    cluster.node(leader).append(7, b"waits");
    cluster.run(20);
    let (term, start) = (cluster.node(leader).group().term(), cluster.node(leader).group().start());
    let from = replica(leader % 3 + 1);
    let to = replica(leader);
    // Another history, committed: only a power cut of a majority could lead to it.
    let lie = append(from.node().0, term + 1, start, &[term + 1]);
    let mut out = step(&mut cluster, leader, vec![Envelope { to, ..lie }]);
    let published = out.published.pop().unwrap();
    assert_eq!(published.high_watermark, 1, "what is committed stays so");
    let node = cluster.node(leader);
    assert!(node.group().fault().is_some());
    assert!(node.answers.contains_key(&Ticket(7)), "the client is told that nobody knows");
    assert_eq!(node.shard.machine(GROUP).unwrap().waiting(), 0);
}

/// A refused entry may have said that it is committed.
#[test]
fn a_high_watermark_stays_when_a_replica_stops() {
    let mut cluster = Cluster::new(3);
    cluster.put(b"one");
    cluster.run(500);
    let leader = cluster.await_leader();
    let id = leader % 3 + 1;
    let term = cluster.node(leader).group().term();
    let tip = cluster.node(id).disk.log(GROUP).unwrap().tip();
    let wrong = Tip { chain: tip.chain ^ 1, ..tip };
    let lie = append(leader, term, wrong, &[term]);
    let lie = Envelope { to: replica(id), commit: tip.index + 1, ..lie };
    let out = step(&mut cluster, id, vec![lie]);
    assert!(cluster.node(id).group().fault().is_some());
    assert_eq!(out.published, [], "nothing is new for those who read");
}

/// What is in the log stops every replica that cannot follow it: nobody could take it back.
#[test]
fn changes_that_no_replica_could_follow_are_refused() {
    let mut cluster = Cluster::new(3);
    cluster.put(b"one");
    let leader = cluster.await_leader();
    let zero = quipu::types::ReplicaId(0);
    let remove = |node| Operation::Remove(replica(node));
    let impossible = [
        vec![],
        vec![Operation::Learner(zero)],
        vec![remove(1), remove(2), remove(3), Operation::Voter(zero)],
        vec![remove(1), remove(2), remove(3)],
        (10..80).map(|node| Operation::Voter(replica(node))).collect(),
    ];
    for operations in impossible {
        let text = format!("{operations:?}");
        let change = Input::Change { group: GROUP, ticket: Ticket(1), operations };
        cluster.node(leader).inputs.push(change);
        let out = step(&mut cluster, leader, Vec::new());
        assert!(matches!(out.decisions[..], [(Ticket(1), Err(_))]), "{text}");
    }
    for node in 10..90 {
        let operations = vec![Operation::Learner(replica(node))];
        let change = Input::Change { group: GROUP, ticket: Ticket(1), operations };
        cluster.node(leader).inputs.push(change);
        cluster.run(200);
    }
    cluster.put(b"two");
    assert!(cluster.nodes.values().all(|node| node.faults.is_empty()));
    assert_eq!(cluster.node(leader).group().role(), Role::Leader);
    assert_eq!(cluster.node(leader).group().membership().all().count(), 64);
}

/// The log that the replica has is worth more than a snapshot that nobody can use.
#[test]
fn a_snapshot_whose_state_is_another_or_unreadable_does_not_take_the_place_of_the_log() {
    let tip = Tip { index: 50, term: 2, ..Tip::EMPTY };
    let other = snapshot_of(&voters(3), tip, 7);
    let unreadable = snapshot(&voters(3), tip);
    let cut = unreadable.body.slice(..unreadable.body.len() - 1);
    for envelope in [other, Envelope { body: cut, ..unreadable }] {
        let mut cluster = Cluster::new(3);
        cluster.put(b"one");
        let leader = cluster.await_leader();
        let id = leader % 3 + 1;
        let term = cluster.node(leader).group().term();
        let (from, to) = (replica(leader), replica(id));
        step(&mut cluster, id, vec![Envelope { from, to, term, ..envelope }]);
        cluster.run(100);
        assert!(cluster.node(id).group().fault().is_some());
        let fs = cluster.node(id).fs.clone();
        cluster.restart(id, &fs).unwrap();
        cluster.put(b"two");
        cluster.assert_alike();
    }
}

/// The library ignores a snapshot of entries that it knows to be committed. When they are others,
/// the leader would send it again and again.
#[test]
fn a_snapshot_that_contradicts_a_committed_entry_stops_the_replica() {
    let mut follower = Follower::new();
    let start = follower.group.start();
    let ours = entries(start, &[2, 2]);
    let written = follower.take(append(2, 2, start, &[2, 2]));
    follower.stored(written);
    let commit = Envelope { commit: 3, ..append(2, 2, ours[1].header.tip(), &[]) };
    follower.take(commit);
    follower.sent();
    let theirs = Tip { index: 2, term: 3, ..start };
    let _ = follower.group.receive(snapshot(&voters(3), theirs));
    follower.advance();
    assert!(follower.group.fault().is_some());
    assert!(follower.sent().is_empty());
}

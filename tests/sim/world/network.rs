//! The network: what is lost, doubled, late, damaged, old or made up.

use bytes::Bytes;
use quipu::raft::{Dropped, Envelope, Frame, FrameError, Input, Lane, MessageKind, Route};
use quipu::types::{ClusterId, LogId, NodeId};
use uuid::Uuid;

use super::{CLUSTER, Event, World};
use crate::node::recorded_after_cut;

const FOREIGN_CLUSTER: ClusterId = ClusterId(Uuid::from_u128(0xC2));
/// Frames that are kept to be sent once more, long after.
const OLD_FRAMES_MAX: u64 = 64;
/// Beyond what any replica believes.
const FAR_TERMS: u64 = 2_000_000;

/// Where the first envelope of a frame says its group, and where the head's checksum stands.
const GROUP_AT: std::ops::Range<usize> = 56..72;
const CRC_AT: std::ops::Range<usize> = 4..8;

impl World {
    pub(super) fn send(&mut self, from: NodeId, to: NodeId, lane: Lane, frame: &Frame) {
        let bytes = frame.to_bytes();
        self.note(u64::from(crc32fast::hash(&bytes)) ^ (lane as u64) << 40);
        let copies = 1 + u64::from(self.rng.chance(self.plan.doubled));
        for _ in 0..copies {
            if self.cut.contains(&(from, to)) || self.rng.chance(self.plan.lost) {
                continue;
            }
            let tail = if self.rng.chance(20) { 20 } else { 1 };
            let delay_us = self.rng.between(30, self.plan.delay_us) * tail;
            let mut bytes = bytes.clone();
            if self.rng.chance(self.plan.damaged) {
                let mut damaged = bytes.to_vec();
                let bit = self.rng.below(damaged.len() as u64 * 8);
                damaged[(bit / 8) as usize] ^= 1 << (bit % 8);
                bytes = damaged.into();
            }
            self.after(delay_us, Event::Frame { from, to, bytes });
        }
        let route = Route { cluster: CLUSTER, from, to };
        let envelopes = Frame::decode(&route, bytes.clone());
        let envelopes = envelopes.unwrap_or_else(|error| panic!("node {from} sends: {error}"));
        for envelope in &envelopes {
            self.check_term(from, envelope);
        }
        if self.rng.chance(self.plan.hostile) {
            self.make_up(&route, frame, envelopes);
        }
    }

    /// Nobody speaks of a term before it is on its disk. Asking whether one would be voted for is
    /// no promise, nor is giving entries that another one lacks.
    fn check_term(&mut self, from: NodeId, envelope: &Envelope) {
        use MessageKind::{Alive, PreVote, PreVoteResponse, RepairAnswer};
        let (group, term) = (envelope.group, envelope.term);
        let is_free = matches!(envelope.kind, PreVote | PreVoteResponse | Alive | RepairAnswer);
        if is_free || !self.terms_shown.insert((envelope.from, group, term)) {
            return;
        }
        let recorded = recorded_after_cut(&self.nodes[&from].fs, group);
        assert!(
            recorded.term >= term,
            "{} speaks of term {term} of {group}, on disk is {recorded:?}: {:?}",
            envelope.from,
            envelope.kind
        );
        self.tally.add("term-checked-on-disk", 1);
    }

    /// Sends something beside what was sent that must not be believed, or does no harm.
    fn make_up(&mut self, route: &Route, frame: &Frame, envelopes: Vec<Envelope>) {
        let Route { from, to, .. } = *route;
        let delay_us = self.rng.between(30, 100_000);
        let (to, bytes) = match self.rng.below(5) {
            0 => {
                let foreign = Route { cluster: FOREIGN_CLUSTER, ..*route };
                (to, Frame::encode(&foreign, &envelopes).to_bytes())
            }
            1 => (NodeId(to.0 % self.plan.nodes + 1), frame.to_bytes()),
            2 => return self.replay(from, to, frame.to_bytes()),
            3 => (to, Frame::encode(route, &far_ahead(envelopes)).to_bytes()),
            _ => {
                let other = *self.rng.pick(&self.groups).expect("there is a group");
                match of_another_group(frame, &envelopes, other) {
                    Some(bytes) => {
                        let refused = Frame::decode(route, bytes.clone());
                        assert!(refused.is_err(), "a frame passes for one of {other}");
                        self.tally.add("frame-of-another-group-refused", 1);
                        (to, bytes)
                    }
                    None => return,
                }
            }
        };
        self.after(delay_us, Event::Frame { from, to, bytes });
    }

    /// Keeps a frame, and sends one that was kept long ago.
    fn replay(&mut self, from: NodeId, to: NodeId, bytes: Bytes) {
        let at = self.rng.below(OLD_FRAMES_MAX) as usize;
        let kept = (from, to, bytes);
        if at < self.old_frames.len() {
            let (from, to, bytes) = std::mem::replace(&mut self.old_frames[at], kept);
            self.tally.add("frame-replayed", 1);
            let delay_us = self.rng.between(30, 3_000_000);
            self.after(delay_us, Event::Frame { from, to, bytes });
        } else {
            self.old_frames.push(kept);
        }
    }

    pub(super) fn deliver(&mut self, from: NodeId, to: NodeId, bytes: &Bytes) {
        self.note(u64::from(crc32fast::hash(bytes)) ^ to.0 << 48);
        let Some(live) = &mut self.nodes.get_mut(&to).expect("the node exists").live else {
            return;
        };
        match Frame::decode(&Route { cluster: CLUSTER, from, to }, bytes.clone()) {
            Ok(envelopes) => {
                let is_asked = |envelope: &&Envelope| {
                    envelope.kind == MessageKind::Vote && envelope.is_transfer
                };
                let asked = envelopes.iter().filter(is_asked).count();
                live.inputs.push(Input::Envelopes(envelopes));
                self.tally.add("election-by-transfer", asked as u64);
            }
            Err(error) => self.tally.add(refused_name(error), 1),
        }
        self.wake(to, 0);
    }
}

/// The envelopes as if their senders were millions of elections ahead.
fn far_ahead(mut envelopes: Vec<Envelope>) -> Vec<Envelope> {
    envelopes.iter_mut().for_each(|envelope| envelope.term += FAR_TERMS);
    envelopes
}

/// The frame with another group's id in its envelope and a checksum that fits. `None` for frames
/// that hold nothing but numbers: those a node of the cluster can make up as it likes.
fn of_another_group(frame: &Frame, envelopes: &[Envelope], other: LogId) -> Option<Bytes> {
    let [one] = envelopes else { return None };
    if one.group == other || (one.entries.is_empty() && one.body.is_empty()) {
        return None;
    }
    let mut head = frame.head.to_vec();
    head[GROUP_AT].copy_from_slice(other.0.as_bytes());
    let crc = crc32fast::hash(&head[8..]);
    head[CRC_AT].copy_from_slice(&crc.to_le_bytes());
    let forged = Frame { head: head.into(), ..frame.clone() };
    Some(forged.to_bytes())
}

fn refused_name(error: FrameError) -> &'static str {
    match error {
        FrameError::Cluster => "frame-of-foreign-cluster-refused",
        FrameError::Node => "frame-of-another-node-refused",
        FrameError::Entry
        | FrameError::Payload
        | FrameError::Magic
        | FrameError::Length
        | FrameError::Checksum
        | FrameError::Kind(_)
        | FrameError::Contradiction(_) => "frame-damaged-refused",
    }
}

pub(super) fn dropped_name(reason: Dropped) -> &'static str {
    match reason {
        Dropped::UnknownGroup => "dropped-unknown-group",
        Dropped::WrongReplica => "dropped-wrong-replica",
        Dropped::Busy => "dropped-busy",
        Dropped::FutureTerm => "term-far-ahead-dropped",
        Dropped::OutOfRange => "dropped-out-of-range",
        Dropped::Promised => "vote-refused-for-a-lost-tail",
        Dropped::Stranger => "dropped-stranger",
    }
}

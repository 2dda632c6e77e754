//! Outputs: what a step asks of the world, and what it tells.

use std::collections::BTreeMap;

use super::effects::Effects;
use super::envelope::{Envelope, Lane};
use super::error::{Dropped, NotProposed};
use super::group::Role;
use super::machine::{Answers, Machine, Ticket};
use super::wire::{Frame, Route};
use crate::types::{ClusterId, LogId, NodeId, ReplicaId};

/// Bytes of payloads after which a frame is closed.
const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Envelopes after which a frame is closed.
const FRAME_ENVELOPES_MAX: usize = 4096;

/// What others may know of a replica. Sent whenever it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The group.
    pub group: LogId,
    /// What the replica is.
    pub role: Role,
    /// It leads and takes proposals.
    pub is_writable: bool,
    /// Its term.
    pub term: u64,
    /// The leader, if known.
    pub leader: Option<ReplicaId>,
    /// Entries up to this index are committed, and what this replica's log has there is them: all
    /// that a leader knows to be committed, and of that, on a follower, what is on its disk. The
    /// rest may have to take the place of other entries first. Never goes down.
    pub committed_index: u64,
    /// The offset after their last record.
    pub high_watermark: u64,
    /// First offset that is to be kept.
    pub log_start: u64,
}

impl Published {
    /// What is known of a replica before its first step.
    pub fn unknown(group: LogId) -> Self {
        Self {
            group,
            role: Role::Follower,
            is_writable: false,
            term: 0,
            leader: None,
            committed_index: 0,
            high_watermark: 0,
            log_start: 0,
        }
    }
}

/// What is to be done, and what is to be told.
#[derive(Debug)]
pub struct Outputs<M: Machine> {
    /// For the disk and for other nodes.
    pub effects: Effects,
    /// For those who asked.
    pub answers: Answers<M::Answer>,
    /// For those who asked for a transfer or a change: the entry's index, 0 for a transfer.
    pub decisions: Vec<(Ticket, Result<u64, NotProposed>)>,
    /// For everybody.
    pub published: Vec<Published>,
    /// How many messages were dropped, and why.
    pub dropped: BTreeMap<Dropped, u64>,
}

impl<M: Machine> Default for Outputs<M> {
    fn default() -> Self {
        Self {
            effects: Effects::default(),
            answers: Vec::new(),
            decisions: Vec::new(),
            published: Vec::new(),
            dropped: BTreeMap::new(),
        }
    }
}

impl<M: Machine> Outputs<M> {
    /// Takes the messages, bundled for each node and lane, their order kept.
    pub fn take_frames(&mut self, cluster: ClusterId, from: NodeId) -> Vec<(NodeId, Lane, Frame)> {
        let mut bundles: BTreeMap<(NodeId, Lane), Vec<Envelope>> = BTreeMap::new();
        for (lane, envelope) in std::mem::take(&mut self.effects.envelopes) {
            bundles.entry((envelope.to.node(), lane)).or_default().push(envelope);
        }
        let mut frames = Vec::with_capacity(bundles.len());
        for ((to, lane), envelopes) in bundles {
            let route = Route { cluster, from, to };
            let (mut first, mut bytes) = (0, 0);
            for (n, envelope) in envelopes.iter().enumerate() {
                let payloads = envelope.entries.iter().map(|entry| entry.payload.len());
                let more = payloads.sum::<usize>() + envelope.body.len();
                let is_full = bytes + more > FRAME_BYTES_MAX || n - first >= FRAME_ENVELOPES_MAX;
                if is_full && n > first {
                    frames.push((to, lane, Frame::encode(&route, &envelopes[first..n])));
                    (first, bytes) = (n, 0);
                }
                bytes += more;
            }
            assert!(first < envelopes.len(), "nothing is left of {} envelopes", envelopes.len());
            frames.push((to, lane, Frame::encode(&route, &envelopes[first..])));
        }
        frames
    }
}

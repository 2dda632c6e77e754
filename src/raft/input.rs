//! Inputs: what may happen to the groups of a shard.

use super::effects::{Damaged, Supply};
use super::envelope::Envelope;
use super::group::Boot;
use super::log_view::Base;
use super::machine::{Machine, Ticket};
use super::membership::Operation;
use crate::storage::{Entry, Tip, Wound};
use crate::types::{LogId, ReplicaId};

/// Something that has happened.
#[derive(Debug)]
pub enum Input<M: Machine> {
    /// A replica starts.
    Open(Box<Boot>, M),
    /// A replica stops; whoever waits for it is told that the outcome is unknown.
    Close(LogId),
    /// Messages came; checked as [`Frame::decode`] does.
    Envelopes(Vec<Envelope>),
    /// Somebody asks something of a group.
    Ask {
        /// The group.
        group: LogId,
        /// Names the answer.
        ticket: Ticket,
        /// What is asked.
        ask: M::Ask,
    },
    /// What was handed out under this token is done.
    Stored(u64),
    /// Entries that were to be read.
    Fetched {
        /// The group.
        group: LogId,
        /// The first index that was asked for.
        first_index: u64,
        /// The entries: empty if they cannot be read, `None` if nobody had the time to.
        entries: Option<Vec<Entry>>,
    },
    /// A replica that is there and cannot run before its log is mended.
    Damaged(Damaged),
    /// What a log lacks has changed.
    Wound {
        /// The group.
        group: LogId,
        /// What is missing; `None` if nothing is.
        wound: Option<Wound>,
    },
    /// Entries that were to be read for a replica that lacks them; none if they cannot be.
    Supplied(Supply, Vec<Entry>),
    /// What a log starts with; `None` if it cannot be read.
    Base {
        /// The group.
        group: LogId,
        /// What was read.
        base: Option<Base>,
    },
    /// A message could not be sent.
    Lost {
        /// The group.
        group: LogId,
        /// For whom it was.
        to: ReplicaId,
    },
    /// Retention moved the start of a log.
    StartAdvanced {
        /// The group.
        group: LogId,
        /// The tip before the first entry that is left.
        start: Tip,
    },
    /// Leadership is to move.
    Transfer {
        /// The group.
        group: LogId,
        /// Names the answer.
        ticket: Ticket,
        /// Who shall lead.
        to: ReplicaId,
    },
    /// The replicas are to change.
    Change {
        /// The group.
        group: LogId,
        /// Names the answer.
        ticket: Ticket,
        /// What becomes of whom.
        operations: Vec<Operation>,
    },
}

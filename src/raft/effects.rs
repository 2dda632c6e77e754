//! Effects: what groups ask of the world.

use bytes::Bytes;

use super::envelope::{Envelope, Lane};
use super::group::Durability;
use super::log_view::{Base, Divergence};
use super::membership::Membership;
use crate::storage::{Entry, FactKind, Kind};
use crate::types::{LogId, ReplicaId};

/// What is to be done to a group's log and to the journal, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A snapshot takes the place of the log.
    Reset {
        /// Where the log starts anew.
        base: Base,
        /// The replicas.
        membership: Membership,
    },
    /// The entry at `first_index` and all after it go: a leader has others.
    Truncate {
        /// The first entry that goes.
        first_index: u64,
        /// What must stay.
        committed_index: u64,
    },
    /// These entries come next.
    Append(Vec<Entry>),
    /// A fact for the journal, to be durable with the rest.
    Record(FactKind, Bytes),
    /// A fact for the journal that nothing depends on.
    Hint(FactKind, Bytes),
}

impl Step {
    /// True if the step counts although the log is replaced after it. What would have gone into the
    /// log need not, and cannot any more: the state for its segments is gone.
    pub(super) fn outlives_reset(&self) -> bool {
        matches!(self, Self::Record(..) | Self::Hint(..))
    }

    /// True if the step is not done before it is on disk.
    ///
    /// DURABILITY: with [`Durability::Memory`] only records and commands may be lost to a power
    /// cut. Terms, votes and everything about the replicas is always synced: a replica that forgot
    /// who votes could elect a second leader.
    pub(super) fn needs_sync(&self, durability: Durability) -> bool {
        match (self, durability) {
            (Self::Hint(..), _) => false,
            (Self::Append(entries), Durability::Memory) => {
                entries.iter().any(|entry| entry.header.kind == Kind::Membership)
            }
            _ => true,
        }
    }
}

/// Work for a group's disk. The group waits for its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Persist {
    /// The group.
    pub group: LogId,
    /// What to report when it is done.
    pub token: u64,
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// It is done once it is on disk; otherwise once it is written.
    pub is_synced: bool,
}

impl Persist {
    /// Takes out what `later`, which waits behind it, makes superfluous. What is cut off in memory
    /// must not be written any more: there is no state for the segments that it would begin.
    pub(super) fn yield_to(&mut self, later: &Self) {
        for step in &later.steps {
            match step {
                Step::Reset { .. } => self.drop_from(0),
                Step::Truncate { first_index, .. } => self.drop_from(*first_index),
                Step::Append(_) | Step::Record(..) | Step::Hint(..) => {}
            }
        }
    }

    /// Drops the entries from `index` on, and the cuts there: a later one covers them.
    fn drop_from(&mut self, index: u64) {
        self.steps.retain_mut(|step| match step {
            Step::Append(entries) => {
                entries.retain(|entry| entry.header.index < index);
                !entries.is_empty()
            }
            Step::Truncate { first_index, .. } => *first_index < index,
            Step::Reset { base, .. } => base.tip.index < index,
            Step::Record(..) | Step::Hint(..) => true,
        });
    }
}

/// Entries to be read from disk for a follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColdRead {
    /// The group.
    pub group: LogId,
    /// The first entry.
    pub first_index: u64,
    /// The last one, inclusive; fewer may be read.
    pub last_index: u64,
    /// Payload bytes to stop at; at least one entry is read.
    pub bytes_max: u64,
}

/// Entries to be read from disk for a replica that lacks them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Supply {
    /// What it lacks; fewer may be read, and it asks again.
    pub read: ColdRead,
    /// The replica here.
    pub from: ReplicaId,
    /// The one that asked.
    pub to: ReplicaId,
}

/// Something to be done to a damaged log.
#[derive(Debug)]
pub struct Mend {
    /// The group.
    pub group: LogId,
    /// What.
    pub cure: Cure,
    /// The replica, if it does not run before it is mended.
    pub damaged: Option<Damaged>,
}

/// What is done to a damaged log.
#[derive(Debug)]
pub enum Cure {
    /// These are the entries that its oldest damaged segment lacks.
    Entries(Vec<Entry>),
    /// The group went on without what the log holds from its first damaged entry on.
    Cut,
    /// Nobody who answers keeps what is missing up to here any more: retention took it, and will
    /// here. What is missing behind it comes first from now on.
    PassOver(u64),
}

/// A replica that cannot run before its log is mended: it could not follow its own history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The group.
    pub group: LogId,
    /// The replica.
    pub replica: ReplicaId,
    /// What entries wait for.
    pub durability: Durability,
    /// Replicas of the group, as far as this one knows.
    pub peers: Vec<ReplicaId>,
    /// Index and term of the last entry of its log.
    pub last: (u64, u64),
}

/// Why a replica stopped for good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its history is not the leader's.
    #[error("this replica's log has diverged: {0}; set it aside and let a new replica take over")]
    Diverged(Divergence),
    /// A membership entry that this version does not know.
    #[error("the membership change at {index} is unknown to this version; upgrade this node")]
    UnknownChange {
        /// Its index.
        index: u64,
    },
    /// A snapshot that was checked on arrival cannot be read.
    #[error("a snapshot cannot be read")]
    Snapshot,
    /// The state machine cannot go on.
    #[error("the state machine stopped: {0}")]
    Machine(String),
}

/// What groups ask for, collected.
#[derive(Debug, Default)]
pub struct Effects {
    /// For the disk.
    pub persists: Vec<Persist>,
    /// For other nodes, in order within a lane.
    pub envelopes: Vec<(Lane, Envelope)>,
    /// Entries to be read.
    pub cold_reads: Vec<ColdRead>,
    /// Groups of which the first checkpoint is to be read.
    pub bases: Vec<LogId>,
    /// Groups whose state is to be replaced.
    pub restored: Vec<(LogId, Base)>,
    /// Groups that stopped.
    pub faults: Vec<(LogId, Fault)>,
    /// Entries to be read for replicas that lack them.
    pub supplies: Vec<Supply>,
    /// Damaged logs that can be mended.
    pub mends: Vec<Mend>,
    /// Groups with damage for which nobody has had the entries for long.
    pub unrepaired: Vec<LogId>,
}

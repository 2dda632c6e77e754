//! The state of a partition, and what each entry does to it.

use super::control::{Command, decode_log_start};
use super::error::{CommandError, Refusal};
use super::producers::{Answer, Followed, Producers, Verdict};
use super::progress::{Moment, Progress};
use crate::storage::{EntryHeader, Kind};

/// Everything that a partition's log says, up to and including one entry.
///
/// * Equal on all replicas at the same applied index.
/// * `log_time_ms` and `log_start` never go down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub(super) applied_index: u64,
    /// Append time of the last entry; `i64::MIN` before the first.
    pub(super) log_time_ms: i64,
    pub(super) log_start: u64,
    pub(super) producers: Producers,
    pub(super) progress: Progress,
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// What an entry did, for those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "waiters are answered with it"]
pub struct Applied {
    /// The entry's index.
    pub index: u64,
    /// Its term: a waiter of another term at this index waits for an entry that was lost.
    pub term: u64,
    /// What it did.
    pub effect: Effect,
}

impl Applied {
    /// Why the entry did nothing, if so. See [`Refusal::is_deterministic`].
    pub fn refusal(&self) -> Option<Refusal> {
        match self.effect {
            Effect::Records(StoredBatch { verdict: Verdict::Refused(refusal), .. })
            | Effect::LogStart(Err(refusal))
            | Effect::Control(Err(refusal)) => Some(refusal),
            Effect::Records(_)
            | Effect::LogStart(Ok(_))
            | Effect::Control(Ok(_))
            | Effect::Nothing
            | Effect::Membership => None,
        }
    }
}

/// What an entry did to the state, or asks of the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// A no-op.
    Nothing,
    /// The replica set changes: its payload is Raft's.
    Membership,
    /// A batch is committed.
    Records(StoredBatch),
    /// The log start moves to this offset; the same as before if a later one was set already.
    LogStart(Result<u64, Refusal>),
    /// A command was followed or refused.
    Control(Result<Reply, Refusal>),
}

/// A record batch that is in the log, and what it is to its producer.
///
/// Unless it is [`Verdict::Fresh`], the leader should not have let it in. Its records are in the
/// log all the same and readers see them; the state does not count them as the producer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredBatch {
    /// Offset of its first record.
    pub base_offset: u64,
    /// Records in it.
    pub record_count: u32,
    /// What it is to its producer.
    pub verdict: Verdict,
}

impl StoredBatch {
    /// What its producer is told. For a batch stored twice: where it stood first.
    pub fn answer(&self) -> Answer {
        match self.verdict {
            Verdict::Fresh => Ok(self.base_offset),
            Verdict::Duplicate { base_offset } => Ok(base_offset),
            Verdict::Refused(refusal) => Err(refusal),
        }
    }
}

/// What a command that was followed has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The producer may begin, at sequence 0.
    ProducerInitialized {
        /// The producer.
        producer_id: u64,
        /// The producer epoch it has from here on.
        producer_epoch: u16,
        /// The sequence number that would have come next in the producer epoch before this one:
        /// nothing from there on is stored. `None` for a new producer.
        ended_sequence: Option<u32>,
    },
    /// The group's position stands.
    OffsetCommitted {
        /// Next offset to read.
        offset: u64,
        /// The group's generation.
        generation: u64,
    },
    /// The group's position was set.
    OffsetsReset {
        /// Next offset to read.
        offset: u64,
        /// The generation that the group's members need to commit again: one above what was.
        generation: u64,
    },
    /// The group is gone.
    GroupDeleted {
        /// The generation it had.
        generation: u64,
    },
    /// Older generations are refused.
    GenerationFenced {
        /// The generation that holds.
        generation: u64,
        /// The one that held before.
        previous: u64,
        /// Next offset to read.
        offset: u64,
    },
}

impl State {
    /// The state before the first entry of a log.
    pub fn new() -> Self {
        Self {
            applied_index: 0,
            log_time_ms: i64::MIN,
            log_start: 0,
            producers: Producers::default(),
            progress: Progress::default(),
        }
    }

    /// The state of a log that begins after entry `index`, with nothing before it.
    pub fn starting_after(index: u64) -> Self {
        Self { applied_index: index, ..Self::new() }
    }

    /// Index of the last entry that the state has seen.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// The log's time: append time of the last entry, `i64::MIN` before the first.
    pub fn log_time_ms(&self) -> i64 {
        self.log_time_ms
    }

    /// First offset that can be read, as the log says. Inclusive.
    pub fn log_start(&self) -> u64 {
        self.log_start
    }

    /// The producers.
    pub fn producers(&self) -> &Producers {
        &self.producers
    }

    /// The progress of the groups.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Follows the log by its next entry.
    ///
    /// The payload is looked at for control and log-start entries only; it may be empty for others.
    /// Whatever it holds, this does not panic.
    ///
    /// # Panics
    /// If the entry is not the next one.
    pub fn apply(&mut self, header: &EntryHeader, payload: &[u8]) -> Applied {
        let (index, next) = (header.index, self.applied_index + 1);
        assert!(index == next, "entry {index} is applied where {next} is next");
        self.applied_index = index;
        self.log_time_ms = self.log_time_ms.max(header.append_time_ms);
        let decoded = (header.kind == Kind::Control).then(|| Command::decode(payload));
        let command = decoded.as_ref().and_then(|decoded| decoded.as_ref().ok());
        let followed = self.producers.follow(header, command, self.log_time_ms);
        let effect = match (header.kind, followed) {
            (Kind::NoOp, _) => Effect::Nothing,
            (Kind::Membership, _) => Effect::Membership,
            (Kind::LogStart, _) => Effect::LogStart(self.advance_log_start(header, payload)),
            (Kind::Records, followed) => Effect::Records(stored_batch(header, followed)),
            (Kind::Control, Followed::Init(result)) => Effect::Control(result),
            (Kind::Control, _) => Effect::Control(self.follow_group(header, decoded)),
        };
        self.progress.forget_idle(self.log_time_ms);
        Applied { index, term: header.term, effect }
    }

    fn follow_group(
        &mut self,
        header: &EntryHeader,
        decoded: Option<Result<Command, CommandError>>,
    ) -> Result<Reply, Refusal> {
        let command = decoded.expect("the payload of a control entry was decoded")?;
        let moment = Moment { log_end: header.base_offset, now_ms: self.log_time_ms };
        let reply = self.progress.follow(&command, moment);
        reply.expect("a command is to a producer or to a group")
    }

    fn advance_log_start(&mut self, header: &EntryHeader, payload: &[u8]) -> Result<u64, Refusal> {
        let (offset, log_end) = (decode_log_start(payload)?, header.base_offset);
        if offset > log_end {
            return Err(Refusal::OffsetBeyondEnd { log_end });
        }
        self.log_start = self.log_start.max(offset);
        Ok(self.log_start)
    }
}

fn stored_batch(header: &EntryHeader, followed: Followed) -> StoredBatch {
    let Followed::Records(verdict) = followed else {
        unreachable!("a records entry is {followed:?} to the producers");
    };
    let EntryHeader { base_offset, record_count, .. } = *header;
    StoredBatch { base_offset, record_count, verdict }
}

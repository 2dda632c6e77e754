//! A partition: what its log says about producers, group progress and its start, and the replica
//! that joins this to the log and to its Raft group.
//!
//! It owns the meaning of entries. Its [`State`] knows no files, Raft, networks, clocks or
//! randomness: it is a pure function of the log, equal on every replica at the same index,
//! whichever checkpoint it was rebuilt from. The only time it knows is the append time in the
//! entries.
//!
//! | noun | file | what it is |
//! |---|---|---|
//! | state | `state` | everything the log says, and [`State::apply`] |
//! | producer | `producers` | producer epochs and the last batches: a retry is stored once |
//! | in flight | `in_flight` | the leader's view of entries that are appended, not applied |
//! | progress | `progress` | positions of consumer groups, guarded by their generation |
//! | command | `control` | what a control entry says, and its bytes |
//! | replica | `replica`, `pending`, `reads` | the state, joined to Raft, and who waits |
//! | handle | `handle` | what the rest of a server holds of a partition |
//! | checkpoint | `checkpoint`, `wire` | the state as bytes, one form for each state |
//! | refusal | `error` | why a batch or a command changed nothing |
//!
//! # Invariants
//! * **A refusal changes nothing.** The entry is in the log, the state is as it was before.
//! * **Bytes from the log never panic.** What cannot be decoded is refused, alike everywhere.
//! * **Limits and times are part of the format.** Replicas of two versions that disagree about
//!   [`PRODUCERS_MAX`], [`PRODUCER_IDLE_MS`], [`GROUPS_MAX`] or an order of checks diverge: change
//!   one only behind a cluster-wide switch.
//! * **A command that this version does not know stops the replica** instead of being skipped: see
//!   [`Refusal::is_deterministic`].
//!
//! # Checkpoints at a roll
//! A segment starts with the state at the *tip* of the log, which is ahead of what is committed.
//! `apply` may run ahead just as well: the state after entries that are cut off later goes with the
//! segment that was cut off with them.
//!
//! Start with [`State::apply`], then `producers.rs`.

mod checkpoint;
mod control;
mod error;
mod handle;
mod in_flight;
mod pending;
mod producers;
mod progress;
mod reads;
mod replica;
mod state;
#[cfg(test)]
mod tests;
mod wire;

pub use self::control::{
    Command, FenceGeneration, GROUP_ID_BYTES_MAX, GroupId, InitProducer, METADATA_BYTES_MAX,
    Metadata, OffsetCommit, ResetOffsets,
};
pub use self::error::{CheckpointError, CommandError, Refusal};
pub use self::handle::{Appended, AskError, FetchError, Fetched, Handle, Room, Submitted};
pub use self::in_flight::{Admission, InFlight};
pub use self::producers::{
    Answer, PRODUCER_IDLE_MS, PRODUCERS_MAX, Producers, RECENT_BATCHES_MAX, Submission, Verdict,
};
pub use self::progress::{GROUPS_MAX, Group, Position, Progress};
pub use self::replica::{Acks, Ask, Batch, Replica, Response};
pub use self::state::{Applied, Effect, Reply, State, StoredBatch};

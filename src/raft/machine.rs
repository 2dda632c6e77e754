//! Machines: what a group's log means to those above.

use bytes::Bytes;

use super::effects::Fault;
use super::group::Group;
use crate::storage::Entry;

/// The time at which something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never goes back, from any start.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970, as well as the node knows.
    pub wall_ms: i64,
}

/// Names an ask, so that its answer finds the way back. The caller's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Answers on their way out.
pub type Answers<A> = Vec<(Ticket, A)>;

/// A state machine with its waiters: a partition, or the metadata of a cluster.
///
/// The state is a function of the log alone. It is changed by [`Machine::advance`] and
/// [`Machine::replay`] only, entry by entry.
pub trait Machine: Sized {
    /// What callers ask of it.
    type Ask;
    /// What they are told.
    type Answer;

    /// The machine of a log that begins after entry `index`.
    fn new(index: u64) -> Self;

    /// The machine at a checkpoint that [`Machine::checkpoint_at`] made, without waiters.
    ///
    /// # Errors
    /// Says what the bytes are instead.
    fn restore(state: &[u8]) -> Result<Self, String>;

    /// The state of a machine that has just been made, as bytes for [`Machine::restore`].
    fn initial_checkpoint(&self) -> Bytes;

    /// Index of the last entry that it has seen.
    fn applied_index(&self) -> u64;

    /// Follows an entry that was committed before the replica started.
    ///
    /// # Errors
    /// Why the replica must stop.
    fn replay(&mut self, entry: &Entry) -> Result<(), Fault>;

    /// Takes an ask, and answers it now or later.
    fn ask(
        &mut self,
        ticket: Ticket,
        ask: Self::Ask,
        group: &mut Group,
        now: Now,
        answers: &mut Answers<Self::Answer>,
    );

    /// Follows the group: applies what is committed and answers who waited for it.
    ///
    /// # Errors
    /// Why the replica must stop.
    fn advance(
        &mut self,
        group: &mut Group,
        answers: &mut Answers<Self::Answer>,
    ) -> Result<(), Fault>;

    /// Gives up: everyone who waits learns that the outcome is unknown.
    fn abandon(&mut self, answers: &mut Answers<Self::Answer>);

    /// The answer to an ask about a group that is not here.
    fn unknown_group() -> Self::Answer;

    /// First offset that is to be kept, as the log says.
    fn log_start(&self) -> u64;

    /// The state right after entry `index`, which is in the log but maybe not committed. Never
    /// below [`Machine::applied_index`].
    fn checkpoint_at(&self, index: u64, group: &Group) -> Bytes;
}

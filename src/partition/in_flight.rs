//! In flight: what the leader has appended and not yet applied.
//!
//! A batch must be judged before it is appended, by all that is in the log before it. The leader
//! therefore follows the log a second time, at its tip. Because it is the same function over the
//! same entries, what is let in here is fresh when it is applied: also when an entry in between
//! fences a producer, or makes the state forget one.
//!
//! What rests on an entry that is not committed may be answered only once that entry is, in the
//! same term: see [`Admission::AnswerAfter`].

use std::collections::VecDeque;

use super::control::Command;
use super::producers::{Answer, Followed, Producers, Submission, Verdict};
use super::state::State;
use crate::storage::{EntryHeader, Kind};

/// What the leader does with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Append it, and answer when that entry is applied.
    Append,
    /// Store nothing; answer at once.
    Answer(Answer),
    /// Store nothing; answer once the entry at `index` is applied, if its term is the leader's. If
    /// another entry gets there, nothing is known: the batch may be sent again.
    AnswerAfter {
        /// The entry that the answer rests on.
        index: u64,
        /// The answer then.
        answer: Answer,
    },
}

/// The producers at the tip of a leader's log. Dropped when the replica stops leading.
///
/// * Made only when all entries of earlier terms are applied, so nothing in the log is missing.
/// * `pending` are the record batches above the applied index; indices and offsets ascend.
#[derive(Debug, Clone)]
pub struct InFlight {
    tip: Producers,
    tip_index: u64,
    tip_time_ms: i64,
    pending: VecDeque<Pending>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    index: u64,
    base_offset: u64,
}

impl InFlight {
    /// Starts at a state that has everything in the log: that of a leader which has applied its
    /// own no-op and appended nothing since.
    pub fn new(state: &State) -> Self {
        Self {
            tip: state.producers().clone(),
            tip_index: state.applied_index(),
            tip_time_ms: state.log_time_ms(),
            pending: VecDeque::new(),
        }
    }

    /// Says what to do with a batch that has come in; `applied` is the state of the same replica.
    ///
    /// On [`Admission::Append`] the caller appends it before it asks about another one.
    pub fn check(&self, applied: &Producers, submission: &Submission) -> Admission {
        let verdict = self.tip.check(submission);
        let answer = match verdict {
            Verdict::Fresh => return Admission::Append,
            Verdict::Duplicate { base_offset } => Ok(base_offset),
            Verdict::Refused(refusal) => Err(refusal),
        };
        if applied.check(submission) == verdict {
            return Admission::Answer(answer);
        }
        let index = answer.ok().and_then(|offset| self.pending_at(offset));
        Admission::AnswerAfter { index: index.unwrap_or(self.tip_index), answer }
    }

    /// Index of the pending batch at an offset.
    fn pending_at(&self, base_offset: u64) -> Option<u64> {
        let at = self.pending.binary_search_by_key(&base_offset, |pending| pending.base_offset);
        at.ok().map(|at| self.pending[at].index)
    }

    /// Follows an entry that the leader appends; it must see every one, of whatever kind.
    ///
    /// # Panics
    /// If the entry is not the next one, or a batch that [`InFlight::check`] would not let in.
    pub fn append(&mut self, header: &EntryHeader, payload: &[u8]) {
        let next = self.tip_index + 1;
        assert!(header.index == next, "entry {} is appended where {next} is next", header.index);
        self.tip_index = header.index;
        self.tip_time_ms = self.tip_time_ms.max(header.append_time_ms);
        let is_control = header.kind == Kind::Control;
        let command = is_control.then(|| Command::decode(payload).ok()).flatten();
        let followed = self.tip.follow(header, command.as_ref(), self.tip_time_ms);
        if let Followed::Records(verdict) = followed {
            let index = header.index;
            assert!(verdict == Verdict::Fresh, "batch at {index} is appended but is {verdict:?}");
            let base_offset = header.base_offset;
            let before = self.pending.back().map(|pending| pending.base_offset);
            assert!(
                before.is_none_or(|before| before < base_offset),
                "batch at {index} has offset {base_offset}, the one before {before:?}"
            );
            self.pending.push_back(Pending { index, base_offset });
        }
    }

    /// Forgets what is applied, up to and including `index`.
    ///
    /// # Panics
    /// If the entry was never appended here.
    pub fn commit(&mut self, index: u64) {
        let tip = self.tip_index;
        assert!(index <= tip, "entry {index} is committed, but {tip} is the last appended");
        while self.pending.front().is_some_and(|pending| pending.index <= index) {
            self.pending.pop_front();
        }
    }

    /// Index of the last entry that was followed.
    pub fn tip_index(&self) -> u64 {
        self.tip_index
    }

    /// How many record batches are not applied yet.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// True if every record batch is applied.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

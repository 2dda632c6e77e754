//! Pending: who waits for what in a partition. Pure bookkeeping.
//!
//! A waiter waits for one entry, by index and term. When the entry at that index is settled, with
//! that term or another one, the waiter learns which. Everything else about waiting is one number:
//! how far the log is committed, or stored on the leader.

use std::collections::BTreeMap;

use crate::raft::Ticket;

/// Waiters for the entries of one leader.
#[derive(Debug)]
pub(super) struct Pending<W> {
    /// By index, and by turn among those of the same entry.
    waiters: BTreeMap<(u64, u64), Waiter<W>>,
    turn: u64,
}

/// Somebody who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiter<W> {
    pub(super) ticket: Ticket,
    /// Term of the entry that it waits for.
    pub(super) term: u64,
    /// What it is to be told.
    pub(super) what: W,
}

impl<W> Default for Pending<W> {
    fn default() -> Self {
        Self { waiters: BTreeMap::new(), turn: 0 }
    }
}

impl<W> Pending<W> {
    /// Lets `waiter` wait for the entry at `index`.
    pub(super) fn wait(&mut self, index: u64, waiter: Waiter<W>) {
        self.turn += 1;
        self.waiters.insert((index, self.turn), waiter);
    }

    /// Takes the first waiter for an entry up to `index`, with the index that it waits for.
    pub(super) fn pop_up_to(&mut self, index: u64) -> Option<(u64, Waiter<W>)> {
        let first = self.waiters.first_entry()?;
        if first.key().0 > index {
            return None;
        }
        let ((index, _), waiter) = first.remove_entry();
        Some((index, waiter))
    }

    /// Takes everybody.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Waiter<W>> {
        std::mem::take(&mut self.waiters).into_values()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiters.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(ticket: u64) -> Waiter<char> {
        Waiter { ticket: Ticket(ticket), term: 1, what: 'w' }
    }

    #[test]
    fn waiters_come_out_by_index_and_then_by_turn() {
        let mut pending = Pending::default();
        for (index, ticket) in [(5, 1), (3, 2), (5, 3), (9, 4)] {
            pending.wait(index, waiter(ticket));
        }
        let mut popped = || pending.pop_up_to(5).map(|(index, w)| (index, w.ticket.0));
        assert_eq!(
            [popped(), popped(), popped(), popped()],
            [Some((3, 2)), Some((5, 1)), Some((5, 3)), None]
        );
        assert_eq!(pending.drain().map(|w| w.ticket.0).collect::<Vec<_>>(), [4]);
        assert_eq!(pending.len(), 0);
    }
}

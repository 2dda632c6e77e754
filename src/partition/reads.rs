//! Reads: answers that rest on this replica's leading, while a majority is asked whether it does.

use super::error::Refusal;
use super::replica::Response;
use crate::raft::{Answers, Group, NotProposed, Ticket};

/// Somebody who is told something that only a leader knows.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) ticket: Ticket,
    /// What must be applied before.
    pub(super) index: u64,
    /// Why the batch is not stored; `None` for who asked how far the log is.
    pub(super) refusal: Option<Refusal>,
}

/// All who wait for such an answer.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// By the number under which the majority was asked.
    asked: Vec<(u64, Read)>,
    /// Those for whom it has said yes.
    confirmed: Vec<Read>,
    last_number: u64,
}

impl Reads {
    /// Lets a question wait until a majority has said that this replica still leads.
    ///
    /// # Errors
    /// [`NotProposed::NotLeader`].
    pub(super) fn ask(&mut self, read: Read, group: &mut Group) -> Result<(), NotProposed> {
        self.last_number += 1;
        group.read_index(self.last_number)?;
        self.asked.push((self.last_number, read));
        Ok(())
    }

    /// Answers those of whom everything is known.
    pub(super) fn settle(
        &mut self,
        group: &mut Group,
        applied: u64,
        answers: &mut Answers<Response>,
    ) {
        for (number, index) in group.take_reads() {
            let committed = group.committed();
            assert!(index <= committed, "a read waits for {index}, {committed} are committed");
            if let Some(at) = self.asked.iter().position(|(asked, _)| *asked == number) {
                let (_, read) = self.asked.swap_remove(at);
                self.confirmed.push(Read { index: read.index.max(index), ..read });
            }
        }
        let high_watermark = group.tip_at(group.committed()).map_or(0, |tip| tip.end_offset);
        for read in self.confirmed.extract_if(.., |read| read.index <= applied) {
            let barrier = Response::Barrier { high_watermark };
            answers.push((read.ticket, read.refusal.map_or(barrier, Response::Refused)));
        }
    }

    /// Takes everybody.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Ticket> {
        let asked = self.asked.drain(..).map(|(_, read)| read.ticket);
        asked.chain(self.confirmed.drain(..).map(|read| read.ticket))
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.asked.len() + self.confirmed.len()
    }
}

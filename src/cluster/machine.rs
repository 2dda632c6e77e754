//! The metadata as a state machine on a Raft group: commands in, states out.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::command::Command;
use super::error::Refusal;
use super::state::{Given, State};
use crate::raft::{Answers, Draft, Fault, Group, Machine, NotProposed, Now, Role, Ticket};
use crate::storage::{Entry, Kind};
use crate::types::ReplicaId;

/// Longest encoded command, in bytes.
pub const COMMAND_BYTES_MAX: usize = 3 * 1024 * 1024;

/// What is asked of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// Follow a command.
    Propose(Command),
    /// Give the state once it is beyond this index.
    Read {
        /// The index that the asker has.
        beyond: u64,
    },
    /// Say how far the log is committed, surely and by now.
    Barrier,
}

/// What the one who asked is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The command was followed.
    Followed {
        /// Index of its entry.
        index: u64,
        /// What it gave.
        given: Given,
    },
    /// The command changed nothing.
    Refused(Refusal),
    /// The state.
    State(Arc<State>),
    /// Everything up to this index was committed when the question was asked, and nothing more.
    Barrier {
        /// The index.
        index: u64,
    },
    /// Nothing was changed: ask the leader.
    NotLeader {
        /// The leader, if known.
        leader: Option<ReplicaId>,
    },
    /// It may be followed or not, now or later.
    Unknown,
}

/// Somebody who waits for an entry of a leader's term.
#[derive(Debug)]
struct Waiter {
    index: u64,
    term: u64,
    ticket: Ticket,
}

/// One replica of the metadata, beside its Raft group.
#[derive(Debug)]
pub struct Metadata {
    state: Arc<State>,
    /// By index.
    waiters: Vec<Waiter>,
    readers: Vec<(u64, Ticket)>,
    /// Barriers: the number under which the majority was asked.
    asked: Vec<(u64, Ticket)>,
    last_number: u64,
}

impl Metadata {
    fn of(state: State) -> Self {
        let (waiters, readers, asked) = (Vec::new(), Vec::new(), Vec::new());
        Self { state: Arc::new(state), waiters, readers, asked, last_number: 0 }
    }

    fn propose(
        &mut self,
        ticket: Ticket,
        command: &Command,
        group: &mut Group,
        now: Now,
    ) -> Option<Answer> {
        let bytes = command.encode_to_vec();
        if bytes.len() > COMMAND_BYTES_MAX {
            let text = "that is too much for one command; do it in several steps".to_owned();
            return Some(Answer::Refused(Refusal::Invalid(text)));
        }
        match group.propose(Draft::new(Kind::Control, bytes.into()), now.wall_ms) {
            Ok(entry) => {
                let (index, term) = (entry.header.index, entry.header.term);
                self.waiters.push(Waiter { index, term, ticket });
                None
            }
            Err(
                NotProposed::NotLeader
                | NotProposed::Transferring
                | NotProposed::ChangePending
                | NotProposed::NoVoters
                | NotProposed::NotVoter,
            ) => Some(not_leader(group)),
        }
    }

    fn barrier(&mut self, ticket: Ticket, group: &mut Group) -> Option<Answer> {
        self.last_number += 1;
        if group.read_index(self.last_number).is_err() {
            return Some(not_leader(group));
        }
        self.asked.push((self.last_number, ticket));
        None
    }

    /// Tells those who wait for entries up to `index` what became of theirs.
    fn settle(
        &mut self,
        entry: &Entry,
        outcome: Option<&Result<Given, Refusal>>,
        group: &Group,
        answers: &mut Answers<Answer>,
    ) {
        let index = entry.header.index;
        for waiter in self.waiters.extract_if(.., |waiter| waiter.index == index) {
            let answer = match outcome {
                Some(Ok(given)) if entry.header.term == waiter.term => {
                    Answer::Followed { index, given: *given }
                }
                Some(Err(refusal)) if entry.header.term == waiter.term => {
                    Answer::Refused(refusal.clone())
                }
                _ => not_leader(group),
            };
            answers.push((waiter.ticket, answer));
        }
    }

    fn answer_readers(&mut self, answers: &mut Answers<Answer>) {
        let applied = self.state.applied_index();
        for (_, ticket) in self.readers.extract_if(.., |(beyond, _)| *beyond < applied) {
            answers.push((ticket, Answer::State(self.state.clone())));
        }
    }
}

impl Machine for Metadata {
    type Ask = Ask;
    type Answer = Answer;

    fn new(index: u64) -> Self {
        Self::of(State::starting_after(index))
    }

    fn restore(state: &[u8]) -> Result<Self, String> {
        State::from_checkpoint(state).map(Self::of)
    }

    fn initial_checkpoint(&self) -> Bytes {
        self.state.checkpoint()
    }

    fn applied_index(&self) -> u64 {
        self.state.applied_index()
    }

    fn replay(&mut self, entry: &Entry) -> Result<(), Fault> {
        apply(Arc::make_mut(&mut self.state), entry).map(drop)
    }

    fn ask(
        &mut self,
        ticket: Ticket,
        ask: Ask,
        group: &mut Group,
        now: Now,
        answers: &mut Answers<Answer>,
    ) {
        let answer = match ask {
            Ask::Propose(command) => self.propose(ticket, &command, group, now),
            Ask::Read { beyond } => {
                self.readers.push((beyond, ticket));
                self.answer_readers(answers);
                None
            }
            Ask::Barrier => self.barrier(ticket, group),
        };
        answers.extend(answer.map(|answer| (ticket, answer)));
    }

    fn advance(&mut self, group: &mut Group, answers: &mut Answers<Answer>) -> Result<(), Fault> {
        let is_leader = group.role() == Role::Leader;
        let term = group.term();
        let is_lost = |waiter: &mut Waiter| !is_leader || waiter.term != term;
        let lost = self.waiters.extract_if(.., is_lost);
        answers.extend(lost.map(|waiter| (waiter.ticket, Answer::Unknown)));
        if !is_leader {
            let asked = self.asked.drain(..);
            answers.extend(asked.map(|(_, ticket)| (ticket, not_leader(group))));
        }
        while self.state.applied_index() < group.applicable() {
            let index = self.state.applied_index() + 1;
            let entry = group.entry(index).expect("an entry that is not applied is in memory");
            let outcome = apply(Arc::make_mut(&mut self.state), entry)?;
            let entry = entry.clone();
            self.settle(&entry, outcome.as_ref(), group, answers);
        }
        for (number, index) in group.take_reads() {
            for (_, ticket) in self.asked.extract_if(.., |(asked, _)| *asked == number) {
                answers.push((ticket, Answer::Barrier { index }));
            }
        }
        self.answer_readers(answers);
        Ok(())
    }

    fn abandon(&mut self, answers: &mut Answers<Answer>) {
        let waiters = self.waiters.drain(..).map(|waiter| waiter.ticket);
        let waiting = waiters.chain(self.readers.drain(..).map(|(_, ticket)| ticket));
        answers.extend(waiting.map(|ticket| (ticket, Answer::Unknown)));
        let asked = self.asked.drain(..);
        answers.extend(asked.map(|(_, ticket)| (ticket, Answer::NotLeader { leader: None })));
    }

    fn unknown_group() -> Answer {
        Answer::NotLeader { leader: None }
    }

    fn log_start(&self) -> u64 {
        0
    }

    fn checkpoint_at(&self, index: u64, group: &Group) -> Bytes {
        let applied = self.state.applied_index();
        assert!(index >= applied, "the state at {index} is asked for, {applied} is applied");
        if index == applied {
            return self.state.checkpoint();
        }
        let mut state = State::clone(&self.state);
        for index in applied + 1..=index {
            let entry = group.entry(index).expect("an entry that is not applied is in memory");
            if apply(&mut state, entry).is_err() {
                // What stops a replica stops it when the entry is committed, not before.
                state.skip(index);
            }
        }
        state.checkpoint()
    }
}

/// Applies an entry; what a command came to, if it is one.
fn apply(state: &mut State, entry: &Entry) -> Result<Option<Result<Given, Refusal>>, Fault> {
    let index = entry.header.index;
    if entry.header.kind != Kind::Control {
        state.skip(index);
        return Ok(None);
    }
    let unknown = || {
        let text = format!("entry {index} of the metadata is unknown to this version; upgrade it");
        Fault::Machine(text)
    };
    let command = Command::decode(entry.payload.clone()).map_err(|_| unknown())?;
    state.apply(index, &command).map(Some).ok_or_else(unknown)
}

fn not_leader(group: &Group) -> Answer {
    let leader = group.leader().filter(|leader| *leader != group.replica());
    Answer::NotLeader { leader }
}

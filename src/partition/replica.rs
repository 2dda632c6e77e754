//! A replica: the partition's state, joined to its Raft group, and those who wait for answers.
//!
//! The leader judges a batch when it comes in, by all that is in its log; what it lets in is told
//! its offset at once and acknowledged when the entry is committed. Nothing is acknowledged twice
//! or taken back: an entry that another leader replaced is answered with "not stored", and where
//! that cannot be known, with "outcome unknown".

use bytes::Bytes;

use super::control::{Command, GroupId, OffsetCommit};
use super::error::Refusal;
use super::in_flight::{Admission, InFlight};
use super::pending::{Pending, Waiter};
use super::producers::Submission;
use super::progress;
use super::reads::{Read, Reads};
use super::state::{Applied, Effect, Reply, State};
use crate::raft::planted::{Bug, planted};
use crate::raft::{
    Answers, Draft, Durability, Fault, Group, Machine, NotProposed, Now, Role, Ticket,
};
use crate::storage::{Entry, Kind};
use crate::types::ReplicaId;

/// What an append is answered after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acks {
    /// A majority has it.
    #[default]
    Quorum,
    /// The leader has it. Another leader may not.
    Leader,
    /// It was taken. It may be lost with the next fault.
    None,
}

/// A record batch on its way into the log, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The bytes, as the client sent them.
    pub payload: Bytes,
    /// Their CRC-32.
    pub payload_crc: u32,
    /// Records in it; at least 1.
    pub record_count: u32,
    /// Format and codec.
    pub format: u8,
    /// The producer, or 0.
    pub producer_id: u64,
    /// Its incarnation.
    pub producer_epoch: u16,
    /// Sequence number of the first record.
    pub base_sequence: u32,
}

impl Batch {
    fn submission(&self) -> Submission {
        Submission {
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
            record_count: self.record_count,
            payload_crc: self.payload_crc,
        }
    }

    fn into_draft(self) -> Draft {
        Draft {
            kind: Kind::Records,
            payload: self.payload,
            payload_crc: self.payload_crc,
            record_count: self.record_count,
            format: self.format,
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
        }
    }
}

/// What is asked of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Store a batch.
    Append {
        /// The batch.
        batch: Batch,
        /// What the answer waits for.
        acks: Acks,
    },
    /// Follow a command.
    Command(Command),
    /// Move the log start to this offset, on all replicas.
    DeleteRecords(u64),
    /// Say how far the log is committed, surely and by now.
    Barrier,
    /// Say how far a consumer group has come, as far as this replica has applied the log.
    Group(GroupId),
    /// Say where all consumer groups stand, as far as this replica has applied the log.
    Groups,
}

/// What the one who asked is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// The batch is stored, now or by an earlier attempt.
    Appended {
        /// Offset of its first record.
        base_offset: u64,
        /// What "stored" means in this partition.
        durability: Durability,
    },
    /// The command was followed.
    Followed(Reply),
    /// The log starts here.
    LogStart(u64),
    /// Everything below was committed when the question was asked, and no later leader had more.
    Barrier {
        /// First offset that is not committed.
        high_watermark: u64,
    },
    /// The group, if it is known here.
    Group(Option<Box<progress::Group>>),
    /// Where each group stands.
    Groups(Vec<(GroupId, Option<u64>)>),
    /// Nothing was changed, for this reason.
    Refused(Refusal),
    /// Nothing was changed: ask the leader.
    NotLeader {
        /// The leader, if known.
        leader: Option<ReplicaId>,
    },
    /// Nothing was changed: leadership is changing hands, try again.
    Transferring,
    /// It may be stored or not, now or later. Only a producer with sequence numbers can ask again
    /// without harm.
    Unknown,
}

/// A leader's own view, dropped when it stops leading.
#[derive(Debug)]
struct Leading {
    term: u64,
    in_flight: InFlight,
}

impl Leading {
    /// False if leadership was lost since the replica last followed its group.
    fn is_good(&self, group: &Group) -> bool {
        group.is_writable() && group.term() == self.term
    }

    /// Follows what the group has proposed by itself: changes of the replicas.
    fn catch_up(&mut self, group: &Group) {
        for index in self.in_flight.tip_index() + 1..=group.last_index() {
            let entry = group.entry(index).expect("an entry that is not applied is in memory");
            self.in_flight.append(&entry.header, &entry.payload);
        }
    }
}

/// One replica of one partition, beside its Raft group.
#[derive(Debug)]
pub struct Replica {
    state: State,
    leading: Option<Leading>,
    /// Those who wait for a majority, with what they are told then.
    committing: Pending<Response>,
    /// Those who wait for the leader's own disk.
    storing: Pending<Response>,
    /// Those who wait for what the state machine makes of an entry.
    applying: Pending<()>,
    /// Those who are told what only a leader knows.
    reads: Reads,
}

impl Replica {
    fn of(state: State) -> Self {
        Self {
            state,
            leading: None,
            committing: Pending::default(),
            storing: Pending::default(),
            applying: Pending::default(),
            reads: Reads::default(),
        }
    }

    /// What the log says, as far as it is committed.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How many wait for an answer.
    pub fn waiting(&self) -> usize {
        self.committing.len() + self.storing.len() + self.applying.len() + self.reads.len()
    }

    fn append(
        &mut self,
        ticket: Ticket,
        batch: Batch,
        acks: Acks,
        group: &mut Group,
        now: Now,
    ) -> Option<Response> {
        let Some(leading) = self.leading.as_mut().filter(|leading| leading.is_good(group)) else {
            return Some(not_leader(group));
        };
        leading.catch_up(group);
        let durability = group.durability();
        let answer = |answer| match answer {
            Ok(base_offset) => Response::Appended { base_offset, durability },
            Err(refusal) => Response::Refused(refusal),
        };
        let admission = leading.in_flight.check(self.state.producers(), &batch.submission());
        let (index, promised) = match admission {
            Admission::Answer(Err(refusal))
            | Admission::AnswerAfter { answer: Err(refusal), .. }
                if !planted(Bug::RefusedUnasked) =>
            {
                return self.refuse(ticket, refusal, group);
            }
            Admission::Answer(now) => return Some(answer(now)),
            Admission::AnswerAfter { index, answer: then } => (index, answer(then)),
            Admission::Append => match propose(leading, batch.into_draft(), group, now) {
                Ok(entry) => (entry.header.index, answer(Ok(entry.header.base_offset))),
                Err(refused) => return Some(refused),
            },
        };
        let term = leading.term;
        match acks {
            Acks::Quorum => self.committing.wait(index, Waiter { ticket, term, what: promised }),
            Acks::Leader => self.storing.wait(index, Waiter { ticket, term, what: promised }),
            Acks::None => return Some(promised),
        }
        None
    }

    fn command(
        &mut self,
        ticket: Ticket,
        draft: Draft,
        group: &mut Group,
        now: Now,
    ) -> Option<Response> {
        let Some(leading) = self.leading.as_mut().filter(|leading| leading.is_good(group)) else {
            return Some(not_leader(group));
        };
        leading.catch_up(group);
        match propose(leading, draft, group, now) {
            Ok(entry) => {
                let waiter = Waiter { ticket, term: leading.term, what: () };
                self.applying.wait(entry.header.index, waiter);
                None
            }
            Err(refused) => Some(refused),
        }
    }

    /// What a partition must not rely on: whether a commit is too late as far as it is known now.
    fn is_late(&self, commit: &OffsetCommit) -> bool {
        let generation_of = |group| self.state.progress().get(group).map_or(0, |g| g.generation);
        planted(Bug::GenerationCheckedEarly) && commit.generation < generation_of(&commit.group)
    }

    fn barrier(&mut self, ticket: Ticket, group: &mut Group) -> Option<Response> {
        if !self.leading.as_ref().is_some_and(|leading| leading.is_good(group)) {
            return Some(not_leader(group));
        }
        let read = Read { ticket, index: 0, refusal: None };
        self.reads.ask(read, group).err().map(|_| not_leader(group))
    }

    /// Refuses a batch once it is sure that this is what the log says: another leader may have
    /// heard more of the producer, and this one not yet of its end.
    fn refuse(&mut self, ticket: Ticket, refusal: Refusal, group: &mut Group) -> Option<Response> {
        let index = group.last_index();
        let read = Read { ticket, index, refusal: Some(refusal) };
        self.reads.ask(read, group).err().map(|_| not_leader(group))
    }

    /// Notes whether this replica leads, and tells those who wait for a leader that was.
    fn follow_role(&mut self, group: &mut Group, answers: &mut Answers<Response>) {
        let is_leader = group.role() == Role::Leader;
        let is_same = self.leading.as_ref().is_none_or(|leading| leading.term == group.term());
        if self.leading.is_some() && !(is_leader && is_same) {
            self.abandon(answers);
        }
    }

    /// Takes over once everything of earlier terms is applied.
    fn take_over(&mut self, group: &Group) {
        let is_all = self.state.applied_index() == group.last_index();
        let has_all = is_all || planted(Bug::WriteBeforeNoOp);
        if self.leading.is_none() && group.is_writable() && has_all {
            let waiting = if planted(Bug::WrongTermAnswered) { 0 } else { self.waiting() };
            assert!(waiting == 0, "{waiting} wait for a leader of an earlier term");
            let in_flight = InFlight::new(&self.state);
            self.leading = Some(Leading { term: group.term(), in_flight });
        }
    }

    /// Answers those who waited for a majority.
    fn settle_committed(&mut self, group: &Group, answers: &mut Answers<Response>) {
        let is_early = planted(Bug::AckOnMinority);
        let committed = if is_early { group.persisted() } else { group.committed() };
        while let Some((index, waiter)) = self.committing.pop_up_to(committed) {
            let entry = group.entry(index).expect("an entry that is not applied is in memory");
            let is_ours = entry.header.term == waiter.term || planted(Bug::WrongTermAnswered);
            let response = if is_ours { waiter.what } else { not_leader(group) };
            answers.push((waiter.ticket, response));
        }
    }

    /// Applies what is committed.
    fn apply(&mut self, group: &Group, answers: &mut Answers<Response>) -> Result<(), Fault> {
        while self.state.applied_index() < group.applicable() {
            let index = self.state.applied_index() + 1;
            let entry = group.entry(index).expect("an entry that is not applied is in memory");
            let applied = apply_entry(&mut self.state, entry)?;
            if let Some(leading) = &mut self.leading {
                leading.catch_up(group);
                leading.in_flight.commit(index);
            }
            while let Some((_, waiter)) = self.applying.pop_up_to(index) {
                let is_ours = applied.term == waiter.term;
                let response = if is_ours { outcome(&applied) } else { not_leader(group) };
                answers.push((waiter.ticket, response));
            }
        }
        Ok(())
    }

    /// Answers those who waited for the leader's disk.
    fn settle_stored(&mut self, group: &Group, answers: &mut Answers<Response>) {
        while let Some((_, waiter)) = self.storing.pop_up_to(group.persisted()) {
            answers.push((waiter.ticket, waiter.what));
        }
    }
}

impl Machine for Replica {
    type Ask = Ask;
    type Answer = Response;

    fn new(index: u64) -> Self {
        Self::of(State::starting_after(index))
    }

    fn restore(state: &[u8]) -> Result<Self, String> {
        State::from_checkpoint(state).map(Self::of).map_err(|error| error.to_string())
    }

    fn initial_checkpoint(&self) -> Bytes {
        self.state.checkpoint()
    }

    fn applied_index(&self) -> u64 {
        self.state.applied_index()
    }

    fn replay(&mut self, entry: &Entry) -> Result<(), Fault> {
        apply_entry(&mut self.state, entry).map(drop)
    }

    fn ask(
        &mut self,
        ticket: Ticket,
        ask: Ask,
        group: &mut Group,
        now: Now,
        answers: &mut Answers<Response>,
    ) {
        let answer = match ask {
            Ask::Append { batch, acks } => self.append(ticket, batch, acks, group, now),
            Ask::Command(Command::OffsetCommit(late)) if self.is_late(&late) => {
                Some(Response::Refused(Refusal::IllegalGeneration { current: 0 }))
            }
            Ask::Command(command) => {
                let draft = Draft::new(Kind::Control, command.encode());
                self.command(ticket, draft, group, now)
            }
            Ask::DeleteRecords(offset) => {
                let payload = Bytes::copy_from_slice(&offset.to_le_bytes());
                self.command(ticket, Draft::new(Kind::LogStart, payload), group, now)
            }
            Ask::Barrier => self.barrier(ticket, group),
            Ask::Group(id) => {
                let known = self.state.progress().get(&id).cloned();
                Some(Response::Group(known.map(Box::new)))
            }
            Ask::Groups => Some(Response::Groups(self.state.progress().positions())),
        };
        answers.extend(answer.map(|answer| (ticket, answer)));
    }

    fn advance(&mut self, group: &mut Group, answers: &mut Answers<Response>) -> Result<(), Fault> {
        self.follow_role(group, answers);
        self.settle_committed(group, answers);
        self.apply(group, answers)?;
        self.take_over(group);
        self.settle_stored(group, answers);
        self.reads.settle(group, self.state.applied_index(), answers);
        Ok(())
    }

    fn abandon(&mut self, answers: &mut Answers<Response>) {
        self.leading = None;
        let mut committing = std::mem::take(&mut self.committing);
        if planted(Bug::WrongTermAnswered) {
            std::mem::swap(&mut committing, &mut self.committing);
        }
        let waiting = committing.drain().chain(self.storing.drain()).map(|w| w.ticket);
        let waiting = waiting.chain(self.applying.drain().map(|w| w.ticket));
        answers.extend(waiting.map(|ticket| (ticket, Response::Unknown)));
        // A question changes nothing, so that its outcome is known: there is none.
        let reads = self.reads.drain();
        answers.extend(reads.map(|ticket| (ticket, Response::NotLeader { leader: None })));
    }

    fn unknown_group() -> Response {
        Response::NotLeader { leader: None }
    }

    fn log_start(&self) -> u64 {
        self.state.log_start()
    }

    fn checkpoint_at(&self, index: u64, group: &Group) -> Bytes {
        let applied = self.state.applied_index();
        assert!(index >= applied, "the state at {index} is asked for, {applied} is applied");
        if index == applied || planted(Bug::CheckpointTooEarly) {
            return self.state.checkpoint();
        }
        let index = if planted(Bug::CheckpointTooLate) { group.persisted() } else { index };
        let mut state = self.state.clone();
        for index in applied + 1..=index {
            let entry = group.entry(index).expect("an entry that is not applied is in memory");
            // What stops a replica stops it when the entry is committed, not before.
            let _ = state.apply(&entry.header, &entry.payload);
        }
        let reached = state.applied_index();
        assert!(reached == index, "the state at {index} is asked for, it is at {reached}");
        state.checkpoint()
    }
}

fn apply_entry(state: &mut State, entry: &Entry) -> Result<Applied, Fault> {
    let applied = state.apply(&entry.header, &entry.payload);
    match applied.refusal() {
        Some(refusal) if !refusal.is_deterministic() => Err(Fault::Machine(format!(
            "entry {} is unknown to this version ({refusal}); upgrade this node",
            applied.index
        ))),
        _ => Ok(applied),
    }
}

/// Proposes an entry, and lets the leader's view follow the log up to it.
fn propose(
    leading: &mut Leading,
    draft: Draft,
    group: &mut Group,
    now: Now,
) -> Result<Entry, Response> {
    let entry = group.propose(draft, now.wall_ms).map_err(|refused| match refused {
        NotProposed::Transferring => Response::Transferring,
        NotProposed::NotLeader
        | NotProposed::ChangePending
        | NotProposed::NoVoters
        | NotProposed::NotVoter => not_leader(group),
    })?;
    leading.in_flight.append(&entry.header, &entry.payload);
    Ok(entry)
}

fn not_leader(group: &Group) -> Response {
    let leader = group.leader().filter(|leader| *leader != group.replica());
    Response::NotLeader { leader }
}

fn outcome(applied: &Applied) -> Response {
    match applied.effect {
        Effect::Control(Ok(reply)) => Response::Followed(reply),
        Effect::LogStart(Ok(offset)) => Response::LogStart(offset),
        Effect::Control(Err(refusal)) | Effect::LogStart(Err(refusal)) => {
            Response::Refused(refusal)
        }
        Effect::Nothing | Effect::Membership | Effect::Records(_) => Response::Unknown,
    }
}

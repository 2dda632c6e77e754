//! A member of a group: what it has and what it owes. No I/O. [`super::told`] is what it makes of
//! what it is told, [`super::said`] what it says next.
//!
//! * A record is finished when the application asks for the next event. Only what is finished is
//!   ever committed by itself.
//! * A partition that the application was told of is always told back: as revoked, or as lost.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::buffer::{Buffer, Chunk, Taken};
use super::commits::{Commits, Waiter, Wanted};
use super::config::{CREDIT_BYTES_MIN, Commit, GroupConsumerConfig};
use super::event::{Assigned, GroupEvent, Lost, Revoked, TopicPartition};
use super::link::Link;
use super::partitions::{Held, Partitions, Phase, Slot};
use crate::client::{Error, ErrorReason, Event, Failure, LostReason};
use crate::proto::client::ConsumeJoin;

/// How long to sleep when nothing is due.
const IDLE: Duration = Duration::from_secs(60);

/// News of partitions that the application has not heard.
#[derive(Debug)]
pub(super) enum Notice {
    Assigned(Vec<(Slot, Assigned)>),
    Revoked(Vec<Slot>, Instant),
    Lost(Lost),
}

/// What the application has at hand.
#[derive(Debug, Default)]
enum InHand {
    #[default]
    Nothing,
    Record {
        slot: Slot,
        next_offset: u64,
        leader_epoch: u64,
    },
    Revoked(Vec<Slot>),
}

/// What the member wants of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Stay,
    /// To commit what is done and go; `says_so` if others may have its partitions at once.
    Leave {
        says_so: bool,
    },
    /// To be out: the application is stuck.
    Out,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Member {
    config: GroupConsumerConfig,
    /// How long a commit is tried.
    timeout: Duration,
    pub(super) id: String,
    pub(super) partitions: Partitions,
    pub(super) buffer: Buffer,
    pub(super) commits: Commits,
    pub(super) notices: VecDeque<Notice>,
    pub(super) link: Option<Link>,
    /// What is handed out after everything else.
    error: Option<Error>,
    pub(super) goal: Goal,
    in_hand: InHand,
    /// When the application got what it has.
    handed_at: Option<Instant>,
    /// When commits are due.
    auto_at: Instant,
    /// Until when the partitions are the member's without a stream that says so.
    lease_until: Option<Instant>,
    /// Numbers of partitions that were not let go of in time.
    pub(super) overdue: Vec<u64>,
}

impl Member {
    pub(super) fn new(config: GroupConsumerConfig, timeout: Duration, now: Instant) -> Self {
        Self {
            config,
            timeout,
            id: String::new(),
            partitions: Partitions::default(),
            buffer: Buffer::default(),
            commits: Commits::new(),
            notices: VecDeque::new(),
            link: None,
            error: None,
            goal: Goal::Stay,
            in_hand: InHand::Nothing,
            handed_at: None,
            auto_at: now,
            lease_until: None,
            overdue: Vec::new(),
        }
    }

    /// Begins a stream. Returns its first message.
    pub(super) fn begin(&mut self, now: Instant) -> ConsumeJoin {
        let kept_bytes = u32::try_from(self.buffer.bytes()).unwrap_or(u32::MAX);
        let credit_bytes = self.config.credit_bytes.saturating_sub(kept_bytes);
        let credit_bytes = credit_bytes.max(CREDIT_BYTES_MIN);
        self.link = Some(Link::new(now, credit_bytes));
        ConsumeJoin {
            group: self.config.group.clone(),
            member_id: self.id.clone(),
            instance: self.config.instance.clone().unwrap_or_default(),
            client_id: self.config.client_id.clone(),
            rack: self.config.rack.clone(),
            credit_bytes,
            positions: self.partitions.positions(),
        }
    }

    // What the application does.

    /// Notes that the application has finished with what it has. Returns whether partitions can be
    /// let go of now.
    pub(super) fn finish(&mut self, now: Instant) -> bool {
        self.handed_at = None;
        match std::mem::take(&mut self.in_hand) {
            InHand::Nothing => {}
            InHand::Record { slot, next_offset, leader_epoch } => {
                if let Some(held) = self.partitions.get_mut(slot) {
                    held.done = held.done.max(next_offset);
                    held.done_leader_epoch = leader_epoch;
                }
            }
            InHand::Revoked(slots) => {
                self.release(now, &slots);
                return true;
            }
        }
        false
    }

    /// Commits what is done of partitions that were revoked, and lets them go after that.
    fn release(&mut self, now: Instant, slots: &[Slot]) {
        for slot in slots {
            let Some(held) = self.partitions.get_mut(*slot) else { continue };
            if let Phase::Revoked(by) = held.phase {
                held.phase = Phase::Releasing(by);
                self.commit_done(*slot, by.min(now + self.timeout));
            }
        }
    }

    pub(super) fn has_credit_to_give(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.credit.due().is_some())
    }

    /// Takes the next event.
    pub(super) fn next_event(&mut self, now: Instant) -> Option<GroupEvent> {
        let event = self.next_notice().or_else(|| self.next_record(now))?;
        self.handed_at = Some(now);
        Some(event)
    }

    fn next_notice(&mut self) -> Option<GroupEvent> {
        loop {
            match self.notices.pop_front()? {
                Notice::Assigned(assigned) if assigned.is_empty() => {}
                Notice::Assigned(assigned) => {
                    let assigned = assigned.into_iter().map(|(_, assigned)| assigned);
                    return Some(GroupEvent::Assigned(assigned.collect()));
                }
                Notice::Revoked(slots, _) if slots.is_empty() => {}
                Notice::Revoked(slots, deadline) => {
                    let partitions = self.names(&slots);
                    self.in_hand = InHand::Revoked(slots);
                    return Some(GroupEvent::Revoked(Revoked { partitions, deadline }));
                }
                Notice::Lost(lost) => return Some(GroupEvent::Lost(lost)),
            }
        }
    }

    fn names(&self, slots: &[Slot]) -> Vec<TopicPartition> {
        slots.iter().filter_map(|slot| self.partitions.get(*slot)).map(Held::name).collect()
    }

    fn next_record(&mut self, now: Instant) -> Option<GroupEvent> {
        while self.may_hand_out(now) {
            let Taken { slot, event, next_offset, freed_bytes } = self.buffer.take()?;
            self.owe(freed_bytes);
            let held = self.partitions.get_mut(slot).expect("what is buffered is held");
            held.position = next_offset;
            let Some(event) = event else {
                held.done = next_offset;
                continue;
            };
            let leader_epoch = match &event {
                Event::Record(record) => record.leader_epoch,
                Event::Gap(_) => held.done_leader_epoch,
            };
            self.in_hand = InHand::Record { slot, next_offset, leader_epoch };
            return Some(match event {
                Event::Record(record) => GroupEvent::Record(record),
                Event::Gap(gap) => GroupEvent::Gap(gap),
            });
        }
        None
    }

    /// Whether the partition of what comes next is still the member's: the stream says so, or it
    /// broke a short while ago.
    fn may_hand_out(&self, now: Instant) -> bool {
        let held = self.buffer.next_slot().and_then(|slot| self.partitions.get(slot));
        let is_leased = self.lease_until.is_some_and(|until| now < until);
        self.goal == Goal::Stay && held.is_some_and(|held| held.assignment.is_some() || is_leased)
    }

    pub(super) fn take_error(&mut self) -> Option<Error> {
        match &self.error {
            // Whoever lost its name to another must not take it back.
            Some(Error::Fenced(_)) => self.error.clone(),
            _ => self.error.take(),
        }
    }

    /// Hands an error out after everything else.
    pub(super) fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    /// Asks for an offset to be committed.
    pub(super) fn commit(
        &mut self,
        now: Instant,
        at: &TopicPartition,
        wanted: Wanted,
        waiter: Option<Waiter>,
    ) -> Result<(), Error> {
        let slot = self.slot(at)?;
        let position = self.partitions.get(slot).map_or(0, |held| held.position);
        if wanted.next_offset > position {
            let message = format!(
                "{at}: offset {} cannot be committed: records were handed out up to {position}",
                wanted.next_offset
            );
            return Err(Failure::invalid(message).into());
        }
        if let Some(held) = self.partitions.get_mut(slot) {
            held.wanted = held.wanted.max(wanted.next_offset);
        }
        self.commits.want(slot, wanted, now + self.timeout, waiter);
        Ok(())
    }

    /// Returns what is done in each partition, to be committed.
    pub(super) fn all_done(&self) -> Vec<(TopicPartition, Wanted)> {
        let done = |held: &Held| {
            let leader_epoch = held.done_leader_epoch;
            let wanted = Wanted { leader_epoch, ..Wanted::new(held.done, String::new()) };
            (held.name(), wanted)
        };
        let has_news = |held: &&Held| held.done > held.wanted;
        self.partitions.iter().map(|(_, held)| held).filter(has_news).map(done).collect()
    }

    pub(super) fn slot(&self, at: &TopicPartition) -> Result<Slot, Error> {
        let slot = self.partitions.named(&at.topic, at.partition);
        slot.ok_or_else(|| not_owner(at).into())
    }

    pub(super) fn set_paused(&mut self, at: &TopicPartition, is_paused: bool) -> Result<(), Error> {
        let slot = self.slot(at)?;
        let held = self.partitions.get_mut(slot).expect("it was just found");
        if held.is_paused != is_paused {
            held.is_paused = is_paused;
            match is_paused {
                true => self.buffer.pause(slot),
                false => self.buffer.resume(slot),
            }
        }
        Ok(())
    }

    pub(super) fn has_instance(&self) -> bool {
        self.config.instance.is_some()
    }

    /// Begins to leave: what is done is committed, and nothing is handed out any more.
    pub(super) fn leave(&mut self, now: Instant, says_so: bool) {
        self.goal = Goal::Leave { says_so };
        let slots: Vec<Slot> = self.partitions.iter().map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.commit_done(slot, now + self.timeout));
    }

    // What is done without being asked.

    fn commit_done(&mut self, slot: Slot, deadline: Instant) {
        let Some(held) = self.partitions.get_mut(slot) else { return };
        if self.config.commit == Commit::Manual || held.done <= held.wanted {
            return;
        }
        held.wanted = held.done;
        let (next_offset, leader_epoch) = (held.done, held.done_leader_epoch);
        let wanted = Wanted { next_offset, leader_epoch, metadata: String::new() };
        self.commits.want(slot, wanted, deadline, None);
    }

    pub(super) fn owe(&mut self, freed_bytes: u32) {
        if let Some(link) = &mut self.link {
            link.credit.owe(freed_bytes);
        }
    }

    /// Does what is due.
    ///
    /// # Errors
    /// The server was silent for too long.
    pub(super) fn on_time(&mut self, now: Instant) -> Result<(), Failure> {
        self.give_up_overdue(now);
        if self.settles_at().is_some_and(|at| at <= now) {
            let slots: Vec<Slot> = self.unconfirmed().collect();
            self.lose(&slots, LostReason::Moved);
        }
        let unheard = self.commits.expire(now);
        self.on_unheard(unheard);
        if let Commit::Auto(interval) = self.config.commit
            && self.auto_at <= now
            && self.goal == Goal::Stay
        {
            self.auto_at = now + interval;
            let held = self.partitions.iter().filter(|(_, held)| held.phase == Phase::Held);
            let slots: Vec<Slot> = held.map(|(slot, _)| slot).collect();
            slots.into_iter().for_each(|slot| self.commit_done(slot, now + self.timeout));
        }
        if self.stuck_at().is_some_and(|at| at <= now) {
            self.handed_at = None;
            self.goal = Goal::Out;
            self.lose_all(LostReason::Timeout);
        }
        self.link.as_ref().map_or(Ok(()), |link| link.check(now))
    }

    fn stuck_at(&self) -> Option<Instant> {
        let handed_at = self.handed_at.filter(|_| self.goal == Goal::Stay)?;
        self.config.processing_timeout.map(|timeout| handed_at + timeout)
    }

    /// The partitions that the open stream has not confirmed.
    fn unconfirmed(&self) -> impl Iterator<Item = Slot> {
        let held = self.partitions.iter().filter(|(_, held)| held.assignment.is_none());
        held.map(|(slot, _)| slot)
    }

    fn settles_at(&self) -> Option<Instant> {
        self.unconfirmed().next()?;
        self.link.as_ref()?.settles_at()
    }

    fn give_up_overdue(&mut self, now: Instant) {
        let (mut told, mut finished) = (Vec::new(), Vec::new());
        for (slot, held) in self.partitions.iter() {
            match held.phase {
                Phase::Revoked(by) if by <= now => told.push(slot),
                Phase::Releasing(by) if by <= now => finished.push(slot),
                Phase::Held | Phase::Revoked(_) | Phase::Releasing(_) => {}
            }
        }
        let assignment = |slot: &Slot| self.partitions.get(*slot)?.assignment;
        self.overdue.extend(told.iter().chain(&finished).filter_map(assignment));
        self.lose(&told, LostReason::Timeout);
        finished.into_iter().for_each(|slot| self.remove(slot, LostReason::Timeout));
    }

    pub(super) fn on_unheard(&mut self, failures: Vec<(Slot, Error)>) {
        use ErrorReason as R;
        for (slot, error) in failures {
            // What has moved on is told by itself.
            let has_moved = matches!(error.reason(), R::IllegalGeneration | R::NotOwner);
            if self.partitions.get(slot).is_some() && !has_moved {
                self.fail(error);
            }
        }
    }

    /// When something is due without anything having happened.
    pub(super) fn wake_at(&self, now: Instant) -> Instant {
        let auto_at = matches!(self.config.commit, Commit::Auto(_)).then_some(self.auto_at);
        let by = self.partitions.iter().filter_map(|(_, held)| match held.phase {
            Phase::Revoked(by) | Phase::Releasing(by) => Some(by),
            Phase::Held => None,
        });
        let link = self.link.as_ref();
        let heartbeat_at = link.and_then(Link::heartbeat_at);
        let times = [
            auto_at.filter(|_| self.goal == Goal::Stay),
            link.map(Link::silent_at),
            heartbeat_at,
            self.stuck_at(),
            self.settles_at(),
            self.commits.wake_at(now),
        ];
        times.into_iter().flatten().chain(by).min().unwrap_or(now + IDLE)
    }

    // What is lost.

    /// Forgets partitions and tells the application.
    pub(super) fn lose(&mut self, slots: &[Slot], reason: LostReason) {
        let partitions = self.names(slots);
        if partitions.is_empty() {
            return;
        }
        slots.iter().for_each(|slot| self.remove(*slot, reason));
        self.notices.push_back(Notice::Lost(Lost { partitions, reason }));
    }

    pub(super) fn lose_all(&mut self, reason: LostReason) {
        let slots: Vec<Slot> = self.partitions.iter().map(|(slot, _)| slot).collect();
        self.lose(&slots, reason);
    }

    pub(super) fn remove(&mut self, slot: Slot, reason: LostReason) {
        let Some(held) = self.partitions.remove(slot) else { return };
        let freed_bytes = self.buffer.drop_slot(slot);
        self.owe(freed_bytes);
        let failure = not_owner(&held.name());
        let message = format!("{}: {}", failure.message, reason.as_str_name());
        self.commits.fail_slot(slot, &Failure { message, ..failure }.into());
        for notice in &mut self.notices {
            if let Notice::Revoked(slots, _) = notice {
                slots.retain(|of| *of != slot);
            }
        }
    }

    /// Notes that the stream is gone.
    pub(super) fn on_cut(&mut self) {
        let lease_until = self.link.take().and_then(|link| link.lease_until());
        self.lease_until = lease_until.or(self.lease_until);
        self.overdue.clear();
        let (mut told, mut finished) = (Vec::new(), Vec::new());
        for (slot, held) in self.partitions.iter() {
            match held.phase {
                Phase::Held => {}
                Phase::Revoked(_) => told.push(slot),
                Phase::Releasing(_) => finished.push(slot),
            }
        }
        self.lose(&told, LostReason::Moved);
        finished.into_iter().for_each(|slot| self.remove(slot, LostReason::Moved));
        self.partitions.on_cut();
        self.commits.on_cut();
    }

    /// Notes that the group does not know the member any more.
    pub(super) fn on_expelled(&mut self) {
        self.id.clear();
        self.lose_all(LostReason::Moved);
    }

    /// Takes in what a message of records brought.
    pub(super) fn on_chunk(&mut self, chunk: Chunk) {
        let held = self.partitions.get_mut(chunk.slot);
        match held.filter(|held| held.phase == Phase::Held) {
            Some(held) => {
                held.next_offset = chunk.next_offset;
                self.buffer.push(chunk);
            }
            None => self.owe(chunk.cost_bytes),
        }
    }
}

fn not_owner(at: &TopicPartition) -> Failure {
    let message = format!("the member does not have {at}");
    Failure::local(tonic::Code::FailedPrecondition, ErrorReason::NotOwner, message)
}

//! The consumer of a group: one member, which shares the group's partitions with others.
//!
//! * The application asks for one event after another ([`GroupConsumer::next`]). A record is
//!   finished when the next event is asked for, and only what is finished is committed
//!   automatically: after a crash records come again, and none is left out (at least once). Commit
//!   a record before it is worked on, with [`Commit::Manual`] and [`GroupConsumer::commit`], to
//!   have it at most once.
//! * Partitions come and go as events, in line with the records: [`GroupEvent::Assigned`] before a
//!   partition's first record, [`GroupEvent::Revoked`] after its last one. What is committed before
//!   the next event is asked for is committed before the partition moves.
//! * A task keeps the member alive however long the application takes, and joins again through
//!   another node when a stream breaks: as the same member, and exactly where it was. See
//!   [`GroupConsumerConfig::processing_timeout`] for applications that may hang.
//! * Memory is bounded: the server sends no more bytes than it has credit for, and credit goes back
//!   when the records of a message were handed out.
//!
//! [`member`] says what a member does, without I/O; [`driver`] does it.

mod buffer;
mod commits;
mod config;
mod driver;
mod event;
mod link;
mod member;
mod partitions;
mod said;
#[cfg(test)]
mod tests;
mod told;
mod wire;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use self::commits::{Waiter, Wanted};
use self::driver::Driver;
use self::member::Member;
use super::{Client, Error, Failure, Record};

pub use self::commits::Committing;
pub use self::config::{Commit, GroupConsumerConfig};
pub use self::event::{Assigned, GroupEvent, Lost, Rebalance, Revoked, Revoking, TopicPartition};

/// Commits whose outcomes are waited for at once; the next one waits for room.
const COMMITS_MAX: usize = 4096;
/// How long to try to leave properly.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

type Callback = Box<dyn FnMut(Rebalance<'_>) + Send>;

/// What the application and the member's task share.
#[derive(Debug)]
pub(crate) struct Shared {
    member: Mutex<Member>,
    is_running: Mutex<bool>,
    /// Something may have to be said.
    to_driver: Notify,
    /// Something may have come.
    to_application: Notify,
}

impl Shared {
    fn member(&self) -> MutexGuard<'_, Member> {
        self.member.lock().expect("no one panics with the member")
    }

    /// Sets whether there is a task. Returns whether there was one.
    fn set_running(&self, is_running: bool) -> bool {
        let mut state = self.is_running.lock().expect("no one panics with the flag");
        std::mem::replace(&mut state, is_running)
    }

    fn commit(
        &self,
        at: &TopicPartition,
        wanted: Wanted,
        waiter: Option<Waiter>,
    ) -> Result<(), Error> {
        self.member().commit(Instant::now(), at, wanted, waiter)?;
        self.to_driver.notify_one();
        Ok(())
    }
}

/// Reads as a member of a group. It joins when it is first used.
///
/// Dropped, it is gone for the group when its session times out; use [`GroupConsumer::close`].
pub struct GroupConsumer {
    client: Client,
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
    /// Places for those who wait for commits.
    places: Arc<Semaphore>,
    callback: Option<Callback>,
}

impl fmt::Debug for GroupConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupConsumer").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a consumer of a group.
    pub fn group_consumer(&self, config: GroupConsumerConfig) -> GroupConsumer {
        let member = Member::new(config.bounded(), self.config().timeout, Instant::now());
        let shared = Shared {
            member: Mutex::new(member),
            is_running: Mutex::new(false),
            to_driver: Notify::new(),
            to_application: Notify::new(),
        };
        GroupConsumer {
            client: self.clone(),
            shared: Arc::new(shared),
            task: None,
            places: Arc::new(Semaphore::new(COMMITS_MAX)),
            callback: None,
        }
    }
}

impl GroupConsumer {
    /// Has a callback told of partitions that come and go, instead of [`GroupConsumer::next`]
    /// returning them. It runs inside of that, and partitions are let go of when it returns.
    pub fn on_rebalance(&mut self, callback: impl FnMut(Rebalance<'_>) + Send + 'static) {
        self.callback = Some(Box::new(callback));
    }

    /// Waits for the next event. The one before counts as finished.
    ///
    /// Broken streams are made anew, for as long as the client's timeout.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when nothing succeeded for that long, [`Error::NotFound`] if there is
    /// no such group, [`Error::DamagedBatch`], and what else the server says; also when an
    /// automatic commit failed for good. The next call tries again. [`Error::Fenced`] if another
    /// member has taken this one's instance name: that stays so.
    ///
    /// # Cancel safety
    /// Cancel safe: no event is lost. The one before counts as finished all the same.
    pub async fn next(&mut self) -> Result<GroupEvent, Error> {
        self.mark_done();
        loop {
            if let Some(event) = self.take() {
                return Ok(event);
            }
            if let Some(error) = self.shared.member().take_error() {
                return Err(error);
            }
            self.ensure_running();
            self.shared.to_application.notified().await;
        }
    }

    /// Returns the next event that has already come. The one before counts as finished.
    pub fn next_buffered(&mut self) -> Option<GroupEvent> {
        self.mark_done();
        self.take()
    }

    /// Notes that the event handed out last is finished. [`GroupConsumer::next`] does so too; this
    /// is for the last one before [`GroupConsumer::close`].
    pub fn mark_done(&mut self) {
        let lets_go = self.shared.member().finish(Instant::now());
        if lets_go {
            self.shared.to_driver.notify_one();
        }
    }

    /// Takes the next event that is there, and hands to the callback what is its.
    fn take(&mut self) -> Option<GroupEvent> {
        loop {
            let event = self.next_event()?;
            let Some(callback) = &mut self.callback else {
                return Some(event);
            };
            match &event {
                GroupEvent::Record(_) | GroupEvent::Gap(_) => return Some(event),
                GroupEvent::Assigned(assigned) => callback(Rebalance::Assigned(assigned)),
                GroupEvent::Revoked(revoked) => {
                    let shared = &self.shared;
                    callback(Rebalance::Revoked(Revoking { revoked, shared }));
                }
                GroupEvent::Lost(lost) => callback(Rebalance::Lost(lost)),
            }
            self.mark_done();
        }
    }

    fn next_event(&self) -> Option<GroupEvent> {
        let mut member = self.shared.member();
        let event = member.next_event(Instant::now());
        if member.has_credit_to_give() {
            self.shared.to_driver.notify_one();
        }
        event
    }

    fn ensure_running(&mut self) {
        if !self.shared.set_running(true) {
            let driver = Driver::new(self.client.clone(), self.shared.clone());
            self.task = Some(tokio::spawn(driver.run()));
        }
    }

    /// Commits that a record and all before it in its partition are done, and waits until that
    /// stands.
    ///
    /// # Errors
    /// [`Error::Precondition`] if the member does not have the partition any more: the record comes
    /// again, to whoever has it now. [`Error::OutcomeUnknown`], [`Error::Unavailable`] when it did
    /// not succeed within the client's timeout.
    ///
    /// # Cancel safety
    /// Cancelled, the offset may be committed all the same.
    pub async fn commit(&mut self, record: &Record) -> Result<(), Error> {
        self.commit_async(record).await?.await
    }

    /// Commits a position in a partition, with what is to come back with it, and waits until that
    /// stands. `next_offset` is one above the last record that is done.
    ///
    /// # Errors
    /// As [`GroupConsumer::commit`], and [`Error::InvalidRequest`] if the offset is beyond what was
    /// handed out.
    ///
    /// # Cancel safety
    /// As [`GroupConsumer::commit`].
    pub async fn commit_position(
        &mut self,
        at: &TopicPartition,
        next_offset: u64,
        metadata: &str,
    ) -> Result<(), Error> {
        let wanted = Wanted::new(next_offset, metadata.to_owned());
        self.start_commit(at, wanted).await?.await
    }

    /// Commits as [`GroupConsumer::commit`] does, and does not wait for the answer: only for room,
    /// while thousands of commits wait for theirs.
    ///
    /// # Errors
    /// As [`GroupConsumer::commit`]; the [`Committing`] says the rest.
    ///
    /// # Cancel safety
    /// Cancelled, nothing is committed.
    pub async fn commit_async(&mut self, record: &Record) -> Result<Committing, Error> {
        let at = TopicPartition { topic: record.topic.clone(), partition: record.partition };
        let leader_epoch = record.leader_epoch;
        let wanted = Wanted { leader_epoch, ..Wanted::new(record.offset + 1, String::new()) };
        self.start_commit(&at, wanted).await
    }

    /// Commits all that is finished, and waits until that stands. The event handed out last counts
    /// as finished only after [`GroupConsumer::mark_done`].
    ///
    /// # Errors
    /// As [`GroupConsumer::commit`], for the first partition of which it failed; the others are
    /// committed all the same.
    ///
    /// # Cancel safety
    /// As [`GroupConsumer::commit`].
    pub async fn commit_done(&mut self) -> Result<(), Error> {
        let (mut started, mut outcome) = (Vec::new(), Ok(()));
        let all_done = self.shared.member().all_done();
        for (at, wanted) in all_done {
            match self.start_commit(&at, wanted).await {
                Ok(committing) => started.push(committing),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        for committing in started {
            let committed = committing.await;
            outcome = outcome.and(committed.map(drop));
        }
        outcome
    }

    /// Commits as [`GroupConsumer::commit_position`] does, and does not wait for the answer.
    pub(super) async fn start_commit_at(
        &mut self,
        at: &TopicPartition,
        next_offset: u64,
        metadata: String,
    ) -> Result<Committing, Error> {
        self.start_commit(at, Wanted::new(next_offset, metadata)).await
    }

    async fn start_commit(
        &mut self,
        at: &TopicPartition,
        wanted: Wanted,
    ) -> Result<Committing, Error> {
        let place = self.places.clone().acquire_owned().await.map_err(|_| Error::Closed)?;
        let (waiter, committing) = Waiter::new(place);
        self.shared.commit(at, wanted, Some(waiter))?;
        self.ensure_running();
        Ok(committing)
    }

    /// Hands out no more records of a partition until it is resumed. Nothing is lost.
    ///
    /// # Errors
    /// [`Error::Precondition`] if the member does not have the partition.
    pub fn pause(&mut self, at: &TopicPartition) -> Result<(), Error> {
        self.set_paused(at, true)
    }

    /// Hands out records of a partition again.
    ///
    /// # Errors
    /// [`Error::Precondition`] if the member does not have the partition.
    pub fn resume(&mut self, at: &TopicPartition) -> Result<(), Error> {
        self.set_paused(at, false)
    }

    fn set_paused(&mut self, at: &TopicPartition, is_paused: bool) -> Result<(), Error> {
        self.shared.member().set_paused(at, is_paused)?;
        self.shared.to_driver.notify_one();
        Ok(())
    }

    /// Returns the id that the group knows the member by; empty before it has joined.
    pub fn member_id(&self) -> String {
        self.shared.member().id.clone()
    }

    /// Returns the partitions that the member has.
    pub fn assignments(&self) -> Vec<TopicPartition> {
        self.shared.member().partitions.iter().map(|(_, held)| held.name()).collect()
    }

    /// Returns the offset after the last record of a partition that was handed out; `None` if the
    /// member does not have the partition.
    pub fn position(&self, at: &TopicPartition) -> Option<u64> {
        let member = self.shared.member();
        let slot = member.slot(at).ok()?;
        member.partitions.get(slot).map(|held| held.position)
    }

    /// Returns the high watermark of a partition as the server last said: the first offset that
    /// was not committed to the log.
    pub fn high_watermark(&self, at: &TopicPartition) -> Option<u64> {
        let member = self.shared.member();
        let slot = member.slot(at).ok()?;
        member.partitions.get(slot).map(|held| held.high_watermark)
    }

    /// Commits what is finished, if commits are automatic, and ends. Others have the partitions at
    /// once, unless the member has an instance name: then they stay its own for its session, for it
    /// to come back.
    ///
    /// The event handed out last counts as finished only after [`GroupConsumer::mark_done`].
    ///
    /// # Errors
    /// What was to be committed is not, or that is unknown. The member has ended all the same.
    ///
    /// # Cancel safety
    /// Cancelled, it is as if the consumer was dropped.
    pub async fn close(self) -> Result<(), Error> {
        let has_name = self.shared.member().has_instance();
        self.end(!has_name).await
    }

    /// Ends as [`GroupConsumer::close`] does, and others have the partitions at once even if the
    /// member has an instance name.
    ///
    /// # Errors
    /// As [`GroupConsumer::close`].
    ///
    /// # Cancel safety
    /// As [`GroupConsumer::close`].
    pub async fn leave(self) -> Result<(), Error> {
        self.end(true).await
    }

    async fn end(mut self, says_so: bool) -> Result<(), Error> {
        self.shared.member().leave(Instant::now(), says_so);
        self.shared.to_driver.notify_one();
        if let Some(task) = &mut self.task {
            let ended = tokio::time::timeout(LEAVE_TIMEOUT, task).await;
            ended.map_err(|_| Failure::silent(LEAVE_TIMEOUT))?.ok();
        }
        self.shared.member().take_error().map_or(Ok(()), Err)
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

//! A turn of a shard: take all that waits, step, carry out, tell.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime};

use rustc_hash::FxHashMap;
use tokio::sync::{oneshot, watch};

use super::super::disk::{Disk, read_base, read_cold, read_supply};
use super::super::effects::{ColdRead, Fault, Persist, Supply};
use super::super::error::NotProposed;
use super::super::group::{Durability, Group, Look};
use super::super::input::Input;
use super::super::log_view::Divergence;
use super::super::machine::{Machine, Now, Ticket};
use super::super::outputs::{Outputs, Published};
use super::super::shard::Shard;
use super::counts::Counters;
use super::inbox::Inbox;
use super::{HostConfig, Mail, Reply, SharedSyncer, TOKEN_BITS};
use crate::storage::{self, Access, DataDir, LogReader, Policy};
use crate::types::LogId;

mod repair;

/// Steps of a turn at most, so that a guest gets away.
const STEPS_MAX: usize = 4;
/// How often idle logs are tended and full disks tried again.
const TEND_MS: u64 = 100;

/// Who takes a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// The shard's own thread.
    Thread,
    /// Another one, which has to get away soon.
    Guest,
}

/// Something to be read where waiting for a disk is allowed.
pub(super) struct ColdJob {
    pub(super) shard: usize,
    reader: LogReader,
    what: Wanted,
}

enum Wanted {
    Entries(ColdRead),
    Base(LogId),
    /// Entries that another replica lacks.
    Supply(Supply),
    /// What is damaged in the segment that begins here.
    Examination(u64),
}

impl ColdJob {
    /// Reads, and says what was read. What cannot be read is reported as nothing.
    pub(super) fn read<M: Machine>(&self) -> Option<Input<M>> {
        let input = match self.what {
            Wanted::Entries(read) => {
                let (group, first_index) = (read.group, read.first_index);
                let entries = match read_cold(&self.reader, &read, Access::MayBlock) {
                    Ok(entries) => Some(entries),
                    Err(error) => {
                        tracing::warn!(%group, %error, "a follower cannot be caught up");
                        // Anything else may pass.
                        matches!(error, storage::Error::Corrupt(_)).then(Vec::new)
                    }
                };
                Input::Fetched { group, first_index, entries }
            }
            Wanted::Base(group) => {
                let base = read_base(&self.reader).unwrap_or_else(|error| {
                    tracing::warn!(%group, %error, "the first checkpoint cannot be read");
                    None
                });
                Input::Base { group, base }
            }
            Wanted::Supply(supply) => read_supply(&self.reader, &supply),
            Wanted::Examination(suspect) => {
                if let Err(error) = self.reader.examine(suspect) {
                    tracing::error!(%error, "a damaged segment cannot be looked into");
                }
                return None;
            }
        };
        Some(input)
    }
}

/// A shard with everything its turns need.
pub(super) struct Turn<M: Machine> {
    config: HostConfig,
    number: usize,
    started: Instant,
    shard: Shard<M>,
    disk: Disk,
    syncer: SharedSyncer,
    counters: Arc<Counters>,
    cold: SyncSender<ColdJob>,
    /// Room for the mails of a turn; empty between turns.
    mails: Vec<Mail<M>>,
    inputs: Vec<Input<M>>,
    out: Outputs<M>,
    asks: HashMap<Ticket, Reply<M::Answer>>,
    decisions: HashMap<Ticket, oneshot::Sender<Result<u64, NotProposed>>>,
    published: FxHashMap<LogId, watch::Sender<Published>>,
    closing: Vec<(LogId, oneshot::Sender<storage::Result<()>>)>,
    next_ticket: u64,
    next_tend_ms: u64,
    is_stopping: bool,
    has_failed: bool,
    /// A guest has left to the thread what may have to wait for the disk.
    owes: bool,
}

impl<M: Machine> Turn<M> {
    pub(super) fn new(
        (number, life): (usize, u64),
        config: &HostConfig,
        dir: &Arc<DataDir>,
        syncer: &SharedSyncer,
        counters: &Arc<Counters>,
        cold: SyncSender<ColdJob>,
    ) -> Self {
        let started = Instant::now();
        let first_token = (number as u64) << TOKEN_BITS | 1;
        let seed = config.seed ^ (number as u64) << 32;
        let (raft, now) = (config.raft.clone(), now(started));
        let shard = Shard::one_of_many(raft, seed, now, life, first_token);
        Self {
            config: config.clone(),
            number,
            started,
            shard,
            disk: Disk::new(dir.clone()),
            syncer: syncer.clone(),
            counters: counters.clone(),
            cold,
            mails: Vec::new(),
            inputs: Vec::new(),
            out: Outputs::default(),
            asks: HashMap::new(),
            decisions: HashMap::new(),
            published: FxHashMap::default(),
            closing: Vec::new(),
            next_ticket: 1,
            next_tend_ms: 0,
            is_stopping: false,
            has_failed: false,
            owes: false,
        }
    }

    /// Takes a turn: works on all mails there are, on what is due, and on what comes of it at once.
    pub(super) fn take(&mut self, inbox: &Inbox<Mail<M>>, who: Who) {
        for _ in 0..STEPS_MAX {
            let result = self.step(inbox, who);
            self.note(result);
            if self.inputs.is_empty() || self.is_over() || self.owes {
                return;
            }
        }
    }

    /// True once the host stops or the disk has failed: no more turns are to be taken.
    pub(super) fn is_over(&self) -> bool {
        self.is_stopping || self.has_failed
    }

    /// When the next turn is due though nobody brings a mail.
    pub(super) fn due(&self) -> Instant {
        let has_more = !self.inputs.is_empty() || self.owes;
        let due_ms = self.shard.next_tick_ms().min(self.next_tend_ms.max(1));
        self.started + Duration::from_millis(if has_more { 0 } else { due_ms })
    }

    /// Closes all logs, unless the disk has failed.
    pub(super) fn end(mut self) {
        if !self.has_failed {
            let result = self.close_all();
            self.note(result);
        }
    }

    fn note(&mut self, result: storage::Result<()>) {
        if let Err(error) = result {
            // DURABILITY: what is on disk is unknown from here on. Nothing is acknowledged any
            // more, and nobody may be told that it is not stored either.
            tracing::error!(%error, "the shard stops: its disk failed");
            self.has_failed = true;
            (self.config.on_fatal)(&error);
        }
    }

    fn step(&mut self, inbox: &Inbox<Mail<M>>, who: Who) -> storage::Result<()> {
        if self.owes {
            // It comes before all that is to be done later.
            return if who == Who::Thread { self.finish() } else { Ok(()) };
        }
        self.take_mails(inbox)?;
        self.shard.step(now(self.started), &mut self.inputs, &mut self.out);
        let persists = std::mem::take(&mut self.out.effects.persists);
        self.perform(persists)?;
        self.send();
        self.answer();
        self.read();
        // DURABILITY: frames and answers of this step rest on what was stored before it, never on
        // what is left to the thread.
        let effects = &self.out.effects;
        let waits =
            !effects.mends.is_empty() || !effects.faults.is_empty() || !self.closing.is_empty();
        match who {
            Who::Thread => self.finish(),
            Who::Guest => {
                self.owes = waits;
                Ok(())
            }
        }
    }

    /// Does what may have to wait for the disk, and what is to be done now and then.
    fn finish(&mut self) -> storage::Result<()> {
        self.owes = false;
        self.mend()?;
        self.close_groups()?;
        self.follow_faults()?;
        let now_ms = now(self.started).monotonic_ms;
        if now_ms >= self.next_tend_ms {
            self.next_tend_ms = now_ms + TEND_MS;
            self.tend()?;
        }
        Ok(())
    }

    fn take_mails(&mut self, inbox: &Inbox<Mail<M>>) -> storage::Result<()> {
        let mut mails = std::mem::take(&mut self.mails);
        inbox.take(&mut mails);
        let taken = mails.drain(..).try_for_each(|mail| self.take_mail(mail));
        self.mails = mails;
        taken
    }

    fn ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        ticket
    }

    fn take_mail(&mut self, mail: Mail<M>) -> storage::Result<()> {
        match mail {
            Mail::Open(opened, published) => {
                self.published.insert(opened.log.id(), published);
                self.disk.adopt(opened.log);
                self.inputs.push(opened.start.into_input());
            }
            Mail::Close(group, reply) => {
                self.inputs.push(Input::Close(group));
                self.closing.push((group, reply));
            }
            Mail::Envelopes(envelopes) => self.inputs.push(Input::Envelopes(envelopes)),
            Mail::Ask { group, ask, reply } => {
                let ticket = self.ticket();
                self.asks.insert(ticket, reply);
                self.inputs.push(Input::Ask { group, ticket, ask });
            }
            Mail::Transfer { group, to, reply } => {
                let ticket = self.ticket();
                self.decisions.insert(ticket, reply);
                self.inputs.push(Input::Transfer { group, ticket, to });
            }
            Mail::Change { group, operations, reply } => {
                let ticket = self.ticket();
                self.decisions.insert(ticket, reply);
                self.inputs.push(Input::Change { group, ticket, operations });
            }
            Mail::Inspect(group, reply) => {
                // Who has gone away is told nothing.
                let _ = reply.send(self.look(group));
            }
            Mail::Synced(round) => self.inputs.extend(round?.into_iter().map(Input::Stored)),
            Mail::Read(input) => self.inputs.push(input),
            Mail::KeepWithin(group, kept_bytes) => self.disk.keep_within(group, kept_bytes),
            Mail::Retain(group, policy) => self.retain(group, policy.as_ref())?,
            Mail::Stop => self.is_stopping = true,
        }
        Ok(())
    }

    fn look(&self, group: LogId) -> Look {
        match (self.shard.group(group), self.shard.waiting_for_repair(group)) {
            (Some(found), _) => Look::Runs(Box::new(found.inspect())),
            (None, Some(replica)) => Look::WaitsForRepair(replica),
            (None, None) => Look::Nothing,
        }
    }

    fn perform(&mut self, persists: Vec<Persist>) -> storage::Result<()> {
        let shard = &self.shard;
        let mut checkpoint = |group, index| shard.checkpoint_at(group, index);
        let mut done = Vec::new();
        self.disk.perform(persists, &mut checkpoint, &self.syncer, &mut done)?;
        self.inputs.extend(done.into_iter().map(Input::Stored));
        Ok(())
    }

    fn send(&mut self) {
        for (to, lane, mut frame) in self.out.take_frames(self.config.cluster, self.config.node) {
            let missed_by = std::mem::take(&mut frame.missed_by);
            if !(self.config.send)(to, lane, frame) {
                self.counters.frame_lost();
                let lost = missed_by.into_iter().map(|(group, to)| Input::Lost { group, to });
                self.inputs.extend(lost);
            }
        }
        self.counters.dropped(std::mem::take(&mut self.out.dropped));
    }

    /// Tells everybody what has changed, and then those who asked: what was acknowledged can be
    /// read at once. Who has gone away is told nothing.
    fn answer(&mut self) {
        for published in self.out.published.drain(..) {
            if let Some(sender) = self.published.get(&published.group) {
                let before = sender.send_replace(published);
                self.counters.follow(&before, &published);
            }
        }
        for (ticket, answer) in self.out.answers.drain(..) {
            if let Some(reply) = self.asks.remove(&ticket) {
                let _ = reply.sender.send(answer);
            }
        }
        for (ticket, decision) in self.out.decisions.drain(..) {
            if let Some(reply) = self.decisions.remove(&ticket) {
                let _ = reply.send(decision);
            }
        }
    }

    /// Has read what followers need: at once if it is in memory, else where waiting is allowed.
    fn read(&mut self) {
        for read in std::mem::take(&mut self.out.effects.cold_reads) {
            let Some(reader) = self.disk.reader(read.group) else { continue };
            self.counters.cold_read();
            match read_cold(&reader, &read, Access::Hot) {
                Ok(entries) => self.inputs.push(Input::Fetched {
                    group: read.group,
                    first_index: read.first_index,
                    entries: Some(entries),
                }),
                Err(_) => self.read_elsewhere(reader, Wanted::Entries(read)),
            }
        }
        for group in std::mem::take(&mut self.out.effects.bases) {
            if let Some(reader) = self.disk.reader(group) {
                self.read_elsewhere(reader, Wanted::Base(group));
            }
        }
    }

    fn read_elsewhere(&mut self, reader: LogReader, what: Wanted) {
        let job = ColdJob { shard: self.number, reader, what };
        if let Err(error) = self.cold.try_send(job) {
            use std::sync::mpsc::TrySendError::{Disconnected, Full};
            let (Full(job) | Disconnected(job)) = error;
            // Asked for again with the follower's next heartbeat.
            self.inputs.push(match job.what {
                Wanted::Entries(read) => Input::Fetched {
                    group: read.group,
                    first_index: read.first_index,
                    entries: None,
                },
                Wanted::Base(group) => Input::Base { group, base: None },
                // Whoever lacks it asks again, and whoever reads there suspects it again.
                Wanted::Supply(_) | Wanted::Examination(_) => return,
            });
        }
    }

    fn close_groups(&mut self) -> storage::Result<()> {
        for (group, reply) in std::mem::take(&mut self.closing) {
            self.published.remove(&group);
            let closed = self.disk.close(group);
            let result = closed.clone();
            let _ = reply.send(closed);
            result?;
        }
        Ok(())
    }

    /// A replica that kept what a majority lost takes it back and goes on; any other fault stops
    /// it, for whoever runs the cluster to see to.
    fn follow_faults(&mut self) -> storage::Result<()> {
        for (group, fault) in std::mem::take(&mut self.out.effects.faults) {
            let durability = self.shard.group(group).map(Group::durability);
            let replica = self.shard.group(group).map(Group::replica);
            let index = match (&fault, durability) {
                (
                    Fault::Diverged(Divergence::Committed { index, .. }),
                    Some(Durability::Memory),
                ) => *index,
                _ => {
                    tracing::error!(%group, %fault, "a replica stopped");
                    continue;
                }
            };
            tracing::warn!(%group, %fault, "a replica takes back what a majority lost");
            let replica = replica.expect("a group that stopped is still here");
            self.inputs.push(Input::Close(group));
            let reopened = self
                .disk
                .rewind::<M>(group, index)
                .and_then(|()| self.disk.open::<M>(group, replica, Durability::Memory));
            match reopened {
                Ok((start, _)) => self.inputs.push(start.into_input()),
                Err(error) => tracing::error!(%group, %error, "a replica cannot be opened again"),
            }
        }
        Ok(())
    }

    fn tend(&mut self) -> storage::Result<()> {
        let stalled = self.disk.stalled().collect::<Vec<_>>();
        self.counters.note_state(self.number, &stalled, self.shard.damage());
        let stalled = stalled.len() as u64;
        if stalled > 0 {
            self.counters.appends_stalled(stalled);
            let shard = &self.shard;
            let mut checkpoint = |group, index| shard.checkpoint_at(group, index);
            let mut done = Vec::new();
            self.disk.retry(&mut checkpoint, &self.syncer, &mut done)?;
            self.inputs.extend(done.into_iter().map(Input::Stored));
        }
        self.look_for_damage();
        let overgrown = self.disk.overgrown();
        overgrown.into_iter().try_for_each(|group| self.retain(group, None))?;
        self.disk.tend(&self.syncer)
    }

    fn retain(&mut self, group: LogId, policy: Option<&Policy>) -> storage::Result<()> {
        let (Some(found), Some(machine)) = (self.shard.group(group), self.shard.machine(group))
        else {
            return Ok(());
        };
        // DURABILITY: a replica that starts anew with this very step has another log behind the
        // same name, of which less may be settled.
        if self.inputs.iter().any(|input| matches!(input, Input::Close(closed) if *closed == group))
        {
            return Ok(());
        }
        // Between the rounds nobody is hurried.
        let settled = if policy.is_some() { found.settled() } else { found.spared() };
        let log_start = machine.log_start();
        let wall_ms = now(self.started).wall_ms;
        match self.disk.retain(group, policy, log_start, settled, wall_ms) {
            Ok(Some(start)) => self.inputs.push(Input::StartAdvanced { group, start }),
            Ok(None) | Err(storage::Error::NoSpace { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn close_all(&mut self) -> storage::Result<()> {
        let groups: Vec<_> = self.shard.groups().collect();
        self.inputs.extend(groups.iter().copied().map(Input::Close));
        self.shard.step(now(self.started), &mut self.inputs, &mut self.out);
        self.answer();
        self.published.clear();
        groups.into_iter().try_for_each(|group| self.disk.close(group))
    }
}

fn now(started: Instant) -> Now {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let wall_ms = since_1970.map_or(0, |elapsed| elapsed.as_millis() as i64);
    Now { monotonic_ms: started.elapsed().as_millis() as u64, wall_ms }
}

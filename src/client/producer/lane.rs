//! The task that sends one partition's batches: over a [`link`] to the leader, again after a break.
//!
//! It runs from the partition's first record, or from a little before, until the producer ends.
//! What may be sent, and under which number, is the [`Window`]'s to say; here are time, retries and
//! the network.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::accumulator::{Accumulator, Closed, Next};
use super::link::{self, Answer, Attachment, Links};
use super::window::{Batch, Done, Fate, Outgoing, Step, Window};
use super::{ProducerConfig, Receipt};
use crate::batch::payload_crc;
use crate::client::call::{Effect, Target};
use crate::client::error::Repeat;
use crate::client::retry::{Backoff, random_fraction};
use crate::client::wire::{Produce, StreamedProduce};
use crate::client::{Client, Error, Failure};
use crate::proto::client::produce_stream_response::Outcome;
use crate::proto::client::{ErrorReason, InitProducerRequest, ProducerStamp};

/// A stream that owes answers and gives none for so long is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// A lane that has nothing to send lets go of its stream.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a lane that begins tries to make the producer known before there is a batch to send.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Lanes of a producer that do so at a time. Were a thousand to begin at once, all but the first
/// would still wait when their batches are full.
pub(super) const INTRODUCTIONS_MAX: usize = 8;
/// Leader hints followed at once, before pauses begin.
const HINTS_MAX: u32 = 2;
/// How long to look for a leader before any node is asked to forward.
const TOPOLOGY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait when the retry budget is used up.
const BUDGET_PAUSE: Duration = Duration::from_millis(250);

/// See the module.
#[derive(Debug)]
pub(super) struct Lane {
    client: Client,
    config: Arc<ProducerConfig>,
    topic_id: Arc<str>,
    accumulator: Arc<Accumulator>,
    links: Arc<Links>,
    window: Window,
    room: Arc<Semaphore>,
    introductions: Arc<Semaphore>,
    /// The accumulator has said that there will be no more.
    has_ended: bool,
    backoff: Backoff,
    /// Leader hints followed since the last success.
    hints: u32,
    /// The last failure named a leader to go to.
    is_hinted: bool,
    /// What is in the way, since the last success.
    last_failure: Option<Failure>,
    /// When the server last answered, or was first asked to.
    last_answer: Instant,
}

impl Lane {
    pub(super) fn new(
        client: Client,
        config: Arc<ProducerConfig>,
        topic_id: Arc<str>,
        accumulator: Arc<Accumulator>,
        links: Arc<Links>,
        [room, introductions]: [Arc<Semaphore>; 2],
    ) -> Self {
        let window = Window::new(config.batches_in_flight, config.is_idempotent);
        Self {
            client,
            config,
            topic_id,
            accumulator,
            links,
            window,
            room,
            introductions,
            has_ended: false,
            backoff: Backoff::new(),
            hints: 0,
            is_hinted: false,
            last_failure: None,
            last_answer: Instant::now(),
        }
    }

    /// Runs until the producer ends and all its records are done with.
    pub(super) async fn run(mut self) {
        if self.config.is_idempotent {
            self.introduce().await;
        }
        while self.has_work().await {
            if let Err(failure) = self.connect_and_send().await {
                self.recover(failure).await;
            }
        }
    }

    fn partition(&self) -> u32 {
        self.accumulator.partition()
    }

    /// Waits for something to send. Returns false if there will never be.
    async fn has_work(&mut self) -> bool {
        while self.window.is_empty() && !self.has_ended {
            match self.accumulator.next().await {
                Next::Batch(closed) => self.admit(closed),
                Next::End => self.has_ended = true,
            }
        }
        !self.window.is_empty()
    }

    /// Sends over one stream until it ends. Well if nobody needs it any more.
    async fn connect_and_send(&mut self) -> Result<(), Failure> {
        if self.window.needs_identity() {
            self.take_identity().await?;
            if self.window.needs_identity() {
                return Ok(());
            }
        }
        let (client, config) = (self.client.clone(), self.config.clone());
        let target = Target::Leader { topic: &config.topic, partition: self.partition() };
        let route = client.nodes().leader(&config.topic, self.partition());
        let (since, in_flight) = (self.window.next_request_id(), self.config.batches_in_flight);
        let link = self.links.attach(&route, self.partition(), since, in_flight);
        self.last_answer = Instant::now();
        let Err(failure) = self.exchange(link).await else {
            return Ok(());
        };
        let failure = failure.asked_of(&route.address);
        // A server may close a stream that has nothing to do.
        if !self.window.is_empty() {
            self.is_hinted = client.note_failure(target, &route, &failure);
        }
        Err(failure)
    }

    /// Makes this producer known to the partition while its first batch is still being filled. If
    /// that fails, the batch will see why.
    async fn introduce(&mut self) {
        let introductions = self.introductions.clone();
        let Ok(_permit) = introductions.try_acquire() else { return };
        let accumulator = self.accumulator.clone();
        let timeout = INTRODUCTION_TIMEOUT.min(self.config.delivery_timeout);
        tokio::select! {
            asked = tokio::time::timeout(timeout, self.init_producer()) => {
                if let Ok(Ok((identity, ended))) = asked {
                    self.finish_all(|window| window.set_identity(identity, ended));
                }
            }
            () = accumulator.ended() => {}
        }
    }

    /// Makes this producer known to the partition, and keeps out what is left of earlier attempts.
    async fn take_identity(&mut self) -> Result<(), Failure> {
        let deadline = self.window.deadline().unwrap_or_else(Instant::now);
        let asked = tokio::time::timeout_at(deadline.into(), self.init_producer()).await;
        let answer = asked.unwrap_or_else(|_| Err(self.timed_out().into()));
        match answer {
            Ok((identity, ended)) => {
                self.finish_all(|window| window.set_identity(identity, ended));
            }
            Err(error) if error.reason() == ErrorReason::UnknownProducer => {
                self.window.forget_identity();
            }
            Err(error) => {
                let failure = error.failure().cloned();
                return Err(failure.unwrap_or_else(|| Failure::cut(&error.to_string())));
            }
        }
        Ok(())
    }

    /// Returns the new identity, and the number at which those of the old one ended, if that can be
    /// told.
    async fn init_producer(&self) -> Result<(ProducerStamp, Option<u32>), Error> {
        let (topic, partition) = (&self.config.topic, self.partition());
        let request = InitProducerRequest {
            topic: topic.clone(),
            topic_id: self.topic_id.to_string(),
            partition,
            producer_id: self.window.identity().map_or(0, |known| known.producer_id),
        };
        let target = Target::Leader { topic, partition };
        let call = self.client.call(Effect::Repeatable, target, |route, timeout| {
            let request = route.request(request.clone(), timeout);
            async move { route.log().init_producer(request).await }
        });
        let answer = call.await?;
        let identity = ProducerStamp {
            producer_id: answer.producer_id,
            producer_epoch: answer.producer_epoch,
            base_sequence: answer.next_sequence,
        };
        // An attempt whose answer was lost may have ended an epoch in between.
        let follows = |known: &ProducerStamp| {
            known.producer_id == identity.producer_id
                && known.producer_epoch + 1 == identity.producer_epoch
        };
        let is_next = self.window.identity().is_some_and(follows);
        Ok((identity, answer.ended_sequence.filter(|_| is_next)))
    }

    /// Sends batches and takes answers until the stream ends or is not needed.
    async fn exchange(&mut self, link: Attachment) -> Result<(), Failure> {
        let Attachment { requests, mut answers } = link;
        let accumulator = self.accumulator.clone();
        while !(self.window.needs_identity() || self.has_ended && self.window.is_empty()) {
            let is_full = self.send_all(&requests);
            let takes_more = self.window.has_room() && !self.has_ended;
            tokio::select! {
                answer = answers.next() => self.on_answer(answer?)?,
                next = accumulator.next(), if takes_more => match next {
                    Next::Batch(closed) => self.admit(closed),
                    Next::End => self.has_ended = true,
                },
                place = requests.reserve(), if is_full => drop(place),
                () = tokio::time::sleep_until(self.patience().into()) => {
                    if self.window.is_empty() {
                        return Ok(());
                    }
                    answers.suspect_link();
                    return Err(Failure::silent(self.last_answer.elapsed()));
                }
            }
        }
        Ok(())
    }

    /// Until when nothing needs to happen.
    fn patience(&self) -> Instant {
        match self.window.deadline() {
            Some(deadline) => deadline.min(self.last_answer + ANSWER_TIMEOUT),
            None => self.last_answer + IDLE_TIMEOUT,
        }
    }

    /// Sends what the window lets out. Returns true if the link is full.
    fn send_all(&mut self, requests: &mpsc::Sender<StreamedProduce>) -> bool {
        loop {
            let place = match requests.try_reserve() {
                Ok(place) => place,
                Err(TrySendError::Full(())) => return true,
                // The answers say why.
                Err(TrySendError::Closed(())) => return false,
            };
            let Some(outgoing) = self.window.next_to_send() else {
                return false;
            };
            place.send(self.request(outgoing));
        }
    }

    fn request(&self, outgoing: Outgoing) -> StreamedProduce {
        let produce = Produce {
            topic: self.config.topic.clone(),
            topic_id: self.topic_id.to_string(),
            partition: self.partition(),
            batch: outgoing.bytes,
            crc: Some(outgoing.crc),
            acks: self.config.acks.into(),
            producer: outgoing.stamp,
        };
        let request_id = link::number(self.partition(), outgoing.request_id);
        StreamedProduce { request_id, produce: Some(produce) }
    }

    /// Encodes a batch and takes it into the window.
    fn admit(&mut self, mut closed: Closed) {
        if self.window.is_empty() {
            self.last_answer = Instant::now();
        }
        let record_count = closed.builder.record_count();
        let built = closed.builder.build(self.config.codec);
        let Closed { waiters, room, since, .. } = closed;
        match built {
            Ok(bytes) => {
                let (crc, deadline) = (payload_crc(&bytes), since + self.config.delivery_timeout);
                self.window.push(Batch { bytes, crc, record_count, waiters, room, deadline });
            }
            Err(error) => {
                let outcomes = waiters.into_iter();
                outcomes.for_each(|waiter| drop(waiter.send(Err(Error::Record(error)))));
                self.give_back(room);
            }
        }
    }

    fn on_answer(&mut self, answer: Answer) -> Result<(), Failure> {
        self.last_answer = Instant::now();
        let outcome = match answer.outcome {
            Some(Outcome::Produced(produced)) => Ok(produced.base_offset),
            Some(Outcome::Error(error)) => Err(Failure::from(error)),
            None => return Err(Failure::cut("the server sent an answer without an outcome")),
        };
        match self.window.on_answer(answer.request_id, outcome) {
            Step::Done(done) => self.finish(done),
            Step::Wait => {}
            Step::Restart(failure) => return Err(failure),
        }
        Ok(())
    }

    /// Gives up what cannot be tried again, and waits before the rest is.
    async fn recover(&mut self, failure: Failure) {
        self.finish_all(|window| window.on_cut(&failure));
        if failure.repeat() == Repeat::Useless {
            self.finish_all(|window| window.fail_all(&failure));
        }
        self.last_failure = Some(failure);
        self.expire();
        if let Some(deadline) = self.window.deadline() {
            let _ = tokio::time::timeout_at(deadline.into(), self.pause()).await;
            self.expire();
        }
    }

    async fn pause(&mut self) {
        let is_hinted = std::mem::take(&mut self.is_hinted) && self.hints < HINTS_MAX;
        let retry_after = self.last_failure.as_ref().and_then(|failure| failure.retry_after);
        if is_hinted {
            self.hints += 1;
        } else {
            tokio::time::sleep(self.backoff.next(random_fraction(), retry_after)).await;
        }
        while !self.client.try_retry() {
            tokio::time::sleep(BUDGET_PAUSE).await;
        }
        if !is_hinted {
            let fetched = self.client.fetch_topology(&self.config.topic);
            let _ = tokio::time::timeout(TOPOLOGY_TIMEOUT, fetched).await;
        }
    }

    fn expire(&mut self) {
        let failure = self.timed_out();
        self.finish_all(|window| window.expire(Instant::now(), &failure));
    }

    /// That the time is up, and what was in the way.
    fn timed_out(&self) -> Failure {
        let last = self.last_failure.clone().unwrap_or_else(|| Failure::cut("no answer came"));
        let timeout = humantime::format_duration(self.config.delivery_timeout);
        let message = format!("gave up after {timeout}: {}", last.message);
        Failure { message, ..last }
    }

    fn finish_all(&mut self, take: impl FnOnce(&mut Window) -> Vec<Done>) {
        take(&mut self.window).into_iter().for_each(|done| self.finish(done));
    }

    /// Tells all that wait for a batch what became of it.
    fn finish(&mut self, done: Done) {
        let received = Instant::now();
        let partition = self.partition();
        let Batch { waiters, room, .. } = done.batch;
        match done.result {
            Ok(base_offset) => {
                for (offset, waiter) in (base_offset..).zip(waiters) {
                    // Whoever dropped the receiver does not want to know.
                    let _ = waiter.send(Ok(Receipt { partition, offset, received }));
                }
                self.on_success();
            }
            Err(fate) => {
                let error = error_of(fate);
                waiters.into_iter().for_each(|waiter| drop(waiter.send(Err(error.clone()))));
            }
        }
        self.give_back(room);
    }

    fn on_success(&mut self) {
        self.client.note_success();
        if self.last_failure.take().is_some() {
            self.backoff = Backoff::new();
            self.hints = 0;
        }
    }

    fn give_back(&mut self, room: usize) {
        self.room.add_permits(room);
        self.accumulator.on_done();
    }
}

fn error_of(fate: Fate) -> Error {
    match fate {
        Fate::Refused(failure) => Error::of_read(failure),
        Fate::Unknown(failure) => Error::OutcomeUnknown(Arc::new(failure)),
    }
}

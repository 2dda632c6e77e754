//! The task of a member: keeps a stream open, says what is due, and takes in what comes.
//!
//! When a stream breaks it joins again through another node, as the same member and with where it
//! was, so that nothing comes twice.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tonic::Streaming;

use super::Shared;
use super::link::Link;
use super::member::Goal;
use super::wire::{self, Consumed, Data, Told};
use crate::client::call::Target;
use crate::client::connection::Route;
use crate::client::decode::Decoder;
use crate::client::error::Repeat;
use crate::client::retry::{Backoff, random_fraction};
use crate::client::{Client, Error, ErrorReason, Event, Failure};
use crate::proto::client::consume_request::Message;
use crate::proto::client::{ConsumeAssigned, ConsumeRequest};

/// Requests that wait to be sent.
const REQUESTS_MAX: usize = 16;
/// How long to wait for the server to end a stream that was said to be over.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often to look whether something is due, at most.
const TICK_MIN: Duration = Duration::from_millis(5);
/// How long to wait when the retry budget is used up.
const BUDGET_PAUSE: Duration = Duration::from_millis(250);

/// Why a stream is over.
#[derive(Debug)]
enum Cut {
    Failed(Failure),
    /// The node asked the member to join through another one.
    GoAway(Failure),
    /// A batch arrived damaged.
    Damaged(Error),
}

impl From<Failure> for Cut {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// An open stream.
struct Stream {
    requests: mpsc::Sender<ConsumeRequest>,
    answers: Streaming<Consumed>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Driver {
    client: Client,
    shared: Arc<Shared>,
    decoder: Decoder,
    backoff: Backoff,
    /// Since when nothing succeeds.
    failing_since: Option<Instant>,
    /// The node that the last stream went through; empty at first.
    left: Arc<str>,
    /// Whether the addresses of the cluster's nodes were asked for.
    has_looked: bool,
}

/// Says that the task is over, however it ends.
struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.set_running(false);
        self.0.to_application.notify_one();
    }
}

impl Driver {
    pub(super) fn new(client: Client, shared: Arc<Shared>) -> Self {
        let (decoder, backoff) = (Decoder::default(), Backoff::new());
        let (failing_since, left, has_looked) = (None, "".into(), false);
        Self { client, shared, decoder, backoff, failing_since, left, has_looked }
    }

    /// Runs until the member has left or cannot go on.
    pub(super) async fn run(mut self) {
        let _running = Running(self.shared.clone());
        loop {
            let done = self.serve().await;
            self.shared.member().on_cut();
            let goes_on = match done {
                Ok(()) => false,
                Err(cut) => self.recover(cut).await,
            };
            self.shared.to_application.notify_one();
            if !goes_on {
                break;
            }
        }
        let mut member = self.shared.member();
        if member.goal == Goal::Out {
            member.on_expelled();
            member.goal = Goal::Stay;
        }
    }

    /// Is a member over one stream, until that ends. Well if the member has left.
    async fn serve(&mut self) -> Result<(), Cut> {
        let client = self.client.clone();
        let route = client.nodes().any_but(&self.left);
        self.left = route.address.clone();
        let done = match self.open(&route).await {
            Ok(stream) => self.exchange(stream).await,
            Err(failure) => Err(failure.into()),
        };
        done.map_err(|cut| match cut {
            Cut::Failed(failure) => {
                let failure = failure.asked_of(&route.address);
                client.note_failure(Target::Any, &route, &failure);
                Cut::Failed(failure)
            }
            Cut::GoAway(_) | Cut::Damaged(_) => cut,
        })
    }

    async fn open(&self, route: &Route) -> Result<Stream, Failure> {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let join = self.shared.member().begin(Instant::now());
        let join = ConsumeRequest { message: Some(Message::Join(join)) };
        requests.try_send(join).expect("the channel is empty");
        let answers = self.meanwhile(wire::consume(route, receiver)).await??;
        Ok(Stream { requests, answers })
    }

    /// Waits for something, and does what is due.
    ///
    /// # Errors
    /// The server is silent.
    async fn meanwhile<T>(&self, awaited: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::pin!(awaited);
        loop {
            let now = Instant::now();
            let wake_at = self.shared.member().wake_at(now).max(now + TICK_MIN);
            tokio::select! {
                output = &mut awaited => return Ok(output),
                () = self.shared.to_driver.notified() => {}
                () = tokio::time::sleep_until(wake_at.into()) => self.on_time()?,
            }
            if self.has_nothing_to_do() {
                return Err(Failure::cut("the member leaves"));
            }
        }
    }

    fn on_time(&self) -> Result<(), Failure> {
        let done = self.shared.member().on_time(Instant::now());
        self.shared.to_application.notify_one();
        done
    }

    /// Whether the member wants to leave and has nothing to say before, so that it need not wait
    /// for a stream.
    fn has_nothing_to_do(&self) -> bool {
        let member = self.shared.member();
        let is_in = member.link.as_ref().is_some_and(Link::has_joined);
        !is_in
            && (member.goal == Goal::Out || member.goal != Goal::Stay && member.commits.is_empty())
    }

    async fn exchange(&mut self, mut stream: Stream) -> Result<(), Cut> {
        let mut request = None;
        loop {
            let (wake_at, has_left) = {
                let (now, mut member) = (Instant::now(), self.shared.member());
                request = request.or_else(|| member.next_request(now));
                let has_left = member.link.as_ref().is_some_and(|link| link.has_left);
                (member.wake_at(now).max(now + TICK_MIN), has_left)
            };
            if request.is_none() && has_left {
                stream.end().await;
                return Ok(());
            }
            tokio::select! {
                place = stream.requests.reserve(), if request.is_some() => {
                    let place = place.map_err(|_| Failure::cut("the server ended the stream"))?;
                    place.send(ConsumeRequest { message: request.take() });
                }
                told = stream.answers.message() => {
                    let told = told.map_err(Failure::from)?;
                    self.on_message(told)?;
                }
                () = self.shared.to_driver.notified() => {}
                () = tokio::time::sleep_until(wake_at.into()) => self.on_time()?,
            }
        }
    }

    fn on_message(&mut self, message: Option<Consumed>) -> Result<(), Cut> {
        let told = match message {
            Some(Consumed { message: Some(told) }) => told,
            Some(Consumed { message: None }) => return Ok(()),
            None => return Err(Failure::cut("the server ended the stream").into()),
        };
        let now = Instant::now();
        self.shared.member().on_heard(now);
        match told {
            Told::Data(data) => self.on_data(now, data)?,
            told => {
                if let Told::Assigned(assigned) = &told {
                    self.look_for_nodes(assigned);
                }
                let is_go_away = matches!(told, Told::GoAway(_));
                let taken = self.shared.member().on_told(now, told);
                taken.map_err(if is_go_away { Cut::GoAway } else { Cut::Failed })?;
            }
        }
        if self.failing_since.take().is_some() {
            self.backoff = Backoff::new();
        }
        self.shared.to_application.notify_one();
        Ok(())
    }

    /// Learns of the other nodes while there is one to ask, to have somewhere to go without it.
    fn look_for_nodes(&mut self, assigned: &ConsumeAssigned) {
        let Some(assignment) = assigned.assignments.first().filter(|_| !self.has_looked) else {
            return;
        };
        self.has_looked = true;
        let (client, topic) = (self.client.clone(), assignment.topic.clone());
        tokio::spawn(async move { drop(client.fetch_topology(&topic).await) });
    }

    /// Takes batches apart without keeping the application from what it has.
    fn on_data(&mut self, now: Instant, data: Data) -> Result<(), Cut> {
        let source = self.shared.member().source(data.assignment);
        let Some(source) = source else {
            return Ok(self.shared.member().on_told(now, Told::Data(data))?);
        };
        let mut events = VecDeque::new();
        let take = |record| events.push_back(Event::Record(record));
        let of = (&source.topic, source.partition);
        let decoded = self.decoder.decode(of, &data.batches, source.from, take);
        decoded.map_err(Cut::Damaged)?;
        self.shared.member().on_data(&source, &data, events);
        Ok(())
    }

    /// Waits before the member joins again. Returns whether it is to.
    async fn recover(&mut self, cut: Cut) -> bool {
        let failure = match cut {
            Cut::Damaged(error) => {
                self.shared.member().fail(error);
                return false;
            }
            Cut::GoAway(failure) | Cut::Failed(failure) if self.is_leaving(&failure) => {
                return false;
            }
            Cut::GoAway(failure) if self.failing_since.is_none() => {
                self.failing_since = Some(Instant::now());
                return self.may_go_on(&failure);
            }
            Cut::GoAway(failure) | Cut::Failed(failure) => failure,
        };
        if !self.may_go_on(&failure) {
            return false;
        }
        let now = Instant::now();
        let failing_for = now.duration_since(*self.failing_since.get_or_insert(now));
        if failing_for >= self.client.config().timeout {
            self.failing_since = None;
            self.shared.member().fail(Error::of_read(failure.clone()));
            self.shared.to_application.notify_one();
        }
        self.pause(&failure).await;
        !self.has_nothing_to_do()
    }

    /// Whether the member wants to leave and nothing is left to be said.
    fn is_leaving(&self, failure: &Failure) -> bool {
        let mut member = self.shared.member();
        if let Goal::Leave { .. } = member.goal
            && !member.commits.is_empty()
            && failure.repeat() == Repeat::Useless
        {
            member.fail(failure.clone().into());
            return true;
        }
        member.goal != Goal::Stay && (member.commits.is_empty() || member.goal == Goal::Out)
    }

    /// Notes a failure that no other node can mend. Returns false if there was one.
    fn may_go_on(&self, failure: &Failure) -> bool {
        let mut member = self.shared.member();
        if failure.reason == ErrorReason::UnknownMember && !member.id.is_empty() {
            member.on_expelled();
            return true;
        }
        if failure.repeat() == Repeat::Useless {
            member.on_expelled();
            member.fail(Error::of_read(failure.clone()));
            return false;
        }
        true
    }

    async fn pause(&mut self, failure: &Failure) {
        let pause = self.backoff.next(random_fraction(), failure.retry_after);
        // It ends at once if the member wants to leave.
        let paused = self.meanwhile(tokio::time::sleep(pause)).await;
        while paused.is_ok() && !self.client.try_retry() {
            if self.meanwhile(tokio::time::sleep(BUDGET_PAUSE)).await.is_err() {
                return;
            }
        }
    }
}

impl Stream {
    /// Says no more, and waits for the server to do the same.
    async fn end(self) {
        let Self { requests, mut answers } = self;
        drop(requests);
        let rest = async { while let Ok(Some(_)) = answers.message().await {} };
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, rest).await;
    }
}

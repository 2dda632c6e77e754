//! The pipeline: one produce stream, many batches in flight.
//!
//! There is no task and no queue between the connection and the partition: whoever writes the
//! answers to the connection polls the pipeline, which reads requests, sends each on its way to
//! its partition and gives the answers. A client that does not read its answers is not read from.
//!
//! Requests go the fast way: checked and sent to the partition's shard at once, or to the leader's
//! node over one stream. What cannot be sent at once goes the slow way of a single request, and
//! everything behind it in its partition waits. So does the first one that failed and can be sent
//! again. Those behind it that failed as well go the fast way once more, all together, as soon as
//! another leader is known: a change of leaders costs a stream few slow requests, however many are
//! in flight.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::iter;
use std::pin::Pin;
use std::task::{Context as Waker, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tonic::{Status, Streaming};

use super::super::call::{Call, Origin};
use super::super::context::{Context, Route, Target, may_be_news};
use super::super::counters::Method;
use super::super::error::Error;
use super::super::status;
use super::check::{Checked, Unchecked};
use super::item::{Item, Produced, Ticket, Way};
use super::lane::{Allowed, Lanes, Sent};
use super::link::Link;
use super::produce::{self, count_stored, for_another_node};
use crate::partition::AskError;
use crate::proto::server::produce_stream_response::Outcome;
use crate::proto::server::{ProduceRequest, ProduceStreamRequest, ProduceStreamResponse};
use crate::types::{LogId, NodeId, TraceContext};

/// How often deadlines are looked at.
const DEADLINE_TICK: Duration = Duration::from_millis(250);

/// One produce stream.
pub(super) struct Pipeline {
    context: Context,
    requests: Streaming<ProduceStreamRequest>,
    is_open: bool,
    origin: Origin,
    lanes: Lanes<Item>,
    heads: FuturesUnordered<Head>,
    answers: VecDeque<ProduceStreamResponse>,
    /// Requests that are not answered, and the bytes of their batches.
    in_flight: usize,
    bytes: usize,
    /// A request whose check takes long. Nothing is read meanwhile.
    checking: Option<Checking>,
    links: HashMap<NodeId, Link>,
    deadlines: Interval,
}

struct Checking {
    ticket: Ticket,
    /// Its partition, if that is known.
    log: Option<LogId>,
    outcome: BoxFuture<'static, Result<Checked, Error>>,
}

/// The first request of a lane, awaited.
struct Head {
    log: LogId,
    item: Option<Item>,
}

impl Pipeline {
    pub(super) fn new(
        context: Context,
        requests: Streaming<ProduceStreamRequest>,
        origin: Origin,
    ) -> Self {
        let mut deadlines = interval(DEADLINE_TICK);
        deadlines.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            context,
            requests,
            is_open: true,
            origin,
            lanes: Lanes::default(),
            heads: FuturesUnordered::new(),
            answers: VecDeque::new(),
            in_flight: 0,
            bytes: 0,
            checking: None,
            links: HashMap::new(),
            deadlines,
        }
    }

    /// The next answer; `None` once all requests are answered and no more come.
    pub(super) async fn next(&mut self) -> Option<Result<ProduceStreamResponse, Status>> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Some(Ok(answer));
            }
            if !self.is_open && self.in_flight == 0 {
                return None;
            }
            let may_read = self.is_open && self.checking.is_none() && self.has_room();
            tokio::select! {
                biased;
                Some((log, item, produced)) = self.heads.next(), if !self.heads.is_empty() => {
                    self.settle(log, item, produced);
                }
                checked = check(&mut self.checking), if self.checking.is_some() => {
                    self.end_check(checked);
                }
                request = self.requests.message(), if may_read => {
                    if let Err(status) = self.read(request) {
                        return Some(Err(status));
                    }
                }
                _ = self.deadlines.tick(), if !self.heads.is_empty() => self.pass_deadlines(),
            }
        }
    }

    fn has_room(&self) -> bool {
        let limits = self.context.limits();
        self.in_flight < limits.produce_requests_max && self.bytes < limits.produce_bytes_max
    }

    fn read(
        &mut self,
        request: Result<Option<ProduceStreamRequest>, Status>,
    ) -> Result<(), Status> {
        match request {
            Ok(Some(request)) => self.take(request),
            Ok(None) => self.is_open = false,
            Err(status) => {
                // What cannot be read has no number to be answered with.
                self.is_open = false;
                return Err(status);
            }
        }
        Ok(())
    }

    /// Takes a request in.
    fn take(&mut self, request: ProduceStreamRequest) {
        let ProduceStreamRequest { request_id, produce } = request;
        let bytes = produce.as_ref().map_or(0, |produce| produce.batch.len());
        let call = Call::within_stream(self.origin);
        let ticket = Ticket { request_id, bytes, call };
        self.in_flight += 1;
        self.bytes += bytes;
        let Some(produce) = produce else {
            return self.answer(ticket, Err(Error::field("produce", "given")));
        };
        if self.context.is_draining() {
            return self.answer(ticket, Err(Error::Draining));
        }
        let (topic, topic_id) = (&produce.topic, &produce.topic_id);
        match self.context.find_target(topic, topic_id, produce.partition) {
            Ok(target) => self.check(ticket, produce, target),
            Err(error) if may_be_news(&error) => {
                let context = self.context.clone();
                let outcome = async move { produce::check(&context, produce).await };
                self.checking = Some(Checking { ticket, log: None, outcome: Box::pin(outcome) });
            }
            Err(error) => self.answer(ticket, Err(error)),
        }
    }

    /// Checks a request whose partition is known, here or elsewhere.
    fn check(&mut self, ticket: Ticket, produce: ProduceRequest, target: Target) {
        let checked = match Unchecked::new(produce, target) {
            Ok(unchecked) if unchecked.is_heavy() => {
                let context = self.context.clone();
                let outcome = async move { unchecked.check_elsewhere(&context).await };
                let (log, outcome) = (Some(target.log), Box::pin(outcome));
                self.checking = Some(Checking { ticket, log, outcome });
                return;
            }
            Ok(unchecked) => unchecked.check(),
            Err(error) => Err(error),
        };
        match checked {
            Ok(checked) => self.send_new(ticket, checked),
            Err(error) => self.fail(target.log, ticket, error),
        }
    }

    fn end_check(&mut self, checked: Result<Checked, Error>) {
        let Checking { ticket, log, .. } = self.checking.take().expect("a check has ended");
        match (checked, log) {
            (Ok(checked), _) => self.send_new(ticket, checked),
            (Err(error), Some(log)) => self.fail(log, ticket, error),
            (Err(error), None) => self.answer(ticket, Err(error)),
        }
    }

    /// Answers a request that failed, in its turn.
    fn fail(&mut self, log: LogId, ticket: Ticket, error: Error) {
        let must_wait = self.lanes.allowed(log) == Allowed::Nowhere;
        let sent = if must_wait { Sent::Not } else { Sent::Nowhere };
        if let Some(item) = self.lanes.push(log, Item::failed(ticket, error), sent) {
            self.await_head(log, item);
        }
    }

    /// Sends a request on its way, or puts it behind those that wait.
    fn send_new(&mut self, ticket: Ticket, checked: Checked) {
        let log = checked.target.log;
        let mut item = Item::new(ticket, Some(checked));
        let (allowed, leader) = (self.lanes.allowed(log), self.lanes.leader(log));
        let sent = send_fast(&self.context, &mut self.links, &mut item, allowed, leader);
        if let Some(head) = self.lanes.push(log, item, sent) {
            self.lead(log, head);
        }
    }

    /// Awaits a lane's new head, which may have to be sent the slow way.
    fn lead(&mut self, log: LogId, mut head: Item) {
        if matches!(head.way, Way::Waiting) {
            head.go_slowly(&self.context, self.lanes.leader(log));
        }
        self.await_head(log, head);
    }

    fn await_head(&mut self, log: LogId, head: Item) {
        self.heads.push(Head { log, item: Some(head) });
    }

    /// Follows a lane whose head has come to an end, as far as outcomes are known.
    fn settle(&mut self, log: LogId, item: Item, produced: Produced) {
        let mut settled = Some((item, produced));
        while let Some((item, produced)) = settled.take() {
            let produced = match produced {
                Err(error) if item.is_worth_another(&error) => {
                    return self.send_again(log, item, &error);
                }
                Err(error) => Err(match item.told(error) {
                    Error::Ask(AskError::NotLeader { .. }) => self.context.not_leader(log),
                    error => error,
                }),
                Ok(stored) => Ok(stored),
            };
            if let (Ok(_), Way::Here(_), Some(checked)) = (&produced, &item.way, &item.checked) {
                count_stored(self.context.counters(), checked, item.is_duplicate);
            }
            self.answer(item.ticket, produced);
            if matches!(item.way, Way::Slow(_)) {
                self.lanes.hear_of_leader(log, item.leader);
            }
            let Some((mut next, is_sent)) = self.lanes.next_head(log) else { return };
            let is_sent = is_sent && !self.rewind(log, &mut next);
            let (leader, context, links) = (self.lanes.leader(log), &self.context, &mut self.links);
            if !is_sent {
                let sent = send_fast(context, links, &mut next, Allowed::Anywhere, leader);
                self.lanes.note_head(log, sent);
            }
            self.lanes.send_waiting(log, |item, allowed| {
                send_fast(context, links, item, allowed, leader)
            });
            match next.take_outcome() {
                Some(produced) => settled = Some((next, produced)),
                None => self.lead(log, next),
            }
        }
    }

    /// Has a lane's head and all that failed behind it wait again, if the head has failed, nothing
    /// is on its way any more, and there is another node to send to; false if not.
    fn rewind(&mut self, log: LogId, head: &mut Item) -> bool {
        let Some(error) = head.failure() else { return false };
        let known = self.lanes.leader(log).filter(|known| self.lanes.leaves(log, *known));
        self.lanes.hear_of_leader(log, known.or(error.leader()));
        let target = match self.context.route(log, self.lanes.leader(log)) {
            Route::Here(_) => self.context.node().id(),
            Route::There(node) => node,
            Route::Unknown => return false,
        };
        self.lanes.sent(log).for_each(|behind| behind.is_overtaking = true);
        if !self.lanes.leaves(log, target) || !self.lanes.sent(log).all(Item::is_settled) {
            return false;
        }
        iter::once(head).chain(self.lanes.rewind(log)).for_each(Item::wait_again_if_failed);
        true
    }

    /// Sends a lane's head once more, the slow way, after an attempt that failed with `error`.
    fn send_again(&mut self, log: LogId, mut head: Item, error: &Error) {
        self.lanes.send_head_again(log);
        self.lanes.hear_of_leader(log, error.leader());
        self.lanes.sent(log).for_each(|behind| behind.is_overtaking = true);
        head.wait_again(error);
        self.lead(log, head);
    }

    fn answer(&mut self, ticket: Ticket, produced: Produced) {
        assert!(self.in_flight > 0, "a request is answered that nobody waits for");
        self.in_flight -= 1;
        self.bytes -= ticket.bytes;
        self.context.counters().count(Method::ProduceStream, &produced);
        let outcome = Some(match produced {
            Ok(response) => Outcome::Produced(response),
            Err(error) => Outcome::Error(status::to_in_stream(&error)),
        });
        self.answers.push_back(ProduceStreamResponse { request_id: ticket.request_id, outcome });
    }

    /// Gives up on heads whose time is over.
    fn pass_deadlines(&mut self) {
        let now = Instant::now();
        let is_late = |head: &Head| {
            head.item.as_ref().is_some_and(|item| {
                item.ticket.call.deadline <= now && !matches!(item.way, Way::Slow(_))
            })
        };
        if !self.heads.iter().any(is_late) {
            return;
        }
        for mut head in std::mem::take(&mut self.heads) {
            let late = is_late(&head);
            if let Some(item) = head.item.as_mut().filter(|_| late) {
                item.give_up();
            }
            self.heads.push(head);
        }
    }
}

impl Future for Head {
    type Output = (LogId, Item, Produced);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Waker<'_>) -> Poll<Self::Output> {
        let mut item = self.item.take().expect("a head is awaited until it ends");
        match item.poll(cx) {
            Poll::Ready(produced) => Poll::Ready((self.log, item, produced)),
            Poll::Pending => {
                self.item = Some(item);
                Poll::Pending
            }
        }
    }
}

async fn check(checking: &mut Option<Checking>) -> Result<Checked, Error> {
    match checking {
        Some(checking) => checking.outcome.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Sends a request on its way if that can be done at once and is allowed. `leader` is what was said
/// of who leads.
fn send_fast(
    context: &Context,
    links: &mut HashMap<NodeId, Link>,
    item: &mut Item,
    allowed: Allowed,
    leader: Option<NodeId>,
) -> Sent {
    if allowed == Allowed::Nowhere {
        return Sent::Not;
    }
    let (Way::Waiting, Some(checked)) = (&item.way, &item.checked) else { return Sent::Nowhere };
    let here = context.node().id();
    let (node, way) = match context.route(checked.target.log, leader) {
        Route::Here(handle) if allowed.allows(here) => {
            let submitted = handle.try_submit(checked.batch.clone(), checked.acks);
            (here, submitted.ok().map(Way::Here))
        }
        Route::There(node) if item.ticket.call.may_forward && allowed.allows(node) => {
            let link = open_link(context, links, node, item.ticket.call.trace);
            let sent = link.and_then(|link| link.send(for_another_node(checked)));
            (
                node,
                sent.map(Way::There).inspect(|_| context.counters().forward(Method::ProduceStream)),
            )
        }
        Route::Here(_) | Route::There(_) | Route::Unknown => return Sent::Not,
    };
    let Some(way) = way else { return Sent::Not };
    item.way = way;
    Sent::To(node)
}

fn open_link<'a>(
    context: &Context,
    links: &'a mut HashMap<NodeId, Link>,
    node: NodeId,
    trace: Option<TraceContext>,
) -> Option<&'a Link> {
    links.retain(|_, link| link.is_open());
    Some(match links.entry(node) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(new) => new.insert(Link::open(context.channel(node).ok()?, trace)),
    })
}

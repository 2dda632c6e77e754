//! How often a call is made: one loop for all unary calls, and the lookup of leaders.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::{Response, Status};

use super::connection::{Route, Topology};
use super::error::Repeat;
use super::retry::{Backoff, random_fraction};
use super::{Client, Error, Failure, Origin};
use crate::proto::client::{ErrorReason, GetTopologyRequest};

/// What a call does to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing, or nothing that it could not do twice.
    Repeatable,
    /// A change that must not be made twice by accident.
    Once,
}

/// Which node a call is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target<'a> {
    Any,
    Leader { topic: &'a str, partition: u32 },
}

/// A repeatable attempt is given up after so long, so that another node gets its turn.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(8);
/// Leader hints followed at once, before pauses begin: two nodes may point at each other.
const HINTS_MAX: u32 = 2;
/// How much longer than the server this side waits, so that the server's own answer comes first.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

impl Client {
    /// Makes a call, again if that does no harm, until it succeeds or the time is up.
    ///
    /// `make` makes one attempt over a route, which may take the time given.
    pub(super) async fn call<T, F>(
        &self,
        effect: Effect,
        target: Target<'_>,
        make: impl Fn(Route, Duration) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut attempts = Attempts::new(self.config().timeout);
        loop {
            let route = self.route(target);
            let allowed = attempts.time_for_one(effect);
            let failure = match attempt(make(route.clone(), allowed), allowed).await {
                Ok(answer) => {
                    self.nodes().on_answer(&route.address);
                    self.note_success();
                    return Ok(answer);
                }
                Err(failure) => failure.asked_of(&route.address),
            };
            let is_hinted = self.note_failure(target, &route, &failure);
            let Some(pause) = attempts.pause(self, effect, is_hinted, &failure) else {
                return Err(match effect {
                    Effect::Repeatable => Error::of_read(failure),
                    Effect::Once => failure.into(),
                });
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn route(&self, target: Target<'_>) -> Route {
        match target {
            Target::Any => self.nodes().any(),
            Target::Leader { topic, partition } => self.nodes().leader(topic, partition),
        }
    }

    /// Learns from a failure. Returns whether it named a leader to go to.
    pub(super) fn note_failure(
        &self,
        target: Target<'_>,
        route: &Route,
        failure: &Failure,
    ) -> bool {
        let nodes = self.nodes();
        match failure.origin {
            Origin::Server => nodes.on_answer(&route.address),
            Origin::NotSent | Origin::Connection => nodes.on_silence(&route.address),
        }
        let Target::Leader { topic, partition } = target else {
            return false;
        };
        match failure.reason {
            ErrorReason::NotLeader => nodes.learn_leader(topic, partition, failure),
            _ if failure.origin == Origin::Server && failure.repeat() != Repeat::Harmless => false,
            _ => {
                nodes.forget_leader(topic, partition);
                false
            }
        }
    }

    /// Looks up who leads a topic's partitions, unless someone just did.
    pub(super) async fn fetch_topology(&self, topic: &str) -> Result<Arc<Topology>, Error> {
        let _turn = self.nodes().fetching.lock().await;
        let known = self.nodes().topology(topic);
        if let Some(topology) = known.filter(|topology| topology.is_fresh()) {
            return Ok(topology);
        }
        let topics = vec![topic.to_owned()];
        let request = GetTopologyRequest { topics: topics.clone() };
        let answer = self
            .call(Effect::Repeatable, Target::Any, |route, timeout| {
                let request = route.request(request.clone(), timeout);
                async move { route.cluster().get_topology(request).await }
            })
            .await?;
        self.nodes().learn(&topics, answer);
        self.nodes().topology(topic).ok_or_else(|| Failure::unknown_topic(topic).into())
    }
}

/// The attempts at one call.
struct Attempts {
    deadline: Instant,
    backoff: Backoff,
    hints: u32,
}

impl Attempts {
    fn new(timeout: Duration) -> Self {
        Self { deadline: Instant::now() + timeout, backoff: Backoff::new(), hints: 0 }
    }

    fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn time_for_one(&self, effect: Effect) -> Duration {
        match effect {
            Effect::Repeatable => self.time_left().min(ATTEMPT_TIMEOUT),
            Effect::Once => self.time_left(),
        }
    }

    /// Returns how long to wait before another attempt, or `None` if there is to be none.
    fn pause(
        &mut self,
        client: &Client,
        effect: Effect,
        is_hinted: bool,
        failure: &Failure,
    ) -> Option<Duration> {
        let may_repeat = match failure.repeat() {
            Repeat::Harmless => true,
            Repeat::Risky => effect == Effect::Repeatable,
            Repeat::Useless => false,
        };
        let pause = if is_hinted && self.hints < HINTS_MAX {
            self.hints += 1;
            Duration::ZERO
        } else {
            self.backoff.next(random_fraction(), failure.retry_after)
        };
        (may_repeat && pause < self.time_left() && client.try_retry()).then_some(pause)
    }
}

/// Makes one attempt, and stops waiting a little after the server should have.
async fn attempt<T>(
    answer: impl Future<Output = Result<Response<T>, Status>>,
    allowed: Duration,
) -> Result<T, Failure> {
    match tokio::time::timeout(allowed + ANSWER_GRACE, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(Failure::silent(allowed)),
    }
}

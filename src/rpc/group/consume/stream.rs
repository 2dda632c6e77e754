//! The stream of a member: what it says and what it is told.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{Status, Streaming};

use super::super::super::call::Origin;
use super::super::super::context::Context;
use super::super::super::error::{Effect, Error};
use super::super::super::limits::NAMED_PARTITIONS_MAX;
use super::super::super::log::feed::{Feed, Position, Turn};
use super::super::super::log::subscribe::CREDIT_BYTES_MAX;
use super::super::super::status;
use super::super::admin::now_ms;
use super::super::offsets::{Commit, check_metadata};
use super::claim::{Claimed, claim};
use super::errands::{commit_all, release};
use super::holdings::{Action, Holdings, Stage, left_ms};
use super::join::{Joined, heartbeat_interval, join};
use crate::cluster::Refusal;
use crate::cluster::command::{Id, Verb};
use crate::cluster::group::{Group, LeaveGroups, Leaving};
use crate::group::Session;
use crate::proto::server as api;
use crate::proto::server::ErrorReason;
use crate::proto::server::consume_request::Message as Told;
use crate::proto::server::consume_response::Message as Tell;
use crate::proto::server::{ConsumeRequest, ConsumeResponse};

/// Messages that wait for the connection.
pub(in crate::rpc::group) const MESSAGES_MAX: usize = 2;
/// Commits that wait for their answers. More are not taken from the connection.
const COMMITS_MAX: usize = 64;
/// How long a client may take to receive a message.
const SILENT_MAX: Duration = Duration::from_secs(30);
const LAST_WORDS: Duration = Duration::from_secs(5);

type Claiming = Pin<Box<dyn Future<Output = (u64, Result<Claimed, Error>)> + Send>>;
type Committing = Pin<Box<dyn Future<Output = api::ConsumeCommitted> + Send>>;
type Releasing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How a stream goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Go,
    /// The member leaves, once its commits are answered.
    Leave,
    /// The client has gone.
    End,
}

/// What a member wants, one after the other.
enum Wish {
    Commit(api::ConsumeCommit),
    /// Let go of assignments, after the commits before it.
    Release(Vec<u64>),
}

/// A member's stream.
struct Stream {
    context: Context,
    requests: Streaming<ConsumeRequest>,
    answers: mpsc::Sender<Result<ConsumeResponse, Status>>,
    group: Arc<Group>,
    member: Id,
    number: u64,
    instance: String,
    session: Session,
    news: watch::Receiver<Option<Arc<Group>>>,
    resume: Vec<api::ResumePosition>,
    holdings: Holdings,
    feed: Feed,
    claims: FuturesUnordered<Claiming>,
    /// What waits for the commit that is under way: a later offset must not overtake it.
    wishes: VecDeque<Wish>,
    committing: Option<Committing>,
    releasing: FuturesUnordered<Releasing>,
    spoke: Instant,
}

/// Serves a member until one side ends it.
pub(in crate::rpc::group) async fn consume(
    context: Context,
    mut requests: Streaming<ConsumeRequest>,
    origin: Origin,
    answers: mpsc::Sender<Result<ConsumeResponse, Status>>,
) {
    let outcome = match join(&context, &mut requests).await {
        Ok(Some(joined)) => {
            let mut stream = Stream::new(&context, requests, origin, answers.clone(), joined);
            stream.run().await
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    let Err(error) = outcome else { return };
    // Who can go on elsewhere is told so, and then why. Who has gone needs no reason.
    let last = match error.effect() {
        Effect::Final if error.reason() != Some(ErrorReason::Draining) => Err(error.into()),
        _ => {
            let error = Some(status::to_in_stream(&error));
            let message = Some(Tell::GoAway(api::ConsumeGoAway { error }));
            Ok(ConsumeResponse { message })
        }
    };
    let _ = timeout(LAST_WORDS, answers.send(last)).await;
}

impl Stream {
    fn new(
        context: &Context,
        requests: Streaming<ConsumeRequest>,
        origin: Origin,
        answers: mpsc::Sender<Result<ConsumeResponse, Status>>,
        joined: Joined,
    ) -> Self {
        let Joined { join, group, member, number, session, news } = joined;
        Self {
            context: context.clone(),
            requests,
            answers,
            group,
            member,
            number,
            instance: join.instance,
            session,
            news,
            resume: join.positions,
            holdings: Holdings::default(),
            feed: Feed::new(context.clone(), origin, join.credit_bytes.into()),
            claims: FuturesUnordered::new(),
            wishes: VecDeque::new(),
            committing: None,
            releasing: FuturesUnordered::new(),
            spoke: Instant::now(),
        }
    }

    async fn run(&mut self) -> Result<(), Error> {
        let joined = api::ConsumeJoined {
            group_id: self.group.id.uuid().to_string(),
            member_id: self.member.uuid().to_string(),
            session_timeout_ms: self.group.session_timeout_ms,
            heartbeat_interval_ms: heartbeat_interval(&self.group).as_millis() as u32,
        };
        if !self.tell(Tell::Joined(joined)).await || !self.follow().await? {
            return Ok(());
        }
        let mut is_leaving = false;
        loop {
            if is_leaving && self.committing.is_none() && self.wishes.is_empty() {
                self.leave().await;
                return Ok(());
            }
            match self.step(is_leaving).await? {
                Next::Go => {}
                Next::Leave => is_leaving = true,
                Next::End => return Ok(()),
            }
        }
    }

    async fn step(&mut self, is_leaving: bool) -> Result<Next, Error> {
        if !self.start_wishes().await {
            return Ok(Next::End);
        }
        // Most often a heartbeat comes first and is answered: one time to wake up instead of two.
        let speak = self.spoke + heartbeat_interval(&self.group).mul_f64(1.25);
        let revoked = self.holdings.deadline();
        let overdue = async {
            match revoked {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let committing = async {
            match &mut self.committing {
                Some(committing) => committing.await,
                None => std::future::pending().await,
            }
        };
        let may_hear = !is_leaving && self.wishes.len() < COMMITS_MAX;
        let is_on = tokio::select! {
            // What both sides have to say of the group comes before records.
            biased;
            message = self.requests.message(), if may_hear => return self.hear(message).await,
            changed = self.news.changed() => match changed {
                Ok(()) => self.follow().await?,
                Err(_) => return Err(Error::Draining),
            },
            committed = committing => {
                self.committing = None;
                self.tell(Tell::Committed(committed)).await
            }
            Some((number, claimed)) = self.claims.next() => self.assign(number, claimed).await?,
            Some(()) = self.releasing.next() => true,
            () = overdue => {
                let actions = self.holdings.take_overdue(Instant::now());
                self.act(actions).await
            }
            () = self.context.draining() => return Err(Error::Draining),
            () = sleep_until(speak) => self.speak().await,
            (number, turn) = self.feed.next() => self.pass_on(number, turn).await?,
        };
        Ok(if is_on { Next::Go } else { Next::End })
    }

    /// Takes what the client has said.
    async fn hear(
        &mut self,
        message: Result<Option<ConsumeRequest>, Status>,
    ) -> Result<Next, Error> {
        let Some(request) = message? else { return Ok(Next::End) };
        self.session.hear();
        match request.message {
            Some(Told::Credit(credit)) => self.give(credit.bytes)?,
            Some(Told::Commit(commit)) => {
                if commit.offsets.len() > NAMED_PARTITIONS_MAX {
                    let expected = format!("at most {NAMED_PARTITIONS_MAX} offsets");
                    return Err(Error::field("offsets", expected));
                }
                self.wishes.push_back(Wish::Commit(commit));
            }
            Some(Told::Pause(pause)) => self.pause(&pause.assignments, true),
            Some(Told::Resume(resume)) => self.pause(&resume.assignments, false),
            Some(Told::Released(released)) => {
                self.wishes.push_back(Wish::Release(released.assignments));
            }
            Some(Told::Leave(_)) => return Ok(Next::Leave),
            Some(Told::Heartbeat(_)) => {
                // Answered at once, when it is half due: this stream is awake, and would have to
                // wake up again.
                let is_due = self.spoke.elapsed() > heartbeat_interval(&self.group) / 2;
                return Ok(if is_due && !self.speak().await { Next::End } else { Next::Go });
            }
            None => {}
            Some(Told::Join(_)) => return Err(Error::field("join", "said once, at first")),
        }
        Ok(Next::Go)
    }

    fn give(&mut self, bytes: u32) -> Result<(), Error> {
        if self.feed.credit().saturating_add(bytes.into()) > CREDIT_BYTES_MAX.into() {
            let expected = format!("at most {CREDIT_BYTES_MAX} that are not used");
            return Err(Error::field("credit", expected));
        }
        self.feed.give(bytes);
        Ok(())
    }

    fn pause(&mut self, numbers: &[u64], is_paused: bool) {
        numbers.iter().for_each(|number| self.feed.pause(*number, is_paused));
    }

    /// Follows the group. False if the client has gone.
    async fn follow(&mut self) -> Result<bool, Error> {
        let group = self.news.borrow_and_update().clone();
        let unknown = || Refusal::UnknownGroup(self.group.name.clone());
        let group = group.ok_or_else(unknown)?;
        match group.member(self.member) {
            Some(member) if member.session == self.number => {}
            Some(_) => {
                let text = "the member has joined again on another stream".to_owned();
                return Err(Error::Precondition(text));
            }
            None => return Err(self.why_out(&group).into()),
        }
        let state = self.context.node().state();
        let actions = self.holdings.follow(&state, &group, self.member, Instant::now());
        self.group = group;
        Ok(self.act(actions).await)
    }

    fn why_out(&self, group: &Group) -> Refusal {
        let is_taken = group.members.iter().any(|member| member.instance == self.instance);
        match is_taken && !self.instance.is_empty() {
            true => Refusal::FencedInstance(self.instance.clone()),
            false => Refusal::UnknownMember(self.member.uuid().to_string()),
        }
    }

    /// Does what is to be done about assignments. False if the client has gone.
    async fn act(&mut self, actions: Vec<Action>) -> bool {
        let mut revoked = Vec::new();
        let mut released = Vec::new();
        for action in actions {
            match action {
                Action::Claim(number) => self.claim(number),
                Action::Revoke(number) => {
                    self.feed.remove(number);
                    revoked.push(number);
                }
                Action::Lose(number, reason) => {
                    self.feed.remove(number);
                    let (assignments, reason) = (vec![number], reason.into());
                    if !self.tell(Tell::Lost(api::ConsumeLost { assignments, reason })).await {
                        return false;
                    }
                }
                Action::Release(place) => released.push(place),
            }
        }
        if !released.is_empty() {
            let release = release(self.context.clone(), self.group.id, self.member, released);
            self.releasing.push(Box::pin(release));
        }
        revoked.is_empty() || self.revoke(revoked).await
    }

    fn claim(&mut self, number: u64) {
        let held = self.holdings.get(number).expect("it is about to be claimed");
        let (target, generation) = (held.target, held.generation);
        let topic_id = target.topic_id.to_string();
        let is_it =
            |at: &api::ResumePosition| at.topic_id == topic_id && at.partition == target.partition;
        let resume = self.resume.iter().position(is_it).map(|at| self.resume.swap_remove(at));
        let (context, group) = (self.context.clone(), self.group.clone());
        self.claims.push(Box::pin(async move {
            (number, claim(context, group, target, generation, resume).await)
        }));
    }

    async fn revoke(&mut self, assignments: Vec<u64>) -> bool {
        let until = assignments.iter().find_map(|number| match self.holdings.get(*number)?.stage {
            Stage::Revoked(until) => Some(until),
            Stage::Claiming | Stage::Active | Stage::Releasing => None,
        });
        let deadline_ms = until.map_or(0, |until| left_ms(until, Instant::now()));
        self.tell(Tell::Revoke(api::ConsumeRevoke { assignments, deadline_ms })).await
    }

    /// Gives the member what was claimed for it. False if the client has gone.
    async fn assign(
        &mut self,
        number: u64,
        claimed: Result<Claimed, Error>,
    ) -> Result<bool, Error> {
        let claimed = match claimed {
            Ok(claimed) => claimed,
            // The metadata will say how it goes on.
            Err(error) if error.reason() == Some(ErrorReason::IllegalGeneration) => {
                return Ok(true);
            }
            // Its topic was deleted, or it was taken away meanwhile.
            Err(_) if self.holdings.get(number).is_none() => return Ok(true),
            Err(error) => return Err(error),
        };
        if !self.holdings.activate(number) {
            return Ok(true);
        }
        let held = self.holdings.get(number).expect("it was just made active");
        let (topic, target, generation) = (held.topic.clone(), held.target, held.generation);
        let Claimed { next_offset, is_resumed, progress } = claimed;
        let (high_watermark, log_start_offset) =
            (progress.high_watermark, progress.log_start_offset);
        let assignment = api::Assignment {
            assignment: number,
            topic: topic.clone(),
            topic_id: target.topic_id.to_string(),
            partition: target.partition,
            generation,
            next_offset,
            is_resumed,
            metadata: progress.metadata,
            high_watermark,
            log_start_offset,
        };
        let position = Position { next_offset, high_watermark, log_start_offset };
        self.feed.add(number, topic, target, position);
        let assignments = vec![assignment];
        Ok(self.tell(Tell::Assigned(api::ConsumeAssigned { assignments })).await)
    }

    /// Begins the next commit, if none is under way, and lets go of what was to be committed
    /// before. False if the client has gone.
    async fn start_wishes(&mut self) -> bool {
        while self.committing.is_none()
            && let Some(wish) = self.wishes.pop_front()
        {
            match wish {
                Wish::Commit(asked) => self.start_commit(asked),
                Wish::Release(numbers) => {
                    let actions = self.holdings.release(&numbers);
                    if !self.act(actions).await {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn start_commit(&mut self, asked: api::ConsumeCommit) {
        let (context, group, member) = (self.context.clone(), self.group.clone(), self.member);
        let commits = asked.offsets.iter().map(|offset| self.commit_of(offset)).collect();
        self.committing = Some(Box::pin(async move {
            let outcomes = commit_all(&context, &group, member, commits).await;
            let outcomes = asked.offsets.iter().zip(outcomes).map(|(offset, outcome)| {
                use api::assignment_commit_outcome::Outcome;
                let outcome = outcome
                    .map_or_else(|e| Outcome::Error(status::to_in_stream(&e)), Outcome::NextOffset);
                let assignment = offset.assignment;
                api::AssignmentCommitOutcome { assignment, outcome: Some(outcome) }
            });
            api::ConsumeCommitted { request_id: asked.request_id, outcomes: outcomes.collect() }
        }));
    }

    fn commit_of(&self, offset: &api::AssignmentCommit) -> Result<Commit, Error> {
        check_metadata(&offset.metadata)?;
        let held = self.holdings.committable(offset.assignment).ok_or(Error::NotOwner)?;
        Ok(Commit {
            log: held.target.log,
            generation: held.generation,
            next_offset: offset.next_offset,
            leader_epoch: offset.leader_epoch,
            metadata: offset.metadata.clone(),
        })
    }

    /// Passes on what a partition's turn came to. False if the client has gone.
    async fn pass_on(&mut self, assignment: u64, turn: Turn) -> Result<bool, Error> {
        let message = match turn {
            Turn::Data { batches, position, cost_bytes } => Tell::Data(api::ConsumeData {
                assignment,
                batches,
                next_offset: position.next_offset,
                high_watermark: position.high_watermark,
                cost_bytes,
            }),
            Turn::Gap { from_offset, to_offset } => {
                super::super::count_missed(&self.context, to_offset - from_offset);
                Tell::Gap(api::ConsumeGap { assignment, from_offset, to_offset })
            }
            Turn::Failed(error) => return Err(error),
        };
        Ok(self.tell(message).await)
    }

    async fn speak(&mut self) -> bool {
        let positions = self.feed.positions().map(|(assignment, at)| api::AssignmentPosition {
            assignment,
            next_offset: at.next_offset,
            high_watermark: at.high_watermark,
            log_start_offset: at.log_start_offset,
        });
        let positions = positions.collect();
        self.tell(Tell::Positions(api::ConsumePositions { positions })).await
    }

    /// Says something to the client. False if it has gone, or does not read what it asked for.
    async fn tell(&mut self, message: Tell) -> bool {
        let answer = Ok(ConsumeResponse { message: Some(message) });
        let sent = timeout_at(Instant::now() + SILENT_MAX, self.answers.send(answer)).await;
        self.spoke = Instant::now();
        matches!(sent, Ok(Ok(())))
    }

    async fn leave(&mut self) {
        let (group, member, session) = (self.group.id, self.member, self.number);
        let leaving = vec![Leaving { group, member, session }];
        let leave = Verb::LeaveGroups(LeaveGroups { leaving, now_ms: now_ms() });
        if let Err(error) = self.context.propose(leave).await {
            // Its session ends by itself.
            tracing::info!(%error, "a member cannot leave at once");
        }
    }
}

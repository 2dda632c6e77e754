//! At the leaders: what is asked of many partitions, each where it is led, in one call for a node.

use std::collections::BTreeMap;
use std::future::Future;

use futures_util::future::join_all;
use tokio::time::timeout_at;

use super::super::call::{Call, Pauses};
use super::super::context::{Context, Route};
use super::super::counters::Method;
use super::super::error::{Effect, Error};
use crate::partition::Handle;
use crate::types::{LogId, NodeId};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Something that changes the partitions.
    Command,
    /// Something that does not.
    Question,
}

impl Kind {
    /// What forwarding it is counted for.
    fn method(self) -> Method {
        match self {
            Self::Command => Method::CommitOffsets,
            Self::Question => Method::FetchOffsets,
        }
    }
}

/// One question, until it is answered.
struct Open<Q, A> {
    question: Q,
    log: LogId,
    hint: Option<NodeId>,
    answer: Option<Result<A, Error>>,
    kind: Kind,
    /// An attempt at a command ended without an answer.
    may_be_done: bool,
}

impl<Q, A> Open<Q, A> {
    /// True if nothing is known yet, or asking again may help.
    fn is_open(&self) -> bool {
        let is_over = |answer: &Result<A, Error>| {
            answer.as_ref().map_or_else(|error| error.effect() == Effect::Final, |_| true)
        };
        !self.answer.as_ref().is_some_and(is_over)
    }

    fn take(&mut self, answer: Result<A, Error>) {
        let effect = answer.as_ref().err().map(Error::effect);
        self.may_be_done |= self.kind == Kind::Command && effect == Some(Effect::Unknown);
        // That the last attempt did nothing says nothing of those before it.
        let is_open = self.may_be_done && effect == Some(Effect::NotDone);
        let leader = answer.as_ref().err().and_then(Error::leader);
        self.hint = leader.filter(|leader| self.hint != Some(*leader));
        self.answer = Some(if is_open { Err(Error::OutcomeUnknown) } else { answer });
    }
}

/// Asks each question where its partition is led: `here` of a replica on this node, `there` all
/// those of another node at once. What fails is asked again until
/// the call's deadline, so it has to be something that can be done twice.
///
/// Returns an answer for each question, in their order.
pub(super) async fn ask<Q, A, H, T>(
    context: &Context,
    kind: Kind,
    questions: Vec<(LogId, Q)>,
    call: Call,
    here: impl Fn(Handle, Q) -> H,
    there: impl Fn(NodeId, Vec<(LogId, Q)>) -> T,
) -> Vec<Result<A, Error>>
where
    Q: Clone,
    H: Future<Output = Result<A, Error>>,
    T: Future<Output = Result<Vec<Result<A, Error>>, Error>>,
{
    let open = |(log, question)| Open {
        question,
        log,
        hint: None,
        answer: None,
        kind,
        may_be_done: false,
    };
    let mut all: Vec<Open<Q, A>> = questions.into_iter().map(open).collect();
    let mut pauses = Pauses::new();
    loop {
        attempt(context, kind, &mut all, call, &here, &there).await;
        let is_over = !call.may_forward || !all.iter().any(Open::is_open);
        if is_over || !pauses.pause(call.deadline).await {
            break;
        }
    }
    all.into_iter().map(|open| open.answer.unwrap_or(Err(Error::NoLeader))).collect()
}

async fn attempt<Q, A, H, T>(
    context: &Context,
    kind: Kind,
    all: &mut [Open<Q, A>],
    call: Call,
    here: &impl Fn(Handle, Q) -> H,
    there: &impl Fn(NodeId, Vec<(LogId, Q)>) -> T,
) where
    Q: Clone,
    H: Future<Output = Result<A, Error>>,
    T: Future<Output = Result<Vec<Result<A, Error>>, Error>>,
{
    let mut local = Vec::new();
    let mut remote: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    for (n, open) in all.iter_mut().enumerate().filter(|(_, open)| open.is_open()) {
        match context.route(open.log, open.hint) {
            Route::Here(handle) => local.push((n, here(handle, open.question.clone()))),
            Route::There(node) if call.may_forward => remote.entry(node).or_default().push(n),
            Route::There(_) | Route::Unknown => open.take(Err(context.not_leader(open.log))),
        }
    }
    let local = local.into_iter().map(|(n, asked)| async move {
        (n, timeout_at(call.deadline, asked).await.unwrap_or(Err(Error::OutcomeUnknown)))
    });
    let remote = remote.into_iter().map(|(node, places)| {
        context.counters().forward(kind.method());
        let questions = places.iter().map(|n| (all[*n].log, all[*n].question.clone()));
        let asked = there(node, questions.collect());
        async move {
            let answers = timeout_at(call.deadline, asked).await;
            (places, answers.unwrap_or(Err(Error::OutcomeUnknown)))
        }
    });
    let (local, remote) = tokio::join!(join_all(local), join_all(remote));
    for (n, answer) in local {
        let log = all[n].log;
        all[n].take(answer.map_err(|error| name_leader(context, log, error)));
    }
    for (places, answers) in remote {
        spread(all, places, answers);
    }
}

/// Gives each question its answer; all of them the same if the call failed.
fn spread<Q, A>(
    all: &mut [Open<Q, A>],
    places: Vec<usize>,
    answers: Result<Vec<Result<A, Error>>, Error>,
) {
    match answers {
        Ok(answers) if answers.len() == places.len() => {
            places.into_iter().zip(answers).for_each(|(n, answer)| all[n].take(answer));
        }
        Ok(_) => {
            let wrong = || Error::Unexpected("a node answered another number of questions");
            places.into_iter().for_each(|n| all[n].take(Err(wrong())));
        }
        Err(error) => {
            let status = tonic::Status::from(error);
            places.into_iter().for_each(|n| all[n].take(Err(status.clone().into())));
        }
    }
}

/// Says who leads where a replica only says that it does not.
fn name_leader(context: &Context, log: LogId, error: Error) -> Error {
    use crate::partition::AskError;
    match error {
        Error::Ask(AskError::NotLeader { .. }) => context.not_leader(log),
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a question that failed for these reasons, one after the other.
    fn told(kind: Kind, errors: impl IntoIterator<Item = Error>) -> Option<Error> {
        let (log, hint, answer) = (LogId(uuid::Uuid::nil()), None, None);
        let mut open = Open { question: (), log, hint, answer, kind, may_be_done: false };
        errors.into_iter().for_each(|error| open.take(Err(error)));
        open.answer.and_then(|answer: Result<(), Error>| answer.err())
    }

    #[test]
    fn a_command_that_may_have_been_followed_is_not_said_to_be_refused() {
        let unknown = || [Error::OutcomeUnknown, Error::NoLeader];
        assert!(matches!(told(Kind::Command, unknown()), Some(Error::OutcomeUnknown)));
        assert!(matches!(told(Kind::Question, unknown()), Some(Error::NoLeader)));
        assert!(matches!(told(Kind::Command, [Error::NoLeader]), Some(Error::NoLeader)));
    }
}

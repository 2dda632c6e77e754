//! One request of a produce stream, from its arrival to its answer.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context as Waker, Poll, ready};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot::error::TryRecvError;

use super::super::call::Call;
use super::super::context::Context;
use super::super::error::{Effect, Error};
use super::check::Checked;
use super::link::Outcomes;
use super::produce::{store, stored};
use crate::partition::{Appended, Submitted};
use crate::proto::server::{ErrorReason, ProduceResponse};
use crate::types::NodeId;

/// What becomes of a request.
pub(super) type Produced = Result<ProduceResponse, Error>;

/// A request, how it is told apart, and what it takes.
#[derive(Clone, Copy)]
pub(super) struct Ticket {
    pub(super) request_id: u64,
    /// Of its batch.
    pub(super) bytes: usize,
    pub(super) call: Call,
}

/// A request that waits for its answer.
pub(super) struct Item {
    pub(super) ticket: Ticket,
    pub(super) way: Way,
    /// What is needed to send it; nothing if it failed before.
    pub(super) checked: Option<Box<Checked>>,
    /// Its outcome, if that is known and was not taken yet.
    known: Option<Produced>,
    /// One before it was sent again after this was: it may have been refused for that.
    pub(super) is_overtaking: bool,
    /// An earlier attempt at it ended without an answer.
    pub(super) may_be_stored: bool,
    /// An earlier attempt has stored it.
    pub(super) is_duplicate: bool,
    /// Who leads, if it went the slow way and found that out there.
    pub(super) leader: Option<NodeId>,
}

/// How a request is on its way.
pub(super) enum Way {
    /// It waits for those before it.
    Waiting,
    /// To the partition's replica here.
    Here(Submitted),
    /// To another node.
    There(Outcomes),
    /// As a request of its own.
    Slow(BoxFuture<'static, (Produced, Option<NodeId>)>),
    /// Nowhere: it has failed.
    Nowhere,
}

impl Item {
    /// A request that waits to be sent.
    pub(super) fn new(ticket: Ticket, checked: Option<Checked>) -> Self {
        Self {
            ticket,
            way: Way::Waiting,
            checked: checked.map(Box::new),
            known: None,
            is_overtaking: false,
            may_be_stored: false,
            is_duplicate: false,
            leader: None,
        }
    }

    /// A request that has failed before it was sent.
    pub(super) fn failed(ticket: Ticket, error: Error) -> Self {
        Self { way: Way::Nowhere, known: Some(Err(error)), ..Self::new(ticket, None) }
    }

    /// Gives it up: what it comes to, nobody waits for.
    pub(super) fn give_up(&mut self) {
        self.way = Way::Nowhere;
        self.known = Some(Err(Error::OutcomeUnknown));
    }

    /// Sends it as a request of its own, which looks for the leader until the deadline, and first
    /// where `leader` says.
    pub(super) fn go_slowly(&mut self, context: &Context, leader: Option<NodeId>) {
        let (call, may_be_stored) = (self.ticket.call, self.may_be_stored);
        let (context, checked) = (context.clone(), self.checked.clone());
        self.way = Way::Slow(Box::pin(async move {
            let mut hint = leader;
            let produced = match checked {
                Some(checked) => store(&context, &checked, call, may_be_stored, &mut hint).await,
                None => Err(Error::Unexpected("what was not checked is sent")),
            };
            (produced, hint)
        }));
    }

    /// True if its outcome is known.
    pub(super) fn is_settled(&mut self) -> bool {
        self.known = self.take_outcome();
        self.known.is_some()
    }

    /// What it failed with, if that is known and another attempt may mend it.
    pub(super) fn failure(&mut self) -> Option<&Error> {
        self.known = self.take_outcome();
        match &self.known {
            Some(Err(error)) if self.is_worth_another(error) => Some(error),
            _ => None,
        }
    }

    /// True if the request, which failed with `error`, may be stored when it is sent again.
    pub(super) fn is_worth_another(&self, error: &Error) -> bool {
        let (Some(checked), false) = (&self.checked, matches!(self.way, Way::Slow(_))) else {
            return false;
        };
        let call = self.ticket.call;
        let has_hope = match error.effect() {
            Effect::NotDone => call.may_forward,
            Effect::Unknown => checked.is_stamped(),
            Effect::Final => self.is_overtaken(error),
        };
        has_hope && !call.time_left().is_zero()
    }

    /// True if it was refused for another one that comes before it and was sent after it.
    fn is_overtaken(&self, error: &Error) -> bool {
        self.is_overtaking && error.reason() == Some(ErrorReason::OutOfOrderSequence)
    }

    /// What is told of `error`, with which the last attempt failed.
    pub(super) fn told(&self, error: Error) -> Error {
        match error {
            // No refusal says anything of an earlier attempt.
            _ if self.may_be_stored => Error::OutcomeUnknown,
            error if error.effect() == Effect::Unknown => Error::OutcomeUnknown,
            // It waited too long for others.
            error if self.is_overtaken(&error) => Error::Overloaded,
            error => error,
        }
    }

    /// Has it wait to be sent once more, in order, after an attempt that failed with `error`.
    pub(super) fn wait_again(&mut self, error: &Error) {
        self.may_be_stored |= error.effect() == Effect::Unknown;
        self.is_overtaking = false;
        self.way = Way::Waiting;
    }

    /// The same, if it failed in a way that another attempt may mend.
    pub(super) fn wait_again_if_failed(&mut self) {
        if self.failure().is_some()
            && let Some(Err(error)) = self.known.take()
        {
            self.wait_again(&error);
        }
    }

    /// The outcome, if it is known already. It is given once.
    pub(super) fn take_outcome(&mut self) -> Option<Produced> {
        if let Some(known) = self.known.take() {
            return Some(known);
        }
        match &mut self.way {
            Way::Here(submitted) => {
                let outcome = submitted.try_outcome()?;
                Some(outcome.map_err(Error::from).and_then(|appended| self.stored(appended)))
            }
            Way::There(outcome) => match outcome.try_recv() {
                Ok(produced) => Some(produced),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Closed) => Some(Err(Error::NoLeader)),
            },
            Way::Waiting | Way::Slow(_) | Way::Nowhere => None,
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Waker<'_>) -> Poll<Produced> {
        if let Some(known) = self.known.take() {
            return Poll::Ready(known);
        }
        match &mut self.way {
            Way::Here(submitted) => {
                let outcome = ready!(Pin::new(submitted).poll(cx));
                Poll::Ready(outcome.map_err(Error::from).and_then(|at| self.stored(at)))
            }
            Way::There(outcome) => {
                // What is dropped without an answer was never sent.
                let outcome = ready!(Pin::new(outcome).poll(cx));
                Poll::Ready(outcome.unwrap_or(Err(Error::NoLeader)))
            }
            Way::Slow(outcome) => {
                let (produced, leader) = ready!(outcome.as_mut().poll(cx));
                self.leader = leader;
                Poll::Ready(produced)
            }
            Way::Nowhere => Poll::Ready(Err(Error::OutcomeUnknown)),
            Way::Waiting => Poll::Ready(Err(Error::Unexpected("a request leads without a way"))),
        }
    }

    fn stored(&mut self, appended: Appended) -> Produced {
        self.is_duplicate = appended.is_duplicate;
        let checked = self.checked.as_ref();
        checked.map(|checked| stored(checked, appended)).ok_or(Error::OutcomeUnknown)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::super::super::call::Origin;
    use super::*;
    use crate::partition::{AskError, Refusal};

    fn item() -> Item {
        let call = Call::within_stream(Origin::OWN);
        Item::new(Ticket { request_id: 1, bytes: 1, call }, None)
    }

    fn out_of_order() -> Error {
        let refusal = Refusal::OutOfOrderSequence { expected: 1, found: 2 };
        Error::Ask(AskError::Refused(refusal))
    }

    #[test]
    fn a_stream_that_broke_leaves_open_whether_it_is_stored() {
        for broken in [Status::internal("h2"), Status::unavailable("reset")] {
            let told = item().told(broken.into());
            assert_eq!(told.reason(), Some(ErrorReason::OutcomeUnknown));
        }
    }

    #[test]
    fn a_refusal_says_nothing_of_an_earlier_attempt() {
        let mut item = item();
        assert_eq!(item.told(Error::Draining).reason(), Some(ErrorReason::Draining));
        item.wait_again(&Error::OutcomeUnknown);
        assert_eq!(item.told(Error::Draining).reason(), Some(ErrorReason::OutcomeUnknown));
    }

    #[test]
    fn what_was_overtaken_is_not_told_to_be_out_of_order() {
        let mut item = item();
        let reason = |item: &Item| item.told(out_of_order()).reason();
        assert_eq!(reason(&item), Some(ErrorReason::OutOfOrderSequence));
        item.is_overtaking = true;
        assert_eq!(reason(&item), Some(ErrorReason::Overloaded));
        item.wait_again(&out_of_order());
        assert_eq!(reason(&item), Some(ErrorReason::OutOfOrderSequence), "it is in order again");
    }
}

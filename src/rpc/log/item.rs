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
    /// Its outcome, if that is known before its turn.
    known: Option<Produced>,
    /// One before it was sent again after this was: it may have been refused for that.
    pub(super) is_overtaking: bool,
    /// An earlier attempt at it ended without an answer.
    pub(super) may_be_stored: bool,
    /// An earlier attempt has stored it.
    pub(super) is_duplicate: bool,
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
    Slow(BoxFuture<'static, Produced>),
    /// Nowhere: it has failed.
    Nowhere,
}

impl Item {
    /// A request that waits to be sent.
    pub(super) fn new(ticket: Ticket, checked: Checked) -> Self {
        Self {
            ticket,
            way: Way::Waiting,
            checked: Some(Box::new(checked)),
            known: None,
            is_overtaking: false,
            may_be_stored: false,
            is_duplicate: false,
        }
    }

    /// A request that has failed before it was sent.
    pub(super) fn failed(ticket: Ticket, error: Error) -> Self {
        Self {
            ticket,
            way: Way::Nowhere,
            checked: None,
            known: Some(Err(error)),
            is_overtaking: false,
            may_be_stored: false,
            is_duplicate: false,
        }
    }

    /// Gives it up: what it comes to, nobody waits for.
    pub(super) fn give_up(&mut self) {
        self.way = Way::Nowhere;
        self.known = Some(Err(Error::OutcomeUnknown));
    }

    /// Sends it as a request of its own, which looks for the leader until the deadline.
    pub(super) fn go_slowly(&mut self, context: &Context) {
        let (call, may_be_stored) = (self.ticket.call, self.may_be_stored);
        let (context, checked) = (context.clone(), self.checked.clone());
        self.way = Way::Slow(Box::pin(async move {
            let checked = checked.ok_or(Error::Unexpected("what was not checked is sent"))?;
            store(&context, &checked, call, may_be_stored).await
        }));
    }

    /// True if its outcome is known, and another attempt may mend it.
    pub(super) fn has_failed(&mut self) -> bool {
        self.known = self.take_outcome();
        matches!(&self.known, Some(Err(error)) if self.is_worth_another(error))
    }

    /// True if the request, which failed with `error`, may be stored when it is sent again.
    pub(super) fn is_worth_another(&self, error: &Error) -> bool {
        let (Some(checked), false) = (&self.checked, matches!(self.way, Way::Slow(_))) else {
            return false;
        };
        let call = self.ticket.call;
        let has_time = !call.time_left().is_zero();
        match error.effect() {
            Effect::NotDone => call.may_forward && has_time,
            Effect::Unknown => checked.is_stamped() && has_time,
            // However late, it is not told that it was out of order.
            Effect::Final => {
                self.is_overtaking && error.reason() == Some(ErrorReason::OutOfOrderSequence)
            }
        }
    }

    /// Has it wait to be sent once more, in order, after an attempt that failed with `error`.
    pub(super) fn wait_again(&mut self, error: &Error) {
        self.may_be_stored |= error.effect() == Effect::Unknown;
        self.is_overtaking = false;
        self.way = Way::Waiting;
    }

    /// The outcome, if it is known already. It is told once.
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
            Way::Slow(outcome) => outcome.as_mut().poll(cx),
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

//! Links: the requests of one produce stream that another node answers, over one stream to it.
//!
//! Requests leave in the order in which they were given to the link, and that node answers those
//! of one partition in order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::super::call::mark_forwarded;
use super::super::error::Error;
use super::super::limits::MESSAGE_BYTES_MAX;
use super::super::status;
use crate::proto::path::PRODUCE_STREAM;
use crate::proto::server::produce_stream_response::Outcome;
use crate::proto::server::{
    ProduceRequest, ProduceResponse, ProduceStreamRequest, ProduceStreamResponse,
};
use crate::proto::stream;
use crate::types::TraceContext;

/// Requests that wait to be sent to one node.
const QUEUE_MAX: usize = 256;

/// What became of a request. Dropped if the request was never sent.
pub(super) type Outcomes = oneshot::Receiver<Result<ProduceResponse, Error>>;
type Answer = oneshot::Sender<Result<ProduceResponse, Error>>;
/// Who waits, by the number of the request; `None` once the link has ended.
type Waiting = Arc<Mutex<Option<HashMap<u64, Answer>>>>;

/// A stream of requests to another node. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Link {
    requests: mpsc::Sender<(ProduceRequest, Answer)>,
}

impl Link {
    /// Opens a stream of requests over `channel`.
    pub(super) fn open(channel: Channel, trace: Option<TraceContext>) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run(channel, queue, trace));
        Self { requests }
    }

    /// False if the stream has ended, so that another one is needed.
    pub(super) fn is_open(&self) -> bool {
        !self.requests.is_closed()
    }

    /// Sends a request, unless the link is full or has ended.
    pub(super) fn send(&self, request: ProduceRequest) -> Option<Outcomes> {
        let (answer, outcome) = oneshot::channel();
        self.requests.try_send((request, answer)).ok()?;
        Some(outcome)
    }
}

async fn run(
    channel: Channel,
    queue: mpsc::Receiver<(ProduceRequest, Answer)>,
    trace: Option<TraceContext>,
) {
    let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
    let end = exchange(channel, queue, &waiting, trace).await;
    let left = waiting.lock().expect("nobody panics with the lock").take();
    for answer in left.into_iter().flat_map(HashMap::into_values) {
        // Whoever does not wait any more needs no answer.
        let _ = answer.send(Err(Error::from(end.clone())));
    }
}

/// Runs the stream to its end, and returns what it ended with.
async fn exchange(
    mut channel: Channel,
    queue: mpsc::Receiver<(ProduceRequest, Answer)>,
    waiting: &Waiting,
    trace: Option<TraceContext>,
) -> Status {
    let noting = waiting.clone();
    let mut request_id = 0;
    let requests = ReceiverStream::new(queue).map_while(move |(produce, answer)| {
        request_id += 1;
        let mut waiting = noting.lock().expect("nobody panics with the lock");
        waiting.as_mut()?.insert(request_id, answer);
        Some(Ok(ProduceStreamRequest { request_id, produce: Some(produce) }))
    });
    let mut request = Request::new(requests);
    mark_forwarded(&mut request, trace);
    let answers = stream::ask(&mut channel, PRODUCE_STREAM, request, MESSAGE_BYTES_MAX).await;
    let mut answers = match answers {
        Ok(answers) => answers,
        Err(status) => return status,
    };
    loop {
        match answers.message().await {
            Ok(Some(answer)) => settle(waiting, answer),
            Ok(None) => return Status::unavailable("the stream to the leader has ended"),
            Err(status) => return status,
        }
    }
}

fn settle(waiting: &Waiting, answer: ProduceStreamResponse) {
    let mut waiting = waiting.lock().expect("nobody panics with the lock");
    let waiter = waiting.as_mut().and_then(|waiting| waiting.remove(&answer.request_id));
    let outcome = match answer.outcome {
        Some(Outcome::Produced(produced)) => Ok(produced),
        Some(Outcome::Error(told)) => Err(status::of_in_stream(told)),
        None => Err(Error::OutcomeUnknown),
    };
    if let Some(waiter) = waiter {
        // Whoever does not wait any more needs no answer.
        let _ = waiter.send(outcome);
    }
}

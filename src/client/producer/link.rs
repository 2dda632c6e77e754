//! Links: one stream to each node, which the lanes of its partitions share.
//!
//! A server bounds the streams of a connection, a topic may have more partitions than that. The
//! requests of a partition leave in the order in which its lane gives them. Answers find their lane
//! by the number of the request: its upper half is the partition.
//!
//! A link lives as long as a lane holds on to it. When its stream ends, all that do are told why.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::client::Failure;
use crate::client::connection::Route;
use crate::client::wire::{self, StreamedProduce};
use crate::proto::client::ProduceStreamResponse;
use crate::proto::client::produce_stream_response::Outcome;

/// Requests that wait to be written to one stream. Their bytes are bounded by the producer's room.
const QUEUE_MAX: usize = 256;

/// The links of a producer.
#[derive(Debug, Default)]
pub(super) struct Links {
    open: Mutex<ByNode>,
}

/// By address, and whether the node is asked not to forward.
type ByNode = HashMap<(Arc<str>, bool), Weak<Link>>;

#[derive(Debug)]
struct Link {
    requests: mpsc::Sender<StreamedProduce>,
    listeners: Arc<Listeners>,
    reader: AbortHandle,
    /// A lane has heard nothing on it for too long.
    is_suspect: AtomicBool,
}

/// Who waits for answers.
#[derive(Debug, Default)]
struct Listeners {
    /// By partition.
    waiting: Mutex<HashMap<u32, Listener>>,
    /// Why the stream ended.
    end: OnceLock<Failure>,
}

#[derive(Debug)]
struct Listener {
    /// Its first request: answers to earlier ones are for nobody any more.
    since: u32,
    answers: mpsc::Sender<Answer>,
}

/// What became of a request.
#[derive(Debug)]
pub(super) struct Answer {
    /// The number that the lane gave to the request.
    pub(super) request_id: u32,
    pub(super) outcome: Option<Outcome>,
}

/// A lane's hold on a link.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) requests: mpsc::Sender<StreamedProduce>,
    pub(super) answers: Answers,
}

/// The answers to one lane.
#[derive(Debug)]
pub(super) struct Answers {
    partition: u32,
    queue: mpsc::Receiver<Answer>,
    link: Arc<Link>,
}

impl Links {
    /// Attaches a lane to the link of a route, which is opened if there is none. At most
    /// `in_flight` requests, from the number `since` on, wait for an answer at a time.
    pub(super) fn attach(
        &self,
        route: &Route,
        partition: u32,
        since: u32,
        in_flight: usize,
    ) -> Attachment {
        let mut open = self.open();
        let key = (route.address.clone(), route.is_direct);
        let known = open.get(&key).and_then(Weak::upgrade);
        let link = known.filter(|link| link.is_sound()).unwrap_or_else(|| {
            open.retain(|_, link| link.strong_count() > 0);
            let link = Arc::new(Link::open(route.clone()));
            open.insert(key, Arc::downgrade(&link));
            link
        });
        drop(open);
        let (answers, queue) = mpsc::channel(in_flight);
        link.listeners.waiting().insert(partition, Listener { since, answers });
        if link.has_ended() {
            link.listeners.waiting().clear();
        }
        let requests = link.requests.clone();
        Attachment { requests, answers: Answers { partition, queue, link } }
    }

    fn open(&self) -> MutexGuard<'_, ByNode> {
        self.open.lock().expect("no one panics with the links")
    }
}

impl Link {
    fn open(route: Route) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let listeners = Arc::new(Listeners::default());
        let reader = tokio::spawn(read(route, queue, listeners.clone())).abort_handle();
        Self { requests, listeners, reader, is_suspect: AtomicBool::new(false) }
    }

    /// Whether lanes may still attach to it.
    fn is_sound(&self) -> bool {
        !self.has_ended() && !self.is_suspect.load(Ordering::Relaxed)
    }

    fn has_ended(&self) -> bool {
        self.listeners.end.get().is_some()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Listeners {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u32, Listener>> {
        self.waiting.lock().expect("no one panics with the listeners")
    }

    fn hand_on(&self, answer: ProduceStreamResponse) {
        let ProduceStreamResponse { request_id, outcome } = answer;
        let (partition, request_id) = ((request_id >> 32) as u32, request_id as u32);
        let mut waiting = self.waiting();
        let Some(listener) = waiting.get(&partition) else { return };
        if request_id.wrapping_sub(listener.since) >= 1 << 31 {
            return;
        }
        // More answers than requests: the lane hears no more, and takes it for an end.
        if listener.answers.try_send(Answer { request_id, outcome }).is_err() {
            waiting.remove(&partition);
        }
    }

    fn end(&self, failure: Failure) {
        let _ = self.end.set(failure);
        self.waiting().clear();
    }
}

impl Answers {
    /// Waits for the next answer.
    ///
    /// # Errors
    /// Why the stream has ended.
    ///
    /// # Cancel safety
    /// Cancelled, no answer is lost.
    pub(super) async fn next(&mut self) -> Result<Answer, Failure> {
        let answer = self.queue.recv().await;
        answer.ok_or_else(|| {
            let end = self.link.listeners.end.get().cloned();
            end.unwrap_or_else(|| Failure::cut("the server answered what was not asked"))
        })
    }

    /// Lets no lane attach to this link any more. Those that have may go on with it.
    pub(super) fn suspect_link(&self) {
        self.link.is_suspect.store(true, Ordering::Relaxed);
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.link.listeners.waiting().remove(&self.partition);
    }
}

/// The number under which a request goes over a link.
pub(super) fn number(partition: u32, request_id: u32) -> u64 {
    u64::from(partition) << 32 | u64::from(request_id)
}

/// Reads answers until the stream ends.
async fn read(route: Route, queue: mpsc::Receiver<StreamedProduce>, listeners: Arc<Listeners>) {
    let mut answers = match wire::produce_stream(&route, queue).await {
        Ok(answers) => answers,
        Err(status) => return listeners.end(status.into()),
    };
    let end = loop {
        match answers.message().await {
            Ok(Some(answer)) => listeners.hand_on(answer),
            Ok(None) => break Failure::cut("the server ended the stream"),
            Err(status) => break status.into(),
        }
    };
    listeners.end(end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ClientConfig;
    use crate::client::connection::Nodes;

    fn listen(listeners: &Listeners, partition: u32, since: u32) -> mpsc::Receiver<Answer> {
        let (answers, queue) = mpsc::channel(2);
        listeners.waiting().insert(partition, Listener { since, answers });
        queue
    }

    fn answer(listeners: &Listeners, partition: u32, request_id: u32) {
        let request_id = number(partition, request_id);
        listeners.hand_on(ProduceStreamResponse { request_id, outcome: None });
    }

    fn heard(queue: &mut mpsc::Receiver<Answer>) -> Vec<u32> {
        std::iter::from_fn(|| Some(queue.try_recv().ok()?.request_id)).collect()
    }

    #[test]
    fn answers_find_the_lane_that_asked() {
        let listeners = Listeners::default();
        let (mut one, mut two) = (listen(&listeners, 1, 0), listen(&listeners, 2, 0));
        answer(&listeners, 2, 0);
        answer(&listeners, 1, 7);
        answer(&listeners, 3, 0);
        assert_eq!((heard(&mut one), heard(&mut two)), (vec![7], vec![0]));
    }

    #[test]
    fn answers_to_what_was_asked_before_are_for_nobody() {
        let listeners = Listeners::default();
        let mut queue = listen(&listeners, 1, u32::MAX);
        for request_id in [5, u32::MAX - 1, u32::MAX, 0] {
            answer(&listeners, 1, request_id);
        }
        assert_eq!(heard(&mut queue), [5, u32::MAX], "and the queue had room for two");
        assert!(queue.is_closed(), "more answers than requests end it");
    }

    #[test]
    fn an_end_is_an_end_for_all() {
        let listeners = Listeners::default();
        let queues = [listen(&listeners, 1, 0), listen(&listeners, 2, 0)];
        listeners.end(Failure::cut("it broke"));
        assert!(queues.iter().all(mpsc::Receiver::is_closed));
        assert_eq!(listeners.end.get().unwrap().message, "it broke");
    }

    #[tokio::test]
    async fn only_the_link_that_is_suspected_is_left_alone() {
        let nodes = Nodes::new(&ClientConfig::new(["127.0.0.1:1"])).unwrap();
        let (route, links) = (nodes.any(), Links::default());
        let attach = |partition| links.attach(&route, partition, 0, 1).answers;
        let is_shared = |a: &Answers, b: &Answers| Arc::ptr_eq(&a.link, &b.link);
        let (one, two) = (attach(1), attach(2));
        assert!(is_shared(&one, &two));
        one.suspect_link();
        let three = attach(3);
        assert!(!is_shared(&one, &three));
        two.suspect_link();
        assert!(is_shared(&three, &attach(4)), "it is another one that is suspected");
    }
}

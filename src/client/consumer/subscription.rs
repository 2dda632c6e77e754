//! One subscription's stream: what is said on it, and that something is.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Streaming;

use crate::client::Failure;
use crate::client::connection::Route;
use crate::client::credit::Credit;
use crate::client::wire::{self, Subscribed, Told};
use crate::proto::client::subscribe_request::Message;
use crate::proto::client::{SubscribeCredit, SubscribeHeartbeat, SubscribeRequest, SubscribeStart};

/// Servers want to hear something every 10 s.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(4);
/// Servers say something every 5 s: one that is silent for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Requests that wait to be sent. They are small, and the next credit includes one that finds no
/// place.
const REQUESTS_MAX: usize = 16;

/// An open subscription.
#[derive(Debug)]
pub(super) struct Subscription {
    requests: mpsc::Sender<SubscribeRequest>,
    answers: Streaming<Subscribed>,
    heartbeats: JoinHandle<()>,
    credit: Credit,
}

impl Subscription {
    pub(super) async fn open(route: &Route, start: SubscribeStart) -> Result<Self, Failure> {
        let credit = Credit::new(start.credit_bytes);
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let _ = requests.try_send(request(Message::Start(start)));
        let opened = tokio::time::timeout(SILENCE_MAX, wire::subscribe(route, receiver)).await;
        let answers = opened.map_err(|_| Failure::silent(SILENCE_MAX))??;
        let heartbeats = tokio::spawn(send_heartbeats(requests.clone()));
        Ok(Self { requests, answers, heartbeats, credit })
    }

    /// Waits for what the server says next. Cancel safe.
    pub(super) async fn told(&mut self) -> Result<Told, Failure> {
        let message = tokio::time::timeout(SILENCE_MAX, self.answers.message()).await;
        match message.map_err(|_| Failure::silent(SILENCE_MAX))?? {
            Some(Subscribed { message: Some(told) }) => Ok(told),
            Some(Subscribed { message: None }) => {
                Err(Failure::cut("the server sent a message that this client does not know"))
            }
            None => Err(Failure::cut("the server ended the subscription")),
        }
    }

    /// Notes that data was consumed, and lets the server send as much again.
    pub(super) fn give_back(&mut self, bytes: u32) {
        self.credit.owe(bytes);
        let Some(bytes) = self.credit.due() else {
            return;
        };
        let credit = Message::Credit(SubscribeCredit { bytes });
        if self.requests.try_send(request(credit)).is_ok() {
            self.credit.on_given(bytes);
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.heartbeats.abort();
    }
}

/// The application may take its time between two records: the server hears of the client anyway.
async fn send_heartbeats(requests: mpsc::Sender<SubscribeRequest>) {
    let mut interval = tokio::time::interval(HEARTBEAT_INTERVAL);
    interval.tick().await;
    loop {
        interval.tick().await;
        let heartbeat = request(Message::Heartbeat(SubscribeHeartbeat {}));
        if requests.send(heartbeat).await.is_err() {
            return;
        }
    }
}

fn request(message: Message) -> SubscribeRequest {
    SubscribeRequest { message: Some(message) }
}

//! The Rust client: a user of the public API and of nothing else of this crate.
//!
//! A [`Client`] is a cheap handle on the connections to a cluster. It administers what is in it,
//! makes a [`Producer`] that batches, pipelines and stores each record once, a [`Consumer`] that
//! goes on exactly where it was when a connection breaks, and a [`GroupConsumer`] that shares the
//! work with others and has its progress kept. A [`Transform`] goes from one topic into another,
//! each record once.
//!
//! * Any node answers any call. Producers go to the leaders of their partitions directly where they
//!   can, and through any other node where they cannot.
//! * What is tried again is bounded three times: by a deadline for each call or record, by growing
//!   random pauses, and by a budget for the client as a whole.
//! * "It may have been done or not" is an outcome of its own, [`Error::OutcomeUnknown`], and never
//!   hidden behind a retry that could do a thing twice.
//! * Nothing queues without a bound: a producer waits for room, a consumer gives credit.
//!
//! Read next: `connection.rs` for where a call goes, `call.rs` for how often, `producer/`,
//! `consumer/` and `group/`.

mod admin;
mod call;
mod connection;
mod consumer;
mod credit;
mod decode;
mod error;
mod group;
mod producer;
mod reasons;
mod record;
mod retry;
mod transform;
mod wire;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use admin::GroupStart;
pub use consumer::{Consumer, ConsumerConfig, Event, Start};
pub use error::{Error, Failure, Origin};
pub use group::{
    Assigned, Commit, Committing, GroupConsumer, GroupConsumerConfig, GroupEvent, Lost, Rebalance,
    Revoked, Revoking, TopicPartition,
};
pub use producer::{BATCHES_IN_FLIGHT_MAX, Delivery, Producer, ProducerConfig, Receipt};
pub use reasons::{Explanation, explain, reasons};
pub use record::{Gap, Header, Record};
pub use transform::{Output, SOURCE_HEADER, Transform, TransformConfig};

use connection::Nodes;
use retry::Budget;

pub use crate::proto::client::{Acks, ErrorReason, LostReason};

/// How to reach a cluster.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Addresses of some of its nodes, `HOST:PORT`. One is enough, several outlive a node.
    pub servers: Vec<String>,
    /// How long a call may take with all its retries. Default: 30 s.
    pub timeout: Duration,
    /// How long to wait for a connection. Default: 3 s.
    pub connect_timeout: Duration,
    /// How long a node may be silent that owes an answer, before others are asked: it is pinged
    /// meanwhile. Longer where what is sent may be on its way for longer. Default: 3 s.
    pub silence_max: Duration,
}

impl ClientConfig {
    /// The default configuration for a cluster.
    pub fn new(servers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            servers: servers.into_iter().map(Into::into).collect(),
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(3),
            silence_max: Duration::from_secs(3),
        }
    }
}

/// A handle on a cluster. Clones share connections, what is known of leaders, and the retry budget.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: ClientConfig,
    nodes: Nodes,
    budget: Mutex<Budget>,
}

impl Client {
    /// Makes a client. Connections are made when they are needed.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if there is no address or one is not `HOST:PORT`.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn new(config: ClientConfig) -> Result<Self, Error> {
        let nodes = Nodes::new(&config)?;
        let budget = Mutex::new(Budget::new(Instant::now()));
        Ok(Self { shared: Arc::new(Shared { config, nodes, budget }) })
    }

    fn nodes(&self) -> &Nodes {
        &self.shared.nodes
    }

    fn config(&self) -> &ClientConfig {
        &self.shared.config
    }

    /// Takes the right to one retry from the budget, if there is one.
    fn try_retry(&self) -> bool {
        let mut budget = self.shared.budget.lock().expect("no one panics with the budget");
        budget.try_withdraw(Instant::now())
    }

    fn note_success(&self) {
        self.shared.budget.lock().expect("no one panics with the budget").deposit();
    }
}

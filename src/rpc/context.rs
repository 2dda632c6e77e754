//! The context: what all services of a node share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tonic::transport::Channel;
use uuid::Uuid;

use super::channels::Channels;
use super::convert;
use super::counters::Counters;
use super::error::Error;
use super::limits::Limits;
use super::peer::{ProposeError, Proposer};
use crate::cluster::command::{AllocateProducerIds, Id, Topic, TopicConfig, Verb};
use crate::cluster::{Given, Node, State};
use crate::group::Sessions;
use crate::partition::Handle;
use crate::types::{LogId, NodeId};

/// Producer ids that a node takes at once.
const PRODUCER_IDS: u64 = 1_000;
/// How long a look-up waits for the newest metadata.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a command waits for somebody who leads the metadata.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What all services of a node share; a cheap clone.
#[derive(Debug, Clone)]
pub struct Context(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: Arc<Node>,
    channels: Arc<Channels>,
    proposer: Proposer,
    limits: Limits,
    counters: Arc<Counters>,
    draining: watch::Sender<bool>,
    calls: Arc<Semaphore>,
    cold_reads: Arc<Semaphore>,
    batch_checks: Arc<Semaphore>,
    refilling: Mutex<()>,
    sessions: Arc<Sessions>,
    /// The node has followed the metadata up to a present that a majority told.
    has_caught_up: AtomicBool,
}

/// A topic that was found, and the state that it was found in.
#[derive(Debug, Clone)]
pub struct Found {
    state: Arc<State>,
    id: Id,
}

impl Found {
    /// The topic.
    pub fn topic(&self) -> &Topic {
        self.state.topic(self.id).expect("it was found in this state")
    }

    /// The topic's id.
    pub fn id(&self) -> Uuid {
        self.id.uuid()
    }
}

/// A partition that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// The topic's id.
    pub topic_id: Uuid,
    /// The partition's number.
    pub partition: u32,
    /// The partition's log.
    pub log: LogId,
    /// The topic's configuration.
    pub config: TopicConfig,
}

/// Where a partition is led.
#[derive(Debug)]
pub enum Route {
    /// Here.
    Here(Handle),
    /// On this node.
    There(NodeId),
    /// Nowhere, as far as is known.
    Unknown,
}

impl Context {
    /// What the services of `node` share.
    pub fn new(
        node: Arc<Node>,
        channels: Arc<Channels>,
        limits: Limits,
        counters: Arc<Counters>,
    ) -> Self {
        Self(Arc::new(Shared {
            proposer: Proposer::new(node.clone(), channels.clone()),
            node,
            channels,
            counters,
            draining: watch::Sender::new(false),
            calls: Arc::new(Semaphore::new(limits.calls_max)),
            cold_reads: Arc::new(Semaphore::new(limits.cold_reads_max)),
            batch_checks: Arc::new(Semaphore::new(limits.batch_checks_max)),
            refilling: Mutex::default(),
            sessions: Arc::default(),
            has_caught_up: AtomicBool::new(false),
            limits,
        }))
    }

    /// The node.
    pub fn node(&self) -> &Arc<Node> {
        &self.0.node
    }

    /// The channels to other nodes.
    pub fn channels(&self) -> &Arc<Channels> {
        &self.0.channels
    }

    /// The way to the metadata.
    pub fn proposer(&self) -> &Proposer {
        &self.0.proposer
    }

    /// What strangers may cost.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The members of groups that this node serves.
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.0.sessions
    }

    /// What there was to count.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }

    /// Takes no calls from now on, and ends those that wait for records.
    pub fn drain(&self) {
        self.0.draining.send_replace(true);
    }

    /// True once [`Self::drain`] was called.
    pub fn is_draining(&self) -> bool {
        *self.0.draining.borrow()
    }

    /// Waits until [`Self::drain`] is called.
    ///
    /// Cancel safe: it changes nothing.
    pub async fn draining(&self) {
        let mut draining = self.0.draining.subscribe();
        // The sender lives as long as this context.
        let _ = draining.wait_for(|is_draining| *is_draining).await;
    }

    /// Lets a call in. The permit is held as long as it takes.
    ///
    /// # Errors
    /// [`Error::Draining`]; [`Error::Overloaded`].
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, Error> {
        if self.is_draining() {
            return Err(Error::Draining);
        }
        self.0.calls.clone().try_acquire_owned().map_err(|_| Error::Overloaded)
    }

    /// Runs `read` where it may wait for a disk, when there is a turn for it.
    pub(super) async fn read_cold<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        super::counters::add(&self.counters().cold_reads, 1);
        run_blocking(&self.0.cold_reads, read).await
    }

    /// Runs a check that takes long, when there is a turn for it.
    pub(super) async fn run_check<T: Send + 'static>(
        &self,
        check: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        run_blocking(&self.0.batch_checks, check).await
    }

    /// Follows the metadata up to what is agreed on now, as well as that can be done.
    pub async fn refresh(&self) {
        // Whoever looks afterwards finds out whether it was enough.
        let _ = self.0.proposer.refresh(Instant::now() + REFRESH_TIMEOUT).await;
    }

    /// Follows the metadata up to what is agreed on now. False if that cannot be done in time.
    pub async fn try_refresh(&self) -> bool {
        self.0.proposer.refresh(Instant::now() + REFRESH_TIMEOUT).await == Ok(true)
    }

    /// What the cluster has agreed on, no older than from when this node started. Without anybody
    /// to ask, what the node knows has to do.
    ///
    /// # Errors
    /// [`Error::Starting`].
    pub async fn caught_up(&self) -> Result<Arc<State>, Error> {
        if !self.0.has_caught_up.load(Ordering::Relaxed) {
            match self.0.proposer.refresh(Instant::now() + REFRESH_TIMEOUT).await {
                Ok(true) => self.0.has_caught_up.store(true, Ordering::Relaxed),
                Ok(false) => return Err(Error::Starting),
                Err(_) => {}
            }
        }
        self.registered()
    }

    /// What the cluster has agreed on, once this node has a part in it.
    ///
    /// # Errors
    /// [`Error::Starting`].
    pub fn registered(&self) -> Result<Arc<State>, Error> {
        let state = self.node().state();
        let is_registered = state.node(self.node().id()).is_some();
        is_registered.then_some(state).ok_or(Error::Starting)
    }

    /// Has the metadata follow a command, and returns what it gave.
    ///
    /// # Errors
    /// [`Error::NoLeader`], [`Error::OutcomeUnknown`], or what the metadata refused.
    pub async fn propose(&self, verb: Verb) -> Result<Given, Error> {
        let proposed = self.0.proposer.propose(verb, Instant::now() + PROPOSE_TIMEOUT).await;
        match proposed {
            Ok(proposed) => Ok(proposed.given),
            Err(ProposeError::Refused(refusal)) => Err(refusal.into()),
            Err(ProposeError::NoLeader) => Err(Error::NoLeader),
            Err(ProposeError::Unknown) => Err(Error::OutcomeUnknown),
        }
    }

    /// A producer id that nobody else gets.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn producer_id(&self) -> Result<u64, Error> {
        loop {
            if let Some(id) = self.node().take_producer_id() {
                return Ok(id);
            }
            // One at a time, so that ids are not wasted.
            let _turn = self.0.refilling.lock().await;
            if let Some(id) = self.node().take_producer_id() {
                return Ok(id);
            }
            self.refill_producer_ids().await?;
        }
    }

    /// Gets producer ids for this node, which has none left.
    async fn refill_producer_ids(&self) -> Result<(), Error> {
        let allocate = AllocateProducerIds { count: PRODUCER_IDS };
        let first = self.propose(Verb::AllocateProducerIds(allocate)).await?;
        self.node().put_producer_ids(first..first.saturating_add(PRODUCER_IDS));
        Ok(())
    }

    /// Finds a topic by name, and by id if one is given. This node may have to hear of it first.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::UnknownTopic`], [`Error::UnknownTopicId`].
    pub async fn lookup(&self, topic: &str, topic_id: &str) -> Result<Found, Error> {
        match self.find(topic, topic_id) {
            Err(Error::UnknownTopic(_) | Error::UnknownTopicId(_)) => {
                self.refresh().await;
                self.find(topic, topic_id).map_err(|error| self.unless_starting(error))
            }
            found => found,
        }
    }

    /// Finds a partition. This node may have to hear of it first.
    ///
    /// # Errors
    /// As [`Self::lookup`], and [`Error::UnknownPartition`].
    pub async fn target(
        &self,
        topic: &str,
        topic_id: &str,
        partition: u32,
    ) -> Result<Target, Error> {
        match self.find_target(topic, topic_id, partition) {
            Err(error) if may_be_news(&error) => {
                self.refresh().await;
                let found = self.find_target(topic, topic_id, partition);
                found.map_err(|error| self.unless_starting(error))
            }
            found => found,
        }
    }

    /// A node that knows nothing yet cannot say what there is not.
    fn unless_starting(&self, error: Error) -> Error {
        match self.registered() {
            Err(starting) if may_be_news(&error) => starting,
            _ => error,
        }
    }

    /// Finds a topic in what this node knows.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn find(&self, topic: &str, topic_id: &str) -> Result<Found, Error> {
        let wanted = convert::topic_id(topic_id)?;
        let state = self.node().state();
        let Some(named) = state.topic_named(topic) else {
            convert::check_name(topic)?;
            return Err(Error::UnknownTopic(topic.to_owned()));
        };
        let id = named.id;
        if wanted.is_some_and(|wanted| wanted != id.uuid()) {
            return Err(Error::UnknownTopicId(topic_id.to_owned()));
        }
        Ok(Found { state, id })
    }

    /// Finds a partition in what this node knows.
    ///
    /// # Errors
    /// As [`Self::target`].
    pub fn find_target(
        &self,
        topic: &str,
        topic_id: &str,
        partition: u32,
    ) -> Result<Target, Error> {
        let found = self.find(topic, topic_id)?;
        let known = found.topic();
        let partitions = known.partitions.len();
        if partition as usize >= partitions {
            let topic = topic.to_owned();
            return Err(Error::UnknownPartition { topic, partition, partitions });
        }
        let (log, config) = (known.log_id(partition), known.config);
        Ok(Target { topic_id: found.id(), partition, log, config })
    }

    /// Where a partition is led; `hint` is what another node has said of that.
    pub fn route(&self, log: LogId, hint: Option<NodeId>) -> Route {
        let node = self.node();
        if let Some(handle) = node.replica(log).filter(Handle::is_leader) {
            return Route::Here(handle);
        }
        let known = hint.or_else(|| node.leader_of(log).map(|leader| leader.node));
        known.filter(|leader| *leader != node.id()).map_or(Route::Unknown, Route::There)
    }

    /// The channel to another node.
    ///
    /// # Errors
    /// [`Error::NoLeader`] if its address is not known.
    pub fn channel(&self, node: NodeId) -> Result<Channel, Error> {
        let address = self.node().peer_address(node).ok_or(Error::NoLeader)?;
        self.channels().get(node, &address)
    }

    /// Says that this node does not lead a partition, and who does as far as is known.
    pub fn not_leader(&self, log: LogId) -> Error {
        let leader = self.node().leader_of(log).map(|leader| leader.node);
        let leader = leader.filter(|leader| *leader != self.node().id());
        let Some(node) = leader else { return Error::NoLeader };
        Error::NotLeader { leader, address: self.node().client_address(node) }
    }
}

/// True if a node that follows the metadata may find what it has not found.
pub(super) fn may_be_news(error: &Error) -> bool {
    matches!(
        error,
        Error::UnknownTopic(_) | Error::UnknownTopicId(_) | Error::UnknownPartition { .. }
    )
}

async fn run_blocking<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let turn = turns.clone().acquire_owned().await.map_err(|_| Error::Draining)?;
    // The turn ends with the work, also if nobody waits for it any more.
    let in_turn = move || {
        let _turn = turn;
        work()
    };
    let done = tokio::task::spawn_blocking(in_turn).await;
    done.map_err(|_| Error::Unexpected("work on another thread has ended early"))
}

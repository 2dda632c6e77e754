//! A node: its replicas, what it knows of the cluster, and how it asks the metadata.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::sync::{oneshot, watch};

use super::command::{Command, Topic, topic_of};
use super::identity::Identity;
use super::leaders::{Heard, Leader, Leaders};
use super::machine::{Answer, Ask, Metadata};
use super::registry::Registry;
use super::state::State;
use crate::partition::{Handle, Replica, Room};
use crate::raft::{
    Durability, Host, HostConfig, Hosted, Inspection, Look, Reply, Role, open_replica,
};
use crate::storage::DataDir;
use crate::types::{ClusterId, LogId, NodeId, ReplicaId};

/// Everything that the server holds of its node. Shared by all who answer calls.
#[derive(Debug)]
pub struct Node {
    identity: Identity,
    dir: Arc<DataDir>,
    metadata_log: LogId,
    metadata: Arc<Host<Metadata>>,
    metadata_hosted: Hosted,
    partitions: Arc<Host<Replica>>,
    registry: Registry,
    leaders: Leaders,
    heard: Heard,
    state: watch::Sender<Arc<State>>,
    producer_ids: Mutex<Range<u64>>,
    is_closing: watch::Sender<bool>,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The metadata cannot be opened.
    #[error("the metadata cannot be opened: {0}")]
    Metadata(#[from] crate::raft::OpenError),
    /// It stopped at once.
    #[error("the node stopped at once: see the log")]
    Stopped,
}

impl Node {
    /// Starts the node whose metadata replica is in `dir`. No partition runs yet.
    ///
    /// # Errors
    /// [`StartError`].
    ///
    /// # Panics
    /// If the identity names no cluster or has no incarnation.
    pub fn start(
        identity: Identity,
        dir: &Arc<DataDir>,
        metadata: HostConfig,
        partitions: HostConfig,
        room: Room,
    ) -> Result<Self, StartError> {
        let founding = identity.founding.as_ref().expect("a node that starts has a cluster");
        let metadata_log = founding.metadata_log();
        let replica = identity.metadata_replica();
        let opened = open_replica::<Metadata>(dir, metadata_log, replica, Durability::Fsync)?;
        let metadata = Arc::new(Host::start(metadata, dir.clone()));
        let metadata_hosted = metadata.open(opened).map_err(|_| StartError::Stopped)?;
        let partitions = Arc::new(Host::start(partitions, dir.clone()));
        let registry = Registry::new(identity.node_id(), dir.clone(), partitions.clone(), room);
        Ok(Self {
            identity,
            dir: dir.clone(),
            metadata_log,
            metadata,
            metadata_hosted,
            partitions,
            registry,
            leaders: Leaders::default(),
            heard: Heard::default(),
            state: watch::Sender::new(Arc::new(State::starting_after(0))),
            producer_ids: Mutex::new(0..0),
            is_closing: watch::Sender::new(false),
        })
    }

    /// Who the node is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.identity.node_id()
    }

    /// Its cluster.
    pub fn cluster(&self) -> ClusterId {
        ClusterId(self.metadata_log.0)
    }

    /// Its data directory.
    pub fn dir(&self) -> &Arc<DataDir> {
        &self.dir
    }

    /// The log of the metadata.
    pub fn metadata_log(&self) -> LogId {
        self.metadata_log
    }

    /// The threads that run the metadata.
    pub fn metadata_host(&self) -> &Arc<Host<Metadata>> {
        &self.metadata
    }

    /// The threads that run the partitions.
    pub fn partition_host(&self) -> &Arc<Host<Replica>> {
        &self.partitions
    }

    /// The replicas that run here.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Who leads what, as nodes have told.
    pub fn leaders(&self) -> &Leaders {
        &self.leaders
    }

    /// Which nodes live, as far as this one has heard.
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// What the cluster has agreed on, as far as this node has followed it.
    pub fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    /// Watches what the cluster agrees on.
    pub fn watch_state(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    /// Waits until this node has followed the metadata up to `index`.
    ///
    /// Cancel safe: it changes nothing.
    pub async fn wait_for_state(&self, index: u64) -> Arc<State> {
        let mut states = self.state.subscribe();
        let state = states.wait_for(|state| state.applied_index() >= index).await;
        state.expect("the node has the sender").clone()
    }

    /// Follows the metadata for ever.
    pub async fn follow(&self) {
        let mut beyond = 0;
        loop {
            match self.ask(Ask::Read { beyond }).await {
                Answer::State(state) => {
                    beyond = state.applied_index();
                    self.state.send_replace(state);
                }
                _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    }

    /// Asks this node's replica of the metadata.
    pub async fn ask(&self, ask: Ask) -> Answer {
        let (sender, receiver) = oneshot::channel();
        let reply = Reply { sender, hold: None };
        if self.metadata.ask(self.metadata_log, ask, reply).is_err() {
            return Answer::NotLeader { leader: None };
        }
        receiver.await.unwrap_or(Answer::Unknown)
    }

    /// Proposes a command here. Only the metadata's leader follows it.
    pub async fn propose(&self, command: Command) -> Answer {
        self.ask(Ask::Propose(command)).await
    }

    /// The node that leads the metadata, as far as this one knows.
    pub fn metadata_leader(&self) -> Option<NodeId> {
        let published = self.metadata_hosted.published.borrow();
        published.leader.map(ReplicaId::node)
    }

    /// True if this node leads the metadata.
    pub fn leads_metadata(&self) -> bool {
        let published = self.metadata_hosted.published.borrow();
        published.role == Role::Leader && published.is_writable
    }

    /// Looks at this node's replica of the metadata.
    pub async fn inspect_metadata(&self) -> Option<Inspection> {
        match self.metadata.inspect(self.metadata_log).ok()?.await.ok()? {
            Look::Runs(inspection) => Some(*inspection),
            Look::WaitsForRepair(_) | Look::Nothing => None,
        }
    }

    /// Looks at a replica of this node that runs.
    pub async fn inspect(&self, log: LogId) -> Option<Inspection> {
        match self.look(log).await? {
            Look::Runs(inspection) => Some(*inspection),
            Look::WaitsForRepair(_) | Look::Nothing => None,
        }
    }

    /// Looks what there is of a partition on this node. `None` if the node has too much to do to
    /// look, or is stopping: that says nothing.
    pub async fn look(&self, log: LogId) -> Option<Look> {
        self.partitions.inspect(log).ok()?.await.ok()
    }

    /// The replica of a partition on this node.
    pub fn replica(&self, log: LogId) -> Option<Handle> {
        self.registry.get(log)
    }

    /// Who leads a partition: what its replica here knows, or what nodes have told.
    pub fn leader_of(&self, log: LogId) -> Option<Leader> {
        let told = self.leaders.get(log);
        let status = self.registry.get(log).map(|handle| handle.status());
        let known = status.and_then(|status| {
            let node = status.leader?.node();
            Some(Leader { node, term: status.term })
        });
        match (told, known) {
            (Some(told), Some(known)) if told.term > known.term => Some(told),
            (told, known) => known.or(told),
        }
    }

    /// The nodes that have a replica of a partition, the preferred leader first.
    pub fn replica_nodes(&self, log: LogId) -> Vec<NodeId> {
        let state = self.state.borrow();
        let topic = topic_of(log).and_then(|(topic, n)| Some((state.topic(topic)?, n)));
        let partition =
            topic.and_then(|(topic, n): (&Topic, u32)| topic.partitions.get(n as usize));
        let replicas = partition.map(|partition| partition.replicas.as_slice()).unwrap_or_default();
        replicas.iter().map(|id| ReplicaId(*id).node()).collect()
    }

    /// Where other nodes reach a node.
    pub fn peer_address(&self, node: NodeId) -> Option<String> {
        let state = self.state.borrow();
        if let Some(known) = state.node(node) {
            return Some(known.peer_address.clone());
        }
        // A node that joins knows nobody but the founders, and those may all be gone: whoever leads
        // the metadata by now has to be answered before there is any.
        if let Some(address) = self.heard.address(node) {
            return Some(address);
        }
        let founders = self.identity.founding.iter().flat_map(|founding| &founding.founders);
        let mut founders = founders.filter(|founder| founder.node == node.0);
        founders.next().map(|founder| founder.peer_address.clone())
    }

    /// Where clients reach a node.
    pub fn client_address(&self, node: NodeId) -> Option<String> {
        self.state.borrow().node(node).map(|node| node.address.clone())
    }

    /// A producer id that nobody else gets, if this node has one left.
    pub fn take_producer_id(&self) -> Option<u64> {
        self.producer_ids.lock().expect("nobody panics with the lock").next()
    }

    /// Gives this node producer ids of its own.
    pub fn put_producer_ids(&self, ids: Range<u64>) {
        *self.producer_ids.lock().expect("nobody panics with the lock") = ids;
    }

    /// Has all streams that go on for ever end now.
    pub fn start_closing(&self) {
        self.is_closing.send_replace(true);
    }

    /// Waits until streams that go on for ever are to end.
    ///
    /// Cancel safe: it changes nothing.
    pub async fn closing(&self) {
        // The node has the sender.
        let _ = self.is_closing.subscribe().wait_for(|is_closing| *is_closing).await;
    }

    /// Stops all replicas and closes their logs in order. Waits for disks.
    pub fn stop(&self) {
        self.registry.clear();
        self.metadata.stop();
        self.partitions.stop();
        if let Err(error) = self.dir.finish() {
            tracing::warn!(%error, "the data directory is not closed in order");
        }
    }

    /// Where the data is.
    pub fn data_path(&self) -> &Path {
        self.dir.root()
    }
}

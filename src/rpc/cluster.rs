//! The cluster service: its nodes, and who does what.

mod node;

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};

use super::call::Call;
use super::context::{Context, Route};
use super::error::Error;
use super::limits::NAMED_PARTITIONS_MAX;
use super::peer;
use crate::cluster::command::{self, MovePartition, NodeState, SetNodeState, Topic, Verb};
use crate::cluster::{State, placement};
use crate::proto::server as api;
use crate::proto::server::cluster_service_server::{ClusterService, ClusterServiceServer};
use crate::types::{LogId, NodeId, ReplicaId};

/// A node that was not heard for so long counts as dead.
const ALIVE_WITHIN: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The cluster service.
#[derive(Debug, Clone)]
pub struct ClusterApi {
    context: Context,
}

impl ClusterApi {
    /// The cluster service of the node that `context` is of.
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    /// The service, to be added to a server.
    pub fn into_service(self) -> ClusterServiceServer<Self> {
        ClusterServiceServer::new(self)
    }

    async fn describe(&self) -> Result<api::DescribeClusterResponse, Error> {
        let state = self.context.caught_up().await?;
        let node = self.context.node();
        let partitions = || state.topics().flat_map(logs);
        let leaderless = partitions().filter(|(log, _)| node.leader_of(*log).is_none()).count();
        let moving = partitions().filter(|(_, partition)| !partition.target.is_empty()).count();
        Ok(api::DescribeClusterResponse {
            cluster_id: node.cluster().0.to_string(),
            metadata_leader: node.metadata_leader().map_or(0, |leader| leader.0),
            answered_by: node.id().0,
            nodes: self.nodes(&state),
            topics: state.topics().len() as u32,
            partitions: state.partitions() as u32,
            leaderless_partitions: leaderless as u32,
            moving_partitions: moving as u32,
        })
    }

    fn nodes(&self, state: &State) -> Vec<api::Node> {
        let node = self.context.node();
        let led = node.leaders().counts();
        let replicas_on = |id: u64| {
            let all = state.topics().flat_map(|topic| &topic.partitions);
            let there = |partition: &&command::Partition| {
                partition.all_replicas().any(|replica| replica.node().0 == id)
            };
            all.filter(there).count() as u32
        };
        let described = |known: &command::Node| api::Node {
            id: known.id,
            address: known.address.clone(),
            peer_address: known.peer_address.clone(),
            rack: known.rack.clone(),
            version: known.version.clone(),
            state: state_number(known.state()).into(),
            is_alive: self.is_alive(known.node_id()),
            replicas: replicas_on(known.id),
            leaders: led.get(&known.node_id()).map_or(0, |count| *count as u32),
            incarnation: known.incarnation,
        };
        state.nodes().map(described).collect()
    }

    fn is_alive(&self, id: NodeId) -> bool {
        let node = self.context.node();
        id == node.id() || node.heard().is_alive(id, ALIVE_WITHIN)
    }

    fn node(&self, id: u64) -> Result<api::Node, Error> {
        let state = self.context.node().state();
        let nodes = self.nodes(&state);
        nodes.into_iter().find(|node| node.id == id).ok_or(Error::UnknownNode(id))
    }

    async fn topology(
        &self,
        request: api::GetTopologyRequest,
    ) -> Result<api::GetTopologyResponse, Error> {
        if request.topics.len() > NAMED_PARTITIONS_MAX {
            let expected = format!("at most {NAMED_PARTITIONS_MAX} names");
            return Err(Error::field("topics", expected));
        }
        self.context.caught_up().await?;
        let node = self.context.node();
        if request.topics.iter().any(|name| node.state().topic_named(name).is_none()) {
            self.context.refresh().await;
        }
        let state = node.state();
        let topics = request.topics.iter().filter_map(|name| state.topic_named(name));
        let leader = |(n, (log, partition)): (usize, (LogId, &command::Partition))| {
            let leader = node.leader_of(log);
            api::PartitionLeader {
                partition: n as u32,
                leader: leader.map_or(0, |leader| leader.node.0),
                leader_epoch: leader.map_or(0, |leader| leader.term),
                replicas: partition.replicas.iter().map(|id| ReplicaId(*id).node().0).collect(),
            }
        };
        let topics = topics.map(|topic| api::TopicTopology {
            name: topic.name.clone(),
            id: topic.id.uuid().to_string(),
            partitions: logs(topic).enumerate().map(leader).collect(),
        });
        Ok(api::GetTopologyResponse { topics: topics.collect(), nodes: self.nodes(&state) })
    }

    async fn set_state(&self, node: u64, state: NodeState) -> Result<api::Node, Error> {
        let set = SetNodeState { node, state: state.into() };
        self.context.propose(Verb::SetNodeState(set)).await?;
        self.node(node)
    }

    async fn move_partition(&self, request: api::MovePartitionRequest) -> Result<(), Error> {
        self.context.refresh().await;
        let target = self.context.target(&request.topic, "", request.partition).await?;
        let state = self.context.node().state();
        let unknown = request.replicas.iter().find(|id| state.node(NodeId(**id)).is_none());
        if let Some(unknown) = unknown {
            return Err(Error::UnknownNode(*unknown));
        }
        let topic = state.topic_named(&request.topic);
        let topic = topic.ok_or_else(|| Error::UnknownTopic(request.topic.clone()))?;
        let r#move = MovePartition {
            id: topic.id,
            partition: target.partition,
            replicas: topic.partitions[target.partition as usize].replicas.clone(),
            nodes: request.replicas,
        };
        self.context.propose(Verb::MovePartition(r#move)).await?;
        Ok(())
    }

    async fn transfer(
        &self,
        request: api::TransferLeadershipRequest,
        call: Call,
    ) -> Result<u64, Error> {
        let target = self.context.target(&request.topic, "", request.partition).await?;
        let state = self.context.node().state();
        let topic = state.topic_named(&request.topic);
        let topic = topic.ok_or_else(|| Error::UnknownTopic(request.topic.clone()))?;
        let partition = &topic.partitions[target.partition as usize];
        let mut replicas = partition.replicas.iter().copied().map(ReplicaId);
        let to = replicas.find(|replica| replica.node().0 == request.to_node);
        let to = to.ok_or_else(|| {
            Error::Precondition(format!(
                "node {} has no replica of this partition; move it there first",
                request.to_node
            ))
        })?;
        loop {
            let known = self.context.node().leader_of(target.log);
            if let Some(leader) = known.filter(|leader| leader.node == to.node()) {
                return Ok(leader.term);
            }
            self.ask_to_transfer(target.log, to).await;
            if Instant::now() + LOOK_EVERY >= call.deadline {
                let text = "the node has not taken over; is it up, and has it all records?";
                return Err(Error::Precondition(text.to_owned()));
            }
            sleep(LOOK_EVERY * 10).await;
        }
    }

    async fn ask_to_transfer(&self, log: LogId, to: ReplicaId) {
        match self.context.route(log, None) {
            Route::Here(_) => {
                // Asked again until it is done or the caller has waited long enough.
                let _ = self.context.node().partition_host().transfer(log, to);
            }
            Route::There(node) => {
                if let Ok(channel) = self.context.channel(node) {
                    let cluster = self.context.node().cluster();
                    let _ = peer::transfer_replica(channel, cluster, log, to).await;
                }
            }
            Route::Unknown => {}
        }
    }

    async fn decommission(&self, node: u64, is_dead: bool) -> Result<u32, Error> {
        self.context.refresh().await;
        let state = self.context.node().state();
        state.node(NodeId(node)).ok_or(Error::UnknownNode(node))?;
        // Whoever takes a node for dead is about to throw its disk away.
        if is_dead && self.is_alive(NodeId(node)) {
            let expected = format!("false, because node {node} is alive; stop it first");
            return Err(Error::field("is_dead", expected));
        }
        let is_there = |partition: &&command::Partition| {
            partition.all_replicas().any(|replica| replica.node().0 == node)
        };
        let partitions = || state.topics().flat_map(|topic| &topic.partitions).filter(is_there);
        for partition in partitions() {
            placement::without(&state, partition, node)?;
        }
        let left = partitions().count() as u32;
        self.set_state(node, NodeState::Decommissioning).await?;
        Ok(left)
    }
}

/// The logs of a topic's partitions.
fn logs(topic: &Topic) -> impl Iterator<Item = (LogId, &command::Partition)> {
    topic.partitions.iter().enumerate().map(|(n, partition)| (topic.log_id(n as u32), partition))
}

fn state_number(state: NodeState) -> api::NodeState {
    match state {
        NodeState::Active => api::NodeState::Active,
        NodeState::Draining => api::NodeState::Draining,
        NodeState::Decommissioning => api::NodeState::Decommissioning,
    }
}

fn answer<T>(outcome: Result<T, Error>) -> Result<Response<T>, Status> {
    outcome.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl ClusterService for ClusterApi {
    async fn describe_cluster(
        &self,
        _: Request<api::DescribeClusterRequest>,
    ) -> Result<Response<api::DescribeClusterResponse>, Status> {
        answer(self.describe().await)
    }

    async fn describe_node(
        &self,
        _: Request<api::DescribeNodeRequest>,
    ) -> Result<Response<api::DescribeNodeResponse>, Status> {
        Ok(Response::new(node::describe(&self.context).await))
    }

    async fn get_topology(
        &self,
        request: Request<api::GetTopologyRequest>,
    ) -> Result<Response<api::GetTopologyResponse>, Status> {
        answer(self.topology(request.into_inner()).await)
    }

    async fn drain_node(
        &self,
        request: Request<api::DrainNodeRequest>,
    ) -> Result<Response<api::DrainNodeResponse>, Status> {
        let drained = self.set_state(request.into_inner().node, NodeState::Draining).await;
        answer(drained.map(|node| api::DrainNodeResponse { node: Some(node) }))
    }

    async fn undrain_node(
        &self,
        request: Request<api::UndrainNodeRequest>,
    ) -> Result<Response<api::UndrainNodeResponse>, Status> {
        let undrained = self.set_state(request.into_inner().node, NodeState::Active).await;
        answer(undrained.map(|node| api::UndrainNodeResponse { node: Some(node) }))
    }

    async fn move_partition(
        &self,
        request: Request<api::MovePartitionRequest>,
    ) -> Result<Response<api::MovePartitionResponse>, Status> {
        let moved = self.move_partition(request.into_inner()).await;
        answer(moved.map(|()| api::MovePartitionResponse {}))
    }

    async fn transfer_leadership(
        &self,
        request: Request<api::TransferLeadershipRequest>,
    ) -> Result<Response<api::TransferLeadershipResponse>, Status> {
        let call = Call::of(request.metadata());
        let transferred = self.transfer(request.into_inner(), call).await;
        answer(transferred.map(|leader_epoch| api::TransferLeadershipResponse { leader_epoch }))
    }

    async fn decommission_node(
        &self,
        request: Request<api::DecommissionNodeRequest>,
    ) -> Result<Response<api::DecommissionNodeResponse>, Status> {
        let api::DecommissionNodeRequest { node, is_dead } = request.into_inner();
        let left = self.decommission(node, is_dead).await;
        answer(left.map(|replicas_left| api::DecommissionNodeResponse { replicas_left }))
    }
}

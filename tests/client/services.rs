//! The administrative services of the fake cluster.

use quipu::proto::client as api;
use quipu::proto::client::ErrorReason;
use quipu::proto::client::cluster_service_server::ClusterService;
use quipu::proto::client::topic_service_server::TopicService;
use tonic::{Request, Status};

use crate::fake::{Answer, Node, TOPIC, TOPIC_ID, status};

/// Calls that no test makes.
macro_rules! not_served {
    ($($method:ident($request:ident) -> $response:ident;)*) => {
        $(
            fn $method<'a, 'b>(
                &'a self,
                _: Request<api::$request>,
            ) -> std::pin::Pin<Box<dyn Future<Output = Answer<api::$response>> + Send + 'b>>
            where
                'a: 'b,
                Self: 'b,
            {
                Box::pin(async { Err(Status::unimplemented("no test calls this")) })
            }
        )*
    };
}

impl Node {
    fn topic(&self) -> api::Topic {
        let state = self.state();
        let partition = |(partition, held): (u32, &crate::fake::Partition)| api::Partition {
            partition,
            leader: held.leader,
            leader_epoch: 1,
            replicas: vec![1, 2],
            log_start_offset: Some(held.log_start_offset),
            high_watermark: Some(held.next_offset),
            ..Default::default()
        };
        api::Topic {
            name: TOPIC.into(),
            id: TOPIC_ID.into(),
            config: [("durability".to_owned(), "fsync".to_owned())].into(),
            partitions: (0..).zip(&state.partitions).map(partition).collect(),
        }
    }

    fn nodes(&self) -> Vec<api::Node> {
        let node = |(id, address): (u64, &std::net::SocketAddr)| api::Node {
            id,
            address: address.to_string(),
            version: "0.1.0".into(),
            state: api::NodeState::Active.into(),
            is_alive: true,
            ..Default::default()
        };
        (1..).zip(&self.addresses).map(node).collect()
    }
}

#[tonic::async_trait]
impl TopicService for Node {
    async fn create_topic(
        &self,
        request: Request<api::CreateTopicRequest>,
    ) -> Answer<api::CreateTopicResponse> {
        self.admit()?;
        let request = request.into_inner();
        let topic = api::Topic { name: request.name.clone(), ..self.topic() };
        self.state().created.push(request);
        Ok(api::CreateTopicResponse { topic: Some(topic) }.into())
    }

    async fn describe_topic(
        &self,
        request: Request<api::DescribeTopicRequest>,
    ) -> Answer<api::DescribeTopicResponse> {
        self.admit()?;
        match request.into_inner().name.as_str() {
            TOPIC => Ok(api::DescribeTopicResponse { topic: Some(self.topic()) }.into()),
            _ => Err(status(ErrorReason::UnknownTopic)),
        }
    }

    async fn list_topics(
        &self,
        request: Request<api::ListTopicsRequest>,
    ) -> Answer<api::ListTopicsResponse> {
        // One topic a page, to have pages.
        let names = [TOPIC, "payments"];
        let page: usize = request.into_inner().page_token.parse().unwrap_or(0);
        let name = names[page].to_owned();
        let next_page_token = if page == 0 { "1" } else { "" }.to_owned();
        let topic = api::TopicSummary { name, partitions: 1, replicas: 1, ..Default::default() };
        Ok(api::ListTopicsResponse { topics: vec![topic], next_page_token }.into())
    }

    not_served! {
        alter_topic(AlterTopicRequest) -> AlterTopicResponse;
        add_partitions(AddPartitionsRequest) -> AddPartitionsResponse;
        delete_topic(DeleteTopicRequest) -> DeleteTopicResponse;
        delete_records(DeleteRecordsRequest) -> DeleteRecordsResponse;
    }
}

#[tonic::async_trait]
impl ClusterService for Node {
    async fn describe_cluster(
        &self,
        _: Request<api::DescribeClusterRequest>,
    ) -> Answer<api::DescribeClusterResponse> {
        let nodes = self.nodes();
        let (metadata_leader, leaderless_partitions) = (1, 0);
        Ok(api::DescribeClusterResponse {
            metadata_leader,
            nodes,
            leaderless_partitions,
            ..Default::default()
        }
        .into())
    }

    async fn get_topology(
        &self,
        request: Request<api::GetTopologyRequest>,
    ) -> Answer<api::GetTopologyResponse> {
        let is_known = request.into_inner().topics.iter().any(|topic| topic == TOPIC);
        let state = self.state();
        let leader = |(partition, held): (u32, &crate::fake::Partition)| api::PartitionLeader {
            partition,
            leader: state.rumor.unwrap_or(held.leader),
            leader_epoch: 1,
            replicas: vec![1, 2],
        };
        let topic = || api::TopicTopology {
            name: TOPIC.into(),
            id: TOPIC_ID.into(),
            partitions: (0..).zip(&state.partitions).map(leader).collect(),
        };
        let topics = is_known.then(topic).into_iter().collect();
        Ok(api::GetTopologyResponse { nodes: self.nodes(), topics }.into())
    }

    not_served! {
        describe_node(DescribeNodeRequest) -> DescribeNodeResponse;
        drain_node(DrainNodeRequest) -> DrainNodeResponse;
        undrain_node(UndrainNodeRequest) -> UndrainNodeResponse;
        move_partition(MovePartitionRequest) -> MovePartitionResponse;
        transfer_leadership(TransferLeadershipRequest) -> TransferLeadershipResponse;
        decommission_node(DecommissionNodeRequest) -> DecommissionNodeResponse;
    }
}

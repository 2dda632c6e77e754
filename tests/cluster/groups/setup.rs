//! How tests in one process reach the servers of their cluster.

use quipu::batch::{BatchBuilder, Codec, Limits, Record};
use quipu::proto::client::topic_service_client::TopicServiceClient;
use quipu::proto::client::{ConsumeJoin, CreateTopicRequest};
use quipu::proto::server::ProduceRequest;
use quipu::proto::server::log_service_client::LogServiceClient;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::member::{Groups, Member, TOPIC};
use crate::support::Cluster;

pub async fn channel(cluster: &Cluster, n: usize) -> Channel {
    let address = cluster.server(n).addresses().clients;
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

pub async fn groups(cluster: &Cluster, n: usize) -> Groups {
    Groups::new(channel(cluster, n).await)
}

pub async fn create_topic(cluster: &Cluster, name: &str, partitions: u32) {
    let (name, replicas) = (name.to_owned(), cluster.servers.len() as u32);
    let request = CreateTopicRequest { name, partitions, replicas, ..Default::default() };
    TopicServiceClient::new(channel(cluster, 0).await).create_topic(request).await.unwrap();
}

/// A client that produces through a node.
pub async fn producer(cluster: &Cluster, n: usize) -> LogServiceClient<Channel> {
    LogServiceClient::new(channel(cluster, n).await)
}

/// Stores a record in a partition, once more if a leader changes meanwhile.
pub async fn produce_through(client: &mut LogServiceClient<Channel>, partition: u32, value: &[u8]) {
    let mut builder = BatchBuilder::new(Limits::default());
    builder.append(&Record { value: Some(value), ..Record::default() }).unwrap();
    let (topic, batch) = (TOPIC.to_owned(), builder.build(Codec::None).unwrap());
    let request = ProduceRequest { topic, partition, batch, ..ProduceRequest::default() };
    while let Err(status) = client.produce(request.clone()).await {
        assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    }
}

/// Stores `count` records in a partition, one in a batch.
pub async fn produce(cluster: &Cluster, partition: u32, count: usize) {
    let mut client = producer(cluster, 0).await;
    for n in 0..count {
        produce_through(&mut client, partition, &n.to_le_bytes()).await;
    }
}

impl Member {
    /// Joins through a node, as a new member.
    pub async fn join(cluster: &Cluster, n: usize) -> Self {
        Self::join_as(cluster, n, ConsumeJoin::default()).await.unwrap()
    }

    /// Joins with what `join` says beside the group.
    pub async fn join_as(cluster: &Cluster, n: usize, join: ConsumeJoin) -> Result<Self, Status> {
        Self::join_through(groups(cluster, n).await, join).await
    }
}

//! Metrics: whatever is named there moves when it happens.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use quipu::batch::{self, BatchBuilder, Codec};
use quipu::client::{
    Client, ClientConfig, Commit, ConsumerConfig, GroupConsumer, GroupConsumerConfig, GroupEvent,
    GroupStart, ProducerConfig, Start,
};
use quipu::proto::client::{CreateGroupRequest, CreateTopicRequest};
use quipu::proto::server::log_service_client::LogServiceClient;
use quipu::proto::server::start_position::Position;
use quipu::proto::server::{
    FetchRequest, InitProducerRequest, ListOffsetsRequest, ProduceRequest, ProducerStamp,
    StartPosition,
};
use quipu::telemetry::Metrics;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use crate::support::{Cluster, wait_for};

const TOPIC: &str = "t";
/// What is zero on nodes that are well, or only for a moment anything else.
const ZERO_WHEN_ALL_IS_WELL: [&str; 20] = [
    "quipu_storage_failed",
    "quipu_storage_disk_low_water_bytes",
    "quipu_cluster_partitions_leaderless",
    "quipu_cluster_partitions_under_replicated",
    "quipu_node_draining",
    "quipu_replication_messages_dropped",
    "quipu_replication_bundles_dropped",
    "quipu_replication_frames_refused",
    "quipu_replication_frames_lost",
    "quipu_replication_appends_stalled",
    "quipu_replication_cold_reads",
    "quipu_http_connections_refused",
    "quipu_rpc_connections_refused",
    "quipu_rpc_requests_in_flight",
    "quipu_append_room_used_bytes",
    "quipu_rpc_streams",
    "quipu_group_partitions_moving",
    "quipu_group_offsets_refused",
    "quipu_group_records_missed",
    "quipu_group_members_expired",
];

async fn scrape(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// The sum of all samples of each name.
fn sums(text: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("quipu_")) {
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let name = sample.split('{').next().unwrap().to_owned();
        *sums.entry(name).or_default() += value.parse::<f64>().unwrap();
    }
    sums
}

async fn use_every_method(
    mut node: LogServiceClient<Channel>,
    sequence: u32,
    producer_id: &mut u64,
) {
    let mut builder = BatchBuilder::new(batch::Limits::default());
    builder.append(&batch::Record { value: Some(b"x"), ..Default::default() }).unwrap();
    let batch: Bytes = builder.build(Codec::None).unwrap();
    if *producer_id == 0 {
        let init = InitProducerRequest { topic: TOPIC.into(), ..Default::default() };
        *producer_id = node.init_producer(init).await.unwrap().into_inner().producer_id;
    }
    let producer_id = *producer_id;
    let stamp = ProducerStamp { producer_id, producer_epoch: 0, base_sequence: sequence };
    let produce = ProduceRequest {
        topic: TOPIC.into(),
        batch,
        producer: Some(stamp),
        ..ProduceRequest::default()
    };
    for _ in 0..2 {
        // The second time it is there already.
        node.produce(produce.clone()).await.unwrap();
    }
    node.produce(ProduceRequest { topic: "nothing".into(), ..produce }).await.unwrap_err();
    let fetch = FetchRequest { topic: TOPIC.into(), from_leader: true, ..Default::default() };
    node.fetch(fetch).await.unwrap();
    let position = Some(StartPosition { position: Some(Position::Latest(true)) });
    let list = ListOffsetsRequest { topic: TOPIC.into(), position, ..Default::default() };
    node.list_offsets(list).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_moves() {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let cluster = Cluster::start_with(3, |settings| settings.http_listen = Some(any)).await;
    let addresses: Vec<_> = (0..3).map(|n| cluster.server(n).addresses()).collect();
    let servers = addresses.iter().map(|address| address.clients.to_string());
    let client = Client::new(ClientConfig::new(servers)).unwrap();
    let request = CreateTopicRequest {
        name: TOPIC.into(),
        partitions: 1,
        replicas: 3,
        ..CreateTopicRequest::default()
    };
    client.create_topic(request).await.unwrap();
    let mut producer_id = 0;
    for (sequence, address) in (0..).zip(&addresses) {
        let channel = Endpoint::from_shared(format!("http://{}", address.clients)).unwrap();
        let node = LogServiceClient::new(channel.connect_lazy());
        use_every_method(node, sequence, &mut producer_id).await;
    }
    let producer = client.producer(ProducerConfig::new(TOPIC)).await.unwrap();
    let value = vec![7; 100 << 10];
    for _ in 0..10 {
        let record = batch::Record { value: Some(&value), ..Default::default() };
        producer.send(&record).await.unwrap().await.unwrap();
    }
    // One that reads nothing is soon without credit.
    let mut config = ConsumerConfig::new(TOPIC, Start::Earliest);
    config.credit_bytes = 64 << 10;
    let mut consumer = client.consumer(config);
    consumer.start().await.unwrap().for_each(drop);
    let member = read_as_a_group(&client).await;
    wait_for("metrics that have moved", async || {
        let mut text = String::new();
        for address in &addresses {
            text += &scrape(address.http.unwrap()).await;
        }
        let sums = sums(&text);
        let is_moved = |name: &String| sums.get(name).is_some_and(|sum| *sum > 0.0);
        let catalog = Metrics::new();
        let still: Vec<_> = catalog
            .catalog()
            .iter()
            .filter(|metric| !ZERO_WHEN_ALL_IS_WELL.contains(&metric.name.as_str()))
            .filter(|metric| !metric.samples().iter().all(is_moved))
            .map(|metric| metric.name.clone())
            .collect();
        println!("still: {still:?}");
        still.is_empty().then_some(())
    })
    .await;
    member.close().await.unwrap();
}

/// Reads a record as a member of a group, and commits it. The member stays.
async fn read_as_a_group(client: &Client) -> GroupConsumer {
    let group = CreateGroupRequest {
        name: "g".into(),
        topics: vec![TOPIC.into()],
        start: Some(GroupStart::Earliest.into()),
        ..CreateGroupRequest::default()
    };
    client.create_group(group).await.unwrap();
    let mut config = GroupConsumerConfig::new("g");
    config.commit = Commit::Manual;
    let mut member = client.group_consumer(config);
    loop {
        if let GroupEvent::Record(record) = member.next().await.unwrap() {
            member.commit(&record).await.unwrap();
            return member;
        }
    }
}

//! Subscriptions: reading as records come.

use std::time::{Duration, Instant};

use quipu::batch::Codec;
use quipu::proto::server::start_position::Position;
use quipu::proto::server::subscribe_request::Message as Told;
use quipu::proto::server::subscribe_response::Message as Tell;
use quipu::proto::server::{
    ErrorReason, ProduceRequest, StartPosition, SubscribeRequest, SubscribeStart,
};
use quipu::rpc::Limits;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::support::{Client, Cluster, batch_of, reason, request};

type Answers = Streaming<quipu::proto::server::SubscribeResponse>;

fn from(position: Position) -> SubscribeStart {
    SubscribeStart {
        topic: "t".into(),
        start: Some(StartPosition { position: Some(position) }),
        credit_bytes: 1 << 20,
        ..SubscribeStart::default()
    }
}

async fn subscribe(
    client: &mut Client,
    start: SubscribeStart,
) -> (mpsc::Sender<SubscribeRequest>, Answers) {
    let (requests, queue) = mpsc::channel(8);
    requests.send(SubscribeRequest { message: Some(Told::Start(start)) }).await.unwrap();
    let answers = client.subscribe(ReceiverStream::new(queue)).await.unwrap().into_inner();
    (requests, answers)
}

async fn told(answers: &mut Answers) -> Result<Tell, Status> {
    let told = tokio::time::timeout(Duration::from_secs(30), answers.message()).await;
    Ok(told.expect("nothing is said")?.expect("the stream has ended").message.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_from_the_beginning_needs_no_leader() {
    let cluster = Cluster::found(3, Limits::default()).await;
    cluster.topic("t", 1).await;
    let mut client = cluster.nodes[0].client().await;
    for n in 0..3 {
        client.produce(request("t", 0, n)).await.unwrap();
    }
    let handle = cluster.nodes[0].node.replica(cluster.log("t", 0)).unwrap();
    assert_eq!(handle.wait_beyond(2).await, 3);
    for other in &cluster.nodes[1..] {
        let node = other.node.clone();
        tokio::task::spawn_blocking(move || node.stop()).await.unwrap();
    }
    let started = Instant::now();
    let (_requests, mut answers) = subscribe(&mut client, from(Position::Earliest(true))).await;
    let Tell::Started(begun) = told(&mut answers).await.unwrap() else { panic!("no start") };
    assert_eq!((begun.positions[0].next_offset, begun.positions[0].high_watermark), (0, 3));
    let Tell::Data(data) = told(&mut answers).await.unwrap() else { panic!("no records") };
    assert_eq!((data.batches.len(), data.next_offset), (3, 3));
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    // How far a partition is, only its leader knows.
    let (_requests, mut answers) = subscribe(&mut client, from(Position::Latest(true))).await;
    assert_eq!(told(&mut answers).await.unwrap_err().code(), tonic::Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_read_is_told_so_and_costs_no_more() {
    let limits = Limits { reader_silence_max: Duration::from_millis(500), ..Limits::default() };
    let cluster = Cluster::found(1, limits).await;
    cluster.topic("t", 1).await;
    let mut client = cluster.nodes[0].client().await;
    for n in 0..40 {
        let batch = batch_of([n], 500_000, Codec::None);
        client.produce(ProduceRequest { batch, ..request("t", 0, 0) }).await.unwrap();
    }
    let start = SubscribeStart { credit_bytes: 64 << 20, ..from(Position::Earliest(true)) };
    let (requests, mut answers) = subscribe(&mut client, start).await;
    let heartbeat = || SubscribeRequest { message: Some(Told::Heartbeat(Default::default())) };
    // It lives, and has given credit, but reads nothing.
    for _ in 0..10 {
        requests.try_send(heartbeat()).unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut data_bytes = 0;
    let status = loop {
        match told(&mut answers).await {
            Ok(Tell::Data(data)) => data_bytes += data.cost_bytes,
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
    assert_eq!(reason::<()>(Err(status)), ErrorReason::SlowConsumer);
    assert!(data_bytes < 15 << 20, "{data_bytes} bytes were on their way");
    client.produce(request("t", 0, 1)).await.unwrap();
}

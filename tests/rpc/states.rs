//! Calls while something is wrong with the nodes: no majority, full disks, damaged records.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quipu::batch::Codec;
use quipu::proto::server::produce_stream_response::Outcome;
use quipu::proto::server::{
    ErrorReason, FetchRequest, InitProducerRequest, ProduceRequest, ProduceStreamRequest,
    ProducerStamp,
};
use quipu::rpc::status::reason_of;
use quipu::rpc::{FORWARD_HEADER, FORWARD_OFF, Limits};
use tonic::{Code, Request, Status};

use crate::support::{Client, Cluster, Served, batch_of, reason, request};

/// Larger than what a log has in reserve.
const BATCH_BYTES: usize = 500_000;

fn large(number: u64) -> ProduceRequest {
    ProduceRequest { batch: batch_of([number], BATCH_BYTES, Codec::None), ..request("t", 0, 0) }
}

fn within<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

fn direct<T>(message: T) -> Request<T> {
    direct_within(message, Duration::from_secs(2))
}

fn direct_within<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = within(message, timeout);
    request.metadata_mut().insert(FORWARD_HEADER, FORWARD_OFF.parse().unwrap());
    request
}

async fn stop(served: &Served) {
    let node = served.node.clone();
    tokio::task::spawn_blocking(move || node.stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_stored_and_old_records_are_read() {
    let cluster = Cluster::found(3, Limits::default()).await;
    cluster.topic("t", 1).await;
    let mut client = cluster.nodes[0].client().await;
    client.produce(request("t", 0, 1)).await.unwrap();
    for other in &cluster.nodes[1..] {
        stop(other).await;
    }
    let started = Instant::now();
    loop {
        let refused = client.produce(within(request("t", 0, 2), Duration::from_secs(1))).await;
        let status = refused.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        // As long as it leads it may find its majority again, and then it is stored.
        match reason_of(&status) {
            Some(ErrorReason::NoLeader) => break,
            Some(ErrorReason::OutcomeUnknown) => {}
            other => panic!("{other:?}: {status}"),
        }
        assert!(started.elapsed() < Duration::from_secs(30), "it still leads");
    }
    let fetch = FetchRequest { topic: "t".into(), ..FetchRequest::default() };
    assert_eq!(client.fetch(fetch).await.unwrap().into_inner().next_offset, 1);
}

/// The leader cannot say "nothing was done" of a batch that it has in its log, even if it was asked
/// once more after it had stopped leading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_a_leader_took_and_could_not_store_is_not_said_to_be_refused() {
    let cluster = Cluster::found(3, Limits::default()).await;
    cluster.topic("t", 1).await;
    let leader = cluster.leader("t", 0).await;
    let mut client = leader.client().await;
    let init = InitProducerRequest { topic: "t".into(), ..InitProducerRequest::default() };
    let known = client.init_producer(init).await.unwrap().into_inner();
    for other in cluster.others("t", 0).await {
        stop(other).await;
    }
    let (producer_id, producer_epoch) = (known.producer_id, known.producer_epoch);
    let producer = Some(ProducerStamp { producer_id, producer_epoch, base_sequence: 0 });
    let produce = Some(ProduceRequest { producer, ..request("t", 0, 1) });
    let requests = tokio_stream::iter([ProduceStreamRequest { request_id: 1, produce }]);
    let answers = client.produce_stream(direct_within(requests, Duration::from_secs(60))).await;
    let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
    let Some(Outcome::Error(error)) = answer.outcome else { panic!("{answer:?}") };
    assert_eq!(error.reason(), ErrorReason::OutcomeUnknown, "{error:?}");
}

/// Produces until it is refused, and returns how many were stored and why no more.
async fn fill(client: &mut Client) -> (u64, Status) {
    for stored in 0..100 {
        if let Err(status) = client.produce(direct(large(stored))).await {
            return (stored, status);
        }
    }
    panic!("a full disk takes everything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_what_is_surely_not_stored() {
    let cluster = Cluster::of_one().await;
    cluster.topic("t", 1).await;
    let mut client = cluster.nodes[0].client().await;
    client.produce(large(0)).await.unwrap();
    cluster.nodes[0].is_full.store(true, Ordering::Relaxed);
    let (stored, first) = fill(&mut client).await;
    // The one that met the full disk waits for it. All behind it were not let in.
    assert_eq!(reason::<()>(Err(first)), ErrorReason::OutcomeUnknown);
    for _ in 0..3 {
        let status = client.produce(direct(large(99))).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert_eq!(reason::<()>(Err(status)), ErrorReason::DiskFull);
    }
    let fetch = FetchRequest { topic: "t".into(), ..FetchRequest::default() };
    assert_eq!(client.fetch(fetch).await.unwrap().into_inner().batches[0].base_offset, 0);
    cluster.nodes[0].is_full.store(false, Ordering::Relaxed);
    let again = client.produce(within(large(7), Duration::from_secs(10))).await;
    let stored = stored + 1;
    assert_eq!(again.unwrap().into_inner().base_offset, stored + 1, "and the one that waited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_leaves_a_full_disk() {
    let cluster = Cluster::found(3, Limits::default()).await;
    cluster.topic("t", 1).await;
    let leader = cluster.leader("t", 0).await;
    let mut client = leader.client().await;
    client.produce(large(0)).await.unwrap();
    leader.is_full.store(true, Ordering::Relaxed);
    let started = Instant::now();
    loop {
        // Through the node with the full disk, which passes it on once another one leads.
        let _ = client.produce(within(large(1), Duration::from_secs(2))).await;
        let new = cluster.leader("t", 0).await;
        if new.node.id() != leader.node.id() {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "a node without room still leads");
    }
    client.produce(within(large(2), Duration::from_secs(10))).await.unwrap();
}

/// Overwrites bytes in the midst of a log's first record batch.
fn damage(cluster: &Cluster, node: u64, batch: &Bytes) {
    let path = &cluster.segments(node, "t", 0)[0];
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(64).position(|bytes| bytes == &batch[batch.len() - 64..]).unwrap();
    bytes[at + 8..at + 24].fill(0xEE);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[at..at + 64], at as u64).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_read_from_another_replica() {
    let cluster = Cluster::found(3, Limits::default()).await;
    cluster.topic("t", 1).await;
    let follower = cluster.others("t", 0).await[0];
    let mut client = follower.client().await;
    let batch = batch_of([1], 5_000, Codec::None);
    let produce = ProduceRequest { batch: batch.clone(), ..request("t", 0, 0) };
    client.produce(produce).await.unwrap();
    let handle = follower.node.replica(cluster.log("t", 0)).unwrap();
    assert_eq!(handle.wait_beyond(0).await, 1);
    damage(&cluster, follower.node.id().0, &batch);
    let fetch = FetchRequest { topic: "t".into(), ..FetchRequest::default() };
    let fetched = client.fetch(fetch).await.unwrap().into_inner();
    assert_eq!(fetched.batches[0].batch, batch, "what is damaged here comes from elsewhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_without_another_replica_is_said() {
    let cluster = Cluster::of_one().await;
    cluster.topic("t", 1).await;
    let mut client = cluster.nodes[0].client().await;
    let batch = batch_of([1], 5_000, Codec::None);
    client.produce(ProduceRequest { batch: batch.clone(), ..request("t", 0, 0) }).await.unwrap();
    client.produce(request("t", 0, 2)).await.unwrap();
    damage(&cluster, 1, &batch);
    let fetch = FetchRequest { topic: "t".into(), ..FetchRequest::default() };
    let status = client.fetch(fetch.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    assert_eq!(reason::<()>(Err(status)), ErrorReason::DataLoss);
    let behind = client.fetch(FetchRequest { offset: 1, ..fetch }).await.unwrap().into_inner();
    assert_eq!(behind.batches[0].base_offset, 1, "what is behind it is read");
}

//! Produce streams: many batches in flight, answered in the order of each partition.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quipu::batch::Codec;
use quipu::cluster::command::TopicConfig;
use quipu::partition::RECENT_BATCHES_MAX;
use quipu::proto::server::produce_stream_response::Outcome;
use quipu::proto::server::{
    ErrorReason, FetchRequest, InitProducerRequest, ProduceRequest, ProduceStreamRequest,
    ProduceStreamResponse, ProducerStamp,
};
use quipu::rpc::Method;
use quipu::rpc::limits::Limits;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::support::{Client, Cluster, PATIENCE, batch_of, request};

/// How many requests are sent while leaders change.
const REQUESTS: u64 = 3_000;

/// A stream of requests and its answers.
async fn open(
    client: &mut Client,
) -> (mpsc::Sender<ProduceStreamRequest>, Streaming<ProduceStreamResponse>) {
    let (requests, queue) = mpsc::channel(64);
    let answers = client.produce_stream(ReceiverStream::new(queue)).await.unwrap().into_inner();
    (requests, answers)
}

fn numbered(request_id: u64, produce: ProduceRequest) -> ProduceStreamRequest {
    ProduceStreamRequest { request_id, produce: Some(produce) }
}

async fn answer(answers: &mut Streaming<ProduceStreamResponse>) -> (u64, Outcome) {
    let answer = tokio::time::timeout(Duration::from_secs(30), answers.message()).await;
    let answer = answer.expect("no answer comes").unwrap().expect("the stream has ended");
    (answer.request_id, answer.outcome.unwrap())
}

/// Sends `requests` in order, and returns all answers in the order in which they came.
pub async fn exchange(
    client: &mut Client,
    requests: Vec<ProduceStreamRequest>,
) -> Vec<(u64, Outcome)> {
    let (sender, mut answers) = open(client).await;
    let count = requests.len();
    tokio::spawn(async move {
        for request in requests {
            sender.send(request).await.unwrap();
        }
    });
    let mut received = Vec::with_capacity(count);
    for _ in 0..count {
        received.push(answer(&mut answers).await);
    }
    assert!(answers.message().await.unwrap().is_none(), "the stream ends after the last answer");
    received
}

/// Asserts that each partition's answers are in order and without failures; partition of a
/// request is its number modulo `partitions`.
pub fn assert_in_order(received: &[(u64, Outcome)], partitions: u64) {
    let mut next: HashMap<u64, (u64, u64)> = HashMap::new();
    for (request_id, outcome) in received {
        let Outcome::Produced(produced) = outcome else { panic!("{request_id}: {outcome:?}") };
        let partition = request_id % partitions;
        let (expected_id, expected_offset) =
            next.get(&partition).copied().unwrap_or((partition, 0));
        assert_eq!(*request_id, expected_id, "answers of a partition keep the requests' order");
        assert_eq!(produced.base_offset, expected_offset, "and so do the batches in it");
        next.insert(partition, (request_id + partitions, expected_offset + 1));
    }
}

/// The numbers that the records of a partition say, in order.
pub async fn numbers(client: &mut Client, topic: &str, partition: u32) -> Vec<u64> {
    let started = Instant::now();
    let mut numbers = Vec::new();
    let mut offset = 0;
    loop {
        let fetch = FetchRequest {
            topic: topic.into(),
            partition,
            offset,
            max_bytes: 3 << 20,
            from_leader: true,
            ..FetchRequest::default()
        };
        let fetched = match client.fetch(fetch).await {
            Ok(fetched) => fetched.into_inner(),
            // Leadership moves, now or a moment ago: clients try again, and so does this one.
            Err(status) if status.code() == Code::Unavailable && started.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            Err(status) => panic!("{status:?}"),
        };
        if fetched.batches.is_empty() {
            return numbers;
        }
        for stored in &fetched.batches {
            // Every batch here is one plain record of eight bytes: they end it.
            let number = stored.batch[stored.batch.len() - 8..].try_into().unwrap();
            numbers.push(u64::from_le_bytes(number));
        }
        offset = fetched.next_offset;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_requests_are_answered_in_the_order_of_each_partition() {
    let cluster = Cluster::of_one().await;
    cluster.topic("t", 3).await;
    let mut client = cluster.nodes[0].client().await;
    let requests = (0..9_999).map(|n| numbered(n, request("t", (n % 3) as u32, n))).collect();
    let received = exchange(&mut client, requests).await;
    assert_in_order(&received, 3);
    for partition in 0..3 {
        let expected: Vec<u64> = (0..3_333).map(|n| n * 3 + u64::from(partition)).collect();
        assert_eq!(numbers(&mut client, "t", partition).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_little_room_passes_everything_through() {
    let limits = Limits { produce_requests_max: 3, produce_bytes_max: 100, ..Limits::default() };
    let cluster = Cluster::found(1, limits).await;
    cluster.topic("t", 2).await;
    let mut client = cluster.nodes[0].client().await;
    let requests = (0..500).map(|n| numbered(n, request("t", (n % 2) as u32, n))).collect();
    assert_in_order(&exchange(&mut client, requests).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_answered_in_its_turn_and_ends_nothing() {
    let cluster = Cluster::of_one().await;
    cluster.topic("t", 1).await;
    let mut client = cluster.nodes[0].client().await;
    let heavy: Vec<u64> = (0..40_000).collect();
    let heavy = batch_of(heavy, 16, Codec::Lz4);
    assert!(heavy.len() > 64 << 10);
    let damaged = heavy.slice(..heavy.len() - 1);
    let with = |batch| ProduceRequest { batch, ..request("t", 0, 0) };
    let requests = vec![
        numbered(0, request("t", 0, 0)),
        numbered(1, with(bytes::Bytes::from_static(b"noise"))),
        numbered(2, with(heavy)),
        numbered(3, with(damaged)),
        numbered(4, request("nothing", 0, 0)),
        numbered(5, ProduceRequest { crc: Some(1), ..request("t", 0, 0) }),
        numbered(6, request("t", 0, 6)),
        ProduceStreamRequest { request_id: 7, produce: None },
    ];
    let received = exchange(&mut client, requests).await;
    let ids = |is_of_t: &dyn Fn(u64) -> bool| -> Vec<u64> {
        received.iter().map(|(id, _)| *id).filter(|id| is_of_t(*id)).collect()
    };
    assert_eq!(ids(&|id| !matches!(id, 4 | 7)), [0, 1, 2, 3, 5, 6]);
    let failed: HashMap<u64, ErrorReason> = received
        .iter()
        .filter_map(|(id, outcome)| match outcome {
            Outcome::Error(error) => Some((*id, error.reason())),
            Outcome::Produced(_) => None,
        })
        .collect();
    let expected = HashMap::from([
        (1, ErrorReason::CorruptBatch),
        (3, ErrorReason::CorruptBatch),
        (4, ErrorReason::UnknownTopic),
        (5, ErrorReason::BadChecksum),
        (7, ErrorReason::InvalidField),
    ]);
    assert_eq!(failed, expected);
    assert_eq!(cluster.high_watermark("t", 0).await, 40_002);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_node_refuses_what_comes_and_answers_what_came() {
    let cluster = Cluster::of_one().await;
    cluster.topic("t", 1).await;
    let mut client = cluster.nodes[0].client().await;
    let (requests, mut answers) = open(&mut client).await;
    requests.send(numbered(1, request("t", 0, 1))).await.unwrap();
    assert!(matches!(answer(&mut answers).await, (1, Outcome::Produced(_))));
    cluster.nodes[0].context.drain();
    requests.send(numbered(2, request("t", 0, 2))).await.unwrap();
    let (2, Outcome::Error(error)) = answer(&mut answers).await else { panic!("not refused") };
    assert_eq!(error.reason(), ErrorReason::Draining);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_stays_exactly_once_and_in_order_while_leaders_change() {
    let cluster = Cluster::found(3, Limits::default()).await;
    cluster.topic("t", 1).await;
    let mut client = cluster.nodes[0].client().await;
    let init = InitProducerRequest { topic: "t".into(), ..InitProducerRequest::default() };
    let producer_id = client.init_producer(init).await.unwrap().into_inner().producer_id;
    let stamped = move |n| {
        let stamp = ProducerStamp { producer_id, producer_epoch: 0, base_sequence: n as u32 };
        ProduceRequest { producer: Some(stamp), ..request("t", 0, n) }
    };
    let outcomes = while_leaders_change(&cluster, &[1, 2, 3], RECENT_BATCHES_MAX, stamped).await;
    for (n, outcome) in (0..).zip(outcomes) {
        let Outcome::Produced(produced) = outcome else { panic!("{n}: {outcome:?}") };
        assert_eq!(produced.base_offset, n, "each batch is stored once, and none is missing");
    }
    assert_eq!(numbers(&mut client, "t", 0).await, (0..REQUESTS).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_on_its_way_as_leaders_changed_goes_again_together() {
    send_again_together(&[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_replica_goes_by_what_the_last_leader_says() {
    send_again_together(&[2, 3]).await;
}

/// Has leaders change among `replicas` while much is on its way to them through node 1.
async fn send_again_together(replicas: &[u64]) {
    let cluster = Cluster::found(3, Limits::default()).await;
    cluster.create("t", TopicConfig::default(), &[replicas]).await;
    // It has a replica, and so hears who leads.
    let mut client = cluster.nodes[1].client().await;
    let is_noise = |n| n % 50 == 3;
    let some_noise = move |n| match is_noise(n) {
        true => ProduceRequest { batch: bytes::Bytes::from_static(b"noise"), ..request("t", 0, n) },
        false => request("t", 0, n),
    };
    let outcomes = while_leaders_change(&cluster, replicas, 500, some_noise).await;
    let stored = numbers(&mut client, "t", 0).await;
    // Without a producer, what is sent again may come behind what was not refused.
    assert_eq!(stored.iter().collect::<HashSet<_>>().len(), stored.len(), "stored twice");
    for (n, outcome) in (0..).zip(outcomes) {
        match outcome {
            Outcome::Produced(at) => assert_eq!(stored[at.base_offset as usize], n),
            Outcome::Error(error) if is_noise(n) => {
                assert_eq!(error.reason(), ErrorReason::CorruptBatch);
            }
            // Without a producer it is not tried again if it may be stored.
            Outcome::Error(error) => assert_eq!(error.reason(), ErrorReason::OutcomeUnknown),
        }
    }
    let forwards = cluster.nodes[0].context.counters().by_method();
    let of = |wanted| forwards.iter().find(|(method, ..)| *method == wanted).unwrap().1;
    let (slow, fast) = (of(Method::Produce), of(Method::ProduceStream));
    assert!(slow * 10 < fast, "one by one: {slow}, together: {fast}");
}

/// Sends requests over a stream to node 1, at most `in_flight` at once, while the leadership of
/// t/0 moves around among `replicas`, and returns what became of each.
async fn while_leaders_change(
    cluster: &Cluster,
    replicas: &[u64],
    in_flight: usize,
    request: impl Fn(u64) -> ProduceRequest + Send + 'static,
) -> Vec<Outcome> {
    let (requests, mut answers) = open(&mut cluster.nodes[0].client().await).await;
    let room = Arc::new(Semaphore::new(in_flight));
    let answered = room.clone();
    let sending = tokio::spawn(async move {
        for n in 0..REQUESTS {
            room.acquire().await.unwrap().forget();
            requests.send(numbered(n, request(n))).await.unwrap();
            if n % 10 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let (mut outcomes, mut leaders) = (Vec::new(), HashSet::new());
    for n in 0..REQUESTS {
        let (request_id, outcome) = answer(&mut answers).await;
        assert_eq!(request_id, n);
        outcomes.push(outcome);
        answered.add_permits(1);
        if n % 500 == 250 {
            leaders.insert(move_leader(cluster, replicas).await);
        }
    }
    sending.await.unwrap();
    assert!(leaders.len() > 1, "leadership has moved");
    outcomes
}

/// Moves the leadership of t/0 to the next one of `replicas`, and returns who led.
async fn move_leader(cluster: &Cluster, replicas: &[u64]) -> u64 {
    let leader = cluster.leader("t", 0).await;
    let (log, led) = (cluster.log("t", 0), leader.node.id().0);
    let at = replicas.iter().position(|node| *node == led).unwrap();
    let next = replicas[(at + 1) % replicas.len()] as usize - 1;
    let next = cluster.nodes[next].node.registry().replica(log).unwrap();
    let moved = leader.node.partition_host().transfer(log, next).unwrap();
    // A transfer that does not begin leaves everything as it was.
    let _ = moved.await;
    led
}

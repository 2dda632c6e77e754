//! Producers: with and without sequence numbers, with the library and with bare calls.

use std::sync::Arc;
use std::time::Duration;

use quipu::batch::{BatchBuilder, Codec, Limits, Record, payload_crc};
use quipu::client::{Acks, Delivery, Error, Producer, ProducerConfig};
use quipu::proto::client::ErrorReason;
use quipu::proto::server::ProduceRequest;
use quipu::proto::server::log_service_client::LogServiceClient;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::stamped::reason_of;
use super::{CALL_MAX, TOPIC, World};
use crate::history::{Append, Event, Outcome, Promise};
use crate::rng::Rng;
use crate::value::Value;

/// Bursts of a producer that wait for their answers.
const BURSTS_MAX: usize = 24;
const BURST_RECORDS_MAX: u64 = 32;

/// How producers of the library are set up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    acks: Acks,
    codec: Codec,
    is_idempotent: bool,
}

pub(super) const KINDS: [Kind; 7] = [
    Kind { acks: Acks::Quorum, codec: Codec::None, is_idempotent: true },
    Kind { acks: Acks::Quorum, codec: Codec::None, is_idempotent: true },
    Kind { acks: Acks::Quorum, codec: Codec::None, is_idempotent: true },
    Kind { acks: Acks::Quorum, codec: Codec::Lz4, is_idempotent: true },
    Kind { acks: Acks::Quorum, codec: Codec::None, is_idempotent: false },
    Kind { acks: Acks::Leader, codec: Codec::None, is_idempotent: true },
    Kind { acks: Acks::None, codec: Codec::None, is_idempotent: true },
];

/// Sends until it is over, as one producer after the other.
pub(super) async fn live(world: Arc<World>, kind: Kind, mut rng: Rng) {
    while !world.is_over() {
        let until = Instant::now() + Duration::from_secs(rng.between(5, 60));
        let Kind { acks, codec, is_idempotent } = kind;
        let delivery_timeout = Duration::from_secs(rng.between(5, 60));
        let config = ProducerConfig::new(TOPIC);
        let config = ProducerConfig { acks, codec, is_idempotent, delivery_timeout, ..config };
        match world.client().producer(config).await {
            Ok(producer) => send(&world, kind, producer, until, &mut rng).await,
            Err(_) => world.pause(Duration::from_millis(200)).await,
        }
    }
}

async fn send(world: &Arc<World>, kind: Kind, producer: Producer, until: Instant, rng: &mut Rng) {
    let number = world.number();
    let mut counter = 0;
    let room = Arc::new(Semaphore::new(BURSTS_MAX));
    let mut bursts = JoinSet::new();
    while !world.is_over() && Instant::now() < until {
        let permit = room.clone().acquire_owned().await.expect("it is never closed");
        let partition = rng.below(world.partitions.into()) as u32;
        let invoked = world.history.now();
        let mut sent = Vec::new();
        for _ in 0..rng.between(1, BURST_RECORDS_MAX) {
            let value = Value { producer: number, counter };
            let bytes = value.bytes();
            let record = Record { value: Some(&bytes), ..Record::default() };
            match producer.send_to(partition, &record).await {
                Ok(delivery) => sent.push((value, delivery)),
                Err(error) => {
                    world.history.breach(format!("a record is not taken: {error}"));
                    break;
                }
            }
            counter += 1;
        }
        let world = world.clone();
        bursts.spawn(async move {
            await_burst(&world, kind, partition, invoked, sent).await;
            drop(permit);
        });
        while bursts.try_join_next().is_some() {}
        tokio::time::sleep(Duration::from_millis(rng.between(4, 40))).await;
    }
    producer.close().await;
    bursts.join_all().await;
}

/// Waits for what becomes of records, and takes note of it.
async fn await_burst(
    world: &World,
    kind: Kind,
    partition: u32,
    invoked: Duration,
    sent: Vec<(Value, Delivery)>,
) {
    let promise = if kind.acks == Acks::Quorum { Promise::Quorum } else { Promise::Weak };
    let (mut stored, mut refused, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    let mut why = String::new();
    for (value, delivery) in sent {
        match delivery.await {
            Ok(receipt) => stored.push((value, receipt.offset)),
            Err(error @ (Error::Unavailable(_) | Error::Exhausted(_))) => {
                refused.push(value);
                why = error.to_string();
            }
            Err(error) => {
                unknown.push(value);
                why = error.to_string();
            }
        }
    }
    let ended = world.history.now();
    if promise == Promise::Quorum {
        world.count(partition, stored.len() as u64);
    }
    let of_stored = stored.iter().map(|(value, _)| *value).collect();
    let outcomes = [
        (of_stored, Outcome::Acknowledged(stored)),
        (refused, Outcome::Refused(why.clone())),
        (unknown, Outcome::Unknown(why)),
    ];
    for (values, outcome) in outcomes.into_iter().filter(|(values, _)| !values.is_empty()) {
        let is_idempotent = kind.is_idempotent;
        let append = Append { invoked, ended, partition, promise, is_idempotent, values, outcome };
        world.history.note(Event::Append(append));
    }
}

/// Sends by bare calls, to any node, one batch at a time, and never again.
pub(super) async fn call(world: Arc<World>, mut rng: Rng) {
    let (number, mut counter) = (world.number(), 0);
    while !world.is_over() {
        let Some(channel) = world.connect_any(&mut rng).await else {
            world.pause(Duration::from_millis(50)).await;
            continue;
        };
        let mut client = LogServiceClient::new(channel);
        for _ in 0..rng.between(1, 200) {
            let is_good = call_once(&world, &mut client, number, &mut counter, &mut rng).await;
            world.pause(Duration::from_millis(rng.between(2, 20))).await;
            if world.is_over() || !is_good {
                break;
            }
        }
    }
}

async fn call_once(
    world: &World,
    client: &mut LogServiceClient<tonic::transport::Channel>,
    number: u32,
    counter: &mut u64,
    rng: &mut Rng,
) -> bool {
    let partition = rng.below(world.partitions.into()) as u32;
    let mut values = Vec::new();
    let mut builder = BatchBuilder::new(Limits::default());
    for _ in 0..rng.between(1, 8) {
        let value = Value { producer: number, counter: *counter };
        let bytes = value.bytes();
        let record = Record { value: Some(&bytes), ..Record::default() };
        builder.append(&record).expect("the record is small");
        values.push(value);
        *counter += 1;
    }
    let codec = *rng.pick(&[Codec::None, Codec::Lz4, Codec::Zstd]).expect("there are some");
    let batch = builder.build(codec).expect("the batch is small");
    let (topic, crc) = (TOPIC.to_owned(), Some(payload_crc(&batch)));
    let request = ProduceRequest { topic, partition, batch, crc, ..ProduceRequest::default() };
    let invoked = world.history.now();
    let answer = timeout(CALL_MAX, client.produce(request)).await;
    let ended = world.history.now();
    let outcome = match answer {
        Ok(Ok(answer)) => {
            let base = answer.into_inner().base_offset;
            world.count(partition, values.len() as u64);
            Outcome::Acknowledged(values.iter().copied().zip(base..).collect())
        }
        Ok(Err(status)) if is_refusal(&status) => Outcome::Refused(status.message().to_owned()),
        Ok(Err(status)) => Outcome::Unknown(status.message().to_owned()),
        Err(_) => Outcome::Unknown("no answer".to_owned()),
    };
    let is_good = matches!(outcome, Outcome::Acknowledged(_));
    let (promise, is_idempotent) = (Promise::Quorum, false);
    let append = Append { invoked, ended, partition, promise, is_idempotent, values, outcome };
    world.history.note(Event::Append(append));
    is_good
}

/// True if a server says that nothing was done.
fn is_refusal(status: &Status) -> bool {
    matches!(
        reason_of(status),
        Some(
            ErrorReason::NotLeader
                | ErrorReason::NoLeader
                | ErrorReason::Draining
                | ErrorReason::Starting
                | ErrorReason::Overloaded
                | ErrorReason::DiskFull
                | ErrorReason::LimitReached
        )
    )
}

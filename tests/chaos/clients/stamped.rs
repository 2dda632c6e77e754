//! Bare calls of producers that number their records.

use std::time::Duration;

use bytes::Bytes;
use quipu::batch::{BatchBuilder, Codec, Limits, Record};
use quipu::proto::client::ErrorReason;
use quipu::proto::server::log_service_client::LogServiceClient;
use quipu::proto::server::{InitProducerRequest, ProduceRequest, ProducerStamp};
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use super::{CALL_MAX, TOPIC, World};
use crate::history::{Append, Event};
use crate::value::Value;

pub(super) type Log = LogServiceClient<Channel>;

/// Has a producer id given, or the next epoch of one.
pub(super) async fn init(
    client: &mut Log,
    partition: u32,
    producer_id: u64,
) -> Option<ProducerStamp> {
    let topic = TOPIC.to_owned();
    let request =
        InitProducerRequest { topic, partition, producer_id, ..InitProducerRequest::default() };
    let answer = timeout(CALL_MAX, client.init_producer(request)).await.ok()?.ok()?.into_inner();
    Some(ProducerStamp {
        producer_id: answer.producer_id,
        producer_epoch: answer.producer_epoch,
        base_sequence: answer.next_sequence,
    })
}

/// Sends one record under a stamp. Returns its offset, or why it has none, if the server said so.
pub(super) async fn send(
    client: &mut Log,
    value: Value,
    partition: u32,
    stamp: ProducerStamp,
) -> Result<u64, Option<ErrorReason>> {
    let batch = batch_of(value);
    let (topic, producer) = (TOPIC.to_owned(), Some(stamp));
    let request = ProduceRequest { topic, partition, batch, producer, ..ProduceRequest::default() };
    match timeout(CALL_MAX, client.produce(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner().base_offset),
        Ok(Err(status)) => Err(reason_of(&status)),
        Err(_) => Err(None),
    }
}

/// Why a server refused something, if it says so.
pub(super) fn reason_of(status: &Status) -> Option<ErrorReason> {
    let reason = status.get_details_error_info()?.reason;
    ErrorReason::from_str_name(&format!("ERROR_REASON_{reason}"))
}

/// Notes what became of a record that was sent from `invoked` on.
pub(super) fn note(
    world: &World,
    invoked: Duration,
    value: Value,
    partition: u32,
    offset: Option<u64>,
) {
    let times = (invoked, world.history.now());
    world.history.note(Event::Append(Append::of_one(times, partition, value, offset)));
}

fn batch_of(value: Value) -> Bytes {
    let bytes = value.bytes();
    let mut builder = BatchBuilder::new(Limits::default());
    builder.append(&Record { value: Some(&bytes), ..Record::default() }).expect("it is small");
    builder.build(Codec::None).expect("it is small")
}

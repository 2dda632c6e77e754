//! Fetchers: bare calls to one node each, which answers from its own replicas.

use std::sync::Arc;
use std::time::Duration;

use quipu::batch::{Limits, Scratch, verify};
use quipu::proto::server::log_service_client::LogServiceClient;
use quipu::proto::server::{FetchRequest, FetchResponse};
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::{CALL_MAX, TOPIC, World};
use crate::checker::Mark;
use crate::history::{Event, Poll};
use crate::value::Value;

const BYTES: u32 = 512 << 10;
const WAIT_MS: u32 = 50;

/// Whether a node that has no replica may ask another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forward {
    On,
    Off,
}

/// What a call returned.
pub(crate) struct Fetched {
    pub(crate) marks: Vec<Mark>,
    pub(crate) records: Vec<(u64, Option<Value>)>,
    pub(crate) next: u64,
    pub(crate) high_watermark: u64,
    pub(crate) log_start: u64,
}

/// Reads once from `offset` on.
pub(crate) async fn fetch(
    client: &mut LogServiceClient<Channel>,
    partition: u32,
    offset: u64,
    forward: Forward,
) -> Result<Fetched, Status> {
    let mut request = Request::new(FetchRequest {
        topic: TOPIC.to_owned(),
        partition,
        offset,
        max_bytes: BYTES,
        max_wait_ms: WAIT_MS,
        ..FetchRequest::default()
    });
    if forward == Forward::Off {
        request.metadata_mut().insert("quipu-forward", MetadataValue::from_static("off"));
    }
    let answer = timeout(CALL_MAX, client.fetch(request)).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))?;
    Ok(take_apart(&answer.into_inner(), offset))
}

fn take_apart(answer: &FetchResponse, from: u64) -> Fetched {
    let (mut marks, mut records) = (Vec::new(), Vec::new());
    let mut scratch = Scratch::default();
    for stored in &answer.batches {
        let base_offset = stored.base_offset;
        marks.push(Mark {
            base_offset,
            records: stored.record_count,
            append_time_ms: stored.append_time_ms,
            leader_epoch: stored.leader_epoch,
            crc: stored.crc,
        });
        match verify(&stored.batch, Some(stored.crc), &Limits::default(), &mut scratch) {
            Ok(verified) => {
                let values = verified.records().map(|record| record.value.and_then(Value::parse));
                let numbered = (base_offset..).zip(values);
                records.extend(numbered.filter(|(offset, _)| *offset >= from));
            }
            Err(_) => records.push((base_offset, None)),
        }
    }
    Fetched {
        marks,
        records,
        next: answer.next_offset,
        high_watermark: answer.high_watermark,
        log_start: answer.log_start_offset,
    }
}

/// Reads all partitions from the node of one place, from the beginning and on as records come;
/// every other time only what the node has itself.
pub(super) async fn live(world: Arc<World>, place: usize) {
    let reader = world.number();
    let mut next = vec![0; world.partitions as usize];
    for session in 0_u32.. {
        let forward = if session.is_multiple_of(2) { Forward::Off } else { Forward::On };
        if world.is_over() {
            return;
        }
        match world.connect(place).await {
            Some(channel) => {
                let mut client = LogServiceClient::new(channel);
                let place = Some(place).filter(|_| forward == Forward::Off);
                let who = Who { reader, session, place, forward };
                read(&world, &mut client, who, &mut next).await;
            }
            None => world.pause(Duration::from_millis(100)).await,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Who {
    reader: u32,
    session: u32,
    place: Option<usize>,
    forward: Forward,
}

/// Reads until a call fails.
async fn read(world: &World, client: &mut LogServiceClient<Channel>, who: Who, next: &mut [u64]) {
    while !world.is_over() {
        for (partition, from) in (0..).zip(next.iter_mut()) {
            let invoked = world.history.now();
            let Ok(fetched) = fetch(client, partition, *from, who.forward).await else {
                return world.pause(Duration::from_millis(20)).await;
            };
            let poll = Poll {
                invoked,
                ended: world.history.now(),
                reader: who.reader,
                session: who.session,
                place: who.place,
                partition,
                from: *from,
                next: fetched.next,
                high_watermark: Some(fetched.high_watermark),
                log_start: Some(fetched.log_start),
                records: fetched.records,
            };
            *from = fetched.next;
            world.history.note(Event::Poll(poll));
        }
    }
}

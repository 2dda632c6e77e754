//! Subscriptions of the fake cluster: they honor credit, and break where a test wants it.

use std::collections::BTreeMap;

use prost::Message as _;
use quipu::proto::client as api;
use quipu::proto::client::ErrorReason;
use quipu::proto::client::start_position::Position;
use quipu::proto::client::subscribe_request::Message as Asked;
use quipu::proto::client::subscribe_response::Message as Told;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::fake::{Node, Partition, State, TOPIC, TOPIC_ID, status};

type Answers = mpsc::Sender<Result<api::SubscribeResponse, Status>>;

/// Serves a subscription until it breaks.
pub(crate) async fn run(node: Node, mut asked: Streaming<api::SubscribeRequest>, answers: Answers) {
    let first = asked.message().await.unwrap().and_then(|request| request.message);
    let Some(Asked::Start(start)) = first else { panic!("it begins with {first:?}") };
    if start.topic != TOPIC {
        let _ = answers.send(Err(status(ErrorReason::UnknownTopic))).await;
        return;
    }
    let mut session = begin(&node, start);
    let positions = session.positions(&node);
    let started = api::SubscribeStarted { topic_id: TOPIC_ID.into(), positions };
    let mut told = Some(Told::Started(started));
    loop {
        if let Some(message) = told.take() {
            let response = api::SubscribeResponse { message: Some(message) };
            if answers.send(Ok(response)).await.is_err() {
                return;
            }
        } else {
            match asked.message().await {
                Ok(Some(api::SubscribeRequest { message: Some(Asked::Credit(credit)) })) => {
                    session.credit += i64::from(credit.bytes);
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
        if session.messages_left == 0 {
            let _ = answers.send(Err(Status::unavailable("scripted cut"))).await;
            return;
        }
        told = session.next(&mut node.state.lock().unwrap());
    }
}

struct Session {
    offsets: BTreeMap<u32, u64>,
    credit_bytes: i64,
    credit: i64,
    messages_left: usize,
}

fn begin(node: &Node, start: api::SubscribeStart) -> Session {
    let mut state = node.state.lock().unwrap();
    let wanted: Vec<_> = match start.partitions.is_empty() {
        true => (0..state.partitions.len() as u32).map(|p| (p, start.start)).collect(),
        false => start.partitions.iter().map(|p| (p.partition, p.start)).collect(),
    };
    let offset = |(partition, start): (u32, Option<api::StartPosition>)| {
        let held = &state.partitions[partition as usize];
        (partition, resolve(held, start.and_then(|start| start.position)))
    };
    let offsets = wanted.into_iter().map(offset).collect();
    let credit_bytes = i64::from(start.credit_bytes);
    let messages_left = state.cuts.pop_front().unwrap_or(usize::MAX);
    state.subscribed.push(start);
    Session { offsets, credit_bytes, credit: credit_bytes, messages_left }
}

/// The offset of a place.
pub(crate) fn resolve(held: &Partition, place: Option<Position>) -> u64 {
    match place {
        Some(Position::Offset(offset)) => offset,
        Some(Position::Latest(_)) => held.next_offset,
        Some(Position::Earliest(_) | Position::TimeMs(_)) | None => held.log_start_offset,
    }
}

impl Session {
    fn positions(&self, node: &Node) -> Vec<api::PartitionPosition> {
        let state = node.state.lock().unwrap();
        let position = |(partition, offset): (&u32, &u64)| {
            state.partitions[*partition as usize].position(*partition, *offset)
        };
        self.offsets.iter().map(position).collect()
    }

    /// The next thing to say, if there is one and credit for it.
    fn next(&mut self, state: &mut State) -> Option<Told> {
        if self.credit <= 0 {
            return None;
        }
        for (partition, offset) in &mut self.offsets {
            let held = &state.partitions[*partition as usize];
            if *offset < held.log_start_offset {
                let (from_offset, to_offset) = (*offset, held.log_start_offset);
                *offset = to_offset;
                let partition = *partition;
                return Some(Told::Gap(api::SubscribeGap { partition, from_offset, to_offset }));
            }
            let ends_after = |batch: &&api::StoredBatch| {
                batch.base_offset + u64::from(batch.record_count) > *offset
            };
            let Some(batch) = held.batches.iter().find(ends_after) else { continue };
            *offset = batch.base_offset + u64::from(batch.record_count);
            let cost_bytes = batch.encoded_len() as u32;
            self.credit -= i64::from(cost_bytes);
            self.messages_left -= 1;
            let data = api::SubscribeData {
                partition: *partition,
                batches: vec![batch.clone()],
                next_offset: *offset,
                high_watermark: held.next_offset,
                cost_bytes,
            };
            let owed = u64::try_from(self.credit_bytes - self.credit).unwrap();
            state.owed_max = state.owed_max.max(owed);
            return Some(Told::Data(data));
        }
        None
    }
}

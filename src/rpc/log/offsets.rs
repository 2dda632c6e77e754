//! ListOffsets: looking up offsets, surely and by now.
//!
//! Only a leader that a majority has confirmed after the question knows how far a partition is.
//! Where it begins, other replicas know well enough for a reader.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, timeout_at};

use super::super::call::{Call, Pauses};
use super::super::channels::log_client;
use super::super::context::{Context, Route, Target};
use super::super::convert::{self, Place};
use super::super::counters::Method;
use super::super::error::{Effect, Error};
use super::super::limits::NAMED_PARTITIONS_MAX;
use super::fetch;
use crate::partition::{AskError, FetchError, Handle};
use crate::proto::server::{
    FetchRequest, ListOffsetsRequest, ListOffsetsResponse, PartitionOffset, StartPosition,
};
use crate::storage::{self, Access};
use crate::types::NodeId;

/// Partitions that are looked into at the same time.
const AT_ONCE_MAX: usize = 32;
/// How long a leader is looked for where any replica can answer.
const LEADER_PATIENCE: Duration = Duration::from_secs(1);

/// Answers one request.
pub(super) async fn list_offsets(
    context: &Context,
    request: ListOffsetsRequest,
    call: Call,
) -> Result<ListOffsetsResponse, Error> {
    let _permit = context.enter()?;
    if request.partitions.len() > NAMED_PARTITIONS_MAX {
        let expected = format!("at most {NAMED_PARTITIONS_MAX} partitions");
        return Err(Error::field("partitions", expected));
    }
    let place = convert::place(request.position)?;
    let topic = request.topic.as_str();
    let found = context.lookup(topic, &request.topic_id).await?;
    let partitions = match request.partitions.is_empty() {
        true => (0..found.topic().partitions.len() as u32).collect(),
        false => request.partitions,
    };
    let mut wanted = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let target = context.target(topic, &request.topic_id, partition).await?;
        wanted.push((place, target));
    }
    let offsets = look_up(context, topic, wanted, call).await?;
    Ok(ListOffsetsResponse { topic_id: found.id().to_string(), offsets })
}

/// Looks up a place in each of some partitions of a topic, in their order.
pub(in crate::rpc) async fn look_up(
    context: &Context,
    topic: &str,
    wanted: Vec<(Place, Target)>,
    call: Call,
) -> Result<Vec<PartitionOffset>, Error> {
    let one = |(place, target)| look_up_one(context, topic, target, place, call);
    stream::iter(wanted.into_iter().map(one)).buffered(AT_ONCE_MAX).try_collect().await
}

/// The same for whoever is going to read: where a partition begins, any replica can say when its
/// leader does not soon.
pub(super) async fn look_up_for_reading(
    context: &Context,
    topic: &str,
    wanted: Vec<(Place, Target)>,
    call: Call,
) -> Result<Vec<PartitionOffset>, Error> {
    let one = async |(place, target)| {
        if place != Place::Earliest {
            return look_up_one(context, topic, target, place, call).await;
        }
        let patience = Instant::now() + LEADER_PATIENCE;
        let of_leader = Call { deadline: call.deadline.min(patience), ..call };
        match look_up_one(context, topic, target, place, of_leader).await {
            Err(error) if error.effect() != Effect::Final => {
                earliest_at_hand(context, topic, target, call).await.map_err(|_| error)
            }
            sure => sure,
        }
    };
    stream::iter(wanted.into_iter().map(one)).buffered(AT_ONCE_MAX).try_collect().await
}

/// Where a partition begins as the replica at hand knows it, which may be behind.
async fn earliest_at_hand(
    context: &Context,
    topic: &str,
    target: Target,
    call: Call,
) -> Result<PartitionOffset, Error> {
    let mut fetch = FetchRequest {
        topic: topic.to_owned(),
        topic_id: target.topic_id.to_string(),
        partition: target.partition,
        max_bytes: 1,
        ..FetchRequest::default()
    };
    loop {
        let found = match fetch::fetch(context, fetch.clone(), call).await {
            Ok(found) => found,
            Err(error) => match error.log_start().filter(|start| *start > fetch.offset) {
                Some(log_start) => {
                    fetch.offset = log_start;
                    continue;
                }
                None => return Err(error),
            },
        };
        let log_start_offset = found.log_start_offset.max(fetch.offset);
        return Ok(PartitionOffset {
            partition: target.partition,
            offset: log_start_offset,
            log_start_offset,
            high_watermark: found.high_watermark,
            leader_epoch: 0,
        });
    }
}

async fn look_up_one(
    context: &Context,
    topic: &str,
    target: Target,
    place: Place,
    call: Call,
) -> Result<PartitionOffset, Error> {
    let mut pauses = Pauses::new();
    let mut hint = None;
    loop {
        let attempt = attempt(context, topic, target, place, call, hint);
        let outcome = timeout_at(call.deadline, attempt).await.unwrap_or(Err(Error::NoLeader));
        let error = match outcome {
            Ok(offset) => return Ok(offset),
            Err(error) => error,
        };
        // A question that was lost can be asked again.
        let is_worth_another = call.may_forward && error.effect() != Effect::Final;
        hint = error.leader().filter(|leader| hint != Some(*leader));
        if !is_worth_another || !pauses.pause(call.deadline).await {
            return Err(error);
        }
    }
}

async fn attempt(
    context: &Context,
    topic: &str,
    target: Target,
    place: Place,
    call: Call,
    hint: Option<NodeId>,
) -> Result<PartitionOffset, Error> {
    match context.route(target.log, hint) {
        Route::Here(handle) => look_here(context, &handle, target, place).await,
        Route::There(node) if call.may_forward => {
            context.counters().forward(Method::ListOffsets);
            let request = ListOffsetsRequest {
                topic: topic.to_owned(),
                topic_id: target.topic_id.to_string(),
                partitions: vec![target.partition],
                position: Some(StartPosition { position: Some(place.into()) }),
            };
            let mut client = log_client(context.channel(node)?);
            let response = client.list_offsets(call.forwarded(request)).await?.into_inner();
            let answer = response.offsets.into_iter().next();
            answer.ok_or(Error::Unexpected("a node answers without an offset"))
        }
        Route::There(_) | Route::Unknown => Err(context.not_leader(target.log)),
    }
}

async fn look_here(
    context: &Context,
    handle: &Handle,
    target: Target,
    place: Place,
) -> Result<PartitionOffset, Error> {
    let high_watermark = handle.barrier().await.map_err(|error| match error {
        AskError::NotLeader { .. } => context.not_leader(target.log),
        error => error.into(),
    })?;
    let status = handle.status();
    let log_start = status.log_start.max(handle.reader().log_start_offset());
    let offset = match place {
        Place::Earliest => log_start,
        Place::Latest => high_watermark,
        Place::Offset(requested) if requested < log_start || requested > high_watermark => {
            return Err(FetchError::OutOfRange { requested, log_start, high_watermark }.into());
        }
        Place::Offset(offset) => offset,
        Place::Time(time_ms) => {
            let found = offset_for_time(context, handle, time_ms).await?;
            found.map_or(high_watermark, |offset| offset.min(high_watermark))
        }
    };
    Ok(PartitionOffset {
        partition: target.partition,
        offset,
        log_start_offset: log_start,
        high_watermark,
        leader_epoch: status.term,
    })
}

async fn offset_for_time(
    context: &Context,
    handle: &Handle,
    time_ms: i64,
) -> Result<Option<u64>, Error> {
    let found = match handle.reader().offset_for_time(time_ms, Access::Hot) {
        Err(storage::Error::Cold) => {
            let reader = handle.reader().clone();
            let read = move || reader.offset_for_time(time_ms, Access::MayBlock);
            context.read_cold(read).await??
        }
        found => found?,
    };
    Ok(found.map(|(offset, _)| offset))
}

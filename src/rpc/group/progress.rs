//! Progress: how far a group is in partitions, as their leaders surely know by now.

use bytes::Bytes;

use super::super::call::Call;
use super::super::channels::group_client;
use super::super::context::Context;
use super::super::error::Error;
use super::super::log::read;
use super::commands::{decode_error, encode_error, log_id};
use super::leaders::{self, Kind};
use crate::partition::{GroupId, Handle};
use crate::proto::internal::inspect_group_outcome::Outcome;
use crate::proto::internal::{
    GroupPlace, GroupProgress, InspectGroupOutcome, InspectGroupRequest, InspectGroupResponse,
};
use crate::types::{LogId, NodeId};

/// Says how far a group is in partitions, each of which is given with the group's start in it.
/// Returns what is known of each, in their order.
pub(super) async fn inspect(
    context: &Context,
    group: GroupId,
    places: Vec<(LogId, u64)>,
    call: Call,
) -> Vec<Result<GroupProgress, Error>> {
    let here = |handle: Handle, start| {
        let group = group.clone();
        async move { inspect_here(context, &handle, group, start).await }
    };
    let there = |node, places| inspect_there(context, node, group.clone(), places, call);
    leaders::ask(context, Kind::Question, places, call, here, there).await
}

async fn inspect_here(
    context: &Context,
    handle: &Handle,
    group: GroupId,
    start: u64,
) -> Result<GroupProgress, Error> {
    let high_watermark = handle.barrier().await?;
    let known = handle.group_progress(group).await?;
    let status = handle.status();
    let log_start_offset = status.log_start.max(handle.reader().log_start_offset());
    let generation = known.as_ref().map_or(0, |known| known.generation);
    let position = known.and_then(|known| known.position);
    let offset = position.as_ref().map_or(start, |position| position.offset);
    let oldest = offset.max(log_start_offset);
    let oldest_ms = match oldest < high_watermark {
        true => oldest_ms(context, handle, oldest).await?,
        false => None,
    };
    Ok(GroupProgress {
        offset,
        is_committed: position.as_ref().is_some_and(|position| !position.member.is_nil()),
        metadata: position.as_ref().map(|p| p.metadata.as_str().to_owned()).unwrap_or_default(),
        leader_epoch: position.map_or(0, |position| position.leader_epoch),
        generation,
        log_start_offset,
        high_watermark,
        oldest_ms,
    })
}

/// When the record at `offset` was appended.
async fn oldest_ms(context: &Context, handle: &Handle, offset: u64) -> Result<Option<i64>, Error> {
    match read(context, handle, offset, 1).await {
        Ok(found) => Ok(found.batches.first().map(|batch| batch.header.append_time_ms)),
        // Retention was faster.
        Err(error) if error.log_start().is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

async fn inspect_there(
    context: &Context,
    node: NodeId,
    group: GroupId,
    places: Vec<(LogId, u64)>,
    call: Call,
) -> Result<Vec<Result<GroupProgress, Error>>, Error> {
    let mut client = group_client(context.channel(node)?);
    let places = places
        .into_iter()
        .map(|(log, start)| GroupPlace { log_id: Bytes::copy_from_slice(log.0.as_bytes()), start });
    let request = InspectGroupRequest {
        cluster_id: Bytes::copy_from_slice(context.node().cluster().0.as_bytes()),
        group_id: Bytes::copy_from_slice(group.as_bytes()),
        places: places.collect(),
    };
    let response = client.inspect_group(call.forwarded(request)).await?.into_inner();
    let progress = |told: InspectGroupOutcome| match told.outcome {
        Some(Outcome::Progress(progress)) => Ok(progress),
        Some(Outcome::Error(error)) => Err(decode_error(&error)),
        None => Err(Error::Unexpected("a node says nothing of a group")),
    };
    Ok(response.outcomes.into_iter().map(progress).collect())
}

/// Answers another node: only for partitions that are led here.
pub(super) async fn answer(
    context: &Context,
    request: InspectGroupRequest,
    call: Call,
) -> Result<InspectGroupResponse, Error> {
    let group = GroupId::try_new(&request.group_id);
    let group = group.ok_or_else(|| Error::field("group_id", "16 bytes"))?;
    let mut places = Vec::with_capacity(request.places.len());
    for place in request.places {
        places.push((log_id(&place.log_id)?, place.start));
    }
    let outcomes = inspect(context, group, places, call).await.into_iter().map(|outcome| {
        let outcome = match outcome {
            Ok(progress) => Outcome::Progress(progress),
            Err(error) => Outcome::Error(encode_error(&error)),
        };
        InspectGroupOutcome { outcome: Some(outcome) }
    });
    Ok(InspectGroupResponse { outcomes: outcomes.collect() })
}

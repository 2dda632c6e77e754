//! Topics described: what the metadata says, and what the partitions' leaders do.

use std::collections::HashMap;

use futures_util::stream::{self, StreamExt as _};
use tokio::time::{Duration, timeout};

use super::super::call::Call;
use super::super::context::{Context, Route};
use super::super::error::Error;
use super::super::peer::{self, ReplicaStatus};
use super::config;
use crate::cluster::command::{Id, Partition, Topic};
use crate::proto::server as api;
use crate::proto::server::topic_service_client::TopicServiceClient;
use crate::types::{LogId, NodeId, ReplicaId};

/// Leaders that are asked side by side.
const ASKED_AT_ONCE: usize = 64;
/// How long one of them may take. Its offsets are left out then.
const PATIENCE: Duration = Duration::from_secs(2);

/// Describes a topic.
///
/// # Errors
/// [`Error::UnknownTopicId`] if it was deleted meanwhile.
pub(super) async fn describe(context: &Context, id: Id) -> Result<api::Topic, Error> {
    let state = context.node().state();
    let topic = state.topic(id);
    let topic = topic.ok_or_else(|| Error::UnknownTopicId(id.uuid().to_string()))?;
    let logs: Vec<LogId> = (0..topic.partitions.len() as u32).map(|n| topic.log_id(n)).collect();
    let asked = stream::iter(logs.iter().copied()).map(|log| async move {
        let status = timeout(PATIENCE, status_of(context, log)).await;
        (log, status.ok().flatten())
    });
    let known: HashMap<LogId, Option<ReplicaStatus>> =
        asked.buffer_unordered(ASKED_AT_ONCE).collect().await;
    let partitions = topic.partitions.iter().enumerate();
    Ok(api::Topic {
        name: topic.name.clone(),
        id: topic.id.uuid().to_string(),
        config: config::show(&topic.config),
        partitions: partitions
            .map(|(n, partition)| {
                let known = known.get(&logs[n]).copied().flatten();
                described(context, topic, (n as u32, partition), known)
            })
            .collect(),
    })
}

fn described(
    context: &Context,
    topic: &Topic,
    (number, partition): (u32, &Partition),
    status: Option<ReplicaStatus>,
) -> api::Partition {
    let log = topic.log_id(number);
    let leader = context.node().leader_of(log);
    let nodes = |ids: &[u64]| ids.iter().map(|id| ReplicaId(*id).node().0).collect();
    api::Partition {
        partition: number,
        leader: leader.map_or(0, |leader| leader.node.0),
        leader_epoch: leader.map_or(0, |leader| leader.term),
        replicas: nodes(&partition.replicas),
        target_replicas: nodes(&partition.target),
        log_start_offset: status.map(|status| status.log_start),
        high_watermark: status.map(|status| status.high_watermark),
        log_id: log.to_string(),
    }
}

/// What a partition's leader says of its log, if it answers.
async fn status_of(context: &Context, log: LogId) -> Option<ReplicaStatus> {
    match context.route(log, None) {
        Route::Here(handle) => {
            let status = handle.status();
            let log_start = status.log_start.max(handle.reader().log_start_offset());
            let high_watermark = status.high_watermark;
            let replica = context.node().registry().replica(log)?;
            Some(ReplicaStatus {
                replica,
                membership_index: 0,
                high_watermark,
                log_start,
                waits_for_repair: false,
            })
        }
        Route::There(node) => {
            let channel = context.channel(node).ok()?;
            let asked = peer::inspect_replica(channel, context.node().cluster(), log).await;
            asked.ok().flatten().filter(|status| !status.waits_for_repair)
        }
        Route::Unknown => None,
    }
}

/// Deletes the records of a partition below an offset.
///
/// # Errors
/// What keeps it from being done.
pub(super) async fn delete_records(
    context: &Context,
    request: api::DeleteRecordsRequest,
    call: Call,
) -> Result<api::DeleteRecordsResponse, Error> {
    let target = context.target(&request.name, "", request.partition).await?;
    match context.route(target.log, None) {
        Route::Here(handle) => {
            let high_watermark = handle.barrier().await?;
            if request.before_offset > high_watermark {
                let expected = format!("at most the high watermark, {high_watermark}");
                return Err(Error::field("before_offset", expected));
            }
            let log_start_offset = handle.delete_records(request.before_offset).await?;
            Ok(api::DeleteRecordsResponse { log_start_offset })
        }
        Route::There(node) if call.may_forward => {
            forward_deletion(context, node, request, call).await
        }
        Route::There(_) | Route::Unknown => Err(context.not_leader(target.log)),
    }
}

async fn forward_deletion(
    context: &Context,
    node: NodeId,
    request: api::DeleteRecordsRequest,
    call: Call,
) -> Result<api::DeleteRecordsResponse, Error> {
    let channel = context.channel(node)?;
    let forwarded = call.forwarded(request);
    let deleted = TopicServiceClient::new(channel).delete_records(forwarded).await?;
    Ok(deleted.into_inner())
}

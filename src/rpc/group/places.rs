//! Places: the partitions of a group, and where in them something is.

use std::collections::BTreeMap;

use super::super::call::Call;
use super::super::context::{Context, Target};
use super::super::convert::Place;
use super::super::error::Error;
use super::super::limits::NAMED_PARTITIONS_MAX;
use super::super::log::offsets::look_up;
use super::progress;
use crate::cluster::command::Topic;
use crate::cluster::group::{Group, StartPlace};
use crate::cluster::{Refusal, State};
use crate::group::subscription;
use crate::partition::GroupId;
use crate::proto::server as api;
use crate::types::LogId;

/// A partition of a group.
#[derive(Debug, Clone)]
pub(super) struct GroupPartition {
    /// Its topic's name.
    pub(super) topic: String,
    /// The partition.
    pub(super) target: Target,
}

/// The name that a group's progress has in partitions.
pub(super) fn progress_id(group: &Group) -> GroupId {
    GroupId::try_new(group.id.uuid().as_bytes()).expect("an id has 16 bytes")
}

/// The partitions of a topic.
fn partitions_of(topic: &Topic) -> impl Iterator<Item = GroupPartition> {
    (0..topic.partitions.len() as u32).map(|partition| GroupPartition {
        topic: topic.name.clone(),
        target: target(topic, partition),
    })
}

/// A partition of a topic.
pub(super) fn target(topic: &Topic, partition: u32) -> Target {
    let (topic_id, log) = (topic.id.uuid(), topic.log_id(partition));
    Target { topic_id, partition, log, config: topic.config }
}

/// All partitions that a group reads, by topic and number.
pub(super) fn all(state: &State, group: &Group) -> Vec<GroupPartition> {
    let mut topics: Vec<&Topic> = subscription::topics(state, group).collect();
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    topics.into_iter().flat_map(partitions_of).collect()
}

/// The partitions that a request names, or all.
///
/// # Errors
/// For a partition that is not the group's.
pub(super) fn named(
    state: &State,
    group: &Group,
    wanted: &[api::TopicPartitions],
) -> Result<Vec<GroupPartition>, Error> {
    if wanted.is_empty() {
        return Ok(all(state, group));
    }
    let count: usize = wanted.iter().map(|topic| topic.partitions.len().max(1)).sum();
    if count > NAMED_PARTITIONS_MAX {
        return Err(Error::field("topics", format!("at most {NAMED_PARTITIONS_MAX} partitions")));
    }
    let mut named = BTreeMap::new();
    for api::TopicPartitions { topic: name, partitions } in wanted {
        let unknown = || Error::UnknownTopic(name.clone());
        let topic = state.topic_named(name).ok_or_else(unknown)?;
        if !subscription::reads(group, name) {
            let expected = format!("topics that group {:?} reads, unlike {name:?}", group.name);
            return Err(Error::field("topics", expected));
        }
        for found in partitions_of(topic) {
            let number = found.target.partition;
            if partitions.is_empty() || partitions.contains(&number) {
                named.insert((name.clone(), number), found);
            }
        }
        let there_are = topic.partitions.len();
        if let Some(beyond) = partitions.iter().find(|number| **number as usize >= there_are) {
            let (topic, partition) = (name.clone(), *beyond);
            return Err(Error::UnknownPartition { topic, partition, partitions: there_are });
        }
    }
    Ok(named.into_values().collect())
}

/// What a place of the API says.
///
/// # Errors
/// If it says nothing.
pub(super) fn place(
    given: Option<api::GroupPlace>,
    field: &'static str,
) -> Result<StartPlace, Error> {
    use api::group_place::Place as Given;
    let expected = "given: earliest, latest, an offset, a time or another group";
    match given.and_then(|given| given.place) {
        Some(Given::Earliest(true)) => Ok(StartPlace::Earliest(true)),
        Some(Given::Latest(true)) => Ok(StartPlace::Latest(true)),
        Some(Given::Offset(offset)) => Ok(StartPlace::Offset(offset)),
        Some(Given::TimeMs(time_ms)) => Ok(StartPlace::TimeMs(time_ms)),
        Some(Given::Group(group)) => Ok(StartPlace::Group(group)),
        Some(Given::Earliest(false) | Given::Latest(false)) | None => {
            Err(Error::field(field, expected))
        }
    }
}

/// The offset of a place in each partition, or why it has none, in their order.
///
/// # Errors
/// If the place is that of a group that does not exist.
pub(super) async fn offsets(
    context: &Context,
    place: &StartPlace,
    partitions: &[GroupPartition],
    call: Call,
) -> Result<Vec<Result<u64, Error>>, Error> {
    let place = match place {
        StartPlace::Earliest(_) => Place::Earliest,
        StartPlace::Latest(_) => Place::Latest,
        StartPlace::Offset(offset) => Place::Offset(*offset),
        StartPlace::TimeMs(time_ms) => Place::Time(*time_ms),
        StartPlace::Group(name) => return positions(context, name, partitions, call).await,
    };
    // One call for each, so that one that fails says nothing of the others.
    let one = |found: &GroupPartition| {
        let (topic, target) = (found.topic.clone(), found.target);
        async move {
            let found = look_up(context, &topic, vec![(place, target)], call).await?;
            Ok(found.first().ok_or(Error::Unexpected("a look-up found nothing"))?.offset)
        }
    };
    Ok(super::buffered(partitions.iter().map(one)).await)
}

/// Where another group is. What it does not read it has at its beginning.
async fn positions(
    context: &Context,
    name: &str,
    partitions: &[GroupPartition],
    call: Call,
) -> Result<Vec<Result<u64, Error>>, Error> {
    let state = context.node().state();
    let unknown = || Error::from(Refusal::UnknownGroup(name.to_owned()));
    let group = state.groups().named(name).ok_or_else(unknown)?;
    let found = progress::inspect(context, progress_id(group), starts(group, partitions), call);
    let found = found.await.into_iter();
    Ok(found.map(|found| found.map(|p| p.offset.max(p.log_start_offset))).collect())
}

/// The log of each partition, and where a group starts in it.
pub(super) fn starts(group: &Group, partitions: &[GroupPartition]) -> Vec<(LogId, u64)> {
    let start = |found: &GroupPartition| {
        let Target { topic_id, partition, log, .. } = found.target;
        (log, group.start_offset(topic_id.into(), partition))
    };
    partitions.iter().map(start).collect()
}

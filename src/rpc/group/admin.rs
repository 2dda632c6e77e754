//! Groups made, described, listed and deleted.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::super::call::Call;
use super::super::context::Context;
use super::super::convert;
use super::super::error::Error;
use super::places;
use crate::cluster::command::{Id, Verb};
use crate::cluster::group::{
    Assignment, CreateGroup, DeleteGroup, Group, Mode, Start, StartPlace, TOPICS_MAX, TopicStart,
};
use crate::cluster::{Refusal, State};
use crate::group::subscription;
use crate::proto::server as api;

const SESSION_TIMEOUT_MS: u32 = 30_000;
const SESSION_TIMEOUT_MS_MIN: u32 = 2_000;
const SESSION_TIMEOUT_MS_MAX: u32 = 3_600_000;
const PAGE_DEFAULT: u32 = 1_000;
const PAGE_MAX: u32 = 10_000;

/// Milliseconds since the Unix epoch, by this node's clock.
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

pub(super) async fn create(
    context: &Context,
    request: api::CreateGroupRequest,
    call: Call,
) -> Result<api::CreateGroupResponse, Error> {
    let start = places::place(request.start.clone(), "start")?;
    let group = group_of(&request, start.clone())?;
    context.refresh().await;
    let state = context.registered()?;
    if state.groups().named(&group.name).is_some() {
        return Err(Refusal::GroupExists(group.name).into());
    }
    check_topics(&state, &group)?;
    let starts = starts(context, &state, &group, &start, call).await?;
    let group = Group { starts, ..group };
    if !request.validate_only {
        let create = CreateGroup { group: group.clone() };
        match context.propose(Verb::CreateGroup(create)).await {
            // Asked a second time by the way there, or never heard of: the id tells.
            Err(error) if is_made(context, group.id, &error).await => {}
            done => drop(done?),
        }
    }
    Ok(api::CreateGroupResponse { group: Some(shown(&context.node().state(), &group)) })
}

/// True if the group is there although the command did not say so.
async fn is_made(context: &Context, id: Id, error: &Error) -> bool {
    let is_open = matches!(error, Error::OutcomeUnknown)
        || matches!(error, Error::Metadata(Refusal::GroupExists(_)));
    if is_open {
        context.refresh().await;
    }
    is_open && context.node().state().groups().get(id).is_some()
}

/// The group that a request describes, without its starts.
fn group_of(request: &api::CreateGroupRequest, start: StartPlace) -> Result<Group, Error> {
    convert::check_name(&request.name)?;
    match api::GroupMode::try_from(request.mode) {
        Ok(api::GroupMode::Unspecified | api::GroupMode::Stream) => {}
        Err(_) => return Err(Error::field("mode", "GROUP_MODE_STREAM")),
    }
    if !(1..=TOPICS_MAX).contains(&request.topics.len()) {
        return Err(Error::field("topics", format!("1 to {TOPICS_MAX} topics or patterns")));
    }
    let session_timeout_ms = match request.session_timeout_ms {
        0 => SESSION_TIMEOUT_MS,
        given if (SESSION_TIMEOUT_MS_MIN..=SESSION_TIMEOUT_MS_MAX).contains(&given) => given,
        _ => {
            let expected = format!("{SESSION_TIMEOUT_MS_MIN} to {SESSION_TIMEOUT_MS_MAX}, or 0");
            return Err(Error::field("session_timeout_ms", expected));
        }
    };
    let mut topics = request.topics.clone();
    topics.sort();
    topics.dedup();
    Ok(Group {
        id: Uuid::new_v4().into(),
        name: request.name.clone(),
        mode: Mode::Stream.into(),
        topics,
        start: Start { place: Some(start) },
        session_timeout_ms,
        expire_after_idle_ms: request.expire_after_idle_ms,
        idle_since_ms: now_ms(),
        ..Group::default()
    })
}

/// Checks that the topics are there, and that the patterns can match something.
fn check_topics(state: &State, group: &Group) -> Result<(), Error> {
    for topic in &group.topics {
        // What stands for any characters may stand for one that is allowed.
        let bad = convert::check_name(&topic.replace('*', "x"));
        bad.map_err(|_| Error::BadName(topic.clone()))?;
        if !subscription::is_pattern(topic) && state.topic_named(topic).is_none() {
            return Err(Error::UnknownTopic(topic.clone()));
        }
    }
    Ok(())
}

/// Where the group starts in the partitions that there are.
async fn starts(
    context: &Context,
    state: &State,
    group: &Group,
    start: &StartPlace,
    call: Call,
) -> Result<Vec<TopicStart>, Error> {
    let partitions = places::all(state, group);
    let offsets = places::offsets(context, start, &partitions, call).await?;
    let mut starts: BTreeMap<Id, Vec<u64>> = BTreeMap::new();
    for (partition, offset) in partitions.iter().zip(offsets) {
        starts.entry(partition.target.topic_id.into()).or_default().push(offset?);
    }
    Ok(starts.into_iter().map(|(topic, offsets)| TopicStart { topic, offsets }).collect())
}

/// A group of this name, as it is now.
pub(super) async fn find(
    context: &Context,
    name: &str,
) -> Result<(std::sync::Arc<State>, std::sync::Arc<Group>), Error> {
    context.refresh().await;
    let state = context.registered()?;
    if let Some(group) = state.groups().named(name).cloned() {
        return Ok((state, group));
    }
    convert::check_name(name)?;
    Err(Refusal::UnknownGroup(name.to_owned()).into())
}

pub(super) async fn describe(
    context: &Context,
    request: api::DescribeGroupRequest,
) -> Result<api::DescribeGroupResponse, Error> {
    let (state, group) = find(context, &request.group).await?;
    Ok(api::DescribeGroupResponse { group: Some(shown(&state, &group)) })
}

pub(super) async fn list(
    context: &Context,
    request: api::ListGroupsRequest,
) -> Result<api::ListGroupsResponse, Error> {
    context.refresh().await;
    let state = context.registered()?;
    let size = match request.page_size {
        0 => PAGE_DEFAULT,
        size => size.min(PAGE_MAX),
    } as usize;
    let from = request.page_token.as_str().max(request.prefix.as_str());
    let groups = state.groups().named_from(from);
    let mut found = groups.take_while(|group| group.name.starts_with(&request.prefix));
    let groups = found.by_ref().take(size).map(|group| api::GroupSummary {
        name: group.name.clone(),
        id: group.id.uuid().to_string(),
        mode: api::GroupMode::Stream.into(),
        topics: group.topics.clone(),
        members: group.members.len() as u32,
    });
    let groups = groups.collect();
    let next_page_token = found.next().map(|group| group.name.clone()).unwrap_or_default();
    Ok(api::ListGroupsResponse { groups, next_page_token })
}

pub(super) async fn delete(
    context: &Context,
    request: api::DeleteGroupRequest,
) -> Result<api::DeleteGroupResponse, Error> {
    let (_, group) = find(context, &request.group).await?;
    let delete = DeleteGroup { id: group.id, force: request.force };
    context.propose(Verb::DeleteGroup(delete)).await?;
    Ok(api::DeleteGroupResponse { group_id: group.id.uuid().to_string() })
}

/// A group as clients see it.
fn shown(state: &State, group: &Group) -> api::Group {
    let members = group.members.iter().map(|member| api::GroupMember {
        member_id: member.id.uuid().to_string(),
        instance: member.instance.clone(),
        client_id: member.client_id.clone(),
        rack: member.rack.clone(),
        node: member.node,
        partitions: group.assignments_of(member.id).count() as u32,
    });
    let partitions = places::all(state, group).into_iter().map(|partition| {
        let (topic, number) = (partition.target.topic_id.into(), partition.target.partition);
        shown_partition(partition.topic, number, group.assignment(topic, number))
    });
    api::Group {
        name: group.name.clone(),
        id: group.id.uuid().to_string(),
        mode: api::GroupMode::Stream.into(),
        topics: group.topics.clone(),
        start: group.start.place.clone().map(shown_place),
        session_timeout_ms: group.session_timeout_ms,
        expire_after_idle_ms: group.expire_after_idle_ms,
        generation: group.generation,
        members: members.collect(),
        partitions: partitions.collect(),
    }
}

fn shown_partition(
    topic: String,
    partition: u32,
    held: Option<&Assignment>,
) -> api::GroupPartition {
    let id = |id: Id| id.uuid().to_string();
    api::GroupPartition {
        topic,
        partition,
        member_id: held.map(|held| id(held.member)).unwrap_or_default(),
        generation: held.map_or(0, |held| held.generation),
        next_member_id: held.and_then(|held| held.next).map(id).unwrap_or_default(),
    }
}

fn shown_place(place: StartPlace) -> api::GroupPlace {
    use api::group_place::Place as Shown;
    let place = match place {
        StartPlace::Earliest(is) => Shown::Earliest(is),
        StartPlace::Latest(is) => Shown::Latest(is),
        StartPlace::Offset(offset) => Shown::Offset(offset),
        StartPlace::TimeMs(time_ms) => Shown::TimeMs(time_ms),
        StartPlace::Group(group) => Shown::Group(group),
    };
    api::GroupPlace { place: Some(place) }
}

//! Offsets of groups: committed, fetched and reset.

use std::sync::Arc;

use super::super::call::Call;
use super::super::context::{Context, Target};
use super::super::counters::add;
use super::super::error::Error;
use super::super::limits::NAMED_PARTITIONS_MAX;
use super::super::status;
use super::admin::{find, now_ms};
use super::commands::follow;
use super::places::{self, GroupPartition, progress_id};
use super::progress;
use crate::cluster::command::{Id, Verb};
use crate::cluster::group::{Group, RenewAssignments, Renewed};
use crate::cluster::{Refusal, State};
use crate::partition::{
    Command, FenceGeneration, METADATA_BYTES_MAX, Metadata, OffsetCommit, ResetOffsets,
};
use crate::proto::internal::GroupProgress;
use crate::proto::server as api;
use crate::types::LogId;

/// Who commits without being a member.
const NOBODY: Id = Id { high: u64::MAX, low: u64::MAX };

/// An offset to be committed, checked.
#[derive(Debug, Clone)]
pub(super) struct Commit {
    pub(super) log: LogId,
    pub(super) generation: u64,
    pub(super) next_offset: u64,
    pub(super) leader_epoch: u64,
    pub(super) metadata: String,
}

/// Commits offsets of a group, each in its partition. Returns what became of each.
///
/// A commit can be sent again: the same offset once more changes nothing.
pub(super) async fn commit(
    context: &Context,
    group: &Group,
    member: Id,
    commits: Vec<Commit>,
    call: Call,
) -> Vec<Result<u64, Error>> {
    let command = |commit: Commit| {
        let metadata = Metadata::try_new(&commit.metadata).expect("it was checked");
        let command = Command::OffsetCommit(OffsetCommit {
            group: progress_id(group),
            generation: commit.generation,
            member: member.uuid(),
            offset: commit.next_offset,
            leader_epoch: commit.leader_epoch,
            metadata,
        });
        (commit.log, command)
    };
    let commands = commits.into_iter().map(command).collect();
    let followed = follow(context, commands, call).await;
    let refused = followed.iter().filter(|followed| followed.is_err()).count();
    add(&context.counters().offsets_refused, refused as u64);
    add(&context.counters().offsets_committed, (followed.len() - refused) as u64);
    followed.into_iter().map(|followed| followed.map(|followed| followed.offset)).collect()
}

/// Checks what a client wants back with its position.
pub(super) fn check_metadata(metadata: &str) -> Result<(), Error> {
    if metadata.len() > METADATA_BYTES_MAX {
        return Err(Error::field("metadata", format!("at most {METADATA_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// Answers a call that commits.
pub(super) async fn commit_call(
    context: &Context,
    request: api::CommitOffsetsRequest,
    call: Call,
) -> Result<api::CommitOffsetsResponse, Error> {
    if request.offsets.len() > NAMED_PARTITIONS_MAX {
        let expected = format!("at most {NAMED_PARTITIONS_MAX} offsets");
        return Err(Error::field("offsets", expected));
    }
    let (state, group) = known_or_new(context, &request).await?;
    let member = member_of(&request.member_id)?;
    let mut outcomes = Vec::with_capacity(request.offsets.len());
    let mut commits = Vec::new();
    for offset in &request.offsets {
        let checked = checked(&state, &group, member, offset);
        outcomes.push(checked.as_ref().map(|_| 0).map_err(status::to_in_stream));
        commits.extend(checked.ok());
    }
    let commits = match member {
        Some(_) => commits,
        None => of_strangers(context, &group, commits, call).await,
    };
    let who = member.unwrap_or(NOBODY);
    let mut done = commit(context, &group, who, commits, call).await.into_iter();
    for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
        let became = done.next().unwrap_or(Err(Error::OutcomeUnknown));
        *outcome = became.map_err(|error| status::to_in_stream(&error));
    }
    let outcomes = request.offsets.into_iter().zip(outcomes).map(|(offset, outcome)| {
        use api::offset_commit_outcome::Outcome;
        let outcome = outcome.map_or_else(Outcome::Error, Outcome::NextOffset);
        let (topic, partition) = (offset.topic, offset.partition);
        api::OffsetCommitOutcome { topic, partition, outcome: Some(outcome) }
    });
    Ok(api::CommitOffsetsResponse { outcomes: outcomes.collect() })
}

/// The group as this node knows it, unless the request speaks of what this node has not heard of.
async fn known_or_new(
    context: &Context,
    request: &api::CommitOffsetsRequest,
) -> Result<(Arc<State>, Arc<Group>), Error> {
    let state = context.registered()?;
    let newest = request.offsets.iter().map(|offset| offset.generation).max().unwrap_or(0);
    let is_known = |topic: &str| state.topic_named(topic).is_some();
    let is_all_known = request.offsets.iter().all(|offset| is_known(&offset.topic));
    match state.groups().named(&request.group).cloned() {
        Some(group) if newest > 0 && newest <= group.generation && is_all_known => {
            Ok((state, group))
        }
        _ => find(context, &request.group).await,
    }
}

/// Reads a member's id; `None` if there is none.
pub(super) fn member_of(text: &str) -> Result<Option<Id>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let id = uuid::Uuid::try_parse(text).map(Id::from);
    id.map(Some).map_err(|_| Error::field("member_id", "a UUID that this group gave"))
}

fn checked(
    state: &State,
    group: &Group,
    member: Option<Id>,
    offset: &api::OffsetCommit,
) -> Result<Commit, Error> {
    check_metadata(&offset.metadata)?;
    let target = target_of(state, offset)?;
    let held = group.assignment(target.topic_id.into(), target.partition);
    let generation = match (member, offset.generation) {
        (Some(member), 0) => {
            let own = held.filter(|held| held.member == member);
            own.ok_or(Error::NotOwner)?.generation
        }
        // Nobody can have been given it yet. What is too late only the log knows.
        (Some(_), given) if given > group.generation => {
            let expected = "the one in which the member got the partition";
            return Err(Error::field("generation", expected));
        }
        (Some(_), given) => given,
        (None, 0) if held.is_none() => 0,
        (None, 0) => return Err(Error::NotOwner),
        (None, _) => return Err(Error::field("generation", "0 without a member")),
    };
    Ok(Commit {
        log: target.log,
        generation,
        next_offset: offset.next_offset,
        leader_epoch: offset.leader_epoch,
        metadata: offset.metadata.clone(),
    })
}

fn target_of(state: &State, offset: &api::OffsetCommit) -> Result<Target, Error> {
    let unknown = || Error::UnknownTopic(offset.topic.clone());
    let topic = state.topic_named(&offset.topic).ok_or_else(unknown)?;
    let wanted = super::super::convert::topic_id(&offset.topic_id)?;
    if wanted.is_some_and(|wanted| wanted != topic.id.uuid()) {
        return Err(Error::UnknownTopicId(offset.topic_id.clone()));
    }
    let partitions = topic.partitions.len();
    if offset.partition as usize >= partitions {
        let (topic, partition) = (offset.topic.clone(), offset.partition);
        return Err(Error::UnknownPartition { topic, partition, partitions });
    }
    Ok(places::target(topic, offset.partition))
}

/// Gives the commits of a client that is no member the generations that hold: whoever becomes a
/// member fences it.
async fn of_strangers(
    context: &Context,
    group: &Group,
    commits: Vec<Commit>,
    call: Call,
) -> Vec<Commit> {
    let fence = |commit: &Commit| {
        let place = crate::cluster::command::topic_of(commit.log);
        let start = place.map_or(0, |(topic, n)| group.start_offset(topic, n));
        let (group, generation, expire_after_idle_ms) = (progress_id(group), 0, 0);
        let fence = FenceGeneration { group, generation, expire_after_idle_ms, start };
        (commit.log, Command::FenceGeneration(fence))
    };
    // Makes the group known where it is not; elsewhere it is refused and says what holds.
    let fenced = follow(context, commits.iter().map(fence).collect(), call).await;
    let held = |fenced: Result<super::commands::Followed, Error>| match fenced {
        Ok(followed) => followed.generation,
        Err(error) => error.generation().unwrap_or(0),
    };
    let held = fenced.into_iter().map(held);
    commits
        .into_iter()
        .zip(held)
        .map(|(commit, generation)| Commit { generation, ..commit })
        .collect()
}

/// Answers a call that asks how far a group is.
pub(super) async fn fetch(
    context: &Context,
    request: api::FetchOffsetsRequest,
    call: Call,
) -> Result<api::FetchOffsetsResponse, Error> {
    let (state, group) = find(context, &request.group).await?;
    let partitions = places::named(&state, &group, &request.topics)?;
    let starts = places::starts(&group, &partitions);
    let found = progress::inspect(context, progress_id(&group), starts, call).await;
    let now_ms = now_ms();
    let offsets = partitions.into_iter().zip(found);
    let offsets = offsets.map(|(partition, found)| shown(&group, partition, found, now_ms));
    Ok(api::FetchOffsetsResponse { offsets: offsets.collect() })
}

fn shown(
    group: &Group,
    partition: GroupPartition,
    found: Result<GroupProgress, Error>,
    now_ms: i64,
) -> api::GroupOffset {
    let GroupPartition { topic, target } = partition;
    let held = group.assignment(target.topic_id.into(), target.partition);
    let known = api::GroupOffset {
        topic,
        partition: target.partition,
        member_id: held.map(|held| held.member.uuid().to_string()).unwrap_or_default(),
        ..api::GroupOffset::default()
    };
    let progress = match found {
        Ok(progress) => progress,
        Err(error) => {
            return api::GroupOffset { error: Some(status::to_in_stream(&error)), ..known };
        }
    };
    let next_readable = progress.offset.max(progress.log_start_offset);
    let age_ms = progress.oldest_ms.map_or(0, |oldest_ms| now_ms.saturating_sub(oldest_ms));
    api::GroupOffset {
        next_offset: progress.offset,
        is_committed: progress.is_committed,
        metadata: progress.metadata,
        leader_epoch: progress.leader_epoch,
        generation: progress.generation,
        log_start_offset: progress.log_start_offset,
        high_watermark: progress.high_watermark,
        lag: progress.high_watermark.saturating_sub(next_readable),
        lag_ms: u64::try_from(age_ms).unwrap_or(0),
        missed: next_readable - progress.offset,
        ..known
    }
}

/// Answers a call that moves positions.
pub(super) async fn reset(
    context: &Context,
    request: api::ResetOffsetsRequest,
    call: Call,
) -> Result<api::ResetOffsetsResponse, Error> {
    let to = places::place(request.to.clone(), "to")?;
    let (state, group) = find(context, &request.group).await?;
    let partitions = places::named(&state, &group, &request.topics)?;
    let starts = places::starts(&group, &partitions);
    let before = progress::inspect(context, progress_id(&group), starts, call).await;
    let after = places::offsets(context, &to, &partitions, call).await?;
    let mut after: Vec<Result<(u64, u64), Error>> =
        before.into_iter().zip(after).map(|(before, after)| Ok((before?.offset, after?))).collect();
    if !request.dry_run {
        move_positions(context, &group, &partitions, &mut after, call).await?;
    }
    let resets = partitions.into_iter().zip(after).map(|(partition, after)| {
        let (before, after, error) = match after {
            Ok((before, after)) => (before, after, None),
            Err(error) => (0, 0, Some(status::to_in_stream(&error))),
        };
        let GroupPartition { topic, target } = partition;
        api::OffsetReset { topic, partition: target.partition, before, after, error }
    });
    Ok(api::ResetOffsetsResponse { resets: resets.collect() })
}

/// Moves positions in their partitions' logs, and has the members that read there begin anew.
///
/// If it ends between the two, the members are refused at their next commit, and begin anew then.
async fn move_positions(
    context: &Context,
    group: &Group,
    partitions: &[GroupPartition],
    after: &mut [Result<(u64, u64), Error>],
    call: Call,
) -> Result<(), Error> {
    let places = 0..partitions.len();
    let wanted: Vec<usize> = places.filter(|n| after[*n].is_ok()).collect();
    let command = |n: &usize| {
        let offset = after[*n].as_ref().map_or(0, |(_, after)| *after);
        let reset = ResetOffsets { group: progress_id(group), offset };
        (partitions[*n].target.log, Command::ResetOffsets(reset))
    };
    let followed = follow(context, wanted.iter().map(command).collect(), call).await;
    let mut renewed = Vec::new();
    for (n, followed) in wanted.into_iter().zip(followed) {
        let target = partitions[n].target;
        match followed {
            Ok(done) => renewed.push(Renewed {
                topic: target.topic_id.into(),
                partition: target.partition,
                above: done.generation,
            }),
            Err(error) => after[n] = Err(error),
        }
    }
    renew(context, group.id, renewed).await
}

/// Gives partitions generations above those that their logs have.
pub(super) async fn renew(
    context: &Context,
    group: Id,
    renewed: Vec<Renewed>,
) -> Result<(), Error> {
    if renewed.is_empty() {
        return Ok(());
    }
    match context.propose(Verb::RenewAssignments(RenewAssignments { group, renewed })).await {
        // Without a group nobody has to begin anew.
        Ok(_) | Err(Error::Metadata(Refusal::UnknownGroup(_))) => Ok(()),
        Err(error) => Err(error),
    }
}

//! Claims: making a partition's log know who has the partition, and finding out where it stands.
//!
//! The fence comes first: what was committed before it is in the answer, and who had the partition
//! before can commit nothing after it. So no position is read that can still move.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::super::super::call::{Call, Origin};
use super::super::super::context::{Context, Target};
use super::super::super::error::{Effect, Error};
use super::super::commands::{Followed, follow};
use super::super::offsets::renew;
use super::super::places::progress_id;
use super::super::progress;
use crate::cluster::group::{Group, Renewed};
use crate::partition::{AskError, Command, FenceGeneration, FetchError, Refusal};
use crate::proto::internal::GroupProgress;
use crate::proto::server::{ErrorReason, ResumePosition};
use crate::raft::planted::{Bug, planted};

const PAUSE: Duration = Duration::from_millis(100);

/// A partition that the log knows to be the member's.
#[derive(Debug)]
pub(super) struct Claimed {
    /// The next offset to read.
    pub(super) next_offset: u64,
    /// The member goes on where it was.
    pub(super) is_resumed: bool,
    /// Where the group stands.
    pub(super) progress: GroupProgress,
}

/// Claims a partition for who has it in `generation`. Goes on until it succeeds.
///
/// `resume` says where the member was. It goes on there if nobody had the partition since.
///
/// Cancel safe: a fence that nobody waits for fences nobody who should not be.
///
/// # Errors
/// [`ErrorReason::IllegalGeneration`] if the partition has moved on: the metadata will say how.
/// Anything else is final.
pub(super) async fn claim(
    context: Context,
    group: Arc<Group>,
    target: Target,
    generation: u64,
    resume: Option<ResumePosition>,
) -> Result<Claimed, Error> {
    let start = group.start_offset(target.topic_id.into(), target.partition);
    let (previous, progress) = take_over(&context, &group, target, generation, start).await?;
    let GroupProgress { offset, high_watermark, .. } = progress;
    if offset > high_watermark {
        let log_start = progress.log_start_offset;
        return Err(FetchError::OutOfRange { requested: offset, log_start, high_watermark }.into());
    }
    let was_there = |resume: &ResumePosition| {
        (resume.generation == previous || planted(Bug::ResumedUnasked))
            && (offset..=high_watermark).contains(&resume.next_offset)
    };
    let resumed = resume.filter(was_there).map(|resume| resume.next_offset);
    let next_offset = resumed.unwrap_or(offset);
    Ok(Claimed { next_offset, is_resumed: resumed.is_some(), progress })
}

/// Fences all earlier generations, and then looks where the group stands. Returns the generation
/// before, too.
async fn take_over(
    context: &Context,
    group: &Group,
    target: Target,
    generation: u64,
    start: u64,
) -> Result<(u64, GroupProgress), Error> {
    if planted(Bug::ClaimedWithoutFence) || planted(Bug::PositionBeforeFence) {
        let progress = inspect(context, group, target, start).await?;
        // A partition that does not know the group yet takes no commits of it.
        if planted(Bug::ClaimedWithoutFence) && progress.generation > 0 {
            return Ok((progress.generation, progress));
        }
        let fenced = fence(context, group, target, generation, start).await?;
        return Ok((fenced.previous, progress));
    }
    let fenced = fence(context, group, target, generation, start).await?;
    let progress = inspect(context, group, target, start).await?;
    match progress.generation == generation {
        true => Ok((fenced.previous, progress)),
        false => Err(moved_on(context, group, target, progress.generation).await),
    }
}

/// Sees to it that the metadata is ahead of a partition's log, which has a later generation than
/// the one that was claimed: a reset may have ended before it told the metadata.
async fn moved_on(context: &Context, group: &Group, target: Target, current: u64) -> Error {
    let (topic, partition) = (target.topic_id.into(), target.partition);
    let renewed = || vec![Renewed { topic, partition, above: current }];
    while renew(context, group.id, renewed()).await.is_err() {
        sleep(PAUSE).await;
    }
    AskError::Refused(Refusal::IllegalGeneration { current }).into()
}

async fn fence(
    context: &Context,
    group: &Group,
    target: Target,
    generation: u64,
    start: u64,
) -> Result<Followed, Error> {
    loop {
        let fence = FenceGeneration {
            group: progress_id(group),
            generation,
            expire_after_idle_ms: 0,
            start,
        };
        let command = (target.log, Command::FenceGeneration(fence));
        let followed = follow(context, vec![command], Call::within_stream(Origin::OWN)).await;
        match followed.into_iter().next().unwrap_or(Err(Error::NoLeader)) {
            Ok(followed) => return Ok(followed),
            Err(error) if error.reason() == Some(ErrorReason::IllegalGeneration) => {
                let current = error.generation().unwrap_or(generation);
                return Err(moved_on(context, group, target, current).await);
            }
            Err(error) if error.effect() == Effect::Final => return Err(error),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn inspect(
    context: &Context,
    group: &Group,
    target: Target,
    start: u64,
) -> Result<GroupProgress, Error> {
    loop {
        let places = vec![(target.log, start)];
        let call = Call::within_stream(Origin::OWN);
        let found = progress::inspect(context, progress_id(group), places, call).await;
        match found.into_iter().next().unwrap_or(Err(Error::NoLeader)) {
            Ok(progress) => return Ok(progress),
            Err(error) if error.effect() == Effect::Final => return Err(error),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

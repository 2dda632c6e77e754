//! Errands: what a stream has done in partitions' logs and in the metadata.

use std::time::Duration;

use tokio::time::sleep;

use super::super::super::call::{Call, Origin};
use super::super::super::context::Context;
use super::super::super::error::{Effect, Error};
use super::super::offsets::{Commit, commit, renew};
use crate::cluster::command::{Id, Verb, topic_of};
use crate::cluster::group::{Group, ReleaseAssignments, Released, Renewed};

const PAUSE: Duration = Duration::from_millis(50);

/// Commits those that can be, and returns what became of all, in their order.
///
/// A partition that has moved on without the metadata was reset by somebody who did not live to say
/// so: its member begins anew there.
pub(super) async fn commit_all(
    context: &Context,
    group: &Group,
    member: Id,
    commits: Vec<Result<Commit, Error>>,
) -> Vec<Result<u64, Error>> {
    let good = commits.iter().flatten().cloned().collect();
    let done = commit(context, group, member, good, Call::within_stream(Origin::OWN)).await;
    let passed_by = commits.iter().flatten().zip(&done).filter_map(|(commit, done)| {
        let above = done.as_ref().err()?.generation()?;
        let (topic, partition) = topic_of(commit.log)?;
        Some(Renewed { topic, partition, above })
    });
    if let Err(error) = renew(context, group.id, passed_by.collect()).await {
        tracing::info!(%error, "a member that was passed by begins anew at its next commit");
    }
    let mut done = done.into_iter();
    let outcome = |checked: Result<Commit, Error>| {
        checked.and_then(|_| done.next().unwrap_or(Err(Error::OutcomeUnknown)))
    };
    commits.into_iter().map(outcome).collect()
}

/// Tells the metadata that a member has let go of partitions. Goes on until it knows.
pub(super) async fn release(context: Context, group: Id, member: Id, released: Vec<Released>) {
    let release = ReleaseAssignments { group, member, released };
    while let Err(error) = context.propose(Verb::ReleaseAssignments(release.clone())).await {
        if error.effect() == Effect::Final {
            return;
        }
        sleep(PAUSE).await;
    }
}

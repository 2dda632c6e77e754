//! Forgetting: the progress of groups that were deleted, in the partitions that are led here.

use super::super::call::{Call, Origin};
use super::super::context::Context;
use super::super::error::Error;
use super::commands::follow;
use crate::cluster::command::Id;
use crate::partition::{Command, GroupId, Handle};
use crate::types::LogId;

/// Has the partitions that this node leads forget groups that are no more.
///
/// Progress is looked at first, and the metadata is followed after that: a group whose progress was
/// seen had been made before, so one that the metadata then does not know was deleted.
///
/// # Errors
/// If that cannot be found out now. Nothing was forgotten.
pub async fn forget_deleted(context: &Context) -> Result<(), Error> {
    let mut seen: Vec<(LogId, GroupId)> = Vec::new();
    let led = context.node().registry().handles().into_iter().filter(Handle::is_leader);
    for handle in led {
        let positions = handle.group_positions().await?;
        seen.extend(positions.into_iter().map(|(group, _)| (handle.group(), group)));
    }
    if seen.is_empty() {
        return Ok(());
    }
    if !context.try_refresh().await {
        return Err(Error::NoLeader);
    }
    let state = context.node().state();
    let is_deleted = |group: &GroupId| {
        let id = uuid::Uuid::from_slice(group.as_bytes()).map(Id::from);
        // What is not named by an id was not made by this version.
        id.is_ok_and(|id| state.groups().get(id).is_none())
    };
    seen.retain(|(_, group)| is_deleted(group));
    let commands = seen.into_iter().map(|(log, group)| (log, Command::DeleteGroup(group)));
    for outcome in follow(context, commands.collect(), Call::within_stream(Origin::HERE)).await {
        if let Err(error) = outcome {
            // Whoever leads by now looks after it.
            tracing::debug!(%error, "a deleted group is not forgotten yet");
        }
    }
    Ok(())
}

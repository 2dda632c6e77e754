//! Commands about groups, followed by the partitions that they are to.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::time::sleep;

use super::super::call::Call;
use super::super::channels::group_client;
use super::super::context::Context;
use super::super::error::Error;
use super::super::status;
use super::leaders::{self, Kind};
use crate::partition::{AskError, Command, Handle, Refusal, Reply};
use crate::proto::internal::follow_outcome::Outcome;
use crate::proto::internal::{self, FollowOutcome, FollowRequest, FollowResponse};
use crate::proto::server as api;
use crate::raft::planted::{Bug, planted};
use crate::types::{LogId, NodeId};

/// What a command to a group came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Followed {
    /// The next offset that the group reads.
    pub(super) offset: u64,
    /// The group's generation in the partition.
    pub(super) generation: u64,
    /// The one before, of a fence.
    pub(super) previous: u64,
}

/// Has partitions follow commands, each where it is led. Returns what each came to, in their order.
///
/// A command that may have been followed is sent again: all commands to groups can be followed
/// twice, except resets, which then only fence once more than they need.
pub(super) async fn follow(
    context: &Context,
    commands: Vec<(LogId, Command)>,
    call: Call,
) -> Vec<Result<Followed, Error>> {
    let here = |handle: Handle, command| async move { follow_here(&handle, command).await };
    let there = |node, commands| follow_there(context, node, commands, call);
    leaders::ask(context, Kind::Command, commands, call, here, there).await
}

async fn follow_here(handle: &Handle, command: Command) -> Result<Followed, Error> {
    if planted(Bug::LateCommitApplied) {
        check_early(handle, &command).await?;
    }
    Ok(match handle.command(command).await? {
        Reply::OffsetCommitted { offset, generation }
        | Reply::OffsetsReset { offset, generation } => {
            Followed { offset, generation, ..Followed::default() }
        }
        Reply::GenerationFenced { generation, previous, offset } => {
            Followed { offset, generation, previous }
        }
        Reply::GroupDeleted { generation } => Followed { generation, ..Followed::default() },
        Reply::ProducerInitialized { .. } => {
            return Err(Error::Unexpected("a group is answered like a producer"));
        }
    })
}

/// What must not be relied on: whether a commit is too late as far as it is known now.
async fn check_early(handle: &Handle, command: &Command) -> Result<(), Error> {
    let Command::OffsetCommit(commit) = command else { return Ok(()) };
    let known = handle.group_progress(commit.group.clone()).await?;
    let current = known.map_or(0, |known| known.generation);
    if commit.generation < current {
        return Err(AskError::Refused(Refusal::IllegalGeneration { current }).into());
    }
    // Or it would take long to be found.
    sleep(Duration::from_millis(50)).await;
    Ok(())
}

async fn follow_there(
    context: &Context,
    node: NodeId,
    commands: Vec<(LogId, Command)>,
    call: Call,
) -> Result<Vec<Result<Followed, Error>>, Error> {
    let mut client = group_client(context.channel(node)?);
    let commands = commands.iter().map(|(log, command)| internal::PartitionCommand {
        log_id: Bytes::copy_from_slice(log.0.as_bytes()),
        command: command.encode(),
    });
    let cluster_id = Bytes::copy_from_slice(context.node().cluster().0.as_bytes());
    let request = FollowRequest { cluster_id, commands: commands.collect() };
    let response = client.follow(call.forwarded(request)).await?.into_inner();
    Ok(response.outcomes.into_iter().map(outcome_of).collect())
}

fn outcome_of(told: FollowOutcome) -> Result<Followed, Error> {
    match told.outcome {
        Some(Outcome::Followed(internal::Followed { offset, generation, previous })) => {
            Ok(Followed { offset, generation, previous })
        }
        Some(Outcome::Error(error)) => Err(decode_error(&error)),
        None => Err(Error::Unexpected("a node says nothing of a command")),
    }
}

/// Answers another node: only for partitions that are led here.
pub(super) async fn answer(
    context: &Context,
    request: FollowRequest,
    call: Call,
) -> Result<FollowResponse, Error> {
    let mut commands = Vec::with_capacity(request.commands.len());
    for asked in request.commands {
        let command = Command::decode(&asked.command);
        let command = command.map_err(|error| Error::field("command", error.to_string()))?;
        commands.push((log_id(&asked.log_id)?, command));
    }
    let outcomes = follow(context, commands, call).await.into_iter().map(|outcome| {
        let outcome = match outcome {
            Ok(Followed { offset, generation, previous }) => {
                Outcome::Followed(internal::Followed { offset, generation, previous })
            }
            Err(error) => Outcome::Error(encode_error(&error)),
        };
        FollowOutcome { outcome: Some(outcome) }
    });
    Ok(FollowResponse { outcomes: outcomes.collect() })
}

/// An error on its way between nodes.
pub(super) fn encode_error(error: &Error) -> Bytes {
    status::to_in_stream(error).encode_to_vec().into()
}

/// The error that another node encoded.
pub(super) fn decode_error(bytes: &[u8]) -> Error {
    let told = api::Error::decode(bytes);
    told.map_or(Error::Unexpected("a node's error cannot be read"), status::of_in_stream)
}

/// Reads the id of a log that another node has sent.
pub(super) fn log_id(bytes: &[u8]) -> Result<LogId, Error> {
    let id = uuid::Uuid::from_slice(bytes);
    id.map(LogId).map_err(|_| Error::field("log_id", "16 bytes"))
}

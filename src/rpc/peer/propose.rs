//! Asking the metadata: commands find their way to whoever leads it.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::time::{Instant, sleep, timeout_at};

use super::super::channels::Channels;
use crate::cluster::command::{Command, Verb};
use crate::cluster::{Answer, Ask, Given, Node, Refusal};
use crate::proto::internal::peer_service_client::PeerServiceClient;
use crate::proto::internal::{ProposeRequest, ProposeResponse, propose_response::Outcome};

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long one attempt may take before its outcome counts as unknown.
const ATTEMPT: Duration = Duration::from_secs(10);

/// A command was followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proposed {
    /// Index of its entry.
    pub index: u64,
    /// What it gave.
    pub given: Given,
}

/// Why a command was not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It changed nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nobody leads the metadata who could be reached. Nothing was changed.
    #[error("nobody leads the cluster's metadata; is a majority of the nodes running?")]
    NoLeader,
    /// It may be followed or not.
    #[error("the outcome is unknown: the command may be followed or not")]
    Unknown,
}

/// Asks the metadata, wherever it is led. A cheap clone.
#[derive(Debug, Clone)]
pub struct Proposer {
    node: Arc<Node>,
    channels: Arc<Channels>,
}

impl Proposer {
    /// Asks on behalf of `node`.
    pub fn new(node: Arc<Node>, channels: Arc<Channels>) -> Self {
        Self { node, channels }
    }

    /// Has a command followed, and waits until this node has followed it too.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn propose(&self, verb: Verb, deadline: Instant) -> Result<Proposed, ProposeError> {
        let command = Command::from(verb);
        let proposed = self.until_led(deadline, Some(&command)).await?;
        self.catch_up(proposed.index, deadline).await;
        Ok(proposed)
    }

    /// Waits until this node has followed everything that was agreed on before the call. False if
    /// it has not by the deadline.
    ///
    /// Cancel safe: it changes nothing.
    ///
    /// # Errors
    /// [`ProposeError::NoLeader`].
    pub async fn refresh(&self, deadline: Instant) -> Result<bool, ProposeError> {
        let proposed = self.until_led(deadline, None).await?;
        Ok(self.catch_up(proposed.index, deadline).await)
    }

    /// Finds out up to which entry the metadata is committed.
    ///
    /// Cancel safe: it changes nothing.
    ///
    /// # Errors
    /// [`ProposeError::NoLeader`].
    pub async fn committed(&self, deadline: Instant) -> Result<u64, ProposeError> {
        Ok(self.until_led(deadline, None).await?.index)
    }

    async fn catch_up(&self, index: u64, deadline: Instant) -> bool {
        // A node that is slow to follow is asked again by whoever cares.
        timeout_at(deadline, self.node.wait_for_state(index)).await.is_ok()
    }

    pub(super) async fn until_led(
        &self,
        deadline: Instant,
        command: Option<&Command>,
    ) -> Result<Proposed, ProposeError> {
        let mut pause = PAUSE_MIN;
        loop {
            let attempt = match self.node.metadata_leader() {
                Some(leader) if leader == self.node.id() => self.here(command).await,
                Some(leader) => {
                    let end = deadline.min(Instant::now() + ATTEMPT);
                    let there = timeout_at(end, self.there(leader, command)).await;
                    there.unwrap_or_else(|_| Err(unless_read(command)))
                }
                None => Err(ProposeError::NoLeader),
            };
            match attempt {
                Err(ProposeError::NoLeader) if Instant::now() + pause < deadline => {
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                done => return done,
            }
        }
    }

    /// Asks this node's own replica.
    pub(super) async fn here(&self, command: Option<&Command>) -> Result<Proposed, ProposeError> {
        let ask = command.cloned().map_or(Ask::Barrier, Ask::Propose);
        match self.node.ask(ask).await {
            Answer::Followed { index, given } => Ok(Proposed { index, given }),
            Answer::Barrier { index } => Ok(Proposed { index, given: 0 }),
            Answer::Refused(refusal) => Err(refusal.into()),
            Answer::NotLeader { .. } => Err(ProposeError::NoLeader),
            Answer::State(_) | Answer::Unknown => Err(unless_read(command)),
        }
    }

    async fn there(
        &self,
        leader: crate::types::NodeId,
        command: Option<&Command>,
    ) -> Result<Proposed, ProposeError> {
        let address = self.node.peer_address(leader).ok_or(ProposeError::NoLeader)?;
        let channel = self.channels.get(leader, &address);
        let channel = channel.map_err(|_| ProposeError::NoLeader)?;
        let mut client = PeerServiceClient::new(channel);
        let request = ProposeRequest {
            cluster_id: self.node.cluster().0.as_bytes().to_vec().into(),
            command: command.map_or_else(Vec::new, Command::encode_to_vec).into(),
            hops: 1,
        };
        match client.propose(request).await {
            Ok(response) => outcome(response.into_inner(), command),
            // Only the peer service itself says that: the call did not get there.
            Err(status) if status.code() == tonic::Code::Unavailable && is_connect(&status) => {
                Err(ProposeError::NoLeader)
            }
            Err(_) => Err(unless_read(command)),
        }
    }
}

/// True if the connection was never made, so that nothing was asked.
fn is_connect(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.to_string().contains("tcp connect error") {
            return true;
        }
        source = error.source();
    }
    false
}

/// A question changes nothing, so that it can always be asked again.
fn unless_read(command: Option<&Command>) -> ProposeError {
    if command.is_some() { ProposeError::Unknown } else { ProposeError::NoLeader }
}

pub(super) fn outcome(
    response: ProposeResponse,
    command: Option<&Command>,
) -> Result<Proposed, ProposeError> {
    let given = response.value;
    match response.outcome {
        Some(Outcome::Index(index)) => Ok(Proposed { index, given }),
        Some(Outcome::Refusal(bytes)) => {
            let refusal = Refusal::decode(&bytes);
            Err(refusal.map_or(ProposeError::Unknown, ProposeError::Refused))
        }
        Some(Outcome::NoLeader(_)) => Err(ProposeError::NoLeader),
        Some(Outcome::Unknown(_)) | None => Err(unless_read(command)),
    }
}

/// What an answer to a peer says.
pub(super) fn response(outcome: Result<Proposed, ProposeError>) -> ProposeResponse {
    let (outcome, value) = match outcome {
        Ok(Proposed { index, given }) => (Outcome::Index(index), given),
        Err(ProposeError::Refused(refusal)) => (Outcome::Refusal(refusal.encode().into()), 0),
        Err(ProposeError::NoLeader) => (Outcome::NoLeader(true), 0),
        Err(ProposeError::Unknown) => (Outcome::Unknown(true), 0),
    };
    ProposeResponse { outcome: Some(outcome), value }
}

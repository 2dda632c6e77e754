//! Calls to other nodes.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tonic::Request;
use tonic::transport::Channel;

use super::super::channels::endpoint;
use super::super::error::Error;
use super::propose::{ProposeError, Proposed, outcome};
use super::service::{founding_of, founding_record};
use crate::cluster::command::{Command, Verb};
use crate::cluster::{self, Identity};
use crate::proto::internal::peer_service_client::PeerServiceClient;
use crate::proto::internal::{
    AnnounceRequest, FoundRequest, InspectReplicaRequest, IntroduceRequest, Led, ProposeRequest,
    TransferReplicaRequest,
};
use crate::types::{ClusterId, LogId, NodeId, ReplicaId};

const CALL_TIMEOUT: Duration = Duration::from_secs(2);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A call to another node came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct PeerError(String);

impl From<Error> for PeerError {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

impl From<tonic::Status> for PeerError {
    fn from(status: tonic::Status) -> Self {
        Self(status.message().to_owned())
    }
}

impl From<tonic::transport::Error> for PeerError {
    fn from(error: tonic::transport::Error) -> Self {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        Self(source.unwrap_or_else(|| error.to_string()))
    }
}

/// Who another node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// The node.
    pub node: NodeId,
    /// Its directory.
    pub directory: cluster::command::Id,
    /// The cluster it belongs to, if any.
    pub founding: Option<cluster::Founding>,
    /// Addresses of the nodes that it knows.
    pub peers: Vec<String>,
}

/// What a node knows of one of its replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The replica.
    pub replica: ReplicaId,
    /// Index of the membership that is on its disk.
    pub membership_index: u64,
    /// First offset not committed, as far as it knows.
    pub high_watermark: u64,
    /// First offset that can be read.
    pub log_start: u64,
    /// It lost entries and does not run before it has them again; all but its id is 0.
    pub waits_for_repair: bool,
}

/// What a node tells all others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Its incarnation.
    pub incarnation: u64,
    /// What it leads, in which term.
    pub led: Vec<(LogId, u64)>,
    /// That is all it leads.
    pub is_full: bool,
    /// How far it has followed the metadata.
    pub metadata_index: u64,
    /// It is about to stop.
    pub is_stopping: bool,
}

async fn connect(address: &str) -> Result<PeerServiceClient<Channel>, PeerError> {
    let endpoint = endpoint(address)?.timeout(PROPOSE_TIMEOUT);
    Ok(PeerServiceClient::new(endpoint.connect().await?))
}

fn within<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

/// Asks the node at `address` who it is.
///
/// # Errors
/// [`PeerError`].
pub async fn introduce(address: &str, own: &Identity) -> Result<Introduction, PeerError> {
    let directory_id = Bytes::copy_from_slice(own.directory.uuid().as_bytes());
    let request = IntroduceRequest { node: own.node, directory_id };
    let told = connect(address).await?.introduce(within(request, CALL_TIMEOUT)).await?;
    let told = told.into_inner();
    let directory = uuid::Uuid::from_slice(&told.directory_id);
    let directory = directory.map_err(|_| PeerError("it has no directory id".to_owned()))?;
    Ok(Introduction {
        node: NodeId(told.node),
        directory: directory.into(),
        founding: told.founding.as_ref().and_then(founding_of),
        peers: told.peers.into_iter().map(|peer| peer.address).collect(),
    })
}

/// Gives a founding record to the node at `address`.
///
/// # Errors
/// [`PeerError`].
pub async fn found(address: &str, founding: &cluster::Founding) -> Result<(), PeerError> {
    let request = FoundRequest { founding: Some(founding_record(founding)) };
    connect(address).await?.found(within(request, CALL_TIMEOUT)).await?;
    Ok(())
}

/// Has the node at `address` see to it that a command is followed.
///
/// # Errors
/// [`ProposeError`].
pub async fn propose_at(
    address: &str,
    cluster: ClusterId,
    verb: Verb,
) -> Result<Proposed, ProposeError> {
    let command = Command::from(verb);
    let Ok(mut client) = connect(address).await else { return Err(ProposeError::NoLeader) };
    let cluster_id = Bytes::copy_from_slice(cluster.0.as_bytes());
    let request = ProposeRequest { cluster_id, command: command.encode_to_vec().into(), hops: 0 };
    match client.propose(within(request, PROPOSE_TIMEOUT)).await {
        Ok(response) => outcome(response.into_inner(), Some(&command)),
        Err(_) => Err(ProposeError::Unknown),
    }
}

/// Tells a node what this one leads. True if it wants to hear everything.
///
/// # Errors
/// [`PeerError`].
pub async fn announce(
    channel: Channel,
    cluster: ClusterId,
    node: NodeId,
    told: Announcement,
) -> Result<bool, PeerError> {
    let led = told
        .led
        .into_iter()
        .map(|(log, term)| Led { log_id: Bytes::copy_from_slice(log.0.as_bytes()), term });
    let request = AnnounceRequest {
        cluster_id: Bytes::copy_from_slice(cluster.0.as_bytes()),
        node: node.0,
        incarnation: told.incarnation,
        led: led.collect(),
        is_full: told.is_full,
        metadata_index: told.metadata_index,
        is_stopping: told.is_stopping,
    };
    let heard = PeerServiceClient::new(channel).announce(within(request, CALL_TIMEOUT)).await?;
    Ok(heard.into_inner().wants_full)
}

/// Asks a node about its replica of a log; `None` if it has none.
///
/// # Errors
/// [`PeerError`].
pub async fn inspect_replica(
    channel: Channel,
    cluster: ClusterId,
    log: LogId,
) -> Result<Option<ReplicaStatus>, PeerError> {
    let request = InspectReplicaRequest {
        cluster_id: Bytes::copy_from_slice(cluster.0.as_bytes()),
        log_id: Bytes::copy_from_slice(log.0.as_bytes()),
    };
    let request = within(request, CALL_TIMEOUT);
    let found = PeerServiceClient::new(channel).inspect_replica(request).await?.into_inner();
    Ok(found.is_here.then_some(ReplicaStatus {
        replica: ReplicaId(found.replica),
        membership_index: found.membership_index,
        high_watermark: found.high_watermark,
        log_start: found.log_start_offset,
        waits_for_repair: found.waits_for_repair,
    }))
}

/// Asks the node that leads a log to hand it over. False if it does not, or cannot now.
///
/// # Errors
/// [`PeerError`].
pub async fn transfer_replica(
    channel: Channel,
    cluster: ClusterId,
    log: LogId,
    to: ReplicaId,
) -> Result<bool, PeerError> {
    let request = TransferReplicaRequest {
        cluster_id: Bytes::copy_from_slice(cluster.0.as_bytes()),
        log_id: Bytes::copy_from_slice(log.0.as_bytes()),
        to_replica: to.0,
    };
    let request = within(request, CALL_TIMEOUT);
    let begun = PeerServiceClient::new(channel).transfer_replica(request).await?;
    Ok(begun.into_inner().has_begun)
}

//! The peer service: what this node answers to other nodes.

use std::sync::Arc;

use prost::Message as _;
use tokio::time::{Duration, Instant};
use tokio_stream::empty;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::super::channels::Channels;
use super::super::limits::PEER_MESSAGE_BYTES_MAX;
use super::door::Door;
use super::propose::{ProposeError, Proposer, response};
use super::transport::{
    ADDRESS_HEADER, CLUSTER_HEADER, EXCHANGE, HOST_HEADER, HostKind, NODE_HEADER,
};
use crate::cluster::command::{Command, Id, Verb};
use crate::cluster::{self, Node};
use crate::proto::internal::peer_service_server::{PeerService, PeerServiceServer};
use crate::proto::internal::{
    AnnounceRequest, AnnounceResponse, FoundRequest, FoundResponse, Founder, FoundingRecord,
    InspectReplicaRequest, InspectReplicaResponse, IntroduceRequest, IntroduceResponse,
    PeerAddress, ProposeRequest, ProposeResponse, TransferReplicaRequest, TransferReplicaResponse,
};
use crate::proto::stream::{self, Answered, Rope, Streams, WithStreams};
use crate::raft::{Frame, Look, Role};
use crate::types::{LogId, NodeId, ReplicaId};

/// How long a forwarded command may wait for a leader.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a node must be silent before another directory may take its place.
const SILENT: Duration = Duration::from_secs(10);
const HOPS_MAX: u32 = 3;

/// Answers other nodes.
#[derive(Debug, Clone)]
pub struct PeerServer {
    door: Arc<Door>,
    channels: Arc<Channels>,
}

impl PeerServer {
    /// Answers for the node behind `door`. Until that runs, it only says who it is.
    pub fn new(door: Arc<Door>, channels: Arc<Channels>) -> Self {
        Self { door, channels }
    }

    /// The service, with its limits, to be added to a server.
    pub fn into_service(self) -> WithStreams<PeerServiceServer<Self>, Self> {
        let generated = PeerServiceServer::new(self.clone());
        WithStreams::new(generated.max_decoding_message_size(PEER_MESSAGE_BYTES_MAX), self)
    }

    /// The node, if it runs and the caller means its cluster.
    fn node(&self, cluster: &[u8]) -> Result<Arc<Node>, Status> {
        let node = self.door.node().cloned();
        let node = node.ok_or_else(|| Status::unavailable("the node is starting"))?;
        if cluster != node.cluster().0.as_bytes() {
            return Err(Status::failed_precondition(format!(
                "this node belongs to cluster {}",
                node.cluster().0
            )));
        }
        Ok(node)
    }

    /// Fills in what the metadata's leader knows best: that a directory is silent for good.
    fn complete(node: &Node, verb: &mut Verb) {
        let Verb::RegisterNode(register) = verb else { return };
        let state = node.state();
        let Some(known) = state.node(register.node.node_id()) else { return };
        let is_other = known.directory != register.node.directory;
        if is_other && node.heard().silence(known.node_id(), known.incarnation) > SILENT {
            register.replaces = Some(known.directory);
        }
    }

    /// Takes frames from another node until one side ends the stream. Nothing is answered but how
    /// it ended.
    async fn exchange(&self, request: Request<Streaming<Rope>>) -> Result<(), Status> {
        let header = |name: &str| {
            let value = request.metadata().get(name).and_then(|value| value.to_str().ok());
            value.ok_or_else(|| Status::invalid_argument(format!("the header {name} is missing")))
        };
        let cluster = Uuid::try_parse(header(CLUSTER_HEADER)?);
        let cluster = cluster.map_err(|_| Status::invalid_argument("not a cluster's id"))?;
        let from = header(NODE_HEADER)?.parse().map(NodeId);
        let from = from.map_err(|_| Status::invalid_argument("not a node's id"))?;
        let host = HostKind::named(header(HOST_HEADER)?);
        let host = host.ok_or_else(|| Status::invalid_argument("not a host"))?;
        let node = self.node(cluster.as_bytes())?;
        if node.state().node(from).is_none()
            && let Ok(address) = header(ADDRESS_HEADER)
        {
            node.heard().note_address(from, address);
        }
        let mut frames = request.into_inner();
        let closing = node.closing();
        tokio::pin!(closing);
        loop {
            let frame = tokio::select! {
                frame = frames.message() => frame?,
                () = &mut closing => return Err(Status::unavailable("the node is stopping")),
            };
            let Some(frame) = frame else { break };
            let delivered = match host {
                HostKind::Metadata => node.metadata_host().deliver(from, frame),
                HostKind::Partitions => node.partition_host().deliver(from, frame),
            };
            if let Err(error) = delivered {
                tracing::warn!(%from, %error, "a stream from another node is cut");
                return Err(Status::invalid_argument(error.to_string()));
            }
        }
        Ok(())
    }

    async fn follow(
        &self,
        node: &Arc<Node>,
        request: ProposeRequest,
    ) -> Result<ProposeResponse, Status> {
        let proposer = Proposer::new(node.clone(), self.channels.clone());
        let mut command = None;
        if !request.command.is_empty() {
            let decoded = Command::decode(request.command);
            let decoded = decoded.map_err(|error| Status::invalid_argument(error.to_string()))?;
            command = Some(decoded);
        }
        if node.leads_metadata() {
            if let Some(verb) = command.as_mut().and_then(|command| command.verb.as_mut()) {
                Self::complete(node, verb);
            }
            return Ok(response(proposer.here(command.as_ref()).await));
        }
        if request.hops >= HOPS_MAX {
            return Ok(response(Err(ProposeError::NoLeader)));
        }
        let deadline = Instant::now() + PROPOSE_DEADLINE;
        Ok(response(match command.and_then(|command| command.verb) {
            Some(verb) => proposer.propose(verb, deadline).await,
            None => proposer.until_led(deadline, None).await,
        }))
    }
}

impl Streams for PeerServer {
    fn answer(&self, request: http::Request<Body>) -> Answered {
        if request.uri().path() != EXCHANGE {
            return Answered::NotHere(request);
        }
        let server = self.clone();
        stream::serve(request, PEER_MESSAGE_BYTES_MAX, move |frames| async move {
            server.exchange(frames).await.map(|()| Response::new(empty::<Result<Frame, Status>>()))
        })
    }
}

#[tonic::async_trait]
impl PeerService for PeerServer {
    async fn introduce(
        &self,
        _: Request<IntroduceRequest>,
    ) -> Result<Response<IntroduceResponse>, Status> {
        let identity = self.door.identity();
        let peers = self.door.known_peers().into_iter();
        let peer = |(node, address): (NodeId, String)| PeerAddress { node: node.0, address };
        Ok(Response::new(IntroduceResponse {
            node: identity.node,
            directory_id: bytes_of(identity.directory),
            founding: self.door.founding().as_ref().map(founding_record),
            peers: peers.map(peer).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn found(
        &self,
        request: Request<FoundRequest>,
    ) -> Result<Response<FoundResponse>, Status> {
        let told = request.into_inner().founding.as_ref().and_then(founding_of);
        let told = told.ok_or_else(|| Status::invalid_argument("not a founding record"))?;
        let identity = self.door.identity();
        let is_meant = told.is_founder(identity.node_id(), identity.directory);
        if !is_meant && self.door.founding().is_none() {
            return Err(Status::failed_precondition("the record names another directory"));
        }
        let (door, told) = (self.door.clone(), told);
        let kept = tokio::task::spawn_blocking(move || door.adopt(&told)).await;
        let kept = kept.map_err(|error| Status::internal(error.to_string()))?;
        let kept = kept.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(FoundResponse { founding: Some(founding_record(&kept)) }))
    }

    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeResponse>, Status> {
        let mut request = request.into_inner();
        let node = self.node(&request.cluster_id)?;
        request.hops += 1;
        // Finishes even if the one who asked has gone: a proposal cannot be taken back.
        let server = self.clone();
        let followed = tokio::spawn(async move { server.follow(&node, request).await });
        let followed = followed.await.map_err(|error| Status::internal(error.to_string()))?;
        followed.map(Response::new)
    }

    async fn announce(
        &self,
        request: Request<AnnounceRequest>,
    ) -> Result<Response<AnnounceResponse>, Status> {
        let told = request.into_inner();
        let node = self.node(&told.cluster_id)?;
        let from = NodeId(told.node);
        let is_new = node.heard().hear(from, told.incarnation, told.is_full);
        if told.is_stopping {
            node.heard().forget(from);
        }
        let led = told.led.iter().filter_map(|led| Some((log_id(&led.log_id)?, led.term)));
        if told.is_full {
            node.leaders().forget_node(from);
        }
        node.leaders().learn(from, led);
        Ok(Response::new(AnnounceResponse { wants_full: is_new && !told.is_full }))
    }

    async fn inspect_replica(
        &self,
        request: Request<InspectReplicaRequest>,
    ) -> Result<Response<InspectReplicaResponse>, Status> {
        let request = request.into_inner();
        let node = self.node(&request.cluster_id)?;
        let log = log_id(&request.log_id);
        let log = log.ok_or_else(|| Status::invalid_argument("not a log's id"))?;
        let found = match node.look(log).await {
            Some(Look::Runs(found)) => found,
            Some(Look::Nothing) => return Ok(Response::new(InspectReplicaResponse::default())),
            Some(Look::WaitsForRepair(replica)) => {
                return Ok(Response::new(InspectReplicaResponse {
                    is_here: true,
                    replica: replica.0,
                    waits_for_repair: true,
                    ..InspectReplicaResponse::default()
                }));
            }
            None => return Err(Status::unavailable("the node has too much to do, or is stopping")),
        };
        // DURABILITY: what is told to be on disk is.
        let dir = node.dir().clone();
        let synced = tokio::task::spawn_blocking(move || dir.journal().sync()).await;
        let synced = synced.map_err(|error| Status::internal(error.to_string()))?;
        synced.map_err(|error| Status::unavailable(error.to_string()))?;
        let status = node.replica(log).map(|handle| handle.status());
        Ok(Response::new(InspectReplicaResponse {
            is_here: true,
            replica: found.replica.0,
            term: found.term,
            is_leader: found.role == Role::Leader,
            leader: found.leader.map_or(0, |leader| leader.0),
            membership_index: found.membership.index,
            persisted_index: found.persisted,
            committed_index: found.committed,
            high_watermark: status.map_or(0, |status| status.high_watermark),
            log_start_offset: status.map_or(0, |status| status.log_start),
            waits_for_repair: false,
        }))
    }

    async fn transfer_replica(
        &self,
        request: Request<TransferReplicaRequest>,
    ) -> Result<Response<TransferReplicaResponse>, Status> {
        let request = request.into_inner();
        let node = self.node(&request.cluster_id)?;
        let log = log_id(&request.log_id);
        let log = log.ok_or_else(|| Status::invalid_argument("not a log's id"))?;
        let asked = node.partition_host().transfer(log, ReplicaId(request.to_replica));
        let begun = match asked {
            Ok(begun) => begun.await.is_ok_and(|begun| begun.is_ok()),
            Err(_) => false,
        };
        Ok(Response::new(TransferReplicaResponse { has_begun: begun }))
    }
}

fn bytes_of(id: Id) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(id.uuid().as_bytes())
}

fn id_of(bytes: &[u8]) -> Option<Id> {
    Uuid::from_slice(bytes).ok().map(Id::from)
}

fn log_id(bytes: &[u8]) -> Option<LogId> {
    Uuid::from_slice(bytes).ok().map(LogId)
}

/// A founding as other nodes are told it.
pub(in crate::rpc) fn founding_record(founding: &cluster::Founding) -> FoundingRecord {
    let founder = |founder: &cluster::Founder| Founder {
        node: founder.node,
        directory_id: bytes_of(founder.directory),
        peer_address: founder.peer_address.clone(),
    };
    FoundingRecord {
        cluster_id: bytes_of(founding.cluster),
        founders: founding.founders.iter().map(founder).collect(),
    }
}

/// What other nodes told; `None` if it makes no sense.
pub(in crate::rpc) fn founding_of(record: &FoundingRecord) -> Option<cluster::Founding> {
    let founder = |founder: &Founder| {
        Some(cluster::Founder {
            node: founder.node,
            directory: id_of(&founder.directory_id)?,
            peer_address: founder.peer_address.clone(),
        })
    };
    let founders: Option<Vec<_>> = record.founders.iter().map(founder).collect();
    let founders = founders.filter(|founders| !founders.is_empty())?;
    Some(cluster::Founding { cluster: id_of(&record.cluster_id)?, founders })
}

//! The group service: consumer groups, their members and their offsets.
//!
//! | method | file |
//! |---|---|
//! | CreateGroup, DescribeGroup, ListGroups, DeleteGroup | `admin` |
//! | Consume | `consume` |
//! | CommitOffsets, FetchOffsets, ResetOffsets | `offsets` |
//!
//! `forget` clears up behind groups that were deleted.
//!
//! What a partition's leader is asked goes through `commands` and `progress`, both by `leaders`,
//! which finds the leaders; `places` says which partitions are meant.

mod admin;
mod commands;
mod consume;
mod forget;
mod leaders;
mod offsets;
mod places;
mod progress;

use std::future::Future;
use std::pin::Pin;

use futures_util::stream::{self, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

pub use self::forget::forget_deleted;
use super::call::{Call, Origin};
use super::context::Context;
use super::counters::{Counters, Method, add};
use super::error::Error;
use super::limits::{MESSAGE_BYTES_MAX, PEER_MESSAGE_BYTES_MAX};
use crate::proto::internal::group_peer_service_server::{GroupPeerService, GroupPeerServiceServer};
use crate::proto::path::CONSUME;
use crate::proto::server as api;
use crate::proto::server::group_service_server::{GroupService, GroupServiceServer};
use crate::proto::stream::{Answered, Streams, WithStreams};
use crate::proto::{self, internal};

/// Questions to leaders that wait at a time.
const AT_ONCE_MAX: usize = 32;

/// The group service of a node.
#[derive(Debug, Clone)]
pub struct GroupApi {
    context: Context,
}

impl GroupApi {
    /// The group service of the node that `context` is of.
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    /// The service for clients, with its limits.
    pub fn into_service(self) -> WithStreams<GroupServiceServer<Self>, Self> {
        let generated = GroupServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        WithStreams::new(generated, self)
    }

    /// The service for other nodes.
    pub fn into_peer_service(self) -> GroupPeerServiceServer<Self> {
        GroupPeerServiceServer::new(self).max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
    }

    async fn answer<T>(
        &self,
        method: Method,
        outcome: impl Future<Output = Result<T, Error>>,
    ) -> Result<Response<T>, Status> {
        let measured = self.context.counters().begin(method);
        let outcome = match self.context.enter() {
            Ok(_permit) => outcome.await,
            Err(error) => Err(error),
        };
        measured.end(&outcome);
        outcome.map(Response::new).map_err(Status::from)
    }

    fn check_cluster(&self, cluster: &[u8]) -> Result<(), Error> {
        let own = self.context.node().cluster().0;
        if cluster != own.as_bytes() {
            return Err(Error::ClusterMismatch { cluster_id: own.to_string() });
        }
        Ok(())
    }
}

/// Runs some of many futures at a time, and returns what they came to in their order.
async fn buffered<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    stream::iter(futures).buffered(AT_ONCE_MAX).collect().await
}

/// Counts records that were gone before a group read them.
fn count_missed(context: &Context, records: u64) {
    add(&context.counters().records_missed, records);
}

impl Streams for GroupApi {
    fn answer(&self, request: http::Request<Body>) -> Answered {
        if request.uri().path() != CONSUME {
            return Answered::NotHere(request);
        }
        let api = self.clone();
        let consume = move |requests| async move { api.consume(requests).await };
        proto::stream::serve(request, MESSAGE_BYTES_MAX, consume)
    }
}

#[tonic::async_trait]
impl GroupService for GroupApi {
    async fn create_group(
        &self,
        request: Request<api::CreateGroupRequest>,
    ) -> Result<Response<api::CreateGroupResponse>, Status> {
        let call = Call::of(request.metadata());
        let done = admin::create(&self.context, request.into_inner(), call);
        self.answer(Method::CreateGroup, done).await
    }

    async fn describe_group(
        &self,
        request: Request<api::DescribeGroupRequest>,
    ) -> Result<Response<api::DescribeGroupResponse>, Status> {
        let done = admin::describe(&self.context, request.into_inner());
        self.answer(Method::DescribeGroup, done).await
    }

    async fn list_groups(
        &self,
        request: Request<api::ListGroupsRequest>,
    ) -> Result<Response<api::ListGroupsResponse>, Status> {
        let done = admin::list(&self.context, request.into_inner());
        self.answer(Method::ListGroups, done).await
    }

    async fn delete_group(
        &self,
        request: Request<api::DeleteGroupRequest>,
    ) -> Result<Response<api::DeleteGroupResponse>, Status> {
        let done = admin::delete(&self.context, request.into_inner());
        self.answer(Method::DeleteGroup, done).await
    }

    type ConsumeStream = Pin<Box<dyn Stream<Item = Result<api::ConsumeResponse, Status>> + Send>>;

    async fn consume(
        &self,
        request: Request<Streaming<api::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let permit = self.context.enter()?;
        let held = (permit, Counters::open_stream(self.context.counters(), Method::Consume));
        let origin = Origin::of(request.metadata());
        let (answers, stream) = mpsc::channel(consume::MESSAGES_MAX);
        let (context, requests) = (self.context.clone(), request.into_inner());
        let serving = async move {
            consume::consume(context, requests, origin, answers).await;
            drop(held);
        };
        tokio::spawn(serving.in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn commit_offsets(
        &self,
        request: Request<api::CommitOffsetsRequest>,
    ) -> Result<Response<api::CommitOffsetsResponse>, Status> {
        let call = Call::of(request.metadata());
        let done = offsets::commit_call(&self.context, request.into_inner(), call);
        self.answer(Method::CommitOffsets, done).await
    }

    async fn fetch_offsets(
        &self,
        request: Request<api::FetchOffsetsRequest>,
    ) -> Result<Response<api::FetchOffsetsResponse>, Status> {
        let call = Call::of(request.metadata());
        let done = offsets::fetch(&self.context, request.into_inner(), call);
        self.answer(Method::FetchOffsets, done).await
    }

    async fn reset_offsets(
        &self,
        request: Request<api::ResetOffsetsRequest>,
    ) -> Result<Response<api::ResetOffsetsResponse>, Status> {
        let call = Call::of(request.metadata());
        let done = offsets::reset(&self.context, request.into_inner(), call);
        self.answer(Method::ResetOffsets, done).await
    }
}

#[tonic::async_trait]
impl GroupPeerService for GroupApi {
    async fn follow(
        &self,
        request: Request<internal::FollowRequest>,
    ) -> Result<Response<internal::FollowResponse>, Status> {
        let call = Call::of(request.metadata());
        self.check_cluster(&request.get_ref().cluster_id)?;
        let followed = commands::answer(&self.context, request.into_inner(), call).await?;
        Ok(Response::new(followed))
    }

    async fn inspect_group(
        &self,
        request: Request<internal::InspectGroupRequest>,
    ) -> Result<Response<internal::InspectGroupResponse>, Status> {
        let call = Call::of(request.metadata());
        self.check_cluster(&request.get_ref().cluster_id)?;
        let found = progress::answer(&self.context, request.into_inner(), call).await?;
        Ok(Response::new(found))
    }
}

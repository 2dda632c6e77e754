//! Topics, nodes and groups: the administrative calls.
//!
//! Calls that only look are repeated when a node does not answer. Those that change something are
//! repeated when the server says that nothing was done; when it cannot be told they fail with
//! [`Error::OutcomeUnknown`]. None is cancel safe in the sense that a cancelled change may still be
//! made.

mod groups;

use std::collections::HashMap;
use std::future::Future;

use tonic::{Request, Response, Status};

use super::call::{Effect, Target};
use super::connection::Route;
use super::consumer::{Start, place};
use super::{Client, Error};
use crate::proto::client as api;

pub use self::groups::GroupStart;

/// Topics or groups asked for at once.
const PAGE_SIZE: u32 = 1000;

impl Client {
    async fn ask<Q, A, F>(
        &self,
        effect: Effect,
        message: Q,
        make: impl Fn(Route, Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.call(effect, Target::Any, |route, timeout| {
            let request = route.request(message.clone(), timeout);
            make(route, request)
        })
        .await
    }

    /// Makes a topic and waits until its partitions have leaders.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::InvalidRequest`], [`Error::Precondition`] if there are
    /// too few nodes, [`Error::OutcomeUnknown`], [`Error::Unavailable`].
    pub async fn create_topic(
        &self,
        request: api::CreateTopicRequest,
    ) -> Result<api::Topic, Error> {
        let call = self.ask(Effect::Once, request, async |route, request| {
            route.topics().create_topic(request).await
        });
        Ok(call.await?.topic.unwrap_or_default())
    }

    /// Describes a topic with its partitions.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn describe_topic(&self, name: &str) -> Result<api::Topic, Error> {
        let request = api::DescribeTopicRequest { name: name.to_owned(), ..Default::default() };
        let call = self.ask(Effect::Repeatable, request, async |route, request| {
            route.topics().describe_topic(request).await
        });
        Ok(call.await?.topic.unwrap_or_default())
    }

    /// Lists the topics whose names begin with `prefix`, by name.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_topics(&self, prefix: &str) -> Result<Vec<api::TopicSummary>, Error> {
        let mut topics = Vec::new();
        let mut page_token = String::new();
        loop {
            let prefix = prefix.to_owned();
            let request = api::ListTopicsRequest { prefix, page_size: PAGE_SIZE, page_token };
            let call = self.ask(Effect::Repeatable, request, async |route, request| {
                route.topics().list_topics(request).await
            });
            let page = call.await?;
            topics.extend(page.topics);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(topics);
            }
        }
    }

    /// Sets keys of a topic's configuration, and sets others back to their defaults.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InvalidRequest`], [`Error::Unavailable`].
    pub async fn alter_topic(
        &self,
        name: &str,
        set: HashMap<String, String>,
        reset: Vec<String>,
    ) -> Result<api::Topic, Error> {
        let request = api::AlterTopicRequest { name: name.to_owned(), set, reset };
        let call = self.ask(Effect::Repeatable, request, async |route, request| {
            route.topics().alter_topic(request).await
        });
        Ok(call.await?.topic.unwrap_or_default())
    }

    /// Gives a topic more partitions, `partitions` in all.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InvalidRequest`], [`Error::OutcomeUnknown`],
    /// [`Error::Unavailable`].
    pub async fn add_partitions(&self, name: &str, partitions: u32) -> Result<api::Topic, Error> {
        let request = api::AddPartitionsRequest { name: name.to_owned(), partitions };
        let call = self.ask(Effect::Once, request, async |route, request| {
            route.topics().add_partitions(request).await
        });
        Ok(call.await?.topic.unwrap_or_default())
    }

    /// Deletes a topic with all its records. Returns the id that it had.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OutcomeUnknown`], [`Error::Unavailable`].
    pub async fn delete_topic(&self, name: &str) -> Result<String, Error> {
        let request = api::DeleteTopicRequest { name: name.to_owned(), ..Default::default() };
        let call = self.ask(Effect::Once, request, async |route, request| {
            route.topics().delete_topic(request).await
        });
        Ok(call.await?.id)
    }

    /// Deletes the records of a partition below an offset. Returns the log start offset.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OffsetOutOfRange`], [`Error::Unavailable`].
    pub async fn delete_records(
        &self,
        name: &str,
        partition: u32,
        before_offset: u64,
    ) -> Result<u64, Error> {
        let request = api::DeleteRecordsRequest { name: name.to_owned(), partition, before_offset };
        let call = self.ask(Effect::Repeatable, request, async |route, request| {
            route.topics().delete_records(request).await
        });
        Ok(call.await?.log_start_offset)
    }

    /// Looks up offsets of a place in partitions; in all of the topic's if none are named.
    ///
    /// What was acknowledged before the call is below the answer for [`Start::Latest`].
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn list_offsets(
        &self,
        topic: &str,
        partitions: Vec<u32>,
        at: Start,
    ) -> Result<Vec<api::PartitionOffset>, Error> {
        let request = api::ListOffsetsRequest {
            topic: topic.to_owned(),
            partitions,
            position: Some(place(at)),
            ..Default::default()
        };
        let call = self.ask(Effect::Repeatable, request, async |route, request| {
            route.log().list_offsets(request).await
        });
        Ok(call.await?.offsets)
    }

    /// Describes the cluster and its nodes, as the node that answers sees them.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn describe_cluster(&self) -> Result<api::DescribeClusterResponse, Error> {
        let request = api::DescribeClusterRequest {};
        let call = self.ask(Effect::Repeatable, request, async |route, request| {
            route.cluster().describe_cluster(request).await
        });
        call.await
    }

    /// Moves all leadership off a node and keeps it off.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Precondition`], [`Error::Unavailable`].
    pub async fn drain_node(&self, node: u64) -> Result<api::Node, Error> {
        let request = api::DrainNodeRequest { node };
        let call = self.ask(Effect::Repeatable, request, async |route, request| {
            route.cluster().drain_node(request).await
        });
        Ok(call.await?.node.unwrap_or_default())
    }

    /// Lets a drained node lead again.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Precondition`], [`Error::Unavailable`].
    pub async fn undrain_node(&self, node: u64) -> Result<api::Node, Error> {
        let request = api::UndrainNodeRequest { node };
        let call = self.ask(Effect::Repeatable, request, async |route, request| {
            route.cluster().undrain_node(request).await
        });
        Ok(call.await?.node.unwrap_or_default())
    }

    /// Begins to move the replicas of a partition, the preferred leader first.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InvalidRequest`], [`Error::Precondition`],
    /// [`Error::Unavailable`].
    pub async fn move_partition(
        &self,
        topic: &str,
        partition: u32,
        replicas: Vec<u64>,
    ) -> Result<(), Error> {
        let request = api::MovePartitionRequest { topic: topic.to_owned(), partition, replicas };
        let call = self.ask(Effect::Repeatable, request, async |route, request| {
            route.cluster().move_partition(request).await
        });
        call.await.map(|_| ())
    }

    /// Moves the leadership of a partition. Returns the new leader epoch.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Precondition`], [`Error::Unavailable`].
    pub async fn transfer_leadership(
        &self,
        topic: &str,
        partition: u32,
        to_node: u64,
    ) -> Result<u64, Error> {
        let request =
            api::TransferLeadershipRequest { topic: topic.to_owned(), partition, to_node };
        let call = self.ask(Effect::Repeatable, request, async |route, request| {
            route.cluster().transfer_leadership(request).await
        });
        Ok(call.await?.leader_epoch)
    }

    /// Begins to move everything off a node and to take it out of the cluster; `is_dead` if it will
    /// never come back. Returns how many replicas have to be moved first.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Precondition`], [`Error::Unavailable`].
    pub async fn decommission_node(&self, node: u64, is_dead: bool) -> Result<u32, Error> {
        let request = api::DecommissionNodeRequest { node, is_dead };
        let call = self.ask(Effect::Repeatable, request, async |route, request| {
            route.cluster().decommission_node(request).await
        });
        Ok(call.await?.replicas_left)
    }
}

//! Groups: made, looked at, moved and deleted.

use super::PAGE_SIZE;
use crate::client::call::Effect;
use crate::client::{Client, Error, Failure};
use crate::proto::client as api;
use crate::proto::client::group_place::Place;
use crate::proto::client::offset_commit_outcome::Outcome;

/// A place in every partition of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupStart {
    /// The first record that is kept.
    Earliest,
    /// After the last record there is.
    Latest,
    /// The record with this offset.
    Offset(u64),
    /// The first record appended at this time or later, in milliseconds since the Unix epoch.
    TimeMs(i64),
    /// Where the group of this name is.
    Group(String),
}

impl From<GroupStart> for api::GroupPlace {
    fn from(start: GroupStart) -> Self {
        let place = match start {
            GroupStart::Earliest => Place::Earliest(true),
            GroupStart::Latest => Place::Latest(true),
            GroupStart::Offset(offset) => Place::Offset(offset),
            GroupStart::TimeMs(time_ms) => Place::TimeMs(time_ms),
            GroupStart::Group(group) => Place::Group(group),
        };
        Self { place: Some(place) }
    }
}

impl Client {
    /// Makes a group.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::InvalidRequest`], [`Error::NotFound`] if there is no such
    /// topic, or group to start from, [`Error::OutcomeUnknown`], [`Error::Unavailable`].
    pub async fn create_group(
        &self,
        request: api::CreateGroupRequest,
    ) -> Result<api::Group, Error> {
        let call = self.ask(Effect::Once, request, async |route, request| {
            route.groups().create_group(request).await
        });
        Ok(call.await?.group.unwrap_or_default())
    }

    /// Describes a group with its members and who has which partition.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn describe_group(&self, group: &str) -> Result<api::Group, Error> {
        let request = api::DescribeGroupRequest { group: group.to_owned() };
        let call = self.ask(Effect::Repeatable, request, async |route, request| {
            route.groups().describe_group(request).await
        });
        Ok(call.await?.group.unwrap_or_default())
    }

    /// Lists the groups whose names begin with `prefix`, by name.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_groups(&self, prefix: &str) -> Result<Vec<api::GroupSummary>, Error> {
        let mut groups = Vec::new();
        let mut page_token = String::new();
        loop {
            let prefix = prefix.to_owned();
            let request = api::ListGroupsRequest { prefix, page_size: PAGE_SIZE, page_token };
            let call = self.ask(Effect::Repeatable, request, async |route, request| {
                route.groups().list_groups(request).await
            });
            let page = call.await?;
            groups.extend(page.groups);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(groups);
            }
        }
    }

    /// Deletes a group with all its positions; with `force` also if it has members. Returns the id
    /// that it had.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Precondition`] if it has members, [`Error::OutcomeUnknown`],
    /// [`Error::Unavailable`].
    pub async fn delete_group(&self, group: &str, force: bool) -> Result<String, Error> {
        let request = api::DeleteGroupRequest { group: group.to_owned(), force };
        let call = self.ask(Effect::Once, request, async |route, request| {
            route.groups().delete_group(request).await
        });
        Ok(call.await?.group_id)
    }

    /// Says how far a group is in each partition, and how far behind; in all that it reads if none
    /// are named.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn fetch_offsets(
        &self,
        group: &str,
        topics: Vec<api::TopicPartitions>,
    ) -> Result<Vec<api::GroupOffset>, Error> {
        let request = api::FetchOffsetsRequest { group: group.to_owned(), topics };
        let call = self.ask(Effect::Repeatable, request, async |route, request| {
            route.groups().fetch_offsets(request).await
        });
        Ok(call.await?.offsets)
    }

    /// Moves a group's positions; in all partitions that it reads if none are named. With `dry_run`
    /// it only says what would be done.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InvalidRequest`], [`Error::OutcomeUnknown`],
    /// [`Error::Unavailable`]. Each partition has an error of its own beside that.
    pub async fn reset_offsets(
        &self,
        group: &str,
        topics: Vec<api::TopicPartitions>,
        to: GroupStart,
        dry_run: bool,
    ) -> Result<Vec<api::OffsetReset>, Error> {
        let effect = if dry_run { Effect::Repeatable } else { Effect::Once };
        let (group, to) = (group.to_owned(), Some(to.into()));
        let request = api::ResetOffsetsRequest { group, topics, to, dry_run };
        let call = self.ask(effect, request, async |route, request| {
            route.groups().reset_offsets(request).await
        });
        Ok(call.await?.resets)
    }

    /// Commits offsets for a client that is no member, or that fetches by itself. Returns for each
    /// offset, in their order, the next one to read or why it does not stand.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Precondition`] if there is no such member,
    /// [`Error::Unavailable`].
    pub async fn commit_offsets(
        &self,
        request: api::CommitOffsetsRequest,
    ) -> Result<Vec<Result<u64, Error>>, Error> {
        // Committing an offset twice does no harm.
        let call = self.ask(Effect::Repeatable, request, async |route, request| {
            route.groups().commit_offsets(request).await
        });
        Ok(call.await?.outcomes.into_iter().map(outcome).collect())
    }
}

fn outcome(told: api::OffsetCommitOutcome) -> Result<u64, Error> {
    match told.outcome {
        Some(Outcome::NextOffset(next_offset)) => Ok(next_offset),
        Some(Outcome::Error(error)) => Err(Failure::from(error).into()),
        None => Err(Failure::cut("the server left an offset unanswered").into()),
    }
}

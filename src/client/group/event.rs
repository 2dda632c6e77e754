//! What a member of a group gets: records, and news of its partitions.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use crate::client::{Error, Gap, LostReason, Record};

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A partition that has become the member's, and where it begins there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The topic.
    pub topic: Arc<str>,
    /// The topic's id.
    pub topic_id: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The generation in which it became the member's.
    pub generation: u64,
    /// The offset that comes first.
    pub next_offset: u64,
    /// What was committed with it.
    pub metadata: String,
    /// First offset that can be read.
    pub log_start_offset: u64,
    /// First offset that is not committed to the log.
    pub high_watermark: u64,
}

/// Partitions that move to other members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// The partitions. None of their records is handed out any more.
    pub partitions: Vec<TopicPartition>,
    /// Until when what is done has to be committed.
    pub deadline: Instant,
}

/// Partitions that are the member's no more. What was not committed comes again, to whoever has
/// them now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The partitions.
    pub partitions: Vec<TopicPartition>,
    /// Why.
    pub reason: LostReason,
}

/// What a member of a group gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupEvent {
    /// A record.
    Record(Record),
    /// Records that the group had not read are gone: retention or a deletion overtook it.
    Gap(Gap),
    /// Partitions have become the member's. Their records follow.
    Assigned(Vec<Assigned>),
    /// Partitions move to other members. They are let go of when the next event is asked for, once
    /// all that was committed until then is answered.
    Revoked(Revoked),
    /// Partitions are the member's no more.
    Lost(Lost),
}

/// What a callback of [`GroupConsumer::on_rebalance`](super::GroupConsumer::on_rebalance) is told.
#[derive(Debug)]
pub enum Rebalance<'a> {
    /// Partitions have become the member's. Their records follow.
    Assigned(&'a [Assigned]),
    /// Partitions move to other members as soon as the callback returns.
    Revoked(Revoking<'a>),
    /// Partitions are the member's no more.
    Lost(&'a Lost),
}

/// Partitions that move to other members, with a last chance to commit.
#[derive(Debug)]
pub struct Revoking<'a> {
    pub(super) revoked: &'a Revoked,
    pub(super) shared: &'a Shared,
}

impl Revoking<'_> {
    /// Returns the partitions.
    pub fn partitions(&self) -> &[TopicPartition] {
        &self.revoked.partitions
    }

    /// Returns until when the callback has to return.
    pub fn deadline(&self) -> Instant {
        self.revoked.deadline
    }

    /// Commits an offset before the partition moves. `next_offset` is one above the last record
    /// that is done.
    ///
    /// # Errors
    /// [`Error::Precondition`] if the member has no such partition, [`Error::InvalidRequest`] if
    /// the offset is beyond what was handed out.
    pub fn commit(
        &self,
        at: &TopicPartition,
        next_offset: u64,
        metadata: &str,
    ) -> Result<(), Error> {
        let wanted = super::commits::Wanted::new(next_offset, metadata.to_owned());
        self.shared.commit(at, wanted, None)
    }
}

//! What errors become on the wire: one table, from every error to its reason, and from every
//! reason to its gRPC code.
//!
//! A call that fails carries a `google.rpc.Status` with an `ErrorInfo`; inside a stream that goes
//! on the same values stand in an `Error` message. What another node has answered passes through
//! unchanged. No match here has an arm for "all others": a new error has to find its row.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::error::Error;
use crate::cluster::Refusal as MetadataRefusal;
use crate::partition::{AskError, FetchError, Refusal};
use crate::proto::server::{Error as InStream, ErrorReason as Reason};
use crate::types::NodeId;
use crate::{batch, raft, storage};

/// Domain of the reasons.
pub const DOMAIN: &str = "quipu.v1";

const NAME_PREFIX: &str = "ERROR_REASON_";
const GENERATION: &str = "generation";
const LEADER_NODE: &str = "leader_node";
const LEADER_ADDRESS: &str = "leader_address";

/// The values that go with a reason.
type Metadata = Vec<(&'static str, String)>;

/// The gRPC code of a reason, and after how many milliseconds the same call may succeed.
pub fn row(reason: Reason) -> (Code, Option<u32>) {
    match reason {
        Reason::InvalidField
        | Reason::BadName
        | Reason::InvalidConfig
        | Reason::CorruptBatch
        | Reason::BadChecksum
        | Reason::RecordTooLarge
        | Reason::BatchTooLarge
        | Reason::CompressionLimit
        | Reason::UnsupportedCodec => (Code::InvalidArgument, None),
        Reason::UnknownTopic
        | Reason::UnknownTopicId
        | Reason::UnknownPartition
        | Reason::UnknownNode
        | Reason::UnknownGroup => (Code::NotFound, None),
        Reason::TopicExists | Reason::GroupExists => (Code::AlreadyExists, None),
        Reason::OffsetOutOfRange => (Code::OutOfRange, None),
        Reason::UnknownProducer
        | Reason::ProducerFenced
        | Reason::SequenceReused
        | Reason::Precondition
        | Reason::NotEnoughNodes
        | Reason::ClusterMismatch
        | Reason::GroupNotEmpty
        | Reason::UnknownMember
        | Reason::NotOwner
        | Reason::IllegalGeneration
        | Reason::OffsetRegressed => (Code::FailedPrecondition, None),
        Reason::FencedInstance => (Code::Aborted, None),
        // It may have overtaken those before it.
        Reason::OutOfOrderSequence => (Code::FailedPrecondition, Some(50)),
        Reason::NotLeader | Reason::Draining => (Code::Unavailable, Some(50)),
        Reason::NoLeader => (Code::Unavailable, Some(200)),
        Reason::Starting => (Code::Unavailable, Some(500)),
        // A delay would ask clients to repeat what may be done already.
        Reason::OutcomeUnknown => (Code::Unavailable, None),
        Reason::StorageFailed => (Code::Unavailable, Some(1_000)),
        Reason::Overloaded => (Code::ResourceExhausted, Some(100)),
        Reason::DiskFull => (Code::ResourceExhausted, Some(5_000)),
        Reason::LimitReached | Reason::SlowConsumer => (Code::ResourceExhausted, None),
        Reason::DataLoss => (Code::DataLoss, None),
        Reason::Unspecified | Reason::Internal => (Code::Internal, None),
    }
}

/// The name of a reason as it stands in an `ErrorInfo`.
pub fn name(reason: Reason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix(NAME_PREFIX).unwrap_or(name)
}

/// The reason that a status gives; `None` if it gives none of ours.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    Reason::from_str_name(&format!("{NAME_PREFIX}{}", info.reason))
}

/// The leader that a status names.
pub(super) fn leader_of(status: &Status) -> Option<NodeId> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    info.metadata.get(LEADER_NODE)?.parse().ok().map(NodeId)
}

/// The generation that a status names.
pub(super) fn generation_of(status: &Status) -> Option<u64> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    info.metadata.get(GENERATION)?.parse().ok()
}

/// The log start that a status names, of a log that begins after what was asked for.
pub(super) fn log_start_of(status: &Status) -> Option<u64> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    let number = |name: &str| info.metadata.get(name)?.parse::<u64>().ok();
    let (requested, log_start) = (number("requested")?, number("log_start_offset")?);
    (log_start > requested).then_some(log_start)
}

/// The reason of an error.
pub(super) fn reason(error: &Error) -> Option<Reason> {
    match error {
        Error::Passed(status) => reason_of(status),
        own => Some(reason_and_metadata(own).0),
    }
}

/// The error as the status of a call.
pub fn to_status(error: Error) -> Status {
    if let Error::Passed(status) = error {
        return *status;
    }
    let (reason, metadata) = reason_and_metadata(&error);
    let (code, retry_after_ms) = row(reason);
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    status(code, error.to_string(), name(reason).to_owned(), metadata, retry_after_ms)
}

/// The error as a message in a stream that goes on.
pub fn to_in_stream(error: &Error) -> InStream {
    if let Error::Passed(status) = error {
        return in_stream_of(status);
    }
    let (reason, metadata) = reason_and_metadata(error);
    let (code, retry_after_ms) = row(reason);
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let message = error.to_string();
    InStream { code: code.into(), reason: reason.into(), message, metadata, retry_after_ms }
}

/// A message in another node's stream as the error that it stands for.
pub fn of_in_stream(told: InStream) -> Error {
    let reason = name(told.reason()).to_owned();
    status(Code::from(told.code), told.message, reason, told.metadata, told.retry_after_ms).into()
}

fn in_stream_of(status: &Status) -> InStream {
    let details = status.get_error_details();
    let retry_after = details.retry_info().and_then(|info| info.retry_delay);
    let metadata = details.error_info().map(|info| info.metadata.clone()).unwrap_or_default();
    InStream {
        code: status.code().into(),
        reason: reason_of(status).unwrap_or(Reason::Unspecified).into(),
        message: status.message().to_owned(),
        metadata,
        retry_after_ms: retry_after.and_then(|delay| u32::try_from(delay.as_millis()).ok()),
    }
}

fn status(
    code: Code,
    message: String,
    reason: String,
    metadata: HashMap<String, String>,
    retry_after_ms: Option<u32>,
) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    if let Some(delay) = retry_after_ms {
        details.set_retry_info(Some(Duration::from_millis(delay.into())));
    }
    Status::with_error_details(code, message, details)
}

fn text(value: &(impl ToString + ?Sized)) -> String {
    value.to_string()
}

fn reason_and_metadata(error: &Error) -> (Reason, Metadata) {
    match error {
        Error::InvalidField { field, expected } => {
            (Reason::InvalidField, vec![("field", text(field)), ("expected", text(expected))])
        }
        Error::BadName(_) => (Reason::BadName, vec![]),
        Error::InvalidConfig { key, expected } => {
            (Reason::InvalidConfig, vec![("key", text(key)), ("expected", text(expected))])
        }
        Error::UnknownTopic(topic) => (Reason::UnknownTopic, vec![("topic", text(topic))]),
        Error::UnknownTopicId(id) => (Reason::UnknownTopicId, vec![("topic_id", text(id))]),
        Error::UnknownPartition { topic, partition, partitions } => {
            let named = [("topic", text(topic)), ("partition", text(partition))];
            let metadata = named.into_iter().chain([("partitions", text(partitions))]);
            (Reason::UnknownPartition, metadata.collect())
        }
        Error::UnknownNode(node) => (Reason::UnknownNode, vec![("node", text(node))]),
        Error::NotLeader { leader, address } => {
            let leader = leader.map(|node| (LEADER_NODE, text(&node)));
            let address = address.as_ref().map(|address| (LEADER_ADDRESS, text(address)));
            (Reason::NotLeader, leader.into_iter().chain(address).collect())
        }
        Error::NoLeader => (Reason::NoLeader, vec![]),
        Error::Draining => (Reason::Draining, vec![]),
        Error::Starting => (Reason::Starting, vec![]),
        Error::OutcomeUnknown => (Reason::OutcomeUnknown, vec![]),
        Error::Overloaded => (Reason::Overloaded, vec![]),
        Error::LimitReached { limit, max } => {
            (Reason::LimitReached, vec![("limit", text(limit)), ("max", text(max))])
        }
        Error::SlowConsumer => (Reason::SlowConsumer, vec![]),
        Error::NotOwner => (Reason::NotOwner, vec![]),
        Error::ClusterMismatch { cluster_id } => {
            (Reason::ClusterMismatch, vec![("cluster_id", text(cluster_id))])
        }
        Error::Precondition(_) => (Reason::Precondition, vec![]),
        Error::Unexpected(_) => (Reason::Internal, vec![]),
        Error::Batch(error) => of_batch(error),
        Error::Ask(error) => of_ask(error),
        Error::Fetch(error) => of_fetch(error),
        Error::Storage(error) => of_storage(error),
        Error::Metadata(refusal) => of_metadata(refusal),
        Error::TooFewNodes(few) => {
            let metadata = vec![("replicas", text(&few.replicas)), ("nodes", text(&few.nodes))];
            (Reason::NotEnoughNodes, metadata)
        }
        Error::Passed(status) => (reason_of(status).unwrap_or(Reason::Internal), vec![]),
    }
}

fn of_batch(error: &batch::Error) -> (Reason, Metadata) {
    use batch::Error as Batch;
    match error {
        Batch::Corrupt { position, .. } => {
            (Reason::CorruptBatch, vec![("position", text(position))])
        }
        Batch::BadChecksum { .. } => (Reason::BadChecksum, vec![]),
        Batch::Empty => (Reason::CorruptBatch, vec![("position", text(&0))]),
        Batch::RecordTooLarge { ordinal, max, .. } => {
            (Reason::RecordTooLarge, vec![("ordinal", text(ordinal)), ("max", text(max))])
        }
        Batch::BatchTooLarge { max, .. } => (Reason::BatchTooLarge, vec![("max", text(max))]),
        Batch::CompressionLimit { uncompressed_bytes_max: max, .. } => {
            (Reason::CompressionLimit, vec![("max", text(max))])
        }
        Batch::UnsupportedCodec { codec } => {
            (Reason::UnsupportedCodec, vec![("codec", text(codec))])
        }
    }
}

fn of_ask(error: &AskError) -> (Reason, Metadata) {
    match error {
        AskError::NotLeader { leader } => {
            let leader = leader.map(|replica| (LEADER_NODE, text(&replica.node())));
            (Reason::NotLeader, leader.into_iter().collect())
        }
        AskError::Transferring => (Reason::NoLeader, vec![]),
        AskError::DiskFull => (Reason::DiskFull, vec![]),
        AskError::Refused(refusal) => of_refusal(refusal),
        AskError::NotTaken(raft::Refused::Overloaded) => (Reason::Overloaded, vec![]),
        AskError::NotTaken(raft::Refused::Stopped) => (Reason::Draining, vec![]),
        AskError::Unknown => (Reason::OutcomeUnknown, vec![]),
    }
}

fn of_refusal(refusal: &Refusal) -> (Reason, Metadata) {
    match refusal {
        Refusal::UnknownProducer => (Reason::UnknownProducer, vec![]),
        Refusal::ProducerFenced { current } => {
            (Reason::ProducerFenced, vec![("producer_epoch", text(current))])
        }
        Refusal::OutOfOrderSequence { expected, found } => {
            let metadata = vec![("expected", text(expected)), ("found", text(found))];
            (Reason::OutOfOrderSequence, metadata)
        }
        Refusal::SequenceReused { base_offset, .. } => {
            (Reason::SequenceReused, vec![("base_offset", text(base_offset))])
        }
        Refusal::EmptyBatch => (Reason::CorruptBatch, vec![("position", text(&0))]),
        Refusal::ReservedProducerId => {
            let metadata = [("field", text("producer_id")), ("expected", text("above 0"))];
            (Reason::InvalidField, metadata.into())
        }
        Refusal::OffsetBeyondEnd { log_end } => {
            (Reason::OffsetOutOfRange, vec![("high_watermark", text(log_end))])
        }
        Refusal::TooManyGroups { max } => {
            (Reason::LimitReached, vec![("limit", text("groups")), ("max", text(max))])
        }
        Refusal::ProducerIdTaken
        | Refusal::ProducerEpochExhausted
        | Refusal::GenerationExhausted => (Reason::Precondition, vec![]),
        // The member was never given the partition, or the group is being deleted.
        Refusal::UnknownGroup => (Reason::NotOwner, vec![]),
        Refusal::IllegalGeneration { current } => {
            (Reason::IllegalGeneration, vec![(GENERATION, text(current))])
        }
        Refusal::OffsetRegressed { committed } => {
            (Reason::OffsetRegressed, vec![("committed", text(committed))])
        }
        Refusal::Undecodable(_) => (Reason::Internal, vec![]),
    }
}

fn of_fetch(error: &FetchError) -> (Reason, Metadata) {
    match error {
        FetchError::OutOfRange { requested, log_start, high_watermark } => {
            (Reason::OffsetOutOfRange, range(*requested, *log_start, *high_watermark))
        }
        FetchError::Storage(error) => of_storage(error),
    }
}

fn range(requested: u64, log_start: u64, high_watermark: u64) -> Metadata {
    let start = ("log_start_offset", text(&log_start));
    vec![("requested", text(&requested)), start, ("high_watermark", text(&high_watermark))]
}

fn of_storage(error: &storage::Error) -> (Reason, Metadata) {
    use storage::Error as Storage;
    match error {
        Storage::OffsetOutOfRange { requested, log_start, log_end } => {
            (Reason::OffsetOutOfRange, range(*requested, *log_start, *log_end))
        }
        Storage::TooLarge { max, .. } => (Reason::BatchTooLarge, vec![("max", text(max))]),
        Storage::NoSpace { .. } => (Reason::DiskFull, vec![]),
        Storage::Corrupt(_) | Storage::TailLost { .. } => (Reason::DataLoss, vec![]),
        Storage::Cold => (Reason::Overloaded, vec![]),
        Storage::Io { .. }
        | Storage::Failed { .. }
        | Storage::InUse { .. }
        | Storage::Foreign { .. }
        | Storage::FutureVersion { .. }
        | Storage::Amnesia { .. } => (Reason::StorageFailed, vec![]),
        Storage::Misordered { .. }
        | Storage::IndexOutOfRange { .. }
        | Storage::RepairRefused(_)
        | Storage::UnknownLog { .. } => (Reason::Internal, vec![]),
    }
}

fn of_metadata(refusal: &MetadataRefusal) -> (Reason, Metadata) {
    match refusal {
        MetadataRefusal::TopicExists(topic) => (Reason::TopicExists, vec![("topic", text(topic))]),
        MetadataRefusal::UnknownTopic(topic) => {
            (Reason::UnknownTopic, vec![("topic", text(topic))])
        }
        MetadataRefusal::UnknownPartition(partition) => {
            (Reason::UnknownPartition, vec![("partition", text(partition))])
        }
        MetadataRefusal::UnknownNode(node) => (Reason::UnknownNode, vec![("node", text(node))]),
        MetadataRefusal::NodeInUse(_)
        | MetadataRefusal::NodeHasReplicas(_)
        | MetadataRefusal::Stale
        | MetadataRefusal::MovePending => (Reason::Precondition, vec![]),
        MetadataRefusal::GroupExists(group) => (Reason::GroupExists, vec![("group", text(group))]),
        MetadataRefusal::UnknownGroup(group) => {
            (Reason::UnknownGroup, vec![("group", text(group))])
        }
        MetadataRefusal::GroupNotEmpty { group, members } => {
            let metadata = vec![("group", text(group)), ("members", text(members))];
            (Reason::GroupNotEmpty, metadata)
        }
        MetadataRefusal::UnknownMember(member) => {
            (Reason::UnknownMember, vec![("member_id", text(member))])
        }
        MetadataRefusal::FencedInstance(instance) => {
            (Reason::FencedInstance, vec![("instance", text(instance))])
        }
        MetadataRefusal::LimitReached(max) => (Reason::LimitReached, vec![("max", text(max))]),
        MetadataRefusal::Invalid(expected) => {
            let metadata = vec![("field", text("request")), ("expected", text(expected))];
            (Reason::InvalidField, metadata)
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        to_status(error)
    }
}

#[cfg(test)]
mod tests;

//! What each reason of the API's error list means, and what to do about it.

use super::error::reason_name;
use crate::proto::client::ErrorReason;

/// A reason explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// The reason's name, as errors carry it.
    pub name: &'static str,
    /// What has happened.
    pub cause: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

/// Returns all reasons that a server may give, in the order of their numbers.
pub fn reasons() -> impl Iterator<Item = ErrorReason> {
    (1..).map_while(|number| ErrorReason::try_from(number).ok())
}

/// Explains a reason.
pub fn explain(reason: ErrorReason) -> Explanation {
    let (cause, remedy) = text(reason);
    Explanation { name: reason_name(reason), cause, remedy }
}

fn text(reason: ErrorReason) -> (&'static str, &'static str) {
    let (in_request, in_group) = (request(reason), group(reason));
    in_request.or(in_group).or_else(|| state(reason)).unwrap_or_else(|| service(reason))
}

/// Reasons that lie in the request.
fn request(reason: ErrorReason) -> Option<(&'static str, &'static str)> {
    use ErrorReason as R;
    Some(match reason {
        R::InvalidField => (
            "A field of the request has a value that it cannot have.",
            "see the message for what is expected of the field",
        ),
        R::BadName => (
            "A name is empty, too long, or has characters that names cannot have.",
            "use 1 to 249 of A-Z a-z 0-9 . _ - and do not begin with two underscores",
        ),
        R::InvalidConfig => (
            "A configuration key is unknown, or its value is not of its kind.",
            "`quipu topic describe` lists a topic's keys; see the message for the values",
        ),
        R::CorruptBatch => (
            "The bytes sent are not a sound record batch.",
            "the client library encodes batches wrongly: report it to its maintainers",
        ),
        R::BadChecksum => (
            "The checksum sent with a batch is not the batch's: it was damaged on the way.",
            "send it again; if it happens often, suspect memory or network cards on the way",
        ),
        R::RecordTooLarge => (
            "A record is over a limit of the topic.",
            "send smaller records, or raise `record_bytes_max` with `quipu topic alter`",
        ),
        R::BatchTooLarge => (
            "A batch is over a limit of the topic.",
            "make batches smaller (--batch-bytes), or raise `batch_bytes_max` of the topic",
        ),
        R::CompressionLimit => (
            "A compressed batch would grow too much when it is decompressed.",
            "send it without compression, or in smaller batches",
        ),
        R::UnsupportedCodec => (
            "The server was built without this codec.",
            "use another codec: lz4 and none are always there",
        ),
        R::UnknownTopic => (
            "There is no topic of that name.",
            "`quipu topic list` shows the topics, `quipu topic create` makes one",
        ),
        R::UnknownTopicId => (
            "There is no topic of that id: it was deleted, and perhaps made anew.",
            "start the program again to use the topic that now has the name",
        ),
        R::UnknownPartition => (
            "The topic has no partition of that number.",
            "`quipu topic describe` lists the partitions; they are numbered from 0",
        ),
        R::UnknownNode => {
            ("There is no node of that id in the cluster.", "`quipu cluster nodes` lists the nodes")
        }
        R::TopicExists => (
            "There is a topic of that name already.",
            "choose another name, or look at it with `quipu topic describe`",
        ),
        R::OffsetOutOfRange => (
            "The offset is before the first record that is kept, or after the end.",
            "read from `earliest` or `latest`; `quipu topic describe` shows the range",
        ),
        _ => return None,
    })
}

/// Reasons that lie in a consumer group.
fn group(reason: ErrorReason) -> Option<(&'static str, &'static str)> {
    use ErrorReason as R;
    Some(match reason {
        R::UnknownGroup => (
            "There is no group of that name.",
            "`quipu group list` shows the groups, `quipu group create` makes one",
        ),
        R::GroupExists => (
            "There is a group of that name already.",
            "choose another name, or look at it with `quipu group describe`",
        ),
        R::GroupNotEmpty => (
            "The group has members that are active.",
            "stop them first; `quipu group describe` shows them, and `--force` takes no notice",
        ),
        R::UnknownMember => (
            "The group has no such member: it left, or was silent for longer than its session.",
            "join again; if it happens often, handle records faster or raise the session timeout",
        ),
        R::NotOwner => (
            "The member does not have the partition.",
            "commit only what is assigned; `quipu group describe` shows whose each partition is",
        ),
        R::IllegalGeneration => (
            "The partition has moved on: somebody else has it, or its position was reset.",
            "nothing to do: the records come again, to whoever has the partition now",
        ),
        R::FencedInstance => (
            "Another member has joined under the same instance name.",
            "give every running member an instance name of its own",
        ),
        R::OffsetRegressed => (
            "A later offset is committed already.",
            "use `quipu group reset` to go back on purpose",
        ),
        _ => return None,
    })
}

/// Reasons that lie in the state of the cluster or the producer.
fn state(reason: ErrorReason) -> Option<(&'static str, &'static str)> {
    use ErrorReason as R;
    Some(match reason {
        R::UnknownProducer => (
            "The partition does not know the producer id, or forgot it after a long silence.",
            "take a new producer id; whether earlier attempts were stored cannot be told",
        ),
        R::ProducerFenced => (
            "Another incarnation of the producer took over.",
            "stop this one: only the newest incarnation may write",
        ),
        R::OutOfOrderSequence => (
            "Batches of the producer before this one are missing.",
            "take a new producer id; with acks below quorum records may have been lost",
        ),
        R::SequenceReused => (
            "The producer used a sequence number for two different batches.",
            "the client library numbers batches wrongly: report it to its maintainers",
        ),
        R::Precondition => (
            "The cluster is not in a state in which this can be done.",
            "the message says what has to change first",
        ),
        R::NotEnoughNodes => (
            "More replicas are asked for than there are nodes.",
            "ask for fewer replicas, or add nodes; `quipu cluster nodes` lists them",
        ),
        R::ClusterMismatch => (
            "The peer belongs to another cluster.",
            "check the addresses: two clusters are mixed up in a configuration",
        ),
        R::NotLeader => (
            "The node does not lead the partition, and was asked not to forward.",
            "nothing to do: clients go on to the leader by themselves",
        ),
        R::NoLeader => (
            "No leader is known: an election goes on, or a majority cannot be reached.",
            "wait a moment; if it lasts, see with `quipu cluster nodes` which nodes are down",
        ),
        R::Draining => (
            "The node is stopping or being drained.",
            "use another node: give several addresses to --server",
        ),
        R::Starting => (
            "The node has just started and does not know the cluster's state yet.",
            "wait a moment; if it lasts, the node cannot reach its peers",
        ),
        R::OutcomeUnknown => (
            "The change may have been made or not: the leader changed, or time ran out.",
            "look before you repeat it; a producer with sequence numbers may always repeat",
        ),
        _ => return None,
    })
}

/// Reasons that lie in the service: load, disks, damage.
fn service(reason: ErrorReason) -> (&'static str, &'static str) {
    use ErrorReason as R;
    match reason {
        R::Overloaded => (
            "The node has too much to do.",
            "try again in a moment, and send less at once; if it lasts, add nodes",
        ),
        R::DiskFull => (
            "The disk of the partition's leader is full. Reads and deletions still work.",
            "delete records or topics, shorten retention, or give the node a larger disk",
        ),
        R::LimitReached => (
            "A limit on the number of things is reached.",
            "the message names the limit; delete what is not needed or raise it",
        ),
        R::SlowConsumer => (
            "The client reads more slowly than it has asked to be sent.",
            "ask for less at once, or let more consumers share the work",
        ),
        R::DataLoss => (
            "Stored records are damaged, and no replica that could be reached has them whole.",
            "start all nodes that have a replica; then `quipu log verify` on their disks",
        ),
        R::StorageFailed => (
            "The disk of a node failed.",
            "replace the disk; the replicas on other nodes go on meanwhile",
        ),
        R::Internal => {
            ("The server did something wrong.", "report it, with the message and the server's log")
        }
        _ => ("The server did not say why.", "see the message, and the server's log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_explained() {
        let all: Vec<_> = reasons().map(explain).collect();
        assert_eq!(all.last().unwrap().name, "OFFSET_REGRESSED", "a reason was added: explain it");
        let unsaid = text(ErrorReason::Unspecified);
        for explanation in &all {
            assert_ne!((explanation.cause, explanation.remedy), unsaid, "{explanation:?}");
            assert!(explanation.cause.ends_with('.') && !explanation.remedy.ends_with('.'));
        }
    }
}

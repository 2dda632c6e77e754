//! Why the metadata refused a command.

use prost::Message;

/// Why a command changed nothing. All are functions of the log: every replica refuses alike.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is a topic of that name or id.
    #[error("topic {0:?} exists already")]
    TopicExists(String),
    /// There is no such topic.
    #[error("topic {0:?} does not exist")]
    UnknownTopic(String),
    /// The topic has no such partition.
    #[error("the topic has no partition {0}")]
    UnknownPartition(u64),
    /// There is no such node.
    #[error("node {0} does not exist")]
    UnknownNode(u64),
    /// Another directory is this node.
    #[error(
        "node {0} is another directory of this cluster; give this one an id of its own, or stop \
         the other one for good"
    )]
    NodeInUse(u64),
    /// The node still has replicas.
    #[error("node {0} still has replicas")]
    NodeHasReplicas(u64),
    /// The command rests on a state that is not the present one.
    #[error("the cluster has changed meanwhile; look again")]
    Stale,
    /// The partition is being moved already.
    #[error("the partition's replicas are being moved; wait until that is done")]
    MovePending,
    /// There would be too many.
    #[error("there are {0} already; more are not allowed")]
    LimitReached(u64),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is a group of that name or id.
    #[error("group {0:?} exists already")]
    GroupExists(String),
    /// There is no such group.
    #[error("group {0:?} does not exist")]
    UnknownGroup(String),
    /// The group has members.
    #[error("group {group:?} has {members} active members; stop them, or force it")]
    GroupNotEmpty {
        /// The group.
        group: String,
        /// How many it has.
        members: u64,
    },
    /// The group has no such member any more.
    #[error("the group has no member {0:?}: it left, or was silent for too long; join again")]
    UnknownMember(String),
    /// Another member of the same lasting name has taken this one's place.
    #[error("another member has joined as instance {0:?}")]
    FencedInstance(String),
}

/// A refusal on its way between nodes.
#[derive(Clone, PartialEq, Eq, Message)]
struct Encoded {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    text: String,
    #[prost(uint64, tag = "3")]
    number: u64,
}

impl Refusal {
    /// Encodes it for another node.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, text, number) = match self {
            Self::TopicExists(name) => (1, name.clone(), 0),
            Self::UnknownTopic(name) => (2, name.clone(), 0),
            Self::UnknownPartition(number) => (3, String::new(), *number),
            Self::UnknownNode(node) => (4, String::new(), *node),
            Self::NodeInUse(node) => (5, String::new(), *node),
            Self::NodeHasReplicas(node) => (6, String::new(), *node),
            Self::Stale => (7, String::new(), 0),
            Self::MovePending => (8, String::new(), 0),
            Self::LimitReached(max) => (9, String::new(), *max),
            Self::Invalid(text) => (10, text.clone(), 0),
            Self::GroupExists(name) => (11, name.clone(), 0),
            Self::UnknownGroup(name) => (12, name.clone(), 0),
            Self::GroupNotEmpty { group, members } => (13, group.clone(), *members),
            Self::UnknownMember(id) => (14, id.clone(), 0),
            Self::FencedInstance(name) => (15, name.clone(), 0),
        };
        Encoded { kind, text, number }.encode_to_vec()
    }

    /// Decodes what [`Self::encode`] made; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let Encoded { kind, text, number } = Encoded::decode(bytes).ok()?;
        Some(match kind {
            1 => Self::TopicExists(text),
            2 => Self::UnknownTopic(text),
            3 => Self::UnknownPartition(number),
            4 => Self::UnknownNode(number),
            5 => Self::NodeInUse(number),
            6 => Self::NodeHasReplicas(number),
            7 => Self::Stale,
            8 => Self::MovePending,
            9 => Self::LimitReached(number),
            10 => Self::Invalid(text),
            11 => Self::GroupExists(text),
            12 => Self::UnknownGroup(text),
            13 => Self::GroupNotEmpty { group: text, members: number },
            14 => Self::UnknownMember(text),
            15 => Self::FencedInstance(text),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_come_back_as_they_were_and_nothing_else_does() {
        let all = [
            Refusal::TopicExists("a".into()),
            Refusal::UnknownTopic("b".into()),
            Refusal::UnknownPartition(3),
            Refusal::UnknownNode(4),
            Refusal::NodeInUse(5),
            Refusal::NodeHasReplicas(6),
            Refusal::Stale,
            Refusal::MovePending,
            Refusal::LimitReached(9),
            Refusal::Invalid("c".into()),
            Refusal::GroupExists("d".into()),
            Refusal::UnknownGroup("e".into()),
            Refusal::GroupNotEmpty { group: "f".into(), members: 13 },
            Refusal::UnknownMember("g".into()),
            Refusal::FencedInstance("h".into()),
        ];
        for refusal in all {
            assert_eq!(Refusal::decode(&refusal.encode()), Some(refusal));
        }
        assert_eq!(Refusal::decode(b""), None);
        assert_eq!(Refusal::decode(b"\xff\xff"), None);
    }
}

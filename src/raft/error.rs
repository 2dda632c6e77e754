//! Why a group did not do what it was asked.

/// Why nothing was proposed. Nothing has changed, so it can be tried again elsewhere or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotProposed {
    /// This replica does not lead, or not surely.
    #[error("this replica does not lead the group")]
    NotLeader,
    /// Leadership is being handed over.
    #[error("leadership is being handed over")]
    Transferring,
    /// Another change of the replicas is under way.
    #[error("another change of the replicas is under way")]
    ChangePending,
    /// The change names no replica, or would leave no voter, or more replicas than a group may
    /// have.
    #[error("the change names no replica, or leaves no voter, or too many replicas")]
    NoVoters,
    /// The replica that is to lead has no vote.
    #[error("the replica that is to lead has no vote")]
    NotVoter,
}

/// Why a message was dropped, as if it had been lost on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Dropped {
    /// No such group is here.
    #[error("the group is unknown to this node")]
    UnknownGroup,
    /// It is for another replica, maybe one that was here before.
    #[error("the message is for another replica")]
    WrongReplica,
    /// The replica is installing a snapshot, or has stopped.
    #[error("the replica takes no messages at the moment")]
    Busy,
    /// Its term is far beyond any that this replica knows.
    #[error("the message's term is too far ahead")]
    FutureTerm,
    /// It speaks of entries that do not exist, or of another replica set.
    #[error("a number in the message is out of range")]
    OutOfRange,
    /// It asks for the vote of a replica that lost entries, for one that may not have had them. It
    /// was refused if there was anything to say.
    #[error("the replica lost entries that the candidate may lack")]
    Promised,
    /// A response of a replica that is not in the group.
    #[error("the sender is not in the group")]
    Stranger,
}

impl Dropped {
    /// The reason in a word, as metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownGroup => "unknown_group",
            Self::WrongReplica => "wrong_replica",
            Self::Busy => "busy",
            Self::FutureTerm => "future_term",
            Self::OutOfRange => "out_of_range",
            Self::Promised => "promised",
            Self::Stranger => "stranger",
        }
    }
}

//! Planted bugs: breaches of one rule each, to prove that the simulation finds them.
//!
//! With the feature `planted-bugs` a test switches one of them on for its own thread, or names it
//! in `PLANTED_BUG` for a whole process. Without it [`planted`] is a constant, and nothing of
//! this is left in the program.

/// A breach of one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A follower's messages do not wait for its disk.
    SendBeforeDurable,
    /// A message that needs nothing on disk overtakes those that do.
    SendOutOfOrder,
    /// Votes do not wait for the disk, everything else does.
    VoteBeforeDurable,
    /// A leader's messages do not wait for its term and vote.
    LeadBeforeTermDurable,
    /// The world hears of what is durable before the library does.
    SendBeforeNoticing,
    /// The journal is told of a commit beyond what is on this disk.
    CommitBeyondDisk,
    /// A commit index beyond the log is believed at the start.
    CommitNotClamped,
    /// What a replica finds at its start counts as durable without a sync.
    OpenWithoutSync,
    /// A vote of an earlier term than the log's last counts for that one.
    OldVoteKept,
    /// A group goes on while a snapshot is being installed.
    BusyWhileRestoring,
    /// A change that the membership has seen is applied again.
    ChangeAppliedTwice,
    /// A replica seeks election with changes in its log that must be committed.
    StaleVoters,
    /// A leader that was removed stays.
    RemovedLeaderStays,
    /// A replica that lost its disk comes back under its old id.
    WipedKeepsId,
    /// A leader counts offsets from what is committed instead of from its log's end.
    OffsetFromCommitted,
    /// An append is acknowledged when the leader alone has it.
    AckOnMinority,
    /// What is written counts as synced.
    AckBeforeSync,
    /// Readers see what is not committed.
    EarlyHighWatermark,
    /// A leader takes appends before anything of its term is committed.
    WriteBeforeNoOp,
    /// The producers are not restored from a checkpoint.
    ProducersNotRestored,
    /// An earlier incarnation of a producer passes for the present one.
    ProducerEpochIgnored,
    /// A commit's generation is checked when it comes in instead of when it is applied.
    GenerationCheckedEarly,
    /// What a learner has counts as if a voter had it.
    LearnerCounted,
    /// A cut takes committed entries with it.
    CommittedTruncated,
    /// Waiters are told "stored" though another leader's entry took the place of theirs.
    WrongTermAnswered,
    /// The checkpoint of a new segment is of a state before it.
    CheckpointTooEarly,
    /// The checkpoint of a new segment is of a state after it.
    CheckpointTooLate,
    /// A checkpoint says nothing of the replicas.
    MembershipNotInCheckpoint,
    /// A leader that is to go ends the change of voters itself.
    LeavingLeaderLeaves,
    /// Followers publish what is committed before it is on their disk.
    FollowerReadsBeforeWritten,
    /// Appends that the library put together are sent as they are.
    AppendNotMended,
    /// A leader refuses a batch without asking whether it still leads.
    RefusedUnasked,
    /// A snapshot's checksum does not say of which group it is.
    SnapshotOfAnyGroup,
    /// A replica that lost the end of its log votes and seeks election as if it never had it.
    VotesWithLostTail,
    /// A replica that meets damage at its start cuts its log there and forgets what it had.
    DamageForgotten,
    /// As [`Self::GenerationCheckedEarly`], a while before, and the generation stays as it is.
    LateCommitApplied,
    /// A partition of a consumer group goes to its next member before it was let go of.
    AssignedBeforeRelease,
    /// A member takes over a partition without fencing who had it before.
    ClaimedWithoutFence,
    /// A member reads the position of a partition before it fences who had it before.
    PositionBeforeFence,
    /// A member goes on where it was, whoever had the partition in between.
    ResumedUnasked,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 40] = [
        Self::SendBeforeDurable,
        Self::SendOutOfOrder,
        Self::VoteBeforeDurable,
        Self::LeadBeforeTermDurable,
        Self::SendBeforeNoticing,
        Self::CommitBeyondDisk,
        Self::CommitNotClamped,
        Self::OpenWithoutSync,
        Self::OldVoteKept,
        Self::BusyWhileRestoring,
        Self::ChangeAppliedTwice,
        Self::StaleVoters,
        Self::RemovedLeaderStays,
        Self::WipedKeepsId,
        Self::OffsetFromCommitted,
        Self::AckOnMinority,
        Self::AckBeforeSync,
        Self::EarlyHighWatermark,
        Self::WriteBeforeNoOp,
        Self::ProducersNotRestored,
        Self::ProducerEpochIgnored,
        Self::GenerationCheckedEarly,
        Self::LearnerCounted,
        Self::CommittedTruncated,
        Self::WrongTermAnswered,
        Self::CheckpointTooEarly,
        Self::CheckpointTooLate,
        Self::MembershipNotInCheckpoint,
        Self::LeavingLeaderLeaves,
        Self::FollowerReadsBeforeWritten,
        Self::AppendNotMended,
        Self::RefusedUnasked,
        Self::SnapshotOfAnyGroup,
        Self::VotesWithLostTail,
        Self::DamageForgotten,
        Self::LateCommitApplied,
        Self::AssignedBeforeRelease,
        Self::ClaimedWithoutFence,
        Self::PositionBeforeFence,
        Self::ResumedUnasked,
    ];
}

#[cfg(feature = "planted-bugs")]
mod selection {
    use std::cell::Cell;
    use std::sync::OnceLock;

    use super::Bug;

    static OF_PROCESS: OnceLock<Option<Bug>> = OnceLock::new();

    thread_local! {
        static SELECTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants a bug in everything that this thread does from here on; `None` for none.
    pub fn plant(bug: Option<Bug>) {
        SELECTED.set(bug);
    }

    /// True if the bug is planted.
    pub fn planted(bug: Bug) -> bool {
        let of_process = OF_PROCESS.get_or_init(named);
        SELECTED.get() == Some(bug) || *of_process == Some(bug)
    }

    /// The bug that the environment names.
    fn named() -> Option<Bug> {
        let name = std::env::var("PLANTED_BUG").ok()?;
        let found = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name);
        Some(found.expect("PLANTED_BUG names a bug that there is"))
    }
}

#[cfg(feature = "planted-bugs")]
pub use self::selection::{plant, planted};

/// True if the bug is planted.
#[cfg(not(feature = "planted-bugs"))]
pub const fn planted(_bug: Bug) -> bool {
    false
}

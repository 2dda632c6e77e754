//! Looking at a group from outside, to decide about its replicas.

use super::super::membership::Membership;
use super::{Group, Role};
use crate::types::ReplicaId;

/// A replica, as it sees itself and its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The replica.
    pub replica: ReplicaId,
    /// What it is.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<ReplicaId>,
    /// The replicas of the group, as this one has applied it.
    pub membership: Membership,
    /// Highest index on its disk.
    pub persisted: u64,
    /// Highest index known to be committed.
    pub committed: u64,
    /// Nothing happens in the group, and it does not tick.
    pub is_quiescent: bool,
    /// It stopped by itself, and why.
    pub fault: Option<String>,
    /// What a leader knows of the others.
    pub followers: Vec<Follower>,
}

/// What a host has of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// Nothing.
    Nothing,
    /// A replica that does not run before others have given it the entries that it lost.
    WaitsForRepair(ReplicaId),
    /// A replica that runs.
    Runs(Box<Inspection>),
}

/// A follower, as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follower {
    /// The replica.
    pub replica: ReplicaId,
    /// Highest index known to be on its disk.
    pub matched: u64,
    /// It was heard of lately. Meaningless while the group sleeps.
    pub is_active: bool,
}

impl Group {
    /// Describes the replica and, if it leads, its followers.
    pub fn inspect(&self) -> Inspection {
        let follower = |(id, progress): (&u64, &::raft::Progress)| Follower {
            replica: ReplicaId(*id),
            matched: progress.matched,
            is_active: progress.recent_active,
        };
        let is_leader = self.role() == Role::Leader;
        assert!(
            !is_leader || self.leader() == Some(self.replica),
            "{} leads, and thinks that {:?} does",
            self.replica,
            self.leader()
        );
        let others = self.node.raft.prs().iter().filter(|(id, _)| **id != self.replica.0);
        let mut followers: Vec<_> = others.filter(|_| is_leader).map(follower).collect();
        followers.sort_by_key(|follower| follower.replica);
        Inspection {
            replica: self.replica,
            role: self.role(),
            term: self.term(),
            leader: self.leader(),
            membership: self.membership.clone(),
            persisted: self.persisted(),
            committed: self.committed(),
            is_quiescent: self.is_quiescent,
            fault: self.fault.as_ref().map(ToString::to_string),
            followers,
        }
    }
}

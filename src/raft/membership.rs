//! Membership: which replicas a group has, and the changes that lead from one set to the next.
//!
//! ```text
//! membership   u8 format, 1   u64 index   four times: u16 count, then as many u64 replica ids
//!              (voters, outgoing voters, learners, learners to be)
//! change       u8 format, 1   u8 step (0 single, 1 enter joint, 2 leave joint)   u16 count
//!              as many: u8 operation (1 voter, 2 learner, 3 remove), u64 replica id
//! ```
//!
//! All numbers are little-endian.

use ::raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::types::ReplicaId;

const FORMAT: u8 = 1;
/// Replicas that one group may have, of all kinds together.
pub const REPLICAS_MAX: usize = 64;

/// The replicas of a group.
///
/// * Each list is sorted and without repeats.
/// * `outgoing` is not empty only between the two steps of a change; then a majority of both
///   `voters` and `outgoing` decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// Index of the entry that made it so; 0 for the first one.
    pub index: u64,
    /// Replicas that vote and count.
    pub voters: Vec<ReplicaId>,
    /// Voters of the set that is being left.
    pub outgoing: Vec<ReplicaId>,
    /// Replicas that receive the log and do not vote.
    pub learners: Vec<ReplicaId>,
    /// Outgoing voters that stay as learners.
    pub learners_next: Vec<ReplicaId>,
}

impl Membership {
    /// The first membership of a group.
    pub fn of_voters(voters: impl IntoIterator<Item = ReplicaId>) -> Self {
        Self { voters: sorted(voters.into_iter()), ..Self::default() }
    }

    /// True between the two steps of a change.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// True if the replica has a part in the group.
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.all().any(|id| id == replica)
    }

    /// True if the replica's vote counts.
    pub fn is_voter(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica) || self.outgoing.contains(&replica)
    }

    /// Every replica, some more than once.
    pub fn all(&self) -> impl Iterator<Item = ReplicaId> {
        let lists = [&self.voters, &self.outgoing, &self.learners, &self.learners_next];
        lists.into_iter().flatten().copied()
    }

    /// True if `replicas` are enough to decide.
    pub fn is_quorum(&self, mut has: impl FnMut(ReplicaId) -> bool) -> bool {
        let mut majority = |voters: &[ReplicaId]| {
            let count = voters.iter().filter(|voter| has(**voter)).count();
            voters.is_empty() || count > voters.len() / 2
        };
        majority(&self.voters) && majority(&self.outgoing)
    }

    pub(super) fn from_conf_state(index: u64, state: &ConfState) -> Self {
        let list = |ids: &[u64]| sorted(ids.iter().copied().map(ReplicaId));
        let (voters, learners) = (state.get_voters(), state.get_learners());
        assert!(!voters.is_empty(), "the change at {index} leaves learners {learners:?} only");
        assert!(
            !voters.iter().any(|id| learners.contains(id)),
            "the change at {index} makes one of {voters:?} one of the learners {learners:?} too"
        );
        Self {
            index,
            voters: list(state.get_voters()),
            outgoing: list(state.get_voters_outgoing()),
            learners: list(state.get_learners()),
            learners_next: list(state.get_learners_next()),
        }
    }

    pub(super) fn to_conf_state(&self) -> ConfState {
        let list = |ids: &[ReplicaId]| ids.iter().map(|id| id.0).collect();
        let mut state = ConfState::default();
        state.set_voters(list(&self.voters));
        state.set_voters_outgoing(list(&self.outgoing));
        state.set_learners(list(&self.learners));
        state.set_learners_next(list(&self.learners_next));
        state
    }

    /// Encodes the membership; equal ones have equal bytes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u8(FORMAT);
        bytes.put_u64_le(self.index);
        for list in [&self.voters, &self.outgoing, &self.learners, &self.learners_next] {
            assert!(list.len() <= REPLICAS_MAX, "{} replicas are too many", list.len());
            bytes.put_u16_le(list.len() as u16);
            list.iter().for_each(|id| bytes.put_u64_le(id.0));
        }
        bytes.freeze()
    }

    /// Decodes what [`Self::encode`] made; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        if rest.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let index = rest.try_get_u64_le().ok()?;
        let mut list = || -> Option<Vec<ReplicaId>> {
            let count = usize::from(rest.try_get_u16_le().ok()?);
            if count > REPLICAS_MAX {
                return None;
            }
            let ids: Option<Vec<_>> =
                (0..count).map(|_| rest.try_get_u64_le().ok().map(ReplicaId)).collect();
            ids.filter(|ids| ids.is_sorted_by(|a, b| a < b))
        };
        let (voters, outgoing, learners, learners_next) = (list()?, list()?, list()?, list()?);
        let is_whole = rest.is_empty();
        let membership = Self { index, voters, outgoing, learners, learners_next };
        (is_whole && membership.is_consistent()).then_some(membership)
    }

    /// False for what no series of changes leads to.
    fn is_consistent(&self) -> bool {
        let is_learner = |id: &ReplicaId| self.learners.contains(id);
        let is_staged = |id: &ReplicaId| self.outgoing.contains(id) && !self.voters.contains(id);
        self.all().all(|id| id.0 != 0)
            && !self.voters.iter().chain(&self.outgoing).any(is_learner)
            && self.learners_next.iter().all(is_staged)
            && (!self.voters.is_empty() || self.outgoing.is_empty())
    }
}

fn sorted(ids: impl Iterator<Item = ReplicaId>) -> Vec<ReplicaId> {
    let mut ids: Vec<_> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// What happens to one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It votes from here on.
    Voter(ReplicaId),
    /// It receives the log and does not vote.
    Learner(ReplicaId),
    /// It has no part in the group any more.
    Remove(ReplicaId),
}

impl Operation {
    fn parts(self) -> (u8, ConfChangeType, ReplicaId) {
        match self {
            Self::Voter(id) => (1, ConfChangeType::AddNode, id),
            Self::Learner(id) => (2, ConfChangeType::AddLearnerNode, id),
            Self::Remove(id) => (3, ConfChangeType::RemoveNode, id),
        }
    }

    /// The replica.
    pub fn replica(self) -> ReplicaId {
        self.parts().2
    }

    fn from_parts(operation: u8, id: ReplicaId) -> Option<Self> {
        Some(match operation {
            1 => Self::Voter(id),
            2 => Self::Learner(id),
            3 => Self::Remove(id),
            _ => return None,
        })
    }
}

/// One step of a membership change: the payload of a membership entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds or removes one learner, in one step.
    Single(Operation),
    /// Changes the voters: from here on both sets decide, until [`Change::Leave`].
    EnterJoint(Vec<Operation>),
    /// Ends a change of voters: only the new set decides. The leader proposes it by itself.
    Leave,
}

impl Change {
    /// The step that brings these operations about: joint whenever a voter comes or goes.
    pub fn of(operations: Vec<Operation>, now: &Membership) -> Self {
        let is_learner_only = |operation: &Operation| match operation {
            Operation::Voter(_) => false,
            Operation::Learner(id) | Operation::Remove(id) => !now.is_voter(*id),
        };
        match operations.as_slice() {
            [single] if is_learner_only(single) => Self::Single(*single),
            _ => Self::EnterJoint(operations),
        }
    }

    fn operations(&self) -> (u8, &[Operation]) {
        match self {
            Self::Single(operation) => (0, std::slice::from_ref(operation)),
            Self::EnterJoint(operations) => (1, operations),
            Self::Leave => (2, &[]),
        }
    }

    /// Encodes the step.
    pub fn encode(&self) -> Bytes {
        let (step, operations) = self.operations();
        assert!(operations.len() <= REPLICAS_MAX, "{} operations are too many", operations.len());
        let mut bytes = BytesMut::new();
        bytes.put_u8(FORMAT);
        bytes.put_u8(step);
        bytes.put_u16_le(operations.len() as u16);
        for (operation, _, id) in operations.iter().map(|operation| operation.parts()) {
            bytes.put_u8(operation);
            bytes.put_u64_le(id.0);
        }
        bytes.freeze()
    }

    /// Decodes what [`Self::encode`] made; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        if rest.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let (step, count) = (rest.try_get_u8().ok()?, usize::from(rest.try_get_u16_le().ok()?));
        if count > REPLICAS_MAX || rest.len() != count * 9 {
            return None;
        }
        let mut operations = Vec::with_capacity(count);
        while let Ok(operation) = rest.try_get_u8() {
            let id = ReplicaId(rest.try_get_u64_le().ok()?);
            operations.push(Operation::from_parts(operation, id)?);
        }
        match (step, operations.as_slice()) {
            (0, [single]) => Some(Self::Single(*single)),
            (1, [_, ..]) => Some(Self::EnterJoint(operations)),
            (2, []) => Some(Self::Leave),
            _ => None,
        }
    }

    pub(super) fn to_conf_change(&self) -> ConfChangeV2 {
        let (_, operations) = self.operations();
        let single = |operation: &Operation| {
            let (_, kind, id) = operation.parts();
            let mut single = ConfChangeSingle::default();
            single.set_change_type(kind);
            single.node_id = id.0;
            single
        };
        let mut change = ConfChangeV2::default();
        change.set_changes(operations.iter().map(single).collect());
        if matches!(self, Self::EnterJoint(_)) {
            // A leave that the library proposed by itself can be lost with the leader.
            change.set_transition(ConfChangeTransition::Explicit);
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    fn replica(node: u64) -> ReplicaId {
        ReplicaId::new(NodeId(node), 7)
    }

    #[test]
    fn a_membership_comes_back_as_it_was_and_nothing_else_does() {
        let membership = Membership {
            index: 9,
            voters: vec![replica(1), replica(2)],
            outgoing: vec![replica(1), replica(3)],
            learners: vec![replica(4)],
            learners_next: vec![replica(3)],
        };
        let bytes = membership.encode();
        assert_eq!(Membership::decode(&bytes), Some(membership.clone()));
        assert_eq!(Membership::from_conf_state(9, &membership.to_conf_state()), membership);
        for len in 0..bytes.len() {
            assert_eq!(Membership::decode(&bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(Membership::decode(&[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn changes_come_back_as_they_were_and_nothing_else_does() {
        let joint = vec![Operation::Voter(replica(4)), Operation::Remove(replica(1))];
        let single = Change::Single(Operation::Learner(replica(4)));
        for change in [single, Change::EnterJoint(joint), Change::Leave] {
            let bytes = change.encode();
            assert_eq!(Change::decode(&bytes), Some(change));
            assert_eq!(Change::decode(&bytes[..bytes.len() - 1]), None);
            assert_eq!(Change::decode(&[&bytes[..], &[0]].concat()), None);
        }
        assert_eq!(Change::decode(&[1, 1, 0, 0]), None, "a joint step changes something");
    }

    #[test]
    fn voters_come_and_go_in_two_steps_and_learners_in_one() {
        let now = Membership::of_voters([replica(1), replica(2)]);
        let of = |operation| Change::of(vec![operation], &now);
        assert!(matches!(of(Operation::Learner(replica(3))), Change::Single(_)));
        assert!(matches!(of(Operation::Remove(replica(3))), Change::Single(_)));
        assert!(matches!(of(Operation::Learner(replica(2))), Change::EnterJoint(_)));
        assert!(matches!(of(Operation::Remove(replica(2))), Change::EnterJoint(_)));
        assert!(matches!(of(Operation::Voter(replica(3))), Change::EnterJoint(_)));
    }

    #[test]
    fn a_joint_membership_is_decided_by_both_majorities() {
        let mut membership = Membership::of_voters([1, 2, 3].map(replica));
        assert!(membership.is_quorum(|id| id.node().0 <= 2));
        assert!(!membership.is_quorum(|id| id.node().0 == 2));
        membership.outgoing = [3, 4, 5].map(replica).to_vec();
        assert!(!membership.is_quorum(|id| id.node().0 <= 2));
        assert!(membership.is_quorum(|id| [1, 3, 4].contains(&id.node().0)));
    }
}

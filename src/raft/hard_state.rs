//! What a group must not forget, as values of the meta journal, and the checkpoint that goes into
//! each segment.
//!
//! ```text
//! hard state   u8 format, 1   u64 term   u64 vote (a replica id, 0 for none)   u64 commit
//!              and in format 2:  u64 term   u64 index of the promise
//! checkpoint   u8 format, 1   u32 length of the membership   the membership   the state's bytes
//! ```
//!
//! The membership stands in the checkpoint as well as in the journal: when a snapshot takes the
//! place of a log, the new segment's name makes log, state and membership durable at one stroke.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::membership::Membership;

const FORMAT: u8 = 1;
/// The format of a hard state with a promise.
const FORMAT_PROMISE: u8 = 2;

/// The last entry of a log that lost its end: what this replica said it has, and has to get back
/// before it is what it was. Of two, the greater is of the log that is further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Promise {
    /// The entry's term, or a later one if that is not known.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// Term, vote and commit of a replica.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term it has seen.
    pub term: u64,
    /// Id of the replica it voted for in that term; 0 for none.
    pub vote: u64,
    /// An index known to be committed, of an entry that is on this replica's disk.
    pub commit: u64,
    /// What the log ended with before its end was lost, until it is as far again.
    pub promise: Option<Promise>,
}

impl HardState {
    /// Encodes it for the journal.
    pub fn encode(&self) -> Bytes {
        let Self { term, vote, .. } = *self;
        assert!(term > 0 || vote == 0, "a vote for {vote} is of a term, not of {term}");
        let is_kept = self.promise.is_none_or(|promise| promise.term <= self.term);
        assert!(is_kept, "term {}, with a promise of {:?}", self.term, self.promise);
        let mut bytes = BytesMut::with_capacity(41);
        bytes.put_u8(if self.promise.is_some() { FORMAT_PROMISE } else { FORMAT });
        bytes.put_u64_le(self.term);
        bytes.put_u64_le(self.vote);
        bytes.put_u64_le(self.commit);
        if let Some(Promise { term, index }) = self.promise {
            bytes.put_u64_le(term);
            bytes.put_u64_le(index);
        }
        bytes.freeze()
    }

    /// Decodes what [`Self::encode`] made; `None` for anything else.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let has_promise = match (bytes.try_get_u8().ok()?, bytes.len()) {
            (FORMAT, 24) => false,
            (FORMAT_PROMISE, 40) => true,
            _ => return None,
        };
        let (term, vote, commit) = (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le());
        let promise =
            has_promise.then(|| Promise { term: bytes.get_u64_le(), index: bytes.get_u64_le() });
        Some(Self { term, vote, commit, promise })
    }
}

/// What a segment begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The replicas, as this replica knew them when it wrote the checkpoint. It may be older than
    /// the entries before the segment, or newer.
    pub membership: Membership,
    /// The state machine right before the segment's first entry.
    pub state: Bytes,
}

impl Checkpoint {
    /// Encodes it for a segment.
    pub fn encode(&self) -> Bytes {
        let membership = self.membership.encode();
        let mut bytes = BytesMut::with_capacity(5 + membership.len() + self.state.len());
        bytes.put_u8(FORMAT);
        bytes.put_u32_le(membership.len() as u32);
        bytes.put_slice(&membership);
        bytes.put_slice(&self.state);
        bytes.freeze()
    }

    /// Decodes what [`Self::encode`] made; `None` for anything else. The state's bytes are not
    /// looked into.
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < 5 || bytes.get_u8() != FORMAT {
            return None;
        }
        let len = bytes.get_u32_le() as usize;
        if len > bytes.len() {
            return None;
        }
        let membership = Membership::decode(&bytes.split_to(len))?;
        Some(Self { membership, state: bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NodeId, ReplicaId};

    #[test]
    fn a_hard_state_comes_back_as_it_was_and_other_bytes_are_refused() {
        let state = HardState { term: 3, vote: 1 << 20 | 2, commit: 9, promise: None };
        let bytes = state.encode();
        assert_eq!(HardState::decode(&bytes), Some(state));
        let damaged = HardState { promise: Some(Promise { term: 2, index: 12 }), ..state };
        assert_eq!(HardState::decode(&damaged.encode()), Some(damaged));
        assert_eq!(HardState::decode(&damaged.encode()[..25]), None);
        assert_eq!(HardState::decode(&bytes[1..]), None);
        assert_eq!(HardState::decode(&[2; 25]), None);
    }

    #[test]
    fn a_checkpoint_comes_back_as_it_was_and_lies_are_refused() {
        let membership = Membership::of_voters([ReplicaId::new(NodeId(1), 1)]);
        let checkpoint = Checkpoint { membership, state: Bytes::from_static(b"state") };
        let bytes = checkpoint.encode();
        assert_eq!(Checkpoint::decode(bytes.clone()), Some(checkpoint));
        let mut lie = bytes.to_vec();
        lie[1..5].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Checkpoint::decode(lie.into()), None);
        assert_eq!(Checkpoint::decode(bytes.slice(..4)), None);
    }
}

//! Envelopes: what one replica says to another, between raft-rs and the wire.

use ::raft::eraftpb::{Message, MessageType, Snapshot};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::log_view::{Base, to_raft_cold};
use super::membership::Membership;
use crate::storage::{Entry, Tip};
use crate::types::{LogId, NodeId, ReplicaId};

/// What an envelope is. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MessageKind {
    /// Entries, or only the news of a commit.
    Append = 1,
    /// How far the log of a follower agrees and is on disk.
    AppendResponse = 2,
    /// The leader is alive.
    Heartbeat = 3,
    /// So is the follower.
    HeartbeatResponse = 4,
    /// Would you vote for me?
    PreVote = 5,
    /// The answer.
    PreVoteResponse = 6,
    /// Vote for me.
    Vote = 7,
    /// The answer.
    VoteResponse = 8,
    /// The log starts after what you have: begin here.
    Snapshot = 9,
    /// Start an election at once.
    TimeoutNow = 10,
    /// All of the log is committed, and there is nothing to do: stop ticking until something
    /// happens. To whom that does not apply it is a heartbeat.
    Quiesce = 11,
    /// The sending node is alive. Of no group.
    Alive = 12,
    /// Entries from `index` on are damaged here, before the entry `commit` of term `log_term`. The
    /// log of a replica that does not run ends with the entry `reject_hint` of term `term`.
    RepairAsk = 13,
    /// The entries; or, refused, the word that there is nothing to wait for, with what was asked:
    /// `index`, `commit`, `log_term` and `reject_hint`.
    RepairAnswer = 14,
    /// To a leader that may sleep: nothing has come from it for a while, and this replica is awake.
    Wake = 15,
}

impl MessageKind {
    /// Those that raft-rs knows, by number.
    const OF_RAFT: [(Self, MessageType); 10] = [
        (Self::Append, MessageType::MsgAppend),
        (Self::AppendResponse, MessageType::MsgAppendResponse),
        (Self::Heartbeat, MessageType::MsgHeartbeat),
        (Self::HeartbeatResponse, MessageType::MsgHeartbeatResponse),
        (Self::PreVote, MessageType::MsgRequestPreVote),
        (Self::PreVoteResponse, MessageType::MsgRequestPreVoteResponse),
        (Self::Vote, MessageType::MsgRequestVote),
        (Self::VoteResponse, MessageType::MsgRequestVoteResponse),
        (Self::Snapshot, MessageType::MsgSnapshot),
        (Self::TimeoutNow, MessageType::MsgTimeoutNow),
    ];

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            11 => Some(Self::Quiesce),
            12 => Some(Self::Alive),
            13 => Some(Self::RepairAsk),
            14 => Some(Self::RepairAnswer),
            15 => Some(Self::Wake),
            _ => Self::OF_RAFT.get(usize::from(byte).checked_sub(1)?).map(|(kind, _)| *kind),
        }
    }

    fn from_raft(found: MessageType) -> Option<Self> {
        Self::OF_RAFT.iter().find(|(_, raft)| *raft == found).map(|(kind, _)| *kind)
    }

    fn to_raft(self) -> Option<MessageType> {
        Self::OF_RAFT.get(self as usize - 1).map(|(_, raft)| *raft)
    }

    pub(super) fn is_vote(self) -> bool {
        matches!(self, Self::PreVote | Self::PreVoteResponse | Self::Vote | Self::VoteResponse)
    }
}

/// Which stream of a connection carries a message. Within one, order is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Votes, heartbeats, responses: small, and never behind anything large.
    Control,
    /// Live entries.
    Append,
    /// Snapshots, and entries that were read from disk for a follower far behind.
    Bulk,
}

impl Lane {
    /// All lanes.
    pub const ALL: [Self; 3] = [Self::Control, Self::Append, Self::Bulk];
}

/// Set in a vote request that a leader asked for, so that nobody waits for its lease to end.
const TRANSFER_CONTEXT: &[u8] = b"CampaignTransfer";

/// A message of one replica to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The group.
    pub group: LogId,
    /// Who says it.
    pub from: ReplicaId,
    /// To whom.
    pub to: ReplicaId,
    /// What it is.
    pub kind: MessageKind,
    /// The sender's term; of a pre-vote, the term it asks for.
    pub term: u64,
    /// Index that the message is about: the entry before the first one of an append.
    pub index: u64,
    /// Term of that entry.
    pub log_term: u64,
    /// Commit index of the sender.
    pub commit: u64,
    /// Term of the entry at `commit`; in votes only.
    pub commit_term: u64,
    /// Where to try next, in a response that refuses an append; where the log ends, in an ask.
    pub reject_hint: u64,
    /// The response refuses.
    pub is_reject: bool,
    /// A vote request that the leader asked for.
    pub is_transfer: bool,
    /// Number of the read that a heartbeat confirms.
    pub read: Option<u64>,
    /// Entries of an append, their payloads verified.
    pub entries: Vec<Entry>,
    /// The snapshot, encoded.
    pub body: Bytes,
}

impl Envelope {
    /// An envelope that says nothing but what it is, in term 1.
    pub(super) fn new(kind: MessageKind, group: LogId, from: ReplicaId, to: ReplicaId) -> Self {
        Self {
            group,
            from,
            to,
            kind,
            term: 1,
            index: 0,
            log_term: 0,
            commit: 0,
            commit_term: 0,
            reject_hint: 0,
            is_reject: false,
            is_transfer: false,
            read: None,
            entries: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// Says that the node `from` is alive, and which life of it this is.
    pub(super) fn alive(from: NodeId, to: NodeId, life: u64) -> Self {
        let (from, to) = (ReplicaId::new(from, 0), ReplicaId::new(to, 0));
        Self { index: life, ..Self::new(MessageKind::Alive, LogId::NIL, from, to) }
    }

    /// Makes an envelope of a message of raft-rs. `entry` gives the entry that a raft entry stands
    /// for. `None` for a kind of message that stays within the process, and for one whose entries
    /// are gone.
    pub(super) fn from_raft(
        group: LogId,
        mut message: Message,
        entry: impl FnMut(&::raft::eraftpb::Entry) -> Option<Entry>,
    ) -> Option<Self> {
        let kind = MessageKind::from_raft(message.get_msg_type())?;
        let context = message.take_context();
        Some(Self {
            group,
            from: ReplicaId(message.from),
            to: ReplicaId(message.to),
            kind,
            term: message.term,
            index: message.index,
            log_term: message.log_term,
            commit: message.commit,
            commit_term: message.commit_term,
            reject_hint: message.reject_hint,
            is_reject: message.reject,
            is_transfer: &context[..] == TRANSFER_CONTEXT,
            read: context.as_ref().try_into().ok().map(u64::from_le_bytes),
            entries: message.get_entries().iter().map(entry).collect::<Option<_>>()?,
            body: message.take_snapshot().take_data(),
        })
    }

    /// Asks `to` for entries from `index` on, up to `anchor`, for a log that ends with `last`; both
    /// are an index and its term.
    pub(super) fn repair_ask(
        group: LogId,
        (from, to): (ReplicaId, ReplicaId),
        index: u64,
        anchor: (u64, u64),
        last: (u64, u64),
    ) -> Self {
        let ask = Self::new(MessageKind::RepairAsk, group, from, to);
        let (commit, log_term) = anchor;
        let (reject_hint, term) = last;
        Self { index, commit, log_term, reject_hint, term, ..ask }
    }

    /// Gives `to` entries that it asked for.
    pub(super) fn repair_answer(
        group: LogId,
        (from, to): (ReplicaId, ReplicaId),
        mut entries: Vec<Entry>,
    ) -> Option<Self> {
        let index = entries.first()?.header.index - 1;
        let term = entries.last()?.header.term;
        // What a replica knows of its own disk is nobody else's business.
        entries.iter_mut().for_each(|entry| entry.header.synced_index = 0);
        let answer = Self::new(MessageKind::RepairAnswer, group, from, to);
        Some(Self { term, index, entries, ..answer })
    }

    /// The message for raft-rs; `None` if it is not for raft-rs, or a snapshot's body is not one.
    pub(super) fn into_raft(self) -> Option<Message> {
        let mut message = Message::default();
        message.set_msg_type(self.kind.to_raft()?);
        message.from = self.from.0;
        message.to = self.to.0;
        message.term = self.term;
        message.index = self.index;
        message.log_term = self.log_term;
        message.commit = self.commit;
        message.commit_term = self.commit_term;
        message.reject_hint = self.reject_hint;
        message.reject = self.is_reject;
        if let Some(read) = self.read {
            message.context = Bytes::copy_from_slice(&read.to_le_bytes());
        } else if self.is_transfer {
            message.context = Bytes::from_static(TRANSFER_CONTEXT);
        }
        if self.kind == MessageKind::Snapshot {
            message.set_snapshot(SnapshotBody::decode(self.body)?.to_raft());
        }
        message.set_entries(self.entries.iter().map(to_raft_cold).collect::<Vec<_>>().into());
        Some(message)
    }

    /// Term of the last entry that it speaks of; 0 if it speaks of none.
    pub(super) fn last_term(&self) -> u64 {
        let snapshot = || SnapshotBody::decode(self.body.clone()).map(|body| body.base.tip.term);
        let of_body = if self.kind == MessageKind::Snapshot { snapshot() } else { None };
        let of_entries = self.entries.last().map(|entry| entry.header.term);
        of_entries.or(of_body).unwrap_or(self.log_term)
    }

    /// The lane for it. `is_cold` says that its entries were read from disk.
    pub(super) fn lane(&self, is_cold: bool) -> Lane {
        match self.kind {
            MessageKind::Snapshot | MessageKind::RepairAnswer => Lane::Bulk,
            MessageKind::Append if is_cold => Lane::Bulk,
            MessageKind::Append => Lane::Append,
            _ => Lane::Control,
        }
    }

    /// Says what in the envelope contradicts itself, if anything does.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.from == self.to || self.from.0 == 0 || self.to.0 == 0 {
            return Err("sender and receiver");
        }
        if self.term == 0 {
            return Err("term");
        }
        let may_have_entries = matches!(self.kind, MessageKind::Append | MessageKind::RepairAnswer);
        if !self.entries.is_empty() && !may_have_entries {
            return Err("entries");
        }
        if self.body.is_empty() == (self.kind == MessageKind::Snapshot) {
            return Err("body");
        }
        if self.is_transfer && !self.kind.is_vote() {
            return Err("transfer flag");
        }
        self.check_entries()
    }

    /// Checks that the entries follow one another, and the one that the message is about.
    fn check_entries(&self) -> Result<(), &'static str> {
        let Some(first) = self.entries.first() else {
            return Ok(());
        };
        let is_next = self.index.checked_add(1) == Some(first.header.index);
        if !is_next || first.header.term < self.log_term {
            return Err("first entry");
        }
        for pair in self.entries.windows(2) {
            let tip = pair[0].header.tip();
            let is_next = tip.check_continued_by(&pair[1].header).is_ok();
            if !is_next || tip.check_chain_to(&pair[1].header).is_err() {
                return Err("order of entries");
            }
        }
        let last_term = self.entries.last().map_or(0, |entry| entry.header.term);
        if last_term > self.term { Err("term of entries") } else { Ok(()) }
    }
}

/// What a snapshot says: the membership as the leader has it now, and the state at the start of its
/// log. All entries after that follow as ordinary appends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SnapshotBody {
    pub(super) membership: Membership,
    pub(super) base: Base,
}

impl SnapshotBody {
    pub(super) fn encode(&self) -> Bytes {
        let membership = self.membership.encode();
        let mut bytes = BytesMut::with_capacity(membership.len() + self.base.state.len() + 48);
        bytes.put_u32_le(membership.len() as u32);
        bytes.put_slice(&membership);
        let tip = &self.base.tip;
        assert!(
            tip.index > 0 && tip.term > 0,
            "a snapshot begins after an entry, not at index {} of term {}",
            tip.index,
            tip.term
        );
        bytes.put_u64_le(tip.index);
        bytes.put_u64_le(tip.term);
        bytes.put_u64_le(tip.end_offset);
        bytes.put_i64_le(tip.append_time_ms);
        bytes.put_u32_le(tip.chain);
        bytes.put_slice(&self.base.state);
        bytes.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let len = bytes.try_get_u32_le().ok()? as usize;
        if len > bytes.len() {
            return None;
        }
        let membership = Membership::decode(&bytes.split_to(len))?;
        let tip = Tip {
            index: bytes.try_get_u64_le().ok()?,
            term: bytes.try_get_u64_le().ok()?,
            end_offset: bytes.try_get_u64_le().ok()?,
            append_time_ms: bytes.try_get_i64_le().ok()?,
            chain: bytes.try_get_u32_le().ok()?,
        };
        let is_good = tip.index > 0 && tip.index < u64::MAX && !membership.voters.is_empty();
        is_good.then_some(Self { membership, base: Base { tip, state: bytes } })
    }

    pub(super) fn to_raft(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = self.base.tip.index;
        snapshot.mut_metadata().term = self.base.tip.term;
        snapshot.mut_metadata().set_conf_state(self.membership.to_conf_state());
        snapshot.data = self.encode();
        snapshot
    }
}

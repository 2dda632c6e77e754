//! Tests of the state machine, one file for each thing it owns; here is what they share.

mod formats;
mod groups;
mod leader;
mod producers;
mod replicas;

use bytes::Bytes;

use super::{
    Applied, Command, Effect, GroupId, InitProducer, Metadata, OffsetCommit, Refusal, Reply, State,
    StoredBatch, Submission, Verdict,
};
use crate::storage::{Entry, EntryHeader, Kind};

/// A state that is fed entries one by one, each in order.
struct Replica {
    state: State,
    end_offset: u64,
    now_ms: i64,
}

impl Replica {
    fn new() -> Self {
        Self { state: State::new(), end_offset: 0, now_ms: 1_000 }
    }

    /// Makes the next entry.
    fn entry(&self, kind: Kind, payload: Bytes) -> Entry {
        let index = self.state.applied_index() + 1;
        let crc = crc32fast::hash(&payload);
        Entry::new(kind, index, 1, payload, crc)
            .with_records(self.end_offset, 0)
            .at_time(self.now_ms)
    }

    fn apply(&mut self, header: &EntryHeader, payload: &[u8]) -> Applied {
        self.end_offset = header.end_offset();
        self.state.apply(header, payload)
    }

    fn append(&mut self, kind: Kind, payload: impl Into<Bytes>) -> Effect {
        let entry = self.entry(kind, payload.into());
        self.apply(&entry.header, &entry.payload).effect
    }

    fn command(&mut self, command: &Command) -> Result<Reply, Refusal> {
        match self.append(Kind::Control, command.encode()) {
            Effect::Control(result) => result,
            other => panic!("a control entry had the effect {other:?}"),
        }
    }

    fn store(&mut self, submission: Submission) -> StoredBatch {
        let mut header = self.entry(Kind::Records, Bytes::new()).header;
        stamp(&mut header, &submission);
        match self.apply(&header, b"").effect {
            Effect::Records(stored) => stored,
            other => panic!("a records entry had the effect {other:?}"),
        }
    }

    fn init(&mut self, producer_id: u64, take_over: bool) -> Result<u16, Refusal> {
        let command = Command::InitProducer(InitProducer { producer_id, take_over });
        match self.command(&command)? {
            Reply::ProducerInitialized { producer_id: id, producer_epoch, .. } => {
                assert_eq!(id, producer_id);
                Ok(producer_epoch)
            }
            other => panic!("an init was answered with {other:?}"),
        }
    }
}

fn stamp(header: &mut EntryHeader, submission: &Submission) {
    header.producer_id = submission.producer_id;
    header.producer_epoch = submission.producer_epoch;
    header.base_sequence = submission.base_sequence;
    header.record_count = submission.record_count;
    header.payload_crc = submission.payload_crc;
}

/// A batch of producer 7 in producer epoch 0 whose body depends on its sequence.
fn batch(base_sequence: u32, record_count: u32) -> Submission {
    let payload_crc = base_sequence ^ 0xABCD_0000;
    Submission { producer_id: 7, producer_epoch: 0, base_sequence, record_count, payload_crc }
}

fn group(name: &str) -> GroupId {
    GroupId::try_new(name.as_bytes()).unwrap()
}

fn commit(generation: u64, offset: u64) -> Command {
    Command::OffsetCommit(OffsetCommit {
        group: group("g"),
        generation,
        member: uuid::Uuid::from_u128(5),
        offset,
        leader_epoch: 1,
        metadata: Metadata::try_new("m").unwrap(),
    })
}

#[test]
fn entries_without_state_pass_through() {
    let mut replica = Replica::new();
    assert_eq!(replica.append(Kind::NoOp, ""), Effect::Nothing);
    assert_eq!(replica.append(Kind::Membership, "not ours"), Effect::Membership);
    assert_eq!(replica.state.applied_index(), 2);
}

#[test]
fn the_log_start_moves_forwards_only_and_not_beyond_the_end() {
    let mut replica = Replica::new();
    replica.store(Submission { producer_id: 0, ..batch(0, 10) });
    let mut to = |offset: u64| match replica.append(Kind::LogStart, offset.to_le_bytes().to_vec()) {
        Effect::LogStart(result) => result,
        other => panic!("a log start had the effect {other:?}"),
    };
    assert_eq!(to(4), Ok(4));
    assert_eq!(to(3), Ok(4));
    assert_eq!(to(11), Err(Refusal::OffsetBeyondEnd { log_end: 10 }));
    assert_eq!(to(10), Ok(10));
    assert_eq!(replica.state.log_start(), 10);
    for payload in [&b""[..], &[0; 7], &[0; 9]] {
        let effect = replica.append(Kind::LogStart, payload.to_vec());
        assert!(matches!(effect, Effect::LogStart(Err(Refusal::Undecodable(_)))), "{effect:?}");
    }
    assert_eq!(replica.state.log_start(), 10);
}

#[test]
fn an_undecodable_command_is_refused_and_changes_only_the_index() {
    let mut replica = Replica::new();
    replica.init(7, false).unwrap();
    let before = replica.state.clone();
    let entry = replica.entry(Kind::Control, Bytes::from_static(b"\x01\x01\x01\x08"));
    let applied = replica.apply(&entry.header, &entry.payload);
    let refusal = applied.refusal().unwrap();
    assert!(matches!(refusal, Refusal::Undecodable(_)) && refusal.is_deterministic());
    assert_eq!(State { applied_index: 1, ..replica.state }, before);
}

#[test]
fn a_command_of_a_later_version_is_told_from_a_malformed_one() {
    let mut replica = Replica::new();
    for payload in ["\x01\x7f", "\x02\x01"] {
        let entry = replica.entry(Kind::Control, payload.into());
        let refusal = replica.apply(&entry.header, &entry.payload).refusal().unwrap();
        assert!(!refusal.is_deterministic(), "{refusal}");
    }
}

#[test]
#[should_panic(expected = "entry 2 is applied where 1 is next")]
fn an_entry_out_of_order_is_a_broken_caller() {
    let mut entry = Replica::new().entry(Kind::NoOp, Bytes::new());
    entry.header.index = 2;
    let _ = State::new().apply(&entry.header, b"");
}

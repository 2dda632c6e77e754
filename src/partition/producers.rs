//! Producers: which batch comes next, and which one is a retry.
//!
//! A producer numbers its records; a batch carries the sequence number of its first one. The number
//! after `u32::MAX` is 0. Of each producer the last [`RECENT_BATCHES_MAX`] batches are remembered,
//! so that a retry is answered with the offset where the batch stands, and is stored once.
//!
//! A producer id is known from its [`InitProducer`] on, and only then: were records of an unknown
//! id taken, then a late retry of one that was forgotten would be stored a second time.
//!
//! # Check and apply
//! The leader asks [`Producers::check`] before it appends: what is refused or stored already must
//! not get into the log. [`Producers::follow`] then says what the log says, on every replica. It
//! uses the same check; an entry that the leader should not have let in changes nothing, so a
//! further retry of it is judged against the batches that are in order.
//!
//! # Forgetting
//! A producer idle for [`PRODUCER_IDLE_MS`] of the log's time is forgotten, and so is the one idle
//! longest when there are more than [`PRODUCERS_MAX`]. It then has to begin anew with a new id.
//!
//! In a checkpoint a producer takes 19 bytes and 20 for each batch, 179 at most.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut as _, BytesMut};

use super::control::{Command, InitProducer};
use super::error::Refusal;
use super::state::Reply;
use super::wire::Reader;
use crate::raft::planted::{Bug, planted};
use crate::storage::{EntryHeader, Kind};

/// Batches remembered of each producer: as many may be under way at once.
pub const RECENT_BATCHES_MAX: usize = 8;
/// Producers remembered in one partition.
pub const PRODUCERS_MAX: usize = 4096;
/// Idle time after which a producer is forgotten: seven days.
pub const PRODUCER_IDLE_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// Encoded length of a producer without its batches.
pub(super) const PRODUCER_BYTES_MIN: usize = 19;

/// What a producer says about a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submission {
    /// The producer; 0 for none, whose batches are not checked.
    pub producer_id: u64,
    /// Its incarnation.
    pub producer_epoch: u16,
    /// Sequence number of the first record.
    pub base_sequence: u32,
    /// Records in the batch.
    pub record_count: u32,
    /// CRC-32 of the payload.
    pub payload_crc: u32,
}

impl Submission {
    /// What a records entry says about itself.
    pub fn of(header: &EntryHeader) -> Self {
        Self {
            producer_id: header.producer_id,
            producer_epoch: header.producer_epoch,
            base_sequence: header.base_sequence,
            record_count: header.record_count,
            payload_crc: header.payload_crc,
        }
    }
}

/// What is to be answered to a producer: the offset of its batch's first record.
pub type Answer = Result<u64, Refusal>;

/// What a batch is, seen from the state before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It comes next, or has no producer.
    Fresh,
    /// It stands in the log already.
    Duplicate {
        /// Offset of its first record there.
        base_offset: u64,
    },
    /// It must not be stored.
    Refused(Refusal),
}

/// A batch that was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Batch {
    base_sequence: u32,
    /// At least 1.
    record_count: u32,
    payload_crc: u32,
    base_offset: u64,
}

impl Batch {
    fn next_sequence(&self) -> u32 {
        self.base_sequence.wrapping_add(self.record_count)
    }

    fn contains(&self, sequence: u32) -> bool {
        sequence.wrapping_sub(self.base_sequence) < self.record_count
    }

    fn is_same(&self, submission: &Submission) -> bool {
        self.base_sequence == submission.base_sequence
            && self.record_count == submission.record_count
            && self.payload_crc == submission.payload_crc
    }
}

/// One producer.
///
/// * `batches` are of this producer epoch, the oldest first, at most [`RECENT_BATCHES_MAX`]; each
///   begins with the sequence number after the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Producer {
    producer_epoch: u16,
    /// The log's time of the last entry that was for it.
    active_ms: i64,
    batches: Vec<Batch>,
}

impl Producer {
    fn new(producer_epoch: u16, active_ms: i64) -> Self {
        Self { producer_epoch, active_ms, batches: Vec::new() }
    }

    fn next_sequence(&self) -> u32 {
        self.batches.last().map_or(0, Batch::next_sequence)
    }

    fn check(&self, submission: &Submission) -> Verdict {
        let current = self.producer_epoch;
        if submission.producer_epoch < current && !planted(Bug::ProducerEpochIgnored) {
            return Verdict::Refused(Refusal::ProducerFenced { current });
        }
        if submission.producer_epoch > current {
            return check_sequence(0, submission);
        }
        let (found, expected) = (submission.base_sequence, self.next_sequence());
        // What comes next is fresh even if its number was used before the numbers wrapped.
        let is_retry = |batch: &&Batch| found != expected && batch.contains(found);
        match self.batches.iter().rev().find(is_retry) {
            Some(batch) if batch.is_same(submission) => {
                Verdict::Duplicate { base_offset: batch.base_offset }
            }
            Some(batch) => Verdict::Refused(Refusal::SequenceReused {
                base_sequence: found,
                base_offset: batch.base_offset,
            }),
            None => check_sequence(expected, submission),
        }
    }

    /// Notes a fresh batch.
    fn note(&mut self, submission: &Submission, base_offset: u64) {
        assert!(
            submission.producer_epoch >= self.producer_epoch,
            "a batch of producer epoch {} is not fresh, {} holds",
            submission.producer_epoch,
            self.producer_epoch
        );
        if submission.producer_epoch > self.producer_epoch {
            *self = Self::new(submission.producer_epoch, self.active_ms);
        }
        assert!(
            submission.base_sequence == self.next_sequence(),
            "sequence {} is not fresh, {} comes next",
            submission.base_sequence,
            self.next_sequence()
        );
        if self.batches.len() == RECENT_BATCHES_MAX {
            self.batches.remove(0);
        }
        let Submission { base_sequence, record_count, payload_crc, .. } = *submission;
        self.batches.push(Batch { base_sequence, record_count, payload_crc, base_offset });
    }
}

fn check_sequence(expected: u32, submission: &Submission) -> Verdict {
    let found = submission.base_sequence;
    if found == expected {
        Verdict::Fresh
    } else {
        Verdict::Refused(Refusal::OutOfOrderSequence { expected, found })
    }
}

/// What an entry was for the producers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Followed {
    /// Nothing.
    Unrelated,
    /// A batch.
    Records(Verdict),
    /// A command.
    Init(Result<Reply, Refusal>),
}

/// All producers that a partition knows.
///
/// * At most [`PRODUCERS_MAX`].
/// * `by_activity` holds exactly (`active_ms`, id) of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Producers {
    by_id: BTreeMap<u64, Producer>,
    by_activity: BTreeSet<(i64, u64)>,
}

impl Producers {
    /// Says what a batch would be if it came next. Changes nothing.
    pub fn check(&self, submission: &Submission) -> Verdict {
        if submission.producer_id == 0 {
            return Verdict::Fresh;
        }
        if submission.record_count == 0 {
            return Verdict::Refused(Refusal::EmptyBatch);
        }
        match self.by_id.get(&submission.producer_id) {
            Some(producer) => producer.check(submission),
            None => Verdict::Refused(Refusal::UnknownProducer),
        }
    }

    /// How many producers are known.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// True if no producer is known.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The producer epoch that holds for a producer, if it is known.
    pub fn producer_epoch(&self, producer_id: u64) -> Option<u16> {
        self.by_id.get(&producer_id).map(|producer| producer.producer_epoch)
    }

    /// Follows the log by one entry, of which `command` is what it commands; `now_ms` is the log's
    /// time at it.
    ///
    /// Forgets after, never before the entry is judged: a batch that keeps its producer alive must
    /// not find it gone by the batch's own time.
    pub(super) fn follow(
        &mut self,
        header: &EntryHeader,
        command: Option<&Command>,
        now_ms: i64,
    ) -> Followed {
        let followed = match (header.kind, command) {
            (Kind::Records, _) => Followed::Records(self.follow_records(header, now_ms)),
            (_, Some(Command::InitProducer(init))) => Followed::Init(self.init(init, now_ms)),
            _ => Followed::Unrelated,
        };
        self.forget_idle(now_ms);
        followed
    }

    fn follow_records(&mut self, header: &EntryHeader, now_ms: i64) -> Verdict {
        let submission = Submission::of(header);
        let verdict = self.check(&submission);
        if verdict == Verdict::Fresh && submission.producer_id != 0 {
            let producer = self.touch(submission.producer_id, now_ms);
            producer.note(&submission, header.base_offset);
        }
        verdict
    }

    fn init(&mut self, init: &InitProducer, now_ms: i64) -> Result<Reply, Refusal> {
        let InitProducer { producer_id, take_over } = *init;
        if producer_id == 0 {
            return Err(Refusal::ReservedProducerId);
        }
        let producer_epoch = self.producer_epoch_after(producer_id, take_over)?;
        let ended = self.by_id.get(&producer_id).filter(|_| take_over);
        let ended_sequence = ended.map(Producer::next_sequence);
        if self.by_id.contains_key(&producer_id) {
            *self.touch(producer_id, now_ms) = Producer::new(producer_epoch, now_ms);
        } else {
            self.introduce(producer_id, Producer::new(producer_epoch, now_ms));
        }
        Ok(Reply::ProducerInitialized { producer_id, producer_epoch, ended_sequence })
    }

    /// The producer epoch that an init gives.
    fn producer_epoch_after(&self, producer_id: u64, take_over: bool) -> Result<u16, Refusal> {
        match self.by_id.get(&producer_id) {
            Some(known) if take_over => {
                known.producer_epoch.checked_add(1).ok_or(Refusal::ProducerEpochExhausted)
            }
            // The same command proposed twice: as long as nothing was produced, nobody can tell.
            Some(known) if known.producer_epoch == 0 && known.batches.is_empty() => Ok(0),
            Some(_) => Err(Refusal::ProducerIdTaken),
            None if take_over => Err(Refusal::UnknownProducer),
            None => Ok(0),
        }
    }

    /// Adds a producer, after making room for it.
    fn introduce(&mut self, producer_id: u64, producer: Producer) {
        while self.by_id.len() >= PRODUCERS_MAX {
            let (_, oldest) = self.by_activity.pop_first().expect("each producer has its activity");
            self.by_id.remove(&oldest);
        }
        self.by_activity.insert((producer.active_ms, producer_id));
        let before = self.by_id.insert(producer_id, producer);
        assert!(before.is_none(), "producer {producer_id} is introduced twice");
        self.assert_in_step();
    }

    /// Notes that a known producer is active.
    fn touch(&mut self, producer_id: u64, now_ms: i64) -> &mut Producer {
        let producer = self.by_id.get_mut(&producer_id).expect("only a known producer is touched");
        let was_there = self.by_activity.remove(&(producer.active_ms, producer_id));
        assert!(was_there, "producer {producer_id} has no activity at {}", producer.active_ms);
        self.by_activity.insert((now_ms, producer_id));
        producer.active_ms = now_ms;
        producer
    }

    fn forget_idle(&mut self, now_ms: i64) {
        let idle_since = now_ms.saturating_sub(PRODUCER_IDLE_MS);
        while let Some(&(active_ms, producer_id)) = self.by_activity.first() {
            if active_ms > idle_since || active_ms == now_ms {
                break;
            }
            self.by_activity.pop_first();
            self.by_id.remove(&producer_id);
        }
        self.assert_in_step();
    }

    fn assert_in_step(&self) {
        let (ids, activities) = (self.by_id.len(), self.by_activity.len());
        assert!(ids == activities, "{ids} producers have {activities} times of activity");
        assert!(ids <= PRODUCERS_MAX, "{ids} producers are over the bound of {PRODUCERS_MAX}");
    }

    /// Writes the section of a checkpoint: the count, then the producers by id.
    pub(super) fn encode(&self, bytes: &mut BytesMut) {
        bytes.put_u32_le(u32::try_from(self.by_id.len()).expect("producers are bounded"));
        for (producer_id, producer) in &self.by_id {
            bytes.put_u64_le(*producer_id);
            bytes.put_u16_le(producer.producer_epoch);
            bytes.put_i64_le(producer.active_ms);
            bytes.put_u8(u8::try_from(producer.batches.len()).expect("batches are bounded"));
            for batch in &producer.batches {
                bytes.put_u32_le(batch.base_sequence);
                bytes.put_u32_le(batch.record_count);
                bytes.put_u32_le(batch.payload_crc);
                bytes.put_u64_le(batch.base_offset);
            }
        }
    }

    /// Reads what [`Producers::encode`] writes, of a state at `now_ms`; otherwise says what is
    /// wrong.
    pub(super) fn decode(reader: &mut Reader<'_>, now_ms: i64) -> Result<Self, &'static str> {
        let count = reader.u32().ok_or("the count of producers is cut short")? as usize;
        if count > PRODUCERS_MAX || count * PRODUCER_BYTES_MIN > reader.remaining() {
            return Err("there are fewer producers than it says, or too many");
        }
        let mut producers = Self::default();
        for _ in 0..count {
            let (producer_id, producer) = decode_producer(reader)?;
            let last = producers.by_id.last_key_value().map_or(0, |(id, _)| *id);
            if producer_id <= last {
                return Err("producer ids are not ascending");
            }
            if producer.active_ms > now_ms {
                return Err("a producer was active after the last entry");
            }
            producers.introduce(producer_id, producer);
        }
        Ok(producers)
    }
}

fn decode_producer(reader: &mut Reader<'_>) -> Result<(u64, Producer), &'static str> {
    const CUT: &str = "a producer is cut short";
    let producer_id = reader.u64().ok_or(CUT)?;
    let producer_epoch = reader.u16().ok_or(CUT)?;
    let active_ms = reader.i64().ok_or(CUT)?;
    let count = usize::from(reader.u8().ok_or(CUT)?);
    if count > RECENT_BATCHES_MAX {
        return Err("a producer has too many batches");
    }
    let mut producer = Producer::new(producer_epoch, active_ms);
    for _ in 0..count {
        let batch = decode_batch(reader).ok_or(CUT)?;
        let is_next = producer.batches.last().is_none_or(|last| continues(last, &batch));
        if !is_next || batch.record_count == 0 {
            return Err("a producer's batches do not follow one another");
        }
        producer.batches.push(batch);
    }
    Ok((producer_id, producer))
}

fn decode_batch(reader: &mut Reader<'_>) -> Option<Batch> {
    Some(Batch {
        base_sequence: reader.u32()?,
        record_count: reader.u32()?,
        payload_crc: reader.u32()?,
        base_offset: reader.u64()?,
    })
}

fn continues(last: &Batch, next: &Batch) -> bool {
    next.base_sequence == last.next_sequence()
}

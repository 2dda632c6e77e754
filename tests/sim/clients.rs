//! Clients: they ask, wait, retry, and remember what they were told.
//!
//! A value is a payload that no other append has. What is written down of each attempt is only what
//! a client can know: when it began, and whether it was stored, refused, or ended without answer.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quipu::partition::{
    Acks, Ask, Batch, Command, FenceGeneration, GroupId, InitProducer, Metadata, OffsetCommit,
    Refusal, Reply, Response,
};
use quipu::raft::{Durability, Ticket};
use quipu::types::{LogId, NodeId};
use uuid::Uuid;

use crate::oracle::{Oracle, batches};
use crate::plan::Plan;
use crate::rng::Rng;
use crate::tally::Tally;

/// A batch that somebody wants stored.
#[derive(Debug, Clone)]
pub struct Write {
    pub value: u64,
    pub batch: Batch,
    pub acks: Acks,
    /// Highest end offset that was acknowledged when it was first sent.
    floor: u64,
    /// Some attempt ended without answer.
    is_in_doubt: bool,
    /// Begun after everything was healed.
    is_last: bool,
}

#[derive(Debug)]
enum Task {
    Init,
    Write(Write),
    /// `known` is the generation that was acknowledged when the commit was sent.
    Commit {
        offset: u64,
        generation: u64,
        known: u64,
    },
    Fence {
        generation: u64,
    },
    Barrier {
        floor: u64,
    },
    /// An attempt of an incarnation that was fenced before it began.
    Zombie,
}

/// What a client is about.
#[derive(Debug)]
pub struct Client {
    group: LogId,
    target: NodeId,
    task: Option<(Ticket, Task)>,
    /// A write that has to be sent again.
    retry: Option<Write>,
    producer: Option<Producer>,
    is_idempotent: bool,
    /// A write that it began after everything was healed is stored.
    has_progress: bool,
}

#[derive(Debug, Clone)]
struct Producer {
    id: u64,
    producer_epoch: u16,
    next_sequence: u32,
}

/// What all clients together know of a group.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Value to offset, of acknowledged batches.
    acked: BTreeMap<u64, u64>,
    /// Values that were refused for good and must never be seen.
    refused: BTreeSet<u64>,
    /// Values of idempotent producers, which must never be seen twice.
    unique: BTreeSet<u64>,
    acked_end: u64,
    generation: u64,
    committed_offset: u64,
}

#[derive(Debug)]
pub struct Clients {
    pub all: Vec<Client>,
    pub ledgers: BTreeMap<LogId, Ledger>,
    rng: Rng,
    next_value: u64,
    next_ticket: u64,
    next_producer: u64,
    payload_max: u64,
    durability: Durability,
    is_resting: bool,
    /// Appends that are answered after a majority has them; true for those sent once more.
    quorum: BTreeMap<Ticket, (LogId, bool)>,
    pub tally: Tally,
}

/// A request on its way.
#[derive(Debug)]
pub struct Request {
    pub ticket: Ticket,
    pub to: NodeId,
    pub group: LogId,
    pub ask: Ask,
}

fn consumers() -> GroupId {
    GroupId::try_new(b"consumers").unwrap()
}

impl Clients {
    pub fn new(plan: &Plan, groups: &[LogId], rng: Rng) -> Self {
        let mut clients = Self {
            all: Vec::new(),
            ledgers: groups.iter().map(|group| (*group, Ledger::default())).collect(),
            rng,
            next_value: 1,
            next_ticket: 1,
            next_producer: 1,
            payload_max: plan.payload_max,
            durability: plan.durability,
            is_resting: false,
            quorum: BTreeMap::new(),
            tally: Tally::default(),
        };
        for n in 0..plan.clients {
            let group = groups[(n % groups.len() as u64) as usize];
            let target = NodeId(clients.rng.between(1, plan.nodes));
            let is_idempotent = n % 3 != 2;
            clients.all.push(Client {
                group,
                target,
                task: None,
                retry: None,
                producer: None,
                is_idempotent,
                has_progress: false,
            });
        }
        clients
    }

    /// Lets client `n` send its next request, unless one is under way.
    pub fn act(&mut self, n: usize) -> Option<Request> {
        if self.all[n].task.is_some() || self.is_resting(n) {
            return None;
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let (task, ask) = self.choose(n);
        let client = &mut self.all[n];
        if let Task::Write(Write { acks: Acks::Quorum, is_in_doubt, .. }) = &task {
            self.quorum.insert(ticket, (client.group, *is_in_doubt));
        }
        client.task = Some((ticket, task));
        Some(Request { ticket, to: client.target, group: client.group, ask })
    }

    fn choose(&mut self, n: usize) -> (Task, Ask) {
        let group = self.all[n].group;
        if let Some(write) = self.all[n].retry.take() {
            let ask = Ask::Append { batch: write.batch.clone(), acks: write.acks };
            return (Task::Write(write), ask);
        }
        if self.all[n].is_idempotent && self.all[n].producer.is_none() {
            let producer_id = self.next_producer;
            self.next_producer += 1;
            return init(producer_id, false);
        }
        if self.is_resting {
            return self.write(n, true);
        }
        let ledger = self.ledgers.get_mut(&group).expect("every group has a ledger");
        match self.rng.below(100) {
            0..4 => (Task::Barrier { floor: ledger.acked_end }, Ask::Barrier),
            4..7 => commit(ledger, ledger.generation),
            7..8 => commit(ledger, ledger.generation.saturating_sub(1)),
            8..9 => {
                let generation = ledger.generation + 1;
                let fence = FenceGeneration {
                    group: consumers(),
                    generation,
                    expire_after_idle_ms: 0,
                    start: 0,
                };
                (Task::Fence { generation }, Ask::Command(Command::FenceGeneration(fence)))
            }
            9..11 if self.all[n].producer.is_some() => {
                let producer = self.all[n].producer.as_ref().expect("it has one");
                init(producer.id, true)
            }
            11..13 if self.all[n].producer.as_ref().is_some_and(|p| p.producer_epoch > 0) => {
                let mut producer = self.all[n].producer.clone().expect("it has one");
                producer.producer_epoch -= 1;
                let batch = self.batch(Some(&producer)).batch;
                (Task::Zombie, Ask::Append { batch, acks: Acks::Quorum })
            }
            _ => self.write(n, false),
        }
    }

    fn write(&mut self, n: usize, is_last: bool) -> (Task, Ask) {
        let producer = self.all[n].producer.clone();
        let mut write = self.batch(producer.as_ref());
        let ledger = self.ledgers.get_mut(&self.all[n].group).expect("every group has a ledger");
        write.floor = ledger.acked_end;
        write.is_last = is_last;
        if producer.is_some() {
            ledger.unique.insert(write.value);
        } else if self.rng.chance(200) && !is_last {
            write.acks = if self.rng.chance(500) { Acks::Leader } else { Acks::None };
        }
        let ask = Ask::Append { batch: write.batch.clone(), acks: write.acks };
        (Task::Write(write), ask)
    }

    fn batch(&mut self, producer: Option<&Producer>) -> Write {
        let value = self.next_value;
        self.next_value += 1;
        let len = self.rng.between(8, self.payload_max) as usize;
        let mut payload = value.to_le_bytes().to_vec();
        payload.resize(len, value as u8);
        let payload = Bytes::from(payload);
        let batch = Batch {
            payload_crc: crc32fast::hash(&payload),
            payload,
            record_count: self.rng.between(1, 3) as u32,
            format: 0,
            producer_id: producer.map_or(0, |producer| producer.id),
            producer_epoch: producer.map_or(0, |producer| producer.producer_epoch),
            base_sequence: producer.map_or(0, |producer| producer.next_sequence),
        };
        Write { value, batch, acks: Acks::Quorum, floor: 0, is_in_doubt: false, is_last: false }
    }

    /// Takes note that an append is answered: its group, and whether it was sent before. `None` if
    /// the answer did not wait for a majority.
    pub fn take_quorum_write(&mut self, ticket: Ticket) -> Option<(LogId, bool)> {
        self.quorum.remove(&ticket)
    }

    /// Client whose request this is.
    pub fn of(&self, ticket: Ticket) -> Option<usize> {
        self.all.iter().position(|client| client.task.as_ref().is_some_and(|(of, _)| *of == ticket))
    }

    /// Tells a client what became of its request; `None` if nothing is heard.
    pub fn answered(&mut self, ticket: Ticket, response: Option<Response>, nodes: u64) {
        let Some(n) = self.of(ticket) else { return };
        let (_, task) = self.all[n].task.take().expect("the client waits for this");
        let response = response.unwrap_or(Response::Unknown);
        match response {
            Response::NotLeader { leader: Some(leader) } => self.all[n].target = leader.node(),
            Response::NotLeader { leader: None } | Response::Unknown => {
                self.all[n].target = NodeId(self.rng.between(1, nodes));
            }
            _ => {}
        }
        if response == Response::Unknown {
            self.tally.add("outcome-unknown", 1);
        }
        match task {
            Task::Write(write) => self.written(n, write, response),
            task => self.told(n, &task, response),
        }
    }

    fn written(&mut self, n: usize, mut write: Write, response: Response) {
        let client = &mut self.all[n];
        let ledger = self.ledgers.get_mut(&client.group).expect("every group has a ledger");
        match response {
            Response::Appended { base_offset, durability, .. } => {
                assert_eq!(durability, self.durability, "the answer says how it is stored");
                self.tally.add("acknowledged", 1);
                self.tally.add("acknowledged-records", u64::from(write.batch.record_count));
                client.has_progress |= write.is_last;
                let end = base_offset + u64::from(write.batch.record_count);
                if write.acks == Acks::Quorum && self.durability == Durability::Fsync {
                    assert!(
                        base_offset >= write.floor,
                        "value {} is at {base_offset}, {} was acknowledged before it was sent",
                        write.value,
                        write.floor
                    );
                    ledger.acked.insert(write.value, base_offset);
                    ledger.acked_end = ledger.acked_end.max(end);
                }
                self.tally.add("retry-answered", u64::from(write.is_in_doubt));
                if let Some(producer) = &mut client.producer {
                    producer.next_sequence += write.batch.record_count;
                }
            }
            Response::NotLeader { .. } | Response::Transferring => {
                let is_idempotent = write.batch.producer_id != 0;
                if is_idempotent {
                    client.retry = Some(write);
                } else {
                    ledger.refused.insert(write.value);
                }
            }
            Response::Unknown => {
                write.is_in_doubt = true;
                if write.batch.producer_id != 0 {
                    client.retry = Some(write);
                }
            }
            Response::Refused(refusal) => {
                self.refused(n, &write, refusal);
            }
            other => panic!("a write is answered with {other:?}"),
        }
    }

    fn refused(&mut self, n: usize, write: &Write, refusal: Refusal) {
        // Only what is lost with a majority's memory can make a producer unknown or out of step.
        assert!(
            self.durability == Durability::Memory,
            "value {} of {:?} is refused: {refusal}",
            write.value,
            self.all[n].producer
        );
        self.all[n].producer = None;
    }

    fn told(&mut self, n: usize, task: &Task, response: Response) {
        let durability = self.durability;
        let client = &mut self.all[n];
        let ledger = self.ledgers.get_mut(&client.group).expect("every group has a ledger");
        match (task, response) {
            (
                Task::Init,
                Response::Followed(Reply::ProducerInitialized {
                    producer_id, producer_epoch, ..
                }),
            ) => {
                client.producer =
                    Some(Producer { id: producer_id, producer_epoch, next_sequence: 0 });
            }
            // The id may be taken by the attempt that was not heard of again: begin with another.
            (Task::Init, Response::Refused(_) | Response::Unknown) => client.producer = None,
            (Task::Commit { offset, generation, known }, Response::Followed(_)) => {
                assert!(
                    generation >= known || durability == Durability::Memory,
                    "a commit of generation {generation} passes, {known} held when it was sent"
                );
                ledger.committed_offset = ledger.committed_offset.max(*offset);
            }
            (Task::Fence { generation }, Response::Followed(_)) => {
                ledger.generation = ledger.generation.max(*generation);
            }
            (Task::Barrier { floor }, Response::Barrier { high_watermark }) => {
                self.tally.add("read-barrier-answered", 1);
                assert!(
                    high_watermark >= *floor || durability == Durability::Memory,
                    "a read sees {high_watermark}, {floor} was acknowledged before it was asked"
                );
            }
            (Task::Commit { .. }, Response::Refused(Refusal::IllegalGeneration { .. })) => {
                self.tally.add("progress-zombie-refused", 1);
            }
            (Task::Zombie, Response::Refused(_)) => self.tally.add("producer-zombie-fenced", 1),
            (Task::Zombie, Response::Appended { .. }) => {
                assert!(durability == Durability::Memory, "a fenced producer's batch is stored");
            }
            _ => {}
        }
    }

    /// From now on clients only finish what they have begun, and then store one batch more.
    pub fn rest(&mut self) {
        self.is_resting = true;
    }

    /// True if client `n` has nothing left to do.
    pub fn is_resting(&self, n: usize) -> bool {
        let client = &self.all[n];
        self.is_resting && client.has_progress && client.retry.is_none() && client.task.is_none()
    }

    /// True if nobody has anything left to do.
    pub fn are_resting(&self) -> bool {
        (0..self.all.len()).all(|n| self.is_resting(n))
    }

    /// Compares what was acknowledged with what is committed in the end.
    pub fn check(&self, oracle: &Oracle) {
        if self.durability == Durability::Memory {
            return;
        }
        for (group, ledger) in &self.ledgers {
            let mut found: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            for (header, payload) in batches(oracle.settled_of(*group)) {
                let Some(payload) = payload else { continue };
                let value = u64::from_le_bytes(payload[..8].try_into().unwrap());
                found.entry(value).or_default().push(header.base_offset);
            }
            for (value, offset) in &ledger.acked {
                let offsets = found.get(value).map_or(&[][..], Vec::as_slice);
                assert!(
                    offsets.contains(offset),
                    "{group}: value {value} was acknowledged at {offset}, it is at {offsets:?}"
                );
            }
            for (value, offsets) in &found {
                assert!(
                    !ledger.refused.contains(value),
                    "{group}: value {value} was refused and is at {offsets:?}"
                );
                assert!(
                    offsets.len() == 1 || !ledger.unique.contains(value),
                    "{group}: value {value} is stored twice, at {offsets:?}"
                );
            }
        }
    }

    /// What the partition must say of the group's progress.
    pub fn check_progress(&self, group: LogId, committed: Option<u64>) {
        let ledger = &self.ledgers[&group];
        if ledger.committed_offset > 0 && self.durability == Durability::Fsync {
            assert!(
                committed >= Some(ledger.committed_offset),
                "{group}: offset {} was committed, {committed:?} is left",
                ledger.committed_offset
            );
        }
    }
}

pub fn consumers_id() -> GroupId {
    consumers()
}

fn init(producer_id: u64, take_over: bool) -> (Task, Ask) {
    let command = Command::InitProducer(InitProducer { producer_id, take_over });
    (Task::Init, Ask::Command(command))
}

fn commit(ledger: &Ledger, generation: u64) -> (Task, Ask) {
    let offset = ledger.acked_end;
    let commit = OffsetCommit {
        group: consumers(),
        generation,
        member: Uuid::from_u128(1),
        offset,
        leader_epoch: 1,
        metadata: Metadata::default(),
    };
    (
        Task::Commit { offset, generation, known: ledger.generation },
        Ask::Command(Command::OffsetCommit(commit)),
    )
}

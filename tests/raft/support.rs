//! A few nodes on modelled disks, stepped by hand: a test says what is lost, full or slow.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use quipu::partition::{Acks, Ask, Batch, Replica, Response};
use quipu::raft::{
    Config, Disk, Durability, Frame, Input, Membership, MessageKind, Now, OpenError, Outputs, Role,
    Route, Shard, Ticket, read_base, read_cold, read_supply,
};
use quipu::storage::fs::sim::SimFs;
use quipu::storage::{self, Access, DataDir, Syncer};
use quipu::types::{ClusterId, LogId, NodeId, ReplicaId};
use uuid::Uuid;

pub const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(0xC1));
pub const GROUP: LogId = LogId(Uuid::from_u128(0x6001));
/// Time between two steps.
const STEP_MS: u64 = 10;

type Rounds = Arc<Mutex<Vec<Result<Vec<u64>, storage::Error>>>>;

pub fn config() -> Config {
    Config { tick_ms: 20, election_ticks: 10, heartbeat_ticks: 2, tick_slices: 2, ..small() }
}

fn small() -> Config {
    Config {
        append_bytes_max: 4096,
        appends_in_flight_max: 8,
        tail_bytes_max: 3000,
        ..Config::default()
    }
}

pub fn open_dir(fs: &SimFs) -> Arc<DataDir> {
    let fs = Arc::new(fs.clone());
    Arc::new(DataDir::open(fs, Path::new("/data"), storage::Config::tiny()).unwrap())
}

pub fn replica(node: u64) -> ReplicaId {
    ReplicaId::new(NodeId(node), 1)
}

pub fn voters(count: u64) -> Membership {
    Membership::of_voters((1..=count).map(replica))
}

pub fn batch(payload: &'static [u8]) -> Batch {
    Batch {
        payload: Bytes::from_static(payload),
        payload_crc: crc32fast::hash(payload),
        record_count: 1,
        format: 0,
        producer_id: 0,
        producer_epoch: 0,
        base_sequence: 0,
    }
}

/// A running node.
pub struct Node {
    pub id: NodeId,
    pub fs: SimFs,
    pub shard: Shard<Replica>,
    pub disk: Disk,
    pub syncer: Syncer,
    pub rounds: Rounds,
    pub inputs: Vec<Input<Replica>>,
    pub answers: BTreeMap<Ticket, Response>,
    pub faults: Vec<quipu::raft::Fault>,
    /// Nothing becomes durable.
    pub is_sync_held: bool,
    /// How often nobody gave what is damaged here.
    pub unrepaired: usize,
}

impl Node {
    /// Opens a node with what is on its disk.
    pub fn open(id: u64, fs: &SimFs, now: Now) -> Result<Self, OpenError> {
        let fs = fs.clone();
        let dir = open_dir(&fs);
        let rounds = Rounds::default();
        let reports = rounds.clone();
        let syncer = dir.start_syncer(Box::new(move |round| {
            reports.lock().unwrap().push(round.map(<[u64]>::to_vec));
        }));
        let mut node = Self {
            id: NodeId(id),
            fs,
            shard: Shard::new(config(), id, now),
            disk: Disk::new(dir.clone()),
            syncer,
            rounds,
            inputs: Vec::new(),
            answers: BTreeMap::new(),
            faults: Vec::new(),
            is_sync_held: false,
            unrepaired: 0,
        };
        for group in dir.logs()? {
            node.start(group)?;
        }
        Ok(node)
    }

    fn start(&mut self, group: LogId) -> Result<(), OpenError> {
        let opened = self.disk.open::<Replica>(group, replica(self.id.0), Durability::Fsync)?;
        self.inputs.push(opened.0.into_input());
        Ok(())
    }

    pub fn create(&mut self, members: Option<&Membership>) {
        self.disk.create::<Replica>(GROUP, members).unwrap();
        self.start(GROUP).unwrap();
    }

    pub fn group(&self) -> &quipu::raft::Group {
        self.shard.group(GROUP).unwrap()
    }

    pub fn ask(&mut self, ticket: u64, ask: Ask) {
        self.inputs.push(Input::Ask { group: GROUP, ticket: Ticket(ticket), ask });
    }

    pub fn append(&mut self, ticket: u64, payload: &'static [u8]) {
        self.ask(ticket, Ask::Append { batch: batch(payload), acks: Acks::Quorum });
    }

    /// Takes what waits, carries out what follows, and gives what is to be sent.
    pub fn step(&mut self, now: Now) -> storage::Result<Outputs<Replica>> {
        let mut out = Outputs::default();
        self.shard.step(now, &mut self.inputs, &mut out);
        let mut done = Vec::new();
        let shard = &self.shard;
        let mut checkpoint = |group, index| shard.checkpoint_at(group, index);
        let persists = std::mem::take(&mut out.effects.persists);
        self.disk.perform(persists, &mut checkpoint, &self.syncer, &mut done)?;
        self.inputs.extend(done.into_iter().map(Input::Stored));
        self.answers.extend(out.answers.drain(..));
        self.faults.extend(out.effects.faults.drain(..).map(|(_, fault)| fault));
        for read in std::mem::take(&mut out.effects.cold_reads) {
            let reader = self.disk.reader(read.group).unwrap();
            let entries = Some(read_cold(&reader, &read, Access::MayBlock).unwrap_or_default());
            let (group, first_index) = (read.group, read.first_index);
            self.inputs.push(Input::Fetched { group, first_index, entries });
        }
        for group in std::mem::take(&mut out.effects.bases) {
            let base = read_base(&self.disk.reader(group).unwrap()).unwrap();
            self.inputs.push(Input::Base { group, base });
        }
        self.mend(&mut out)?;
        if !self.is_sync_held {
            self.sync()?;
        }
        Ok(out)
    }

    /// Mends damaged logs, gives others what they lack, and looks for what is damaged.
    fn mend(&mut self, out: &mut Outputs<Replica>) -> storage::Result<()> {
        for supply in std::mem::take(&mut out.effects.supplies) {
            let reader = self.disk.reader(supply.read.group).unwrap();
            self.inputs.push(read_supply(&reader, &supply));
        }
        for mend in std::mem::take(&mut out.effects.mends) {
            self.inputs.extend(self.disk.mend(&mend)?);
        }
        self.unrepaired += out.effects.unrepaired.len();
        let (suspects, changed) = self.disk.look_for_damage();
        self.inputs.extend(changed);
        for (reader, suspect) in suspects {
            reader.examine(suspect)?;
        }
        Ok(())
    }

    pub fn sync(&mut self) -> storage::Result<()> {
        self.syncer.run_round();
        for round in std::mem::take(&mut *self.rounds.lock().unwrap()) {
            self.inputs.extend(round?.into_iter().map(Input::Stored));
        }
        Ok(())
    }

    pub fn retry(&mut self) -> storage::Result<()> {
        let mut done = Vec::new();
        let shard = &self.shard;
        let mut checkpoint = |group, index| shard.checkpoint_at(group, index);
        self.disk.retry(&mut checkpoint, &self.syncer, &mut done)?;
        self.inputs.extend(done.into_iter().map(Input::Stored));
        Ok(())
    }

    pub fn is_stalled(&self) -> bool {
        self.disk.stalled().next().is_some()
    }
}

/// Nodes that hear each other at once, unless they are cut off.
pub struct Cluster {
    pub nodes: BTreeMap<u64, Node>,
    /// Nodes that nobody hears and that hear nobody.
    pub cut: BTreeSet<u64>,
    /// Nodes that nobody hears.
    pub mute: BTreeSet<u64>,
    /// Nodes that hear everything but entries.
    pub starved: BTreeSet<u64>,
    /// Nodes that hear no heartbeat and no word to sleep.
    pub untold: BTreeSet<u64>,
    /// Nodes that stand still.
    pub paused: BTreeSet<u64>,
    pub time_ms: u64,
    tickets: u64,
}

impl Cluster {
    pub fn new(count: u64) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
            mute: BTreeSet::new(),
            starved: BTreeSet::new(),
            untold: BTreeSet::new(),
            paused: BTreeSet::new(),
            time_ms: 1000,
            tickets: 0,
        };
        for id in 1..=count {
            let mut node = Node::open(id, &SimFs::new(), cluster.now()).unwrap();
            node.create(Some(&voters(count)));
            node.step(cluster.now()).unwrap();
            cluster.nodes.insert(id, node);
        }
        cluster
    }

    pub fn now(&self) -> Now {
        let wall_ms = 1_700_000_000_000 + self.time_ms.cast_signed();
        Now { monotonic_ms: self.time_ms, wall_ms }
    }

    pub fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    /// Lets time pass.
    pub fn run(&mut self, ms: u64) {
        for _ in 0..ms / STEP_MS {
            self.time_ms += STEP_MS;
            let now = self.now();
            let ids: Vec<_> = self.nodes.keys().copied().collect();
            for id in ids {
                if self.paused.contains(&id) {
                    continue;
                }
                let node = self.nodes.get_mut(&id).unwrap();
                let mut out = node.step(now).unwrap();
                for (to, _, frame) in out.take_frames(CLUSTER, NodeId(id)) {
                    self.deliver(id, to.0, &frame);
                }
            }
        }
    }

    fn deliver(&mut self, from: u64, to: u64, frame: &Frame) {
        let is_cut = [from, to].iter().any(|id| self.cut.contains(id)) || self.mute.contains(&from);
        let Some(node) = self.nodes.get_mut(&to).filter(|_| !is_cut) else { return };
        let route = Route { cluster: CLUSTER, from: NodeId(from), to: NodeId(to) };
        let mut envelopes = Frame::decode(&route, frame.to_bytes()).unwrap();
        envelopes.retain(|envelope| envelope.entries.is_empty() || !self.starved.contains(&to));
        let is_news = |kind| matches!(kind, MessageKind::Heartbeat | MessageKind::Quiesce);
        envelopes.retain(|envelope| !is_news(envelope.kind) || !self.untold.contains(&to));
        node.inputs.push(Input::Envelopes(envelopes));
    }

    /// The leader of the highest term, if it takes proposals.
    pub fn leader(&self) -> Option<u64> {
        let leads = |node: &&Node| node.group().role() == Role::Leader;
        let leader = self.nodes.values().filter(leads).max_by_key(|node| node.group().term());
        leader.filter(|node| node.group().is_writable()).map(|node| node.id.0)
    }

    /// Waits for a leader that is not cut off.
    pub fn await_leader(&mut self) -> u64 {
        for _ in 0..1000 {
            if let Some(id) =
                self.leader().filter(|id| !self.cut.contains(id) && !self.mute.contains(id))
            {
                return id;
            }
            self.run(STEP_MS);
        }
        panic!("nobody leads");
    }

    /// Appends through the leader and waits until it is acknowledged.
    pub fn put(&mut self, payload: &'static [u8]) -> u64 {
        for _ in 0..20 {
            let leader = self.await_leader();
            self.tickets += 1;
            let ticket = 1_000_000 + self.tickets;
            self.node(leader).append(ticket, payload);
            self.run(300);
            let answer = self.node(leader).answers.get(&Ticket(ticket)).cloned();
            if let Some(Response::Appended { base_offset, .. }) = answer {
                return base_offset;
            }
        }
        panic!("nothing is acknowledged");
    }

    /// Cuts a node's power, or ends its process, and starts it again with `fs`.
    pub fn restart(&mut self, id: u64, fs: &SimFs) -> Result<(), OpenError> {
        self.nodes.remove(&id);
        let mut node = Node::open(id, fs, self.now())?;
        node.step(self.now())?;
        self.nodes.insert(id, node);
        Ok(())
    }

    /// All replicas have the same entries and the same state in the end.
    pub fn assert_alike(&mut self) {
        self.run(4000);
        let of = |node: &Node| {
            let group = node.group();
            let state = node.shard.machine(GROUP).unwrap().state().digest();
            (group.committed(), group.last_index(), state, node.disk.log(GROUP).unwrap().tip())
        };
        let first = of(self.nodes.values().next().unwrap());
        for node in self.nodes.values() {
            assert_eq!(of(node), first, "node {} differs", node.id);
        }
    }
}

/// The other two of three nodes.
pub fn others(id: u64) -> [u64; 2] {
    [[2, 3], [1, 3], [1, 2]][id as usize - 1]
}

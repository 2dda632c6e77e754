//! The world: nodes, network, clients and faults on one clock, from one seed.

mod damage;
mod durable;
mod ending;
mod faults;
mod network;
mod operator;
mod readers;
mod watch;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use quipu::partition::Response;
use quipu::raft::{ColdRead, Input, Membership, Outputs, Published, Ticket};
use quipu::storage;
use quipu::types::{ClusterId, LogId, NodeId, ReplicaId};
use uuid::Uuid;

use self::network::dropped_name;
use self::watch::Sighting;
use crate::clients::{Clients, Request};
use crate::node::Node;
use crate::oracle::Oracle;
use crate::plan::Plan;
use crate::rng::{Rng, mix};
use crate::tally::Tally;

const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(0xC1));
/// Within this time of healing everybody agrees, or logs are still being copied.
const HEAL_MS: u64 = 30_000;
/// Within this time something of a log is copied.
const COPY_MS: u64 = 5_000;
/// For so long after healing all nodes are there.
const BACK_MS: u64 = 200;
/// Within this time of healing new writes are acknowledged.
const PROGRESS_MS: u64 = 15_000;
const TIMEOUT_US: u64 = 700_000;

#[derive(Debug)]
enum Event {
    Step {
        node: NodeId,
        life: u64,
    },
    Sync {
        node: NodeId,
        life: u64,
    },
    Frame {
        from: NodeId,
        to: NodeId,
        bytes: Bytes,
    },
    Request(Request),
    Response {
        ticket: Ticket,
        response: Option<Response>,
    },
    Client(usize),
    Cold {
        node: NodeId,
        life: u64,
        read: ColdRead,
    },
    Base {
        node: NodeId,
        life: u64,
        group: LogId,
    },
    Start {
        node: NodeId,
    },
    Fault,
    Retry {
        node: NodeId,
        life: u64,
    },
    Tend {
        node: NodeId,
        life: u64,
    },
    /// The operator looks at the replicas and goes on with what was begun.
    Operate,
    /// Somebody reads.
    Read,
}

#[derive(Debug)]
pub struct World {
    plan: Plan,
    rng: Rng,
    time_us: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    /// Events by their number, which is also their turn at one time.
    queue: BTreeMap<u64, Event>,
    next_event: u64,
    nodes: BTreeMap<NodeId, Node>,
    groups: Vec<LogId>,
    clients: Clients,
    pub oracle: Oracle,
    /// Pairs between which nothing passes, from and to.
    cut: BTreeSet<(NodeId, NodeId)>,
    is_healed: bool,
    /// Where each group is to be, as the operator wants it.
    wanted: BTreeMap<LogId, BTreeSet<ReplicaId>>,
    incarnations: u64,
    /// Nodes that stay down after healing.
    dead: BTreeSet<NodeId>,
    /// Frames of long ago, each from and to whom.
    old_frames: Vec<(NodeId, NodeId, Bytes)>,
    /// How far replicas that are gone had their logs on disk.
    parted: BTreeMap<(LogId, ReplicaId), u64>,
    /// All memberships that were ever applied, by index.
    memberships: BTreeMap<(LogId, u64), Membership>,
    /// Digests of the states, by applied index.
    digests: BTreeMap<(LogId, u64), u32>,
    seen: BTreeMap<(NodeId, LogId), Sighting>,
    /// What each life of a node has last published.
    published: BTreeMap<(NodeId, u64, LogId), Published>,
    /// Terms that each replica was heard to speak of.
    terms_shown: BTreeSet<(ReplicaId, LogId, u64)>,
    /// Acknowledgments that were checked.
    acks: u64,
    trace: u64,
    pub tally: Tally,
}

fn group_id(n: u64) -> LogId {
    LogId(Uuid::from_u128(0x6000 + u128::from(n)))
}

impl World {
    pub fn new(seed: u64) -> Self {
        let plan = Plan::draw(seed);
        let mut rng = Rng::new(seed.wrapping_mul(31).wrapping_add(7));
        let groups: Vec<_> = (1..=plan.groups).map(group_id).collect();
        let clients = Clients::new(&plan, &groups, Rng::new(rng.next()));
        let nodes = (1..=plan.nodes).map(NodeId);
        let mut world = Self {
            nodes: nodes.map(|id| (id, Node::new(id))).collect(),
            plan,
            rng,
            time_us: 0,
            events: BinaryHeap::new(),
            queue: BTreeMap::new(),
            next_event: 0,
            groups,
            clients,
            oracle: Oracle::default(),
            cut: BTreeSet::new(),
            is_healed: false,
            wanted: BTreeMap::new(),
            incarnations: 1,
            dead: BTreeSet::new(),
            old_frames: Vec::new(),
            parted: BTreeMap::new(),
            memberships: BTreeMap::new(),
            digests: BTreeMap::new(),
            seen: BTreeMap::new(),
            published: BTreeMap::new(),
            terms_shown: BTreeSet::new(),
            acks: 0,
            trace: 0,
            tally: Tally::default(),
        };
        world.found();
        world
    }

    /// Starts all nodes and founds the groups, each on three of them mostly.
    fn found(&mut self) {
        let durability = self.plan.durability;
        let mut on: BTreeMap<NodeId, Vec<(LogId, ReplicaId, Membership)>> = BTreeMap::new();
        for (n, group) in self.groups.clone().into_iter().enumerate() {
            let count = match self.rng.below(10) {
                0 => 1,
                1..6 if self.plan.nodes == 5 => 5,
                _ => 3,
            };
            let homes = (0..count).map(|k| NodeId((n as u64 + k) % self.plan.nodes + 1));
            let replicas: Vec<_> = homes.map(|node| ReplicaId::new(node, 1)).collect();
            let members = Membership::of_voters(replicas.clone());
            for replica in &replicas {
                let part = (group, *replica, members.clone());
                on.entry(replica.node()).or_default().push(part);
            }
            self.wanted.insert(group, replicas.into_iter().collect());
        }
        for (id, node) in &mut self.nodes {
            node.start(0, durability).unwrap();
            for (group, replica, members) in on.remove(id).unwrap_or_default() {
                node.add_replica(group, replica, Some(&members), durability).unwrap();
            }
        }
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.begin(id);
        }
        for n in 0..self.clients.all.len() {
            self.after(n as u64 * 500, Event::Client(n));
        }
        self.after(self.plan.fault_every_ms * 1000, Event::Fault);
        self.after(200_000, Event::Operate);
        self.after(100_000, Event::Read);
    }

    fn after(&mut self, delay_us: u64, event: Event) {
        self.next_event += 1;
        self.queue.insert(self.next_event, event);
        self.events.push(Reverse((self.time_us + delay_us, self.next_event)));
    }

    /// Runs the whole plan: faults, then healing, then the last comparison. Returns a hash of
    /// everything that happened.
    pub fn run(&mut self) -> u64 {
        let faults_us = self.plan.faults_ms * 1000;
        self.run_until(faults_us, |_| false);
        self.heal();
        if self.plan.is_core {
            // Everybody comes back before some go for good, so that it is known who can.
            self.run_until(faults_us + BACK_MS * 1000, |_| false);
            self.leave_some_dead();
        }
        let progress_us = faults_us + PROGRESS_MS * 1000;
        let has_progress = self.run_until(progress_us, |world| world.clients.are_resting());
        assert!(
            has_progress,
            "a write is not stored {PROGRESS_MS} ms after everything was healed\n{}",
            self.describe()
        );
        self.tally.raise("slowest-progress-ms", (self.time_us - faults_us) / 1000);
        let mut limit_us = faults_us + HEAL_MS * 1000;
        let mut is_done = self.run_until(limit_us, Self::has_converged);
        // Whole logs may have to be copied one after the other: a replica comes to a node when the
        // one there is gone, and that may go when another one has its log.
        let mut missing = u64::MAX;
        while !is_done && self.missing() < missing {
            missing = self.missing();
            limit_us += COPY_MS * 1000;
            is_done = self.run_until(limit_us, Self::has_converged);
        }
        assert!(
            is_done,
            "no agreement {} ms after everything was healed, {} entries are missing\n{}",
            (limit_us - faults_us) / 1000,
            self.missing(),
            self.describe()
        );
        self.tally.raise("slowest-agreement-ms", (self.time_us - faults_us) / 1000);
        self.check();
        self.tally.add("simulated-ms", self.time_us / 1000);
        self.trace
    }

    fn run_until(&mut self, end_us: u64, is_done: impl Fn(&Self) -> bool) -> bool {
        let mut next_look_us = self.time_us;
        while let Some(Reverse((at, number))) = self.events.pop() {
            if at > end_us {
                self.events.push(Reverse((at, number)));
                break;
            }
            self.time_us = at;
            let event = self.queue.remove(&number).expect("an event happens once");
            self.handle(event);
            if self.is_healed && self.time_us >= next_look_us {
                next_look_us = self.time_us + 50_000;
                if is_done(self) {
                    return true;
                }
            }
        }
        false
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Step { node, life } => self.step(node, life),
            Event::Sync { node, life } => self.sync(node, life),
            Event::Frame { from, to, bytes } => self.deliver(from, to, &bytes),
            Event::Request(request) => self.request(request),
            Event::Response { ticket, response } => {
                self.note(ticket.0 << 1 | u64::from(response.is_some()));
                let nodes = self.plan.nodes;
                self.clients.answered(ticket, response, nodes);
            }
            Event::Client(n) => self.client(n),
            Event::Cold { node, life, read } => {
                if let Some(live) = self.live(node, life) {
                    live.read_cold(&read);
                    self.tally.add("cold-catch-up", 1);
                    self.wake(node, 0);
                }
            }
            Event::Base { node, life, group } => {
                if let Some(live) = self.live(node, life) {
                    live.read_base(group);
                    self.tally.add("snapshot-read", 1);
                    self.wake(node, 0);
                }
            }
            Event::Start { node } => self.start(node),
            Event::Fault => self.fault(),
            Event::Retry { node, life } => self.retry(node, life),
            Event::Tend { node, life } => self.tend(node, life),
            Event::Operate => self.operate(),
            Event::Read => self.read(),
        }
    }

    fn live(&mut self, node: NodeId, life: u64) -> Option<&mut crate::node::Live> {
        let node = self.nodes.get_mut(&node)?;
        if node.life == life { node.live.as_mut() } else { None }
    }

    fn note(&mut self, what: u64) {
        self.trace = mix(self.trace ^ mix(what) ^ self.time_us.rotate_left(32));
    }

    /// Lets a node that has started go on.
    fn begin(&mut self, id: NodeId) {
        let life = self.nodes[&id].life;
        self.after(100_000, Event::Tend { node: id, life });
        self.wake(id, 0);
    }

    /// Lets a node step soon.
    fn wake(&mut self, id: NodeId, delay_us: u64) {
        let time_us = self.time_us;
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let life = node.life;
        let pause = node.paused_until_us.saturating_sub(time_us);
        let Some(live) = &mut node.live else { return };
        if !std::mem::replace(&mut live.is_step_due, true) {
            self.after(delay_us.max(pause) + 20, Event::Step { node: id, life });
        }
    }

    fn step(&mut self, id: NodeId, life: u64) {
        let time_us = self.time_us;
        let node = self.nodes.get_mut(&id).expect("the node exists");
        if node.life != life || node.live.is_none() {
            return;
        }
        if node.paused_until_us > time_us {
            let pause = node.paused_until_us - time_us;
            self.after(pause, Event::Step { node: id, life });
            return;
        }
        let now = node.now(time_us);
        let live = node.live.as_mut().expect("the node runs");
        live.is_step_due = false;
        let inputs = live.inputs.len() as u64;
        self.note(id.0 << 32 | inputs);
        let live = self.live(id, life).expect("the node runs");
        match live.step(now) {
            Ok(out) => self.follow(id, out),
            Err(error) => return self.fail_stop(id, &error),
        }
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let slow = node.slow_until_us > time_us;
        let Some(live) = &mut node.live else { return };
        let next_us = (live.shard.next_tick_ms() * 1000).saturating_sub(time_us);
        let has_inputs = !live.inputs.is_empty();
        let is_full = live.is_full();
        let sync_due = !std::mem::replace(&mut live.is_sync_due, true);
        self.wake(id, if has_inputs { 0 } else { next_us });
        if sync_due {
            let sync_us = self.rng.between(50, self.plan.sync_us) * if slow { 100 } else { 1 };
            self.after(sync_us, Event::Sync { node: id, life });
        }
        if is_full {
            self.tally.add("append-stalled-by-full-disk", 1);
            self.after(50_000, Event::Retry { node: id, life });
        }
    }

    fn sync(&mut self, id: NodeId, life: u64) {
        let Some(live) = self.live(id, life) else { return };
        live.is_sync_due = false;
        let synced = live.sync();
        self.note(id.0 << 40 | life);
        match synced {
            Ok(()) => self.wake(id, 0),
            Err(error) => self.fail_stop(id, &error),
        }
    }

    fn tend(&mut self, id: NodeId, life: u64) {
        let now = self.nodes[&id].now(self.time_us);
        let Some(live) = self.live(id, life) else { return };
        match live.tend(now) {
            Ok(moved) => self.note_starts(id, "log-kept-small", moved),
            Err(error) => return self.fail_stop(id, &error),
        }
        self.after(100_000, Event::Tend { node: id, life });
        self.wake(id, 0);
    }

    fn retry(&mut self, id: NodeId, life: u64) {
        let time_us = self.time_us;
        let node = self.nodes.get_mut(&id).expect("the node exists");
        if node.full_until_us <= time_us {
            node.fs.set_capacity(None);
        }
        let Some(live) = self.live(id, life) else { return };
        let was_full = live.is_full();
        let retried = live.retry();
        let is_resumed = was_full && !live.is_full();
        self.tally.add("append-stalled-and-resumed", u64::from(is_resumed));
        match retried {
            Ok(()) => self.wake(id, 0),
            Err(error) => self.fail_stop(id, &error),
        }
    }

    /// A failed write or sync ends the process.
    fn fail_stop(&mut self, id: NodeId, error: &storage::Error) {
        use storage::Error::{Corrupt, Failed, Io, NoSpace};
        let is_damage = matches!(error, Corrupt(_)) && self.plan.damages();
        let is_expected = is_damage || matches!(error, Io { .. } | Failed { .. } | NoSpace { .. });
        assert!(is_expected, "node {id} fails with {error}");
        self.tally.add("sync-failed", u64::from(matches!(error, Io { .. } | Failed { .. })));
        self.tally.add("fail-stop", 1);
        self.nodes.get_mut(&id).expect("the node exists").crash();
        let down_us = self.rng.between(10, 500) * 1000;
        self.after(down_us, Event::Start { node: id });
    }

    fn start(&mut self, id: NodeId) {
        let (time_us, durability) = (self.time_us, self.plan.durability);
        let node = self.nodes.get_mut(&id).expect("the node exists");
        if node.live.is_some() || self.dead.contains(&id) {
            return;
        }
        node.fs.set_capacity(None);
        match node.start(time_us, durability) {
            Ok(()) => self.begin(id),
            Err(error) => self.fail_stop(id, &error),
        }
    }

    /// Sends, answers and writes down what a step gave.
    fn follow(&mut self, id: NodeId, mut out: Outputs<quipu::partition::Replica>) {
        let durability = self.plan.durability;
        for published in &out.published {
            self.note(published.committed_index ^ published.term << 32);
            let node = &self.nodes[&id];
            self.oracle.observe(node, published, durability);
            self.published.insert((id, node.life, published.group), *published);
        }
        for (group, fault) in std::mem::take(&mut out.effects.faults) {
            self.rewind(id, group, &fault);
        }
        if self.nodes[&id].live.is_none() {
            return;
        }
        for (reason, count) in &out.dropped {
            self.tally.add(dropped_name(*reason), *count);
        }
        for (to, lane, frame) in out.take_frames(CLUSTER, id) {
            self.send(id, to, lane, &frame);
        }
        for (ticket, response) in std::mem::take(&mut out.answers) {
            self.note(u64::from(crc32fast::hash(format!("{response:?}").as_bytes())));
            self.check_durable(id, ticket, &response);
            let delay_us = self.rng.between(50, self.plan.delay_us + 50);
            self.after(delay_us, Event::Response { ticket, response: Some(response) });
        }
        let life = self.nodes[&id].life;
        for read in std::mem::take(&mut out.effects.cold_reads) {
            let delay_us = self.rng.between(20, 3_000);
            self.after(delay_us, Event::Cold { node: id, life, read });
        }
        for group in std::mem::take(&mut out.effects.bases) {
            let delay_us = self.rng.between(20, 3_000);
            self.after(delay_us, Event::Base { node: id, life, group });
        }
        self.watch(id);
    }

    fn client(&mut self, n: usize) {
        if let Some(request) = self.clients.act(n) {
            let ticket = request.ticket;
            let delay_us = self.rng.between(30, self.plan.delay_us + 30);
            self.after(delay_us, Event::Request(request));
            self.after(TIMEOUT_US, Event::Response { ticket, response: None });
        }
        let think_us = self.rng.between(1, self.plan.think_ms * 2) * 1000;
        if !self.clients.is_resting(n) {
            self.after(think_us, Event::Client(n));
        }
    }

    fn request(&mut self, request: Request) {
        let Request { ticket, to, group, ask } = request;
        if let Some(live) = &mut self.nodes.get_mut(&to).expect("the node exists").live {
            live.inputs.push(Input::Ask { group, ticket, ask });
            self.wake(to, 0);
        }
    }
}

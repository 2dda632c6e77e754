//! The world: nodes, network, clients and faults on one clock, from one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use quipu::partition::Response;
use quipu::raft::{
    ColdRead, Divergence, Dropped, Durability, Fault, Frame, Input, Lane, Membership, Operation,
    Outputs, Role, Route, Ticket,
};
use quipu::storage::{self, FactKind, Policy};
use quipu::types::{ClusterId, LogId, NodeId, ReplicaId};
use uuid::Uuid;

use crate::clients::{Clients, Request, consumers_id};
use crate::node::Node;
use crate::oracle::Oracle;
use crate::plan::{Mischief, Plan};
use crate::rng::Rng;

const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(0xC1));
const HEAL_MS: u64 = 30_000;
const TIMEOUT_US: u64 = 700_000;
/// Tickets of the operator start here.
const OPERATOR: u64 = 1 << 40;

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
}

/// What happened in a run, for the counts of many.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub counts: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub fn add(&mut self, what: &'static str, count: u64) {
        *self.counts.entry(what).or_default() += count;
    }

    pub fn merge(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            self.add(what, *count);
        }
    }
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
            trace: 0,
            tally: Tally::default(),
        };
        world.found();
        world
    }

    /// Starts all nodes and founds the groups, each on three of them.
    fn found(&mut self) {
        let durability = self.plan.durability;
        let mut on: BTreeMap<NodeId, Vec<(LogId, ReplicaId, Membership)>> = BTreeMap::new();
        for (n, group) in self.groups.clone().into_iter().enumerate() {
            let count = if self.plan.nodes == 5 && self.rng.chance(500) { 5 } else { 3 };
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
        let limit_us = faults_us + HEAL_MS * 1000;
        let is_done =
            self.run_until(limit_us, |world| world.clients.are_resting() && world.has_converged());
        assert!(
            is_done,
            "no agreement {HEAL_MS} ms after everything was healed\n{}",
            self.describe()
        );
        self.check();
        self.tally.add("simulated-ms", self.time_us / 1000);
        self.tally.add("acknowledged", self.clients.acked);
        self.tally.add("unknown", self.clients.unknown);
        self.tally.add("retry-answered-after-doubt", self.clients.duplicates_answered);
        self.tally.add("zombie-producer-fenced", self.clients.zombies_fenced);
        self.tally.add("elections", self.oracle.elections);
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
                let nodes = self.plan.nodes;
                self.clients.answered(ticket, response, nodes);
            }
            Event::Client(n) => self.client(n),
            Event::Cold { node, life, read } => {
                if let Some(live) = self.live(node, life) {
                    live.read_cold(&read);
                    self.tally.add("cold-read", 1);
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
        }
    }

    fn live(&mut self, node: NodeId, life: u64) -> Option<&mut crate::node::Live> {
        let node = self.nodes.get_mut(&node)?;
        if node.life == life { node.live.as_mut() } else { None }
    }

    fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what).wrapping_mul(0x0100_0000_01B3) ^ self.time_us;
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
            self.tally.add("append-waits-for-space", 1);
            self.after(50_000, Event::Retry { node: id, life });
        }
    }

    fn sync(&mut self, id: NodeId, life: u64) {
        let Some(live) = self.live(id, life) else { return };
        live.is_sync_due = false;
        match live.sync() {
            Ok(()) => self.wake(id, 0),
            Err(error) => self.fail_stop(id, &error),
        }
    }

    fn tend(&mut self, id: NodeId, life: u64) {
        let Some(live) = self.live(id, life) else { return };
        if let Err(error) = live.tend() {
            return self.fail_stop(id, &error);
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
        match live.retry() {
            Ok(()) => self.wake(id, 0),
            Err(error) => self.fail_stop(id, &error),
        }
    }

    /// A failed write or sync ends the process.
    fn fail_stop(&mut self, id: NodeId, error: &storage::Error) {
        use storage::Error::{Failed, Io, NoSpace};
        let is_expected = matches!(error, Io { .. } | Failed { .. } | NoSpace { .. });
        assert!(is_expected, "node {id} fails with {error}");
        self.tally.add("fail-stop", 1);
        self.nodes.get_mut(&id).expect("the node exists").crash();
        let down_us = self.rng.between(10, 500) * 1000;
        self.after(down_us, Event::Start { node: id });
    }

    fn start(&mut self, id: NodeId) {
        let (time_us, durability) = (self.time_us, self.plan.durability);
        let node = self.nodes.get_mut(&id).expect("the node exists");
        if node.live.is_some() {
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
            self.oracle.observe(&self.nodes[&id], published, durability);
        }
        for (group, fault) in std::mem::take(&mut out.effects.faults) {
            self.rewind(id, group, &fault);
        }
        for (reason, count) in &out.dropped {
            self.tally.add(dropped_name(*reason), *count);
        }
        for (to, lane, frame) in out.take_frames(CLUSTER, id) {
            self.send(id, to, lane, &frame);
        }
        for (ticket, response) in std::mem::take(&mut out.answers) {
            self.check_durable(id, ticket, response);
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
    }

    fn send(&mut self, from: NodeId, to: NodeId, lane: Lane, frame: &Frame) {
        self.note(u64::from(crc32fast::hash(&frame.head)) ^ (lane as u64) << 40);
        let copies = 1 + u64::from(self.rng.chance(self.plan.doubled));
        for _ in 0..copies {
            if self.cut.contains(&(from, to)) || self.rng.chance(self.plan.lost) {
                continue;
            }
            let tail = if self.rng.chance(20) { 20 } else { 1 };
            let delay_us = self.rng.between(30, self.plan.delay_us) * tail;
            let mut bytes = frame.to_bytes();
            if self.rng.chance(self.plan.damaged) {
                let mut damaged = bytes.to_vec();
                let bit = self.rng.below(damaged.len() as u64 * 8);
                damaged[(bit / 8) as usize] ^= 1 << (bit % 8);
                bytes = damaged.into();
            }
            self.after(delay_us, Event::Frame { from, to, bytes });
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, bytes: &Bytes) {
        let Some(live) = &mut self.nodes.get_mut(&to).expect("the node exists").live else {
            return;
        };
        match Frame::decode(&Route { cluster: CLUSTER, from, to }, bytes) {
            Ok(envelopes) => live.inputs.push(Input::Envelopes(envelopes)),
            Err(_) => self.tally.add("frame-refused", 1),
        }
        self.wake(to, 0);
    }

    fn client(&mut self, n: usize) {
        if let Some(request) = self.clients.act(n) {
            let ticket = request.ticket;
            let delay_us = self.rng.between(30, self.plan.delay_us + 30);
            self.after(delay_us, Event::Request(request));
            self.after(TIMEOUT_US, Event::Response { ticket, response: None });
        }
        let think_us = self.rng.between(1, self.plan.think_ms * 2) * 1000;
        if !self.is_healed || !self.clients.is_resting(n) {
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

    fn heal(&mut self) {
        self.is_healed = true;
        self.cut.clear();
        (self.plan.lost, self.plan.doubled, self.plan.damaged) = (0, 0, 0);
        self.clients.rest();
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            let node = self.nodes.get_mut(&id).expect("the node exists");
            (node.paused_until_us, node.slow_until_us, node.full_until_us) = (0, 0, 0);
            node.fs.set_capacity(None);
            if node.live.is_none() {
                self.start(id);
            }
            if let Some(live) = &mut self.nodes.get_mut(&id).expect("the node exists").live {
                live.is_step_due = false;
            }
            self.wake(id, 0);
        }
        for n in 0..self.clients.all.len() {
            self.after(n as u64 * 500, Event::Client(n));
        }
    }

    /// The leader of a group, as the operator finds it.
    fn leader_of(&self, group: LogId) -> Option<NodeId> {
        let leads = |node: &&Node| {
            let found = node.live.as_ref().and_then(|live| live.shard.group(group));
            found.is_some_and(|group| group.role() == Role::Leader && group.is_writable())
        };
        let leaders = self.nodes.values().filter(leads);
        let term = |node: &&Node| node.live.as_ref().unwrap().shard.group(group).unwrap().term();
        leaders.max_by_key(term).map(|node| node.id)
    }

    /// Brings the replicas nearer to where they are wanted.
    fn operate(&mut self) {
        for group in self.groups.clone() {
            self.operate_on(group);
        }
        self.after(100_000, Event::Operate);
    }

    fn operate_on(&mut self, group: LogId) {
        let Some(leader) = self.leader_of(group) else { return };
        let live = self.nodes[&leader].live.as_ref().unwrap();
        let membership = live.shard.group(group).unwrap().membership().clone();
        let wanted = self.wanted[&group].clone();
        if membership.is_joint() {
            return;
        }
        for replica in &wanted {
            self.make_replica(group, *replica);
        }
        self.remove_strays(group, &membership);
        let Some(operations) = self.next_operations(group, &membership) else { return };
        self.tally.add("membership-step", 1);
        let live = self.nodes.get_mut(&leader).unwrap().live.as_mut().unwrap();
        live.inputs.push(Input::Change { group, ticket: Ticket(OPERATOR), operations });
        self.wake(leader, 0);
    }

    /// The next change that brings a group nearer to what is wanted.
    fn next_operations(&self, group: LogId, membership: &Membership) -> Option<Vec<Operation>> {
        let wanted = &self.wanted[&group];
        let present: BTreeSet<_> = membership.all().collect();
        let voters: BTreeSet<_> = membership.voters.iter().copied().collect();
        let is_made = |id: &&ReplicaId| self.nodes[&id.node()].replicas.get(&group) == Some(*id);
        if let Some(new) = wanted.difference(&present).find(is_made) {
            return Some(vec![Operation::Learner(*new)]);
        }
        // A replica votes once it has nearly all there is.
        let ready: BTreeSet<_> = wanted
            .difference(&voters)
            .copied()
            .filter(|id| present.contains(id) && self.has_caught_up(group, *id))
            .collect();
        let is_last_step = wanted.difference(&voters).all(|id| ready.contains(id));
        let come = ready.iter().map(|id| Operation::Voter(*id));
        if is_last_step && voters != *wanted {
            let go = voters.difference(wanted).map(|id| Operation::Remove(*id));
            return Some(come.chain(go).collect());
        }
        if !ready.is_empty() {
            return Some(come.collect());
        }
        if let Some(gone) = present.difference(wanted).find(|id| !is_made(id)) {
            return Some(vec![Operation::Remove(*gone)]);
        }
        // A node has one replica of a group at a time: the old one goes first.
        let homes: BTreeSet<_> = wanted.iter().map(|id| id.node()).collect();
        let is_in_the_way = |id: &&ReplicaId| homes.contains(&id.node()) && !wanted.contains(id);
        // Not when those that stay have no majority any more, because a disk of theirs is gone.
        let has_others = |id: &&ReplicaId| {
            let rest: Vec<_> = voters.iter().filter(|voter| voter != id).collect();
            let alive = rest.iter().filter(|voter| is_made(voter)).count();
            !voters.contains(id) || 2 * alive > rest.len()
        };
        let other = present.iter().filter(is_in_the_way).find(has_others);
        let stray = membership.learners.iter().find(|id| !wanted.contains(id));
        other.or(stray).map(|id| vec![Operation::Remove(*id)])
    }

    fn has_caught_up(&self, group: LogId, replica: ReplicaId) -> bool {
        let settled = self.oracle.settled.get(&group).and_then(|settled| settled.last_key_value());
        let node = &self.nodes[&replica.node()];
        let live = node.live.as_ref().filter(|_| node.replicas.get(&group) == Some(&replica));
        let found = live.and_then(|live| live.shard.group(group));
        found.is_some_and(|found| found.persisted() + 10 >= settled.map_or(0, |(index, _)| *index))
    }

    fn make_replica(&mut self, group: LogId, replica: ReplicaId) {
        let durability = self.plan.durability;
        let node = self.nodes.get_mut(&replica.node()).expect("the node exists");
        let has_one = node.live.as_ref().is_some_and(|live| live.disk.log(group).is_some());
        let is_ready = node.full_until_us <= self.time_us;
        if node.live.is_none() || has_one || !is_ready {
            return;
        }
        match node.add_replica(group, replica, None, durability) {
            Ok(()) => self.wake(replica.node(), 0),
            // The operator comes by again.
            Err(storage::Error::NoSpace { .. }) => {}
            Err(error) => self.fail_stop(replica.node(), &error),
        }
    }

    /// True if a majority of the voters has the membership on disk. Before that, replicas that it
    /// does not know may still be needed to find out that it holds.
    fn is_on_disk(&self, group: LogId, membership: &Membership) -> bool {
        membership.is_quorum(|voter| {
            let live = self.nodes[&voter.node()].live.as_ref();
            live.is_some_and(|live| {
                let journal = live.disk.dir().journal();
                let value = journal.get(group, FactKind::Membership);
                let found = value.and_then(|value| Membership::decode(&value));
                let has_it = found.is_some_and(|found| found.index >= membership.index);
                (has_it || membership.index == 0) && !journal.is_dirty()
            })
        })
    }

    /// Removes replicas that the settled membership does not know.
    fn remove_strays(&mut self, group: LogId, membership: &Membership) {
        if !self.is_on_disk(group, membership) {
            return;
        }
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            let node = self.nodes.get_mut(&id).expect("the node exists");
            let Some(replica) = node.replicas.get(&group).copied() else { continue };
            let is_known = membership.contains(replica) || self.wanted[&group].contains(&replica);
            let has_group =
                node.live.as_ref().is_some_and(|live| live.shard.group(group).is_some());
            if !is_known && has_group {
                node.remove_replica(group);
                self.tally.add("replica-removed", 1);
                self.wake(id, 0);
            }
        }
    }

    fn fault(&mut self) {
        if self.is_healed {
            return;
        }
        let every_us = self.plan.fault_every_ms * 1000;
        let next_us = self.rng.between(1, 2 * every_us);
        self.after(next_us, Event::Fault);
        let mut rng = self.rng.clone();
        let drawn = self.plan.draw_fault(&mut rng);
        self.rng = rng;
        if let Some(fault) = drawn {
            self.inflict(fault);
        }
    }

    fn inflict(&mut self, fault: Mischief) {
        let id = NodeId(self.rng.between(1, self.plan.nodes));
        let long_us = self.rng.between(20, 2_000) * 1000;
        let time_us = self.time_us;
        match fault {
            Mischief::Crash => self.take_down(id, long_us, false),
            Mischief::PowerCut => self.take_down(id, long_us, true),
            Mischief::PowerCutOfAll => {
                self.tally.add("power-cut-of-all", 1);
                for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                    let down_us = self.rng.between(20, 600) * 1000;
                    self.take_down(id, down_us, true);
                }
            }
            Mischief::Partition => {
                self.tally.add("partition", 1);
                self.cut.clear();
                if self.rng.chance(800) {
                    self.cut_in_two();
                }
            }
            Mischief::OneWayCut => {
                self.tally.add("one-way-cut", 1);
                let other = NodeId(self.rng.between(1, self.plan.nodes));
                self.cut.insert((id, other));
            }
            Mischief::Pause => {
                self.tally.add("pause", 1);
                let pause_us = if self.rng.chance(50) { 60_000_000 } else { long_us };
                self.nodes.get_mut(&id).unwrap().paused_until_us = time_us + pause_us;
            }
            Mischief::SlowDisk => {
                self.tally.add("slow-disk", 1);
                self.nodes.get_mut(&id).unwrap().slow_until_us = time_us + long_us;
            }
            Mischief::FullDisk => self.fill_disk(id, long_us),
            Mischief::FailedSync => {
                let skip = self.rng.below(10);
                self.nodes[&id].fs.fail_sync(skip);
            }
            Mischief::Wipe => self.wipe(id),
            Mischief::Change => self.change_wanted(),
            Mischief::Transfer => self.transfer(),
            Mischief::Retention => self.retain(id),
        }
        let skew = self.rng.between(0, 4_000).cast_signed() - 2_000;
        if self.rng.chance(100) {
            self.nodes.get_mut(&id).unwrap().skew_ms = skew * 1000;
        }
    }

    fn take_down(&mut self, id: NodeId, down_us: u64, is_power_cut: bool) {
        let mut rng = Rng::new(self.rng.next());
        let node = self.nodes.get_mut(&id).expect("the node exists");
        if node.live.is_none() {
            return;
        }
        if is_power_cut {
            node.power_cut(&mut rng);
        } else {
            node.crash();
        }
        node.paused_until_us = 0;
        self.tally.add(if is_power_cut { "power-cut" } else { "crash" }, 1);
        self.after(down_us, Event::Start { node: id });
    }

    fn cut_in_two(&mut self) {
        let side: BTreeSet<_> =
            self.nodes.keys().copied().filter(|_| self.rng.chance(500)).collect();
        for a in self.nodes.keys() {
            for b in self.nodes.keys() {
                if side.contains(a) != side.contains(b) {
                    self.cut.insert((*a, *b));
                }
            }
        }
    }

    fn fill_disk(&mut self, id: NodeId, long_us: u64) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        if let Some(live) = &node.live {
            self.tally.add("full-disk", 1);
            node.full_until_us = self.time_us + long_us;
            node.fs.set_capacity(Some(node.fs.used_bytes() + 2_000));
            let life = node.life;
            let _ = live;
            self.after(long_us, Event::Retry { node: id, life });
        }
    }

    /// Takes a disk away. Only when every group it has a part in can spare it.
    fn wipe(&mut self, id: NodeId) {
        let durability = self.plan.durability;
        let has_all_others = self.nodes.values().all(|node| node.live.is_some() || node.id == id);
        let can_spare = |group: &LogId| self.is_steady(*group) && self.wanted[group].len() >= 3;
        if !has_all_others || !self.nodes[&id].replicas.keys().all(can_spare) {
            return;
        }
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let lost = node.replicas.clone();
        node.wipe();
        node.start(self.time_us, durability).unwrap();
        self.tally.add("wipe", 1);
        for (group, replica) in lost {
            self.incarnations += 1;
            let wanted = self.wanted.get_mut(&group).expect("the group exists");
            if wanted.remove(&replica) {
                wanted.insert(ReplicaId::new(id, self.incarnations));
            }
        }
        self.begin(id);
    }

    /// True if every wanted replica has all that is committed, on disk, and nobody else counts.
    fn is_steady(&self, group: LogId) -> bool {
        let settled = self.oracle.settled.get(&group).and_then(|s| s.last_key_value());
        let index = settled.map_or(0, |(index, _)| *index);
        self.wanted[&group].iter().all(|replica| {
            let node = &self.nodes[&replica.node()];
            let found = node.live.as_ref().and_then(|live| {
                (node.replicas.get(&group) == Some(replica)).then_some(())?;
                live.shard.group(group)
            });
            found.is_some_and(|found| {
                let voters: BTreeSet<_> = found.membership().voters.iter().copied().collect();
                let is_plain =
                    !found.membership().is_joint() && found.membership().learners.is_empty();
                found.persisted() >= index && is_plain && voters == self.wanted[&group]
            })
        })
    }

    /// Moves one replica of a group to another node.
    fn change_wanted(&mut self) {
        let group = *self.rng.pick(&self.groups.clone()).expect("there is a group");
        let wanted = self.wanted[&group].clone();
        let free: Vec<_> = self
            .nodes
            .keys()
            .copied()
            .filter(|id| wanted.iter().all(|replica| replica.node() != *id))
            .collect();
        let replicas: Vec<_> = wanted.iter().copied().collect();
        let from = *self.rng.pick(&replicas).expect("a group has replicas");
        self.incarnations += 1;
        let wanted = self.wanted.get_mut(&group).expect("the group exists");
        match self.rng.pick(&free) {
            Some(to) => {
                wanted.remove(&from);
                wanted.insert(ReplicaId::new(*to, self.incarnations));
            }
            None if wanted.len() > 1 => {
                wanted.remove(&from);
            }
            None => return,
        }
        if self.rng.chance(300) {
            let homes: BTreeSet<_> = wanted.iter().map(|replica| replica.node()).collect();
            let other = self.nodes.keys().find(|id| !homes.contains(id));
            if let Some(other) = other {
                self.incarnations += 1;
                wanted.insert(ReplicaId::new(*other, self.incarnations));
            }
        }
        self.tally.add("membership-wanted", 1);
    }

    /// A replica that kept what a majority lost takes it back.
    fn rewind(&mut self, id: NodeId, group: LogId, fault: &Fault) {
        let index = match fault {
            Fault::Diverged(Divergence::Committed { index, .. }) => *index,
            _ => u64::MAX,
        };
        assert!(
            self.plan.durability == Durability::Memory && index < u64::MAX,
            "node {id}: {group} stopped: {fault}"
        );
        self.tally.add("rewound-in-memory-class", 1);
        let node = self.nodes.get_mut(&id).expect("the node exists");
        match node.rewind(group, index, Durability::Memory) {
            Ok(()) => self.wake(id, 0),
            Err(error) => self.fail_stop(id, &error),
        }
    }

    fn transfer(&mut self) {
        let group = *self.rng.pick(&self.groups.clone()).expect("there is a group");
        let Some(leader) = self.leader_of(group) else { return };
        let wanted: Vec<_> = self.wanted[&group].iter().copied().collect();
        let to = *self.rng.pick(&wanted).expect("a group has replicas");
        let live = self.nodes.get_mut(&leader).unwrap().live.as_mut().unwrap();
        live.inputs.push(Input::Transfer { group, ticket: Ticket(OPERATOR), to });
        self.tally.add("transfer", 1);
        self.wake(leader, 0);
    }

    fn retain(&mut self, id: NodeId) {
        let Some(bytes) = self.plan.retention_bytes else { return };
        let policy = Policy { bytes: Some(bytes), ..Policy::default() };
        let now = self.nodes[&id].now(self.time_us);
        let Some(live) = &mut self.nodes.get_mut(&id).expect("the node exists").live else {
            return;
        };
        // Inputs that wait could still move what is settled.
        match live.retain(&policy, now) {
            Ok(moved) => self.tally.add("log-start-moved", moved),
            Err(error) => return self.fail_stop(id, &error),
        }
        self.wake(id, 0);
    }

    /// Asserts that a majority has what is acknowledged on disk.
    fn check_durable(&mut self, _id: NodeId, _ticket: Ticket, _response: Response) {}

    /// True if all wanted replicas agree and have nothing left to do.
    fn has_converged(&self) -> bool {
        self.groups.iter().all(|group| self.group_has_converged(*group))
    }

    fn group_has_converged(&self, group: LogId) -> bool {
        let Some(leader) = self.leader_of(group) else { return false };
        let lead = self.nodes[&leader].live.as_ref().unwrap().shard.group(group).unwrap();
        let is_alike = self.wanted[&group].iter().all(|replica| {
            let node = &self.nodes[&replica.node()];
            let live = node.live.as_ref().filter(|_| node.replicas.get(&group) == Some(replica));
            live.and_then(|live| live.shard.group(group)).is_some_and(|found| {
                found.committed() == lead.last_index()
                    && found.last_index() == lead.last_index()
                    && found.persisted() == lead.last_index()
            })
        });
        let voters: BTreeSet<_> = lead.membership().voters.iter().copied().collect();
        is_alike && voters == self.wanted[&group] && !lead.membership().is_joint()
    }

    /// The last comparison, when everything is quiet.
    fn check(&self) {
        self.clients.check(&self.oracle);
        for group in &self.groups {
            let mut seen: Option<(u32, u32)> = None;
            for replica in &self.wanted[group] {
                let live = self.nodes[&replica.node()].live.as_ref().unwrap();
                let machine = live.shard.machine(*group).unwrap();
                let chain = live.disk.log(*group).unwrap().tip().chain;
                let found = (machine.state().digest(), chain);
                let first = *seen.get_or_insert(found);
                assert_eq!(found, first, "{group}: replica {replica} has another state or history");
                let progress = machine.state().progress().get(&consumers_id());
                let committed = progress.and_then(|g| g.position.as_ref()).map(|p| p.offset);
                self.clients.check_progress(*group, committed);
            }
        }
    }

    fn describe(&self) -> String {
        let mut text = format!("{:?}\n", self.plan);
        for group in &self.groups {
            text += &format!("{group}, wanted {:?}\n", self.wanted[group]);
            for node in self.nodes.values() {
                let live = node.live.as_ref().and_then(|live| live.shard.group(*group));
                text += &format!("  node {}: {:?} {live:?}", node.id, node.replicas.get(group));
                text += &format!(" {:?}\n", live.map(quipu::raft::Group::membership));
            }
        }
        text + &format!("{:?}", self.clients.all)
    }
}

fn dropped_name(reason: Dropped) -> &'static str {
    match reason {
        Dropped::UnknownGroup => "dropped-unknown-group",
        Dropped::WrongReplica => "dropped-wrong-replica",
        Dropped::Busy => "dropped-busy",
        Dropped::FutureTerm => "dropped-future-term",
        Dropped::OutOfRange => "dropped-out-of-range",
        Dropped::Stranger => "dropped-stranger",
    }
}

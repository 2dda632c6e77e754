//! Three replicas in one process beside a loop that writes and syncs the same bytes three times,
//! and what ten thousand idle partitions cost.
//!
//! `cargo bench --bench replication` ends with a table of ratios. The replicas have real files and
//! threads; between them are channels instead of a network.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on fails")]
#![allow(dead_code, unreachable_pub, reason = "the cluster is shared with the tests")]

mod contest;
mod place;
#[path = "../tests/replication/support.rs"]
mod support;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use contest::{Contest, Scoreboard, median};
use criterion::Criterion;
use place::Place;
use quipu::partition::{Acks, Ask, Batch, Handle, Replica, Response};
use quipu::raft::{
    Boot, Config, Durability, Frame, HardState, Input, Look, Machine as _, Membership, Now,
    Outputs, Reply, Route, Shard, TermStart,
};
use quipu::storage::{self, Policy, Tip};
use quipu::types::{NodeId, ReplicaId};
use support::{CLUSTER, Cluster, Setup, batch, partition, real_files, wait_for};
use tokio::sync::oneshot;

const KIB: usize = 1024;
const BATCH_BYTES: usize = 64 * KIB;
const IN_FLIGHT: usize = 8;
const BATCHES: usize = 128;
const IDLE: u128 = 10_000;
const BUSY: u128 = 100;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(4))
        .without_plots()
        .configure_from_args();
    let mut board = Scoreboard::default();
    let place = Place::new();
    if std::env::args().any(|arg| arg == "busy") {
        return busy_among_idle(place.path());
    }
    replicate(&mut criterion, &mut board, place.path());
    criterion.final_summary();
    board.print();
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    idle_shard();
    busy_among_idle(place.path());
}

fn setup(partitions: u128) -> Setup {
    let storage = storage::Config { low_water_bytes: 0, reserve_bytes: 0, ..Default::default() };
    let (durability, raft, fs) = (Durability::Fsync, Config::default(), real_files());
    Setup { partitions, durability, storage, raft, fs }
}

/// A lap stores some batches on three replicas, eight in flight.
fn replicate(criterion: &mut Criterion, board: &mut Scoreboard, root: &Path) {
    let cluster = Cluster::found(&root.join("trio"), &setup(1));
    let batches: Vec<Batch> = (0..16).map(|n| batch(n, BATCH_BYTES)).collect();
    let mut floor = Floor::new(root);
    let floor_lap = &mut || time(|| (0..BATCHES / IN_FLIGHT).for_each(|_| floor.group(&batches)));
    let quipu_lap = &mut || {
        let leader = cluster.leader(0);
        let host = cluster.host(leader.status().leader.unwrap().node());
        let elapsed = time(|| append(&[(leader, host)], &batches, BATCHES));
        for node in 1..=3 {
            let policy = Policy { bytes: Some(192 << 20), ..Policy::default() };
            cluster.host(NodeId(node)).retain(partition(0), policy).unwrap();
        }
        elapsed
    };
    let (operations, bytes) = (BATCHES as u64, (BATCHES * BATCH_BYTES) as u64);
    let parameters = format!("replicas=3/in-flight={IN_FLIGHT}/size={}KiB", BATCH_BYTES / KIB);
    let contest = Contest { group: "replicate", parameters, operations, bytes, target: 0.70 };
    board.compare(criterion, &contest, &mut [("floor", floor_lap), ("quipu", quipu_lap)]);
}

type Door<'a> = (&'a Handle, &'a std::sync::Arc<quipu::raft::Host<Replica>>);

/// Appends `count` batches to each partition in turn, eight in flight for each.
fn append(doors: &[Door<'_>], batches: &[Batch], count: usize) {
    let mut waiting = VecDeque::new();
    let settle = |receiver: oneshot::Receiver<Response>| {
        let response = receiver.blocking_recv().unwrap();
        assert!(matches!(response, Response::Appended { .. }), "{response:?}");
    };
    for n in 0..count {
        for (handle, host) in doors {
            if waiting.len() == IN_FLIGHT * doors.len() {
                waiting.pop_front().map(settle);
            }
            let (sender, receiver) = oneshot::channel();
            let batch = batches[n % batches.len()].clone();
            let ask = Ask::Append { batch, acks: Acks::Quorum };
            host.ask(handle.group(), ask, Reply { sender, hold: None }).unwrap();
            waiting.push_back(receiver);
        }
    }
    waiting.into_iter().for_each(settle);
}

/// Three files that were written before, written and synced in turn.
struct Floor {
    files: Vec<File>,
    position: u64,
}

impl Floor {
    const FILE_BYTES: usize = 64 << 20;

    fn new(root: &Path) -> Self {
        let make = |n| {
            let path = root.join(format!("floor-{n}"));
            let file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
            file.write_all_at(&vec![0; Self::FILE_BYTES], 0).unwrap();
            file.sync_all().unwrap();
            file
        };
        Self { files: (0..3).map(make).collect(), position: 0 }
    }

    fn group(&mut self, batches: &[Batch]) {
        if self.position as usize + IN_FLIGHT * BATCH_BYTES > Self::FILE_BYTES {
            self.position = 0;
        }
        for file in &self.files {
            for (n, batch) in batches.iter().take(IN_FLIGHT).enumerate() {
                let position = self.position + (n * BATCH_BYTES) as u64;
                file.write_all_at(&batch.payload, position).unwrap();
            }
        }
        self.files.iter().for_each(|file| file.sync_data().unwrap());
        self.position += (IN_FLIGHT * BATCH_BYTES) as u64;
    }
}

/// Steps three shards of idle partitions in virtual time, without disks, and times one of them.
fn idle_shard() {
    let before = resident_bytes();
    let mut trio = IdleTrio::new(IDLE);
    trio.run(5_000);
    let memory = (resident_bytes() - before) / (3 * IDLE as u64);
    trio.steps.clear();
    trio.run(5_000);
    let leaders = trio.leaders();
    let mut steps = std::mem::take(&mut trio.steps);
    let busy: Duration = steps.iter().sum();
    let (count, longest) = (steps.len(), steps.iter().max().copied().unwrap_or_default());
    println!("\nidle shard, {IDLE} partitions, {leaders} led, steps of 5 virtual seconds:");
    println!("  {count} steps, median {:?}, longest {longest:?} (target 1 ms)", median(&mut steps));
    println!("  {:.2} % of a core", busy.as_secs_f64() / 5.0 * 100.0);
    println!("  {memory} bytes of memory for each replica (target 16 KiB)");
}

struct IdleTrio {
    shards: Vec<Shard<Replica>>,
    inputs: Vec<Vec<Input<Replica>>>,
    now_ms: u64,
    /// How long each step of the first shard took.
    steps: Vec<Duration>,
}

impl IdleTrio {
    fn new(groups: u128) -> Self {
        let now = Now { monotonic_ms: 0, wall_ms: 0 };
        let shards = (1..=3).map(|n| Shard::new(Config::default(), n, now)).collect();
        let inputs = (1..=3)
            .map(|node| {
                let open = |n| Input::Open(Box::new(boot(n, NodeId(node))), Replica::new(1));
                (0..groups).map(open).collect()
            })
            .collect();
        Self { shards, inputs, now_ms: 0, steps: Vec::new() }
    }

    fn run(&mut self, millis: u64) {
        let end = self.now_ms + millis;
        while self.now_ms < end {
            self.now_ms += 10;
            // What a step sends arrives and is answered within the same ten milliseconds.
            for _ in 0..4 {
                (0..3).for_each(|n| self.step(n));
            }
        }
    }

    fn step(&mut self, n: usize) {
        let now = Now { monotonic_ms: self.now_ms, wall_ms: self.now_ms.cast_signed() };
        let mut out = Outputs::default();
        let started = Instant::now();
        self.shards[n].step(now, &mut self.inputs[n], &mut out);
        if n == 0 {
            self.steps.push(started.elapsed());
        }
        let stored = out.effects.persists.iter().map(|persist| Input::Stored(persist.token));
        self.inputs[n].extend(stored);
        let from = NodeId(n as u64 + 1);
        for (to, _, frame) in out.take_frames(CLUSTER, from) {
            let route = Route { cluster: CLUSTER, from, to };
            let envelopes = Frame::decode(&route, frame.to_bytes()).unwrap();
            self.inputs[to.0 as usize - 1].push(Input::Envelopes(envelopes));
        }
    }

    fn leaders(&self) -> usize {
        let is_led = |id| self.shards[0].group(id).is_some_and(quipu::raft::Group::is_writable);
        self.shards[0].groups().filter(|id| is_led(*id)).count()
    }
}

fn boot(n: u128, node: NodeId) -> Boot {
    let start = Tip { index: 1, term: 1, ..Tip::EMPTY };
    Boot {
        id: partition(n),
        replica: ReplicaId::new(node, 1),
        durability: Durability::Fsync,
        hard_state: HardState { term: 1, vote: 0, commit: 1, promise: None },
        membership: Membership::of_voters([1, 2, 3].map(|n| ReplicaId::new(NodeId(n), 1))),
        start,
        terms: vec![TermStart { term: 1, first_index: 1 }],
        applied: start,
        entries: Vec::new(),
    }
}

/// Bytes of this process in memory.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A hundred busy partitions alone, and beside ten thousand idle ones, in turns.
fn busy_among_idle(root: &Path) {
    let alone_root = root.join("alone");
    let among_root = root.join("among");
    let (alone, among) = (setup(BUSY), setup(BUSY + IDLE));
    drop(Cluster::found(&alone_root, &alone));
    let started = Instant::now();
    drop(Cluster::found(&among_root, &among));
    println!("\n{} partitions made, started and stopped in {:?}", BUSY + IDLE, started.elapsed());
    let mut laps: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for _ in 0..3 {
        laps.entry("alone").or_default().extend(busy_laps(&alone_root, &alone));
        laps.entry("among").or_default().extend(busy_laps(&among_root, &among));
    }
    let alone = median(laps.get_mut("alone").unwrap());
    let among = median(laps.get_mut("among").unwrap());
    let share = 100.0 * alone.as_secs_f64() / among.as_secs_f64();
    println!("{BUSY} busy partitions, 10 batches of 4 KiB each: alone {alone:?}, beside {IDLE}");
    println!("idle ones {among:?}: {share:.0} % of the speed (target 80 %)");
}

fn busy_laps(root: &Path, setup: &Setup) -> Vec<Duration> {
    let cluster = Cluster::start(root, setup);
    for n in 0..setup.partitions {
        cluster.leader(n as usize);
    }
    let batches = [batch(1, 4 * KIB)];
    let doors: Vec<_> = (0..BUSY as usize)
        .map(|n| {
            let leader = cluster.leader(n);
            (leader, cluster.host(leader.status().leader.unwrap().node()))
        })
        .collect();
    append(&doors, &batches, 10);
    let is_asleep = |n: u128| {
        (1..=3).all(|node| {
            let look = cluster.host(NodeId(node)).inspect(partition(n)).unwrap();
            matches!(look.blocking_recv().unwrap(), Look::Runs(found) if found.is_quiescent)
        })
    };
    wait_for("sleep of the idle partitions", || {
        (BUSY..setup.partitions).all(is_asleep).then_some(())
    });
    append(&doors, &batches, 10);
    (0..7).map(|_| time(|| append(&doors, &batches, 10))).collect()
}

fn time(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

//! One node beside a bare tonic server that is sent and sends the same messages; and what a node
//! takes that has nothing to do.
//!
//! `cargo bench --bench node` starts all servers that it needs and ends with a table of ratios.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on fails")]

mod bare;
mod contest;
mod place;
#[allow(dead_code, reason = "another bench has clusters and conversations")]
mod processes;
#[allow(dead_code, reason = "another bench times each answer")]
mod stream;

use std::path::Path;
use std::time::Duration;

use contest::{Contest, Scoreboard, median};
use criterion::Criterion;
use place::Place;
use processes::Nodes;
use quipu::proto::client::CreateTopicRequest;
use stream::{BATCH_BYTES, Source, connect, consume, produce};
use tokio::runtime::Runtime;

/// Batches of a lap.
const BATCHES: usize = 2048;
/// Batches on their way: more than the windows of a stream hold.
const IN_FLIGHT: usize = 128;
/// Batches of a message: what Quipu sends at a time.
const BATCHES_SENT: usize = 16;
/// The topic that is written to, again and again, and the one that has a lap of batches to be read.
const WRITTEN: &str = "written";
const READ: &str = "read";
/// What a topic keeps.
const KEPT_BYTES: usize = 2 * BATCHES * BATCH_BYTES;
const STARTS: usize = 11;
/// How long a node is left alone until its memory is looked at.
const IDLE: Duration = Duration::from_secs(3);

fn main() {
    processes::play_a_part(&[(bare::ROLE, bare::play)]);
    let mut criterion = contest::of_servers();
    let mut board = Scoreboard::default();
    let place = Place::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    streams(&mut criterion, &mut board, &runtime, place.path());
    criterion.final_summary();
    if !std::env::args().any(|arg| arg == "--test") {
        idle(&mut board, place.path());
    }
    board.print();
}

fn streams(criterion: &mut Criterion, board: &mut Scoreboard, runtime: &Runtime, root: &Path) {
    let nodes = Nodes::start(runtime, root, 1);
    let (_floor, floor) = bare::start(root);
    for topic in [WRITTEN, READ] {
        runtime.block_on(nodes.client(runtime).create_topic(in_memory(topic))).unwrap();
    }
    let mut floor = runtime.block_on(connect(&floor));
    let mut quipu = runtime.block_on(connect(&nodes.addresses[0]));
    let batch = stream::batch();
    let load = (BATCHES, IN_FLIGHT);

    let floor_lap = &mut || runtime.block_on(produce(&mut floor, WRITTEN, &batch, load)).took;
    let quipu_lap = &mut || runtime.block_on(produce(&mut quipu, WRITTEN, &batch, load)).took;
    let contest = contest("produce", 0.65);
    board.compare(criterion, &contest, &mut [("floor", floor_lap), ("quipu", quipu_lap)]);

    runtime.block_on(produce(&mut quipu, READ, &batch, load));
    let few = Source::Bare { batches: 1 };
    let many = Source::Bare { batches: BATCHES_SENT };
    let mut floor_too = floor.clone();
    let few_lap = &mut || runtime.block_on(consume(&mut floor, &few, BATCHES));
    let many_lap = &mut || runtime.block_on(consume(&mut floor_too, &many, BATCHES));
    let topic = Source::Topic(READ);
    let quipu_lap = &mut || runtime.block_on(consume(&mut quipu, &topic, BATCHES));
    let contest = self::contest("consume", 0.70);
    let sides: &mut [(&str, contest::Lap<'_>)] =
        &mut [("floor", few_lap), ("floor-1MiB", many_lap), ("quipu", quipu_lap)];
    board.compare(criterion, &contest, sides);
}

fn in_memory(topic: &str) -> CreateTopicRequest {
    let config = [("durability", "memory".to_owned()), ("retention_bytes", KEPT_BYTES.to_string())];
    CreateTopicRequest {
        name: topic.to_owned(),
        partitions: 1,
        replicas: 1,
        config: config.map(|(key, value)| (key.to_owned(), value)).into(),
        ..CreateTopicRequest::default()
    }
}

fn contest(group: &'static str, target: f64) -> Contest {
    let parameters = format!("durability=memory/size={}KiB", BATCH_BYTES >> 10);
    let (operations, bytes) = (BATCHES as u64, (BATCHES * BATCH_BYTES) as u64);
    Contest { group, parameters, operations, bytes, target }
}

/// Starts a node again and again with a new directory, and leaves the last one alone for a while.
fn idle(board: &mut Scoreboard, root: &Path) {
    let start = |n| {
        let (dir, log) = (root.join(format!("idle-{n}")), root.join("idle.log"));
        processes::start_alone(&dir, &log)
    };
    let mut took: Vec<Duration> = (1..STARTS).map(|n| start(n).1).collect();
    let (node, ready_after) = start(STARTS);
    took.push(ready_after);
    std::thread::sleep(IDLE);
    let resident_bytes = node.holdings().resident_bytes();
    let ready_ms = median(&mut took).as_secs_f64() * 1e3;
    board.note_figure("idle/start-to-ready", "ms", ready_ms, 300.0);
    board.note_figure("idle/resident", "MB", resident_bytes as f64 / 1e6, 40.0);
}

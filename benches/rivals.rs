//! Three nodes that sync before they acknowledge, beside other servers in all their settings: many
//! connections that send small records to many partitions; and beside themselves with many more
//! partitions.
//!
//! `cargo bench --bench rivals` starts all servers that it needs, and ends with a table of ratios
//! to NATS JetStream with three replicas that sync as ours do. Others are compared where
//! `benches/peers/setup.sh` has put them.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on fails")]

mod contest;
mod nats;
mod peers;
mod place;
#[allow(dead_code, reason = "another bench measures nodes alone")]
mod processes;
mod redis;
#[allow(dead_code, reason = "other benches measure streams")]
mod stream;

use std::time::Duration;

use contest::{Contest, Scoreboard, TimedLap};
use nats::Setup;
use peers::{Driver, Load, send};
use place::Place;
use processes::Nodes;
use quipu::batch::Record;
use quipu::client::{Producer, ProducerConfig};
use quipu::proto::client::CreateTopicRequest;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// What each of the sixteen partitions keeps.
const FEW_KEPT_BYTES: usize = 16 << 20;
const LOAD: Load = Load { streams: 16, connections: 32, record_bytes: 1024, in_flight: 4_096 };
const LAP: Duration = Duration::from_secs(3);
const ROUNDS: usize = 7;
/// Partitions that together are to be about as fast as sixteen.
const MANY: u32 = 1_000;
/// What each of them keeps. Before they are measured they have taken this twice over, as the
/// sixteen have by then: new files are slower to write than those that are used again.
const MANY_KEPT_BYTES: usize = 1 << 20;

fn main() {
    processes::play_a_part(&[]);
    let mut board = Scoreboard::default();
    let place = Place::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let nodes = Nodes::start(&runtime, place.path(), 3);
    let few = producers(&runtime, &nodes, "few", LOAD.streams as u32, FEW_KEPT_BYTES);
    beside_others(&mut board, &place, &runtime, &few);
    let many = producers(&runtime, &nodes, "many", MANY, MANY_KEPT_BYTES);
    fill(&runtime, &many);
    beside_itself(&mut board, &runtime, [&few, &many]);
    board.print();
}

/// Clients with a connection each, that send to a topic.
fn producers(
    runtime: &Runtime,
    nodes: &Nodes,
    topic: &str,
    partitions: u32,
    kept_bytes: usize,
) -> Vec<Producer> {
    let client = nodes.client(runtime);
    let request = CreateTopicRequest {
        name: topic.to_owned(),
        partitions,
        replicas: 3,
        config: [("retention_bytes".to_owned(), kept_bytes.to_string())].into(),
        ..CreateTopicRequest::default()
    };
    runtime.block_on(client.create_topic(request)).unwrap();
    let make = |_| {
        let client = nodes.client(runtime);
        runtime.block_on(client.producer(ProducerConfig::new(topic))).unwrap()
    };
    let producers: Vec<_> = (0..LOAD.connections).map(make).collect();
    let meet =
        async { producers.iter().cloned().map(meet_all).collect::<JoinSet<()>>().join_all().await };
    runtime.block_on(meet);
    producers
}

/// Sends a record to each partition, to which a producer makes itself known when it first does.
async fn meet_all(producer: Producer) {
    let record = Record { value: Some(b"hello"), ..Record::default() };
    let mut waiting = Vec::new();
    for partition in 0..producer.partitions() {
        waiting.push(producer.send_to(partition, &record).await.unwrap());
    }
    for delivery in waiting {
        delivery.await.unwrap();
    }
}

/// Sends so much that all partitions drop old segments.
fn fill(runtime: &Runtime, producers: &[Producer]) {
    let records = 2 * MANY_KEPT_BYTES * MANY as usize / LOAD.record_bytes;
    let mut sent = 0;
    while sent < records {
        println!("filling {MANY} partitions: {}%", 100 * sent / records);
        sent += runtime.block_on(send(producers, LOAD, LAP)).operations as usize;
    }
}

fn beside_others(board: &mut Scoreboard, place: &Place, runtime: &Runtime, producers: &[Producer]) {
    let root = place.path();
    let nats = |replicas, is_synced| nats::start(root, Setup { replicas, is_synced }, LOAD);
    let mut others = [
        ("nats-r3-synced", nats(3, true)),
        ("nats-r3-default", nats(3, false)),
        ("nats-r1-synced", nats(1, true)),
        ("nats-r1-default", nats(1, false)),
        ("redis-synced", redis::start(root, true, LOAD)),
        ("redis-everysec", redis::start(root, false, LOAD)),
    ];
    let others = others.iter_mut().filter_map(|(name, driver)| Some((*name, driver.as_mut()?)));
    let lap_of = |driver: &mut Driver| driver.publish(LAP);
    let mut laps: Vec<_> = others.map(|(name, driver)| (name, || lap_of(driver))).collect();
    let quipu_lap = &mut || runtime.block_on(send(producers, LOAD, LAP));
    let mut sides: Vec<(&str, TimedLap<'_>)> = Vec::new();
    for (name, lap) in &mut laps {
        sides.push((name, lap));
    }
    sides.push(("quipu-r3-synced", quipu_lap));
    let Load { streams, connections, in_flight, .. } = LOAD;
    let parameters =
        format!("partitions={streams}/connections={connections}/in-flight={in_flight}/size=1KiB");
    board.race(&contest("rivals", parameters, 6.0), &mut sides, ROUNDS);
}

fn beside_itself(board: &mut Scoreboard, runtime: &Runtime, [few, many]: [&[Producer]; 2]) {
    let few_lap = &mut || runtime.block_on(send(few, LOAD, LAP));
    let many_lap = &mut || runtime.block_on(send(many, LOAD, LAP));
    let parameters = format!("partitions=16,{MANY}/connections={}/size=1KiB", LOAD.connections);
    let sides: &mut [(&str, TimedLap<'_>)] = &mut [("quipu-16", few_lap), ("quipu-1000", many_lap)];
    board.race(&contest("partitions", parameters, 0.8), sides, ROUNDS);
}

fn contest(group: &'static str, parameters: String, target: f64) -> Contest {
    Contest { group, parameters, operations: 1, bytes: LOAD.record_bytes as u64, target }
}

//! Three nodes that sync before they acknowledge, beside a bare loop that writes, sends and syncs
//! the same bytes, and beside NATS JetStream.
//!
//! `cargo bench --bench cluster` starts all servers that it needs and ends with a table of ratios.
//! NATS is compared where `benches/peers/setup.sh` has put it.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on fails")]

mod contest;
mod nats;
mod peers;
mod place;
#[allow(dead_code, reason = "another bench measures nodes alone")]
mod processes;
mod quorum;
#[allow(dead_code, reason = "another bench reads")]
mod stream;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use contest::{Contest, Scoreboard, median};
use criterion::Criterion;
use nats::Setup;
use peers::{Load, send};
use place::Place;
use processes::Nodes;
use quipu::batch::{BatchBuilder, Codec, Limits, Record};
use quipu::client::{Client, Producer, ProducerConfig};
use quipu::proto::client::{CreateTopicRequest, Topic};
use quorum::Quorum;
use stream::{BATCH_BYTES, Produced, connect, noise, produce};
use tokio::runtime::Runtime;

const KEPT_BYTES: usize = 256 << 20;
/// Batches of a lap, and how many of them are on their way.
const BATCHES: usize = 512;
const BATCHES_IN_FLIGHT: usize = 8;
/// Records that are sent one by one over a connection, for so long a lap.
const LOAD: Load = Load { streams: 1, connections: 1, record_bytes: 1024, in_flight: 2_000 };
const LAP: Duration = Duration::from_secs(2);
const ROUNDS: usize = 10;
/// Records of a lap that are each waited for, and bytes of each.
const WAITS: usize = 200;
const SMALL_BYTES: usize = 100;

fn main() {
    processes::play_a_part(&[(quorum::ROLE, quorum::play)]);
    let mut criterion = contest::of_servers();
    let mut board = Scoreboard::default();
    let place = Place::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let nodes = Nodes::start(&runtime, place.path(), 3);
    let bench = Bench { runtime: &runtime, nodes: &nodes, client: nodes.client(&runtime) };
    let mut floor = Quorum::start(place.path());
    bench.batches(&mut criterion, &mut board, &mut floor);
    bench.latency(&mut criterion, &mut board, &mut floor);
    drop(floor);
    bench.records(&mut board, place.path());
    criterion.final_summary();
    board.print();
}

struct Bench<'a> {
    runtime: &'a Runtime,
    nodes: &'a Nodes,
    client: Client,
}

impl Bench<'_> {
    /// Makes a topic with three replicas of each partition.
    fn make_topic(&self, name: &str, partitions: u32) -> Topic {
        let topic = CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            replicas: 3,
            config: [("retention_bytes".to_owned(), KEPT_BYTES.to_string())].into(),
            ..CreateTopicRequest::default()
        };
        self.runtime.block_on(self.client.create_topic(topic)).unwrap()
    }

    /// Where clients reach the node that leads a topic's only partition.
    fn leader_address(&self, topic: &str) -> &str {
        let started = Instant::now();
        loop {
            let topic = self.runtime.block_on(self.client.describe_topic(topic)).unwrap();
            if let Some(leader) = topic.partitions[0].leader.checked_sub(1) {
                return &self.nodes.addresses[leader as usize];
            }
            assert!(started.elapsed() < Duration::from_secs(10), "the partition has no leader");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stores batches over a stream to the leader of now: leadership moves to where it is balanced.
    fn produce(&self, topic: &str, batch: &Bytes, load: (usize, usize)) -> Produced {
        let mut leader = self.runtime.block_on(connect(self.leader_address(topic)));
        self.runtime.block_on(produce(&mut leader, topic, batch, load))
    }

    fn producer(&self, topic: &str, linger: Duration) -> Producer {
        let config = ProducerConfig { linger, ..ProducerConfig::new(topic) };
        self.runtime.block_on(self.client.producer(config)).unwrap()
    }

    /// Batches over one stream to the leader, eight in flight.
    fn batches(&self, criterion: &mut Criterion, board: &mut Scoreboard, floor: &mut Quorum) {
        self.make_topic("batches", 1);
        let batch = stream::batch();
        let (in_flight, load) = (BATCHES_IN_FLIGHT as u64, (BATCHES, BATCHES_IN_FLIGHT));
        let floor_lap = &mut || floor.commit(&batch, BATCHES, in_flight);
        let quipu_lap = &mut || self.produce("batches", &batch, load).took;
        let parameters =
            format!("replicas=3/fsync/in-flight={in_flight}/size={}KiB", BATCH_BYTES >> 10);
        let (operations, bytes) = (BATCHES as u64, (BATCHES * BATCH_BYTES) as u64);
        let contest = Contest { group: "batches", parameters, operations, bytes, target: 0.40 };
        board.compare(criterion, &contest, &mut [("floor", floor_lap), ("quipu", quipu_lap)]);
    }

    /// Small records, each sent when the one before is stored. A lap counts as so many medians.
    fn latency(&self, criterion: &mut Criterion, board: &mut Scoreboard, floor: &mut Quorum) {
        self.make_topic("latency", 1);
        let producer = self.producer("latency", Duration::ZERO);
        let small = small_batch();
        let floor_lap = &mut || medians((0..WAITS).map(|_| floor.commit(&small, 1, 1)).collect());
        let client_lap = &mut || medians(self.runtime.block_on(send_each(&producer)));
        let stream_lap = &mut || medians(self.produce("latency", &small, (WAITS, 1)).waits);
        let parameters = format!("replicas=3/fsync/in-flight=1/size={SMALL_BYTES}B");
        let (operations, bytes) = (WAITS as u64, (WAITS * SMALL_BYTES) as u64);
        let contest = Contest { group: "median", parameters, operations, bytes, target: 0.40 };
        let sides: &mut [(&str, contest::Lap<'_>)] =
            &mut [("floor", floor_lap), ("quipu-client", client_lap), ("quipu-stream", stream_lap)];
        board.compare(criterion, &contest, sides);
    }

    /// Records sent one by one through the client, which may batch them.
    fn records(&self, board: &mut Scoreboard, root: &Path) {
        self.make_topic("records", 1);
        self.make_topic("spread", 4);
        let linger = ProducerConfig::new("").linger;
        let (one, four) = (self.producer("records", linger), self.producer("spread", linger));
        let mut nats = nats::start(root, Setup { replicas: 3, is_synced: true }, LOAD);
        let lap = |producer| self.runtime.block_on(send(std::slice::from_ref(producer), LOAD, LAP));
        let (one_lap, four_lap) = (&mut || lap(&one), &mut || lap(&four));
        let parameters = format!("replicas=3/fsync/in-flight={}/size=1KiB", LOAD.in_flight);
        let (operations, bytes) = (1, LOAD.record_bytes as u64);
        let contest = Contest { group: "records", parameters, operations, bytes, target: 4.0 };
        let mut nats_lap;
        let mut sides: Vec<(&str, contest::TimedLap<'_>)> = Vec::new();
        if let Some(nats) = &mut nats {
            nats_lap = || nats.publish(LAP);
            sides.push(("nats-r3-synced", &mut nats_lap));
        }
        sides.push(("quipu", one_lap));
        sides.push(("quipu-4-partitions", four_lap));
        board.race(&contest, &mut sides, ROUNDS);
    }
}

/// A batch of one small record.
fn small_batch() -> Bytes {
    let mut builder = BatchBuilder::new(Limits::default());
    let value = noise(SMALL_BYTES);
    let record = Record { value: Some(&value), ..Record::default() };
    builder.append(&record).unwrap();
    builder.build(Codec::None).unwrap()
}

/// The median of some times, as often as there are times.
fn medians(mut times: Vec<Duration>) -> Duration {
    median(&mut times) * times.len() as u32
}

async fn send_each(producer: &Producer) -> Vec<Duration> {
    let value = noise(SMALL_BYTES);
    let record = Record { value: Some(&value), ..Record::default() };
    let mut times = Vec::with_capacity(WAITS);
    for _ in 0..WAITS {
        let started = Instant::now();
        producer.send(&record).await.unwrap().await.unwrap();
        times.push(started.elapsed());
    }
    times
}

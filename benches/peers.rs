//! Other servers, and the driver that publishes to them through their own clients; and what it
//! does, done to ours.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quipu::batch::Record;
use quipu::client::{Delivery, Producer};
use tokio::task::JoinSet;

use crate::contest::Work;
use crate::processes::{Conversation, Process};
use crate::stream::noise;

/// What is published.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Streams, the others' word for partitions.
    pub(crate) streams: usize,
    pub(crate) connections: usize,
    pub(crate) record_bytes: usize,
    /// Records that are not acknowledged, of all connections together.
    pub(crate) in_flight: usize,
}

/// Servers, and the driver that publishes to them.
pub(crate) struct Driver {
    driver: Conversation,
    _processes: Vec<Process>,
}

impl Driver {
    /// Starts the driver of a kind of servers.
    pub(crate) fn start(
        program: &Path,
        kind: &str,
        numbers: &[usize],
        servers: &str,
        mut processes: Vec<Process>,
        root: &Path,
    ) -> Self {
        let mut arguments = vec![kind.to_owned()];
        arguments.extend(numbers.iter().map(usize::to_string));
        arguments.push(servers.to_owned());
        let log = root.join("driver.log");
        let (process, mut driver) = Process::converse(program, &arguments, &log);
        let said = driver.hear();
        assert_eq!(said, "ready", "the driver of {kind}: {}", process.said());
        processes.push(process);
        Self { driver, _processes: processes }
    }

    /// Publishes for so long, and then waits until all is acknowledged.
    pub(crate) fn publish(&mut self, time: Duration) -> Work {
        self.driver.say(&time.as_millis().to_string());
        let said = self.driver.hear();
        let numbers: Vec<u64> = said.split(' ').filter_map(|text| text.parse().ok()).collect();
        let [operations, nanos] = numbers[..] else { panic!("the driver said {said}") };
        Work { operations, took: Duration::from_nanos(nanos) }
    }
}

/// Sends for so long through all producers at once, each a connection of a load, and then waits
/// until all is acknowledged.
///
/// Records have no keys: a producer spreads them as it does by default, a batch here and the next
/// one there.
pub(crate) async fn send(producers: &[Producer], load: Load, time: Duration) -> Work {
    let started = Instant::now();
    let tasks: JoinSet<u64> = producers
        .iter()
        .map(|producer| send_until(producer.clone(), load, started + time))
        .collect();
    let operations = tasks.join_all().await.into_iter().sum();
    Work { operations, took: started.elapsed() }
}

/// Returns how many records it has sent.
async fn send_until(producer: Producer, load: Load, end: Instant) -> u64 {
    let value = noise(load.record_bytes);
    let record = Record { value: Some(&value), ..Record::default() };
    let in_flight = load.in_flight / load.connections;
    let mut waiting: VecDeque<Delivery> = VecDeque::with_capacity(in_flight);
    let mut sent = 0;
    while Instant::now() < end {
        if waiting.len() == in_flight {
            acknowledged(&mut waiting).await;
        }
        waiting.push_back(producer.send(&record).await.expect("a record is taken"));
        sent += 1;
    }
    while !waiting.is_empty() {
        acknowledged(&mut waiting).await;
    }
    sent
}

async fn acknowledged(waiting: &mut VecDeque<Delivery>) {
    if let Some(oldest) = waiting.pop_front() {
        oldest.await.expect("a record is acknowledged");
    }
}

/// Where the programs of another server are; says what to do if one is missing.
pub(crate) fn installed<const N: usize>(name: &str, programs: [&str; N]) -> Option<[PathBuf; N]> {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers");
    let found = programs.map(|program| peers.join(program));
    let missing = found.iter().find(|path| !path.exists());
    if let Some(missing) = missing {
        println!("NOT compared with {name}: {} is missing.", missing.display());
        println!("`bash benches/peers/setup.sh` fetches and builds it; it needs the network.");
        return None;
    }
    Some(found)
}

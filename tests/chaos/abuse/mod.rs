//! Abuse: strangers send everything that is bad to a running cluster while good clients work. The
//! good ones notice little, the servers need little more memory, and nothing of it is stored.
//!
//! `QUIPU_ABUSE_SECONDS` says for how long; 10 otherwise.

mod calls;
mod wire;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use quipu::batch::Record;
use quipu::client::ProducerConfig;
use tokio::time::{Instant, interval, sleep};

use crate::bed::Bed;
use crate::checker::judge;
use crate::clients::{Crowd, TOPIC, World};
use crate::cluster::Cluster;
use crate::env;
use crate::history::{Append, Event};
use crate::rng::Rng;
use crate::run::{PARTITIONS, PLACES, read_all};
use crate::value::Value;

/// How much more memory a server may have after it than before.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
/// A good client sends one record in so long, and waits for each.
const PACE: Duration = Duration::from_millis(10);
/// The good client whose time is taken has a number of its own.
const TIMED: u32 = 2_000_000;

/// What strangers share.
struct Attack {
    from: IpAddr,
    /// For clients, for nodes, for metrics.
    targets: Vec<[SocketAddr; 3]>,
    is_over: AtomicBool,
    /// What was sent and was refused, cut off or ignored as it has to be.
    refused: AtomicU64,
    /// What was taken although it must not be.
    taken: std::sync::Mutex<Vec<String>>,
}

impl Attack {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Takes note of what became of something bad.
    fn expect_refusal(&self, what: &str, is_refused: bool) {
        match is_refused {
            true => drop(self.refused.fetch_add(1, Ordering::Relaxed)),
            false => self.taken.lock().expect("no holder panics").push(what.to_owned()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_means_no_good_harms_nobody() {
    let time = Duration::from_secs(env("QUIPU_ABUSE_SECONDS").unwrap_or(10));
    let world = Arc::new(World::new(PARTITIONS, PLACES));
    let mut rng = Rng::new(env("QUIPU_CHAOS_SEED").unwrap_or(1));
    let bed = Bed::lay(PLACES, rng.next()).await.unwrap();
    let mut cluster = Cluster::start(bed, PLACES, world.clone(), None).await.unwrap();
    let crowd = Crowd::gather(&world, PLACES, &mut rng);
    let quiet = measure(&world, 0, time).await;
    let before = memory(&mut cluster);
    let attack = Arc::new(attack_on(&cluster));
    let strangers = [calls::gather(&attack, &mut rng), wire::gather(&attack, &mut rng)];
    let loud = measure(&world, 1, time).await;
    let during = memory(&mut cluster);
    attack.is_over.store(true, Ordering::Relaxed);
    for stranger in strangers.into_iter().flatten() {
        stranger.await.unwrap();
    }
    sleep(Duration::from_secs(3)).await;
    let after = memory(&mut cluster);
    crowd.disperse().await;
    cluster.wait_until_whole().await.unwrap();
    let last = read_all(&mut cluster).await.unwrap();
    let verdict = judge(&world.history.take(), PARTITIONS, Some(&last), Duration::MAX);
    let [quiet, loud] = [quiet, loud].map(|times| times.value_at_quantile(0.99));
    println!("{} refused", attack.refused.load(Ordering::Relaxed));
    println!("p99 of a good client: {quiet} us in quiet, {loud} us in the attack");
    println!("memory: {before:?} bytes before, {during:?} at its end, {after:?} after");
    println!("{verdict}");
    assert!(verdict.breaches.is_empty());
    let taken = attack.taken.lock().unwrap();
    assert!(taken.is_empty(), "{} were taken: {:?}", taken.len(), &taken[..taken.len().min(10)]);
    for (before, after) in before.iter().zip(&after) {
        assert!(after.saturating_sub(*before) <= GROWTH_BYTES_MAX, "a server keeps what it got");
    }
}

fn attack_on(cluster: &Cluster) -> Attack {
    let addresses = |place: usize| {
        let [clients, peers, http] = cluster.bed.addresses(place);
        [clients, peers, http].map(|address| address.parse().unwrap())
    };
    Attack {
        from: cluster.bed.strangers().into(),
        targets: cluster.places().into_iter().map(addresses).collect(),
        is_over: AtomicBool::new(false),
        refused: AtomicU64::new(0),
        taken: std::sync::Mutex::default(),
    }
}

/// The memory of each server, in bytes.
fn memory(cluster: &mut Cluster) -> Vec<u64> {
    let places = cluster.places();
    let of = |place: usize| {
        let id = cluster.node(place).process_id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    };
    places.into_iter().map(of).collect()
}

/// Sends records one by one, and returns how long each took, in microseconds.
async fn measure(world: &World, turn: u64, time: Duration) -> Histogram<u64> {
    let config = ProducerConfig { linger: Duration::ZERO, ..ProducerConfig::new(TOPIC) };
    let producer = world.client().producer(config).await.unwrap();
    let mut times = Histogram::new_with_bounds(1, 60_000_000, 3).unwrap();
    let (until, mut pace) = (Instant::now() + time, interval(PACE));
    let mut counter = turn << 32;
    while Instant::now() < until {
        pace.tick().await;
        let partition = (counter % u64::from(PARTITIONS)) as u32;
        let value = Value { producer: TIMED, counter };
        let bytes = value.bytes();
        let record = Record { value: Some(&bytes), ..Record::default() };
        let (invoked, started) = (world.history.now(), Instant::now());
        let receipt = producer.send_to(partition, &record).await.unwrap().await.unwrap();
        times.saturating_record(started.elapsed().as_micros() as u64);
        let between = (invoked, world.history.now());
        let append = Append::of_one(between, partition, value, Some(receipt.offset));
        world.history.note(Event::Append(append));
        counter += 1;
    }
    times
}

//! Churn: members and servers come and go, and the checker judges what the members saw.
//!
//! `QUIPU_CHURN_SEED` repeats a schedule (not its timing), `QUIPU_CHURN_SECONDS` says how long the
//! members are kept busy. The seed is printed.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quipu::batch::{BatchBuilder, Codec, Limits, Record};
use quipu::proto::server::ProduceRequest;
use quipu::proto::server::log_service_client::LogServiceClient;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::actor::{Rng, World};
use super::checker::{Rules, Verdict, judge};
use super::crowd::{Crowd, drain, look, reset};
use super::history::What;
use super::member::{TOPIC, group};
use super::setup::{create_topic, groups};
use crate::support::Cluster;

const PARTITIONS: u32 = 12;
const SESSION: Duration = Duration::from_secs(3);
/// What a partition may take beyond a session: what was promised, and what a machine that is busy
/// with other tests may take more.
const PROMISED: Duration = Duration::from_secs(2);
const ALLOWANCE: Duration = Duration::from_secs(5);
const CALL_MAX: Duration = Duration::from_secs(10);

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

fn new_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 % 1_000_000
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_keeps_its_promises_whoever_comes_and_goes() {
    let seed = env("QUIPU_CHURN_SEED").unwrap_or_else(new_seed);
    let seconds = env("QUIPU_CHURN_SECONDS").unwrap_or(20);
    let verdict = churn(seed, Duration::from_secs(seconds)).await;
    eprintln!("QUIPU_CHURN_SEED={seed}: {verdict}");
    assert!(verdict.breaches.is_empty(), "QUIPU_CHURN_SEED={seed}");
    assert!(verdict.taken > 0 && verdict.refused > 0 && verdict.faults > 0, "nothing happened");
}

async fn churn(seed: u64, time: Duration) -> Verdict {
    let mut cluster = Cluster::start(3).await;
    create_topic(&cluster, TOPIC, PARTITIONS).await;
    groups(&cluster, 0).await.create_group(group()).await.unwrap();
    let addresses = cluster.servers.iter().map(|s| Some(s.as_ref()?.addresses().clients));
    let world = Arc::new(World::new(addresses.collect()));
    let mut rng = Rng(seed);
    let (ending, ended) = watch::channel(false);
    let others = [
        tokio::spawn(produce(world.clone(), Rng(rng.next()), ended.clone())),
        tokio::spawn(look(world.clone(), Rng(rng.next()), ended.clone())),
        tokio::spawn(reset(world.clone(), PARTITIONS, Rng(rng.next()), ended)),
    ];
    let until = Instant::now() + time;
    let mut crowd = Crowd::new(&world, Rng(rng.next()));
    tokio::join!(
        restart_servers(&mut cluster, &world, Rng(rng.next()), until),
        crowd.run(time, until),
    );
    let _ = ending.send(true);
    for other in others {
        other.await.unwrap();
    }
    crowd.disperse().await;
    let last = drain(&world, &mut Rng(seed)).await;
    crowd.end().await;
    let events = world.history.events();
    let orphan_max = SESSION + PROMISED + ALLOWANCE;
    let verdict = judge(&events, &last, Rules { partitions: PARTITIONS, orphan_max });
    if let Some(first) = verdict.breaches.first() {
        let from = first.event.saturating_sub(400);
        for (n, event) in events.iter().enumerate().take(first.event + 50).skip(from) {
            eprintln!("{n:>6} {:>9.3?} {:?}", event.at, event.what);
        }
    }
    for n in 0..3 {
        cluster.stop(n).await;
    }
    verdict
}

/// Stops one server after the other and starts it again: every other time the one that leads the
/// metadata.
async fn restart_servers(cluster: &mut Cluster, world: &World, mut rng: Rng, until: Instant) {
    for turn in 0.. {
        sleep(Duration::from_millis(1_500 + rng.below(1_500))).await;
        if Instant::now() >= until {
            return;
        }
        let leads = |n: &usize| cluster.server(*n).node().leads_metadata();
        let leader = (0..3).find(leads).filter(|_| turn % 2 == 0);
        let n = leader.unwrap_or(rng.below(3) as usize);
        world.history.note(What::Fault(format!("server {n} stops")));
        world.addresses.write().unwrap()[n] = None;
        cluster.stop(n).await;
        sleep(Duration::from_millis(100 + rng.below(900))).await;
        cluster.restart(n).await;
        world.addresses.write().unwrap()[n] = Some(cluster.server(n).addresses().clients);
        world.history.note(What::Fault(format!("server {n} is back")));
    }
}

/// Appends to all partitions, all the time.
async fn produce(world: Arc<World>, mut rng: Rng, ended: watch::Receiver<bool>) {
    let mut client = LogServiceClient::new(world.connect(&mut rng).await);
    while !*ended.borrow() {
        let mut builder = BatchBuilder::new(Limits::default());
        for n in 0..=rng.below(3) {
            let value = n.to_le_bytes();
            builder.append(&Record { value: Some(&value), ..Record::default() }).unwrap();
        }
        let (topic, batch) = (TOPIC.to_owned(), builder.build(Codec::None).unwrap());
        let partition = rng.below(PARTITIONS.into()) as u32;
        let request = ProduceRequest { topic, partition, batch, ..ProduceRequest::default() };
        // What a record says and whether it is there twice is of no interest here.
        if !matches!(timeout(CALL_MAX, client.produce(request)).await, Ok(Ok(_))) {
            client = LogServiceClient::new(world.connect(&mut rng).await);
        }
        sleep(Duration::from_millis(3)).await;
    }
}

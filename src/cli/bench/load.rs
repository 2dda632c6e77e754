//! Producers at work: as fast as they can, or at a fixed rate.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::JoinHandle;

use super::Plan;
use super::noise::noise;
use super::report::{Latencies, Report};
use crate::batch::Record;
use crate::cli::remote;
use crate::client::{Client, Delivery, Error, Producer, Receipt};

/// What producers did.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) records: u64,
    pub(super) failed: u64,
    latencies: Latencies,
    took: Duration,
    /// The first failure.
    error: Option<Error>,
}

impl Sent {
    fn new() -> anyhow::Result<Self> {
        let (latencies, took) = (Latencies::new()?, Duration::ZERO);
        Ok(Self { records: 0, failed: 0, latencies, took, error: None })
    }

    pub(super) fn report(&self, bench: &'static str, topic: &str, record_bytes: u32) -> Report {
        let bytes = self.records * u64::from(record_bytes);
        let report = Report::new(bench, topic, self.records, bytes);
        report.failed(self.failed).took(self.took).latencies(&self.latencies)
    }

    fn settle(&mut self, intended: Instant, outcome: Result<Receipt, Error>) {
        match outcome {
            Ok(receipt) => {
                self.records += 1;
                self.latencies.record(receipt.received.saturating_duration_since(intended));
            }
            Err(error) => {
                self.failed += 1;
                self.error.get_or_insert(error);
            }
        }
    }
}

/// Producers that run.
#[derive(Debug)]
pub(super) struct Load {
    workers: Vec<JoinHandle<anyhow::Result<Sent>>>,
}

impl Load {
    /// Starts the producers. The values of their records begin with the nanoseconds from `zero`
    /// to when they were to be sent.
    pub(super) async fn start(
        plan: &Plan,
        remote: &remote::Args,
        topic: &str,
        zero: Instant,
    ) -> anyhow::Result<Self> {
        let mut producers = Vec::new();
        for _ in 0..plan.producers {
            let client = Client::new(remote.config())?;
            producers.push(client.producer(plan.producer_config(topic)).await?);
        }
        let worker = |producer| tokio::spawn(Worker::new(plan, producer, zero).run());
        Ok(Self { workers: producers.into_iter().map(worker).collect() })
    }

    /// Waits for the producers to end.
    pub(super) async fn finish(self) -> anyhow::Result<Sent> {
        let mut all = Sent::new()?;
        for worker in self.workers {
            let sent = worker.await.context("a producer ended")??;
            all.records += sent.records;
            all.failed += sent.failed;
            all.latencies.add(&sent.latencies)?;
            all.took = all.took.max(sent.took);
            all.error = all.error.or(sent.error);
        }
        if let Some(error) = &all.error {
            eprintln!("warning: {} records failed, the first one: {error}", all.failed);
        }
        Ok(all)
    }
}

/// One producer's loop.
struct Worker {
    producer: Producer,
    zero: Instant,
    started: Instant,
    seconds: u64,
    in_flight: usize,
    /// Between two records, at a fixed rate.
    interval: Option<Duration>,
    value: Vec<u8>,
    deliveries: VecDeque<(Instant, Delivery)>,
}

impl Worker {
    fn new(plan: &Plan, producer: Producer, zero: Instant) -> Self {
        let interval = plan.rate.map(|rate| {
            Duration::from_secs(1).mul_f64(f64::from(plan.producers) / f64::from(rate))
        });
        Self {
            producer,
            zero,
            started: Instant::now(),
            seconds: plan.seconds,
            in_flight: plan.in_flight as usize,
            interval,
            value: noise(plan.record_bytes as usize),
            deliveries: VecDeque::new(),
        }
    }

    async fn run(mut self) -> anyhow::Result<Sent> {
        let mut sent = Sent::new()?;
        let end = self.started + Duration::from_secs(self.seconds);
        for n in 0.. {
            let intended = self.wait_turn(n).await;
            if intended >= end {
                break;
            }
            self.send(intended, &mut sent).await;
        }
        self.settle(0, &mut sent).await;
        sent.took = self.started.elapsed();
        self.producer.close().await;
        Ok(sent)
    }

    /// Returns when record `n` is to be sent, not before that time.
    async fn wait_turn(&self, n: u32) -> Instant {
        let Some(interval) = self.interval else {
            return Instant::now();
        };
        let intended = self.started + interval * n;
        if intended > Instant::now() {
            tokio::time::sleep_until(intended.into()).await;
        }
        intended
    }

    async fn send(&mut self, intended: Instant, sent: &mut Sent) {
        let nanoseconds = intended.saturating_duration_since(self.zero).as_nanos() as u64;
        self.value[..8].copy_from_slice(&nanoseconds.to_be_bytes());
        let record = Record { value: Some(&self.value), ..Default::default() };
        match self.producer.send(&record).await {
            Ok(delivery) => self.deliveries.push_back((intended, delivery)),
            Err(error) => sent.settle(intended, Err(error)),
        }
        self.settle(self.in_flight - 1, sent).await;
    }

    /// Takes in outcomes, and waits until at most so many are open.
    async fn settle(&mut self, open_max: usize, sent: &mut Sent) {
        while self.deliveries.len() > open_max {
            let (intended, delivery) = self.deliveries.pop_front().expect("more than none");
            sent.settle(intended, delivery.await);
        }
    }
}

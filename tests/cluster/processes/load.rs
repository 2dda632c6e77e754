//! Records that are sent while things go wrong, and the check that all of them are there.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use quipu::batch;
use quipu::client::{
    Client, ConsumerConfig, Delivery, Event, Producer, ProducerConfig, Record, Start,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::nodes::TOPIC;

/// Deliveries of a partition that are awaited at a time.
const IN_FLIGHT: usize = 32;
const PACE: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(25);

/// Senders of numbered records to every partition of the topic, until they are stopped.
pub struct Load {
    stop: watch::Sender<bool>,
    senders: Vec<JoinHandle<Vec<u64>>>,
    acknowledged: Vec<watch::Receiver<u64>>,
}

/// Where the records of each partition were stored, by their numbers.
pub struct Sent(pub Vec<Vec<u64>>);

impl Load {
    /// Begins to send with an idempotent producer.
    pub async fn start(client: &Client) -> Self {
        let producer = client.producer(ProducerConfig::new(TOPIC)).await.unwrap();
        let (stop, stops) = watch::channel(false);
        let (mut senders, mut acknowledged) = (Vec::new(), Vec::new());
        for partition in 0..producer.partitions() {
            let (tell, told) = watch::channel(0);
            let (producer, stops) = (producer.clone(), stops.clone());
            senders.push(tokio::spawn(keep_sending(producer, partition, tell, stops)));
            acknowledged.push(told);
        }
        Self { stop, senders, acknowledged }
    }

    /// Waits until every partition has acknowledged so many records more.
    pub async fn progress(&mut self, records: u64) {
        let started = Instant::now();
        for (partition, told) in self.acknowledged.iter_mut().enumerate() {
            let goal = *told.borrow_and_update() + records;
            let come = timeout(PATIENCE, told.wait_for(|acknowledged| *acknowledged >= goal)).await;
            let come = come.unwrap_or_else(|_| panic!("partition {partition} does not go on"));
            come.expect("the sender goes on");
        }
        println!("{records} records each after {} ms", started.elapsed().as_millis());
    }

    /// Sends no more, and waits until everything is acknowledged.
    pub async fn stop(self) -> Sent {
        self.stop.send_replace(true);
        let mut sent = Vec::new();
        for sender in self.senders {
            sent.push(sender.await.unwrap());
        }
        Sent(sent)
    }
}

async fn keep_sending(
    producer: Producer,
    partition: u32,
    told: watch::Sender<u64>,
    stops: watch::Receiver<bool>,
) -> Vec<u64> {
    let mut offsets = Vec::new();
    let mut waiting: VecDeque<Delivery> = VecDeque::new();
    for number in 0_u64.. {
        if *stops.borrow() {
            break;
        }
        let value = value(partition, number);
        let record = batch::Record { value: Some(&value), ..Default::default() };
        waiting.push_back(producer.send_to(partition, &record).await.unwrap());
        while let Some(outcome) = waiting.front_mut().and_then(Delivery::try_outcome) {
            waiting.pop_front();
            offsets.push(outcome.unwrap().offset);
        }
        if waiting.len() >= IN_FLIGHT {
            offsets.push(waiting.pop_front().unwrap().await.unwrap().offset);
        }
        told.send_replace(offsets.len() as u64);
        sleep(PACE).await;
    }
    for delivery in waiting {
        offsets.push(delivery.await.unwrap().offset);
    }
    offsets
}

fn value(partition: u32, number: u64) -> Vec<u8> {
    format!("{partition}:{number}").into_bytes()
}

impl Sent {
    /// Reads everything and expects each record once, where it was said to be, and nothing else.
    pub async fn expect_all(&self, client: &Client) {
        let by_partition = read_all(client).await;
        for (partition, offsets) in self.0.iter().enumerate() {
            assert!(!offsets.is_empty(), "nothing was sent to partition {partition}");
            let none = Vec::new();
            let read = by_partition.get(&(partition as u32)).unwrap_or(&none);
            let found: Vec<_> = read.iter().map(|r| (r.offset, text(r))).collect();
            let sent = (0..).zip(offsets);
            let sent: Vec<_> = sent
                .map(|(n, offset)| {
                    (*offset, String::from_utf8(value(partition as u32, n)).unwrap())
                })
                .collect();
            let differs = found.iter().zip(&sent).find(|(found, sent)| found != sent);
            assert!(
                found == sent,
                "partition {partition}: {} records were acknowledged and {} are there; the first \
                 that differs (found, sent): {differs:?}",
                sent.len(),
                found.len(),
            );
        }
    }
}

fn text(record: &Record) -> String {
    String::from_utf8(record.value.as_ref().unwrap().to_vec()).unwrap()
}

/// Reads the topic from its beginning to its present end, by partition.
pub async fn read_all(client: &Client) -> BTreeMap<u32, Vec<Record>> {
    let ends = client.list_offsets(TOPIC, Vec::new(), Start::Latest).await.unwrap();
    let ends: BTreeMap<_, _> = ends.into_iter().map(|end| (end.partition, end.offset)).collect();
    let mut consumer = client.consumer(ConsumerConfig::new(TOPIC, Start::Earliest));
    let starts: Vec<_> = consumer.start().await.unwrap().collect();
    let mut left: u64 = starts.iter().map(|(partition, from)| ends[partition] - from).sum();
    let mut by_partition: BTreeMap<u32, Vec<Record>> = BTreeMap::new();
    while left > 0 {
        let event = timeout(PATIENCE, consumer.next()).await.expect("a record comes").unwrap();
        let Event::Record(record) = event else { panic!("records are gone: {event:?}") };
        left -= u64::from(record.offset < ends[&record.partition]);
        by_partition.entry(record.partition).or_default().push(record);
    }
    by_partition
}

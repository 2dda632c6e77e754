//! The client's side of consumer groups against real servers: members that share, commands, and
//! transformations that die.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quipu::batch;
use quipu::client::{
    Client, ClientConfig, Commit, ConsumerConfig, Event, GroupConsumer, GroupConsumerConfig,
    GroupEvent, GroupStart, Output, ProducerConfig, Start, TransformConfig,
};
use quipu::proto::client::{CreateGroupRequest, CreateTopicRequest};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{Cluster, wait_for};

const GROUP: &str = "billing";
const SOURCE: &str = "orders";
const OUTPUT: &str = "invoices";
const PARTITIONS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(60);

fn client(cluster: &Cluster) -> Client {
    Client::new(ClientConfig::new([cluster.server(0).addresses().clients.to_string()])).unwrap()
}

async fn prepare(client: &Client, topics: &[&str]) {
    for name in topics {
        let (name, partitions, replicas) = ((*name).to_owned(), PARTITIONS, 1);
        let topic = CreateTopicRequest { name, partitions, replicas, ..Default::default() };
        client.create_topic(topic).await.unwrap();
    }
    let (name, topics) = (GROUP.to_owned(), vec![SOURCE.to_owned()]);
    let (start, session_timeout_ms) = (Some(GroupStart::Earliest.into()), 2_000);
    let group =
        CreateGroupRequest { name, topics, start, session_timeout_ms, ..Default::default() };
    client.create_group(group).await.unwrap();
}

/// Sends numbered records to every partition.
async fn send(client: &Client, numbers: std::ops::Range<u64>) {
    let producer = client.producer(ProducerConfig::new(SOURCE)).await.unwrap();
    for number in numbers {
        let value = number.to_string();
        let record = batch::Record { value: Some(value.as_bytes()), ..Default::default() };
        for partition in 0..PARTITIONS {
            drop(producer.send_to(partition, &record).await.unwrap());
        }
    }
    producer.close().await;
}

/// How often each record was handed out, by partition and offset.
type Seen = Arc<Mutex<BTreeMap<(u32, u64), u32>>>;

fn all_seen(seen: &Seen, records: u64) -> bool {
    seen.lock().unwrap().len() as u64 == records * u64::from(PARTITIONS)
}

/// Reads on until it is told to stop, and then closes.
fn read(
    mut consumer: GroupConsumer,
    seen: Seen,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        while !*stop.borrow() {
            let event = tokio::select! {
                event = consumer.next() => event.unwrap(),
                _ = stop.changed() => break,
            };
            if let GroupEvent::Record(record) = event {
                let place = (record.partition, record.offset);
                *seen.lock().unwrap().entry(place).or_default() += 1;
            }
        }
        consumer.mark_done();
        consumer.close().await.unwrap();
    })
}

fn member(client: &Client) -> GroupConsumer {
    let commit = Commit::Auto(Duration::from_millis(200));
    client.group_consumer(GroupConsumerConfig { commit, ..GroupConsumerConfig::new(GROUP) })
}

async fn wait_for_members(client: &Client, members: usize) {
    let what = format!("{members} members, each with partitions");
    let has_all = async || {
        let group = client.describe_group(GROUP).await.unwrap();
        let is_shared = group.members.iter().all(|member| member.partitions > 0);
        let is_calm = group.partitions.iter().all(|partition| {
            !partition.member_id.is_empty() && partition.next_member_id.is_empty()
        });
        (group.members.len() == members && is_shared && is_calm).then_some(())
    };
    wait_for(&what, has_all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_and_hand_over_without_repeating_anything() {
    let mut cluster = Cluster::start(1).await;
    let client = client(&cluster);
    prepare(&client, &[SOURCE]).await;
    send(&client, 0..50).await;
    let seen = Seen::default();
    let (stop_first, stops_first) = tokio::sync::watch::channel(false);
    let (stop_second, stops_second) = tokio::sync::watch::channel(false);
    let first = read(member(&client), seen.clone(), stops_first);
    wait_for("the first half", async || all_seen(&seen, 50).then_some(())).await;
    let second = read(member(&client), seen.clone(), stops_second);
    let sender = client.clone();
    let sending = tokio::spawn(async move { send(&sender, 50..300).await });
    wait_for_members(&client, 2).await;
    sending.await.unwrap();
    stop_first.send_replace(true);
    timeout(PATIENCE, first).await.unwrap().unwrap();
    wait_for_members(&client, 1).await;
    send(&client, 300..350).await;
    wait_for("all records", async || all_seen(&seen, 350).then_some(())).await;
    stop_second.send_replace(true);
    timeout(PATIENCE, second).await.unwrap().unwrap();
    let repeated = seen.lock().unwrap().values().filter(|times| **times > 1).count();
    assert_eq!(repeated, 0, "records came twice although everybody went in peace");
    let offsets = client.fetch_offsets(GROUP, Vec::new()).await.unwrap();
    assert!(offsets.iter().all(|at| at.next_offset == 350 && at.lag == 0), "{offsets:?}");
    cluster.stop(0).await;
}

/// One output of each record.
fn copy(record: &quipu::client::Record) -> Vec<Output> {
    vec![Output { value: record.value.clone(), ..Output::default() }]
}

async fn written(client: &Client) -> BTreeMap<u32, Vec<u64>> {
    let ends = client.list_offsets(OUTPUT, Vec::new(), Start::Latest).await.unwrap();
    let mut left: u64 = ends.iter().map(|end| end.offset).sum();
    let mut consumer = client.consumer(ConsumerConfig::new(OUTPUT, Start::Earliest));
    let mut numbers: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    while left > 0 {
        let event = timeout(PATIENCE, consumer.next()).await.unwrap().unwrap();
        let Event::Record(record) = event else { panic!("{event:?}") };
        let number = std::str::from_utf8(record.value.as_deref().unwrap()).unwrap();
        numbers.entry(record.partition).or_default().push(number.parse().unwrap());
        left -= 1;
    }
    numbers
}

/// Members die between storing and committing, and wherever else: they are dropped in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_transformation_that_dies_again_and_again_writes_each_record_once() {
    const RECORDS: u64 = 4_000;
    let mut cluster = Cluster::start(1).await;
    let client = client(&cluster);
    prepare(&client, &[SOURCE, OUTPUT]).await;
    send(&client, 0..RECORDS).await;
    let has_all = async || {
        let ends = client.list_offsets(OUTPUT, Vec::new(), Start::Latest).await.unwrap();
        ends.iter().all(|end| end.offset >= RECORDS)
    };
    let mut lives = 0;
    while !has_all().await {
        assert!(lives < 60, "it never comes to the end");
        lives += 1;
        let config = TransformConfig { batch_bytes: 500, ..TransformConfig::new(GROUP, OUTPUT) };
        let mut transform = client.transform(config).await.unwrap();
        let living = async {
            while !has_all().await {
                transform.step(copy).await.unwrap();
            }
        };
        // Longer than a session, and another part of the work each time.
        let life = Duration::from_millis(2_400 + 97 * (lives * 31 % 17));
        let _ = timeout(life, living).await;
    }
    println!("{lives} lives");
    let expected: Vec<u64> = (0..RECORDS).collect();
    for (partition, numbers) in written(&client).await {
        assert_eq!(numbers, expected, "partition {partition}");
    }
    cluster.stop(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_on_with_the_commands() {
    let mut cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let server = cluster.server(0).addresses().clients.to_string();
    let quipu = async |args: &'static [&'static str]| {
        let server = server.clone();
        let run = move || {
            let mut command = assert_cmd::Command::new(assert_cmd::cargo::cargo_bin!("quipu"));
            command.env("QUIPU_SERVER", server).args(args).timeout(PATIENCE).output().unwrap()
        };
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    quipu(&["topic", "create", SOURCE, "--partitions", "4", "--replicas", "1"]).await;
    send(&client, 0..10).await;
    quipu(&["group", "create", GROUP, "--topic", SOURCE, "--start", "earliest"]).await;
    let read = quipu(&["consume", "--group", GROUP, "--to-end"]).await;
    assert_eq!(read.lines().count(), 40, "{read}");
    let lag = quipu(&["group", "lag", GROUP, "-o", "json"]).await;
    let lag: serde_json::Value = serde_json::from_str(&lag).unwrap();
    for partition in lag["partitions"].as_array().unwrap() {
        assert_eq!((&partition["committed"], &partition["lag"]), (&10.into(), &0.into()), "{lag}");
    }
    let again = quipu(&["consume", "--group", GROUP, "--to-end"]).await;
    assert_eq!(again, "", "all of it was read");
    let dry = quipu(&["group", "reset", GROUP, "--to", "7", "--dry-run"]).await;
    assert!(dry.contains("10      7"), "{dry}");
    quipu(&["group", "reset", GROUP, "--to", "7", "--topic", "orders:0,1"]).await;
    let replay = quipu(&["consume", SOURCE, "--group", GROUP, "--to-end"]).await;
    assert_eq!(replay.lines().count(), 6, "{replay}");
    assert!(quipu(&["group", "list"]).await.contains(GROUP));
    assert!(quipu(&["group", "describe", GROUP]).await.contains("0 members"));
    quipu(&["group", "delete", GROUP]).await;
    cluster.stop(0).await;
}

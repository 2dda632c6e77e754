//! What idle consumer groups cost: a thousand groups with ten members each, on one node.
//!
//! `cargo bench --bench groups`. The members say no more than they have to; what is measured is the
//! processor time of the server, from the moment when all of them have what they get.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use quipu::proto::client::consume_request::Message as Told;
use quipu::proto::client::consume_response::Message as Tell;
use quipu::proto::client::group_place::Place;
use quipu::proto::client::group_service_client::GroupServiceClient;
use quipu::proto::client::topic_service_client::TopicServiceClient;
use quipu::proto::client::{
    ConsumeHeartbeat, ConsumeJoin, ConsumeReleased, ConsumeRequest, CreateGroupRequest,
    CreateTopicRequest, DescribeGroupRequest, GroupMember, GroupPlace,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

const GROUPS: usize = 1_000;
const MEMBERS: usize = 10;
/// Streams of one connection.
const STREAMS: usize = 100;
const PARTITIONS: u32 = 10;
const MEASURED: Duration = Duration::from_secs(30);
/// A session, and how often members say something in one: as often as the server asks them to.
const SESSION: Duration = Duration::from_secs(60);
const HEARTBEAT: Duration = Duration::from_secs(20);

/// A server that is killed when this is dropped.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quipu"));
        command.args(["serve", "--dev", "--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0"]);
        command.args(["--http-listen", "127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a process starts");
        let mut said = BufReader::new(child.stderr.take().expect("it was piped"));
        let mut address = None;
        let mut line = String::new();
        while address.is_none() && said.read_line(&mut line).expect("it speaks") > 0 {
            address = address_in(&line);
            line.clear();
        }
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { child, address: address.expect("the server says where it listens") }
    }

    /// Processor time so far. `/proc/PID/stat` has it in ticks of the clock, and counts too much
    /// for who is woken by that clock; the scheduler knows better.
    fn processor_time(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let of_task = |task: std::io::Result<fs::DirEntry>| {
            let path = task.expect("the process runs").path().join("schedstat");
            // A thread may end in between.
            let stat = fs::read_to_string(path).unwrap_or_default();
            let nanos = stat.split_whitespace().next();
            nanos.map_or(0, |nanos| nanos.parse::<u64>().expect("the kernel writes numbers"))
        };
        Duration::from_nanos(tasks.expect("the process runs").map(of_task).sum())
    }

    fn resident_bytes(&self) -> u64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.child.id()));
        let statm = statm.expect("the process runs");
        let pages = statm.split_whitespace().nth(1).expect("the kernel writes it");
        4096 * pages.parse::<u64>().expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended by itself cannot be killed, and need not.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The clients' address in what a server says.
fn address_in(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("127.0.0.1:")?;
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (line.contains("client") && port != "0").then(|| format!("127.0.0.1:{port}"))
}

async fn connect(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("the server listens")
}

/// A member that stays, and lets go of what it is asked for.
async fn stay(channel: Channel, group: String) {
    let (requests, queue) = mpsc::channel(4);
    let join = ConsumeJoin { group, credit_bytes: 64 << 10, ..ConsumeJoin::default() };
    requests.send(request(Told::Join(join))).await.expect("the queue is there");
    let mut client = GroupServiceClient::new(channel);
    let answers = client.consume(ReceiverStream::new(queue)).await.expect("a member is let in");
    let mut answers = answers.into_inner();
    let mut beats = tokio::time::interval(HEARTBEAT);
    loop {
        let said = tokio::select! {
            _ = beats.tick() => Told::Heartbeat(ConsumeHeartbeat {}),
            told = answers.message() => {
                let told = told.expect("the stream goes on").expect("the stream goes on");
                let Some(Tell::Revoke(revoke)) = told.message else { continue };
                Told::Released(ConsumeReleased { assignments: revoke.assignments })
            }
        };
        requests.send(request(said)).await.expect("the stream goes on");
    }
}

/// Waits until each member of a group has its partition.
async fn settle(groups: &mut GroupServiceClient<Channel>, group: String) {
    loop {
        let request = DescribeGroupRequest { group: group.clone() };
        let found = groups.describe_group(request).await.expect("the group is there").into_inner();
        let found = found.group.expect("the group is described");
        let has_one = |member: &GroupMember| member.partitions == 1;
        if found.members.len() == MEMBERS && found.members.iter().all(has_one) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn request(message: Told) -> ConsumeRequest {
    ConsumeRequest { message: Some(message) }
}

/// The part of a core that the server uses from now on.
async fn load(server: &Server) -> f64 {
    let (before, began) = (server.processor_time(), Instant::now());
    tokio::time::sleep(MEASURED).await;
    (server.processor_time() - before).as_secs_f64() / began.elapsed().as_secs_f64()
}

async fn run(server: &Server) {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let alone = load(server).await;
    let channel = connect(&server.address).await;
    let topic = CreateTopicRequest {
        name: "idle".to_owned(),
        partitions: PARTITIONS,
        ..CreateTopicRequest::default()
    };
    TopicServiceClient::new(channel.clone()).create_topic(topic).await.expect("a topic is made");
    let mut groups = GroupServiceClient::new(channel);
    let began = Instant::now();
    let mut channels = Vec::new();
    for n in 0..GROUPS {
        let group = CreateGroupRequest {
            name: format!("g{n}"),
            topics: vec!["idle".to_owned()],
            start: Some(GroupPlace { place: Some(Place::Earliest(true)) }),
            session_timeout_ms: SESSION.as_millis() as u32,
            ..CreateGroupRequest::default()
        };
        groups.create_group(group).await.expect("a group is made");
        for member in 0..MEMBERS {
            let place = (n * MEMBERS + member) / STREAMS;
            if place == channels.len() {
                channels.push(connect(&server.address).await);
            }
            tokio::spawn(stay(channels[place].clone(), format!("g{n}")));
        }
    }
    for n in 0..GROUPS {
        settle(&mut groups, format!("g{n}")).await;
    }
    println!("{GROUPS} groups of {MEMBERS} members settled in {:.1?}", began.elapsed());
    tokio::time::sleep(HEARTBEAT).await;
    let (used, megabytes) = (load(server).await, server.resident_bytes() / (1 << 20));
    let (alone, used, groups) = (alone * 100.0, used * 100.0, (used - alone) * 100.0);
    println!(
        "idle: {used:.1} % of a core, {alone:.1} % of it without groups: {groups:.1} % for them"
    );
    println!("{megabytes} MiB resident");
}

fn main() {
    let server = Server::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime starts").block_on(run(&server));
}

//! Floods: what one connection may cost.

use std::time::{Duration, Instant};

use quipu::proto::server::FetchRequest;
use quipu::rpc::limits::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::Cluster;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0, name.len() as u8];
    field.extend(name.as_bytes());
    field.push(value.len() as u8);
    field.extend(value.as_bytes());
    field
}

/// The header of a call of `method`, without its end.
fn call(stream: u32, method: &str) -> Vec<u8> {
    let path = format!("/quipu.v1.LogService/{method}");
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path.as_str()),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| literal(name, value)).collect();
    frame(HEADERS, END_HEADERS, stream, &block)
}

async fn connect(cluster: &Cluster) -> TcpStream {
    let mut stream = TcpStream::connect(cluster.nodes[0].address).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// Reads frames until the connection ends or nothing comes for a while: their kinds and payloads.
async fn read_frames(stream: &mut TcpStream, patience: Duration) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    loop {
        let mut head = [0; 9];
        let read = tokio::time::timeout(patience, stream.read_exact(&mut head)).await;
        if !matches!(read, Ok(Ok(_))) {
            return frames;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if stream.read_exact(&mut payload).await.is_err() {
            return frames;
        }
        frames.push((head[3], payload));
    }
}

/// How many frames of each kind there are.
fn kinds_of(bytes: &[u8]) -> [usize; 16] {
    let mut kinds = [0; 16];
    let mut at = 0;
    while at + 9 <= bytes.len() {
        kinds[usize::from(bytes[at + 3]) & 15] += 1;
        at += 9 + u32::from_be_bytes([0, bytes[at], bytes[at + 1], bytes[at + 2]]) as usize;
    }
    kinds
}

async fn still_answers(cluster: &Cluster) {
    let mut client = cluster.nodes[0].client().await;
    let fetch = FetchRequest { topic: "t".into(), ..FetchRequest::default() };
    client.fetch(fetch).await.expect("others are not affected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_streams_are_refused_beyond_a_hundred() {
    let cluster = Cluster::of_one().await;
    cluster.topic("t", 1).await;
    let mut stream = connect(&cluster).await;
    let flood: Vec<u8> = (0..3_000).flat_map(|n| call(2 * n + 1, "Produce")).collect();
    let (mut reading, mut writing) = stream.split();
    let sent = async { writing.write_all(&flood).await.is_ok() };
    let received = async {
        let mut bytes = Vec::new();
        let read = reading.read_to_end(&mut bytes);
        let _ = tokio::time::timeout(Duration::from_secs(5), read).await;
        bytes
    };
    let (_, bytes) = tokio::join!(sent, received);
    let kinds = kinds_of(&bytes);
    assert!(kinds[usize::from(RST_STREAM)] >= 500, "streams are refused: {kinds:?}");
    assert_eq!(kinds[usize::from(GOAWAY)], 1, "and then the connection ends: {kinds:?}");
    still_answers(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_does_not_arrive_is_cut_but_a_stream_may_be_idle() {
    let limits = Limits { body_timeout: Duration::from_millis(300), ..Limits::default() };
    let cluster = Cluster::found(1, limits).await;
    cluster.topic("t", 1).await;
    let mut stream = connect(&cluster).await;
    let started = Instant::now();
    stream.write_all(&call(1, "Produce")).await.unwrap();
    stream.write_all(&frame(DATA, 0, 1, &[0, 0, 0, 0, 9, 1])).await.unwrap();
    stream.write_all(&call(3, "ProduceStream")).await.unwrap();
    let frames = read_frames(&mut stream, Duration::from_millis(1_500)).await;
    let ended: Vec<_> = frames
        .iter()
        .filter(|(kind, payload)| {
            *kind == HEADERS && payload.windows(11).any(|word| word == b"grpc-status")
                || *kind == RST_STREAM
        })
        .collect();
    assert!(!ended.is_empty(), "the call that is no stream has ended: {frames:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
    let alive = frame(SETTINGS, 0, 0, &[]);
    stream.write_all(&alive).await.unwrap();
    let frames = read_frames(&mut stream, Duration::from_millis(300)).await;
    assert!(frames.iter().any(|(kind, _)| *kind == SETTINGS), "the connection is still there");
    still_answers(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_connection_is_cut_and_an_address_has_its_share() {
    let limits = Limits {
        preface_timeout: Duration::from_millis(200),
        connections_per_address_max: 3,
        ..Limits::default()
    };
    let cluster = Cluster::found(1, limits).await;
    cluster.topic("t", 1).await;
    let mut silent = TcpStream::connect(cluster.nodes[0].address).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(5), silent.read(&mut [0; 1])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "a silent connection is cut");
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(connect(&cluster).await);
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut refused = TcpStream::connect(cluster.nodes[0].address).await.unwrap();
    let read = tokio::time::timeout(Duration::from_millis(150), refused.read(&mut [0; 1])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "the address has its share: {read:?}");
    held.pop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    still_answers(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_end_the_connection() {
    let cluster = Cluster::of_one().await;
    cluster.topic("t", 1).await;
    let mut stream = connect(&cluster).await;
    let reset = |id: u32| [call(id, "Produce"), frame(RST_STREAM, 0, id, &[0, 0, 0, 8])].concat();
    let flood: Vec<u8> = (0..5_000).flat_map(|n| reset(2 * n + 1)).collect();
    let (mut reading, mut writing) = stream.split();
    let sent = async { writing.write_all(&flood).await.is_ok() };
    let received = async {
        let mut bytes = Vec::new();
        let read = reading.read_to_end(&mut bytes);
        let ended = tokio::time::timeout(Duration::from_secs(5), read).await.is_ok();
        (ended, bytes)
    };
    let (_, (ended, bytes)) = tokio::join!(sent, received);
    let kinds = kinds_of(&bytes);
    assert_eq!(kinds[usize::from(GOAWAY)], 1, "the connection is ended: {kinds:?}");
    assert!(ended, "and closed");
    still_answers(&cluster).await;
}

//! Floods: what one connection may cost.

use std::time::{Duration, Instant};

use quipu::proto::server::FetchRequest;
use quipu::rpc::limits::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http2::{DATA, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, call, frame, kinds_of};
use crate::support::Cluster;

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

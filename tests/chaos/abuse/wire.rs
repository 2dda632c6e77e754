//! Bytes that are no calls: noise on every port, floods of frames, connections that say nothing or
//! say it slowly, and more of them than anybody needs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::Attack;
use crate::http2::{CONTINUATION, DATA, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, call, frame};
use crate::rng::Rng;

/// Connections that say nothing, of one stranger.
const SILENT: usize = 400;
const BRIEFLY: Duration = Duration::from_secs(2);
/// Whoever says nothing is cut off within this.
const CUT_WITHIN: Duration = Duration::from_secs(30);

pub(super) fn gather(attack: &Arc<Attack>, rng: &mut Rng) -> Vec<JoinHandle<()>> {
    let mut seed = || Rng::new(rng.next());
    vec![
        tokio::spawn(make_noise(attack.clone(), seed())),
        tokio::spawn(flood(attack.clone(), seed())),
        tokio::spawn(say_nothing(attack.clone())),
        tokio::spawn(come_and_go(attack.clone())),
    ]
}

async fn connect(attack: &Attack, to: SocketAddr) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind(SocketAddr::new(attack.from, 0)).ok()?;
    timeout(BRIEFLY, socket.connect(to)).await.ok()?.ok()
}

/// Sends bytes and reads what comes until the other side closes, or for a moment.
async fn send(stream: &mut TcpStream, bytes: &[u8]) {
    let (mut reading, mut writing) = stream.split();
    let sent = async { writing.write_all(bytes).await.is_ok() };
    let received = async {
        let mut buffer = [0; 4096];
        while matches!(reading.read(&mut buffer).await, Ok(read) if read > 0) {}
    };
    let _ = timeout(BRIEFLY, async { tokio::join!(sent, received) }).await;
}

/// Random bytes, with and without a beginning that makes sense, to all ports.
async fn make_noise(attack: Arc<Attack>, mut rng: Rng) {
    while !attack.is_over() {
        for target in attack.targets.iter().flatten() {
            let Some(mut stream) = connect(&attack, *target).await else { continue };
            let len = rng.between(1, 20_000);
            let beginning: &[u8] = match rng.below(3) {
                0 => PREFACE,
                1 => b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
                _ => b"",
            };
            let noise = (0..len).map(|_| rng.next() as u8);
            let bytes: Vec<u8> = beginning.iter().copied().chain(noise).collect();
            send(&mut stream, &bytes).await;
        }
    }
}

/// What a flood is made of: the bytes of its next step, by an odd number that counts them.
const FLOODS: [fn(u32) -> Vec<u8>; 6] = [
    // Calls that are taken back at once, and calls that never end.
    |n| [call(n, "Produce"), frame(RST_STREAM, 0, n, &[0, 0, 0, 8])].concat(),
    |n| call(n, "Produce"),
    |_| frame(SETTINGS, 0, 0, &[]),
    |_| frame(PING, 0, 0, &[7; 8]),
    // Headers without an end, and data without anything in it.
    |n| match n {
        1 => frame(HEADERS, 0, 1, b"\x00"),
        _ => frame(CONTINUATION, 0, 1, &[0x40; 64]),
    },
    |n| match n {
        1 => call(1, "ProduceStream"),
        _ => frame(DATA, 0, 1, &[]),
    },
];

/// Thousands of frames that each cost the other side something.
async fn flood(attack: Arc<Attack>, mut rng: Rng) {
    while !attack.is_over() {
        let of = rng.pick(&FLOODS).expect("there are some");
        let [target, ..] = *rng.pick(&attack.targets).expect("there are some");
        let Some(mut stream) = connect(&attack, target).await else { continue };
        let frames = (0..5_000).flat_map(|n| of(2 * n + 1));
        let head = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        let bytes: Vec<u8> = head.into_iter().chain(frames).collect();
        send(&mut stream, &bytes).await;
    }
}

/// Connections that are opened and left alone. All of them are cut off.
async fn say_nothing(attack: Arc<Attack>) {
    let mut silent = Vec::new();
    for n in 0..SILENT {
        let target = attack.targets[n % attack.targets.len()][n % 2];
        if let Some(mut stream) = connect(&attack, target).await {
            if n % 3 == 0 {
                let _ = stream.write_all(&PREFACE[..10]).await;
            }
            silent.push(stream);
        }
        sleep(Duration::from_millis(2)).await;
    }
    for mut stream in silent {
        let cut = timeout(CUT_WITHIN, stream.read_to_end(&mut Vec::new())).await;
        attack.expect_refusal("a connection that says nothing", cut.is_ok());
    }
}

/// Connects and goes away at once, as fast as it can.
async fn come_and_go(attack: Arc<Attack>) {
    while !attack.is_over() {
        for [clients, peers, http] in &attack.targets {
            for target in [clients, peers, http] {
                drop(connect(&attack, *target).await);
            }
        }
        sleep(Duration::from_millis(1)).await;
    }
}

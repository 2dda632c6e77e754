//! The HTTP port: `/metrics`, `/healthz` (the process lives) and `/readyz` (it takes calls).
//!
//! * Only GET and HEAD are answered, and nothing that a client sends is kept.
//! * There are so many connections and no more; those above are closed at once.
//! * A request must be complete, and its answer taken, within seconds; so must the next one begin.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::tracing::warn;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

use super::metrics::{MEDIA_TYPE, Metrics};
use crate::shutdown::{Shutdown, Stage};

/// After an error that is not about one connection, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long answers may still take when the server stops.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// How much the port allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time.
    pub connections_max: usize,
    /// From the first byte of a request to the last of its answer.
    pub request_timeout: Duration,
    /// Between a connection's requests, and before the first. Longer than scrapes are apart.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            request_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
        }
    }
}

/// Serves the port until `shutdown` stops; while it drains, `/readyz` says so. `ready` says why the
/// server takes no calls; it is asked in a task of the runtime and must not wait.
///
/// # Errors
/// None that is known: errors of connections end these connections.
pub async fn serve(
    listener: TcpListener,
    limits: Limits,
    metrics: Arc<Metrics>,
    ready: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    shutdown: Shutdown,
) -> io::Result<()> {
    let routes = routes(metrics.clone(), ready, shutdown.clone());
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let bounded = Bounded { listener, limits, permits, metrics };
    let stopping = shutdown.clone();
    let serving = axum::serve(bounded, routes)
        .with_graceful_shutdown(async move { stopping.stopping().await })
        .into_future();
    let cut = async {
        shutdown.stopping().await;
        sleep(STOP_GRACE).await;
    };
    tokio::select! {
        done = serving => done,
        () = cut => Ok(()),
    }
}

fn routes(
    metrics: Arc<Metrics>,
    ready: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    shutdown: Shutdown,
) -> Router {
    let ready = Arc::new(ready);
    let readyz = move || {
        let state = match shutdown.stage() {
            Stage::Running => ready(),
            Stage::Draining | Stage::Stopping => Err("draining".to_owned()),
        };
        async move { readiness(state) }
    };
    let metrics = move || {
        let text = metrics.text();
        async move { ([(header::CONTENT_TYPE, MEDIA_TYPE)], text) }
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
}

fn readiness(state: Result<(), String>) -> Response {
    match state {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// A listener whose connections are counted and timed.
struct Bounded {
    listener: TcpListener,
    limits: Limits,
    permits: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => match self.permits.clone().try_acquire_owned() {
                    Ok(permit) => return (Connection::new(stream, self.limits, permit), from),
                    Err(_) => _ = self.metrics.http_connections_refused.inc(),
                },
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    warn!(%error, "the HTTP port accepts nothing for a moment");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// A connection with a deadline, which moves only when a request begins and when one is answered.
struct Connection {
    stream: TcpStream,
    limits: Limits,
    deadline: Pin<Box<Sleep>>,
    phase: Phase,
    _permit: OwnedSemaphorePermit,
}

#[derive(PartialEq, Eq)]
enum Phase {
    /// Waiting for a request to begin.
    Idle,
    /// Some of a request has come.
    Asking,
    /// Some of its answer has gone.
    Answering,
}

impl Connection {
    fn new(stream: TcpStream, limits: Limits, permit: OwnedSemaphorePermit) -> Self {
        let deadline = Box::pin(sleep(limits.idle_timeout));
        Self { stream, limits, deadline, phase: Phase::Idle, _permit: permit }
    }

    fn enter(&mut self, phase: Phase, within: Duration) {
        self.phase = phase;
        self.deadline.as_mut().reset(Instant::now() + within);
    }

    /// An error once the deadline has passed.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let is_late = self.deadline.as_mut().poll(cx).is_ready();
        if is_late { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before && self.phase == Phase::Idle {
            let within = self.limits.request_timeout;
            self.enter(Phase::Asking, within);
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        if self.phase == Phase::Asking {
            self.phase = Phase::Answering;
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection is flushed only after everything was written.
        if self.phase == Phase::Answering {
            let within = self.limits.idle_timeout;
            self.enter(Phase::Idle, within);
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;

    struct Port {
        address: SocketAddr,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
        serving: tokio::task::JoinHandle<io::Result<()>>,
    }

    async fn port(limits: Limits, ready: Result<(), String>) -> Port {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (metrics, shutdown) = (Metrics::new(), Shutdown::new());
        let ready = move || ready.clone();
        let serving = serve(listener, limits, metrics.clone(), ready, shutdown.clone());
        Port { address, metrics, shutdown, serving: tokio::spawn(serving) }
    }

    impl Port {
        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        async fn ask(&self, method: &str, path: &str) -> String {
            let mut stream = self.connect().await;
            let request =
                format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            rest(stream).await
        }
    }

    /// What comes until the connection is closed.
    async fn rest(mut stream: TcpStream) -> String {
        let mut text = Vec::new();
        // A connection that was cut with unread bytes ends in an error.
        let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut text)).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    fn short() -> Limits {
        let (request_timeout, idle_timeout) =
            (Duration::from_millis(200), Duration::from_millis(400));
        Limits { connections_max: 2, request_timeout, idle_timeout }
    }

    #[tokio::test]
    async fn metrics_and_health_are_served() {
        let port = port(Limits::default(), Ok(())).await;
        let metrics = port.ask("GET", "/metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
        assert!(metrics.contains(&format!("content-type: {MEDIA_TYPE}\r\n")), "{metrics}");
        assert!(metrics.ends_with("# EOF\n"), "{metrics}");
        assert!(port.ask("GET", "/healthz").await.ends_with("\r\n\r\nok\n"));
        assert!(port.ask("GET", "/readyz").await.ends_with("\r\n\r\nready\n"));
    }

    #[tokio::test]
    async fn other_methods_and_paths_are_refused() {
        let port = port(Limits::default(), Ok(())).await;
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = port.ask(method, "/metrics").await;
            assert!(answer.starts_with("HTTP/1.1 405"), "{method}: {answer}");
        }
        assert!(port.ask("GET", "/../etc/passwd").await.starts_with("HTTP/1.1 404"));
        let head = port.ask("HEAD", "/healthz").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[tokio::test]
    async fn whoever_is_not_ready_says_why() {
        let not_ready = port(Limits::default(), Err("no leader for the metadata".into())).await;
        let answer = not_ready.ask("GET", "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nno leader for the metadata\n"), "{answer}");
        let draining = port(Limits::default(), Ok(())).await;
        draining.shutdown.drain();
        assert!(draining.ask("GET", "/readyz").await.ends_with("\r\n\r\ndraining\n"));
        assert!(draining.ask("GET", "/healthz").await.ends_with("ok\n"));
    }

    #[tokio::test]
    async fn connections_above_the_limit_are_closed_and_counted() {
        let port = port(short(), Ok(())).await;
        let _held = (port.connect().await, port.connect().await);
        assert_eq!(rest(port.connect().await).await, "");
        assert_eq!(port.metrics.http_connections_refused.get(), 1);
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert!(port.ask("GET", "/healthz").await.ends_with("ok\n"), "silent ones make room");
    }

    #[tokio::test]
    async fn a_slow_request_is_cut_however_it_trickles() {
        let port = port(short(), Ok(())).await;
        let mut stream = port.connect().await;
        let began = std::time::Instant::now();
        for byte in b"GET /healthz HTTP/1.1\r\nHost: x\r\n".iter().cycle() {
            if stream.write_all(&[*byte]).await.is_err() || began.elapsed().as_secs() > 10 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "cut after {took:?}");
    }

    #[tokio::test]
    async fn a_connection_serves_many_requests() {
        let port = port(short(), Ok(())).await;
        let mut stream = port.connect().await;
        for _ in 0..6 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = [0; 512];
            let length = stream.read(&mut answer).await.unwrap();
            assert!(answer[..length].ends_with(b"ok\n"), "longer than one request may take");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test]
    async fn stopping_ends_it_even_with_open_connections() {
        let port = port(Limits::default(), Ok(())).await;
        let _held = port.connect().await;
        port.shutdown.stop();
        timeout(Duration::from_secs(10), port.serving).await.unwrap().unwrap().unwrap();
    }
}

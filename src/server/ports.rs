//! The ports of a server, served from its start to its end.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Addresses, Opened, ServeError, Settings};
use crate::rpc::peer::PeerServer;
use crate::rpc::{self, Context};
use crate::shutdown::Shutdown;
use crate::telemetry::{self, Metrics};

/// Whether a node takes calls, or what it waits for.
pub(super) type IsReady = watch::Receiver<Result<(), String>>;

/// Where a node says what it waits for, and at last that it takes calls.
pub(super) struct Readiness(watch::Sender<Result<(), String>>);

impl Readiness {
    pub(super) fn starting() -> (Self, IsReady) {
        let (sender, is_ready) = watch::channel(Err("the node is starting".to_owned()));
        (Self(sender), is_ready)
    }

    pub(super) fn wait_for(&self, what: impl Into<String>) {
        drop(self.0.send_replace(Err(what.into())));
    }

    pub(super) fn reach(&self) {
        self.0.send_if_modified(|ready| std::mem::replace(ready, Ok(())).is_err());
    }
}

pub(super) struct Listeners {
    clients: std::net::TcpListener,
    peers: std::net::TcpListener,
    http: Option<std::net::TcpListener>,
}

impl Listeners {
    pub(super) fn bind(settings: &Settings) -> Result<Self, ServeError> {
        Ok(Self {
            clients: bind(settings.listen)?,
            peers: bind(settings.peer_listen)?,
            http: settings.http_listen.map(bind).transpose()?,
        })
    }

    pub(super) fn addresses(&self) -> Addresses {
        let address = |listener: &std::net::TcpListener| listener.local_addr().expect("it listens");
        Addresses {
            clients: address(&self.clients),
            peers: address(&self.peers),
            http: self.http.as_ref().map(address),
        }
    }
}

fn bind(address: SocketAddr) -> Result<std::net::TcpListener, ServeError> {
    let listen = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|source| ServeError::Listen { address, source })
}

fn tokio_listener(
    listener: std::net::TcpListener,
    address: SocketAddr,
) -> Result<TcpListener, ServeError> {
    TcpListener::from_std(listener).map_err(|source| ServeError::Listen { address, source })
}

/// The ports while they are served. Dropped, they are closed.
#[derive(Debug)]
pub(super) struct Ports {
    api: rpc::Ports,
    pub(super) metrics: Arc<Metrics>,
    pub(super) counters: Arc<rpc::Counters>,
    stop: watch::Sender<bool>,
    shutdown: Shutdown,
    tasks: JoinSet<()>,
}

impl Ports {
    /// Serves the ports of a node that does not run yet.
    pub(super) async fn serve(
        settings: &Settings,
        listeners: Listeners,
        opened: &Opened,
        is_ready: IsReady,
    ) -> Result<Self, ServeError> {
        let addresses = listeners.addresses();
        let clients = tokio_listener(listeners.clients, addresses.clients)?;
        let peers = tokio_listener(listeners.peers, addresses.peers)?;
        let metrics = Metrics::new();
        let counters = Arc::new(rpc::Counters::new(metrics.clone()));
        let peer_server = PeerServer::new(opened.door.clone(), opened.channels.clone());
        let api = rpc::Ports::starting(peer_server, settings.limits.clone(), counters.clone());
        let api = api.await;
        let (stop, stops) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(api.serve_clients(clients, stops.clone()));
        tasks.spawn(api.serve_peers(peers, stops));
        let shutdown = Shutdown::new();
        if let (Some(listener), Some(address)) = (listeners.http, addresses.http) {
            let listener = tokio_listener(listener, address)?;
            let connections_max = settings.http_connections_max;
            let limits = telemetry::http::Limits { connections_max, ..Default::default() };
            let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
            tasks.spawn(serve_http(listener, limits, metrics, is_ready, shutdown));
        }
        Ok(Self { api, metrics, counters, stop, shutdown, tasks })
    }

    /// Has the ports answer everything, now that the node runs.
    pub(super) fn open(&mut self, context: &Context, is_ready: IsReady) {
        self.api.open(context);
        self.tasks.spawn(self.api.report_health(context.clone(), is_ready));
    }

    /// Says on the HTTP port that the node is about to stop.
    pub(super) fn drain(&self) {
        self.shutdown.drain();
    }

    /// Lets calls end that are under way, but not for longer than `patience`.
    pub(super) async fn stop(mut self, patience: std::time::Duration) {
        self.shutdown.stop();
        self.stop.send_replace(true);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        // Streams that do not end by themselves are cut.
        let _ = tokio::time::timeout(patience, ended).await;
        self.tasks.shutdown().await;
    }
}

async fn serve_http(
    listener: TcpListener,
    limits: telemetry::http::Limits,
    metrics: Arc<Metrics>,
    is_ready: IsReady,
    shutdown: Shutdown,
) {
    let is_ready = move || is_ready.borrow().clone();
    let served = telemetry::http::serve(listener, limits, metrics, is_ready, shutdown);
    if let Err(error) = served.await {
        tracing::error!(%error, "the port for metrics failed");
    }
}

//! Ports: which services are served where, before a node runs and afterwards.
//!
//! Both ports are served from the start to the end of a node, so that no connection has to be made
//! anew when it begins to run. What only a node that runs can answer is answered with "starting".

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, OnceLock};
use std::task::{Context as Waker, Poll};

use futures_util::future::Either;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::Service;

use super::accept;
use super::cluster::ClusterApi;
use super::context::Context;
use super::counters::Counters;
use super::error::Error;
use super::group::GroupApi;
use super::limits::{Door, Limits, server_builder};
use super::log::LogApi;
use super::peer::PeerServer;
use super::topic::TopicApi;
use crate::proto::FILE_DESCRIPTORS;

/// What the paths of all calls begin with that only a node that runs can answer.
const API_PREFIX: &str = "/quipu.v1.";

/// What the ports of a node serve.
#[derive(Debug)]
pub struct Ports {
    clients: Gate,
    peers: Gate,
    health: HealthReporter,
    limits: Limits,
    counters: Arc<Counters>,
}

impl Ports {
    /// The ports of a node that does not run yet: clients hear that it is starting, and other
    /// nodes who it is.
    pub async fn starting(peers: PeerServer, limits: Limits, counters: Arc<Counters>) -> Self {
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("", ServingStatus::NotServing).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1();
        let reflection = reflection.expect("the descriptors are those of the build");
        Self {
            clients: Gate::new(Routes::new(health).add_service(reflection)),
            peers: Gate::new(Routes::new(peers.into_service())),
            health: reporter,
            limits,
            counters,
        }
    }

    /// Has both ports answer everything, through the node that `context` is of.
    ///
    /// # Panics
    /// If that was done before.
    pub fn open(&self, context: &Context) {
        let log = LogApi::new(context.clone());
        let topics = TopicApi::new(context.clone());
        let groups = GroupApi::new(context.clone());
        let cluster = ClusterApi::new(context.clone()).into_service();
        self.peers.open(|routes| {
            // Calls that other nodes pass on.
            let routes = routes.add_service(log.clone().into_service());
            let routes = routes.add_service(topics.clone().into_service());
            routes.add_service(groups.clone().into_peer_service())
        });
        self.clients.open(|routes| {
            let routes = routes.add_service(log.clone().into_service());
            let routes = routes.add_service(groups.clone().into_service());
            routes.add_service(topics.clone().into_service()).add_service(cluster)
        });
    }

    /// Says by the health service how the node of `context` is, for ever.
    pub fn report_health(
        &self,
        context: Context,
        mut is_ready: watch::Receiver<Result<(), String>>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let health = self.health.clone();
        async move {
            // Without a sender the node has failed, and its ports are about to go.
            if is_ready.wait_for(Result::is_ok).await.is_ok() {
                health.set_service_status("", ServingStatus::Serving).await;
            }
            context.draining().await;
            health.set_service_status("", ServingStatus::NotServing).await;
        }
    }

    /// Serves the clients' port: the API, health and reflection.
    pub fn serve_clients(
        &self,
        listener: TcpListener,
        stops: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.serve(Door::Clients, listener, self.clients.clone(), stops)
    }

    /// Serves the peer port: what nodes say to each other, and the calls that they pass on.
    pub fn serve_peers(
        &self,
        listener: TcpListener,
        stops: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.serve(Door::Peers, listener, self.peers.clone(), stops)
    }

    fn serve(
        &self,
        door: Door,
        listener: TcpListener,
        gate: Gate,
        stops: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let limits = self.limits.clone();
        let counters = match door {
            Door::Clients => self.counters.clone(),
            // Connections of other nodes are none of clients.
            Door::Peers => Arc::default(),
        };
        async move {
            let stopping = stopped(stops.clone());
            let connections = accept::incoming(listener, door, &limits, counters, stopping);
            let server = server_builder(door, &limits);
            let served = server.serve_with_incoming_shutdown(gate, connections, stopped(stops));
            if let Err(error) = served.await {
                tracing::error!(%error, ?door, "a port failed");
            }
        }
    }
}

async fn stopped(mut stops: watch::Receiver<bool>) {
    // A sender that is gone stops as well.
    let _ = stops.wait_for(|stop| *stop).await;
}

/// The services of one port: some from the start, the others once the node runs.
#[derive(Debug, Clone)]
struct Gate {
    starting: Routes,
    running: Arc<OnceLock<Routes>>,
}

impl Gate {
    fn new(starting: Routes) -> Self {
        Self { starting: starting.prepare(), running: Arc::default() }
    }

    fn open(&self, add: impl FnOnce(Routes) -> Routes) {
        let routes = add(self.starting.clone()).prepare();
        assert!(self.running.set(routes).is_ok(), "a node begins to run once");
    }
}

type Answering = <Routes as Service<Request<Body>>>::Future;

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, Answering>;

    fn poll_ready(&mut self, _: &mut Waker<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.running.get() {
            Some(routes) => Either::Right(routes.clone().call(request)),
            None if request.uri().path().starts_with(API_PREFIX) => {
                Either::Left(ready(Ok(Status::from(Error::Starting).into_http())))
            }
            None => Either::Right(self.starting.call(request)),
        }
    }
}

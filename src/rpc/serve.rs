//! Ports: which services are served where.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::accept;
use super::cluster::ClusterApi;
use super::context::Context;
use super::counters::Counters;
use super::group::GroupApi;
use super::limits::{Door, Limits, PEER_MESSAGE_BYTES_MAX, server_builder};
use super::log::LogApi;
use super::peer::PeerServer;
use super::topic::TopicApi;
use crate::proto::FILE_DESCRIPTORS;
use crate::proto::internal::peer_service_server::PeerServiceServer;

async fn stopped(mut stops: watch::Receiver<bool>) {
    // A sender that is gone stops as well.
    let _ = stops.wait_for(|stop| *stop).await;
}

/// Serves the peer port of a node that is not part of a cluster yet.
pub async fn serve_introductions(
    listener: TcpListener,
    peers: PeerServer,
    limits: Limits,
    stops: watch::Receiver<bool>,
) {
    let counters = Arc::new(Counters::default());
    let connections =
        accept::incoming(listener, Door::Peers, &limits, counters, stopped(stops.clone()));
    let served = server_builder(Door::Peers, &limits)
        .add_service(PeerServiceServer::new(peers))
        .serve_with_incoming_shutdown(connections, stopped(stops));
    if let Err(error) = served.await {
        tracing::error!(%error, "the peer port failed");
    }
}

/// Serves the peer port: what nodes say to each other, and the calls that they pass on.
pub async fn serve_peers(
    listener: TcpListener,
    peers: PeerServer,
    context: Context,
    stops: watch::Receiver<bool>,
) {
    let limits = context.limits();
    let counters = context.counters().clone();
    let connections =
        accept::incoming(listener, Door::Peers, limits, counters, stopped(stops.clone()));
    let peers = PeerServiceServer::new(peers).max_decoding_message_size(PEER_MESSAGE_BYTES_MAX);
    let served = server_builder(Door::Peers, limits)
        .add_service(peers)
        .add_service(LogApi::new(context.clone()).into_service())
        .add_service(TopicApi::new(context.clone()).into_service())
        .add_service(GroupApi::new(context.clone()).into_peer_service())
        .serve_with_incoming_shutdown(connections, stopped(stops));
    if let Err(error) = served.await {
        tracing::error!(%error, "the peer port failed");
    }
}

/// Serves the clients' port: the API, health and reflection.
pub async fn serve_clients(listener: TcpListener, context: Context, stops: watch::Receiver<bool>) {
    let limits = context.limits();
    let counters = context.counters().clone();
    let connections =
        accept::incoming(listener, Door::Clients, limits, counters, stopped(stops.clone()));
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let reflection = reflection.expect("the descriptors are those of the build");
    let draining = context.clone();
    let draining = async move {
        draining.draining().await;
        reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        std::future::pending::<()>().await;
    };
    let served = server_builder(Door::Clients, limits)
        .add_service(health)
        .add_service(reflection)
        .add_service(LogApi::new(context.clone()).into_service())
        .add_service(TopicApi::new(context.clone()).into_service())
        .add_service(GroupApi::new(context.clone()).into_service())
        .add_service(ClusterApi::new(context.clone()).into_service())
        .serve_with_incoming_shutdown(connections, stopped(stops));
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::error!(%error, "the clients' port failed");
            }
        }
        () = draining => {}
    }
}

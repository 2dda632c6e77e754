//! Ports: which services are served where.

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use super::context::Context;
use super::peer::PeerServer;
use crate::proto::internal::peer_service_server::PeerServiceServer;

/// Longest message between nodes, in bytes.
const PEER_MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const FRAME_BYTES: u32 = 1024 * 1024;

fn builder() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .tcp_nodelay(true)
}

async fn stopped(mut stops: watch::Receiver<bool>) {
    // A sender that is gone stops as well.
    let _ = stops.wait_for(|stop| *stop).await;
}

/// Serves the peer port of a node that is not part of a cluster yet.
pub async fn serve_introductions(
    listener: TcpListener,
    peers: PeerServer,
    stops: watch::Receiver<bool>,
) {
    let served = builder()
        .add_service(PeerServiceServer::new(peers))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped(stops));
    if let Err(error) = served.await {
        tracing::error!(%error, "the peer port failed");
    }
}

/// Serves the peer port.
pub async fn serve_peers(
    listener: TcpListener,
    peers: PeerServer,
    _context: Context,
    stops: watch::Receiver<bool>,
) {
    let peers = PeerServiceServer::new(peers).max_decoding_message_size(PEER_MESSAGE_BYTES_MAX);
    let served = builder()
        .add_service(peers)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped(stops));
    if let Err(error) = served.await {
        tracing::error!(%error, "the peer port failed");
    }
}

/// Serves the clients' port.
pub async fn serve_clients(
    _listener: TcpListener,
    _context: Context,
    _stops: watch::Receiver<bool>,
) {
}

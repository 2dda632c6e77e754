//! Channels: connections to the peer ports of other nodes, made when they are first needed.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::error::Error;
use super::limits::{
    CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, HEADER_BYTES_MAX, MESSAGE_BYTES_MAX,
    PEER_MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES,
};
use crate::proto::internal::group_peer_service_client::GroupPeerServiceClient;
use crate::proto::server::log_service_client::LogServiceClient;
use crate::types::NodeId;

/// The request header that says whether a call may be passed on.
pub const FORWARD_HEADER: &str = "quipu-forward";
/// Its value for calls that may not.
pub const FORWARD_OFF: &str = "off";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How often a node that answers calls is pinged, and how long it may be silent: a leader that
/// stands still must not keep those waiting whose calls are passed on to it.
const CALLS_KEEPALIVE: Duration = Duration::from_secs(1);
const CALLS_SILENCE_MAX: Duration = Duration::from_secs(2);

/// Connections to other nodes.
///
/// * One for each node, to the address that the node had when it was last asked for.
#[derive(Debug, Default)]
pub struct Channels {
    by_node: Mutex<HashMap<NodeId, (String, Channel)>>,
}

impl Channels {
    /// The channel to a node at `address`. Nothing is sent before it is used.
    ///
    /// # Errors
    /// [`Error::Unexpected`] if that is no address.
    pub fn get(&self, node: NodeId, address: &str) -> Result<Channel, Error> {
        let mut by_node = self.by_node.lock().expect("nobody panics with the lock");
        if let Some((_, channel)) = by_node.get(&node).filter(|(known, _)| known == address) {
            return Ok(channel.clone());
        }
        let endpoint = endpoint(address)?
            .http2_keep_alive_interval(CALLS_KEEPALIVE)
            .keep_alive_timeout(CALLS_SILENCE_MAX);
        let channel = endpoint.connect_lazy();
        by_node.insert(node, (address.to_owned(), channel.clone()));
        Ok(channel)
    }

    /// Forgets the channels to nodes that are gone.
    pub fn retain(&self, is_there: impl Fn(NodeId) -> bool) {
        let mut by_node = self.by_node.lock().expect("nobody panics with the lock");
        by_node.retain(|node, _| is_there(*node));
    }
}

/// The way to a node at `address`. Nothing is connected yet.
///
/// # Errors
/// [`Error::Unexpected`] if that is no address.
pub(super) fn endpoint(address: &str) -> Result<Endpoint, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|_| Error::Unexpected("a node's address is none"))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX))
}

/// The log service on another node.
pub(super) fn log_client(channel: Channel) -> LogServiceClient<Channel> {
    LogServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// What another node answers about groups.
pub(super) fn group_client(channel: Channel) -> GroupPeerServiceClient<Channel> {
    GroupPeerServiceClient::new(channel)
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_channel_is_made_anew_when_the_address_changes() {
        let channels = Channels::default();
        let address = |node| {
            let by_node = channels.by_node.lock().unwrap();
            by_node.get(&NodeId(node)).map(|(address, _)| address.clone())
        };
        channels.get(NodeId(1), "127.0.0.1:1").unwrap();
        channels.get(NodeId(1), "127.0.0.1:2").unwrap();
        channels.get(NodeId(2), "127.0.0.1:3").unwrap();
        assert_eq!(address(1).as_deref(), Some("127.0.0.1:2"));
        channels.retain(|node| node == NodeId(1));
        assert_eq!(address(2), None);
        assert!(channels.get(NodeId(3), "no address").is_err());
    }

    #[tokio::test]
    async fn a_call_to_a_node_that_is_not_there_was_never_sent() {
        use super::super::error::Effect;
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let channel = Channels::default().get(NodeId(1), &port.to_string()).unwrap();
        let status = log_client(channel).fetch(crate::proto::server::FetchRequest::default()).await;
        let error = Error::from(status.unwrap_err());
        assert_eq!(error.effect(), Effect::NotDone, "{error:?}");
    }
}

//! What nodes say to each other: the peer service, and the ways to other nodes.

mod client;
mod door;
mod propose;
mod service;
mod transport;

pub use self::client::{
    Announcement, Introduction, PeerError, ReplicaStatus, announce, found, inspect_replica,
    introduce, propose_at, transfer_replica,
};
pub use self::door::Door;
pub use self::propose::{ProposeError, Proposed, Proposer};
pub use self::service::PeerServer;
pub use self::transport::{FindAddress, HostKind, Transport};

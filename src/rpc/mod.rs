//! RPC: everything that is said over gRPC, to clients and between nodes.

mod channels;
mod context;
pub mod peer;
mod serve;

pub use self::channels::{Channels, NoAddress};
pub use self::context::Context;
pub use self::serve::{serve_clients, serve_introductions, serve_peers};

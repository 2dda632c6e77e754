//! The API: calls in, answers out, and calls passed on to the nodes that can answer them.
//!
//! It owns what stands in `proto/quipu/v1`: what a request may say, what an answer looks like and
//! why a call fails. It knows neither files nor Raft; what is stored and who leads it asks
//! [`crate::cluster`] and [`crate::partition`].
//!
//! | noun | file | what it is |
//! |---|---|---|
//! | context | `context` | what all services share: the node, the ways to others, look-ups |
//! | call | `call` | until when a call may take, and whether it may be passed on |
//! | log | `log` | the service that stores and reads records |
//! | group | `group` | the service of consumer groups |
//! | topic, cluster | `topic`, `cluster` | the services that administer both |
//! | peer | `peer` | what nodes say to each other |
//! | ports | `serve` | which services are served where |
//! | error, status | `error`, `status` | why a call failed; the one table to gRPC codes |
//! | limits, accept | `limits`, `accept`, `slow_body` | what strangers may cost |
//! | traces | `traced` | which trace a call belongs to |
//! | channels | `channels` | connections to other nodes |
//! | counters | `counters` | what there was to count |
//! | convert | `convert` | the API's values and ours |
//! | pieces | `pieces` | how messages with batches in them go out |
//!
//! # Invariants
//! * **Everything is checked before anything is taken.** A refused call has changed nothing.
//! * **A server retries only what was surely not done**, or what can be done twice without harm. A
//!   deadline that ends after a proposal is answered with "outcome unknown".
//! * **Every wait is bounded** in time, and everything that waits in bytes or in number.
//! * **No large payload is copied**: a batch is a slice of what the connection read, and goes to
//!   other nodes and to readers from where it is; see [`crate::proto::stream`].

pub mod accept;
mod call;
mod channels;
mod cluster;
mod context;
pub mod convert;
mod counters;
mod error;
mod group;
pub mod limits;
mod log;
pub mod peer;
mod pieces;
mod serve;
mod slow_body;
pub mod status;
mod topic;
mod traced;

pub use self::call::Call;
pub use self::channels::{Channels, FORWARD_HEADER, FORWARD_OFF};
pub use self::cluster::ClusterApi;
pub use self::context::{Context, Found, Route, Target};
pub use self::counters::{Counters, Method, code_name};
pub use self::error::{Effect, Error};
pub use self::group::{GroupApi, forget_deleted};
pub use self::limits::Limits;
pub use self::log::LogApi;
pub use self::serve::Ports;
pub use self::slow_body::SlowBodyLayer;
pub use self::topic::TopicApi;
pub use self::traced::TraceLayer;

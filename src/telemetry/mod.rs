//! What a server tells its operators: metrics, health, logs, and which request a line belongs to.
//!
//! * [`Metrics`]: one registry for each server, so that several fit in one process. What happens is
//!   counted by handles; what only is, and what others count already, is asked for when it is read.
//! * [`http`]: the port with `/metrics`, `/healthz` and `/readyz`.
//! * [`tracing`]: how the process logs.
//!
//! It knows no other part of the server: numbers come to it, or are read through closures. No text
//! that a user chose is a label: topics are named by their ids.

pub mod http;
mod metrics;
mod process;
pub mod tracing;

pub use metrics::{
    Cluster, Described, Groups, Kind, Labeled, Metrics, Replication, Rpc, Storage, Timing,
    TopicMetrics,
};
pub use process::{Process, filesystem_of};

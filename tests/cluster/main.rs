//! Servers that make up a cluster, in one process or in several, over loopback.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

/// Logs of the servers, for `RUST_LOG`.
pub fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

mod founding;
mod groups;
mod processes;
mod python;
mod retention;
mod sharing;
mod starting;
mod support;

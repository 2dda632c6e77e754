//! Quipu: a partitioned, replicated, append-only log server.

pub mod batch;
pub mod proto;

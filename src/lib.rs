//! Quipu: a partitioned, replicated, append-only log server.

pub mod batch;
pub mod proto;
pub mod storage;
pub mod types;

//! Quipu: a partitioned, replicated, append-only log server.

pub mod storage;
pub mod types;

//! Quipu: a partitioned, replicated, append-only log server.

pub mod batch;
pub mod proto;
pub mod storage;
pub mod types;

const _: () = assert!(usize::BITS == 64, "whole segments are mapped: Quipu needs 64-bit addresses");

//! Tests of the log engine on the kernel's own files: power cuts on a real ext4, killed processes,
//! full disks, failed syncs, directories of others.
//!
//! What needs a file system of its own mounts one from an image, which only root can do. Without
//! root, or where a tool is missing, such a test says so and passes.
//!
//! | variable | what it sets |
//! |---|---|
//! | `QUIPU_POWER_CUTS` | how many power cuts, and how many kills, a run makes; 200 |
//! | `QUIPU_CRASH_SEED` | the seed of a run, as an earlier run printed it; random |
//! | `QUIPU_CRASH_WRITEBACK` | mounts with `data=writeback`, which promises less; not set |
//! | `QUIPU_CRASH_KEEP` | a directory that gets a copy of what a failed run left behind |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod check;
mod full;
mod guard;
mod image;
mod kernel;
mod ledger;
mod machine;
mod power;
#[path = "../storage/support.rs"]
#[allow(dead_code, unreachable_pub, reason = "the storage tests use the rest")]
mod support;
mod worker;

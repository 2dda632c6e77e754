//! The configuration of a server: what can be set, where from, and what comes out of it.
//!
//! One table, [`KEYS`], defines each key once: its name, what it takes, what it is when nobody sets
//! it, and what it does. The flags of `quipu serve`, the environment variables, the file, `--help`,
//! `quipu config show` and the sample file are all made from it.
//!
//! | source | `storage.segment_bytes` is called | wins over |
//! |---|---|---|
//! | default | | |
//! | file, given with `--config` | `segment_bytes` under `[storage]` | default |
//! | environment | `QUIPU_STORAGE_SEGMENT_BYTES` | file |
//! | flag | `--storage-segment-bytes` | environment |
//!
//! [`load`] refuses what it does not know and what is out of range, all of it at once, and says for
//! each value where it came from, what was found and what is allowed. What it returns is data: it
//! names no other part of the server, and nothing has been opened or started.
//!
//! Read next: `table.rs` for the keys, `key.rs` for what they take, `load.rs` for the layers.

mod args;
mod check;
mod error;
mod file;
mod key;
mod load;
mod sample;
mod server;
mod suggest;
mod table;
#[cfg(test)]
mod tests;
mod unit;

pub use args::Args;
pub use error::{Error, Problem};
pub use key::{Fallback, Key, Value};
pub use load::{Loaded, Origin, Setting, load};
pub use sample::sample;
pub use server::{Limits, Log, LogFormat, Raft, ServerConfig, Storage};
pub use table::KEYS;
pub(crate) use unit::Unit;

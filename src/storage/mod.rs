//! The log engine: entries in segment files, synchronous, with no runtime and no network.
//!
//! It owns everything that is on a node's disk. It knows nothing of Raft, of what a payload means,
//! or of who is asking; time comes in as an argument.
//!
//! | noun | file | what it is |
//! |---|---|---|
//! | entry | `entry` | header of 80 bytes and a payload that is never re-encoded |
//! | segment | `header`, `segment`, `walk`, `scan`, `window` | entries behind a checkpoint |
//! | index | `index` | a sparse table: index, offset, append time, position |
//! | log | `log`, `reader`, `repair` | segments in order; one writer, many readers |
//! | journal | `journal`, `facts` | what changes seldom: votes, log starts, watermarks |
//! | data directory | `dir`, `context`, `spare` | all logs of a node |
//! | threads | `sync`, `housekeeping` | making durable; making and removing files |
//! | recovery | `recovery`, `files`, `open`, `ending` | what a bad spot means after a restart |
//! | inspection | `inspect` | looking at all of it without opening it for use |
//! | seam | [`fs`] | the operating system, or a model of a bad one |
//!
//! # The life of an append
//! [`Log::append`] links and encodes headers and writes them with their payloads in one `pwritev`
//! into a file that is already long enough; readers see the entry at once through the segment's
//! mapping. The caller then hands the log's [`LogSync`] to the [`Syncer`], whose threads sync what
//! is dirty side by side and report once a round. Only what was synced is believed after a crash.
//!
//! ```
//! use std::sync::Arc;
//! use bytes::Bytes;
//! use quipu::storage::{Access, Config, DataDir, Entry, Kind, Tip, fs::os::OsFs};
//! use quipu::types::LogId;
//!
//! # fn main() -> quipu::storage::Result<()> {
//! # let temporary = tempfile::tempdir().unwrap();
//! # let path = temporary.path();
//! # let config = Config { low_water_bytes: 0, ..Config::default() };
//! let dir = DataDir::open(Arc::new(OsFs::new()), path, config)?;
//! let id = LogId(uuid::Uuid::from_u128(1));
//! let mut log = dir.create_log(id, Tip::EMPTY, b"")?;
//!
//! let payload = Bytes::from_static(b"hello");
//! let crc = crc32fast::hash(&payload);
//! let entry = Entry::new(Kind::Records, 1, 1, payload, crc).with_records(0, 1).at_time(1_700);
//! log.append(&mut [entry], &mut |_tip| Bytes::new())?;
//! assert_eq!(log.sync()?, 1, "entry 1 is on disk");
//!
//! let mut entries = Vec::new();
//! log.reader().read(1, u64::MAX, 1 << 20, Access::MayBlock, &mut entries)?;
//! assert_eq!(&entries[0].payload[..], b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! # What is written where it can be lost
//! Every such place carries a `DURABILITY:` comment. The rules are few: write, sync, rename, sync
//! the directory; remove only what something durable has replaced; never believe a sync that
//! follows a failed one; never overwrite what was published.

mod config;
mod context;
mod damage;
mod dir;
mod ending;
mod entry;
mod error;
mod facts;
mod files;
pub mod fs;
mod header;
mod housekeeping;
mod index;
mod inspect;
mod journal;
mod log;
mod open;
mod reader;
mod recovery;
mod repair;
mod retention;
mod scan;
mod segment;
mod spare;
mod sync;
mod walk;
mod window;

pub use self::config::Config;
pub use self::context::Failure;
pub use self::damage::Wound;
pub use self::dir::DataDir;
pub use self::entry::{
    Entry, EntryHeader, HEADER_BYTES, HeaderError, Kind, PAYLOAD_BYTES_MAX, frame_bytes,
};
pub use self::error::{Damage, Error, Result};
pub use self::header::{Discontinuity, Origin, SegmentHeader, SegmentHeaderError, Tip};
pub use self::index::{Row, SparseIndex};
pub use self::inspect::{
    EntryView, Inspector, JournalReport, LogReport, Note, OnEntry, Place, Report, SegmentReport,
    Start, State, Tally, Totals,
};
pub use self::journal::{Change, FactKind, Journal};
pub use self::log::{CheckpointAt, Log, LostTail};
pub use self::reader::LogReader;
pub use self::recovery::{Case, Class, FaultyRange, RecoveryReport};
pub use self::retention::{Policy, SegmentFacts, choose};
pub use self::segment::{Access, Segment};
pub use self::sync::{LogSync, OnRound, SyncRequest, Syncer};

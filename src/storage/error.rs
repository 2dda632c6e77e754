//! What can go wrong in the log engine, one variant for each thing a caller does differently.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::types::LogId;

/// Result of a storage call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Failure of a storage call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The operating system refused a call. The log is as it was before.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// There is no room for another segment or allocation step. Nothing was appended; the same
    /// append succeeds once space has returned.
    #[error(
        "no space in {}: {free} bytes are free, {wanted} are needed with the low-water mark; \
         free some space or lower the retention, then retry",
        path.display()
    )]
    NoSpace {
        /// Where space is short.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that would have to be free.
        wanted: u64,
    },
    /// A write or sync failed earlier, so what is on disk is unknown: this data
    /// directory takes no more writes until the process is restarted and has recovered.
    #[error("the data directory failed and takes no more writes until restart: {reason}")]
    Failed {
        /// The first failure.
        reason: Arc<str>,
    },
    /// Stored bytes are not what was written. Never skipped: the range is faulty until repaired.
    #[error("damaged: {0}")]
    Corrupt(Damage),
    /// The pages are not in memory: reading them now could wait for a disk.
    #[error("cold: the pages are not in memory, read again where waiting is allowed")]
    Cold,
    /// The entry does not continue the log.
    #[error("entry {index} does not continue the log: {field} is {found}, expected {expected}")]
    Misordered {
        /// Index of the refused entry.
        index: u64,
        /// Which header field breaks the order.
        field: &'static str,
        /// What would have continued the log.
        expected: u64,
        /// What the entry says.
        found: u64,
    },
    /// An entry exceeds a fixed bound of the format.
    #[error("entry {index} has a payload of {bytes} bytes, the format's bound is {max}")]
    TooLarge {
        /// Index of the refused entry.
        index: u64,
        /// Its payload length.
        bytes: u64,
        /// [`super::entry::PAYLOAD_BYTES_MAX`].
        max: u64,
    },
    /// The index lies outside what the log holds.
    #[error("index {requested} is outside the log, which holds {first} to {last}")]
    IndexOutOfRange {
        /// What was asked for.
        requested: u64,
        /// First index held.
        first: u64,
        /// Last index held, inclusive; `first - 1` when the log is empty.
        last: u64,
    },
    /// The offset lies outside what the log holds.
    #[error(
        "offset {requested} is outside the log: it starts at {log_start} and ends at {log_end}"
    )]
    OffsetOutOfRange {
        /// What was asked for.
        requested: u64,
        /// First offset that can be read.
        log_start: u64,
        /// Next offset to be assigned, exclusive.
        log_end: u64,
    },
    /// The durable end of the log was lost to damage: entries up to `last` were promised but cannot
    /// be read. Appends are refused until [`super::Log::repair`] has brought them back.
    #[error(
        "log {log} lost entries {first} to {last} to damage; they must be repaired from a peer \
         before the log takes more"
    )]
    TailLost {
        /// The log.
        log: LogId,
        /// First missing index.
        first: u64,
        /// Last missing index, inclusive.
        last: u64,
    },
    /// Entries offered for a repair do not fit the hole.
    #[error("these entries do not repair the log: {0}")]
    RepairRefused(String),
    /// Another process holds the data directory.
    #[error(
        "{} is in use by another process; stop it first or choose another directory", path.display()
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// The path is not a data directory of Quipu, or a file in it belongs elsewhere.
    #[error("{}: {reason}; nothing was touched", path.display())]
    Foreign {
        /// The offending path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file was written by a later version of this program.
    #[error(
        "{} has format version {found}, this program reads up to {supported}; \
         run the newer program on it, nothing was touched",
        path.display()
    )]
    FutureVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The highest version this program knows.
        supported: u32,
    },
    /// The meta journal lost promises that were durable (both copies are damaged). This node must
    /// not take part as the voter it was.
    #[error(
        "the meta journal in {} lost record {sequence}: both copies are damaged, so this \
         node's votes are unknown; remove it from the cluster and let it join anew",
        path.display()
    )]
    Amnesia {
        /// The journal's directory.
        path: PathBuf,
        /// First journal record that neither copy holds.
        sequence: u64,
    },
    /// No log with that id is in the data directory.
    #[error("no log {log} in {}", path.display())]
    UnknownLog {
        /// What was asked for.
        log: LogId,
        /// The data directory.
        path: PathBuf,
    },
}

impl Error {
    /// Wraps what the operating system said of `operation` on `path`.
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { operation, path: path.to_path_buf(), source: Arc::new(source) }
    }

    /// True if the system refused for want of space, or of quota.
    pub(super) fn is_full_disk(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_full_disk(source),
            Self::NoSpace { .. } => true,
            _ => false,
        }
    }

    /// True if the same call may succeed later without anyone's repair.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::NoSpace { .. } | Self::Cold | Self::InUse { .. } => true,
            Self::Io { .. }
            | Self::Failed { .. }
            | Self::Corrupt(_)
            | Self::Misordered { .. }
            | Self::TooLarge { .. }
            | Self::IndexOutOfRange { .. }
            | Self::OffsetOutOfRange { .. }
            | Self::TailLost { .. }
            | Self::RepairRefused(_)
            | Self::Foreign { .. }
            | Self::FutureVersion { .. }
            | Self::Amnesia { .. }
            | Self::UnknownLog { .. } => false,
        }
    }
}

/// True if an I/O error means that there is no space left for this user.
pub(super) fn is_full_disk(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// One place where stored bytes are not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[error("{} at position {position}: {what}", file.display())]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Byte in the file where the check failed.
    pub position: u64,
    /// Which check failed, with what was expected and found.
    pub what: String,
}

/// Attaches a path and a verb to an [`io::Result`].
pub(crate) trait IoContext<T> {
    /// Turns an I/O error into [`Error::Io`].
    fn at(self, operation: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::io(operation, path, source))
    }
}

//! What the log engine has promised so far, as the worker reported it and as recovery showed it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use quipu::storage::EntryHeader;
use quipu::types::LogId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What an entry is told apart by: it stands for the entry and, by its chain, for all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) end_offset: u64,
    pub(crate) payload_crc: u32,
    pub(crate) chain: u32,
}

impl Stamp {
    pub(crate) fn of(header: &EntryHeader) -> Self {
        let EntryHeader { payload_crc, chain, .. } = *header;
        Self { end_offset: header.end_offset(), payload_crc, chain }
    }
}

/// A line of the worker's report. Each is written in one call, after what it tells of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Line {
    /// The directory and its logs are open.
    Opened,
    /// A log is about to be created.
    WillCreate { log: u64 },
    /// A log is about to be deleted.
    WillDelete { log: u64 },
    /// A log's start is about to move.
    WillStart { log: u64, offset: u64 },
    /// What follows was called durable at this time.
    Round { at_us: u128 },
    /// Entries are durable.
    Entries { log: u64, entries: Vec<(u64, Stamp)> },
    /// A fact of a log has this value, or a later one, for good.
    Fact { log: u64, value: u64 },
    /// A log starts at this offset, or a later one, for good.
    Start { log: u64, offset: u64 },
    /// The directory was closed in order.
    Closed { at_us: u128 },
    /// The engine refused to go on.
    Failed { at_us: u128, error: String },
}

impl Line {
    fn is_promise(&self) -> bool {
        matches!(self, Self::Entries { .. } | Self::Fact { .. } | Self::Start { .. })
    }

    fn log(&self) -> u64 {
        match self {
            Self::WillCreate { log }
            | Self::WillDelete { log }
            | Self::WillStart { log, .. }
            | Self::Entries { log, .. }
            | Self::Fact { log, .. }
            | Self::Start { log, .. } => *log,
            Self::Opened | Self::Round { .. } | Self::Closed { .. } | Self::Failed { .. } => 0,
        }
    }
}

/// Everything that has to be there after a crash.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) logs: BTreeMap<u64, Promises>,
    /// The worker closed the directory.
    pub(crate) is_closed: bool,
    /// It may have, or did not get to open it.
    pub(crate) may_be_closed: bool,
    /// Why it ended by itself.
    pub(crate) failure: Option<String>,
    pub(crate) entries: u64,
    pub(crate) facts: u64,
}

/// What was promised of one log.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    pub(crate) entries: BTreeMap<u64, Stamp>,
    pub(crate) fact: u64,
    pub(crate) start: u64,
    /// How far the start may have moved.
    pub(crate) start_max: u64,
    /// Something of the log was durable, so that it must be there.
    pub(crate) exists: bool,
    /// It may be gone, wholly or in part.
    pub(crate) is_deleted: bool,
}

impl Ledger {
    /// Takes over what a worker reported that was to close the directory, or not. A last line that
    /// was cut short was never said.
    ///
    /// What was called durable after the power was cut was said by nobody: the kernel is still
    /// there and may answer a sync that was under way, the machine would not be.
    pub(crate) fn read(&mut self, report: &Path, closes: bool, cut_us: u128) -> Result<()> {
        self.is_closed = false;
        self.may_be_closed = true;
        self.failure = None;
        let mut is_late = false;
        let text = fs::read_to_string(report)?;
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            match serde_json::from_str(line).with_context(|| line.to_owned())? {
                Line::Opened => self.may_be_closed = closes,
                Line::Round { at_us } => is_late = at_us >= cut_us,
                Line::Closed { at_us } => self.is_closed = at_us < cut_us,
                Line::Failed { at_us, error } if at_us < cut_us => self.failure = Some(error),
                Line::Failed { .. } => {}
                line if line.is_promise() && is_late => {}
                line => self.note(line),
            }
        }
        Ok(())
    }

    /// Logs that were deleted.
    pub(crate) fn deleted(&self) -> Vec<u64> {
        let deleted = self.logs.iter().filter(|(_, promises)| promises.is_deleted);
        deleted.map(|(log, _)| *log).collect()
    }

    fn note(&mut self, line: Line) {
        let log = match line {
            Line::WillCreate { log } => return drop(self.logs.insert(log, Promises::default())),
            _ => line.log(),
        };
        let promises = self.logs.get_mut(&log).expect("a log is announced before all else");
        match line {
            Line::WillDelete { .. } => promises.is_deleted = true,
            Line::WillStart { offset, .. } => promises.start_max = promises.start_max.max(offset),
            Line::Entries { entries, .. } => {
                self.entries += entries.len() as u64;
                promises.exists = true;
                promises.entries.extend(entries);
            }
            Line::Fact { value, .. } => {
                self.facts += 1;
                promises.fact = promises.fact.max(value);
            }
            Line::Start { offset, .. } => promises.start = promises.start.max(offset),
            _ => unreachable!("{line:?} is about no log"),
        }
    }
}

/// The clock that both processes go by, in microseconds.
pub(crate) fn now_us() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("it is later than 1970").as_micros()
}

/// The id of log number `log`.
pub(crate) fn id(log: u64) -> LogId {
    LogId(Uuid::from_u128(u128::from(log)))
}

/// The number of the log with `id`.
pub(crate) fn number(id: LogId) -> u64 {
    u64::try_from(id.0.as_u128()).expect("the tests number their logs")
}

/// How value number `value` of a fact is written: the number, and more bytes for some.
pub(crate) fn fact(value: u64) -> Bytes {
    let filler = (value % 90) as usize;
    value.to_le_bytes().into_iter().chain((0..filler).map(|n| n as u8)).collect()
}

/// Reads what [`fact`] wrote; `None` for anything else.
pub(crate) fn fact_value(bytes: &Bytes) -> Option<u64> {
    let value = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (fact(value) == *bytes).then_some(value)
}

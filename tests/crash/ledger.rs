//! What the log engine has promised so far, as the worker reported it and as recovery showed it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

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
    /// Entries are durable.
    Entries { log: u64, entries: Vec<(u64, Stamp)> },
    /// A fact of a log has this value, or a later one, for good.
    Fact { log: u64, value: u64 },
    /// A log starts at this offset, or a later one, for good.
    Start { log: u64, offset: u64 },
    /// The directory was closed in order.
    Closed,
    /// The engine refused to go on.
    Failed { at_us: u128, error: String },
}

/// Everything that has to be there after a crash.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) logs: BTreeMap<u64, Promises>,
    /// The worker closed the directory.
    pub(crate) is_closed: bool,
    /// It may have, or did not get to open it.
    pub(crate) may_be_closed: bool,
    pub(crate) failure: Option<(u128, String)>,
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
    /// Takes over what a worker reported that was to close the directory, or not. A last line that was cut short was never said.
    pub(crate) fn read(&mut self, report: &Path, closes: bool) -> Result<()> {
        self.is_closed = false;
        self.may_be_closed = true;
        self.failure = None;
        let text = fs::read_to_string(report)?;
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let line = serde_json::from_str(line).with_context(|| line.to_owned())?;
            self.note(line, closes);
        }
        Ok(())
    }

    fn note(&mut self, line: Line, closes: bool) {
        match line {
            Line::Opened => self.may_be_closed = closes,
            Line::WillCreate { log } => drop(self.logs.insert(log, Promises::default())),
            Line::WillDelete { log } => self.log(log).is_deleted = true,
            Line::WillStart { log, offset } => {
                let promises = self.log(log);
                promises.start_max = promises.start_max.max(offset);
            }
            Line::Entries { log, entries } => {
                self.entries += entries.len() as u64;
                let promises = self.log(log);
                promises.exists = true;
                promises.entries.extend(entries);
            }
            Line::Fact { log, value } => {
                self.facts += 1;
                let promises = self.log(log);
                promises.fact = promises.fact.max(value);
            }
            Line::Start { log, offset } => {
                let promises = self.log(log);
                promises.start = promises.start.max(offset);
            }
            Line::Closed => self.is_closed = true,
            Line::Failed { at_us, error } => self.failure = Some((at_us, error)),
        }
    }

    fn log(&mut self, log: u64) -> &mut Promises {
        self.logs.get_mut(&log).expect("a log is announced before anything is said of it")
    }
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

//! Holds a data directory against the ledger: everything promised must be there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use quipu::storage::fs::Fs;
use quipu::storage::{Access, Class, Config, DataDir, Entry, Error, FactKind, Log, RecoveryReport};
use quipu::types::LogId;

use crate::ledger::{Ledger, Promises, Stamp, fact_value, id, number};
use crate::support::{checkpoint, next_entry, read_from};
use crate::worker::config;

/// How often an open is tried again that finds the directory in use. While another test of this
/// process starts a worker, that one holds copies of all locks for a moment.
const IN_USE_TRIES: usize = 500;

/// What was found over a whole run.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) cases: BTreeMap<String, u64>,
    pub(crate) classes: BTreeMap<String, u64>,
    pub(crate) entries_read: u64,
    pub(crate) bytes_cut: u64,
    pub(crate) quarantined: usize,
}

/// Opens a data directory with the sizes of the workers.
pub(crate) fn open_dir(fs: &Arc<dyn Fs>, root: &Path) -> quipu::storage::Result<DataDir> {
    open_dir_with(fs, root, &config())
}

/// Opens a data directory, waiting for a lock that is about to be released.
pub(crate) fn open_dir_with(
    fs: &Arc<dyn Fs>,
    root: &Path,
    config: &Config,
) -> quipu::storage::Result<DataDir> {
    let open = || DataDir::open(fs.clone(), root, config.clone());
    for _ in 0..IN_USE_TRIES {
        match open() {
            Err(Error::InUse { .. }) => thread::sleep(Duration::from_millis(2)),
            opened => return opened,
        }
    }
    open()
}

impl Findings {
    /// Checks everything and lets each log go on by an entry. `expected` is how the directory has
    /// to have been left. What is there now is promised from here on.
    pub(crate) fn check(
        &mut self,
        dir: &DataDir,
        ledger: &mut Ledger,
        expected: Class,
    ) -> Result<()> {
        let may_be_clean = ledger.may_be_closed && dir.class() == Class::Clean;
        let is_expected = dir.class() == expected || may_be_clean;
        ensure!(is_expected, "left as {:?}, not {expected:?}", dir.class());
        let expected = dir.class();
        *self.classes.entry(format!("{expected:?}")).or_default() += 1;
        let found = drop_deleted(dir, ledger)?;
        for (log, promises) in &ledger.logs {
            let may_be_gone = !promises.exists || promises.is_deleted;
            ensure!(may_be_gone || found.contains(&id(*log)), "log {log} is gone: {promises:?}");
        }
        for log_id in &found {
            let log = number(*log_id);
            let promises = ledger.logs.get_mut(&log).context("a log nobody created")?;
            match dir.open_log(*log_id) {
                Err(Error::UnknownLog { .. }) if !promises.exists => {
                    dir.delete_log(*log_id)?;
                    promises.is_deleted = true;
                }
                opened => {
                    let checked = self.check_log(dir, opened?, promises, expected);
                    checked.with_context(|| format!("log {log}"))?;
                }
            }
        }
        let is_known = |log: &u64, promises: &mut Promises| {
            promises.exists || promises.is_deleted || found.contains(&id(*log))
        };
        ledger.logs.retain(is_known);
        dir.check().map_err(Into::into)
    }

    fn check_log(
        &mut self,
        dir: &DataDir,
        opened: (Log, RecoveryReport),
        promises: &mut Promises,
        class: Class,
    ) -> Result<()> {
        let (mut log, report) = opened;
        let case = format!("{:?}", report.case);
        ensure!(class != Class::Clean || case == "Whole", "closed in order but {case}");
        *self.cases.entry(case).or_default() += 1;
        self.bytes_cut += report.tail_cut_bytes;
        ensure!(report.faulty.is_empty(), "a crash damages nothing: {:?}", report.faulty);
        ensure!(log.lost_tail().is_none(), "a crash loses nothing: {:?}", log.lost_tail());
        let known = dir.journal().get(log.id(), FactKind::HardState);
        check_fact(known.as_ref(), promises)?;
        let entries = check_entries(&log, promises)?;
        self.entries_read += entries.len() as u64;
        promises.entries = entries.iter().map(|e| (e.header.index, Stamp::of(&e.header))).collect();
        promises.start = promises.start.max(log.reader().log_start_offset());
        promises.start_max = promises.start_max.max(promises.start);
        promises.exists = true;
        let mut next = [next_entry(&log.tip(), 1, 20)];
        log.append(&mut next, &mut checkpoint).context("the log goes on")?;
        log.sync()?;
        promises.entries.insert(next[0].header.index, Stamp::of(&next[0].header));
        dir.close_log(log).map_err(Into::into)
    }
}

/// Deletes what was deleted before, and says which logs stay. A crash may bring a deleted log back,
/// or what is left of it; that is why its owner has to say so again.
fn drop_deleted(dir: &DataDir, ledger: &Ledger) -> Result<Vec<LogId>> {
    let is_deleted = |id: &LogId| ledger.logs.get(&number(*id)).is_some_and(|log| log.is_deleted);
    let (deleted, kept): (Vec<LogId>, Vec<LogId>) = dir.logs()?.into_iter().partition(is_deleted);
    for id in deleted {
        dir.delete_log(id).context("delete again")?;
    }
    Ok(kept)
}

fn check_fact(found: Option<&bytes::Bytes>, promises: &mut Promises) -> Result<()> {
    let value = match found {
        Some(bytes) => fact_value(bytes).with_context(|| format!("fact {bytes:?}"))?,
        None => 0,
    };
    ensure!(value >= promises.fact, "fact {value} is there, {} was promised", promises.fact);
    promises.fact = value;
    Ok(())
}

/// Reads the whole log and checks that it holds together and holds what was promised.
fn check_entries(log: &Log, promises: &Promises) -> Result<Vec<Entry>> {
    let reader = log.reader();
    let start = reader.log_start_offset();
    let (least, most) = (promises.start, promises.start_max);
    // The start may have been moved beyond what was on disk, and never lies beyond the end.
    let least = least.min(reader.log_end_offset());
    ensure!(start >= least && start <= most.max(least), "start {start}, not {least} to {most}");
    let first = reader.first_index();
    let entries = read_from(&reader, first)?;
    let mut tip = reader.tip_at(first - 1, Access::MayBlock)?;
    for entry in &entries {
        let index = entry.header.index;
        ensure!(entry.is_intact(), "the payload of entry {index}");
        tip.check_continued_by(&entry.header)?;
        let chain = entry.header.chain_after(tip.chain);
        ensure!(entry.header.chain == chain, "the chain of entry {index}");
        tip = reader.tip_at(index, Access::MayBlock)?;
    }
    ensure!(tip == log.tip(), "the log ends with {tip:?}, not with {:?}", log.tip());
    for (index, promised) in &promises.entries {
        let found = index.checked_sub(first).and_then(|at| entries.get(at as usize));
        match found.map(|entry| Stamp::of(&entry.header)) {
            Some(found) => ensure!(found == *promised, "entry {index}: {found:?}, {promised:?}"),
            None if promised.end_offset <= most && *index < first => {}
            None => bail!("entry {index} is gone, the log has {first} to {}", tip.index),
        }
    }
    Ok(entries)
}

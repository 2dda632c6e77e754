//! The process that is killed: it works on a data directory as a server would and reports what
//! became durable.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quipu::storage::fs::Fs;
use quipu::storage::{
    Access, Change, Config, DataDir, Entry, Error, FactKind, Kind, Log, Result, SyncRequest,
    Syncer, Tip,
};
use serde::{Deserialize, Serialize};

use crate::check::open_dir;
use crate::ledger::{Line, Stamp, fact, fact_value, id, now_us, number};
use crate::machine::{Machine, Sabotage};
use crate::support::{Random, checkpoint};

/// Holds the assignment of a worker process.
const VARIABLE: &str = "QUIPU_CRASH_WORKER";
/// A worker whose parent is gone ends by itself.
const LIFETIME: Duration = Duration::from_secs(10);
const TOKENS_MAX: usize = 64;
const LOGS_MAX: usize = 7;
const SEGMENTS_MAX: usize = 10;

/// What a worker is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Assignment {
    pub(crate) root: PathBuf,
    pub(crate) report: PathBuf,
    pub(crate) seed: u64,
    pub(crate) boot: u64,
    pub(crate) sabotage: Sabotage,
    /// Closes the directory in order after this many steps.
    pub(crate) closes_after: Option<u64>,
    /// Number of the first log it creates.
    pub(crate) next_log: u64,
    /// Logs that were deleted, and may be back, wholly or in part.
    pub(crate) deleted: Vec<u64>,
}

/// Sizes so small that a few milliseconds of work see every kind of change.
pub(crate) fn config() -> Config {
    Config {
        segment_bytes: 32 * 1024,
        index_interval_bytes: 512,
        allocation_bytes_first: 5 * 1024,
        allocation_bytes_max: 8 * 1024,
        spares_max: 2,
        open_segments_max: 4,
        low_water_bytes: 0,
        reserve_bytes: 128 * 1024,
        sync_threads: 2,
        sync_filesystem_from: 4,
        journal_rewrite_bytes: 16 * 1024,
    }
}

/// Starts this program again as a worker. What it prints goes to `output`.
pub(crate) fn start(assignment: &Assignment, output: File) -> anyhow::Result<Child> {
    let text = serde_json::to_string(assignment)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "worker::works_when_told_to", "--nocapture"]);
    command.env(VARIABLE, text).stdin(Stdio::null());
    Ok(command.stdout(output.try_clone()?).stderr(output).spawn()?)
}

/// Not a test of its own: the other tests start it in a process of its own.
#[test]
fn works_when_told_to() {
    if let Ok(text) = std::env::var(VARIABLE) {
        work(&serde_json::from_str(&text).unwrap());
    }
}

fn work(assignment: &Assignment) {
    let report = OpenOptions::new().append(true).create(true).open(&assignment.report).unwrap();
    let board = Arc::new(Board::new(report));
    let worked = Worker::open(assignment, &board).and_then(|worker| worker.run(assignment));
    match worked {
        Ok(()) => board.say(&Line::Closed { at_us: now_us() }),
        Err(error) => board.fail(&error),
    }
}

/// What waits to become durable, shared with the sync threads.
struct Board {
    state: Mutex<State>,
}

struct State {
    report: File,
    next_token: u64,
    /// What each token stands for.
    pledges: BTreeMap<u64, Pledge>,
    /// Appended entries that are not durable as far as is known, by log.
    entries: BTreeMap<u64, BTreeMap<u64, Stamp>>,
    /// Highest durable index by log, and the offset after it.
    durable: BTreeMap<u64, (u64, u64)>,
    /// Up to which index a log must not be truncated any more, durable or not.
    committed: BTreeMap<u64, u64>,
    /// Recorded facts that no token stands for yet.
    facts: Vec<Line>,
}

struct Pledge {
    log: Option<u64>,
    last_index: u64,
    facts: Vec<Line>,
}

impl Board {
    fn new(report: File) -> Self {
        let state = State {
            report,
            next_token: 0,
            pledges: BTreeMap::new(),
            entries: BTreeMap::new(),
            durable: BTreeMap::new(),
            committed: BTreeMap::new(),
            facts: Vec::new(),
        };
        Self { state: Mutex::new(state) }
    }

    fn say(&self, line: &Line) {
        self.state.lock().unwrap().say(std::slice::from_ref(line));
    }

    fn fail(&self, error: &Error) {
        self.say(&Line::Failed { at_us: now_us(), error: error.to_string() });
    }

    /// Called by the syncer.
    fn on_round(&self, round: Result<&[u64]>) {
        let at_us = now_us();
        match round {
            Ok(tokens) => self.state.lock().unwrap().keep(tokens, at_us),
            Err(error) => self.fail(&error),
        }
    }
}

impl State {
    /// In one write, so that a kill leaves whole lines but for the last one.
    fn say(&mut self, lines: &[Line]) {
        let text: String =
            lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        self.report.write_all(text.as_bytes()).unwrap();
    }

    fn keep(&mut self, tokens: &[u64], at_us: u128) {
        let mut lines = vec![Line::Round { at_us }];
        for token in tokens {
            let pledge = self.pledges.remove(token).expect("a token is reported once");
            lines.extend(pledge.facts);
            let Some(log) = pledge.log else { continue };
            let waiting = self.entries.entry(log).or_default();
            let later = waiting.split_off(&(pledge.last_index + 1));
            let entries: Vec<_> = std::mem::replace(waiting, later).into_iter().collect();
            if let Some((index, stamp)) = entries.last() {
                self.durable.insert(log, (*index, stamp.end_offset));
            }
            lines.push(Line::Entries { log, entries });
        }
        self.say(&lines);
    }
}

struct Worker {
    dir: DataDir,
    logs: BTreeMap<u64, Log>,
    board: Arc<Board>,
    syncer: Syncer,
    random: Random,
    next_fact: u64,
    next_log: u64,
}

impl Worker {
    fn open(assignment: &Assignment, board: &Arc<Board>) -> Result<Self> {
        let machine = Machine::new(assignment.boot, assignment.sabotage);
        let machine: Arc<dyn Fs> = machine;
        let dir = open_dir(&machine, &assignment.root)?;
        let mut logs = BTreeMap::new();
        let mut next_fact = 1;
        for log_id in dir.logs()? {
            let opened = dir.open_log(log_id);
            let is_deleted = assignment.deleted.contains(&number(log_id));
            // One that has no segment was never durable: else it will be missed.
            if is_deleted || matches!(opened, Err(Error::UnknownLog { .. })) {
                dir.delete_log(log_id)?;
                continue;
            }
            let (log, report) = opened?;
            if let Some(range) = report.faulty.into_iter().next() {
                return Err(Error::Corrupt(range.damage));
            }
            // What recovery found is durable.
            let tip = (log.tip().index, log.tip().end_offset);
            board.state.lock().unwrap().durable.insert(number(log_id), tip);
            logs.insert(number(log_id), log);
            let known = dir.journal().get(log_id, FactKind::HardState);
            next_fact = next_fact.max(known.as_ref().and_then(fact_value).unwrap_or(0) + 1);
        }
        let reporting = board.clone();
        let syncer = dir.start_syncer(Box::new(move |round| reporting.on_round(round)));
        let (board, random) = (board.clone(), Random::new(assignment.seed));
        let next_log = assignment.next_log;
        board.say(&Line::Opened);
        Ok(Self { dir, logs, board, syncer, random, next_fact, next_log })
    }

    fn run(mut self, assignment: &Assignment) -> Result<()> {
        let started = Instant::now();
        let mut steps = 0;
        while assignment.closes_after.is_none_or(|after| steps < after) {
            if started.elapsed() > LIFETIME {
                std::process::exit(0);
            }
            match self.step() {
                Ok(()) => {}
                Err(Error::NoSpace { .. }) => self.make_room()?,
                Err(error) => return Err(error),
            }
            steps += 1;
        }
        self.close()
    }

    fn close(self) -> Result<()> {
        drop(self.syncer);
        for log in self.logs.into_values() {
            self.dir.close_log(log)?;
        }
        self.dir.close()
    }

    fn step(&mut self) -> Result<()> {
        while self.board.state.lock().unwrap().pledges.len() >= TOKENS_MAX {
            self.dir.check()?;
            thread::sleep(Duration::from_micros(100));
        }
        let Some(log) = self.choose_log() else {
            return self.create();
        };
        match self.random.below(100) {
            0..60 => self.append(log),
            60..70 => self.record_fact(log),
            70..74 => self.logs.get_mut(&log).unwrap().roll(&mut checkpoint),
            74..80 => self.truncate(log),
            80..86 => self.advance_start_somewhere(log),
            86..92 => self.logs.get_mut(&log).unwrap().reclaim().map(drop),
            92..94 => self.logs[&log].record_watermark().map(drop),
            94..97 if self.logs.len() < LOGS_MAX => self.create(),
            97 if self.logs.len() > 2 => self.delete(log),
            _ => self.submit(Some(log)),
        }
    }

    fn choose_log(&mut self) -> Option<u64> {
        let count = self.logs.len() as u64;
        if count < 2 {
            return None;
        }
        let at = self.random.below(count) as usize;
        self.logs.keys().nth(at).copied()
    }

    fn create(&mut self) -> Result<()> {
        let log = self.next_log;
        self.next_log += 1;
        self.board.say(&Line::WillCreate { log });
        let created = self.dir.create_log(id(log), Tip::EMPTY, b"empty")?;
        self.logs.insert(log, created);
        self.append(log)
    }

    fn delete(&mut self, log: u64) -> Result<()> {
        self.board.say(&Line::WillDelete { log });
        self.logs.remove(&log);
        self.wait_for_rounds()?;
        self.dir.delete_log(id(log))
    }

    /// Waits until no sync thread is at work on anything.
    fn wait_for_rounds(&self) -> Result<()> {
        while !self.board.state.lock().unwrap().pledges.is_empty() {
            self.dir.check()?;
            thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    fn append(&mut self, log: u64) -> Result<()> {
        let count = 1 + self.random.below(8);
        let mut tip = self.logs[&log].tip();
        let mut entries = Vec::new();
        for _ in 0..count {
            let entry = self.next_entry(&tip);
            tip.index += 1;
            (tip.term, tip.end_offset) = (entry.header.term, entry.header.end_offset());
            tip.append_time_ms = entry.header.append_time_ms;
            entries.push(entry);
        }
        let opened = self.logs.get_mut(&log).unwrap();
        let appended = opened.append(&mut entries, &mut checkpoint);
        let last_index = opened.tip().index;
        let stamps = entries.iter().map(|e| (e.header.index, Stamp::of(&e.header)));
        let mut state = self.board.state.lock().unwrap();
        let waiting = state.entries.entry(log).or_default();
        waiting.extend(stamps.take_while(|(index, _)| *index <= last_index));
        drop(state);
        appended?;
        if self.random.chance(60) { self.submit(Some(log)) } else { Ok(()) }
    }

    /// An entry that no other one equals: replaced entries must be told apart from what replaced
    /// them.
    fn next_entry(&mut self, tip: &Tip) -> Entry {
        let len = match self.random.below(100) {
            0..70 => self.random.below(300),
            70..97 => self.random.below(6_000),
            97..99 => 0,
            _ => self.random.below(50_000),
        };
        let pattern = self.random.next().to_le_bytes();
        let payload: Bytes = pattern.into_iter().cycle().take(len as usize).collect();
        let crc = crc32fast::hash(&payload);
        let records = if payload.is_empty() { 0 } else { 1 + self.random.below(4) as u32 };
        let kind = if records == 0 { Kind::NoOp } else { Kind::Records };
        Entry::new(kind, tip.index + 1, tip.term.max(1), payload, crc)
            .with_records(tip.end_offset, records)
            .at_time(tip.append_time_ms.max(0) + self.random.below(3).cast_signed())
    }

    fn record_fact(&mut self, log: u64) -> Result<()> {
        let value = self.next_fact;
        self.next_fact += 1;
        let bytes = Some(fact(value));
        self.dir.journal().record(&[Change {
            log: id(log),
            kind: FactKind::HardState,
            value: bytes,
        }])?;
        self.board.state.lock().unwrap().facts.push(Line::Fact { log, value });
        let request = self.random.chance(50).then_some(log);
        self.submit(request)
    }

    /// Asks for durability of a log, or of the journal alone, and of all facts so far.
    fn submit(&mut self, log: Option<u64>) -> Result<()> {
        let mut state = self.board.state.lock().unwrap();
        let token = state.next_token;
        state.next_token += 1;
        let facts = std::mem::take(&mut state.facts);
        let last_index = log.map_or(0, |log| self.logs[&log].tip().index);
        state.pledges.insert(token, Pledge { log, last_index, facts });
        drop(state);
        let log = log.map(|log| self.logs[&log].syncer_handle());
        self.syncer.submit(SyncRequest { log, token });
        Ok(())
    }

    /// Removes entries that are not durable yet, or none.
    fn truncate(&mut self, log: u64) -> Result<()> {
        let mut state = self.board.state.lock().unwrap();
        let opened = self.logs.get_mut(&log).unwrap();
        let durable = state.durable.get(&log).map_or(0, |(index, _)| *index);
        let kept = durable.max(state.committed.get(&log).copied().unwrap_or(0));
        let first_index = kept + 1 + self.random.below(opened.tip().index - kept + 1);
        opened.truncate_suffix(first_index, kept, None)?;
        if let Some(waiting) = state.entries.get_mut(&log) {
            waiting.split_off(&first_index);
        }
        // A round under way may have synced what was removed; it says nothing of what comes now.
        for pledge in state.pledges.values_mut().filter(|pledge| pledge.log == Some(log)) {
            pledge.last_index = pledge.last_index.min(first_index - 1);
        }
        Ok(())
    }

    fn advance_start_somewhere(&mut self, log: u64) -> Result<()> {
        let reader = self.logs[&log].reader();
        let segments = reader.segments().len();
        let (start, end) = (reader.log_start_offset(), reader.log_end_offset());
        if segments < SEGMENTS_MAX && self.random.chance(70) {
            return Ok(());
        }
        let offset = start.min(end) + self.random.below(end.saturating_sub(start) + 1);
        self.advance_start(log, offset)
    }

    fn advance_start(&mut self, log: u64, offset: u64) -> Result<()> {
        let opened = self.logs.get_mut(&log).unwrap();
        let reader = opened.reader();
        if offset < reader.log_start_offset() || offset > reader.log_end_offset() {
            return Ok(());
        }
        self.board.say(&Line::WillStart { log, offset });
        // Only what is committed is given up, and that may not be on this disk yet.
        let committed = reader.index_of_offset(offset, Access::MayBlock)? - 1;
        let mut state = self.board.state.lock().unwrap();
        state.committed.insert(log, committed);
        opened.advance_log_start(offset, u64::MAX)?;
        if state.durable.get(&log).is_some_and(|(_, end_offset)| offset <= *end_offset) {
            state.facts.push(Line::Start { log, offset });
        }
        Ok(())
    }

    /// Gives up the older half of every log.
    fn make_room(&mut self) -> Result<()> {
        let logs: Vec<u64> = self.logs.keys().copied().collect();
        for log in logs {
            let reader = self.logs[&log].reader();
            let (start, end) = (reader.log_start_offset(), reader.log_end_offset());
            self.advance_start(log, start.midpoint(end))?;
        }
        self.submit(None)?;
        self.wait_for_rounds()?;
        self.logs.values_mut().try_for_each(|log| log.reclaim().map(drop))
    }
}

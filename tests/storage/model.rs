//! Random operations on a log, with crashes, failing disks and orderly restarts, against a plain
//! vector. A seed decides everything; `QUIPU_MODEL_SEED` runs one, `QUIPU_MODEL_SEEDS` says how
//! many.

use quipu::storage::fs::sim::{Pending, SimFs};
use quipu::storage::{Access, Case, Class, Config, DataDir, Entry, Error, Log, Policy, Tip};

use crate::support::*;

/// What the log may look like after a crash: entries from `first_index` on, of which those up to
/// `floor` are on disk for certain.
#[derive(Clone)]
struct History {
    entries: Vec<Entry>,
    floor: u64,
}

struct Model {
    seed: u64,
    random: Random,
    fs: SimFs,
    dir: Option<DataDir>,
    log: Option<Log>,
    /// The log as it is.
    now: History,
    /// What a crash may bring back instead, since truncations are durable only with the next sync.
    before: Vec<History>,
    /// Log starts that a crash may leave behind; the last is the current one.
    starts: Vec<u64>,
    /// How often each rare thing happened.
    seen: Seen,
}

#[derive(Default, Debug)]
struct Seen {
    torn: u32,
    truncations_undone: u32,
    clean: u32,
    failed: u32,
    no_space: u32,
    rolled: u32,
    dropped: u32,
}

fn config(seed: u64) -> Config {
    Config {
        segment_bytes: [6 * 1024, 8 * 1024, 20 * 1024][seed as usize % 3],
        spares_max: seed as usize % 2,
        sync_filesystem_from: if seed.is_multiple_of(5) { 1 } else { 9 },
        journal_rewrite_bytes: 2048,
        ..Config::tiny()
    }
}

impl Model {
    fn new(seed: u64) -> Self {
        let fs = SimFs::new();
        let dir = open_dir_with(&fs, config(seed)).unwrap();
        let log = dir.create_log(LOG, Tip::EMPTY, b"start").unwrap();
        log.sync().unwrap();
        Self {
            seed,
            random: Random::new(seed),
            fs,
            dir: Some(dir),
            log: Some(log),
            now: History { entries: Vec::new(), floor: 0 },
            before: Vec::new(),
            starts: vec![0],
            seen: Seen::default(),
        }
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().unwrap()
    }

    fn dir(&self) -> &DataDir {
        self.dir.as_ref().unwrap()
    }

    fn step(&mut self) {
        let op = self.random.below(100);
        if std::env::var("QUIPU_MODEL_SEED").is_ok() {
            let first = self.log().reader().first_index();
            eprintln!("{op}: log {first}..{}", self.log().tip().index);
        }
        match op {
            0..40 => self.append(),
            40..58 => self.sync(),
            58..61 => self.roll(),
            61..66 => self.truncate(),
            66..72 => self.retain(),
            72..82 => self.look_up(),
            82..86 => self.crash(Class::MachineCrash),
            86..89 => self.crash(Class::ProcessCrash),
            89..92 => self.restart(),
            92..94 => self.fail_sync(),
            94..96 => self.fail_write(),
            _ => self.fill_disk(),
        }
    }

    fn check_tip(&mut self) {
        let tip = self.log().tip();
        let last = self.now.entries.last().map_or((0, 0), |e| (e.header.index, e.header.chain));
        assert_eq!(last, (tip.index, tip.chain), "the model's last entry is the log's");
    }

    fn some_entries(&mut self) -> Vec<Entry> {
        let mut tip = self.log().tip();
        let count = 1 + self.random.below(4);
        let mut entries = Vec::new();
        for _ in 0..count {
            let (records, len) = (self.random.below(4) as u32, self.random.below(900) as usize);
            tip.term = tip.term.max(1) + u64::from(self.random.chance(3));
            let entry = next_entry(&tip, records, len);
            tip.index += 1;
            tip.end_offset = entry.header.end_offset();
            tip.append_time_ms = entry.header.append_time_ms;
            entries.push(entry);
        }
        entries
    }

    fn append(&mut self) {
        let mut entries = self.some_entries();
        let before = self.log().reader().segments().len();
        self.log().append(&mut entries, &mut checkpoint).unwrap();
        self.seen.rolled += (self.log().reader().segments().len() - before) as u32;
        self.now.entries.extend(entries);
    }

    fn sync(&mut self) {
        let last = self.log().tip().index;
        assert_eq!(self.log().sync().unwrap(), last);
        self.now.floor = last;
        self.before.clear();
        if self.random.chance(30) {
            self.log().record_watermark().unwrap();
        }
        if self.random.chance(50) {
            self.dir().journal().sync().unwrap();
            self.starts.drain(..self.starts.len() - 1);
            self.log().reclaim().unwrap();
        }
    }

    fn roll(&mut self) {
        self.log().roll(&mut checkpoint).unwrap();
    }

    fn truncate(&mut self) {
        let first = self.log().reader().first_index();
        let last = self.log().tip().index;
        let start = *self.starts.last().unwrap();
        let keeps_start = |log: &Log, index| {
            log.reader().tip_at(index, Access::MayBlock).unwrap().end_offset >= start
        };
        let kept = first - 1 + self.random.below(last + 2 - first);
        if !keeps_start(self.log(), kept) {
            return;
        }
        self.before.push(self.now.clone());
        self.log().truncate_suffix(kept + 1, kept, Some(b"cut")).unwrap();
        self.now.entries.retain(|entry| entry.header.index <= kept);
        self.now.floor = self.now.floor.min(kept);
    }

    fn retain(&mut self) {
        let policy =
            Policy { bytes: Some(4 * config(self.seed).segment_bytes), ..Policy::default() };
        self.seen.dropped += self.log().retain(&policy, u64::MAX, 0).unwrap() as u32;
        let start = self.log().reader().log_start_offset();
        self.starts.push(start);
        let end = self.log().tip().end_offset;
        if end > start && self.random.chance(20) {
            let offset = start + self.random.below(end - start + 1);
            self.log().advance_log_start(offset, u64::MAX).unwrap();
        }
        let start = self.log().reader().log_start_offset();
        self.starts.push(start);
    }

    fn look_up(&mut self) {
        let reader = self.log().reader();
        let first = reader.first_index();
        let kept: Vec<&Entry> =
            self.now.entries.iter().filter(|entry| entry.header.index >= first).collect();
        let start = reader.log_start_offset();
        let end = reader.log_end_offset();
        if end > start {
            let offset = start + self.random.below(end - start);
            let holds =
                |e: &&&Entry| e.header.base_offset <= offset && offset < e.header.end_offset();
            let expected = kept.iter().find(holds).unwrap().header.index;
            assert_eq!(reader.index_of_offset(offset, Access::MayBlock).unwrap(), expected);
        }
        let time = self.random.below(10 * self.now.entries.len() as u64 + 20) as i64;
        let is_found = |e: &&&Entry| {
            e.header.append_time_ms >= time
                && e.header.record_count > 0
                && e.header.end_offset() > start
        };
        let expected = kept.iter().find(is_found);
        let expected = expected.map(|e| (e.header.base_offset.max(start), e.header.index));
        assert_eq!(reader.offset_for_time(time, Access::MayBlock).unwrap(), expected);
    }

    fn crash(&mut self, class: Class) {
        self.log = None;
        self.dir = None;
        if class == Class::MachineCrash {
            let percent = [0, 10, 50, 90, 100][self.random.below(5) as usize];
            let random = &mut self.random;
            self.fs.power_cut(|_: &Pending| random.chance(percent));
        } else {
            self.fs.process_crash();
        }
        self.reopen();
    }

    fn reopen(&mut self) {
        let dir = open_dir_with(&self.fs, config(self.seed)).unwrap();
        let (log, report) = dir.open_log(LOG).unwrap();
        assert!(report.faulty.is_empty(), "a crash is no damage: {report:?}");
        assert!(!matches!(report.case, Case::CorruptMiddle | Case::LostTail), "{report:?}");
        self.seen.torn += u32::from(report.case != Case::Whole);
        self.seen.clean += u32::from(report.class == Class::Clean);
        let found = read_all(&log);
        let first = log.reader().first_index();
        let last = log.tip().index;
        let candidates = std::iter::once(&self.now).chain(self.before.iter().rev());
        let matching: Vec<(usize, &History)> = candidates
            .enumerate()
            .filter(|(_, history)| history.floor <= last && history.agrees(&found, first, last))
            .collect();
        let (number, history) = matching.first().unwrap_or_else(|| {
            let all = std::iter::once(&self.now).chain(&self.before);
            let differs = |h: &History| {
                let kept: Vec<Entry> =
                    h.entries.iter().filter(|e| e.header.index >= first).cloned().collect();
                essence(&kept)
                    .into_iter()
                    .zip(essence(&found))
                    .find(|(mine, theirs)| mine != theirs)
            };
            let all: Vec<_> = all.map(|h| (h.floor, h.entries.len(), differs(h))).collect();
            panic!(
                "entries {first} to {last} are not of any (floor, length) of {all:?}; {report:?}"
            )
        });
        self.seen.truncations_undone += u32::from(*number > 0);
        let mut entries = history.entries.clone();
        entries.retain(|entry| entry.header.index <= last);
        self.now = History { entries, floor: last };
        self.before.clear();
        let start = log.reader().log_start_offset();
        assert!(self.starts.contains(&start), "log start {start}, expected {:?}", self.starts);
        self.starts = vec![start];
        (self.dir, self.log) = (Some(dir), Some(log));
    }

    /// Closes in order and opens again: nothing at all may be missing.
    fn restart(&mut self) {
        let dir = self.dir.take().unwrap();
        let log = self.log.take().unwrap();
        self.now.floor = log.tip().index;
        self.before.clear();
        self.starts.drain(..self.starts.len() - 1);
        dir.close_log(log).unwrap();
        dir.close().unwrap();
        if self.random.chance(50) {
            self.fs.power_cut(|_| false);
        }
        self.reopen();
    }

    fn fail_sync(&mut self) {
        self.append();
        self.fs.fail_sync(0);
        assert!(self.log().sync().is_err());
        self.seen.failed += 1;
        self.refuses_everything();
        let class = if self.random.chance(50) { Class::MachineCrash } else { Class::ProcessCrash };
        self.crash(class);
    }

    fn fail_write(&mut self) {
        let kept = self.random.below(400) as usize;
        self.fs.fail_write(0, kept);
        let mut entries = self.some_entries();
        if self.log().append(&mut entries, &mut checkpoint).is_ok() {
            unreachable!("the write was made to fail");
        }
        self.forget_unfinished(&entries);
        self.fs.fail_write(u64::MAX, 0);
        // What failed may be there after all: the outcome of a failed append is unknown.
        let last = self.log().tip().index;
        let mut all = self.now.clone();
        all.entries.extend(entries.into_iter().filter(|entry| entry.header.index > last));
        self.before.push(all);
        // An error while a segment was being made is harmless, one in the midst of entries is
        // final.
        if self.dir().check().is_err() {
            self.seen.failed += 1;
            self.refuses_everything();
            self.crash(Class::ProcessCrash);
        }
    }

    /// An append that failed may have appended its first entries; the log says how far it came.
    fn forget_unfinished(&mut self, entries: &[Entry]) {
        let last = self.log().tip().index;
        let done = entries.iter().filter(|entry| entry.header.index <= last);
        self.now.entries.extend(done.cloned());
    }

    fn refuses_everything(&mut self) {
        let mut entries = self.some_entries();
        let refused = self.log().append(&mut entries, &mut checkpoint);
        assert!(matches!(refused, Err(Error::Failed { .. })), "{refused:?}");
        assert!(matches!(self.log().sync(), Err(Error::Failed { .. })));
    }

    fn fill_disk(&mut self) {
        let used: u64 = self.fs.used_bytes();
        self.fs.set_capacity(Some(used + self.random.below(2000)));
        for _ in 0..40 {
            let mut entries = self.some_entries();
            match self.log().append(&mut entries, &mut checkpoint) {
                Ok(()) => self.now.entries.extend(entries),
                Err(Error::NoSpace { .. }) => {
                    self.seen.no_space += 1;
                    self.forget_unfinished(&entries);
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(read_all(self.log.as_ref().unwrap()).len(), self.kept_count());
        self.fs.set_capacity(None);
        self.append();
        self.sync();
    }

    fn kept_count(&self) -> usize {
        let first = self.log.as_ref().unwrap().reader().first_index();
        self.now.entries.iter().filter(|entry| entry.header.index >= first).count()
    }
}

impl History {
    /// True if `found`, the entries from `first` to `last`, is what this history has there.
    fn agrees(&self, found: &[Entry], first: u64, last: u64) -> bool {
        let mine: Vec<Entry> = self
            .entries
            .iter()
            .filter(|e| first <= e.header.index && e.header.index <= last)
            .cloned()
            .collect();
        mine.len() == found.len() && essence(&mine) == essence(found)
    }
}

#[test]
fn a_log_behaves_like_a_vector_whatever_happens_to_the_disk() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("QUIPU_MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..number("QUIPU_MODEL_SEEDS").unwrap_or(300) + 1,
    };
    let is_whole_run = seeds.end > 100;
    let mut total = Seen::default();
    for seed in seeds {
        let run = std::panic::AssertUnwindSafe(|| {
            let mut model = Model::new(seed);
            for _ in 0..120 {
                model.step();
                model.check_tip();
            }
            model.seen
        });
        let seen = std::panic::catch_unwind(run).unwrap_or_else(|panic| {
            eprintln!("QUIPU_MODEL_SEED={seed} fails");
            std::panic::resume_unwind(panic)
        });
        total.torn += seen.torn;
        total.truncations_undone += seen.truncations_undone;
        total.clean += seen.clean;
        total.failed += seen.failed;
        total.no_space += seen.no_space;
        total.rolled += seen.rolled;
        total.dropped += seen.dropped;
    }
    if is_whole_run {
        let all = [total.torn, total.truncations_undone, total.clean, total.failed];
        let more = [total.no_space, total.rolled, total.dropped];
        assert!(all.iter().chain(&more).all(|count| *count > 20), "too rare: {total:?}");
    }
    println!("{total:?}");
}

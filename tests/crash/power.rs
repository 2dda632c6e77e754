//! Power cuts and kills, again and again on the same directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use quipu::storage::Class;
use quipu::storage::fs::Fs;

use crate::check::{Findings, open_dir};
use crate::image::Image;
use crate::kernel::{self, Cut};
use crate::ledger::{Ledger, now_us};
use crate::machine::{Machine, Sabotage};
use crate::support::Random;
use crate::worker::{self, Assignment};

const CYCLES: u64 = 200;
const IMAGE_BYTES: u64 = 48 << 20;
const PAGE_BYTES: u64 = 4096;
/// What the kernel may do with unsynced bytes differs with these.
const ORDERED: [&str; 3] = ["data=ordered", "data=ordered,nodelalloc", "data=ordered,commit=1"];
const WRITEBACK: [&str; 2] = ["data=writeback", "data=writeback,nodelalloc"];

/// How a worker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    PowerCut,
    Kill,
}

#[test]
fn nothing_synced_is_lost_in_a_power_cut() {
    run_and_report(End::PowerCut);
}

#[test]
fn nothing_synced_is_lost_when_the_process_is_killed() {
    run_and_report(End::Kill);
}

#[test]
fn a_skipped_segment_sync_is_noticed() {
    expect_noticed(Sabotage::SkipSegmentSync);
}

#[test]
fn a_skipped_journal_sync_is_noticed() {
    expect_noticed(Sabotage::SkipJournalSync);
}

#[test]
fn a_skipped_directory_sync_is_noticed() {
    expect_noticed(Sabotage::SkipDirectorySync);
}

#[test]
fn a_name_given_before_the_sync_is_noticed() {
    expect_noticed(Sabotage::RenameBeforeSync);
}

fn run_and_report(end: End) {
    let seed = seed();
    let cycles =
        std::env::var("QUIPU_POWER_CUTS").map_or(CYCLES, |text| text.parse().expect("a number"));
    println!("QUIPU_CRASH_SEED={seed} QUIPU_POWER_CUTS={cycles}");
    let Some(mut run) = Run::start(seed, end, Sabotage::None) else { return };
    let started = Instant::now();
    for cycle in 0..cycles {
        let result = run.cycle();
        if let Err(error) = result {
            let kept = run.keep(seed);
            panic!("{end:?}, seed {seed}, cycle {cycle}: {error:#}\n{kept}{}", run.output());
        }
    }
    run.tell(started.elapsed());
}

/// Breaks a rule of durability on purpose and expects that promises are found broken soon.
fn expect_noticed(sabotage: Sabotage) {
    let seed = seed();
    println!("QUIPU_CRASH_SEED={seed}");
    let Some(mut run) = Run::start(seed, End::PowerCut, sabotage) else { return };
    let noticed = (1..=CYCLES).find_map(|cycle| Some((cycle, run.cycle().err()?)));
    let (cycle, error) = noticed.expect("a broken rule breaks promises");
    println!("noticed in cycle {cycle}: {error:#}");
}

fn seed() -> u64 {
    let given = std::env::var("QUIPU_CRASH_SEED").ok();
    given.map_or_else(|| now_us() as u64, |text| text.parse().expect("a seed is a number"))
}

/// A directory that lives through many crashes.
struct Run {
    image: Image,
    end: End,
    sabotage: Sabotage,
    /// The kernel orders data after names as it likes.
    writeback: bool,
    random: Random,
    ledger: Ledger,
    findings: Findings,
    boot: u64,
    cycles: u64,
    /// Workers that ended while they were still opening.
    early: u64,
    closed: u64,
}

impl Run {
    fn start(seed: u64, end: End, sabotage: Sabotage) -> Option<Self> {
        let mut random = Random::new(seed);
        let block_bytes = if random.chance(50) { 1024 } else { 4096 };
        let mut image = Image::make(IMAGE_BYTES, block_bytes)?;
        image.mount(ORDERED[0]).unwrap();
        let writeback = std::env::var_os("QUIPU_CRASH_WRITEBACK").is_some();
        let mut run = Self {
            image,
            end,
            sabotage,
            writeback,
            random,
            ledger: Ledger::default(),
            findings: Findings::default(),
            boot: 1,
            cycles: 0,
            early: 0,
            closed: 0,
        };
        run.verify(Class::Clean).unwrap();
        Some(run)
    }

    fn root(&self) -> PathBuf {
        self.image.mount_point().join("data")
    }

    fn report(&self) -> PathBuf {
        self.image.beside("report")
    }

    /// Copies the directory of a failed run if `QUIPU_CRASH_KEEP` says where to, and says so.
    fn keep(&self, seed: u64) -> String {
        let Ok(place) = std::env::var("QUIPU_CRASH_KEEP") else { return String::new() };
        let to = Path::new(&place).join(format!("crash-{seed}"));
        let copied = Command::new("cp").arg("-a").arg(self.root()).arg(&to).status();
        let told = fs::write(to.join("ledger"), format!("{:#?}", self.ledger));
        format!("kept in {}: {copied:?} {told:?}\n", to.display())
    }

    /// What the last worker printed.
    fn output(&self) -> String {
        fs::read_to_string(self.image.beside("output")).unwrap_or_default()
    }

    /// Lets a worker work, ends it, and checks what is left; sometimes only after another one had
    /// to recover and was ended too.
    fn cycle(&mut self) -> Result<()> {
        self.cycles += 1;
        let closes_after = self.random.chance(10).then(|| self.random.below(200));
        let cut_us = self.work(closes_after)?.unwrap_or(u128::MAX);
        self.ledger.read(&self.report(), closes_after.is_some(), cut_us)?;
        fs::remove_file(self.report())?;
        if let Some(error) = &self.ledger.failure {
            bail!("the worker failed: {error}");
        }
        let is_closed = self.ledger.is_closed;
        self.closed += u64::from(is_closed);
        let is_checked = is_closed || self.random.chance(80);
        if !is_checked {
            return Ok(());
        }
        let class = match (is_closed, self.end) {
            (true, _) => Class::Clean,
            (false, End::PowerCut) => Class::MachineCrash,
            (false, End::Kill) => Class::ProcessCrash,
        };
        self.verify(class)
    }

    fn verify(&mut self, class: Class) -> Result<()> {
        let machine: Arc<dyn Fs> = Machine::new(self.boot, Sabotage::None);
        let dir = open_dir(&machine, &self.root())?;
        self.findings.check(&dir, &mut self.ledger, class)?;
        let quarantine = self.root().join("quarantine");
        let quarantined = files_in(&quarantine);
        // Without ordered data, a removed name that comes back may lead to bytes of other files.
        let is_clean = self.writeback || quarantined.is_empty();
        ensure!(is_clean, "a crash makes nothing unknown: {quarantined:?}");
        self.findings.quarantined = quarantined.len();
        if self.random.chance(30) { dir.close().map_err(Into::into) } else { Ok(()) }
    }

    /// Runs a worker until its end, and says when the power was cut.
    fn work(&mut self, closes_after: Option<u64>) -> Result<Option<u128>> {
        let assignment = Assignment {
            root: self.root(),
            report: self.report(),
            seed: self.random.next(),
            boot: self.boot,
            sabotage: self.sabotage,
            closes_after,
            next_log: self.cycles * 1000,
            deleted: self.ledger.deleted(),
        };
        File::create(&assignment.report)?;
        let output = File::create(self.image.beside("output"))?;
        let mut child = worker::start(&assignment, output)?;
        let watched = self.watch(&mut child, closes_after.is_some());
        let cut = if watched.is_ok() { self.end_worker() } else { Ok(None) };
        // Whatever went wrong, no worker is left behind.
        let killed = child.kill();
        let status = child.wait()?;
        watched?;
        killed?;
        ensure!(status.code().is_none_or(|code| code == 0), "the worker panicked: {status}");
        let cut = cut?;
        if self.end == End::PowerCut {
            self.image.unmount()?;
            self.boot += 1;
            let options = if self.writeback { &WRITEBACK[..] } else { &ORDERED[..] };
            let at = self.random.below(options.len() as u64) as usize;
            self.image.mount(options[at])?;
        }
        Ok(cut)
    }

    /// Waits for the moment of the crash: most often while the worker works, sometimes while it
    /// still opens the directory.
    fn watch(&mut self, child: &mut Child, closes: bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let is_early = self.random.chance(15);
        let report = self.report();
        let has_opened = || fs::metadata(&report).is_ok_and(|found| found.len() > 0);
        while !is_early && !has_opened() && child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the worker does not open the directory");
            thread::sleep(Duration::from_micros(200));
        }
        let longest_us = if closes { 200_000 } else { 30_000 };
        let wait = Duration::from_micros(self.random.below(longest_us));
        let crash_at = Instant::now() + wait;
        while Instant::now() < crash_at && child.try_wait()?.is_none() {
            thread::sleep(Duration::from_micros(500).min(wait));
        }
        self.early += u64::from(!has_opened());
        Ok(())
    }

    /// Cuts the power, if that is how this run ends workers, and says when.
    fn end_worker(&mut self) -> Result<Option<u128>> {
        if self.end == End::Kill {
            return Ok(None);
        }
        if self.random.chance(60) {
            self.write_some_out();
        }
        let at_us = now_us();
        let cut = if self.random.chance(25) { Cut::JournalFlushed } else { Cut::Nothing };
        self.image.cut_power(cut).context("cut the power")?;
        Ok(Some(at_us))
    }

    /// Lets some of what is not synced reach the disk, in an order of its own, as the kernel may at
    /// any time. Files may go while this looks at them.
    fn write_some_out(&mut self) {
        let files = files_in(&self.root());
        for _ in 0..self.random.below(30) {
            let path = &files[self.random.below(files.len() as u64) as usize];
            let Ok(file) = File::open(path) else { continue };
            let pages = file.metadata().map_or(0, |found| found.len() / PAGE_BYTES);
            let page = self.random.below(pages + 1);
            let _ = match self.random.below(40) {
                0 => file.sync_all(),
                _ => kernel::write_out(&file, PAGE_BYTES * page, PAGE_BYTES),
            };
        }
    }

    fn tell(&self, elapsed: Duration) {
        println!(
            "{} ends by {:?} in {:.1} s: {} entries and {} facts promised; {} entries read back; \
             {} ends while opening, {} after closing; {} bytes of tails cut; cases {:?}; \
             left as {:?}; writeback {}, {} files in quarantine",
            self.cycles,
            self.end,
            elapsed.as_secs_f64(),
            self.ledger.entries,
            self.ledger.facts,
            self.findings.entries_read,
            self.early,
            self.closed,
            self.findings.bytes_cut,
            self.findings.cases,
            self.findings.classes,
            self.writeback,
            self.findings.quarantined,
        );
    }
}

/// All files below a directory, in order.
pub(crate) fn files_in(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir { dirs.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files.sort_unstable();
    files
}

//! Runs: many seeds side by side, and what came of them.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::plan::Plan;
use crate::tally::Tally;
use crate::world::World;

/// One seed in so many runs twice, to see that it is the same run.
const TWICE_EVERY: u64 = 100;
/// After so many failures the cause is worth more than the count.
pub const FAILURES_MAX: usize = 20;

/// Which seeds to run.
#[derive(Debug, Clone, Copy)]
pub struct Runs {
    pub first: u64,
    pub count: u64,
    pub time_max: Duration,
    pub threads: usize,
    /// After so many failures no more seeds are begun.
    pub failures_max: usize,
    /// What each thread does before its first seed.
    pub prepare: fn(),
    pub is_quiet: bool,
}

impl Default for Runs {
    fn default() -> Self {
        Self {
            first: 1,
            count: 1,
            time_max: Duration::MAX,
            threads: 1,
            failures_max: FAILURES_MAX,
            prepare: || (),
            is_quiet: false,
        }
    }
}

/// What came of them.
#[derive(Debug, Default)]
pub struct Report {
    pub seeds: u64,
    pub tally: Tally,
    pub failures: Vec<(u64, String)>,
    elapsed: Duration,
}

impl Runs {
    /// Runs all seeds.
    pub fn run(self) -> Report {
        let started = Instant::now();
        let next = AtomicU64::new(self.first);
        let report = Mutex::new(Report::default());
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    (self.prepare)();
                    while started.elapsed() < self.time_max {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let failed = report.lock().unwrap().failures.len();
                        if seed >= self.first + self.count || failed >= self.failures_max {
                            break;
                        }
                        let result = run_seed(seed);
                        if !self.is_quiet {
                            say(seed, &result);
                        }
                        report.lock().unwrap().add(seed, result, started);
                    }
                });
            }
        });
        let mut report = report.into_inner().unwrap();
        report.elapsed = started.elapsed();
        report
    }
}

/// Runs one seed; once more if it is its turn. `Err` says why it failed.
pub fn run_seed(seed: u64) -> Result<Tally, String> {
    let (tally, trace) = run_once(seed)?;
    if seed.is_multiple_of(TWICE_EVERY) {
        let (_, again) = run_once(seed)?;
        if trace != again {
            return Err(format!("two runs differ: {trace:#018x} and {again:#018x}"));
        }
    }
    Ok(tally)
}

fn run_once(seed: u64) -> Result<(Tally, u64), String> {
    let run = || {
        let mut world = World::new(seed);
        let trace = world.run();
        (world.tally, trace)
    };
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.unwrap_or_else(|| "a panic without a text".to_owned())
    })
}

fn say(seed: u64, result: &Result<Tally, String>) {
    if let Err(why) = result {
        eprintln!("seed {seed} failed: {why}");
    }
}

impl Report {
    fn add(&mut self, seed: u64, result: Result<Tally, String>, started: Instant) {
        self.seeds += 1;
        match result {
            Ok(tally) => self.tally.merge(&tally),
            Err(why) => self.failures.push((seed, why)),
        }
        if self.seeds.is_multiple_of(5_000) {
            let (seeds, failures) = (self.seeds, self.failures.len());
            eprintln!("{seeds} seeds in {:?}, {failures} failed", started.elapsed());
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = self.tally.get("simulated-ms") as f64 / 3_600_000.0;
        let (seeds, failures) = (self.seeds, self.failures.len());
        writeln!(f, "{seeds} seeds, {hours:.1} simulated hours, {failures} failures,")?;
        writeln!(f, "in {:.1?}", self.elapsed)?;
        write!(f, "{}", self.tally)?;
        for (seed, why) in &self.failures {
            writeln!(f, "seed {seed} failed: {why}")?;
            writeln!(f, "  {:?}", Plan::draw(*seed))?;
            writeln!(
                f,
                "  QUIPU_SIM_SEED={seed} QUIPU_SIM_SEEDS=1 cargo test --test sim clusters"
            )?;
        }
        Ok(())
    }
}

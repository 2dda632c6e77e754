//! Contests: the same work done by the raw floor and by Quipu, in turns.
//!
//! A shared machine is faster in one second than in the next. So each sample of either side times
//! one lap of *every* side, one after the other, and the ratio at the end is one of medians over
//! laps that had the same luck.

use std::fs;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use serde_json::json;

/// Names a file for the results, as JSON.
const JSON: &str = "QUIPU_BENCH_JSON";

/// How long a lap waits at most for what the ones before have left to do.
const REST_MAX: Duration = Duration::from_secs(10);
/// Time over which the machine has to have been idle, and how much of it.
const REST: Duration = Duration::from_millis(300);
const IDLE_MIN: f64 = 0.9;

/// Few long samples: servers that write to a disk have a bad second now and then.
#[allow(dead_code, reason = "benches without servers take other samples")]
pub(crate) fn of_servers() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(5))
        .without_plots()
        .configure_from_args()
}

/// What is compared, and what one lap of it does.
pub(crate) struct Contest {
    /// First part of the benchmark ids.
    pub(crate) group: &'static str,
    /// The parameters, the second part.
    pub(crate) parameters: String,
    /// Operations in a lap. In a race they only give `bytes` their measure.
    pub(crate) operations: u64,
    /// Payload bytes of them.
    pub(crate) bytes: u64,
    /// How fast Quipu must be in relation to the floor, at least.
    pub(crate) target: f64,
}

/// Does one lap and returns the time that counts.
pub(crate) type Lap<'a> = &'a mut dyn FnMut() -> Duration;

/// What was done in a lap that ends when its time is up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) operations: u64,
    pub(crate) took: Duration,
}

/// Does as much as it can in a lap of some time.
pub(crate) type TimedLap<'a> = &'a mut dyn FnMut() -> Work;

/// The results so far.
#[derive(Default)]
pub(crate) struct Scoreboard {
    lines: Vec<Line>,
    figures: Vec<Figure>,
}

struct Line {
    id: String,
    nanos: f64,
    bytes_per_second: f64,
    ratio: Option<f64>,
    target: Option<f64>,
}

/// Something that was measured alone.
struct Figure {
    id: &'static str,
    value: f64,
    unit: &'static str,
    at_most: f64,
}

impl Scoreboard {
    /// Runs one benchmark for each side, all in turns. The first side is the floor; the target is
    /// for all others whose name starts with `quipu`.
    #[allow(dead_code, reason = "another bench races")]
    pub(crate) fn compare(
        &mut self,
        criterion: &mut Criterion,
        contest: &Contest,
        sides: &mut [(&str, Lap<'_>)],
    ) {
        let mut laps = vec![Vec::new(); sides.len()];
        let mut group = criterion.benchmark_group(contest.group);
        group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Bytes(contest.bytes));
        for chosen in 0..sides.len() {
            let id = BenchmarkId::new(&contest.parameters, sides[chosen].0);
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|count| {
                    let before = laps[chosen].len();
                    (0..count).for_each(|_| run_lap_each(sides, &mut laps));
                    laps[chosen][before..].iter().sum()
                });
            });
        }
        group.finish();
        let nanos = |lap: Duration| lap.as_secs_f64() * 1e9 / contest.operations as f64;
        let pace = |laps: Vec<Duration>| laps.into_iter().map(nanos).collect();
        self.note(contest, sides, laps.into_iter().map(pace).collect());
    }

    /// The same for sides of which some are much slower than others, so that each gets laps of the
    /// same time: so many rounds after a first one that does not count, each with a lap of every
    /// side. A lap begins when all servers are done with what the one before has left them to do:
    /// to rewrite a file, to drop old records, to compact.
    #[allow(dead_code, reason = "most benches compare two sides")]
    pub(crate) fn race(
        &mut self,
        contest: &Contest,
        sides: &mut [(&str, TimedLap<'_>)],
        rounds: usize,
    ) {
        let mut paces = vec![Vec::new(); sides.len()];
        for round in 0..=rounds {
            for ((name, lap), paces) in sides.iter_mut().zip(&mut paces) {
                rest();
                let Work { operations, took } = lap();
                let per_second = operations as f64 / took.as_secs_f64();
                eprintln!("{} {round}/{rounds}: {name} {per_second:.0}/s", contest.group);
                if round > 0 {
                    paces.push(1e9 / per_second);
                }
            }
        }
        self.note(contest, sides, paces);
    }

    /// Takes the nanoseconds that an operation took in each lap of each side.
    fn note<L>(&mut self, contest: &Contest, sides: &[(&str, L)], mut paces: Vec<Vec<f64>>) {
        if paces.iter().any(Vec::is_empty) {
            return;
        }
        let medians: Vec<f64> = paces.iter_mut().map(|paces| median(paces)).collect();
        let operation_bytes = contest.bytes as f64 / contest.operations as f64;
        for (n, (name, _)) in sides.iter().enumerate() {
            let is_ours = name.starts_with("quipu");
            self.lines.push(Line {
                id: format!("{}/{}/{name}", contest.group, contest.parameters),
                nanos: medians[n],
                bytes_per_second: operation_bytes * 1e9 / medians[n],
                ratio: (n > 0).then(|| medians[0] / medians[n]),
                target: is_ours.then_some(contest.target),
            });
        }
    }

    /// Notes what was measured alone, and how much it may be.
    #[allow(dead_code, reason = "most benches have a floor for everything")]
    pub(crate) fn note_figure(
        &mut self,
        id: &'static str,
        unit: &'static str,
        value: f64,
        at_most: f64,
    ) {
        self.figures.push(Figure { id, value, unit, at_most });
    }

    /// Prints a table of all sides: time of an operation, throughput, and speed in relation to the
    /// floor. If `QUIPU_BENCH_JSON` names a file, the same is written there.
    pub(crate) fn print(&self) {
        let header = ["median of interleaved laps", "each", "MB/s", "of floor", "target"];
        println!(
            "\n{:<52}{:>12}{:>9}{:>10}{:>8}",
            header[0], header[1], header[2], header[3], header[4]
        );
        for line in &self.lines {
            let percent = |ratio: Option<f64>| {
                ratio.map_or(String::new(), |ratio| format!("{:.0} %", 100.0 * ratio))
            };
            let missed = line.target.zip(line.ratio).is_some_and(|(target, ratio)| ratio < target);
            println!(
                "{:<52}{:>12}{:>9.0}{:>10}{:>8}{}",
                line.id,
                in_words(line.nanos),
                line.bytes_per_second / 1e6,
                percent(line.ratio),
                percent(line.target),
                if missed { "  missed" } else { "" },
            );
        }
        for Figure { id, value, unit, at_most } in &self.figures {
            let missed = if value > at_most { "  missed" } else { "" };
            println!(
                "{id:<52}{:>12}{:>9}at most {at_most} {unit}{missed}",
                format!("{value:.1} {unit}"),
                ""
            );
        }
        if let Some(path) = std::env::var_os(JSON) {
            fs::write(path, self.json().to_string()).expect("the results can be written");
        }
    }

    fn json(&self) -> serde_json::Value {
        let line = |line: &Line| {
            json!({
                "id": line.id,
                "nanos": line.nanos,
                "bytes_per_second": line.bytes_per_second,
                "of_floor": line.ratio,
                "target": line.target,
            })
        };
        let figure = |figure: &Figure| {
            let Figure { id, value, unit, at_most } = figure;
            json!({ "id": id, "value": value, "unit": unit, "at_most": at_most })
        };
        let lines: Vec<_> = self.lines.iter().map(line).collect();
        let figures: Vec<_> = self.figures.iter().map(figure).collect();
        json!({ "contests": lines, "figures": figures })
    }
}

/// Waits until the disk has all that was written, and the machine has nothing to do.
fn rest() {
    rustix::fs::sync();
    let started = Instant::now();
    let mut before = processor_ticks();
    while started.elapsed() < REST_MAX {
        std::thread::sleep(REST);
        let now = processor_ticks();
        let (idle, all) = (now.0 - before.0, now.1 - before.1);
        if idle as f64 >= IDLE_MIN * all as f64 {
            return;
        }
        before = now;
    }
    eprintln!("the machine has been busy for {REST_MAX:?}: the next lap shares it");
}

/// Ticks of all processors that were idle, waiting for no disk either; and all ticks.
fn processor_ticks() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").expect("the kernel counts ticks");
    let ticks: Vec<u64> = stat.lines().next().map_or_else(Vec::new, |line| {
        line.split_whitespace().filter_map(|ticks| ticks.parse().ok()).collect()
    });
    (ticks[3], ticks.iter().sum())
}

/// One lap of each side.
fn run_lap_each(sides: &mut [(&str, Lap<'_>)], laps: &mut [Vec<Duration>]) {
    for ((_, lap), times) in sides.iter_mut().zip(laps) {
        times.push(lap());
    }
}

/// The middle one of some durations or other numbers.
pub(crate) fn median<T: PartialOrd + Copy>(values: &mut [T]) -> T {
    values.sort_unstable_by(|a, b| a.partial_cmp(b).expect("they are numbers"));
    values[values.len() / 2]
}

fn in_words(nanos: f64) -> String {
    if nanos < 10_000.0 {
        format!("{nanos:.0} ns")
    } else if nanos < 10_000_000.0 {
        format!("{:.1} us", nanos / 1e3)
    } else {
        format!("{:.1} ms", nanos / 1e6)
    }
}

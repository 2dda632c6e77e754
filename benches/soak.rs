//! A soak: three nodes that take records for a long time at half of what they can, while retention
//! drops them again. Shows whether what a node holds stays as it is: memory, files and mappings.
//!
//! `cargo bench --bench soak` takes half an hour, or as many seconds as `QUIPU_SOAK_SECONDS` says.
//! It fails if a node's memory in calm moments is more in the last third of the time than in the
//! second by a twentieth, or if files or mappings keep growing.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on fails")]

mod place;
#[allow(dead_code, reason = "another bench measures nodes alone")]
mod processes;

use std::env;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use place::Place;
use processes::{Holdings, Nodes, Process};
use quipu::proto::client::CreateTopicRequest;
use serde_json::Value;

const TOPIC: &str = "soak";
const PARTITIONS: u32 = 16;
/// What a partition keeps. All of them are full long before the first third is over.
const KEPT_BYTES: u64 = 64 << 20;
const PRODUCERS: u32 = 32;
/// Records of a producer that wait at once when the rate is free.
const IN_FLIGHT: u32 = 128;
/// How long the nodes are warmed up, and how long their highest rate is measured.
const SPRINT_SECONDS: u64 = 30;
const SECONDS: u64 = 30 * 60;
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How much more there may be in the last third of the time than in the second, as a part of it.
const MEMORY_GROWTH_MAX: f64 = 0.05;
/// Files and mappings come and go in tens, with segments; a leak comes in hundreds.
const COUNT_GROWTH_MAX: f64 = 64.0;

fn main() {
    processes::play_a_part(&[]);
    if env::args().any(|arg| arg == "--test") {
        return;
    }
    let seconds = env::var("QUIPU_SOAK_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let place = Place::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let nodes = Nodes::start(&runtime, place.path(), 3);
    let request = CreateTopicRequest {
        name: TOPIC.to_owned(),
        partitions: PARTITIONS,
        replicas: 3,
        config: [("retention_bytes".to_owned(), KEPT_BYTES.to_string())].into(),
        ..CreateTopicRequest::default()
    };
    runtime.block_on(nodes.client(&runtime).create_topic(request)).unwrap();
    produce(&nodes, place.path(), SPRINT_SECONDS, None);
    let sprint = produce(&nodes, place.path(), SPRINT_SECONDS, None);
    let highest = sprint["records_per_second"].as_f64().unwrap();
    let rate = (highest / 2.0) as u32;
    println!("highest rate {highest:.0} records/s; {rate} records/s for {seconds} s");
    let (report, samples) = soak(&nodes, place.path(), seconds, rate);
    print(&report);
    assert!(judge(&samples), "what a node holds has grown");
}

/// Runs `quipu bench produce` beside this process, and returns what it reports.
fn produce(nodes: &Nodes, root: &Path, seconds: u64, rate: Option<u32>) -> Value {
    let program: PathBuf = env!("CARGO_BIN_EXE_quipu").into();
    let mut arguments: Vec<String> = ["-o", "json", "bench", "produce"].map(String::from).into();
    let mut option = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
    option("server", nodes.addresses.join(","));
    option("topic", TOPIC.to_owned());
    option("seconds", seconds.to_string());
    option("producers", PRODUCERS.to_string());
    match rate {
        Some(rate) => option("rate", rate.to_string()),
        None => option("in-flight", IN_FLIGHT.to_string()),
    }
    let (_process, mut conversation) =
        Process::converse(&program, &arguments, &root.join("produce.log"));
    let mut report = String::new();
    loop {
        report += &conversation.hear();
        if let Ok(report) = serde_json::from_str(&report) {
            return report;
        }
    }
}

/// What each node holds, one time after the other, while records come at a fixed rate.
fn soak(nodes: &Nodes, root: &Path, seconds: u64, rate: u32) -> (Value, Vec<Vec<Holdings>>) {
    thread::scope(|scope| {
        let producing = scope.spawn(|| produce(nodes, root, seconds, Some(rate)));
        let (started, mut samples) = (Instant::now(), Vec::new());
        while !producing.is_finished() {
            samples.push(nodes.holdings());
            if samples.len() % 30 == 1 {
                let seen = samples.last().unwrap().iter().map(describe).collect::<Vec<_>>();
                eprintln!("{:>5} s  {}", started.elapsed().as_secs(), seen.join("  "));
            }
            thread::sleep(LOOK_EVERY);
        }
        (producing.join().unwrap(), samples)
    })
}

fn describe(held: &Holdings) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let (memory, mapped) = (mib(held.own_bytes), mib(held.mapped_bytes));
    format!("{memory} + {mapped} MiB, {} files, {} mappings", held.files, held.mappings)
}

fn print(report: &Value) {
    let number = |value: &Value| value.as_f64().unwrap();
    let [records, failed, rate] =
        ["records", "failed", "records_per_second"].map(|name| number(&report[name]));
    println!("{records:.0} records acknowledged, {failed:.0} failed, {rate:.0} records/s");
    let latency = &report["latency_ms"];
    let [p50, p99, p99_9, max] = ["p50", "p99", "p99_9", "max"].map(|name| number(&latency[name]));
    println!("milliseconds: p50 {p50:.1}, p99 {p99:.1}, p99.9 {p99_9:.1}, max {max:.1}");
}

/// What is measured of a node, and how much more of it there may be in the last third of the time
/// than in the one before.
struct Measure {
    name: &'static str,
    of: fn(&Holdings) -> f64,
    /// Of all that was seen in a third of the time.
    level: fn(&mut [f64]) -> f64,
    /// From what there was before.
    growth_max: fn(f64) -> f64,
}

const MEASURES: [Measure; 6] = [
    Measure { name: "own MiB", of: own_mib, level: mean, growth_max: |_| f64::MAX },
    Measure { name: "  calm", of: own_mib, level: calm, growth_max: |b| b * MEMORY_GROWTH_MAX },
    Measure { name: "all MiB", of: all_mib, level: mean, growth_max: |_| f64::MAX },
    Measure { name: "  calm", of: all_mib, level: calm, growth_max: |b| b * MEMORY_GROWTH_MAX },
    Measure {
        name: "files",
        of: |h| h.files as f64,
        level: mean,
        growth_max: |_| COUNT_GROWTH_MAX,
    },
    Measure {
        name: "mappings",
        of: |h| h.mappings as f64,
        level: mean,
        growth_max: |_| COUNT_GROWTH_MAX,
    },
];

fn own_mib(held: &Holdings) -> f64 {
    held.own_bytes as f64 / f64::from(1 << 20)
}

fn all_mib(held: &Holdings) -> f64 {
    held.resident_bytes() as f64 / f64::from(1 << 20)
}

fn mean(seen: &mut [f64]) -> f64 {
    seen.iter().sum::<f64>() / seen.len() as f64
}

/// What was there in a calm moment: a tenth of what was seen is less. What is on its way comes on
/// top, ten times as much when the disk is slow, and goes again; what leaks stays.
fn calm(seen: &mut [f64]) -> f64 {
    seen.sort_by(f64::total_cmp);
    seen[seen.len() / 10]
}

/// Compares the last third of the time with the one before.
fn judge(samples: &[Vec<Holdings>]) -> bool {
    let third = samples.len() / 3;
    assert!(third > 0, "a soak takes longer than that");
    println!("{:<8}{:<10}{:>12}{:>12}{:>12}", "node", "", "first", "second", "last third");
    let mut is_flat = true;
    for node in 0..samples[0].len() {
        for Measure { name, of, level, growth_max } in MEASURES {
            let [first, before, after] = [0, 1, 2].map(|n| {
                let part = &samples[n * third..(n + 1) * third];
                level(&mut part.iter().map(|held| of(&held[node])).collect::<Vec<_>>())
            });
            let is_good = after - before <= growth_max(before);
            is_flat &= is_good;
            let mark = if is_good { "" } else { "  not flat" };
            println!("{:<8}{name:<10}{first:>12.1}{before:>12.1}{after:>12.1}{mark}", node + 1);
        }
    }
    is_flat
}

//! Chaos: three real servers, each with its own network and disk where root allows it, under a
//! seeded schedule of faults, with clients of all kinds, judged by a checker over what they saw.
//!
//! `cargo test --release --test chaos smoke` is what every change has to pass; a night's work is
//! `cargo test --release --test chaos night -- --ignored --nocapture`.
//!
//! | variable | what it sets |
//! |---|---|
//! | `QUIPU_CHAOS_SEED` | the seed of the first run, as it was printed; random |
//! | `QUIPU_CHAOS_SECONDS` | how long faults strike in a run; 60, and 600 at night |
//! | `QUIPU_CHAOS_RUNS` | how many runs a night has; 48 |
//! | `QUIPU_CHAOS_FAULTS` | names of faults to draw from, with commas; all |
//! | `QUIPU_CHAOS_SERVER` | the program of the servers; the one that was built with the test |
//! | `QUIPU_CHAOS_KEEP` | a directory that gets the history and the nodes' logs of failed runs |
//!
//! A seed decides the schedule, not the timing. Without root, or where a tool is missing, the run
//! says what it leaves out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod abuse;
mod bed;
mod checker;
mod clients;
mod cluster;
mod faults;
#[allow(unreachable_pub, dead_code, reason = "the tests of groups use the rest")]
mod groups;
mod history;
#[path = "../rpc/http2.rs"]
#[allow(dead_code, reason = "the tests of the API use the rest")]
mod http2;
#[path = "../crash/image.rs"]
#[allow(dead_code, reason = "the tests of crashes use the rest")]
mod image;
mod judging;
#[path = "../crash/kernel.rs"]
mod kernel;
#[cfg(feature = "planted-bugs")]
mod planted;
#[path = "../sim/rng.rs"]
#[allow(unreachable_pub, reason = "the simulation shares it")]
mod rng;
mod run;
mod value;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use checker::Verdict;
use faults::Fault;
use run::Run;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("the variable is a number"))
}

fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    now.as_nanos() as u64 % 1_000_000
}

/// Runs with seeds in a row; each is judged, and all of them have to pass.
async fn runs(count: u64, seconds: u64, heal_max: Duration) {
    let first = env("QUIPU_CHAOS_SEED").unwrap_or_else(new_seed);
    let seconds = env("QUIPU_CHAOS_SECONDS").unwrap_or(seconds);
    let names = std::env::var("QUIPU_CHAOS_FAULTS").unwrap_or_default();
    let only = Fault::parse_all(&names).expect("the variable names faults");
    let keep = std::env::var_os("QUIPU_CHAOS_KEEP").map(PathBuf::from);
    let (mut failed, mut total) = (Vec::new(), Verdict::default());
    for seed in first..first + count {
        println!("QUIPU_CHAOS_SEED={seed} for {seconds} s");
        let (time, only, keep) = (Duration::from_secs(seconds), only.clone(), keep.clone());
        let verdict = Run { seed, time, heal_max, only, keep, bug: None }.run().await;
        println!("QUIPU_CHAOS_SEED={seed}: {verdict}\n");
        if !verdict.breaches.is_empty() {
            failed.push(seed);
        }
        total.add(verdict);
    }
    println!("{count} runs of {seconds} s: {total}");
    assert!(failed.is_empty(), "seeds {failed:?} failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn smoke() {
    // Others may be at work on the machine, and the servers are not optimized.
    runs(1, 60, Duration::from_secs(30)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a night"]
async fn night() {
    runs(env("QUIPU_CHAOS_RUNS").unwrap_or(48), 600, Duration::from_secs(5)).await;
}

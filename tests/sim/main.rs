//! Simulation: whole clusters on one thread, from one seed.

#![allow(unreachable_pub, reason = "the modules of a test share what they need")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod clients;
mod node;
mod oracle;
mod plan;
mod rng;
mod world;

use world::{Tally, World};

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn clusters_agree_whatever_happens() {
    let (first, count) = (env("QUIPU_SIM_SEED", 1), env("QUIPU_SIM_SEEDS", 50));
    let mut tally = Tally::default();
    for seed in first..first + count {
        let started = std::time::Instant::now();
        let result = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.run();
            world.tally
        });
        match result {
            Ok(one) => tally.merge(&one),
            Err(_) => panic!("seed {seed} failed"),
        }
        if std::env::var("QUIPU_SIM_VERBOSE").is_ok() {
            eprintln!("seed {seed}: {:?}", started.elapsed());
        }
    }
    eprintln!("{tally:#?}");
}

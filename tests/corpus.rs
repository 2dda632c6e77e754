//! Replays the inputs that the fuzzers found interesting, and those that once broke something,
//! through the fuzz targets.

#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

#[test]
fn every_target_accepts_its_corpus() {
    for (name, run) in targets::TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(corpus().join(name)).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            run(&fs::read(path).unwrap());
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no corpus");
    }
}

#[test]
fn every_corpus_has_a_target() {
    for entry in fs::read_dir(corpus()).unwrap() {
        let folder = entry.unwrap().file_name();
        let known = targets::TARGETS.iter().any(|(name, _)| folder == *name);
        assert!(known, "no target is named {}", folder.display());
    }
}

//! Where the benches put their files: a directory of its own on a real disk, gone at the end.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Type of a file system that lives in memory, as `statfs` tells it.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// A directory that is removed when this is dropped.
pub(crate) struct Place(TempDir);

impl Place {
    /// Makes a directory under `$QUIPU_BENCH_DIR`, or else under cargo's target directory.
    ///
    /// # Panics
    /// If that is in memory: a sync there costs nothing and says nothing.
    pub(crate) fn new() -> Self {
        let chosen = env::var_os("QUIPU_BENCH_DIR");
        let root = chosen.map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
        fs::create_dir_all(&root).expect("the bench directory can be made");
        let kind = rustix::fs::statfs(&root).expect("the bench directory has a file system").f_type;
        let is_memory = kind.cast_unsigned() == TMPFS_MAGIC;
        assert!(!is_memory, "{} is in memory: set QUIPU_BENCH_DIR", root.display());
        let made = tempfile::Builder::new().prefix("quipu-bench-").tempdir_in(root);
        Self(made.expect("a directory for this run can be made"))
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

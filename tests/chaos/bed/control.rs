//! The library between a place's processes and the system, and how it is told what to do.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};

const SOURCE: &str = include_str!("preload.rs");
/// As much as the library maps.
const BYTES: u64 = 64;
const CLOCK_OFFSET_AT: u64 = 0;
const FAILING_SYNCS_AT: u64 = 8;
const FAILING_READS_AT: u64 = 12;
const SYNC_DELAY_AT: u64 = 16;

/// Compiles the library into `dir`. Needs the compiler that made this test.
pub(super) fn compile(dir: &Path) -> Result<PathBuf> {
    let (source, library) = (dir.join("preload.rs"), dir.join("libpreload.so"));
    fs::write(&source, SOURCE)?;
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "-O", "-o"]);
    let output = command.arg(&library).arg(&source).output().context("rustc")?;
    ensure!(output.status.success(), "rustc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(library)
}

/// What the library in one place is told.
pub(crate) struct Control {
    file: File,
    path: PathBuf,
    boots: AtomicU64,
}

impl Control {
    pub(super) fn new(path: &Path) -> Result<Self> {
        let file = File::options().create(true).truncate(true).write(true).open(path)?;
        file.set_len(BYTES)?;
        let control = Self { file, path: path.to_path_buf(), boots: AtomicU64::new(0) };
        control.boot()?;
        Ok(control)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn boot_path(&self) -> PathBuf {
        self.path.with_extension("boot")
    }

    /// Another boot id from now on.
    pub(super) fn boot(&self) -> Result<()> {
        let boot = self.boots.fetch_add(1, Ordering::Relaxed) + 1;
        let id = format!("{boot:08x}-0000-4000-8000-{:012x}\n", std::process::id());
        Ok(fs::write(self.boot_path(), id)?)
    }

    /// Moves the wall clock.
    pub(crate) fn set_clock(&self, offset_ms: i64) {
        self.write(CLOCK_OFFSET_AT, &(offset_ms * 1_000_000).to_ne_bytes());
    }

    /// Of a million syncs, so many fail.
    pub(crate) fn set_failing_syncs(&self, of_a_million: u32) {
        self.write(FAILING_SYNCS_AT, &of_a_million.to_ne_bytes());
    }

    /// Of a million reads, so many fail.
    pub(crate) fn set_failing_reads(&self, of_a_million: u32) {
        self.write(FAILING_READS_AT, &of_a_million.to_ne_bytes());
    }

    /// Every sync takes so much longer.
    pub(crate) fn set_sync_delay(&self, microseconds: u32) {
        self.write(SYNC_DELAY_AT, &microseconds.to_ne_bytes());
    }

    /// Everything comes to what the system says; the clock stays where it is.
    pub(super) fn clear(&self) {
        self.set_failing_syncs(0);
        self.set_failing_reads(0);
        self.set_sync_delay(0);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).expect("the control file can be written");
    }
}

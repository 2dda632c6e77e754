//! An ext4 file system in a file, mounted while a test needs it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::kernel::{self, Cut};

/// Memory is used as the disk below the image where that is possible: a disk of its own would only
/// make the syncs slower.
const MEMORY: &str = "/dev/shm";
const BUSY_TRIES: usize = 200;

/// An image and the place where it is mounted. Dropping it unmounts and removes both.
pub(crate) struct Image {
    /// Also holds what tests keep beside the file system.
    dir: TempDir,
    is_mounted: bool,
}

impl Image {
    /// Makes an image of `bytes` with blocks of `block_bytes`, and mounts it once to see that this
    /// works. `None`, with the reason printed, where it does not.
    pub(crate) fn make(bytes: u64, block_bytes: u32) -> Option<Self> {
        let made = Self::try_make(bytes, block_bytes);
        made.inspect_err(|why| println!("SKIPPED: no file system of its own: {why:#}")).ok()
    }

    fn try_make(bytes: u64, block_bytes: u32) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "only root can mount one");
        let below = if Path::new(MEMORY).is_dir() { MEMORY.into() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("quipu-crash-").tempdir_in(below)?;
        let mut image = Self { dir, is_mounted: false };
        fs::create_dir(image.mount_point())?;
        File::create(image.file())?.set_len(bytes)?;
        let block = block_bytes.to_string();
        let mut make = Command::new("mkfs.ext4");
        run(make.args(["-q", "-F", "-m", "0", "-b", &block]).arg(image.file()))?;
        image.mount("defaults")?;
        kernel::cut_power(&File::open(image.mount_point())?, Cut::Nothing)?;
        image.unmount()?;
        Ok(image)
    }

    /// A path beside the file system, which no power cut touches.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.beside("image")
    }

    /// Where the file system is mounted.
    pub(crate) fn mount_point(&self) -> PathBuf {
        self.beside("mount")
    }

    /// Mounts the image; the kernel replays its journal.
    pub(crate) fn mount(&mut self, options: &str) -> Result<()> {
        let options = format!("loop,{options}");
        let (file, mount_point) = (self.file(), self.mount_point());
        // Another process may take the free loop device between its choice and its use.
        patiently(|| {
            let mut mount = Command::new("mount");
            mount.args(["-t", "ext4", "-o", &options]).arg(&file).arg(&mount_point);
            run(&mut mount)
        })?;
        self.is_mounted = true;
        Ok(())
    }

    /// Unmounts it, which frees the loop device too. A process that is about to end may keep it
    /// busy for a moment.
    pub(crate) fn unmount(&mut self) -> Result<()> {
        let mount_point = self.mount_point();
        patiently(|| run(Command::new("umount").arg(&mount_point)))?;
        self.is_mounted = false;
        Ok(())
    }

    /// Cuts its power. Processes that use it see errors from now on.
    pub(crate) fn cut_power(&self, cut: Cut) -> Result<()> {
        let mount = File::open(self.mount_point())?;
        kernel::cut_power(&mount, cut).context("cut the power")
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.is_mounted && self.unmount().is_err() {
            // Goes as soon as the last process that uses it ends.
            let _ = run(Command::new("umount").arg("-l").arg(self.mount_point()));
        }
    }
}

/// Tries again for a moment what others may be in the way of.
fn patiently(attempt: impl Fn() -> Result<()>) -> Result<()> {
    for _ in 1..BUSY_TRIES {
        if attempt().is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(5));
    }
    attempt()
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let output = match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!("{program} is not installed"),
        output => output?,
    };
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", text.trim());
    Ok(())
}

//! The real file system: the only file that opens, renames, writes or syncs files.
//!
//! Writes are positional (`pwritev`), reads of cold data are positional too (`pread`), so that
//! every I/O error is a return code. Symbolic links are never followed for the last component of a
//! path.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSlice, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{Advice, FlockOperation, OFlags};

use super::map::FileMap;
use super::{DirEntry, File, Fs, Lock, Map, OpenMode};

/// The kernel takes at most this many parts in one vectored write.
const PARTS_MAX: usize = 1024;
/// How often, and how far apart, a lock that somebody holds is tried.
const LOCK_TRIES: usize = 5;
const LOCK_TRY_EVERY: Duration = Duration::from_millis(5);
/// Reads past the page cache begin, end and arrive at multiples of this.
const DIRECT_BYTES: usize = 4096;
const ZEROS: &[u8] = &[0; 64 * 1024];

/// The operating system's files.
#[derive(Debug, Default)]
pub struct OsFs {
    /// Kept open, so that `syncfs` through them reports every write error since the first time.
    roots: Mutex<BTreeMap<PathBuf, Arc<fs::File>>>,
}

impl OsFs {
    /// The operating system's files.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Fs for OsFs {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        // Whoever may change a link decides where everything is written.
        if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
            let reason = "it is a symbolic link: name the directory that it leads to";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            names.push(DirEntry { name, is_dir: entry.file_type()?.is_dir() });
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        let is_written = matches!(mode, OpenMode::Write | OpenMode::Create);
        options.read(true).write(is_written).create_new(mode == OpenMode::Create);
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
        options.mode(0o600).custom_flags(flags);
        if mode != OpenMode::ReadDisk {
            return Ok(Arc::new(OsFile { file: options.open(path)?, is_direct: false }));
        }
        match options.clone().custom_flags(flags | libc::O_DIRECT).open(path) {
            Ok(file) => Ok(Arc::new(OsFile { file, is_direct: true })),
            // Some file systems cannot do that.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let file = OsFile { file: options.open(path)?, is_direct: false };
                file.drop_cache()?;
                Ok(Arc::new(file))
            }
            Err(error) => Err(error),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn sync_filesystem(&self, path: &Path) -> io::Result<()> {
        let mut roots = self.roots.lock().expect("no holder of the roots panics");
        let root = match roots.get(path) {
            Some(root) => root.clone(),
            None => {
                let root = Arc::new(fs::File::open(path)?);
                roots.insert(path.to_path_buf(), root.clone());
                root
            }
        };
        drop(roots);
        Ok(rustix::fs::syncfs(root)?)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)?;
        let is_taken = flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(if is_taken { Some(Box::new(OsLock(file))) } else { None })
    }

    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        let mut options = fs::OpenOptions::new();
        let options = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        // Shared, so that two who ask do not take each other for a holder; closing it lets go.
        Ok(!flock(&file, FlockOperation::NonBlockingLockShared)?)
    }

    fn salt(&self) -> [u8; 16] {
        random()
    }

    fn boot_id(&self) -> [u8; 16] {
        let mut text = String::new();
        let read = fs::File::open("/proc/sys/kernel/random/boot_id")
            .and_then(|mut file| file.read_to_string(&mut text));
        // Without a boot id every restart counts as a machine crash, the careful case.
        let id = read.ok().and_then(|_| uuid::Uuid::try_parse(text.trim()).ok());
        id.map_or_else(random, |id| *id.as_bytes())
    }
}

/// Takes a lock; false when another process holds it.
///
/// Tries for a moment: whoever only asks for the lock has it for an instant, and so does the child
/// of a process that holds it, between its fork and its exec.
fn flock(file: &fs::File, operation: FlockOperation) -> io::Result<bool> {
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_TRY_EVERY),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Sixteen random bytes from the kernel.
fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut done = 0;
    while done < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        done += rustix::rand::getrandom(&mut bytes[done..], flags)
            .expect("the kernel's random source answers once it is seeded");
    }
    bytes
}

/// Holds a `flock` until dropped.
#[derive(Debug)]
struct OsLock(#[expect(dead_code, reason = "closing the file releases the lock")] fs::File);

impl Lock for OsLock {}

#[derive(Debug)]
struct OsFile {
    file: fs::File,
    /// Opened to be read past the page cache.
    is_direct: bool,
}

impl OsFile {
    /// Reads past the page cache, in whole blocks around what is asked for.
    fn read_blocks(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        let skipped = position as usize % DIRECT_BYTES;
        let bytes = (skipped + buf.len()).next_multiple_of(DIRECT_BYTES);
        let mut room = vec![0; bytes + DIRECT_BYTES];
        let aligned = room.as_ptr().align_offset(DIRECT_BYTES);
        let blocks = &mut room[aligned..aligned + bytes];
        // What comes short of whole blocks is the end of the file.
        let read = loop {
            match self.file.read_at(blocks, position - skipped as u64) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        let found = read.saturating_sub(skipped).min(buf.len());
        buf[..found].copy_from_slice(&blocks[skipped..skipped + found]);
        Ok(found)
    }
}

impl File for OsFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        let mut at = position;
        for chunk in parts.chunks(PARTS_MAX) {
            at += write_chunk(&self.file, chunk, at)?;
        }
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        match self.is_direct {
            true => match self.read_blocks(buf, position) {
                // The file system takes the flag and cannot read so, or not in these blocks.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    rustix::fs::fcntl_setfl(&self.file, OFlags::empty())?;
                    self.drop_cache()?;
                    read_at(&self.file, buf, position)
                }
                read => read,
            },
            false => read_at(&self.file, buf, position),
        }
    }

    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        // Reserving first turns a full disk into an error before anything is written.
        let reserve = rustix::fs::FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, reserve, from, to - from) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        let mut at = from;
        while at < to {
            let n = (to - at).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..n as usize], at)?;
            at += n;
        }
        Ok(())
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), 0, bytes)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }

    fn read_ahead(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.file, 0, None, Advice::WillNeed)?)
    }

    fn map(&self, reserve: u64, lease: Arc<()>) -> io::Result<Box<dyn Map>> {
        Ok(Box::new(FileMap::new(&self.file, reserve, lease)?))
    }
}

/// Reads as much as there is, up to the length of `buf`.
fn read_at(file: &fs::File, buf: &mut [u8], position: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], position + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes up to [`PARTS_MAX`] parts and returns their total length; finishes what the kernel cut
/// short, part by part.
fn write_chunk(file: &fs::File, parts: &[IoSlice<'_>], position: u64) -> io::Result<u64> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    let mut written = loop {
        match rustix::io::pwritev(file, parts, position) {
            Ok(n) => break n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if written < total {
        let mut at = position + written as u64;
        for part in parts {
            let skip = written.min(part.len());
            written -= skip;
            file.write_all_at(&part[skip..], at)?;
            at += (part.len() - skip) as u64;
        }
    }
    Ok(total as u64)
}
/// Reads a file that is none of the engine's.
///
/// # Errors
/// What the system said.
pub fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path)
}

/// Opens a file that is none of the engine's, to write at its end. It is made if it is not there.
///
/// # Errors
/// What the system said.
pub fn append_to(path: &Path) -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new().create(true).append(true).open(path)
}

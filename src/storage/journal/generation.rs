//! The files of the journal: finding, reading and writing a generation of it.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::super::error::{Error, IoContext as _, Result};
use super::super::fs::{File, Fs, OpenMode, read_exact_at};
use super::super::segment::remove_if_there;
use super::format::{self, Change, FactKind, Head};
use super::{COPIES, State};
use crate::types::LogId;

pub(super) fn copy_path(dir: &Path, generation: u64, copy: &str) -> PathBuf {
    dir.join(format!("journal-{generation:08}.{copy}"))
}

/// Generations of which at least one copy has its name, ascending.
pub(super) fn list_generations(fs: &dyn Fs, dir: &Path) -> Result<Vec<u64>> {
    let names = fs.list(dir).at("list", dir)?;
    let parse = |name: &str| {
        let (generation, copy) = name.strip_prefix("journal-")?.split_once('.')?;
        COPIES.contains(&copy).then(|| generation.parse().ok())?
    };
    let mut generations: Vec<u64> = names.iter().filter_map(|entry| parse(&entry.name)).collect();
    generations.sort_unstable();
    generations.dedup();
    Ok(generations)
}

/// Reads the copies of one generation and merges them.
pub(super) fn read_generation(
    fs: &dyn Fs,
    dir: &Path,
    generation: u64,
) -> Result<format::Recovered> {
    let mut copies = Vec::new();
    for copy in COPIES {
        let path = copy_path(dir, generation, copy);
        let Some(bytes) = read_copy(fs, &path)? else {
            continue;
        };
        let head = Head::decode(&bytes).map_err(|found| Error::FutureVersion {
            path: path.clone(),
            found,
            supported: format::VERSION,
        })?;
        if let Some(head) = head.filter(|head| head.generation == generation) {
            copies.push((head, bytes));
        }
    }
    let amnesia = |sequence| Error::Amnesia { path: dir.to_path_buf(), sequence };
    if copies.is_empty() {
        return Err(amnesia(0));
    }
    let views: Vec<_> = copies.iter().map(|(head, bytes)| (*head, bytes.as_slice())).collect();
    format::merge(&views).map_err(amnesia)
}

/// Position and kind of the first damage to one copy of the journal.
pub(super) fn copy_fault(
    fs: &dyn Fs,
    path: &Path,
    generation: u64,
    durable: u64,
    may_be_missing: bool,
) -> Result<Option<(u64, String)>> {
    let Some(bytes) = read_copy(fs, path)? else {
        let what = "this copy of the journal is missing or cannot be read, the other one is good";
        return Ok((!may_be_missing).then(|| (0, what.to_owned())));
    };
    let head = Head::decode(&bytes).ok().flatten().filter(|head| head.generation == generation);
    let Some(head) = head else {
        let what = "the head of this copy of the journal is damaged, the other one is good";
        return Ok(Some((0, what.to_owned())));
    };
    let fault = format::first_fault(head, &bytes, durable);
    Ok(fault.map(|(position, sequence)| {
        (position, format!("change {sequence} cannot be read, the other copy has it"))
    }))
}

/// Reads a whole file from the disk, not from the cache. `None` if it is missing or unreadable:
/// the other copy then decides.
fn read_copy(fs: &dyn Fs, path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match fs.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path, error)),
    };
    file.drop_cache().at("drop the cache of", path)?;
    let len = usize::try_from(file.length().at("measure", path)?).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len];
    Ok(read_exact_at(&*file, &mut bytes, 0).ok().map(|()| bytes))
}

/// Writes `facts` as a new generation, makes it durable under its name, and reads it back.
///
/// DURABILITY: write and sync both copies, rename them, sync the directory, read back without the
/// cache; only then may an older generation go. As long as no copy has its
/// name the older generation is the journal, and a failure changes nothing; `named` tells.
pub(super) fn write_generation(
    fs: &dyn Fs,
    dir: &Path,
    generation: u64,
    sequence: u64,
    facts: BTreeMap<(LogId, FactKind), Bytes>,
    named: &mut bool,
) -> Result<State> {
    let first_sequence = sequence + 1;
    let snapshot_end = sequence + facts.len() as u64;
    let head = Head { salt: fs.salt(), generation, first_sequence, snapshot_end };
    let mut bytes = head.encode().to_vec();
    for (n, ((log, kind), value)) in (first_sequence..).zip(&facts) {
        let change = Change { log: *log, kind: *kind, value: Some(value.clone()) };
        format::encode_frame(&mut bytes, head.seed(), n, snapshot_end, &change);
    }
    let temporaries = COPIES.map(|copy| dir.join(format!("journal-{generation:08}.{copy}.tmp")));
    let mut files = Vec::new();
    for temporary in &temporaries {
        files.push(write_copy(fs, temporary, &bytes)?);
    }
    *named = true;
    for (temporary, copy) in temporaries.iter().zip(COPIES) {
        let path = copy_path(dir, generation, copy);
        fs.rename(temporary, &path).at("rename", temporary)?;
    }
    fs.sync_dir(dir).at("sync", dir)?;
    let read_back = read_generation(fs, dir, generation)?;
    if read_back.facts != facts || !read_back.is_clean {
        let sequence = read_back.sequence + 1;
        return Err(Error::Amnesia { path: dir.to_path_buf(), sequence });
    }
    assert_eq!(read_back.sequence, snapshot_end, "the journal read back ends where it was written");
    let files = <[_; 2]>::try_from(files).expect("there is a file for each copy");
    let position = bytes.len() as u64;
    let (allocated, sequence, promised) = (position, snapshot_end, snapshot_end);
    Ok(State { head, files, position, allocated, sequence, promised, facts })
}

fn write_copy(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> Result<Arc<dyn File>> {
    // A leftover of a crash before the rename; it never had a name that counts.
    remove_if_there(fs, path)?;
    let file = fs.open(path, OpenMode::Create).at("create", path)?;
    let written = file.write_at(&[IoSlice::new(bytes)], 0).and_then(|()| file.sync());
    if let Err(error) = written {
        remove_if_there(fs, path)?;
        return Err(Error::io("write", path, error));
    }
    Ok(file)
}

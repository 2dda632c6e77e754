//! The segment files of a log's directory: reading their heads, and which of them count.
//!
//! Nothing here changes anything on disk.

use std::path::{Path, PathBuf};

use super::error::{Damage, Error, IoContext as _, Result};
use super::fs::{File, Fs, OpenMode, read_exact_at};
use super::header::{
    COPY_POSITIONS, Origin, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentHeaderError, VERSION,
    parse_file_name,
};
use crate::types::LogId;

/// A segment file as its name and head describe it.
#[derive(Debug, Clone)]
pub(super) struct SegmentFile {
    pub(super) path: PathBuf,
    pub(super) base_index: u64,
    pub(super) generation: u64,
    pub(super) bytes: u64,
    /// The header, or why neither copy can be read or is of the segment that the name stands for.
    pub(super) header: Result<SegmentHeader, Damage>,
    /// The copies of the header that are damaged or of another segment, by number, when the other
    /// one is good.
    pub(super) bad_copies: Vec<usize>,
}

/// The files of a directory, told apart.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Those that make up the log, by base index.
    pub(super) live: Vec<SegmentFile>,
    /// Those that a later generation has made void.
    pub(super) void: Vec<SegmentFile>,
    /// Those of which neither header copy can be read, or is of the segment that the name stands
    /// for.
    pub(super) unreadable: Vec<SegmentFile>,
    /// The same, of names that a segment which counts has made void. The name was removed once and
    /// is back: a power cut can undo that, and on a file system that journals names but not content
    /// it may then lead to blocks that another file has taken.
    pub(super) outdated: Vec<SegmentFile>,
    /// Names that do not belong here.
    pub(super) unknown: Vec<PathBuf>,
    /// The highest generation that any file's name has.
    pub(super) generation_max: u64,
}

impl Files {
    /// Reads the directory of log `log`.
    ///
    /// # Errors
    /// [`Error::FutureVersion`], or what the system said.
    pub(super) fn read(fs: &dyn Fs, dir: &Path, log: LogId) -> Result<Self> {
        let mut files = Self::default();
        let mut found = Vec::new();
        for entry in fs.list(dir).at("list", dir)? {
            let path = dir.join(&entry.name);
            match parse_file_name(&entry.name) {
                Some((base_index, generation)) => {
                    found.push(read_head(fs, path, log, base_index, generation)?);
                }
                None if entry.name.ends_with(".idx") => {}
                None => files.unknown.push(path),
            }
        }
        files.generation_max = found.iter().map(|file| file.generation).max().unwrap_or(0);
        let (readable, unreadable): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|file| file.header.is_ok());
        files.sort_out(readable);
        let is_outdated = |file: &SegmentFile| files.is_outdated(file);
        (files.outdated, files.unreadable) = unreadable.into_iter().partition(is_outdated);
        Ok(files)
    }

    /// The files that count and those that might if they could be read, by base index.
    pub(super) fn with_unreadable(&mut self) -> Vec<SegmentFile> {
        let mut all = std::mem::take(&mut self.live);
        let is_new = |file: &SegmentFile| all.iter().all(|f| f.base_index != file.base_index);
        let unreadable = std::mem::take(&mut self.unreadable);
        let unreadable: Vec<_> = unreadable.into_iter().filter(is_new).collect();
        all.extend(unreadable);
        all.sort_by_key(|file| file.base_index);
        all
    }

    /// Tells the files that count from those that later ones have made void.
    ///
    /// When a segment was born the log ended right before it: whatever an older one holds from
    /// there on had been truncated, even if the segment that says so is gone by now. Of two of the
    /// same birth the later generation is the repair of the other. A file whose header cannot be
    /// read voids nothing.
    fn sort_out(&mut self, mut readable: Vec<SegmentFile>) {
        let birth = |file: &SegmentFile| file.header.as_ref().map_or(0, |header| header.birth);
        let is_reset =
            |file: &&SegmentFile| file.header.as_ref().is_ok_and(|h| h.origin == Origin::Reset);
        let last_reset = readable.iter().filter(is_reset).map(birth).max().unwrap_or(0);
        readable.sort_by_key(|file| (file.base_index, u64::MAX - file.generation));
        let mut youngest = 0;
        let mut taken = None;
        for file in readable {
            let is_void = birth(&file) < youngest.max(last_reset) || taken == Some(file.base_index);
            if is_void {
                self.void.push(file);
                continue;
            }
            youngest = birth(&file);
            taken = Some(file.base_index);
            self.live.push(file);
        }
        let is_ordered = |pair: &[SegmentFile]| pair[0].base_index < pair[1].base_index;
        assert!(self.live.windows(2).all(is_ordered), "two segments of one base index count");
    }

    /// True if the name of a file alone says that a segment which counts has made it void: that one
    /// was born later than this can have been.
    fn is_outdated(&self, file: &SegmentFile) -> bool {
        let voids = |header: &SegmentHeader| {
            let reaches = header.base_index() <= file.base_index || header.origin == Origin::Reset;
            header.birth > file.generation && reaches
        };
        self.live.iter().filter_map(|file| file.header.as_ref().ok()).any(voids)
    }
}

fn read_head(
    fs: &dyn Fs,
    path: PathBuf,
    log: LogId,
    base_index: u64,
    generation: u64,
) -> Result<SegmentFile> {
    let file = fs.open(&path, OpenMode::Read).at("open", &path)?;
    let bytes = file.length().at("measure", &path)?;
    let copies = COPY_POSITIONS.map(|position| read_copy(&*file, position));
    for copy in &copies {
        if let Err(SegmentHeaderError::Version { found }) = copy {
            return Err(Error::FutureVersion { path, found: *found, supported: VERSION });
        }
    }
    let place = |header: &SegmentHeader| check_place(header, log, base_index, generation);
    let good = copies.iter().flatten().find(|header| place(header).is_ok()).copied();
    let differs = |n: &usize| good.is_some_and(|good| copies[*n] != Ok(good));
    let bad_copies = (0..copies.len()).filter(differs).collect();
    let header = good.ok_or_else(|| {
        let strange = copies.iter().flatten().find_map(|header| place(header).err());
        let what = strange.unwrap_or_else(|| {
            let what = copies.iter().find_map(|copy| copy.err()).map(|error| error.to_string());
            format!("neither header can be read: {}", what.unwrap_or_default())
        });
        Damage { file: path.clone(), position: 0, what }
    });
    Ok(SegmentFile { path, base_index, generation, bytes, header, bad_copies })
}

/// Reads one copy of a header; what the disk cannot read counts as damaged.
fn read_copy(file: &dyn File, position: u64) -> Result<SegmentHeader, SegmentHeaderError> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    match read_exact_at(file, &mut bytes, position) {
        Ok(()) => SegmentHeader::decode(&bytes),
        Err(_) => Err(SegmentHeaderError::Magic),
    }
}

/// Checks that a header is of the segment that the file's place and name stand for.
///
/// # Errors
/// In words.
fn check_place(
    header: &SegmentHeader,
    log: LogId,
    base_index: u64,
    generation: u64,
) -> Result<(), String> {
    if header.log != log {
        return Err(format!("the segment belongs to log {}, its directory to {log}", header.log));
    }
    if (header.base_index(), header.generation) != (base_index, generation) {
        let fitting = header.file_name();
        return Err(format!("the file's name does not fit its header, which asks for {fitting}"));
    }
    Ok(())
}

//! Bringing damaged entries back with the help of another replica, and looking for damage.

use std::collections::VecDeque;
use std::sync::Arc;

use super::entry::Entry;
use super::error::{Damage, Error, IoContext as _, Result};
use super::fs::OpenMode;
use super::header::{COPY_POSITIONS, SEGMENT_HEADER_BYTES, SegmentHeader, Tip};
use super::index::Row;
use super::log::{Log, Until, checkpoint_len};
use super::reader::LogReader;
use super::recovery::{self, FaultyRange};
use super::scan::{Run, Scan};
use super::segment::{Access, Purpose, Segment};
use super::walk::Walk;

/// Bytes of entries that are held in memory while a segment is copied.
const COPY_BYTES: usize = 1024 * 1024;

impl Log {
    /// Replaces the segment that holds damaged entries by one in which they are whole.
    ///
    /// `entries`, in order of their indices, are all those of that segment that cannot be read,
    /// from a replica that has them committed; more than that does no harm. The chain proves that
    /// they are the ones that were here: it must lead to the intact entry, or segment, behind them.
    ///
    /// DURABILITY: the new file is synced and has its name before the old one may go.
    ///
    /// # Errors
    /// [`Error::RepairRefused`] when the entries do not fit, or what the system said: the log is
    /// as it was.
    pub fn repair(&mut self, entries: &[Entry]) -> Result<()> {
        self.context.failure.check()?;
        let first = entries.first().ok_or_else(|| refused("there are none"))?.header.index;
        let segments = self.segments();
        let n = segments.partition_point(|segment| segment.base_index() <= first);
        let n = n.checked_sub(1).ok_or_else(|| {
            refused("the first segment of the log is missing; reset the log from a snapshot")
        })?;
        let next = segments.get(n + 1).map(|next| next.header().previous);
        let last_index = next.map_or(self.promised_index(), |tip| tip.index);
        let copy = Copy::of(self, &segments[n], entries, last_index)?;
        if let Err(error) = self.check_end(&copy.tip, next) {
            copy.segment.remove_now()?;
            return Err(error);
        }
        self.install(n, copy)
    }

    /// Checks that a repaired segment leads to where the next one goes on, or, at the end of the
    /// log, to what was promised. There the chain proves nothing, but the term must not be later.
    fn check_end(&self, tip: &Tip, next: Option<Tip>) -> Result<()> {
        match (next, self.lost_tail) {
            (Some(next), _) if next != *tip => Err(refused(&format!(
                "chain is {:#010x} after entry {}, the next segment continues {:#010x}",
                tip.chain, next.index, next.chain
            ))),
            (None, None) if self.tip != *tip => Err(refused(&format!(
                "chain is {:#010x} after entry {}, that of the log is {:#010x}",
                tip.chain, tip.index, self.tip.chain
            ))),
            (None, Some(lost)) if tip.index == lost.last_index && tip.term > lost.last_term => Err(
                refused(&format!("term is {}, the promise was of {}", tip.term, lost.last_term)),
            ),
            _ => Ok(()),
        }
    }

    fn promised_index(&self) -> u64 {
        self.lost_tail.map_or(self.tip.index, |lost| lost.last_index)
    }

    /// Puts a repaired segment in the place of number `n`.
    fn install(&mut self, n: usize, copy: Copy) -> Result<()> {
        let Copy { segment, tip } = copy;
        // Taken whatever comes: a file may have this generation in its name from here on.
        self.next_generation += 1;
        segment.sync_file(&*segment.begin_sync()?)?;
        if segment.take_name()? {
            let synced = self.context.fs.sync_dir(segment.dir());
            synced.map_err(|error| self.context.fail("sync", segment.dir(), error))?;
            segment.confirm_name();
        }
        let mut segments = self.segments().to_vec();
        let old = std::mem::replace(&mut segments[n], segment.clone());
        if n + 1 < segments.len() {
            segment.seal();
            segment.write_index()?;
        } else {
            self.tip = tip;
            self.lost_tail = None;
            self.sync.note_appended(&segment, tip.index);
        }
        self.shared.segments.store(Arc::new(segments));
        self.publish_tip();
        let base_index = segment.base_index();
        assert_eq!(
            base_index,
            old.base_index(),
            "a repaired segment takes the place of its old self"
        );
        assert!(tip.index >= base_index, "a repaired segment holds the entries that were missing");
        let mut faulty = self.shared.faulty.write().expect("no holder of the list panics");
        let old_path = old.path();
        faulty.retain(|range| {
            let is_elsewhere = range.last_index < base_index || range.first_index > tip.index;
            is_elsewhere && range.damage.file != old_path
        });
        drop(faulty);
        self.shared.note_damage_news();
        self.condemn([(old, Until::Named(segment))]);
        Ok(())
    }
}

fn refused(reason: &str) -> Error {
    Error::RepairRefused(reason.to_owned())
}

/// A segment being written from the good entries of a damaged one and from those of a peer.
struct Copy {
    segment: Arc<Segment>,
    tip: Tip,
}

impl Copy {
    fn of(log: &Log, old: &Arc<Segment>, given: &[Entry], last_index: u64) -> Result<Self> {
        let path = old.path();
        let file = log.context.fs.open(&path, OpenMode::Read).at("open", &path)?;
        let mut quiet = |_| {};
        let interval = log.context.config.index_interval_bytes;
        let scan = Scan::of(&*file, old.header(), interval, &mut quiet);
        let checkpoint = old.checkpoint().ok().filter(|_| old.header().has_checkpoint);
        let bytes = checkpoint.as_deref().unwrap_or_default();
        let header = SegmentHeader {
            salt: log.context.fs.salt(),
            generation: log.next_generation,
            checkpoint_len: checkpoint_len(bytes),
            checkpoint_crc: crc32fast::hash(bytes),
            has_checkpoint: checkpoint.is_some(),
            is_recycled: false,
            ..*old.header()
        };
        let (purpose, full) = (Purpose::Recovery, old.full_bytes());
        let segment = Segment::create(&log.context, &log.dir, header, bytes, purpose, full)?;
        let mut copy = Self { segment, tip: header.previous };
        let filled = copy.fill(old, &scan.runs, given, last_index);
        if let Err(error) = filled {
            copy.segment.remove_now()?;
            return Err(error);
        }
        Ok(copy)
    }

    /// Writes entries up to `last_index`, good ones from `old` and the others from `given`.
    fn fill(
        &mut self,
        old: &Arc<Segment>,
        runs: &[Run],
        given: &[Entry],
        last_index: u64,
    ) -> Result<()> {
        assert!(last_index >= self.tip.index, "a copy goes up to {last_index}");
        let mut given: VecDeque<Entry> = given.iter().cloned().collect();
        while self.tip.index < last_index {
            let next = self.tip.index + 1;
            let run = runs.iter().find(|run| run.first_index <= next && next <= run.tip.index);
            match run {
                Some(run) => self.copy_run(old, run, last_index)?,
                None => {
                    given.retain(|entry| entry.header.index >= next);
                    let entry = given.pop_front().filter(|entry| entry.header.index == next);
                    let entry =
                        entry.ok_or_else(|| refused(&format!("entry {next} is not there")))?;
                    self.take_given(entry)?;
                }
            }
        }
        Ok(())
    }

    /// Copies a run of good entries; its first chain value proves what was put before it.
    fn copy_run(&mut self, old: &Arc<Segment>, run: &Run, last_index: u64) -> Result<()> {
        let row = Row {
            index: run.first_index,
            base_offset: self.tip.end_offset,
            append_time_ms: self.tip.append_time_ms,
            position: run.position,
        };
        let last_index = run.tip.index.min(last_index);
        let mut walk = Walk::new(old, row, last_index, Access::MayBlock)?;
        walk.read_to(old.allocated_bytes());
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some((header, position)) = walk.next_header()? {
            if header.index <= self.tip.index {
                continue;
            }
            self.check(&header)?;
            self.tip.check_chain_to(&header).map_err(|what| refused(&what))?;
            self.tip = header.tip();
            bytes += header.frame_bytes() as usize;
            batch.push(Entry { header, payload: walk.payload(&header, position)? });
            if bytes >= COPY_BYTES {
                self.segment.append(&batch)?;
                (batch, bytes) = (Vec::new(), 0);
            }
        }
        if batch.is_empty() { Ok(()) } else { self.segment.append(&batch) }
    }

    fn take_given(&mut self, mut entry: Entry) -> Result<()> {
        self.check(&entry.header)?;
        if !entry.is_intact() {
            return Err(refused(&format!(
                "the payload of entry {} is damaged",
                entry.header.index
            )));
        }
        // What a peer knew of its own disk says nothing about this one.
        entry.header.synced_index = 0;
        entry.header.chain = entry.header.chain_after(self.tip.chain);
        self.tip = entry.header.tip();
        self.segment.append(&[entry])
    }

    fn check(&self, header: &super::entry::EntryHeader) -> Result<()> {
        self.tip.check_continued_by(header).map_err(|gap| refused(&gap.to_string()))
    }
}

impl LogReader {
    /// Reads a sealed segment from the disk and compares everything with its checksums and with
    /// what the next segment continues. What is damaged is reported from now on by
    /// [`LogReader::faulty`] too.
    ///
    /// `n` counts from the oldest segment. `pace` is told the bytes of each read and may wait, so
    /// that scrubbing does not starve others.
    ///
    /// # Errors
    /// What the system said about opening the file; a sector that cannot be read is damage.
    pub fn scrub_segment(&self, n: usize, pace: &mut dyn FnMut(u64)) -> Result<Vec<FaultyRange>> {
        let segments = self.segments();
        let (Some(segment), Some(next)) = (segments.get(n), segments.get(n + 1)) else {
            return Ok(Vec::new());
        };
        let found = check_segment(segment, Some(next.header().previous), pace)?;
        if segment.is_void() {
            return Ok(Vec::new());
        }
        // The index of a damaged segment is made anew when it is next needed, around the damage.
        if !found.is_empty() {
            segment.drop_index()?;
        }
        let mut faulty = self.shared.faulty.write().expect("no holder of the list panics");
        for range in &found {
            if !faulty.iter().any(|known| known.first_index == range.first_index) {
                tracing::error!(damage = %range.damage, "scrubbing found damage");
                faulty.push(range.clone());
            }
        }
        drop(faulty);
        self.shared.note_damage_news();
        Ok(found)
    }
}

/// Reads one segment from the disk. `next` is what the segment after it continues; without one its
/// entries may end anywhere.
pub(super) fn check_segment(
    segment: &Arc<Segment>,
    next: Option<Tip>,
    pace: &mut dyn FnMut(u64),
) -> Result<Vec<FaultyRange>> {
    let path = segment.path();
    let file = segment.open_fresh()?;
    let scan = Scan::of(&*file, segment.header(), segment.index_interval_bytes(), pace);
    let last_index = next.map_or(scan.head().tip.index, |tip| tip.index);
    let verdict = recovery::judge(&scan, last_index, true);
    let damage = |position, what| Damage { file: path.clone(), position, what };
    let mut faulty: Vec<FaultyRange> = verdict
        .faulty
        .iter()
        .zip(&scan.runs)
        .map(|((first, last), run)| {
            let what = format!("entries {first} to {last}: {}", scan.first_bad.1);
            FaultyRange { first_index: *first, last_index: *last, damage: damage(run.end, what) }
        })
        .collect();
    let base_index = segment.base_index();
    let mut head = |position, what| {
        let damage = damage(position, what);
        faulty.push(FaultyRange { first_index: base_index, last_index: base_index - 1, damage });
    };
    if let Err(Error::Corrupt(found)) = segment.check_checkpoint() {
        head(found.position, found.what);
    }
    for position in COPY_POSITIONS {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let read = super::fs::read_exact_at(&*file, &mut bytes, position);
        let copy = read.map_err(|error| error.to_string());
        let copy = copy.and_then(|()| SegmentHeader::decode(&bytes).map_err(|e| e.to_string()));
        if let Err(what) = copy {
            head(position, format!("a copy of the segment header: {what}"));
        }
    }
    Ok(faulty)
}

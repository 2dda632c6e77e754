//! The sparse index of one segment.
//!
//! One row for about every [`super::Config::index_interval_bytes`] of entries holds where an entry
//! starts together with its index, its base offset and its append time. All four grow from row to
//! row, so one table serves lookups by any of them: the caller starts at the row it is given and
//! walks the few frames that follow.
//!
//! A full segment's table is written beside it, so that opening it need not read it. The file is
//! never trusted: it carries a checksum and the segment's seed, and is rebuilt when in doubt.
//!
//! ```text
//! 0 [u8; 8] "quipuidx"   8 u32 version   12 u32 segment seed   16 u64 end position
//! 24 u32 row count       28 u32 CRC-32 of everything but this field
//! then a row: u64 index, u64 base offset, i64 append time (ms), u64 position
//! ```

use std::io::{self, IoSlice};

use super::entry::{EntryHeader, u32_at, u64_at};
use super::fs::{File, read_exact_at};

const MAGIC: &[u8; 8] = b"quipuidx";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
const ROW_BYTES: usize = 32;

/// Where an entry starts, and its three coordinates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Raft index of the entry.
    pub index: u64,
    /// Its base offset.
    pub base_offset: u64,
    /// Its append time in milliseconds.
    pub append_time_ms: i64,
    /// Byte in the segment where its frame starts.
    pub position: u64,
}

/// Rows of one segment, ascending in every column.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SparseIndex {
    rows: Vec<Row>,
}

impl SparseIndex {
    /// Notes an entry if it lies `interval_bytes` or more behind the last row.
    pub fn note(&mut self, header: &EntryHeader, position: u64, interval_bytes: u64) {
        let is_due = self.rows.last().is_none_or(|row| position >= row.position + interval_bytes);
        if is_due {
            self.push(header, position);
        }
    }

    /// Notes an entry in any case.
    pub(super) fn push(&mut self, header: &EntryHeader, position: u64) {
        if let Some(last) = self.rows.last() {
            assert!(last.position < position, "row {position} stands before row {}", last.position);
            assert!(last.index < header.index, "entry {} after {}", header.index, last.index);
        }
        self.rows.push(Row {
            index: header.index,
            base_offset: header.base_offset,
            append_time_ms: header.append_time_ms,
            position,
        });
    }

    /// Adds the rows of another index of the same entries.
    pub(super) fn merge(&mut self, other: Self) {
        self.rows.extend(other.rows);
        self.rows.sort_unstable_by_key(|row| row.index);
        self.rows.dedup_by_key(|row| row.index);
        assert!(
            self.rows.is_sorted_by(follows),
            "two indices of one segment contradict each other"
        );
    }

    /// The last row whose entry has an index of at most `index`.
    pub fn at_or_before_index(&self, index: u64) -> Option<Row> {
        let guess = self.guess(index as f64, |row| row.index as f64);
        self.last_where(guess, |row| row.index <= index)
    }

    /// The last row whose entry has a base offset of at most `offset`.
    pub fn at_or_before_offset(&self, offset: u64) -> Option<Row> {
        let guess = self.guess(offset as f64, |row| row.base_offset as f64);
        self.last_where(guess, |row| row.base_offset <= offset)
    }

    /// The last row whose entry was appended before `time_ms`.
    pub fn before_time(&self, time_ms: i64) -> Option<Row> {
        let guess = self.guess(time_ms as f64, |row| row.append_time_ms as f64);
        self.last_where(guess, |row| row.append_time_ms < time_ms)
    }

    /// How many rows come before `wanted` if `column` grows evenly: about right for entries that
    /// are much alike, and no more than a place to start from for others.
    fn guess(&self, wanted: f64, column: impl Fn(&Row) -> f64) -> usize {
        let (Some(first), Some(last)) = (self.rows.first(), self.rows.last()) else {
            return 0;
        };
        let share = (wanted - column(first)) / (column(last) - column(first));
        (1.0 + share * (self.rows.len() - 1) as f64) as usize
    }

    /// The last of the rows at the front for which `holds`, looked for around `guess`.
    ///
    /// Measured on 10 GB with hot rows: each step of a bisection misses the cache and the TLB. A
    /// guess takes a look-up from 3.4 to 2 us.
    fn last_where(&self, guess: usize, holds: impl Fn(&Row) -> bool) -> Option<Row> {
        let rows = &self.rows;
        let (mut low, mut high) = (guess.min(rows.len()), guess.min(rows.len()));
        let mut step = 1;
        while low > 0 && !holds(&rows[low - 1]) {
            low = low.saturating_sub(step);
            step *= 2;
        }
        let mut step = 1;
        while high < rows.len() && holds(&rows[high]) {
            high = (high + step).min(rows.len());
            step *= 2;
        }
        let count = low + rows[low..high].partition_point(holds);
        rows[..count].last().copied()
    }

    /// All rows in order.
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Heap bytes in use.
    pub fn memory_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Row>()
    }

    /// Gives back memory that no row uses.
    pub fn trim(&mut self) {
        self.rows.shrink_to_fit();
    }

    /// Writes the table to an empty file, for a segment with `seed` whose entries end at
    /// `end_position`.
    ///
    /// DURABILITY: not synced. A table that a crash tore fails its checksum and is rebuilt.
    pub fn write_to(&self, file: &dyn File, seed: u32, end_position: u64) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.rows.len() * ROW_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&seed.to_le_bytes());
        bytes.extend_from_slice(&end_position.to_le_bytes());
        let count = u32::try_from(self.rows.len()).map_err(io::Error::other)?;
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for row in &self.rows {
            bytes.extend_from_slice(&row.index.to_le_bytes());
            bytes.extend_from_slice(&row.base_offset.to_le_bytes());
            bytes.extend_from_slice(&row.append_time_ms.to_le_bytes());
            bytes.extend_from_slice(&row.position.to_le_bytes());
        }
        let crc = checksum(&bytes);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        file.write_at(&[IoSlice::new(&bytes)], 0)
    }

    /// Reads a table back, with the end position of its segment.
    ///
    /// Returns `None` when the file is not a whole, undamaged table for a segment with `seed`; the
    /// caller then rebuilds it from the segment.
    pub fn read_from(file: &dyn File, seed: u32) -> Option<(Self, u64)> {
        let len = usize::try_from(file.length().ok()?).ok()?;
        if len < HEADER_BYTES || !(len - HEADER_BYTES).is_multiple_of(ROW_BYTES) {
            return None;
        }
        let mut bytes = vec![0; len];
        read_exact_at(file, &mut bytes, 0).ok()?;
        Self::parse(&bytes, seed)
    }

    /// Parses the bytes of a table; see [`Self::read_from`].
    pub fn parse(bytes: &[u8], seed: u32) -> Option<(Self, u64)> {
        let (header, rows) = bytes.split_at_checked(HEADER_BYTES)?;
        let good = &header[..8] == MAGIC
            && u32_at(header, 8) == VERSION
            && u32_at(header, 12) == seed
            && u32_at(header, 24) as usize * ROW_BYTES == rows.len()
            && u32_at(header, 28) == checksum(bytes);
        if !good {
            return None;
        }
        let rows: Vec<Row> = rows.chunks_exact(ROW_BYTES).map(parse_row).collect();
        rows.is_sorted_by(follows).then(|| (Self { rows }, u64_at(header, 16)))
    }
}

/// CRC-32 of a table's bytes without the field that holds it.
fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..28]);
    hasher.update(&bytes[32..]);
    hasher.finalize()
}

fn parse_row(bytes: &[u8]) -> Row {
    Row {
        index: u64_at(bytes, 0),
        base_offset: u64_at(bytes, 8),
        append_time_ms: u64_at(bytes, 16).cast_signed(),
        position: u64_at(bytes, 24),
    }
}

fn follows(a: &Row, b: &Row) -> bool {
    a.index < b.index
        && a.base_offset <= b.base_offset
        && a.append_time_ms <= b.append_time_ms
        && a.position < b.position
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;

    use super::super::entry::{Entry, Kind};
    use super::super::fs::sim::SimFs;
    use super::super::fs::{Fs as _, OpenMode};
    use super::*;

    fn table() -> SparseIndex {
        let mut table = SparseIndex::default();
        for n in 0..100u64 {
            let entry = Entry::new(Kind::Records, 10 + n, 1, Bytes::new(), 0)
                .with_records(5 * n, 5)
                .at_time(1000 + 10 * (n as i64 / 2));
            table.note(&entry.header, 512 + n * 80, 240);
        }
        table
    }

    #[test]
    fn a_row_is_kept_for_each_interval() {
        let table = table();
        assert_eq!(table.rows.len(), 34);
        assert_eq!(table.rows[1].position, 512 + 240);
    }

    #[test]
    fn lookups_return_the_last_row_that_does_not_overshoot() {
        let table = table();
        assert_eq!(table.at_or_before_index(9), None);
        assert_eq!(table.at_or_before_index(10).unwrap().index, 10);
        assert_eq!(table.at_or_before_index(15).unwrap().index, 13);
        assert_eq!(table.at_or_before_offset(44).unwrap().base_offset, 30);
        assert_eq!(table.before_time(1000), None);
        assert_eq!(table.before_time(1001).unwrap().index, 10);
        assert_eq!(table.before_time(i64::MAX).unwrap().index, 109);
    }

    #[test]
    fn lookups_are_right_however_unevenly_the_rows_grow() {
        let mut table = SparseIndex::default();
        let growths: [fn(u64) -> u64; 4] = [|n| n, |n| n * n, |n| 1 << (n / 8), |n| n / 20 * 500];
        for growth in growths {
            table.rows.clear();
            for n in 0..300u64 {
                let entry = Entry::new(Kind::Records, 1 + n, 1, Bytes::new(), 0)
                    .with_records(growth(n), 1)
                    .at_time(growth(n).cast_signed());
                table.push(&entry.header, 80 * n);
            }
            for n in 0..300 {
                for wanted in [growth(n).saturating_sub(1), growth(n), growth(n) + 1, u64::MAX] {
                    let rows = table.rows.iter().rev();
                    let expected = rows.clone().find(|row| row.base_offset <= wanted).copied();
                    assert_eq!(table.at_or_before_offset(wanted), expected, "offset {wanted}");
                    let time = i64::try_from(wanted).unwrap_or(i64::MIN);
                    let expected = rows.clone().find(|row| row.append_time_ms < time).copied();
                    assert_eq!(table.before_time(time), expected, "time {time}");
                }
            }
        }
    }

    #[test]
    fn a_written_table_comes_back_and_any_flipped_bit_is_noticed() {
        let fs = SimFs::new();
        let path = Path::new("/t.idx");
        let file = fs.open(path, OpenMode::Create).unwrap();
        let written = table();
        written.write_to(&*file, 77, 9000).unwrap();
        assert_eq!(SparseIndex::read_from(&*file, 77), Some((written, 9000)));
        assert_eq!(SparseIndex::read_from(&*file, 78), None, "another segment's table");
        let mut bytes = vec![0; file.length().unwrap() as usize];
        read_exact_at(&*file, &mut bytes, 0).unwrap();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SparseIndex::parse(&bytes, 77), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(SparseIndex::parse(&bytes[..20], 77), None);
    }
}

//! Buffered positional reads of a file that may have bad sectors.

use super::fs::{File, read_exact_at};

const WINDOW_BYTES: usize = 1024 * 1024;
/// Steps in which a bad sector is closed in on.
const BLOCK_BYTES: usize = 64 * 1024;
const SECTOR_BYTES: usize = 512;

/// A window on a file that moves as ranges are asked for.
///
/// A sector that cannot be read is found once and remembered: a disk may try for seconds each time.
pub(super) struct Window<'a> {
    file: &'a dyn File,
    pace: &'a mut dyn FnMut(u64),
    pub(super) file_bytes: u64,
    buffer: Vec<u8>,
    start: u64,
    /// Where the last bad sector starts, with what the system said of it.
    bad: Option<(u64, String)>,
}

impl<'a> Window<'a> {
    /// `pace` is told the bytes of each read and may wait.
    pub(super) fn new(file: &'a dyn File, pace: &'a mut dyn FnMut(u64)) -> Self {
        let file_bytes = file.length().unwrap_or(0);
        Self { file, pace, file_bytes, buffer: Vec::new(), start: 0, bad: None }
    }

    /// Bytes of the file.
    ///
    /// # Errors
    /// In words: the file ends before, or the disk cannot read a sector of the range.
    pub(super) fn bytes(&mut self, position: u64, len: usize) -> Result<&[u8], String> {
        self.load(position, len)?;
        assert!(self.start <= position, "the window starts at {}, not {position}", self.start);
        let at = (position - self.start) as usize;
        Ok(&self.buffer[at..at + len])
    }

    /// Makes sure that the buffer holds a range.
    ///
    /// # Errors
    /// As [`Self::bytes`].
    pub(super) fn load(&mut self, position: u64, len: usize) -> Result<(), String> {
        let end = position + len as u64;
        if end > self.file_bytes {
            return Err(format!("the file ends at {} bytes", self.file_bytes));
        }
        if self.holds(position, end) {
            return Ok(());
        }
        self.check_bad(position, end)?;
        self.fill(position, len);
        if self.holds(position, end) {
            return Ok(());
        }
        self.check_bad(position, end)?;
        Err(format!("the disk delivered less than {len} bytes"))
    }

    fn holds(&self, position: u64, end: u64) -> bool {
        position >= self.start && end <= self.start + self.buffer.len() as u64
    }

    /// Refuses a range that the known bad sector is in.
    fn check_bad(&self, position: u64, end: u64) -> Result<(), String> {
        match &self.bad {
            Some((bad, what)) if *bad < end && position < bad + SECTOR_BYTES as u64 => {
                Err(format!("the disk cannot read the sector at {bad}: {what}"))
            }
            _ => Ok(()),
        }
    }

    /// Fills the buffer from `position`, at least `len` bytes of it if they can be read; stops at
    /// the first sector that cannot be.
    fn fill(&mut self, position: u64, len: usize) {
        let wanted = (self.file_bytes - position).min(len.max(WINDOW_BYTES) as u64) as usize;
        assert!(wanted >= len, "{len} bytes at {position} lie inside the file");
        self.start = position;
        self.buffer.clear();
        if self.read_on(wanted).is_ok() {
            return;
        }
        for step in [BLOCK_BYTES, SECTOR_BYTES] {
            while self.buffer.len() < wanted {
                let at = position + self.buffer.len() as u64;
                let to_border = step - (at % step as u64) as usize;
                if let Err(error) = self.read_on(to_border.min(wanted - self.buffer.len())) {
                    let sector = at - at % SECTOR_BYTES as u64;
                    self.bad = Some((sector, error.to_string()));
                    break;
                }
            }
        }
    }

    /// Appends the next `len` bytes of the file to the buffer, or nothing.
    fn read_on(&mut self, len: usize) -> std::io::Result<()> {
        let held = self.buffer.len();
        self.buffer.resize(held + len, 0);
        (self.pace)(len as u64);
        let read = read_exact_at(self.file, &mut self.buffer[held..], self.start + held as u64);
        if read.is_err() {
            self.buffer.truncate(held);
        }
        read
    }
}

//! Checkpoints: the state as bytes, and back.
//!
//! ```text
//!  0 [u8; 8] "quipupst"       8 u32 version, 1        12 u64 applied index
//! 20 i64 log time, ms        28 u64 log start
//! 36 u32 count of producers, each by ascending id:
//!      u64 id   u16 producer epoch   i64 active, ms   u8 count of batches, the oldest first:
//!        u32 base sequence   u32 record count   u32 payload CRC   u64 base offset
//!  + u32 count of groups, each by ascending id:
//!      u8 length and id   u64 generation   u64 expire after idle, ms   i64 active, ms
//!      u8 1 if it has a position, then:
//!        u64 offset   u64 leader epoch   [u8; 16] member   u16 length and metadata
//!  + u32 CRC-32 of all bytes before
//! ```
//!
//! All numbers are little-endian. A state has one form, and no other bytes are taken for it.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::error::CheckpointError;
use super::producers::Producers;
use super::progress::Progress;
use super::state::State;
use super::wire::Reader;
use crate::raft::planted::{Bug, planted};

const MAGIC: &[u8; 8] = b"quipupst";
const VERSION: u32 = 1;
const CRC_BYTES: usize = 4;

impl State {
    /// Encodes the state; equal states have equal bytes.
    pub fn checkpoint(&self) -> Bytes {
        let mut bytes = self.encode();
        bytes.put_u32_le(crc32fast::hash(&bytes));
        bytes.freeze()
    }

    /// CRC-32 that stands for the whole state, to compare replicas at the same index.
    pub fn digest(&self) -> u32 {
        crc32fast::hash(&self.encode())
    }

    fn encode(&self) -> BytesMut {
        let mut bytes = BytesMut::new();
        bytes.put_slice(MAGIC);
        bytes.put_u32_le(VERSION);
        bytes.put_u64_le(self.applied_index);
        bytes.put_i64_le(self.log_time_ms);
        bytes.put_u64_le(self.log_start);
        self.producers.encode(&mut bytes);
        self.progress.encode(&mut bytes);
        bytes
    }

    /// Decodes a checkpoint. Reserves no more memory than the bytes can fill.
    ///
    /// # Errors
    /// What the bytes are instead.
    pub fn from_checkpoint(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let mut reader = open(bytes)?;
        let decoded = Self::decode(&mut reader);
        let position = reader.position();
        let malformed = |fault| CheckpointError::Malformed { position, fault };
        let state = decoded.map_err(malformed)?;
        if reader.remaining() > 0 {
            return Err(malformed("bytes follow the last group"));
        }
        Ok(state)
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, &'static str> {
        const CUT: &str = "the checkpoint is cut short";
        let applied_index = reader.u64().ok_or(CUT)?;
        let log_time_ms = reader.i64().ok_or(CUT)?;
        let log_start = reader.u64().ok_or(CUT)?;
        let mut producers = Producers::decode(reader, log_time_ms)?;
        if planted(Bug::ProducersNotRestored) {
            producers = Producers::default();
        }
        let progress = Progress::decode(reader, log_time_ms)?;
        Ok(Self { applied_index, log_time_ms, log_start, producers, progress })
    }
}

/// Checks magic, version and checksum; gives a reader of what lies between version and checksum.
fn open(bytes: &[u8]) -> Result<Reader<'_>, CheckpointError> {
    if !bytes.starts_with(MAGIC) {
        return Err(CheckpointError::Magic);
    }
    let cut = CheckpointError::Malformed { position: bytes.len(), fault: "it is cut short" };
    let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(cut)?;
    let mut reader = Reader::new(body);
    reader.take(MAGIC.len()).ok_or(cut)?;
    let version = reader.u32().ok_or(cut)?;
    if version != VERSION {
        return Err(CheckpointError::Version { found: version });
    }
    let (expected, found) = (u32::from_le_bytes(*crc), crc32fast::hash(body));
    if expected != found {
        return Err(CheckpointError::Checksum { expected, found });
    }
    Ok(reader)
}

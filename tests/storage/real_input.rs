//! A real log file, line by line: appended with keys, closed, reopened, and each line read back by
//! its offset and by its time.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use quipu::batch::{self, BatchBuilder, Codec, Limits, Record, Scratch};
use quipu::storage::fs::os::OsFs;
use quipu::storage::{Access, Config, DataDir, Entry, Kind, LogReader, Tip};

use crate::support::LOG;

/// What a package manager logged while a machine was set up; `QUIPU_REAL_LOG` names another file.
const SAMPLE: &str = include_str!("sample.log");
const LINES_PER_BATCH: usize = 7;

/// The key of a line: its third word, which in most logs says what happened or to whom.
fn key_of(line: &[u8]) -> &[u8] {
    line.split(|byte| *byte == b' ').nth(2).unwrap_or_default()
}

fn batch_of(lines: &[&[u8]], codec: Codec) -> Bytes {
    let mut builder = BatchBuilder::new(Limits::default());
    for line in lines {
        let record = Record { key: Some(key_of(line)), value: Some(line), ..Record::default() };
        builder.append(&record).unwrap();
    }
    builder.build(codec).unwrap()
}

fn entry_of(tip: &Tip, lines: &[&[u8]], codec: Codec, time: i64) -> Entry {
    let payload = batch_of(lines, codec);
    let mut scratch = Scratch::default();
    let verified = batch::verify(&payload, None, &Limits::default(), &mut scratch).unwrap();
    let (count, crc) = (verified.summary().record_count, verified.crc());
    assert_eq!(count as usize, lines.len());
    Entry::new(Kind::Records, tip.index + 1, 1, payload.clone(), crc)
        .with_records(tip.end_offset, count)
        .at_time(time)
}

/// The record at `offset`: its key and value.
fn record_at(reader: &LogReader, offset: u64) -> (Vec<u8>, Vec<u8>) {
    let index = reader.index_of_offset(offset, Access::MayBlock).unwrap();
    let mut out = Vec::new();
    reader.read(index, index, 1, Access::MayBlock, &mut out).unwrap();
    let entry = &out[0];
    let crc = Some(entry.header.payload_crc);
    let mut scratch = Scratch::default();
    let verified = batch::verify(&entry.payload, crc, &Limits::default(), &mut scratch).unwrap();
    let ordinal = u32::try_from(offset - entry.header.base_offset).unwrap();
    let record = verified.record(ordinal).unwrap();
    (record.key.unwrap().to_vec(), record.value.unwrap().to_vec())
}

#[test]
fn every_line_of_a_real_log_comes_back_by_offset_and_by_time() {
    let text = match std::env::var("QUIPU_REAL_LOG") {
        Ok(path) => std::fs::read(path).unwrap(),
        Err(_) => SAMPLE.as_bytes().to_vec(),
    };
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()).collect();
    assert!(lines.len() > 100);
    let temporary = tempfile::tempdir().unwrap();
    let config = Config {
        segment_bytes: 32 * 1024,
        low_water_bytes: 0,
        reserve_bytes: 0,
        ..Config::default()
    };
    let fs = Arc::new(OsFs::new());
    let dir = DataDir::open(fs.clone(), temporary.path(), config.clone()).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    let mut offset_at_time = BTreeMap::new();
    let codecs = [Codec::None, Codec::Lz4];
    for (n, lines) in lines.chunks(LINES_PER_BATCH).enumerate() {
        let time = 1_700_000_000_000 + 1000 * n as i64;
        offset_at_time.insert(time, log.tip().end_offset);
        let entry = entry_of(&log.tip(), lines, codecs[n % codecs.len()], time);
        log.append(&mut [entry], &mut |_| Bytes::new()).unwrap();
    }
    dir.close_log(log).unwrap();
    dir.close().unwrap();

    let dir = DataDir::open(fs, temporary.path(), config).unwrap();
    let (log, report) = dir.open_log(LOG).unwrap();
    assert!(report.faulty.is_empty());
    let reader = log.reader();
    assert!(reader.segments().len() > 1, "the log spans segments");
    assert_eq!(reader.log_end_offset(), lines.len() as u64);
    for (offset, line) in lines.iter().enumerate() {
        let (key, value) = record_at(&reader, offset as u64);
        assert_eq!((key.as_slice(), value.as_slice()), (key_of(line), *line), "line {offset}");
    }
    for (time, offset) in offset_at_time {
        for asked in [time - 999, time] {
            let found = reader.offset_for_time(asked, Access::MayBlock).unwrap();
            assert_eq!(found.map(|(offset, _)| offset), Some(offset), "time {asked}");
        }
    }
}

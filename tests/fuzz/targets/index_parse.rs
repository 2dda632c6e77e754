//! Takes the input for the index file of a segment, as it is and with its head and checksum made
//! right. Lookups in what is accepted must find what a search row by row finds.

use quipu::storage::{Row, SparseIndex};

use super::edits::crc_from;

const HEAD_BYTES: usize = 32;
const ROW_BYTES: usize = 32;
const SEED: u32 = 7;

pub(crate) fn run(input: &[u8]) {
    if let Some((index, _)) = SparseIndex::parse(input, SEED) {
        check(&index, input);
    }
    let mut bytes = input.to_vec();
    bytes.truncate(HEAD_BYTES + input.len().saturating_sub(HEAD_BYTES) / ROW_BYTES * ROW_BYTES);
    if bytes.len() < HEAD_BYTES {
        return;
    }
    let count = (bytes.len() - HEAD_BYTES) / ROW_BYTES;
    bytes[..8].copy_from_slice(b"quipuidx");
    bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
    bytes[12..16].copy_from_slice(&SEED.to_le_bytes());
    bytes[24..28].copy_from_slice(&(count as u32).to_le_bytes());
    let crc = crc_from(crc_from(0, &bytes[..28]), &bytes[32..]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    let parsed = SparseIndex::parse(&bytes, SEED);
    assert_eq!(parsed.is_some(), rows(&bytes).is_sorted_by(follows), "only the order counts now");
    if let Some((index, end)) = parsed {
        assert_eq!(end.to_le_bytes(), bytes[16..24]);
        check(&index, &bytes);
        assert_eq!(SparseIndex::parse(&bytes, !SEED), None);
    }
}

fn rows(bytes: &[u8]) -> Vec<Row> {
    let number = |row: &[u8], at: usize| {
        u64::from_le_bytes(row[at..at + 8].try_into().expect("eight bytes make a number"))
    };
    let row = |row: &[u8]| Row {
        index: number(row, 0),
        base_offset: number(row, 8),
        append_time_ms: number(row, 16).cast_signed(),
        position: number(row, 24),
    };
    bytes[HEAD_BYTES..].chunks_exact(ROW_BYTES).map(row).collect()
}

fn follows(a: &Row, b: &Row) -> bool {
    a.index < b.index
        && a.base_offset <= b.base_offset
        && a.append_time_ms <= b.append_time_ms
        && a.position < b.position
}

fn check(index: &SparseIndex, bytes: &[u8]) {
    let rows = rows(bytes);
    let last = |holds: &dyn Fn(&Row) -> bool| rows.iter().rev().find(|row| holds(row)).copied();
    for row in &rows {
        for near in [-1, 0, 1] {
            let at = row.index.wrapping_add_signed(near);
            assert_eq!(index.at_or_before_index(at), last(&|row| row.index <= at));
            let at = row.base_offset.wrapping_add_signed(near);
            assert_eq!(index.at_or_before_offset(at), last(&|row| row.base_offset <= at));
            let at = row.append_time_ms.wrapping_add(near);
            assert_eq!(index.before_time(at), last(&|row| row.append_time_ms < at));
        }
    }
}

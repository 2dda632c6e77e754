//! A modelled disk for fuzzing, and damage as a fuzzer describes it: the input is a list of edits
//! of a file that was good.

use std::io::IoSlice;

use quipu::storage::fs::sim::SimFs;
use quipu::storage::fs::{Fs as _, OpenMode};

/// An edit: two bytes of position, one that says how many bytes follow, and those.
const POSITION_BYTES: usize = 2;
const LENGTH_MAX: u8 = 32;

/// Applies the edits that `input` holds to `bytes`. Positions wrap around.
pub(crate) fn apply(bytes: &mut [u8], mut input: &[u8]) {
    while let Some((head, rest)) = input.split_at_checked(POSITION_BYTES + 1) {
        let at = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let len = usize::from(head[2] % LENGTH_MAX + 1).min(rest.len());
        let (new, rest) = rest.split_at(len);
        for (n, byte) in new.iter().enumerate() {
            let at = (at + n) % bytes.len();
            bytes[at] = *byte;
        }
        input = rest;
    }
}

/// CRC-32 of `bytes`, started from `seed`.
pub(crate) fn crc_from(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// The files of a disk on a new one, which knows of no others and holds no zeros behind the last
/// byte of the meta journal: both would only take time.
pub(crate) fn fresh_copy(fs: &SimFs) -> SimFs {
    let copy = SimFs::new();
    for path in fs.paths() {
        let mut bytes = fs.durable_bytes(&path).expect("every name is durable");
        if path.starts_with("/data/meta") || path.starts_with("/meta") {
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            bytes.truncate(end.next_multiple_of(8));
        }
        let dir = path.parent().expect("a file is in a directory");
        copy.create_dir_all(dir).expect("the model makes directories");
        let file = copy.open(&path, OpenMode::Create).expect("the name is free");
        file.write_at(&[IoSlice::new(&bytes)], 0).expect("there is room");
        file.sync().expect("nothing fails");
    }
    copy.power_cut(|_| true);
    copy
}

//! Damage as a fuzzer describes it: the input is a list of edits of a file that was good.

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

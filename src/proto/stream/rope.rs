//! Ropes: bytes in pieces, which together are as good as one.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

/// A payload of so many bytes is a piece of its own, and with that an HTTP/2 frame and a system
/// call: smaller ones are copied.
const PIECE_BYTES_MIN: usize = 32 << 10;
/// What is copied is gathered in memory of this size.
const GATHERED_BYTES: usize = 32 << 10;

/// Bytes in pieces. To read from it, see [`Buf`]: what lies within one piece is not copied.
///
/// * No piece is empty.
/// * `bytes` is the length of all pieces.
#[derive(Debug, Clone, Default)]
pub struct Rope {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Rope {
    /// Adds a piece at the end.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Takes the first piece off.
    pub fn pop(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front()?;
        self.bytes -= piece.len();
        Some(piece)
    }

    /// Takes the first `bytes` off.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_to(&mut self, bytes: usize) -> Self {
        assert!(bytes <= self.bytes, "{bytes} bytes of {} are asked for", self.bytes);
        let mut taken = Self::default();
        while let Some(missing) = bytes.checked_sub(taken.bytes).filter(|missing| *missing > 0) {
            let piece = self.pieces.front().map_or(0, Bytes::len);
            taken.push(self.copy_to_bytes(missing.min(piece)));
        }
        taken
    }
}

impl From<Bytes> for Rope {
    fn from(bytes: Bytes) -> Self {
        let mut rope = Self::default();
        rope.push(bytes);
        rope
    }
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(&self.pieces);
        filled.map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut bytes: usize) {
        assert!(bytes <= self.bytes, "{bytes} bytes of {} are passed over", self.bytes);
        self.bytes -= bytes;
        while bytes > 0 {
            let piece =
                self.pieces.front_mut().expect("the pieces are as long as they are counted");
            if bytes < piece.len() {
                return piece.advance(bytes);
            }
            bytes -= piece.len();
            self.pieces.pop_front();
        }
    }

    fn copy_to_bytes(&mut self, bytes: usize) -> Bytes {
        assert!(bytes <= self.bytes, "{bytes} bytes of {} are asked for", self.bytes);
        match self.pieces.front_mut() {
            Some(first) if bytes < first.len() => {
                self.bytes -= bytes;
                first.split_to(bytes)
            }
            Some(first) if bytes == first.len() => self.pop().unwrap_or_default(),
            _ => {
                let mut copied = BytesMut::with_capacity(bytes);
                copied.put(self.take(bytes));
                copied.freeze()
            }
        }
    }
}

/// A rope that is being made: messages, one after the other.
#[derive(Debug, Default)]
pub struct RopeMut {
    rope: Rope,
    /// What was written since the last piece.
    gathered: BytesMut,
}

impl RopeMut {
    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.rope.bytes + self.gathered.len()
    }

    /// Where to write what is small.
    pub fn gather(&mut self) -> &mut BytesMut {
        &mut self.gathered
    }

    /// Adds bytes, without copying them if they are many.
    pub fn put(&mut self, bytes: Bytes) {
        if bytes.len() >= PIECE_BYTES_MIN {
            self.close_piece();
            self.rope.push(bytes);
            return;
        }
        if self.gathered.len() + bytes.len() > GATHERED_BYTES {
            self.close_piece();
        }
        if self.gathered.capacity() - self.gathered.len() < bytes.len() {
            self.gathered.reserve(GATHERED_BYTES);
        }
        self.gathered.put_slice(&bytes);
    }

    /// Adds a field that is a message with a payload: `message` is all the rest of it, and the
    /// payload, which comes last, its field of type `bytes`.
    pub fn put_message(&mut self, tag: u32, message: &impl Message, payload: (u32, Bytes)) {
        let (payload_tag, payload) = payload;
        let payload_bytes = match payload.len() {
            0 => 0,
            bytes => key_len(payload_tag) + encoded_len_varint(bytes as u64) + bytes,
        };
        self.begin_field(tag, message.encoded_len() + payload_bytes);
        message.encode_raw(&mut self.gathered);
        if !payload.is_empty() {
            self.begin_field(payload_tag, payload.len());
            self.put(payload);
        }
    }

    /// Begins a field whose content is `bytes` long and comes next.
    pub fn begin_field(&mut self, tag: u32, bytes: usize) {
        encode_key(tag, WireType::LengthDelimited, &mut self.gathered);
        encode_varint(bytes as u64, &mut self.gathered);
    }

    /// Takes what is there.
    pub fn finish(&mut self) -> Rope {
        self.close_piece();
        std::mem::take(&mut self.rope)
    }

    fn close_piece(&mut self) {
        self.rope.push(self.gathered.split().freeze());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(pieces: &[&'static [u8]]) -> Rope {
        let mut rope = Rope::default();
        pieces.iter().for_each(|piece| rope.push(Bytes::from_static(piece)));
        rope
    }

    #[test]
    fn what_lies_within_a_piece_is_not_copied() {
        static PIECE: &[u8] = b"within one";
        let mut rope = rope(&[b"a", PIECE, b"after"]);
        rope.advance(1);
        let taken = rope.copy_to_bytes(PIECE.len() - 1);
        assert_eq!(taken.as_ptr(), PIECE.as_ptr());
        assert_eq!(rope.copy_to_bytes(1).as_ptr(), PIECE[PIECE.len() - 1..].as_ptr());
        assert_eq!((rope.remaining(), rope.chunk()), (5, &b"after"[..]));
    }

    #[test]
    fn pieces_are_as_good_as_one() {
        let all = b"knots in many cords";
        for cut in 0..=all.len() {
            let mut rope = rope(&[&all[..3], b"", &all[3..4], &all[4..]]);
            let mut first = rope.split_to(cut);
            assert_eq!((first.remaining(), rope.remaining()), (cut, all.len() - cut));
            assert_eq!(first.copy_to_bytes(cut), all[..cut]);
            assert_eq!(rope.copy_to_bytes(all.len() - cut), all[cut..]);
            assert!(rope.pop().is_none());
        }
        let mut rope = rope(&[&all[..3], &all[3..]]);
        let mut slices = [IoSlice::new(&[]); 3];
        assert_eq!(rope.chunks_vectored(&mut slices), 2);
        assert_eq!([&*slices[0], &*slices[1]].concat(), all);
        rope.advance(4);
        assert_eq!(rope.chunk(), &all[4..]);
    }

    #[test]
    #[should_panic(expected = "20 bytes of 1 are asked for")]
    fn more_than_there_is_cannot_be_taken() {
        rope(&[b"a"]).split_to(20);
    }

    #[test]
    fn what_is_large_stays_where_it_is() {
        let (large, small) = (Bytes::from(vec![1; PIECE_BYTES_MIN]), Bytes::from(vec![2; 5_000]));
        let mut out = RopeMut::default();
        out.gather().put_u8(0);
        out.put(large.clone());
        (0..20).for_each(|_| out.put(small.clone()));
        assert_eq!(out.bytes(), 1 + large.len() + 20 * small.len());
        let mut rope = out.finish();
        assert_eq!(rope.pop().unwrap(), [0][..]);
        assert_eq!(rope.pop().unwrap().as_ptr(), large.as_ptr());
        let gathered: Vec<_> = std::iter::from_fn(|| rope.pop()).collect();
        assert!(gathered.iter().all(|piece| piece.len() <= GATHERED_BYTES));
        assert_eq!(gathered.concat(), vec![2; 100_000]);
        assert_eq!(out.bytes(), 0);
    }
}

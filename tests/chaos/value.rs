//! What records carry: who sent them, the how manieth it is, and bytes that show any damage.

use crate::rng::mix;

/// Counters and producers share the 64 bits that stand for a record.
const COUNTER_BITS: u32 = 40;
const HEAD_BYTES: usize = 12;
const CRC_BYTES: usize = 4;

/// A record: no two are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Value {
    pub(crate) producer: u32,
    pub(crate) counter: u64,
}

impl Value {
    /// One number for it, never 0.
    pub(crate) fn number(self) -> u64 {
        u64::from(self.producer) << COUNTER_BITS | (self.counter + 1)
    }

    /// The value that has this number.
    pub(crate) fn of_number(number: u64) -> Self {
        let counter = (number & ((1 << COUNTER_BITS) - 1)) - 1;
        Self { producer: (number >> COUNTER_BITS) as u32, counter }
    }

    /// Its bytes, of a length that follows from what it is: small, seldom large.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let draw = mix(self.number());
        let filler = match draw % 400 {
            0 => 8_000 + (draw >> 32) % 24_000,
            _ => (draw >> 32) % 240,
        };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + filler as usize + CRC_BYTES);
        bytes.extend_from_slice(&self.producer.to_le_bytes());
        bytes.extend_from_slice(&self.counter.to_le_bytes());
        bytes.extend((0..filler).map(|at| (draw >> (at % 57)) as u8));
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// The value that has these bytes; `None` if none has.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(CRC_BYTES)?)?;
        let producer = u32::from_le_bytes(body.get(..4)?.try_into().ok()?);
        let counter = u64::from_le_bytes(body.get(4..HEAD_BYTES)?.try_into().ok()?);
        (crc == crc32fast::hash(body).to_le_bytes()).then_some(Self { producer, counter })
    }
}

#[test]
fn a_value_is_known_by_its_bytes_and_by_no_others() {
    for counter in 0..1000 {
        let value = Value { producer: 7, counter };
        let mut bytes = value.bytes();
        assert_eq!(Value::parse(&bytes), Some(value));
        assert_eq!(Value::of_number(value.number()), value);
        let at = mix(counter) as usize % bytes.len();
        bytes[at] ^= 1;
        assert_eq!(Value::parse(&bytes), None);
    }
}

//! The API's values and ours.

use prost::Message as _;
use uuid::Uuid;

use super::error::Error;
use crate::cluster::command::TopicConfig;
use crate::partition::Acks;
use crate::proto::server as api;
use crate::storage::Entry;
use crate::{batch, raft};

/// Longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 249;
/// Longest batch of any topic, in bytes: its answer still fits a message.
pub const BATCH_BYTES_MAX: u32 = 3_670_016;
/// Longest record of any topic, in bytes.
pub const RECORD_BYTES_MAX: u32 = 1 << 20;

/// Checks a name that users give.
///
/// # Errors
/// [`Error::BadName`].
pub fn check_name(name: &str) -> Result<(), Error> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let is_good = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(is_allowed)
        && !matches!(name, "." | "..")
        && !name.starts_with("__");
    if is_good {
        return Ok(());
    }
    Err(Error::BadName(name.chars().take(NAME_BYTES_MAX).collect()))
}

/// Reads the id that a request may give; `None` if it gives none.
///
/// # Errors
/// [`Error::InvalidField`].
pub fn topic_id(text: &str) -> Result<Option<Uuid>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    Uuid::try_parse(text).map(Some).map_err(|_| Error::field("topic_id", "a UUID"))
}

/// What an answer to a batch waits for.
///
/// # Errors
/// [`Error::InvalidField`] for a number that stands for nothing.
pub fn acks(number: i32) -> Result<Acks, Error> {
    match api::Acks::try_from(number) {
        Ok(api::Acks::Unspecified | api::Acks::Quorum) => Ok(Acks::Quorum),
        Ok(api::Acks::Leader) => Ok(Acks::Leader),
        Ok(api::Acks::None) => Ok(Acks::None),
        Err(_) => Err(Error::field("acks", "0 to 3")),
    }
}

/// What "stored" means.
pub fn durability(durability: raft::Durability) -> api::Durability {
    match durability {
        raft::Durability::Fsync => api::Durability::Fsync,
        raft::Durability::Memory => api::Durability::Memory,
    }
}

/// How large the batches of a topic may be.
pub fn batch_limits(config: &TopicConfig) -> batch::Limits {
    let at_most = |value: Option<u32>, max: u32| value.unwrap_or(max).min(max);
    batch::Limits {
        batch_bytes_max: at_most(config.batch_bytes_max, BATCH_BYTES_MAX),
        record_bytes_max: at_most(config.record_bytes_max, RECORD_BYTES_MAX),
        ..batch::Limits::default()
    }
}

/// An entry that holds records, as readers get it.
pub fn stored_batch(entry: Entry) -> api::StoredBatch {
    let header = entry.header;
    api::StoredBatch {
        base_offset: header.base_offset,
        record_count: header.record_count,
        append_time_ms: header.append_time_ms,
        leader_epoch: header.term,
        crc: header.payload_crc,
        batch: entry.payload,
    }
}

/// Bytes of a batch in the message that carries it.
pub fn encoded_bytes(batch: &api::StoredBatch) -> usize {
    let len = batch.encoded_len();
    // The field's key, and its length.
    1 + prost::encoding::encoded_len_varint(len as u64) + len
}

/// A place in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The first record that is kept.
    Earliest,
    /// After the last record.
    Latest,
    /// The record with this offset.
    Offset(u64),
    /// The first record appended at this time or later.
    Time(i64),
}

impl From<Place> for api::start_position::Position {
    fn from(place: Place) -> Self {
        match place {
            Place::Earliest => Self::Earliest(true),
            Place::Latest => Self::Latest(true),
            Place::Offset(offset) => Self::Offset(offset),
            Place::Time(time_ms) => Self::TimeMs(time_ms),
        }
    }
}

/// The place that a request names.
///
/// # Errors
/// [`Error::InvalidField`] if it names none.
pub fn place(position: Option<api::StartPosition>) -> Result<Place, Error> {
    use api::start_position::Position;
    match position.and_then(|start| start.position) {
        Some(Position::Earliest(true)) => Ok(Place::Earliest),
        Some(Position::Latest(true)) => Ok(Place::Latest),
        Some(Position::Offset(offset)) => Ok(Place::Offset(offset)),
        Some(Position::TimeMs(time_ms)) => Ok(Place::Time(time_ms)),
        Some(Position::Earliest(false) | Position::Latest(false)) | None => {
            Err(Error::field("position", "earliest, latest, an offset or a time"))
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["a", "A.b_c-9", "...", "_", "CON", "a.", &"x".repeat(249)] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
        let long = "x".repeat(250);
        for bad in ["", ".", "..", "../x", "/etc/x", "a b", "a\0", "ä", "__internal", &long] {
            assert!(matches!(check_name(bad), Err(Error::BadName(_))), "{bad:?}");
        }
    }

    #[test]
    fn an_id_is_a_uuid_or_absent() {
        assert!(topic_id("").unwrap().is_none());
        assert!(topic_id("67e55044-10b1-426f-9247-bb680e5fe0c8").unwrap().is_some());
        assert!(topic_id("../../x").is_err());
    }

    #[test]
    fn unknown_acks_are_refused() {
        assert_eq!(acks(0).unwrap(), Acks::Quorum);
        assert_eq!(acks(3).unwrap(), Acks::None);
        assert!(acks(4).is_err());
        assert!(acks(-1).is_err());
    }

    #[test]
    fn a_topic_cannot_raise_the_hard_limits() {
        let config = TopicConfig { batch_bytes_max: Some(u32::MAX), ..TopicConfig::default() };
        assert_eq!(batch_limits(&config).batch_bytes_max, BATCH_BYTES_MAX);
        let config = TopicConfig { record_bytes_max: Some(10), ..TopicConfig::default() };
        assert_eq!(batch_limits(&config).record_bytes_max, 10);
    }

    #[test]
    fn a_batch_is_measured_as_it_is_encoded() {
        for len in [0, 1, 127, 128, 70_000] {
            let batch = api::StoredBatch {
                base_offset: u64::MAX,
                batch: Bytes::from(vec![0; len]),
                ..api::StoredBatch::default()
            };
            let alone = api::FetchResponse { batches: vec![batch.clone()], ..Default::default() };
            assert_eq!(encoded_bytes(&batch), alone.encoded_len());
        }
    }

    #[test]
    fn a_place_has_to_be_named() {
        use api::start_position::Position;
        let of = |position| place(Some(api::StartPosition { position }));
        assert_eq!(of(Some(Position::Offset(7))).unwrap(), Place::Offset(7));
        assert_eq!(of(Some(Position::Earliest(true))).unwrap(), Place::Earliest);
        assert!(of(Some(Position::Latest(false))).is_err());
        assert!(of(None).is_err());
        assert!(place(None).is_err());
    }
}

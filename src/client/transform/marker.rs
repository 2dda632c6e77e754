//! What is written down to know later how far a transformation has come.

use std::fmt;
use std::str::FromStr;

use crate::client::{Record, TopicPartition};

/// The header of an output record that says which source record it was made from, as
/// `TOPIC/PARTITION/OFFSET`.
pub const SOURCE_HEADER: &str = "quipu-source";

/// The value of [`SOURCE_HEADER`] for what is made from a record.
pub(super) fn source_of(record: &Record) -> String {
    format!("{}/{}/{}", record.topic, record.partition, record.offset)
}

/// The offset of the source record that an output record was made from, if that is of `source`.
pub(super) fn source_offset(output: &Record, source: &TopicPartition) -> Option<u64> {
    let header = output.headers.iter().find(|header| header.name == SOURCE_HEADER)?;
    let value = std::str::from_utf8(&header.value).ok()?;
    let (at, offset) = value.rsplit_once('/')?;
    (at == source.to_string()).then(|| offset.parse().ok())?
}

/// What is committed with a source offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// The producer of the output.
    pub(super) producer_id: u64,
    /// An offset of the output partition. All that was made from records before the committed one
    /// is below it, and nothing else is.
    pub(super) output_offset: u64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "producer={} output={}", self.producer_id, self.output_offset)
    }
}

impl FromStr for Progress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (producer, output) = text.split_once(' ').ok_or(())?;
        let number = |text: &str, name| text.strip_prefix(name)?.parse().ok();
        let producer_id = number(producer, "producer=").ok_or(())?;
        let output_offset = number(output, "output=").ok_or(())?;
        Ok(Self { producer_id, output_offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Header;

    #[test]
    fn progress_is_read_as_it_was_written() {
        let progress = Progress { producer_id: 7, output_offset: u64::MAX };
        assert_eq!(progress.to_string().parse(), Ok(progress));
        for text in ["", "producer=1", "output=1 producer=2", "producer=x output=1"] {
            assert_eq!(text.parse::<Progress>(), Err(()), "{text}");
        }
    }

    #[test]
    fn sources_are_told_apart() {
        let source = Record { topic: "a/b".into(), partition: 1, offset: 42, ..Record::default() };
        let value = source_of(&source).into();
        let headers = vec![Header { name: SOURCE_HEADER.into(), value }];
        let output = Record { headers, ..Record::default() };
        let at = |topic: &str, partition| TopicPartition { topic: topic.into(), partition };
        assert_eq!(source_offset(&output, &at("a/b", 1)), Some(42));
        assert_eq!(source_offset(&output, &at("a/b", 4)), None);
        assert_eq!(source_offset(&output, &at("b", 1)), None);
        assert_eq!(source_offset(&Record::default(), &at("b", 1)), None);
    }
}

//! A record as a line of JSON.

use serde::{Serialize, Serializer};

use crate::cli::output::time;
use crate::client::Record;

/// See the command's help for the schema.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    topic: &'a str,
    partition: u32,
    offset: u64,
    append_time: String,
    event_time_ms: Option<i64>,
    key: Option<Blob<'a>>,
    value: Option<Blob<'a>>,
    headers: Vec<HeaderLine<'a>>,
}

#[derive(Serialize)]
struct HeaderLine<'a> {
    name: &'a str,
    value: Blob<'a>,
}

impl<'a> Line<'a> {
    pub(super) fn of(record: &'a Record) -> Self {
        let header = |header: &'a crate::client::Header| HeaderLine {
            name: &header.name,
            value: Blob(&header.value),
        };
        Self {
            topic: &record.topic,
            partition: record.partition,
            offset: record.offset,
            append_time: time(record.append_time_ms),
            event_time_ms: record.event_time_ms,
            key: record.key.as_deref().map(Blob),
            value: record.value.as_deref().map(Blob),
            headers: record.headers.iter().map(header).collect(),
        }
    }
}

/// Bytes: a string if they are text, else their hexadecimal digits in an object.
struct Blob<'a>(&'a [u8]);

#[derive(Serialize)]
struct Hex {
    hex: String,
}

impl Serialize for Blob<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => text.serialize(serializer),
            Err(_) => Hex { hex: hex(self.0) }.serialize(serializer),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Header;

    #[test]
    fn text_is_a_string_and_other_bytes_are_hexadecimal() {
        let record = Record {
            topic: "t".into(),
            partition: 1,
            offset: 2,
            leader_epoch: 1,
            append_time_ms: 0,
            key: None,
            value: Some(vec![0xff, 0x0a].into()),
            headers: vec![Header { name: "h".into(), value: "v".into() }],
            event_time_ms: Some(3),
        };
        assert_eq!(
            serde_json::to_string(&Line::of(&record)).unwrap(),
            r#"{"topic":"t","partition":1,"offset":2,"append_time":"1970-01-01T00:00:00.000Z","#
                .to_owned()
                + r#""event_time_ms":3,"key":null,"value":{"hex":"ff0a"},"#
                + r#""headers":[{"name":"h","value":"v"}]}"#
        );
    }
}

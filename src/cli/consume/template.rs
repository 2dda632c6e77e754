//! Templates for records: text with fields in it.

use std::str::FromStr;

use crate::cli::output::{Output, time};
use crate::client::Record;

/// A template, taken apart.
#[derive(Debug, PartialEq)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, PartialEq)]
enum Part {
    Text(String),
    Topic,
    Partition,
    Offset,
    Key,
    Value,
    AppendTime,
    Headers,
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '%' => parts.push(field(chars.next())?),
                '\\' => push_text(&mut parts, escaped(chars.next())?),
                c => push_text(&mut parts, c),
            }
        }
        Ok(Self { parts })
    }
}

impl Template {
    /// Writes a record. Absent keys and values are empty.
    pub(super) fn print(&self, record: &Record, output: &mut Output) -> anyhow::Result<()> {
        for part in &self.parts {
            match part {
                Part::Text(text) => output.bytes(text.as_bytes())?,
                Part::Topic => output.bytes(record.topic.as_bytes())?,
                Part::Partition => output.bytes(record.partition.to_string().as_bytes())?,
                Part::Offset => output.bytes(record.offset.to_string().as_bytes())?,
                Part::Key => output.bytes(record.key.as_deref().unwrap_or_default())?,
                Part::Value => output.bytes(record.value.as_deref().unwrap_or_default())?,
                Part::AppendTime => output.bytes(time(record.append_time_ms).as_bytes())?,
                Part::Headers => print_headers(record, output)?,
            }
        }
        Ok(())
    }
}

/// As `name=value`, with commas between.
fn print_headers(record: &Record, output: &mut Output) -> anyhow::Result<()> {
    for (n, header) in record.headers.iter().enumerate() {
        let comma = if n > 0 { "," } else { "" };
        output.bytes(format!("{comma}{}=", header.name).as_bytes())?;
        output.bytes(&header.value)?;
    }
    Ok(())
}

fn push_text(parts: &mut Vec<Part>, c: char) {
    match parts.last_mut() {
        Some(Part::Text(text)) => text.push(c),
        _ => parts.push(Part::Text(c.to_string())),
    }
}

fn field(name: Option<char>) -> Result<Part, String> {
    match name {
        Some('t') => Ok(Part::Topic),
        Some('p') => Ok(Part::Partition),
        Some('o') => Ok(Part::Offset),
        Some('k') => Ok(Part::Key),
        Some('v') => Ok(Part::Value),
        Some('T') => Ok(Part::AppendTime),
        Some('h') => Ok(Part::Headers),
        Some('%') => Ok(Part::Text("%".to_owned())),
        Some(other) => {
            Err(format!("a template has no field %{other}: there are %t %p %o %k %v %T %h"))
        }
        None => Err("a template ends in the middle of a field".to_owned()),
    }
}

fn escaped(c: Option<char>) -> Result<char, String> {
    match c {
        Some('n') => Ok('\n'),
        Some('t') => Ok('\t'),
        Some('\\') => Ok('\\'),
        _ => Err("a template knows \\n, \\t and \\\\".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_taken_apart() {
        let template: Template = "%p %o\\t%k%%\\n".parse().unwrap();
        let text = |text: &str| Part::Text(text.to_owned());
        assert_eq!(
            template.parts,
            [Part::Partition, text(" "), Part::Offset, text("\t"), Part::Key, text("%\n")]
        );
    }

    #[test]
    fn unknown_fields_are_refused() {
        for text in ["%x", "%", "\\q", "a\\"] {
            assert!(text.parse::<Template>().is_err(), "{text}");
        }
    }
}

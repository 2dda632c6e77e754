//! The configuration file: TOML, flattened into named values with the lines they stand in.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::error::Problem;
use super::load::Origin;

/// A longer file is none of ours.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A value of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The key with the sections it stands in: `storage.segment_bytes`.
    pub(super) name: String,
    /// The value as a flag would have it, or what it is instead.
    pub(super) text: Result<String, String>,
    /// Where it stands.
    pub(super) origin: Origin,
}

/// Reads a file into its values, in no particular order.
///
/// # Errors
/// [`Problem::File`] and [`Problem::Syntax`].
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, Problem> {
    let text = read_text(path).map_err(|error| {
        let why = format!("the configuration file cannot be read: {error}");
        Problem::File { path: path.to_owned(), why }
    })?;
    parse(path, &text)
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<Entry>, Problem> {
    let origin = |span: Range<usize>| Origin::File(path.to_owned(), line_of(text, span.start));
    let table = DeTable::parse(text).map_err(|error| {
        let origin = origin(error.span().unwrap_or_default());
        Problem::Syntax { origin, why: error.message().to_owned() }
    })?;
    let mut entries = Vec::new();
    flatten("", table.get_ref(), &origin, &mut entries);
    Ok(entries)
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn line_of(text: &str, position: usize) -> usize {
    text.bytes().take(position).filter(|byte| *byte == b'\n').count() + 1
}

/// A section without keys says nothing, so only its keys are listed.
fn flatten(
    section: &str,
    table: &DeTable<'_>,
    origin: &dyn Fn(Range<usize>) -> Origin,
    entries: &mut Vec<Entry>,
) {
    for (key, value) in table {
        let name = match section {
            "" => key.get_ref().to_string(),
            _ => format!("{section}.{}", key.get_ref()),
        };
        if let DeValue::Table(inner) = value.get_ref() {
            flatten(&name, inner, origin, entries);
            continue;
        }
        entries.push(Entry { name, text: text_of(value.get_ref()), origin: origin(key.span()) });
    }
}

fn text_of(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(on) => Ok(on.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        DeValue::Array(items) => {
            let items = items.iter().map(|item| text_of(item.get_ref()));
            items.collect::<Result<Vec<_>, _>>().map(|items| items.join(","))
        }
        other => Err(format!("a TOML {}", other.type_str())),
    }
}

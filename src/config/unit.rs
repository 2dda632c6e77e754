//! What a number counts, how it is written, and how it is read.

use std::time::Duration;

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Things,
    Bytes,
    Milliseconds,
}

const BYTE_UNITS: [(&str, u64); 4] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Unit {
    /// Reads a plain number, or one with a unit: `64MiB`, `10s`. `None` if it is none of these.
    pub(crate) fn parse(self, text: &str) -> Option<u64> {
        let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match self {
            _ if is_plain => text.parse().ok(),
            Self::Things => None,
            Self::Bytes => {
                let with = |(name, bytes): &(&str, u64)| Some((text.strip_suffix(name)?, *bytes));
                let (number, bytes) = BYTE_UNITS.iter().find_map(with)?;
                Self::Things.parse(number.trim_end())?.checked_mul(bytes)
            }
            Self::Milliseconds => {
                let duration = humantime::parse_duration(text).ok()?;
                let is_whole = duration.subsec_nanos() % 1_000_000 == 0;
                is_whole.then(|| u64::try_from(duration.as_millis()).ok())?
            }
        }
    }

    /// Writes a number in the largest unit of which it is a multiple.
    pub(super) fn show(self, number: u64) -> String {
        let fits = |(_, bytes): &&(&str, u64)| number >= *bytes && number.is_multiple_of(*bytes);
        match self {
            Self::Bytes => {
                let found = BYTE_UNITS.iter().take(3).find(fits);
                found
                    .map_or(number.to_string(), |(name, bytes)| format!("{}{name}", number / bytes))
            }
            Self::Milliseconds => {
                let text = humantime::format_duration(Duration::from_millis(number)).to_string();
                text.replace(' ', "")
            }
            Self::Things => number.to_string(),
        }
    }

    /// What [`Self::parse`] reads, in words.
    pub(super) fn allowed(self, min: u64, max: u64) -> String {
        let what = match self {
            Self::Things => "a whole number",
            Self::Bytes => "a number of bytes, or of KiB, MiB or GiB like 64MiB,",
            Self::Milliseconds => "a number of milliseconds, or a time like 250ms, 10s or 1h,",
        };
        format!("{what} from {} to {}", self.show(min), self.show(max))
    }
}

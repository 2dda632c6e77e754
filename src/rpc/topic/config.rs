//! A topic's configuration: keys and values as clients write them.

use std::collections::HashMap;

use super::super::error::Error;
use super::super::limits::ANSWER_BYTES_MAX;
use super::Config;
use crate::cluster::command::TopicConfig;
use crate::config::Unit;

const UNLIMITED: &str = "unlimited";
/// The largest record of a topic that does not say otherwise, and of any.
const RECORD_BYTES_MAX: u32 = 1 << 20;
const BATCH_BYTES_MAX: u32 = ANSWER_BYTES_MAX as u32;

/// A key, with how its value is read and shown.
struct Key {
    name: &'static str,
    expected: &'static str,
    /// False for a value that is not of its kind.
    set: fn(&mut TopicConfig, &str) -> bool,
    show: fn(&TopicConfig) -> String,
}

const KEYS: [Key; 6] = [
    Key {
        name: "durability",
        expected: "fsync or memory",
        set: |config, value| {
            config.is_memory = value == "memory";
            matches!(value, "fsync" | "memory")
        },
        show: |config| if config.is_memory { "memory" } else { "fsync" }.to_owned(),
    },
    Key {
        name: "retention",
        expected: "time or consumed",
        set: |config, value| {
            config.is_kept_until_consumed = value == "consumed";
            matches!(value, "time" | "consumed")
        },
        show: |config| if config.is_kept_until_consumed { "consumed" } else { "time" }.to_owned(),
    },
    Key {
        name: "retention_ms",
        expected: "milliseconds, at least 1, or a time like 12h or 7days, or unlimited",
        set: |config, value| set_limit(&mut config.retention_ms, Unit::Milliseconds, value),
        show: |config| show_limit(config.retention_ms),
    },
    Key {
        name: "retention_bytes",
        expected: "bytes, at least 1, or KiB, MiB or GiB like 512MiB, or unlimited",
        set: |config, value| set_limit(&mut config.retention_bytes, Unit::Bytes, value),
        show: |config| show_limit(config.retention_bytes),
    },
    Key {
        name: "record_bytes_max",
        expected: "bytes, 1 to 1048576, or KiB or MiB like 64KiB",
        set: |config, value| set_size(&mut config.record_bytes_max, value, RECORD_BYTES_MAX),
        show: |config| config.record_bytes_max.unwrap_or(RECORD_BYTES_MAX).to_string(),
    },
    Key {
        name: "batch_bytes_max",
        expected: "bytes, 1 to 3670016, or KiB or MiB like 2MiB",
        set: |config, value| set_size(&mut config.batch_bytes_max, value, BATCH_BYTES_MAX),
        show: |config| config.batch_bytes_max.unwrap_or(BATCH_BYTES_MAX).to_string(),
    },
];

fn set_limit(limit: &mut Option<u64>, unit: Unit, value: &str) -> bool {
    let number = unit.parse(value).filter(|number| *number > 0);
    *limit = number;
    number.is_some() || value == UNLIMITED
}

fn show_limit(limit: Option<u64>) -> String {
    limit.map_or_else(|| UNLIMITED.to_owned(), |limit| limit.to_string())
}

fn set_size(size: &mut Option<u32>, value: &str, max: u32) -> bool {
    let number = Unit::Bytes.parse(value).and_then(|number| u32::try_from(number).ok());
    *size = number.filter(|number| (1..=max).contains(number));
    size.is_some()
}

fn key(name: &str) -> Result<&'static Key, Error> {
    KEYS.iter().find(|key| key.name == name).ok_or_else(|| Error::InvalidConfig {
        key: name.to_owned(),
        expected: format!("one of {}", KEYS.map(|key| key.name).join(", ")),
    })
}

/// Puts `values` over `config`.
///
/// # Errors
/// [`Error::InvalidConfig`] for the first key, by name, that is unknown or badly given.
pub(super) fn parse(
    values: &HashMap<String, String>,
    mut config: TopicConfig,
) -> Result<TopicConfig, Error> {
    let mut values: Vec<_> = values.iter().collect();
    values.sort();
    for (name, value) in values {
        let key = key(name)?;
        if !(key.set)(&mut config, value) {
            let expected = format!("{}; found {value:?}", key.expected);
            return Err(Error::InvalidConfig { key: name.clone(), expected });
        }
    }
    Ok(config)
}

/// Puts keys back to their defaults.
///
/// # Errors
/// [`Error::InvalidConfig`] for a key that is unknown.
pub(super) fn reset(mut config: TopicConfig, names: &[String]) -> Result<TopicConfig, Error> {
    for name in names {
        let key = key(name)?;
        let is_set = (key.set)(&mut config, &(key.show)(&TopicConfig::default()));
        assert!(is_set, "the default of {name} is one of its values");
    }
    Ok(config)
}

/// All keys with their values.
pub(super) fn show(config: &TopicConfig) -> Config {
    KEYS.iter().map(|key| (key.name.to_owned(), (key.show)(config))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_is_shown_can_be_set_again() {
        let set = values(&[
            ("durability", "memory"),
            ("retention_ms", "60000"),
            ("record_bytes_max", "1000"),
        ]);
        let config = parse(&set, TopicConfig::default()).unwrap();
        assert!(config.is_memory && config.retention_ms == Some(60_000));
        assert_eq!(
            parse(&show(&config), TopicConfig::default()).unwrap(),
            TopicConfig { batch_bytes_max: Some(BATCH_BYTES_MAX), ..config }
        );
        let reset = reset(config, &["retention_ms".to_owned()]).unwrap();
        assert_eq!(reset.retention_ms, None);
    }

    #[test]
    fn a_value_may_have_a_unit() {
        let set = values(&[
            ("retention_ms", "1h 30m"),
            ("retention_bytes", "16MiB"),
            ("record_bytes_max", "64KiB"),
        ]);
        let config = parse(&set, TopicConfig::default()).unwrap();
        assert_eq!(config.retention_ms, Some(90 * 60_000));
        assert_eq!(config.retention_bytes, Some(16 << 20));
        assert_eq!(config.record_bytes_max, Some(64 << 10));
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused() {
        let bad = [
            ("retention", "1"),
            ("retentions", "1"),
            ("retention_ms", "0"),
            ("retention_ms", "-1"),
            ("retention_bytes", "much"),
            ("retention_bytes", "0MiB"),
            ("retention_bytes", "99999999999999999999GiB"),
            ("record_bytes_max", "2MiB"),
            ("retention_ms", "16MiB"),
            ("durability", "paper"),
            ("record_bytes_max", "1048577"),
            ("batch_bytes_max", "0"),
        ];
        for pair in bad {
            let error = parse(&values(&[pair]), TopicConfig::default()).unwrap_err();
            assert!(matches!(error, Error::InvalidConfig { key, .. } if key == pair.0));
        }
    }
}

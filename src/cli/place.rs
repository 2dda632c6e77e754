//! Places in a topic, as people write them.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::client::{GroupStart, Start};

/// Reads `earliest`, `latest`, `OFFSET`, `@TIME` or `@-AGO`.
pub(super) fn parse_start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        _ => match text.strip_prefix('@') {
            Some(time) => parse_time(time).map(Start::TimeMs),
            None => text.parse().map(Start::Offset).map_err(|_| {
                "expected earliest, latest, an offset, @TIME (RFC 3339) or @-AGO (@-15m)".to_owned()
            }),
        },
    }
}

/// Reads what [`parse_start`] does, or `group:NAME`.
pub(super) fn parse_group_start(text: &str) -> Result<GroupStart, String> {
    if let Some(group) = text.strip_prefix("group:").filter(|name| !name.is_empty()) {
        return Ok(GroupStart::Group(group.to_owned()));
    }
    match parse_start(text) {
        Ok(Start::Earliest) => Ok(GroupStart::Earliest),
        Ok(Start::Latest) => Ok(GroupStart::Latest),
        Ok(Start::Offset(offset)) => Ok(GroupStart::Offset(offset)),
        Ok(Start::TimeMs(time_ms)) => Ok(GroupStart::TimeMs(time_ms)),
        Err(error) => Err(format!("{error}, or group:NAME")),
    }
}

fn parse_time(text: &str) -> Result<i64, String> {
    let time = match text.strip_prefix('-') {
        Some(ago) => {
            let ago = humantime::parse_duration(ago).map_err(|error| error.to_string())?;
            SystemTime::now().checked_sub(ago).ok_or("that is too long ago")?
        }
        None => humantime::parse_rfc3339_weak(text).map_err(|error| error.to_string())?,
    };
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| "that is before 1970")?;
    i64::try_from(since.as_millis()).map_err(|_| "that is too far ahead".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        assert_eq!(parse_start("earliest"), Ok(Start::Earliest));
        assert_eq!(parse_start("latest"), Ok(Start::Latest));
        assert_eq!(parse_start("42"), Ok(Start::Offset(42)));
        assert_eq!(parse_start("@1970-01-01T00:00:01.5Z"), Ok(Start::TimeMs(1500)));
        let Ok(Start::TimeMs(ago)) = parse_start("@-15m") else { panic!("no time") };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        assert!((899_000..=901_000).contains(&(now - ago)), "{ago} is not 15 minutes before {now}");
        for text in ["-1", "early", "@", "@-", "@yesterday", "@-15parsecs", "group:g"] {
            assert!(parse_start(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_group_may_start_where_another_is() {
        assert_eq!(parse_group_start("group:g"), Ok(GroupStart::Group("g".into())));
        assert_eq!(parse_group_start("7"), Ok(GroupStart::Offset(7)));
        for text in ["group:", "g", "group"] {
            assert!(parse_group_start(text).unwrap_err().ends_with("group:NAME"), "{text}");
        }
    }
}

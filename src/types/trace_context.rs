//! The `traceparent` of a request, as the W3C recommendation "Trace Context" has it.
//!
//! ```text
//! 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
//! version  trace id (16 bytes)        parent id (8)    flags
//! ```

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// What carries a trace context: a header of a call, and of a record.
pub const TRACEPARENT: &str = "traceparent";

/// Which trace a request belongs to, and the call that it was made in. Neither id is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: u128,
    parent_id: u64,
    flags: u8,
}

/// The text is no `traceparent`. A request that comes with one begins a new trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C traceparent")]
pub struct BadTraceparent;

const FLAG_SAMPLED: u8 = 1;
/// `vv-` + 32 + `-` + 16 + `-` + 2.
const TEXT_BYTES: usize = 55;

impl TraceContext {
    /// Begins a trace of its own, which nobody was asked to record.
    pub fn random() -> Self {
        Self { trace_id: Uuid::new_v4().as_u128(), parent_id: random_id(), flags: 0 }
    }

    /// The same trace, for what is called from here: with a parent id of its own.
    #[must_use]
    pub fn child(self) -> Self {
        Self { parent_id: random_id(), ..self }
    }

    /// Returns the id of the trace as it is written.
    pub fn trace_id(&self) -> impl fmt::Display {
        format!("{:032x}", self.trace_id)
    }

    /// Returns the id of the call as it is written.
    pub fn parent_id(&self) -> impl fmt::Display {
        format!("{:016x}", self.parent_id)
    }

    /// Whether the caller records the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & FLAG_SAMPLED != 0
    }
}

impl FromStr for TraceContext {
    type Err = BadTraceparent;

    /// Reads the header's value. Later versions are read as far as this one goes, as the
    /// recommendation asks.
    fn from_str(text: &str) -> Result<Self, BadTraceparent> {
        let mut parts = text.splitn(5, '-');
        let mut next = |digits| parts.next().and_then(|part| hex(part, digits));
        let version = next(2).ok_or(BadTraceparent)?;
        let trace_id = next(32).filter(|id| *id != 0).ok_or(BadTraceparent)?;
        let parent_id = next(16).filter(|id| *id != 0).ok_or(BadTraceparent)?;
        let flags = next(2).ok_or(BadTraceparent)?;
        let is_exact = text.len() == TEXT_BYTES;
        if version == 0xff || (version == 0 && !is_exact) {
            return Err(BadTraceparent);
        }
        // Flags that this version does not know are not passed on.
        let flags = flags as u8 & FLAG_SAMPLED;
        Ok(Self { trace_id, parent_id: parent_id as u64, flags })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.parent_id, self.flags)
    }
}

/// Exactly so many digits in lower case.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_hex = text.len() == digits && text.bytes().all(is_digit);
    is_hex.then(|| u128::from_str_radix(text, 16).ok())?
}

fn random_id() -> u64 {
    // The low half of a random UUID has two fixed bits, so it is never zero.
    Uuid::new_v4().as_u64_pair().1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_and_written() {
        let context: TraceContext = GOOD.parse().unwrap();
        assert_eq!(context.to_string(), GOOD);
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.parent_id().to_string(), "b7ad6b7169203331");
        assert!(context.is_sampled());
    }

    #[test]
    fn later_versions_are_read_as_far_as_known() {
        for text in [GOOD.replacen("00", "cc", 1), GOOD.replacen("00", "01", 1) + "-more"] {
            assert_eq!(text.parse::<TraceContext>().unwrap().to_string(), GOOD, "{text}");
        }
        let unknown_flags = GOOD.replace("-01", "-ff").parse::<TraceContext>().unwrap();
        assert_eq!(unknown_flags.to_string(), GOOD);
    }

    #[test]
    fn what_is_not_a_traceparent_is_refused() {
        let zeros = |n| "0".repeat(n);
        for text in [
            String::new(),
            "00".to_owned(),
            GOOD.replacen("00", "ff", 1),
            GOOD.to_uppercase(),
            format!("{GOOD}-more"),
            format!("{GOOD} "),
            GOOD.replacen("00", "01", 1) + "0",
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &zeros(32)),
            GOOD.replace("b7ad6b7169203331", &zeros(16)),
            GOOD.replace("-01", "-0g"),
            GOOD.replace("0af7", "+af7"),
            GOOD.replace('-', "_"),
        ] {
            assert_eq!(text.parse::<TraceContext>(), Err(BadTraceparent), "{text}");
        }
    }

    #[test]
    fn a_child_stays_in_its_trace() {
        let parent = TraceContext::random();
        let child = parent.child();
        assert_eq!(child.trace_id().to_string(), parent.trace_id().to_string());
        assert_ne!(child.parent_id().to_string(), parent.parent_id().to_string());
        assert!(!child.is_sampled());
        assert_eq!(child.to_string().parse(), Ok(child));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in ".{0,70}") {
            if let Ok(context) = text.parse::<TraceContext>() {
                prop_assert!(context.to_string().parse() == Ok(context));
            }
        }
    }
}

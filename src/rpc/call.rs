//! Calls: until when one may take, and whether it may be passed on.

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use super::channels::{FORWARD_HEADER, FORWARD_OFF};
use super::traced::{put_trace, trace_of};
use crate::types::TraceContext;

const TIMEOUT_HEADER: &str = "grpc-timeout";
/// How long a call without a deadline may take.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// How long any call may take.
const TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// What is kept of a deadline for the answer's way back.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(100);
/// The shortest and the longest wait before something is tried again.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// What a call's header says of the call.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// When the answer is due.
    pub deadline: Instant,
    /// Another node may be asked.
    pub may_forward: bool,
    /// The trace that the call belongs to.
    pub trace: Option<TraceContext>,
}

impl Call {
    /// Reads a call's header.
    pub fn of(header: &MetadataMap) -> Self {
        let timeout = timeout_of(header).unwrap_or(TIMEOUT_DEFAULT).min(TIMEOUT_MAX);
        Self::lasting(timeout, Origin::of(header))
    }

    /// Reads the header of a call that is to wait up to `wait` for something to happen.
    pub fn waiting(header: &MetadataMap, wait: Duration) -> Self {
        let own = wait.min(TIMEOUT_MAX) + TIMEOUT_DEFAULT;
        Self::lasting(timeout_of(header).map_or(own, |given| given.min(own)), Origin::of(header))
    }

    fn lasting(timeout: Duration, origin: Origin) -> Self {
        let way_back = (timeout / 10).min(ANSWER_TIME_MAX);
        let Origin { may_forward, trace } = origin;
        Self { deadline: Instant::now() + (timeout - way_back), may_forward, trace }
    }

    /// A call that was part of another one, with as much time as a call of its own.
    pub fn within_stream(Origin { may_forward, trace }: Origin) -> Self {
        Self { deadline: Instant::now() + TIMEOUT_DEFAULT, may_forward, trace }
    }

    /// The time that is left.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// A request to another node on behalf of this call.
    pub fn forwarded<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.time_left());
        mark_forwarded(&mut request, self.trace);
        request
    }
}

/// Where a call comes from, and what that means for where it goes.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// Another node may be asked.
    pub may_forward: bool,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
}

impl Origin {
    /// A node does it by itself.
    pub const OWN: Self = Self { may_forward: true, trace: None };
    /// A node does it by itself, and by its own replicas alone.
    pub const HERE: Self = Self { may_forward: false, trace: None };

    /// Reads a call's header.
    pub fn of(header: &MetadataMap) -> Self {
        Self { may_forward: may_forward(header), trace: trace_of(header) }
    }
}

/// Says that a request is not to be passed on once more.
pub(super) fn mark_forwarded<T>(request: &mut tonic::Request<T>, trace: Option<TraceContext>) {
    let value = tonic::metadata::MetadataValue::from_static(FORWARD_OFF);
    request.metadata_mut().insert(FORWARD_HEADER, value);
    put_trace(request, trace);
}

/// True unless the header says that the call is not to be passed on.
fn may_forward(header: &MetadataMap) -> bool {
    header.get(FORWARD_HEADER).is_none_or(|value| value.as_bytes() != FORWARD_OFF.as_bytes())
}

/// The timeout that a client gave: up to eight digits and a unit.
fn timeout_of(header: &MetadataMap) -> Option<Duration> {
    let text = header.get(TIMEOUT_HEADER)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = is_number.then(|| digits.parse().ok())??;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Pauses between attempts, each twice as long as the one before.
#[derive(Debug)]
pub(super) struct Pauses {
    next: Duration,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self { next: PAUSE_MIN }
    }

    /// Waits before another attempt; false if the deadline would be over then.
    ///
    /// Cancel safe: it changes nothing.
    pub(super) async fn pause(&mut self, deadline: Instant) -> bool {
        let until = Instant::now() + self.next;
        if until >= deadline {
            return false;
        }
        self.next = (self.next * 2).min(PAUSE_MAX);
        tokio::time::sleep_until(until).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &'static str, value: &str) -> MetadataMap {
        let mut header = MetadataMap::new();
        header.insert(name, value.parse().unwrap());
        header
    }

    #[test]
    fn a_timeout_is_a_number_and_a_unit() {
        let timeout = |value| timeout_of(&header(TIMEOUT_HEADER, value));
        assert_eq!(timeout("3S"), Some(Duration::from_secs(3)));
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "1", "1x", "-1S", "+1S", "123456789S", "1 S"] {
            assert_eq!(timeout(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_call_takes_30_seconds_at_most_and_answers_before_its_deadline() {
        let left = |value| Call::of(&header(TIMEOUT_HEADER, value)).time_left();
        assert!(left("1H") <= TIMEOUT_MAX);
        assert!(left("1000m") <= Duration::from_millis(900));
        assert!(left("0S").is_zero());
        let default = Call::of(&MetadataMap::new()).time_left();
        assert!(default > Duration::from_secs(9) && default <= TIMEOUT_DEFAULT);
    }

    #[test]
    fn only_off_turns_forwarding_off() {
        assert!(Call::of(&MetadataMap::new()).may_forward);
        assert!(Call::of(&header(FORWARD_HEADER, "on")).may_forward);
        assert!(!Call::of(&header(FORWARD_HEADER, "off")).may_forward);
    }

    #[tokio::test]
    async fn pauses_grow_and_end_with_the_deadline() {
        let deadline = Instant::now() + Duration::from_millis(100);
        let mut pauses = Pauses::new();
        let mut count = 0;
        while pauses.pause(deadline).await {
            count += 1;
        }
        assert!((1..=5).contains(&count), "{count} pauses in a tenth of a second");
        assert!(pauses.next > PAUSE_MIN && pauses.next <= PAUSE_MAX);
    }
}

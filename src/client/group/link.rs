//! What is known of a member's open stream: who speaks when, and the credit on it.

use std::time::{Duration, Instant};

use crate::client::Failure;
use crate::client::credit::Credit;
use crate::proto::client::ConsumeJoined;

/// How long a node may take to let a member join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(12);
/// What a server may say to make members speak, at least.
const HEARTBEAT_INTERVAL_MIN: Duration = Duration::from_millis(20);

/// The times that the server gave.
#[derive(Debug, Clone, Copy)]
struct Times {
    joined: Instant,
    session_timeout: Duration,
    heartbeat_interval: Duration,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    /// None until the member has joined.
    times: Option<Times>,
    heard: Instant,
    spoke: Instant,
    pub(super) credit: Credit,
    pub(super) has_left: bool,
}

impl Link {
    pub(super) fn new(now: Instant, credit_bytes: u32) -> Self {
        let credit = Credit::new(credit_bytes);
        Self { times: None, heard: now, spoke: now, credit, has_left: false }
    }

    pub(super) fn has_joined(&self) -> bool {
        self.times.is_some()
    }

    pub(super) fn on_joined(&mut self, now: Instant, joined: &ConsumeJoined) {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        self.times = Some(Times {
            joined: now,
            session_timeout: ms(joined.session_timeout_ms),
            heartbeat_interval: ms(joined.heartbeat_interval_ms).max(HEARTBEAT_INTERVAL_MIN),
        });
    }

    pub(super) fn on_heard(&mut self, now: Instant) {
        self.heard = now;
    }

    pub(super) fn on_spoken(&mut self, now: Instant) {
        self.spoke = now;
    }

    /// When what the stream has not confirmed counts as gone: the server has its time to find out
    /// where each partition is.
    pub(super) fn settles_at(&self) -> Option<Instant> {
        self.times.map(|times| times.joined + times.session_timeout)
    }

    pub(super) fn heartbeat_at(&self) -> Option<Instant> {
        self.times.map(|times| self.spoke + times.heartbeat_interval)
    }

    /// When the server counts as gone if it says nothing.
    pub(super) fn silent_at(&self) -> Instant {
        self.heard + self.silence_max()
    }

    fn silence_max(&self) -> Duration {
        self.times.map_or(JOIN_TIMEOUT, |times| times.heartbeat_interval.mul_f64(2.5))
    }

    /// Until when the partitions are certainly the member's, whatever happens to the stream.
    pub(super) fn lease_until(&self) -> Option<Instant> {
        let lease = |times: Times| times.session_timeout.saturating_sub(times.heartbeat_interval);
        self.times.map(|times| self.heard + lease(times))
    }

    /// # Errors
    /// The server was silent for too long.
    pub(super) fn check(&self, now: Instant) -> Result<(), Failure> {
        if now < self.silent_at() { Ok(()) } else { Err(Failure::silent(self.silence_max())) }
    }
}

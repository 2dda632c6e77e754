//! How often and how fast to try again: backoff with full jitter, and a budget for all retries.
//!
//! Pure: the time and the randomness come in as arguments, but for [`random_fraction`].

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// Longest step of the exponential part.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// The growing pauses between the attempts at one thing.
///
/// Full jitter: a pause is drawn from zero to a bound that doubles, so that clients that failed
/// together do not come back together (Brooker, "Exponential Backoff And Jitter").
#[derive(Debug)]
pub(super) struct Backoff {
    bounds: ExponentialBackoff,
}

impl Backoff {
    pub(super) fn new() -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(BACKOFF_MIN)
            .with_max_delay(BACKOFF_MAX)
            .with_factor(2.0)
            .without_max_times();
        Self { bounds: builder.build() }
    }

    /// Returns the next pause: `fraction` (0 to 1) of the bound, but no less than what the server
    /// asked for.
    pub(super) fn next(&mut self, fraction: f64, retry_after: Option<Duration>) -> Duration {
        let bound = self.bounds.next().unwrap_or(BACKOFF_MAX);
        let pause = bound.mul_f64(fraction);
        retry_after.map_or(pause, |asked| pause.max(asked.min(BACKOFF_MAX)))
    }
}

/// Returns a random number from 0 to 1.
pub(super) fn random_fraction() -> f64 {
    // Each `RandomState` is keyed anew.
    f64::from(RandomState::new().build_hasher().finish() as u32) / f64::from(u32::MAX)
}

/// What all retries of a client may take together: some per second, and a share of what succeeds.
///
/// When everything fails, retries then add a bounded load to a cluster that has enough to do.
///
/// * `tokens` is at most `TOKENS_MAX`. A retry takes one.
#[derive(Debug)]
pub(super) struct Budget {
    tokens: f64,
    updated: Instant,
}

impl Budget {
    const TOKENS_MAX: f64 = 100.0;
    const TOKENS_PER_SECOND: f64 = 10.0;
    const TOKENS_PER_SUCCESS: f64 = 0.1;

    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: Self::TOKENS_MAX, updated: now }
    }

    /// Notes a success.
    pub(super) fn deposit(&mut self) {
        self.tokens = (self.tokens + Self::TOKENS_PER_SUCCESS).min(Self::TOKENS_MAX);
    }

    /// Takes the right to one retry, if there is one.
    pub(super) fn try_withdraw(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.tokens = (self.tokens + passed * Self::TOKENS_PER_SECOND).min(Self::TOKENS_MAX);
        self.updated = now;
        let is_granted = self.tokens >= 1.0;
        if is_granted {
            self.tokens -= 1.0;
        }
        is_granted
    }
}

/// Keeps calls away from a node that does not answer.
///
/// Closed until a failure; then open for a while that grows with each further failure; then one
/// call is let through to see.
///
/// * Many calls over one connection fail with it together: while it is open, only the failure of
///   a probe counts.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
    is_probing: bool,
}

impl Breaker {
    const OPEN_MIN: Duration = Duration::from_millis(500);
    const OPEN_MAX: Duration = Duration::from_secs(15);
    /// How long after that the node gets calls again that any other could answer as well.
    const MISTRUST: Duration = Duration::from_secs(10);

    /// Returns whether a call may go to the node. When it was open long enough, the first to ask
    /// is the probe, and others wait for as long again.
    pub(super) fn try_pass(&mut self, now: Instant) -> bool {
        match self.open_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                self.open_until = Some(now + self.open_for());
                self.is_probing = true;
                true
            }
        }
    }

    /// Returns whether the node is as good as any other for a call that others could answer.
    pub(super) fn is_trusted(&self, now: Instant) -> bool {
        self.open_until.is_none_or(|until| now >= until + Self::MISTRUST)
    }

    /// When a call may go to the node.
    pub(super) fn passes_at(&self) -> Option<Instant> {
        self.open_until
    }

    pub(super) fn on_success(&mut self) {
        *self = Self::default();
    }

    pub(super) fn on_failure(&mut self, now: Instant) {
        let is_open = self.open_until.is_some_and(|until| now < until);
        if is_open && !self.is_probing {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.is_probing = false;
        self.open_until = Some(now + self.open_for());
    }

    fn open_for(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(5);
        (Self::OPEN_MIN * (1 << doublings)).min(Self::OPEN_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_drawn_below_a_bound_that_doubles() {
        let mut backoff = Backoff::new();
        let bounds: Vec<_> = (0..9).map(|_| backoff.next(1.0, None).as_millis()).collect();
        assert_eq!(bounds, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(Backoff::new().next(0.0, None), Duration::ZERO);
    }

    #[test]
    fn a_server_may_ask_for_a_longer_pause_but_not_for_ever() {
        let asked = |secs| Backoff::new().next(0.5, Some(Duration::from_secs(secs)));
        assert_eq!(asked(2), Duration::from_secs(2));
        assert_eq!(asked(3600), BACKOFF_MAX);
    }

    #[test]
    fn retries_run_out_when_nothing_succeeds() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let granted = (0..1000).filter(|_| budget.try_withdraw(start)).count();
        assert_eq!(granted, 100);
        assert!(budget.try_withdraw(start + Duration::from_millis(101)));
        assert!(!budget.try_withdraw(start + Duration::from_millis(101)));
        (0..11).for_each(|_| budget.deposit());
        assert!(budget.try_withdraw(start + Duration::from_millis(101)));
    }

    #[test]
    fn a_breaker_opens_probes_and_closes() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        assert!(breaker.try_pass(start) && breaker.is_trusted(start));
        breaker.on_failure(start);
        assert!(!breaker.try_pass(start));
        let later = start + Duration::from_secs(1);
        assert!(breaker.try_pass(later), "a probe");
        assert!(!breaker.try_pass(later), "only one");
        assert!(!breaker.is_trusted(later) && breaker.is_trusted(later + Duration::from_secs(11)));
        breaker.on_success();
        assert!(breaker.try_pass(later) && breaker.try_pass(later) && breaker.is_trusted(later));
    }

    #[test]
    fn calls_that_fail_together_count_once_and_a_failed_probe_again() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        (0..20).for_each(|_| breaker.on_failure(start));
        assert_eq!(breaker.passes_at(), Some(start + Breaker::OPEN_MIN));
        let later = start + Breaker::OPEN_MIN;
        assert!(breaker.try_pass(later));
        (0..20).for_each(|_| breaker.on_failure(later));
        assert_eq!(breaker.passes_at(), Some(later + Breaker::OPEN_MIN * 2));
    }

    #[test]
    fn random_fractions_spread() {
        let drawn: Vec<_> = (0..100).map(|_| random_fraction()).collect();
        assert!(drawn.iter().all(|fraction| (0.0..=1.0).contains(fraction)));
        assert!(drawn.iter().any(|f| *f < 0.5) && drawn.iter().any(|f| *f > 0.5));
    }
}

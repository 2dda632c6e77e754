//! Timings: how long things took, counted without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Buckets, the last of which has no bound.
const BUCKETS: usize = 18;
/// The first bucket's bound; each further one is twice as high.
const FIRST_BOUND_MICROS: u64 = 50;

/// A histogram of durations: a cheap clone that shares its counts.
///
/// * A duration is in one bucket only, the first whose bound is not below it.
#[derive(Debug, Clone, Default)]
pub struct Timing(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    buckets: [AtomicU64; BUCKETS],
    sum_nanos: AtomicU64,
}

impl Timing {
    /// Counts a duration. Neither waits nor allocates.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let is_within = |n: &usize| micros <= FIRST_BOUND_MICROS << n;
        let bucket = (0..BUCKETS - 1).find(is_within).unwrap_or(BUCKETS - 1);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

impl EncodeMetric for Timing {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let bound = |n: usize| match n {
            last if last == BUCKETS - 1 => f64::MAX,
            n => Duration::from_micros(FIRST_BOUND_MICROS << n).as_secs_f64(),
        };
        let counts = self.0.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let buckets: Vec<_> = counts.enumerate().map(|(n, count)| (bound(n), count)).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Timing {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_in_the_bucket_of_their_bound() {
        let timing = Timing::default();
        for micros in [0, 50, 51, 100, 101, u64::MAX / 2] {
            timing.observe(Duration::from_micros(micros));
        }
        let counts: Vec<_> =
            timing.0.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        assert_eq!((&counts[..3], counts[BUCKETS - 1]), (&[2, 2, 1][..], 1));
        assert_eq!(timing.count(), 6);
    }
}

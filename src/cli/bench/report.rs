//! What a measurement came to.

use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cli::output::{Format, Output, bytes, count};

/// Latencies of up to an hour, in microseconds with three digits.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Latencies, counted.
#[derive(Debug)]
pub(super) struct Latencies {
    microseconds: Histogram<u64>,
}

impl Latencies {
    pub(super) fn new() -> anyhow::Result<Self> {
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3);
        Ok(Self { microseconds: histogram.context("cannot make a histogram")? })
    }

    pub(super) fn record(&mut self, latency: Duration) {
        let microseconds = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.saturating_record(microseconds.max(1));
    }

    pub(super) fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.microseconds.add(&other.microseconds).context("histograms differ")
    }

    fn summary(&self) -> LatencySummary {
        let ms = |microseconds: u64| microseconds as f64 / 1000.0;
        let at = |quantile| ms(self.microseconds.value_at_quantile(quantile));
        LatencySummary {
            mean: self.microseconds.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: ms(self.microseconds.max()),
        }
    }
}

#[derive(Debug, Serialize)]
struct LatencySummary {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

/// What a measurement came to.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    bench: &'static str,
    /// What `records` counts, for people.
    #[serde(skip)]
    noun: &'static str,
    topic: String,
    records: u64,
    pub(super) failed: u64,
    bytes: u64,
    seconds: f64,
    records_per_second: f64,
    bytes_per_second: f64,
    latency_ms: Option<LatencySummary>,
}

impl Report {
    pub(super) fn new(bench: &'static str, topic: &str, records: u64, bytes: u64) -> Self {
        Self {
            bench,
            noun: "record",
            topic: topic.to_owned(),
            records,
            failed: 0,
            bytes,
            seconds: 0.0,
            records_per_second: 0.0,
            bytes_per_second: 0.0,
            latency_ms: None,
        }
    }

    /// Counts something else than records.
    pub(super) fn of(self, noun: &'static str) -> Self {
        Self { noun, ..self }
    }

    pub(super) fn failed(self, failed: u64) -> Self {
        Self { failed, ..self }
    }

    pub(super) fn took(self, took: Duration) -> Self {
        let seconds = took.as_secs_f64().max(1e-9);
        let (records, bytes) = (self.records as f64, self.bytes as f64);
        let (records_per_second, bytes_per_second) = (records / seconds, bytes / seconds);
        Self { seconds, records_per_second, bytes_per_second, ..self }
    }

    pub(super) fn latencies(self, latencies: &Latencies) -> Self {
        Self { latency_ms: Some(latencies.summary()), ..self }
    }

    pub(super) fn print(&self, output: &mut Output) -> anyhow::Result<()> {
        if output.format == Format::Json {
            return output.json(self);
        }
        let (records, size) = (count(self.records, self.noun), bytes(self.bytes));
        let (rate, size_rate) = (self.records_per_second, bytes(self.bytes_per_second as u64));
        let (seconds, noun) = (self.seconds, self.noun);
        output.line(&format!("{}  {records}, {size} in {seconds:.2} s", self.bench))?;
        output.line(&format!("  rate      {rate:.0} {noun}s/s, {size_rate}/s"))?;
        if self.failed > 0 {
            output.line(&format!("  failed    {}", count(self.failed, noun)))?;
        }
        if let Some(LatencySummary { mean, p50, p90, p99, p99_9, max }) = &self.latency_ms {
            output.line(&format!(
                "  latency   p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  p99.9 {p99_9:.2}  \
                 max {max:.2}  mean {mean:.2} ms"
            ))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_summed_up() {
        let (mut one, mut other) = (Latencies::new().unwrap(), Latencies::new().unwrap());
        (1..=50).for_each(|ms| one.record(Duration::from_millis(ms)));
        (51..=100).for_each(|ms| other.record(Duration::from_millis(ms)));
        one.add(&other).unwrap();
        let summary = one.summary();
        assert!((49.0..51.0).contains(&summary.p50), "{summary:?}");
        assert!((98.0..100.0).contains(&summary.p99), "{summary:?}");
        assert!((99.0..101.0).contains(&summary.max), "{summary:?}");
    }
}

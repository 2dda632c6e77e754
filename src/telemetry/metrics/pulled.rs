//! Metrics that are read when somebody asks: states, and what other parts count by themselves.

use std::fmt;
use std::sync::{Arc, Mutex};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::catalog::{Kind, Registrar};
use super::timing::Timing;

/// A metric that is read from a sample `S`.
pub(super) struct Pulled<S: 'static> {
    pub(super) name: &'static str,
    pub(super) unit: Option<Unit>,
    pub(super) help: &'static str,
    pub(super) read: Read<S>,
}

/// How it is read.
pub(super) enum Read<S> {
    Counter(fn(&S) -> u64),
    Gauge(fn(&S) -> u64),
    /// Durations.
    Timing(fn(&S) -> Timing),
    /// Counters that differ in this label.
    Counters(&'static str, fn(&S) -> Vec<(&'static str, u64)>),
}

/// Where samples come from, once somebody said so. Until then its metrics are not there.
pub(super) struct Source<S>(Arc<Mutex<Option<Reader<S>>>>);

type Reader<S> = Arc<dyn Fn() -> S + Send + Sync>;

struct Puller<S: 'static> {
    source: Source<S>,
    table: &'static [Pulled<S>],
}

impl<S: 'static> Source<S> {
    /// Registers the metrics of `table`, to be read from what this source gives.
    pub(super) fn register(registrar: &mut Registrar, table: &'static [Pulled<S>]) -> Self {
        for metric in table {
            let (kind, labels) = match metric.read {
                Read::Counter(_) => (Kind::Counter, Vec::new()),
                Read::Gauge(_) => (Kind::Gauge, Vec::new()),
                Read::Timing(_) => (Kind::Histogram, Vec::new()),
                Read::Counters(label, _) => (Kind::Counter, vec![label]),
            };
            let unit = metric.unit.as_ref();
            registrar.describe(metric.name, unit, metric.help, kind, &labels);
        }
        let source = Self(Arc::default());
        registrar.collect(Puller { source: Self(source.0.clone()), table });
        source
    }

    pub(super) fn set(&self, read: impl Fn() -> S + Send + Sync + 'static) {
        *self.0.lock().expect("no holder panics") = Some(Arc::new(read));
    }

    fn sample(&self) -> Option<S> {
        // Asking may take its time, so the lock is not held meanwhile.
        let read = self.0.lock().expect("no holder panics").clone()?;
        Some(read())
    }
}

impl<S: 'static> Collector for Puller<S> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(sample) = self.source.sample() else { return Ok(()) };
        for metric in self.table {
            let kind = match metric.read {
                Read::Counter(_) | Read::Counters(..) => MetricType::Counter,
                Read::Gauge(_) => MetricType::Gauge,
                Read::Timing(_) => MetricType::Histogram,
            };
            let unit = metric.unit.as_ref();
            let of = encoder.encode_descriptor(metric.name, metric.help, unit, kind)?;
            metric.read.encode(&sample, of)?;
        }
        Ok(())
    }
}

impl<S> Read<S> {
    fn encode(&self, sample: &S, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Counter(read) => ConstCounter::new(read(sample)).encode(encoder),
            Self::Gauge(read) => ConstGauge::new(read(sample)).encode(encoder),
            Self::Timing(read) => read(sample).encode(encoder),
            Self::Counters(label, read) => {
                read(sample).into_iter().try_for_each(|(value, count)| {
                    let labels = [(*label, value)];
                    ConstCounter::new(count).encode(encoder.encode_family(&labels)?)
                })
            }
        }
    }
}

impl<S> fmt::Debug for Puller<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Puller").finish_non_exhaustive()
    }
}

impl<S> fmt::Debug for Source<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

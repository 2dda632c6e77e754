//! The catalog: every metric with its name, kind, unit and labels, and the registry behind it.

use std::fmt::Debug;
use std::hash::Hash;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry, Unit};

pub(super) const PREFIX: &str = "quipu";

/// What a metric measures over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows; its one sample is called after it with `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Samples end in `_bucket`, `_sum` and `_count`.
    Histogram,
    /// Always 1; its labels are what it says. Its sample ends in `_info`.
    Info,
}

/// A metric that a server has, whether or not it has been counted yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its name with prefix and unit.
    pub name: String,
    /// What it is, in a sentence without its full stop.
    pub help: &'static str,
    /// What it measures.
    pub kind: Kind,
    /// Its unit, which is also the last word of its name.
    pub unit: Option<&'static str>,
    /// The names of its labels.
    pub labels: Vec<&'static str>,
}

/// A family of metrics that differ in the values of their labels.
#[derive(Debug)]
pub struct Labeled<M, const N: usize, V = &'static str> {
    names: [&'static str; N],
    family: Family<Labels<V, N>, M, fn() -> M>,
}

type Labels<V, const N: usize> = [(&'static str, V); N];

/// Registers metrics and keeps the catalog of them.
#[derive(Debug)]
pub(super) struct Registrar {
    pub(super) registry: Registry,
    pub(super) catalog: Vec<Described>,
}

impl Described {
    /// The names that its samples have in the text form.
    pub fn samples(&self) -> Vec<String> {
        let suffixes: &[&str] = match self.kind {
            Kind::Counter => &["_total"],
            Kind::Gauge => &[""],
            Kind::Histogram => &["_bucket", "_sum", "_count"],
            Kind::Info => &["_info"],
        };
        suffixes.iter().map(|suffix| format!("{}{suffix}", self.name)).collect()
    }
}

impl<M, const N: usize, V> Labeled<M, N, V>
where
    M: Clone,
    V: Clone + Eq + Hash,
{
    /// Returns the metric with these values. Keep it where it is used often.
    pub fn of(&self, values: [V; N]) -> M {
        self.family.get_or_create_owned(&self.labels(values))
    }

    /// Forgets the metric with these values.
    pub fn forget(&self, values: [V; N]) {
        self.family.remove(&self.labels(values));
    }

    fn labels(&self, values: [V; N]) -> Labels<V, N> {
        let mut names = self.names.into_iter();
        values.map(|value| (names.next().expect("as many names as values"), value))
    }
}

impl Registrar {
    pub(super) fn new() -> Self {
        Self { registry: Registry::with_prefix(PREFIX), catalog: Vec::new() }
    }

    pub(super) fn one<M>(&mut self, name: &str, unit: Option<Unit>, help: &'static str) -> M
    where
        M: Metric + Clone + Default,
    {
        self.add(name, unit, help, &[], M::default())
    }

    pub(super) fn labeled<M, const N: usize, V>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        names: [&'static str; N],
        help: &'static str,
        make: fn() -> M,
    ) -> Labeled<M, N, V>
    where
        M: Metric + Clone + TypedMetric,
        V: Clone + Eq + Hash + Debug + EncodeLabelValue + Send + Sync + 'static,
    {
        let family = Family::new_with_constructor(make);
        self.add(name, unit, help, &names, family.clone());
        Labeled { names, family }
    }

    pub(super) fn add<M: Metric + Clone>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &'static str,
        labels: &[&'static str],
        metric: M,
    ) -> M {
        let kind = Kind::of(EncodeMetric::metric_type(&metric));
        self.describe(name, unit.as_ref(), help, kind, labels);
        match unit {
            Some(unit) => self.registry.register_with_unit(name, help, unit, metric.clone()),
            None => self.registry.register(name, help, metric.clone()),
        }
        metric
    }

    pub(super) fn collect(&mut self, collector: impl Collector) {
        self.registry.register_collector(Box::new(collector));
    }

    pub(super) fn describe(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &'static str,
        kind: Kind,
        labels: &[&'static str],
    ) {
        let unit = unit.map(unit_name);
        let tail = unit.map_or(String::new(), |unit| format!("_{unit}"));
        let name = format!("{PREFIX}_{name}{tail}");
        let is_new = self.catalog.iter().all(|other| other.name != name);
        assert!(is_new, "the metric {name} is there already");
        self.catalog.push(Described { name, help, kind, unit, labels: labels.to_vec() });
    }
}

impl Kind {
    fn of(metric_type: MetricType) -> Self {
        match metric_type {
            MetricType::Counter => Self::Counter,
            MetricType::Histogram => Self::Histogram,
            MetricType::Info => Self::Info,
            MetricType::Gauge | MetricType::Unknown => Self::Gauge,
        }
    }
}

fn unit_name(unit: &Unit) -> &'static str {
    match unit {
        Unit::Bytes => "bytes",
        Unit::Seconds => "seconds",
        _ => unreachable!("metrics are in bytes, in seconds or counted"),
    }
}

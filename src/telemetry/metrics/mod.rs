//! The metrics of one server.
//!
//! | where a number is | how it gets here |
//! |---|---|
//! | an event in the RPC layer | a handle of [`Metrics`], counted where it happens |
//! | a state, or a count that another part keeps | read on a scrape, through `Metrics::read_*` |
//!
//! Names are `quipu_<part>_<what>_<unit>`; `samples.rs` and `Metrics::new` are the whole list.

mod catalog;
mod pulled;
mod rpc;
mod samples;
#[cfg(test)]
mod tests;
mod timing;

use std::sync::Arc;
use std::time::SystemTime;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use uuid::Uuid;

use self::catalog::Registrar;
pub use self::catalog::{Described, Kind, Labeled};
use self::pulled::Source;
pub use self::rpc::Rpc;
use self::samples::{CLUSTER, GROUPS, PROCESS, REPLICATION, STORAGE};
pub use self::samples::{Cluster, Groups, Replication, Storage};
pub use self::timing::Timing;
use super::process::Process;

/// The media type of what [`Metrics::text`] returns.
pub(super) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of one server, handed around in an `Arc`. Fields are counted where things happen.
///
/// Values of labels are fixed words of the program, never text of a user.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    catalog: Vec<Described>,
    replication: Source<Replication>,
    storage: Source<Storage>,
    cluster: Source<Cluster>,
    groups: Source<Groups>,
    /// Calls and connections of clients.
    pub rpc: Rpc,
    /// Times that a subscription had data but no credit.
    pub subscribe_credit_stalls: Counter,
    /// Connections to the HTTP port that were refused.
    pub http_connections_refused: Counter,
    /// Bytes of appends under way.
    pub append_room_used_bytes: Gauge,
    /// Bytes of appends that may be under way.
    pub append_room_limit_bytes: Gauge,
    /// Batches that were appended.
    pub produced_batches: Counter,
    /// Batches that came again and were answered with the offset they have.
    pub produced_duplicates: Counter,
    /// Batches that were served.
    pub fetched_batches: Counter,
    topic_produced_records: Labeled<Counter, 1, String>,
    topic_produced_bytes: Labeled<Counter, 1, String>,
    topic_fetched_records: Labeled<Counter, 1, String>,
    topic_fetched_bytes: Labeled<Counter, 1, String>,
}

/// The counters of one topic: a cheap clone to keep beside the topic.
#[derive(Debug, Clone)]
pub struct TopicMetrics {
    /// Records that were appended.
    pub produced_records: Counter,
    /// Bytes of batches that were appended.
    pub produced_bytes: Counter,
    /// Records that were served.
    pub fetched_records: Counter,
    /// Bytes of batches that were served.
    pub fetched_bytes: Counter,
}

impl Metrics {
    /// Makes the metrics of a server, all zero.
    pub fn new() -> Arc<Self> {
        let mut r = Registrar::new();
        about_the_process(&mut r);
        let replication = Source::register(&mut r, REPLICATION);
        let storage = Source::register(&mut r, STORAGE);
        let cluster = Source::register(&mut r, CLUSTER);
        let groups = Source::register(&mut r, GROUPS);
        let bytes = || Some(Unit::Bytes);
        Arc::new(Self {
            replication,
            storage,
            cluster,
            groups,
            rpc: Rpc::register(&mut r),
            subscribe_credit_stalls: r.one(
                "subscribe_credit_stalls",
                None,
                "Times that a subscription had data and its client had given no credit",
            ),
            http_connections_refused: r.one(
                "http_connections_refused",
                None,
                "Connections to the HTTP port that were refused",
            ),
            append_room_used_bytes: r.one("append_room_used", bytes(), "Appends under way"),
            append_room_limit_bytes: r.one(
                "append_room_limit",
                bytes(),
                "Appends that may be under way",
            ),
            produced_batches: r.one("produced_batches", None, "Batches that were appended"),
            produced_duplicates: r.one(
                "produced_duplicates",
                None,
                "Batches that came again and were answered with the offset they have",
            ),
            fetched_batches: r.one("fetched_batches", None, "Batches that were served"),
            topic_produced_records: topic(
                &mut r,
                "topic_produced_records",
                None,
                "Records appended",
            ),
            topic_produced_bytes: topic(&mut r, "topic_produced", bytes(), "Batches appended"),
            topic_fetched_records: topic(&mut r, "topic_fetched_records", None, "Records served"),
            topic_fetched_bytes: topic(&mut r, "topic_fetched", bytes(), "Batches served"),
            registry: r.registry,
            catalog: r.catalog,
        })
    }

    /// Every metric, also those that have not been counted yet.
    pub fn catalog(&self) -> &[Described] {
        &self.catalog
    }

    /// Returns everything in the OpenMetrics text form.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes everything");
        text
    }

    /// Says where numbers on replication are read. `read` is called on every scrape and should hold
    /// what it asks only weakly, as that holds these metrics.
    pub fn read_replication(&self, read: impl Fn() -> Replication + Send + Sync + 'static) {
        self.replication.set(read);
    }

    /// Says where numbers on the log engine are read, like [`Self::read_replication`].
    pub fn read_storage(&self, read: impl Fn() -> Storage + Send + Sync + 'static) {
        self.storage.set(read);
    }

    /// Says where numbers on the cluster are read, like [`Self::read_replication`].
    pub fn read_cluster(&self, read: impl Fn() -> Cluster + Send + Sync + 'static) {
        self.cluster.set(read);
    }

    /// Says where numbers on consumer groups are read, like [`Self::read_replication`].
    pub fn read_groups(&self, read: impl Fn() -> Groups + Send + Sync + 'static) {
        self.groups.set(read);
    }

    /// Returns the counters of a topic.
    pub fn topic(&self, id: Uuid) -> TopicMetrics {
        let id = || [id.to_string()];
        TopicMetrics {
            produced_records: self.topic_produced_records.of(id()),
            produced_bytes: self.topic_produced_bytes.of(id()),
            fetched_records: self.topic_fetched_records.of(id()),
            fetched_bytes: self.topic_fetched_bytes.of(id()),
        }
    }

    /// Forgets a topic that was deleted.
    pub fn forget_topic(&self, id: Uuid) {
        let id = || [id.to_string()];
        self.topic_produced_records.forget(id());
        self.topic_produced_bytes.forget(id());
        self.topic_fetched_records.forget(id());
        self.topic_fetched_bytes.forget(id());
    }
}

fn about_the_process(r: &mut Registrar) {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    // Made anew for each registry: an info metric is not a handle that could be cloned.
    r.describe("build", None, "What was built", Kind::Info, &["version"]);
    r.registry.register("build", "What was built", Info::new(version));
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (name, help) = ("process_start_time", "When these metrics began, since 1970");
    r.describe(name, Some(&Unit::Seconds), help, Kind::Gauge, &[]);
    let start = ConstGauge::new(since_1970.as_secs_f64());
    r.registry.register_with_unit(name, help, Unit::Seconds, start);
    Source::register(r, PROCESS).set(Process::now);
}

fn topic(
    r: &mut Registrar,
    name: &str,
    unit: Option<Unit>,
    help: &'static str,
) -> Labeled<Counter, 1, String> {
    r.labeled(name, unit, ["topic"], help, Counter::default)
}

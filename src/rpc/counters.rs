//! Counters: what there was to count. Whoever shows them reads them; nothing is reset.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::ArcSwap;
use tonic::Code;
use uuid::Uuid;

use super::error::Error;
use super::status;
use crate::proto::server::ErrorReason;
use crate::telemetry::{Metrics, Timing};

/// The methods that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// One batch.
    Produce,
    /// Many batches; each request of the stream counts.
    ProduceStream,
    /// One read.
    Fetch,
    /// Reading as records come.
    Subscribe,
    /// Looking up offsets.
    ListOffsets,
    /// Making a producer known.
    InitProducer,
    /// Making a group.
    CreateGroup,
    /// Describing a group.
    DescribeGroup,
    /// Listing groups.
    ListGroups,
    /// Deleting a group.
    DeleteGroup,
    /// Reading as a member of a group.
    Consume,
    /// Committing offsets.
    CommitOffsets,
    /// Asking how far a group is.
    FetchOffsets,
    /// Moving positions.
    ResetOffsets,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Produce,
        Self::ProduceStream,
        Self::Fetch,
        Self::Subscribe,
        Self::ListOffsets,
        Self::InitProducer,
        Self::CreateGroup,
        Self::DescribeGroup,
        Self::ListGroups,
        Self::DeleteGroup,
        Self::Consume,
        Self::CommitOffsets,
        Self::FetchOffsets,
        Self::ResetOffsets,
    ];
}

impl Method {
    /// The service and the method.
    pub fn name(self) -> &'static str {
        match self {
            Self::Produce => "LogService/Produce",
            Self::ProduceStream => "LogService/ProduceStream",
            Self::Fetch => "LogService/Fetch",
            Self::Subscribe => "LogService/Subscribe",
            Self::ListOffsets => "LogService/ListOffsets",
            Self::InitProducer => "LogService/InitProducer",
            Self::CreateGroup => "GroupService/CreateGroup",
            Self::DescribeGroup => "GroupService/DescribeGroup",
            Self::ListGroups => "GroupService/ListGroups",
            Self::DeleteGroup => "GroupService/DeleteGroup",
            Self::Consume => "GroupService/Consume",
            Self::CommitOffsets => "GroupService/CommitOffsets",
            Self::FetchOffsets => "GroupService/FetchOffsets",
            Self::ResetOffsets => "GroupService/ResetOffsets",
        }
    }
}

/// A code as the gRPC specification writes it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

const METHODS: usize = Method::ALL.len();
const CODES: usize = Code::Unauthenticated as usize + 1;

/// What there was to count, since the process started.
#[derive(Debug)]
pub struct Counters {
    metrics: Arc<Metrics>,
    calls: [[AtomicU64; CODES]; METHODS],
    durations: [Timing; METHODS],
    forwarded: [AtomicU64; METHODS],
    streams: [AtomicU64; METHODS],
    rejected: Mutex<BTreeMap<ErrorReason, u64>>,
    topics: ArcSwap<HashMap<Uuid, Arc<TopicCounters>>>,
    /// Calls under way that are no streams.
    pub in_flight: AtomicU64,
    /// Bytes of batches that came in and were stored.
    pub bytes_in: AtomicU64,
    /// Bytes of batches that were read.
    pub bytes_out: AtomicU64,
    /// Records that came in and were stored.
    pub records_in: AtomicU64,
    /// Records that were read; some of a first batch may not have been asked for.
    pub records_out: AtomicU64,
    /// Batches that came in and were stored.
    pub batches_in: AtomicU64,
    /// Of these, the ones that an earlier attempt had stored.
    pub duplicates: AtomicU64,
    /// Batches that were read.
    pub batches_out: AtomicU64,
    /// Times that a subscription had something to send and no credit for it.
    pub credit_stalls: AtomicU64,
    /// Reads that had to wait for a disk.
    pub cold_reads: AtomicU64,
    /// Offsets of groups that were committed.
    pub offsets_committed: AtomicU64,
    /// Offsets of groups whose commit was refused or whose fate is unknown.
    pub offsets_refused: AtomicU64,
    /// Records that were gone before a group had read them.
    pub records_missed: AtomicU64,
    /// Members that were out because they were silent or away for too long.
    pub members_expired: AtomicU64,
    /// Connections that were taken.
    pub connections_taken: AtomicU64,
    /// Of these, the ones that have ended.
    pub connections_ended: AtomicU64,
    /// Connections that were refused because there were too many in all.
    pub connections_refused: AtomicU64,
    /// Connections that were refused because there were too many of their address.
    pub connections_refused_of_address: AtomicU64,
    /// Connections that were cut because they did not speak HTTP/2 in time.
    pub connections_silent: AtomicU64,
}

/// What there was to count of one topic.
#[derive(Debug, Default)]
pub struct TopicCounters {
    /// Records that came in and were stored.
    pub records_in: AtomicU64,
    /// Bytes of batches that came in and were stored.
    pub bytes_in: AtomicU64,
    /// Records that were read.
    pub records_out: AtomicU64,
    /// Bytes of batches that were read.
    pub bytes_out: AtomicU64,
}

/// A call that is no stream, while it is under way.
#[derive(Debug)]
pub(super) struct Measured<'a> {
    counters: &'a Counters,
    method: Method,
    started: Instant,
}

impl Measured<'_> {
    pub(super) fn end<T>(self, outcome: &Result<T, Error>) {
        self.counters.durations[self.method as usize].observe(self.started.elapsed());
        self.counters.count(self.method, outcome);
    }
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        self.counters.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that is open, as long as it is held.
#[derive(Debug)]
pub(super) struct OpenStream {
    counters: Arc<Counters>,
    method: Method,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.counters.streams[self.method as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new(Metrics::new())
    }
}

impl Counters {
    /// Counters that tell `metrics` how long calls take, and what was refused.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let durations = Method::ALL.map(|method| metrics.rpc.request_duration.of([method.name()]));
        Self {
            metrics,
            calls: Default::default(),
            durations,
            forwarded: Default::default(),
            streams: Default::default(),
            rejected: Mutex::default(),
            topics: ArcSwap::default(),
            in_flight: AtomicU64::default(),
            bytes_in: AtomicU64::default(),
            bytes_out: AtomicU64::default(),
            records_in: AtomicU64::default(),
            records_out: AtomicU64::default(),
            batches_in: AtomicU64::default(),
            duplicates: AtomicU64::default(),
            batches_out: AtomicU64::default(),
            credit_stalls: AtomicU64::default(),
            cold_reads: AtomicU64::default(),
            offsets_committed: AtomicU64::default(),
            offsets_refused: AtomicU64::default(),
            records_missed: AtomicU64::default(),
            members_expired: AtomicU64::default(),
            connections_taken: AtomicU64::default(),
            connections_ended: AtomicU64::default(),
            connections_refused: AtomicU64::default(),
            connections_refused_of_address: AtomicU64::default(),
            connections_silent: AtomicU64::default(),
        }
    }

    /// Begins to measure a call that is no stream.
    pub(super) fn begin(&self, method: Method) -> Measured<'_> {
        add(&self.in_flight, 1);
        Measured { counters: self, method, started: Instant::now() }
    }

    /// Counts a stream for as long as what is returned is held.
    pub(super) fn open_stream(counters: &Arc<Self>, method: Method) -> OpenStream {
        add(&counters.streams[method as usize], 1);
        OpenStream { counters: counters.clone(), method }
    }

    /// Counts a call that is passed on.
    pub(super) fn forward(&self, method: Method) {
        add(&self.forwarded[method as usize], 1);
    }

    /// The counters of a topic. Neither waits nor allocates but for the first time.
    pub(super) fn topic(&self, id: Uuid) -> Arc<TopicCounters> {
        if let Some(known) = self.topics.load().get(&id) {
            return known.clone();
        }
        self.topics.rcu(|topics| {
            let mut topics = HashMap::clone(topics);
            topics.entry(id).or_default();
            topics
        });
        self.topics.load().get(&id).cloned().unwrap_or_default()
    }

    /// The counters of all topics that were used.
    pub fn topics(&self) -> Arc<HashMap<Uuid, Arc<TopicCounters>>> {
        self.topics.load_full()
    }

    /// Forgets topics that are gone.
    pub fn retain_topics(&self, is_there: impl Fn(Uuid) -> bool) {
        if self.topics.load().keys().any(|id| !is_there(*id)) {
            self.topics.rcu(|topics| {
                let mut topics = HashMap::clone(topics);
                topics.retain(|id, _| is_there(*id));
                topics
            });
        }
    }

    /// Calls that were passed on, and streams that are open, by method.
    pub fn by_method(&self) -> [(Method, u64, u64); METHODS] {
        Method::ALL.map(|method| {
            let of =
                |counts: &[AtomicU64; METHODS]| counts[method as usize].load(Ordering::Relaxed);
            (method, of(&self.forwarded), of(&self.streams))
        })
    }

    /// Counts what a call came to.
    pub fn count<T>(&self, method: Method, outcome: &Result<T, Error>) {
        let code = match outcome {
            Ok(_) => Code::Ok,
            Err(error) => self.reject(error),
        };
        self.calls[method as usize][code as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn reject(&self, error: &Error) -> Code {
        if let Error::Passed(status) = error {
            return status.code();
        }
        let reason = error.reason().unwrap_or(ErrorReason::Internal);
        self.metrics.rpc.rejected.of([status::name(reason)]).inc();
        let mut rejected = self.rejected.lock().expect("nobody panics with the lock");
        *rejected.entry(reason).or_default() += 1;
        status::row(reason).0
    }

    /// Counts members that are out because they were silent or away for too long.
    pub fn count_expired(&self, members: u64) {
        add(&self.members_expired, members);
    }

    /// Calls so far, with their codes.
    pub fn calls(&self) -> Vec<(Method, Code, u64)> {
        let of = |method: Method| {
            let codes = self.calls[method as usize].iter().enumerate();
            codes.map(move |(code, n)| (method, Code::from(code as i32), n.load(Ordering::Relaxed)))
        };
        Method::ALL.into_iter().flat_map(of).filter(|(_, _, n)| *n > 0).collect()
    }

    /// What this node has refused so far, by reason.
    pub fn rejected(&self) -> BTreeMap<ErrorReason, u64> {
        self.rejected.lock().expect("nobody panics with the lock").clone()
    }
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_method_and_code() {
        let counters = Counters::default();
        counters.count(Method::Fetch, &Ok(()));
        counters.count::<()>(Method::Fetch, &Err(Error::NoLeader));
        counters.count::<()>(Method::Fetch, &Err(Error::NoLeader));
        let expected = vec![(Method::Fetch, Code::Ok, 1), (Method::Fetch, Code::Unavailable, 2)];
        assert_eq!(counters.calls(), expected);
        assert_eq!(counters.rejected()[&ErrorReason::NoLeader], 2);
    }
}

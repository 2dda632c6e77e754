//! Counters: what there was to count. Whoever shows them reads them; nothing is reset.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tonic::Code;

use super::error::Error;
use super::status;
use crate::proto::server::ErrorReason;
use crate::telemetry::Metrics;

/// The methods that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    /// Committing offsets.
    CommitOffsets,
    /// Asking how far a group is.
    FetchOffsets,
    /// Moving positions.
    ResetOffsets,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 13] = [
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
            Self::CommitOffsets => "GroupService/CommitOffsets",
            Self::FetchOffsets => "GroupService/FetchOffsets",
            Self::ResetOffsets => "GroupService/ResetOffsets",
        }
    }
}

/// A code as the gRPC specification writes it.
fn code_name(code: Code) -> &'static str {
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
    rejected: Mutex<BTreeMap<ErrorReason, u64>>,
    /// Bytes of batches that came in and were stored.
    pub bytes_in: AtomicU64,
    /// Bytes of batches that were read.
    pub bytes_out: AtomicU64,
    /// Records that came in and were stored.
    pub records_in: AtomicU64,
    /// Records that were read; some of a first batch may not have been asked for.
    pub records_out: AtomicU64,
    /// Calls that were passed on.
    pub forwarded: AtomicU64,
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
    /// Connections that were refused for their number, in all or of one address.
    pub connections_refused: AtomicU64,
    /// Connections that were cut because they did not speak HTTP/2 in time.
    pub connections_silent: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self::new(Metrics::new())
    }
}

impl Counters {
    /// Counters that tell `metrics` of each call.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            calls: Default::default(),
            rejected: Mutex::default(),
            bytes_in: AtomicU64::default(),
            bytes_out: AtomicU64::default(),
            records_in: AtomicU64::default(),
            records_out: AtomicU64::default(),
            forwarded: AtomicU64::default(),
            cold_reads: AtomicU64::default(),
            offsets_committed: AtomicU64::default(),
            offsets_refused: AtomicU64::default(),
            records_missed: AtomicU64::default(),
            members_expired: AtomicU64::default(),
            connections_taken: AtomicU64::default(),
            connections_refused: AtomicU64::default(),
            connections_silent: AtomicU64::default(),
        }
    }

    /// Counts what a call came to.
    pub fn count<T>(&self, method: Method, outcome: &Result<T, Error>) {
        let code = match outcome {
            Ok(_) => Code::Ok,
            Err(error) => self.reject(error),
        };
        self.calls[method as usize][code as usize].fetch_add(1, Ordering::Relaxed);
        self.metrics.rpc.requests.of([method.name(), code_name(code)]).inc();
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

//! Counters: what there was to count. Whoever shows them reads them; nothing is reset.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tonic::Code;

use super::error::Error;
use super::status;
use crate::proto::server::ErrorReason;

/// The methods of the log service.
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
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Produce,
        Self::ProduceStream,
        Self::Fetch,
        Self::Subscribe,
        Self::ListOffsets,
        Self::InitProducer,
    ];
}

const METHODS: usize = Method::ALL.len();
const CODES: usize = Code::Unauthenticated as usize + 1;

/// What there was to count, since the process started.
#[derive(Debug, Default)]
pub struct Counters {
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
    /// Connections that were taken.
    pub connections_taken: AtomicU64,
    /// Connections that were refused for their number, in all or of one address.
    pub connections_refused: AtomicU64,
    /// Connections that were cut because they did not speak HTTP/2 in time.
    pub connections_silent: AtomicU64,
}

impl Counters {
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
        let mut rejected = self.rejected.lock().expect("nobody panics with the lock");
        *rejected.entry(reason).or_default() += 1;
        status::row(reason).0
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

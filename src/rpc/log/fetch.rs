//! Fetch: reading record batches of one partition, from the replica at hand.
//!
//! Any replica answers. One that is behind does not know whether an offset that it does not have is
//! there at all: that question goes to the leader. Damaged records are asked of other replicas
//! before a reader is told.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::super::call::Call;
use super::super::channels::log_client;
use super::super::context::{Context, Route, Target};
use super::super::convert::{encoded_bytes, stored_batch};
use super::super::counters::{Method, add};
use super::super::error::{Effect, Error};
use super::super::limits::ANSWER_BYTES_MAX;
use crate::partition::{FetchError, Fetched, Handle};
use crate::proto::server::{ErrorReason, FetchRequest, FetchResponse, StoredBatch};
use crate::storage::{self, Access};
use crate::types::NodeId;

const BYTES_DEFAULT: u32 = 1 << 20;
const BYTES_MAX: u32 = 3 << 20;
const WAIT_MAX: Duration = Duration::from_secs(30);
/// What is kept of the time of a call for the answer, when it waits for records.
const READ_TIME: Duration = Duration::from_millis(100);
/// How long to wait for a leader's disk that is full, or for a replica that is being opened.
const PAUSE: Duration = Duration::from_millis(20);

/// What is to be read, with all numbers in their bounds.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    target: Target,
    offset: u64,
    bytes_max: usize,
    /// Until when to wait for records.
    wait_until: Instant,
}

/// Answers one request.
pub(super) async fn fetch(
    context: &Context,
    request: FetchRequest,
    call: Call,
) -> Result<FetchResponse, Error> {
    let _permit = context.enter()?;
    let target = context.target(&request.topic, &request.topic_id, request.partition).await?;
    let wanted = Wanted {
        target,
        offset: request.offset,
        bytes_max: bytes_max(request.max_bytes),
        wait_until: wait_until(wait_of(&request), call),
    };
    let error = match read_here(context, &wanted, request.from_leader).await {
        Ok(response) => return Ok(response),
        Err(error) => error,
    };
    if !call.may_forward || !is_for_others(&error) {
        return Err(error);
    }
    let others = others(context, &target, request.from_leader);
    let request = FetchRequest { topic_id: target.topic_id.to_string(), ..request };
    read_there(context, &wanted, &request, call, others, error).await
}

/// How long a request asks to wait for records.
pub(super) fn wait_of(request: &FetchRequest) -> Duration {
    Duration::from_millis(request.max_wait_ms.into()).min(WAIT_MAX)
}

/// Until when to wait, so that the answer comes before the call's deadline.
fn wait_until(wait: Duration, call: Call) -> Instant {
    let latest = call.deadline.checked_sub(READ_TIME).unwrap_or(call.deadline);
    latest.min(Instant::now() + wait)
}

fn bytes_max(asked: u32) -> usize {
    match asked {
        0 => BYTES_DEFAULT as usize,
        asked => asked.min(BYTES_MAX) as usize,
    }
}

/// True if another replica may be able to answer.
fn is_for_others(error: &Error) -> bool {
    error.effect() == Effect::NotDone || error.is_damage() || is_failed_disk(error)
}

fn is_failed_disk(error: &Error) -> bool {
    error.reason() == Some(ErrorReason::StorageFailed)
}

/// The nodes that may be able to answer, the leader first.
fn others(context: &Context, target: &Target, from_leader: bool) -> Vec<NodeId> {
    let node = context.node();
    let leader = node.leader_of(target.log).map(|leader| leader.node);
    let mut others: Vec<NodeId> = leader.into_iter().collect();
    if !from_leader {
        others.extend(node.replica_nodes(target.log));
    }
    let mut seen = Vec::new();
    others.retain(|other| {
        let is_new = *other != node.id() && !seen.contains(other);
        seen.push(*other);
        is_new
    });
    others
}

async fn read_there(
    context: &Context,
    wanted: &Wanted,
    request: &FetchRequest,
    call: Call,
    others: Vec<NodeId>,
    mut error: Error,
) -> Result<FetchResponse, Error> {
    for node in others {
        let Ok(channel) = context.channel(node) else { continue };
        context.counters().forward(Method::Fetch);
        let left = wanted.wait_until.saturating_duration_since(Instant::now());
        let max_wait_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        let request = call.forwarded(FetchRequest { max_wait_ms, ..request.clone() });
        let mut client = log_client(channel);
        match timeout_at(call.deadline, client.fetch(request)).await {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            // What damage there is here says more than that another node cannot help.
            Ok(Err(_)) if error.is_damage() => {}
            Ok(Err(status)) => error = Error::from(status),
            Err(_) => return Err(error),
        }
        if !is_for_others(&error) && error.reason().is_some() {
            return Err(error);
        }
    }
    Err(error)
}

/// Reads from the replica here, and waits for records if there are none.
async fn read_here(
    context: &Context,
    wanted: &Wanted,
    from_leader: bool,
) -> Result<FetchResponse, Error> {
    let log = wanted.target.log;
    loop {
        let handle = match (context.route(log, None), from_leader) {
            (Route::Here(handle), _) => handle,
            (_, true) => return Err(context.not_leader(log)),
            (_, false) => context.node().replica(log).ok_or_else(|| context.not_leader(log))?,
        };
        if wanted.offset > handle.status().high_watermark && !handle.is_leader() {
            return Err(context.not_leader(log));
        }
        let fetched = read(context, &handle, wanted.offset, wanted.bytes_max).await?;
        let is_late = Instant::now() >= wanted.wait_until;
        if !fetched.batches.is_empty() || is_late || context.is_draining() {
            return Ok(respond(context, wanted, &fetched));
        }
        tokio::select! {
            _ = timeout_at(wanted.wait_until, wait_for_more(&handle, wanted.offset)) => {}
            () = context.draining() => {}
        }
    }
}

/// Waits until there may be something to read.
async fn wait_for_more(handle: &Handle, offset: u64) {
    let is_known = handle.status().high_watermark > offset;
    // Known to be committed, but not to be read yet: the disk is full, or the replica has stopped.
    if is_known || handle.wait_beyond(offset).await <= offset {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Reads from memory, or else where waiting for a disk is allowed.
pub(in crate::rpc) async fn read(
    context: &Context,
    handle: &Handle,
    offset: u64,
    bytes_max: usize,
) -> Result<Fetched, Error> {
    match handle.fetch(offset, bytes_max, Access::Hot) {
        Err(FetchError::Storage(storage::Error::Cold)) => {
            let handle = handle.clone();
            let read = move || handle.fetch(offset, bytes_max, Access::MayBlock);
            context.read_cold(read).await?.map_err(|error| moved_on(error, offset))
        }
        read => read.map_err(|error| moved_on(error, offset)),
    }
}

/// Explains a read that came upon the end of what retention left.
fn moved_on(error: FetchError, requested: u64) -> Error {
    match error {
        FetchError::Storage(storage::Error::OffsetOutOfRange { log_start, log_end, .. }) => {
            FetchError::OutOfRange { requested, log_start, high_watermark: log_end }.into()
        }
        // Retention deleted the segment between the look-up and the read: it is gone by now.
        FetchError::Storage(storage::Error::IndexOutOfRange { .. }) => Error::Overloaded,
        error => error.into(),
    }
}

fn respond(context: &Context, wanted: &Wanted, fetched: &Fetched) -> FetchResponse {
    let (batches, next_offset) = fit(fetched, ANSWER_BYTES_MAX);
    count_read(context, wanted.target.topic_id, &batches);
    FetchResponse {
        topic_id: wanted.target.topic_id.to_string(),
        batches,
        next_offset,
        high_watermark: fetched.high_watermark,
        log_start_offset: fetched.log_start,
    }
}

/// Counts what is given to a reader.
fn count_read(context: &Context, topic: Uuid, batches: &[StoredBatch]) {
    let counters = context.counters();
    let bytes = batches.iter().map(|batch| batch.batch.len() as u64).sum();
    let records = batches.iter().map(|batch| u64::from(batch.record_count)).sum();
    add(&counters.batches_out, batches.len() as u64);
    add(&counters.bytes_out, bytes);
    add(&counters.records_out, records);
    let topic = counters.topic(topic);
    add(&topic.bytes_out, bytes);
    add(&topic.records_out, records);
}

/// The batches that fit an answer of `bytes_max` bytes, at least one, and where to go on.
pub(super) fn fit(fetched: &Fetched, bytes_max: usize) -> (Vec<StoredBatch>, u64) {
    let mut batches = Vec::with_capacity(fetched.batches.len());
    let mut bytes = 0;
    for entry in &fetched.batches {
        let batch = stored_batch(entry.clone());
        bytes += encoded_bytes(&batch);
        if bytes > bytes_max && !batches.is_empty() {
            return (batches, entry.header.base_offset);
        }
        batches.push(batch);
    }
    (batches, fetched.next_offset)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::storage::{Entry, EntryHeader, Kind};

    fn entry(base_offset: u64, len: usize) -> Entry {
        let header = EntryHeader {
            index: base_offset + 1,
            term: 1,
            base_offset,
            record_count: 1,
            payload_len: len as u32,
            payload_crc: 0,
            kind: Kind::Records,
            format: 0,
            flags: 0,
            append_time_ms: 0,
            producer_id: 0,
            producer_epoch: 0,
            base_sequence: 0,
            synced_index: 0,
            chain: 0,
        };
        Entry { header, payload: Bytes::from(vec![0; len]) }
    }

    fn fetched(lens: &[usize]) -> Fetched {
        let batches: Vec<Entry> =
            lens.iter().enumerate().map(|(n, len)| entry(n as u64, *len)).collect();
        let next_offset = lens.len() as u64;
        Fetched { batches, next_offset, high_watermark: next_offset, log_start: 0 }
    }

    #[test]
    fn bytes_are_clamped() {
        assert_eq!(bytes_max(0), 1 << 20);
        assert_eq!(bytes_max(1), 1);
        assert_eq!(bytes_max(u32::MAX), 3 << 20);
    }

    #[test]
    fn an_answer_holds_what_fits_but_one_batch_at_least() {
        let (batches, next_offset) = fit(&fetched(&[100, 100, 100]), 250);
        assert_eq!((batches.len(), next_offset), (2, 2));
        let (batches, next_offset) = fit(&fetched(&[1000, 1]), 250);
        assert_eq!((batches.len(), next_offset), (1, 1));
        let (batches, next_offset) = fit(&fetched(&[1, 1]), 250);
        assert_eq!((batches.len(), next_offset), (2, 2));
    }

    #[test]
    fn many_small_batches_do_not_make_an_answer_too_large() {
        use prost::Message as _;
        let (batches, next_offset) = fit(&fetched(&[10; 200_000]), ANSWER_BYTES_MAX);
        assert_eq!(next_offset, batches.len() as u64);
        let response = FetchResponse { batches, next_offset, ..FetchResponse::default() };
        assert!(response.encoded_len() <= ANSWER_BYTES_MAX + 16);
        assert!(next_offset > 10_000);
    }
}

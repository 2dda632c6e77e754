//! Takes the input for an encoded `RecordBatch`. Whatever is accepted must be readable, must mean
//! the same to prost, and must survive being built again.

use std::cell::RefCell;

use prost::Message;
use quipu::batch::{
    BatchBuilder, Codec, Error, Fault, Limits, Record, Scratch, Summary, Verified, payload_crc,
    skim, verify,
};
use quipu::proto::client;

/// Limits that small inputs reach.
const LIMITS: Limits = Limits {
    batch_bytes_max: 2048,
    uncompressed_bytes_max: 8192,
    compression_ratio_max: 20,
    records_max: 64,
    record_bytes_max: 512,
    headers_max: 4,
    header_name_bytes_max: 16,
};

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

pub(crate) fn run(payload: &[u8]) {
    SCRATCH.with_borrow_mut(|scratch| check(payload, scratch));
    SCRATCH.with_borrow(|scratch| {
        assert!(scratch.bytes_held() <= LIMITS.uncompressed_bytes_max as usize);
    });
}

fn check(payload: &[u8], scratch: &mut Scratch) {
    let skimmed = skim(payload, &LIMITS);
    let crc = payload_crc(payload);
    match verify(payload, Some(crc), &LIMITS, scratch) {
        Ok(batch) => check_accepted(payload, skimmed, &batch),
        Err(error) => check_refused(payload, skimmed, error),
    }
    assert!(verify(payload, Some(!crc), &LIMITS, scratch).is_err());
}

fn check_accepted(payload: &[u8], skimmed: Result<Summary, Error>, batch: &Verified<'_>) {
    assert_eq!(skimmed, Ok(batch.summary()));
    let prost = client::RecordBatch::decode(payload).expect("prost reads what was accepted");
    assert_eq!(u64::try_from(prost.codec), Ok(batch.summary().codec.number()));
    if batch.summary().codec == Codec::None {
        check_same_records(batch, &prost.records);
    } else {
        assert_eq!(prost.record_count, batch.summary().record_count);
        assert_eq!(prost.uncompressed_bytes, batch.summary().uncompressed_bytes);
    }
    check_rebuilt(batch);
}

fn check_same_records(batch: &Verified<'_>, prost: &[client::Record]) {
    assert_eq!(batch.records().len(), prost.len());
    for (record, prost) in batch.records().zip(prost) {
        assert_eq!(record.key, prost.key.as_deref());
        assert_eq!(record.value, prost.value.as_deref());
        assert_eq!(record.event_time_ms, prost.event_time_ms);
        let headers = prost.headers.iter().map(|header| (&header.name[..], &header.value[..]));
        assert!(record.headers().eq(headers));
    }
}

/// Builds the records again and holds the result against prost and the original.
fn check_rebuilt(batch: &Verified<'_>) {
    let mut builder = BatchBuilder::new(LIMITS);
    for record in batch.records() {
        let headers: Vec<_> = record.headers().collect();
        let (key, value, event_time_ms) = (record.key, record.value, record.event_time_ms);
        let record = Record { key, value, headers: &headers, event_time_ms };
        builder.append(&record).expect("a record of an accepted batch");
    }
    let Ok(rebuilt) = builder.build(Codec::None) else {
        // It was compressed and is too large without.
        return;
    };
    let prost = client::RecordBatch::decode(rebuilt.clone()).expect("prost reads what was built");
    check_same_records(batch, &prost.records);
    assert_eq!(prost.encode_to_vec(), rebuilt);
}

fn check_refused(payload: &[u8], skimmed: Result<Summary, Error>, error: Error) {
    match skimmed {
        Err(skimmed) => assert_eq!(skimmed, error, "verify refuses for another reason than skim"),
        Ok(summary) => assert_ne!(summary.codec, Codec::None, "{error}"),
    }
    assert!(!matches!(error, Error::BadChecksum { .. }), "the checksum is right");
    if let Error::Corrupt { position, fault: Fault::Frame | Fault::TrailingBytes } = error {
        assert!(position < payload.len());
    }
}

//! How fast a record batch is checked, beside decoding the same batch with prost.

use std::hint::black_box;

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use prost::Message;
use quipu::batch::{
    BatchBuilder, Codec, Limits, Record, Scratch, Verified, payload_crc, skim, verify,
};
use quipu::proto::client;

type Group<'a> = BenchmarkGroup<'a, criterion::measurement::WallTime>;

/// Bytes of a record's value, and records of a batch.
const SHAPES: [(usize, usize); 3] = [(100, 500), (1_000, 500), (10, 5_000)];

fn checks(criterion: &mut Criterion) {
    for (record, records) in SHAPES {
        let mut group = criterion.benchmark_group("batch");
        group.throughput(Throughput::Elements(records as u64));
        let shape = format!("record={record}/records={records}");
        let plain = batch(record, records, Codec::None);
        let limits = Limits::default();
        group.bench_function(format!("op=prost-decode/{shape}"), |bencher| {
            bencher.iter(|| client::RecordBatch::decode(black_box(plain.clone())));
        });
        group.bench_function(format!("op=crc/{shape}"), |bencher| {
            bencher.iter(|| payload_crc(black_box(&plain)));
        });
        group.bench_function(format!("op=skim/{shape}"), |bencher| {
            bencher.iter(|| skim(black_box(&plain), &limits));
        });
        let values = values(record, records);
        group.bench_function(format!("op=build/{shape}"), |bencher| {
            bencher.iter(|| build(black_box(&values), Codec::None));
        });
        verifications(&mut group, record, records, &shape);
        iteration(&mut group, &plain, &shape);
    }
}

fn verifications(group: &mut Group<'_>, record: usize, records: usize, shape: &str) {
    let limits = Limits::default();
    let mut scratch = Scratch::default();
    for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
        let payload = batch(record, records, codec);
        let crc = Some(payload_crc(&payload));
        group.bench_function(format!("op=verify/codec={codec}/{shape}"), |bencher| {
            bencher.iter(|| {
                verify(black_box(&payload), crc, &limits, &mut scratch).map(|found| found.summary())
            });
        });
    }
}

fn iteration(group: &mut Group<'_>, plain: &[u8], shape: &str) {
    let mut scratch = Scratch::default();
    let verified = verify(plain, None, &Limits::default(), &mut scratch).expect("a sound batch");
    group.bench_function(format!("op=iterate/{shape}"), |bencher| {
        bencher.iter(|| value_bytes(black_box(&verified)));
    });
}

fn value_bytes(batch: &Verified<'_>) -> usize {
    batch.records().map(|record| record.value.map_or(0, <[u8]>::len)).sum()
}

fn batch(record: usize, records: usize, codec: Codec) -> bytes::Bytes {
    build(&values(record, records), codec)
}

/// Builds a batch of records with a key of 8 bytes.
fn build(values: &[Vec<u8>], codec: Codec) -> bytes::Bytes {
    let mut builder = BatchBuilder::new(Limits::default());
    for (ordinal, value) in (0_u64..).zip(values) {
        let record =
            Record { key: Some(&ordinal.to_le_bytes()), value: Some(value), ..Record::default() };
        builder.append(&record).expect("the batch is within the limits");
    }
    builder.build(codec).expect("the batch is within the limits")
}

/// Makes values that compress by half or so.
fn values(record: usize, records: usize) -> Vec<Vec<u8>> {
    let value = |ordinal| (0..record as u64).map(|at| letter(at, ordinal)).collect();
    (0..records as u64).map(value).collect()
}

fn letter(at: u64, ordinal: u64) -> u8 {
    let mixed = (at ^ ordinal << 8).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    b'a' + (mixed >> 60).to_le_bytes()[0]
}

criterion_group!(benches, checks);
criterion_main!(benches);

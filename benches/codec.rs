//! What it costs to put an event on the wire and to take it off again, without a network.
//!
//! Proves that encoding is no part of the cost of fan-out worth speaking of: an event is encoded once
//! however many spokes there are. Groups:
//!
//! - `envelope`: making one from a value, and reading the payload back;
//! - `native`, `compat`: encode and decode an event in each direct protocol.
//!
//! Frames of the topic are the business of `seal`.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use iroh_hub::{Envelope, bench_support as inside};

const SIZES: [usize; 3] = [64, 1024, 16 * 1024];

fn event(size: usize) -> Envelope {
    // Quotes, and a little for type and lengths.
    let text = "x".repeat(size.saturating_sub(16));
    Envelope::new("bench", &text).expect("a text is JSON")
}

fn envelope(c: &mut Criterion) {
    let mut group = c.benchmark_group("envelope");
    for size in SIZES {
        let event = event(size);
        let value: String = event.payload().expect("a text");
        group.throughput(Throughput::Elements(1));
        group.bench_with_input(BenchmarkId::new("new", size), &value, |b, value| {
            b.iter(|| Envelope::new("bench", black_box(value)));
        });
        group.bench_with_input(BenchmarkId::new("payload", size), &event, |b, event| {
            b.iter(|| black_box(event).payload::<String>());
        });
    }
    group.finish();
}

fn direct(c: &mut Criterion) {
    for size in SIZES {
        let event = event(size);
        let mut group = c.benchmark_group("native");
        group.throughput(Throughput::Elements(1));
        group.bench_with_input(BenchmarkId::new("encode", size), &event, |b, event| {
            b.iter(|| inside::native_encode(7, black_box(event)));
        });
        let frame = bytes::Bytes::from(inside::native_encode(7, &event).concat());
        assert_eq!(inside::native_decode(frame.clone()), 1);
        group.bench_with_input(BenchmarkId::new("decode", size), &frame, |b, frame| {
            b.iter(|| inside::native_decode(black_box(frame.clone())));
        });
        group.finish();
        let mut group = c.benchmark_group("compat");
        group.throughput(Throughput::Elements(1));
        group.bench_with_input(BenchmarkId::new("encode", size), &event, |b, event| {
            b.iter(|| inside::compat_encode(black_box(event)));
        });
        let frame = inside::compat_encode(&event);
        assert_eq!(inside::compat_decode(&frame).as_ref(), Some(&event));
        group.bench_with_input(BenchmarkId::new("decode", size), &frame, |b, frame| {
            b.iter(|| inside::compat_decode(black_box(frame)));
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30);
    targets = envelope, direct
}
criterion_main!(benches);

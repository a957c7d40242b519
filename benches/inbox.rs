//! What it costs to put events in order, without a network: per event, whatever came of them.
//!
//! Proves that order, and each event once, is no part of what a spoke pays worth speaking of, also where a topic reorders and
//! repeats. Blocks of 256 events, in these orders:
//!
//! - `in_order`: as along a stream;
//! - `twice`: each event also comes a second time, as while a spoke moves from one path to the other;
//! - `swapped`: each frame of 16 events comes before the one that it should follow;
//! - `reversed`: the last first: the worst order that there is;
//! - `late`: one event in 64 comes when the others of its block have come, as by a repair;
//! - `parts`: large events, in four parts each.
//!
//! `cargo bench --bench inbox`

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iroh_hub::bench_support::Order;

const BLOCK: u64 = 256;
const FRAME: u64 = 16;

fn inbox(c: &mut Criterion) {
    let in_order: Vec<u64> = (0..BLOCK).collect();
    let orders = [
        ("in_order", in_order.clone(), 1),
        ("twice", (0..BLOCK).flat_map(|n| [n, n]).collect(), 1),
        (
            "swapped",
            (0..BLOCK / FRAME)
                .flat_map(|frame| {
                    let first = (frame ^ 1) * FRAME;
                    first..first + FRAME
                })
                .collect(),
            1,
        ),
        ("reversed", (0..BLOCK).rev().collect(), 1),
        (
            "late",
            (0..BLOCK)
                .filter(|n| n % 64 != 0)
                .chain((0..BLOCK).step_by(64))
                .collect(),
            1,
        ),
        ("parts", in_order, 4),
    ];
    let mut group = c.benchmark_group("inbox");
    group.throughput(Throughput::Elements(BLOCK));
    for (name, order, parts) in orders {
        let mut inbox = Order::new(1024, parts);
        assert_eq!(inbox.take(BLOCK, &order), Some(BLOCK as usize), "{name}");
        group.bench_function(name, |b| b.iter(|| inbox.take(BLOCK, black_box(&order))));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30);
    targets = inbox
}
criterion_main!(benches);

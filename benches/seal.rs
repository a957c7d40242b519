//! What it costs to seal a frame of the topic, and to open it, without a network; per event.
//!
//! Proves that authorship and secrecy are paid per frame, so that packing shares them out: `one` is a frame with one event,
//! `packed` one with as many as fit. `refuse` is what a frame costs that the hub did not sign, which is what somebody who
//! floods a spoke gets it to do.
//!
//! `cargo bench --bench seal`. What sealing costs a whole topic is in `fan_out`, group `sealing`.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use iroh_hub::{Envelope, bench_support as inside};

const SIZES: [usize; 3] = [64, 1024, 16 * 1024];

fn event(size: usize) -> Envelope {
    let text = "x".repeat(size.saturating_sub(16));
    Envelope::new("bench", &text).expect("a text is JSON")
}

fn topic() -> inside::Topic {
    let hub = iroh::SecretKey::from_bytes(&[1; 32]).public();
    inside::Topic::new(hub).expect("keys fit")
}

fn seal(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal");
    for size in SIZES {
        let many: Vec<Envelope> = (0..1024).map(|_| event(size)).collect();
        for (name, events) in [("one", &many[..1]), ("packed", &many[..])] {
            let mut topic = topic();
            let (_, count) = topic.seal(0, events).expect("sealed");
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::new(format!("seal_{name}"), size), |b| {
                b.iter(|| topic.seal(0, black_box(events)));
            });
            group.bench_function(
                BenchmarkId::new(format!("seal_and_open_{name}"), size),
                |b| {
                    b.iter(|| {
                        // A frame opens once, so it is sealed anew.
                        let (frame, _) = topic.seal(0, black_box(events))?;
                        topic.open(&frame)
                    });
                },
            );
        }
    }
    group.finish();
}

fn refuse(c: &mut Criterion) {
    let mut group = c.benchmark_group("refuse");
    for size in SIZES {
        let (frame, _) = topic().seal(0, &[event(size)]).expect("sealed");
        // Another topic has other keys, and generations that are named alike.
        let mut other = topic();
        assert_eq!(other.open(&frame), None);
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| other.open(black_box(&frame)));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30);
    targets = seal, refuse
}
criterion_main!(benches);

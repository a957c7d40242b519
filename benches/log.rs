//! What a log costs: in memory, and on the disk.
//!
//! Proves that a durable log is a matter of how many events share a sync. Groups, all with events of 1 KiB:
//!
//! - `memory`: append, and read a batch, per event;
//! - `sync`: what the disk needs for as many bytes without a log: write them to a file and sync it;
//! - `commit`: a transaction of the log file with 1, 10, 100 and 1,000 events, trimming included;
//! - `broadcast`: `Hub::broadcast` on a durable log with so many callers at once, per event; in memory beside it;
//! - `open`: open the file of a log that was not closed, 10,000 events.
//!
//! Files are made in the folder for temporary files; set `TMPDIR` to measure another disk.

use std::{
    fs::File,
    hint::black_box,
    io::{Seek, SeekFrom, Write},
    path::Path,
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use iroh::{EndpointId, SecretKey};
use iroh_hub::{
    Envelope, Hub, HubBuilder,
    bench_support::LogOnDisk,
    endpoint,
    log::{Log, LogConfig},
};
use n0_future::{BufferedStreamExt, StreamExt, stream};
use tokio::runtime::Runtime;

const SIZE: usize = 1024;
const KEPT: usize = 10_000;
const TOGETHER: [usize; 4] = [1, 10, 100, 1000];

fn event() -> Envelope {
    let text = "x".repeat(SIZE - 16);
    Envelope::new("bench", &text).expect("a text is JSON")
}

fn hub_id() -> EndpointId {
    SecretKey::from_bytes(&[1; 32]).public()
}

fn memory(c: &mut Criterion) {
    let mut group = c.benchmark_group("memory");
    let event = event();
    let config = LogConfig::default().with_max_events(KEPT);
    group.throughput(Throughput::Elements(1));
    let mut log = Log::new(config);
    group.bench_function("append", |b| {
        b.iter(|| log.append(black_box(event.clone()), SIZE));
    });
    for _ in 0..KEPT {
        log.append(event.clone(), SIZE);
    }
    let mut out = Vec::new();
    group.throughput(Throughput::Elements(100));
    group.bench_function("read 100", |b| {
        b.iter(|| {
            out.clear();
            log.read(log.head(), 100, usize::MAX, &mut out)
        });
    });
    group.finish();
}

fn sync(c: &mut Criterion) {
    let mut group = c.benchmark_group("sync");
    group.sample_size(10);
    let folder = tempfile::tempdir().expect("a folder");
    let mut file = File::create(folder.path().join("file")).expect("a file");
    for events in TOGETHER {
        let bytes = vec![b'x'; events * SIZE];
        group.throughput(Throughput::Elements(events as u64));
        group.bench_function(BenchmarkId::from_parameter(events), |b| {
            b.iter(|| {
                file.seek(SeekFrom::Start(0)).expect("it is a file");
                file.write_all(&bytes).expect("room");
                file.sync_data().expect("it is synced");
            });
        });
    }
    group.finish();
}

fn commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("commit");
    group.sample_size(10);
    let event = event();
    for events in TOGETHER {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let mut log = LogOnDisk::open(&path, hub_id(), KEPT as u64).expect("a new log");
        log.commit(&event, KEPT).expect("room");
        group.throughput(Throughput::Elements(events as u64));
        group.bench_function(BenchmarkId::from_parameter(events), |b| {
            b.iter(|| log.commit(&event, events).expect("room"));
        });
    }
    group.finish();
}

async fn hub(path: Option<&Path>) -> Hub {
    let builder: HubBuilder = Hub::builder();
    let builder = match path {
        Some(path) => builder.durable_log(path),
        None => builder,
    };
    let endpoint = endpoint::bind_local().await.expect("loopback");
    builder.spawn(endpoint).expect("a new log")
}

fn broadcast(c: &mut Criterion) {
    let runtime = Runtime::new().expect("threads");
    let mut group = c.benchmark_group("broadcast");
    group.sample_size(10);
    let event = event();
    for durable in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let hub = runtime.block_on(hub(durable.then_some(&path)));
        let kind = if durable { "durable" } else { "memory" };
        for callers in TOGETHER {
            group.throughput(Throughput::Elements(callers as u64));
            group.bench_function(BenchmarkId::new(kind, callers), |b| {
                b.to_async(&runtime).iter(|| async {
                    let done = stream::iter(0..callers)
                        .map(|_| hub.broadcast(event.clone()))
                        .buffered_unordered(callers)
                        .filter(|done| done.is_ok())
                        .count()
                        .await;
                    assert_eq!(done, callers);
                });
            });
        }
        runtime.block_on(hub.shutdown());
    }
    group.finish();
}

fn open(c: &mut Criterion) {
    let mut group = c.benchmark_group("open");
    group.sample_size(10);
    let folder = tempfile::tempdir().expect("a folder");
    let (path, copy) = (folder.path().join("log"), folder.path().join("copy"));
    let mut log = LogOnDisk::open(&path, hub_id(), KEPT as u64).expect("a new log");
    log.commit(&event(), KEPT).expect("room");
    std::fs::copy(&path, &copy).expect("room");
    drop(log);
    group.throughput(Throughput::Elements(KEPT as u64));
    group.bench_function(BenchmarkId::from_parameter(KEPT), |b| {
        b.iter_batched(
            || std::fs::copy(&copy, &path).expect("room"),
            |_| LogOnDisk::open(&path, hub_id(), KEPT as u64).expect("it opens"),
            criterion::BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, memory, sync, commit, broadcast, open);
criterion_main!(benches);

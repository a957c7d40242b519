//! What it takes to get an event from a hub to all of its spokes, by each way to fan out.
//!
//! Two groups of three, for 8, 32 and 100 spokes (endpoints of their own on loopback, all in this process, two workers) and for
//! events of 64 B, 1 KiB and 16 KiB:
//!
//! - `burst`: events handed over as fast as the mesh takes them, in deliveries a second (events times spokes). It proves
//!   what a path can carry when it is full, and that batching works.
//! - `lone`: one event over an idle mesh, until the last spoke has it. It proves what a listener waits for.
//!
//! The third, `sealing`, is the topic's driver, and an inbox at each node: frames with sixty events of 1 KiB that are sealed, and opened at every
//! node, against such that are not, in turns in one run. It proves what authorship and secrecy cost.
//!
//! `direct`, `gossip` and `auto` are this crate. `bare_streams` (iroh and nothing else) and `bare_gossip` (`iroh_gossip::net` and nothing else) are the baselines: what
//! the library adds in order, repair, proof and admission is the difference to them. Bare gossip loses and reorders;
//! where a cell did, it is printed, and a burst's time is stretched by its losses, so that its deliveries a second count
//! what arrived. All nodes share the cores here: costs of the hub by itself are measured by `iroh-hub compare`, which
//! runs hub and spokes in processes of their own.
//!
//! `cargo bench --bench fan_out` takes some minutes; a filter such as `-- 'burst/.*/32/1024'` runs a part. `cargo test --benches`
//! sends a few events through small meshes, to show that all of this works.

mod common;

use std::time::Duration;

use common::{Arrived, Auto, BareGossip, BareStreams, Bench, Direct, Gossip, HubMesh, Mesh};
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group,
    criterion_main, measurement::WallTime,
};
use iroh_hub::{Envelope, bench_support::DriverMesh};
use tokio::runtime::Runtime;

/// How much to measure.
struct Plan {
    spokes: &'static [usize],
    sizes: &'static [usize],
    /// Bytes that a burst hands to the hub, at most.
    burst_bytes: usize,
    /// Events in a burst, at most.
    burst_events: usize,
    /// How many nodes receive sealed frames, and others bare ones.
    sealing: &'static [usize],
    /// And how many frames.
    frames: usize,
}

impl Plan {
    const FULL: Self = Self {
        spokes: &[8, 32, 100],
        sizes: &[64, 1024, 16 * 1024],
        burst_bytes: 512 * 1024,
        burst_events: 256,
        sealing: &[32],
        frames: 100,
    };
    const SMOKE: Self = Self {
        spokes: &[4],
        sizes: &[64, 16 * 1024],
        burst_bytes: 128 * 1024,
        burst_events: 16,
        sealing: &[4],
        frames: 8,
    };

    /// Criterion runs each bench once, to see that it works, unless `cargo bench` called it.
    fn from_args() -> &'static Self {
        let has = |flag| std::env::args().any(|arg| arg == flag);
        if has("--bench") && !has("--test") {
            &Self::FULL
        } else {
            &Self::SMOKE
        }
    }

    fn max_payload(&self) -> usize {
        self.sizes.iter().copied().max().unwrap_or(1024)
    }

    fn burst_events(&self, size: usize) -> usize {
        (self.burst_bytes / size).clamp(1, self.burst_events)
    }
}

/// What went missing or came out of order in one cell.
#[derive(Default)]
struct Faults {
    expected: u64,
    lost: u64,
    disordered: u64,
}

impl Faults {
    fn add(&mut self, arrived: Arrived) {
        self.expected += arrived.expected;
        self.lost += arrived.expected - arrived.delivered;
        self.disordered += arrived.disordered;
    }

    fn print(&self, cell: &str) {
        if self.lost + self.disordered > 0 {
            let Self {
                expected,
                lost,
                disordered,
            } = self;
            eprintln!("{cell}: {lost} of {expected} deliveries lost, {disordered} out of order");
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// What a group measures.
#[derive(Clone, Copy)]
enum Group {
    Burst,
    Lone,
}

impl Group {
    /// Runs one round, and gives the time that it counts for.
    async fn round<M: Mesh>(
        self,
        mesh: &Bench<M>,
        plan: &Plan,
        size: usize,
    ) -> (Arrived, Duration) {
        let arrived = match self {
            Self::Burst => mesh.burst(plan.burst_events(size), size).await,
            Self::Lone => mesh.lone(size).await,
        }
        .expect("the hub takes events");
        let counts_for = match self {
            Self::Burst => {
                let delivered = arrived.delivered.max(1) as f64;
                arrived.elapsed.mul_f64(arrived.expected as f64 / delivered)
            }
            Self::Lone => arrived.elapsed,
        };
        (arrived, counts_for)
    }
}

/// Measures one way to fan out. A mesh is started when the first of its cells runs, so that a filter costs nothing for
/// what it leaves out.
fn cells<M: Mesh>(group: &mut BenchmarkGroup<'_, WallTime>, kind: Group, plan: &Plan) {
    let runtime = runtime();
    for &spokes in plan.spokes {
        let mut mesh = None;
        for &size in plan.sizes {
            if let Group::Burst = kind {
                let deliveries = plan.burst_events(size) * spokes;
                group.throughput(Throughput::Elements(deliveries as u64));
            }
            let mut faults = Faults::default();
            let id = BenchmarkId::new(M::NAME, format!("{spokes}/{size}"));
            group.bench_function(id, |bencher| {
                let mesh: &Bench<M> = mesh.get_or_insert_with(|| {
                    runtime
                        .block_on(Bench::start(spokes, plan.max_payload()))
                        .expect("the mesh starts")
                });
                bencher.iter_custom(|rounds| {
                    runtime.block_on(async {
                        let mut total = Duration::ZERO;
                        for _ in 0..rounds {
                            let (arrived, counts_for) = kind.round(mesh, plan, size).await;
                            faults.add(arrived);
                            total += counts_for;
                        }
                        total
                    })
                });
            });
            faults.print(&format!("{}/{spokes}/{size}", M::NAME));
        }
        if let Some(mesh) = mesh {
            runtime.block_on(mesh.stop());
        }
    }
}

/// Every way to fan out, side by side.
fn all_meshes(group: &mut BenchmarkGroup<'_, WallTime>, kind: Group, plan: &Plan) {
    cells::<BareStreams>(group, kind, plan);
    cells::<BareGossip>(group, kind, plan);
    cells::<HubMesh<Direct>>(group, kind, plan);
    cells::<HubMesh<Gossip>>(group, kind, plan);
    cells::<HubMesh<Auto>>(group, kind, plan);
}

fn burst(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("burst");
    group.sampling_mode(SamplingMode::Flat);
    all_meshes(&mut group, Group::Burst, Plan::from_args());
    group.finish();
}

fn lone(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lone");
    group.sampling_mode(SamplingMode::Flat);
    all_meshes(&mut group, Group::Lone, Plan::from_args());
    group.finish();
}

/// Events of 1 KiB that a packed frame has.
const PACKED: usize = 60;

/// What sealing and opening frames cost the topic: one mesh does so and another does not, in turns.
fn sealing(criterion: &mut Criterion) {
    let plan = Plan::from_args();
    let mut group = criterion.benchmark_group("sealing");
    group.sampling_mode(SamplingMode::Flat);
    let runtime = runtime();
    let payload = "z".repeat(1024);
    let event = Envelope::new("bench", &payload).expect("an event");
    let content = vec![event; PACKED];
    for &nodes in plan.sealing {
        let start = |sealed| {
            let mesh = runtime.block_on(DriverMesh::start(nodes, sealed));
            mesh.expect("the mesh forms")
        };
        let mut meshes = None;
        let mut pairs: Vec<(f64, f64)> = Vec::new();
        group.throughput(Throughput::Elements((plan.frames * PACKED) as u64));
        group.bench_function(BenchmarkId::new("sealed", nodes), |bencher| {
            let (sealed, bare) = meshes.get_or_insert_with(|| (start(true), start(false)));
            let burst = |mesh: &mut DriverMesh| {
                let time = runtime.block_on(mesh.burst(plan.frames, &content));
                time.expect("all arrive")
            };
            bencher.iter_custom(|rounds| {
                let mut total = Duration::ZERO;
                for round in 0..rounds {
                    let (with, without) = if round % 2 == 0 {
                        let with = burst(sealed);
                        (with, burst(bare))
                    } else {
                        let without = burst(bare);
                        (burst(sealed), without)
                    };
                    pairs.push((with.as_secs_f64(), without.as_secs_f64()));
                    total += with;
                }
                total
            });
        });
        if let Some((sealed, bare)) = meshes {
            runtime.block_on(async { tokio::join!(sealed.end(), bare.end()) });
        }
        let mut ratios: Vec<f64> = pairs.iter().map(|(with, without)| with / without).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |share: f64| ratios.get((ratios.len() as f64 * share) as usize);
        if let (Some(low), Some(median), Some(high)) = (at(0.1), at(0.5), at(0.9)) {
            eprintln!(
                "sealing/{nodes}: {median:.2} times as long as without (p10-p90 {low:.2}-{high:.2}, {} pairs)",
                ratios.len()
            );
        }
    }
    group.finish();
}

criterion_group! {
    name = fan_out;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots();
    targets = burst, lone, sealing
}
criterion_main!(fan_out);

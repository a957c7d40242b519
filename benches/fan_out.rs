//! What it takes to get an event from a hub to all of its spokes, by each way to fan out.
//!
//! Three groups, for 8, 32, 100 and 300 spokes (endpoints of their own on loopback, all in this process, two workers) and for
//! events of 64 B, 1 KiB, 16 KiB and 256 KiB:
//!
//! - `burst`: events handed over as fast as the mesh takes them, in deliveries a second (events times spokes). It proves
//!   what a path can carry when it is full, and that batching works.
//! - `lone`: one event over an idle mesh, until the last spoke has it; the median of ten in a row. It proves what a listener
//!   waits for.
//! - `paced`: fifty events a second; each one's time until the last spoke has it, and the share that takes over 80 ms.
//!
//! Of two more, `sealing` is the topic's driver, and an inbox at each node: frames with sixty events of 1 KiB that are sealed,
//! and opened at every node, against such that are not. It proves what authorship and secrecy cost. `packing` sends the same
//! events over one such mesh, so many to a frame: it chose that a frame is packed as full as it gets.
//!
//! `direct`, `gossip` and `auto` are this crate; `auto` is told that nothing limits the hub's uplink, as it is here, so up to 400
//! spokes it should serve them directly (`uplink` has it choose under a limit); `auto_untold` is the default, which takes its uplink
//! for 100 Mbit/s, and so goes to the topic here when events of that size would be late on such a one, and stays there for minutes (a burst
//! is over before its rate has been a reason for long enough). `bare_streams` (iroh and nothing else) and `bare_gossip`
//! (`iroh_gossip::net` and nothing else, one event a message) are the baselines: what the library adds in order, repair,
//! proof and admission is the difference to them. Those that are compared take turns, round after round, each round in an order
//! that is drawn anew, so that none always runs behind the same other one; printed is the ratio of each round, its median and
//! its spread. The first round warms up. Criterion's own figures are of the first of them.
//!
//! What was lost and what came out of order is printed for every cell; a burst's time is stretched by its losses, so that its
//! deliveries a second count what arrived. All nodes share the cores here: costs of the hub by itself are measured by
//! `hub_cost`.
//!
//! Not measured is what would be more than 1 GiB a second of paced load: 256 KiB to 100 and to 300 spokes.
//!
//! `cargo bench --bench fan_out` takes four hours, most of them with 300 spokes; a filter such as `-- 'burst/.*/32/1024'` runs a part.
//! `cargo test --benches` sends a few events through small meshes, to show that all of this works.

mod common;

use std::time::Duration;

use common::{
    AnyMesh, Arrived, Way,
    args::{is_smoke, runtime},
    results::{Results, Row, Spread},
};
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group,
    criterion_main, measurement::WallTime,
};
use iroh_hub::{Envelope, bench_support::DriverMesh};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::runtime::Runtime;

/// Those that take turns; the others are compared with the first.
const CONTESTS: [&[Way]; 4] = [
    &[Way::Direct, Way::BareStreams],
    &[Way::Gossip, Way::BareGossip, Way::Direct],
    &[Way::Auto, Way::Direct, Way::Gossip],
    &[Way::AutoUntold, Way::Direct, Way::Gossip],
];

/// Who waits longer than this for an event notices.
const SLOW: Duration = Duration::from_millis(80);

/// Events a second of the paced load.
const PACE: u32 = 50;
/// Paced load that delivers more than so many bytes a second is left out: no way comes near it on two cores.
const MOST_PACED: usize = 1 << 30;

/// How much to measure.
struct Plan {
    smoke: bool,
    spokes: &'static [usize],
    sizes: &'static [usize],
    /// Bytes that a burst hands to the hub, at most.
    burst_bytes: usize,
    /// Bytes that a burst delivers, at most.
    delivered_bytes: usize,
    /// Events that a burst delivers, at most.
    deliveries: usize,
    /// Events in a burst, at most.
    burst_events: usize,
    /// What a mesh still does after its burst (bare gossip sends again what was lost) is not for the next one to bear.
    between_bursts: Duration,
    /// Events of a lone round, one after the other.
    lone_events: usize,
    /// Events of a paced round.
    paced_events: usize,
    /// How many nodes receive sealed frames, and others bare ones.
    sealing: &'static [usize],
    /// And how many frames.
    frames: usize,
}

impl Plan {
    const FULL: Self = Self {
        smoke: false,
        spokes: &[8, 32, 100, 300],
        sizes: &[64, 1024, 16 * 1024, 256 * 1024],
        burst_bytes: 2 << 20,
        delivered_bytes: 128 << 20,
        deliveries: 400_000,
        burst_events: 4096,
        between_bursts: Duration::from_millis(300),
        lone_events: 10,
        paced_events: 25,
        sealing: &[32],
        frames: 100,
    };
    const SMOKE: Self = Self {
        smoke: true,
        spokes: &[4],
        sizes: &[64, 16 * 1024],
        burst_bytes: 128 * 1024,
        delivered_bytes: 1 << 20,
        deliveries: 1000,
        burst_events: 16,
        between_bursts: Duration::ZERO,
        lone_events: 2,
        paced_events: 4,
        sealing: &[4],
        frames: 8,
    };

    /// Criterion runs each bench once, to see that it works, unless `cargo bench` called it.
    fn from_args() -> &'static Self {
        if is_smoke() {
            &Self::SMOKE
        } else {
            &Self::FULL
        }
    }

    fn max_payload(&self) -> usize {
        self.sizes.iter().copied().max().unwrap_or(1024)
    }

    fn burst_events(&self, spokes: usize, size: usize) -> usize {
        (self.burst_bytes / size)
            .min(self.delivered_bytes / (size * spokes))
            .min(self.deliveries / spokes)
            .clamp(1, self.burst_events)
    }
}

/// What a group measures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Burst,
    Lone,
    Paced,
}

impl Group {
    fn name(self) -> &'static str {
        match self {
            Self::Burst => "burst",
            Self::Lone => "lone",
            Self::Paced => "paced",
        }
    }
}

/// What one way came to in one cell.
#[derive(Default)]
struct Side {
    /// A figure for each round, in seconds: of a burst the whole time, stretched by losses, else the time to the last spoke.
    rounds: Vec<f64>,
    events: u64,
    /// Events that took longer than [`SLOW`].
    slow: u64,
    expected: u64,
    lost: u64,
    disordered: u64,
}

impl Side {
    fn add(&mut self, arrived: Arrived) {
        self.expected += arrived.expected;
        self.lost += arrived.expected - arrived.delivered;
        self.disordered += arrived.disordered;
    }

    /// Runs one round, and gives the time that it counts for.
    async fn round(
        &mut self,
        group: Group,
        mesh: &AnyMesh,
        plan: &Plan,
        spokes: usize,
        size: usize,
    ) -> Duration {
        let times = match group {
            Group::Burst => {
                tokio::time::sleep(plan.between_bursts).await;
                let burst = mesh.burst(plan.burst_events(spokes, size), size).await;
                let arrived = burst.expect("the hub takes events");
                self.add(arrived);
                let stretched = arrived.expected as f64 / arrived.delivered.max(1) as f64;
                vec![arrived.elapsed.mul_f64(stretched)]
            }
            Group::Lone => {
                let mut times = Vec::with_capacity(plan.lone_events);
                for _ in 0..plan.lone_events {
                    let arrived = mesh.lone(size).await.expect("the hub takes events");
                    self.add(arrived);
                    times.push(arrived.elapsed);
                }
                times
            }
            Group::Paced => {
                let paced = mesh.paced(plan.paced_events, PACE, size).await;
                let paced = paced.expect("the hub takes events");
                self.add(paced.arrived);
                paced.times
            }
        };
        self.events += times.len() as u64;
        self.slow += times.iter().filter(|time| **time > SLOW).count() as u64;
        let typical = Spread::of(times.iter().map(Duration::as_secs_f64)).median;
        self.rounds.push(typical);
        Duration::from_secs_f64(typical)
    }

    fn show(&self, results: &mut Results, group: Group, row: Row<'_>, way: Way, events: usize) {
        let deliveries = (events * row.spokes) as f64;
        match group {
            Group::Burst => {
                let rates = self.rounds.iter().map(|time| deliveries / time);
                results.measured(row, way.name(), "deliveries_per_s", Spread::of(rates));
            }
            Group::Lone | Group::Paced => {
                let times = self.rounds.iter().map(|time| time * 1000.0);
                results.measured(row, way.name(), "ms", Spread::of(times));
            }
        }
        let mut share = |of: u64, all: u64, unit: &str| {
            let percent = 100.0 * of as f64 / all.max(1) as f64;
            results.measured(row, way.name(), unit, Spread::of([percent]));
        };
        if group != Group::Burst {
            let unit = format!("percent_over_{}_ms", SLOW.as_millis());
            share(self.slow, self.events, &unit);
        }
        share(self.lost, self.expected, "percent_lost");
        share(self.disordered, self.expected, "percent_out_of_order");
    }
}

/// Measures those that take turns in one cell; `meshes` keeps what was started for the cells before.
fn contest(
    group: &mut BenchmarkGroup<'_, WallTime>,
    (kind, plan): (Group, &Plan),
    results: &mut Results,
    runtime: &Runtime,
    meshes: &mut Vec<(Way, AnyMesh)>,
    (ways, spokes, size): (&[Way], usize, usize),
) {
    let Some(first) = ways.first() else { return };
    let events = plan.burst_events(spokes, size);
    if kind == Group::Burst {
        group.throughput(Throughput::Elements((events * spokes) as u64));
    }
    let fresh = || -> Vec<Side> { ways.iter().map(|_| Side::default()).collect() };
    let mut sides = fresh();
    let mut rng = StdRng::seed_from_u64(0);
    let mut order: Vec<usize> = (0..ways.len()).collect();
    let mut turn = 0;
    let id = BenchmarkId::new(first.name(), format!("{spokes}/{size}"));
    group.bench_function(id, |bencher| {
        for way in ways {
            if !meshes.iter().any(|(started, _)| started == way) {
                let mesh = runtime.block_on(way.start(spokes, plan.max_payload()));
                meshes.push((*way, mesh.expect("the mesh starts")));
            }
        }
        bencher.iter_custom(|rounds| {
            let mut total = Duration::ZERO;
            for _ in 0..rounds {
                if turn == 1 {
                    // What the first round came to.
                    sides = fresh();
                }
                turn += 1;
                order.shuffle(&mut rng);
                for &at in &order {
                    let (way, side) = (ways[at], &mut sides[at]);
                    let Some((_, mesh)) = meshes.iter().find(|(started, _)| *started == way) else {
                        continue;
                    };
                    let time = runtime.block_on(side.round(kind, mesh, plan, spokes, size));
                    if at == 0 {
                        total += time;
                    }
                }
            }
            total
        });
    });
    if turn == 0 {
        // Filtered out.
        return;
    }
    let row = Row {
        case: kind.name(),
        spokes,
        size: Some(size),
    };
    for (way, side) in ways.iter().zip(&sides) {
        let mesh = meshes.iter().find(|(started, _)| started == way);
        if let Some(paths) = mesh.and_then(|(_, mesh)| mesh.paths()) {
            println!("    {}: {paths}", way.name());
        }
        side.show(results, kind, row, *way, events);
    }
    let Some((mine, others)) = sides.split_first() else {
        return;
    };
    let against = |other: &Side| {
        let pairs = mine
            .rounds
            .iter()
            .copied()
            .zip(other.rounds.iter().copied());
        // Of a burst, the rates.
        let pairs = pairs.map(|(a, b)| if kind == Group::Burst { (b, a) } else { (a, b) });
        Spread::of_ratios(pairs)
    };
    for (way, other) in ways.iter().skip(1).zip(others) {
        let ratio = format!("{}/{}", first.name(), way.name());
        results.ratio(row, &ratio, against(other));
    }
    if let (Way::Auto | Way::AutoUntold, [direct, gossip]) = (first, others) {
        // The fixed strategy that is better in this cell, not in each round, else noise would choose.
        let median = |side: &Side| Spread::of(side.rounds.iter().copied()).median;
        let fixed = match median(direct) <= median(gossip) {
            true => direct,
            false => gossip,
        };
        let ratio = format!("{}/better", first.name());
        results.ratio(row, &ratio, against(fixed));
    }
}

/// Every contest at every number of spokes and size.
fn group(criterion: &mut Criterion, kind: Group) {
    let plan = Plan::from_args();
    let mut group = criterion.benchmark_group(kind.name());
    group.sampling_mode(SamplingMode::Flat);
    let mut results = Results::new(format!("fan_out_{}", kind.name()), plan.smoke);
    let runtime = runtime().expect("a runtime");
    for &spokes in plan.spokes {
        for ways in CONTESTS {
            // Started anew for each contest: connections get better with use, so an older mesh would be ahead.
            let mut meshes = Vec::new();
            for &size in plan.sizes {
                let bytes_per_s = spokes * size * PACE as usize;
                if kind == Group::Paced && bytes_per_s > MOST_PACED {
                    println!("paced, {spokes} spokes, {size} B: left out, {bytes_per_s} B/s");
                    continue;
                }
                let what = (ways, spokes, size);
                contest(
                    &mut group,
                    (kind, plan),
                    &mut results,
                    &runtime,
                    &mut meshes,
                    what,
                );
            }
            for (_, mesh) in meshes {
                runtime.block_on(mesh.stop());
            }
        }
    }
    group.finish();
}

fn burst(criterion: &mut Criterion) {
    group(criterion, Group::Burst);
}

fn lone(criterion: &mut Criterion) {
    group(criterion, Group::Lone);
}

fn paced(criterion: &mut Criterion) {
    group(criterion, Group::Paced);
}

/// Events of 1 KiB that a packed frame has.
const PACKED: usize = 60;

/// What sealing and opening frames cost the topic: one mesh does so and another does not, in turns.
fn sealing(criterion: &mut Criterion) {
    let plan = Plan::from_args();
    let mut group = criterion.benchmark_group("sealing");
    group.sampling_mode(SamplingMode::Flat);
    let mut results = Results::new("fan_out_sealing", plan.smoke);
    let runtime = runtime().expect("a runtime");
    let event = Envelope::new("bench", &"z".repeat(1024)).expect("an event");
    let events = vec![event; PACKED];
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
                let time = runtime.block_on(mesh.burst(plan.frames, &events));
                time.expect("all arrive")
            };
            bencher.iter_custom(|rounds| {
                let mut total = Duration::ZERO;
                for _ in 0..rounds {
                    let (with, without) = if pairs.len().is_multiple_of(2) {
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
            let row = Row {
                case: "sealing",
                spokes: nodes,
                size: Some(1024),
            };
            results.ratio(row, "sealed/bare", Spread::of_ratios(pairs));
            runtime.block_on(async { tokio::join!(sealed.end(), bare.end()) });
        }
    }
    group.finish();
}

/// How many events of 1 KiB are packed into a frame.
const PACKS: [usize; 4] = [PACKED, 30, 15, 4];

/// What it takes to get the same events to all, packed into more or fewer frames, in turns over one mesh.
fn packing(criterion: &mut Criterion) {
    let plan = Plan::from_args();
    let mut group = criterion.benchmark_group("packing");
    group.sampling_mode(SamplingMode::Flat);
    let mut results = Results::new("fan_out_packing", plan.smoke);
    let runtime = runtime().expect("a runtime");
    let event = Envelope::new("bench", &"z".repeat(1024)).expect("an event");
    let events = plan.frames * PACKED / 2;
    for &nodes in plan.sealing {
        let mut mesh = None;
        let mut times = PACKS.map(|_| Vec::new());
        let mut rng = StdRng::seed_from_u64(0);
        let mut order: Vec<usize> = (0..PACKS.len()).collect();
        group.throughput(Throughput::Elements(events as u64));
        group.bench_function(BenchmarkId::new("full", nodes), |bencher| {
            let mesh = mesh.get_or_insert_with(|| {
                let mesh = runtime.block_on(DriverMesh::start(nodes, true));
                mesh.expect("the mesh forms")
            });
            bencher.iter_custom(|rounds| {
                let mut total = Duration::ZERO;
                for _ in 0..rounds {
                    order.shuffle(&mut rng);
                    for &at in &order {
                        let pack = vec![event.clone(); PACKS[at]];
                        let time = runtime.block_on(mesh.burst(events.div_ceil(PACKS[at]), &pack));
                        let time = time.expect("all arrive");
                        times[at].push(time.as_secs_f64());
                        if at == 0 {
                            total += time;
                        }
                    }
                }
                total
            });
        });
        let Some(mesh) = mesh else { continue };
        let [full, ..] = &times;
        for (pack, taken) in PACKS.iter().zip(&times) {
            let row = Row {
                case: "packing",
                spokes: nodes,
                size: Some(pack * 1024),
            };
            let rates = taken.iter().map(|time| (events * nodes) as f64 / time);
            results.measured(row, "sealed", "deliveries_per_s", Spread::of(rates));
            let pairs = taken.iter().copied().zip(full.iter().copied());
            results.ratio(row, "packed/full", Spread::of_ratios(pairs));
        }
        runtime.block_on(mesh.end());
    }
    group.finish();
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
}

criterion_group! {
    name = fan_out;
    config = config();
    targets = burst, paced, sealing, packing
}
criterion_group! {
    name = alone;
    // Some events take their time, and it is those that count.
    config = config().measurement_time(Duration::from_secs(4));
    targets = lone
}
criterion_main!(fan_out, alone);

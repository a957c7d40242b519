//! How long an event takes to the last spoke when the hub's uplink is the bottleneck, and what it takes of the uplink.
//!
//! The hub sends at 10 Mbit/s, through a queue of 256 KiB that loses what finds it full; spokes are not limited.
//! Without a delay, with 10 ms one way on every path (a round trip of 20 ms), and with 20 ms one way (40 ms): between
//! spokes too, so that each hop of the topic pays for it. One event at a time over an idle mesh. It proves that the
//! topic is worth it where the uplink is what there is too little of, and that auto, told of the uplink, chooses it.
//!
//! `direct`, `gossip` and `auto` are this crate, `auto` with the uplink stated; `bare_streams` and `bare_gossip` are
//! the baselines. All are up at once and take turns, forwards and backwards; each has a network of its own inside of
//! this process, so it takes neither root nor another machine. No two topics have the same tree, so all are built anew
//! some times, and the spread is that of trees too. The bytes on the uplink are counted, and that nothing went around
//! it is made sure of.
//!
//! `cargo bench --bench uplink -- --kernel`, as root, has the kernel limit the uplink instead: a token bucket (tbf) on
//! loopback in a network namespace of its own, with real sockets, and without a delay.
//!
//! `cargo bench --bench uplink` takes half an hour, most of it until bare gossip reaches everyone; a filter such as
//! `-- rtt_20ms/50/16384` runs a part, and `cargo test --benches` sends a few events through small meshes.

mod common;
#[path = "uplink/kernel.rs"]
mod kernel;
#[path = "../tests/common/medium.rs"]
mod medium;
#[path = "uplink/network.rs"]
mod network;

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use common::{
    Arrived, BareGossip, BareStreams, Bench, Direct, Gossip, HubMesh, Mesh, Place, Result,
    Strategy,
    args::{Filter, is_smoke, runtime},
    results::{Results, Row, Spread},
};
use iroh_hub::{AutoFanOut, FanOut};
use kernel::Kernel;
use network::{Carried, Network, Shape};
use tokio::time::sleep;

/// The hub's uplink.
const UPLINK_BITS_PER_S: u64 = 10_000_000;
/// A fifth of a second of it.
const QUEUE: u64 = 256 * 1024;
/// Between two events: what is repaired has been.
const PAUSE: Duration = Duration::from_millis(250);
/// Until the queue is empty.
const QUIET_LIMIT: Duration = Duration::from_secs(5);

/// Auto has made up its mind when nothing has changed for this long: it waits for a second itself.
const SETTLED: Duration = Duration::from_secs(2);
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of an event that takes little of the uplink, whatever the way.
const SMALL: usize = 1024;

/// How much to measure.
struct Plan {
    /// Their names, and how long a packet takes one way.
    delays: &'static [(&'static str, Duration)],
    spokes: &'static [usize],
    /// How often all are built anew.
    meshes: usize,
    /// Bytes of an event, and how many are measured on each mesh.
    sizes: &'static [(usize, usize)],
    warm_ups: usize,
    /// How many small events a tree takes its short ways by, once it stands.
    shaping: usize,
    smoke: bool,
    /// Whether the kernel limits the uplink.
    kernel: bool,
}

impl Plan {
    const FULL: Self = Self {
        delays: &[
            ("rtt_0", Duration::ZERO),
            ("rtt_20ms", Duration::from_millis(10)),
            ("rtt_40ms", Duration::from_millis(20)),
        ],
        spokes: &[50],
        meshes: 3,
        sizes: &[(1024, 8), (16 * 1024, 5)],
        warm_ups: 2,
        shaping: 10,
        smoke: false,
        kernel: false,
    };
    const KERNEL: Self = Self {
        delays: &[("kernel", Duration::ZERO)],
        kernel: true,
        ..Self::FULL
    };
    const SMOKE: Self = Self {
        delays: &[("rtt_4ms", Duration::from_millis(2))],
        spokes: &[4],
        meshes: 2,
        sizes: &[(1024, 2)],
        warm_ups: 1,
        shaping: 1,
        smoke: true,
        kernel: false,
    };

    fn from_args() -> &'static Self {
        if is_smoke() {
            &Self::SMOKE
        } else if std::env::args().any(|arg| arg == "--kernel") {
            &Self::KERNEL
        } else {
            &Self::FULL
        }
    }
}

/// What the hub chooses when it knows its uplink.
struct Auto;

impl Strategy for Auto {
    const NAME: &'static str = "auto";

    fn fan_out() -> FanOut {
        FanOut::Auto(AutoFanOut::default().with_uplink_bytes_per_s(UPLINK_BITS_PER_S / 8))
    }
}

type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A mesh of whatever kind.
trait AnyMesh {
    fn lone(&self, size: usize) -> LocalFuture<'_, Result<Arrived>>;
    fn paths(&self) -> Option<String>;
    fn stop(self: Box<Self>) -> LocalFuture<'static, ()>;
}

impl<M: Mesh + 'static> AnyMesh for Bench<M> {
    fn lone(&self, size: usize) -> LocalFuture<'_, Result<Arrived>> {
        Box::pin(Bench::lone(self, size))
    }

    fn paths(&self) -> Option<String> {
        Bench::paths(self)
    }

    fn stop(self: Box<Self>) -> LocalFuture<'static, ()> {
        Box::pin(Bench::stop(*self))
    }
}

/// What the hub's uplink is made of.
enum Uplink {
    Modelled(Network),
    Kernel(Kernel),
}

impl Uplink {
    fn new(kernel: bool, delay: Duration) -> Result<Self> {
        let shape = Shape {
            uplink_bits_per_s: UPLINK_BITS_PER_S,
            queue: QUEUE,
            delay,
        };
        Ok(match kernel {
            true => Self::Kernel(Kernel::new(shape)?),
            false => Self::Modelled(Network::new(shape)),
        })
    }

    fn place(&self) -> &dyn Place {
        match self {
            Self::Modelled(network) => network,
            Self::Kernel(kernel) => kernel,
        }
    }

    fn carried(&self) -> Carried {
        match self {
            Self::Modelled(network) => network.carried(),
            Self::Kernel(kernel) => kernel.carried(),
        }
    }

    async fn quiet(&self) {
        match self {
            Self::Modelled(network) => network.quiet(QUIET_LIMIT).await,
            Self::Kernel(kernel) => kernel.quiet(QUIET_LIMIT).await,
        }
    }

    /// That nothing went around it. All of what leaves the hub's port goes by the kernel's.
    fn check(&self) -> Result<()> {
        match self {
            Self::Modelled(network) => network.check(),
            Self::Kernel(_) => Ok(()),
        }
    }
}

/// One way to fan out, on a network of its own.
struct Alternative {
    name: &'static str,
    uplink: Uplink,
    mesh: Box<dyn AnyMesh>,
    /// Whether the hub sends an event to each spoke itself.
    copies: bool,
}

/// One event.
#[derive(Clone, Copy)]
struct Seen {
    arrived: Arrived,
    carried: Carried,
}

impl Seen {
    fn ms(&self) -> f64 {
        self.arrived.elapsed.as_secs_f64() * 1000.0
    }
}

impl Alternative {
    async fn start<M: Mesh + 'static>(uplink: Uplink, spokes: usize, max: usize) -> Result<Self> {
        let mesh = Bench::<M>::start_at(uplink.place(), spokes, max).await?;
        Ok(Self {
            name: M::NAME,
            copies: [BareStreams::NAME, Direct::NAME].contains(&M::NAME),
            uplink,
            mesh: Box::new(mesh),
        })
    }

    /// Sends an event, and counts what it took of the uplink until that is idle.
    async fn lone(&self, size: usize) -> Result<Seen> {
        self.uplink.quiet().await;
        let before = self.uplink.carried();
        let arrived = self.mesh.lone(size).await?;
        sleep(PAUSE).await;
        self.uplink.quiet().await;
        let carried = self.uplink.carried().since(&before);
        let at_least = match self.copies {
            true => arrived.delivered * size as u64,
            false => arrived.delivered.min(1) * size as u64,
        };
        if carried.bytes < at_least {
            return Err("an event did not come by the uplink".into());
        }
        Ok(Seen { arrived, carried })
    }

    async fn warm_up(&self, events: usize, size: usize) -> Result<()> {
        for _ in 0..events {
            self.lone(size).await?;
        }
        Ok(())
    }

    /// Waits until no spoke has changed its path for a while: auto goes by the events that it has seen.
    async fn settle(&self) {
        let begun = Instant::now();
        let (mut before, mut since) = (None, begun);
        while since.elapsed() < SETTLED && begun.elapsed() < SETTLE_LIMIT {
            let paths = self.mesh.paths();
            let paths = paths.as_deref().and_then(|paths| paths.split(';').next());
            if paths != before.as_deref() || paths.is_some_and(|paths| paths.contains("joining")) {
                since = Instant::now();
                before = paths.map(str::to_owned);
            }
            sleep(LOOK).await;
        }
    }
}

/// What was seen of events of one size, on all meshes of one way to fan out.
#[derive(Default)]
struct Side {
    name: &'static str,
    seen: Vec<Seen>,
    /// How the last mesh served its spokes.
    paths: Option<String>,
}

impl Side {
    fn ms(&self) -> Spread {
        Spread::of(self.seen.iter().map(Seen::ms))
    }

    fn report(&self, row: Row<'_>, results: &mut Results) {
        results.measured(row, self.name, "ms", self.ms());
        let bytes = self.seen.iter().map(|seen| seen.carried.bytes as f64);
        results.measured(row, self.name, "bytes", Spread::of(bytes));
        let sum = |of: fn(&Seen) -> u64| self.seen.iter().map(of).sum::<u64>();
        println!(
            "    {} of {} deliveries lost, {} out of order; {} of {} packets lost at the uplink, {} refused; {}",
            sum(|seen| seen.arrived.expected - seen.arrived.delivered),
            sum(|seen| seen.arrived.expected),
            sum(|seen| seen.arrived.disordered),
            sum(|seen| seen.carried.dropped),
            sum(|seen| seen.carried.packets + seen.carried.dropped),
            sum(|seen| seen.carried.refused),
            self.paths.as_deref().unwrap_or("no paths"),
        );
    }
}

/// The time of one as a multiple of that of another, event by event.
fn ratio(one: &Side, other: &Side) -> Spread {
    let pairs = one.seen.iter().zip(&other.seen);
    Spread::of_ratios(pairs.map(|(one, other)| (one.ms(), other.ms())))
}

/// How many ways to fan out there are.
const WAYS: usize = 5;

/// All ways, each on a new mesh.
async fn start(
    plan: &Plan,
    delay: Duration,
    spokes: usize,
    max: usize,
) -> Result<[Alternative; WAYS]> {
    let uplink = || Uplink::new(plan.kernel, delay);
    Ok([
        Alternative::start::<BareStreams>(uplink()?, spokes, max).await?,
        Alternative::start::<BareGossip>(uplink()?, spokes, max).await?,
        Alternative::start::<HubMesh<Direct>>(uplink()?, spokes, max).await?,
        Alternative::start::<HubMesh<Gossip>>(uplink()?, spokes, max).await?,
        Alternative::start::<HubMesh<Auto>>(uplink()?, spokes, max).await?,
    ])
}

/// Sends so many events by each way, in turns.
async fn measure(
    plan: &Plan,
    all: &[Alternative; WAYS],
    sides: &mut [Side; WAYS],
    (size, events): (usize, usize),
) -> Result<()> {
    for alternative in all {
        alternative.warm_up(plan.warm_ups, size).await?;
        alternative.settle().await;
        // Over the path that it is on now: a new tree takes its short ways by what is sent along it.
        alternative.warm_up(plan.shaping, SMALL).await?;
        alternative.warm_up(plan.warm_ups, size).await?;
    }
    for event in 0..events {
        for nth in 0..WAYS {
            let at = match event % 2 {
                0 => nth,
                _ => WAYS - 1 - nth,
            };
            let seen = all[at].lone(size).await?;
            sides[at].seen.push(seen);
        }
    }
    for (alternative, side) in all.iter().zip(sides) {
        side.name = alternative.name;
        side.paths = alternative.mesh.paths();
    }
    Ok(())
}

/// Measures all sizes over the same meshes, and again over others.
async fn cells(
    plan: &Plan,
    filter: &Filter,
    (case, delay): (&str, Duration),
    spokes: usize,
    results: &mut Results,
) -> Result<()> {
    let wanted = |size: usize| filter.takes(&format!("{case}/{spokes}/{size}"));
    let sizes = plan.sizes.iter().filter(|(size, _)| wanted(*size));
    let Some(max) = sizes.clone().map(|(size, _)| *size).max() else {
        return Ok(());
    };
    let mut cells: Vec<[Side; WAYS]> = sizes.clone().map(|_| Default::default()).collect();
    for _ in 0..plan.meshes {
        let all = start(plan, delay, spokes, max).await?;
        for (of, sides) in sizes.clone().zip(&mut cells) {
            measure(plan, &all, sides, *of).await?;
        }
        for alternative in all {
            alternative.uplink.check()?;
            alternative.mesh.stop().await;
        }
    }
    for ((size, _), sides) in sizes.zip(&cells) {
        let row = Row {
            case,
            spokes,
            size: Some(*size),
        };
        for side in sides {
            side.report(row, results);
        }
        let [streams, bare_gossip, direct, gossip, auto] = sides;
        results.ratio(row, "gossip/direct", ratio(gossip, direct));
        results.ratio(row, "direct/bare_streams", ratio(direct, streams));
        results.ratio(row, "gossip/bare_gossip", ratio(gossip, bare_gossip));
        let best = match direct.ms().median < gossip.ms().median {
            true => direct,
            false => gossip,
        };
        results.ratio(row, "auto/best", ratio(auto, best));
    }
    Ok(())
}

fn main() -> Result<()> {
    let plan = Plan::from_args();
    if plan.kernel && !kernel::enter()? {
        // All was done in there.
        return Ok(());
    }
    let filter = Filter::from_args();
    let runtime = runtime()?;
    let name = match plan.kernel {
        true => "uplink_kernel",
        false => "uplink",
    };
    let mut results = Results::new(name, plan.smoke);
    runtime.block_on(async {
        for &delay in plan.delays {
            for &spokes in plan.spokes {
                cells(plan, &filter, delay, spokes, &mut results).await?;
            }
        }
        Ok(())
    })
}

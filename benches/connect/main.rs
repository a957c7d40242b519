//! What it takes to let in many spokes that arrive at the same moment.
//!
//! It answers the second of the questions that the specification (`seeds/`, "R&D Needed") left open: "Concurrent
//! accept: can `endpoint.accept()` handle multiple simultaneous connections?" It can: all of 1,000 are welcomed, in 1.0 to 1.1 times
//! what bare connections and streams take. `benches/README.md` has the figures of the last run.
//!
//! At all of its default limits a hub holds a storm back if it comes from one address, and `Spoke::connect` of some gives up; a
//! spoke that reconnects by itself comes back. On a machine that other work keeps busy, storms of 1,000 exceed the hub's
//! `handshake_timeout` of 10 s, and a topic of 300 takes longer than 40 s to form.
//!
//! 100, 300 and 1,000 spokes, endpoints of their own on loopback in this process (two workers) and bound beforehand,
//! all begin to connect at once:
//!
//! - `bare`: an iroh endpoint accepts connections and one bi-stream each, with one small frame there and one back.
//!   The baseline.
//! - `direct`: `Spoke::connect` to a [`Hub`](iroh_hub::Hub) that serves its spokes directly.
//! - `gossip`: the same to a hub that serves them by the topic.
//!
//! For each: the time until the last one is welcomed (`all_welcomed`), what the whole process spends until then
//! (`all_welcomed_cpu`: it tells more than the time if the machine has other things to do), and of one spoke
//! (`one_spoke_p50`, `one_spoke_p99`). For the hubs also until all spokes have heard an event that the hub broadcasts
//! as soon as the last is welcomed (`all_heard`), and for `gossip` until the topic serves every one of them
//! (`all_on_topic`); who joins the topic is let on it at a bounded rate, and is served directly meanwhile. Where the
//! topic does not serve all within 40 s, that round has no time, and `left_off_topic` counts who is missing. All
//! times count from the moment of arrival. A round has one storm by each alternative, in an order that is turned
//! round from one to the next; every storm has a hub and endpoints of its own, and each size has two that are not counted first.
//! `dropped` are the datagrams that sockets had no room for until the last was welcomed (Linux tells): those of 1,000 are more than
//! the hub's takes, of any hub, and then the last one waits for QUIC's timers. Connects that failed are counted
//! (`not_welcomed`), and such a storm has no time for all.
//!
//! All come from one address here, which a hub takes for one household or one attacker: with its default limits it
//! begins 200 handshakes a second of one address (400 at once), has 128 of its handshakes in flight and 256 of its
//! connections waiting for a welcome, and asks for proof of the address (QUIC Retry) above 64 handshakes. So the hubs
//! here have `handshakes_of_addr_per_s`, `max_handshakes`, `handshakes_of_addr`, `validate_above`, `max_waiting` and
//! `waiting_of_addr` of [`HubLimits`](iroh_hub::HubLimits) raised beyond the storm, and the time limits on both
//! sides, since bare iroh waits longer. `default_limits` is one storm against a hub at its defaults, for what they
//! cost.
//!
//! `cargo bench --bench connect` takes about seven minutes, and needs `ulimit -n` to be over 2,100; `-- storm/300`
//! runs a part, so do `-- default_limits` and `-- storm`. `cargo test --benches` runs small storms, to show that all
//! of this works.

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, unused_imports)]
#[path = "../../src/program/compare/usage.rs"]
mod usage;

mod bare;
mod dropped;
mod hub;
mod storm;

use common::{
    Result,
    args::{Filter, is_smoke, runtime},
    results::{Results, Row, Spread},
};
use storm::{Storm, Times};

/// What to measure.
struct Plan {
    storms: &'static [Storms],
    /// Spokes of a storm against a hub with its default limits.
    default_limits: usize,
}

/// Storms of one size.
struct Storms {
    spokes: usize,
    rounds: usize,
    /// The last so many rounds have one by gossip: a topic of hundreds takes seconds to form, and to take down.
    with_gossip: usize,
}

const FULL: Plan = Plan {
    storms: &[
        Storms {
            spokes: 100,
            rounds: 9,
            with_gossip: 5,
        },
        Storms {
            spokes: 300,
            rounds: 7,
            with_gossip: 3,
        },
        Storms {
            spokes: 1000,
            rounds: 11,
            with_gossip: 3,
        },
    ],
    default_limits: 1000,
};
const SMOKE: Plan = Plan {
    storms: &[Storms {
        spokes: 4,
        rounds: 1,
        with_gossip: 1,
    }],
    default_limits: 4,
};

const ALTERNATIVES: [Storm; 3] = [Storm::Bare, Storm::Direct, Storm::Gossip];

fn main() -> Result<()> {
    let smoke = is_smoke();
    let plan = if smoke { SMOKE } else { FULL };
    let filter = Filter::from_args();
    let mut results = Results::new("connect", smoke);
    runtime()?.block_on(async {
        for storms in plan.storms {
            if filter.takes(&format!("storm/{}", storms.spokes)) {
                storms.run(&mut results).await?;
            }
        }
        let spokes = plan.default_limits;
        if filter.takes(&format!("default_limits/{spokes}")) {
            default_limits(&mut results, spokes).await?;
        }
        Ok(())
    })
}

impl Storms {
    async fn run(&self, results: &mut Results) -> Result<()> {
        // The first storms of a size find a heap that is too small for them, and take up to three times as long.
        for storm in [Storm::Bare, Storm::Direct] {
            storm.run(self.spokes).await?;
        }
        let mut measured: [Vec<Times>; 3] = Default::default();
        for round in 0..self.rounds {
            let mut order: Vec<usize> = (0..ALTERNATIVES.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for at in order {
                let storm = ALTERNATIVES[at];
                if round + self.with_gossip >= self.rounds || !matches!(storm, Storm::Gossip) {
                    let times = storm.run(self.spokes).await?;
                    times.report_failures(storm, self.spokes);
                    // Whether rounds get slower is not seen in a median.
                    let (name, last) = (storm.name(), times.welcomed.last());
                    eprintln!("{name}/{}, round {round}: {last:?}", self.spokes);
                    measured[at].push(times);
                }
            }
        }
        report(results, self.spokes, &measured);
        Ok(())
    }
}

fn report(results: &mut Results, spokes: usize, measured: &[Vec<Times>; 3]) {
    let [bare, direct, gossip] = measured;
    for case in Times::CASES {
        let row = row(case, spokes);
        for (storm, times) in ALTERNATIVES.iter().zip(measured) {
            let values: Vec<f64> = times.iter().filter_map(|times| times.ms(case)).collect();
            if !values.is_empty() {
                results.measured(row, storm.name(), "ms", Spread::of(values));
            }
        }
        for (name, of, to) in [
            ("direct/bare", direct, bare),
            ("gossip/bare", gossip, bare),
            ("gossip/direct", gossip, direct),
        ] {
            // The last rounds are those that have all.
            let pairs = of.iter().rev().zip(to.iter().rev());
            let pairs = pairs.filter_map(|(of, to)| Some((of.ms(case)?, to.ms(case)?)));
            let pairs: Vec<(f64, f64)> = pairs.collect();
            // What one side has no time for has no ratio.
            if !pairs.is_empty() {
                results.ratio(row, name, Spread::of_ratios(pairs));
            }
        }
    }
    for (storm, times) in ALTERNATIVES.iter().zip(measured) {
        let failed = times.iter().map(|times| times.failed.0 as f64);
        let spread = Spread::of(failed);
        results.measured(row("not_welcomed", spokes), storm.name(), "spokes", spread);
        let dropped = times.iter().filter_map(|times| times.dropped);
        let dropped: Vec<f64> = dropped.map(|dropped| dropped as f64).collect();
        if !dropped.is_empty() {
            let spread = Spread::of(dropped);
            results.measured(row("dropped", spokes), storm.name(), "datagrams", spread);
        }
    }
    let left_out = gossip.iter().map(|times| times.left_out as f64);
    let spread = Spread::of(left_out);
    results.measured(
        row("left_off_topic", spokes),
        Storm::Gossip.name(),
        "spokes",
        spread,
    );
}

async fn default_limits(results: &mut Results, spokes: usize) -> Result<()> {
    let storm = Storm::DirectDefaults;
    let times = storm.run(spokes).await?;
    times.report_failures(storm, spokes);
    for case in ["all_welcomed", "one_spoke_p50", "one_spoke_p99"] {
        if let Some(ms) = times.ms(case) {
            results.measured(row(case, spokes), storm.name(), "ms", Spread::of([ms]));
        }
    }
    let failed = Spread::of([times.failed.0 as f64]);
    results.measured(row("not_welcomed", spokes), storm.name(), "spokes", failed);
    Ok(())
}

fn row(case: &str, spokes: usize) -> Row<'_> {
    Row {
        case,
        spokes,
        size: None,
    }
}

//! Small events over streams, or in datagrams.

use std::time::Duration;

use crate::{
    Plan,
    bare_datagrams::BareDatagrams,
    common::{
        Arrived, BareStreams, Bench, Mesh, Result,
        args::Filter,
        results::{Results, Row, Spread},
    },
    order,
    usage::Usage,
};

const MAX_SIZE: usize = 1024;
const SIZES: [usize; 2] = [64, MAX_SIZE];
/// Events a second that are paced.
const PACE: u32 = 50;

const ALTERNATIVES: [&str; 2] = ["datagrams", "streams"];

/// A way to send, and how much of it.
#[derive(Clone, Copy, Debug)]
enum Load {
    Burst(usize),
    Lone,
    Paced(usize),
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::Burst(_) => "burst",
            Self::Lone => "lone",
            Self::Paced(_) => "paced",
        }
    }

    /// What arrived, and the CPU time of this process.
    async fn round<M: Mesh>(self, mesh: &Bench<M>, size: usize) -> Result<Round> {
        let before = Usage::now(0);
        let (arrived, to_last) = match self {
            Self::Paced(events) => {
                let paced = mesh.paced(events, PACE, size).await?;
                let times = paced.times.iter().map(Duration::as_secs_f64);
                (paced.arrived, Spread::of(times).median)
            }
            Self::Burst(events) => whole(mesh.burst(events, size).await?),
            Self::Lone => whole(mesh.lone(size).await?),
        };
        let cpu_us = Usage::now(0).since(before).cpu_us;
        Ok(Round {
            arrived,
            to_last,
            cpu_us,
        })
    }
}

fn whole(arrived: Arrived) -> (Arrived, f64) {
    (arrived, arrived.elapsed.as_secs_f64())
}

struct Round {
    arrived: Arrived,
    /// In seconds, of the burst; of the median event where they are paced.
    to_last: f64,
    cpu_us: u64,
}

impl Round {
    fn ms(&self) -> f64 {
        self.to_last * 1e3
    }

    fn cpu(&self) -> f64 {
        self.cpu_us as f64 / self.arrived.delivered.max(1) as f64
    }

    fn lost(&self) -> f64 {
        let lost = self.arrived.expected - self.arrived.delivered;
        lost as f64 * 1e3 / self.arrived.expected as f64
    }

    fn disordered(&self) -> f64 {
        self.arrived.disordered as f64 * 1e3 / self.arrived.delivered.max(1) as f64
    }
}

pub(crate) async fn run(plan: &Plan, filter: &Filter, results: &mut Results) -> Result<()> {
    let loads = [
        (Load::Burst(plan.burst), plan.rounds),
        (Load::Lone, plan.rounds),
        (Load::Paced(plan.paced), plan.few_rounds),
    ];
    for &spokes in plan.datagrams {
        let name = |load: Load| format!("datagrams/{}/{spokes}", load.name());
        if !loads.iter().any(|(load, _)| filter.takes(&name(*load))) {
            continue;
        }
        let datagrams = Bench::<BareDatagrams>::start(spokes, MAX_SIZE).await?;
        let streams = Bench::<BareStreams>::start(spokes, MAX_SIZE).await?;
        for size in SIZES {
            for _ in 0..2 {
                datagrams.burst(plan.burst, size).await?;
                streams.burst(plan.burst, size).await?;
            }
            for (load, rounds) in loads {
                if !filter.takes(&name(load)) {
                    continue;
                }
                let mut measured: [Vec<Round>; 2] = Default::default();
                for round in 0..rounds {
                    for at in order(round, ALTERNATIVES.len()) {
                        measured[at].push(match at {
                            0 => load.round(&datagrams, size).await?,
                            _ => load.round(&streams, size).await?,
                        });
                    }
                }
                report(results, load, (spokes, size), &measured);
            }
        }
        datagrams.stop().await;
        streams.stop().await;
    }
    Ok(())
}

fn report(
    results: &mut Results,
    load: Load,
    (spokes, size): (usize, usize),
    measured: &[Vec<Round>; 2],
) {
    let mut tell = |what: &str, unit: &str, value: &dyn Fn(&Round) -> f64, with_ratio: bool| {
        let case = format!("datagrams_{}{what}", load.name());
        let row = Row {
            case: &case,
            spokes,
            size: Some(size),
        };
        for (name, rounds) in ALTERNATIVES.iter().zip(measured) {
            results.measured(row, name, unit, Spread::of(rounds.iter().map(value)));
        }
        if with_ratio {
            let pairs = measured[0]
                .iter()
                .map(value)
                .zip(measured[1].iter().map(value));
            results.ratio(row, "datagrams/streams", Spread::of_ratios(pairs));
        }
    };
    tell("", "ms", &Round::ms, true);
    // One event is too short for the CPU clock.
    if !matches!(load, Load::Lone) {
        tell("_cpu", "us_per_delivery", &Round::cpu, true);
    }
    tell("_lost", "per_mille", &Round::lost, false);
    tell("_disordered", "per_mille", &Round::disordered, false);
}

//! Several spokes of one process: a stream each on one connection, or a connection each.

use std::time::Duration;

use crate::{
    Plan,
    common::{
        Result,
        args::Filter,
        results::{Results, Row, Spread},
    },
    memory, order,
    process::{Layout, Process},
    usage::Usage,
};

const SIZE: usize = 1024;
const LAYOUTS: usize = Layout::ALL.len();

/// What is divided by what, as places in [`Layout::ALL`].
const RATIOS: [(&str, usize, usize); 5] = [
    ("bare_shared/bare_own", 0, 1),
    ("plain_shared/plain_own", 2, 3),
    ("plain_shared/bare_shared", 2, 0),
    ("plain_own/bare_own", 3, 1),
    ("native_own/bare_own", 4, 1),
];

/// The rounds of each layout.
type Rounds = [Vec<f64>; LAYOUTS];

pub(crate) async fn run(plan: &Plan, filter: &Filter, results: &mut Results) -> Result<()> {
    for &(spokes, events) in plan.sharing {
        if filter.takes(&format!("sharing/connect/{spokes}")) {
            connect(plan.few_rounds, spokes, results).await?;
        }
        if filter.takes(&format!("sharing/events/{spokes}")) {
            send(plan.rounds, spokes, events, results).await?;
        }
        if filter.takes(&format!("sharing/memory/{spokes}")) {
            grow(plan.few_rounds, spokes, results)?;
        }
    }
    Ok(())
}

async fn connect(rounds: usize, spokes: usize, results: &mut Results) -> Result<()> {
    let mut took = Rounds::default();
    // The first round warms up.
    for round in 0..=rounds {
        for at in order(round, LAYOUTS) {
            let mut process = Process::start(Layout::ALL[at], spokes).await?;
            let time = ms(process.connect(spokes).await?);
            process.stop().await;
            if round > 0 {
                took[at].push(time);
            }
        }
    }
    report(results, ("connect", "ms", None), spokes, &took);
    Ok(())
}

async fn send(rounds: usize, spokes: usize, events: usize, results: &mut Results) -> Result<()> {
    let mut processes = Vec::with_capacity(LAYOUTS);
    for layout in Layout::ALL {
        let mut process = Process::start(layout, spokes).await?;
        process.connect(spokes).await?;
        for _ in 0..2 {
            process.burst(events, SIZE).await?;
        }
        processes.push(process);
    }
    let (mut rate, mut cpu, mut lone): (Rounds, Rounds, Rounds) = Default::default();
    for round in 0..rounds {
        for at in order(round, LAYOUTS) {
            let before = Usage::now(0);
            let burst = processes[at].burst(events, SIZE).await?;
            let used = Usage::now(0).since(before).cpu_us as f64;
            rate[at].push(burst.delivered as f64 / burst.elapsed.as_secs_f64());
            cpu[at].push(used / burst.delivered as f64);
        }
        for at in order(round, LAYOUTS) {
            lone[at].push(ms(processes[at].lone(SIZE).await?.elapsed));
        }
    }
    for process in processes {
        process.stop().await;
    }
    report(
        results,
        ("burst", "deliveries_per_s", Some(SIZE)),
        spokes,
        &rate,
    );
    report(
        results,
        ("burst_cpu", "us_per_delivery", Some(SIZE)),
        spokes,
        &cpu,
    );
    report(results, ("lone", "ms", Some(SIZE)), spokes, &lone);
    Ok(())
}

fn grow(rounds: usize, spokes: usize, results: &mut Results) -> Result<()> {
    let mut grew = Rounds::default();
    for round in 0..rounds {
        for at in order(round, LAYOUTS) {
            grew[at].extend(memory::per_spoke(Layout::ALL[at], spokes)?);
        }
    }
    if grew.iter().all(|grew| !grew.is_empty()) {
        report(results, ("memory", "bytes_per_spoke", None), spokes, &grew);
    }
    Ok(())
}

fn report(
    results: &mut Results,
    (case, unit, size): (&str, &str, Option<usize>),
    spokes: usize,
    measured: &Rounds,
) {
    let row = Row { case, spokes, size };
    for (layout, values) in Layout::ALL.iter().zip(measured) {
        let spread = Spread::of(values.iter().copied());
        results.measured(row, layout.name(), unit, spread);
    }
    for (ratio, of, to) in RATIOS {
        let pairs = measured[of]
            .iter()
            .copied()
            .zip(measured[to].iter().copied());
        results.ratio(row, ratio, Spread::of_ratios(pairs));
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

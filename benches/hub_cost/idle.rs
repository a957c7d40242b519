//! What a spoke costs the hub that is connected and idle.

use n0_future::join_all;

use super::{pair::Pair, plan::Plan, protocol::Alternative};
use crate::common::{
    Result,
    results::{Results, Row, Spread},
};

const ALL: [Alternative; 3] = [
    Alternative::Direct,
    Alternative::Gossip,
    Alternative::BareStreams,
];
/// Where the baseline is.
const BARE: usize = 2;

/// For each spoke.
#[derive(Debug, Clone, Copy, Default)]
struct Idle {
    bytes: Option<f64>,
    cpu_us_per_s: f64,
    sent_per_s: f64,
}

/// Runs all cells that are asked for.
pub(crate) async fn measure(plan: &Plan, results: &mut Results) -> Result<()> {
    for &spokes in plan.idle_spokes {
        if !plan.has(&format!("idle/{spokes}")) {
            continue;
        }
        let mut rounds = Vec::new();
        for number in 0..plan.rounds {
            rounds.push(round(plan, spokes, number % 2 == 1).await?);
        }
        report(&rounds, spokes, results);
    }
    Ok(())
}

/// Starts all, one after the other, and leaves them alone, all at the same time.
async fn round(plan: &Plan, spokes: usize, reversed: bool) -> Result<[Idle; ALL.len()]> {
    let mut order: Vec<usize> = (0..ALL.len()).collect();
    if reversed {
        order.reverse();
    }
    let mut idle = [Idle::default(); ALL.len()];
    let mut pairs = Vec::new();
    for at in order {
        pairs.push((at, Pair::connect(ALL[at], spokes, 1024).await?));
    }
    tokio::time::sleep(plan.idle_before).await;
    let mut before = Vec::new();
    for (at, pair) in &mut pairs {
        let grown = pair.grown().await?;
        idle[*at].bytes = grown.map(|bytes| bytes as f64 / spokes as f64);
    }
    // Keep-alives that are due at one instant cost less than such that are spread out, as they are where spokes come and go
    // as they like. What was said last decides that.
    let stirring = pairs.iter_mut().map(|(_, pair)| pair.stir(plan.idle_stir));
    for stirred in join_all(stirring).await {
        stirred?;
    }
    for (_, pair) in &mut pairs {
        before.push(pair.account().await?.usage);
    }
    tokio::time::sleep(plan.idle_for).await;
    for ((at, pair), before) in pairs.iter_mut().zip(before) {
        let used = pair.account().await?.usage.since(before);
        let spoke_seconds = spokes as f64 * plan.idle_for.as_secs_f64();
        idle[*at].cpu_us_per_s = used.cpu_us as f64 / spoke_seconds;
        idle[*at].sent_per_s = used.bytes_sent as f64 / spoke_seconds;
    }
    Ok(idle)
}

fn report(rounds: &[[Idle; ALL.len()]], spokes: usize, results: &mut Results) {
    let row = |case| Row {
        case,
        spokes,
        size: None,
    };
    let bytes = |at: usize| rounds.iter().filter_map(move |round| round[at].bytes);
    let cpu = |at: usize| rounds.iter().map(move |round| round[at].cpu_us_per_s);
    let unit = "us_per_spoke_per_s";
    for (at, alternative) in ALL.iter().enumerate() {
        let name = alternative.name();
        results.measured(row("memory"), name, "bytes", Spread::of(bytes(at)));
        results.measured(row("idle"), name, unit, Spread::of(cpu(at)));
        let sent = rounds.iter().map(|round| round[at].sent_per_s);
        let sent = Spread::of(sent);
        results.measured(row("idle"), name, "bytes_per_spoke_per_s", sent);
    }
    for at in (0..ALL.len()).filter(|at| *at != BARE) {
        let (name, bare) = (ALL[at].name(), ALL[BARE].name());
        let ratio = format!("{name}/{bare}");
        let pairs = bytes(at).zip(bytes(BARE));
        results.ratio(row("memory"), &ratio, Spread::of_ratios(pairs));
        let more = cpu(at).zip(cpu(BARE)).map(|(ours, bare)| ours - bare);
        let beyond = format!("{name} beyond {bare}");
        results.measured(row("idle"), &beyond, unit, Spread::of(more));
    }
}

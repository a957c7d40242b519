//! What gossip comes to beyond this machine: `iroh-hub simulate` at 100 to 100,000 spokes.
//!
//! The program runs the hub's and the spokes' own code in virtual time, 20 ms from node to node, and prints what came of it: bytes that the hub
//! sends for a broadcast of 1 KiB, hops and time to the last spoke. They show that what a broadcast costs the hub does not
//! depend on the number of spokes, and that the way to the last one grows as its logarithm, by the join strategy (a few random
//! spokes that are on the tree, and the hub for the first few only). Memory of the run by its spokes is what a spoke's protocol state
//! takes, and the events on the way to it.
//!
//! `cargo bench --bench simulate` runs up to 10,000 spokes, some minutes and 2 GiB; `-- 100000` as a last argument goes as far as that, which takes
//! hours and 20 GiB. Otherwise, as in tests, 20 spokes.

mod common;

use std::process::Command;

use common::{
    Result,
    args::is_smoke,
    results::{Results, Row, Spread},
};

const SIZE: usize = 1024;

/// Runs at one number of spokes, one a seed.
#[derive(Default)]
struct Figures {
    hub_bytes: Vec<f64>,
    hub_copies: Vec<f64>,
    last_hop: Vec<f64>,
    last_spoke_ms: Vec<f64>,
    memory_kib: Vec<f64>,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let smoke = is_smoke();
    let most = args.iter().filter_map(|arg| arg.parse().ok()).max();
    let spokes: Vec<usize> = match smoke {
        true => vec![20],
        false => [100, 300, 1000, 3000, 10_000, 30_000, 100_000]
            .into_iter()
            .filter(|spokes| *spokes <= most.unwrap_or(10_000))
            .collect(),
    };
    let mut results = Results::new("simulate", smoke);
    for spokes in spokes {
        let mut all = Figures::default();
        for seed in 0..if spokes > 3000 || smoke { 1 } else { 3 } {
            run(spokes, seed, &mut all)?;
        }
        let row = Row {
            case: "gossip",
            spokes,
            size: Some(SIZE),
        };
        for (figures, unit) in [
            (all.hub_bytes, "hub_bytes_per_broadcast"),
            (all.hub_copies, "hub_copies_per_frame"),
            (all.last_hop, "hops_to_the_last_spoke"),
            (all.last_spoke_ms, "ms_to_the_last_spoke"),
            (all.memory_kib, "KiB_of_memory_per_spoke"),
        ] {
            results.measured(row, "gossip", unit, Spread::of(figures));
        }
    }
    Ok(())
}

fn run(spokes: usize, seed: u64, all: &mut Figures) -> Result<()> {
    let events = 50;
    let output = Command::new(env!("CARGO_BIN_EXE_iroh-hub"))
        .args(["simulate", "--fan-out", "gossip", "--rate", "50"])
        .args(["--events", &events.to_string()])
        .args(["--size", &SIZE.to_string()])
        .args(["--spokes", &spokes.to_string()])
        .args(["--seed", &seed.to_string()])
        .output()?;
    let text = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
    if !output.status.success() {
        return Err(text.into());
    }
    all.hub_bytes
        .push(number(&text, "hub bytes an event", "with repairs")?);
    all.hub_copies
        .push(number(&text, "hub copies a frame", "")?);
    all.last_hop.push(number(&text, "last hop", "p50")?);
    all.last_spoke_ms
        .push(number(&text, "last spoke, ms", "p50")?);
    all.memory_kib
        .push(bytes(&text, "took", "peak memory")? / 1024.0 / spokes as f64);
    Ok(())
}

/// What stands on the line of this name, behind these words.
fn after<'a>(text: &'a str, name: &str, words: &str) -> Result<&'a str> {
    let rests = text.lines().filter_map(|line| line.strip_prefix(name));
    // Not those that begin alike.
    let rest = rests.filter(|rest| rest.starts_with("  ") || name == "took");
    let rest = rest.filter_map(|rest| rest.split_once(words)).next();
    let (_, rest) = rest.ok_or_else(|| format!("there is no {name} {words} in\n{text}"))?;
    Ok(rest.trim_start())
}

fn number(text: &str, name: &str, words: &str) -> Result<f64> {
    let value = after(text, name, words)?;
    let value = value.split_whitespace().next().unwrap_or_default();
    Ok(value.parse()?)
}

fn bytes(text: &str, name: &str, words: &str) -> Result<f64> {
    let mut value = after(text, name, words)?.split_whitespace();
    let number: f64 = value.next().unwrap_or_default().parse()?;
    let unit = value.next().unwrap_or_default();
    Ok(number
        * match unit {
            "B" => 1.0,
            "KiB" => 1024.0,
            "MiB" => 1024.0 * 1024.0,
            "GiB" => 1024.0 * 1024.0 * 1024.0,
            other => return Err(format!("{name}: the unit {other}").into()),
        })
}

//! `iroh-hub compare`: the same events by every strategy, with figures.
//!
//! Each cell (a strategy, a number of spokes, a size) runs a hub in one process and all spokes, each an endpoint of its
//! own, in another, so that the hub's CPU time is the hub's alone. The children are this program, started again with hidden
//! subcommands ([`cell`] drives them, [`children`] is what they do, [`protocol`] is how they speak).
//!
//! Not for: networks other than loopback, or faults.

mod cell;
mod children;
mod crossover;
mod input;
mod machine;
mod plot;
mod probe;
mod protocol;
mod report;
mod row;
mod sides;
mod stats;
mod table;
mod tally;
pub(super) mod usage;
mod worker;

use std::{
    collections::BTreeSet,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

pub(crate) use self::children::{hub_child, spokes_child};
use self::{
    cell::Plan,
    input::Input,
    machine::Machine,
    row::{Cell, Row, Strategy},
};

use super::{args, output::print_text, say::say};

/// Events of a burst, unless told otherwise.
const DEFAULT_EVENTS: u64 = 500;
/// Lines of `--input` that are sent, unless told otherwise.
const DEFAULT_LINES: usize = 2_000;
/// The largest event that a hub takes by default, with room for the envelope.
const MAX_SIZE: u64 = 15 * 1024 * 1024;

/// Compares the strategies on this machine: hub and spokes in processes of their own, over loopback.
#[derive(Debug, Clone, Args)]
pub(crate) struct CompareArgs {
    /// Numbers of spokes to measure
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "10,50,100", value_parser = stats::parse_spokes)]
    spokes: Vec<usize>,

    /// Sizes of the generated events, such as 64B or 16KiB
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',', default_value = "1KiB", value_parser = stats::parse_size)]
    size: Vec<u64>,

    /// Events in a burst [default: 500, or with --input the file's lines, 2000 at most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    events: Option<u64>,

    /// Send the lines of a text file instead of generated events
    #[arg(long, value_name = "FILE", conflicts_with = "size")]
    input: Option<PathBuf>,

    /// Ways to fan out
    #[arg(
        long,
        value_name = "STRATEGY,…",
        value_delimiter = ',',
        default_value = "direct,gossip,auto"
    )]
    strategies: Vec<Strategy>,

    /// What auto takes the hub's uplink for, in bytes a second, such as 1250KB for 10 Mbit/s; loopback is as
    /// fast as it is [default: 12.5MB, which is 100 Mbit/s]
    #[arg(long, value_name = "BYTES", value_parser = args::uplink)]
    uplink: Option<u64>,

    /// Write the rows to a file, as a JSON array of objects
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write a page with plots and the crossovers that were found
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// Runs the comparison and prints its table. Dropping the future kills the child processes.
pub(crate) async fn run(args: CompareArgs) -> anyhow::Result<()> {
    let plans = plans(&args)?;
    // A path that cannot be written is better found before minutes of measuring.
    let json = args.json.as_deref().map(create).transpose()?;
    let report = args.report.as_deref().map(create).transpose()?;
    let machine = Machine::here();
    for warning in machine.warnings() {
        say(format_args!("note: {warning}"));
    }

    let started = Instant::now();
    let progress = Progress::new(plans.len() as u64);
    let mut cells = Vec::with_capacity(plans.len());
    let mut failed = Vec::new();
    for plan in &plans {
        let name = format!(
            "{} to {} spokes, {}",
            plan.strategy.name(),
            plan.spokes,
            stats::bytes(plan.size as f64)
        );
        match plan.run(|step| progress.say(&name, step)).await {
            Ok(cell) => cells.push(cell),
            Err(error) => failed.push(format!("{name}: {error:#}")),
        }
        progress.next();
    }
    progress.finish();

    let words = shown(&cells, started.elapsed());
    print_text(&words).context("stdout cannot be written")?;
    if let Some(mut file) = json {
        let rows: Vec<&Row> = cells.iter().map(|cell| &cell.row).collect();
        serde_json::to_writer_pretty(&mut file, &rows).context("cannot write the rows")?;
        file.write_all(b"\n").context("cannot write the rows")?;
    }
    if let Some(mut file) = report {
        let page = report::page(&cells, &failed, &machine)?;
        file.write_all(page.as_bytes())
            .context("cannot write the report")?;
    }
    for reason in &failed {
        say(format_args!("not measured: {reason}"));
    }
    ensure!(
        failed.is_empty(),
        "{} of {} cells could not be measured",
        failed.len(),
        plans.len()
    );
    Ok(())
}

/// The cells, in the order of the table: by size, by spokes, by strategy.
fn plans(args: &CompareArgs) -> anyhow::Result<Vec<Plan>> {
    let spokes: BTreeSet<usize> = args.spokes.iter().copied().collect();
    let strategies: BTreeSet<Strategy> = args.strategies.iter().copied().collect();
    let mut plans = Vec::new();
    for (size, events, input) in inputs(args)? {
        for &spokes in &spokes {
            let deliveries = events.saturating_mul(spokes as u64);
            ensure!(
                deliveries <= tally::MAX_DELIVERIES,
                "{events} events to {spokes} spokes are {deliveries} deliveries, more than the {} that are counted; take fewer --events",
                tally::MAX_DELIVERIES,
            );
            plans.extend(strategies.iter().map(|&strategy| Plan {
                strategy,
                uplink: args.uplink,
                spokes,
                size,
                events,
                input: input.clone(),
            }));
        }
    }
    Ok(plans)
}

/// What to send: the size for the row, the events of a burst, and where they come from.
fn inputs(args: &CompareArgs) -> anyhow::Result<Vec<(u64, u64, Input)>> {
    if let Some(path) = &args.input {
        let limit = args.events.map_or(Ok(DEFAULT_LINES), usize::try_from)?;
        let lines = input::read_lines(path, limit)?;
        let bytes: usize = lines.iter().map(String::len).sum();
        let events = args.events.unwrap_or(lines.len() as u64);
        let path = std::path::absolute(path)?;
        let mean = (bytes / lines.len().max(1)) as u64;
        return Ok(vec![(mean, events, Input::Lines { path, limit })]);
    }
    let sizes: BTreeSet<u64> = args.size.iter().copied().collect();
    let events = args.events.unwrap_or(DEFAULT_EVENTS);
    for &size in &sizes {
        if size < probe::MIN_SIZE {
            bail!(
                "events of {size} B are too small: their number and time take {} B",
                probe::MIN_SIZE
            );
        }
        if size > MAX_SIZE {
            bail!(
                "events of {} are too large: the most is {}",
                stats::bytes(size as f64),
                stats::bytes(MAX_SIZE as f64)
            );
        }
    }
    Ok(sizes
        .into_iter()
        .map(|size| (size, events, Input::Size(size)))
        .collect())
}

fn create(path: &Path) -> anyhow::Result<std::fs::File> {
    std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

fn shown(cells: &[Cell], took: Duration) -> String {
    let mut lines = vec![
        table::render(cells.iter().map(|cell| &cell.row)),
        table::CAPTION.to_owned(),
    ];
    let sizes: BTreeSet<u64> = cells.iter().map(|cell| cell.row.size).collect();
    for size in sizes {
        let words = report::words(cells, size);
        if !words.is_empty() {
            lines.push(format!("\nevents of {}:", stats::bytes(size as f64)));
        }
        lines.extend(words.into_iter().map(|line| format!("  {line}")));
    }
    lines.push(format!("\nmeasured in {}", stats::elapsed(took)));
    lines.join("\n")
}

/// A bar on a terminal; nothing otherwise.
struct Progress(ProgressBar);

impl Progress {
    fn new(cells: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(cells);
        if let Ok(style) = ProgressStyle::with_template("[{elapsed}] {bar:20} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        Self(bar)
    }

    fn say(&self, cell: &str, step: &str) {
        self.0.set_message(format!("{cell}: {step}"));
    }

    fn next(&self) {
        self.0.inc(1);
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}

//! `simulate`: the core among simulated nodes, in virtual time. What it does is [`iroh_hub::sim`]'s business.

mod faults;
mod show;

use std::{io::IsTerminal, time::Instant};

use anyhow::Context;
use bytesize::ByteSize;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use iroh_hub::{
    FanOut,
    sim::{self, Breakage, Churn, Links, Options, Partition, Progress, Restart, Revocation, Stall},
};
use serde::Serialize;

use self::faults::{millis, partition, restart, revocation, seconds, share, stall};
use super::{
    compare::usage::Usage,
    exit::{self, Exit, Failure},
    output::print_text,
    say,
};

/// Runs a hub and its spokes in virtual time over a network with faults, and checks every event that
/// every spoke lets out.
///
/// It runs the code that ships, on one thread. The same options print the same lines, byte for byte, on any
/// machine; time and memory that the run took are said on stderr. Faults are timed from the first event, which is
/// broadcast when the mesh stands.
#[derive(Debug, Args)]
#[command(after_help = exit::HELP)]
pub(super) struct SimulateArgs {
    /// Fixes every random choice
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// How many spokes there are
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    spokes: u32,
    /// How many of them take no part in gossip
    #[arg(long, value_name = "N", default_value_t = 0)]
    direct_spokes: u32,
    /// How broadcasts reach the spokes. `auto` knows --delay and, if given, --bandwidth; whether there is a
    /// topic is its choice
    #[arg(long, value_name = "auto|direct|gossip", default_value = "gossip")]
    fan_out: FanOut,
    /// How many events are broadcast
    #[arg(long, value_name = "K", default_value_t = 1000)]
    events: u64,
    /// How many events a second
    #[arg(long, value_name = "E", default_value_t = 100.0, value_parser = rate)]
    rate: f64,
    /// How many events at once; the rate stays the same
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    burst: u64,
    /// The bytes of an event's payload
    #[arg(long, value_name = "B", default_value = "100")]
    size: ByteSize,
    /// How many events the hub's log keeps
    #[arg(long, value_name = "N", default_value_t = 131_072)]
    log_events: usize,
    /// How many milliseconds a packet is under way
    #[arg(long, value_name = "MS", default_value = "20", value_parser = millis)]
    delay: std::time::Duration,
    /// Up to how many milliseconds longer, drawn for each packet
    #[arg(long, value_name = "MS", default_value = "5", value_parser = millis)]
    jitter: std::time::Duration,
    /// The share of packets (on direct links, sent again) and of gossip messages (gone for good) that is
    /// lost, as 0.05 or 5%
    #[arg(long, value_name = "P", default_value = "0", value_parser = share)]
    loss: f64,
    /// The share of gossip messages that come twice
    #[arg(long, value_name = "P", default_value = "0", value_parser = share)]
    duplicate: f64,
    /// The share of gossip messages that later ones overtake
    #[arg(long, value_name = "P", default_value = "0", value_parser = share)]
    reorder: f64,
    /// What each node can send in a second, for example 10MB [default: unlimited]
    #[arg(long, value_name = "BYTES")]
    bandwidth: Option<ByteSize>,
    /// The share of the spokes that is replaced by new ones every second, while events are broadcast
    #[arg(long, value_name = "P", default_value = "0", value_parser = share)]
    churn: f64,
    /// The share of those that go without a goodbye
    #[arg(long, value_name = "P", default_value = "50%", value_parser = share)]
    crash: f64,
    /// Cuts a share of the spokes off from the hub and the rest: seconds until then, seconds it lasts; may be
    /// given several times, but partitions do not overlap
    #[arg(long, value_name = "AT:FOR:SHARE", value_parser = partition)]
    partition: Vec<Partition>,
    /// Stops so many spokes for a while; may be given several times
    #[arg(long, value_name = "AT:FOR:SPOKES", value_parser = stall)]
    stall: Vec<Stall>,
    /// Kills the hub, and starts it again after a while; with `durable` it has its log then. May be given
    /// several times
    #[arg(long, value_name = "AT:FOR[:durable]", value_parser = restart)]
    hub_restart: Vec<Restart>,
    /// Revokes so many spokes that the topic serves, after so many seconds; they stay on the topic as far as the
    /// others let them, with every key that they had. May be given several times
    #[arg(long, value_name = "AT:SPOKES", value_parser = revocation)]
    revoke: Vec<Revocation>,
    /// The how-manieth frame with events never leaves the hub
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    lose_root_frame: Option<u64>,
    /// How many seconds after the last event spokes have to get what they lack
    #[arg(long, value_name = "S", default_value = "180", value_parser = seconds)]
    settle: std::time::Duration,
    /// Instead of a mesh, runs so many random lives of one hub and one spoke, in which links break, the log is
    /// trimmed and both start again, each with a seed of its own from the given one on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    resume_cases: Option<u64>,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text
        .parse()
        .map_err(|_| "this is not a number".to_owned())?;
    if !(0.001..=1e6).contains(&rate) {
        return Err("give between 0.001 and 1000000 events a second".to_owned());
    }
    Ok(rate)
}

impl SimulateArgs {
    fn options(&self) -> Options {
        Options {
            seed: self.seed,
            spokes: self.spokes,
            direct_spokes: self.direct_spokes,
            fan_out: self.fan_out.clone(),
            events: self.events,
            rate: self.rate,
            burst: self.burst,
            size: usize::try_from(self.size.as_u64())
                .unwrap_or(usize::MAX)
                .min(16 << 20),
            links: Links {
                delay: self.delay,
                jitter: self.jitter,
                loss: self.loss,
                duplicate: self.duplicate,
                reorder: self.reorder,
                bandwidth: self.bandwidth.map(|bandwidth| bandwidth.as_u64()),
            },
            churn: Churn {
                per_s: self.churn,
                crash: self.crash,
            },
            partitions: self.partition.clone(),
            stalls: self.stall.clone(),
            restarts: self.hub_restart.clone(),
            revocations: self.revoke.clone(),
            lose_root_frame: self.lose_root_frame,
            log_events: self.log_events,
            settle: self.settle,
            ..Options::default()
        }
    }

    /// The given options that act on a topic and on nothing else.
    fn for_topics(&self) -> String {
        let given = [
            ("--duplicate", self.duplicate > 0.0),
            ("--reorder", self.reorder > 0.0),
            ("--revoke", !self.revoke.is_empty()),
            ("--lose-root-frame", self.lose_root_frame.is_some()),
        ];
        let given = given.into_iter().filter(|(_, given)| *given);
        given.map(|(name, _)| name).collect::<Vec<_>>().join(", ")
    }
}

/// Runs to the end on the calling thread.
pub(super) fn run(args: &SimulateArgs) -> Result<Exit, Failure> {
    let mut partitions: Vec<_> = args
        .partition
        .iter()
        .map(|p| (p.at, p.at + p.lasts))
        .collect();
    partitions.sort_unstable();
    if partitions.windows(2).any(|pair| pair[1].0 < pair[0].1) {
        return Err(Failure::usage("--partition: partitions must not overlap"));
    }
    let for_topics = args.for_topics();
    if args.fan_out == FanOut::Direct && !for_topics.is_empty() {
        return Err(Failure::usage(format_args!(
            "{for_topics}: without a topic, as with --fan-out direct, this does nothing"
        )));
    }
    let begun = Instant::now();
    let (words, kept) = match args.resume_cases {
        Some(cases) => {
            let bar = Bar::new(cases, "{wide_bar} {pos}/{len} cases");
            let report = sim::resume_cases(cases, args.seed, Breakage::None, |done| {
                bar.0.set_position(done)
            });
            bar.0.finish_and_clear();
            (shown(args, &report, show::cases)?, report.is_kept())
        }
        None => {
            let bar = Bar::new(args.events, "{wide_bar} {pos}/{len} events  {msg}");
            let report = sim::run(args.options(), |progress| bar.at(progress));
            bar.0.finish_and_clear();
            if report.topics == 0 && !for_topics.is_empty() {
                say(format_args!(
                    "note: {for_topics} did nothing, for auto began no topic"
                ));
            }
            (shown(args, &report, show::table)?, report.is_kept())
        }
    };
    print_text(&words).context("stdout cannot be written")?;
    let peak = Usage::now(0).peak_bytes.map(ByteSize::b);
    let peak = peak.map_or_else(String::new, |peak| format!(", peak memory {peak}"));
    let took = begun.elapsed();
    say(format_args!("took {took:.1?}{peak}"));
    Ok(if kept { Exit::Ok } else { Exit::ContractBroken })
}

fn shown<T: Serialize>(
    args: &SimulateArgs,
    report: &T,
    show: fn(&T) -> String,
) -> Result<String, Failure> {
    Ok(if args.json {
        serde_json::to_string(report).context("the report is not JSON")?
    } else {
        show(report)
    })
}

/// How far the run is; on a terminal only.
struct Bar(ProgressBar);

impl Bar {
    fn new(len: u64, template: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(len);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn at(&self, progress: Progress) {
        self.0.set_position(progress.broadcast);
        let Progress {
            linked, seconds, ..
        } = progress;
        self.0
            .set_message(format!("{linked} spokes  {seconds:.0} s"));
    }
}

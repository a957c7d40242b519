//! One cell: a hub in one process, its spokes in another, and the phases that they are taken through.

use std::time::Duration;

use anyhow::bail;
use tokio::time::sleep;

use super::{
    input::Input,
    protocol::{HubCommand, HubReply, SpokesCommand, SpokesReply},
    row::{Cell, Row, Strategy},
    stats::percentile,
    tally::Outcome,
    usage::Usage,
    worker::Worker,
};

/// The subcommands of the two child processes.
pub(crate) const HUB_SUBCOMMAND: &str = "compare-hub";
pub(crate) const SPOKES_SUBCOMMAND: &str = "compare-spokes";

/// A step that moves no events.
const STEP_LIMIT: Duration = Duration::from_secs(10);
/// Until all spokes are welcomed and on their path.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// Handing a burst to the hub, which makes its publisher wait.
const BURST_LIMIT: Duration = Duration::from_secs(300);
/// A round is over when nothing has arrived for this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Events before anything is measured: windows open, trees settle.
const WARM_UP_EVENTS: u64 = 50;
const WARM_UP_GAP: Duration = Duration::from_millis(5);
/// Between phases, for repairs and acknowledgements of the one before to end.
const REST: Duration = Duration::from_millis(500);
/// Lone events: enough for a 99th percentile that is not the largest by definition, fewer if they are far apart.
const LONE_EVENTS: u64 = 100;
const MIN_LONE_EVENTS: u64 = 20;
const LONE_LIMIT: Duration = Duration::from_secs(6);
/// Between lone events: so much that each meets an idle mesh. The same for every strategy, since what a mesh costs by
/// itself is part of what an event costs.
const LONE_GAP: Duration = Duration::from_millis(50);
const LONE_GAP_PER_SPOKE: Duration = Duration::from_micros(750);

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) strategy: Strategy,
    /// What auto takes the uplink for, in bytes a second.
    pub(crate) uplink: Option<u64>,
    pub(crate) spokes: usize,
    /// Bytes of an event, for the row.
    pub(crate) size: u64,
    /// Events of the burst.
    pub(crate) events: u64,
    pub(crate) input: Input,
}

/// A phase, and what both processes used during it.
struct Phase {
    outcome: Outcome,
    hub: Usage,
    spokes: Usage,
}

impl Plan {
    /// Runs the cell, telling `say` what it is doing.
    pub(crate) async fn run(&self, say: impl Fn(&str)) -> anyhow::Result<Cell> {
        say("connecting");
        let mut pair = Pair::start(self).await?;
        say("warming up");
        pair.phase(1, WARM_UP_EVENTS, Some(WARM_UP_GAP)).await?;
        sleep(REST).await;
        say("burst");
        let burst = pair.phase(2, self.events, None).await?;
        sleep(REST).await;
        say("lone events");
        let gap = lone_gap(self.spokes);
        let events = lone_events(gap);
        let lone = pair.phase(3, events, Some(gap)).await?;
        let peak = pair.hub_usage().await?.peak_bytes;
        pair.stop().await?;
        Ok(self.cell(burst, lone, events, peak))
    }

    fn cell(
        &self,
        burst: Phase,
        mut lone: Phase,
        lone_events: u64,
        hub_peak_bytes: Option<u64>,
    ) -> Cell {
        let seconds = burst.outcome.elapsed_ns as f64 / 1e9;
        let rate = if seconds > 0.0 {
            burst.outcome.delivered as f64 / seconds
        } else {
            0.0
        };
        let mut to_last =
            |q| percentile(&mut lone.outcome.to_last_ns, q).map(|ns| round(ns as f64 / 1e6, 3));
        let (last_p50_ms, last_p99_ms) = (to_last(0.5), to_last(0.99));
        let per_lone = |total: u64| round(total as f64 / lone_events as f64, 1);
        let per_burst = |total: u64| round(total as f64 / self.events.max(1) as f64, 1);
        Cell {
            row: Row {
                spokes: self.spokes,
                strategy: self.strategy,
                size: self.size,
                delivered: burst.outcome.delivered,
                expected: burst.outcome.expected,
                deliveries_per_s: round(rate, 1),
                last_p50_ms,
                last_p99_ms,
                hub_bytes_per_broadcast: per_lone(lone.hub.bytes_sent),
                hub_cpu_us_per_broadcast: per_lone(lone.hub.cpu_us),
                total_cpu_us_per_broadcast: per_lone(lone.hub.cpu_us + lone.spokes.cpu_us),
            },
            out_of_order: burst.outcome.out_of_order + lone.outcome.out_of_order,
            repeated: burst.outcome.repeated + lone.outcome.repeated,
            lone_incomplete: lone_events.saturating_sub(lone.outcome.to_last_ns.len() as u64),
            hub_cpu_us_in_burst: per_burst(burst.hub.cpu_us),
            hub_bytes_in_burst: per_burst(burst.hub.bytes_sent),
            hub_peak_bytes,
        }
    }
}

fn lone_gap(spokes: usize) -> Duration {
    let spokes = u32::try_from(spokes).unwrap_or(u32::MAX);
    LONE_GAP.max(LONE_GAP_PER_SPOKE.saturating_mul(spokes))
}

/// As many as there is time for.
fn lone_events(gap: Duration) -> u64 {
    let fit = LONE_LIMIT.as_millis() / gap.as_millis().max(1);
    u64::try_from(fit).map_or(LONE_EVENTS, |fit| fit.clamp(MIN_LONE_EVENTS, LONE_EVENTS))
}

/// The two processes of a cell.
struct Pair {
    hub: Worker,
    spokes: Worker,
}

/// Asks, and takes the one reply that fits the command.
macro_rules! ask {
    ($worker:expr, $limit:expr, $command:expr, $reply:pat => $value:expr) => {
        match $worker.ask(&$command, $limit).await? {
            $reply => $value,
            other => bail!("an answer that does not fit its command: {other:?}"),
        }
    };
}

impl Pair {
    async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let mut hub = Worker::spawn("hub", HUB_SUBCOMMAND)?;
        let start = HubCommand::Start {
            strategy: plan.strategy,
            uplink: plan.uplink,
            input: plan.input.clone(),
        };
        let ticket = ask!(hub, STEP_LIMIT, start, HubReply::Ticket(ticket) => ticket);
        let mut spokes = Worker::spawn("spokes", SPOKES_SUBCOMMAND)?;
        let connect = SpokesCommand::Connect {
            ticket,
            spokes: plan.spokes,
        };
        ask!(spokes, CONNECT_LIMIT, connect, SpokesReply::Connected => ());
        let ready = HubCommand::AwaitReady {
            spokes: plan.spokes,
            limit: CONNECT_LIMIT,
        };
        // A little more, so that the hub's own words on what is missing arrive.
        ask!(hub, CONNECT_LIMIT + STEP_LIMIT, ready, HubReply::Ready => ());
        Ok(Self { hub, spokes })
    }

    async fn phase(
        &mut self,
        round: u32,
        events: u64,
        gap: Option<Duration>,
    ) -> anyhow::Result<Phase> {
        let expect = SpokesCommand::Expect { round, events };
        ask!(self.spokes, STEP_LIMIT, expect, SpokesReply::Expecting => ());
        let before = (self.hub_usage().await?, self.spokes_usage().await?);
        let publish = HubCommand::Publish { round, events, gap };
        let limit = BURST_LIMIT + gap.unwrap_or_default() * events as u32;
        ask!(self.hub, limit, publish, HubReply::Published => ());
        let report = SpokesCommand::Report { patience: PATIENCE };
        let outcome =
            ask!(self.spokes, BURST_LIMIT, report, SpokesReply::Outcome(outcome) => outcome);
        let after = (self.hub_usage().await?, self.spokes_usage().await?);
        Ok(Phase {
            outcome,
            hub: after.0.since(before.0),
            spokes: after.1.since(before.1),
        })
    }

    async fn hub_usage(&mut self) -> anyhow::Result<Usage> {
        Ok(ask!(self.hub, STEP_LIMIT, HubCommand::Usage, HubReply::Usage(usage) => usage))
    }

    async fn spokes_usage(&mut self) -> anyhow::Result<Usage> {
        Ok(ask!(self.spokes, STEP_LIMIT, SpokesCommand::Usage, SpokesReply::Usage(usage) => usage))
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        ask!(self.spokes, STEP_LIMIT, SpokesCommand::Stop, SpokesReply::Stopped => ());
        ask!(self.hub, STEP_LIMIT, HubCommand::Stop, HubReply::Stopped => ());
        self.spokes.exit().await?;
        self.hub.exit().await
    }
}

fn round(value: f64, places: i32) -> f64 {
    let scale = 10f64.powi(places);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_meshes_get_longer_gaps_and_fewer_lone_events() {
        let small = lone_gap(10);
        assert_eq!((small, lone_events(small)), (LONE_GAP, LONE_EVENTS));
        let larger = lone_gap(100);
        assert_eq!(
            (larger, lone_events(larger)),
            (Duration::from_millis(75), 80)
        );
        let huge = lone_gap(2_000);
        assert_eq!(lone_events(huge), MIN_LONE_EVENTS);
    }
}

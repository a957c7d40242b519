//! Spokes on the topic that are stopped: the others must not notice, and the stopped ones catch up or are told.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::time::sleep;

use crate::{
    checker::{Life, Report, Spoke as Printed, check},
    common::process::{Hub, Program, program, spoke_command, spoke_into},
    figures::{Latencies, Ratios},
    heard::Listeners,
    lives::has_printed,
    load::{self, Clock, Load, Pace},
};

/// How long a hub and its spokes may take to end.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy)]
struct Plan {
    /// Spokes that go on.
    others: usize,
    /// Spokes that are stopped, in processes of their own. A control run has none.
    stopped: usize,
    pace: Pace,
    warm_up: Duration,
    stop: Duration,
    /// Not measured after the fault.
    leave_out: Duration,
    after: Duration,
}

struct Run {
    deliveries_per_s: f64,
    p50: Duration,
    p99: Duration,
    /// Of all events that were written after the fault.
    latest: Duration,
    /// The checker's word on the others, and on the stopped ones.
    others: Report,
    stopped: Report,
}

impl Run {
    fn say(&self, what: &str) {
        println!(
            "  {what}: {:.0} deliveries/s, p50 {:.1?}, p99 {:.1?}, latest {:.0?}; stopped ones missed {}",
            self.deliveries_per_s, self.p50, self.p99, self.latest, self.stopped.missed
        );
    }
}

async fn run(plan: Plan) -> Run {
    let all = (plan.others + plan.stopped).to_string();
    let dir = tempfile::tempdir().expect("a directory");
    let receipts = dir.path().join("receipts");
    let mut hub = Hub::start(&[
        "--fan-out",
        "gossip",
        "--input",
        "json",
        "--exit-on-eof",
        "--drain-timeout",
        "60",
        "--wait-for",
        &all,
        "--receipts",
        receipts.to_str().expect("UTF-8"),
    ])
    .await;
    let victims: Vec<(Program, PathBuf)> = (0..plan.stopped)
        .map(|n| {
            let out = dir.path().join(format!("stopped{n}"));
            let command = spoke_command(program(), &hub.ticket, &[]);
            (spoke_into(command, &out).patient(PATIENCE), out)
        })
        .collect();
    let others = Listeners::of_ticket(&hub.ticket, plan.others).await;

    // The hub reads the first event once all are on the tree.
    let clock = Clock::default();
    let mut stdin = hub.program.stdin.take().expect("piped");
    load::put(&mut stdin, 0).await;
    others.all_have(0).await;

    let load = Load::start(stdin, 1, plan.pace, clock.clone());
    sleep(plan.warm_up).await;
    for (victim, _) in &victims {
        victim.signal(Signal::STOP);
    }
    let fault = Instant::now();
    sleep(plan.stop).await;
    let over = Instant::now();
    for (victim, _) in &victims {
        victim.signal(Signal::CONT);
    }
    sleep(plan.after).await;
    let (mut stdin, last) = load.stop().await;
    load::put(&mut stdin, last).await;
    // Whatever a stopped one was told to have missed, what comes after that it has.
    let goes_on = Instant::now();
    while !victims.iter().all(|(_, out)| has_printed(out, last)) {
        assert!(goes_on.elapsed() < PATIENCE, "a stopped spoke stays behind");
        sleep(Duration::from_millis(50)).await;
    }
    drop(stdin);
    let ended = hub.program.patient(PATIENCE).end().await;
    // A hub that has given up on a spoke says so.
    assert!([0, 7].contains(&ended.code()), "{}", ended.stderr);
    let mut stopped = Vec::new();
    for (n, (victim, out)) in victims.into_iter().enumerate() {
        let victim = victim.end().await;
        // It may learn of the hub's end by its silence alone.
        assert!([0, 5].contains(&victim.code()), "{}", victim.stderr);
        let spoke = Printed::new(format!("stopped {n}"), vec![Life::read(&out, false)]);
        stopped.push(spoke.begins_at(0).has_all());
    }
    let heard = others.end().await;

    let measured = fault + plan.leave_out..over;
    let mut latencies = Latencies::default();
    let mut latest = Duration::ZERO;
    let mut deliveries = 0;
    for spoke in &heard {
        for took in spoke.latencies(&clock, measured.start, measured.end) {
            latencies.add(took);
        }
        let late = spoke.latencies(&clock, fault, over + plan.after).max();
        latest = latest.max(late.unwrap_or_default());
        let within = |at: &Instant| measured.contains(at);
        deliveries += spoke.arrivals.iter().filter(|a| within(&a.at)).count();
    }
    let receipts = [Life::read(&receipts, false)];
    let printed: Vec<_> = heard
        .iter()
        .enumerate()
        .map(|(n, heard)| heard.printed(n).begins_at(0).has_all())
        .collect();
    let seconds = (measured.end - measured.start).as_secs_f64();
    Run {
        deliveries_per_s: deliveries as f64 / seconds,
        p50: latencies.quantile(0.5),
        p99: latencies.quantile(0.99),
        latest,
        others: check(&receipts, &printed),
        stopped: check(&receipts, &stopped),
    }
}

fn assert_contract(run: &Run) {
    run.others.assert_ok();
    run.stopped.assert_ok();
    assert_eq!(
        (run.others.missed, run.others.lagged),
        (0, 0),
        "{}",
        run.others
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_on_the_topic_that_is_stopped_catches_up_and_the_others_have_everything() {
    let run = run(Plan {
        others: 6,
        stopped: 1,
        pace: Pace {
            every: Duration::from_millis(50),
            batch: 10,
            size: 100,
        },
        warm_up: Duration::from_millis(500),
        stop: Duration::from_secs(2),
        leave_out: Duration::ZERO,
        after: Duration::from_millis(500),
    })
    .await;
    assert_contract(&run);
}

/// How many pairs of runs are compared, unless `CHAOS_PAIRS` says otherwise.
const PAIRS: usize = 5;

/// Interleaved with runs of the same load that lack the stopped spokes.
async fn compare(spokes: usize, stopped: usize) {
    let pairs = std::env::var("CHAOS_PAIRS").map_or(PAIRS, |n| n.parse().expect("a number"));
    let plan = Plan {
        others: spokes - stopped,
        stopped,
        pace: Pace {
            every: Duration::from_millis(100),
            batch: 10,
            size: 200,
        },
        warm_up: Duration::from_secs(3),
        stop: Duration::from_secs(10),
        leave_out: Duration::from_secs(1),
        after: Duration::from_secs(3),
    };
    println!(
        "\n{spokes} spokes on gossip, {stopped} stopped for {:?}; {:.0} events/s",
        plan.stop,
        plan.pace.events_per_s()
    );
    let (mut rate, mut p99) = (Ratios::default(), Ratios::default());
    let mut latest = Duration::ZERO;
    for _ in 0..pairs {
        let control = run(Plan { stopped: 0, ..plan }).await;
        control.say("control");
        let fault = run(plan).await;
        fault.say("stopped");
        assert_contract(&control);
        assert_contract(&fault);
        for run in [&control, &fault] {
            let (by_gossip, events) = (run.others.by_gossip, run.others.events);
            assert!(
                by_gossip * 10 >= events * 9,
                "{by_gossip} of {events} came by gossip"
            );
        }
        rate.add(fault.deliveries_per_s, control.deliveries_per_s);
        p99.add(fault.p99.as_secs_f64(), control.p99.as_secs_f64());
        latest = latest.max(fault.latest);
    }
    println!("  deliveries/s of the others: {rate}\n  p99: {p99}\n  latest event: {latest:.0?}");
    assert!((rate.median() - 1.0).abs() <= 0.05, "deliveries/s: {rate}");
    assert!(p99.median() <= 1.5, "p99: {p99}");
    assert!(
        latest <= Duration::from_secs(2),
        "an event came after {latest:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn one_of_a_hundred_spokes_on_gossip_is_stopped_and_the_others_do_not_notice() {
    compare(100, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn ten_of_a_hundred_spokes_on_gossip_are_stopped_and_the_others_do_not_notice() {
    compare(100, 10).await;
}

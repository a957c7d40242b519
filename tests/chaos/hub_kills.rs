//! A hub with its log in a file is killed and started again under load.

use std::time::Duration;

use iroh_hub::{From, Spoke, endpoint};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::sleep;

use crate::{
    checker::check,
    heard::{Listeners, impatient},
    lives::{HubLives, SpokeLives},
    load::{self, Clock, Load, Pace},
};

struct Plan {
    fan_out: &'static str,
    /// Spokes inside of the test, which notice after three seconds that a hub is gone.
    listeners: usize,
    /// Spokes in processes of their own, which take half a minute.
    processes: usize,
    kills: u32,
    /// A life of the hub, in milliseconds.
    life: std::ops::Range<u64>,
    pace: Pace,
}

async fn connect(ticket: String) -> Spoke {
    let builder = endpoint::local(None).transport_config(impatient());
    let endpoint = endpoint::bind_at(builder, ([127, 0, 0, 1], 0).into()).await;
    let builder = Spoke::builder().from(From::Earliest);
    let spoke = builder
        .connect_ticket(endpoint.expect("loopback binds"), &ticket)
        .await;
    spoke.expect("the hub lets us in")
}

async fn run(plan: &Plan) {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log");
    let args = [
        "--log",
        log.to_str().expect("UTF-8"),
        "--fan-out",
        plan.fan_out,
    ];
    let mut hub = HubLives::start(dir.path(), &args).await;
    let listeners = Listeners::connect(plan.listeners, || connect(hub.ticket.clone())).await;
    let processes: Vec<_> = (0..plan.processes)
        .map(|n| {
            let name = format!("process{n}");
            let mut spoke = SpokeLives::new(name, dir.path(), &["--from", "earliest"]);
            spoke.start(&hub.ticket);
            spoke
        })
        .collect();
    let mut rng = StdRng::seed_from_u64(7);
    let mut next = 0;
    for _ in 0..plan.kills {
        let load = Load::start(hub.stdin(), next, plan.pace, Clock::default());
        // A life counts from when half of the spokes are back and have something of it.
        listeners.half_have(next).await;
        sleep(Duration::from_millis(rng.random_range(plan.life.clone()))).await;
        // In the middle of it.
        hub.kill().await;
        (_, next) = load.stop().await;
        sleep(Duration::from_millis(rng.random_range(0..300))).await;
        hub.again().await;
    }
    let mut stdin = hub.stdin();
    load::put(&mut stdin, next).await;
    listeners.all_have(next).await;
    for spoke in &processes {
        spoke.until_it_has(next).await;
    }
    drop(stdin);
    let receipts = hub.end().await;
    assert!(receipts.iter().all(|life| !life.is_empty()));
    let heard = listeners.end().await;
    let mut printed: Vec<_> = heard
        .iter()
        .enumerate()
        .map(|(n, h)| h.printed(n))
        .collect();
    for spoke in processes {
        printed.push(spoke.end().await);
    }
    let printed: Vec<_> = printed
        .into_iter()
        .map(|spoke| spoke.begins_at(0).has_all())
        .collect();
    let report = check(&receipts, &printed);
    println!(
        "{}: {} kills of the hub, {next} events written; {report}",
        plan.fan_out, plan.kills
    );
    report.assert_ok();
    assert_eq!((report.missed, report.lagged), (0, 0), "{report}");
    assert_eq!(report.epochs, 1, "the log goes on");
    // Half of the listeners at least had come back to each life.
    let came_back = plan.listeners as u64 * u64::from(plan.kills) / 2;
    assert!(report.recovered_wholly >= came_back, "{report}");
    if plan.fan_out == "gossip" {
        assert!(report.by_gossip > 0, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_is_killed_goes_on_with_its_log() {
    run(&Plan {
        fan_out: "auto",
        listeners: 3,
        processes: 0,
        kills: 2,
        life: 500..1500,
        pace: Pace {
            every: Duration::from_millis(20),
            batch: 5,
            size: 50,
        },
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn a_hub_that_is_killed_twenty_times_under_load_loses_nothing_that_it_gave_a_receipt_for() {
    for fan_out in ["direct", "gossip"] {
        run(&Plan {
            fan_out,
            listeners: 40,
            processes: 10,
            kills: 20,
            life: 500..5000,
            pace: Pace {
                every: Duration::from_millis(20),
                batch: 5,
                size: 100,
            },
        })
        .await;
    }
}

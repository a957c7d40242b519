//! Spokes are killed and started again at random, each with a file in which it keeps its position.

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::sleep;

use crate::{
    checker::check,
    lives::{HubLives, SpokeLives},
    load::{Clock, Load, Pace},
};

/// A run of so long has some events by gossip, if that is how the hub fans out.
const LONG: Duration = Duration::from_secs(30);

struct Plan {
    fan_out: &'static str,
    spokes: usize,
    pace: Pace,
    lasts: Duration,
    /// Between two kills, at most.
    between: Duration,
    /// So many at least.
    kills: u32,
    /// So many are away at a time.
    at_once: usize,
    /// For so long a killed one stays away, at most.
    away: Duration,
}

async fn run(plan: &Plan) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: String| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let mut hub = HubLives::start(dir.path(), &["--fan-out", plan.fan_out]).await;
    let mut spokes: Vec<_> = (0..plan.spokes)
        .map(|n| {
            let (position, key) = (path(format!("position{n}")), path(format!("key{n}")));
            let mut args = vec!["--position", &position, "--from", "earliest"];
            // Some come back under the name that the hub still has a dead link of.
            if n % 2 == 0 {
                args.extend(["--key", &key]);
            }
            let mut spoke = SpokeLives::new(format!("spoke{n}"), dir.path(), &args);
            spoke.start(&hub.ticket);
            spoke
        })
        .collect();
    let load = Load::start(hub.stdin(), 0, plan.pace, Clock::default());
    let mut rng = StdRng::seed_from_u64(7);
    let begin = Instant::now();
    while begin.elapsed() < plan.lasts {
        sleep(rng.random_range(Duration::ZERO..plan.between)).await;
        let victims = rand::seq::index::sample(&mut rng, plan.spokes, plan.at_once).into_vec();
        for n in &victims {
            spokes[*n].kill().await;
        }
        for n in victims {
            sleep(rng.random_range(Duration::ZERO..plan.away)).await;
            spokes[n].start(&hub.ticket);
        }
    }
    let (mut stdin, next) = load.stop().await;
    // One more, so that the last line of all is known.
    crate::load::put(&mut stdin, next).await;
    for spoke in &spokes {
        spoke.until_it_has(next).await;
    }
    drop(stdin);
    // The hub may still have links of killed spokes when it ends, and says then that those were behind.
    let receipts = hub.end_with(&[0, 7]).await;
    let kills: u32 = spokes.iter().map(SpokeLives::kills).sum();
    let mut printed = Vec::new();
    for spoke in spokes {
        printed.push(spoke.end().await.begins_at(0).has_all());
    }
    let report = check(&receipts, &printed);
    println!("{}: {kills} kills; {report}", plan.fan_out);
    report.assert_ok();
    assert_eq!((report.missed, report.lagged), (0, 0), "{report}");
    assert!(kills >= plan.kills && report.written_again <= u64::from(kills));
    // Spokes that are killed all the time need not get onto the tree in a short run.
    let by_gossip = plan.fan_out == "gossip" && (plan.lasts >= LONG || report.by_gossip > 0);
    assert_eq!(by_gossip, report.by_gossip > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_spoke_goes_on_at_its_saved_position() {
    for fan_out in ["direct", "gossip"] {
        run(&Plan {
            fan_out,
            spokes: 3,
            pace: Pace {
                every: Duration::from_millis(10),
                batch: 2,
                size: 20,
            },
            lasts: Duration::from_secs(2),
            between: Duration::from_millis(300),
            kills: 3,
            at_once: 1,
            away: Duration::from_millis(100),
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn spokes_that_are_killed_at_random_for_a_minute_lose_no_line() {
    for fan_out in ["direct", "gossip"] {
        run(&Plan {
            fan_out,
            spokes: 20,
            pace: Pace {
                every: Duration::from_millis(10),
                batch: 2,
                size: 100,
            },
            lasts: Duration::from_secs(60),
            between: Duration::from_millis(300),
            kills: 100,
            at_once: 3,
            away: Duration::from_millis(300),
        })
        .await;
    }
}

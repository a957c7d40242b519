//! The whole mesh is cut from the hub for a while, and joined again.

use std::time::{Duration, Instant};

use iroh_hub::{FanOut, Hub, Spoke, SpokeLimits, SpokeStatus, StatusWatch};
use tokio::time::sleep;

use crate::{
    heard::{Listeners, Receipts, impatient},
    wire::{Attempt, Wire},
};

struct Plan {
    fan_out: FanOut,
    spokes: usize,
    cut: Duration,
}

/// What happened after the cut.
struct Back {
    /// How many connections between the hub and spokes were tried: those for the topic too.
    tried: usize,
    /// The attempts that spokes made to come back.
    attempts: Vec<Try>,
}

/// An attempt to come back, as a spoke says.
struct Try {
    /// Counts from 1.
    n: u32,
    /// How long it waited.
    after: Duration,
    /// How long after the cut it was made.
    at: Duration,
}

async fn run(plan: Plan) -> Back {
    let what = format!(
        "{:?}, {} spokes, cut for {:?}",
        plan.fan_out, plan.spokes, plan.cut
    );
    let wire = Wire::new(7);
    let endpoint = wire.endpoint_with(impatient()).await;
    let hub = Hub::builder().fan_out(plan.fan_out.clone()).spawn(endpoint);
    let hub = hub.expect("a fresh endpoint");
    let mut limits = SpokeLimits::default();
    limits.connect_timeout = Duration::from_secs(2);
    let listeners = Listeners::connect(plan.spokes, || {
        let (wire, addr) = (wire.clone(), Wire::addr_of(hub.id()));
        let builder = Spoke::builder().limits(limits.clone());
        async move {
            let endpoint = wire.endpoint_with(impatient()).await;
            let spoke = builder.connect(endpoint, addr).await;
            spoke.expect("the hub lets us in")
        }
    })
    .await;
    if matches!(plan.fan_out, FanOut::Gossip) {
        listeners.all_on_topic().await;
    }
    let watches: Vec<_> = listeners
        .spokes
        .iter()
        .map(|one| tokio::spawn(attempts(one.spoke.watch())))
        .collect();
    let mut receipts = Receipts::default();
    let pause = Duration::from_millis(100);
    receipts.broadcast(&hub, 0..100, pause).await;
    listeners.all_have(99).await;
    wire.cut(hub.id());
    let begin = Instant::now();
    let mut next = 100;
    while begin.elapsed() < plan.cut {
        receipts.broadcast(&hub, next..next + 10, pause).await;
        next += 10;
    }
    wire.join(hub.id());
    let joined = Instant::now();
    receipts.broadcast(&hub, next..next + 100, pause).await;
    listeners.all_have(next + 99).await;
    let took = joined.elapsed();
    // Who is served around the topic by then is there too.
    sleep(Duration::from_millis(100)).await;
    assert!(hub.shutdown().await.behind.is_empty());
    let report = receipts.check(&listeners.end().await);
    println!("\n{what}: all have everything {took:.1?} after; {report}");
    let (topic, gossip) = (&hub.metrics().topic, &hub.metrics().gossip);
    println!(
        "  topics {}, failed {}; the hub dialled {} neighbours, {} in vain, and had {}",
        topic.started.get(),
        topic.failed.get(),
        gossip.dials.get(),
        gossip.dial_failures.get(),
        gossip.neighbors_up.get(),
    );
    report.assert_ok();
    assert_eq!((report.missed, report.lagged), (0, 0), "{report}");
    assert!(report.recovered_wholly >= plan.spokes as u64, "{report}");
    let mut said = Vec::new();
    for watch in watches {
        let tries = watch.await.expect("no panic");
        said.extend(tries.into_iter().map(|(n, after, at)| Try {
            n,
            after,
            at: at.saturating_duration_since(begin),
        }));
    }
    let to_hub = |attempt: &Attempt| attempt.to == hub.id() && attempt.at > begin;
    Back {
        tried: wire.attempts().into_iter().filter(to_hub).count(),
        attempts: said,
    }
}

async fn attempts(mut watch: StatusWatch) -> Vec<(u32, Duration, Instant)> {
    let mut attempts = Vec::new();
    while let Some(Ok(status)) = watch.next().await {
        if let SpokeStatus::Reconnecting { attempt, after, .. } = status {
            attempts.push((attempt, after, Instant::now() + after));
        }
    }
    attempts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_that_was_cut_from_its_hub_has_everything_afterwards() {
    for fan_out in [FanOut::Direct, FanOut::Gossip] {
        let back = run(Plan {
            fan_out,
            spokes: 4,
            cut: Duration::from_secs(5),
        })
        .await;
        assert!(back.attempts.len() >= 4 && back.tried >= 4, "all come back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn sixty_spokes_cut_from_their_hub_for_ten_seconds_come_back_one_by_one() {
    for fan_out in [FanOut::Direct, FanOut::Gossip] {
        let back = run(Plan {
            fan_out,
            spokes: 60,
            cut: Duration::from_secs(10),
        })
        .await;
        let mut buckets = [0; 160];
        for attempt in &back.attempts {
            let bucket = attempt.at.as_millis() / 100;
            if let Some(bucket) = buckets.get_mut(bucket as usize) {
                *bucket += 1;
            }
        }
        println!(
            "  attempts to come back in each tenth of a second after the cut: {buckets:?}; {} connections with the hub in all",
            back.tried
        );
        // Of the first window, of half a second, and those after it: no tenth of a second has them all.
        let most = buckets.iter().max().copied().unwrap_or_default();
        assert!(back.attempts.len() >= 60, "all come back");
        assert!(most <= 30, "{most} of 60 at once");
        // Each window is filled by what is drawn from it: 500 ms, and twice that for every attempt after.
        for n in 1..=3 {
            let window = Duration::from_millis(500 << (n - 1));
            let of = back.attempts.iter().filter(|attempt| attempt.n == n);
            let mut waits: Vec<f64> = of
                .map(|attempt| attempt.after.as_secs_f64() / window.as_secs_f64())
                .collect();
            waits.sort_by(f64::total_cmp);
            let at = |share: f64| waits[(share * (waits.len() - 1) as f64) as usize];
            println!(
                "  attempt {n}: {} spokes, waits at {:.2}, {:.2} and {:.2} of {window:?}",
                waits.len(),
                at(0.1),
                at(0.5),
                at(0.9)
            );
            assert!(waits.len() >= 30, "{} attempts", waits.len());
            assert!(
                at(0.1) < 0.3 && at(0.9) > 0.7 && at(1.0) <= 1.0,
                "{waits:?}"
            );
        }
    }
}

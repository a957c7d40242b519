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
    /// The connections to the hub that were tried, by how long after the cut: those for the topic too.
    tried: Vec<Duration>,
    /// What spokes said of their attempts: which one, and how long until then.
    attempts: Vec<(u32, Duration)>,
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
    report.assert_ok();
    assert_eq!((report.missed, report.lagged), (0, 0), "{report}");
    assert!(report.recovered_wholly >= plan.spokes as u64, "{report}");
    let mut said = Vec::new();
    for watch in watches {
        said.extend(watch.await.expect("no panic"));
    }
    let to_hub = |attempt: &Attempt| attempt.to == hub.id() && attempt.at > begin;
    let tried = wire.attempts().into_iter().filter(to_hub);
    Back {
        tried: tried
            .map(|attempt| attempt.at.duration_since(begin))
            .collect(),
        attempts: said,
    }
}

async fn attempts(mut watch: StatusWatch) -> Vec<(u32, Duration)> {
    let mut attempts = Vec::new();
    while let Some(Ok(status)) = watch.next().await {
        if let SpokeStatus::Reconnecting { attempt, after, .. } = status {
            attempts.push((attempt, after));
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
        assert!(back.tried.len() >= 4, "all come back: {:?}", back.tried);
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
        for attempt in &back.tried {
            let bucket = attempt.as_millis() / 100;
            if let Some(bucket) = buckets.get_mut(bucket as usize) {
                *bucket += 1;
            }
        }
        println!("  attempts to connect in each tenth of a second after the cut: {buckets:?}");
        // Of the first window, of half a second, and those after it: no tenth of a second has them all.
        let most = buckets.iter().max().copied().unwrap_or_default();
        assert!(back.tried.len() >= 60, "all come back");
        assert!(most <= 30, "{most} of 60 at once");
        // Each window is filled by what is drawn from it: 500 ms, and twice that for every attempt after.
        for n in 1..=3 {
            let window = Duration::from_millis(500 << (n - 1));
            let of = back.attempts.iter().filter(|(attempt, _)| *attempt == n);
            let mut waits: Vec<f64> = of
                .map(|(_, after)| after.as_secs_f64() / window.as_secs_f64())
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

//! The whole mesh is cut from the hub for a while, and joined again.

use std::time::{Duration, Instant};

use iroh_hub::{FanOut, Hub, Spoke, SpokeLimits};
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

/// Gives back the connections to the hub that were tried since the cut, by how long after it.
async fn run(plan: Plan) -> Vec<Duration> {
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
    let to_hub = |attempt: &Attempt| attempt.to == hub.id() && attempt.at > begin;
    let attempts = wire.attempts().into_iter().filter(to_hub);
    attempts
        .map(|attempt| attempt.at.duration_since(begin))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_that_was_cut_from_its_hub_has_everything_afterwards() {
    for fan_out in [FanOut::Direct, FanOut::Gossip] {
        let attempts = run(Plan {
            fan_out,
            spokes: 4,
            cut: Duration::from_secs(5),
        })
        .await;
        assert!(attempts.len() >= 4, "all come back: {attempts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn sixty_spokes_cut_from_their_hub_for_ten_seconds_come_back_one_by_one() {
    for fan_out in [FanOut::Direct, FanOut::Gossip] {
        let attempts = run(Plan {
            fan_out,
            spokes: 60,
            cut: Duration::from_secs(10),
        })
        .await;
        let mut buckets = [0; 160];
        for attempt in &attempts {
            let bucket = attempt.as_millis() / 100;
            if let Some(bucket) = buckets.get_mut(bucket as usize) {
                *bucket += 1;
            }
        }
        println!("  attempts to connect in each tenth of a second after the cut: {buckets:?}");
        // Of the first window, of half a second, and those after it: no tenth of a second has them all.
        let most = buckets.iter().max().copied().unwrap_or_default();
        assert!(attempts.len() >= 60, "all come back");
        assert!(most <= 30, "{most} of 60 at once");
    }
}

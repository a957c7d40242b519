//! Auto moves between the paths as spokes come and go, and no event is lost, doubled or reordered.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use common::*;
use iroh_hub::{AutoFanOut, FanOut, Gossip, Hub, Incoming, Listener, Path, Spoke, SpokeInfo, Via};
use tokio::{task::JoinHandle, time::timeout};

/// Broadcasts numbers, one after the other, until told to stop; returns how many.
fn publish(hub: &Hub, stop: &Arc<AtomicBool>, sent: &Arc<AtomicU64>) -> JoinHandle<u64> {
    let (hub, stop, sent) = (hub.clone(), stop.clone(), sent.clone());
    tokio::spawn(async move {
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) {
            hub.broadcast(numbered(n)).await.expect("the hub is open");
            n += 1;
            sent.store(n, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        n
    })
}

/// Takes numbers in order until `end` is known and reached; returns how many came by each path.
fn collect(
    mut listener: Listener,
    end: tokio::sync::watch::Receiver<Option<u64>>,
) -> JoinHandle<(u64, u64)> {
    tokio::spawn(async move {
        let mut end = end;
        let mut next = None;
        let (mut direct, mut gossip) = (0, 0);
        loop {
            let known = *end.borrow();
            if known.is_some() && next == known {
                return (direct, gossip);
            }
            let incoming = tokio::select! {
                incoming = timeout(LIMIT, listener.recv()) => incoming.expect("an event"),
                _ = end.changed() => continue,
            };
            let Some(Incoming::Event(event)) = incoming else {
                panic!("not an event: {incoming:?}")
            };
            let n = number(&event);
            assert_eq!(n, next.unwrap_or(n), "in order, once each");
            next = Some(n + 1);
            match event.via {
                Some(Via::Gossip) => gossip += 1,
                _ => direct += 1,
            }
        }
    })
}

fn on_path(hub: &Hub, path: Path) -> usize {
    let on_path = |info: &&SpokeInfo| info.path == path;
    hub.spokes().iter().filter(on_path).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auto_crosses_its_threshold_both_ways_under_load_and_nothing_is_lost() {
    let auto = AutoFanOut::default()
        .with_gossip_from(6)
        .with_direct_below(4)
        .with_settle(Duration::from_millis(100));
    let hub = hub_with(FanOut::Auto(auto)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    let (end_tx, end) = tokio::sync::watch::channel(None);

    // Three stay, and one of them never gossips.
    let mut staying = Vec::new();
    for n in 0..3 {
        let gossip = if n == 0 { Gossip::Off } else { Gossip::Full };
        let spoke = spoke(&hub, Spoke::builder().gossip(gossip)).await;
        staying.push((collect(spoke.listen("n"), end.clone()), spoke));
    }
    let publishing = publish(&hub, &stop, &sent);

    for _ in 0..2 {
        let mut guests = Vec::new();
        for _ in 0..6 {
            let spoke = spoke(&hub, Spoke::builder()).await;
            // They leave in the middle: what they got until then must be in order.
            guests.push((collect(spoke.listen("n"), end.clone()), spoke));
        }
        until("all that can are on the tree", || {
            on_path(&hub, Path::Gossip) == 8
        })
        .await;
        let reached = sent.load(Ordering::Relaxed) + 200;
        until("some events have gone by gossip", || {
            sent.load(Ordering::Relaxed) > reached
        })
        .await;
        for (collecting, spoke) in guests {
            collecting.abort();
            if let Err(error) = collecting.await {
                assert!(error.is_cancelled(), "{error}");
            }
            spoke.shutdown().await;
        }
        until("the rest is served directly", || {
            on_path(&hub, Path::Direct) == 3
        })
        .await;
    }

    stop.store(true, Ordering::Relaxed);
    let count = publishing.await.expect("the publisher does not fail");
    end_tx.send_replace(Some(count));
    let mut spokes = Vec::new();
    for (n, (collecting, spoke)) in staying.into_iter().enumerate() {
        spokes.push(spoke);
        let (direct, gossip) = timeout(LIMIT, collecting)
            .await
            .expect("everything arrives")
            .expect("in order");
        assert_eq!(direct + gossip, count, "spoke {n}");
        assert!(direct > 0);
        assert_eq!(gossip > 0, n > 0, "spoke {n}: {gossip} by gossip");
    }
    assert_eq!(hub.metrics().topic.started.get(), 2);
    let drained = hub.shutdown().await;
    assert!(drained.behind.is_empty(), "{drained:?}");
}

//! Broadcasts reach every spoke, in order, once each, whichever path they take.

mod common;

use common::*;
use iroh_hub::{FanOut, Gossip, Hub, Path, Protocol, Spoke, Via};

async fn broadcast_numbers(hub: &Hub, count: u64) {
    for n in 0..count {
        hub.broadcast(numbered(n)).await.expect("the hub is open");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn direct_spokes_of_both_protocols_get_every_event_in_order() {
    let hub = hub_with(FanOut::Direct).await;
    let mut listeners = Vec::new();
    let mut spokes = Vec::new();
    for n in 0..6 {
        let protocol = if n % 2 == 0 {
            Protocol::Native
        } else {
            Protocol::Compat
        };
        let spoke = spoke(&hub, Spoke::builder().protocol(protocol)).await;
        listeners.push(spoke.listen("n"));
        spokes.push(spoke);
    }
    until("all are there", || hub.spoke_count() == 6).await;
    broadcast_numbers(&hub, 2000).await;
    for listener in &mut listeners {
        let events = expect_numbers(listener, 0, 2000).await;
        assert!(events.iter().all(|event| event.via == Some(Via::Direct)));
    }
    let drained = hub.shutdown().await;
    assert!(drained.behind.is_empty(), "{drained:?}");
    for spoke in &spokes {
        assert!(spoke.closed().await.is_goodbye());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossiping_spokes_get_every_event_in_order_beside_one_that_does_not_gossip() {
    let hub = hub_with(FanOut::Gossip).await;
    let mut spokes = Vec::new();
    for n in 0..8 {
        let gossip = if n == 0 { Gossip::Off } else { Gossip::Full };
        spokes.push(spoke(&hub, Spoke::builder().gossip(gossip)).await);
    }
    let mut listeners: Vec<_> = spokes.iter().map(|spoke| spoke.listen("n")).collect();
    until("seven are on the tree", || {
        let on_tree = |info: &&iroh_hub::SpokeInfo| info.path == Path::Gossip;
        hub.spokes().iter().filter(on_tree).count() == 7
    })
    .await;
    broadcast_numbers(&hub, 3000).await;
    for (n, listener) in listeners.iter_mut().enumerate() {
        let events = expect_numbers(listener, 0, 3000).await;
        let by_gossip = events.iter().filter(|e| e.via == Some(Via::Gossip)).count();
        assert!(
            if n == 0 {
                by_gossip == 0
            } else {
                by_gossip > 0
            },
            "{n}: {by_gossip}"
        );
    }
    let drained = hub.shutdown().await;
    assert!(drained.behind.is_empty(), "{drained:?}");
}

//! A hub with nothing to do looks around once a second only, and of more than twenty spokes most acknowledge no more often. What
//! time brings, or a decision, takes effect all the same, without an event.

mod common;

use std::time::Duration;

use common::{
    mesh::Mesh,
    raw::{NATIVE, RawPeer},
    *,
};
use iroh_hub::{CloseCode, Closed, FanOut, GossipConfig, Hub, HubBuilder, Path};

/// More than may all acknowledge fast.
const SPOKES: usize = 24;

/// Waits until the hub rests: all have said that they have everything, which takes them some seconds, and nothing has been on the
/// topic but beacons, which become rarer once nobody is on the way to it. By the third, more than a second and a half has passed.
async fn until_it_rests(hub: &Hub) {
    let frames = &hub.metrics().topic.frames_sent;
    until("all have said that they have everything", || {
        let tip = hub.tip().offset;
        hub.spokes().iter().all(|spoke| spoke.acked >= tip)
    })
    .await;
    let before = frames.get();
    until("there have been beacons", || frames.get() >= before + 3).await;
}

fn on_topic(hub: &Hub) -> usize {
    let spokes = hub.spokes();
    let served = spokes.iter().filter(|spoke| spoke.path == Path::Gossip);
    served.count()
}

fn rekeyed(hub: &Hub) -> u64 {
    hub.metrics().topic.rekeyed.get()
}

/// A mesh in which everyone has had some events.
async fn mesh(builder: HubBuilder, config: GossipConfig) -> Mesh {
    let builder = builder.fan_out(FanOut::Gossip).gossip(config.clone());
    let mut mesh = Mesh::around(hub(builder).await, SPOKES, config).await;
    mesh.publish(20).await;
    mesh.all_hear().await;
    mesh
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_revoked_is_cut_off_and_the_topic_gets_another_key() {
    let mut mesh = mesh(Hub::builder(), GossipConfig::default()).await;
    until_it_rests(&mesh.hub).await;
    let (gone, mut heard) = mesh.spokes.pop().expect("there are some");
    let before = rekeyed(&mesh.hub);
    mesh.hub.admission().revoke(gone.endpoint().id());
    assert_eq!(mesh.hub.spoke_count(), SPOKES - 1);
    let closed = soon("its end", gone.closed()).await;
    assert!(
        matches!(
            closed,
            Closed::ByPeer {
                code: CloseCode::Refused,
                ..
            }
        ),
        "{closed:?}"
    );
    // With the next beacon: nothing else is said.
    until("something is sealed under another key", || {
        rekeyed(&mesh.hub) > before
    })
    .await;
    assert_eq!(rekeyed(&mesh.hub), before + 1);
    until("the topic serves the others", || {
        on_topic(&mesh.hub) == SPOKES - 1
    })
    .await;
    mesh.publish(50).await;
    mesh.all_hear().await;
    // It has had what came before, and nothing after that.
    assert_eq!(soon("its end", heard.recv()).await, None);
    assert_eq!(mesh.hub.metrics().topic.started.get(), 1);
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_old_is_changed_again_and_again_and_the_topic_serves_all() {
    let mut config = GossipConfig::default();
    // Longer than it takes until all have the new one, so that the hub rests between.
    config.key_lifetime = Duration::from_secs(2);
    let mut mesh = mesh(Hub::builder(), config).await;
    until_it_rests(&mesh.hub).await;
    let before = rekeyed(&mesh.hub);
    until("it has been changed", || rekeyed(&mesh.hub) >= before + 2).await;
    until("the topic serves all", || on_topic(&mesh.hub) == SPOKES).await;
    mesh.publish(50).await;
    mesh.all_hear().await;
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stays_away_for_longer_than_a_session_lives_is_gone() {
    let limits = hub_limits(|limits| limits.session_lifetime = Duration::from_millis(500));
    let mesh = mesh(Hub::builder().limits(limits), GossipConfig::default()).await;
    let peer = RawPeer::connect(&mesh.hub, NATIVE).await;
    let _stream = peer.spoke(NATIVE).await;
    assert_eq!(mesh.hub.spokes().len(), SPOKES + 1);
    until_it_rests(&mesh.hub).await;
    // Without a goodbye, so that it might come back.
    peer.connection.close(0u32.into(), b"");
    until("it is gone", || mesh.hub.spokes().len() == SPOKES).await;
    assert_eq!(mesh.hub.metrics().spokes.expired.get(), 1);
    mesh.end().await;
}

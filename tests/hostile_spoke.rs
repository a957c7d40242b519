//! A spoke that lies about the topic, or wants what it has over and over, along its link to the hub: the others notice nothing.
//! What breaks the rules of the link outright is in `bad_input`, and what touches sessions in `sessions`.

mod common;

use common::{
    mesh::Mesh,
    raw::{self, Heard, NATIVE, RawPeer, RawStream, Reading, Welcomed},
    raw_member::RawMember,
    *,
};
use iroh_hub::Path;

/// A spoke that speaks by hand, and may be one that can gossip.
async fn join(mesh: &Mesh, can_gossip: bool) -> (RawPeer, RawStream, Welcomed) {
    let peer = RawPeer::connect(&mesh.hub, NATIVE).await;
    let mut stream = peer.open().await;
    let hello = raw::native(0, &[1, can_gossip.into(), 0, 0, 0], b"");
    let welcome = stream.greet_with(hello).await;
    (peer, stream, welcome)
}

/// Takes broadcasts up to `end`; all must be there, once each and in order.
async fn hears(stream: &mut RawStream, first: u64, end: u64) {
    let mut next = first;
    while next < end {
        if let Heard::Event(offset, _) = stream.heard().await {
            assert_eq!(offset, next);
            next += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_gossip_is_served_directly_whatever_it_says() {
    let mut mesh = Mesh::new(4).await;
    let member = RawMember::admitted(&mesh.hub).await;
    let (peer, mut liar, welcome) = join(&mesh, false).await;
    // The topic's own name, which it has from somebody else.
    let topic = member.secrets().topic;
    for _ in 0..20 {
        liar.write(raw::served_by(topic, welcome.tip)).await;
        mesh.publish(5).await;
        mesh.all_hear().await;
    }
    hears(&mut liar, welcome.start, mesh.sent).await;
    let spokes = mesh.hub.spokes();
    let info = spokes
        .iter()
        .find(|info| info.id.endpoint == peer.endpoint.id());
    assert_eq!(info.expect("it is there").path, Path::Direct);
    peer.leave().await;
    member.leave().await;
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_that_the_topic_serves_it_and_is_not_on_it_costs_the_others_nothing() {
    let mut mesh = Mesh::new(4).await;
    let (peer, mut liar, welcome) = join(&mesh, true).await;
    let topic = loop {
        let frame = liar.frame().await.expect("a frame");
        let mut reading = Reading(&frame);
        if reading.byte() == 4 {
            break reading.bytes();
        }
    };
    liar.write(raw::served_by(topic, welcome.tip)).await;
    until("it is taken at its word", || {
        let spokes = mesh.hub.spokes();
        let info = spokes
            .iter()
            .find(|info| info.id.endpoint == peer.endpoint.id());
        info.is_some_and(|info| info.path == Path::Gossip)
    })
    .await;
    // It acknowledges nothing, so the hub sees in the end that the topic does not reach it, and serves it.
    let served = tokio::spawn(async move {
        hears(&mut liar, welcome.start, welcome.start + 1).await;
        liar
    });
    while !served.is_finished() {
        mesh.publish(5).await;
        mesh.all_hear().await;
    }
    served.await.expect("it is served");
    peer.leave().await;
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_everything_again_and_again_costs_the_others_nothing() {
    let mut mesh = Mesh::new(4).await;
    mesh.publish(200).await;
    mesh.all_hear().await;
    let peer = RawPeer::connect(&mesh.hub, NATIVE).await;
    let mut greedy = peer.open().await;
    let welcome = greedy.greet_with(raw::hello_from_earliest()).await;
    assert_eq!((welcome.start, welcome.tip), (0, 200));
    let repair = |mesh: &Mesh| mesh.hub.metrics().repair.wants_dropped.get();
    let mut rounds = 0;
    while repair(&mesh) < 1000 {
        rounds += 1;
        assert!(rounds < 1000, "nobody minds");
        let wants: Vec<u8> = (0..200)
            .flat_map(|n| match n % 4 {
                0 => raw::want(n, Some(200)),
                1 => raw::want(0, Some(1)),
                2 => raw::want(0, Some(200)),
                _ => raw::want(n, None),
            })
            .collect();
        greedy.write(wants).await;
        mesh.publish(5).await;
        mesh.all_hear().await;
    }
    // It is what it says that is held against it, not what it is: it may go on.
    assert_eq!(mesh.hub.metrics().direct.links_failed.get(), 0);
    peer.leave().await;
    mesh.end().await;
}

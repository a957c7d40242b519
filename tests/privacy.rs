//! What spokes learn of each other: a spoke that gossips by relays only is found out by nobody.

mod common;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use common::*;
use iroh::{
    Endpoint, EndpointId, RelayMode, RelayUrl, TransportAddr,
    endpoint::{Builder, presets},
};
use iroh_hub::{FanOut, Gossip, GossipConfig, Hub, Spoke, Via, endpoint};
use iroh_relay::server::{RelayConfig, Server, ServerConfig};

async fn relay() -> (Server, RelayUrl) {
    let mut config = ServerConfig::default();
    config.relay = Some(RelayConfig::new((Ipv4Addr::LOCALHOST, 0)));
    let server = Server::spawn(config).await.expect("loopback binds");
    let addr = server.http_addr().expect("it serves HTTP");
    let url = format!("http://{addr}").parse().expect("a URL");
    (server, url)
}

fn on_relay(url: &RelayUrl) -> Builder {
    Endpoint::builder(presets::Minimal)
        .transport_config(endpoint::transport_config())
        .relay_mode(RelayMode::custom([url.clone()]))
}

/// An endpoint on the relay, with an address of its own as well.
async fn open(url: &RelayUrl) -> Endpoint {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let endpoint = endpoint::bind_at(on_relay(url), addr).await;
    let endpoint = endpoint.expect("loopback binds");
    soon("the relay", endpoint.online()).await;
    endpoint
}

/// An endpoint on the relay, and nowhere else.
async fn hidden(url: &RelayUrl) -> Endpoint {
    let endpoint = on_relay(url).clear_ip_transports().bind().await;
    let endpoint = endpoint.expect("no socket is needed");
    soon("the relay", endpoint.online()).await;
    endpoint
}

/// The addresses under which one endpoint knows another, if it does.
async fn known(by: &Endpoint, of: EndpointId) -> Option<BTreeSet<TransportAddr>> {
    let info = by.remote_info(of).await?;
    Some(info.addrs().map(|info| info.addr().clone()).collect())
}

/// Waits until one endpoint knows another by an address of this kind.
async fn knows(what: &str, by: &Endpoint, of: EndpointId, kind: fn(&TransportAddr) -> bool) {
    let waiting = async {
        while !known(by, of)
            .await
            .is_some_and(|known| known.iter().any(kind))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(what, waiting).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_gossips_by_relays_only_is_on_the_topic_and_nobody_learns_its_ip_address() {
    let (server, url) = relay().await;
    // Members tell each other of others by this.
    let mut config = GossipConfig::default();
    config.shuffle_interval = Duration::from_secs(1);
    let hub = Hub::builder()
        .fan_out(FanOut::Gossip)
        .gossip(config.clone())
        .spawn(open(&url).await);
    let hub = hub.expect("a fresh endpoint");
    let mut spokes = Vec::new();
    for (endpoint, gossip) in [
        (open(&url).await, Gossip::Full),
        (open(&url).await, Gossip::Full),
        (hidden(&url).await, Gossip::RelayOnly),
        (hidden(&url).await, Gossip::RelayOnly),
    ] {
        let spoke = Spoke::builder()
            .gossip(gossip)
            .gossip_config(config.clone())
            .connect(endpoint, hub.addr());
        spokes.push(spoke.await.expect("the hub lets us in"));
    }
    let mut heard: Vec<_> = spokes.iter().map(|spoke| spoke.listen("n")).collect();
    let mut ways = vec![false; spokes.len()];
    until("all are on the topic", || {
        spokes.iter().all(Spoke::is_on_topic)
    })
    .await;
    for n in 0.. {
        assert!(n < 1000, "never by the topic: {ways:?}");
        hub.broadcast(numbered(n)).await.expect("the hub is open");
        for (heard, by_topic) in heard.iter_mut().zip(&mut ways) {
            let event = next_event(heard).await;
            assert_eq!(number(&event), n);
            *by_topic |= event.via == Some(Via::Gossip);
        }
        if ways.iter().all(|by_topic| *by_topic) {
            break;
        }
    }

    // Each has met each: the topic is small. Those that are open are known by their addresses.
    let all: Vec<&Endpoint> = spokes.iter().map(Spoke::endpoint).collect();
    knows(
        "an open spoke to be found",
        all[0],
        all[1].id(),
        TransportAddr::is_ip,
    )
    .await;
    for (by, of) in [(0, 2), (1, 2), (0, 3), (2, 3), (2, 0), (3, 1)] {
        let what = format!("spoke {by} to meet spoke {of}");
        knows(&what, all[by], all[of].id(), TransportAddr::is_relay).await;
    }
    // Whatever iroh tells its peers over a connection is told by the time that it has found a better way for others.
    knows(
        "the hub to find a way",
        hub.endpoint(),
        all[0].id(),
        TransportAddr::is_ip,
    )
    .await;
    for hidden in [2, 3] {
        let id = all[hidden].id();
        for by in all.iter().copied().chain([hub.endpoint()]) {
            let relay = TransportAddr::Relay(url.clone());
            if let Some(known) = known(by, id).await {
                assert_eq!(known, BTreeSet::from([relay]), "of spoke {hidden}");
            }
        }
        assert_eq!(all[hidden].bound_sockets(), []);
    }
    for spoke in &spokes {
        spoke.shutdown().await;
    }
    hub.shutdown().await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_relays_only_on_an_endpoint_with_an_address_is_not_at_all() {
    let hub = hub_with(FanOut::Gossip).await;
    let open = spoke(&hub, Spoke::builder()).await;
    let shy = spoke(&hub, Spoke::builder().gossip(Gossip::RelayOnly)).await;
    until("the other is on the topic", || open.is_on_topic()).await;
    let mut heard = shy.listen("n");
    for n in 0..100 {
        hub.broadcast(numbered(n)).await.expect("the hub is open");
        let event = next_event(&mut heard).await;
        assert_eq!((number(&event), event.via), (n, Some(Via::Direct)));
    }
    assert!(!shy.is_on_topic());
    let (open, shy) = (open.endpoint(), shy.endpoint());
    assert_eq!(known(open, shy.id()).await, None);
    assert!(shy.addr().ip_addrs().next().is_some());
}

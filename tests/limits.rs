//! What a hub lets strangers have: handshakes, connections, and bytes in flight; and that those who come with good intent
//! get in behind them.

mod common;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use common::{
    raw::{COMPAT, NATIVE, RawPeer, code},
    *,
};
use iroh::{EndpointAddr, EndpointId, TransportAddr, endpoint::Connection, protocol::Router};
use iroh_hub::{
    Event, EventTarget, Hub, HubLimits, ListenOptions, Listener, OnFull, Problem, Source, Spoke,
    endpoint, metrics::ConnectionMetrics,
};
use tokio::{net::UdpSocket, sync::Barrier, task::JoinSet, time::timeout};

async fn hub_of(limits: HubLimits) -> Hub {
    hub(Hub::builder().limits(limits)).await
}

fn metrics(hub: &Hub) -> &ConnectionMetrics {
    &hub.metrics().connections
}

/// A hub that is what it was: whoever comes is served.
async fn serves(hub: &Hub) {
    let spoke = spoke(hub, Spoke::builder()).await;
    let mut listener = spoke.listen("n");
    hub.broadcast(numbered(7)).await.expect("open");
    assert_eq!(number(&next_event(&mut listener).await), 7);
    spoke.shutdown().await;
}

/// Handshakes of which the hub hears the beginning, and that hear nothing of the hub.
struct Halves {
    _tasks: JoinSet<()>,
}

impl Halves {
    async fn begin(hub: &Hub, count: usize) -> Self {
        Self::begin_from(Ipv4Addr::LOCALHOST, hub, count).await
    }

    async fn begin_from(from: Ipv4Addr, hub: &Hub, count: usize) -> Self {
        let [addr] = hub
            .addr()
            .ip_addrs()
            .copied()
            .collect::<Vec<_>>()
            .try_into()
            .expect("one address");
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let id = hub.id();
            let ear = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
                .await
                .expect("a port");
            let mouth = UdpSocket::bind((from, 0)).await.expect("a port");
            let to = TransportAddr::Ip(ear.local_addr().expect("bound"));
            tasks.spawn(async move {
                let endpoint = bind().await;
                let connecting = endpoint.connect(EndpointAddr::from_parts(id, [to]), NATIVE);
                let forwarding = async {
                    let mut packet = [0; 2048];
                    loop {
                        let len = ear.recv(&mut packet).await.expect("a packet");
                        mouth.send_to(&packet[..len], addr).await.expect("sent");
                    }
                };
                tokio::select! {
                    _ = connecting => panic!("it cannot get an answer"),
                    () = forwarding => {}
                }
            });
        }
        Self { _tasks: tasks }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_begins_too_many_handshakes_has_to_wait() {
    let hub = hub_of(hub_limits(|limits| limits.handshakes_of_addr_per_s = 1)).await;
    let mut connecting = JoinSet::new();
    for _ in 0..4 {
        let hub = hub.clone();
        connecting.spawn(async move { spoke(&hub, Spoke::builder()).await });
    }
    let spokes = soon("all get in after a while", connecting.join_all()).await;
    assert_eq!(hub.spoke_count(), spokes.len());
    assert!(metrics(&hub).handshakes_over_rate.get() >= 2);
    assert_eq!(metrics(&hub).handshakes_begun.get(), 4);
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_wait_for_their_turn_get_it_or_end_with_the_hub() {
    // A turn comes each ten milliseconds.
    let hub = hub_of(hub_limits(|limits| limits.handshakes_of_addr_per_s = 50)).await;
    let mut endpoints = Vec::new();
    for _ in 0..40 {
        endpoints.push(bind().await);
    }
    let mut connecting = JoinSet::new();
    for endpoint in endpoints {
        let addr = hub.addr();
        connecting.spawn(async move { Spoke::builder().connect(endpoint, addr).await });
    }
    let spokes = soon("all get their turn", connecting.join_all()).await;
    assert!(spokes.iter().all(Result::is_ok));
    assert_eq!(metrics(&hub).handshakes_begun.get(), 40);
    until("all places are given back", || {
        metrics(&hub).handshakes.get() == 0
    })
    .await;
    // Some are still waiting when the hub ends.
    let slow = hub_of(hub_limits(|limits| limits.handshakes_of_addr_per_s = 10)).await;
    let mut connecting = JoinSet::new();
    for _ in 0..20 {
        let (endpoint, addr) = (bind().await, slow.addr());
        connecting.spawn(async move { Spoke::builder().connect(endpoint, addr).await });
    }
    until("one had its turn", || {
        metrics(&slow).handshakes_begun.get() > 0
    })
    .await;
    soon("it ends", slow.shutdown()).await;
    connecting.abort_all();
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_validated_when_handshakes_are_many() {
    let hub = hub_of(hub_limits(|limits| limits.validate_above = 0)).await;
    let _spokes = [
        spoke(&hub, Spoke::builder()).await,
        spoke(&hub, Spoke::builder()).await,
    ];
    assert!(metrics(&hub).handshakes_retried.get() >= 2);
    assert_eq!(metrics(&hub).handshakes_begun.get(), 2);
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_are_not_finished_hold_their_places_for_a_limited_time() {
    let hub = hub_of(hub_limits(|limits| {
        limits.max_handshakes = 3;
        limits.handshakes_of_addr = Some(3);
        limits.handshake_timeout = Duration::from_secs(2);
    }))
    .await;
    let halves = Halves::begin(&hub, 3).await;
    until("all places are taken", || {
        metrics(&hub).handshakes.get() == 3
    })
    .await;
    let connecting = spoke(&hub, Spoke::builder());
    tokio::pin!(connecting);
    tokio::select! {
        _ = &mut connecting => panic!("there was no place"),
        () = until("it gets no answer", || metrics(&hub).handshakes_crowded.get() > 0) => {}
    }
    // Those who never get an answer try again too, so they have to leave for good.
    drop(halves);
    let _spoke = soon("the others have run out of time", connecting).await;
    until("all have", || metrics(&hub).handshakes.get() == 0).await;
    assert!(metrics(&hub).handshakes_failed.get() >= 3);
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_finishes_no_handshake_leaves_places_for_the_others() {
    let hub = hub_of(hub_limits(|limits| {
        limits.max_handshakes = 8;
        limits.handshake_timeout = 10 * LIMIT;
    }))
    .await;
    let _halves = Halves::begin_from(Ipv4Addr::new(127, 0, 0, 2), &hub, 6).await;
    until("it has all that one may have, and wants more", || {
        metrics(&hub).handshakes.get() == 2 && metrics(&hub).handshakes_crowded.get() > 0
    })
    .await;
    // This comes from 127.0.0.1.
    serves(&hub).await;
    assert_eq!(metrics(&hub).handshakes.get(), 2);
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_on_a_router_limits_handshakes_by_a_filter() {
    let limits = hub_limits(|limits| {
        limits.handshakes_of_addr_per_s = 1;
        limits.validate_above = 0;
    });
    let endpoint = bind().await;
    let hub = Hub::builder().limits(limits).build(endpoint.clone());
    let hub = hub.expect("a fresh endpoint");
    let router = Router::builder(endpoint).incoming_filter(hub.incoming_filter());
    let router = hub.accept_on(router).spawn();
    let mut connecting = JoinSet::new();
    for _ in 0..3 {
        let hub = hub.clone();
        connecting.spawn(async move { spoke(&hub, Spoke::builder()).await });
    }
    let _spokes = soon("all get in after a while", connecting.join_all()).await;
    assert!(metrics(&hub).handshakes_over_rate.get() >= 1);
    assert!(metrics(&hub).handshakes_retried.get() >= 3);
    assert_eq!(metrics(&hub).handshakes_begun.get(), 3);
    hub.shutdown().await;
    router.shutdown().await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_are_told_so() {
    let hub = hub_of(hub_limits(|limits| limits.max_connections = 3)).await;
    let stays = spoke(&hub, Spoke::builder()).await;
    let silent = [
        RawPeer::connect(&hub, NATIVE).await,
        RawPeer::connect(&hub, COMPAT).await,
    ];
    until("all are there", || metrics(&hub).open.get() == 3).await;
    assert_eq!(metrics(&hub).waiting.get(), 2);
    for alpn in [NATIVE, COMPAT] {
        let peer = RawPeer::connect(&hub, alpn).await;
        let reason = "the hub takes no more connections".to_owned();
        assert_eq!(peer.closed().await, (code::TOO_MANY, reason));
    }
    assert_eq!(metrics(&hub).refused_full.get(), 2);
    for peer in silent {
        peer.leave().await;
    }
    until("there is room", || metrics(&hub).open.get() == 1).await;
    serves(&hub).await;
    stays.shutdown().await;
    hub.shutdown().await;
    assert_eq!(
        (metrics(&hub).open.get(), metrics(&hub).waiting.get()),
        (0, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_have_places_of_their_own_and_one_of_them_few() {
    let hub = hub_of(hub_limits(|limits| {
        limits.max_waiting = 3;
        limits.waiting_of_addr = Some(3);
        limits.waiting_of_one = 2;
        limits.hello_timeout = 2 * LIMIT;
    }))
    .await;
    // Who has a spoke waits no more.
    let _spokes = [
        spoke(&hub, Spoke::builder()).await,
        spoke(&hub, Spoke::builder()).await,
    ];
    let one = bind().await;
    let mut silent = Vec::new();
    for endpoint in [one.clone(), one.clone(), bind().await] {
        silent.push(RawPeer::connect_from(endpoint, &hub, NATIVE).await);
    }
    until("they wait", || metrics(&hub).waiting.get() == 3).await;
    for endpoint in [one, bind().await] {
        let peer = RawPeer::connect_from(endpoint, &hub, COMPAT).await;
        let reason = "too many connections wait for a welcome".to_owned();
        assert_eq!(peer.closed().await, (code::TOO_MANY, reason));
    }
    assert_eq!(metrics(&hub).refused_waiting.get(), 2);
    // One of them becomes a spoke after all, and its place is another's.
    let _stream = silent[2].spoke(NATIVE).await;
    until("it waits no more", || metrics(&hub).waiting.get() == 2).await;
    serves(&hub).await;
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_of_one_address_have_a_part_of_the_places_however_many_ids_they_have() {
    let hub = hub_of(hub_limits(|limits| {
        limits.max_waiting = 8;
        limits.hello_timeout = 10 * LIMIT;
    }))
    .await;
    let from_elsewhere = || async {
        let addr = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 0));
        let endpoint = endpoint::bind_at(endpoint::local(None), addr).await;
        RawPeer::connect_from(endpoint.expect("loopback"), &hub, NATIVE).await
    };
    let silent = [from_elsewhere().await, from_elsewhere().await];
    until("they wait", || metrics(&hub).waiting.get() == 2).await;
    let reason = "too many connections wait for a welcome".to_owned();
    let third = from_elsewhere().await;
    assert_eq!(third.closed().await, (code::TOO_MANY, reason));
    // This comes from 127.0.0.1.
    serves(&hub).await;
    // Who has a spoke waits no more, but its streams that are none wait.
    let _stream = silent[0].spoke(NATIVE).await;
    until("it waits no more", || metrics(&hub).waiting.get() == 1).await;
    let mut mute = Vec::new();
    for _ in 0..3 {
        let mut stream = silent[0].open().await;
        // Half of a length: the hub hears of the stream, and of no hello.
        stream.write(vec![0, 0]).await;
        mute.push(stream);
    }
    let refused = &hub.metrics().admission.streams_refused;
    until("one has no place", || refused.get() == 1).await;
    serves(&hub).await;
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_endpoint_begins_all_of_its_spokes_at_once_though_admission_is_slow() {
    const SPOKES: usize = 100;
    // Nobody is let in before all are there.
    let all = Arc::new(Barrier::new(SPOKES));
    let admission = iroh_hub::Admission::custom(LIMIT, move |_| {
        let all = all.clone();
        async move {
            all.wait().await;
            iroh_hub::Decision::Allow
        }
    });
    let hub = hub(Hub::builder().admission(admission)).await;
    let endpoint = bind().await;
    let mut connecting = JoinSet::new();
    for _ in 0..SPOKES {
        let connect = Spoke::connect(endpoint.clone(), hub.addr());
        connecting.spawn(async move { connect.await.expect("it is let in") });
    }
    let spokes = soon("all get in", connecting.join_all()).await;
    assert_eq!(hub.spoke_count(), spokes.len());
    hub.shutdown().await;
}

/// How much a peer can send before it is held back, of what nobody reads.
async fn sent_unread(connection: &Connection) -> usize {
    let (mut send, _recv) = connection.open_bi().await.expect("a stream");
    let mut sent = 0;
    // A frame that is announced and never whole.
    let frame = [&(8u32 << 20).to_be_bytes()[..], &[b'{'; 1 << 16]].concat();
    while let Ok(Ok(n)) = timeout(Duration::from_secs(2), send.write(&frame)).await {
        sent += n;
        assert!(sent < 100 << 20, "nothing holds it back");
    }
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_may_have_little_in_flight() {
    let admission = iroh_hub::Admission::custom(2 * LIMIT, |_| std::future::pending());
    let limits = hub_limits(|limits| limits.waiting_window = 32 << 10);
    let hub = hub(Hub::builder().limits(limits).admission(admission)).await;
    let peer = RawPeer::connect(&hub, COMPAT).await;
    // Nobody reads while admission is not decided.
    let sent = sent_unread(&peer.connection).await;
    assert!(sent <= (32 << 10), "{sent}");
    // What nobody would read cannot be sent at all.
    let uni = timeout(Duration::from_secs(1), peer.connection.open_uni()).await;
    assert!(uni.is_err(), "no streams of one direction");
    assert_eq!(peer.connection.max_datagram_size(), None);
    peer.leave().await;
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_speaks_none_of_the_protocols_is_not_a_connection() {
    let hub = hub_of(HubLimits::default()).await;
    let endpoint = bind().await;
    let connecting = endpoint.connect(hub.addr(), b"something/else").await;
    connecting.expect_err("nobody speaks that");
    until("it is counted", || {
        metrics(&hub).handshakes_failed.get() == 1
    })
    .await;
    assert_eq!(metrics(&hub).open.get(), 0);
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_whose_endpoint_is_closed_says_that_it_takes_nobody() {
    let hub = hub_of(HubLimits::default()).await;
    serves(&hub).await;
    assert!(!hub.health().problems.contains(&Problem::NotAccepting));
    hub.endpoint().close().await;
    assert!(hub.health().problems.contains(&Problem::NotAccepting));
    assert!(!hub.health().healthy);
    until("its metrics say so", || {
        hub.metrics().health.not_accepting.get() == 1
    })
    .await;
    hub.shutdown().await;
}

fn is_from(event: &Event, id: EndpointId) -> bool {
    matches!(event.source, Source::Spoke(spoke) if spoke.endpoint == id)
}

/// A hub with a listener that nobody reads from, which holds one event.
async fn hub_unheard(change: impl FnOnce(&mut HubLimits)) -> (Hub, Listener) {
    let hub = hub_of(hub_limits(change)).await;
    let hold = OnFull::Hold {
        at_most: 10 * LIMIT,
    };
    let options = ListenOptions::default().capacity(1).on_full(hold);
    let listener = hub.listen_with("*".into(), options);
    (hub, listener)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_publishes_too_fast_is_read_from_more_slowly_and_loses_nothing() {
    let hub = hub_of(hub_limits(|limits| limits.publish_frames_per_s = 50)).await;
    let mut listener = hub.listen("n");
    let (fast, slow) = (bind().await, spoke(&hub, Spoke::builder()).await);
    let id = slow.endpoint().id();
    for alpn in [NATIVE, COMPAT] {
        let before = hub.metrics().direct.reads_throttled.get();
        let peer = RawPeer::connect_from(fast.clone(), &hub, alpn).await;
        let mut stream = peer.spoke(alpn).await;
        let mut events = Vec::new();
        for n in 0..120u64 {
            events.extend(match alpn {
                NATIVE => {
                    raw::publish(n + 1, 0, 1, &raw::body(b"n", b"", n.to_string().as_bytes()))
                }
                _ => raw::frame(format!(r#"{{"type":"n","id":"","payload":{n}}}"#)),
            });
        }
        stream.write(events).await;
        // The others are heard meanwhile.
        slow.send(numbered(1000)).await.expect("open");
        let mut next = 0;
        let mut other = false;
        while next < 120 || !other {
            let event = next_event(&mut listener).await;
            if is_from(&event, id) {
                other = true;
            } else {
                assert_eq!(number(&event), next);
                next += 1;
            }
        }
        assert!(hub.metrics().direct.reads_throttled.get() > before);
        assert!(peer.connection.close_reason().is_none());
        peer.connection
            .close((code::GOODBYE as u32).into(), b"goodbye");
    }
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_nobody_takes_are_bounded_though_their_links_are_gone() {
    let (hub, mut listener) = hub_unheard(|limits| {
        limits.max_event_bytes = 200 << 10;
        // A quarter of each is for events of this size.
        limits.intake_bytes = 4 << 20;
        limits.intake_of_one = 1200 << 10;
    })
    .await;
    let flooder = bind().await;
    // Each of its links leaves an event behind that waits for the listener.
    let payload = format!(
        r#"{{"type":"n","id":"","payload":"{}"}}"#,
        "x".repeat(90 << 10)
    );
    let mut left = 0;
    while hub.metrics().direct.reads_held.get() == 0 {
        let peer = RawPeer::connect_from(flooder.clone(), &hub, COMPAT).await;
        let mut stream = peer.spoke(COMPAT).await;
        stream.write(raw::frame(&payload)).await;
        stream.finish();
        // It is read, or not read from any more.
        until("it has come", || {
            hub.metrics().events.events_received.get() > left
                || hub.metrics().direct.reads_held.get() > 0
        })
        .await;
        left += 1;
        assert!(left < 10, "nothing held them back");
        peer.connection
            .close((code::GOODBYE as u32).into(), b"goodbye");
    }
    // One is queued, and three have room.
    assert!(left >= 4, "{left}");
    // Another endpoint has room.
    let before = hub.metrics().events.events_received.get();
    let honest = spoke(&hub, Spoke::builder()).await;
    honest.send(numbered(7)).await.expect("open");
    until("it is heard of", || {
        hub.metrics().events.events_received.get() > before
    })
    .await;
    // All that was held back comes once somebody listens.
    loop {
        let event = next_event(&mut listener).await;
        if is_from(&event, honest.endpoint().id()) {
            break;
        }
    }
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_in_parts_that_is_not_finished_costs_the_link_and_gives_its_room_back() {
    let hub = hub_of(hub_limits(|limits| {
        limits.frame_timeout = Duration::from_millis(200);
        // Room for one.
        limits.max_event_bytes = 200 * raw::MAX_PART;
        limits.intake_of_one = 0;
    }))
    .await;
    let mut listener = hub.listen("n");
    let endpoint = bind().await;
    let part = vec![b'x'; raw::MAX_PART];
    // Of the first, more and more comes, as long as it is let; of the second, nothing more.
    for endless in [true, false] {
        let peer = RawPeer::connect_from(endpoint.clone(), &hub, NATIVE).await;
        let mut stream = peer.spoke(NATIVE).await;
        stream.write(raw::publish(1, 0, 200, &part)).await;
        if endless {
            let sending = async {
                for n in 1..100 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    stream.write(raw::publish(1, n, 200, &part)).await;
                }
            };
            tokio::select! {
                () = sending => panic!("nobody minded"),
                _ = peer.connection.closed() => {}
            }
        }
        let (code, reason) = peer.closed().await;
        assert_eq!(code, code::TIMED_OUT, "{reason}");
        assert!(reason.contains("the rest of an event"), "{reason}");
    }
    // Its room is another's.
    let peer = RawPeer::connect_from(endpoint, &hub, NATIVE).await;
    let mut stream = peer.spoke(NATIVE).await;
    let body = raw::body(b"n", b"", format!("{:>20000}", 7).as_bytes());
    stream.write(raw::publish(1, 0, 1, &body)).await;
    assert_eq!(number(&next_event(&mut listener).await), 7);
    hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_stuck_spokes_leaves_room_for_the_others() {
    let hub = hub_of(hub_limits(|limits| {
        limits.targeted_bytes_of_all = 100_000;
        limits.send_wait = Duration::from_millis(1);
    }))
    .await;
    let mut stuck = Vec::new();
    for _ in 0..5 {
        let peer = RawPeer::connect(&hub, NATIVE).await;
        let stream = peer.spoke(NATIVE).await;
        stuck.push((peer, stream));
    }
    let event = || numbered(1).with_id(&"x".repeat(500)).expect("an id");
    let mut waiting = Vec::new();
    for (peer, _) in &stuck {
        let mut sent = 0;
        while hub.send(peer.endpoint.id(), event()).await.is_ok() {
            sent += 1;
        }
        waiting.push(sent);
    }
    assert!(waiting[0] > 20 && waiting[4] >= 5, "{waiting:?}");
    assert!(hub.metrics().events.targeted_crowded.get() >= 5);
    let good = spoke(&hub, Spoke::builder()).await;
    let mut listener = good.listen("n");
    for n in 0..50 {
        let sending = async { while hub.send(good.endpoint().id(), numbered(n)).await.is_err() {} };
        soon("room", sending).await;
        assert_eq!(number(&next_event(&mut listener).await), n);
    }
    hub.shutdown().await;
}

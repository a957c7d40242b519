//! Who is revoked reads nothing that is dispatched afterwards, and everyone else notices nothing.

mod common;

use std::{net::Ipv4Addr, time::Duration};

use common::{
    raw::{COMPAT, GOSSIP, NATIVE, RawPeer, code},
    *,
};
use iroh::{Endpoint, SecretKey};
use iroh_hub::{
    Admission, Candidate, CloseCode, Closed, ConnectError, Decision, FanOut, From, GossipConfig,
    Hub, Incoming, Listener, Missed, Path, Position, Spoke, endpoint,
};

const REVOKED: &str = "this endpoint is not admitted any more";
const NOT_ADMITTED: &str = "this endpoint is not admitted";

/// It is told why its link has ended; or, if that was lost on the way, when it comes back.
async fn ends_revoked(spoke: &Spoke) {
    match soon("its end", spoke.closed()).await {
        Closed::ByPeer {
            code: CloseCode::Refused,
            reason,
        } => assert!([REVOKED, NOT_ADMITTED].contains(&&*reason), "{reason}"),
        other => panic!("not refused: {other:?}"),
    }
}

async fn bind_with(key: &SecretKey) -> Endpoint {
    let addr = (Ipv4Addr::LOCALHOST, 0).into();
    let endpoint = endpoint::bind_at(endpoint::local(Some(key.clone())), addr);
    endpoint.await.expect("loopback binds")
}

async fn connect(hub: &Hub, endpoint: &Endpoint) -> Result<Spoke, ConnectError> {
    soon(
        "an answer",
        Spoke::builder().connect(endpoint.clone(), hub.addr()),
    )
    .await
}

async fn broadcast(hub: &Hub, numbers: std::ops::Range<u64>) {
    for n in numbers {
        hub.broadcast(numbered(n)).await.expect("the hub is open");
    }
}

/// Everything that a listener of an ended spoke has left.
async fn rest(listener: &mut Listener) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(item) = soon("the end of a listener", listener.recv()).await {
        if let Incoming::Event(event) = item {
            numbers.push(number(&event));
        }
    }
    numbers
}

/// Spokes that the topic serves.
async fn on_topic(hub: &Hub, count: usize) -> Vec<Spoke> {
    let mut spokes = Vec::new();
    for _ in 0..count {
        spokes.push(spoke(hub, Spoke::builder()).await);
    }
    until_all_are_on_topic(hub, count).await;
    spokes
}

async fn until_all_are_on_topic(hub: &Hub, count: usize) {
    until("the topic serves them", || {
        let spokes = hub.spokes();
        spokes.iter().filter(|s| s.path == Path::Gossip).count() == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_spoke_is_cut_off_and_does_not_come_back() {
    let hub = hub_with(FanOut::Direct).await;
    let (endpoint, honest) = (bind().await, spoke(&hub, Spoke::builder()).await);
    let gone = connect(&hub, &endpoint).await.expect("open");
    // One that is away is forgotten too.
    let (mut heard, mut missed_out) = (honest.listen("n"), gone.listen("n"));
    broadcast(&hub, 0..10).await;
    expect_numbers(&mut missed_out, 0, 10).await;

    hub.admission().revoke(endpoint.id());
    assert_eq!(hub.spoke_count(), 1, "it is gone when that returns");
    assert!(hub.spokes().iter().all(|s| s.id.endpoint != endpoint.id()));
    broadcast(&hub, 10..20).await;

    ends_revoked(&gone).await;
    assert_eq!(rest(&mut missed_out).await, Vec::<u64>::new());
    expect_numbers(&mut heard, 0, 20).await;
    match connect(&hub, &endpoint).await {
        Err(ConnectError::Refused { code, reason, .. }) => {
            assert_eq!((code, reason.as_str()), (CloseCode::Refused, NOT_ADMITTED));
        }
        other => panic!("not refused: {other:?}"),
    }
    assert_eq!(hub.metrics().admission.revoked.get(), 1);
    assert_eq!(
        hub.metrics().direct.links_failed.get(),
        0,
        "it did nothing wrong"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_revoke_one_of_the_topic_costs_the_others_no_event() {
    let hub = hub_with(FanOut::Gossip).await;
    let mut spokes = on_topic(&hub, 8).await;
    let mut listeners: Vec<_> = spokes.iter().map(|spoke| spoke.listen("n")).collect();
    let gone = spokes.pop().expect("there are some");
    let mut gone_heard = listeners.pop().expect("there are some");
    broadcast(&hub, 0..100).await;
    expect_numbers(&mut gone_heard, 0, 100).await;

    hub.admission().revoke(gone.endpoint().id());
    broadcast(&hub, 100..300).await;
    ends_revoked(&gone).await;
    assert_eq!(rest(&mut gone_heard).await, Vec::<u64>::new());
    for listener in &mut listeners {
        expect_numbers(listener, 0, 300).await;
    }
    let metrics = hub.metrics();
    assert_eq!(metrics.topic.rekeyed.get(), 1);
    assert_eq!(metrics.topic.started.get(), 1, "the topic lives on");
    assert_eq!(metrics.topic.failed.get(), 0);
    until_all_are_on_topic(&hub, 7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_goes_on_through_many_changes_of_its_key() {
    let mut config = GossipConfig::default();
    config.key_lifetime = Duration::from_millis(500);
    let builder = Hub::builder().fan_out(FanOut::Gossip).gossip(config);
    let hub = hub(builder).await;
    let spokes = on_topic(&hub, 6).await;
    let mut listeners: Vec<_> = spokes.iter().map(|spoke| spoke.listen("n")).collect();
    let rekeyed = &hub.metrics().topic.rekeyed;
    let before = rekeyed.get();
    let mut n = 0;
    while rekeyed.get() < before + 6 {
        broadcast(&hub, n..n + 10).await;
        n += 10;
        for listener in &mut listeners {
            expect_numbers(listener, n - 10, 10).await;
        }
    }
    let lapsed = hub.metrics().gossip.lapsed.get();
    assert_eq!(lapsed, 0, "neighbours stay neighbours");
    assert_eq!(hub.metrics().topic.failed.get(), 0);
    until_all_are_on_topic(&hub, 6).await;
    for spoke in &spokes {
        let dropped = spoke.metrics().gossip.refused_forged.get();
        assert_eq!(dropped, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_admitted_again_is_told_that_it_missed_what_lay_between() {
    for fan_out in [FanOut::Direct, FanOut::Gossip] {
        let hub = hub_with(fan_out.clone()).await;
        let others = match fan_out {
            FanOut::Gossip => on_topic(&hub, 4).await,
            _ => vec![spoke(&hub, Spoke::builder()).await],
        };
        let endpoint = bind().await;
        let first = connect(&hub, &endpoint).await.expect("open");
        let mut heard = first.listen("n");
        broadcast(&hub, 0..10).await;
        expect_numbers(&mut heard, 0, 10).await;
        let epoch = hub.tip().epoch;

        hub.admission().revoke(endpoint.id());
        broadcast(&hub, 10..20).await;
        hub.admission().allow(endpoint.id());
        let from = From::Position(Position::new(epoch, 10));
        let builder = Spoke::builder().from(from);
        let again = builder.connect(endpoint.clone(), hub.addr());
        let again = soon("an answer", again).await.expect("admitted again");
        let mut heard = again.listen("n");
        broadcast(&hub, 20..30).await;
        let gap = Missed {
            from: Position::new(epoch, 10),
            to: Position::new(epoch, 20),
        };
        match soon("the gap", heard.recv()).await {
            Some(Incoming::Missed(missed)) => assert_eq!(missed, gap),
            other => panic!("no gap: {other:?}"),
        }
        expect_numbers(&mut heard, 20, 10).await;
        if fan_out == FanOut::Gossip {
            // Under a key that sealed nothing of what it may not read.
            let rekeyed = hub.metrics().topic.rekeyed.get();
            until_all_are_on_topic(&hub, others.len() + 1).await;
            assert!(hub.metrics().topic.rekeyed.get() > rekeyed.min(1));
            broadcast(&hub, 30..40).await;
            expect_numbers(&mut heard, 30, 10).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_admitted_later_begins_there_unless_the_hub_has_history_for_all() {
    for history in [false, true] {
        let builder = Hub::builder().admission(Admission::allow_list([]));
        let hub = hub(builder.history(history)).await;
        broadcast(&hub, 0..10).await;
        let key = SecretKey::generate();
        hub.admission().allow(key.public());
        broadcast(&hub, 10..20).await;
        let builder = Spoke::builder().from(From::Earliest);
        let spoke = builder.connect(bind_with(&key).await, hub.addr());
        let spoke = soon("an answer", spoke).await.expect("admitted");
        let mut heard = spoke.listen("n");
        let first = if history { 0 } else { 10 };
        expect_numbers(&mut heard, first, 20 - first).await;
        // To be admitted twice is to be admitted once.
        hub.admission().allow(key.public());
        spoke.shutdown().await;
        let builder = Spoke::builder().from(From::Earliest);
        let spoke = builder.connect(bind_with(&key).await, hub.addr());
        let spoke = soon("an answer", spoke).await.expect("admitted");
        expect_numbers(&mut spoke.listen("n"), first, 20 - first).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_of_ones_own_may_let_in_from_now_on() {
    let from_now = Admission::custom(Duration::from_secs(5), |_: Candidate| async {
        Decision::AllowFromNow
    });
    let hub = hub(Hub::builder().admission(from_now)).await;
    broadcast(&hub, 0..10).await;
    let spoke = spoke(&hub, Spoke::builder().from(From::Earliest)).await;
    broadcast(&hub, 10..20).await;
    expect_numbers(&mut spoke.listen("n"), 10, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_overtakes_a_hello_and_a_decision() {
    let (asked, answer) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
    let turns = std::sync::Arc::new((asked, answer));
    let theirs = turns.clone();
    let slow = Admission::custom(Duration::from_secs(50), move |_| {
        let turns = theirs.clone();
        async move {
            turns.0.notify_one();
            turns.1.notified().await;
            Decision::Allow
        }
    });
    let limits = hub_limits(|limits| limits.max_streams = 1);
    let hub = hub(Hub::builder().admission(slow).limits(limits)).await;
    let mut turned_away = 0;
    for alpn in [NATIVE, COMPAT] {
        // While it is being decided.
        let peer = RawPeer::connect_from(bind().await, &hub, alpn).await;
        turns.0.notified().await;
        hub.admission().revoke(peer.endpoint.id());
        turns.1.notify_one();
        assert_eq!(peer.closed().await, (code::REFUSED, REVOKED.to_owned()));
        // Before it has said hello: it is let in when a stream more than it may have is turned away.
        let peer = RawPeer::connect_from(bind().await, &hub, alpn).await;
        turns.0.notified().await;
        turns.1.notify_one();
        let mut streams = Vec::new();
        for _ in 0..2 {
            let mut stream = peer.open().await;
            stream.write([0]).await;
            streams.push(stream);
        }
        let refused = &hub.metrics().admission.streams_refused;
        until("its second stream is turned away", || {
            refused.get() > turned_away
        })
        .await;
        turned_away = refused.get();
        hub.admission().revoke(peer.endpoint.id());
        assert_eq!(peer.closed().await, (code::REFUSED, REVOKED.to_owned()));
    }
    assert_eq!(hub.spoke_count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_revoke_one_does_not_end_the_links_of_another_that_was_denied() {
    let hub = hub_with(FanOut::Direct).await;
    let (denied, other) = (bind().await, bind().await);
    let spoke = connect(&hub, &denied).await.expect("open");
    let mut heard = spoke.listen("n");
    let gone = connect(&hub, &other).await.expect("open");
    hub.admission().deny(denied.id());
    hub.admission().revoke(other.id());
    ends_revoked(&gone).await;
    broadcast(&hub, 0..10).await;
    expect_numbers(&mut heard, 0, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbours_stay_neighbours_though_somebody_is_revoked_all_the_time() {
    let hub = hub_with(FanOut::Gossip).await;
    let spokes = on_topic(&hub, 6).await;
    let mut listeners: Vec<_> = spokes.iter().map(|spoke| spoke.listen("n")).collect();
    let began = tokio::time::Instant::now();
    let mut n = 0;
    // Longer than a connection may go without a proof of new keys.
    while began.elapsed() < Duration::from_secs(6) {
        hub.admission().revoke(SecretKey::generate().public());
        broadcast(&hub, n..n + 5).await;
        n += 5;
        for listener in &mut listeners {
            expect_numbers(listener, n - 5, 5).await;
        }
    }
    let metrics = hub.metrics();
    assert!(metrics.topic.rekeyed.get() >= 3);
    assert_eq!(metrics.topic.failed.get(), 0);
    let lapsed = |spoke: &Spoke| spoke.metrics().gossip.lapsed.get();
    assert_eq!(spokes.iter().map(lapsed).sum::<u64>(), 0);
    assert_eq!(metrics.gossip.lapsed.get(), 0);
    until_all_are_on_topic(&hub, 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_are_revoked_at_once() {
    let hub = hub_with(FanOut::Gossip).await;
    let mut spokes = on_topic(&hub, 5).await;
    let gone: Vec<_> = spokes.drain(3..).collect();
    let mut listeners: Vec<_> = spokes.iter().map(|spoke| spoke.listen("n")).collect();
    let strangers = (0..10_000u32).map(|n| {
        let mut key = [1; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        SecretKey::from_bytes(&key).public()
    });
    let gone_ids = gone.iter().map(|spoke| spoke.endpoint().id());
    hub.admission().revoke_all(strangers.chain(gone_ids));
    broadcast(&hub, 0..50).await;
    for spoke in &gone {
        ends_revoked(spoke).await;
    }
    for listener in &mut listeners {
        expect_numbers(listener, 0, 50).await;
    }
    assert_eq!(hub.metrics().topic.rekeyed.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gossip_connection_to_the_hub_is_for_its_spokes_only() {
    let hub = hub_with(FanOut::Gossip).await;
    let spokes = on_topic(&hub, 2).await;
    let before = hub.metrics().admission.refused.get();
    let stranger = RawPeer::connect_from(bind().await, &hub, GOSSIP).await;
    let closed = stranger.closed().await;
    assert_eq!(closed, (code::REFUSED, NOT_ADMITTED.to_owned()));
    assert_eq!(hub.metrics().admission.refused.get(), before + 1);
    assert_eq!(hub.metrics().gossip.auth_failed.get(), 0, "not even asked");
    drop(spokes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_does_not_outlive_a_revocation() {
    let hub = hub_with(FanOut::Direct).await;
    let endpoint = bind().await;
    let spoke = connect(&hub, &endpoint).await.expect("open");
    let id = hub.spokes().first().expect("there is one").id;
    hub.admission().revoke(endpoint.id());
    let error = hub.send(id, numbered(1)).await;
    assert!(error.is_err(), "{error:?}");
    hub.admission().allow(endpoint.id());
    // The spoke was refused, and does not come back by itself.
    ends_revoked(&spoke).await;
    let again = connect(&hub, &endpoint).await.expect("admitted again");
    let new = hub.spokes().first().expect("there is one").id;
    assert_ne!(new, id, "another session");
    drop(again);
}

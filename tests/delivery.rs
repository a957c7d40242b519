//! Targeted events, events from spokes, and large events: in order, once, intact, from whom they say.

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{
    raw::{COMPAT, RawPeer},
    *,
};
use iroh::EndpointId;
use iroh_hub::{
    Delivery, Envelope, EventTarget, FanOut, Gossip, Hub, Incoming, ListenOptions, Listener, Loss,
    OnFull, Path, Protocol, SendError, Source, Spoke, SpokeLimits, Via,
};

async fn all_on_tree(hub: &Hub, spokes: usize) {
    until("all are on the tree", || {
        let on_tree = |info: &&iroh_hub::SpokeInfo| info.path == Path::Gossip;
        hub.spokes().iter().filter(on_tree).count() == spokes
    })
    .await;
}

/// Broadcasts even numbers and sends odd ones in between.
fn publish_both_ways(hub: &Hub, to: EndpointId, count: u64) -> tokio::task::JoinHandle<()> {
    let hub = hub.clone();
    tokio::spawn(async move {
        for n in 0..count {
            if n % 2 == 0 {
                hub.broadcast(numbered(n)).await.expect("open");
            } else {
                soon("room", hub.send(to, numbered(n)))
                    .await
                    .expect("there");
            }
        }
    })
}

/// A plain spoke cannot tell a targeted event from a broadcast.
fn is_native(hub: &Hub, endpoint: EndpointId) -> bool {
    let spokes = hub.spokes();
    let info = spokes.iter().find(|info| info.id.endpoint == endpoint);
    info.is_some_and(|info| info.protocol == Protocol::Native)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_targeted_event_comes_after_the_broadcasts_before_it_on_direct_links() {
    let hub = hub_with(FanOut::Direct).await;
    for protocol in [Protocol::Native, Protocol::Compat] {
        let spoke = spoke(&hub, Spoke::builder().protocol(protocol)).await;
        until("it is there", || hub.spoke_count() == 1).await;
        let mut listener = spoke.listen("n");
        let me = spoke.endpoint().id();
        let targeted_shows = is_native(&hub, me);
        let publisher = publish_both_ways(&hub, me, 600);
        for n in 0..600 {
            let event = next_event(&mut listener).await;
            assert_eq!(number(&event), n);
            assert_eq!(event.targeted, n % 2 == 1 && targeted_shows);
            assert_eq!(event.source, Source::Hub(hub.id()));
        }
        publisher.await.expect("no panic");
        spoke.shutdown().await;
        until("it has left", || hub.spoke_count() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_targeted_event_comes_after_the_broadcasts_before_it_on_the_topic() {
    let hub = hub_with(FanOut::Gossip).await;
    let mut spokes = Vec::new();
    for _ in 0..4 {
        spokes.push(spoke(&hub, Spoke::builder()).await);
    }
    all_on_tree(&hub, 4).await;
    let mut listener = spokes[3].listen("n");
    let mut others = spokes[0].listen("*");
    let publisher = publish_both_ways(&hub, spokes[3].endpoint().id(), 600);
    // Each kind in its own order; and before a targeted event, every broadcast that went before it.
    let (mut broadcast, mut targeted) = (0, 1);
    for _ in 0..600 {
        let event = next_event(&mut listener).await;
        let next = if event.targeted {
            &mut targeted
        } else {
            &mut broadcast
        };
        assert_eq!(number(&event), *next);
        *next += 2;
        assert!(
            broadcast + 1 >= targeted,
            "{targeted} came before {broadcast}"
        );
    }
    publisher.await.expect("no panic");
    assert!(spokes[3].metrics().reception.events_gossip.get() > 0);
    // Nobody else got what was targeted.
    for n in 0..300 {
        assert_eq!(number(&next_event(&mut others).await), 2 * n);
    }
    assert!(hub.shutdown().await.behind.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_to_nobody_is_an_error() {
    let hub = hub_with(FanOut::Direct).await;
    let stranger = bind().await.id();
    let error = hub.send(stranger, numbered(1)).await.unwrap_err();
    assert!(matches!(error, SendError::NoSuchSpoke { .. }));
    let spoke = spoke(&hub, Spoke::builder()).await;
    let mut id = hub.spokes()[0].id;
    spoke.shutdown().await;
    until("it has left", || hub.spoke_count() == 0).await;
    for _ in 0..2 {
        let error = hub.send(id, numbered(1)).await.unwrap_err();
        assert!(matches!(error, SendError::NoSuchSpoke { .. }));
        id.number += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hub_hears_every_spoke_in_order_and_knows_who_speaks() {
    const EACH: u64 = 400;
    let hub = hub_with(FanOut::Gossip).await;
    let mut heard = hub.listen("n");
    let mut sending = Vec::new();
    let mut next: BTreeMap<EndpointId, u64> = BTreeMap::new();
    for n in 0..6 {
        let builder = match n % 3 {
            0 => Spoke::builder(),
            1 => Spoke::builder().gossip(Gossip::Off),
            _ => Spoke::builder().protocol(Protocol::Compat),
        };
        let spoke = spoke(&hub, builder).await;
        next.insert(spoke.endpoint().id(), 0);
        sending.push(tokio::spawn(async move {
            for n in 0..EACH {
                soon("room", spoke.send(numbered(n)))
                    .await
                    .expect("the link stands");
            }
            soon("the hub", spoke.flush()).await.expect("taken");
            spoke
        }));
    }
    for _ in 0..6 * EACH {
        let event = next_event(&mut heard).await;
        let Source::Spoke(id) = event.source else {
            panic!("not from a spoke: {event:?}");
        };
        let next = next.get_mut(&id.endpoint).expect("one of ours");
        assert_eq!(number(&event), *next, "in order, once each");
        assert!(event.position.is_none() && event.via.is_none());
        *next += 1;
    }
    for spoke in sending {
        spoke.await.expect("no panic").shutdown().await;
    }
    let metrics = hub.metrics();
    assert_eq!(metrics.events.events_received.get(), 6 * EACH);
    assert_eq!(metrics.direct.links_failed.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_plain_spoke_sent_before_it_left_is_heard_however_slowly() {
    let hub = hub_with(FanOut::Direct).await;
    let hold = OnFull::Hold { at_most: LIMIT };
    let options = ListenOptions::default().capacity(1).on_full(hold);
    let mut heard = hub.listen_with("n".into(), options);
    let peer = RawPeer::connect(&hub, COMPAT).await;
    let mut stream = peer.spoke(COMPAT).await;
    for n in 0..3000 {
        let json = format!(r#"{{"type":"n","payload":{n}}}"#);
        stream.write(raw::frame(json)).await;
    }
    // The hub's transport has it all, though its listener has not.
    stream.finish();
    let stopped = soon("the end of the stream", stream.send.stopped()).await;
    assert!(matches!(stopped, Ok(None)), "{stopped:?}");
    peer.leave().await;
    // What the hub writes meanwhile goes nowhere, and changes nothing.
    hub.broadcast(numbered(0)).await.expect("open");
    expect_numbers(&mut heard, 0, 3000).await;
    until("it has left", || hub.spoke_count() == 0).await;
}

/// An event of 16 MiB, all told: the largest by default.
fn largest(fill: char) -> Envelope {
    // The type, two lengths of one byte and one of four.
    let room = (16 << 20) - "large".len() - 2 - 4;
    let payload = format!("\"{}\"", fill.to_string().repeat(room - 2));
    let event = Envelope::from_json("large", "", &payload).expect("JSON");
    assert_eq!(event.size(), 16 << 20);
    event
}

async fn next_large(listener: &mut Listener) -> iroh_hub::Event {
    // Slow where nothing is optimised.
    match tokio::time::timeout(Duration::from_secs(240), listener.recv()).await {
        Ok(Some(iroh_hub::Incoming::Event(event))) => event,
        other => panic!("no event: {other:?}"),
    }
}

/// Compares without printing 16 MiB.
fn is_intact(event: &iroh_hub::Event, expected: &Envelope) {
    assert!(event.envelope == *expected, "{:?}", event.envelope);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_events_arrive_intact_on_direct_links() {
    let limits = hub_limits(|limits| limits.send_wait = Duration::from_secs(120));
    let hub = hub(Hub::builder().fan_out(FanOut::Direct).limits(limits)).await;
    let mut heard = hub.listen("large");
    for protocol in [Protocol::Native, Protocol::Compat] {
        let limits = spoke_limits(|limits| limits.send_wait = Duration::from_secs(120));
        let builder = Spoke::builder().protocol(protocol).limits(limits);
        let spoke = spoke(&hub, builder).await;
        until("it is there", || hub.spoke_count() == 1).await;
        let mut listener = spoke.listen("*");
        let me = spoke.endpoint().id();
        hub.broadcast(numbered(1)).await.expect("open");
        hub.broadcast(largest('a')).await.expect("open");
        hub.send(me, largest('b')).await.expect("there");
        hub.broadcast(numbered(2)).await.expect("open");
        assert_eq!(number(&next_event(&mut listener).await), 1);
        is_intact(&next_large(&mut listener).await, &largest('a'));
        is_intact(&next_large(&mut listener).await, &largest('b'));
        assert_eq!(number(&next_large(&mut listener).await), 2);
        spoke.send(largest('c')).await.expect("the link stands");
        is_intact(&next_large(&mut heard).await, &largest('c'));
        spoke.shutdown().await;
        until("it has left", || hub.spoke_count() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_events_arrive_intact_on_the_topic() {
    let hub = hub_with(FanOut::Gossip).await;
    let mut spokes = Vec::new();
    for _ in 0..3 {
        let spoke = spoke(&hub, Spoke::builder()).await;
        spokes.push((spoke.listen("*"), spoke));
    }
    all_on_tree(&hub, 3).await;
    hub.broadcast(numbered(1)).await.expect("open");
    hub.broadcast(largest('a')).await.expect("open");
    hub.broadcast(numbered(2)).await.expect("open");
    // By whichever path: an event that takes the topic too long comes by the direct link.
    for (listener, _) in &mut spokes {
        assert_eq!(number(&next_event(listener).await), 1);
        is_intact(&next_large(listener).await, &largest('a'));
        assert_eq!(number(&next_large(listener).await), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_many_parts_come_by_the_topic() {
    let hub = hub_with(FanOut::Gossip).await;
    let mut spokes = Vec::new();
    for _ in 0..3 {
        let spoke = spoke(&hub, Spoke::builder()).await;
        spokes.push((spoke.listen("*"), spoke));
    }
    all_on_tree(&hub, 3).await;
    let event = |n: usize| {
        let payload = "x".repeat((n + 1) * 100_000);
        Envelope::new("large", &payload).expect("JSON")
    };
    // An event that takes the topic too long comes by the direct link; on a busy machine, all of them.
    let mut by_gossip = 0;
    let deadline = tokio::time::Instant::now() + LIMIT;
    while by_gossip == 0 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "some come by the topic"
        );
        for n in 0..4 {
            hub.broadcast(event(n)).await.expect("open");
        }
        for (listener, _) in &mut spokes {
            for n in 0..4 {
                let got = next_large(listener).await;
                is_intact(&got, &event(n));
                by_gossip += usize::from(got.via == Some(Via::Gossip));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_for_one_spoke_over_its_own_limit_comes_back_and_the_next_one_arrives() {
    let hub = hub_with(FanOut::Direct).await;
    let mut limits = SpokeLimits::default();
    limits.max_event_bytes = 1_000;
    let spoke = spoke(&hub, Spoke::builder().limits(limits)).await;
    let mut listener = spoke.listen("*");
    let to = spoke.endpoint().id();
    for size in [2_000, 200_000] {
        let text = "x".repeat(size);
        let large = Envelope::new("large", &text).expect("a text is JSON");
        let large = hub.send(to, large).await.expect("the hub takes it");
        let next = hub.send(to, numbered(7)).await.expect("the hub takes it");
        assert_eq!(number(&next_event(&mut listener).await), 7);
        soon("a receipt", next.delivered()).await.expect("it is");
        assert_eq!(large.now(), Delivery::NotDelivered(Loss::TooLarge));
    }
    assert_eq!(spoke.is_closed(), None);
    assert_eq!(hub.metrics().events.targeted_refused.get(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_over_a_spokes_own_limit_is_missed_and_the_next_one_arrives() {
    let hub = hub_with(FanOut::Direct).await;
    for size in [2_000, 200_000] {
        let mut limits = SpokeLimits::default();
        limits.max_event_bytes = 1_000;
        let spoke = spoke(&hub, Spoke::builder().limits(limits)).await;
        let mut listener = spoke.listen("*");
        let text = "x".repeat(size);
        let large = Envelope::new("large", &text).expect("a text is JSON");
        let large = hub.broadcast(large).await.expect("the hub takes it");
        hub.broadcast(numbered(7)).await.expect("the hub takes it");
        let missed = soon("a hole", listener.recv()).await;
        let Some(Incoming::Missed(missed)) = missed else {
            panic!("not missed: {missed:?}")
        };
        assert_eq!(
            (missed.from, missed.to),
            (large.position(), large.position().next())
        );
        assert_eq!(number(&next_event(&mut listener).await), 7);
        spoke.shutdown().await;
    }
    hub.shutdown().await;
}

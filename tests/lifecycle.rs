//! Hubs and spokes come, go and end in order.

mod common;

use std::{collections::BTreeSet, time::Duration};

use common::{
    raw::{COMPAT, NATIVE, RawPeer, RawStream, code},
    *,
};
use iroh_hub::{
    BroadcastError, CloseCode, Closed, FanOut, Gossip, Hub, Protocol, SendError, Source, Spoke,
    SpokeChange, SpokeId, SpokeWatch,
};

const BOTH: [Protocol; 2] = [Protocol::Native, Protocol::Compat];

async fn next_change(watch: &mut SpokeWatch) -> SpokeChange {
    let change = soon("a change", watch.next()).await.expect("the hub lives");
    change.expect("no lag")
}

/// The next number that a plain stream gets.
async fn next_number(stream: &mut RawStream) -> u64 {
    stream.json().await["payload"].as_u64().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_streams_on_one_connection_are_several_spokes_of_one_identity() {
    let hub = hub_with(FanOut::default()).await;
    let mut heard = hub.listen("n");
    let peer = RawPeer::connect(&hub, COMPAT).await;
    let me = peer.endpoint.id();
    let mut streams = Vec::new();
    for n in 0..3 {
        let mut stream = peer.spoke(COMPAT).await;
        stream
            .write(raw::frame(format!(r#"{{"type":"n","payload":{n}}}"#)))
            .await;
        let event = next_event(&mut heard).await;
        assert_eq!(number(&event), n);
        let Source::Spoke(id) = event.source else {
            panic!("not from a spoke: {event:?}");
        };
        assert_eq!(id.endpoint, me);
        streams.push((id, stream));
    }
    let known: BTreeSet<SpokeId> = hub.spokes().iter().map(|info| info.id).collect();
    assert_eq!(known, streams.iter().map(|(id, _)| *id).collect());
    assert_eq!(known.len(), 3);

    hub.broadcast(numbered(10)).await.expect("open");
    hub.send(me, numbered(11)).await.expect("all of them");
    hub.send(streams[1].0, numbered(12))
        .await
        .expect("one of them");
    hub.broadcast(numbered(13)).await.expect("open");
    for (n, (_, stream)) in streams.iter_mut().enumerate() {
        let expected: &[u64] = if n == 1 {
            &[10, 11, 12, 13]
        } else {
            &[10, 11, 13]
        };
        for expected in expected {
            assert_eq!(next_number(stream).await, *expected);
        }
    }
    // One stream that ends is one spoke that leaves.
    let (id, mut stream) = streams.remove(0);
    stream.finish();
    until("it has left", || hub.spoke_count() == 2).await;
    let error = hub.send(id, numbered(14)).await.unwrap_err();
    assert!(matches!(error, SendError::NoSuchSpoke { .. }));
    hub.send(me, numbered(15)).await.expect("the others");
    for (_, stream) in &mut streams {
        assert_eq!(next_number(stream).await, 15);
    }
    peer.leave().await;
    until("all have left", || hub.spoke_count() == 0).await;
    let error = hub.send(me, numbered(16)).await.unwrap_err();
    assert!(matches!(error, SendError::NoSuchSpoke { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spokes_come_and_go_and_the_hub_goes_on_accepting() {
    let hub = hub_with(FanOut::Direct).await;
    let mut watch = hub.watch_spokes();
    let stays = spoke(&hub, Spoke::builder()).await;
    let mut listener = stays.listen("n");
    assert!(matches!(
        next_change(&mut watch).await,
        SpokeChange::Joined { .. }
    ));
    let mut numbers = BTreeSet::new();
    for round in 0..6u64 {
        let expected = BOTH[round as usize % 2];
        let goes = spoke(&hub, Spoke::builder().protocol(expected)).await;
        let SpokeChange::Joined { id, protocol, .. } = next_change(&mut watch).await else {
            panic!("nobody joined");
        };
        assert_eq!((id.endpoint, protocol), (goes.endpoint().id(), expected));
        assert!(numbers.insert(id.number), "an id is never used twice");
        hub.broadcast(numbered(round)).await.expect("open");
        assert_eq!(number(&next_event(&mut goes.listen("n")).await), round);
        // One goes politely, one is dropped, one breaks off. An endpoint that is dropped tells nobody.
        let endpoint = goes.endpoint().clone();
        match round % 3 {
            0 => goes.shutdown().await,
            1 => drop(goes),
            _ => endpoint.close().await,
        }
        // Who breaks off may come back, if its protocol has a way.
        let (left, closed) = match next_change(&mut watch).await {
            SpokeChange::Left { id, closed, .. } if round != 2 => (id, closed),
            SpokeChange::Away { id, closed, .. } if round == 2 => (id, closed),
            other => panic!("not the end of a link: {other:?}"),
        };
        assert_eq!(left, id);
        if round % 3 < 2 {
            assert!(closed.is_goodbye(), "{closed}");
        }
        assert_eq!(number(&next_event(&mut listener).await), round);
        assert_eq!(hub.spoke_count(), 1);
        let metrics = hub.metrics();
        assert_eq!(
            (metrics.spokes.connected.get(), metrics.spokes.joined.get()),
            (1, round + 2)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_shuts_down_lets_everyone_have_everything_and_says_goodbye() {
    let hub = hub_with(FanOut::Direct).await;
    let plain = RawPeer::connect(&hub, COMPAT).await;
    let mut stream = plain.spoke(COMPAT).await;
    let mut spokes = Vec::new();
    for protocol in BOTH {
        let spoke = spoke(&hub, Spoke::builder().protocol(protocol)).await;
        spokes.push((spoke.listen("n"), spoke));
    }
    until("all are there", || hub.spoke_count() == 3).await;
    for n in 0..500 {
        hub.broadcast(numbered(n)).await.expect("open");
    }
    let ids: Vec<_> = hub.spokes().iter().map(|info| info.id).collect();
    for id in ids {
        hub.send(id, numbered(500)).await.expect("there");
    }
    let shutdown = tokio::spawn({
        let hub = hub.clone();
        async move { hub.shutdown().await }
    });
    // The stream ends behind the last event, and only then does the connection.
    for n in 0..=500 {
        assert_eq!(next_number(&mut stream).await, n);
    }
    let end = soon("the end", stream.recv.read_chunk(1)).await;
    assert!(matches!(end, Ok(None)), "{end:?}");
    let (code, reason) = plain.closed().await;
    assert_eq!(code, code::GOODBYE);
    assert!(!reason.is_empty());
    for (listener, spoke) in &mut spokes {
        for n in 0..=500 {
            assert_eq!(number(&next_event(listener).await), n);
        }
        assert_eq!(soon("the end", listener.recv()).await, None);
        let closed = soon("goodbye", spoke.closed()).await;
        assert!(matches!(
            closed,
            Closed::ByPeer {
                code: CloseCode::Goodbye,
                ..
            }
        ));
        assert!(spoke.send(numbered(1)).await.is_err());
    }
    let drained = soon("the end", shutdown).await.expect("no panic");
    assert!(drained.behind.is_empty(), "{drained:?}");
    let error = hub.broadcast(numbered(1)).await.unwrap_err();
    assert!(matches!(error, BroadcastError::Closed { .. }));
    assert_eq!(hub.spoke_count(), 0);
    assert!(hub.endpoint().is_closed());
    // Again is no harm.
    soon("the end", hub.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_shuts_down_names_who_does_not_take_what_is_left() {
    let limits = hub_limits(|limits| limits.drain_timeout = Duration::from_millis(500));
    let hub = hub(Hub::builder().fan_out(FanOut::Direct).limits(limits)).await;
    let stuck = RawPeer::connect(&hub, NATIVE).await;
    let _stream = stuck.spoke(NATIVE).await;
    let good = spoke(&hub, Spoke::builder()).await;
    let mut listener = good.listen("n");
    hub.broadcast(numbered(0)).await.expect("open");
    let drained = soon("the end", hub.shutdown()).await;
    let behind: Vec<_> = drained.behind.iter().map(|info| info.id.endpoint).collect();
    assert_eq!(behind, [stuck.endpoint.id()]);
    expect_numbers(&mut listener, 0, 1).await;
    assert!(soon("goodbye", good.closed()).await.is_goodbye());
    // It did not get everything, so it is not told that all is well.
    assert_eq!(stuck.closed().await.0, code::TIMED_OUT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_while_a_hub_shuts_down_is_sent_away() {
    let hub = hub_with(FanOut::Direct).await;
    let stuck = RawPeer::connect(&hub, NATIVE).await;
    let _stream = stuck.spoke(NATIVE).await;
    hub.broadcast(numbered(0)).await.expect("open");
    let shutdown = tokio::spawn({
        let hub = hub.clone();
        async move { hub.shutdown_within(Duration::from_secs(2)).await }
    });
    until("it is shutting down", || {
        hub.try_broadcast(numbered(1)).is_err()
    })
    .await;
    let late = RawPeer::connect(&hub, NATIVE).await;
    assert_eq!(late.closed().await.0, code::GOODBYE);
    assert_eq!(shutdown.await.expect("no panic").behind.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_shuts_down_delivers_what_it_sent() {
    let hub = hub_with(FanOut::default()).await;
    let mut heard = hub.listen("n");
    let mut watch = hub.watch_spokes();
    for protocol in BOTH {
        let spoke = spoke(&hub, Spoke::builder().protocol(protocol)).await;
        for n in 0..500 {
            spoke.send(numbered(n)).await.expect("the link stands");
        }
        soon("the end", spoke.shutdown()).await;
        assert!(soon("the end", spoke.closed()).await.is_goodbye());
        for n in 0..500 {
            let event = next_event(&mut heard).await;
            assert_eq!(number(&event), n);
            let Source::Spoke(id) = event.source else {
                panic!("not from a spoke: {event:?}");
            };
            assert_eq!(id.endpoint, spoke.endpoint().id());
        }
        loop {
            if let SpokeChange::Left { closed, .. } = next_change(&mut watch).await {
                assert!(closed.is_goodbye(), "{closed}");
                break;
            }
        }
        let error = spoke.send(numbered(1)).await;
        assert!(error.is_err(), "it is closed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flush_means_that_the_hub_has_it() {
    let hub = hub_with(FanOut::default()).await;
    let mut heard = hub.listen("n");
    let spoke = spoke(&hub, Spoke::builder()).await;
    for n in 0..100 {
        spoke.send(numbered(n)).await.expect("the link stands");
    }
    soon("acknowledgement", spoke.flush()).await.expect("taken");
    assert_eq!(hub.metrics().events.events_received.get(), 100);
    expect_numbers(&mut heard, 0, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_a_spoke_or_a_hub_ends_it() {
    let hub = hub_with(FanOut::Gossip).await;
    let mut kept = Vec::new();
    for gossip in [Gossip::Full, Gossip::Off] {
        let spoke = spoke(&hub, Spoke::builder().gossip(gossip)).await;
        let mut listener = spoke.listen("n");
        hub.broadcast(numbered(0)).await.expect("open");
        next_event(&mut listener).await;
        // A clone is the same spoke.
        let clone = spoke.clone();
        drop(spoke);
        hub.broadcast(numbered(1)).await.expect("open");
        next_event(&mut listener).await;
        // Kept, so that it is the spoke that ends and not its endpoint.
        kept.push(clone.endpoint().clone());
        drop(clone);
        assert_eq!(soon("the end", listener.recv()).await, None);
        until("it has left", || hub.spoke_count() == 0).await;
    }
    let left = spoke(&hub, Spoke::builder()).await;
    let mut listener = left.listen("n");
    let mut heard = hub.listen("n");
    let endpoint = hub.endpoint().clone();
    let addr = hub.addr();
    drop(hub);
    let closed = soon("the end", left.closed()).await;
    assert!(closed.is_goodbye(), "{closed}");
    assert_eq!(soon("the end", listener.recv()).await, None);
    assert_eq!(soon("the end", heard.recv()).await, None);
    // The endpoint is ours again.
    assert!(!endpoint.is_closed());
    let again = Hub::builder().spawn(endpoint).expect("it is open");
    let back = Spoke::builder().connect(bind().await, addr);
    let back = soon("a welcome", back).await.expect("a hub again");
    let mut listener = back.listen("n");
    again.broadcast(numbered(7)).await.expect("open");
    assert_eq!(number(&next_event(&mut listener).await), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoints_place_on_the_topic_goes_to_its_newest_spoke_when_it_is_free() {
    let hub = hub_with(FanOut::Gossip).await;
    let peer = RawPeer::connect(&hub, NATIVE).await;
    // A node that can gossip, three times; as a process that was started again while the hub has not
    // noticed that the first one is dead.
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = peer.open().await;
        stream
            .greet_with(raw::native(0, &[1, 1, 0, 0, 0], b""))
            .await;
        streams.push(stream);
    }
    let capable = || {
        let spokes = hub.spokes();
        let capable = spokes.iter().filter(|info| info.gossip_capable);
        capable.map(|info| info.id.number).collect::<Vec<_>>()
    };
    let first = capable();
    let [place] = first[..] else {
        panic!("{first:?}")
    };
    for (gone, next) in [(0, place + 2), (1, place + 1)] {
        let mut stream = match gone {
            0 => streams.remove(0),
            _ => streams.pop().expect("two are left"),
        };
        stream.finish();
        until("the place is another's", || capable() == [next]).await;
    }
    drop(streams);
    peer.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_needs_an_endpoint_that_is_open() {
    let endpoint = bind().await;
    endpoint.close().await;
    assert!(Hub::builder().spawn(endpoint).is_err());
}

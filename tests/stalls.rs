//! A spoke that takes nothing costs the others nothing, holds the hub's memory to a bound, and is told
//! what it missed.

mod common;

use std::time::Duration;

use common::{
    raw::{COMPAT, NATIVE, RawPeer, code},
    *,
};
use iroh::endpoint::ConnectionError;
use iroh_hub::{
    CloseCode, Envelope, FanOut, From, Hub, HubLimits, Incoming, ListenOptions, Listener, OnFull,
    Position, Protocol, SendError, Spoke, SpokeChange, TryBroadcastError, log::LogConfig,
};

fn small_log(limits: HubLimits, events: usize) -> iroh_hub::HubBuilder {
    Hub::builder()
        .fan_out(FanOut::Direct)
        .log(LogConfig::default().with_max_events(events))
        .limits(limits)
}

/// A numbered event that weighs a while.
fn heavy(n: u64) -> Envelope {
    let event = Envelope::new("n", &n).expect("JSON");
    event.with_id(&"x".repeat(1000)).expect("an id")
}

fn position(hub: &Hub, offset: u64) -> Position {
    Position::new(hub.tip().epoch, offset)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_is_held_back_at_the_bound_and_goes_on_without_who_is_stuck() {
    let limits = hub_limits(|limits| {
        limits.pace_events = 10;
        limits.stall_after = Duration::from_secs(3);
    });
    let hub = hub(Hub::builder().fan_out(FanOut::Direct).limits(limits)).await;
    let stuck = RawPeer::connect(&hub, NATIVE).await;
    let mut stream = stuck.spoke(NATIVE).await;
    let good = spoke(&hub, Spoke::builder()).await;
    let mut listener = good.listen("n");
    let mut sent = 0;
    let refused = loop {
        match hub.try_broadcast(numbered(sent)) {
            Ok(receipt) => assert_eq!(receipt.position(), position(&hub, sent)),
            Err(error) => break error,
        }
        sent += 1;
        assert!(sent <= 1000, "nothing held the publisher back");
    };
    // Exactly at the bound, and the event is given back.
    assert_eq!(sent, 11);
    match refused {
        TryBroadcastError::Behind { event, .. } => assert_eq!(event, numbered(sent)),
        other => panic!("{other:?}"),
    }
    assert!(hub.metrics().events.broadcasts_held.get() > 0);
    expect_numbers(&mut listener, 0, sent).await;
    // An acknowledgement makes room.
    stream.write(raw::ack(5, 0)).await;
    until("there is room", || {
        hub.try_broadcast(numbered(sent)).is_ok()
    })
    .await;
    sent += 1;
    // Then it stalls for good, and whoever waits goes on without it.
    for n in sent..sent + 100 {
        let receipt = soon("room", hub.broadcast(numbered(n))).await;
        assert_eq!(receipt.expect("open").position(), position(&hub, n));
    }
    expect_numbers(&mut listener, 11, sent + 89).await;
    let info = hub.spokes();
    let info = info
        .iter()
        .find(|info| info.id.endpoint == stuck.endpoint.id());
    assert_eq!(info.expect("still here").acked, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_spoke_that_falls_behind_the_log_is_closed_with_a_code() {
    let limits = hub_limits(|limits| limits.stall_after = Duration::from_secs(3));
    let hub = hub(small_log(limits, 2000)).await;
    let mut changes = hub.watch_spokes();
    let stuck = RawPeer::connect(&hub, COMPAT).await;
    let _stream = stuck.spoke(COMPAT).await;
    let mut honest = Vec::new();
    for protocol in [Protocol::Native, Protocol::Compat] {
        let spoke = spoke(&hub, Spoke::builder().protocol(protocol)).await;
        honest.push((spoke.listen("n"), spoke));
    }
    until("all are there", || hub.spoke_count() == 3).await;
    // More than the windows of a connection hold. The honest are waited for, so that they keep up.
    let publisher = tokio::spawn({
        let hub = hub.clone();
        async move {
            for n in 0..20_000 {
                hub.broadcast(heavy(n)).await.expect("open");
            }
        }
    });
    let (honest_native, honest_plain) = honest.split_at_mut(1);
    tokio::join!(
        expect_numbers(&mut honest_native[0].0, 0, 20_000),
        expect_numbers(&mut honest_plain[0].0, 0, 20_000),
    );
    publisher.await.expect("no panic");
    match soon("the end", stuck.connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code.into_inner(), code::FELL_BEHIND);
            let reason = String::from_utf8_lossy(&close.reason);
            assert!(reason.contains("fell behind"), "{reason}");
        }
        // A close is one packet; who loses it, flooded as it is, finds out when it speaks next.
        ConnectionError::Reset => {}
        other => panic!("closed otherwise: {other:?}"),
    }
    assert_eq!(hub.metrics().direct.links_failed.get(), 1);
    assert_eq!(hub.spoke_count(), 2);
    loop {
        let change = soon("a change", changes.next()).await.expect("a hub");
        if let SpokeChange::Left { id, closed, .. } = change.expect("no lag") {
            assert_eq!(id.endpoint, stuck.endpoint.id());
            assert_eq!(closed.code(), Some(CloseCode::FellBehind));
            break;
        }
    }
}

/// Takes numbered events and holes up to `end`; everything must be there once, in order, and what is
/// not must be said. Gives back how many were missed.
async fn expect_all_or_missed(listener: &mut Listener, end: u64) -> u64 {
    let (mut next, mut missed) = (0, 0);
    while next < end {
        match soon("an item", listener.recv()).await {
            Some(Incoming::Event(event)) => {
                assert_eq!(number(&event), next);
                assert_eq!(event.position.expect("native").offset, next);
                next += 1;
            }
            Some(Incoming::Missed(hole)) => {
                assert_eq!(hole.from.offset, next);
                assert!(hole.to.offset > next);
                missed += hole.to.offset - next;
                next = hole.to.offset;
            }
            other => panic!("neither an event nor a hole: {other:?}"),
        }
    }
    missed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_native_spoke_that_stalls_is_told_what_it_missed_and_goes_on_in_order() {
    let limits = hub_limits(|limits| limits.stall_after = Duration::from_secs(3));
    let hub = hub(small_log(limits, 2000)).await;
    let limits = spoke_limits(|limits| {
        limits.max_event_bytes = 64 << 10;
        limits.max_buffered_bytes = 1 << 20;
    });
    let stalls = spoke(&hub, Spoke::builder().limits(limits)).await;
    let hold = OnFull::Hold { at_most: LIMIT };
    let options = ListenOptions::default().capacity(1).on_full(hold);
    let mut held = iroh_hub::EventTarget::listen_with(&stalls, "n".into(), options);
    let good = spoke(&hub, Spoke::builder()).await;
    let mut listener = good.listen("n");
    let publisher = tokio::spawn({
        let hub = hub.clone();
        async move {
            for n in 0..20_000 {
                hub.broadcast(heavy(n)).await.expect("open");
            }
        }
    });
    expect_numbers(&mut listener, 0, 20_000).await;
    publisher.await.expect("no panic");
    // It goes on, and so does the hub.
    let missed = expect_all_or_missed(&mut held, 20_000).await;
    assert!(missed > 0, "20 MB do not fit into windows and queues");
    assert_eq!(stalls.metrics().reception.events_missed.get(), missed);
    hub.broadcast(numbered(20_000)).await.expect("open");
    assert_eq!(number(&next_event(&mut held).await), 20_000);
    assert_eq!(number(&next_event(&mut listener).await), 20_000);
    assert_eq!(stalls.is_closed(), None);
    assert!(hub.shutdown().await.behind.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_to_a_spoke_that_takes_nothing_fails_in_time_and_the_others_are_served() {
    let limits = hub_limits(|limits| {
        limits.targeted_events = 10;
        limits.send_wait = Duration::from_millis(300);
    });
    let hub = hub(Hub::builder().fan_out(FanOut::Direct).limits(limits)).await;
    let stuck = RawPeer::connect(&hub, NATIVE).await;
    let mut stream = stuck.spoke(NATIVE).await;
    let good = spoke(&hub, Spoke::builder()).await;
    let mut listener = good.listen("n");
    for n in 0..10 {
        hub.send(stuck.endpoint.id(), numbered(n))
            .await
            .expect("room");
    }
    let sending = hub.send(stuck.endpoint.id(), numbered(10));
    match soon("an answer", sending).await.unwrap_err() {
        SendError::Stalled { spoke, .. } => assert_eq!(spoke.endpoint, stuck.endpoint.id()),
        other => panic!("{other:?}"),
    }
    for n in 0..100 {
        let sending = hub.send(good.endpoint().id(), numbered(n));
        soon("room", sending).await.expect("it takes them");
        let event = next_event(&mut listener).await;
        assert!(event.targeted && number(&event) == n);
    }
    // Acknowledged, there is room again.
    stream.write(raw::ack(0, 4)).await;
    let sending = hub.send(stuck.endpoint.id(), numbered(11));
    soon("room", sending).await.expect("room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_begins_where_it_asks_to() {
    let hub = hub(small_log(HubLimits::default(), 50)).await;
    for n in 0..100 {
        hub.broadcast(numbered(n)).await.expect("open");
    }
    let from = |from| Spoke::builder().from(from);
    let tip = spoke(&hub, from(From::Tip)).await;
    let earliest = spoke(&hub, from(From::Earliest)).await;
    let kept = spoke(&hub, from(From::Position(position(&hub, 70)))).await;
    let gone = spoke(&hub, from(From::Position(position(&hub, 20)))).await;
    let elsewhere = Position::new(iroh_hub::Epoch::from_u64(1), 99);
    let other = spoke(&hub, from(From::Position(elsewhere))).await;
    let future = position(&hub, 5000);
    let beyond = spoke(&hub, from(From::Position(future))).await;
    hub.broadcast(numbered(100)).await.expect("open");

    expect_numbers(&mut tip.listen("n"), 100, 1).await;
    expect_numbers(&mut kept.listen("n"), 70, 31).await;
    let mut listener = gone.listen("n");
    match soon("a hole", listener.recv()).await {
        Some(Incoming::Missed(missed)) => {
            assert_eq!(missed.from, position(&hub, 20));
            let first = missed.to.offset;
            assert!((50..=51).contains(&first), "{missed}");
            expect_numbers(&mut listener, first, 101 - first).await;
        }
        other => panic!("not a hole: {other:?}"),
    }
    let mut listener = earliest.listen("n");
    let first = match soon("an item", listener.recv()).await {
        Some(Incoming::Event(event)) => number(&event),
        // The oldest went while the spoke came.
        Some(Incoming::Missed(missed)) => missed.to.offset - 1,
        other => panic!("{other:?}"),
    };
    assert!((50..=51).contains(&first), "{first}");
    expect_numbers(&mut listener, first + 1, 100 - first).await;
    // A position that this log has never had joins up with nothing, and that is said.
    for (spoke, asked, begins) in [(&other, elsewhere, 50..=51), (&beyond, future, 100..=100)] {
        let mut listener = spoke.listen("n");
        let mut from = asked;
        let first = loop {
            match soon("a hole", listener.recv()).await {
                Some(Incoming::Missed(missed)) => {
                    assert_eq!(missed.from, from);
                    from = missed.to;
                }
                Some(Incoming::Event(event)) => break event,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(first.position, Some(from));
        let first = number(&first);
        assert!(begins.contains(&first), "{first}");
        expect_numbers(&mut listener, first + 1, 100 - first).await;
    }
    assert_eq!(tip.position(), Some(hub.tip()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_comes_back_goes_on_where_it_was() {
    let hub = hub_with(FanOut::Direct).await;
    for n in 0..10 {
        hub.broadcast(numbered(n)).await.expect("open");
    }
    let first = spoke(&hub, Spoke::builder().from(From::Earliest)).await;
    let mut listener = first.listen("n");
    expect_numbers(&mut listener, 0, 10).await;
    let position = first.position().expect("native");
    first.shutdown().await;
    for n in 10..20 {
        hub.broadcast(numbered(n)).await.expect("open");
    }
    let second = spoke(&hub, Spoke::builder().from(From::Position(position))).await;
    expect_numbers(&mut second.listen("n"), 10, 10).await;
}

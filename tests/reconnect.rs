//! Spokes whose links are lost come back, go on where they were, and say truthfully what that cost.

mod common;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use common::{
    cuttable::Cuttable,
    raw::{NATIVE, RawHub, RawStream},
    *,
};
use iroh::{Endpoint, SecretKey};
use iroh_hub::{
    CloseCode, Closed, Delivery, FanOut, From, Gossip, Hub, Incoming, ListenOptions, Listener,
    Loss, Missed, Position, Protocol, Reconnect, Source, Spoke, SpokeBuilder, SpokeSendError,
    SpokeStatus, StatusWatch, Undelivered, Via, endpoint,
};

/// Comes back soon, so that tests are short.
fn quick() -> Reconnect {
    let mut reconnect = Reconnect::default();
    reconnect.first = Duration::from_millis(20);
    reconnect.most = Duration::from_millis(200);
    reconnect
}

fn builder() -> SpokeBuilder {
    Spoke::builder().reconnect(quick())
}

fn connected(spoke: &Spoke) -> bool {
    matches!(spoke.status(), Some(SpokeStatus::Connected { .. }))
}

async fn next_status(watch: &mut StatusWatch) -> SpokeStatus {
    let status = soon("a status", watch.next()).await;
    status.expect("the spoke lives").expect("no lag")
}

/// The next status but for `Reconnecting`, of which there may be any number.
async fn next_news(watch: &mut StatusWatch) -> SpokeStatus {
    loop {
        match next_status(watch).await {
            SpokeStatus::Reconnecting { .. } => {}
            news => return news,
        }
    }
}

fn with_statuses(spoke: &Spoke) -> Listener {
    let options = ListenOptions::default().statuses(true);
    iroh_hub::EventTarget::listen_with(spoke, "*".into(), options)
}

async fn next(listener: &mut Listener) -> Incoming {
    let item = soon("an item", listener.recv()).await;
    item.expect("the spoke lives")
}

async fn next_missed(listener: &mut Listener) -> Missed {
    match next(listener).await {
        Incoming::Missed(missed) => missed,
        other => panic!("not missed: {other:?}"),
    }
}

/// An endpoint at this address with this key, which can be bound again once it is closed.
async fn bind_again(key: &SecretKey, addr: SocketAddr) -> Endpoint {
    let mut tries = 0;
    loop {
        let builder = endpoint::local(Some(key.clone()));
        match endpoint::bind_at(builder, addr).await {
            Ok(endpoint) => return endpoint,
            Err(error) => assert!(tries < 100, "{error}"),
        }
        tries += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A key, and an endpoint with it at an address that can be had again.
async fn bind_for_good() -> (SecretKey, SocketAddr, Endpoint) {
    let key = SecretKey::generate();
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let endpoint = bind_again(&key, free).await;
    let addr = *endpoint.bound_sockets().first().expect("a socket");
    (key, addr, endpoint)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_link_costs_nothing_and_the_spoke_says_so() {
    let hub = Cuttable::start(Hub::builder().fan_out(FanOut::Direct)).await;
    let spoke = spoke(&hub.hub, builder()).await;
    let mut listener = with_statuses(&spoke);
    let mut watch = spoke.watch();
    assert!(connected(&spoke));
    let begin = SpokeStatus::Connected {
        position: Some(hub.hub.tip()),
    };
    hub.hub.broadcast(numbered(0)).await.expect("open");
    assert_eq!(next(&mut listener).await, Incoming::Status(begin));
    assert_eq!(number(&next_event(&mut listener).await), 0);
    hub.shut(true);
    assert_eq!(hub.cut(0), 1);
    let SpokeStatus::Reconnecting {
        attempt: 1, closed, ..
    } = next_status(&mut watch).await
    else {
        panic!("not reconnecting");
    };
    assert_eq!(closed.code(), Some(CloseCode::Unspecified));
    for n in 1..10 {
        hub.hub.broadcast(numbered(n)).await.expect("open");
    }
    assert!(matches!(
        spoke.status(),
        Some(SpokeStatus::Reconnecting { .. })
    ));
    assert_eq!(spoke.is_closed(), None);
    assert_eq!(spoke.rtt(), None);
    hub.shut(false);
    assert!(matches!(
        next_news(&mut watch).await,
        SpokeStatus::Connected { .. }
    ));
    let recovered = SpokeStatus::Recovered { wholly: true };
    assert_eq!(next_news(&mut watch).await, recovered);
    // A listener that asked for it sees the same in its place.
    let mut n = 1;
    loop {
        match next(&mut listener).await {
            Incoming::Status(SpokeStatus::Reconnecting { .. } | SpokeStatus::Connected { .. }) => {
                assert_eq!(n, 1);
            }
            Incoming::Event(event) => {
                assert_eq!(number(&event), n);
                n += 1;
            }
            Incoming::Status(status) => {
                assert_eq!(status, recovered);
                assert_eq!(n, 10, "behind everything up to the tip");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let metrics = spoke.metrics();
    assert_eq!(metrics.link.welcomed.get(), 2);
    assert_eq!(metrics.link.lost.get(), 1);
    assert_eq!(metrics.link.recovered.get(), 1);
    assert!(metrics.link.attempts.get() >= 2);
    spoke.shutdown().await;
    assert!(matches!(
        next_status(&mut watch).await,
        SpokeStatus::Closed(_)
    ));
    assert!(soon("the end", watch.next()).await.is_none());
    assert!(spoke.watch().next().await.is_none(), "it has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_many_lost_links_everything_arrives_once_in_order_both_ways() {
    // No more than a listener's queue holds, as they are read one after the other.
    const EVENTS: u64 = 1_000;
    let hub = Cuttable::start(Hub::builder().fan_out(FanOut::Direct)).await;
    let mut heard = hub.hub.listen("n");
    let spoke = spoke(&hub.hub, builder()).await;
    let mut broadcasts = spoke.listen("n");
    let mut targeted = spoke.listen("to-you");
    let id = hub.hub.spokes()[0].id;
    let cutting = tokio::spawn({
        let hub = hub.clone();
        async move {
            for _ in 0..30 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                hub.cut(0);
            }
        }
    });
    let sending = tokio::spawn({
        let spoke = spoke.clone();
        async move {
            let mut receipts = Vec::new();
            for n in 0..EVENTS {
                receipts.push(spoke.send(numbered(n)).await.expect("queued"));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for receipt in receipts {
                soon("a receipt", receipt.delivered())
                    .await
                    .expect("delivered");
            }
            spoke.flush().await.expect("nothing is lost");
        }
    });
    let broadcasting = tokio::spawn({
        let hub = hub.hub.clone();
        async move {
            let mut receipts = Vec::new();
            for n in 0..EVENTS {
                hub.broadcast(numbered(n)).await.expect("open");
                let event = iroh_hub::Envelope::new("to-you", &n).expect("JSON");
                receipts.push(hub.send(id, event).await.expect("its session lives"));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for receipt in receipts {
                soon("a receipt", receipt.delivered())
                    .await
                    .expect("delivered");
            }
        }
    });
    expect_numbers(&mut broadcasts, 0, EVENTS).await;
    for n in 0..EVENTS {
        let event = next_event(&mut targeted).await;
        assert!(event.targeted);
        assert_eq!(number(&event), n);
    }
    for n in 0..EVENTS {
        let event = next_event(&mut heard).await;
        assert_eq!(number(&event), n);
        assert_eq!(event.source, Source::Spoke(id), "one spoke all along");
    }
    soon("all", async {
        tokio::join!(sending, broadcasting, cutting)
    })
    .await
    .0
    .expect("no panic");
    assert!(spoke.metrics().link.welcomed.get() > 5);
    assert_eq!(spoke.metrics().reception.events_missed.get(), 0);
    spoke.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_lost_its_memory_is_a_hole_and_what_is_not_known_is_said() {
    let (key, addr, endpoint) = bind_for_good().await;
    let first = Cuttable::start_on(Hub::builder(), endpoint.clone()).await;
    let spoke = spoke(&first.hub, builder()).await;
    let mut listener = spoke.listen("n");
    let mut watch = spoke.watch();
    let mut last = Vec::new();
    for n in 0..3 {
        first.hub.broadcast(numbered(n)).await.expect("open");
        last.push(next_event(&mut listener).await.position.expect("native"));
    }
    let delivered = spoke.send(numbered(0)).await.expect("queued");
    soon("a receipt", delivered.delivered())
        .await
        .expect("the hub took it");
    first.shut(true);
    first.cut(0);
    assert!(matches!(
        next_status(&mut watch).await,
        SpokeStatus::Reconnecting { .. }
    ));
    // It never leaves before there is a hub again.
    let later = spoke
        .send(numbered(1))
        .await
        .expect("queued without a link");
    assert_eq!(later.now(), Delivery::Pending);
    endpoint.close().await;
    drop((first, endpoint));

    let second = Hub::builder()
        .spawn(bind_again(&key, addr).await)
        .expect("a fresh endpoint");
    let mut heard = second.listen("n");
    second.broadcast(numbered(100)).await.expect("open");
    let missed = next_missed(&mut listener).await;
    let begin = Position::new(second.tip().epoch, 0);
    assert_eq!((missed.from, missed.to), (last[2].next(), begin));
    assert_eq!(missed.events(), None, "nobody knows how many");
    let event = next_event(&mut listener).await;
    assert_eq!((number(&event), event.position), (100, Some(begin)));
    let told = next_news(&mut watch).await;
    assert_eq!(told, SpokeStatus::Missed(missed));
    assert_eq!(
        next_news(&mut watch).await,
        SpokeStatus::Connected {
            position: Some(begin)
        }
    );
    let told = next_news(&mut watch).await;
    assert_eq!(told, SpokeStatus::Recovered { wholly: false });
    soon("a receipt", later.delivered())
        .await
        .expect("it was never written to the first hub");
    assert_eq!(number(&next_event(&mut heard).await), 1);
    assert_eq!(spoke.metrics().reception.positions_lost.get(), 1);
    spoke.shutdown().await;
}

/// A hub by hand that has welcomed a spoke, in this session, and what the spoke asked for.
async fn welcome_again(
    hub: &RawHub,
    session: u8,
    published: u64,
) -> (iroh::endpoint::Connection, RawStream) {
    let (connection, mut stream) = hub.accept().await;
    stream
        .write(raw::welcome_back(session, published, 77, 0, 0))
        .await;
    (connection, stream)
}

/// The same, and reads that the welcome has come.
async fn welcome_taken(
    hub: &RawHub,
    session: u8,
    published: u64,
) -> (iroh::endpoint::Connection, RawStream) {
    let (connection, mut stream) = welcome_again(hub, session, published).await;
    let taken = stream.frame().await.expect("an acknowledgement");
    assert_eq!(taken, [2, 0, 0]);
    (connection, stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_and_not_acknowledged_may_have_arrived_if_the_session_is_forgotten() {
    let hub = RawHub::bind(NATIVE).await;
    let (spoke, (connection, mut stream)) = tokio::join!(
        builder().connect(bind().await, hub.addr()),
        welcome_taken(&hub, 1, 0)
    );
    let spoke = spoke.expect("a welcome");
    let written = spoke.send(numbered(1)).await.expect("queued");
    assert_eq!(stream.frame().await.expect("the event").first(), Some(&1));
    connection.close(0u32.into(), b"");
    until("it is noticed", || !connected(&spoke)).await;
    let never = spoke.send(numbered(2)).await.expect("queued");
    let (_connection, mut stream) = welcome_taken(&hub, 2, 0).await;
    let lost = soon("a receipt", written.delivered()).await;
    assert!(
        matches!(
            lost,
            Err(Undelivered::MaybeDelivered {
                reason: Loss::Forgotten,
                ..
            })
        ),
        "{lost:?}"
    );
    // The other is sent, as the first of the new session.
    let frame = stream.frame().await.expect("the event");
    assert_eq!(frame[..2], [1, 1]);
    assert_eq!(never.now(), Delivery::Pending);
    stream.write(raw::native(7, &[1], b"")).await;
    soon("a receipt", never.delivered())
        .await
        .expect("acknowledged");
    let flushed = soon("a flush", spoke.flush()).await;
    assert!(
        matches!(
            flushed,
            Err(SpokeSendError::Lost {
                not_delivered: 0,
                maybe_delivered: 1,
                ..
            })
        ),
        "{flushed:?}"
    );
    spoke.flush().await.expect("said once");
    assert_eq!(spoke.metrics().link.events_maybe_delivered.get(), 1);
    drop(stream);
    spoke.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_goes_on_sends_what_the_hub_lacks_again() {
    let hub = RawHub::bind(NATIVE).await;
    let (spoke, (connection, mut stream)) = tokio::join!(
        builder().connect(bind().await, hub.addr()),
        welcome_taken(&hub, 1, 0)
    );
    let spoke = spoke.expect("a welcome");
    let mut receipts = Vec::new();
    for n in 1..=3 {
        receipts.push(spoke.send(numbered(n)).await.expect("queued"));
    }
    for seq in 1..=3 {
        assert_eq!(stream.frame().await.expect("an event")[..2], [1, seq]);
    }
    connection.close(0u32.into(), b"");
    // It has taken the first one, and could not say so any more.
    let (_connection, mut stream) = welcome_taken(&hub, 1, 1).await;
    for seq in 2..=3 {
        assert_eq!(stream.frame().await.expect("an event")[..2], [1, seq]);
    }
    stream.write(raw::native(7, &[3], b"")).await;
    for receipt in receipts {
        soon("a receipt", receipt.delivered())
            .await
            .expect("acknowledged");
    }
    drop(stream);
    spoke.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn which_ends_are_final_depends_on_the_code() {
    for (code, comes_back) in [
        (CloseCode::Unspecified, true),
        (CloseCode::Goodbye, false),
        (CloseCode::Refused, false),
        (CloseCode::BadFrame, false),
        (CloseCode::TooLarge, false),
        (CloseCode::TimedOut, true),
        (CloseCode::TooMany, true),
        (CloseCode::FellBehind, false),
        (CloseCode::Fenced, false),
        (CloseCode::Version, false),
        (CloseCode::Misbehaved, false),
        (CloseCode::Internal, true),
        (CloseCode::NewEpoch, true),
        (CloseCode::Other(999), true),
    ] {
        let hub = RawHub::bind(NATIVE).await;
        let (spoke, (connection, stream)) = tokio::join!(
            builder().connect(bind().await, hub.addr()),
            welcome_again(&hub, 1, 0)
        );
        let spoke = spoke.expect("a welcome");
        let mut watch = spoke.watch();
        let receipt = spoke.send(numbered(1)).await.expect("queued");
        connection.close((code.to_u64() as u32).into(), b"a reason");
        match next_status(&mut watch).await {
            SpokeStatus::Reconnecting {
                attempt: 1, closed, ..
            } => {
                assert!(comes_back, "{code}");
                assert_eq!(closed.code(), Some(code));
                let (_connection, _stream) = welcome_again(&hub, 1, 1).await;
                soon("a receipt", receipt.delivered())
                    .await
                    .expect("acknowledged by the welcome");
                spoke.shutdown().await;
            }
            SpokeStatus::Closed(closed) => {
                assert!(!comes_back, "{code}");
                assert_eq!(
                    closed,
                    Closed::ByPeer {
                        code,
                        reason: "a reason".to_owned()
                    }
                );
                let lost = soon("a receipt", receipt.delivered()).await;
                assert!(lost.is_err());
                let error = spoke.send(numbered(2)).await;
                assert!(matches!(error, Err(SpokeSendError::Closed { .. })));
            }
            other => panic!("{code}: {other:?}"),
        }
        drop(stream);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_breaks_the_protocol_is_not_asked_again() {
    let hub = RawHub::bind(NATIVE).await;
    let (spoke, (connection, mut stream)) = tokio::join!(
        builder().connect(bind().await, hub.addr()),
        welcome_again(&hub, 1, 0)
    );
    let spoke = spoke.expect("a welcome");
    stream.write(raw::native(7, &[5], b"")).await;
    let closed = soon("the end", spoke.closed()).await;
    assert!(matches!(
        closed,
        Closed::ByUs {
            code: CloseCode::Misbehaved,
            ..
        }
    ));
    assert_eq!(
        raw::closed(&connection).await.0,
        CloseCode::Misbehaved.to_u64()
    );
    // A welcome that claims to have what was never sent is no better.
    let (spoke, (connection, stream)) = tokio::join!(
        builder().connect(bind().await, hub.addr()),
        welcome_again(&hub, 1, 0)
    );
    let spoke = spoke.expect("a welcome");
    connection.close(0u32.into(), b"");
    let (_connection, _stream) = welcome_again(&hub, 1, 9).await;
    let closed = soon("the end", spoke.closed()).await;
    assert_eq!(closed.code(), Some(CloseCode::Misbehaved), "{closed}");
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_goodbye_a_spoke_comes_back_only_if_it_was_told_to() {
    let (key, addr, endpoint) = bind_for_good().await;
    let first = Hub::builder().spawn(endpoint).expect("a fresh endpoint");
    let mut stays = quick();
    stays.after_goodbye = true;
    let leaves = spoke(&first, builder()).await;
    let stays = spoke(&first, Spoke::builder().reconnect(stays)).await;
    let mut listener = stays.listen("n");
    soon("a goodbye", first.shutdown()).await;
    drop(first);
    assert!(soon("the end", leaves.closed()).await.is_goodbye());
    let again = Hub::builder()
        .spawn(bind_again(&key, addr).await)
        .expect("a fresh endpoint");
    again.broadcast(numbered(5)).await.expect("open");
    next_missed(&mut listener).await;
    assert_eq!(number(&next_event(&mut listener).await), 5);
    stays.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_may_be_there_before_its_hub() {
    let (key, addr, endpoint) = bind_for_good().await;
    let hub_addr = endpoint.addr();
    endpoint.close().await;
    // Its socket is free when the last handle is gone.
    drop(endpoint);
    let limits = spoke_limits(|limits| limits.connect_timeout = Duration::from_millis(500));
    let spoke = builder()
        .limits(limits)
        .spawn(bind().await, hub_addr.clone());
    let mut watch = spoke.watch();
    let mut listener = spoke.listen("n");
    assert_eq!((spoke.position(), spoke.status()), (None, None));
    let early = spoke.send(numbered(7)).await.expect("queued");
    let SpokeStatus::Reconnecting {
        attempt: 1, closed, ..
    } = next_status(&mut watch).await
    else {
        panic!("not trying again");
    };
    assert!(matches!(closed, Closed::Lost { .. }), "{closed}");
    let hub = Hub::builder()
        .spawn(bind_again(&key, addr).await)
        .expect("a fresh endpoint");
    let mut heard = hub.listen("n");
    assert_eq!(number(&next_event(&mut heard).await), 7);
    soon("a receipt", early.delivered())
        .await
        .expect("delivered");
    assert!(matches!(
        next_news(&mut watch).await,
        SpokeStatus::Connected { .. }
    ));
    assert_eq!(spoke.position(), Some(hub.tip()));
    hub.broadcast(numbered(8)).await.expect("open");
    assert_eq!(number(&next_event(&mut listener).await), 8);
    spoke.shutdown().await;

    // One that nobody will ever welcome ends as soon as it is told to, or gives up.
    hub.shutdown().await;
    drop(hub);
    let mut three = quick();
    three.attempts = Some(3);
    let limits = spoke_limits(|limits| limits.connect_timeout = Duration::from_millis(100));
    let gives_up = Spoke::builder().limits(limits).reconnect(three);
    let spoke = gives_up.spawn(bind().await, hub_addr.clone());
    let lost = spoke.send(numbered(1)).await.expect("queued");
    let closed = soon("the end", spoke.closed()).await;
    assert!(matches!(closed, Closed::Lost { .. }), "{closed}");
    assert_eq!(spoke.metrics().link.attempts.get(), 4);
    let lost = soon("a receipt", lost.delivered()).await;
    assert!(matches!(lost, Err(Undelivered::NotDelivered { .. })));
    let spoke = builder().spawn(bind().await, hub_addr);
    soon("the end", spoke.shutdown()).await;
    assert!(spoke.is_closed().expect("it has ended").is_goodbye());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_is_answered_truthfully_wherever_it_lies() {
    let mut log = iroh_hub::log::LogConfig::default();
    log.max_events = 10;
    let hub = hub(Hub::builder().fan_out(FanOut::Direct).log(log)).await;
    for n in 0..25 {
        hub.broadcast(numbered(n)).await.expect("open");
    }
    let (epoch, head, tip) = (hub.tip().epoch, 15, 25);
    let other = iroh_hub::Epoch::from_u64(epoch.to_u64() ^ 1);
    let at = |offset| Position::new(epoch, offset);
    for (asked, hole) in [
        // In the log.
        (at(20), None),
        // Its head, and before it.
        (at(head), None),
        (at(head - 1), Some((at(head - 1), at(head)))),
        (at(0), Some((at(0), at(head)))),
        // The tip, and beyond it.
        (at(tip), None),
        (at(tip + 1), Some((at(tip + 1), at(tip)))),
        (at(u64::MAX), Some((at(u64::MAX), at(tip)))),
        // Of another life of the log.
        (
            Position::new(other, 20),
            Some((Position::new(other, 20), at(head))),
        ),
    ] {
        let spoke = spoke(&hub, builder().from(From::Position(asked))).await;
        let mut listener = with_statuses(&spoke);
        let mut holes = Vec::new();
        let mut position = asked;
        let wholly = loop {
            match next(&mut listener).await {
                Incoming::Status(SpokeStatus::Connected { .. }) => {}
                Incoming::Status(SpokeStatus::Recovered { wholly }) => break wholly,
                Incoming::Missed(missed) => {
                    holes.push((missed.from, missed.to));
                    position = missed.to;
                }
                Incoming::Event(event) => {
                    assert_eq!(event.position, Some(position), "{asked}");
                    assert_eq!(number(&event), position.offset);
                    position = position.next();
                }
                other => panic!("{asked}: {other:?}"),
            }
        };
        assert_eq!(holes, hole.into_iter().collect::<Vec<_>>(), "{asked}");
        assert_eq!(wholly, hole.is_none(), "{asked}");
        assert_eq!(position, at(tip), "{asked}");
        until("the position is the listeners'", || {
            spoke.position() == Some(at(tip))
        })
        .await;
        spoke.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_saved_position_nothing_is_lost_or_repeated() {
    let hub = hub(Hub::builder().fan_out(FanOut::Direct)).await;
    let mut handled: Option<Position> = None;
    let mut all = Vec::new();
    let broadcasting = tokio::spawn({
        let hub = hub.clone();
        async move {
            for n in 0..500 {
                hub.broadcast(numbered(n)).await.expect("open");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    while all.len() < 500 {
        let from = handled.map_or(From::Earliest, |at| From::Position(at.next()));
        let spoke = spoke(&hub, builder().from(from)).await;
        let mut listener = spoke.listen("n");
        // Some are handled, others are in the listener's queue when the spoke goes.
        for _ in 0..50.min(500 - all.len()) {
            let event = next_event(&mut listener).await;
            all.push(number(&event));
            handled = event.position;
        }
        drop(spoke);
    }
    assert_eq!(all, (0..500).collect::<Vec<_>>());
    broadcasting.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_by_the_topic_while_the_link_is_away() {
    let hub = Cuttable::start(Hub::builder().fan_out(FanOut::Gossip)).await;
    let spoke = spoke(&hub.hub, builder()).await;
    let mut listener = spoke.listen("n");
    until("it is on the topic", || spoke.is_on_topic()).await;
    hub.shut(true);
    assert_eq!(hub.cut(0), 1);
    until("the link is lost", || !connected(&spoke)).await;
    assert!(!spoke.is_on_topic(), "nobody would repair what is lost");
    for n in 0..20 {
        hub.hub.broadcast(numbered(n)).await.expect("open");
        let event = next_event(&mut listener).await;
        assert_eq!((number(&event), event.via), (n, Some(Via::Gossip)));
    }
    hub.shut(false);
    until("it is back on the topic", || spoke.is_on_topic()).await;
    for n in 20..40 {
        hub.hub.broadcast(numbered(n)).await.expect("open");
    }
    expect_numbers(&mut listener, 20, 20).await;
    assert_eq!(spoke.metrics().link.welcomed.get(), 2);
    spoke.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_that_hold_back_lose_nothing_when_links_break() {
    let hub = Cuttable::start(Hub::builder().fan_out(FanOut::Direct)).await;
    let spoke = spoke(&hub.hub, builder()).await;
    let options = ListenOptions::default().capacity(1);
    let options = options.on_full(iroh_hub::OnFull::Hold { at_most: LIMIT });
    let mut listener = iroh_hub::EventTarget::listen_with(&spoke, "n".into(), options);
    for n in 0..3_000 {
        hub.hub.broadcast(numbered(n)).await.expect("open");
        if n % 500 == 250 {
            // Its link ends and it comes back, though nobody takes what is here.
            let links = spoke.metrics().link.welcomed.get();
            hub.cut(0);
            until("it is back", || spoke.metrics().link.welcomed.get() > links).await;
        }
    }
    expect_numbers(&mut listener, 0, 3_000).await;
    spoke.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_shuts_down_without_a_link_ends_soon_and_sends_what_it_can() {
    let hub = Cuttable::start(Hub::builder().fan_out(FanOut::Direct)).await;
    let mut heard = hub.hub.listen("n");
    let first = spoke(&hub.hub, builder()).await;
    hub.shut(true);
    hub.cut(0);
    until("the link is lost", || !connected(&first)).await;
    // With nothing to send, there is nothing to wait for.
    soon("the end", first.shutdown()).await;
    assert!(first.is_closed().expect("it has ended").is_goodbye());
    hub.shut(false);
    let second = spoke(&hub.hub, builder()).await;
    hub.shut(true);
    hub.cut(0);
    until("the link is lost", || !connected(&second)).await;
    let receipt = second.send(numbered(3)).await.expect("queued");
    let ending = tokio::spawn(async move { second.shutdown().await });
    hub.shut(false);
    assert_eq!(number(&next_event(&mut heard).await), 3);
    soon("a receipt", receipt.delivered())
        .await
        .expect("delivered");
    soon("the end", ending).await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_task_is_left_behind_however_often_a_spoke_comes_back() {
    let hub = Cuttable::start(Hub::builder().fan_out(FanOut::Gossip)).await;
    let spoke = spoke(&hub.hub, builder()).await;
    until("it is on the topic", || spoke.is_on_topic()).await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let mut after_ten = 0;
    for round in 1..=60 {
        let links = spoke.metrics().link.welcomed.get();
        hub.cut(0);
        until("it is back", || spoke.metrics().link.welcomed.get() > links).await;
        if round == 10 {
            after_ten = tasks();
        }
    }
    // Connections are forgotten a while after they ended, so it may take a moment.
    until("tasks have ended", || tasks() <= after_ten + 10).await;
    until("it is on the topic", || spoke.is_on_topic()).await;
    spoke.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_spoke_ends_with_its_link() {
    let hub = hub_with(FanOut::Direct).await;
    let plain = || builder().protocol(Protocol::Compat).gossip(Gossip::Off);
    let first = spoke(&hub, plain()).await;
    hub.endpoint().close().await;
    soon("the end", first.closed()).await;
    // Nor does it wait for a hub that is not there.
    let limits = spoke_limits(|limits| limits.connect_timeout = Duration::from_millis(200));
    let second = plain().limits(limits).spawn(bind().await, hub.addr());
    let closed = soon("the end", second.closed()).await;
    assert!(matches!(closed, Closed::Lost { .. }), "{closed}");
}

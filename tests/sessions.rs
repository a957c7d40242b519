//! A spoke that is lost and comes back is the same spoke: what was sent to it and by it arrives once, in
//! order, or its sender is told.

mod common;

use std::time::Duration;

use common::{
    cuttable::Cuttable,
    raw::{Heard, NATIVE, RawPeer, RawStream, Welcomed, code},
    *,
};
use iroh_hub::{
    Behind, CloseCode, Delivery, Envelope, EventTarget, FanOut, Hub, HubBuilder, HubLimits,
    ListenOptions, Listener, Loss, OnFull, Path, SendError, SendOptions, SendReceipt, Spoke,
    SpokeChange, SpokeId, SpokeWatch, Undelivered, log::LogConfig,
};

async fn direct(change: impl FnOnce(&mut HubLimits)) -> Hub {
    let builder = Hub::builder().fan_out(FanOut::Direct);
    hub(builder.limits(hub_limits(change))).await
}

async fn next_change(watch: &mut SpokeWatch) -> SpokeChange {
    let change = soon("a change", watch.next()).await.expect("the hub lives");
    change.expect("no lag")
}

/// A spoke that speaks by hand, and may lose its connection.
struct Peer {
    peer: RawPeer,
    stream: RawStream,
    welcome: Welcomed,
}

impl Peer {
    async fn join(hub: &Hub) -> Self {
        Self::greet(RawPeer::connect(hub, NATIVE).await, raw::hello(1)).await
    }

    async fn greet(peer: RawPeer, hello: Vec<u8>) -> Self {
        let mut stream = peer.open().await;
        let welcome = stream.greet_with(hello).await;
        Self {
            peer,
            stream,
            welcome,
        }
    }

    /// Loses the connection without a goodbye, and waits until the hub has noticed.
    async fn lose(self, hub: &Hub) -> (iroh::Endpoint, [u8; 16]) {
        let id = self.id(hub);
        self.peer.connection.close(0u32.into(), b"");
        until("it is away", || {
            let spokes = hub.spokes();
            let info = spokes.iter().find(|info| info.id == id);
            info.is_none_or(|info| info.away)
        })
        .await;
        (self.peer.endpoint, self.welcome.session)
    }

    /// Comes back as the spoke that it was.
    async fn back(hub: &Hub, (endpoint, session): (iroh::Endpoint, [u8; 16]), taken: u64) -> Self {
        let peer = RawPeer::connect_from(endpoint, hub, NATIVE).await;
        let back = Self::greet(peer, raw::hello_again(session, taken)).await;
        assert_eq!(back.welcome.session, session, "it is known");
        back
    }

    fn id(&self, hub: &Hub) -> SpokeId {
        id_of(hub, self.peer.endpoint.id())
    }
}

fn id_of(hub: &Hub, endpoint: iroh::EndpointId) -> SpokeId {
    let spokes = hub.spokes();
    let info = spokes.iter().find(|info| info.id.endpoint == endpoint);
    info.expect("it is there").id
}

async fn send(hub: &Hub, to: SpokeId, numbers: std::ops::RangeInclusive<u64>) -> Vec<SendReceipt> {
    let mut receipts = Vec::new();
    for n in numbers {
        receipts.push(hub.send(to, numbered(n)).await.expect("there is room"));
    }
    receipts
}

async fn delivered(receipts: &[SendReceipt]) {
    for receipt in receipts {
        let delivered = soon("the end of an event", receipt.delivered()).await;
        delivered.expect("delivered");
    }
}

async fn publish(stream: &mut RawStream, seq: u64) {
    let digits = seq.to_string();
    let body = raw::body(b"n", b"", digits.as_bytes());
    stream.write(raw::publish(seq, 0, 1, &body)).await;
}

async fn expect_ack(stream: &mut RawStream, seq: u64) {
    loop {
        match stream.heard().await {
            Heard::Ack(acked) if acked < seq => {}
            other => return assert_eq!(other, Heard::Ack(seq)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_comes_back_is_the_same_spoke_and_gets_what_it_has_not_taken() {
    let hub = direct(|_| {}).await;
    let mut watch = hub.watch_spokes();
    let mut peer = Peer::join(&hub).await;
    let id = peer.id(&hub);
    let mut receipts = send(&hub, id, 1..=4).await;
    for n in 1..=4 {
        assert_eq!(peer.stream.targeted().await, (n, n));
    }
    peer.stream.write(raw::ack(0, 1)).await;
    delivered(&receipts[..1]).await;
    let lost = peer.lose(&hub).await;
    assert_eq!(hub.spoke_count(), 0);
    let [info] = &hub.spokes()[..] else {
        panic!("{:?}", hub.spokes())
    };
    assert_eq!((info.id, info.away), (id, true));
    // While it is away, and to its endpoint as well.
    receipts.extend(send(&hub, id, 5..=5).await);
    let endpoint = lost.0.id();
    receipts.push(hub.send(endpoint, numbered(6)).await.expect("kept"));
    assert!(receipts[1..].iter().all(|r| r.now() == Delivery::Pending));

    let mut peer = Peer::back(&hub, lost, 3).await;
    for n in 4..=6 {
        assert_eq!(peer.stream.targeted().await, (n, n));
    }
    peer.stream.write(raw::ack(0, 6)).await;
    delivered(&receipts).await;
    assert_eq!(peer.id(&hub), id);
    assert!(!hub.spokes()[0].away);
    assert_eq!(hub.metrics().spokes.returned.get(), 1);
    assert_eq!(hub.metrics().spokes.joined.get(), 1);
    for expected in ["joined", "away", "returned"] {
        let change = match next_change(&mut watch).await {
            SpokeChange::Joined { id, .. } => ("joined", id),
            SpokeChange::Away { id, .. } => ("away", id),
            SpokeChange::Returned { id, .. } => ("returned", id),
            other => panic!("{other:?}"),
        };
        assert_eq!(change, (expected, id));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_spoke_are_heard_once_however_often_it_sends_them() {
    let hub = direct(|_| {}).await;
    let mut heard = hub.listen("n");
    let mut peer = Peer::join(&hub).await;
    let id = peer.id(&hub);
    for seq in 1..=3 {
        publish(&mut peer.stream, seq).await;
    }
    expect_ack(&mut peer.stream, 3).await;
    let mut lost = peer.lose(&hub).await;
    for round in 1..=3u64 {
        let mut peer = Peer::back(&hub, lost, 0).await;
        let last = 3 * round;
        assert_eq!(peer.welcome.published, last);
        // What the hub has already, and what is new.
        for seq in last - 1..=last + 3 {
            publish(&mut peer.stream, seq).await;
        }
        expect_ack(&mut peer.stream, last + 3).await;
        lost = peer.lose(&hub).await;
    }
    for event in expect_numbers(&mut heard, 1, 12).await {
        assert_eq!(event.source, iroh_hub::Source::Spoke(id));
    }
    assert_eq!(hub.metrics().events.events_repeated.get(), 6);
    hub.shutdown().await;
    assert_eq!(heard.recv().await, None, "nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_handed_to_every_listener_though_its_link_ends_meanwhile() {
    let hub = direct(|_| {}).await;
    let hold = OnFull::Hold { at_most: LIMIT };
    let options = ListenOptions::default().capacity(1).on_full(hold);
    let mut slow: Vec<Listener> = (0..2)
        .map(|_| hub.listen_with("n".into(), options))
        .collect();
    let mut peer = Peer::join(&hub).await;
    for seq in 1..=2 {
        publish(&mut peer.stream, seq).await;
    }
    expect_ack(&mut peer.stream, 1).await;
    // The second has no room yet, and is not heard; its link ends.
    let received = || hub.metrics().events.events_received.get();
    until("the second is there", || received() == 2).await;
    let lost = peer.lose(&hub).await;
    let mut peer = Peer::back(&hub, lost, 0).await;
    assert_eq!(peer.welcome.published, 1);
    for seq in 2..=3 {
        publish(&mut peer.stream, seq).await;
    }
    for listener in &mut slow {
        expect_numbers(listener, 1, 1).await;
    }
    for n in 2..=3 {
        for listener in &mut slow {
            expect_numbers(listener, n, 1).await;
        }
    }
    expect_ack(&mut peer.stream, 3).await;
    assert_eq!(received(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_link_of_a_spoke_fences_the_older_one_off() {
    let hub = direct(|_| {}).await;
    let mut heard = hub.listen("n");
    let mut watch = hub.watch_spokes();
    let mut old = Peer::join(&hub).await;
    let id = old.id(&hub);
    publish(&mut old.stream, 1).await;
    expect_ack(&mut old.stream, 1).await;
    let receipts = send(&hub, id, 1..=2).await;
    let session = old.welcome.session;
    let mut new = Peer::back(&hub, (old.peer.endpoint.clone(), session), 0).await;
    assert_eq!(new.welcome.published, 1);
    let (closed, reason) = old.peer.closed().await;
    assert_eq!(closed, code::FENCED, "{reason}");
    assert_eq!((new.id(&hub), hub.spoke_count()), (id, 1));
    // The old stream is dead: what comes along it is not heard, and its acknowledgements count for nothing.
    publish(&mut old.stream, 2).await;
    for n in 1..=2 {
        assert_eq!(new.stream.targeted().await, (n, n));
    }
    publish(&mut new.stream, 2).await;
    expect_ack(&mut new.stream, 2).await;
    expect_numbers(&mut heard, 1, 2).await;
    assert!(receipts.iter().all(|r| r.now() == Delivery::Pending));
    new.stream.write(raw::ack(0, 2)).await;
    delivered(&receipts).await;
    assert_eq!(hub.metrics().spokes.fenced.get(), 1);
    assert!(matches!(
        next_change(&mut watch).await,
        SpokeChange::Joined { .. }
    ));
    match next_change(&mut watch).await {
        SpokeChange::Away { closed, .. } => assert_eq!(closed.code(), Some(CloseCode::Fenced)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        next_change(&mut watch).await,
        SpokeChange::Returned { .. }
    ));
    hub.shutdown().await;
    assert_eq!(heard.recv().await, None, "nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_come_back_in_time_is_gone_and_its_senders_know_what_was_on_its_way() {
    let hub = direct(|limits| limits.session_lifetime = Duration::from_millis(500)).await;
    let mut watch = hub.watch_spokes();
    let mut peer = Peer::join(&hub).await;
    let id = peer.id(&hub);
    let written = send(&hub, id, 1..=2).await;
    for n in 1..=2 {
        assert_eq!(peer.stream.targeted().await, (n, n));
    }
    let lost = peer.lose(&hub).await;
    let unwritten = send(&hub, id, 3..=4).await;
    for receipt in &written {
        let error = soon("the end", receipt.delivered()).await.unwrap_err();
        assert!(
            matches!(
                error,
                Undelivered::MaybeDelivered {
                    reason: Loss::Expired,
                    ..
                }
            ),
            "{error:?}"
        );
    }
    for receipt in &unwritten {
        let error = soon("the end", receipt.delivered()).await.unwrap_err();
        assert!(
            matches!(
                error,
                Undelivered::NotDelivered {
                    reason: Loss::Expired,
                    ..
                }
            ),
            "{error:?}"
        );
    }
    for _ in ["joined", "away"] {
        next_change(&mut watch).await;
    }
    match next_change(&mut watch).await {
        SpokeChange::Left { id: left, .. } => assert_eq!(left, id),
        other => panic!("{other:?}"),
    }
    assert!(hub.spokes().is_empty());
    let error = hub.send(id, numbered(5)).await.unwrap_err();
    assert!(matches!(error, SendError::NoSuchSpoke { .. }));
    let metrics = hub.metrics();
    assert_eq!(metrics.spokes.expired.get(), 1);
    assert_eq!(metrics.events.targeted_lost.get(), 2);
    assert_eq!(metrics.events.targeted_unknown.get(), 2);
    // Too late: it is a new spoke now.
    let peer = RawPeer::connect_from(lost.0, &hub, NATIVE).await;
    let late = Peer::greet(peer, raw::hello_again(lost.1, 2)).await;
    assert_ne!(late.welcome.session, lost.1);
    assert_eq!(late.welcome.published, 0);
    assert_ne!(late.id(&hub), id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_worth_nothing_to_anyone_else_nor_to_another_hub() {
    let hub = direct(|_| {}).await;
    let victim = Peer::join(&hub).await;
    let id = victim.id(&hub);
    let lost = victim.lose(&hub).await;
    let receipts = send(&hub, id, 1..=1).await;
    // Stolen, or guessed.
    for session in [lost.1, [0; 16]] {
        let peer = RawPeer::connect(&hub, NATIVE).await;
        let mut thief = Peer::greet(peer, raw::hello_again(session, 0)).await;
        assert_ne!(thief.welcome.session, session);
        assert_ne!(thief.id(&hub), id);
        // It gets what is sent to itself, and nothing else.
        let to_thief = send(&hub, thief.id(&hub), 7..=7).await;
        assert_eq!(thief.stream.targeted().await, (1, 7));
        thief.stream.write(raw::ack(0, 1)).await;
        delivered(&to_thief).await;
    }
    let mut victim = Peer::back(&hub, lost, 0).await;
    assert_eq!(victim.stream.targeted().await, (1, 1));
    victim.stream.write(raw::ack(0, 1)).await;
    delivered(&receipts).await;

    // A hub that was started again does not know the session, and says so by giving another.
    let again = direct(|_| {}).await;
    let peer = RawPeer::connect_from(victim.peer.endpoint.clone(), &again, NATIVE).await;
    let unknown = Peer::greet(peer, raw::hello_again(victim.welcome.session, 1)).await;
    assert_ne!(unknown.welcome.session, victim.welcome.session);
    assert_eq!(unknown.welcome.published, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_takes_or_acknowledges_what_it_cannot_have_is_sent_away() {
    let hub = direct(|_| {}).await;
    let mut peer = Peer::join(&hub).await;
    let id = peer.id(&hub);
    let endpoint = peer.peer.endpoint.clone();
    let session = peer.welcome.session;
    let receipts = send(&hub, id, 1..=3).await;
    for n in 1..=3 {
        assert_eq!(peer.stream.targeted().await, (n, n));
    }
    peer.stream.write(raw::ack(0, 2)).await;
    delivered(&receipts[..2]).await;
    // It claims more than was sent, or less than it acknowledged: no link, and the one it has goes on.
    for taken in [4, u64::MAX, 1] {
        let liar = RawPeer::connect_from(endpoint.clone(), &hub, NATIVE).await;
        let mut stream = liar.open().await;
        stream.write(raw::hello_again(session, taken)).await;
        let (closed, reason) = liar.closed().await;
        assert_eq!(closed, code::MISBEHAVED, "{reason}");
    }
    let more = send(&hub, id, 4..=4).await;
    assert_eq!(peer.stream.targeted().await, (4, 4));
    assert_eq!(hub.metrics().spokes.fenced.get(), 0);
    // An acknowledgement of what was not sent ends the session: it is not to be trusted with another link.
    peer.stream.write(raw::ack(0, 5)).await;
    assert_eq!(peer.peer.closed().await.0, code::MISBEHAVED);
    for receipt in receipts[2..].iter().chain(&more) {
        let error = soon("the end", receipt.delivered()).await.unwrap_err();
        assert!(
            matches!(
                &error,
                Undelivered::MaybeDelivered {
                    reason: Loss::Closed(closed),
                    ..
                } if closed.code() == Some(CloseCode::Misbehaved)
            ),
            "{error:?}"
        );
    }
    assert!(hub.spokes().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_on_a_new_link_counts_only_for_what_was_sent_along_it() {
    let hub = direct(|_| {}).await;
    let mut peer = Peer::join(&hub).await;
    let id = peer.id(&hub);
    let receipts = send(&hub, id, 1..=2).await;
    assert_eq!(peer.stream.targeted().await, (1, 1));
    assert_eq!(peer.stream.targeted().await, (2, 2));
    let lost = peer.lose(&hub).await;
    // It says that it has taken the first one only, and gets the second one again.
    let mut peer = Peer::back(&hub, lost, 1).await;
    peer.stream.write(raw::ack(0, 1)).await;
    delivered(&receipts[..1]).await;
    assert_eq!(peer.stream.targeted().await, (2, 2));
    assert_eq!(receipts[1].now(), Delivery::Pending);
    peer.stream.write(raw::ack(0, 2)).await;
    delivered(&receipts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goodbye_ends_the_session_at_once() {
    let hub = direct(|_| {}).await;
    let mut peer = Peer::join(&hub).await;
    let id = peer.id(&hub);
    let receipts = send(&hub, id, 1..=1).await;
    assert_eq!(peer.stream.targeted().await, (1, 1));
    let (endpoint, session) = (peer.peer.endpoint.clone(), peer.welcome.session);
    peer.stream.finish();
    until("it has left", || hub.spokes().is_empty()).await;
    let error = soon("the end", receipts[0].delivered()).await.unwrap_err();
    assert!(
        matches!(
            &error,
            Undelivered::MaybeDelivered {
                reason: Loss::Closed(closed),
                ..
            } if closed.is_goodbye()
        ),
        "{error:?}"
    );
    let peer = RawPeer::connect_from(endpoint, &hub, NATIVE).await;
    let again = Peer::greet(peer, raw::hello_again(session, 0)).await;
    assert_ne!(again.welcome.session, session);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_those_who_are_away_is_bounded_and_who_has_most_of_it_gives_way() {
    let hub = direct(|limits| {
        limits.away_spokes = 3;
        limits.away_bytes = 3000;
    })
    .await;
    let mut lost = Vec::new();
    for _ in 0..4 {
        let peer = Peer::join(&hub).await;
        let id = peer.id(&hub);
        lost.push((id, peer.lose(&hub).await));
    }
    assert_eq!(hub.metrics().spokes.away.get(), 3);
    let (first, _) = lost.remove(0);
    let error = hub.send(first, numbered(0)).await.unwrap_err();
    assert!(matches!(error, SendError::NoSuchSpoke { .. }));
    // Of those that are left, the last is sent more and more, until it gives way: the others have no part in that.
    let event = || Envelope::new("n", &"x".repeat(500)).expect("JSON");
    let mut receipts = Vec::new();
    for (id, _) in &lost {
        receipts.push(hub.send(*id, event()).await.expect("room"));
    }
    let last = lost[2].0;
    let error = loop {
        assert!(receipts.len() < 10, "the bound holds");
        match hub.send(last, event()).await {
            Ok(receipt) => receipts.push(receipt),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SendError::NoSuchSpoke { .. }));
    for receipt in &receipts[2..] {
        assert_eq!(receipt.now(), Delivery::NotDelivered(Loss::Evicted));
    }
    for receipt in &receipts[..2] {
        assert_eq!(receipt.now(), Delivery::Pending);
    }
    assert_eq!(hub.metrics().spokes.evicted.get(), 2);
    assert_eq!(hub.metrics().spokes.away.get(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_ends_tells_every_sender_the_truth() {
    let hub = direct(|limits| limits.drain_timeout = Duration::from_millis(300)).await;
    let mut takes = Peer::join(&hub).await;
    let mut stuck = Peer::join(&hub).await;
    let away = Peer::join(&hub).await;
    let away_id = away.id(&hub);
    let _lost = away.lose(&hub).await;
    let taken = send(&hub, takes.id(&hub), 1..=1).await;
    let written = send(&hub, stuck.id(&hub), 1..=1).await;
    let kept = send(&hub, away_id, 1..=1).await;
    assert_eq!(takes.stream.targeted().await, (1, 1));
    assert_eq!(stuck.stream.targeted().await, (1, 1));
    takes.stream.write(raw::ack(0, 1)).await;
    let drained = soon("the end", hub.shutdown()).await;
    let behind: Vec<_> = drained.behind.iter().map(|info| info.id.endpoint).collect();
    assert_eq!(behind, [stuck.peer.endpoint.id()]);
    delivered(&taken).await;
    let maybe = written[0].now();
    assert!(matches!(maybe, Delivery::MaybeDelivered(_)), "{maybe:?}");
    assert_eq!(kept[0].now(), Delivery::NotDelivered(Loss::ShutDown));
}

/// Takes broadcasts and targeted events by hand, and gives back the order: `Err` for targeted ones.
async fn order_of(stream: &mut RawStream, count: usize) -> Vec<Result<u64, u64>> {
    let mut order = Vec::new();
    while order.len() < count {
        match stream.heard().await {
            Heard::Event(offset, _) => order.push(Ok(offset)),
            Heard::Targeted(_, after, body) => {
                let n = raw::number_in(&body);
                assert_eq!(after, if n < 100 { 5000 } else { 0 });
                order.push(Err(n));
            }
            other => panic!("{other:?}"),
        }
    }
    order
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_overtakes_waits_neither_for_broadcasts_nor_for_those_that_do() {
    let hub = direct(|_| {}).await;
    // More than the windows of a connection hold.
    for n in 0..5000 {
        let event = numbered(n).with_id(&"x".repeat(1000)).expect("an id");
        hub.broadcast(event).await.expect("open");
    }
    let peer = RawPeer::connect(&hub, NATIVE).await;
    let mut peer = Peer::greet(peer, raw::hello_from_earliest()).await;
    let id = peer.id(&hub);
    let overtake = SendOptions::default().overtake(true);
    for n in 1..=2 {
        let _ = hub.send(id, numbered(n)).await.expect("room");
        let sent = hub.send_with(id, numbered(100 + n), overtake).await;
        let _ = sent.expect("room");
    }
    let order = order_of(&mut peer.stream, 5004).await;
    assert_eq!(order[5002..], [Err(1), Err(2)], "behind every broadcast");
    let before: Vec<_> = order[..5002].iter().filter_map(|item| item.err()).collect();
    assert_eq!(before, [101, 102], "in their own order");
    assert_ne!(order[5000..5002], [Err(101), Err(102)], "they overtook");
    let offsets = order.iter().filter_map(|item| item.ok());
    assert!(offsets.eq(0..5000));
}

/// What comes next beside being asked to acknowledge, as whoever is half a log behind is.
async fn unasked(stream: &mut RawStream) -> Heard {
    loop {
        match stream.heard().await {
            Heard::AckNow(_) => {}
            other => return other,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_falls_behind_the_log_is_closed_where_that_is_the_policy_and_told_when_it_is_back() {
    let limits = hub_limits(|limits| {
        limits.behind = Behind::Close;
        limits.stall_after = Duration::from_millis(100);
    });
    let builder: HubBuilder = Hub::builder().fan_out(FanOut::Direct).limits(limits);
    let hub = hub(builder.log(LogConfig::default().with_max_events(2000))).await;
    let stuck = Peer::join(&hub).await;
    let id = stuck.id(&hub);
    for n in 0..10_000 {
        let event = numbered(n).with_id(&"x".repeat(1000)).expect("an id");
        soon("room", hub.broadcast(event)).await.expect("open");
    }
    match soon("the end", stuck.peer.connection.closed()).await {
        iroh::endpoint::ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code.into_inner(), code::FELL_BEHIND);
        }
        // A close is one packet; who loses it, flooded as it is, finds out when it speaks next.
        iroh::endpoint::ConnectionError::Reset => {}
        other => panic!("closed otherwise: {other:?}"),
    }
    until("it is away", || hub.metrics().spokes.away.get() == 1).await;
    // It comes back where it was, and is told what it missed rather than closed again.
    let epoch = stuck.welcome.epoch;
    let mut hello = vec![0, 1, 0, 1];
    hello.extend(stuck.welcome.session);
    for n in [0, 2, epoch, 0] {
        hello.extend(raw::varint(n));
    }
    let peer = RawPeer::connect_from(stuck.peer.endpoint.clone(), &hub, NATIVE).await;
    let mut back = Peer::greet(peer, raw::frame(hello)).await;
    assert_eq!(back.id(&hub), id);
    assert_eq!((back.welcome.start, back.welcome.continues), (0, true));
    let Heard::Missed(0, head) = unasked(&mut back.stream).await else {
        panic!("not told")
    };
    assert_eq!(head, 8000);
    match unasked(&mut back.stream).await {
        Heard::Event(offset, _) => assert_eq!(offset, head),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hole_sets_free_what_waited_for_the_events_in_it() {
    let limits = hub_limits(|limits| limits.stall_after = Duration::from_millis(50));
    let builder = Hub::builder().fan_out(FanOut::Direct).limits(limits);
    let hub = hub(builder.log(LogConfig::default().with_max_events(1000))).await;
    let mut slow = Peer::join(&hub).await;
    let id = slow.id(&hub);
    // More than the windows of a connection hold, with an event for it alone in every tenth place.
    let mut receipts = Vec::new();
    for n in 0..5000 {
        if n % 10 == 0 {
            receipts.extend(send(&hub, id, n..=n).await);
        }
        let event = numbered(n).with_id(&"x".repeat(1000)).expect("an id");
        soon("room", hub.broadcast(event)).await.expect("open");
    }
    let (mut next, mut missed, mut targeted) = (0, 0, 0);
    while next < 5000 || targeted < 500 {
        match unasked(&mut slow.stream).await {
            Heard::Event(offset, _) => {
                assert_eq!(offset, next);
                next += 1;
            }
            Heard::Missed(from, to) => {
                assert_eq!(from, next);
                missed += to - from;
                next = to;
            }
            Heard::Targeted(seq, after, body) => {
                assert_eq!((seq, raw::number_in(&body)), (targeted + 1, targeted * 10));
                assert_eq!(after, targeted * 10);
                assert!(after <= next, "behind what was sent before it");
                targeted += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(missed > 0, "5 MB do not fit into windows and log");
    slow.stream.write(raw::ack(5000, 500)).await;
    delivered(&receipts).await;
}

/// Hears broadcasts and targeted events of numbers that count up over both, and checks the order that is
/// promised: each kind in its own, and no targeted event before a broadcast with a lower number.
async fn hear_both(mut listener: Listener, rounds: u64) {
    let (mut broadcasts, mut targeted, mut overtaking) = (0, 0, 0);
    while broadcasts < rounds || targeted < rounds || overtaking < rounds {
        let event = next_event(&mut listener).await;
        let n = number(&event);
        match event.envelope.event_type() {
            "all" => {
                assert!(!event.targeted);
                assert_eq!(n, broadcasts);
                broadcasts += 1;
            }
            "you" => {
                assert!(event.targeted);
                assert_eq!(n, targeted);
                assert!(n < broadcasts, "{n} was sent after the broadcast {n}");
                targeted += 1;
            }
            _ => {
                assert_eq!(n, overtaking);
                overtaking += 1;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_either_path_and_over_lost_links_order_holds_and_receipts_are_true() {
    const ROUNDS: u64 = 300;
    for fan_out in [FanOut::Direct, FanOut::Gossip] {
        let hub = Cuttable::start(Hub::builder().fan_out(fan_out.clone())).await;
        let mut spokes = Vec::new();
        for _ in 0..5 {
            let spoke = spoke(&hub.hub, Spoke::builder()).await;
            let listener = spoke.listen("*");
            spokes.push((spoke, tokio::spawn(hear_both(listener, ROUNDS))));
        }
        if matches!(fan_out, FanOut::Gossip) {
            until("all are on the topic", || {
                let spokes = hub.hub.spokes();
                spokes.iter().all(|info| info.path == Path::Gossip)
            })
            .await;
        }
        let ids: Vec<SpokeId> = hub.hub.spokes().iter().map(|info| info.id).collect();
        let event = |kind, n: u64| Envelope::new(kind, &n).expect("JSON");
        let overtake = SendOptions::default().overtake(true);
        let (mut sent, mut broadcast) = (Vec::new(), Vec::new());
        for n in 0..ROUNDS {
            broadcast.push(hub.hub.broadcast(event("all", n)).await.expect("open"));
            for id in &ids {
                sent.push(hub.hub.send(*id, event("you", n)).await.expect("kept"));
                let first = hub.hub.send_with(*id, event("first", n), overtake);
                sent.push(first.await.expect("kept"));
            }
            if n % 50 == 49 {
                hub.cut(0);
            }
        }
        for (_, hearing) in &mut spokes {
            soon("everything", hearing).await.expect("in order");
        }
        delivered(&sent).await;
        for receipt in &broadcast {
            let all = receipt.all(LIMIT).await.expect("all have it");
            let mut acked = all.acked.clone();
            acked.sort();
            assert_eq!(acked, ids);
        }
        assert!(hub.hub.metrics().spokes.returned.get() >= 5);
        assert_eq!(hub.hub.metrics().spokes.joined.get(), 5);
        for (spoke, _) in &spokes {
            assert_eq!(spoke.metrics().reception.events_missed.get(), 0);
        }
        assert!(soon("the end", hub.hub.shutdown()).await.behind.is_empty());
    }
}

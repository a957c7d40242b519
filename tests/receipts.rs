//! The receipt of a broadcast tells who has it, truthfully, and in time for whoever waits.

mod common;

use std::time::Duration;

use common::{
    raw::{COMPAT, Heard, NATIVE, RawPeer, RawStream, Welcomed, code},
    *,
};
use iroh_hub::{
    Acknowledgements, FanOut, Gossip, Hub, HubLimits, NotAcknowledged, Path, Protocol, Receipt,
    Spoke, SpokeId, log::LogConfig,
};

const SOON: Duration = LIMIT;
const SHORT: Duration = Duration::from_millis(200);

async fn direct(change: impl FnOnce(&mut HubLimits)) -> Hub {
    let builder = Hub::builder().fan_out(FanOut::Direct);
    hub(builder.limits(hub_limits(change))).await
}

/// A native spoke that speaks by hand.
struct Peer {
    peer: RawPeer,
    stream: RawStream,
    welcome: Welcomed,
    id: SpokeId,
}

impl Peer {
    async fn join(hub: &Hub) -> Self {
        Self::with(hub, RawPeer::connect(hub, NATIVE).await, raw::hello(1)).await
    }

    async fn with(hub: &Hub, peer: RawPeer, hello: Vec<u8>) -> Self {
        let mut stream = peer.open().await;
        let welcome = stream.greet_with(hello).await;
        let endpoint = peer.endpoint.id();
        let spokes = hub.spokes();
        let info = spokes.iter().find(|info| info.id.endpoint == endpoint);
        Self {
            id: info.expect("it is there").id,
            peer,
            stream,
            welcome,
        }
    }

    async fn ack(&mut self, offset: u64) {
        self.stream.write(raw::ack(offset, 0)).await;
    }

    /// Waits until it is asked to acknowledge, and says up to where.
    async fn asked(&mut self) -> u64 {
        loop {
            if let Heard::AckNow(offset) = self.stream.heard().await {
                return offset;
            }
        }
    }
}

async fn broadcast(hub: &Hub, n: u64) -> Receipt {
    soon("room", hub.broadcast(numbered(n)))
        .await
        .expect("open")
}

fn sorted(mut spokes: Vec<SpokeId>) -> Vec<SpokeId> {
    spokes.sort();
    spokes
}

/// Waits until the hub knows it.
async fn until_now(receipt: &Receipt, known: impl Fn(&Acknowledgements) -> bool) {
    until("the hub knows", || known(&receipt.now())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_names_who_has_the_event_and_why_the_others_have_not() {
    let hub = direct(|_| {}).await;
    let alone = broadcast(&hub, 0).await;
    let all = alone.all(SOON).await.expect("nobody was there");
    assert_eq!(all, Acknowledgements::default());

    let mut acks = Peer::join(&hub).await;
    let mut misses = Peer::join(&hub).await;
    let goes = Peer::join(&hub).await;
    let waits = Peer::join(&hub).await;
    let plain = RawPeer::connect(&hub, COMPAT).await;
    let _stream = plain.spoke(COMPAT).await;
    until("all are there", || hub.spoke_count() == 5).await;
    let receipt = broadcast(&hub, 1).await;
    assert_eq!(receipt.position().offset, 1);
    // Who comes later has nothing to do with it.
    let late = Peer::join(&hub).await;
    let ids = [acks.id, misses.id, goes.id, waits.id];
    assert_eq!(sorted(receipt.now().waiting), sorted(ids.to_vec()));

    acks.ack(2).await;
    // It gave the event up, and acknowledges what it has let out beyond it.
    misses.stream.write(raw::missed(1, 2)).await;
    misses.ack(2).await;
    let gone = goes.id;
    goes.peer.leave().await;
    until_now(&receipt, |now| now.waiting.len() == 1).await;
    let now = receipt.now();
    assert_eq!(now.acked, [acks.id]);
    assert_eq!(now.missed, [misses.id]);
    assert_eq!(now.gone, [gone]);
    assert_eq!(now.waiting, [waits.id]);
    let [cannot] = &now.cannot_acknowledge[..] else {
        panic!("{now:?}")
    };
    assert_eq!(cannot.endpoint, plain.endpoint.id());
    assert!(!now.forgotten && !now.are_complete());

    // Of all, one is still waited for; of one, enough have it; of two, it depends on the one.
    let error = receipt.all(SHORT).await.unwrap_err();
    let NotAcknowledged::TimedOut {
        acknowledgements, ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(acknowledgements, now);
    receipt.at_least(1, SHORT).await.expect("one has it");
    let error = receipt.at_least(2, SHORT).await.unwrap_err();
    assert!(matches!(error, NotAcknowledged::TimedOut { .. }), "{error}");
    let error = receipt.at_least(3, SOON).await.unwrap_err();
    assert!(matches!(error, NotAcknowledged::TooFew { .. }), "{error}");
    waits.peer.leave().await;
    let error = soon("an answer", receipt.all(SOON)).await.unwrap_err();
    let NotAcknowledged::TooFew {
        acknowledgements, ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(acknowledgements.gone.len(), 2);
    // The next one is for those who are there now.
    let next = broadcast(&hub, 2).await.now();
    assert_eq!(
        sorted(next.waiting),
        sorted(vec![acks.id, misses.id, late.id])
    );
    hub.shutdown_within(Duration::ZERO).await;
    assert_eq!(receipt.now().acked, [acks.id], "remembered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_waited_for_is_asked_once_at_a_time_and_nobody_else_is() {
    let hub = direct(|_| {}).await;
    let mut peers = [Peer::join(&hub).await, Peer::join(&hub).await];
    let receipts = [
        broadcast(&hub, 0).await,
        broadcast(&hub, 1).await,
        broadcast(&hub, 2).await,
    ];
    let [one, other] = &mut peers;
    // Nobody asks for the first two of them, so nobody is asked.
    one.ack(1).await;
    other.ack(3).await;
    until_now(&receipts[2], |now| now.acked.len() == 1).await;
    let waiting = |n: usize| {
        let receipt: Receipt = receipts[n].clone();
        tokio::spawn(async move { receipt.all(SOON).await })
    };
    let mut waits = vec![waiting(1)];
    assert_eq!(one.asked().await, 2);
    // Until it has answered, it is not asked again.
    waits.push(waiting(2));
    until("it is waited for", || {
        // Asked for as well, though not along the stream.
        receipts[2].now().waiting.len() == 1
    })
    .await;
    one.ack(2).await;
    assert_eq!(one.asked().await, 3);
    one.ack(3).await;
    for wait in waits {
        let all = soon("all", wait).await.expect("no panic").expect("all");
        assert_eq!(all.acked.len(), 2);
    }
    // The other had acknowledged already: what it is sent next is an event.
    broadcast(&hub, 3).await;
    for offset in 0..=3 {
        match other.stream.heard().await {
            Heard::Event(at, _) => assert_eq!(at, offset),
            frame => panic!("{frame:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_is_away_is_waited_for_until_it_is_back_or_gone() {
    let hub = direct(|limits| limits.session_lifetime = Duration::from_secs(2)).await;
    let back = Peer::join(&hub).await;
    let gone = Peer::join(&hub).await;
    let receipt = broadcast(&hub, 0).await;
    for peer in [&back, &gone] {
        peer.peer.connection.close(0u32.into(), b"");
    }
    until("both are away", || hub.spoke_count() == 0).await;
    // Broadcast while it is away: it was there, for it may come back.
    let meanwhile = broadcast(&hub, 1).await;
    assert_eq!(meanwhile.now().waiting.len(), 2);
    let waiting = tokio::spawn({
        let receipt = receipt.clone();
        async move { receipt.all(SOON).await }
    });
    // It comes back, and has released the first event by now.
    let mut hello = vec![0, 1, 0, 1];
    hello.extend(back.welcome.session);
    for n in [0, 2, back.welcome.epoch, 1] {
        hello.extend(raw::varint(n));
    }
    let peer = RawPeer::connect_from(back.peer.endpoint.clone(), &hub, NATIVE).await;
    let mut again = Peer::with(&hub, peer, raw::frame(hello)).await;
    assert_eq!(again.id, back.id);
    assert_eq!(receipt.now().acked, [back.id]);
    // Who waits for the next one has it asked.
    let asks = tokio::spawn({
        let meanwhile = meanwhile.clone();
        async move { meanwhile.at_least(1, SOON).await }
    });
    assert_eq!(again.asked().await, 2);
    again.ack(2).await;
    let some = soon("one", asks).await.expect("no panic").expect("one");
    assert_eq!(some.acked, [back.id]);
    // The other does not.
    let error = soon("an end", waiting)
        .await
        .expect("no panic")
        .unwrap_err();
    let NotAcknowledged::TooFew {
        acknowledgements, ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(acknowledgements.acked, [back.id]);
    assert_eq!(acknowledgements.gone, [gone.id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spokes_are_asked_as_fast_as_the_hub_takes_acknowledgements_and_all_are_in_the_end() {
    // Twenty at once, and then ten a second.
    let hub = direct(|limits| limits.acks_per_s = 10).await;
    let mut peers = Vec::new();
    for _ in 0..25 {
        peers.push(Peer::join(&hub).await);
    }
    let receipt = broadcast(&hub, 0).await;
    let waiting = tokio::spawn(async move { receipt.all(SOON).await });
    let mut answers = tokio::task::JoinSet::new();
    for mut peer in peers {
        answers.spawn(async move {
            assert_eq!(peer.asked().await, 1);
            peer.ack(1).await;
            peer
        });
    }
    let all = soon("all", waiting).await.expect("no panic").expect("all");
    assert_eq!(all.acked.len(), 25);
    soon("all answered", answers.join_all()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_woken_when_a_spoke_comes_back_that_has_it() {
    let hub = direct(|_| {}).await;
    let peer = Peer::join(&hub).await;
    let receipt = broadcast(&hub, 0).await;
    peer.peer.connection.close(0u32.into(), b"");
    until("it is away", || hub.spoke_count() == 0).await;
    let waiting = tokio::spawn(async move { receipt.all(SOON).await });
    // It had released the event, and could not say so. It says nothing more on its new link.
    let mut hello = vec![0, 1, 0, 1];
    hello.extend(peer.welcome.session);
    for n in [0, 2, peer.welcome.epoch, 1] {
        hello.extend(raw::varint(n));
    }
    let connected = RawPeer::connect_from(peer.peer.endpoint.clone(), &hub, NATIVE).await;
    let again = Peer::with(&hub, connected, raw::frame(hello)).await;
    let all = soon("all", waiting).await.expect("no panic").expect("all");
    assert_eq!(all.acked, [again.id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ask_that_a_lost_link_did_not_answer_is_put_to_the_next_one() {
    let hub = direct(|_| {}).await;
    let mut peer = Peer::join(&hub).await;
    let receipt = broadcast(&hub, 0).await;
    let waiting = tokio::spawn({
        let receipt = receipt.clone();
        async move { receipt.all(SOON).await }
    });
    assert_eq!(peer.asked().await, 1);
    peer.peer.connection.close(0u32.into(), b"");
    until("it is away", || hub.spoke_count() == 0).await;
    let mut hello = vec![0, 1, 0, 1];
    hello.extend(peer.welcome.session);
    for n in [0, 2, peer.welcome.epoch, 0] {
        hello.extend(raw::varint(n));
    }
    let again = RawPeer::connect_from(peer.peer.endpoint.clone(), &hub, NATIVE).await;
    let mut again = Peer::with(&hub, again, raw::frame(hello)).await;
    assert_eq!(again.asked().await, 1);
    again.ack(1).await;
    soon("all", waiting).await.expect("no panic").expect("all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_log_lost_before_a_spoke_took_it_is_missed() {
    let limits = hub_limits(|limits| limits.stall_after = Duration::from_millis(50));
    let builder = Hub::builder().fan_out(FanOut::Direct).limits(limits);
    let hub = hub(builder.log(LogConfig::default().with_max_events(1000))).await;
    let mut peer = Peer::join(&hub).await;
    let mut receipts = Vec::new();
    // More than the windows of a connection hold.
    for n in 0..10_000 {
        let event = numbered(n).with_id(&"x".repeat(1000)).expect("an id");
        receipts.push(soon("room", hub.broadcast(event)).await.expect("open"));
    }
    // Now it takes what comes, and acknowledges it.
    let mut missed = Vec::new();
    let mut next = 0;
    while next < 10_000 {
        match peer.stream.heard().await {
            Heard::Event(offset, _) => {
                assert_eq!(offset, next);
                next += 1;
            }
            Heard::Missed(from, to) => {
                assert_eq!(from, next);
                missed.extend(from..to);
                next = to;
            }
            Heard::AckNow(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(!missed.is_empty());
    peer.ack(10_000).await;
    until_now(&receipts[9999], |now| now.acked.len() == 1).await;
    for (offset, receipt) in (0..).zip(&receipts) {
        let now = receipt.now();
        if missed.contains(&offset) {
            assert_eq!((&now.missed[..], now.acked.len()), (&[peer.id][..], 0));
        } else {
            assert_eq!((&now.acked[..], now.missed.len()), (&[peer.id][..], 0));
        }
    }
    let error = receipts[missed[0] as usize].all(SOON).await.unwrap_err();
    assert!(matches!(error, NotAcknowledged::TooFew { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_are_gone_are_remembered_up_to_a_bound_and_then_that_is_said() {
    let hub = direct(|limits| limits.remembered_spokes = 2).await;
    let mut receipts = Vec::new();
    for n in 0..4 {
        let peer = Peer::join(&hub).await;
        receipts.push(broadcast(&hub, n).await);
        peer.peer.leave().await;
        until("it has left", || hub.spokes().is_empty()).await;
    }
    for (n, receipt) in receipts.iter().enumerate() {
        let now = receipt.now();
        assert_eq!(
            (now.forgotten, now.gone.len()),
            (n < 2, usize::from(n >= 2))
        );
    }
    let error = receipts[0].all(SOON).await.unwrap_err();
    assert!(matches!(error, NotAcknowledged::TooFew { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_of_what_does_not_exist_makes_no_receipt_true() {
    let hub = direct(|_| {}).await;
    let mut liar = Peer::join(&hub).await;
    let receipt = broadcast(&hub, 0).await;
    liar.ack(2).await;
    assert_eq!(liar.peer.closed().await.0, code::MISBEHAVED);
    until_now(&receipt, |now| now.gone == [liar.id]).await;
    let mut liar = Peer::join(&hub).await;
    broadcast(&hub, 1).await;
    liar.stream.write(raw::missed(1, 3)).await;
    assert_eq!(liar.peer.closed().await.0, code::MISBEHAVED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spokes_on_the_topic_acknowledge_at_once_when_somebody_waits() {
    let hub = hub_with(FanOut::Gossip).await;
    let mut spokes = Vec::new();
    for n in 0..6 {
        let gossip = if n == 0 { Gossip::Off } else { Gossip::Full };
        let spoke = spoke(&hub, Spoke::builder().gossip(gossip)).await;
        spokes.push((spoke.listen("n"), spoke));
    }
    let plain = spoke(&hub, Spoke::builder().protocol(Protocol::Compat)).await;
    let mut listener = plain.listen("n");
    until("they are on the topic", || {
        let spokes = hub.spokes();
        let on_topic = spokes.iter().filter(|info| info.path == Path::Gossip);
        on_topic.count() == 5 && spokes.len() == 7
    })
    .await;
    for n in 0..100 {
        let receipt = broadcast(&hub, n).await;
        let all = soon("all", receipt.all(SOON)).await.expect("all");
        assert_eq!((all.acked.len(), all.cannot_acknowledge.len()), (6, 1));
        // They say that they have handed it to their listeners.
        for (listener, _) in &mut spokes {
            assert_eq!(number(&next_event(listener).await), n);
        }
    }
    expect_numbers(&mut listener, 0, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_goodbye_says_first_what_it_has() {
    let hub = hub_with(FanOut::Direct).await;
    for n in 0..20 {
        let spoke = spoke(&hub, Spoke::builder()).await;
        let mut listener = spoke.listen("n");
        let receipt = broadcast(&hub, n).await;
        assert_eq!(number(&next_event(&mut listener).await), n);
        // Long before it would have acknowledged one event.
        soon("the end", spoke.shutdown()).await;
        let known = soon("all", receipt.all(SOON)).await.expect("all");
        assert_eq!((known.acked.len(), known.gone.len()), (1, 0), "{n}");
        until("it has left", || hub.spoke_count() == 0).await;
    }
}

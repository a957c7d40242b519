//! Listeners and event targets: who is slow is told and disturbs nobody, what does not decode is an
//! error value, and code over `EventTarget` does not know where events go.

mod common;

use common::{
    raw::{COMPAT, RawPeer},
    *,
};
use iroh_hub::{
    Envelope, EventTarget, EventTargetExt, FanOut, Hub, Incoming, Lagged, ListenOptions,
    LocalTarget, OnFull, Protocol, Source, Spoke, TypedEvent, TypedListenError,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, PartialEq, Clone, Debug)]
struct Order {
    number: u64,
    note: String,
}

impl TypedEvent for Order {
    const TYPE: &'static str = "order";
}

fn order(number: u64) -> Order {
    Order {
        number,
        note: "grüß dich, 世界".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_is_slow_is_told_and_no_other_is_disturbed() {
    let hub = hub_with(FanOut::Direct).await;
    let spoke = spoke(&hub, Spoke::builder()).await;
    let lags = ListenOptions::default().capacity(10).on_full(OnFull::Lag);
    let mut slow = spoke.listen_with("n".into(), lags);
    let mut quick = spoke.listen("n");
    let mut last = spoke.listen("last");
    for n in 0..500 {
        hub.broadcast(numbered(n)).await.expect("open");
    }
    hub.broadcast(Envelope::new("last", &()).expect("JSON"))
        .await
        .expect("open");
    expect_numbers(&mut quick, 0, 500).await;
    next_event(&mut last).await;
    expect_numbers(&mut slow, 0, 10).await;
    let told = soon("word of it", slow.recv()).await;
    assert_eq!(told, Some(Incoming::Lagged(Lagged { events: 490 })));
    // Caught up, it goes on behind the hole.
    hub.broadcast(numbered(500)).await.expect("open");
    assert_eq!(number(&next_event(&mut slow).await), 500);
    assert_eq!(number(&next_event(&mut quick).await), 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hubs_listener_that_is_slow_is_told_and_the_spokes_are_not_held_back() {
    let hub = hub_with(FanOut::Direct).await;
    let lags = ListenOptions::default().capacity(10).on_full(OnFull::Lag);
    let mut slow = hub.listen_with("n".into(), lags);
    let mut quick = hub.listen("n");
    let spoke = spoke(&hub, Spoke::builder()).await;
    for n in 0..500 {
        spoke.send(numbered(n)).await.expect("the link stands");
    }
    soon("the hub", spoke.flush()).await.expect("taken");
    expect_numbers(&mut quick, 0, 500).await;
    expect_numbers(&mut slow, 0, 10).await;
    let told = soon("word of it", slow.recv()).await;
    assert_eq!(told, Some(Incoming::Lagged(Lagged { events: 490 })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_holds_its_link_back_loses_nothing() {
    let hub = hub_with(FanOut::Direct).await;
    for protocol in [Protocol::Native, Protocol::Compat] {
        let spoke = spoke(&hub, Spoke::builder().protocol(protocol)).await;
        until("it is there", || hub.spoke_count() == 1).await;
        let hold = OnFull::Hold { at_most: LIMIT };
        let options = ListenOptions::default().capacity(1).on_full(hold);
        let mut slow = spoke.listen_with("n".into(), options);
        for n in 0..3000 {
            hub.broadcast(numbered(n)).await.expect("open");
        }
        expect_numbers(&mut slow, 0, 3000).await;
        spoke.shutdown().await;
        until("it has left", || hub.spoke_count() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_get_what_their_patterns_match() {
    let hub = hub_with(FanOut::Direct).await;
    let spoke = spoke(&hub, Spoke::builder()).await;
    let mut exact = spoke.listen("order.created");
    let mut orders = spoke.listen("order.*");
    let mut all = spoke.listen("*");
    let types = ["order.created", "price", "order.item.added", "orders"];
    for event_type in types {
        let event = Envelope::new(event_type, &1).expect("JSON");
        hub.broadcast(event).await.expect("open");
    }
    for expected in types {
        assert_eq!(next_event(&mut all).await.envelope.event_type(), expected);
    }
    for expected in ["order.created", "order.item.added"] {
        assert_eq!(
            next_event(&mut orders).await.envelope.event_type(),
            expected
        );
    }
    assert_eq!(
        next_event(&mut exact).await.envelope.event_type(),
        "order.created"
    );
    spoke.shutdown().await;
    assert_eq!(exact.recv().await, None);
    assert_eq!(orders.recv().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_of_another_shape_is_an_error_value_for_its_listener_alone() {
    let hub = hub_with(FanOut::Direct).await;
    let mut orders = hub.listen_typed::<Order>();
    let mut raw_orders = hub.listen("order");
    // What others write does not always fit.
    let peer = RawPeer::connect(&hub, COMPAT).await;
    let mut stream = peer.spoke(COMPAT).await;
    for payload in [
        r#"{"number":-1,"note":""}"#,
        "null",
        r#"{"number":7,"note":"x"}"#,
    ] {
        let json = format!(r#"{{"type":"order","payload":{payload}}}"#);
        stream.write(raw::frame(json)).await;
    }
    for expected in [r#"{"number":-1,"note":""}"#, "null"] {
        match soon("an error", orders.recv()).await {
            Some(Err(TypedListenError::Decode { event, source, .. })) => {
                assert_eq!(event.envelope.payload_json(), expected);
                assert!(source.to_string().contains("order"), "{source}");
                let Source::Spoke(id) = event.source else {
                    panic!("not from a spoke: {event:?}");
                };
                assert_eq!(id.endpoint, peer.endpoint.id());
            }
            other => panic!("{other:?}"),
        }
    }
    let good = soon("an order", orders.recv())
        .await
        .expect("open")
        .expect("it fits");
    assert_eq!(good.value.number, 7);
    for _ in 0..3 {
        next_event(&mut raw_orders).await;
    }
    peer.leave().await;
}

/// Knows nothing of where its events go.
async fn place_orders(target: &dyn EventTarget, count: u64) {
    for n in 0..count {
        target.emit(&order(n)).await.expect("the target is open");
    }
}

async fn take_orders(target: &dyn EventTarget, from: &dyn EventTarget, count: u64) -> Vec<Source> {
    let mut orders = target.listen_typed::<Order>();
    place_orders(from, count).await;
    let mut sources = Vec::new();
    for n in 0..count {
        let next = soon("an order", orders.recv()).await.expect("open");
        let typed = next.expect("it fits");
        assert_eq!(typed.value, order(n));
        sources.push(typed.event.source);
    }
    sources
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_function_runs_over_a_hub_a_spoke_and_a_local_target() {
    let hub = hub_with(FanOut::Direct).await;
    let spoke = spoke(&hub, Spoke::builder()).await;
    let local = LocalTarget::new();
    let targets: [(&dyn EventTarget, &dyn EventTarget); 3] =
        [(&spoke, &hub), (&hub, &spoke), (&local, &local)];
    for (n, (listens, speaks)) in targets.into_iter().enumerate() {
        for source in take_orders(listens, speaks, 50).await {
            match (n, source) {
                (0, Source::Hub(id)) => assert_eq!(id, hub.id()),
                (1, Source::Spoke(id)) => assert_eq!(id.endpoint, spoke.endpoint().id()),
                (2, Source::Local) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    // What is over is an error, by the same trait.
    hub.shutdown().await;
    soon("the end", spoke.closed()).await;
    for target in [&hub as &dyn EventTarget, &spoke] {
        assert!(target.emit(&order(1)).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_between_connecting_and_listening() {
    let hub = Hub::builder().spawn(bind().await).expect("open");
    let spoke = spoke(&hub, Spoke::builder()).await;
    spoke.send(numbered(1)).await.expect("the link stands");
    hub.broadcast(numbered(2)).await.expect("open");
    let mut heard = hub.listen("n");
    let mut listener = spoke.listen("n");
    assert_eq!(number(&next_event(&mut heard).await), 1);
    assert_eq!(number(&next_event(&mut listener).await), 2);
}

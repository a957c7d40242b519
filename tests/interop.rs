//! Clients in other languages over `alkpubsub/1`. They need `tests/interop/install` first, which is why
//! the tests are ignored by default: `cargo test --test interop -- --ignored`.

#[path = "interop/clients.rs"]
mod clients;
mod common;

use std::collections::BTreeMap;

use clients::{Client, Runtime};
use common::*;
use iroh_hub::{
    Admission, Closed, ConnectError, Envelope, Event, FanOut, Hub, Listener, Path, Protocol,
    Source, Spoke, SpokeId,
};
use serde_json::{Value, json};

fn envelope(event: &Value) -> Envelope {
    serde_json::from_value(event.clone()).expect("an envelope")
}

fn sender(event: &Event) -> SpokeId {
    match event.source {
        Source::Spoke(id) => id,
        other => panic!("not from a spoke: {other:?}"),
    }
}

/// The id of each client, by the name that it says hello with.
async fn greetings(heard: &mut Listener, count: usize) -> BTreeMap<String, SpokeId> {
    let mut ids = BTreeMap::new();
    for _ in 0..count {
        let event = next_event(heard).await;
        let name: String = event.envelope.payload().expect("a name");
        assert_eq!(ids.insert(name, sender(&event)), None);
    }
    ids
}

/// A client on each runtime, and another; each says hello with its name.
fn two_of_each(ticket: &str, args: &[&str]) -> Vec<(String, Client)> {
    let mut clients = Vec::new();
    for runtime in Runtime::ALL {
        for n in 0..2 {
            let name = format!("{runtime:?} {n} grüßt die 世界");
            let hello = json!({"type": "hello", "payload": name}).to_string();
            let args = [args, &["--send", &hello]].concat();
            clients.push((name, Client::spoke(runtime, ticket, &args)));
        }
    }
    clients
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs node, deno and python packages; .ci/run installs them"]
async fn clients_of_all_languages_share_a_hub_with_native_spokes_on_gossip() {
    const BROADCASTS: usize = 200;
    let hub = hub_with(FanOut::Gossip).await;
    let mut hellos = hub.listen("hello");
    let mut replies = hub.listen("reply");
    let mut natives = Vec::new();
    for _ in 0..3 {
        let spoke = spoke(&hub, Spoke::builder()).await;
        natives.push((spoke.listen("n"), spoke));
    }
    let count = (BROADCASTS + 1).to_string();
    let args = ["--reply", "--count", &count];
    let clients = two_of_each(&hub.ticket().to_string(), &args);
    let ids = greetings(&mut hellos, clients.len()).await;
    until("the native are on the tree", || {
        let on_tree = |info: &&iroh_hub::SpokeInfo| info.path == Path::Gossip;
        hub.spokes().iter().filter(on_tree).count() == natives.len()
    })
    .await;

    let broadcasts: Vec<Value> = (0..BROADCASTS)
        .map(|n| json!({"type": "n", "id": format!("#{n}"), "payload": n}))
        .collect();
    for event in &broadcasts {
        hub.broadcast(envelope(event)).await.expect("open");
    }
    let targeted = |id: SpokeId| json!({"type": "you", "id": "#you", "payload": id.to_string()});
    for id in ids.values() {
        hub.send(*id, envelope(&targeted(*id)))
            .await
            .expect("there");
    }
    for (listener, _) in &mut natives {
        expect_numbers(listener, 0, BROADCASTS as u64).await;
    }
    let mut clients = clients;
    for (name, client) in &mut clients {
        assert_eq!(client.events(BROADCASTS).await, broadcasts, "{name}");
        assert_eq!(client.event().await, targeted(ids[name]), "{name}");
    }
    // Each answered each event, in order.
    let mut answered: BTreeMap<SpokeId, usize> = BTreeMap::new();
    for _ in 0..clients.len() * (BROADCASTS + 1) {
        let event = next_event(&mut replies).await;
        let answered = answered.entry(sender(&event)).or_default();
        let to: Value = event.envelope.payload().expect("JSON");
        let expected = match *answered {
            BROADCASTS => json!({"to": "#you", "type": "you"}),
            n => json!({"to": format!("#{n}"), "type": "n"}),
        };
        assert_eq!(to, expected);
        *answered += 1;
    }
    assert_eq!(answered.len(), clients.len());
    for (_, client) in clients {
        client.exits(0).await;
    }
    until("they have left", || hub.spoke_count() == natives.len()).await;
    assert_eq!(hub.metrics().direct.links_failed.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs node, deno and python packages; .ci/run installs them"]
async fn a_hub_that_says_goodbye_ends_clients_of_all_languages_well() {
    let hub = hub_with(FanOut::Direct).await;
    let mut hellos = hub.listen("hello");
    let mut clients = two_of_each(&hub.ticket().to_string(), &[]);
    greetings(&mut hellos, clients.len()).await;
    let event = json!({"type": "last words", "id": "", "payload": "ä".repeat(100_000)});
    hub.broadcast(envelope(&event)).await.expect("open");
    let drained = soon("the end", hub.shutdown()).await;
    assert!(drained.behind.is_empty(), "{drained:?}");
    for (name, client) in &mut clients {
        assert_eq!(client.event().await, event, "{name}");
    }
    for (_, client) in clients {
        client.exits(0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs node, deno and python packages; .ci/run installs them"]
async fn a_client_that_the_rust_hub_refuses_learns_the_reason() {
    let hub = hub(Hub::builder().admission(Admission::allow_list([]))).await;
    let ticket = hub.ticket().to_string();
    for runtime in Runtime::ALL {
        let spoke = Client::spoke(runtime, &ticket, &["--count", "1"]);
        let stderr = spoke.exits(3).await;
        assert_eq!(
            stderr,
            "closed by the hub: this endpoint is not admitted (code 2)\n"
        );
    }
    assert_eq!(
        hub.metrics().admission.refused.get(),
        Runtime::ALL.len() as u64
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs node, deno and python packages; .ci/run installs them"]
async fn a_rust_spoke_joins_a_hub_in_javascript() {
    for runtime in [Runtime::Node, Runtime::Deno] {
        let (mut hub, ticket) = Client::hub(runtime, &["--echo"]).await;
        let plain = Spoke::builder().protocol(Protocol::Compat);
        let spoke = plain.connect_ticket(bind().await, &ticket).await;
        let spoke = spoke.expect("a stream");
        let me = spoke.endpoint().id().to_string();
        let mut listener = spoke.listen("*");
        let hello = json!({"type": "hello", "id": "h", "payload": {"text": "grüß dich, 世界"}});
        spoke.send(envelope(&hello)).await.expect("the link stands");
        let heard = hub.event().await;
        assert_eq!(heard["from"], me);
        assert_eq!(heard["payload"], hello["payload"]);
        let echo = next_event(&mut listener).await.envelope;
        assert_eq!((echo.event_type(), echo.id()), ("echo", "h"));
        let payload: Value = echo.payload().expect("JSON");
        assert_eq!(payload, hello["payload"]);

        for n in 0..200 {
            let to = if n % 10 == 9 { json!(me) } else { Value::Null };
            let mut event = json!({"type": "n", "id": "", "payload": n, "to": to});
            if to.is_null() {
                event.as_object_mut().expect("an object").remove("to");
            }
            hub.write(&event).await;
        }
        let events = expect_numbers(&mut listener, 0, 200).await;
        assert!(events.iter().all(|event| event.position.is_none()));
        spoke.shutdown().await;
        assert!(spoke.closed().await.is_goodbye());
    }
    let nobody = "0".repeat(64);
    let (_hub, ticket) = Client::hub(Runtime::Node, &["--allow", &nobody]).await;
    let plain = Spoke::builder().protocol(Protocol::Compat);
    let refused = match plain.connect_ticket(bind().await, &ticket).await {
        Ok(spoke) => soon("the refusal", spoke.closed()).await,
        Err(ConnectError::Refused { code, reason, .. }) => Closed::ByPeer { code, reason },
        Err(other) => panic!("not refused: {other:?}"),
    };
    assert_eq!(
        refused,
        Closed::ByPeer {
            code: iroh_hub::CloseCode::Refused,
            reason: "this hub does not admit you".to_owned()
        }
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs node, deno and python packages; .ci/run installs them"]
async fn clients_of_all_languages_share_a_hub_in_javascript() {
    for hub_runtime in [Runtime::Node, Runtime::Deno] {
        let (mut hub, ticket) = Client::hub(hub_runtime, &["--echo"]).await;
        let hello = json!({"type": "hello", "id": "h", "payload": "grüß dich, 世界"});
        let mut spokes: Vec<_> = Runtime::ALL
            .into_iter()
            .map(|runtime| {
                let args = ["--count", "101", "--send", &hello.to_string()];
                Client::spoke(runtime, &ticket, &args)
            })
            .collect();
        for heard in hub.events(spokes.len()).await {
            assert_eq!(heard["payload"], hello["payload"]);
        }
        let events: Vec<Value> = (0..100)
            .map(|n| json!({"type": "tick", "id": n.to_string(), "payload": {"n": n}}))
            .collect();
        for event in &events {
            hub.write(event).await;
        }
        for spoke in &mut spokes {
            let echo = spoke.event().await;
            assert_eq!(echo["type"], "echo");
            assert_eq!(echo["payload"], hello["payload"]);
            assert_eq!(spoke.events(events.len()).await, events);
        }
        for spoke in spokes {
            spoke.exits(0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs node, deno and python packages; .ci/run installs them"]
async fn a_refused_client_learns_the_reason() {
    let nobody = "0".repeat(64);
    let (_hub, ticket) = Client::hub(Runtime::Node, &["--allow", &nobody]).await;
    for runtime in Runtime::ALL {
        let spoke = Client::spoke(runtime, &ticket, &["--count", "1"]);
        let stderr = spoke.exits(3).await;
        assert_eq!(
            stderr,
            "closed by the hub: this hub does not admit you (code 2)\n"
        );
    }
}

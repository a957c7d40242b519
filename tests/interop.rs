//! Clients in other languages over `alkpubsub/1`. They need `tests/interop/install` first, which is why
//! the tests are ignored by default: `cargo test --test interop -- --ignored`.

#[path = "interop/clients.rs"]
mod clients;

use clients::{Client, Runtime};
use serde_json::{Value, json};

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

//! The tracing events of docs/metrics.md: they come, at level debug, with the fields that it names. One test, since who
//! hears them is one to a process.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use common::{bind, expect_numbers, numbered, soon, spoke, until};
use iroh_hub::{FanOut, From, Hub, Path, Position, Spoke, log::LogConfig};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt, util::SubscriberInitExt};

const PREFIX: &str = "iroh_hub::_events::";

type Fields = BTreeSet<String>;

/// The level and the names of the fields with which each target came.
type ByTarget = BTreeMap<String, BTreeSet<(Level, Fields)>>;

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<ByTarget>>);

impl<S: Subscriber> Layer<S> for Heard {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if metadata.target().starts_with(PREFIX) {
            let fields = metadata
                .fields()
                .iter()
                .map(|field| field.name().to_owned());
            let mut heard = self.0.lock().expect("no panic");
            let of_target = heard.entry(metadata.target().to_owned()).or_default();
            of_target.insert((*metadata.level(), fields.collect()));
        }
    }
}

impl Heard {
    fn has(&self, name: &str) -> bool {
        let heard = self.0.lock().expect("no panic");
        heard.contains_key(&format!("{PREFIX}{name}"))
    }
}

/// The fields of each target that the docs list.
fn documented() -> BTreeMap<String, Fields> {
    let page = include_str!("../docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter(|row| row.starts_with(PREFIX))
        .map(|row| {
            let (target, rest) = row.split_once("` | ").expect(row);
            let (fields, _) = rest.split_once(" | ").expect(row);
            let fields = fields
                .split(", ")
                .map(|field| field.trim_matches('`').to_owned());
            (target.to_owned(), fields.collect())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_change_of_state_is_an_event_as_the_docs_list_it() {
    let heard = Heard::default();
    tracing_subscriber::registry().with(heard.clone()).init();

    let hub = Hub::builder()
        .fan_out(FanOut::Gossip)
        .log(LogConfig::default().with_max_events(20))
        .spawn(bind().await)
        .expect("a fresh endpoint");
    let on_topic = spoke(&hub, Spoke::builder()).await;
    let mut listener = on_topic.listen("*");
    until("the topic serves it", || {
        hub.spokes().iter().any(|spoke| spoke.path == Path::Gossip)
    })
    .await;
    for n in 0..50 {
        hub.broadcast(numbered(n)).await.expect("it is open");
        expect_numbers(&mut listener, n, 1).await;
    }

    let from = From::Position(Position::new(hub.tip().epoch, 0));
    let late = spoke(&hub, Spoke::builder().from(from)).await;
    until("it is told what it missed", || heard.has("spoke::missed")).await;
    until("it has the rest", || heard.has("hub::recovered")).await;
    soon("the end", late.shutdown()).await;

    let stranger = bind().await;
    hub.admission().deny(stranger.id());
    Spoke::connect(stranger, hub.addr())
        .await
        .expect_err("it is denied");

    hub.set_fan_out(FanOut::Direct).await;
    until("the topic ends", || heard.has("topic::ended")).await;
    soon("the end", on_topic.shutdown()).await;
    until("it is gone", || hub.spoke_count() == 0).await;
    soon("the end", hub.shutdown()).await;

    for name in [
        "hub::connected",
        "hub::recovered",
        "hub::missed",
        "hub::closed",
        "member::joins",
        "member::served",
        "member::left",
        "admission::refused",
        "direct::closed",
        "spoke::joined",
        "spoke::left",
        "spoke::moved",
        "spoke::missed",
        "topic::started",
        "topic::ended",
    ] {
        assert!(heard.has(name), "{name}");
    }
    let documented = documented();
    assert!(documented.len() > 7);
    for (target, seen) in heard.0.lock().expect("no panic").iter() {
        let fields = documented.get(target).expect(target);
        let as_documented = BTreeSet::from([(Level::DEBUG, fields.clone())]);
        assert_eq!(*seen, as_documented, "{target}");
    }
}

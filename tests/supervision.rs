//! The topic is made to fail, and spokes to fall behind: all events arrive all the same, the hub says what is
//! wrong, and mends it.

mod common;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    raw::{self, NATIVE, RawPeer},
    *,
};
use iroh_hub::{
    FanOut, GossipAcceptor, Health, Hub, Listener, Path, Problem, Spoke, TopicState,
    fault_support::{TopicFault, break_switchboard, break_topic, deafen},
};
use tokio::task::JoinHandle;

/// Broadcasts numbers until told to stop.
struct Publisher {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Publisher {
    fn start(hub: &Hub) -> Self {
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (hub, stopped, count) = (hub.clone(), stop.clone(), sent.clone());
        let task = tokio::spawn(async move {
            for n in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                hub.broadcast(numbered(n)).await.expect("open");
                count.store(n + 1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Self { stop, sent, task }
    }

    /// Waits until it has broadcast so many more.
    async fn goes_on(&self, events: u64) {
        let to = self.sent.load(Ordering::Relaxed) + events;
        until("events are broadcast", || {
            self.sent.load(Ordering::Relaxed) >= to
        })
        .await;
    }

    /// How many there were.
    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no panic");
        self.sent.load(Ordering::Relaxed)
    }
}

/// A spoke whose node on the topic can be got at.
struct Member {
    spoke: Spoke,
    listener: Listener,
    acceptor: GossipAcceptor,
}

async fn members(hub: &Hub, count: usize) -> Vec<Member> {
    let mut members = Vec::new();
    for _ in 0..count {
        let endpoint = bind().await;
        let acceptor = GossipAcceptor::new();
        let router = iroh::protocol::Router::builder(endpoint.clone())
            .accept(iroh_hub::GOSSIP_ALPN, acceptor.clone())
            .spawn();
        let builder = Spoke::builder().acceptor(acceptor.clone());
        let spoke = builder.connect(endpoint, hub.addr()).await.expect("let in");
        let listener = spoke.listen("n");
        members.push(Member {
            spoke,
            listener,
            acceptor,
        });
        // It lives as long as its endpoint.
        std::mem::forget(router);
    }
    members
}

async fn all_on_tree(hub: &Hub, spokes: usize) {
    until("all are on the tree", || {
        hub.health().gossip.spokes == spokes
    })
    .await;
}

async fn until_healthy(hub: &Hub) {
    let mut last = None;
    let healthy = || {
        let health = hub.health();
        let healthy = health.healthy;
        last = Some(health);
        healthy
    };
    until("the hub is healthy", healthy).await;
}

/// Watches a hub's health until dropped.
struct Seen(
    Arc<std::sync::Mutex<BTreeSet<&'static str>>>,
    JoinHandle<()>,
);

impl Seen {
    fn watch(hub: &Hub) -> Self {
        let seen = Arc::new(std::sync::Mutex::new(BTreeSet::new()));
        let (hub, all) = (hub.clone(), seen.clone());
        let task = tokio::spawn(async move {
            loop {
                let health = hub.health();
                check(&health);
                let state = match health.topic.state {
                    TopicState::Stalled => "stalled",
                    TopicState::Rebuilding => "rebuilding",
                    _ => "well",
                };
                all.lock().expect("no panic").insert(state);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self(seen, task)
    }

    fn has(&self, state: &str) -> bool {
        assert!(!self.1.is_finished(), "no panic");
        self.0.lock().expect("no panic").contains(state)
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.1.abort();
    }
}

/// What must hold of any health.
fn check(health: &Health) {
    assert_eq!(health.healthy, health.problems.is_empty(), "{health:?}");
    for (state, problem) in [
        (TopicState::Stalled, Problem::TopicStalled),
        (TopicState::Rebuilding, Problem::TopicRebuilding),
    ] {
        let said = health.problems.contains(&problem);
        assert_eq!(health.topic.state == state, said, "{health:?}");
    }
    let behind = health.direct.behind + health.gossip.behind > 0;
    assert!(!(behind && health.healthy), "{health:?}");
}

async fn deafen_all(members: &[Member]) {
    for member in members {
        assert!(deafen(&member.acceptor).await);
    }
}

/// Everything arrives, in order and once, and the topic is built anew.
async fn rebuilt_after(spokes: usize, fault: impl AsyncFnOnce(&Hub, &[Member])) {
    let hub = hub_with(FanOut::Gossip).await;
    let mut members = members(&hub, spokes).await;
    all_on_tree(&hub, spokes).await;
    until_healthy(&hub).await;
    let seen = Seen::watch(&hub);
    let publisher = Publisher::start(&hub);
    publisher.goes_on(100).await;
    assert_eq!(hub.metrics().topic.failed.get(), 0);

    fault(&hub, &members).await;
    let (died, sent) = (Instant::now(), publisher.sent.load(Ordering::Relaxed));
    until("the failure is noticed", || {
        hub.metrics().topic.failed.get() > 0
    })
    .await;
    let noticed = publisher.sent.load(Ordering::Relaxed) - sent;
    // How long it takes here is the business of the machine; what it should take, of the unit tests.
    println!("noticed after {:?} and {noticed} events", died.elapsed());
    publisher.goes_on(100).await;
    until("the topic is built anew", || {
        hub.metrics().topic.rebuilt.get() > 0
    })
    .await;
    all_on_tree(&hub, spokes).await;
    publisher.goes_on(100).await;
    assert!(seen.has("rebuilding"));
    let health = hub.health();
    assert!(health.topic.failed > 0 && health.topic.rebuilt > 0);

    let sent = publisher.end().await;
    for member in &mut members {
        expect_numbers(&mut member.listener, 0, sent).await;
        assert_eq!(member.spoke.is_closed(), None);
    }
    until_healthy(&hub).await;
    until("everything is acknowledged", || {
        let path = hub.health().gossip;
        (path.backlog_events, path.backlog_bytes) == (0, 0)
    })
    .await;
    assert!(hub.shutdown().await.behind.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_the_topics_task_costs_no_event_and_the_topic_is_built_anew() {
    rebuilt_after(8, async |hub, _| {
        assert!(break_topic(hub, TopicFault::Panics).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_of_the_topics_task_costs_no_event_and_the_topic_is_built_anew() {
    rebuilt_after(8, async |hub, _| {
        assert!(break_topic(hub, TopicFault::Ends).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_delivers_nothing_any_more_is_noticed_and_built_anew() {
    rebuilt_after(8, async |_, members| deafen_all(members).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_reaches_a_minority_is_noticed_and_built_anew() {
    rebuilt_after(8, async |_, members| deafen_all(&members[..5]).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_does_not_reach_its_only_spoke_is_noticed_and_built_anew() {
    rebuilt_after(1, async |_, members| deafen_all(members).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_the_topic_alone_does_not_reach_is_served_around_it() {
    let hub = hub_with(FanOut::Gossip).await;
    let mut members = members(&hub, 6).await;
    all_on_tree(&hub, 6).await;
    let publisher = Publisher::start(&hub);
    publisher.goes_on(100).await;
    assert!(deafen(&members[2].acceptor).await);
    let deaf = members[2].spoke.endpoint().id();
    until("it is served directly", || {
        let spokes = hub.spokes();
        let info = spokes.iter().find(|info| info.id.endpoint == deaf);
        info.expect("it is there").path != Path::Gossip
    })
    .await;
    publisher.goes_on(200).await;
    let sent = publisher.end().await;
    for member in &mut members {
        expect_numbers(&mut member.listener, 0, sent).await;
    }
    assert!(hub.health().repair.served_around + hub.metrics().repair.wants_direct.get() > 0);
    until_healthy(&hub).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_the_switchboard_costs_no_event_and_another_one_takes_over() {
    let hub = hub_with(FanOut::Gossip).await;
    let mut members = members(&hub, 6).await;
    all_on_tree(&hub, 6).await;
    let publisher = Publisher::start(&hub);
    publisher.goes_on(100).await;
    break_switchboard(&hub).await;
    until("another one takes over", || {
        hub.metrics().health.panics.get() == 1
    })
    .await;
    publisher.goes_on(100).await;
    all_on_tree(&hub, 6).await;
    // It looks after those who come later too.
    let late = spoke(&hub, Spoke::builder()).await;
    all_on_tree(&hub, 7).await;
    publisher.goes_on(100).await;
    let sent = publisher.end().await;
    for member in &mut members {
        expect_numbers(&mut member.listener, 0, sent).await;
        assert_eq!(member.spoke.is_closed(), None);
    }
    late.shutdown().await;
    until_healthy(&hub).await;
    assert!(hub.shutdown().await.behind.is_empty());
    assert_eq!(hub.metrics().health.healthy.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_is_not_healthy_while_a_spoke_takes_nothing_and_is_once_it_has() {
    let hub = hub_with(FanOut::Direct).await;
    let health = hub.health();
    assert!(health.healthy && health.problems.is_empty(), "{health:?}");
    assert_eq!(health.topic.state, TopicState::None);
    let stuck = RawPeer::connect(&hub, NATIVE).await;
    let mut stream = stuck.spoke(NATIVE).await;
    let good = spoke(&hub, Spoke::builder()).await;
    let mut listener = good.listen("n");
    let publisher = Publisher::start(&hub);
    until("the hub says so", || {
        let health = hub.health();
        check(&health);
        let behind = Problem::Behind {
            path: Path::Direct,
            spokes: 1,
        };
        health.problems.contains(&behind)
    })
    .await;
    until("it sees that it grows", || {
        let grows = Problem::BacklogGrows { path: Path::Direct };
        hub.health().problems.contains(&grows)
    })
    .await;
    let before = hub.health().direct;
    assert_eq!((before.spokes, before.behind), (2, 1));
    assert!(
        before.oldest_unacked_ms >= 2000 && before.backlog_bytes > 0,
        "{before:?}"
    );
    publisher.goes_on(100).await;
    let after = hub.health().direct;
    assert!(after.backlog_events > before.backlog_events && !hub.health().healthy);
    assert_eq!(hub.metrics().health.healthy.get(), 0);
    assert!(hub.metrics().health.direct_backlog_events.get() > 0);
    // Not for the others.
    let sent = publisher.end().await;
    expect_numbers(&mut listener, 0, sent).await;
    stream.write(raw::ack(sent, 0)).await;
    until_healthy(&hub).await;
    until("the gauge says so", || {
        hub.metrics().health.healthy.get() == 1
    })
    .await;
    hub.shutdown().await;
    assert_eq!(hub.health().problems, [Problem::Ending]);
}

#[cfg(all(unix, feature = "cli"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_says_how_the_hub_does_when_it_is_asked() {
    let mut hub = process::Hub::start(&["--wait-for", "1"]).await;
    let mut spoke = hub.spoke(&["--output", "payload"]);
    let _stdin = hub.program.write("a line\n").await.expect("no panic");
    assert_eq!(spoke.next_line().await, "a line");
    hub.program.signal(rustix::process::Signal::USR1);
    let line = format!("{{{}", hub.program.said("{").await);
    let health: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(health["healthy"], true, "{line}");
    assert_eq!(health["direct"]["spokes"], 1, "{line}");
    assert_eq!(health["topic"]["state"], "none", "{line}");
    assert_eq!(health["tip"]["offset"], 1, "{line}");
}

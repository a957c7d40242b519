//! What the tests share: endpoints on loopback, and collecting what spokes hear.
#![allow(dead_code, reason = "each test file uses some of it")]

pub mod cuttable;
pub mod mesh;
#[cfg(feature = "cli")]
pub mod process;
pub mod raw;
pub mod raw_member;

use std::time::Duration;

use iroh::Endpoint;
use iroh_hub::{
    Envelope, Event, FanOut, Hub, HubBuilder, HubLimits, Incoming, Listener, Position, Spoke,
    SpokeBuilder, SpokeLimits, endpoint,
};
use tokio::time::{Instant, timeout};

/// How long a test waits for what must come.
pub const LIMIT: Duration = Duration::from_secs(60);

pub fn init_logs() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

pub async fn bind() -> Endpoint {
    endpoint::bind_local().await.expect("loopback binds")
}

pub async fn hub(builder: HubBuilder) -> Hub {
    init_logs();
    builder.spawn(bind().await).expect("a fresh endpoint")
}

pub async fn hub_with(fan_out: FanOut) -> Hub {
    hub(Hub::builder().fan_out(fan_out)).await
}

pub async fn spoke(hub: &Hub, builder: SpokeBuilder) -> Spoke {
    builder
        .connect(bind().await, hub.addr())
        .await
        .expect("the hub lets us in")
}

/// An event that carries a number.
pub fn numbered(n: u64) -> Envelope {
    Envelope::new("n", &n).expect("a number is JSON")
}

pub fn number(event: &Event) -> u64 {
    event.envelope.payload().expect("a number")
}

/// The next event, which must come.
pub async fn next_event(listener: &mut Listener) -> Event {
    match timeout(LIMIT, listener.recv()).await {
        Ok(Some(Incoming::Event(event))) => event,
        other => panic!("no event: {other:?}"),
    }
}

/// Takes `count` numbered broadcasts, which must come in order, once each, from `first` on.
pub async fn expect_numbers(listener: &mut Listener, first: u64, count: u64) -> Vec<Event> {
    let mut events = Vec::new();
    let mut last: Option<Position> = None;
    for n in first..first + count {
        let event = next_event(listener).await;
        assert_eq!(number(&event), n, "in order, once each");
        if let (Some(last), Some(position)) = (last, event.position) {
            assert_eq!(last.next(), position, "positions count up by one");
        }
        last = event.position;
        events.push(event);
    }
    events
}

/// Waits until `done` says so.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Limits of a hub, changed from the defaults.
pub fn hub_limits(change: impl FnOnce(&mut HubLimits)) -> HubLimits {
    let mut limits = HubLimits::default();
    change(&mut limits);
    limits
}

/// Limits of a spoke, changed from the defaults.
pub fn spoke_limits(change: impl FnOnce(&mut SpokeLimits)) -> SpokeLimits {
    let mut limits = SpokeLimits::default();
    change(&mut limits);
    limits
}

/// Fails if the future takes longer than [`LIMIT`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

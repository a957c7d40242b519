//! What a run is made of.

use std::time::Duration;

use serde::Serialize;

use crate::FanOut;

/// A run of the simulator. The same options give the same run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Fixes every random choice.
    pub seed: u64,
    /// How many spokes there are.
    pub spokes: u32,
    /// How many of them take no part in gossip.
    pub direct_spokes: u32,
    /// How the hub fans out. [`FanOut::Auto`] that is not told an uplink goes by the
    /// [`bandwidth`](Links::bandwidth), if there is one. Default [`FanOut::Gossip`].
    pub fan_out: FanOut,
    /// How many events are broadcast.
    pub events: u64,
    /// How many a second.
    pub rate: f64,
    /// How many at once.
    pub burst: u64,
    /// The bytes of an event's payload.
    pub size: usize,
    /// Every link of the network.
    pub links: Links,
    /// Spokes that go and are replaced while events are broadcast.
    pub churn: Churn,
    /// Parts of the mesh that are cut off for a while, one after the other: they must not overlap.
    pub partitions: Vec<Partition>,
    /// Spokes that do nothing for a while.
    pub stalls: Vec<Stall>,
    /// Ends and new beginnings of the hub.
    pub restarts: Vec<Restart>,
    /// Spokes that are revoked. Without a topic, nobody is.
    pub revocations: Vec<Revocation>,
    /// The how-manieth frame with events (from 1) never leaves the hub. Without a topic there is none.
    pub lose_root_frame: Option<u64>,
    /// The bounds of the hub's log: events.
    pub log_events: usize,
    /// How long, after the last event, spokes have to get what they lack.
    pub settle: Duration,
    /// A fault in the core, for tests of the oracle.
    pub breakage: Breakage,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            spokes: 100,
            direct_spokes: 0,
            fan_out: FanOut::Gossip,
            events: 1000,
            rate: 100.0,
            burst: 1,
            size: 100,
            links: Links::default(),
            churn: Churn::default(),
            partitions: Vec::new(),
            stalls: Vec::new(),
            restarts: Vec::new(),
            revocations: Vec::new(),
            lose_root_frame: None,
            log_events: 131_072,
            settle: Duration::from_secs(180),
            breakage: Breakage::None,
        }
    }
}

/// What every link does to what is sent over it.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    /// How long a packet is under way.
    pub delay: Duration,
    /// Up to this much longer, drawn for each.
    pub jitter: Duration,
    /// The share that is lost: of packets on direct links, which are sent again; of messages on gossip connections,
    /// for good.
    pub loss: f64,
    /// The share of gossip messages that come twice.
    pub duplicate: f64,
    /// The share of gossip messages that later ones overtake.
    pub reorder: f64,
    /// What a node can send, in bytes a second, over all of its links.
    pub bandwidth: Option<u64>,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(20),
            jitter: Duration::from_millis(5),
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            bandwidth: None,
        }
    }
}

/// Spokes that go and are replaced.
#[derive(Clone, Copy, Debug, Default)]
pub struct Churn {
    /// The share of all spokes that goes every second.
    pub per_s: f64,
    /// The share of those that go without a goodbye; the others are shut down in order.
    pub crash: f64,
}

/// A part of the mesh that is cut off from the hub and the rest.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Partition {
    /// When it begins, counted from the first event.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// The share of the spokes that are cut off.
    pub share: f64,
}

/// Spokes that are stopped, and go on later.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Stall {
    /// When it begins, counted from the first event.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// How many spokes.
    pub spokes: u32,
}

/// Spokes are revoked, all in one step. They keep every key that they ever had and stay on the topic, as far as
/// the others let them.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Revocation {
    /// When, counted from the first event.
    pub at: Duration,
    /// How many spokes, of those that the topic serves.
    pub spokes: u32,
}

/// The hub's process is killed, and started again on the same key.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Restart {
    /// When, counted from the first event.
    pub at: Duration,
    /// How long it is gone.
    pub lasts: Duration,
    /// Whether it comes back with its log, or with an empty one of a new epoch.
    pub durable: bool,
}

/// A fault in the core, so that tests see the oracle find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[doc(hidden)]
pub enum Breakage {
    /// None: the core as it ships.
    #[default]
    None,
    /// Wants are never sent, and no supervisor serves directly who lacks something.
    NoWants,
    /// Every hundredth event is let out twice.
    Repeats,
    /// Every hundredth event changes places with the next.
    Disorders,
    /// Every hundredth event is altered.
    Alters,
    /// What is missed is not said.
    HidesMissed,
    /// The first topic that there is delivers nothing more after twenty frames. The supervisor has to find out.
    DeadTopic,
    /// The hub says of every start that it continues. In resume cases only.
    SaysContinues,
    /// The hub forgets what it had of a spoke's events. In resume cases only.
    ForgetsHeard,
    /// A spoke acknowledges events for it alone that its listeners have not seen. In resume cases only.
    AcksAhead,
}

//! What a run came to.

use serde::Serialize;

use super::{oracle::Verdict, tally::Traffic};

/// How a quantity is distributed.
#[derive(Clone, Copy, Default, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Half of the values are no greater.
    pub p50: f64,
    /// 99 of 100 values are no greater.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of values in ascending order.
    pub(super) fn of<T: Copy>(sorted: &[T], scale: impl Fn(T) -> f64) -> Self {
        let at = |share: f64| {
            let index = (sorted.len() as f64 * share).ceil() as usize;
            sorted
                .get(index.saturating_sub(1))
                .map_or(0.0, |v| scale(*v))
        };
        Self {
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

/// What a run came to. Nothing in it depends on the machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The seed of the run.
    pub seed: u64,
    /// How many spokes there were in all, replacements included.
    pub spokes: u64,
    /// How many events were broadcast.
    pub events: u64,
    /// The virtual seconds until all spokes were served as they should, before the first event.
    pub warm_up_s: f64,
    /// The virtual seconds from the first event until every spoke had everything.
    pub ran_s: f64,
    /// What the oracle says.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Frames with new events that the hub put on the topic.
    pub frames: u64,
    /// Frames that it put on it again, as repairs.
    pub frames_again: u64,
    /// Beacons.
    pub beacons: u64,
    /// Copies of each frame with new events that the hub itself sent, on average.
    pub hub_copies: f64,
    /// The most copies of one frame.
    pub hub_copies_max: u32,
    /// Bytes that the hub sent for each event, from the first one on, without repairs and fallback: along the topic, with
    /// its beacons and upkeep, and directly.
    pub hub_bytes_per_event: f64,
    /// The same with repairs and fallback.
    pub hub_bytes_per_event_in_all: f64,
    /// Times that the hub sent something to repair a loss: writes to links, and copies of frames sent again.
    pub hub_repair_sends: u64,
    /// What the hub sent of frames with new events.
    pub hub_topic: Traffic,
    /// Of beacons.
    pub hub_beacons: Traffic,
    /// Of frames sent again.
    pub hub_again: Traffic,
    /// Of other gossip messages.
    pub hub_control: Traffic,
    /// Along links, but repairs.
    pub hub_direct: Traffic,
    /// Along links of spokes that the topic served before, and does not reach.
    pub hub_fallback: Traffic,
    /// Along links, as repairs.
    pub hub_repairs: Traffic,
    /// What spokes sent of frames.
    pub spokes_topic: Traffic,
    /// What spokes sent of other gossip messages.
    pub spokes_control: Traffic,
    /// What spokes sent along links.
    pub to_hub: Traffic,
    /// Gossip messages, all nodes together.
    pub gossip_messages: u64,
    /// Those that the network lost.
    pub gossip_messages_lost: u64,
    /// Frames that came to a node again.
    pub frames_repeated: u64,
    /// Events, or parts, that came to a spoke's inbox again, along the topic or a link.
    pub duplicates: u64,
    /// Copies of each event that the hub sent along links, to spokes that are not on the topic, or not yet.
    pub direct_copies: f64,
    /// Copies of each event that the hub sent along links because the topic did not reach their spokes.
    pub fallback_copies: f64,
    /// Gossip messages for which a queue had no place.
    pub gossip_messages_dropped: u64,
    /// Ranges that spokes wanted.
    pub wants: u64,
    /// Links that were welcomed.
    pub links: u64,
    /// Links that broke.
    pub links_lost: u64,
    /// Frames or answers on links that one side took for misbehaviour.
    pub misbehaved: u64,
    /// Topics that were begun.
    pub topics: u64,
    /// Topics that the supervisor gave up.
    pub topics_failed: u64,
    /// Times that the hub had lost all its neighbours on the topic, and joined it again.
    pub topics_rejoined: u64,
    /// Times that a spoke was served directly because the topic did not reach it.
    pub served_around: u64,
    /// Spokes that were revoked.
    pub revoked: u64,
    /// Frames that were dispatched after a revocation and that the one who was revoked could open.
    pub read_after_revoked: u64,
    /// Messages of the topic that reached those who were revoked, afterwards.
    pub messages_to_revoked: u64,
    /// Of the spokes that the topic served, the least share that had the new keys a second after a revocation.
    pub rekeyed_within_1s: Option<f64>,
    /// How many hops the last copy of an event had crossed.
    pub last_hop: Spread,
    /// Milliseconds from broadcast to the last spoke, by event.
    pub last_spoke_ms: Spread,
    /// What has happened, in all.
    pub steps: u64,
}

impl Report {
    /// Whether the contract was kept.
    pub fn is_kept(&self) -> bool {
        self.verdict.is_kept() && self.misbehaved == 0 && self.read_after_revoked == 0
    }
}

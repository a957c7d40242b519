//! What a hub and a spoke count: groups for [`iroh_metrics`], never labelled by endpoint.

use iroh_metrics::{Counter, Gauge, MetricsGroup};

/// Counters of a hub.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "iroh_hub")]
#[non_exhaustive]
pub struct HubMetrics {
    /// Events that were broadcast.
    pub events_broadcast: Counter,
    /// Bytes of the events that were broadcast.
    pub bytes_broadcast: Counter,
    /// Targeted events that were queued for a spoke.
    pub events_targeted: Counter,
    /// Events that came from spokes.
    pub events_received: Counter,
    /// Times that a broadcast had to wait for the spokes.
    pub broadcasts_held: Counter,
    /// Spokes that there are.
    pub spokes: Gauge,
    /// Spokes that were welcomed.
    pub spokes_joined: Counter,
    /// Connections that admission refused.
    pub refused: Counter,
    /// Streams refused because their connection had too many.
    pub streams_refused: Counter,
    /// Streams and connections that were closed for an error of the peer.
    pub links_failed: Counter,
    /// Frames that came over direct links.
    pub frames_received: Counter,
    /// Frames of a kind that this version does not know, which were skipped.
    pub frames_unknown: Counter,
    /// Acknowledgements that came.
    pub acks_received: Counter,
    /// Broadcasts that spokes gave up by themselves, over their own limits.
    pub events_given_up: Counter,
    /// Ranges that spokes wanted again.
    pub wants: Counter,
    /// Times that a spoke asked to be served directly.
    pub wants_direct: Counter,
    /// Frames and beacons that were broadcast on the topic.
    pub gossip_frames: Counter,
    /// Times that a topic was begun.
    pub topics_started: Counter,
    /// Times that a topic failed and everyone was served directly.
    pub topic_failures: Counter,
    /// Times that a spoke was served directly because the topic did not reach it.
    pub served_around: Counter,
}

/// Counters of a spoke.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "iroh_hub_spoke")]
#[non_exhaustive]
pub struct SpokeMetrics {
    /// Broadcasts released to listeners that came along the direct link.
    pub events_direct: Counter,
    /// Broadcasts released to listeners that came by the topic.
    pub events_gossip: Counter,
    /// Broadcasts released to listeners that were repaired.
    pub events_repaired: Counter,
    /// Events for this spoke alone.
    pub events_targeted: Counter,
    /// Broadcasts that the hub's log no longer had.
    pub events_missed: Counter,
    /// Times that the hub could not go on at this spoke's position: its log had begun anew.
    pub positions_lost: Counter,
    /// Parts of events, or whole targeted events, that were here already.
    pub duplicates: Counter,
    /// Parts of events for which there was no room.
    pub dropped: Counter,
    /// Ranges that were wanted again.
    pub wants: Counter,
    /// Times that this spoke asked to be served directly because the topic fell silent.
    pub isolated: Counter,
    /// Events sent to the hub.
    pub events_sent: Counter,
    /// Frames of a kind that this version does not know, which were skipped.
    pub frames_unknown: Counter,
    /// Frames of the hub that do not hold what they should.
    pub frames_bad: Counter,
}

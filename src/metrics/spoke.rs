//! What a spoke counts: one group a concern.

use std::sync::Arc;

use iroh_metrics::{Counter, MetricsGroup, MetricsGroupSet};

use crate::gossip::GossipMetrics;

/// Everything that a spoke counts.
#[derive(Debug, Default, Clone, MetricsGroupSet)]
#[metrics(name = "iroh_hub_spoke")]
#[non_exhaustive]
pub struct SpokeMetrics {
    /// What came, whichever path it took.
    pub reception: Arc<ReceptionMetrics>,
    /// The link to the hub, and what is sent along it.
    pub link: Arc<LinkMetrics>,
    /// The spoke's node on the topic.
    pub gossip: Arc<GossipMetrics>,
}

/// What comes to a spoke.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "iroh_hub_spoke")]
#[non_exhaustive]
pub struct ReceptionMetrics {
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
    /// Frames of the hub that do not hold what they should.
    pub frames_bad: Counter,
}

/// The link of a spoke to its hub.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "iroh_hub_spoke_link")]
#[non_exhaustive]
pub struct LinkMetrics {
    /// Attempts to make a link.
    pub attempts: Counter,
    /// Times that the hub welcomed this spoke.
    pub welcomed: Counter,
    /// Links that were lost, or closed for a passing reason.
    pub lost: Counter,
    /// Times that this spoke has caught up after a lost link.
    pub recovered: Counter,
    /// Events sent to the hub.
    pub events_sent: Counter,
    /// Events sent to the hub that were not delivered and will not be.
    pub events_not_delivered: Counter,
    /// Events sent to the hub that may have been delivered, and nobody will know.
    pub events_maybe_delivered: Counter,
    /// Frames of a kind that this version does not know, which were skipped.
    pub frames_unknown: Counter,
}

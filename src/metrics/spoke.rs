//! What a spoke counts.

use iroh_metrics::{Counter, MetricsGroup};

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
    /// Of these, what was not delivered and will not be.
    pub events_not_delivered: Counter,
    /// Of these, what may have been delivered, and nobody will know.
    pub events_maybe_delivered: Counter,
    /// Attempts to make a link.
    pub attempts: Counter,
    /// Times that the hub welcomed this spoke.
    pub links: Counter,
    /// Links that were lost, or closed for a passing reason.
    pub links_lost: Counter,
    /// Times that this spoke has caught up after a lost link.
    pub recoveries: Counter,
    /// Frames of a kind that this version does not know, which were skipped.
    pub frames_unknown: Counter,
    /// Frames of the hub that do not hold what they should.
    pub frames_bad: Counter,
}

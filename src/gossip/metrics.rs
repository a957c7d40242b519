//! What the topic counts.

use iroh_metrics::{Counter, MetricsGroup};

/// Counters of the gossip topic at one node.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "iroh_hub_gossip")]
#[non_exhaustive]
pub struct GossipMetrics {
    /// Frames that this node broadcast.
    pub frames_sent: Counter,
    /// Frames that came, were opened and were new.
    pub frames_received: Counter,
    /// Copies of received frames that were passed on to neighbours.
    pub frames_forwarded: Counter,
    /// Frames that were no longer kept for grafts before their time, because too many bytes were.
    pub frames_uncached: Counter,
    /// Frames that came again.
    pub frames_repeated: Counter,
    /// Times that this node asked a neighbour to bring frames, because the one that did was lost, or pruned it.
    pub parents_taken_back: Counter,
    /// Times that a neighbour took the place of the one that brought frames, for being closer to the hub.
    pub parents_replaced: Counter,
    /// Frames that this node asked for at once, because the one that brings frames announced them.
    pub frames_asked_at_once: Counter,
    /// Bytes of messages handed to connections.
    pub bytes_sent: Counter,
    /// Bytes of messages taken from connections.
    pub bytes_received: Counter,
    /// Frames that the hub did not make; each cut its sender off.
    pub refused_forged: Counter,
    /// Frames of another epoch, or already counted, that were dropped.
    pub refused_stale: Counter,
    /// Frames under a key that this node does not have, that were dropped.
    pub refused_unknown_generation: Counter,
    /// Messages dropped because their sender is not a neighbour.
    pub refused_not_neighbor: Counter,
    /// Frames or messages beyond the size limit.
    pub refused_oversize: Counter,
    /// Messages that were not finished in time; each cost its connection.
    pub refused_unfinished: Counter,
    /// Messages that do not decode or that no honest node sends; each cut its sender off.
    pub refused_malformed: Counter,
    /// Messages dropped because their sender sent too many.
    pub refused_rate: Counter,
    /// Peers cut off because they went on sending too much.
    pub floods: Counter,
    /// Frames not sent to a peer that had asked for them before.
    pub refused_grafts: Counter,
    /// Connections turned away because their peer comes too often.
    pub refused_visits: Counter,
    /// Announcements dropped because their sender had too many unanswered ones.
    pub refused_announcements: Counter,
    /// Introductions dropped because too many dials were waiting or the peer is cut off.
    pub refused_introductions: Counter,
    /// Dials that were not made, since their peer is not one of the hub's spokes. At a hub only.
    pub refused_stranger: Counter,
    /// Connections of members that did not prove to have the topic's new key when it changed.
    pub lapsed: Counter,
    /// Connections that did not prove to be a member's.
    pub auth_failed: Counter,
    /// Members' connections turned away because too many were open.
    pub refused_busy: Counter,
    /// Connections turned away before they could prove anything, because too many had not yet, of all or of one peer.
    pub refused_unproven: Counter,
    /// Messages dropped because the queue of the peer they were for was full.
    pub queue_dropped: Counter,
    /// Peers replaced because they took nothing from a full queue.
    pub peers_stuck: Counter,
    /// Peers cut off for something forged or malformed, for flooding, or evicted.
    pub peers_cut_off: Counter,
    /// Dials begun.
    pub dials: Counter,
    /// Dials that came to nothing.
    pub dial_failures: Counter,
    /// Neighbours gained.
    pub neighbors_up: Counter,
    /// Neighbours lost.
    pub neighbors_down: Counter,
    /// Times this node joined again because its view was too small, quiet, or due.
    pub rejoins: Counter,
    /// Opened frames dropped because their taker was behind; the log repairs them.
    pub delivered_dropped: Counter,
}

//! What a hub counts: one group a concern.

use std::sync::Arc;

use iroh_metrics::{Counter, Gauge, Histogram, MetricsGroup, MetricsGroupSet};

use crate::gossip::GossipMetrics;

/// Everything that a hub counts.
#[derive(Debug, Default, Clone, MetricsGroupSet)]
#[metrics(name = "iroh_hub")]
#[non_exhaustive]
pub struct HubMetrics {
    /// Events, whichever path they take.
    pub events: Arc<EventMetrics>,
    /// The log.
    pub log: Arc<LogMetrics>,
    /// Which spokes there are.
    pub spokes: Arc<RosterMetrics>,
    /// Connections of the direct protocols, and the handshakes before them.
    pub connections: Arc<ConnectionMetrics>,
    /// Who was turned away.
    pub admission: Arc<AdmissionMetrics>,
    /// The direct links.
    pub direct: Arc<DirectMetrics>,
    /// The topic, as the hub sees it.
    pub topic: Arc<TopicMetrics>,
    /// What was sent again, or around the topic.
    pub repair: Arc<RepairMetrics>,
    /// How the hub does, as [`Hub::health`](crate::Hub::health) says it.
    pub health: Arc<HealthMetrics>,
    /// The hub's node on the topic.
    pub gossip: Arc<GossipMetrics>,
}

/// The events that go through a hub.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "iroh_hub")]
#[non_exhaustive]
pub struct EventMetrics {
    /// Events that were broadcast.
    pub events_broadcast: Counter,
    /// Bytes of the events that were broadcast.
    pub broadcast_bytes: Counter,
    /// Targeted events that were queued for a spoke.
    pub events_targeted: Counter,
    /// Targeted events for which there was no room, since too much waits for all spokes together; each time it was looked.
    pub targeted_crowded: Counter,
    /// Targeted events that a spoke did not take, since they were over its own limit.
    pub targeted_refused: Counter,
    /// Targeted events that were not delivered when their spoke was gone for good.
    pub targeted_lost: Counter,
    /// Targeted events that may have been delivered when their spoke was gone for good.
    pub targeted_unknown: Counter,
    /// Events that came from spokes, each once.
    pub events_received: Counter,
    /// Events that spokes sent again, not knowing that they had been taken.
    pub events_repeated: Counter,
    /// Times that a broadcast had to wait for the spokes.
    pub broadcasts_held: Counter,
}

/// How long a commit takes depends on the disk: from a fast one to one that makes people wait.
const COMMIT_SECONDS: [f64; 10] = [
    0.000_5,
    0.001,
    0.002_5,
    0.005,
    0.01,
    0.025,
    0.1,
    0.5,
    2.5,
    f64::INFINITY,
];

/// The log of a hub. What is said of its file is zero for a log in memory.
#[derive(Debug, MetricsGroup)]
#[metrics(default, name = "iroh_hub_log")]
#[non_exhaustive]
pub struct LogMetrics {
    /// Events that the log has.
    pub events: Gauge,
    /// Bytes of the events that the log has.
    pub bytes: Gauge,
    /// Events that wait to be synced.
    pub events_unsynced: Gauge,
    /// Seconds that it took to write and sync what one commit has, to the file of a durable log.
    #[default(Histogram::new(COMMIT_SECONDS.to_vec()))]
    pub commit_seconds: Histogram,
    /// Events that were synced.
    pub events_synced: Counter,
    /// Bytes of the events that were synced.
    pub synced_bytes: Counter,
    /// The size of the file of a durable log, in bytes.
    pub file_bytes: Gauge,
    /// Epochs begun because a spoke had events that the log had lost.
    pub epochs_begun: Counter,
    /// 1 if the file of a durable log could not be written, so that nothing more is broadcast.
    pub failed: Gauge,
}

/// The spokes of a hub.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "iroh_hub_spokes")]
#[non_exhaustive]
pub struct RosterMetrics {
    /// Spokes that are connected.
    pub connected: Gauge,
    /// Spokes that are away: lost without a goodbye, they may come back.
    pub away: Gauge,
    /// Spokes that were welcomed, those that came back not counted again.
    pub joined: Counter,
    /// Times that a spoke came back, or changed its link.
    pub returned: Counter,
    /// Links that were closed because a newer one of the same spoke took over.
    pub fenced: Counter,
    /// Spokes that were away for too long.
    pub expired: Counter,
    /// Spokes that were away and were given up, to bound what is kept for such.
    pub evicted: Counter,
}

/// The connections of a hub, and the handshakes that lead to them.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "iroh_hub_connections")]
#[non_exhaustive]
pub struct ConnectionMetrics {
    /// Handshakes in flight. Zero for a hub on a router that is not its own.
    pub handshakes: Gauge,
    /// Handshakes that were begun.
    pub handshakes_begun: Counter,
    /// Attempts that were asked to show first that their address can be answered.
    pub handshakes_retried: Counter,
    /// Attempts left without an answer because their address began too many.
    pub handshakes_over_rate: Counter,
    /// Attempts left without an answer because too many handshakes were in flight, of their address or of all.
    pub handshakes_crowded: Counter,
    /// Handshakes that failed or took too long. Zero for a hub on a router that is not its own.
    pub handshakes_failed: Counter,
    /// Connections of the direct protocols that are open.
    pub open: Gauge,
    /// Of the open connections, those that have had no spoke yet.
    pub waiting: Gauge,
    /// Connections that were turned away because too many were open.
    pub refused_full: Counter,
    /// Connections that were turned away because too many had no spoke yet, of all or of one endpoint.
    pub refused_waiting: Counter,
}

/// Whom a hub turned away.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "iroh_hub_admission")]
#[non_exhaustive]
pub struct AdmissionMetrics {
    /// Connections that were refused, on any of the three protocols.
    pub refused: Counter,
    /// Endpoints that were revoked.
    pub revoked: Counter,
    /// Streams refused because their connection had too many, or too many were no spokes yet.
    pub streams_refused: Counter,
}

/// The direct links of a hub.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "iroh_hub_direct")]
#[non_exhaustive]
pub struct DirectMetrics {
    /// Streams and connections that were closed for an error of the peer.
    pub links_failed: Counter,
    /// Frames that came over direct links.
    pub frames_received: Counter,
    /// Frames of a kind that this version does not know, which were skipped.
    pub frames_unknown: Counter,
    /// Acknowledgements that came.
    pub acks_received: Counter,
    /// Times that a spoke was not read from for a moment, because it sent more than it may in a second.
    pub reads_throttled: Counter,
    /// Times that a spoke was not read from because too much of what spokes sent had not been taken yet.
    pub reads_held: Counter,
}

/// The topic of a hub, whichever node of it runs now.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "iroh_hub_topic")]
#[non_exhaustive]
pub struct TopicMetrics {
    /// Frames and beacons that were broadcast on the topic.
    pub frames_sent: Counter,
    /// Times that the topic was begun.
    pub started: Counter,
    /// Times that the topic failed and everyone was served directly.
    pub failed: Counter,
    /// Times that a topic was begun in place of one that failed.
    pub rebuilt: Counter,
    /// Times that the hub had lost all its neighbours on the topic, and joined it again through spokes.
    pub rejoined: Counter,
    /// Times that the topic went over to new keys.
    pub rekeyed: Counter,
}

/// What a hub sent again, and whom it served around the topic.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "iroh_hub_repair")]
#[non_exhaustive]
pub struct RepairMetrics {
    /// Ranges that spokes wanted again.
    pub wants: Counter,
    /// Wants to which something that is on its way on the topic was the answer.
    pub wants_held: Counter,
    /// Wants that were dropped because their spoke sent too many.
    pub wants_dropped: Counter,
    /// Ranges that went to one spoke again, along its link.
    pub direct: Counter,
    /// Bytes that went along links again, or because the topic does not reach their spoke.
    pub bytes: Counter,
    /// Times that a link had to wait for the budget of repairs.
    pub held: Counter,
    /// Pieces of the log that went on the topic again, since many spokes wanted them.
    pub rebroadcasts: Counter,
    /// Bytes of the events that went on the topic again, once each.
    pub rebroadcast_bytes: Counter,
    /// Times that a spoke asked to be served directly.
    pub wants_direct: Counter,
    /// Times that a spoke was served directly because the topic did not reach it.
    pub served_around: Counter,
    /// Broadcasts that the log no longer had when they were due to a spoke, which was told so.
    pub events_missed: Counter,
    /// Broadcasts that spokes gave up by themselves, over their own limits.
    pub events_given_up: Counter,
}

/// How a hub does: what [`Hub::health`](crate::Hub::health) says, looked at five times a second.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "iroh_hub_health")]
#[non_exhaustive]
pub struct HealthMetrics {
    /// 1 if nothing is wrong with the hub.
    pub healthy: Gauge,
    /// 1 if no connections are taken any more though the hub has not ended; see `Problem::NotAccepting`.
    pub not_accepting: Gauge,
    /// Times that the task which looks after the spokes panicked, and another one took over.
    pub panics: Counter,
    /// The topic: 0 there is none, 1 it is starting, 2 alive, 3 stalled, 4 it failed and is rebuilt.
    pub topic_state: Gauge,
    /// Neighbours of the hub on the topic.
    pub neighbors: Gauge,
    /// Spokes that are served along their links.
    pub direct_spokes: Gauge,
    /// Of the spokes that are served along their links, those that are seconds behind.
    pub direct_behind: Gauge,
    /// Events between the tip and what the one farthest behind has, of those served along their links.
    pub direct_backlog_events: Gauge,
    /// Bytes of the events in the backlog of the links.
    pub direct_backlog_bytes: Gauge,
    /// The age of the oldest event, in milliseconds, that a spoke served along its link has not acknowledged.
    pub direct_oldest_unacked_ms: Gauge,
    /// Spokes that the topic serves.
    pub gossip_spokes: Gauge,
    /// Of the spokes that the topic serves, those that are seconds behind.
    pub gossip_behind: Gauge,
    /// Events between the tip and what the one farthest behind has, of those that the topic serves.
    pub gossip_backlog_events: Gauge,
    /// Bytes of the events in the backlog of the topic.
    pub gossip_backlog_bytes: Gauge,
    /// The age of the oldest event, in milliseconds, that a spoke on the topic has not acknowledged.
    pub gossip_oldest_unacked_ms: Gauge,
}

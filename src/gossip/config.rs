//! The settings of the topic.

use iroh::{EndpointId, endpoint::QuicTransportConfig};
use iroh_gossip::proto;
use n0_future::time::Duration;

use super::conn;

/// What a message adds to the frame that it carries, at most.
pub(super) const MESSAGE_OVERHEAD: usize = 64;

/// Four neighbours: even with one lost, and one of the others stopped, two paths are left.
const ENOUGH: usize = 4;

/// Settings of the gossip topic. They should be the same at the hub, which takes less of one by itself, and at every spoke.
///
/// The defaults suit meshes of ten to some thousands of nodes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GossipConfig {
    /// How many neighbours a node holds connections to. Default: 5; the hub holds 4 at most.
    pub active_view: usize,
    /// How many further peers a node remembers, to replace neighbours with. Default: 30.
    pub passive_view: usize,
    /// The largest frame, in bytes. Larger ones are refused where they are broadcast, and whoever sends one
    /// is cut off. Default: 65 KiB, which is 64 KiB of content and its envelope.
    pub max_frame_size: usize,
    /// How long a frame is kept for neighbours that ask for it. Default: 3 s.
    ///
    /// It is kept for less if [`cache_bytes`](Self::cache_bytes) does not suffice.
    pub frame_retention: Duration,
    /// How many bytes of frames are kept for neighbours that ask for them, 256 bytes for each included; the oldest give way.
    /// Default: 24 MiB, which is two and a half seconds at 10 MB/s.
    pub cache_bytes: usize,
    /// How long a frame's id is remembered, so that a repeat is known for one. Default: 30 s.
    pub id_retention: Duration,
    /// How long to wait for a frame that a neighbour says it has before asking for it. Default: 65 ms.
    ///
    /// One that brings frames and announces this one does not bring it, and is asked at once.
    ///
    /// While other frames come in unasked it may be on its way behind them, and is waited for up to 25 times as long. Up to 320 ms
    /// longer after some came that another was asked for: the topic is slow then, and asking makes it slower.
    pub graft_timeout: Duration,
    /// How long to wait for the answer before asking the next one. Default: 40 ms.
    ///
    /// Of each that is asked: up to 25 times as long while other frames come in unasked, and up to six times as long on a slow
    /// topic, as with [`graft_timeout`](Self::graft_timeout).
    pub graft_retry: Duration,
    /// How long announcements of frames are gathered. Default: 20 ms.
    ///
    /// Where a frame reaches all nodes sooner, announcements cost it no time on its way. A node takes it that others do the same:
    /// who announces a frame within this time after it came here most likely had it earlier, and may take the place of the one
    /// that brings frames if it is closer to the hub.
    pub announce_delay: Duration,
    /// How long a peer has to answer when asked to be a neighbour, the time to connect to it included. A dial that fails is
    /// known sooner. Default: 3 s.
    pub neighbor_timeout: Duration,
    /// How often neighbours exchange the peers that they know. Default: 60 s.
    pub shuffle_interval: Duration,
    /// A node that has seen no new frame for this long takes itself for cut off from the topic and joins again through
    /// a bootstrap peer, less and less often while it stays quiet. An idle hub sends beacons every 5 s. Default: 20 s.
    pub quiet_after: Duration,
    /// How often a node joins again through a bootstrap peer even so. Default: 10 minutes, give or take half.
    pub rejoin_interval: Duration,
    /// For how long a peer is cut off that sent something forged, malformed or too large, or floods the topic. Default: 60 s.
    pub ban: Duration,
    /// How many peers are dialled at once. Default: 8; what peers bring about by introducing others gets half of them.
    pub max_dials: usize,
    /// How long a dial may take. Default: 5 s.
    pub dial_timeout: Duration,
    /// How long a new connection has to prove that it is a member's. Default: 5 s.
    pub auth_timeout: Duration,
    /// How many messages that are no new frames a peer may send a second, four times as many at once. What is over is dropped,
    /// and who goes on is cut off. Of messages about who is on the topic it may send a tenth. Default: 1000.
    pub max_messages_per_s: u32,
    /// How many gossip connections may be open that are members', or that this node is dialling. Default: 512.
    pub max_connections: usize,
    /// How many connections may come in and not have proved yet that they are members'. They have places of their own, so
    /// that strangers take none from members and from our own dials. Default: 64.
    pub max_unproven: usize,
    /// How many of those may be one peer's. Default: 4.
    pub unproven_of_one: usize,
    /// How long a message may stay unfinished once it has begun to come. Default: 10 s.
    pub message_timeout: Duration,
    /// How many messages may wait for one peer. Default: 1024.
    pub queue_messages: usize,
    /// How many bytes may wait for one peer: the largest event, so that its parts need not be dropped, and
    /// some more. Frames are shared between peers, not copied. Default: 24 MiB.
    pub queue_bytes: usize,
    /// A peer whose queue is full, and which takes nothing from it for this long, is replaced. Default: 1 s.
    pub stuck_after: Duration,
    /// How long the key before the current one still opens connections. Default: 10 s; 2 s at most, if
    /// somebody was revoked. Connections stand two seconds longer: a spoke whose link is so slow that it hears of new
    /// keys later loses its neighbours, and comes back to the topic then.
    pub previous_key_lifetime: Duration,
    /// How old a topic's key gets before the hub changes it by itself. Broadcasts do not wait for that. Used by
    /// the hub. Default: 1 h; at least 500 ms.
    pub key_lifetime: Duration,
    /// The QUIC settings of dials, if they are not the endpoint's.
    pub(crate) transport: Option<QuicTransportConfig>,
    /// Our hub, if we are a spoke. Peers cannot tell us where it is: iroh keeps one set of addresses for each
    /// endpoint, so they would be tried for our link to it too.
    pub(crate) hub: Option<EndpointId>,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self {
            active_view: 5,
            passive_view: 30,
            max_frame_size: 65 * 1024,
            frame_retention: Duration::from_secs(3),
            cache_bytes: 24 << 20,
            id_retention: Duration::from_secs(30),
            graft_timeout: Duration::from_millis(65),
            graft_retry: Duration::from_millis(40),
            announce_delay: Duration::from_millis(20),
            neighbor_timeout: Duration::from_secs(3),
            shuffle_interval: Duration::from_secs(60),
            quiet_after: Duration::from_secs(20),
            rejoin_interval: Duration::from_secs(600),
            ban: Duration::from_secs(60),
            max_dials: 8,
            dial_timeout: Duration::from_secs(5),
            auth_timeout: Duration::from_secs(5),
            max_messages_per_s: 1000,
            max_connections: 512,
            max_unproven: 64,
            unproven_of_one: 4,
            message_timeout: Duration::from_secs(10),
            queue_messages: 1024,
            queue_bytes: 24 * 1024 * 1024,
            stuck_after: Duration::from_secs(1),
            previous_key_lifetime: Duration::from_secs(10),
            key_lifetime: Duration::from_secs(3600),
            transport: None,
            hub: None,
        }
    }
}

impl GossipConfig {
    /// The settings of the node that makes the frames: it holds as many neighbours as it seeks, whatever the number of nodes.
    /// One more would be another copy of every frame on its uplink, and bring frames to nobody who would not get them.
    pub(crate) fn at_source(mut self) -> Self {
        self.active_view = self.enough_neighbors();
        self
    }

    /// The largest message, whatever it carries.
    pub(super) fn max_message_size(&self) -> usize {
        (self.max_frame_size + MESSAGE_OVERHEAD).max(proto::MIN_MAX_MESSAGE_SIZE)
    }

    /// How much of one peer may wait for the actor, in bytes.
    pub(crate) fn inbound_bytes(&self) -> usize {
        conn::budget(self.max_message_size())
    }

    pub(super) fn active_capacity(&self) -> usize {
        self.active_view.max(1)
    }

    /// With so many neighbours a node seeks no more. Others may still make it theirs, up to its capacity.
    pub(super) fn enough_neighbors(&self) -> usize {
        self.active_capacity().min(ENOUGH)
    }

    pub(super) fn to_proto(&self) -> proto::Config {
        let mut config = proto::Config {
            max_message_size: self.max_message_size(),
            ..Default::default()
        };
        config.membership.active_view_capacity = self.active_capacity();
        config.membership.passive_view_capacity = self.passive_view.max(1);
        config.membership.shuffle_interval = self.shuffle_interval;
        config.membership.neighbor_request_timeout = self.neighbor_timeout;
        config.broadcast.graft_timeout_1 = self.graft_timeout;
        config.broadcast.graft_timeout_2 = self.graft_retry;
        config.broadcast.dispatch_timeout = self.announce_delay;
        config.broadcast.message_cache_retention = self.frame_retention;
        // When the cache is emptied before the time, ids are forgotten by so much too early.
        config.broadcast.message_id_retention = self.id_retention + self.frame_retention;
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hub_holds_as_many_neighbours_as_it_seeks_and_no_more_than_it_was_told() {
        let held = |active_view| {
            let config = GossipConfig {
                active_view,
                ..GossipConfig::default()
            };
            let hub = config.at_source();
            assert_eq!(hub.active_capacity(), hub.enough_neighbors());
            hub.active_capacity()
        };
        assert_eq!([0, 1, 3, 4, 5, 50].map(held), [1, 1, 3, 4, 4, 4]);
    }
}

//! The settings of a hub, each with its default.

use std::time::Duration;

use crate::{
    admission::Admission,
    endpoint::hub_transport_config,
    fan_out::FanOut,
    gossip::GossipConfig,
    instant::bound,
    log::LogConfig,
    wire::{broadcast, compat, native},
};

/// What becomes of a native spoke that falls behind the log.
///
/// The hub holds no queue for it in either case, only its place. A plain spoke is always closed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Behind {
    /// Its listeners are told which events they missed, and it goes on with the oldest that is kept.
    #[default]
    Skip,
    /// Its link is closed with [`CloseCode::FellBehind`](crate::CloseCode::FellBehind). It may come back,
    /// and is then told what it missed.
    Close,
}

/// The limits that a hub keeps towards its spokes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HubLimits {
    /// The largest event, in bytes, both ways: type, id and payload together. Default 16 MiB; at most
    /// about 4 GiB.
    pub max_event_bytes: usize,
    /// The most handshakes in flight. One more gets no answer, so that an honest peer tries again by itself after a second.
    /// Default 512.
    pub max_handshakes: usize,
    /// The most of them that are one remote address's, counted as for
    /// [`handshakes_of_addr_per_s`](Self::handshakes_of_addr_per_s), so that one which finishes none does not hold every place.
    /// Default: a quarter of [`max_handshakes`](Self::max_handshakes), so 128.
    pub handshakes_of_addr: Option<usize>,
    /// With so many handshakes in flight, an address that has not shown that it can be answered is asked to first, by QUIC
    /// Retry. Default 64.
    pub validate_above: usize,
    /// How many handshakes one remote address may begin a second, and twice as many in the second after it was quiet. But for the first 16 they
    /// get their turns evenly, so that they leave the hub time for events; as many wait for theirs as may be in flight. (On a router of yours
    /// there are no turns.) A /64 of IPv6 counts as one address, and a peer that comes by a relay has its id instead. More get no
    /// answer. Default 200.
    pub handshakes_of_addr_per_s: u32,
    /// How long a handshake may take. Default 10 s.
    pub handshake_timeout: Duration,
    /// The most connections of the direct protocols at once, with or without spokes. Default 20,480.
    pub max_connections: usize,
    /// The most of them that have had no spoke yet, from the handshake until a welcome; and the most streams that are no spokes
    /// yet. Default 1,024.
    pub max_waiting: usize,
    /// The most of those, and of such streams, that are one endpoint's: as many as it may have spokes, so that one which begins
    /// them all at once is not refused. Default 256.
    pub waiting_of_one: usize,
    /// The most of those, and of such streams, that are one remote address's, whichever ids it comes with; a /64 of IPv6 counts
    /// as one address, and so does a relay. To be raised where many spokes share an address and admission is slow. Default: a
    /// quarter of [`max_waiting`](Self::max_waiting), so 256.
    pub waiting_of_addr: Option<usize>,
    /// How much a connection that has had no spoke yet may have in flight towards the hub, in bytes. Default 64 KiB.
    pub waiting_window: u32,
    /// How much a connection with a spoke may have in flight towards the hub, in bytes, while there is room for it. Default
    /// 8 MiB.
    pub receive_window: u32,
    /// How much all connections with spokes may have in flight towards the hub, in bytes, beyond what those without may. It is
    /// shared out as they come: one gets at most a sixteenth of what is left. Default 256 MiB.
    pub receive_bytes: usize,
    /// How much the hub may have in flight towards one connection, in bytes: what a stuck spoke can hold of the hub's memory
    /// beside the log. Default 1 MiB.
    pub send_window: u32,
    /// The most spokes at once. Default 16,384.
    pub max_spokes: usize,
    /// The most streams (spokes) on one connection. Default 64.
    pub max_streams: usize,
    /// The most spokes of one endpoint that are connected, over all of its connections; and as many may be
    /// away. One more is refused, or makes the one that went first give way; those that come back are let
    /// in. Default 256.
    pub spokes_of_one: usize,
    /// How long a connection may take to open a stream and say hello on it. Default 10 s.
    pub hello_timeout: Duration,
    /// How long a frame may stay unfinished, and so long for each MiB an event that comes in several frames. Default 30 s.
    pub frame_timeout: Duration,
    /// The most bytes of targeted events that wait for one spoke, sent or not, until it acknowledges
    /// them; one event is always taken if [`targeted_bytes_of_all`](Self::targeted_bytes_of_all) has room for it. Default
    /// 16 MiB.
    pub targeted_bytes: usize,
    /// The same for all spokes, 256 bytes for each event included, those that are away among them. Where some waits already,
    /// more is taken up to a quarter of what is left. Default 256 MiB.
    pub targeted_bytes_of_all: usize,
    /// The most targeted events that wait for one spoke. Default 1,024.
    pub targeted_events: usize,
    /// How long a native spoke that is lost without a goodbye keeps its session: comes it back by then, it
    /// is the same spoke, and nothing that was sent to it or by it is lost or repeated. Default 2 min.
    pub session_lifetime: Duration,
    /// The most spokes that are away at once and keep their sessions. Of the endpoint that has most of them, who went first
    /// gives way. Default 16,384.
    pub away_spokes: usize,
    /// The most bytes of targeted events that are kept for all spokes that are away, 256 bytes for each event
    /// included. Of the endpoint for which most is kept, who went first gives way. Default 64 MiB.
    pub away_bytes: usize,
    /// How many spokes that are gone the receipts of broadcasts remember. Default 4,096.
    pub remembered_spokes: usize,
    /// What becomes of a native spoke that falls behind the log. Default: it is told what it missed.
    pub behind: Behind,
    /// How long `send` waits for room in a spoke's queue. Default 5 s.
    pub send_wait: Duration,
    /// How many bytes of its own events a native spoke may have unacknowledged. Default 4 MiB; one
    /// event is always allowed.
    pub publish_window: u64,
    /// How many frames a second a spoke may send, and as many at once: an event of up to 64 KiB is one, an acknowledgement
    /// is one too. From one that sends more the hub reads nothing for as long as it is too fast. Default 10,000.
    pub publish_frames_per_s: u64,
    /// The same in bytes. Default 64 MiB.
    pub publish_bytes_per_s: u64,
    /// The most bytes of events from spokes that have come in part, or that wait for a listener with no room, over all of them;
    /// while there are more, the hub reads from no spoke. A quarter is for events of at most 128 KiB, the rest for larger
    /// ones. At least what one event may have. Default 256 MiB.
    pub intake_bytes: usize,
    /// The same for one endpoint, over all of its spokes. At least what one event may have. Default 33 MiB: room for two of
    /// the largest events.
    pub intake_of_one: usize,
    /// How far `broadcast` may run ahead of the spokes that keep up, in events, give or take an eighth.
    /// Default 8,192.
    pub pace_events: u64,
    /// The same in bytes. Default 16 MiB; one event is always allowed.
    pub pace_bytes: u64,
    /// How long `broadcast` waits for a spoke that has stopped taking anything; ten times as long if
    /// most have. Default 500 ms.
    pub stall_after: Duration,
    /// How long, in all, one spoke that is slower than most may hold `broadcast` back before it is
    /// left to fall behind; regained at a twentieth of the time that passes. Default 2 s.
    pub patience: Duration,
    /// How long `shutdown` waits for spokes to take what is left. Default 10 s.
    pub drain_timeout: Duration,
    /// How many acknowledgements a second the hub takes over all spokes, and how many more receipts may ask
    /// for. A few spokes take up to 400 of them, the others share the rest and acknowledge every 2 s at most; up to
    /// 20 spokes, all share alike. Default 1,000.
    pub acks_per_s: u32,
    /// How many bytes a second may go to repairs, and to spokes that the topic does not reach and that
    /// are served directly meanwhile, over all of them; who waits longest comes first. Default 32 MiB.
    pub repair_bytes_per_s: u64,
    /// How many events of a durable log may wait for the disk, and at most a quarter of what the log keeps;
    /// one is always taken. Default 8,192.
    pub unsynced_events: usize,
    /// The same in bytes. Default 16 MiB.
    pub unsynced_bytes: usize,
    /// How long events from spokes wait for the very first listener of a new hub. Default 1 s.
    pub first_listener_wait: Duration,
}

impl Default for HubLimits {
    fn default() -> Self {
        Self {
            max_event_bytes: 16 << 20,
            max_handshakes: 512,
            handshakes_of_addr: None,
            validate_above: 64,
            handshakes_of_addr_per_s: 200,
            handshake_timeout: Duration::from_secs(10),
            max_connections: 20_480,
            max_waiting: 1024,
            waiting_of_one: 256,
            waiting_of_addr: None,
            waiting_window: 64 << 10,
            receive_window: 8 << 20,
            receive_bytes: 256 << 20,
            send_window: 1 << 20,
            max_spokes: 16_384,
            max_streams: 64,
            spokes_of_one: 256,
            hello_timeout: Duration::from_secs(10),
            frame_timeout: Duration::from_secs(30),
            targeted_bytes: 16 << 20,
            targeted_bytes_of_all: 256 << 20,
            targeted_events: 1024,
            session_lifetime: Duration::from_secs(120),
            away_spokes: 16_384,
            away_bytes: 64 << 20,
            remembered_spokes: 4096,
            behind: Behind::Skip,
            send_wait: Duration::from_secs(5),
            publish_window: 4 << 20,
            publish_frames_per_s: 10_000,
            publish_bytes_per_s: 64 << 20,
            intake_bytes: 256 << 20,
            intake_of_one: 33 << 20,
            pace_events: 8192,
            pace_bytes: 16 << 20,
            stall_after: Duration::from_millis(500),
            patience: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(10),
            acks_per_s: 1000,
            repair_bytes_per_s: 32 << 20,
            unsynced_events: 8192,
            unsynced_bytes: 16 << 20,
            first_listener_wait: Duration::from_secs(1),
        }
    }
}

impl HubLimits {
    pub(super) fn most_handshakes_of_addr(&self) -> usize {
        let part = of_addr(self.max_handshakes);
        self.handshakes_of_addr.unwrap_or(part).max(1)
    }

    pub(super) fn most_waiting_of_addr(&self) -> usize {
        let part = of_addr(self.max_waiting);
        self.waiting_of_addr.unwrap_or(part).max(1)
    }
}

/// How many of so many places one address may have, if nothing else is set: it takes four to have them all.
fn of_addr(places: usize) -> usize {
    places / 4
}

/// Beyond these, a setting stands for "no limit".
const MAX_STREAMS: usize = 1 << 20;
const MAX_HANDSHAKES: usize = 1 << 20;
const MIN_WINDOW: u32 = 16 << 10;

/// A key that changes faster is in the way of what it is for.
const MIN_KEY_LIFETIME: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, Default)]
pub(crate) struct HubConfig {
    pub(crate) fan_out: FanOut,
    pub(crate) admission: Admission,
    /// Whether who is admitted later may read what was broadcast before.
    pub(crate) history: bool,
    pub(crate) log: LogConfig,
    /// The file of a durable log.
    #[cfg(feature = "durable")]
    pub(crate) log_file: Option<std::path::PathBuf>,
    pub(crate) gossip: GossipConfig,
    pub(crate) limits: HubLimits,
}

impl HubConfig {
    /// Brings what cannot be into bounds that can.
    pub(crate) fn sound(mut self) -> Self {
        // A part has to fit into a frame: events are cut alike for every path.
        let gossip = &mut self.gossip;
        gossip.max_frame_size = gossip
            .max_frame_size
            .clamp(broadcast::MIN_FRAME_SIZE, broadcast::MAX_FRAME_SIZE);
        gossip.key_lifetime = gossip.key_lifetime.max(MIN_KEY_LIFETIME);
        let limits = &mut self.limits;
        limits.max_event_bytes = limits.max_event_bytes.clamp(1, native::MAX_EVENT_BYTES);
        // What an event has beyond its part would be counted by nobody.
        let largest = limits
            .max_event_bytes
            .saturating_add(compat::FRAME_OVERHEAD);
        limits.intake_of_one = limits.intake_of_one.max(largest);
        // A quarter is for small events alone.
        let with_small = limits
            .intake_of_one
            .saturating_add(limits.intake_of_one / 3 + 1);
        limits.intake_bytes = limits.intake_bytes.max(with_small);
        limits.targeted_events = limits.targeted_events.max(1);
        limits.pace_events = limits.pace_events.max(1);
        limits.pace_bytes = limits.pace_bytes.max(1);
        limits.repair_bytes_per_s = limits.repair_bytes_per_s.max(1);
        limits.acks_per_s = limits.acks_per_s.max(1);
        limits.max_streams = limits.max_streams.clamp(1, MAX_STREAMS);
        limits.max_handshakes = limits.max_handshakes.clamp(1, MAX_HANDSHAKES);
        limits.handshakes_of_addr_per_s = limits.handshakes_of_addr_per_s.max(1);
        // What QUIC needs to get anywhere.
        limits.waiting_window = limits.waiting_window.max(MIN_WINDOW);
        limits.receive_window = limits.receive_window.max(limits.waiting_window);
        limits.send_window = limits.send_window.max(MIN_WINDOW);
        limits.spokes_of_one = limits.spokes_of_one.max(1);
        bound([
            &mut limits.handshake_timeout,
            &mut limits.hello_timeout,
            &mut limits.frame_timeout,
            &mut limits.send_wait,
            &mut limits.session_lifetime,
            &mut limits.stall_after,
            &mut limits.patience,
            &mut limits.drain_timeout,
            &mut limits.first_listener_wait,
        ]);
        // What the hub dials itself has the windows of what comes in.
        self.gossip.transport = Some(hub_transport_config(&self.limits));
        self.gossip = self.gossip.at_source();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hub_is_on_the_topic_as_the_source_of_its_frames() {
        let once = HubConfig::default().sound();
        let view = once.gossip.active_view;
        assert_eq!(view, GossipConfig::default().at_source().active_view);
        assert!(view < GossipConfig::default().active_view);
        assert_eq!(once.sound().gossip.active_view, view);
    }

    #[test]
    fn what_is_taken_in_has_room_for_the_largest_event_as_it_comes() {
        let mut config = HubConfig::default();
        config.limits.max_event_bytes = 4 << 20;
        config.limits.intake_of_one = 1 << 20;
        config.limits.intake_bytes = 2 << 20;
        let limits = config.sound().limits;
        assert!(limits.intake_of_one >= (4 << 20) + compat::FRAME_OVERHEAD);
        assert!(limits.intake_bytes >= limits.intake_of_one);
    }
}

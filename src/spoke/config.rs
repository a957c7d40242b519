//! The settings of a spoke, each with its default.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::backoff::Reconnect;
use crate::{
    gossip::GossipConfig, instant::bound, position::Position, protocol::Protocol, wire::native,
};

/// Whether a spoke takes part in the topic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Gossip {
    /// It does: other spokes learn its id and address, and it passes broadcasts on with its own
    /// uplink.
    #[default]
    Full,
    /// It does not: the hub serves it directly.
    Off,
}

/// Where in the hub's log a spoke begins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum From {
    /// With the next event that the hub broadcasts.
    #[default]
    Tip,
    /// With the oldest event that the hub still has.
    Earliest,
    /// With the event at this position: the [`next`](Position::next) after that of the last event that was
    /// handled. What the hub no longer has of it is reported as [missed](crate::Missed). A position of another
    /// life of the log, or beyond the tip, is reported as missed too, since nobody knows what lay between; the
    /// spoke then begins with the first event that is not known to be one that it had.
    Position(Position),
}

/// The limits that a spoke keeps.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SpokeLimits {
    /// The largest event, in bytes, both ways. Default 16 MiB. The hub's own limit holds too; a broadcast
    /// that is larger than this one is reported as missed.
    pub max_event_bytes: usize,
    /// How long one attempt to connect may take, to the hub's welcome. Default 15 s.
    pub connect_timeout: Duration,
    /// How long a frame may stay unfinished. Default 60 s.
    pub frame_timeout: Duration,
    /// The most bytes of broadcasts that wait for earlier ones. Default 64 MiB; two of the largest
    /// events always fit.
    pub max_buffered_bytes: usize,
    /// The most bytes of this spoke's own events that wait, sent or not, until the hub has them; also
    /// while there is no link. Default 4 MiB; one event is always taken.
    pub send_buffer_bytes: usize,
    /// How long `send` waits for room. Default 30 s.
    pub send_wait: Duration,
    /// How long `shutdown` waits for the hub to take what was sent. Default 10 s.
    pub drain_timeout: Duration,
    /// How long events wait for the very first listener after connecting. Default 1 s.
    pub first_listener_wait: Duration,
}

impl Default for SpokeLimits {
    fn default() -> Self {
        Self {
            max_event_bytes: 16 << 20,
            connect_timeout: Duration::from_secs(15),
            frame_timeout: Duration::from_secs(60),
            max_buffered_bytes: 64 << 20,
            send_buffer_bytes: 4 << 20,
            send_wait: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            first_listener_wait: Duration::from_secs(1),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct SpokeConfig {
    pub(crate) protocol: Protocol,
    pub(crate) gossip: Gossip,
    pub(crate) from: From,
    pub(crate) limits: SpokeLimits,
    pub(crate) reconnect: Reconnect,
    pub(crate) gossip_config: GossipConfig,
}

impl SpokeConfig {
    /// Brings what cannot be into bounds that can.
    pub(crate) fn sound(mut self) -> Self {
        let limits = &mut self.limits;
        limits.max_event_bytes = limits.max_event_bytes.clamp(1, native::MAX_EVENT_BYTES);
        bound([
            &mut limits.connect_timeout,
            &mut limits.frame_timeout,
            &mut limits.send_wait,
            &mut limits.drain_timeout,
            &mut limits.first_listener_wait,
        ]);
        self
    }
}

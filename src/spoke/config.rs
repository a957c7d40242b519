//! The settings of a spoke, each with its default.

use std::time::Duration;

use iroh::Endpoint;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::backoff::Reconnect;
use crate::{
    gossip::GossipConfig, instant::bound, position::Position, protocol::Protocol, wire::native,
};

/// Whether a spoke takes part in the topic, and with it what other spokes learn of it.
///
/// # What spokes learn of each other
///
/// The hub learns the endpoint id of every spoke, and the addresses that its connection comes from. What other
/// spokes may learn:
///
/// | | `Full` | `RelayOnly` | `Off`, or the plain protocol |
/// |---|---|---|---|
/// | endpoint id | yes | yes | no |
/// | URL of its relay | yes | yes | no |
/// | IP addresses, public ones and those of its own network | yes | no | no |
/// | that it is there now, and how fast it answers | yes | yes | no |
///
/// Whoever is on the topic learns this of who else is: the hub names a few spokes to each that joins, and they
/// name those that they know to each other. It includes every spoke that the hub admits, so with an
/// [open](crate::Admission::open) hub, anyone. Relays see the addresses and ids of those that use them, and who talks
/// to whom, and not what is said.
///
/// iroh makes two endpoints that are connected by a relay tell each other all their IP addresses, so as to find
/// a direct way, and it cannot be told not to. So what keeps addresses from other spokes is an endpoint that has
/// none: see [`RelayOnly`](Self::RelayOnly).
///
/// What a spoke does with addresses that others tell it, the hub among these: it dials them for gossip only, at
/// most four for each spoke; private and loopback addresses only if it has one of the same kind itself (where the hub sees
/// a spoke, one of any private kind), so that nobody makes it knock at doors inside its own network; and relays only if
/// they are its own, or have a name in public and it is on one itself. Where the hub is, it believes its user only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Gossip {
    /// It does: other spokes learn its id and addresses, and it passes broadcasts on with its own
    /// uplink.
    #[default]
    Full,
    /// It does, by relays only: other spokes learn its id and the URL of its relay, and no IP address.
    ///
    /// For this its endpoint must have no IP address to tell, and so everything goes by its relay, the link to the
    /// hub as well: build it with
    /// [`clear_ip_transports`](iroh::endpoint::Builder::clear_ip_transports) and a relay. On an endpoint with an IP
    /// address, the spoke warns and takes no part in the topic, as with [`Off`](Self::Off).
    RelayOnly,
    /// It does not: the hub serves it directly.
    Off,
}

impl Gossip {
    /// What can be had of it on this endpoint.
    pub(super) fn on(self, endpoint: &Endpoint) -> Self {
        let has_ip = || {
            let told = endpoint.addr();
            !endpoint.bound_sockets().is_empty() || told.ip_addrs().next().is_some()
        };
        if self == Self::RelayOnly && has_ip() {
            warn!(
                "this endpoint has IP addresses, which iroh would tell other spokes: the spoke takes no part in gossip"
            );
            return Self::Off;
        }
        self
    }
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

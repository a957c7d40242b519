//! What a hub tells about its spokes.

use std::time::Duration;

use iroh::TransportAddr;
use tokio::sync::broadcast::{self, error::RecvError};
use tracing::debug;

use crate::{
    close::{CloseCode, Closed},
    fan_out::Path,
    metrics::events,
    protocol::Protocol,
    spoke_id::SpokeId,
};

/// One spoke, as the hub sees it now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SpokeInfo {
    /// Its id; the endpoint in it is proven.
    pub id: SpokeId,
    /// Where its packets come from: an IP address, or a relay.
    pub addr: Option<TransportAddr>,
    /// The protocol of its stream.
    pub protocol: Protocol,
    /// Whether broadcasts can take the topic to it while it is connected: it speaks the native protocol, is willing to
    /// gossip, and is the one spoke of its endpoint that does.
    pub gossip_capable: bool,
    /// The path that broadcasts take to it.
    pub path: Path,
    /// The round-trip time of its connection.
    pub rtt: Option<Duration>,
    /// Every broadcast below this offset has reached it: it acknowledged them, or (compat) its stream
    /// took them.
    pub acked: u64,
    /// It was lost without a goodbye and may come back: nothing can reach it now, and what is sent to it
    /// is kept.
    pub away: bool,
}

/// A spoke came or went, or its broadcasts take another path.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SpokeChange {
    /// It was welcomed.
    Joined {
        /// Which one.
        id: SpokeId,
        /// The protocol of its stream.
        protocol: Protocol,
    },
    /// It was lost without a goodbye. It may come back within
    /// [`HubLimits::session_lifetime`](super::HubLimits::session_lifetime).
    Away {
        /// Which one.
        id: SpokeId,
        /// How its link ended.
        closed: Closed,
    },
    /// It came back, and goes on where it was; it is served directly at first.
    Returned {
        /// Which one.
        id: SpokeId,
    },
    /// It is gone for good.
    Left {
        /// Which one.
        id: SpokeId,
        /// How its last link ended.
        closed: Closed,
    },
    /// Its broadcasts take another path from now on.
    Moved {
        /// Which one.
        id: SpokeId,
        /// The new path.
        path: Path,
    },
}

impl SpokeChange {
    pub(super) fn trace(&self) {
        match self {
            Self::Joined { id, protocol } => {
                debug!(target: events::JOINED, spoke = %id.fmt_short(), %protocol);
            }
            Self::Away { id, closed } => {
                let code = closed.code().map(CloseCode::to_u64);
                debug!(target: events::AWAY, spoke = %id.fmt_short(), code, %closed);
            }
            Self::Returned { id } => debug!(target: events::RETURNED, spoke = %id.fmt_short()),
            Self::Left { id, closed } => {
                let code = closed.code().map(CloseCode::to_u64);
                debug!(target: events::LEFT, spoke = %id.fmt_short(), code, %closed);
            }
            Self::Moved { id, path } => {
                debug!(target: events::MOVED, spoke = %id.fmt_short(), ?path);
            }
        }
    }
}

/// Watches spokes come and go. Made by [`Hub::watch_spokes`](super::Hub::watch_spokes).
#[derive(Debug)]
pub struct SpokeWatch(pub(super) broadcast::Receiver<SpokeChange>);

/// A watch was too slow and lost changes; [`Hub::spokes`](super::Hub::spokes) and
/// [`Spoke::status`](crate::Spoke::status) tell how things stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatchLagged {
    /// How many changes were lost.
    pub changes: u64,
}

impl SpokeWatch {
    /// The next change; `None` once the hub is gone.
    ///
    /// # Errors
    ///
    /// If the watch was more than 1,024 changes behind; it goes on behind the hole.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Result<SpokeChange, WatchLagged>> {
        match self.0.recv().await {
            Ok(change) => Some(Ok(change)),
            Err(RecvError::Lagged(changes)) => Some(Err(WatchLagged { changes })),
            Err(RecvError::Closed) => None,
        }
    }
}

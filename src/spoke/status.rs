//! How a spoke's link stands: what there is to tell, and who watches it.

use std::{fmt, time::Duration};

use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};
use tracing::debug;

use crate::{
    close::{CloseCode, Closed},
    hub::WatchLagged,
    listen::Missed,
    metrics::events,
    position::Position,
    protocol::Protocol,
};

/// How many statuses a watch may be behind before it is told that it lagged.
const WATCH_CAPACITY: usize = 256;

/// What becomes of a spoke's link to its hub.
///
/// A [`StatusWatch`] tells each as it happens. A listener that asks for them
/// ([`ListenOptions::statuses`](crate::ListenOptions::statuses)) gets them in their place among the
/// events; it gets holes as [`Incoming::Missed`](crate::Incoming::Missed) in any case.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SpokeStatus {
    /// The hub has welcomed the spoke.
    Connected {
        /// Where it goes on: before it came every broadcast up to there that will come, behind it come those
        /// from there on. `None` over the plain protocol.
        position: Option<Position>,
    },
    /// There is no link. The next attempt to make one begins after a while.
    Reconnecting {
        /// Counts the attempts since the last link that lasted, from 1.
        attempt: u32,
        /// How long until that attempt.
        after: Duration,
        /// How the link ended, or the last attempt.
        closed: Closed,
    },
    /// After a lost link, or a start at a saved position: the spoke has caught up with the tip that the
    /// hub named when it welcomed it.
    Recovered {
        /// Whether nothing was missed on the way: no [`Missed`](Self::Missed) since the link was lost,
        /// and the hub could go on at the spoke's position.
        wholly: bool,
    },
    /// Broadcasts that this spoke will never see.
    Missed(Missed),
    /// The spoke has ended.
    Closed(Closed),
}

impl SpokeStatus {
    fn trace(&self, protocol: Protocol) {
        let code = |closed: &Closed| closed.code().map(CloseCode::to_u64);
        match self {
            Self::Connected { .. } => debug!(target: events::CONNECTED, %protocol),
            Self::Reconnecting {
                attempt,
                after,
                closed,
            } => {
                let code = code(closed);
                debug!(target: events::RECONNECTING, attempt, ?after, code, %closed);
            }
            Self::Recovered { wholly } => debug!(target: events::RECOVERED, wholly),
            Self::Missed(Missed { from, to }) => debug!(target: events::MISSED_HERE, %from, %to),
            Self::Closed(closed) => {
                debug!(target: events::CLOSED, code = code(closed), %closed);
            }
        }
    }
}

impl fmt::Display for SpokeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { .. } => f.write_str("connected"),
            Self::Reconnecting { after, closed, .. } => {
                write!(f, "not connected, next attempt in {after:.1?} ({closed})")
            }
            Self::Recovered { wholly: true } => f.write_str("recovered, nothing is missing"),
            Self::Recovered { wholly: false } => f.write_str("recovered, but not wholly"),
            Self::Missed(missed) => missed.fmt(f),
            Self::Closed(closed) => closed.fmt(f),
        }
    }
}

/// Watches a spoke's link. Made by [`Spoke::watch`](super::Spoke::watch).
#[derive(Debug)]
pub struct StatusWatch {
    all: broadcast::Receiver<SpokeStatus>,
    ended: bool,
}

impl StatusWatch {
    /// The next status; `None` once the spoke has ended and its end was told.
    ///
    /// # Errors
    ///
    /// If the watch was more than 256 statuses behind; it goes on behind the hole.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Result<SpokeStatus, WatchLagged>> {
        if self.ended {
            return None;
        }
        match self.all.recv().await {
            Ok(status) => {
                self.ended = matches!(status, SpokeStatus::Closed(_));
                Some(Ok(status))
            }
            Err(RecvError::Lagged(changes)) => Some(Err(WatchLagged { changes })),
            Err(RecvError::Closed) => None,
        }
    }
}

/// What is told of a spoke's link, and how it stands.
#[derive(Debug)]
pub(super) struct Statuses {
    protocol: Protocol,
    all: broadcast::Sender<SpokeStatus>,
    /// The latest that says how things stand; none before the first attempt has ended.
    now: watch::Sender<Option<SpokeStatus>>,
}

impl Statuses {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            all: broadcast::Sender::new(WATCH_CAPACITY),
            now: watch::Sender::new(None),
        }
    }

    /// Tells it; nothing more once the end was told.
    pub(super) fn tell(&self, status: SpokeStatus) {
        if self.closed().is_some() {
            return;
        }
        status.trace(self.protocol);
        match status {
            // What happened, not how things stand.
            SpokeStatus::Recovered { .. } | SpokeStatus::Missed(_) => {}
            _ => drop(self.now.send_replace(Some(status.clone()))),
        }
        // Nobody may be watching.
        let _ = self.all.send(status);
    }

    pub(super) fn now(&self) -> Option<SpokeStatus> {
        self.now.borrow().clone()
    }

    pub(super) fn watch(&self) -> StatusWatch {
        let all = self.all.subscribe();
        let ended = self.closed().is_some();
        StatusWatch { all, ended }
    }

    /// How the spoke ended, if it has.
    pub(super) fn closed(&self) -> Option<Closed> {
        match &*self.now.borrow() {
            Some(SpokeStatus::Closed(closed)) => Some(closed.clone()),
            _ => None,
        }
    }

    /// Shows how things stand from now on.
    pub(super) fn changes(&self) -> watch::Receiver<Option<SpokeStatus>> {
        self.now.subscribe()
    }
}

//! How a spoke's link stands: what there is to tell, and who watches it.

use std::{fmt, time::Duration};

use crate::{close::Closed, listen::Missed};

/// What becomes of a spoke's link to its hub.
///
/// A listener that asks for them
/// ([`ListenOptions::statuses`](crate::ListenOptions::statuses)) gets them in their place among the
/// events; it gets holes as [`Incoming::Missed`](crate::Incoming::Missed) in any case.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SpokeStatus {
    /// The hub has welcomed the spoke.
    Connected,
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

impl fmt::Display for SpokeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
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

//! What can go wrong with a spoke, by operation.

use iroh::endpoint::ConnectError as IrohConnectError;
use n0_error::{AnyError, stack_error};

use crate::{
    close::{CloseCode, Closed},
    delivery::Loss,
};

/// A spoke did not connect.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum ConnectError {
    /// The ticket cannot be read.
    #[error("this is not a hub's ticket; copy it whole, from `endpoint` to its end")]
    Ticket {
        /// Why not.
        source: AnyError,
    },
    /// The hub was not reached.
    #[error("the hub was not reached; is it running, and is the ticket its latest?")]
    Unreachable {
        /// What iroh says.
        source: IrohConnectError,
    },
    /// The hub did not answer in time.
    #[error("the hub did not answer in time; is it running, and is the ticket its latest?")]
    TimedOut {},
    /// The hub does not let this spoke in.
    #[error("the hub refused this spoke ({code}): {reason}")]
    Refused {
        /// Its code.
        code: CloseCode,
        /// Its words.
        reason: String,
    },
    /// The link broke before the hub's welcome.
    #[error("the link to the hub broke before its welcome: {closed}")]
    Broken {
        /// How.
        closed: Closed,
    },
}

impl ConnectError {
    /// How the attempt ended, as the end of a link that there never was.
    pub(super) fn closed(&self) -> Closed {
        let lost = |reason: &str| Closed::Lost {
            reason: reason.to_owned(),
        };
        match self {
            Self::Ticket { .. } => lost("the ticket cannot be read"),
            Self::Unreachable { source, .. } => lost(&format!("the hub was not reached: {source}")),
            Self::TimedOut { .. } => lost("the hub did not answer in time"),
            Self::Refused { code, reason, .. } => Closed::ByPeer {
                code: *code,
                reason: reason.clone(),
            },
            Self::Broken { closed, .. } => closed.clone(),
        }
    }
}

/// An event was not sent to the hub.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum SpokeSendError {
    /// It is too large.
    #[error("an event of {len} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size in bytes.
        len: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The hub takes nothing.
    #[error("the hub has taken nothing for a while; the event was not queued")]
    Stalled {},
    /// The spoke has ended.
    #[error("the spoke has ended: {closed}")]
    Closed {
        /// How.
        closed: Closed,
    },
    /// Told by [`Spoke::flush`](super::Spoke::flush): of the events sent since the flush before, some were
    /// lost with a session that the hub no longer knows, or with the spoke's end. Each event's
    /// [receipt](crate::SendReceipt) tells which.
    #[error(
        "{not_delivered} events were not delivered, and {maybe_delivered} may have been or not: {reason}"
    )]
    Lost {
        /// How many were not delivered and will not be.
        not_delivered: u64,
        /// How many may have been delivered.
        maybe_delivered: u64,
        /// Why, of the latest.
        reason: Loss,
    },
}

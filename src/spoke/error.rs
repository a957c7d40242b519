//! What can go wrong with a spoke, by operation.

use iroh::endpoint::ConnectError as IrohConnectError;
use n0_error::{AnyError, stack_error};

use crate::close::{CloseCode, Closed};

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
    /// The link to the hub has ended. What was not acknowledged may or may not have arrived.
    #[error("the link to the hub has ended: {closed}")]
    Closed {
        /// How.
        closed: Closed,
    },
}

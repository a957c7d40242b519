//! What can go wrong with a hub, by operation.

use n0_error::stack_error;

use crate::{
    event::Envelope,
    log::{LogFailed, OpenLogError},
    spoke_id::SpokeId,
};

/// A hub could not be made.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum HubError {
    /// The endpoint is closed.
    #[error("the endpoint is closed; make the hub on an open one")]
    EndpointClosed {},
    /// The durable log cannot be opened.
    #[error(transparent)]
    Log {
        /// Why not.
        source: OpenLogError,
    },
}

/// An event was not broadcast.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum BroadcastError {
    /// It is too large.
    #[error(
        "an event of {len} bytes is over the limit of {limit}; send less, or raise max_event_bytes"
    )]
    TooLarge {
        /// Its size in bytes.
        len: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The hub is shut down, or about to be.
    #[error("the hub is shut down")]
    Closed {},
    /// The durable log could not be written. Spokes do not get the event, unless it turns out to be in
    /// the log when the hub is started again.
    #[error(transparent)]
    Log {
        /// What happened.
        source: LogFailed,
    },
}

/// An event was not broadcast at once.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum TryBroadcastError {
    /// The spokes, or the disk of a durable log, are too far behind; try again later, or wait with
    /// `broadcast`.
    #[error("the spokes, or the disk, are too far behind to take another event now")]
    Behind {
        /// The event, given back.
        event: Envelope,
    },
    /// It will never be taken.
    #[error(transparent)]
    Refused {
        /// Why not.
        source: BroadcastError,
    },
}

/// An event was not queued for a spoke.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum SendError {
    /// There is no such spoke (any more), connected or away.
    #[error("there is no such spoke")]
    NoSuchSpoke {},
    /// Its queue is full, and it took nothing within the limit.
    #[error("the queue of spoke {spoke} is full, and it takes nothing")]
    Stalled {
        /// Which one.
        spoke: SpokeId,
    },
    /// The event is too large, the hub is shut down, or its log cannot be written.
    #[error(transparent)]
    Refused {
        /// Which of them.
        source: BroadcastError,
    },
}

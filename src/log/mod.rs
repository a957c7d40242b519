//! The hub's log: every broadcast event, numbered, up to a bound.
//!
//! A log only stores and numbers. Whoever reads it brings a cursor (an offset) and is told what became
//! of it: events, the tip, or that it fell off the tail. Waiting for more, waking readers and saying
//! what was missed are the hub's business, so a log needs no task, no lock and no clock of its own.
//!
//! [`Log`] lives in memory. A durable log is one in memory and a file behind it, which
//! [`HubBuilder::durable_log`](crate::HubBuilder::durable_log) names.
//!
//! Ranges of offsets are half-open everywhere in this crate: `[from, to)` has `from` and does not have `to`.
//!
//! # Durable logs
//!
//! A hub that is started again with its key and its log, however it ended, goes on in the same epoch with
//! the next offset, and spokes resume as if they had only lost the connection.
//!
//! - Nothing is lost that [`Hub::broadcast`](crate::Hub::broadcast) had returned: it returns when the event
//!   is synced. Broadcasts that wait at the same time share a sync, and
//!   [`Hub::append`](crate::Hub::append) does not wait for it.
//! - No spoke gets an event before it is synced, by no path. So no offset is ever given to two events.
//! - The file is bounded as the log is ([`LogConfig`]), some times its size at most. All of it is held
//!   in memory too, from where it is read.
//! - If the file cannot be written, say because the disk is full, broadcasts fail with [`LogFailed`] from
//!   then on. What was synced is still served. Start the hub again when the disk has room.
//! - The file is refused with an [`OpenLogError`], and not changed, if it is damaged, something else, of
//!   another layout or another hub's, or in use.
//!
//! A file that was restored from a copy has lost events, and spokes may have them. Their offsets must
//! not be given to other events in the same epoch, so the log begins a new epoch and remembers where
//! the two part: spokes that had read no further go on as if nothing had happened, and the others are told.
//! It does so
//! - when it is in another file than it was written to (its inode and time of creation are in it; moving it
//!   within its file system changes neither);
//! - when it is behind the mark of how far it had come, a small file beside it (`FILE.tip`): it was
//!   overwritten in place;
//! - when a spoke comes from beyond the tip, but for that only once in the life of a process.
//!
//! What cannot be noticed is a log that was set back together with its mark, as with a whole disk, if as many
//! events as were lost are broadcast before the first spoke comes back that had them: move the log away after
//! that, and begin a new one.

mod error;
#[cfg(feature = "durable")]
pub(crate) mod file;
mod memory;
pub(crate) mod resume;

pub use self::{
    error::{LogFailed, OpenLogError},
    memory::Log,
};

/// The bounds of a [`Log`].
///
/// Both hold at once. The newest event is always kept, even one that is larger than
/// [`max_bytes`](Self::max_bytes) alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogConfig {
    /// The most events that are kept. Default 131,072; zero counts as one.
    pub max_events: usize,
    /// The most bytes that are kept, as stated when appending. Default 128 MiB.
    ///
    /// What the log itself needs for an event, some tens of bytes, comes on top.
    pub max_bytes: usize,
}

impl LogConfig {
    /// These bounds with another [`max_events`](Self::max_events).
    #[must_use]
    pub const fn with_max_events(mut self, max_events: usize) -> Self {
        self.max_events = max_events;
        self
    }

    /// These bounds with another [`max_bytes`](Self::max_bytes).
    #[must_use]
    pub const fn with_max_bytes(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            max_events: 131_072,
            max_bytes: 128 << 20,
        }
    }
}

/// What a cursor found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Read {
    /// At least one event, beginning with the one that was asked for.
    Events,
    /// The cursor is at the tip: nothing is there yet.
    AtTip,
    /// The log no longer has the event: `[from, head)` is gone, go on at `head`.
    Trimmed {
        /// The oldest offset that is still kept.
        head: u64,
    },
    /// The cursor is past the tip: it does not come from this log.
    Beyond {
        /// The offset that the next event will get.
        tip: u64,
    },
}

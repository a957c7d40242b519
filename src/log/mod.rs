//! The hub's log: every broadcast event, numbered, up to a bound.
//!
//! A log only stores and numbers. Whoever reads it brings a cursor (an offset) and is told what became
//! of it: events, the tip, or that it fell off the tail. Waiting for more, waking readers and saying
//! what was missed are the hub's business, so a log needs no task, no lock and no clock of its own.
//!
//! [`Log`] lives in memory. A durable log sits beside it and speaks the same terms: [`LogConfig`] for the
//! bounds, [`Read`] for what a cursor finds.
//!
//! Ranges of offsets are half-open everywhere in this crate: `[from, to)` has `from` and does not have `to`.

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

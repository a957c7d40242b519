//! The log as the hub's tasks share it: one writer at a time, any number of cursors, and a tip to
//! wait for.

use std::sync::{
    Arc, OnceLock, PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    event::Envelope,
    log::{
        Log, LogConfig, Read,
        resume::{Ask, Lives, Resume},
    },
    position::{Epoch, Position},
    wire::{compat, native},
};

/// One event of the log, and what it looks like on the wire once somebody needed that.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) envelope: Envelope,
    /// Bytes of all events up to and with this one.
    pub(crate) bytes_to_here: u64,
    native: OnceLock<Box<[Bytes]>>,
    compat: OnceLock<Bytes>,
}

impl Entry {
    /// The frames of the native protocol, encoded by whoever comes first.
    pub(crate) fn native(&self, offset: u64) -> &[Bytes] {
        self.native.get_or_init(|| {
            let mut chunks = Vec::new();
            native::put_event(&mut chunks, offset, self.envelope.body(), false);
            chunks.into()
        })
    }

    /// The frame of the compat protocol.
    pub(crate) fn compat(&self) -> &Bytes {
        self.compat.get_or_init(|| compat::encode(&self.envelope))
    }

    pub(crate) fn size(&self) -> usize {
        self.envelope.size()
    }
}

#[derive(Debug)]
pub(crate) struct SharedLog {
    epoch: Epoch,
    inner: RwLock<Inner>,
    tip: watch::Sender<u64>,
    /// The same as `Inner::bytes`, for who does not need the lock.
    bytes: AtomicU64,
}

/// Where a reader begins, and what the log was when that was decided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begin {
    pub(crate) epoch: Epoch,
    pub(crate) tip: u64,
    pub(crate) resume: Resume,
}

#[derive(Debug)]
struct Inner {
    log: Log<Arc<Entry>>,
    bytes: u64,
}

impl SharedLog {
    pub(crate) fn new(config: LogConfig) -> Self {
        Self::of(Log::new(config))
    }

    /// A log of this epoch, which must not be used twice.
    #[cfg(feature = "cli")]
    pub(crate) fn with_epoch(config: LogConfig, epoch: Epoch) -> Self {
        Self::of(Log::with_epoch(config, epoch))
    }

    fn of(log: Log<Arc<Entry>>) -> Self {
        Self {
            epoch: log.epoch(),
            tip: watch::Sender::new(log.tip()),
            inner: RwLock::new(Inner { log, bytes: 0 }),
            bytes: AtomicU64::new(0),
        }
    }

    fn read_lock(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn append(&self, envelope: Envelope) -> Position {
        let size = envelope.size();
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.bytes += size as u64;
        let entry = Entry {
            envelope,
            bytes_to_here: inner.bytes,
            native: OnceLock::new(),
            compat: OnceLock::new(),
        };
        let offset = inner.log.append(Arc::new(entry), size);
        self.bytes.store(inner.bytes, Ordering::Release);
        // Under the lock, so that the tip never goes back.
        self.tip.send_replace(offset + 1);
        Position::new(self.epoch, offset)
    }

    pub(crate) fn read(
        &self,
        from: u64,
        max_events: usize,
        max_bytes: usize,
        out: &mut Vec<(u64, Arc<Entry>)>,
    ) -> Read {
        self.read_lock().log.read(from, max_events, max_bytes, out)
    }

    pub(crate) fn head(&self) -> u64 {
        self.read_lock().log.head()
    }

    /// Where a reader that asks for this begins.
    pub(crate) fn resume(&self, ask: Ask) -> Begin {
        let inner = self.read_lock();
        let lives = Lives {
            epoch: self.epoch,
            head: inner.log.head(),
            tip: inner.log.tip(),
            // A log in memory has one life.
            previous: &[],
        };
        Begin {
            epoch: lives.epoch,
            tip: lives.tip,
            resume: lives.resume(ask),
        }
    }

    pub(crate) fn tip(&self) -> u64 {
        *self.tip.borrow()
    }

    /// Wakes whoever waits for the tip to move.
    pub(crate) fn watch_tip(&self) -> watch::Receiver<u64> {
        self.tip.subscribe()
    }

    /// Bytes of all events that were ever appended.
    pub(crate) fn bytes_appended(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// How far back from `from` a window of so many events and bytes reaches: the lowest offset in it.
    pub(crate) fn back_by(&self, from: u64, max_events: u64, max_bytes: u64) -> u64 {
        let inner = self.read_lock();
        let log = &inner.log;
        let bytes_before = |offset: u64| {
            log.get(offset).map_or(inner.bytes, |entry| {
                entry.bytes_to_here - entry.size() as u64
            })
        };
        let until = bytes_before(from);
        // The last event before `from` is always within.
        let mut low = from.saturating_sub(max_events).max(log.head());
        let mut high = from.saturating_sub(1).max(low);
        while low < high {
            let middle = low + (high - low) / 2;
            if until.saturating_sub(bytes_before(middle)) <= max_bytes {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_reaches_back_by_events_and_by_bytes_and_by_one_event_at_least() {
        let log = SharedLog::new(LogConfig::default());
        for n in 0..10 {
            log.append(Envelope::from_json("t", "", &"1".repeat(95 + n)).unwrap());
        }
        // Four bytes of type, id and lengths each.
        assert_eq!(log.back_by(10, 3, u64::MAX), 7);
        assert_eq!(log.back_by(10, 100, 108), 9);
        assert_eq!(log.back_by(10, 100, 108 + 107), 8);
        assert_eq!(log.back_by(10, 100, 1), 9);
        assert_eq!(log.back_by(10, 100, u64::MAX), 0);
        assert_eq!(log.back_by(0, 100, 100), 0);
    }
}

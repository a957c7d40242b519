//! The log as the hub's tasks share it: one writer at a time, any number of cursors, and a tip to
//! wait for.

use std::sync::{
    Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tracing::debug;

use crate::{
    event::Envelope,
    log::{
        Log, LogConfig, LogFailed, Read,
        resume::{Ask, Lives, Previous, Resume},
    },
    metrics::LogMetrics,
    metrics::events,
    position::{Epoch, Position},
    wire::{
        compat, native,
        run::{self, Run},
    },
};

/// One event of the log, and what it looks like on the wire once somebody needed that.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) envelope: Envelope,
    /// Bytes of all events up to and with this one.
    pub(crate) bytes_to_here: u64,
    native: OnceLock<Box<[Bytes]>>,
    compat: OnceLock<Bytes>,
    /// The run that it leads, if its offset is one of those that do; `None` within if there is none.
    run: OnceLock<Option<Box<Run>>>,
}

/// A run leads from each multiple of this to the next.
const RUN: u64 = run::MAX_EVENTS as u64;
/// Of fewer events a link takes each by itself: those that are at the tip, as most are, need no run.
const SHORTEST_RUN: u64 = 8;

/// How far [`SharedLog::put_runs`] came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RunsPut {
    /// Behind the last event that was put.
    pub(crate) next: u64,
    pub(crate) bytes: usize,
    /// It stopped for the bounds, and not because there is no run.
    pub(crate) is_full: bool,
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

/// See the [module](self).
///
/// With a durable log, an event is appended first and can be read once it is synced: the tip is where
/// reading ends. A [writer](super::log_writer) takes what is [unsynced](Self::unsynced) and says when it
/// is [synced](Self::set_synced).
#[derive(Debug)]
pub(crate) struct SharedLog {
    inner: RwLock<Inner>,
    /// Wakes who waits for the tip to move; also when the log fails or begins an epoch.
    moved: watch::Sender<()>,
    /// Where reading ends, and the epoch: every link looks at them for every event, without the lock.
    tip: AtomicU64,
    epoch: AtomicU64,
    /// The same as `Inner::bytes`, for who does not need the lock.
    bytes: AtomicU64,
    /// The largest event since somebody asked.
    largest: AtomicU64,
    /// Wakes the writer.
    work: Notify,
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
    previous: Vec<Previous>,
    /// What a durable log adds.
    file: Option<Syncing>,
}

/// How far the file is behind the log.
#[derive(Debug)]
struct Syncing {
    limits: UnsyncedLimits,
    synced: u64,
    unsynced_bytes: usize,
    /// An epoch that is to begin.
    wanted: Option<Epoch>,
    /// A spoke's claim has made this process begin an epoch.
    claimed: bool,
    failed: Option<LogFailed>,
}

/// So much of the log may be what waits for the disk.
const UNSYNCED_PART: usize = 4;

/// How much may wait for the disk at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnsyncedLimits {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

/// What waits for the disk.
#[cfg_attr(not(feature = "durable"), allow(dead_code))]
#[derive(Debug)]
pub(crate) struct Unsynced {
    /// The log's head: what is below may go.
    pub(crate) head: u64,
    /// From the synced mark on.
    pub(crate) bodies: Vec<Bytes>,
    /// The tip once they are synced.
    pub(crate) to: u64,
    /// The epoch that begins with them.
    pub(crate) begin: Option<Epoch>,
}

/// An event was not appended.
#[derive(Debug)]
pub(crate) enum NotAppended {
    /// Too much waits for the disk; here is the event again.
    Full(Envelope),
    /// No event can be appended any more.
    Failed(LogFailed),
}

impl Inner {
    /// Where reading ends.
    fn readable(&self) -> u64 {
        let synced = self.file.as_ref().map(|file| file.synced);
        synced.unwrap_or_else(|| self.log.tip())
    }

    fn push(&mut self, envelope: Envelope) -> u64 {
        let size = envelope.size();
        self.bytes += size as u64;
        let entry = Entry {
            envelope,
            bytes_to_here: self.bytes,
            native: OnceLock::new(),
            compat: OnceLock::new(),
            run: OnceLock::new(),
        };
        self.log.append(Arc::new(entry), size)
    }
}

/// A durable log while its file is read: never more of it is in memory than the log keeps.
#[cfg_attr(not(feature = "durable"), allow(dead_code))]
#[derive(Debug)]
pub(crate) struct Loading {
    config: LogConfig,
    inner: Option<Inner>,
}

#[cfg_attr(not(feature = "durable"), allow(dead_code))]
impl Loading {
    pub(crate) fn new(config: LogConfig) -> Self {
        Self {
            config,
            inner: None,
        }
    }

    fn starting_at(config: LogConfig, head: u64) -> Inner {
        Inner {
            // Whose events these are is known once all of them are read.
            log: Log::starting_at(config, Epoch::from_u64(0), head),
            bytes: 0,
            previous: Vec::new(),
            file: None,
        }
    }

    /// The next event of the file; the first one says where the log begins.
    pub(crate) fn push(&mut self, offset: u64, event: Envelope) {
        let start = || Self::starting_at(self.config, offset);
        self.inner.get_or_insert_with(start).push(event);
    }

    /// The log, all of it synced, which is empty at `tip` if there were no events.
    pub(crate) fn finish(
        self,
        limits: UnsyncedLimits,
        (epoch, previous): (Epoch, Vec<Previous>),
        tip: u64,
    ) -> SharedLog {
        let start = || Self::starting_at(self.config, tip);
        let mut inner = self.inner.unwrap_or_else(start);
        inner.log.set_epoch(epoch);
        inner.previous = previous;
        inner.file = Some(Syncing {
            limits: UnsyncedLimits {
                // What is not synced must not push what spokes have yet to read out of the log.
                events: limits
                    .events
                    .min(self.config.max_events / UNSYNCED_PART)
                    .max(1),
                bytes: limits.bytes.min(self.config.max_bytes / UNSYNCED_PART),
            },
            synced: inner.log.tip(),
            unsynced_bytes: 0,
            wanted: None,
            claimed: false,
            failed: None,
        });
        SharedLog::of(inner)
    }
}

impl SharedLog {
    pub(crate) fn new(config: LogConfig) -> Self {
        Self::in_memory(Log::new(config))
    }

    /// A log of this epoch, which must not be used twice.
    #[cfg(feature = "cli")]
    pub(crate) fn with_epoch(config: LogConfig, epoch: Epoch) -> Self {
        Self::in_memory(Log::with_epoch(config, epoch))
    }

    fn in_memory(log: Log<Arc<Entry>>) -> Self {
        Self::of(Inner {
            log,
            bytes: 0,
            previous: Vec::new(),
            file: None,
        })
    }

    fn of(inner: Inner) -> Self {
        Self {
            moved: watch::Sender::new(()),
            tip: AtomicU64::new(inner.readable()),
            epoch: AtomicU64::new(inner.log.epoch().to_u64()),
            bytes: AtomicU64::new(inner.bytes),
            largest: AtomicU64::new(0),
            inner: RwLock::new(inner),
            work: Notify::new(),
        }
    }

    fn read_lock(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch::from_u64(self.epoch.load(Ordering::Acquire))
    }

    /// Where reading ends, as a position.
    pub(crate) fn tip_position(&self) -> Position {
        let inner = self.read_lock();
        Position::new(inner.log.epoch(), inner.readable())
    }

    /// The offset of the next event, whether or not all before it can be read.
    pub(crate) fn appended(&self) -> u64 {
        self.read_lock().log.tip()
    }

    /// Appends an event. It can be read at once, or, if the log is durable, when it is
    /// [synced](Self::synced).
    pub(crate) fn append(&self, envelope: Envelope) -> Result<Position, NotAppended> {
        let size = envelope.size();
        let mut inner = self.write_lock();
        let end = inner.log.tip();
        if let Some(file) = &mut inner.file {
            if let Some(failed) = &file.failed {
                return Err(NotAppended::Failed(failed.clone()));
            }
            let events = usize::try_from(end - file.synced).unwrap_or(usize::MAX);
            let bytes = file.unsynced_bytes.saturating_add(size);
            if events > 0 && (events >= file.limits.events || bytes > file.limits.bytes) {
                return Err(NotAppended::Full(envelope));
            }
            file.unsynced_bytes = bytes;
        }
        let offset = inner.push(envelope);
        self.bytes.store(inner.bytes, Ordering::Release);
        self.largest.fetch_max(size as u64, Ordering::AcqRel);
        if inner.file.is_some() {
            self.work.notify_one();
        } else {
            // Under the lock, so that the tip never goes back.
            self.tip.store(offset + 1, Ordering::Release);
            self.moved.send_replace(());
        }
        Ok(Position::new(inner.log.epoch(), offset))
    }

    /// Resolves when the event at `offset` can be read, which is when it is synced; with the position
    /// that it has then.
    pub(crate) async fn synced(&self, offset: u64) -> Result<Position, LogFailed> {
        let mut tip = self.moved.subscribe();
        loop {
            tip.mark_unchanged();
            if self.tip() > offset {
                return Ok(Position::new(self.epoch_of(offset), offset));
            }
            if let Some(failed) = self.failure() {
                return Err(failed);
            }
            // The sender is ours.
            let _ = tip.changed().await;
        }
    }

    /// The epoch in which an event that can be read came to be so: the first one that had it.
    fn epoch_of(&self, offset: u64) -> Epoch {
        let inner = self.read_lock();
        let ended = inner
            .previous
            .iter()
            .find(|previous| previous.fork > offset);
        ended.map_or_else(|| inner.log.epoch(), |previous| previous.epoch)
    }

    /// Resolves when everything that was appended until now can be read, or never will be.
    pub(crate) async fn flushed(&self) {
        let end = self.read_lock().log.tip();
        if let Some(last) = end.checked_sub(1) {
            let _ = self.synced(last).await;
        }
    }

    /// Why no event can be appended any more, if so.
    pub(crate) fn failure(&self) -> Option<LogFailed> {
        self.read_lock().file.as_ref()?.failed.clone()
    }

    /// Resolves when no event can be appended any more; never, for a log in memory.
    pub(crate) async fn failed(&self) -> LogFailed {
        let mut tip = self.moved.subscribe();
        loop {
            tip.mark_unchanged();
            if let Some(failed) = self.failure() {
                return failed;
            }
            // The sender is ours.
            let _ = tip.changed().await;
        }
    }

    pub(crate) fn read(
        &self,
        from: u64,
        max_events: usize,
        max_bytes: usize,
        out: &mut Vec<(u64, Arc<Entry>)>,
    ) -> Read {
        if from == self.tip() {
            return Read::AtTip;
        }
        let inner = self.read_lock();
        let tip = inner.readable();
        if from > tip {
            return Read::Beyond { tip };
        }
        if from == tip {
            return Read::AtTip;
        }
        let room = usize::try_from(tip - from).unwrap_or(usize::MAX);
        inner.log.read(from, max_events.min(room), max_bytes, out)
    }

    /// Appends the frames of small events from `from` on, as far as there are whole [runs](Run) of them up to `stop`:
    /// of at most so many bytes, and until they are so many events.
    pub(crate) fn put_runs(
        &self,
        from: u64,
        stop: u64,
        (max_events, max_bytes): (usize, usize),
        chunks: &mut Vec<Bytes>,
    ) -> RunsPut {
        let (mut next, mut bytes) = (from, 0);
        let mut is_full = false;
        while !is_full
            && let Some(lead) = self.leads(next, stop)
            && let Some(run) = lead.run.get().and_then(Option::as_ref)
        {
            match run.put_from(next, max_bytes - bytes, chunks) {
                Some((events, put)) => {
                    next += events as u64;
                    bytes += put;
                    is_full = next - from >= max_events as u64;
                }
                None => is_full = true,
            }
        }
        RunsPut {
            next,
            bytes,
            is_full,
        }
    }

    /// What leads the run that `offset` is in, with that run made; `None` if it is not worth it from there on, or not all
    /// of it can be read, or is before `stop`.
    fn leads(&self, offset: u64, stop: u64) -> Option<Arc<Entry>> {
        let first = offset - offset % RUN;
        let end = first.checked_add(RUN).filter(|end| *end <= stop)?;
        if end - offset < SHORTEST_RUN || end > self.tip() {
            return None;
        }
        let inner = self.read_lock();
        let lead = inner.log.get(first)?.clone();
        if lead.run.get().is_none() {
            let entries = (first..end).map_while(|offset| inner.log.get(offset).cloned());
            let entries: Vec<_> = entries.collect();
            // Who waits to append does not wait for this.
            drop(inner);
            let bodies = entries.iter().map(|entry| entry.envelope.body());
            lead.run
                .get_or_init(|| Run::new(first, bodies).map(Box::new));
        }
        Some(lead)
    }

    /// Sets the gauges to how full the log is.
    pub(crate) fn observe(&self, metrics: &LogMetrics) {
        let inner = self.read_lock();
        let (head, end) = (inner.log.head(), inner.log.tip());
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        metrics.events.set(gauge(end - head));
        metrics.bytes.set(gauge(inner.log.bytes() as u64));
        metrics.events_unsynced.set(gauge(end - inner.readable()));
    }

    pub(crate) fn head(&self) -> u64 {
        self.read_lock().log.head()
    }

    /// Where a reader that asks for this begins.
    pub(crate) fn resume(&self, ask: Ask) -> Begin {
        let inner = self.read_lock();
        let lives = Lives {
            epoch: inner.log.epoch(),
            head: inner.log.head(),
            tip: inner.readable(),
            previous: &inner.previous,
        };
        Begin {
            epoch: lives.epoch,
            tip: lives.tip,
            resume: lives.resume(ask),
        }
    }

    /// Begins a new epoch because a spoke comes from beyond the tip: once, and only if the log is
    /// durable. Resolves when it has begun; says whether it has.
    pub(crate) async fn begin_epoch(&self) -> bool {
        let mut tip = self.moved.subscribe();
        let Some(before) = self.want_epoch(Epoch::random()) else {
            return false;
        };
        while self.failure().is_none() {
            if self.epoch() != before {
                return true;
            }
            let _ = tip.changed().await;
        }
        false
    }

    /// Asks the writer to begin this epoch, if it has not been asked for one before. Gives the epoch that
    /// is to end, unless none begins.
    pub(crate) fn want_epoch(&self, epoch: Epoch) -> Option<Epoch> {
        let mut inner = self.write_lock();
        let before = inner.log.epoch();
        let file = inner.file.as_mut()?;
        if !std::mem::replace(&mut file.claimed, true) {
            file.wanted = Some(epoch);
        } else if file.wanted.is_none() {
            return None;
        }
        drop(inner);
        self.work.notify_one();
        Some(before)
    }

    pub(crate) fn tip(&self) -> u64 {
        self.tip.load(Ordering::Acquire)
    }

    /// Wakes whoever waits for the tip to move.
    pub(crate) fn watch_tip(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    /// Bytes of all events that were ever appended.
    pub(crate) fn bytes_appended(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// The size of the largest event that was appended since this was asked last; 0 if none was.
    pub(crate) fn take_largest(&self) -> u64 {
        self.largest.swap(0, Ordering::AcqRel)
    }

    /// Bytes of all events from `from` on, as far as the log still has them.
    pub(crate) fn bytes_from(&self, from: u64) -> u64 {
        let inner = self.read_lock();
        let before = |entry: &Arc<Entry>| entry.bytes_to_here - entry.size() as u64;
        let first = inner.log.get(from.max(inner.log.head()));
        first.map_or(0, |entry| inner.bytes.saturating_sub(before(entry)))
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

/// The writer's side of a durable log.
#[cfg_attr(not(feature = "durable"), allow(dead_code))]
impl SharedLog {
    /// Resolves when there may be something for the writer.
    pub(crate) async fn work(&self) {
        self.work.notified().await;
    }

    /// What waits for the disk: all of it, which is bounded.
    pub(crate) fn unsynced(&self) -> Option<Unsynced> {
        let inner = self.read_lock();
        let file = inner.file.as_ref()?;
        let to = inner.log.tip();
        if file.failed.is_some() || (file.synced == to && file.wanted.is_none()) {
            return None;
        }
        let entries = (file.synced..to).map_while(|offset| inner.log.get(offset));
        Some(Unsynced {
            head: inner.log.head(),
            bodies: entries.map(|entry| entry.envelope.body().clone()).collect(),
            to,
            begin: file.wanted,
        })
    }

    /// This is in the file now.
    pub(crate) fn set_synced(&self, done: &Unsynced) {
        let inner = &mut *self.write_lock();
        let Some(file) = &mut inner.file else {
            return;
        };
        let bytes = (file.synced..done.to).filter_map(|offset| inner.log.get(offset));
        let bytes: usize = bytes.map(|entry| entry.size()).sum();
        file.unsynced_bytes = file.unsynced_bytes.saturating_sub(bytes);
        if let Some(epoch) = done.begin {
            file.wanted = None;
            let fork = file.synced;
            debug!(target: events::EPOCH, %epoch, fork);
            inner.previous.push(Previous {
                epoch: inner.log.epoch(),
                fork,
            });
            inner.log.set_epoch(epoch);
            self.epoch.store(epoch.to_u64(), Ordering::Release);
        }
        file.synced = done.to;
        self.tip.store(done.to, Ordering::Release);
        self.moved.send_replace(());
    }

    /// Nothing more gets into the file, and so into the log.
    pub(crate) fn fail(&self, failed: LogFailed) {
        let inner = &mut *self.write_lock();
        if let Some(file) = &mut inner.file
            && file.failed.is_none()
        {
            debug!(target: events::LOG_FAILED, reason = failed.reason);
            file.failed = Some(failed);
        }
        // Wakes whoever waits for it to be synced.
        self.moved.send_replace(());
    }

    /// As [`fail`](Self::fail), if nothing waits for the disk; says whether.
    pub(crate) fn end(&self, failed: LogFailed) -> bool {
        {
            let inner = &mut *self.write_lock();
            let end = inner.log.tip();
            if let Some(file) = &mut inner.file {
                if file.failed.is_none() && (file.synced < end || file.wanted.is_some()) {
                    return false;
                }
                file.failed.get_or_insert(failed);
            }
        }
        self.moved.send_replace(());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_reaches_back_by_events_and_by_bytes_and_by_one_event_at_least() {
        let log = SharedLog::new(LogConfig::default());
        for n in 0..10 {
            let event = Envelope::from_json("t", "", &"1".repeat(95 + n)).unwrap();
            log.append(event).unwrap();
        }
        // Four bytes of type, id and lengths each.
        assert_eq!(log.back_by(10, 3, u64::MAX), 7);
        assert_eq!(log.back_by(10, 100, 108), 9);
        assert_eq!(log.back_by(10, 100, 108 + 107), 8);
        assert_eq!(log.back_by(10, 100, 1), 9);
        assert_eq!(log.back_by(10, 100, u64::MAX), 0);
        assert_eq!(log.back_by(0, 100, 100), 0);
        assert_eq!(log.bytes_from(8), 108 + 107);
        assert_eq!(log.bytes_from(10), 0);
    }

    fn event(bytes: usize) -> Envelope {
        Envelope::from_json("t", "", &"1".repeat(bytes)).unwrap()
    }

    fn durable(config: LogConfig, events: usize, bytes: usize) -> SharedLog {
        let limits = UnsyncedLimits { events, bytes };
        let lives = (Epoch::from_u64(1), Vec::new());
        Loading::new(config).finish(limits, lives, 0)
    }

    fn sync(log: &SharedLog) {
        let unsynced = log.unsynced().unwrap();
        log.set_synced(&unsynced);
    }

    fn read(log: &SharedLog, from: u64) -> (Read, usize) {
        let mut out = Vec::new();
        (log.read(from, 100, usize::MAX, &mut out), out.len())
    }

    #[tokio::test]
    async fn what_is_not_synced_is_not_read_and_does_not_count_as_the_tip() {
        let log = durable(LogConfig::default(), 10, 1000);
        for offset in 0..3 {
            assert_eq!(log.append(event(5)).unwrap().offset, offset);
        }
        assert_eq!(read(&log, 0), (Read::AtTip, 0));
        assert_eq!(read(&log, 1), (Read::Beyond { tip: 0 }, 0));
        assert_eq!((log.tip(), log.tip_position().offset), (0, 0));
        assert_eq!(log.resume(Ask::Tip).tip, 0);

        // What comes while the first three are written is not written with them.
        let first = log.unsynced().unwrap();
        log.append(event(5)).unwrap();
        log.set_synced(&first);
        assert_eq!(read(&log, 0), (Read::Events, 3));
        assert_eq!(read(&log, 3), (Read::AtTip, 0));
        assert_eq!(log.tip(), 3);
        assert_eq!(log.synced(2).await.unwrap().offset, 2);
        let (synced, ()) = tokio::join!(log.synced(3), async { sync(&log) });
        assert_eq!(synced.unwrap().offset, 3);
        assert!(log.unsynced().is_none());
    }

    #[test]
    fn a_run_is_not_read_before_the_last_of_it_is_synced() {
        let log = durable(LogConfig::default(), 1000, 10_000);
        let put = |log: &SharedLog| {
            let mut chunks = Vec::new();
            log.put_runs(0, u64::MAX, (1000, 10_000), &mut chunks).next
        };
        for _ in 0..RUN - 1 {
            log.append(event(5)).unwrap();
        }
        sync(&log);
        for _ in 0..RUN {
            log.append(event(5)).unwrap();
        }
        assert_eq!(put(&log), 0);
        sync(&log);
        assert_eq!(put(&log), RUN);
    }

    #[test]
    fn what_waits_for_the_disk_is_bounded_but_for_one_event() {
        let log = durable(LogConfig::default(), 3, 100);
        log.append(event(500)).unwrap();
        assert!(matches!(log.append(event(1)), Err(NotAppended::Full(_))));
        sync(&log);
        for _ in 0..3 {
            log.append(event(1)).unwrap();
        }
        assert!(matches!(log.append(event(1)), Err(NotAppended::Full(_))));
        sync(&log);
        log.append(event(50)).unwrap();
        assert!(matches!(log.append(event(50)), Err(NotAppended::Full(_))));
        assert!(log.append(event(20)).is_ok());
    }

    #[test]
    fn what_waits_for_the_disk_leaves_most_of_a_small_log_to_those_who_read() {
        let config = LogConfig::default();
        let by_events = durable(config.with_max_events(8), 100, 10_000);
        let by_bytes = durable(config.with_max_bytes(80), 100, 10_000);
        for log in [by_events, by_bytes] {
            for _ in 0..8 {
                log.append(event(6)).unwrap();
                sync(&log);
            }
            assert_eq!((log.head(), log.tip()), (0, 8));
            let waiting = (0..8).filter(|_| log.append(event(6)).is_ok()).count();
            assert_eq!(waiting, 2);
            // A spoke that has all but a few.
            assert_eq!(read(&log, 2), (Read::Events, 6));
        }
        // Even of the smallest log, one.
        let least = durable(config.with_max_events(1), 100, 10_000);
        least.append(event(6)).unwrap();
        assert!(matches!(least.append(event(6)), Err(NotAppended::Full(_))));
    }

    #[tokio::test]
    async fn a_log_that_fails_serves_what_is_synced_and_takes_no_more() {
        let log = durable(LogConfig::default(), 10, 1000);
        log.append(event(5)).unwrap();
        sync(&log);
        log.append(event(5)).unwrap();
        let (failed, ()) = tokio::join!(log.synced(1), async {
            log.fail(LogFailed::because("the disk is full"));
        });
        assert_eq!(failed.unwrap_err().reason, "the disk is full");
        assert!(log.synced(0).await.is_ok());
        log.flushed().await;
        assert!(matches!(log.append(event(1)), Err(NotAppended::Failed(_))));
        assert_eq!(read(&log, 0), (Read::Events, 1));
        assert_eq!(read(&log, 1), (Read::AtTip, 0));
        assert!(log.unsynced().is_none());
        assert!(!log.begin_epoch().await);
        // The first cause is the one that is said.
        assert!(log.end(LogFailed::because("ended")));
        assert_eq!(log.failure().unwrap().reason, "the disk is full");
    }

    #[tokio::test]
    async fn a_log_ends_only_when_all_is_synced() {
        let log = durable(LogConfig::default(), 10, 1000);
        log.append(event(5)).unwrap();
        assert!(!log.end(LogFailed::because("ended")));
        sync(&log);
        assert!(log.end(LogFailed::because("ended")));
        assert!(matches!(log.append(event(1)), Err(NotAppended::Failed(_))));
    }

    #[tokio::test]
    async fn a_claim_begins_one_epoch_at_the_synced_mark() {
        let log = durable(LogConfig::default(), 10, 1000);
        let old = log.epoch();
        for _ in 0..3 {
            log.append(event(5)).unwrap();
        }
        sync(&log);
        let waiting = log.append(event(5)).unwrap();
        assert_eq!(waiting.epoch, old);
        let beyond = Ask::At(Position::new(old, 9));
        assert!(log.resume(beyond).resume.begins_new_epoch);
        let (begun, also_begun, ()) =
            tokio::join!(log.begin_epoch(), log.begin_epoch(), async { sync(&log) });
        assert!(begun && also_begun);
        let new = log.epoch();
        assert_ne!(new, old);
        // The event that waited is of the new epoch.
        assert_eq!(log.synced(3).await.unwrap(), Position::new(new, 3));
        // What spokes had before keeps the name that they had it by.
        assert_eq!(log.synced(2).await.unwrap(), Position::new(old, 2));
        let answer = log.resume(beyond).resume;
        assert_eq!((answer.start, answer.continues), (3, false));
        let known = log.resume(Ask::At(Position::new(old, 3))).resume;
        assert_eq!((known.start, known.continues), (3, true));
        // Once in the life of a process.
        assert!(!log.begin_epoch().await);
        assert_eq!(log.epoch(), new);
        assert!(!SharedLog::new(LogConfig::default()).begin_epoch().await);
    }

    #[test]
    fn of_a_file_no_more_is_kept_than_the_log_keeps() {
        let mut loading = Loading::new(LogConfig::default().with_max_events(3));
        for offset in 5..15 {
            loading.push(offset, event(5));
        }
        let limits = UnsyncedLimits {
            events: 10,
            bytes: 1000,
        };
        let fork = Previous {
            epoch: Epoch::from_u64(1),
            fork: 7,
        };
        let log = loading.finish(limits, (Epoch::from_u64(2), vec![fork]), 15);
        assert_eq!((log.head(), log.tip()), (12, 15));
        assert_eq!(log.epoch(), Epoch::from_u64(2));
        let resumed = log.resume(Ask::At(Position::new(Epoch::from_u64(1), 7)));
        assert!(resumed.resume.continues);
        assert_eq!(read(&log, 12), (Read::Events, 3));
        assert_eq!(log.append(event(5)).unwrap().offset, 15);
    }

    crate::fuzz::machine! {
        /// The bounds of the log never cut off what nobody could read yet.
        fn nothing_is_trimmed_before_it_is_synced(
            max_events in 0usize..8,
            max_bytes in 0usize..200,
            events in 0usize..10,
            bytes in 0usize..300,
            ops in proptest::collection::vec(proptest::option::of(1usize..120), 1..80),
        ) {
            let config = LogConfig::default().with_max_events(max_events).with_max_bytes(max_bytes);
            let log = durable(config, events, bytes);
            let mut appended = 0;
            for op in ops {
                match op {
                    Some(bytes) => {
                        if log.append(event(bytes)).is_ok() {
                            appended += 1;
                        } else {
                            proptest::prop_assert!(log.unsynced().is_some());
                        }
                    }
                    None => {
                        let Some(unsynced) = log.unsynced() else { continue };
                        proptest::prop_assert_eq!(unsynced.to, appended);
                        proptest::prop_assert_eq!(unsynced.bodies.len() as u64, appended - log.tip());
                        log.set_synced(&unsynced);
                        proptest::prop_assert_eq!(log.tip(), appended);
                    }
                }
                proptest::prop_assert!(log.head() <= log.tip());
            }
        }
    }
}

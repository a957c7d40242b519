//! The log in memory: gone with its process.

use std::collections::VecDeque;

use super::{LogConfig, Read};
use crate::position::Epoch;

/// A bounded log of events in memory.
///
/// `T` is what a reader gets a clone of, so it should be cheap to clone (an event encoded once, in
/// [`Bytes`](bytes::Bytes)).
///
/// ```
/// use iroh_hub::log::{Log, LogConfig, Read};
///
/// let mut log = Log::new(LogConfig::default().with_max_events(2));
/// for event in ["a", "b", "c"] {
///     log.append(event, event.len());
/// }
/// let mut events = Vec::new();
/// assert_eq!(log.read(0, 10, 1024, &mut events), Read::Trimmed { head: 1 });
/// assert_eq!(log.read(1, 10, 1024, &mut events), Read::Events);
/// assert_eq!(events, [(1, "b"), (2, "c")]);
/// ```
#[derive(Debug)]
pub struct Log<T> {
    config: LogConfig,
    epoch: Epoch,
    /// The offset of the first entry.
    head: u64,
    entries: VecDeque<Entry<T>>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry<T> {
    item: T,
    bytes: usize,
}

impl<T: Clone> Log<T> {
    /// An empty log of a new epoch.
    pub fn new(config: LogConfig) -> Self {
        Self::with_epoch(config, Epoch::random())
    }

    /// An empty log of this epoch. An epoch must not be used twice for different events.
    pub fn with_epoch(config: LogConfig, epoch: Epoch) -> Self {
        Self::starting_at(config, epoch, 0)
    }

    /// An empty log whose first event will get this offset.
    pub(crate) fn starting_at(config: LogConfig, epoch: Epoch, head: u64) -> Self {
        Self {
            config,
            epoch,
            head,
            entries: VecDeque::new(),
            bytes: 0,
        }
    }

    /// The life of the log that its offsets count in.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The events that are here, and those that come, are of this epoch from now on.
    pub(crate) fn set_epoch(&mut self, epoch: Epoch) {
        self.epoch = epoch;
    }

    /// The bounds that it keeps.
    pub fn config(&self) -> LogConfig {
        self.config
    }

    /// Appends an event that counts as `bytes`, and gives its offset.
    ///
    /// The oldest events go until the log is within its bounds again; this one stays in any case.
    pub fn append(&mut self, item: T, bytes: usize) -> u64 {
        while !self.fits(bytes) {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            self.head += 1;
            self.bytes -= entry.bytes;
        }
        let offset = self.tip();
        self.bytes += bytes;
        self.entries.push_back(Entry { item, bytes });
        offset
    }

    fn fits(&self, bytes: usize) -> bool {
        let total = self.bytes.checked_add(bytes);
        self.entries.len() < self.config.max_events
            && total.is_some_and(|total| total <= self.config.max_bytes)
    }

    /// The oldest offset that is kept; the [tip](Self::tip) if there is none.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// The offset that the next event will get.
    pub fn tip(&self) -> u64 {
        self.head + self.entries.len() as u64
    }

    /// The bytes that are kept, as stated when appending.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The event at `offset`, if it is kept.
    pub fn get(&self, offset: u64) -> Option<&T> {
        let at = usize::try_from(offset.checked_sub(self.head)?).ok()?;
        self.entries.get(at).map(|entry| &entry.item)
    }

    /// Reads on from `from`, in order and without holes: each event with its offset is pushed to `out`.
    ///
    /// It stops before `max_events` or `max_bytes` would be exceeded, but gives at least one event if there
    /// is one. Nothing is pushed unless the answer is [`Read::Events`].
    pub fn read(
        &self,
        from: u64,
        max_events: usize,
        max_bytes: usize,
        out: &mut Vec<(u64, T)>,
    ) -> Read {
        let tip = self.tip();
        if from > tip {
            return Read::Beyond { tip };
        }
        if from == tip {
            return Read::AtTip;
        }
        let Some(skip) = from.checked_sub(self.head) else {
            return Read::Trimmed { head: self.head };
        };
        // Below the number of entries, so it fits.
        let entries = self.entries.range(skip as usize..);
        // The first is given whatever its size; what is left then has room for nothing.
        let mut room = Some(max_bytes);
        for (n, (offset, entry)) in (from..).zip(entries).enumerate() {
            room = room.and_then(|room| room.checked_sub(entry.bytes));
            if n > 0 && (n >= max_events || room.is_none()) {
                break;
            }
            out.push((offset, entry.item.clone()));
        }
        Read::Events
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_newest_event_is_kept_whatever_its_size() {
        for config in [
            LogConfig::default().with_max_bytes(10),
            LogConfig::default().with_max_events(0),
        ] {
            let mut log = Log::new(config);
            log.append("small", 5);
            assert_eq!(log.append("large", usize::MAX), 1);
            assert_eq!((log.head(), log.tip(), log.bytes()), (1, 2, usize::MAX));
            let mut out = Vec::new();
            assert_eq!(log.read(1, 0, 0, &mut out), Read::Events);
            assert_eq!(out, [(1, "large")]);
            log.append("small", 5);
            assert_eq!((log.head(), log.tip(), log.bytes()), (2, 3, 5));
        }
    }

    #[test]
    fn an_empty_log_is_at_its_tip() {
        let log = Log::<()>::new(LogConfig::default());
        let mut out = Vec::new();
        assert_eq!(log.read(0, 1, 1, &mut out), Read::AtTip);
        assert_eq!(log.read(u64::MAX, 1, 1, &mut out), Read::Beyond { tip: 0 });
        assert!(out.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Append(usize),
        Read(u64, usize, usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0usize..40).prop_map(Op::Append),
            (0u64..70, 0usize..12, 0usize..120).prop_map(|(f, e, b)| Op::Read(f, e, b)),
        ]
    }

    crate::fuzz::machine! {
        /// The model keeps everything and works out the bounds from scratch.
        fn a_log_is_the_tail_of_all_that_was_appended(
            max_events in 0usize..12,
            max_bytes in 0usize..150,
            ops in prop::collection::vec(op(), 1..120),
        ) {
            let config = LogConfig::default().with_max_events(max_events).with_max_bytes(max_bytes);
            let mut log = Log::with_epoch(config, Epoch::from_u64(1));
            let mut all: Vec<usize> = Vec::new();
            for op in ops {
                match op {
                    Op::Append(bytes) => {
                        let offset = log.append(all.len(), bytes);
                        prop_assert_eq!(offset, all.len() as u64);
                        all.push(bytes);
                    }
                    Op::Read(from, events, bytes) => {
                        let mut out = Vec::new();
                        let tip = all.len() as u64;
                        match log.read(from, events, bytes, &mut out) {
                            Read::Beyond { tip: said } => prop_assert!(from > tip && said == tip),
                            Read::AtTip => prop_assert_eq!(from, tip),
                            Read::Trimmed { head } => prop_assert!(from < head && head == log.head()),
                            Read::Events => {
                                prop_assert!(from >= log.head());
                                let sum = |n: usize| all[from as usize..][..n].iter().sum::<usize>();
                                let n = out.len();
                                prop_assert!(n == 1 || (n <= events && sum(n) <= bytes));
                                let more = from as usize + n < all.len();
                                prop_assert!(!more || n >= events || sum(n + 1) > bytes);
                                for (i, (offset, item)) in out.iter().enumerate() {
                                    prop_assert_eq!(*offset, from + i as u64);
                                    prop_assert_eq!(*item as u64, *offset);
                                }
                                out.clear();
                            }
                        }
                        let kept = (log.head()..tip).contains(&from);
                        prop_assert_eq!(log.get(from).copied(), kept.then_some(from as usize));
                        prop_assert!(out.is_empty());
                        let kept = (log.head()..tip).contains(&from);
                        prop_assert_eq!(log.get(from).copied(), kept.then_some(from as usize));
                    }
                }
                let kept = (1..=all.len())
                    .take_while(|&n| {
                        let bytes: usize = all[all.len() - n..].iter().sum();
                        n == 1 || (n <= max_events && bytes <= max_bytes)
                    })
                    .count();
                prop_assert_eq!(log.tip(), all.len() as u64);
                prop_assert_eq!(log.head(), (all.len() - kept) as u64);
                prop_assert_eq!(log.bytes(), all[all.len() - kept..].iter().sum::<usize>());
            }
        }
    }
}

//! Targeted events that wait for the broadcasts sent before them.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::position::Position;

#[derive(Debug)]
struct Targeted {
    seq: u64,
    body: Bytes,
}

/// Bounded. Lets events out by what they wait for, and those that wait for the same in the order of their
/// arrival: what need not wait is not held back by what must.
#[derive(Debug)]
pub(super) struct TargetedQueue {
    /// Those whose turn it is.
    due: VecDeque<Targeted>,
    /// By the offset that they wait for, and their arrival.
    waiting: BTreeMap<(u64, u64), Targeted>,
    arrivals: u64,
    bytes: usize,
    max_events: usize,
    max_bytes: usize,
}

impl TargetedQueue {
    pub(super) fn new(max_events: usize, max_bytes: usize) -> Self {
        Self {
            due: VecDeque::new(),
            waiting: BTreeMap::new(),
            arrivals: 0,
            bytes: 0,
            max_events,
            max_bytes,
        }
    }

    /// False if there is no place for it. `next` is the position to release next.
    pub(super) fn push(&mut self, next: Position, after: Position, seq: u64, body: Bytes) -> bool {
        let bytes = self.bytes.saturating_add(body.len());
        if self.due.len() + self.waiting.len() >= self.max_events || bytes > self.max_bytes {
            return false;
        }
        self.bytes = bytes;
        // Before it come those that have waited long enough.
        self.ripen(next.offset);
        let targeted = Targeted { seq, body };
        // Of another epoch, there is nothing to wait for.
        if after.epoch != next.epoch || after.offset <= next.offset {
            self.due.push_back(targeted);
        } else {
            self.arrivals += 1;
            self.waiting.insert((after.offset, self.arrivals), targeted);
        }
        true
    }

    fn ripen(&mut self, next: u64) {
        while let Some(first) = self.waiting.first_entry()
            && first.key().0 <= next
        {
            self.due.push_back(first.remove());
        }
    }

    /// The offsets that are waited for will not come.
    pub(super) fn begin_epoch(&mut self) {
        self.ripen(u64::MAX);
    }

    /// The next one that need not wait for anything.
    pub(super) fn pop(&mut self, next: u64) -> Option<(u64, Bytes)> {
        if self.due.is_empty() {
            self.ripen(next);
        }
        let due = self.due.pop_front()?;
        self.bytes = self.bytes.saturating_sub(due.body.len());
        Some((due.seq, due.body))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.due.len() + self.waiting.len()
    }
}

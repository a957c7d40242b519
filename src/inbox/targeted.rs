//! Targeted events that wait for the broadcasts sent before them.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::position::Position;

#[derive(Debug)]
struct Targeted {
    after: Position,
    seq: u64,
    body: Bytes,
}

/// A bounded queue: first in, first out.
#[derive(Debug)]
pub(super) struct TargetedQueue {
    queue: VecDeque<Targeted>,
    bytes: usize,
    max_events: usize,
    max_bytes: usize,
}

impl TargetedQueue {
    pub(super) fn new(max_events: usize, max_bytes: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            bytes: 0,
            max_events,
            max_bytes,
        }
    }

    /// False if there is no place for it.
    pub(super) fn push(&mut self, after: Position, seq: u64, body: Bytes) -> bool {
        let bytes = self.bytes.saturating_add(body.len());
        if self.queue.len() >= self.max_events || bytes > self.max_bytes {
            return false;
        }
        self.bytes = bytes;
        self.queue.push_back(Targeted { after, seq, body });
        true
    }

    /// The first one, if all that it waits for is behind `next`, or lies in another epoch.
    pub(super) fn pop(&mut self, next: Position) -> Option<(u64, Bytes)> {
        let after = self.queue.front()?.after;
        if after.epoch == next.epoch && after.offset > next.offset {
            return None;
        }
        let ready = self.queue.pop_front()?;
        self.bytes = self.bytes.saturating_sub(ready.body.len());
        Some((ready.seq, ready.body))
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }
}

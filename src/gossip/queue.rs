//! The bounded queue of messages for one connection, without a lock, a task or a clock.
//!
//! Who puts a message in never waits: what finds no place is dropped. Who writes takes a batch and says when it is
//! written; so the queue knows when its peer takes nothing any more.

use std::collections::VecDeque;

use bytes::Bytes;
use n0_future::time::{Duration, Instant};

use super::core::SendKind;

/// How many messages of the protocol find a place when frames have taken all.
pub(super) const RESERVE: usize = 128;

/// How much is written at once.
const BATCH: usize = 64 * 1024;

/// A queue that was over half full for this many times the time that makes a peer stuck is as good as stuck.
const SLOW: u32 = 10;

#[derive(Debug)]
pub(crate) struct Queue {
    max_messages: usize,
    max_bytes: usize,
    queue: VecDeque<Bytes>,
    /// Messages and bytes that were taken and not yet written, or still wait.
    messages: usize,
    bytes: usize,
    /// Since when the queue has been full, or has not fallen to half after it was.
    full_since: Option<Instant>,
    progress: Instant,
}

impl Queue {
    pub(crate) fn new(max_messages: usize, max_bytes: usize, now: Instant) -> Self {
        Self {
            max_messages,
            max_bytes,
            queue: VecDeque::new(),
            messages: 0,
            bytes: 0,
            full_since: None,
            progress: now,
        }
    }

    /// Queues a message; false: there was no place, and it is dropped.
    pub(crate) fn push(&mut self, message: Bytes, kind: SendKind, now: Instant) -> bool {
        let reserve = match kind {
            SendKind::Data => 0,
            SendKind::Control => RESERVE,
        };
        // Messages of the protocol are short: their number bounds their bytes.
        let full = self.messages >= self.max_messages + reserve
            || (kind == SendKind::Data && self.bytes + message.len() > self.max_bytes);
        if full {
            self.full_since.get_or_insert(now);
            return false;
        }
        self.messages += 1;
        self.bytes += message.len();
        self.queue.push_back(message);
        true
    }

    /// Takes what is to be written next.
    pub(crate) fn take(&mut self, mut message: impl FnMut(Bytes)) {
        let mut size = 0;
        while size < BATCH
            && let Some(next) = self.queue.pop_front()
        {
            size += next.len();
            message(next);
        }
    }

    /// That many messages and bytes of them have been written.
    pub(crate) fn wrote(&mut self, messages: usize, bytes: usize, now: Instant) {
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.progress = now;
        if self.messages <= self.max_messages / 2 && self.bytes <= self.max_bytes / 2 {
            self.full_since = None;
        }
    }

    /// Whether the peer takes nothing from a full queue.
    pub(crate) fn stuck(&self, after: Duration, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        self.full_since.is_some_and(|full| {
            since(full) >= after * SLOW || (since(full) >= after && since(self.progress) >= after)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Bytes {
        vec![0; len].into()
    }

    fn taken(queue: &mut Queue) -> usize {
        let mut messages = 0;
        queue.take(|_| messages += 1);
        messages
    }

    #[test]
    fn frames_are_dropped_when_full_and_control_messages_have_places_in_reserve() {
        let now = Instant::now();
        let mut queue = Queue::new(2, 1000, now);
        assert!(queue.push(message(400), SendKind::Data, now));
        assert!(!queue.push(message(601), SendKind::Data, now));
        assert!(queue.push(message(600), SendKind::Data, now));
        assert!(!queue.push(message(1), SendKind::Data, now));
        for _ in 0..RESERVE {
            assert!(queue.push(message(10), SendKind::Control, now));
        }
        assert!(!queue.push(message(10), SendKind::Control, now));
        assert_eq!(taken(&mut queue), 2 + RESERVE);
        assert!(
            !queue.push(message(1), SendKind::Data, now),
            "taken is not written"
        );
        queue.wrote(2 + RESERVE, 1000 + 10 * RESERVE, now);
        assert!(queue.push(message(1), SendKind::Data, now));
        assert_eq!(taken(&mut queue), 1);
        assert_eq!(taken(&mut queue), 0);
    }

    #[test]
    fn a_full_queue_that_moves_is_not_stuck_at_once() {
        let (second, now) = (Duration::from_secs(1), Instant::now());
        let mut queue = Queue::new(2, 1000, now);
        for _ in 0..3 {
            queue.push(message(1), SendKind::Data, now);
        }
        assert!(!queue.stuck(second, now));
        queue.wrote(0, 0, now + second / 2);
        assert!(!queue.stuck(second, now + second));
        assert!(queue.stuck(second, now + second * 2));
        queue.wrote(1, 1, now + second * 2);
        assert!(!queue.stuck(second, now + second * 9), "half empty");
    }
}

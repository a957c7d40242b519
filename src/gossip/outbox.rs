//! The bounded queue of messages for one connection. Whoever fills it never waits.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use n0_future::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{conn::Code, core::SendKind};

/// How many messages of the protocol find a place when frames have taken all.
const RESERVE: usize = 128;

/// How much is written at once.
const BATCH: usize = 64 * 1024;

/// A queue that was over half full for this many times the time that makes a peer stuck is as good as stuck.
const SLOW: u32 = 10;

#[derive(Debug)]
struct State {
    queue: VecDeque<Bytes>,
    /// Messages and bytes that were taken and not yet written, or still wait.
    messages: usize,
    bytes: usize,
    ends: Option<Code>,
    /// Since when the queue has been full, or has not fallen to half after it was.
    full_since: Option<Instant>,
    progress: Instant,
}

#[derive(Debug)]
pub(super) struct Outbox {
    max_messages: usize,
    max_bytes: usize,
    state: Mutex<State>,
    wake: Notify,
    ending: CancellationToken,
}

/// What the writer shall do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Write,
    /// All is written and nothing will follow.
    End,
}

impl Outbox {
    pub(super) fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self {
            max_messages,
            max_bytes,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                messages: 0,
                bytes: 0,
                ends: None,
                full_since: None,
                progress: Instant::now(),
            }),
            wake: Notify::new(),
            ending: CancellationToken::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message; false: there was no place, and it is dropped.
    pub(super) fn push(&self, message: Bytes, kind: SendKind, now: Instant) -> bool {
        let mut state = self.state();
        if state.ends.is_some() {
            return true;
        }
        let reserve = match kind {
            SendKind::Data => 0,
            SendKind::Control => RESERVE,
        };
        // Messages of the protocol are short: their number bounds their bytes.
        let full = state.messages >= self.max_messages + reserve
            || (kind == SendKind::Data && state.bytes + message.len() > self.max_bytes);
        if full {
            state.full_since.get_or_insert(now);
            return false;
        }
        state.messages += 1;
        state.bytes += message.len();
        state.queue.push_back(message);
        drop(state);
        self.wake.notify_one();
        true
    }

    /// Ends the queue once it is empty; the first reason stays.
    pub(super) fn end(&self, code: Code) {
        self.state().ends.get_or_insert(code);
        self.wake.notify_one();
        self.ending.cancel();
    }

    /// Waits until the queue is ended.
    pub(super) async fn ending(&self) {
        self.ending.cancelled().await;
    }

    /// Why the queue was ended, if it was.
    pub(super) fn ended(&self) -> Option<Code> {
        self.state().ends
    }

    /// Waits for something to write, and takes it: each message behind its length.
    pub(super) async fn next(&self, batch: &mut Vec<Bytes>) -> Next {
        loop {
            {
                let mut state = self.state();
                let mut size = 0;
                while size < BATCH
                    && let Some(message) = state.queue.pop_front()
                {
                    size += message.len();
                    let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
                    batch.push(Bytes::copy_from_slice(&len.to_be_bytes()));
                    batch.push(message);
                }
                if !batch.is_empty() {
                    return Next::Write;
                }
                if state.ends.is_some() {
                    return Next::End;
                }
            }
            self.wake.notified().await;
        }
    }

    /// That many messages and bytes of them have been written.
    pub(super) fn wrote(&self, messages: usize, bytes: usize, now: Instant) {
        let mut state = self.state();
        state.messages = state.messages.saturating_sub(messages);
        state.bytes = state.bytes.saturating_sub(bytes);
        state.progress = now;
        if state.messages <= self.max_messages / 2 && state.bytes <= self.max_bytes / 2 {
            state.full_since = None;
        }
    }

    /// Whether the peer takes nothing from a full queue.
    pub(super) fn stuck(&self, after: Duration, now: Instant) -> bool {
        let state = self.state();
        let since = |at: Instant| now.saturating_duration_since(at);
        state.full_since.is_some_and(|full| {
            since(full) >= after * SLOW || (since(full) >= after && since(state.progress) >= after)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Bytes {
        vec![0; len].into()
    }

    #[tokio::test]
    async fn frames_are_dropped_when_full_and_control_messages_have_places_in_reserve() {
        let outbox = Outbox::new(2, 1000);
        let now = Instant::now();
        assert!(outbox.push(message(400), SendKind::Data, now));
        assert!(!outbox.push(message(601), SendKind::Data, now));
        assert!(outbox.push(message(600), SendKind::Data, now));
        assert!(!outbox.push(message(1), SendKind::Data, now));
        for _ in 0..RESERVE {
            assert!(outbox.push(message(10), SendKind::Control, now));
        }
        assert!(!outbox.push(message(10), SendKind::Control, now));
        let mut batch = Vec::new();
        assert_eq!(outbox.next(&mut batch).await, Next::Write);
        assert_eq!(batch.len(), 2 * (2 + RESERVE));
        assert!(
            !outbox.push(message(1), SendKind::Data, now),
            "taken is not written"
        );
        outbox.wrote(2 + RESERVE, 1000 + 10 * RESERVE, now);
        assert!(outbox.push(message(1), SendKind::Data, now));
        outbox.end(Code::Done);
        batch.clear();
        assert_eq!(outbox.next(&mut batch).await, Next::Write);
        batch.clear();
        assert_eq!(outbox.next(&mut batch).await, Next::End);
    }

    #[test]
    fn a_full_queue_that_moves_is_not_stuck_at_once() {
        let outbox = Outbox::new(2, 1000);
        let (second, now) = (Duration::from_secs(1), Instant::now());
        for _ in 0..3 {
            outbox.push(message(1), SendKind::Data, now);
        }
        assert!(!outbox.stuck(second, now));
        outbox.wrote(0, 0, now + second / 2);
        assert!(!outbox.stuck(second, now + second));
        assert!(outbox.stuck(second, now + second * 2));
        outbox.wrote(1, 1, now + second * 2);
        assert!(!outbox.stuck(second, now + second * 9), "half empty");
    }
}

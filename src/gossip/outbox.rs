//! The [`Queue`] of one connection as its two sides share it: the actor puts in, the writer takes out and waits.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use n0_future::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{conn::Code, core::SendKind, queue::Queue};

#[derive(Debug)]
struct State {
    queue: Queue,
    ends: Option<Code>,
}

#[derive(Debug)]
pub(super) struct Outbox {
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
            state: Mutex::new(State {
                queue: Queue::new(max_messages, max_bytes, Instant::now()),
                ends: None,
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
        if !state.queue.push(message, kind, now) {
            return false;
        }
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
                state.queue.take(|message| {
                    let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
                    batch.push(Bytes::copy_from_slice(&len.to_be_bytes()));
                    batch.push(message);
                });
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
        self.state().queue.wrote(messages, bytes, now);
    }

    /// Whether the peer takes nothing from a full queue.
    pub(super) fn stuck(&self, after: Duration, now: Instant) -> bool {
        self.state().queue.stuck(after, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_queued_is_written_before_the_end() {
        let outbox = Outbox::new(2, 1000);
        let now = Instant::now();
        assert!(outbox.push(Bytes::from_static(b"abc"), SendKind::Data, now));
        outbox.end(Code::Done);
        let mut batch = Vec::new();
        assert_eq!(outbox.next(&mut batch).await, Next::Write);
        assert_eq!(batch, [&[0, 0, 0, 3][..], b"abc"]);
        batch.clear();
        assert_eq!(outbox.next(&mut batch).await, Next::End);
    }
}

//! What a spoke has for its hub: its events, bounded, and the latest acknowledgement.
//!
//! The session puts in, the writer takes out. Acknowledgements are state, not a queue: only the
//! latest is ever written.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::{
    event::Envelope,
    protocol::Protocol,
    wire::{
        compat,
        native::{self, ToHub},
    },
};

/// How much is gathered for one write, in bytes.
const BATCH_BYTES: usize = 256 * 1024;
/// How many wants wait to be written; the inbox wants again what was not answered.
const MAX_WANTS: usize = 64;
/// How many ranges that this spoke gave up wait to be written.
const MAX_MISSED: usize = 1024;

#[derive(Debug)]
pub(super) struct Outbox {
    protocol: Protocol,
    window: u64,
    state: Mutex<State>,
    /// Wakes the writer.
    pub(super) wake: Notify,
    /// Wakes who waits for room or for everything to be taken.
    pub(super) taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<(u64, Envelope)>,
    unacked: VecDeque<(u64, u64)>,
    /// Bytes of `events` and `unacked`.
    bytes: u64,
    last_seq: u64,
    ack: Option<(u64, u64)>,
    wants: VecDeque<ToHub>,
    /// What this spoke itself gave up: always said, and before the acknowledgement that covers it.
    missed: VecDeque<(u64, u64)>,
    /// The path that this spoke wants, as it stands; never dropped.
    path: Option<ToHub>,
}

impl Outbox {
    pub(super) fn new(protocol: Protocol, window: u64) -> Self {
        Self {
            protocol,
            window,
            state: Mutex::default(),
            wake: Notify::new(),
            taken: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an event if there is room.
    pub(super) fn try_send(&self, envelope: &Envelope) -> bool {
        let bytes = envelope.size() as u64;
        {
            let mut state = self.state();
            if state.bytes > 0 && state.bytes + bytes > self.window {
                return false;
            }
            state.bytes += bytes;
            state.last_seq += 1;
            let seq = state.last_seq;
            state.events.push_back((seq, envelope.clone()));
        }
        self.wake.notify_one();
        true
    }

    /// Whether the hub has everything that was sent, as far as its protocol can tell.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.state();
        state.events.is_empty() && state.unacked.is_empty()
    }

    /// Queues a frame of the reception. False if the hub is told too slowly what was given up.
    pub(super) fn write(&self, frame: ToHub) -> bool {
        {
            let mut state = self.state();
            match frame {
                ToHub::Ack { offset, seq } => state.ack = Some((offset, seq)),
                ToHub::Served { .. } | ToHub::Want { to: None, .. } => state.path = Some(frame),
                // What finds no room is wanted again later.
                ToHub::Want { to: Some(_), .. } => {
                    if state.wants.len() < MAX_WANTS {
                        state.wants.push_back(frame);
                    }
                }
                ToHub::Missed { from, to } => {
                    if let Some((_, end)) = state.missed.back_mut()
                        && *end == from
                    {
                        *end = to;
                    } else if state.missed.len() < MAX_MISSED {
                        state.missed.push_back((from, to));
                    } else {
                        return false;
                    }
                }
                ToHub::Hello(_) | ToHub::Publish { .. } => debug_assert!(false, "{frame:?}"),
            }
        }
        self.wake.notify_one();
        true
    }

    /// The hub has everything up to `seq`. Says whether that can be.
    pub(super) fn acked(&self, seq: u64) -> bool {
        {
            let mut state = self.state();
            let written = state
                .events
                .front()
                .map_or(state.last_seq, |(seq, _)| seq - 1);
            if seq > written {
                return false;
            }
            while let Some((first, bytes)) = state.unacked.front().copied() {
                if first > seq {
                    break;
                }
                state.unacked.pop_front();
                state.bytes -= bytes;
            }
        }
        self.taken.notify_waiters();
        // The writer may be about to wait for the last acknowledgement.
        self.wake.notify_one();
        true
    }

    /// Gathers what is to be written next; `chunks` stays empty if there is nothing.
    pub(super) fn next_batch(&self, chunks: &mut Vec<Bytes>) {
        let mut state = self.state();
        let state = &mut *state;
        if let Some(path) = state.path.take() {
            path.encode(chunks);
        }
        for want in state.wants.drain(..) {
            want.encode(chunks);
        }
        for (from, to) in state.missed.drain(..) {
            ToHub::Missed { from, to }.encode(chunks);
        }
        if let Some((offset, seq)) = state.ack.take() {
            ToHub::Ack { offset, seq }.encode(chunks);
        }
        let mut gathered = 0;
        while gathered < BATCH_BYTES {
            let Some((seq, envelope)) = state.events.pop_front() else {
                break;
            };
            let bytes = envelope.size();
            gathered += bytes;
            match self.protocol {
                Protocol::Native => {
                    native::put_publish(chunks, seq, envelope.body());
                    state.unacked.push_back((seq, bytes as u64));
                }
                Protocol::Compat => {
                    chunks.push(compat::encode(&envelope));
                    // A plain hub does not acknowledge; what is counted is what waits.
                    state.bytes -= bytes as u64;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Envelope {
        Envelope::from_json("t", "", &"1".repeat(96)).unwrap()
    }

    #[test]
    fn room_comes_back_with_acknowledgements_and_one_event_always_fits() {
        let outbox = Outbox::new(Protocol::Native, 150);
        assert!(outbox.try_send(&event()));
        assert!(!outbox.try_send(&event()));
        let mut chunks = Vec::new();
        outbox.next_batch(&mut chunks);
        assert_eq!(chunks.len(), 1);
        assert!(!outbox.acked(2), "it was never sent");
        assert!(outbox.acked(1));
        assert!(outbox.is_empty());
        let outbox = Outbox::new(Protocol::Native, 1);
        assert!(outbox.try_send(&event()));
        assert!(!outbox.acked(1), "it was not written yet");
    }

    #[test]
    fn only_the_latest_acknowledgement_is_written() {
        let outbox = Outbox::new(Protocol::Native, 150);
        outbox.write(ToHub::Ack { offset: 1, seq: 0 });
        outbox.write(ToHub::Ack { offset: 9, seq: 2 });
        let mut chunks = Vec::new();
        outbox.next_batch(&mut chunks);
        let mut expected = Vec::new();
        ToHub::Ack { offset: 9, seq: 2 }.encode(&mut expected);
        assert_eq!(chunks, expected);
    }
}

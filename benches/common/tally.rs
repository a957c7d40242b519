//! Counts what the spokes receive: how many, in which order, and when the last one came.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// The smallest payload: a round and an index, eight digits each.
pub const MIN_PAYLOAD: usize = 16;

/// The outcome of one burst or lone event.
#[derive(Debug, Clone, Copy)]
pub struct Arrived {
    /// From the first send to the last arrival.
    pub elapsed: Duration,
    /// Events times spokes.
    pub expected: u64,
    /// How many of these arrived.
    pub delivered: u64,
    /// How many of the arrivals were not the next event of their spoke.
    pub disordered: u64,
}

/// What all spokes of one mesh have received of the current round.
///
/// Every payload is unique (bare gossip drops repeated content) and names its round, so that a straggler of an earlier
/// round is not taken for an event of this one.
#[derive(Debug)]
pub struct Tally {
    round: AtomicU64,
    state: Mutex<Round>,
    done: Notify,
}

#[derive(Debug)]
struct Round {
    number: u64,
    expected: u64,
    delivered: u64,
    disordered: u64,
    /// The index that each spoke should get next.
    next: Vec<u64>,
    /// When each event last arrived.
    arrivals: Vec<Option<Instant>>,
    last: Option<Instant>,
}

impl Tally {
    /// A tally for a number of spokes.
    pub fn new(spokes: usize) -> Self {
        Self {
            round: AtomicU64::new(0),
            state: Mutex::new(Round {
                number: 0,
                expected: 0,
                delivered: 0,
                disordered: 0,
                next: vec![0; spokes],
                arrivals: Vec::new(),
                last: None,
            }),
            done: Notify::new(),
        }
    }

    /// Begins a round and returns its payloads, encoded beforehand so that making them is not measured.
    pub fn begin(&self, events: usize, size: usize) -> Vec<Bytes> {
        let number = self.expect(events);
        (0..events as u64)
            .map(|index| payload(number, index, size))
            .collect()
    }

    /// Begins a round whose payloads somebody else makes, and returns its number.
    pub fn expect(&self, events: usize) -> u64 {
        let number = self.round.fetch_add(1, Ordering::Relaxed) + 1;
        let mut state = self.state.lock().expect("not poisoned");
        state.number = number;
        state.expected = (events * state.next.len()) as u64;
        state.delivered = 0;
        state.disordered = 0;
        state.next.fill(0);
        state.arrivals = vec![None; events];
        state.last = None;
        number
    }

    /// Counts one payload that a spoke received.
    pub fn record(&self, spoke: usize, payload: &[u8]) {
        let now = Instant::now();
        let Some((number, index)) = header(payload) else {
            return;
        };
        let mut state = self.state.lock().expect("not poisoned");
        if number != state.number {
            return;
        }
        let next = &mut state.next[spoke];
        let in_order = *next == index;
        *next = index + 1;
        state.disordered += u64::from(!in_order);
        state.delivered += 1;
        state.last = Some(now);
        if let Some(arrival) = state.arrivals.get_mut(index as usize) {
            *arrival = Some(now);
        }
        if state.delivered == state.expected {
            self.done.notify_one();
        }
    }

    /// Waits until the round is complete, or until nothing has arrived for `patience`.
    pub async fn finish(&self, sent: Instant, patience: Duration) -> Arrived {
        loop {
            let before = self.snapshot(sent, patience);
            if before.delivered >= before.expected {
                return before;
            }
            let wait = tokio::time::timeout(patience, self.done.notified());
            if wait.await.is_err() && self.snapshot(sent, patience).delivered == before.delivered {
                return before;
            }
        }
    }

    /// When each event of the round last arrived so far.
    pub fn last_arrivals(&self) -> Vec<Option<Instant>> {
        let state = self.state.lock().expect("not poisoned");
        state.arrivals.clone()
    }

    /// A round in which nothing arrived at all counts as the patience that it took.
    fn snapshot(&self, sent: Instant, patience: Duration) -> Arrived {
        let state = self.state.lock().expect("not poisoned");
        Arrived {
            elapsed: state.last.map_or(patience, |last| last - sent),
            expected: state.expected,
            delivered: state.delivered,
            disordered: state.disordered,
        }
    }
}

/// Text, since an envelope's payload is JSON: round and index in hexadecimal, and filling.
fn payload(round: u64, index: u64, size: usize) -> Bytes {
    let mut text = format!("{round:08x}{index:08x}");
    text.extend(std::iter::repeat_n('z', size.saturating_sub(text.len())));
    text.into()
}

/// The round and index of a payload.
fn header(payload: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(payload.get(..MIN_PAYLOAD)?).ok()?;
    let (round, index) = text.split_at_checked(8)?;
    Some((
        u64::from_str_radix(round, 16).ok()?,
        u64::from_str_radix(index, 16).ok()?,
    ))
}

//! Virtual time, and the queue of what is going to happen.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

/// Nanoseconds since the run began.
pub(super) type Nanos = u64;

/// A second.
pub(super) const SECOND: Nanos = 1_000_000_000;

/// A duration in nanoseconds.
pub(super) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Virtual time. The core takes [`Instant`]s, so there is a base, read once; nothing depends on which.
#[derive(Debug)]
pub(super) struct Clock {
    base: Instant,
    now: Nanos,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            base: Instant::now(),
            now: 0,
        }
    }

    pub(super) fn nanos(&self) -> Nanos {
        self.now
    }

    pub(super) fn now(&self) -> Instant {
        self.base + Duration::from_nanos(self.now)
    }

    /// The same as the gossip core takes it.
    pub(super) fn tokio(&self) -> tokio::time::Instant {
        self.now().into()
    }

    /// When an instant is, in virtual time.
    pub(super) fn when(&self, at: Instant) -> Nanos {
        nanos(at.saturating_duration_since(self.base))
    }
}

/// The one queue of events.
#[derive(Debug)]
pub(super) struct Events<E> {
    /// When each happens, the number it was queued under (what was queued first happens first), and its place: what
    /// is moved about is small.
    heap: BinaryHeap<Reverse<(Nanos, u64, usize)>>,
    places: Vec<Option<E>>,
    free: Vec<usize>,
    number: u64,
}

impl<E> Events<E> {
    pub(super) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            places: Vec::new(),
            free: Vec::new(),
            number: 0,
        }
    }

    /// What is in the past happens as soon as possible.
    pub(super) fn push(&mut self, at: Nanos, event: E) {
        let number = self.number;
        self.number += 1;
        let free = self.free.pop().unwrap_or(self.places.len());
        match self.places.get_mut(free) {
            Some(place) => *place = Some(event),
            None => self.places.push(Some(event)),
        }
        self.heap.push(Reverse((at, number, free)));
    }

    /// The next event; moves the clock to it.
    pub(super) fn pop(&mut self, clock: &mut Clock) -> Option<E> {
        let Reverse((at, _, place)) = self.heap.pop()?;
        let event = self.places.get_mut(place)?.take();
        self.free.push(place);
        clock.now = clock.now.max(at);
        event
    }

    /// How many there have been.
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_happen_in_the_order_of_time_and_then_of_queueing() {
        let (mut clock, mut events) = (Clock::new(), Events::new());
        for (at, event) in [(5, 'a'), (3, 'b'), (5, 'c'), (3, 'd')] {
            events.push(at, event);
        }
        let order: String = std::iter::from_fn(|| events.pop(&mut clock)).collect();
        assert_eq!(order, "bdac");
        assert_eq!(clock.nanos(), 5);
        events.push(1, 'e');
        events.pop(&mut clock);
        assert_eq!(clock.nanos(), 5, "time does not go back");
        assert_eq!(clock.when(clock.now()), 5);
    }
}

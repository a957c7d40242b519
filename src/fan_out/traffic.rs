//! What is broadcast and how far the spokes are, as far as it matters for the choice of a path.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

use crate::instant::after;

/// What the hub saw since it looked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// What was broadcast, once however many spokes there are.
    pub(crate) bytes_per_s: u64,
    /// The largest event, in bytes; none counts as empty.
    pub(crate) largest_event: u64,
    /// How long it takes to a spoke and back: to a typical one of those that were asked, if any was.
    pub(crate) rtt: Option<Duration>,
}

/// What was so of late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lately {
    /// What was broadcast a second, when the hub looked last.
    pub(super) bytes_per_s: u64,
    /// The most of the last minutes.
    pub(super) most_bytes_per_s: u64,
    /// The largest event of the last minutes, in bytes.
    pub(super) largest_event: u64,
    /// The shortest way to a typical spoke and back of the last minutes.
    pub(super) rtt: Option<Duration>,
}

/// For how long an extreme is remembered, at least; at most twice that. Long, for the next large event, or the next burst,
/// is not to come upon a mesh that has just gone back.
pub(super) const REMEMBER: Duration = Duration::from_secs(300);

/// The largest of the last minutes.
#[derive(Clone, Copy, Debug, Default)]
struct Largest<T> {
    now: Option<T>,
    before: Option<T>,
    until: Option<Instant>,
}

impl<T: Ord + Copy> Largest<T> {
    fn add(&mut self, now: Instant, value: Option<T>) {
        match self.until {
            Some(until) if now < until => {}
            until => {
                // One that has not been asked for long has forgotten everything.
                let fresh = until.is_some_and(|until| now < after(until, REMEMBER));
                self.before = self.now.filter(|_| fresh);
                self.now = None;
                self.until = Some(after(now, REMEMBER));
            }
        }
        self.now = self.now.max(value);
    }

    fn get(&self) -> Option<T> {
        self.now.max(self.before)
    }
}

/// Makes of what the hub sees again and again what was so of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recent {
    bytes_per_s: u64,
    most: Largest<u64>,
    largest: Largest<u64>,
    /// The least, for a queue that has built up says nothing of the way.
    rtt: Largest<Reverse<Duration>>,
}

impl Recent {
    pub(super) fn add(&mut self, now: Instant, traffic: Traffic) {
        self.bytes_per_s = traffic.bytes_per_s;
        self.most.add(now, Some(traffic.bytes_per_s));
        self.largest.add(now, Some(traffic.largest_event));
        self.rtt.add(now, traffic.rtt.map(Reverse));
    }

    pub(super) fn get(&self) -> Lately {
        Lately {
            bytes_per_s: self.bytes_per_s,
            most_bytes_per_s: self.most.get().unwrap_or_default(),
            largest_event: self.largest.get().unwrap_or_default(),
            rtt: self.rtt.get().map(|Reverse(rtt)| rtt),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_largest_event_is_known_for_five_minutes_and_forgotten_after_ten(
            events in prop::collection::vec((0u64..200, 0u64..1000), 1..60),
        ) {
            let mut largest = Largest::default();
            let mut now = Instant::now();
            let mut said = Vec::new();
            for (seconds, bytes) in events {
                now += Duration::from_secs(seconds);
                said.push((now, bytes));
                largest.add(now, Some(bytes));
                let within = |span: Duration| {
                    let recent = said.iter().filter(|(at, _)| now.duration_since(*at) < span);
                    recent.map(|(_, bytes)| *bytes).max().unwrap_or(0)
                };
                prop_assert!(largest.get().unwrap_or(0) >= within(REMEMBER));
                prop_assert!(largest.get().unwrap_or(0) <= within(2 * REMEMBER + Duration::from_secs(200)));
            }
        }
    }
}

//! When a spoke acknowledges: as often as the hub allows, and at once what somebody waits for.

use std::time::{Duration, Instant};

/// What was released: every broadcast below an offset, every targeted event up to a number.
type Released = (u64, u64);

#[derive(Debug)]
pub(super) struct Acks {
    /// What the hub was told last on this link.
    told: Released,
    every: Duration,
    /// When it may be told next.
    at: Instant,
    /// Somebody waits for everything below this offset.
    awaited: u64,
}

impl Acks {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            told: (0, 0),
            every: Duration::ZERO,
            at: now,
            awaited: 0,
        }
    }

    /// A link begins whose hub takes `known` for granted.
    pub(super) fn begin(&mut self, now: Instant, every: Duration, known: Released) {
        *self = Self {
            told: known,
            every,
            at: now,
            awaited: 0,
        };
    }

    /// How often from now on.
    pub(super) fn pace(&mut self, now: Instant, every: Duration) {
        self.every = every;
        self.at = self.at.min(now + every);
    }

    /// Everything below `offset` is to be acknowledged as soon as it is released.
    pub(super) fn hurry(&mut self, offset: u64) {
        self.awaited = self.awaited.max(offset);
    }

    /// What to tell now, if that is news and due.
    pub(super) fn poll(&mut self, now: Instant, released: Released) -> Option<Released> {
        let awaited = self.told.0 < self.awaited && self.awaited <= released.0;
        if released == self.told || !(awaited || now >= self.at) {
            return None;
        }
        self.told = released;
        self.at = now + self.every;
        Some(released)
    }

    pub(super) fn deadline(&self, released: Released) -> Option<Instant> {
        (released != self.told).then_some(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_told_at_their_pace_and_at_once_when_somebody_waits() {
        let now = Instant::now();
        let every = Duration::from_secs(1);
        let mut acks = Acks::new(now);
        acks.begin(now, every, (5, 0));
        assert_eq!(acks.poll(now, (5, 0)), None, "the hub knows");
        assert_eq!(acks.deadline((5, 0)), None);
        assert_eq!(acks.poll(now, (6, 0)), Some((6, 0)));
        assert_eq!(acks.poll(now, (6, 1)), None, "too soon");
        assert_eq!(acks.deadline((6, 1)), Some(now + every));
        acks.hurry(8);
        assert_eq!(acks.poll(now, (7, 1)), None, "not what is waited for");
        assert_eq!(acks.poll(now, (8, 1)), Some((8, 1)));
        assert_eq!(acks.poll(now, (9, 1)), None, "nobody waits for more");
        acks.pace(now, Duration::ZERO);
        assert_eq!(acks.poll(now, (9, 1)), Some((9, 1)));
    }
}

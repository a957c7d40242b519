//! When a spoke acknowledges: as often as the hub allows, and at once what somebody waits for.

use std::time::{Duration, Instant};

/// While parts of a large event come in, the hub is told so this often at most, by being told the same again.
const BEAT: Duration = Duration::from_millis(200);

/// Targeted events are acknowledged this often at most, however rarely broadcasts are: they are few, each
/// one was sent to this spoke alone, and its sender may be waiting.
const TARGETED_EVERY: Duration = Duration::from_millis(20);

/// What was released: every broadcast below an offset, every targeted event up to a number.
type Released = (u64, u64);

#[derive(Debug)]
pub(super) struct Acks {
    /// What the hub was told last on this link.
    told: Released,
    every: Duration,
    /// When it may be told next.
    at: Instant,
    /// When it may be told of targeted events.
    targeted_at: Instant,
    /// Somebody waits for everything below this offset.
    awaited: u64,
    /// Parts of the next event came since the hub was told something, and when to tell it.
    moving: bool,
    beat_at: Instant,
}

impl Acks {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            told: (0, 0),
            every: Duration::ZERO,
            at: now,
            targeted_at: now,
            awaited: 0,
            moving: false,
            beat_at: now,
        }
    }

    /// A link begins whose hub takes `known` for granted.
    pub(super) fn begin(&mut self, now: Instant, every: Duration, known: Released) {
        *self = Self {
            told: known,
            every,
            at: now,
            targeted_at: now,
            awaited: 0,
            moving: false,
            beat_at: now + BEAT,
        };
    }

    /// A part of the event that is due next came, and does not complete it.
    pub(super) fn moving(&mut self) {
        self.moving = true;
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
        let news = self
            .news_at(released)
            .is_some_and(|at| awaited || now >= at);
        let beat = self.moving && now >= self.at.max(self.beat_at);
        if !news && !beat {
            return None;
        }
        self.told = released;
        self.at = now + self.every;
        self.targeted_at = now + self.every.min(TARGETED_EVERY);
        self.moving = false;
        self.beat_at = now + BEAT;
        Some(released)
    }

    pub(super) fn deadline(&self, released: Released) -> Option<Instant> {
        let beat = self.moving.then(|| self.at.max(self.beat_at));
        [beat, self.news_at(released)].into_iter().flatten().min()
    }

    /// When the hub may be told, if there is something to tell.
    fn news_at(&self, released: Released) -> Option<Instant> {
        if released.1 != self.told.1 {
            return Some(self.at.min(self.targeted_at));
        }
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
        assert_eq!(acks.deadline((6, 1)), Some(now + TARGETED_EVERY));
        assert_eq!(acks.deadline((7, 0)), Some(now + every));
        acks.hurry(8);
        assert_eq!(acks.poll(now, (7, 1)), None, "not what is waited for");
        assert_eq!(acks.poll(now, (8, 1)), Some((8, 1)));
        assert_eq!(acks.poll(now, (9, 1)), None, "nobody waits for more");
        let later = now + TARGETED_EVERY;
        assert_eq!(acks.poll(later, (9, 1)), None, "broadcasts can wait");
        assert_eq!(acks.poll(later, (9, 2)), Some((9, 2)));
        acks.pace(later, Duration::ZERO);
        assert_eq!(acks.poll(later, (10, 2)), Some((10, 2)));
    }

    #[test]
    fn while_parts_come_in_the_hub_is_told_so_now_and_then() {
        let begin = Instant::now();
        let mut acks = Acks::new(begin);
        acks.begin(begin, Duration::from_millis(20), (5, 0));
        let mut told = 0;
        for ms in 0..1000 {
            let now = begin + Duration::from_millis(ms);
            acks.moving();
            assert!(acks.deadline((5, 0)).is_some());
            told += u32::from(acks.poll(now, (5, 0)) == Some((5, 0)));
        }
        assert_eq!(told, 4);
        // And no more once none come.
        let mut now = begin + Duration::from_secs(2);
        assert_eq!(acks.poll(now, (5, 0)), Some((5, 0)));
        now += Duration::from_secs(1);
        assert_eq!(acks.poll(now, (5, 0)), None);
        assert_eq!(acks.deadline((5, 0)), None);
        assert_eq!(acks.poll(now, (6, 0)), Some((6, 0)));
    }
}

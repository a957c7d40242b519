//! When a spoke acknowledges: as often as the hub allows, and at once what somebody waits for.

use std::time::{Duration, Instant};

use crate::wire::native::ACK_LITTLE_WITHIN;

/// While parts of a large event come in, the hub is told so this often at most, by being told the same again.
const BEAT: Duration = Duration::from_millis(200);

/// Targeted events are acknowledged this often at most, however rarely broadcasts are: they are few, each
/// one was sent to this spoke alone, and its sender may be waiting.
const TARGETED_EVERY: Duration = Duration::from_millis(20);

/// What is little waits for more to come, so many times as long as the hub allows, up to a limit. Each acknowledgement costs
/// the hub about what sending an event does, it paces itself by much and not by little, and a lone event would be acknowledged
/// by all spokes at the same moment.
const LITTLE_WAITS: u32 = 10;
/// A spoke that is to acknowledge as rarely as this, or more rarely, is hardly what the hub paces itself by: with it much waits
/// as little does, and for a part of what the hub asks for, lest after a pause all acknowledge the first event at once.
const RARE: Duration = Duration::from_secs(1);
/// What is little waits for such a part of that time, drawn at random; and what comes rarely. The hub allows for all of it, and what
/// has to be repaired comes late.
const LITTLE_PARTS: (f64, f64) = (0.5, 1.0);
const RARE_PARTS: (f64, f64) = (0.2, 0.8);
/// Fewer events than this, with fewer bytes, are little.
const FEW_EVENTS: u64 = 8;
const FEW_BYTES: usize = 32 * 1024;

/// What was released: every broadcast below an offset, every targeted event up to a number.
type Released = (u64, u64);

#[derive(Debug)]
pub(super) struct Acks {
    /// What the hub was told last on this link.
    told: Released,
    every: Duration,
    /// When it may be told next.
    at: Instant,
    /// When it is to be told of little, once there is something to tell.
    little_at: Option<Instant>,
    /// Bytes of the broadcasts that were released since it was told.
    bytes: usize,
    /// Spreads what all spokes wait.
    seed: u64,
    /// When it may be told of targeted events.
    targeted_at: Instant,
    /// Somebody waits for everything below this offset.
    awaited: u64,
    /// Parts of the next event came since the hub was told something, and when to tell it.
    moving: bool,
    beat_at: Instant,
}

impl Acks {
    pub(super) fn new(now: Instant, seed: u64) -> Self {
        Self {
            told: (0, 0),
            every: Duration::ZERO,
            at: now,
            little_at: None,
            bytes: 0,
            seed,
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
            beat_at: now + BEAT,
            ..Self::new(now, self.seed)
        };
    }

    /// A broadcast of so many bytes is released.
    pub(super) fn released(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// A part of the event that is due next came, and does not complete it.
    pub(super) fn moving(&mut self) {
        self.moving = true;
    }

    /// How often from now on.
    pub(super) fn pace(&mut self, now: Instant, every: Duration) {
        self.every = every;
        self.at = self.at.min(now + every);
        let little_at = now + self.little_waits(0);
        self.little_at = self.little_at.map(|at| at.min(little_at));
    }

    /// Everything below `offset` is to be acknowledged as soon as it is released.
    pub(super) fn hurry(&mut self, offset: u64) {
        self.awaited = self.awaited.max(offset);
    }

    /// Whatever news there is, it is due.
    pub(super) fn due(&mut self, now: Instant) {
        self.at = self.at.min(now);
        self.little_at = Some(now);
    }

    /// What to tell now, if that is news and due.
    pub(super) fn poll(&mut self, now: Instant, released: Released) -> Option<Released> {
        if released != self.told && self.little_at.is_none() {
            self.little_at = Some(now + self.little_waits(released.0));
        }
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
        self.little_at = None;
        self.bytes = 0;
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
        let events = released.0.saturating_sub(self.told.0);
        let is_little = events < FEW_EVENTS && self.bytes < FEW_BYTES;
        let at = match is_little || self.is_rare() {
            true => self.at.max(self.little_at.unwrap_or(self.at)),
            false => self.at,
        };
        (released != self.told).then_some(at)
    }

    fn is_rare(&self) -> bool {
        self.every >= RARE
    }

    /// How long little waits that begins at this offset.
    fn little_waits(&self, offset: u64) -> Duration {
        let mixed = (self.seed ^ offset).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let part = (mixed >> 32) as f64 / f64::from(u32::MAX);
        let (wait, (least, most)) = match self.is_rare() {
            true => (self.every, RARE_PARTS),
            false => {
                let wait = self.every.saturating_mul(LITTLE_WAITS);
                (wait.min(ACK_LITTLE_WITHIN), LITTLE_PARTS)
            }
        };
        let part = least + part * (most - least);
        wait.mul_f64(part.clamp(least, most))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn news_are_told_at_their_pace_and_at_once_when_somebody_waits() {
        let now = Instant::now();
        let every = ACK_LITTLE_WITHIN;
        let mut acks = Acks::new(now, 7);
        acks.begin(now, every, (5, 0));
        assert_eq!(acks.poll(now, (5, 0)), None, "the hub knows");
        assert_eq!(acks.deadline((5, 0)), None);
        assert_eq!(acks.poll(now, (15, 0)), Some((15, 0)));
        assert_eq!(acks.poll(now, (25, 1)), None, "too soon");
        assert_eq!(acks.deadline((25, 1)), Some(now + TARGETED_EVERY));
        assert_eq!(acks.deadline((26, 0)), Some(now + every));
        acks.hurry(27);
        assert_eq!(acks.poll(now, (26, 1)), None, "not what is waited for");
        assert_eq!(acks.poll(now, (27, 1)), Some((27, 1)));
        assert_eq!(acks.poll(now, (28, 1)), None, "nobody waits for more");
        let later = now + TARGETED_EVERY;
        assert_eq!(acks.poll(later, (28, 1)), None, "broadcasts can wait");
        assert_eq!(acks.poll(later, (28, 2)), Some((28, 2)));
        acks.due(later);
        assert_eq!(acks.poll(later, (28, 2)), None, "it is known");
        assert_eq!(acks.poll(later, (29, 2)), Some((29, 2)));
        acks.pace(later, Duration::ZERO);
        assert_eq!(acks.poll(later, (30, 2)), Some((30, 2)));
    }

    #[test]
    fn little_waits_for_more_and_not_with_all_others_and_much_does_not_wait() {
        let begin = Instant::now();
        let told = |every: Duration, few: u64, bytes: usize, seed: u64| {
            let mut acks = Acks::new(begin, seed);
            acks.begin(begin, every, (5, 0));
            acks.released(bytes);
            let released = (5 + few, 0);
            if let Some(told) = acks.poll(begin, released) {
                assert_eq!(told, released);
                return Duration::ZERO;
            }
            let at = acks.deadline(released).unwrap();
            assert_eq!(acks.poll(at, released), Some(released));
            assert_eq!(acks.deadline(released), None);
            at - begin
        };
        let (fast, rare) = (Duration::from_millis(20), Duration::from_secs(20));
        let waits = |every: Duration, most: Duration, parts: (f64, f64)| {
            let within = most.mul_f64(parts.0)..=most.mul_f64(parts.1);
            for few in [1, FEW_EVENTS - 1] {
                let waits: BTreeSet<_> = (0..50).map(|seed| told(every, few, 100, seed)).collect();
                assert!(waits.iter().all(|wait| within.contains(wait)), "{waits:?}");
                assert!(waits.len() > 40, "{waits:?}");
            }
        };
        waits(fast, ACK_LITTLE_WITHIN, LITTLE_PARTS);
        waits(rare, rare, RARE_PARTS);
        assert!(told(rare, FEW_EVENTS * 100, FEW_BYTES, 1) > rare / 5);
        assert_eq!(told(fast, FEW_EVENTS, 100, 1), Duration::ZERO);
        assert_eq!(told(fast, 1, FEW_BYTES, 1), Duration::ZERO);
        assert_eq!(told(Duration::ZERO, 1, 1, 1), Duration::ZERO);
    }

    #[test]
    fn while_parts_come_in_the_hub_is_told_so_now_and_then() {
        let begin = Instant::now();
        let mut acks = Acks::new(begin, 7);
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
        assert_eq!(acks.poll(now, (16, 0)), Some((16, 0)));
    }
}

//! How far the publisher may run ahead: sans-IO.
//!
//! `broadcast` waits while spokes that keep up are more than a window behind the tip, so that a fast
//! publisher does not outrun the mesh. Whom it waits for is bounded, so that one spoke cannot hold
//! all others back: not for a spoke that has stopped taking anything, and not for longer than its
//! patience for one that is slower than most. When most are behind, it is the mesh that is slow and
//! not one spoke, and patience does not run out.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How many times longer spokes that take nothing are waited for when they are most of all.
const MOST_STOPPED: u32 = 10;
/// A part of the time that passes comes back as patience.
const REGAIN: u32 = 20;

/// What a spoke has, as far as it has said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Has {
    /// It has released every broadcast below.
    pub(crate) acked: u64,
    /// Counts what it said of that, news or not: while parts of a large event come in, it says the same
    /// again and again.
    pub(crate) beats: u64,
}

impl Has {
    /// It says that it has released every broadcast below `offset`, and, if `targeted`, news of what was
    /// sent to it alone. News of nothing else says nothing of broadcasts.
    pub(crate) fn told(self, offset: u64, targeted: bool) -> Self {
        let news = offset > self.acked;
        Self {
            acked: self.acked.max(offset),
            beats: self.beats + u64::from(news || !targeted),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Pace<Id> {
    stall_after: Duration,
    patience: Duration,
    spokes: BTreeMap<Id, Progress>,
    last: Option<Instant>,
}

#[derive(Debug)]
struct Progress {
    has: Has,
    moved: Instant,
    patience: Duration,
    round: bool,
}

impl<Id: Copy + Ord> Pace<Id> {
    pub(crate) fn new(stall_after: Duration, patience: Duration) -> Self {
        Self {
            stall_after,
            patience,
            spokes: BTreeMap::new(),
            last: None,
        }
    }

    /// The lowest offset of the spokes that are waited for, or `None` if there are none.
    ///
    /// `spokes` are all that count, each with what it has acknowledged; `behind` is the offset below
    /// which a spoke is behind.
    pub(crate) fn floor(
        &mut self,
        now: Instant,
        behind: u64,
        spokes: impl Iterator<Item = (Id, Has)>,
    ) -> Option<u64> {
        let passed = self
            .last
            .map_or(Duration::ZERO, |last| now.saturating_duration_since(last))
            // Time in which nobody asked was no waiting.
            .min(self.stall_after);
        self.last = Some(now);
        let round = !self.spokes.values().next().is_some_and(|p| p.round);
        let (mut all, mut late) = (0usize, 0usize);
        for (id, has) in spokes {
            let progress = self.spokes.entry(id).or_insert(Progress {
                has,
                moved: now,
                patience: self.patience,
                round,
            });
            progress.round = round;
            if has != progress.has || has.acked >= behind {
                progress.has = has;
                progress.moved = now;
            }
            all += 1;
            if progress.is_behind(behind) && !progress.is_stalled(now, self.stall_after) {
                late += 1;
            }
        }
        // Forget who is gone.
        self.spokes.retain(|_, progress| progress.round == round);
        let most_are_late = late * 2 > all;
        // When most have stopped it is the network, and running on would only lose them their place.
        let stopped = self
            .spokes
            .values()
            .filter(|progress| progress.is_stalled(now, self.stall_after))
            .count();
        let stall_after = if stopped * 2 > all {
            self.stall_after.saturating_mul(MOST_STOPPED)
        } else {
            self.stall_after
        };
        let mut floor = None::<u64>;
        for progress in self.spokes.values_mut() {
            if progress.is_stalled(now, stall_after) {
                continue;
            }
            if !progress.is_behind(behind) {
                progress.patience = (progress.patience + passed / REGAIN).min(self.patience);
            } else if !most_are_late {
                progress.patience = progress.patience.saturating_sub(passed);
                if progress.patience.is_zero() {
                    continue;
                }
            }
            let acked = progress.has.acked;
            floor = Some(floor.map_or(acked, |floor| floor.min(acked)));
        }
        floor
    }
}

impl Progress {
    fn is_behind(&self, behind: u64) -> bool {
        self.has.acked < behind
    }

    fn is_stalled(&self, now: Instant, stall_after: Duration) -> bool {
        now.saturating_duration_since(self.moved) > stall_after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Spokes that said nothing but what they have.
    fn have<const N: usize>(spokes: [(u32, u64); N]) -> impl Iterator<Item = (u32, Has)> {
        let has = |(id, acked)| (id, Has { acked, beats: 0 });
        spokes.into_iter().map(has)
    }

    fn pace() -> (Pace<u32>, Instant) {
        (Pace::new(500 * MS, 2000 * MS), Instant::now())
    }

    #[test]
    fn the_slowest_that_keeps_up_sets_the_pace() {
        let (mut pace, now) = pace();
        assert_eq!(pace.floor(now, 0, have([])), None);
        let spokes = [(1, 90), (2, 70), (3, 100)];
        assert_eq!(pace.floor(now, 50, have(spokes)), Some(70));
    }

    #[test]
    fn a_spoke_that_takes_nothing_is_not_waited_for_until_it_moves_again() {
        let (mut pace, now) = pace();
        let at = |ms: u32| now + ms * MS;
        assert_eq!(pace.floor(at(0), 50, have([(1, 10), (2, 90)])), Some(10));
        assert_eq!(pace.floor(at(400), 50, have([(1, 10), (2, 91)])), Some(10));
        assert_eq!(pace.floor(at(501), 50, have([(1, 10), (2, 92)])), Some(92));
        assert_eq!(pace.floor(at(510), 50, have([(1, 11), (2, 92)])), Some(11));
    }

    #[test]
    fn a_spoke_that_takes_in_the_parts_of_a_large_event_has_not_stopped() {
        let (mut pace, now) = pace();
        for beats in 0..100u32 {
            let has = Has {
                acked: 10,
                beats: beats.into(),
            };
            let at = now + beats * 200 * MS;
            // As slow as most, so that patience does not run out.
            let floor = pace.floor(at, 50, [(1, has)].into_iter());
            assert_eq!(floor, Some(10));
        }
    }

    #[test]
    fn news_of_targeted_events_alone_say_nothing_of_broadcasts() {
        let has = Has {
            acked: 10,
            beats: 3,
        };
        assert_eq!(has.told(10, true), has);
        assert_eq!(has.told(9, true), has);
        let (same, more) = (has.told(10, false), has.told(11, true));
        assert_eq!((same.acked, same.beats), (10, 4));
        assert_eq!((more.acked, more.beats), (11, 4));
    }

    #[test]
    fn when_most_have_stopped_the_publisher_waits_longer_but_not_for_ever() {
        let (mut pace, now) = pace();
        let at = |ms: u32| now + ms * MS;
        let spokes = [(1, 10), (2, 10), (3, 90)];
        for ms in [0, 600, 4900] {
            assert_eq!(pace.floor(at(ms), 50, have(spokes)), Some(10), "{ms}");
        }
        assert_eq!(pace.floor(at(5100), 50, have(spokes)), Some(90));
    }

    #[test]
    fn patience_with_one_slow_spoke_runs_out_and_comes_back() {
        let (mut pace, now) = pace();
        let mut waited = 0;
        for n in 0..1000u32 {
            // Always moving, always behind.
            let spokes = [(1, u64::from(n)), (2, 5000), (3, 5000)];
            if pace.floor(now + n * 10 * MS, 4000, have(spokes)) == Some(u64::from(n)) {
                waited += 10;
            }
        }
        assert!((1900..=2100).contains(&waited), "{waited}");
        // A hundred seconds of keeping up later it is waited for again.
        let later = now + 10_000 * MS;
        for n in 0..10_000u32 {
            let spokes = [(1, 6000), (2, 6000), (3, 6000)];
            let _ = pace.floor(later + n * 10 * MS, 4000, have(spokes));
        }
        let spokes = [(1, 6001), (2, 9000), (3, 9000)];
        assert_eq!(
            pace.floor(later + 100_001 * MS, 8000, have(spokes)),
            Some(6001)
        );
    }

    #[test]
    fn when_most_are_behind_the_publisher_waits_as_long_as_they_move() {
        let (mut pace, now) = pace();
        for n in 0..1000u32 {
            let acked = u64::from(n);
            let spokes = [(1, acked), (2, acked), (3, 5000)];
            let floor = pace.floor(now + n * 10 * MS, 4000, have(spokes));
            assert_eq!(floor, Some(acked));
        }
    }
}

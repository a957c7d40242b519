//! Who acknowledges how often: the acknowledgements that a hub takes are shared out over its spokes.
//!
//! While spokes are few, all acknowledge fast. Beyond, a few do, drawn at random, some of them on the
//! topic if anyone is: they are what pace and supervision go by. The others share what is left, and acknowledge every
//! two seconds at most.

use std::{collections::BTreeSet, time::Duration};

use rand::{Rng, seq::IndexedRandom};

/// Up to so many native spokes, all acknowledge fast; beyond, only a few do.
const ALL_FAST: usize = 20;
/// How many do beyond.
const FAST: usize = 8;
/// How often a fast spoke acknowledges.
const FAST_EVERY: Duration = Duration::from_millis(20);
/// And how often one of the others at most: nothing goes by it but whether the spoke is reached at all, and on a quiet hub each
/// costs what sending several events does, since it comes by itself.
const SLOW_EVERY: Duration = Duration::from_secs(2);

/// How often one spoke of `spokes` may acknowledge, in milliseconds, if it is not a fast one.
pub(crate) fn ack_every_ms(spokes: usize, acks_per_s: u32) -> u32 {
    let [fast_ms, slow_ms] = [FAST_EVERY, SLOW_EVERY].map(|every| every.as_millis() as u64);
    let budget = u64::from(acks_per_s.max(1));
    let spokes_n = spokes as u64;
    let ms = if all_are_fast(spokes) {
        (spokes_n * 1000 / budget).max(fast_ms)
    } else {
        let left = budget.saturating_sub(FAST as u64 * 1000 / fast_ms).max(1);
        (spokes_n * 1000 / left).max(slow_ms)
    };
    u32::try_from(ms).unwrap_or(u32::MAX)
}

/// Whether every spoke of so many acknowledges fast.
pub(crate) fn all_are_fast(spokes: usize) -> bool {
    spokes <= ALL_FAST
}

/// A native spoke that is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acker<Id> {
    pub(crate) id: Id,
    pub(crate) on_topic: bool,
    /// Whether it acknowledges fast.
    pub(crate) fast: bool,
}

/// What a spoke is to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Share<Id> {
    pub(crate) id: Id,
    pub(crate) fast: bool,
    pub(crate) every_ms: u32,
}

/// Remembers how things stood when acknowledgements were shared out.
#[derive(Debug, Default)]
pub(crate) struct AckShare {
    among: usize,
}

impl AckShare {
    /// How often a spoke that is not a fast one acknowledges.
    pub(crate) fn every(&self, acks_per_s: u32) -> Duration {
        Duration::from_millis(ack_every_ms(self.among, acks_per_s).into())
    }

    /// Shares the acknowledgements out anew if the number of spokes has changed much, or too few of those
    /// that acknowledge fast are left: of all, or of those on the topic.
    pub(crate) fn share_out<Id: Copy + Ord>(
        &mut self,
        rng: &mut impl Rng,
        acks_per_s: u32,
        spokes: &[Acker<Id>],
    ) -> Vec<Share<Id>> {
        let count = |which: &dyn Fn(&Acker<Id>) -> bool| spokes.iter().filter(|s| which(s)).count();
        let on_topic = count(&|s| s.on_topic);
        let enough = count(&|s| s.fast) >= FAST.min(spokes.len())
            && count(&|s| s.fast && s.on_topic) >= (FAST / 2).min(on_topic);
        // Newcomers are told how often by how many there are now.
        let as_before = all_are_fast(spokes.len()) == all_are_fast(self.among);
        if enough && as_before && spokes.len().abs_diff(self.among) * 5 <= self.among {
            return Vec::new();
        }
        self.among = spokes.len();
        let slow = ack_every_ms(self.among, acks_per_s);
        let all_fast = all_are_fast(self.among);
        let chosen = if all_fast {
            BTreeSet::new()
        } else {
            choose(rng, spokes)
        };
        let share = |spoke: &Acker<Id>| {
            let fast = all_fast || chosen.contains(&spoke.id);
            let every_ms = if fast && !all_fast {
                FAST_EVERY.as_millis() as u32
            } else {
                slow
            };
            Share {
                id: spoke.id,
                fast,
                every_ms,
            }
        };
        spokes.iter().map(share).collect()
    }
}

fn choose<Id: Copy + Ord>(rng: &mut impl Rng, spokes: &[Acker<Id>]) -> BTreeSet<Id> {
    let which = |on_topic: bool| -> Vec<Id> {
        let spokes = spokes.iter().filter(|spoke| spoke.on_topic == on_topic);
        spokes.map(|spoke| spoke.id).collect()
    };
    let (on_topic, others) = (which(true), which(false));
    let mut chosen: BTreeSet<Id> = on_topic.sample(rng, FAST).copied().collect();
    // At least one that is served directly, if there is one.
    let left = (FAST - chosen.len()).max(1);
    chosen.extend(others.sample(rng, left));
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn spokes(n: usize, on_topic: usize) -> Vec<Acker<usize>> {
        let acker = |id| Acker {
            id,
            on_topic: id < on_topic,
            fast: false,
        };
        (0..n).map(acker).collect()
    }

    fn apply(spokes: &mut [Acker<usize>], shares: &[Share<usize>]) {
        for share in shares {
            spokes[share.id].fast = share.fast;
        }
    }

    proptest! {
        #[test]
        fn the_budget_is_kept_and_some_are_fast_on_either_path(
            n in 1usize..5000, share in 0.0f64..=1.0, acks_per_s in 600u32..5000, seed: u64
        ) {
            let mut rng = StdRng::seed_from_u64(seed);
            let on_topic = (n as f64 * share) as usize;
            let mut spokes = spokes(n, on_topic);
            let mut sharing = AckShare::default();
            let shares = sharing.share_out(&mut rng, acks_per_s, &spokes);
            prop_assert_eq!(shares.len(), n);
            let per_s: f64 = shares.iter().map(|share| 1000.0 / f64::from(share.every_ms)).sum();
            // One more than planned may be fast, and an interval is rounded down to a millisecond.
            prop_assert!(per_s <= f64::from(acks_per_s) * 1.06 + 50.0, "{}", per_s);
            apply(&mut spokes, &shares);
            let fast = |which: bool| spokes.iter().filter(|s| s.fast && s.on_topic == which).count();
            prop_assert!(fast(true) >= on_topic.min(FAST));
            prop_assert!(fast(false) >= (n - on_topic).min(1));
            // Nothing has changed, so nobody is told again.
            prop_assert!(sharing.share_out(&mut rng, acks_per_s, &spokes).is_empty());
        }
    }

    #[test]
    fn whoever_comes_is_told_what_the_others_are_judged_by() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut sharing = AckShare::default();
        let mut all = spokes(0, 0);
        for n in (1..=60).chain((1..60).rev()) {
            let welcomed = ack_every_ms(n, 1000);
            all.truncate(n);
            if all.len() < n {
                let fast = all_are_fast(n);
                let on_topic = true;
                all.push(Acker {
                    id: n - 1,
                    on_topic,
                    fast,
                });
            }
            let shares = sharing.share_out(&mut rng, 1000, &all);
            apply(&mut all, &shares);
            let slow = sharing.every(1000).as_millis();
            assert!(
                slow.abs_diff(welcomed.into()) <= slow / 4,
                "{n}: {slow} {welcomed}"
            );
        }
    }

    #[test]
    fn who_is_fast_is_drawn_anew_when_too_few_are_left() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut sharing = AckShare::default();
        let mut all = spokes(100, 100);
        let shares = sharing.share_out(&mut rng, 1000, &all);
        apply(&mut all, &shares);
        // Most of the fast ones are served directly from now on.
        let mut moved = 0;
        for spoke in &mut all {
            if spoke.fast && moved < 5 {
                spoke.on_topic = false;
                moved += 1;
            }
        }
        let shares = sharing.share_out(&mut rng, 1000, &all);
        apply(&mut all, &shares);
        let fast = all.iter().filter(|s| s.fast && s.on_topic).count();
        assert_eq!(fast, FAST);
        // A few come and go, and nobody is told.
        all.truncate(90);
        for spoke in &mut all {
            spoke.fast |= spoke.id < FAST;
        }
        assert!(sharing.share_out(&mut rng, 1000, &all).is_empty());
        all.truncate(70);
        assert_eq!(sharing.share_out(&mut rng, 1000, &all).len(), 70);
    }
}

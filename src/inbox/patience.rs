//! How much longer a gap stands where wants turn out to be needless.
//!
//! On a topic that is slow, because its nodes or its links have more to do than they can, what is late comes all the same. Wanting it
//! again gives the topic more to carry, which makes more of it late: what was wanted arrives twice. A spoke that sees so waits longer
//! from then on, as a TCP sender does whose retransmissions were spurious (RFC 3708; the doubling and its end as in RFC 6298).
//! What is really lost mostly comes once, and changes nothing; if others lack it too, it may come along the link and on the topic.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Where the doubling ends. Not later: the hub takes a topic for dead on which nobody has, or wants, what it sent for a second or
/// so, and serves a spoke around it that has nothing for as long.
const MOST: Duration = Duration::from_millis(400);
/// It halves each time so long has passed without another needless want.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// How many events that were wanted are watched for coming again.
const WATCHED: usize = 64;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// What was added last, and when.
    added: Option<(Instant, Duration)>,
    /// Events that were wanted since then and are whole, each with the part that came last: of an event that really lacked
    /// that part, the others come again with it.
    filled: VecDeque<(u64, u16)>,
}

impl Patience {
    /// How much longer a gap stands that opens now.
    pub(super) fn extra(&self, now: Instant) -> Duration {
        let Some((at, extra)) = self.added else {
            return Duration::ZERO;
        };
        let halvings = now.saturating_duration_since(at).as_secs() / HALF_LIFE.as_secs();
        let halvings = u32::try_from(halvings).unwrap_or(u32::MAX);
        extra / 1u32.checked_shl(halvings).unwrap_or(u32::MAX)
    }

    /// An event that was wanted then is whole with this part.
    pub(super) fn filled(&mut self, wanted: Instant, offset: u64, part: u16) {
        // Whoever wanted it did not know yet: what was wanted before is one mistake with what came twice.
        if self.added.is_some_and(|(at, _)| wanted < at) {
            return;
        }
        if self.filled.len() >= WATCHED {
            self.filled.pop_front();
        }
        self.filled.push_back((offset, part));
    }

    /// A part came again. Gaps stand for `wait` without this.
    pub(super) fn repeated(&mut self, now: Instant, wait: Duration, offset: u64, part: u16) {
        if !self.filled.contains(&(offset, part)) {
            return;
        }
        self.filled.clear();
        let extra = self.extra(now);
        let doubled = (2 * extra).max(wait / 2).min(MOST);
        self.added = Some((now, doubled));
    }

    /// Offsets mean something else from now on.
    pub(super) fn forget(&mut self) {
        self.filled.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_millis(200);

    #[test]
    fn what_was_wanted_and_comes_twice_makes_patient_and_time_makes_less_so() {
        let mut now = Instant::now();
        let mut patience = Patience::default();
        for (wants, extra) in [100, 200, 400, 400].into_iter().enumerate() {
            let offset = wants as u64;
            patience.filled(now, offset, 3);
            patience.repeated(now, WAIT, offset, 3);
            assert_eq!(patience.extra(now), Duration::from_millis(extra));
        }
        now += HALF_LIFE;
        assert_eq!(patience.extra(now), MOST / 2);
        now += HALF_LIFE;
        assert_eq!(patience.extra(now), MOST / 4);
        now += 1000 * HALF_LIFE;
        assert_eq!(patience.extra(now), Duration::ZERO);
    }

    #[test]
    fn what_comes_again_without_having_been_lacking_says_nothing() {
        let now = Instant::now();
        let mut patience = Patience::default();
        patience.repeated(now, WAIT, 7, 0);
        // The repair of an event of which one part was lost brings all.
        patience.filled(now, 7, 2);
        for part in [0, 1, 3, 4] {
            patience.repeated(now, WAIT, 7, part);
        }
        assert_eq!(patience.extra(now), Duration::ZERO);
    }

    #[test]
    fn many_wants_at_once_are_one_mistake_in_whatever_order_they_come_twice() {
        let wanted = Instant::now();
        let mut patience = Patience::default();
        for offset in 0..100 {
            patience.filled(wanted, offset, 0);
        }
        assert_eq!(patience.filled.len(), WATCHED);
        let now = wanted + WAIT;
        for offset in 0..100 {
            patience.repeated(now, WAIT, offset, 0);
        }
        assert_eq!(patience.extra(now), WAIT / 2);
        for offset in 100..200 {
            patience.filled(wanted, offset, 0);
            patience.repeated(now, WAIT, offset, 0);
        }
        assert_eq!(patience.extra(now), WAIT / 2);
        patience.filled(now, 200, 0);
        patience.repeated(now, WAIT, 200, 0);
        assert_eq!(patience.extra(now), WAIT);
    }
}

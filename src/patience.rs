//! How much longer to wait where asking again turned out to be needless: sans-IO.
//!
//! On a topic that is slow, because its nodes or its links have more to do than they can, what is late comes all the same. Asking for
//! it gives the topic more to carry, which makes more of it late: what was asked for arrives twice. Whoever sees so waits longer from
//! then on, as a TCP sender does whose retransmissions were spurious (RFC 3708; the doubling and its end as in RFC 6298).
//! What is really lost mostly comes once, and changes nothing.
//!
//! A spoke's inbox waits so before it wants an event again, and its part in the topic before it asks a neighbour for a frame.
//! Not for: how long either waits at first.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// It halves each time so long has passed without another needless question.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// How many answers are watched for coming again.
const WATCHED: usize = 64;

/// See the [module](self). `K` tells apart what may come twice.
#[derive(Debug)]
pub(crate) struct Patience<K> {
    /// Where the doubling begins, and ends.
    least: Duration,
    most: Duration,
    /// What was added last, and when.
    added: Option<(Instant, Duration)>,
    /// What came since then after it was asked for.
    answered: VecDeque<K>,
}

impl<K: PartialEq> Patience<K> {
    pub(crate) fn new(least: Duration, most: Duration) -> Self {
        Self {
            least: least.min(most),
            most,
            added: None,
            answered: VecDeque::new(),
        }
    }

    /// Changes where the doubling begins.
    pub(crate) fn set_least(&mut self, least: Duration) {
        self.least = least.min(self.most);
    }

    /// How much longer to wait for what is waited for from now on.
    pub(crate) fn extra(&self, now: Instant) -> Duration {
        let Some((at, extra)) = self.added else {
            return Duration::ZERO;
        };
        let halvings = now.saturating_duration_since(at).as_secs() / HALF_LIFE.as_secs();
        let halvings = u32::try_from(halvings).unwrap_or(u32::MAX);
        extra / 1u32.checked_shl(halvings).unwrap_or(u32::MAX)
    }

    /// What was asked for then has come.
    pub(crate) fn answered(&mut self, asked: Instant, what: K) {
        // Whoever asked did not know yet: what was asked for before is one mistake with what came twice.
        if self.added.is_some_and(|(at, _)| asked < at) {
            return;
        }
        if self.answered.len() >= WATCHED {
            self.answered.pop_front();
        }
        self.answered.push_back(what);
    }

    /// Something came again.
    pub(crate) fn repeated(&mut self, now: Instant, what: &K) {
        if !self.answered.contains(what) {
            return;
        }
        self.answered.clear();
        let doubled = (2 * self.extra(now)).clamp(self.least, self.most);
        self.added = Some((now, doubled));
    }

    /// What comes from now on is no answer to what was asked before.
    pub(crate) fn forget(&mut self) {
        self.answered.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_millis(350);

    fn patience() -> (Patience<u64>, Instant) {
        (Patience::new(LEAST, MOST), Instant::now())
    }

    #[test]
    fn what_was_asked_for_and_comes_twice_makes_patient_and_time_makes_less_so() {
        let (mut patience, mut now) = patience();
        for (what, extra) in [LEAST, 2 * LEAST, MOST, MOST].into_iter().enumerate() {
            let what = what as u64;
            patience.answered(now, what);
            patience.repeated(now, &what);
            assert_eq!(patience.extra(now), extra);
        }
        now += HALF_LIFE;
        assert_eq!(patience.extra(now), MOST / 2);
        now += HALF_LIFE;
        assert_eq!(patience.extra(now), MOST / 4);
        now += 1000 * HALF_LIFE;
        assert_eq!(patience.extra(now), Duration::ZERO);
    }

    #[test]
    fn what_comes_again_without_having_been_asked_for_says_nothing() {
        let (mut patience, now) = patience();
        patience.repeated(now, &7);
        patience.answered(now, 8);
        patience.repeated(now, &7);
        assert_eq!(patience.extra(now), Duration::ZERO);
    }

    #[test]
    fn many_questions_at_once_are_one_mistake_in_whatever_order_they_are_answered_twice() {
        let (mut patience, asked) = patience();
        for what in 0..100 {
            patience.answered(asked, what);
        }
        assert_eq!(patience.answered.len(), WATCHED);
        let now = asked + LEAST;
        for what in 0..100 {
            patience.repeated(now, &what);
        }
        assert_eq!(patience.extra(now), LEAST);
        for what in 100..200 {
            patience.answered(asked, what);
            patience.repeated(now, &what);
        }
        assert_eq!(patience.extra(now), LEAST);
        patience.answered(now, 200);
        patience.repeated(now, &200);
        assert_eq!(patience.extra(now), 2 * LEAST);
    }
}

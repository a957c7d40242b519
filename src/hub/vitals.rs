//! How far spokes are behind, and whether that grows: sans-IO.
//!
//! The hub looks at its spokes a few times a second; [`Vitals`] remembers enough of that to say how old the
//! oldest event is that somebody has not acknowledged, and whether a path keeps up.
//!
//! Not for: doing anything about it (the supervisor does).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// A spoke is behind if it has not acknowledged what is older than this, beyond twice the interval at
/// which it acknowledges.
const BEHIND_AFTER: Duration = Duration::from_secs(2);

/// How many changes of the tip are remembered. When there are more, they are thinned out.
const CHANGES: usize = 512;

/// Thinning leaves no age wrong by more than one part in so many. Of three changes in a row, the first is then more than 5/4
/// as old as the last: from a nanosecond to 10,000 years that makes fewer than [`CHANGES`].
const AGE_PARTS: u32 = 4;

/// Over how many seconds a backlog is compared.
const SPANS: [usize; 3] = [4, 16, 60];

/// How often a spoke acknowledges that the trend goes by.
const FAST_EVERY: Duration = Duration::from_millis(20);
/// What is no backlog, however few events there are.
const NOISE: u64 = 16;

/// A spoke, as far as its health goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sign {
    pub(crate) on_topic: bool,
    /// Everything below has reached it.
    pub(crate) acked: u64,
    /// Whether it acknowledges fast, and has done so for a while.
    pub(crate) fast: bool,
}

/// How one path does.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct PathVitals {
    pub(crate) spokes: usize,
    /// How many of them are behind.
    pub(crate) behind: usize,
    /// What the one farthest behind has acknowledged; the tip if there is none.
    pub(crate) lowest: u64,
    /// How old the oldest event is that one of them has not acknowledged.
    pub(crate) oldest: Duration,
    /// Those that acknowledge fast are farther behind all the time.
    pub(crate) grows: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Vitals {
    tips: Tips,
    direct: Trend,
    topic: Trend,
    looked: Option<Instant>,
}

impl Vitals {
    /// Looks at how things stand.
    pub(crate) fn look(&mut self, now: Instant, tip: u64, spokes: &[Sign]) {
        self.looked = Some(now);
        self.tips.note(now, tip);
        for (trend, on_topic) in [(&mut self.direct, false), (&mut self.topic, true)] {
            let fast = spokes.iter().filter(|s| s.fast && s.on_topic == on_topic);
            let lowest = fast.map(|spoke| spoke.acked).min();
            let backlog = lowest.map_or(0, |acked| tip.saturating_sub(acked));
            trend.note(now, tip, backlog);
        }
    }

    /// For how long nobody has looked.
    pub(crate) fn unseen(&self, now: Instant) -> Duration {
        let looked = self.looked.map(|at| now.saturating_duration_since(at));
        looked.unwrap_or_default()
    }

    /// How the topic does, or the direct links. `slow_every` is how often spokes acknowledge that are not
    /// fast.
    pub(crate) fn examine(
        &self,
        now: Instant,
        tip: u64,
        spokes: &[Sign],
        on_topic: bool,
        slow_every: Duration,
    ) -> PathVitals {
        let trend = if on_topic { &self.topic } else { &self.direct };
        let mut vitals = PathVitals {
            lowest: tip,
            grows: trend.grows(),
            ..PathVitals::default()
        };
        for spoke in spokes.iter().filter(|spoke| spoke.on_topic == on_topic) {
            vitals.spokes += 1;
            vitals.lowest = vitals.lowest.min(spoke.acked);
            if spoke.acked >= tip {
                continue;
            }
            let age = self.tips.age(now, spoke.acked);
            vitals.oldest = vitals.oldest.max(age);
            let every = if spoke.fast { FAST_EVERY } else { slow_every };
            vitals.behind += usize::from(age > BEHIND_AFTER + 2 * every);
        }
        vitals
    }
}

/// So long may events wait for the disk while it syncs none.
const DISK_STALLED_AFTER: Duration = Duration::from_secs(2);

/// Whether the disk takes what waits for it.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// The synced mark, and since when it stands there though something waits.
    waits: Option<(u64, Instant)>,
}

impl Disk {
    /// Looks at how things stand: events below `tip` are synced, those below `appended` wait.
    pub(crate) fn look(&mut self, now: Instant, tip: u64, appended: u64) {
        let before = self.waits.filter(|(stood, _)| *stood == tip);
        self.waits = (appended > tip).then(|| before.unwrap_or((tip, now)));
    }

    pub(crate) fn is_stalled(&self, now: Instant) -> bool {
        let since = self.waits.map(|(_, since)| since);
        since.is_some_and(|at| now.saturating_duration_since(at) > DISK_STALLED_AFTER)
    }
}

/// When which events came, roughly: what is long ago is remembered less exactly, as in the exponential histograms
/// of Datar et al., "Maintaining Stream Statistics over Sliding Windows" (2002).
#[derive(Debug, Default)]
struct Tips(VecDeque<(Instant, u64)>);

impl Tips {
    fn note(&mut self, now: Instant, tip: u64) {
        match self.0.back() {
            Some((_, last)) if *last == tip => return,
            // Another log.
            Some((_, last)) if *last > tip => self.0.clear(),
            _ => {}
        }
        self.0.push_back((now, tip));
        if self.0.len() > CHANGES {
            self.thin_out(now);
        }
    }

    /// Forgets a change if the one after it may stand for it: if what lies between that one and the last
    /// that is kept is little against its age. Ages only grow, so it stays little.
    fn thin_out(&mut self, now: Instant) {
        let mut kept: VecDeque<(Instant, u64)> = VecDeque::with_capacity(CHANGES + 1);
        let mut changes = std::mem::take(&mut self.0).into_iter().peekable();
        while let Some(change) = changes.next() {
            let stands_for_it = kept.back().zip(changes.peek()).is_some_and(|(last, next)| {
                let gap = next.0.saturating_duration_since(last.0);
                gap * AGE_PARTS <= now.saturating_duration_since(next.0)
            });
            if !stands_for_it {
                kept.push_back(change);
            }
        }
        self.0 = kept;
    }

    /// For how long there has been an event at `offset`, at least.
    fn age(&self, now: Instant, offset: u64) -> Duration {
        let after = self.0.partition_point(|(_, tip)| *tip <= offset);
        let since = self.0.get(after).map(|(at, _)| *at);
        since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }
}

/// The least backlog of each of the last seconds.
#[derive(Debug, Default)]
struct Trend {
    /// Complete ones, the newest last.
    seconds: VecDeque<u64>,
    since: Option<(Instant, u64)>,
    least: Option<u64>,
    per_s: u64,
}

impl Trend {
    fn note(&mut self, now: Instant, tip: u64, backlog: u64) {
        let (since, before) = *self.since.get_or_insert((now, tip));
        let passed = now.saturating_duration_since(since);
        if passed >= Duration::from_secs(1) {
            if let Some(least) = self.least.take() {
                self.seconds.push_back(least);
            }
            if self.seconds.len() > SPANS[SPANS.len() - 1] + 1 {
                self.seconds.pop_front();
            }
            let per_s = tip.saturating_sub(before) as f64 / passed.as_secs_f64();
            self.per_s = per_s as u64;
            self.since = Some((now, tip));
        }
        self.least = Some(self.least.map_or(backlog, |least| least.min(backlog)));
    }

    fn grows(&self) -> bool {
        let back = |n: usize| {
            let at = self.seconds.len().checked_sub(n + 1)?;
            self.seconds.get(at).copied()
        };
        let Some(last) = back(0) else { return false };
        let under_way = self.per_s as f64 * FAST_EVERY.as_secs_f64();
        let noise = NOISE + (2.0 * under_way) as u64;
        let shrinks = back(SPANS[0]).is_some_and(|then| last + noise < then);
        let grew = |then: u64| last > then + noise;
        !shrinks && SPANS.iter().any(|n| back(*n).is_some_and(grew))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A hub that broadcasts so many events a second to spokes that take so many.
    fn run(
        vitals: &mut Vitals,
        now: &mut Instant,
        (tip, acked): (&mut f64, &mut f64),
        (broadcast, taken): (f64, f64),
        seconds: u32,
    ) -> Vec<bool> {
        let mut grows = Vec::new();
        for _ in 0..seconds * 5 {
            *now += 200 * MS;
            *tip += broadcast / 5.0;
            *acked = (*acked + taken / 5.0).min(*tip);
            let sign = Sign {
                on_topic: true,
                acked: *acked as u64,
                fast: true,
            };
            vitals.look(*now, *tip as u64, &[sign]);
            let examined = vitals.examine(*now, *tip as u64, &[sign], true, 20 * MS);
            assert!(
                !vitals
                    .examine(*now, *tip as u64, &[sign], false, 20 * MS)
                    .grows
            );
            grows.push(examined.grows);
        }
        grows
    }

    #[test]
    fn a_backlog_that_grows_is_noticed_however_slowly_and_one_that_shrinks_is_none() {
        for (rate, taken) in [(1000.0, 0.0), (1000.0, 500.0), (1000.0, 990.0), (10.0, 5.0)] {
            let mut now = Instant::now();
            let mut vitals = Vitals::default();
            let (mut tip, mut acked) = (0.0, 0.0);
            let at = (&mut tip, &mut acked);
            let calm = run(&mut vitals, &mut now, at, (rate, rate), 100);
            assert!(!calm.contains(&true), "{rate}");
            let at = (&mut tip, &mut acked);
            let grows = run(&mut vitals, &mut now, at, (rate, taken), 60);
            let first = grows.iter().position(|grows| *grows).expect("noticed");
            assert!(first <= 5 * 18, "{rate} {taken}: after {first}");
            assert!(grows[first..].iter().all(|grows| *grows), "{rate} {taken}");
            // It catches up.
            let at = (&mut tip, &mut acked);
            let shrinks = run(&mut vitals, &mut now, at, (rate, 3.0 * rate), 60);
            assert!(!shrinks[5 * 6..].contains(&true), "{rate} {taken}");
        }
    }

    #[test]
    fn a_disk_that_syncs_nothing_is_stalled_and_a_slow_one_is_not() {
        let begin = Instant::now();
        let mut disk = Disk::default();
        let mut look = |seconds, tip, appended| {
            let now = begin + Duration::from_secs(seconds);
            disk.look(now, tip, appended);
            disk.is_stalled(now)
        };
        // Nothing waits; then something does, and goes on.
        assert!(!look(0, 5, 5) && !look(9, 5, 5));
        assert!(!look(10, 5, 7) && !look(12, 6, 9) && !look(14, 7, 20));
        // The disk hangs, and comes back.
        assert!(!look(16, 7, 30) && look(17, 7, 40));
        assert!(!look(18, 8, 40) && !look(30, 40, 40));
    }

    #[test]
    fn who_has_not_acknowledged_for_long_is_behind() {
        let begin = Instant::now();
        let mut vitals = Vitals::default();
        let spokes = |acked| {
            let sign = |on_topic, fast, acked| Sign {
                on_topic,
                acked,
                fast,
            };
            [
                sign(false, true, acked),
                sign(true, false, 0),
                sign(false, true, 100),
            ]
        };
        let mut now = begin;
        for n in 0..100u32 {
            now = begin + n * 200 * MS;
            vitals.look(now, u64::from(n) + 1, &spokes(0));
        }
        // Event 79 came with the look at 15.8 s, it is 19.8 s now.
        let spokes = spokes(79);
        let direct = vitals.examine(now, 100, &spokes, false, Duration::from_secs(1));
        let expected = PathVitals {
            spokes: 2,
            behind: 1,
            lowest: 79,
            oldest: 4000 * MS,
            grows: direct.grows,
        };
        assert_eq!(direct, expected);
        // Who acknowledges rarely is given more time.
        for (every, behind) in [(1, 1), (7, 1), (9, 0)] {
            let every = Duration::from_secs(every);
            let topic = vitals.examine(now, 100, &spokes, true, every);
            assert_eq!((topic.spokes, topic.behind), (1, behind));
        }
        assert_eq!(vitals.unseen(now + MS), MS);
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_ages_are_right_to_a_part(
            steps in prop::collection::vec((0u32..2000, 0u64..5), 1..10_000), offset in 0u64..1000,
            wait in 0u32..10_000
        ) {
            let begin = Instant::now();
            let mut now = begin;
            let mut tips = Tips::default();
            let (mut tip, mut came) = (0, None);
            for (ms, events) in steps {
                now += ms * MS;
                tip += events;
                tips.note(now, tip);
                if tip > offset && came.is_none() {
                    came = Some(now);
                }
                prop_assert!(tips.0.len() <= CHANGES);
            }
            now += wait * MS;
            let age = tips.age(now, offset);
            match came {
                None => prop_assert_eq!(age, Duration::ZERO),
                Some(came) => {
                    let true_age = now - came;
                    let least = true_age * AGE_PARTS / (AGE_PARTS + 1);
                    prop_assert!(age <= true_age && age >= least, "{:?} {:?}", age, true_age);
                }
            }
        }
    }
}

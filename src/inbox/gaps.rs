//! Which offsets are missing, and which of them to want now.
//!
//! A gap ripens: it is wanted once it has stood for a while, since most gaps close by themselves (an event
//! on another branch of the tree is late, not lost). While parts of an event come in it is on its way, and
//! stands for about as long after each, within a limit. Ranges are half-open.

use std::{
    collections::BTreeMap,
    ops::Bound,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::InboxConfig;
use crate::{instant::after, patience::Patience};

/// How much longer gaps stand at most where wants turn out to be needless. Not longer: the hub takes a topic for dead on which
/// nobody has, or wants, what it sent for a second or so, and serves a spoke around it that has nothing for as long.
const MOST_PATIENCE: Duration = Duration::from_millis(400);
/// For how many times as long as it would a gap stands while parts of its event come in: who passes on one now and then can
/// keep no event from a spoke.
const STANDS_AT_MOST: u32 = 8;

/// Missing offsets with the time from which they may be wanted.
#[derive(Clone, Copy, Debug)]
struct Gap {
    to: u64,
    /// When it opened, or a part of it came that put it off.
    since: Instant,
    ripe: Instant,
    /// What puts it off puts it off no longer than this.
    last: Instant,
}

/// A range that the hub was asked for and has not filled yet.
#[derive(Clone, Copy, Debug)]
struct Want {
    from: u64,
    to: u64,
    /// When it was first said.
    since: Instant,
    /// Grows with each repetition.
    wait: Duration,
    retry: Instant,
}

#[derive(Debug)]
pub(super) struct Gaps {
    config: InboxConfig,
    rng: StdRng,
    /// Disjoint. Neighbours touch only where one opened notably later than the other, or was put off.
    gaps: BTreeMap<u64, Gap>,
    /// Disjoint, in order, at most `max_wants`. A want covers the gaps in its range.
    wants: Vec<Want>,
    /// No uncovered gap is ripe before this; none at all is waiting if there is none.
    scan_at: Option<Instant>,
    /// A ripe gap was passed over for want of room.
    held: bool,
    /// Gaps close by themselves: none is wanted.
    direct: bool,
    /// Of each event that was wanted and is whole, the part that came last is watched: of one that really lacked that part,
    /// the others come again with it.
    patience: Patience<(u64, u16)>,
}

impl Gaps {
    pub(super) fn new(config: InboxConfig, seed: u64) -> Self {
        Self {
            config,
            rng: StdRng::seed_from_u64(seed),
            gaps: BTreeMap::new(),
            wants: Vec::new(),
            scan_at: None,
            held: false,
            direct: false,
            patience: Patience::new(config.gap_wait / 2, MOST_PATIENCE),
        }
    }

    /// Changes how long gaps stand that open from now on.
    pub(super) fn set_gap_wait(&mut self, gap_wait: Duration) {
        self.config.gap_wait = gap_wait;
        self.patience.set_least(gap_wait / 2);
    }

    /// Forgets all gaps and wants.
    pub(super) fn clear(&mut self) {
        self.gaps.clear();
        self.wants.clear();
        self.scan_at = None;
        self.held = false;
        self.patience.forget();
    }

    #[cfg(test)]
    pub(super) fn ranges(&self) -> Vec<(u64, u64)> {
        self.gaps
            .iter()
            .map(|(from, gap)| (*from, gap.to))
            .collect()
    }

    #[cfg(test)]
    pub(super) fn extra(&self, now: Instant) -> Duration {
        self.patience.extra(now)
    }

    #[cfg(test)]
    pub(super) fn wants(&self) -> usize {
        self.wants.len()
    }

    /// `[from, to)`, of which nothing was missing so far, is missing from now on.
    pub(super) fn open(&mut self, now: Instant, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let (mut from, mut gap) = (from, self.gap(now, to));
        if let Some(right) = self.gaps.remove(&to) {
            // What was given up for want of room, from the far end: there is no hurry about any of it.
            gap = if right.ripe > gap.ripe {
                right
            } else {
                Gap {
                    to: right.to,
                    ..gap
                }
            };
        }
        if let Some((start, left)) = self.left_of(from) {
            // A tail that grows all the time must be neither one gap as young as its youngest offset, which
            // would never ripen, nor one as old as its oldest, nor a gap for each offset.
            let apart = gap.ripe.saturating_duration_since(left.ripe);
            if left.ripe > now && apart <= self.notable(now) {
                (from, gap) = (start, Gap { to: gap.to, ..left });
            } else {
                self.join_ripe(now, from);
            }
        }
        self.gaps.insert(from, gap);
        self.scan_at = Some(self.scan_at.map_or(gap.ripe, |at| at.min(gap.ripe)));
    }

    /// A gap that opens now.
    fn gap(&mut self, now: Instant, to: u64) -> Gap {
        let extra = self.patience.extra(now);
        let jitter = self.jitter(self.config.gap_jitter.saturating_add(extra / 4));
        let wait = self.config.gap_wait.saturating_add(extra);
        let stands = wait.saturating_add(jitter);
        Gap {
            to,
            since: now,
            ripe: after(now, stands),
            last: after(now, stands.saturating_mul(STANDS_AT_MOST)),
        }
    }

    /// Gaps that touch are kept apart if they ripen so much apart.
    fn notable(&self, now: Instant) -> Duration {
        let wait = self.config.gap_wait;
        wait.saturating_add(self.patience.extra(now)) / 4
    }

    /// A part came that the event at `at` lacked, and others are lacking still.
    pub(super) fn came(&mut self, now: Instant, at: u64) {
        let Some((&from, &gap)) = self.gaps.range(..=at).next_back() else {
            return;
        };
        let later = now.saturating_duration_since(gap.since);
        if gap.to <= at || later <= self.notable(now) {
            return;
        }
        let to = at.saturating_add(1);
        let ripe = after(gap.ripe, later).min(gap.last);
        if from < at {
            self.gaps.insert(from, Gap { to: at, ..gap });
        }
        if to < gap.to {
            self.gaps.insert(to, gap);
        }
        let put_off = Gap {
            to,
            since: now,
            ripe,
            ..gap
        };
        self.gaps.insert(at, put_off);
    }

    /// An event is whole with this part. If it was wanted, it may turn out that it would have come anyway.
    pub(super) fn completed(&mut self, offset: u64, part: u16) {
        let wanted = |want: &&Want| (want.from..want.to).contains(&offset);
        if let Some(want) = self.wants.iter().find(wanted) {
            self.patience.answered(want.since, (offset, part));
        }
    }

    /// A part came that was there.
    pub(super) fn repeated(&mut self, now: Instant, offset: u64, part: u16) {
        self.patience.repeated(now, &(offset, part));
    }

    /// The gap that ends where `at` begins.
    fn left_of(&self, at: u64) -> Option<(u64, Gap)> {
        let (&from, &gap) = self.gaps.range(..at).next_back()?;
        (gap.to == at).then_some((from, gap))
    }

    /// Of the gaps that follow each other up to `end`, joins the ripe ones. They come before the young
    /// ones, of which there are never more than a few; but for those of which parts come in, which may be any.
    fn join_ripe(&mut self, now: Instant, end: u64) {
        let mut at = end;
        while let Some((from, gap)) = self.left_of(at) {
            at = from;
            if gap.ripe <= now {
                break;
            }
        }
        while let Some((from, left)) = self.left_of(at)
            && left.ripe <= now
            && let Some(gap) = self.gaps.remove(&at)
        {
            let joined = Gap { to: gap.to, ..left };
            self.gaps.insert(from, joined);
            at = from;
        }
    }

    /// Nothing of `[from, to)` is missing any more.
    pub(super) fn close(&mut self, now: Instant, from: u64, to: u64) {
        if from >= to {
            return;
        }
        self.touch(now, from, to);
        if let Some((_, gap)) = self.gaps.range_mut(..from).next_back()
            && gap.to > from
        {
            let right = *gap;
            gap.to = from;
            if right.to > to {
                self.gaps.insert(to, right);
                return;
            }
        }
        while let Some((&start, &gap)) = self.gaps.range(from..to).next() {
            self.gaps.remove(&start);
            if gap.to > to {
                self.gaps.insert(to, gap);
                return;
            }
        }
        if self.gaps.is_empty() {
            self.scan_at = None;
        }
    }

    /// Something of `[from, to)` came: who sends it is at work on what was wanted there, and on what was
    /// wanted beyond it after that. What was wanted before it has been passed over, and waits no longer
    /// than it did.
    pub(super) fn touch(&mut self, now: Instant, from: u64, to: u64) {
        let answered = self
            .wants
            .iter()
            .position(|want| want.from < to && from < want.to);
        for want in self.wants.iter_mut().skip(answered.unwrap_or(usize::MAX)) {
            want.retry = want.retry.max(after(now, want.wait));
        }
    }

    /// Gaps close by themselves from now on, or no longer do and count from now.
    pub(super) fn set_direct(&mut self, now: Instant, direct: bool) {
        if self.direct == direct {
            return;
        }
        self.direct = direct;
        self.wants.clear();
        // What the direct cursor brings again was not wanted in vain.
        self.patience.forget();
        self.held = false;
        self.scan_at = None;
        if direct {
            return;
        }
        let anew = self.gap(now, 0);
        let mut joined: Vec<(u64, Gap)> = Vec::new();
        for (&from, gap) in &self.gaps {
            match joined.last_mut() {
                Some((_, left)) if left.to == from => left.to = gap.to,
                _ => joined.push((from, Gap { to: gap.to, ..anew })),
            }
        }
        self.gaps = joined.into_iter().collect();
        self.scan_at = (!self.gaps.is_empty()).then_some(anew.ripe);
    }

    /// The next range to want, if there is one. With a `limit`, only what begins below it.
    pub(super) fn poll(&mut self, now: Instant, limit: Option<u64>) -> Option<(u64, u64)> {
        if self.direct {
            return None;
        }
        if !self.wants.is_empty() {
            if let Some(limit) = limit {
                let before = self.wants.len();
                self.wants.retain(|want| want.from < limit);
                self.held |= self.wants.len() < before;
            }
            self.drop_filled(now);
            if let Some(range) = self.repeat(now) {
                return Some(range);
            }
        }
        let released = self.held && limit.is_none();
        if self.wants.len() >= self.config.max_wants
            || !(released || self.scan_at.is_some_and(|at| at <= now))
        {
            return None;
        }
        let (from, to) = self.scan(now, limit)?;
        let wait = self.want_wait(self.config.want_retry);
        let at = self.wants.partition_point(|want| want.from < from);
        let retry = after(now, wait);
        self.wants.insert(
            at,
            Want {
                from,
                to,
                since: now,
                wait,
                retry,
            },
        );
        Some((from, to))
    }

    fn drop_filled(&mut self, now: Instant) {
        let gaps = &self.gaps;
        let before = self.wants.len();
        self.wants
            .retain(|want| first_missing(gaps, want.from, want.to).is_some());
        if self.wants.len() < before {
            // A place is free for what ripened meanwhile.
            self.scan_soon(now);
        }
    }

    fn scan_soon(&mut self, now: Instant) {
        self.scan_at = Some(self.scan_at.map_or(now, |at| at.min(now)));
    }

    /// Asks again for the first run of what an overdue want still misses; what is beyond the run is free to
    /// be wanted by itself.
    fn repeat(&mut self, now: Instant) -> Option<(u64, u64)> {
        let n = self.wants.iter().position(|want| want.retry <= now)?;
        let (from, to, wait) = self.wants.get(n).map(|w| (w.from, w.to, w.wait))?;
        let (from, to) = first_missing(&self.gaps, from, to)?;
        let wait = self.want_wait(wait.saturating_mul(2));
        if let Some(want) = self.wants.get_mut(n) {
            *want = Want {
                from,
                to,
                since: want.since,
                wait,
                retry: after(now, wait),
            };
        }
        self.scan_soon(now);
        Some((from, to))
    }

    /// Finds the lowest ripe run which no want covers. Finding none, it works out when to look again.
    fn scan(&mut self, now: Instant, limit: Option<u64>) -> Option<(u64, u64)> {
        self.held = false;
        let mut scan_at: Option<Instant> = None;
        let mut found: Option<(u64, u64)> = None;
        for (&start, gap) in &self.gaps {
            if found.is_some_and(|(_, to)| to != start) {
                break;
            }
            let Some((from, to)) = uncovered(&self.wants, start, gap.to) else {
                if found.is_some() {
                    break;
                }
                continue;
            };
            if limit.is_some_and(|limit| from >= limit) {
                // Ripe or not: all that follows is looked at when there is room.
                self.held = true;
                break;
            }
            if gap.ripe > now {
                if found.is_some() {
                    break;
                }
                scan_at = Some(scan_at.map_or(gap.ripe, |at| at.min(gap.ripe)));
                continue;
            }
            match &mut found {
                None => found = Some((from, to)),
                Some((_, end)) if *end == from => *end = to,
                Some(_) => break,
            }
            if to < gap.to {
                break;
            }
        }
        let Some((from, to)) = found else {
            self.scan_at = scan_at;
            return None;
        };
        let most = from.saturating_add(self.config.max_want.max(1));
        Some((from, to.min(most).min(limit.unwrap_or(to))))
    }

    /// When [`poll`](Self::poll) may have something without anything coming in.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.direct {
            return None;
        }
        let retry = self.wants.iter().map(|want| want.retry).min();
        let free = self.wants.len() < self.config.max_wants;
        let scan = self.scan_at.filter(|_| free);
        [retry, scan].into_iter().flatten().min()
    }

    fn want_wait(&mut self, wait: Duration) -> Duration {
        let wait = wait.min(self.config.want_retry_max);
        wait.saturating_add(self.jitter(wait / 8))
    }

    fn jitter(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.random_range(0..=most))
    }
}

/// The first run of missing offsets in `[from, to)`.
fn first_missing(gaps: &BTreeMap<u64, Gap>, from: u64, to: u64) -> Option<(u64, u64)> {
    let left = gaps.range(..=from).next_back();
    let (start, mut end) = match left.filter(|(_, gap)| gap.to > from) {
        Some((_, gap)) => (from, gap.to),
        None => {
            let beyond = (Bound::Excluded(from), Bound::Unbounded);
            let (start, gap) = gaps.range(beyond).next()?;
            (*start, gap.to)
        }
    };
    if start >= to {
        return None;
    }
    while end < to
        && let Some(gap) = gaps.get(&end)
    {
        end = gap.to;
    }
    Some((start, end.min(to)))
}

/// The first part of `[from, to)` which is in none of the wants.
fn uncovered(wants: &[Want], mut from: u64, to: u64) -> Option<(u64, u64)> {
    for want in wants {
        if want.to <= from {
            continue;
        }
        if want.from > from {
            return (from < to).then(|| (from, to.min(want.from)));
        }
        from = want.to;
    }
    (from < to).then_some((from, to))
}

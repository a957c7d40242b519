//! How wants are answered: sans-IO.
//!
//! Wants of all spokes are gathered for a moment. A range that a few want goes to each along its link; one
//! that many want goes on the topic again, once, and whoever else wants it meanwhile gets no answer but
//! that: a spoke repeats its want when it has waited in vain, and by then the range has arrived or did
//! not. What goes on the topic again is cut into pieces that the [`Budget`] has room for.
//!
//! Not for: reading the log and writing (the links and the framer do that), nor for what the log has lost
//! (a link that is told to bring it says so).
//!
//! Memory is bounded: what is beyond the bounds is answered along links at once.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
    time::{Duration, Instant},
};

use super::{budget::Budget, shared_log::SharedLog};
use crate::{instant::after, log::Read, wire::broadcast::arrives_within};

/// How long wants are gathered.
const GATHER: Duration = Duration::from_millis(20);
/// For how long a range is remembered that was wanted: longer than a spoke waits before it wants again.
const REMEMBER: Duration = Duration::from_secs(3);

/// A range goes on the topic again when so many spokes want it, at least (fewer get it along their links, which costs the hub up
/// to seven copies in place of the four that go on the topic, and nobody else anything; of a small topic it is all),
const MANY: usize = 8;
/// but no fewer than this,
const FEWEST: usize = 3;
/// or a hundredth of those on the topic, which all get it again, but no more than so many.
const MANY_OF_LARGE: usize = 32;
/// How often a range goes on the topic again before links have to bring it.
const MAX_AGAIN: u8 = 3;

/// So much goes on the topic again at once, so that new events find their way between.
const PIECE_EVENTS: usize = 1024;
const PIECE_BYTES: usize = 256 * 1024;

/// How many ranges are remembered at once,
const MAX_RUNS: usize = 1024;
/// and how many wants of one spoke are gathered at once; an honest one has no more than 8 open.
const MAX_OF_ONE: u32 = 64;

/// How a want is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer<Id> {
    /// The range goes to this spoke, along its link.
    Direct { id: Id, from: u64, to: u64 },
    /// This goes on the topic again.
    Again(Piece),
}

/// Who asks the [`Budget`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Payer<Id> {
    /// The topic, for what goes on it again.
    Topic,
    /// A link.
    Spoke(Id),
}

/// How much of a range goes on the topic again at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    /// The first offset that the log still has.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Of the events in it.
    pub(crate) bytes: u64,
}

/// How much of `[from, to)` goes on the topic again at once; nothing, if the log has lost it.
pub(crate) fn piece_of(log: &SharedLog, from: u64, to: u64) -> Option<Piece> {
    let from = from.max(log.head());
    let left = usize::try_from(to.checked_sub(from)?).unwrap_or(usize::MAX);
    let mut entries = Vec::new();
    // What was lost in this moment is so for good, and said to who wants it again.
    let Read::Events = log.read(from, left.min(PIECE_EVENTS), PIECE_BYTES, &mut entries) else {
        return None;
    };
    let bytes = entries.iter().map(|(_, entry)| entry.size() as u64).sum();
    let to = from + entries.len() as u64;
    Some(Piece { from, to, bytes })
}

/// See the [module](self).
///
/// After every [`want`](Self::want), and at [`deadline`](Self::deadline), call [`poll`](Self::poll) until it
/// gives nothing.
#[derive(Debug)]
pub(crate) struct Repairs<Id> {
    /// How many spokes are on the topic, if it is alive.
    members: Option<usize>,
    /// Disjoint ranges by their beginning.
    runs: BTreeMap<u64, Run<Id>>,
    /// How many wants of each spoke are being gathered.
    gathered: BTreeMap<Id, u32>,
    /// What goes on the topic again, oldest first, as far as the budget allows.
    again: VecDeque<(u64, u64)>,
    out: VecDeque<Answer<Id>>,
    /// When what is being gathered is answered.
    due: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Run<Id> {
    to: u64,
    state: State<Id>,
    /// How often it went on the topic again.
    again: u8,
    /// When it was last wanted or answered.
    touched: Instant,
}

#[derive(Clone, Debug)]
enum State<Id> {
    /// Who wants it, and who got it along its link lately; none twice.
    Wanted { wants: Vec<Id>, got: Vec<Id> },
    /// It waits for the budget.
    Queued,
    /// It went on the topic again, and may still arrive.
    OnItsWay { until: Instant },
}

impl<Id: Copy + Ord + Debug> Repairs<Id> {
    pub(crate) fn new() -> Self {
        Self {
            members: None,
            runs: BTreeMap::new(),
            gathered: BTreeMap::new(),
            again: VecDeque::new(),
            out: VecDeque::new(),
            due: None,
        }
    }

    /// Says whether there is a topic that delivers, and to how many spokes. Without one, everything is
    /// answered along links.
    pub(crate) fn set_topic(&mut self, members: Option<usize>) {
        if members.is_none() && self.members.is_some() {
            for (from, run) in std::mem::take(&mut self.runs) {
                if let State::Wanted { wants, .. } = run.state {
                    for id in wants {
                        self.direct(id, from, run.to);
                    }
                }
            }
            self.gathered.clear();
            self.again.clear();
            self.due = None;
        }
        self.members = members;
    }

    /// A spoke wants `[from, to)`. `on_topic` says whether the topic serves it, `head` where the log begins.
    /// Returns whether what is on its way already is (part of) the answer.
    pub(crate) fn want(
        &mut self,
        now: Instant,
        id: Id,
        (from, to): (u64, u64),
        on_topic: bool,
        head: u64,
    ) -> bool {
        if from >= to {
            return false;
        }
        if self.members.is_none() || !on_topic {
            self.direct(id, from, to);
            return false;
        }
        if !self.has_place(id) {
            let direct = self.not_on_its_way(now, from, to);
            let held = direct != [(from, to)];
            for (from, to) in direct {
                self.direct(id, from, to);
            }
            return held;
        }
        let lost = head.clamp(from, to);
        if from < lost {
            self.direct(id, from, lost);
        }
        self.split(lost);
        self.split(to);
        let mut direct = Vec::new();
        let (mut gathered, mut held) = (false, false);
        let mut at = lost;
        while at < to {
            let next = self.runs.range(at..to).next().map(|(start, _)| *start);
            let run = self
                .runs
                .entry(at)
                .or_insert_with(|| Run::new(now, next.unwrap_or(to)));
            match run.want(now, id) {
                Wanted::Gathered => gathered = true,
                Wanted::Held => held = true,
                Wanted::Direct => extend(&mut direct, at, run.to),
            }
            at = run.to;
        }
        for (from, to) in direct {
            self.direct(id, from, to);
        }
        if gathered {
            *self.gathered.entry(id).or_default() += 1;
            self.due.get_or_insert(after(now, GATHER));
        }
        held
    }

    /// A spoke went: nothing is answered to it any more.
    pub(crate) fn left(&mut self, id: Id) {
        if self.gathered.remove(&id).is_none() {
            return;
        }
        for run in self.runs.values_mut() {
            if let State::Wanted { wants, .. } = &mut run.state {
                wants.retain(|other| *other != id);
            }
        }
    }

    /// The next answer, until there is none. `piece` says how much of a range goes at once; nothing, if the
    /// log has lost it.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        budget: &mut Budget<Payer<Id>>,
        piece: impl FnMut(u64, u64) -> Option<Piece>,
    ) -> Option<Answer<Id>> {
        if self.due.is_some_and(|due| due <= now) {
            self.work_off(now);
        }
        if let Some(answer) = self.out.pop_front() {
            return Some(answer);
        }
        self.next_again(now, budget, piece)
    }

    /// When [`poll`](Self::poll) may have something though nothing came in; when the budget calls for the
    /// topic, it has as well.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    fn direct(&mut self, id: Id, from: u64, to: u64) {
        self.out.push_back(Answer::Direct { id, from, to });
    }

    /// Whether another want can be gathered.
    fn has_place(&mut self, id: Id) -> bool {
        if self.gathered.get(&id).is_some_and(|n| *n >= MAX_OF_ONE) {
            return false;
        }
        // What one spoke alone wanted is forgotten first: by wanting this and that, none can make the hub
        // forget what many want.
        for got in [1, usize::MAX] {
            if self.has_room() {
                return true;
            }
            self.runs.retain(|_, run| !run.is_idle(got));
        }
        self.has_room()
    }

    fn has_room(&self) -> bool {
        // A want adds one at each end, and one for each hole between others.
        2 * self.runs.len() + 3 <= MAX_RUNS
    }

    /// What of `[from, to)` is not on the topic again already.
    fn not_on_its_way(&self, now: Instant, from: u64, to: u64) -> Vec<(u64, u64)> {
        let before = self.runs.range(..=from).next_back();
        let begin = before.map_or(from, |(start, _)| *start);
        let mut out = Vec::new();
        let mut at = from;
        for (&start, run) in self.runs.range(begin..to) {
            if run.is_on_its_way(now) && run.to > at {
                if at < start {
                    out.push((at, start));
                }
                at = run.to;
            }
        }
        if at < to {
            out.push((at, to));
        }
        out
    }

    /// Makes a run begin at `at` if one has it.
    fn split(&mut self, at: u64) {
        let Some((_, run)) = self.runs.range_mut(..at).next_back() else {
            return;
        };
        if run.to > at {
            let right = run.clone();
            run.to = at;
            self.runs.insert(at, right);
        }
    }

    /// Answers what was gathered.
    fn work_off(&mut self, now: Instant) {
        self.due = None;
        self.gathered.clear();
        let many = self.many();
        let mut direct: BTreeMap<Id, Vec<(u64, u64)>> = BTreeMap::new();
        let mut again = Vec::new();
        self.runs.retain(|_, run| !run.is_forgotten(now));
        for (&from, run) in &mut self.runs {
            let State::Wanted { wants, got } = &mut run.state else {
                continue;
            };
            if wants.is_empty() {
                continue;
            }
            if wants.len() + got.len() >= many {
                run.state = State::Queued;
                extend(&mut again, from, run.to);
                continue;
            }
            for id in wants.drain(..) {
                extend(direct.entry(id).or_default(), from, run.to);
                got.push(id);
            }
        }
        self.again.extend(again);
        for (id, ranges) in direct {
            for (from, to) in ranges {
                self.direct(id, from, to);
            }
        }
    }

    fn many(&self) -> usize {
        let members = self.members.unwrap_or_default();
        (members / 100).clamp(members.clamp(FEWEST, MANY), MANY_OF_LARGE)
    }

    fn next_again(
        &mut self,
        now: Instant,
        budget: &mut Budget<Payer<Id>>,
        mut piece: impl FnMut(u64, u64) -> Option<Piece>,
    ) -> Option<Answer<Id>> {
        while let Some(&(first, last)) = self.again.front() {
            let Some(piece) = piece(first, last) else {
                self.again.pop_front();
                self.forget(first, last);
                continue;
            };
            if !budget.ask(now, Payer::Topic) {
                return None;
            }
            let from = piece.from.clamp(first, last - 1);
            let to = piece.to.clamp(from + 1, last);
            budget.spend(piece.bytes);
            self.again.pop_front();
            if to < last {
                self.again.push_front((to, last));
            }
            // Links say what is lost, to whoever wants it again.
            self.forget(first, from);
            self.sent_again(now, from, to);
            let bytes = piece.bytes;
            return Some(Answer::Again(Piece { from, to, bytes }));
        }
        budget.leave(Payer::Topic);
        None
    }

    fn sent_again(&mut self, now: Instant, from: u64, to: u64) {
        let until = after(now, arrives_within(self.members.unwrap_or_default()));
        self.split(from);
        self.split(to);
        for (_, run) in self.runs.range_mut(from..to) {
            run.again = run.again.saturating_add(1);
            run.touched = now;
            run.state = State::OnItsWay { until };
        }
    }

    fn forget(&mut self, from: u64, to: u64) {
        self.split(from);
        self.split(to);
        self.runs.retain(|start, _| !(from..to).contains(start));
    }
}

impl<Id: Copy + Ord> Run<Id> {
    fn new(now: Instant, to: u64) -> Self {
        Self {
            to,
            state: State::nobody(),
            again: 0,
            touched: now,
        }
    }

    fn want(&mut self, now: Instant, id: Id) -> Wanted {
        self.touched = now;
        if self.is_on_its_way(now) {
            return Wanted::Held;
        }
        if !matches!(self.state, State::Wanted { .. }) {
            self.state = State::nobody();
        }
        match &mut self.state {
            State::Wanted { wants, got } if self.again < MAX_AGAIN => {
                // A spoke counts once, however often it asks; and more than are needed to see that they
                // are many are not remembered.
                got.retain(|other| *other != id);
                if wants.len() < MANY_OF_LARGE && !wants.contains(&id) {
                    wants.push(id);
                }
                Wanted::Gathered
            }
            _ => Wanted::Direct,
        }
    }

    fn is_on_its_way(&self, now: Instant) -> bool {
        match self.state {
            State::Wanted { .. } => false,
            State::Queued => true,
            State::OnItsWay { until } => until > now,
        }
    }

    /// Nobody waits for it, and no more than so many got it along their links.
    fn is_idle(&self, most: usize) -> bool {
        match &self.state {
            State::Wanted { wants, got } => {
                wants.is_empty() && self.again == 0 && got.len() <= most
            }
            _ => false,
        }
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        let idle = match &self.state {
            State::Wanted { wants, .. } => wants.is_empty(),
            _ => !self.is_on_its_way(now),
        };
        idle && now >= after(self.touched, REMEMBER)
    }
}

impl<Id> State<Id> {
    fn nobody() -> Self {
        Self::Wanted {
            wants: Vec::new(),
            got: Vec::new(),
        }
    }
}

/// What becomes of a want of one run.
enum Wanted {
    /// It is answered with others.
    Gathered,
    /// What is on its way already is the answer.
    Held,
    /// The topic did not bring it: it goes along the link at once.
    Direct,
}

/// Adds a range behind the others, to the last of them if it begins where that ends.
fn extend(ranges: &mut Vec<(u64, u64)>, from: u64, to: u64) {
    match ranges.last_mut() {
        Some((_, end)) if *end == from => *end = to,
        _ => ranges.push((from, to)),
    }
}

#[cfg(test)]
mod tests;

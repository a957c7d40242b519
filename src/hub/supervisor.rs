//! Whether the topic delivers, and what to do when it does not: sans-IO.
//!
//! The supervisor goes by what the spokes that acknowledge fast have. A few spokes that the topic does not
//! reach are served directly soon, which costs the hub little. When it reaches nobody, either the topic is
//! dead or everything is slow, and both look alike from here; so a few are served directly as a trial. If
//! those go on and the rest does not, it is the topic: it has failed, and is to be built anew. If they do
//! not go on either, a new topic would not help, and would be torn down in turn.
//!
//! The same goes for a topic that reaches only a few: when most of those that were on it, or have left it
//! because it did not reach them, go on directly, it has failed. Who has stopped goes on nowhere.
//!
//! Time in which the hub itself did not run does not count. After each failure the next trial lasts longer.
//!
//! Not for: building topics (the planner waits and begins anew), nor for who joins through whom.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Debug,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::pace::Has;
use crate::{
    fan_out::Path,
    wire::{
        broadcast::{BEACON_FIRST, WANT_JITTER, arrives_within},
        native::ACK_LITTLE_WITHIN,
    },
};

/// How often the supervisor looks, unless everyone has everything: then its time may pass more slowly.
pub(crate) const TICK: Duration = Duration::from_millis(200);

/// Through how many spokes the hub joins a topic on which it is nobody's neighbour.
pub(crate) const REJOIN_THROUGH: usize = 4;

/// A spoke that is behind and has not moved for this long is served directly,
const STUCK_AFTER: Duration = Duration::from_secs(2);
/// after this long, and what a [repair](repaired_within) takes, if it is one of a few: at most four, or a
/// quarter of those on the topic,
const FEW_STUCK_AFTER: Duration = Duration::from_millis(300).saturating_add(ACK_LITTLE_WITHIN);
const FEW: usize = 4;
/// and after this long if it is one of most: serving all of them directly costs what the topic saves.
const MOST_STUCK_AFTER: Duration = Duration::from_secs(6);
/// When some that were served around the topic go on, those that are not few have to wait for no longer
/// than this: it is the topic that does not reach them,
const MANY_STUCK_AFTER: Duration = Duration::from_secs(1);
/// if that was lately.
const LATELY: Duration = Duration::from_secs(5);
/// Who takes longer to go on directly had stopped; the topic may well have reached it.
const PROMPTLY: Duration = Duration::from_secs(1);

/// When nobody has moved for this long, and for what a repair takes, a few are served directly as a trial,
const TRIAL_AFTER: Duration = Duration::from_millis(300).saturating_add(ACK_LITTLE_WITHIN);
/// and a few more after as long again, if those do not move.
const NEXT_TRIAL_AFTER: Duration = Duration::from_secs(1);
/// A topic that has reached nobody for this long, though a trial goes on, has failed,
const DEAD_AFTER: Duration = Duration::from_millis(1200);
/// and not before it has had this long beyond what a repair takes.
const DEAD_AFTER_REPAIR: Duration = Duration::from_millis(300);
/// That doubles with each failure up to this, when those who wait for the outcome are served directly,
const DEAD_AFTER_AT_MOST: Duration = Duration::from_secs(5);
/// and is forgotten when a topic has done well for so long.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// How long the hub may be without a neighbour on the topic while spokes are on it.
const ALONE: Duration = Duration::from_secs(1);

/// How long spokes may be on their way to a topic that serves nobody.
const UNJOINED: Duration = Duration::from_secs(30);

/// How long the topic's cursor may stand still though nothing holds it back.
const CURSOR_STUCK: Duration = Duration::from_millis(1600);

/// A spoke wants what has not come within this, and what many want is sent again.
const WANTED_WITHIN: Duration = WANT_JITTER.saturating_add(Duration::from_millis(25));

/// How long after the last frame all have heard a beacon that shows what they lost.
const BEACON_WITHIN: Duration = BEACON_FIRST.saturating_mul(2);

/// How long after a frame that was lost spokes that want it again say that they have it at the latest, on a topic of so many:
/// what is behind for less has only lost a frame.
fn repaired_within(on_topic: usize) -> Duration {
    arrives_within(on_topic) + WANTED_WITHIN + ACK_LITTLE_WITHIN
}

/// A spoke that is there, as it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing<Id> {
    pub(crate) id: Id,
    pub(crate) has: Has,
    /// Whether it acknowledges fast.
    pub(crate) fast: bool,
    /// What serves it.
    pub(crate) path: Path,
    /// All below may have been repaired along its link.
    pub(crate) repaired_to: u64,
}

impl<Id> Standing<Id> {
    fn on_topic(&self) -> bool {
        self.path == Path::Gossip
    }

    /// So long, and `slow` longer if it is not one that acknowledges fast.
    fn patience(&self, patience: Duration, slow: Duration) -> Duration {
        patience + if self.fast { Duration::ZERO } else { slow }
    }
}

/// The topic, as it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopicStanding {
    /// Everything below was sent on it.
    pub(crate) sent: u64,
    /// Whether its cursor waits for spokes to acknowledge.
    pub(crate) held: bool,
    /// How many neighbours the hub has on it.
    pub(crate) neighbors: usize,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action<Id> {
    /// Serve this spoke directly: the topic does not reach it.
    ServeAround(Id),
    /// The hub has lost its neighbours: it has to join through spokes that are on the topic.
    Rejoin,
    /// The topic has failed.
    Fail(Failure),
}

/// Why a topic has failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// It reaches nobody or a few, though spokes go on that are served directly.
    Dead,
    /// Nobody gets on it.
    Unjoined,
    /// The hub is nobody's neighbour.
    Alone,
    /// Nothing more is sent on it.
    CursorStuck,
    /// The hub's part in it has ended, or panicked.
    Ended,
}

/// How the topic does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Condition {
    /// There is none, or nobody is on it.
    #[default]
    Idle,
    Alive,
    /// It reaches nobody, or the hub is nobody's neighbour.
    Stalled,
}

#[derive(Debug)]
pub(crate) struct Supervisor<Id> {
    rng: StdRng,
    /// Time that the hub has run.
    clock: Duration,
    looked: Option<Instant>,
    watched: BTreeMap<Id, Watched>,
    /// Who was on the topic, which does not reach it, and is not on it again.
    off: BTreeMap<Id, Off>,
    /// Since when there is nobody on the topic, though spokes join it.
    unjoined: Option<Duration>,
    /// Since when the topic has reached nobody.
    stalled: Option<Stall<Id>>,
    /// Since when the hub is nobody's neighbour.
    alone: Option<Duration>,
    /// Where the cursor stands, and since when.
    cursor: (u64, Duration),
    /// What was sent, and since when nothing more was.
    sent: (u64, Duration),
    /// When a fast spoke on the topic first wanted something again since it last reached one.
    wanted: Option<Duration>,
    dead_after: Duration,
    /// Since when there is this topic.
    begun: Option<Duration>,
    condition: Condition,
    out: VecDeque<Action<Id>>,
}

/// What a spoke on the topic had, and since when.
#[derive(Debug)]
struct Watched {
    has: Has,
    /// Whether it acknowledged fast: what it did at one pace is not to be judged by the other.
    fast: bool,
    since: Duration,
    /// When it was on the topic last.
    looked: Duration,
}

/// A spoke that the topic does not reach.
#[derive(Debug)]
struct Off {
    /// What it had, until it goes on directly.
    had: Option<Has>,
    /// Since when the topic has not reached it.
    since: Duration,
    /// When it went.
    at: Duration,
}

impl Off {
    fn goes_on(&self) -> bool {
        self.had.is_none()
    }
}

#[derive(Debug)]
struct Stall<Id> {
    since: Duration,
    next_trial: Duration,
    /// Who is served directly as a trial, and what it had then.
    trial: BTreeMap<Id, Has>,
}

impl<Id: Copy + Ord + Debug> Supervisor<Id> {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            clock: Duration::ZERO,
            looked: None,
            watched: BTreeMap::new(),
            off: BTreeMap::new(),
            unjoined: None,
            stalled: None,
            alone: None,
            cursor: (0, Duration::ZERO),
            sent: (0, Duration::ZERO),
            wanted: None,
            dead_after: DEAD_AFTER,
            begun: None,
            condition: Condition::Idle,
            out: VecDeque::new(),
        }
    }

    /// How the topic does.
    pub(crate) fn condition(&self) -> Condition {
        self.condition
    }

    /// What to do next, if anything.
    pub(crate) fn poll(&mut self) -> Option<Action<Id>> {
        self.out.pop_front()
    }

    /// The topic has begun, or is gone, for whatever reason. What was known of it is forgotten.
    pub(crate) fn topic_changed(&mut self, failed: bool) {
        let ran = self.begun.map(|at| self.clock.saturating_sub(at));
        if ran.is_some_and(|ran| ran >= GOOD_RUN) {
            self.dead_after = DEAD_AFTER;
        }
        if failed {
            self.dead_after = (self.dead_after * 2).min(DEAD_AFTER_AT_MOST);
        }
        self.watched.clear();
        self.off.clear();
        self.unjoined = None;
        self.stalled = None;
        self.wanted = None;
        self.alone = None;
        self.begun = None;
        self.condition = Condition::Idle;
        self.out.clear();
    }

    /// The number of the hub's neighbours has changed. `on_topic` is how many spokes the topic serves.
    pub(crate) fn neighbors(&mut self, neighbors: usize, on_topic: usize) {
        if neighbors > 0 || on_topic == 0 {
            self.alone = None;
        } else if self.alone.is_none() {
            self.alone = Some(self.clock);
            self.condition = Condition::Stalled;
            self.out.push_back(Action::Rejoin);
        }
    }

    /// A spoke that the topic served says that it does not reach it.
    pub(crate) fn isolated(&mut self, id: Id) {
        let since = self.stuck_since(id);
        let off = self.off.entry(id).or_insert(Off {
            had: None,
            since,
            at: self.clock,
        });
        off.had = None;
    }

    fn serve_around(&mut self, id: Id, has: Has) {
        let off = Off {
            had: Some(has),
            since: self.stuck_since(id),
            at: self.clock,
        };
        self.off.insert(id, off);
        self.out.push_back(Action::ServeAround(id));
    }

    /// Since when the spoke has not moved.
    fn stuck_since(&self, id: Id) -> Duration {
        let watched = self.watched.get(&id);
        watched.map_or(self.clock, |watched| watched.since)
    }

    /// A spoke that acknowledges fast, and that the topic serves, wants a range again: something has reached
    /// it that lies behind the range.
    pub(crate) fn wanted(&mut self) {
        self.wanted.get_or_insert(self.clock);
    }

    fn pass(&mut self, now: Instant) {
        let before = self.looked.replace(now);
        let passed = before.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.clock += passed.min(2 * TICK);
    }

    /// Until now everyone had everything, however long ago the last look was.
    pub(crate) fn rested(&mut self, now: Instant) {
        self.pass(now);
        for watched in self.watched.values_mut() {
            watched.since = self.clock;
        }
    }

    /// Looks at how things stand; every [`TICK`], or more rarely while everyone has everything. `tip` is
    /// the log's, `ack_every` how often a spoke acknowledges that is not a fast one.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        tip: u64,
        topic: Option<TopicStanding>,
        spokes: &[Standing<Id>],
        ack_every: Duration,
    ) {
        self.pass(now);
        let Some(topic) = topic else {
            return;
        };
        self.begun.get_or_insert(self.clock);
        let on_topic: Vec<&Standing<Id>> = spokes.iter().filter(|spoke| spoke.on_topic()).collect();
        if topic.sent != self.sent.0 {
            self.sent = (topic.sent, self.clock);
        }
        self.watch(&on_topic, topic.sent);
        self.note_who_goes_on(spokes, ack_every);
        self.neighbors(topic.neighbors, on_topic.len());
        let failure = self
            .failure(tip, topic, &on_topic)
            .or_else(|| self.look_for_stall(&on_topic, spokes))
            .or_else(|| self.look_who_is_left(on_topic.len()))
            .or_else(|| self.look_who_joins(spokes));
        if let Some(failure) = failure {
            self.condition = Condition::Stalled;
            return self.out.push_back(Action::Fail(failure));
        }
        // It counts from when it released something, which may have had to wait for a beacon.
        self.find_stuck(&on_topic, ack_every + BEACON_WITHIN + TICK);
        let nobody = on_topic.is_empty();
        self.condition = if nobody && self.off.is_empty() {
            Condition::Idle
        } else if nobody || self.alone.is_some() || self.stalled.is_some() {
            Condition::Stalled
        } else {
            Condition::Alive
        };
    }

    /// Notes since when each has not moved though it lacks something that was sent.
    fn watch(&mut self, on_topic: &[&Standing<Id>], sent: u64) {
        let clock = self.clock;
        for spoke in on_topic {
            let (has, fast) = (spoke.has, spoke.fast);
            let new = Watched {
                has,
                fast,
                since: clock,
                looked: clock,
            };
            let watched = self.watched.entry(spoke.id).or_insert(new);
            // What its link brought shows nothing of the topic. Once it has all of that, parts that come in are of what follows.
            let repaired = if has.acked == watched.has.acked {
                has.acked < spoke.repaired_to
            } else {
                has.acked <= spoke.repaired_to
            };
            let moved = watched.has != has && !repaired;
            if moved || watched.fast != fast || has.acked >= sent {
                watched.since = clock;
            }
            (watched.has, watched.fast, watched.looked) = (has, fast, clock);
        }
        if self.watched.len() > on_topic.len() {
            self.watched.retain(|_, watched| watched.looked == clock);
        }
    }

    /// Notes who goes on directly of those that the topic does not reach, and forgets who is gone or on it
    /// again.
    fn note_who_goes_on(&mut self, spokes: &[Standing<Id>], ack_every: Duration) {
        if self.off.is_empty() {
            return;
        }
        let mut off = std::mem::take(&mut self.off);
        // One that came anew has not been told to join yet.
        for spoke in spokes.iter().filter(|spoke| spoke.path == Path::Joining) {
            let Some(mut spoke_off) = off.remove(&spoke.id) else {
                continue;
            };
            if spoke_off.had.is_some_and(|had| had != spoke.has) {
                spoke_off.had = None;
                if self.since(spoke_off.at) > spoke.patience(PROMPTLY, ack_every) {
                    spoke_off.since = self.clock;
                }
            }
            self.off.insert(spoke.id, spoke_off);
        }
    }

    /// Finds out whether the topic has lost most of those that were on it.
    fn look_who_is_left(&self, on_topic: usize) -> Option<Failure> {
        let all = on_topic + self.off.len();
        let going = self.off.values().filter(|off| off.goes_on());
        let mut since: Vec<_> = going.map(|off| off.since).collect();
        since.sort_unstable();
        // When the one went that made it most of them.
        let lost = *since.get(all / 2)?;
        (self.since(lost) >= self.dead_after(all, lost)).then_some(Failure::Dead)
    }

    /// How long a topic of so many has to reach anybody, when it did last so long ago.
    fn dead_after(&self, on_topic: usize, since: Duration) -> Duration {
        let repaired = self.repaired_within(on_topic, since) + DEAD_AFTER_REPAIR;
        self.dead_after.max(repaired)
    }

    /// Finds out whether nobody gets on the topic.
    fn look_who_joins(&mut self, spokes: &[Standing<Id>]) -> Option<Failure> {
        let stopped = |id: &Id| self.off.get(id).is_some_and(|off| !off.goes_on());
        let joins = |s: &Standing<Id>| s.path == Path::Joining && !stopped(&s.id);
        if spokes.iter().any(Standing::on_topic) || !spokes.iter().any(joins) {
            self.unjoined = None;
            return None;
        }
        let since = *self.unjoined.get_or_insert(self.clock);
        (self.since(since) >= UNJOINED).then_some(Failure::Unjoined)
    }

    /// For how long the spoke has not moved though it lacks something.
    fn still(&self, spoke: &Standing<Id>) -> Duration {
        let watched = self.watched.get(&spoke.id);
        watched.map_or(Duration::ZERO, |watched| self.since(watched.since))
    }

    fn since(&self, at: Duration) -> Duration {
        self.clock.saturating_sub(at)
    }

    /// What cannot be blamed on spokes.
    fn failure(
        &mut self,
        tip: u64,
        topic: TopicStanding,
        on_topic: &[&Standing<Id>],
    ) -> Option<Failure> {
        if self.alone.is_some_and(|at| self.since(at) >= ALONE) {
            return Some(Failure::Alone);
        }
        let behind = |spoke: &&&Standing<Id>| spoke.fast && spoke.has.acked < topic.sent;
        let goes_on = self.cursor.0 != topic.sent || topic.sent >= tip;
        let waits = topic.held || topic.neighbors == 0 || on_topic.iter().any(|s| behind(&s));
        if goes_on || waits {
            self.cursor = (topic.sent, self.clock);
        }
        (self.since(self.cursor.1) >= CURSOR_STUCK).then_some(Failure::CursorStuck)
    }

    /// Finds out whether the topic reaches anybody.
    fn look_for_stall(
        &mut self,
        on_topic: &[&Standing<Id>],
        all: &[Standing<Id>],
    ) -> Option<Failure> {
        let fast: Vec<_> = on_topic.iter().filter(|spoke| spoke.fast).collect();
        let still = fast.iter().map(|spoke| self.still(spoke)).min();
        let clock = self.clock;
        let moved = clock.saturating_sub(still.unwrap_or_default());
        self.wanted = self.wanted.filter(|at| *at >= moved);
        // What is wanted goes on the topic again, and has to be given the time. Once: what is in vain is
        // wanted again.
        let since = self.wanted.unwrap_or(moved);
        let repaired = self.repaired_within(on_topic.len(), moved);
        let dead_after = self.dead_after(on_topic.len(), moved);
        if still.is_none() || self.since(since) < TRIAL_AFTER.max(repaired) {
            self.stalled = None;
            return None;
        }
        let stall = self.stalled.get_or_insert(Stall {
            since,
            next_trial: clock,
            trial: BTreeMap::new(),
        });
        let untried: Vec<_> = fast
            .iter()
            .filter(|spoke| !stall.trial.contains_key(&spoke.id))
            .collect();
        let goes_on = |spoke: &Standing<Id>| {
            let had = stall.trial.get(&spoke.id);
            had.is_some_and(|had| *had != spoke.has)
        };
        if all.iter().any(goes_on) {
            let dead = clock.saturating_sub(stall.since) >= dead_after && !untried.is_empty();
            return dead.then_some(Failure::Dead);
        }
        if clock >= stall.next_trial {
            stall.next_trial = clock + NEXT_TRIAL_AFTER;
            // One at least has to stay, to show whether the topic reaches it; but not one that is alone.
            let only = stall.trial.is_empty() && untried.len() == 1;
            let most = FEW.min(untried.len().saturating_sub(1)).max(only.into());
            let tried: Vec<_> = untried.sample(&mut self.rng, most).collect();
            stall.trial.extend(tried.iter().map(|s| (s.id, s.has)));
            for spoke in tried {
                self.serve_around(spoke.id, spoke.has);
            }
        }
        None
    }

    /// See the function. A spoke that lost the last frame hears of it with the next beacon.
    fn repaired_within(&self, on_topic: usize, since: Duration) -> Duration {
        // Who had everything is last seen so a look before.
        let idle = self.sent.1 <= since + 2 * TICK;
        repaired_within(on_topic) + if idle { BEACON_WITHIN } else { Duration::ZERO }
    }

    /// Serves directly who is on the topic, is behind, and does not move: soon if only a few are, which
    /// costs the hub little; later if it is many, who may merely be short of CPU or of bandwidth. One that
    /// is not fast may take `slow` longer to say what it has.
    fn find_stuck(&mut self, on_topic: &[&Standing<Id>], slow: Duration) {
        let mut stuck = Vec::new();
        for spoke in on_topic {
            let still = self.still(spoke);
            let repaired = self.repaired_within(on_topic.len(), self.clock.saturating_sub(still));
            let patience = FEW_STUCK_AFTER.max(repaired);
            if still >= spoke.patience(patience, slow) {
                stuck.push((spoke, still));
            }
        }
        // When nobody moves, a trial shows what to do, once what is wanted again has had its time.
        let all = self.stalled.is_some() || self.wanted.is_some();
        let few = stuck.len() <= (on_topic.len() / FEW).max(FEW) && !all;
        let lately = |at| self.since(at) < LATELY + slow;
        let goes_on = (self.off.values()).any(|off| off.goes_on() && lately(off.since));
        let patience = if few {
            FEW_STUCK_AFTER
        } else if goes_on && !all {
            MANY_STUCK_AFTER
        } else if stuck.len() * 2 <= on_topic.len() {
            STUCK_AFTER
        } else {
            MOST_STUCK_AFTER
        };
        // Whether it is the topic that does not reach them, a few of them show.
        let tried = |off: &Off| !off.goes_on() && self.since(off.at) < NEXT_TRIAL_AFTER;
        let tries = !few && !goes_on && !all && !self.off.values().any(tried);
        let on_trial: BTreeSet<Id> = if tries {
            // Who is fast says soon whether it goes on.
            let soonest = stuck.iter().any(|(spoke, _)| spoke.fast);
            let stuck = stuck.iter().filter(|(spoke, _)| spoke.fast == soonest);
            let stuck: Vec<Id> = stuck.map(|(spoke, _)| spoke.id).collect();
            stuck.sample(&mut self.rng, FEW).copied().collect()
        } else {
            BTreeSet::new()
        };
        for (spoke, still) in stuck {
            if still >= spoke.patience(patience, slow) || on_trial.contains(&spoke.id) {
                self.serve_around(spoke.id, spoke.has);
            }
        }
    }
}

#[cfg(test)]
mod tests;

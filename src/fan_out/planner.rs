//! Decides for each spoke whether its direct cursor runs, and for all whether there is a topic.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};

use super::{
    FanOut, Path,
    sample::SampleSet,
    traffic::{Recent, Traffic},
};
use crate::instant::after;

/// A topic that ran this long before it failed was a good one: the backoff begins anew.
const GOOD_RUN: Duration = Duration::from_secs(60);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(60);
/// A spoke that does not get on the tree is told again this rarely in the end.
const LAST_RETRY: Duration = Duration::from_secs(120);

/// A large tree takes in one for so many that are on it, at once and a second.
const GROWTH: usize = 20;

/// The bounds of a [`Planner`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannerConfig {
    /// How many spokes a second are told to join, a tenth of that at once, while the tree is small; a twentieth of those
    /// that are on it once that is more, so that a large mesh is not ten minutes on its way. Zero counts as one.
    pub(crate) joins_per_s: u32,
    /// How many spokes may be on their way to the tree at once while it is small; as many as are on it
    /// once it is larger, up to four times this, or a twentieth of it. So a flash crowd does not fight over a
    /// few neighbours, and a large mesh of which some are replaced all the time keeps up.
    pub(crate) joins_at_once: usize,
    /// How many spokes a joining one is given to begin with.
    pub(crate) bootstrap_peers: usize,
    /// After how long a spoke that is not on the tree is told again; twice that after the next time, and so on.
    pub(crate) join_retry: Duration,
}

impl Default for PlannerConfig {
    fn default() -> Self {
        Self {
            joins_per_s: 200,
            joins_at_once: 16,
            bootstrap_peers: 4,
            join_retry: Duration::from_secs(10),
        }
    }
}

/// What the hub is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision<Id> {
    /// Open the topic and run the gossip cursor.
    StartTopic,
    /// Close the topic: every spoke has been told to leave.
    StopTopic,
    /// Tell the spoke to join the topic through these spokes, and through the hub if so said. There is
    /// always someone to join through: the hub only while few spokes are on the tree or, introduced by it,
    /// on their way. It may be told again, with others.
    TellJoin {
        id: Id,
        peers: Vec<Id>,
        via_hub: bool,
    },
    /// Tell the spoke to leave the topic.
    TellLeave { id: Id },
    /// Stop the spoke's direct cursor.
    Park { id: Id },
    /// Run the spoke's direct cursor again, from what the spoke is known to have.
    Unpark { id: Id },
}

/// How many spokes are served how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Served directly, though they can gossip.
    pub(crate) direct: usize,
    /// Told to join the topic, and served directly still.
    pub(crate) joining: usize,
    /// Served by the topic.
    pub(crate) gossip: usize,
    /// Served directly, since they cannot gossip or will not.
    pub(crate) incapable: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Stopped,
    Running,
    /// Everyone goes back to the direct stream; goes on to `Stopped` in any case.
    Closing,
}

#[derive(Debug, Default)]
struct Spoke {
    capable: bool,
    /// Its place in the queue of those to be told to join.
    ticket: Option<u64>,
    /// When it is queued again, having been told.
    retry: Option<Instant>,
    /// It has been told once since it came, or was last on the tree.
    told: bool,
    /// When it was told last.
    told_at: Option<Instant>,
    /// How often it was told since it was last on the tree.
    tries: u32,
}

/// See the [module](super).
///
/// After everything that comes in, and at [`deadline`](Self::deadline), call [`poll`](Self::poll) until it
/// gives nothing, and do what it says in that order.
#[derive(Debug)]
pub(crate) struct Planner<Id> {
    fan_out: FanOut,
    config: PlannerConfig,
    rng: StdRng,
    spokes: BTreeMap<Id, Spoke>,
    capable: usize,
    recent: Recent,
    /// Whether there should be a topic.
    gossip: bool,
    /// Since when there is reason to change that.
    reason_since: Option<Instant>,
    phase: Phase,
    started: Option<Instant>,
    /// No topic before this: the last one failed.
    not_before: Option<Instant>,
    backoff: Duration,
    /// Who is to be told to join, by ticket: oldest first.
    queue: BTreeMap<u64, Id>,
    next_ticket: u64,
    retries: BTreeSet<(Instant, Id)>,
    /// When the joins so far would be done at an even rate.
    joins_until: Option<Instant>,
    /// Have been told to join and not to leave. `parked` and `tree` are among them.
    members: BTreeSet<Id>,
    /// Their direct cursor does not run.
    parked: BTreeSet<Id>,
    /// They say that they are on the tree.
    tree: SampleSet<Id>,
    /// Told for the first time, not long ago, and not on the tree yet.
    fresh: SampleSet<Id>,
    /// Those of `fresh` which were told to join through the hub.
    introduced: BTreeSet<Id>,
    /// Spokes that are on the tree or parked, but not both.
    unsettled: BTreeSet<Id>,
}

impl<Id: Copy + Ord + Debug> Planner<Id> {
    /// A planner without spokes, with everything direct.
    pub(crate) fn new(fan_out: FanOut, config: PlannerConfig, seed: u64) -> Self {
        Self {
            fan_out,
            config,
            rng: StdRng::seed_from_u64(seed),
            spokes: BTreeMap::new(),
            capable: 0,
            recent: Recent::default(),
            gossip: false,
            reason_since: None,
            phase: Phase::Stopped,
            started: None,
            not_before: None,
            backoff: FIRST_BACKOFF,
            queue: BTreeMap::new(),
            next_ticket: 0,
            retries: BTreeSet::new(),
            joins_until: None,
            members: BTreeSet::new(),
            parked: BTreeSet::new(),
            tree: SampleSet::new(),
            fresh: SampleSet::new(),
            introduced: BTreeSet::new(),
            unsettled: BTreeSet::new(),
        }
    }

    /// A spoke came, served directly. One that is there already counts as a new one.
    pub(crate) fn spoke_joined(&mut self, now: Instant, id: Id, gossip_capable: bool) {
        self.forget(id);
        let spoke = Spoke {
            capable: gossip_capable,
            ..Spoke::default()
        };
        self.spokes.insert(id, spoke);
        if gossip_capable {
            self.capable += 1;
            if self.phase == Phase::Running {
                self.enqueue(id);
            }
        }
        self.weigh(now);
    }

    /// A spoke went. Nothing more is decided about it.
    pub(crate) fn spoke_left(&mut self, now: Instant, id: Id) {
        self.forget(id);
        self.weigh(now);
    }

    fn forget(&mut self, id: Id) {
        self.cancel_join(id);
        if self.spokes.remove(&id).is_some_and(|spoke| spoke.capable) {
            self.capable = self.capable.saturating_sub(1);
        }
        self.members.remove(&id);
        self.parked.remove(&id);
        self.tree.remove(id);
        self.unsettled.remove(&id);
    }

    /// A spoke says that it is on the tree: its direct cursor is parked. Of no effect for one that has not
    /// been told to join.
    pub(crate) fn on_tree(&mut self, _now: Instant, id: Id) {
        if self.phase != Phase::Running || !self.members.contains(&id) {
            return;
        }
        self.cancel_join(id);
        if let Some(spoke) = self.spokes.get_mut(&id) {
            spoke.told = false;
            spoke.tries = 0;
        }
        self.tree.insert(id);
        self.note_settled(id);
    }

    /// The topic does not reach a spoke, as it says, or as the hub sees. It is served directly, remains a
    /// member of the topic, may say that it is on the tree again, and is told of others to join through: at
    /// once, unless it was told not long ago. Says whether it was on the tree.
    pub(crate) fn isolated(&mut self, now: Instant, id: Id) -> bool {
        if self.phase != Phase::Running || !self.tree.contains(id) {
            return false;
        }
        self.tree.remove(id);
        let told = self.spokes.get(&id).and_then(|spoke| spoke.told_at);
        match told.map(|at| after(at, self.config.join_retry)) {
            Some(at) if at > now => self.retry_at(at, id),
            _ => {
                // It may have stopped: it is not to take the place of one that comes.
                if let Some(spoke) = self.spokes.get_mut(&id) {
                    spoke.told = true;
                }
                self.enqueue(id);
            }
        }
        self.note_settled(id);
        true
    }

    fn note_settled(&mut self, id: Id) {
        if self.tree.contains(id) == self.parked.contains(&id) {
            self.unsettled.remove(&id);
        } else {
            self.unsettled.insert(id);
        }
    }

    /// What the hub saw since this was said last.
    pub(crate) fn traffic(&mut self, now: Instant, traffic: Traffic) {
        self.recent.add(now, traffic);
        self.weigh(now);
    }

    /// Changes the strategy. [`FanOut::Auto`] begins with what is so now.
    pub(crate) fn set_fan_out(&mut self, now: Instant, fan_out: FanOut) {
        self.fan_out = fan_out;
        self.reason_since = None;
        self.weigh(now);
    }

    /// The topic does not deliver: everyone is served directly, and after a backoff another one is tried.
    pub(crate) fn topic_failed(&mut self, now: Instant) {
        if self.phase != Phase::Running {
            return;
        }
        let ran = self.started.map(|at| now.saturating_duration_since(at));
        if ran.is_some_and(|ran| ran >= GOOD_RUN) {
            self.backoff = FIRST_BACKOFF;
        }
        self.not_before = Some(after(now, self.backoff));
        self.backoff = self.backoff.saturating_mul(2).min(LAST_BACKOFF);
        self.close();
    }

    /// The topic has ended though nothing is wrong with it: everyone is served directly until the next one
    /// begins, at once.
    pub(crate) fn topic_over(&mut self) {
        if self.phase == Phase::Running {
            self.close();
        }
    }

    /// Works out whether there should be a topic.
    fn weigh(&mut self, now: Instant) {
        let (wants, settle) = match &self.fan_out {
            FanOut::Direct => (false, Duration::ZERO),
            FanOut::Gossip => (true, Duration::ZERO),
            FanOut::Auto(auto) => {
                let (spokes, lately) = (self.spokes.len(), self.recent.get());
                let wants = auto.wants_gossip(self.gossip, spokes, self.capable, lately);
                (wants, auto.settle)
            }
        };
        if wants == self.gossip {
            self.reason_since = None;
            return;
        }
        let since = *self.reason_since.get_or_insert(now);
        if now >= after(since, settle) {
            self.gossip = wants;
            self.reason_since = None;
        }
    }

    /// Gives the next thing to do, until there is nothing more.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Decision<Id>> {
        self.weigh(now);
        if self.phase == Phase::Running && !self.gossip {
            self.close();
        }
        match self.phase {
            Phase::Stopped => self.start(now),
            Phase::Running => self.run(now),
            Phase::Closing => Some(self.clear()),
        }
    }

    fn start(&mut self, now: Instant) -> Option<Decision<Id>> {
        if !self.gossip || self.not_before.is_some_and(|at| at > now) {
            return None;
        }
        self.phase = Phase::Running;
        self.started = Some(now);
        let capable = self.spokes.iter().filter(|(_, spoke)| spoke.capable);
        for id in capable.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.enqueue(id);
        }
        Some(Decision::StartTopic)
    }

    fn run(&mut self, now: Instant) -> Option<Decision<Id>> {
        if let Some(id) = self.unsettled.pop_first() {
            return Some(if self.parked.remove(&id) {
                Decision::Unpark { id }
            } else {
                self.parked.insert(id);
                Decision::Park { id }
            });
        }
        while let Some(&(at, id)) = self.retries.first()
            && at <= now
        {
            self.cancel_join(id);
            self.enqueue(id);
        }
        if !self.has_room_to_join() || self.next_join().is_some_and(|at| at > now) {
            return None;
        }
        let (_, id) = self.queue.pop_first()?;
        let each = self.join_interval();
        let from = self.joins_until.map_or(now, |until| until.max(now));
        self.joins_until = Some(after(from, each));
        Some(self.tell_join(now, id))
    }

    fn tell_join(&mut self, now: Instant, id: Id) -> Decision<Id> {
        let most = self.config.bootstrap_peers;
        let mut peers = Vec::new();
        self.tree.sample(&mut self.rng, Some(id), most, &mut peers);
        // Those that have just been told are not on the tree yet, but on their way.
        self.fresh.sample(&mut self.rng, Some(id), most, &mut peers);
        let seeds = self.tree.len().saturating_add(self.introduced.len());
        let via_hub = seeds < most || peers.is_empty();
        if let Some(spoke) = self.spokes.get_mut(&id) {
            spoke.ticket = None;
            spoke.told_at = Some(now);
            spoke.tries = spoke.tries.saturating_add(1);
            if !spoke.told {
                // One that was told before and did not get there is no help to others: counted among these,
                // a few broken spokes would keep everyone from the hub, and so from the tree.
                spoke.told = true;
                self.fresh.insert(id);
                if via_hub {
                    self.introduced.insert(id);
                }
            }
        }
        self.members.insert(id);
        self.retry_later(now, id);
        Decision::TellJoin { id, peers, via_hub }
    }

    /// One step of taking the topic down.
    fn clear(&mut self) -> Decision<Id> {
        if let Some(id) = self.parked.pop_first() {
            return Decision::Unpark { id };
        }
        if let Some(id) = self.members.pop_first() {
            return Decision::TellLeave { id };
        }
        self.phase = Phase::Stopped;
        Decision::StopTopic
    }

    fn close(&mut self) {
        self.phase = Phase::Closing;
        self.queue.clear();
        self.retries.clear();
        self.unsettled.clear();
        self.tree = SampleSet::new();
        self.fresh = SampleSet::new();
        self.introduced.clear();
        for spoke in self.spokes.values_mut() {
            *spoke = Spoke {
                capable: spoke.capable,
                ..Spoke::default()
            };
        }
    }

    fn enqueue(&mut self, id: Id) {
        let Some(spoke) = self.spokes.get_mut(&id) else {
            return;
        };
        let ticket = self.next_ticket;
        self.next_ticket = self.next_ticket.wrapping_add(1);
        spoke.ticket = Some(ticket);
        self.queue.insert(ticket, id);
    }

    fn retry_later(&mut self, now: Instant, id: Id) {
        let tries = self.spokes.get(&id).map_or(0, |spoke| spoke.tries);
        let doubled = 1u32 << tries.saturating_sub(1).min(16);
        let wait = self.config.join_retry.saturating_mul(doubled);
        let longest = LAST_RETRY.max(self.config.join_retry);
        self.retry_at(after(now, wait.min(longest)), id);
    }

    fn retry_at(&mut self, at: Instant, id: Id) {
        if let Some(spoke) = self.spokes.get_mut(&id) {
            spoke.retry = Some(at);
            self.retries.insert((at, id));
        }
    }

    /// Takes a spoke out of the queue, and out of those that are on their way.
    fn cancel_join(&mut self, id: Id) {
        if let Some(spoke) = self.spokes.get_mut(&id) {
            if let Some(ticket) = spoke.ticket.take() {
                self.queue.remove(&ticket);
            }
            if let Some(at) = spoke.retry.take() {
                self.retries.remove(&(at, id));
            }
        }
        self.fresh.remove(id);
        self.introduced.remove(&id);
    }

    /// Whether one more may be on its way. Who takes too long makes room for the next.
    fn has_room_to_join(&self) -> bool {
        let on_tree = self.tree.len();
        let few = self.config.joins_at_once;
        let most = on_tree.clamp(few, few.saturating_mul(4).max(on_tree / GROWTH));
        self.fresh.len() < most
    }

    fn joins_per_s(&self) -> u32 {
        let grows = u32::try_from(self.tree.len() / GROWTH).unwrap_or(u32::MAX);
        self.config.joins_per_s.max(grows).max(1)
    }

    fn join_interval(&self) -> Duration {
        Duration::from_secs(1) / self.joins_per_s()
    }

    /// When the next spoke may be told to join; any time if there is none.
    fn next_join(&self) -> Option<Instant> {
        let at_once = (self.joins_per_s() / 10).max(1);
        let ahead = self.join_interval().saturating_mul(at_once - 1);
        let until = self.joins_until?;
        Some(until.checked_sub(ahead).unwrap_or(until))
    }

    /// When [`poll`](Self::poll) may have something though nothing came in. Holds once it gave nothing.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let settled = match (&self.fan_out, self.reason_since) {
            (FanOut::Auto(auto), Some(since)) => Some(after(since, auto.settle)),
            _ => None,
        };
        let (start, retry, join) = match self.phase {
            Phase::Stopped => (self.not_before.filter(|_| self.gossip), None, None),
            Phase::Running => {
                let retry = self.retries.first().map(|(at, _)| *at);
                let may_join = !self.queue.is_empty() && self.has_room_to_join();
                let join = self.next_join().filter(|_| may_join);
                (None, retry, join)
            }
            Phase::Closing => (None, None, None),
        };
        [settled, start, retry, join].into_iter().flatten().min()
    }

    /// Some spokes that are on the tree, drawn at random.
    pub(crate) fn sample_tree(&mut self, most: usize) -> Vec<Id> {
        let mut out = Vec::new();
        self.tree.sample(&mut self.rng, None, most, &mut out);
        out
    }

    /// How many spokes are on their way to the tree for the first time, and not slow to get there.
    pub(crate) fn arriving(&self) -> usize {
        self.fresh.len()
    }

    /// By which path a spoke is served, if it is there.
    pub(crate) fn path(&self, id: Id) -> Option<Path> {
        self.spokes.get(&id)?;
        Some(if self.parked.contains(&id) {
            Path::Gossip
        } else if self.members.contains(&id) {
            Path::Joining
        } else {
            Path::Direct
        })
    }

    /// How many spokes are served how.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            direct: self.capable.saturating_sub(self.members.len()),
            joining: self.members.len().saturating_sub(self.parked.len()),
            gossip: self.parked.len(),
            incapable: self.spokes.len().saturating_sub(self.capable),
        }
    }

    /// Whether there is to be a topic, now or once the last failure is long enough ago.
    pub(crate) fn wants_topic(&self) -> bool {
        self.gossip
    }

    /// Whether there is a topic that is not being taken down.
    pub(crate) fn gossiping(&self) -> bool {
        self.phase == Phase::Running
    }
}

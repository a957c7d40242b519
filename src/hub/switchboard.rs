//! The task that decides which path serves which spoke, and carries it out.
//!
//! It owns the [`Planner`] and the topic. Links only tell it what happened ([`Note`]); it parks and
//! unparks their cursors, tells spokes to join and leave the topic, starts and stops the gossip link,
//! shares out the acknowledgements, and goes on serving directly whoever the topic does not reach.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use iroh::EndpointAddr;
use n0_future::FutureExt;
use tokio::{
    sync::{Mutex, mpsc},
    time::sleep_until,
};
use tracing::{debug, error, warn};

use super::{
    Inner,
    ack_share::{AckShare, Acker, Share},
    desk::TopicOrder,
    gossip_link::{Audience, GossipLink, LinkEvent},
    health::{self, TopicState},
    link::Link,
    repairs::{Answer, Payer, Repairs, piece_of},
    spokes::SpokeChange,
    supervisor::{Action, Condition, Failure, REJOIN_THROUGH, Standing, Supervisor, TICK},
};
use crate::{
    fan_out::{Decision, FanOut, Path, Planner, PlannerConfig, Traffic},
    instant::after,
    metrics::events,
    protocol::Protocol,
    spoke_id::SpokeId,
    wire::native::{Rekey, Topic},
};

/// Something happened that may change how spokes are served.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Note {
    /// It came, went, changed its link, or can be on the topic now: the roster tells.
    Spoke(SpokeId),
    /// The spoke says, on the link with this number, that this topic serves it.
    OnTree(SpokeId, u64, [u8; 32]),
    /// The spoke wants to be served directly.
    OffTree(SpokeId, u64),
    /// The spoke wants `[from, to)`, which exists.
    Want {
        id: SpokeId,
        from: u64,
        to: u64,
    },
    /// The spoke has, on the link with this number, the topic's keys of this generation.
    Rekeyed {
        id: SpokeId,
        link: u64,
        generation: u32,
    },
    FanOut(FanOut),
    /// For tests: the switchboard panics.
    Panic,
}

/// How many notes may wait; who has one more waits.
pub(super) const NOTES: usize = 1024;
/// How many are looked at before the rest of the work.
const NOTES_AT_ONCE: usize = 64;

/// With more members than this, only those that acknowledge fast are asked whether they have new keys.
pub(crate) const CONFIRM_ALL: usize = 256;

/// How often, at most, the topic's key is changed so that newcomers may have it who may not read everything
/// that was sealed under it.
const FOR_NEWCOMERS: Duration = Duration::from_secs(5);

/// How often the spokes are looked at while everyone has everything and nothing happens: a look at many that are idle costs more
/// than they do.
const REST: Duration = Duration::from_secs(1);

/// How often the gauges of the hub's health are set; who scrapes them does so more rarely.
const OBSERVE_EVERY: Duration = Duration::from_secs(1);

/// Outlives a switchboard that panics.
type Notes = Arc<Mutex<mpsc::Receiver<Note>>>;

/// Runs a switchboard until the hub ends. Should it panic, another one takes over: without one, nothing
/// would look after the spokes any more.
pub(super) async fn run(hub: Arc<Inner>, notes: mpsc::Receiver<Note>) {
    let notes = Arc::new(Mutex::new(notes));
    let mut switchboard = Switchboard::new(hub.clone(), notes.clone());
    while AssertUnwindSafe(switchboard.run())
        .catch_unwind()
        .await
        .is_err()
    {
        error!("the switchboard of the hub panicked; another one takes over");
        hub.metrics.health.healthy.set(0);
        hub.metrics.health.panics.inc();
        switchboard = Switchboard::new(hub.clone(), notes.clone());
        switchboard.take_over();
    }
    hub.metrics.health.healthy.set(0);
}

/// How long a spoke that leaves the topic may take to say from where on it is to be served.
pub(crate) const LEAVES_WITHIN: Duration = Duration::from_millis(300);

pub(super) struct Switchboard {
    hub: Arc<Inner>,
    notes: Notes,
    planner: Planner<SpokeId>,
    repairs: Repairs<SpokeId>,
    /// The links that the planner knows of, and whether it may put them on the topic. What it decides is
    /// for these, whatever has become of them.
    links: BTreeMap<SpokeId, (Arc<Link>, bool)>,
    topic: Option<GossipLink>,
    supervisor: Supervisor<SpokeId>,
    acks: AckShare,
    /// Whose cursor is to run, now that they leave the topic, and when.
    leaving: VecDeque<(Instant, Arc<Link>)>,
    bytes_before: u64,
    /// The last topic has failed, and no other one has begun.
    failed: bool,
    /// When the key was last changed for newcomers.
    changed_for_newcomers: Option<Instant>,
    /// When the gauges of the hub's health were last set.
    observed: Option<Instant>,
    /// When the spokes were last looked at, and when they are to be again.
    looked: Instant,
    next_look: Instant,
    /// Everyone has everything: the next look can wait, unless something happens.
    rests: bool,
}

impl Switchboard {
    fn new(hub: Arc<Inner>, notes: Notes) -> Self {
        let bytes_before = hub.log.bytes_appended();
        let planner = Planner::new(
            hub.config.fan_out.clone(),
            PlannerConfig::default(),
            rand::random(),
        );
        Self {
            hub,
            notes,
            planner,
            repairs: Repairs::new(),
            links: BTreeMap::new(),
            topic: None,
            supervisor: Supervisor::new(rand::random()),
            acks: AckShare::default(),
            leaving: VecDeque::new(),
            bytes_before,
            failed: false,
            changed_for_newcomers: None,
            observed: None,
            looked: Instant::now(),
            next_look: Instant::now(),
            rests: false,
        }
    }

    async fn run(mut self) {
        let notes = self.notes.clone();
        let mut notes = notes.lock().await;
        let mut some = Vec::new();
        let mut tip = self.hub.log.watch_tip();
        loop {
            self.carry_out();
            self.answer_wants();
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = self.hub.cancel.cancelled() => break,
                // Before the notes, of which one spoke can send many.
                () = self.hub.revoked.notified() => self.let_go(),
                () = sleep_until(self.next_look.into()) => {
                    tip.mark_unchanged();
                    self.tick();
                    continue;
                }
                // At once: from now on it counts how long each takes.
                _ = tip.changed(), if self.rests => {
                    self.tick();
                    continue;
                }
                event = GossipLink::event(&mut self.topic) => match event {
                    LinkEvent::Neighbors(neighbors) => {
                        self.end_rest();
                        let served = self.planner.counts().gossip;
                        self.supervisor.neighbors(neighbors, served);
                        self.follow_supervisor(Instant::now());
                    }
                    // The link ends with the hub too.
                    LinkEvent::Ended { .. } if self.hub.cancel.is_cancelled() => break,
                    LinkEvent::Ended { epoch } => self.topic_ended(epoch),
                },
                taken = notes.recv_many(&mut some, NOTES_AT_ONCE) => {
                    if taken == 0 {
                        break;
                    }
                    self.end_rest();
                    for note in some.drain(..) {
                        self.note(note);
                    }
                }
                () = wait_until(deadline) => {}
                () = self.hub.budget_line.notified() => {}
            }
            self.next_look = self.next_look.min(self.looked + TICK);
        }
        self.stop_topic();
        self.hub.roster.close(|| self.hub.log.tip());
        self.hub.progress.notify_waiters();
    }

    /// Begins where another one broke off: nobody is on a topic.
    fn take_over(&mut self) {
        let now = Instant::now();
        self.stop_topic();
        for link in self.hub.roster.all() {
            link.order_topic(TopicOrder::Leave);
            link.unpark();
            self.spoke(now, link.id);
            self.moved(link.id);
        }
    }

    fn note(&mut self, note: Note) {
        let now = Instant::now();
        match note {
            Note::Spoke(id) => self.spoke(now, id),
            // What is said of a topic that has ended meanwhile is not said of this one.
            Note::OnTree(id, link, of) if self.is_current(id, link) && self.is_topic(of) => {
                self.planner.on_tree(now, id);
            }
            Note::OffTree(id, link) if self.is_current(id, link) => {
                if self.planner.isolated(now, id) {
                    self.supervisor.isolated(id);
                }
            }
            Note::OnTree(..) | Note::OffTree(..) => {}
            Note::Want { id, from, to } => {
                let on_topic = self.planner.path(id) == Some(Path::Gossip);
                if on_topic && self.link(id).is_some_and(|link| link.is_fast()) {
                    self.supervisor.wanted();
                }
                // What the topic may not carry comes along the link, as what the log has lost does.
                let floor = self
                    .topic
                    .as_ref()
                    .map_or(0, |topic| topic.topic().keys.lock().floor());
                let head = self.hub.log.head().max(floor);
                if self.repairs.want(now, id, (from, to), on_topic, head) {
                    self.hub.metrics.repair.wants_held.inc();
                }
            }
            Note::Rekeyed {
                id,
                link,
                generation,
            } if self.is_current(id, link) => {
                if let Some(topic) = &self.topic {
                    let keys = &topic.topic().keys;
                    keys.lock().confirmed(now, id, generation);
                    keys.changed.notify_one();
                }
            }
            Note::Rekeyed { .. } => {}
            Note::FanOut(fan_out) => self.planner.set_fan_out(now, fan_out),
            Note::Panic => panic!("a test wants this"),
        }
    }

    /// Looks at what has become of a spoke.
    fn spoke(&mut self, now: Instant, id: SpokeId) {
        let Some(link) = self.hub.roster.get(id) else {
            if self.links.remove(&id).is_some() {
                self.planner.spoke_left(now, id);
                self.repairs.left(id);
                self.hub.budget().leave(Payer::Spoke(id));
                if let Some(topic) = &self.topic {
                    let keys = &topic.topic().keys;
                    keys.lock().gone(now, id);
                    keys.changed.notify_one();
                }
            }
            return;
        };
        let gossips = link.gossips() && self.may_have_keys(&link);
        let number = link.number;
        let before = self.links.insert(id, (link, gossips));
        if before.is_none_or(|(link, gossiped)| link.number != number || gossiped != gossips) {
            self.planner.spoke_joined(now, id, gossips);
            self.repairs.left(id);
        }
    }

    /// Whether a spoke may have the keys of the topic that there is. One that may not read all that was sealed
    /// under them waits for others, and is served directly meanwhile.
    fn may_have_keys(&self, link: &Link) -> bool {
        self.topic.as_ref().is_none_or(|topic| {
            let mut keys = topic.topic().keys.lock();
            keys.admit(Instant::now(), link.key_floor, topic.sent())
        })
    }

    /// Somebody was revoked: the planner is to forget those that are gone.
    fn let_go(&mut self) {
        let now = Instant::now();
        let there: BTreeSet<_> = self.hub.roster.all().iter().map(|link| link.id).collect();
        let gone = self.links.keys().filter(|id| !there.contains(id));
        let gone: Vec<_> = gone.copied().collect();
        for id in gone {
            self.spoke(now, id);
        }
    }

    /// Tells the members of the topic of new keys, if there are some.
    fn tell_keys(&mut self) {
        let Some(topic) = &self.topic else { return };
        let topic = topic.topic();
        let Some(rekey) = topic.keys.lock().tell() else {
            return;
        };
        topic.node.rekey(&rekey.keys, &[], rekey.revoked);
        // As they are now: who is revoked from here on is told nothing, or loses what this told.
        let mut members = self.hub.roster.all();
        members.retain(|link| link.is_member());
        let all = members.len() <= CONFIRM_ALL;
        let mut asked = Vec::new();
        for link in &members {
            let confirm = link.path() == Path::Gossip && (all || link.is_fast());
            if confirm {
                asked.push(link.id);
            }
            link.rekey(Box::new(Rekey {
                confirm,
                ..rekey.clone()
            }));
        }
        debug!(
            generation = rekey.keys.generation,
            members = members.len(),
            asked = asked.len(),
            "new keys"
        );
        let generation = rekey.keys.generation;
        topic.keys.lock().asked(Instant::now(), generation, asked);
        topic.keys.changed.notify_one();
    }

    /// Changes the topic's key when it is old, or when there are spokes that may not have the one there is.
    fn renew_keys(&mut self, now: Instant) {
        let waiting = |(link, gossips): &&(Arc<Link>, bool)| !gossips && link.gossips();
        let waiting = self.links.values().filter(waiting);
        let waiting: Vec<_> = waiting.map(|(link, _)| link.clone()).collect();
        for link in &waiting {
            self.spoke(now, link.id);
        }
        let still = |link: &&Arc<Link>| matches!(self.links.get(&link.id), Some((_, false)));
        let floor = waiting
            .iter()
            .filter(still)
            .map(|link| link.key_floor)
            .max();
        let Some(topic) = &self.topic else { return };
        let mut keys = topic.topic().keys.lock();
        // A topic to which nothing is said goes over to new keys as well.
        keys.look(now, topic.sent());
        let lately = |at: Instant| now.saturating_duration_since(at) < FOR_NEWCOMERS;
        let rng = &mut rand::rng();
        if let Some(floor) = floor
            && !self.changed_for_newcomers.is_some_and(lately)
            && keys.rotate(now, floor, rng)
        {
            self.changed_for_newcomers = Some(now);
        } else if keys.age(now) >= self.hub.config.gossip.key_lifetime {
            keys.rotate(now, 0, rng);
        }
    }

    fn is_topic(&self, topic: [u8; 32]) -> bool {
        let now = self.topic.as_ref();
        now.is_some_and(|now| now.topic().id == topic)
    }

    fn is_current(&self, id: SpokeId, number: u64) -> bool {
        self.link(id).is_some_and(|link| link.number == number)
    }

    /// The link that the planner decides about.
    fn link(&self, id: SpokeId) -> Option<&Arc<Link>> {
        self.links.get(&id).map(|(link, _)| link)
    }

    fn carry_out(&mut self) {
        let now = Instant::now();
        self.serve_who_left(now);
        self.tell_keys();
        while let Some(decision) = self.planner.poll(now) {
            debug!(?decision, "fan-out");
            match decision {
                Decision::StartTopic => self.start_topic(),
                Decision::StopTopic => self.stop_topic(),
                Decision::TellJoin { id, peers, via_hub } => self.tell_join(id, &peers, via_hub),
                Decision::TellLeave { id } => {
                    if let Some(link) = self.link(id) {
                        link.order_topic(TopicOrder::Leave);
                    }
                    self.moved(id);
                }
                Decision::Park { id } => {
                    if let Some(link) = self.link(id) {
                        link.park();
                    }
                    self.moved(id);
                }
                Decision::Unpark { id } => {
                    match self.link(id) {
                        // It is told to leave, and says from where on it is to be served: what the hub
                        // knows of that may be old.
                        Some(link) if !self.planner.gossiping() => {
                            let link = link.clone();
                            self.leaving.push_back((after(now, LEAVES_WITHIN), link));
                        }
                        Some(link) => link.unpark(),
                        None => {}
                    }
                    self.moved(id);
                }
            }
        }
        let counts = self.planner.counts();
        if let Some(topic) = &self.topic {
            topic.set_audience(Audience {
                arriving: self.planner.arriving(),
                served: counts.gossip,
            });
        }
        let state = self.topic_state();
        self.hub.board().state = state;
        // One that stalls may have lost no more than a frame: sent again, it mends that.
        let neighbors = self
            .topic
            .as_ref()
            .map(|topic| topic.probe().standing().neighbors);
        let heard = neighbors.is_some_and(|n| n > 0) && counts.gossip > 0;
        self.repairs.set_topic(heard.then_some(counts.gossip));
    }

    fn topic_state(&self) -> TopicState {
        match (&self.topic, self.supervisor.condition()) {
            (Some(_), Condition::Idle) => TopicState::Starting,
            (Some(_), Condition::Alive) => TopicState::Alive,
            (Some(_), Condition::Stalled) => TopicState::Stalled,
            (None, _) if self.failed && self.planner.wants_topic() => TopicState::Rebuilding,
            (None, _) => TopicState::None,
        }
    }

    /// Serves directly, from what the hub knows of it, who has not said anything on leaving the topic.
    fn serve_who_left(&mut self, now: Instant) {
        while let Some((at, _)) = self.leaving.front()
            && *at <= now
            && let Some((_, link)) = self.leaving.pop_front()
        {
            // Unless the next topic serves it already.
            if link.path() != Path::Gossip {
                link.unpark();
            }
        }
    }

    fn answer_wants(&mut self) {
        let now = Instant::now();
        let hub = &self.hub;
        // Who is called asks again, and pays then; the topic does so below.
        while let Some(payer) = { hub.budget().poll(now) } {
            if let Payer::Spoke(id) = payer
                && let Some(link) = hub.roster.get(id)
            {
                link.wake.notify_one();
            }
        }
        let piece = |from, to| piece_of(&hub.log, from, to);
        while let Some(answer) = { self.repairs.poll(now, &mut hub.budget(), piece) } {
            match answer {
                Answer::Direct { id, from, to } => {
                    hub.metrics.repair.direct.inc();
                    if let Some(link) = hub.roster.get(id) {
                        link.repair(from, to);
                    }
                }
                Answer::Again(piece) => {
                    debug!(?piece, "many want it");
                    hub.metrics.repair.rebroadcasts.inc();
                    hub.metrics.repair.rebroadcast_bytes.inc_by(piece.bytes);
                    if let Some(topic) = &self.topic {
                        topic.send_again(piece.from, piece.to);
                    }
                }
            }
        }
    }

    /// When something is due though nothing came in.
    fn deadline(&self) -> Option<Instant> {
        let budget = self.hub.budget().deadline();
        let leaving = self.leaving.front().map(|(at, _)| *at);
        let planner = self.planner.deadline();
        [planner, self.repairs.deadline(), budget, leaving]
            .into_iter()
            .flatten()
            .min()
    }

    fn moved(&self, id: SpokeId) {
        let path = self.planner.path(id).unwrap_or(Path::Direct);
        if let Some(link) = self.link(id)
            && link.set_path(path)
        {
            self.hub.roster.announce(SpokeChange::Moved { id, path });
        }
    }

    fn start_topic(&mut self) {
        debug!(target: events::TOPIC_STARTED, spokes = self.hub.roster.len());
        self.hub.metrics.topic.started.inc();
        if std::mem::take(&mut self.failed) {
            debug!(target: events::TOPIC_REBUILT, spokes = self.hub.roster.len());
            self.hub.metrics.topic.rebuilt.inc();
        }
        self.supervisor.topic_changed(false);
        let topic = GossipLink::start(&self.hub);
        self.hub.set_topic(Some(topic.topic().clone()));
        self.hub.board().probe = Some(topic.probe());
        self.topic = Some(topic);
    }

    /// The topic has ended by itself.
    fn topic_ended(&mut self, epoch: bool) {
        if epoch {
            // Nothing is wrong with it: another one begins at once, of the new epoch.
            self.supervisor.topic_changed(false);
            self.planner.topic_over();
        } else {
            self.fail_topic(Instant::now(), Failure::Ended);
        }
        self.stop_topic();
    }

    /// Ends the topic in the background: leaving it in order takes a while.
    fn stop_topic(&mut self) {
        // First: who is revoked while there is no topic is not looked for on this one.
        if let Some(topic) = &self.topic {
            topic.close();
        }
        self.hub.set_topic(None);
        self.hub.board().probe = None;
        if let Some(topic) = self.topic.take() {
            debug!(target: events::TOPIC_ENDED, spokes = self.hub.roster.len());
            self.hub.tasks.spawn(topic.stop());
        }
    }

    fn addrs(&self, spokes: &[SpokeId]) -> Vec<EndpointAddr> {
        let links = spokes.iter().filter_map(|id| self.link(*id));
        links.map(|link| link.remote_addr()).collect()
    }

    fn tell_join(&mut self, id: SpokeId, peers: &[SpokeId], via_hub: bool) {
        let (Some(topic), Some(link)) = (&self.topic, self.link(id)) else {
            return;
        };
        let given = {
            let mut keys = topic.topic().keys.lock();
            let admits = keys.admit(Instant::now(), link.key_floor, topic.sent());
            admits.then(|| keys.give())
        };
        let Some((keys, next)) = given else {
            // The topic has begun since it was looked at. It waits for keys that it may have.
            let link = link.clone();
            self.links.insert(id, (link, false));
            return self.planner.spoke_joined(Instant::now(), id, false);
        };
        let mut addrs = self.addrs(peers);
        if via_hub || addrs.is_empty() {
            addrs.push(self.hub.endpoint.addr());
        }
        let counts = self.planner.counts();
        link.order_topic(TopicOrder::Join(Box::new(Topic {
            topic: topic.topic().id,
            keys,
            peers: addrs,
            max_frame_bytes: topic.max_frame_bytes(),
            members: u32::try_from(counts.gossip + counts.joining).unwrap_or(u32::MAX),
        })));
        if let Some(next) = next {
            link.rekey(Box::new(next));
        }
        self.moved(id);
    }

    fn tick(&mut self) {
        self.end_rest();
        let now = Instant::now();
        self.hub.log.observe(&self.hub.metrics.log);
        let bytes = self.hub.log.bytes_appended();
        let passed = now.saturating_duration_since(self.looked).max(TICK);
        let per_s = ((bytes - self.bytes_before) as f64 / passed.as_secs_f64()) as u64;
        let silent = bytes == self.bytes_before;
        self.bytes_before = bytes;
        self.looked = now;
        let links = self.hub.roster.all();
        let traffic = Traffic {
            bytes_per_s: per_s,
            largest_event: self.hub.log.take_largest(),
            rtt: typical_rtt(&links),
        };
        self.planner.traffic(now, traffic);
        self.renew_keys(now);
        self.share_out_acks(now, &links);
        self.supervise(now, &links);
        if self.hub.roster.expire(now, || self.hub.log.tip()) {
            self.hub.progress.notify_waiters();
        }
        // Not between two events, each of which would be looked at then.
        self.rests = silent && self.may_rest(&links);
        self.next_look = now + if self.rests { REST } else { TICK };
        let lately = |at: Instant| now.saturating_duration_since(at) < OBSERVE_EVERY;
        if self.rests || !self.observed.is_some_and(lately) {
            self.observed = Some(now);
            health::observe(&self.hub.examine(&links), &self.hub.metrics.health);
        }
    }

    /// What time decides that passes now begins now.
    fn end_rest(&mut self) {
        if std::mem::take(&mut self.rests) {
            self.supervisor.rested(Instant::now());
        }
    }

    /// Whether everyone has everything, and nothing is under way for which a second more would be long.
    fn may_rest(&self, links: &[Arc<Link>]) -> bool {
        let tip = self.hub.log.tip();
        let topic_rests = self.topic.as_ref().is_none_or(|topic| {
            topic.probe().standing().sent >= tip && topic.topic().keys.lock().is_settled()
        });
        let expected = match self.planner.counts().gossip {
            0 => Condition::Idle,
            _ => Condition::Alive,
        };
        topic_rests
            && self.planner.counts().joining == 0
            && self.supervisor.condition() == expected
            && self.hub.log.appended() == tip
            && links.iter().all(|link| link.acked() >= tip)
    }

    /// Tells spokes how often to acknowledge, when their number has changed much.
    fn share_out_acks(&mut self, now: Instant, links: &[Arc<Link>]) {
        let native = links
            .iter()
            .filter(|link| link.protocol == Protocol::Native);
        let ackers: Vec<_> = native
            .map(|link| Acker {
                id: link.id,
                on_topic: link.path() == Path::Gossip,
                fast: link.fast.load(Ordering::Acquire),
            })
            .collect();
        let acks_per_s = self.hub.config.limits.acks_per_s;
        let shares = self.acks.share_out(&mut rand::rng(), acks_per_s, &ackers);
        for Share { id, fast, every_ms } in shares {
            if let Some(link) = self.hub.roster.get(id) {
                link.set_fast(now, fast);
                link.set_ack_every(every_ms);
            }
        }
    }

    fn supervise(&mut self, now: Instant, links: &[Arc<Link>]) {
        let spokes: Vec<_> = links
            .iter()
            .map(|link| Standing {
                id: link.id,
                has: link.has(),
                fast: link.fast.load(Ordering::Acquire),
                path: link.path(),
                repaired_to: link.repaired_to(),
            })
            .collect();
        let topic = self.topic.as_ref().map(|topic| topic.probe().standing());
        let every = self.acks.every(self.hub.config.limits.acks_per_s);
        let tip = self.hub.log.tip();
        self.supervisor.look(now, tip, topic, &spokes, every);
        self.follow_supervisor(now);
        {
            let appended = self.hub.log.appended();
            let mut board = self.hub.board();
            board.disk.look(now, tip, appended);
            board.slow_every = every;
            board.vitals.look(now, tip, &health::signs(now, links));
        }
    }

    fn follow_supervisor(&mut self, now: Instant) {
        while let Some(action) = self.supervisor.poll() {
            match action {
                Action::ServeAround(id) => {
                    debug!(spoke = %id.fmt_short(), "the topic does not reach it");
                    self.hub.metrics.repair.served_around.inc();
                    self.planner.isolated(now, id);
                }
                Action::Rejoin => self.rejoin(),
                Action::Fail(failure) => self.fail_topic(now, failure),
            }
        }
    }

    /// The hub is nobody's neighbour: it joins through some that are on the tree.
    fn rejoin(&mut self) {
        let Some(topic) = &self.topic else { return };
        let peers = self.planner.sample_tree(REJOIN_THROUGH);
        debug!(peers = peers.len(), "the hub has lost its neighbours");
        self.hub.metrics.topic.rejoined.inc();
        topic.node().join(self.addrs(&peers));
    }

    fn fail_topic(&mut self, now: Instant, failure: Failure) {
        warn!(?failure, "the topic failed; everyone is served directly");
        debug!(target: events::TOPIC_FAILED, spokes = self.hub.roster.len());
        self.hub.metrics.topic.failed.inc();
        self.failed = true;
        self.supervisor.topic_changed(true);
        self.planner.topic_failed(now);
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// How long it takes to the middle one of a few spokes and back.
fn typical_rtt(links: &[Arc<Link>]) -> Option<Duration> {
    const ASKED: usize = 8;
    let every = links.len().div_ceil(ASKED).max(1);
    let mut rtts: Vec<_> = links
        .iter()
        .step_by(every)
        .filter_map(|link| link.rtt())
        .collect();
    rtts.sort_unstable();
    rtts.get(rtts.len() / 2).copied()
}

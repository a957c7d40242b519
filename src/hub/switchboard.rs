//! The task that decides which path serves which spoke, and carries it out.
//!
//! It owns the [`Planner`] and the topic. Links only tell it what happened ([`Note`]); it parks and
//! unparks their cursors, tells spokes to join and leave the topic, starts and stops the gossip link,
//! shares out the acknowledgements, and goes on serving directly whoever the topic does not reach.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rand::seq::IndexedRandom;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, warn};

use super::{
    Inner,
    desk::TopicOrder,
    gossip_link::{GossipLink, HubGate},
    link::Link,
    repairs::{Answer, Payer, Repairs, piece_of},
    spokes::SpokeChange,
};
use crate::{
    fan_out::{Decision, FanOut, Path, Planner, PlannerConfig},
    gossip::GossipNode,
    metrics::events,
    protocol::Protocol,
    spoke_id::SpokeId,
    wire::native::Topic,
};

/// Something happened that may change how spokes are served.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Note {
    /// It came, went, changed its link, or can be on the topic now: the roster tells.
    Spoke(SpokeId),
    /// The spoke says, on the link with this number, that the topic serves it.
    OnTree(SpokeId, u64),
    /// The spoke wants to be served directly.
    OffTree(SpokeId, u64),
    /// The spoke wants `[from, to)`, which exists.
    Want {
        id: SpokeId,
        from: u64,
        to: u64,
    },
    FanOut(FanOut),
}

/// How many notes may wait; who has one more waits.
pub(super) const NOTES: usize = 1024;

/// How often acknowledgements, traffic and laggards are looked at.
const TICK: Duration = Duration::from_millis(200);

/// A spoke on the topic that is behind and has not moved for this long is served directly,
const STUCK_AFTER: Duration = Duration::from_secs(2);
/// after this long if it is one of a few: at most four, or a quarter of those on the topic,
const FEW_STUCK_AFTER: Duration = Duration::from_millis(400);
const FEW: usize = 4;
/// and after this long if it is one of most: serving all of them directly costs what the topic saves.
const MOST_STUCK_AFTER: Duration = Duration::from_secs(6);

/// Up to so many native spokes, all acknowledge fast; beyond, only a few do.
const ALL_FAST: usize = 20;
/// How many do beyond.
const FAST: usize = 8;
/// How often a fast spoke acknowledges.
const FAST_EVERY: Duration = Duration::from_millis(20);

/// How often one spoke of `spokes` may acknowledge, in milliseconds, if it is not a fast one.
pub(crate) fn ack_every_ms(spokes: usize, acks_per_s: u32) -> u32 {
    let fast_ms = FAST_EVERY.as_millis() as u64;
    let budget = u64::from(acks_per_s);
    let spokes_n = spokes as u64;
    let ms = if spokes <= ALL_FAST {
        spokes_n * 1000 / budget
    } else {
        let left = budget.saturating_sub(FAST as u64 * 1000 / fast_ms).max(1);
        spokes_n * 1000 / left
    };
    u32::try_from(ms.max(fast_ms)).unwrap_or(u32::MAX)
}

/// Whether every spoke of so many acknowledges fast.
pub(crate) fn all_are_fast(spokes: usize) -> bool {
    spokes <= ALL_FAST
}

pub(super) struct Switchboard {
    hub: Arc<Inner>,
    notes: mpsc::Receiver<Note>,
    planner: Planner<SpokeId>,
    repairs: Repairs<SpokeId>,
    /// The links that the planner knows of, and whether it may put them on the topic. What it decides is
    /// for these, whatever has become of them.
    links: BTreeMap<SpokeId, (Arc<Link>, bool)>,
    topic: Option<GossipLink>,
    /// How many spokes there were when acknowledgements were shared out.
    shared_among: usize,
    watched: BTreeMap<SpokeId, Watched>,
    bytes_before: u64,
}

/// What a spoke on the topic had acknowledged, and since when.
struct Watched {
    acked: u64,
    since: Instant,
}

impl Switchboard {
    pub(super) fn new(hub: Arc<Inner>, notes: mpsc::Receiver<Note>) -> Self {
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
            shared_among: 0,
            watched: BTreeMap::new(),
            bytes_before: 0,
        }
    }

    pub(super) async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.carry_out();
            self.answer_wants();
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = self.hub.cancel.cancelled() => break,
                note = self.notes.recv() => match note {
                    Some(note) => self.note(note),
                    None => break,
                },
                _ = tick.tick() => self.tick(),
                () = wait_until(deadline) => {}
                () = self.hub.budget_line.notified() => {}
                () = GossipLink::failed(&mut self.topic) => {
                    // The link ends with the hub too.
                    if self.hub.cancel.is_cancelled() {
                        break;
                    }
                    warn!("the topic failed; everyone is served directly");
                    debug!(target: events::TOPIC_FAILED, spokes = self.hub.roster.len());
                    self.hub.metrics.topic.failed.inc();
                    self.stop_topic();
                    self.planner.topic_failed(Instant::now());
                }
            }
        }
        self.stop_topic();
        self.hub.roster.close(|| self.hub.log.tip());
        self.hub.progress.notify_waiters();
    }

    fn note(&mut self, note: Note) {
        let now = Instant::now();
        match note {
            Note::Spoke(id) => self.spoke(now, id),
            Note::OnTree(id, link) if self.is_current(id, link) => self.planner.on_tree(now, id),
            Note::OffTree(id, link) if self.is_current(id, link) => self.planner.off_tree(now, id),
            Note::OnTree(..) | Note::OffTree(..) => {}
            Note::Want { id, from, to } => {
                let on_topic = self.planner.path(id) == Some(Path::Gossip);
                let head = self.hub.log.head();
                if self.repairs.want(now, id, (from, to), on_topic, head) {
                    self.hub.metrics.repair.wants_held.inc();
                }
            }
            Note::FanOut(fan_out) => self.planner.set_fan_out(now, fan_out),
        }
    }

    /// Looks at what has become of a spoke.
    fn spoke(&mut self, now: Instant, id: SpokeId) {
        let Some(link) = self.hub.roster.get(id) else {
            if self.links.remove(&id).is_some() {
                self.planner.spoke_left(now, id);
                self.repairs.left(id);
                self.hub.budget().leave(Payer::Spoke(id));
                self.watched.remove(&id);
            }
            return;
        };
        let gossips = link.gossips();
        let number = link.number;
        let before = self.links.insert(id, (link, gossips));
        if before.is_none_or(|(link, gossiped)| link.number != number || gossiped != gossips) {
            self.planner.spoke_joined(now, id, gossips);
            self.repairs.left(id);
            self.watched.remove(&id);
        }
    }

    fn is_current(&self, id: SpokeId, number: u64) -> bool {
        self.link(id).is_some_and(|link| link.number == number)
    }

    /// The link that the planner decides about.
    fn link(&self, id: SpokeId) -> Option<&Arc<Link>> {
        self.links.get(&id).map(|(link, _)| link)
    }

    fn carry_out(&mut self) {
        while let Some(decision) = self.planner.poll(Instant::now()) {
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
                    self.watched.remove(&id);
                    if let Some(link) = self.link(id) {
                        link.unpark();
                    }
                    self.moved(id);
                }
            }
        }
        let counts = self.planner.counts();
        if let Some(topic) = &self.topic {
            topic.set_hurry(counts.joining > 0);
        }
        let members = self.topic.is_some().then_some(counts.gossip);
        self.repairs.set_topic(members);
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
        [self.planner.deadline(), self.repairs.deadline(), budget]
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
        let topic = GossipLink::start(&self.hub);
        self.hub
            .set_topic(Some((topic.topic(), topic.node().clone())));
        self.topic = Some(topic);
    }

    /// Ends the topic in the background: leaving it in order takes a while.
    fn stop_topic(&mut self) {
        self.hub.set_topic(None);
        if let Some(topic) = self.topic.take() {
            debug!(target: events::TOPIC_ENDED, spokes = self.hub.roster.len());
            self.hub.tasks.spawn(topic.stop());
        }
    }

    fn tell_join(&self, id: SpokeId, peers: &[SpokeId], via_hub: bool) {
        let (Some(topic), Some(link)) = (&self.topic, self.link(id)) else {
            return;
        };
        let mut addrs: Vec<_> = peers
            .iter()
            .filter_map(|peer| self.link(*peer))
            .map(|peer| peer.remote_addr())
            .collect();
        if via_hub || addrs.is_empty() {
            addrs.push(self.hub.endpoint.addr());
        }
        let counts = self.planner.counts();
        link.order_topic(TopicOrder::Join(Box::new(Topic {
            topic: topic.topic(),
            keys: topic.keys(),
            peers: addrs,
            max_frame_bytes: topic.max_frame_bytes(),
            members: u32::try_from(counts.gossip + counts.joining).unwrap_or(u32::MAX),
        })));
        self.moved(id);
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.hub.log.observe(&self.hub.metrics.log);
        let bytes = self.hub.log.bytes_appended();
        let per_s = (bytes - self.bytes_before) * 1000 / TICK.as_millis() as u64;
        self.bytes_before = bytes;
        self.planner.traffic(now, per_s);
        let links = self.hub.roster.all();
        self.share_out_acks(&links);
        self.find_stuck(now, &links);
        if self.hub.roster.expire(now, || self.hub.log.tip()) {
            self.hub.progress.notify_waiters();
        }
    }

    /// Tells spokes how often to acknowledge, when their number has changed much.
    fn share_out_acks(&mut self, links: &[Arc<Link>]) {
        let native: Vec<_> = links
            .iter()
            .filter(|link| link.protocol == Protocol::Native)
            .collect();
        let spokes = native.len();
        let on_topic = native.iter().filter(|link| link.path() == Path::Gossip);
        let is_fast = |link: &&&Arc<Link>| link.fast.load(Ordering::Acquire);
        // Pace goes by the fast ones, of all and of those on the topic: there must be some of both.
        let enough = native.iter().filter(is_fast).count() >= FAST.min(spokes)
            && on_topic.clone().filter(is_fast).count() >= (FAST / 2).min(on_topic.clone().count());
        if enough && spokes.abs_diff(self.shared_among) * 5 <= self.shared_among {
            return;
        }
        self.shared_among = spokes;
        let acks_per_s = self.hub.config.limits.acks_per_s;
        let slow = ack_every_ms(spokes, acks_per_s);
        let all_fast = all_are_fast(spokes);
        let on_topic: Vec<SpokeId> = on_topic.map(|link| link.id).collect();
        let others: Vec<SpokeId> = native
            .iter()
            .map(|link| link.id)
            .filter(|id| !on_topic.contains(id))
            .collect();
        let rng = &mut rand::rng();
        let mut chosen: Vec<SpokeId> = on_topic.sample(rng, FAST).copied().collect();
        let left = FAST - chosen.len();
        chosen.extend(others.sample(rng, left.max(1)));
        for link in native {
            let fast = all_fast || chosen.contains(&link.id);
            link.fast.store(fast, Ordering::Release);
            let millis = if fast && !all_fast {
                FAST_EVERY.as_millis() as u32
            } else {
                slow
            };
            link.set_ack_every(millis);
        }
    }

    /// Serves directly who is on the topic, is behind, and does not move: soon if only a few are, which
    /// costs the hub little; later if it is many, who may merely be short of CPU or of bandwidth.
    fn find_stuck(&mut self, now: Instant, links: &[Arc<Link>]) {
        let tip = self.hub.log.tip();
        let every = ack_every_ms(self.shared_among, self.hub.config.limits.acks_per_s);
        let every = 3 * Duration::from_millis(every.into());
        let (mut on_topic, mut stuck) = (0, Vec::new());
        for link in links {
            let acked = link.acked();
            if link.path() != Path::Gossip {
                self.watched.remove(&link.id);
                continue;
            }
            on_topic += 1;
            let watched = self
                .watched
                .entry(link.id)
                .or_insert(Watched { acked, since: now });
            if watched.acked != acked || acked >= tip {
                *watched = Watched { acked, since: now };
            }
            let still = now.duration_since(watched.since);
            if still > FEW_STUCK_AFTER.max(every) {
                stuck.push((link.id, still));
            }
        }
        let patience = if stuck.len() <= (on_topic / FEW).max(FEW) {
            FEW_STUCK_AFTER
        } else if stuck.len() * 2 <= on_topic {
            STUCK_AFTER
        } else {
            MOST_STUCK_AFTER
        };
        for (id, still) in stuck {
            if still > patience.max(every) {
                debug!(spoke = %id.fmt_short(), ?still, "the topic does not reach it");
                self.hub.metrics.repair.served_around.inc();
                self.planner.off_tree(now, id);
            }
        }
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// The running topic, and our node on it for connections that others make.
pub(super) type CurrentTopic = Option<([u8; 32], GossipNode<HubGate>)>;

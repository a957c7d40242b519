//! One topic at one node, without sockets, tasks or a clock.
//!
//! [`Core`] wraps iroh-gossip's state machine for one topic. Whatever happens is told to it by a method, with the time;
//! what is to be done about it is taken from [`Core::next_output`]; [`Core::deadline`] says when to call [`Core::tick`].
//! The same core runs under the network driver and in a simulator.
//!
//! The protocol trusts its peers, and it gives up where a little patience would do. So the core
//! - opens a frame before the protocol may see it ([`inspect`]), and cuts off whoever sent a bad one;
//! - bounds each list, rate and memory that a peer can drive;
//! - bounds dials, and what others can make us dial ([`dials`]);
//! - watches the membership and mends it ([`heal`]), and keeps the broadcast tree whole under load ([`tree`]).

mod cache;
mod dials;
mod early;
mod heal;
mod inspect;
mod shortcut;
#[cfg(test)]
mod tests;
mod timers;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use iroh_gossip::proto::{self, PeerData, PeerIdentity, topic};
use n0_error::{e, stack_error};
use n0_future::time::{Duration, Instant};
use rand::{SeedableRng, rngs::StdRng};

use self::{
    cache::Cache,
    dials::Dials,
    early::Early,
    heal::Heal,
    timers::{TimerKind, Timers},
    tree::Tree,
};
use super::{
    FrameGate, GossipConfig, GossipMetrics,
    bounded::{Bucket, Remembered},
    mirror::{self, Kind},
};

/// The largest peer data (addresses) that is taken from a peer.
pub(super) const MAX_PEER_DATA: usize = 512;

/// How many bootstrap peers are kept; a newer one replaces the oldest.
pub(super) const MAX_BOOTSTRAP: usize = 32;

/// How long a connection that is nobody's neighbour may stay for what is still under way on it.
const LINGER: Duration = Duration::from_secs(1);

/// How long a new connection has to become a neighbour's.
const SETTLE: Duration = Duration::from_secs(10);

/// How many peers' addresses are remembered.
const BOOK: usize = 256;

/// How many frame ids are remembered as seen.
const SEEN: usize = 32 * 1024;

/// How many announced frames that we do not have are taken from one peer, and for how long they count.
const ANNOUNCED: usize = 4096;

/// How many frames a peer may ask for by name within the time that frames are kept. It is sent each once.
const GRAFTED: usize = 4096;

/// Of how many peers that were neighbours frames are still taken.
const PARTED: usize = 64;

/// How many peers are kept away at once.
const BANS: usize = 256;

/// For how long the key before the current one opens connections if it was given up because of former members:
/// as long as it takes to tell the others of the new one.
pub(crate) const AFTER_EVICTION: Duration = Duration::from_secs(2);

/// And how long they are kept away: by then only those come back that have been admitted again, since they
/// prove to have the new key.
const EVICTED_FOR: Duration = Duration::from_secs(3);
/// How many peers' means are remembered, whether they are connected or not.
const VISITORS: usize = 1024;

/// How often a peer may connect to us over time, and how often at once. A visit may cost one of our neighbours its place.
const VISITS_PER_S: u32 = 1;
const VISITS: u32 = 20;

/// How many peers we ask to be neighbours over time, and how many at once, if that takes a connection. Who has no
/// room answers with others to ask: where nobody has, asking would never end.
const REQUESTS_PER_S: u32 = 1;
const REQUESTS: u32 = 16;

/// How many follow-ups one input may have before the rest waits for the next tick.
const MAX_FOLLOW_UPS: usize = 256;

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Output<P, O> {
    /// Send a message to a peer that is connected.
    Send {
        peer: P,
        message: Bytes,
        kind: SendKind,
    },
    /// Connect to a peer; `data` is what it, or others, said about its addresses.
    /// Ends in [`Core::peer_connected`] or [`Core::dial_failed`].
    Dial { peer: P, data: Option<Bytes> },
    /// Close the connection to a peer. The core has done with it already.
    Close { peer: P, why: CloseWhy },
    /// Hand a new frame to the owner.
    Deliver { opened: O, from: P, hops: u16 },
    /// Tell the owner of a new neighbour.
    NeighborUp(P),
    /// Tell the owner of a lost neighbour.
    NeighborDown(P),
}

/// What may be dropped first when a queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendKind {
    /// A frame: the log repairs it.
    Data,
    /// A message of the protocol: short, and dear.
    Control,
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseWhy {
    /// It is not needed; what was sent shall still arrive.
    Done,
    /// The peer sent a frame that the hub did not make.
    Forged,
    /// The peer sent something that no honest node sends.
    Malformed,
    /// The peer sent more at once than a message may be.
    TooLarge,
    /// The peer went on sending too much.
    Flooding,
    /// The peer took nothing from its queue.
    Stuck,
    /// The peer is a member no more.
    Evicted,
}

/// How many walks a newcomer is sent on: with its contact, as many neighbours as it needs.
const WALKS: usize = 3;

/// A frame that is larger than the topic takes.
#[stack_error(derive, add_meta)]
#[error("a frame of {len} bytes is over the topic's limit of {max}: send it in parts")]
pub(crate) struct FrameTooLarge {
    pub(crate) len: usize,
    pub(crate) max: usize,
}

/// A connection to a peer, as the core sees it.
#[derive(Debug)]
struct Link {
    /// When to close it, unless the peer is a neighbour by then.
    close_at: Option<Instant>,
    /// Whether the protocol has to hear of its end.
    tell: bool,
    /// Frames that the peer announced and that had not come then.
    announced: Remembered<mirror::Id, Instant>,
    /// Frames that the peer asked for by name.
    grafted: Remembered<mirror::Id, Instant>,
}

impl Link {
    fn new(now: Instant) -> Self {
        Self {
            close_at: Some(now + SETTLE),
            tell: false,
            announced: Remembered::new(ANNOUNCED),
            grafted: Remembered::new(GRAFTED),
        }
    }
}

/// What a peer may still do. It is kept when its connection ends, or another connection would be new means.
#[derive(Debug)]
struct Means {
    visits: Bucket,
    /// Messages that are no new frames.
    control: Bucket,
    /// Of these, messages about who is on the topic.
    membership: Bucket,
    /// Frames under keys that are not known here.
    unknown: Bucket,
    /// What the peer may send beyond its rates before it is cut off.
    strikes: Bucket,
}

impl Means {
    fn new(rate: u32, now: Instant) -> Self {
        let bucket = |rate: u32, seconds: u32| Bucket::new(rate, rate.saturating_mul(seconds), now);
        Self {
            visits: Bucket::new(VISITS_PER_S, VISITS, now),
            control: bucket(rate, 4),
            membership: bucket((rate / 10).max(1), 4),
            // Until it is told a new key, a node may get the whole traffic of the topic under it.
            unknown: bucket(rate.saturating_mul(2), 5),
            strikes: bucket((rate / 10).max(1), 40),
        }
    }
}

/// What someone said about a peer's addresses.
#[derive(Debug, Clone)]
struct Entry {
    data: Bytes,
    /// Said by the peer itself; hearsay does not replace it.
    first_hand: bool,
}

/// Something that the protocol has to be told once it is done with what it is doing.
#[derive(Debug)]
enum FollowUp<P> {
    Lost(P),
    /// A neighbour request that was not sent.
    NotAsked(P),
    Refill,
    /// Another neighbour shall bring frames: the one that brought them is one no longer.
    Bereft,
}

/// What an input to the protocol stems from.
struct Cause<P, O> {
    /// The peer that sent the message.
    from: Option<P>,
    /// The opened frame that goes with it.
    opened: Option<(O, u16)>,
    /// The frame that was announced, or is still missing.
    missing: Option<mirror::Id>,
    /// The peer said goodbye.
    goodbye: bool,
}

impl<P, O> Cause<P, O> {
    const OURS: Self = Self {
        from: None,
        opened: None,
        missing: None,
        goodbye: false,
    };
}

/// One topic at one node.
pub(crate) struct Core<P: PeerIdentity, G: FrameGate> {
    me: P,
    config: GossipConfig,
    metrics: Arc<GossipMetrics>,
    gate: G,
    proto: topic::State<P, StdRng>,
    rng: StdRng,
    timers: Timers<P>,
    links: BTreeMap<P, Link>,
    dials: Dials<P>,
    active: BTreeSet<P>,
    /// Peers that we asked to be neighbours and that have not answered, and since when.
    asked: BTreeMap<P, Instant>,
    requests: Bucket,
    book: Remembered<P, Entry>,
    bootstrap: VecDeque<P>,
    banned: Remembered<P, Instant>,
    /// Neighbours that were sent a goodbye, and until when frames of theirs may be under way.
    parted: Remembered<P, Instant>,
    /// Members no more.
    evicted: Remembered<P, Instant>,
    means: Remembered<P, Means>,
    failed: Remembered<P, Instant>,
    seen: Remembered<mirror::Id, Instant>,
    early: Early<P>,
    cache: Cache,
    tree: Tree<P>,
    heal: Heal,
    follow_ups: VecDeque<FollowUp<P>>,
    out: VecDeque<Output<P, G::Opened>>,
    left: bool,
    /// No peer is dialled any more.
    no_dials: bool,
}

impl<P: PeerIdentity, G: FrameGate> Core<P, G> {
    /// A topic that has no peers yet. It takes joins from now on.
    ///
    /// `data` is what others need to connect to us; `seed` fixes every random choice.
    pub(crate) fn new(
        me: P,
        data: Option<Bytes>,
        config: GossipConfig,
        gate: G,
        metrics: Arc<GossipMetrics>,
        seed: u64,
        now: Instant,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let proto = topic::State::with_rng(
            me,
            data.map(PeerData::new),
            config.to_proto(),
            StdRng::from_rng(&mut rng),
        );
        let mut core = Self {
            me,
            metrics,
            gate,
            proto,
            timers: Timers::new(),
            links: BTreeMap::new(),
            dials: Dials::new(config.max_dials),
            active: BTreeSet::new(),
            asked: BTreeMap::new(),
            requests: Bucket::new(REQUESTS_PER_S, REQUESTS, now),
            book: Remembered::new(BOOK),
            bootstrap: VecDeque::new(),
            banned: Remembered::new(BANS),
            parted: Remembered::new(PARTED),
            evicted: Remembered::new(BANS),
            means: Remembered::new(VISITORS),
            failed: Remembered::new(BANS),
            seen: Remembered::new(SEEN),
            early: Early::default(),
            cache: Cache::new(config.cache_bytes, config.frame_retention),
            tree: Tree::new(me),
            heal: Heal::new(&config, now, &mut rng),
            follow_ups: VecDeque::new(),
            out: VecDeque::new(),
            left: false,
            no_dials: false,
            rng,
            config,
        };
        // Starts the protocol's own timers.
        core.feed(
            topic::InEvent::Command(proto::Command::Join(Vec::new())),
            Cause::OURS,
            now,
        );
        core
    }

    /// What to do next.
    pub(crate) fn next_output(&mut self) -> Option<Output<P, G::Opened>> {
        self.out.pop_front()
    }

    /// When [`tick`](Self::tick) is due; never, once the topic was left.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.left {
            return None;
        }
        let timer = self.timers.next_at();
        Some(timer.map_or(self.heal.due, |at| at.min(self.heal.due)))
    }

    /// How many neighbours there are.
    pub(crate) fn neighbors(&self) -> usize {
        self.active.len()
    }

    /// Changes the gate, and looks again at what it could not open before.
    pub(crate) fn with_gate(&mut self, change: impl FnOnce(&mut G), now: Instant) {
        change(&mut self.gate);
        for (from, message, at) in self.early.take(now) {
            self.early.looks_at(Some(at));
            self.again(from, &message, now);
        }
        self.early.looks_at(None);
        self.settle(now);
    }

    /// Whether a peer is kept away at present.
    pub(crate) fn is_banned(&self, peer: &P, now: Instant) -> bool {
        self.banned.holds(peer, now) || self.evicted.holds(peer, now)
    }

    /// Joins the topic through peers that are on it, and remembers them to come back through.
    pub(crate) fn join(&mut self, peers: impl IntoIterator<Item = P>, now: Instant) {
        if self.left {
            return;
        }
        let mut fresh = Vec::new();
        for peer in peers {
            if peer == self.me {
                continue;
            }
            self.failed.remove(&peer);
            self.bootstrap.retain(|known| *known != peer);
            self.bootstrap.push_back(peer);
            if self.bootstrap.len() > MAX_BOOTSTRAP {
                self.bootstrap.pop_front();
            }
            if !self.active.contains(&peer) && !fresh.contains(&peer) {
                fresh.push(peer);
            }
        }
        // A join makes its contact drop a neighbour, so a few are enough; the rest is for later.
        fresh.truncate(heal::JOINS_AT_ONCE);
        self.request_join(fresh, now);
        self.settle(now);
    }

    /// Broadcasts a frame. Without a neighbour it goes nowhere.
    pub(crate) fn broadcast(&mut self, frame: Bytes, now: Instant) -> Result<(), FrameTooLarge> {
        if frame.len() > self.config.max_frame_size {
            return Err(e!(FrameTooLarge {
                len: frame.len(),
                max: self.config.max_frame_size,
            }));
        }
        if self.left {
            return Ok(());
        }
        self.metrics.frames_sent.inc();
        self.heal.heard(now);
        let id = *blake3::hash(&frame).as_bytes();
        self.note_seen(id, now);
        self.tree.came(id, self.me, now);
        let len = frame.len();
        let command = proto::Command::Broadcast(frame, proto::Scope::Swarm);
        self.feed(topic::InEvent::Command(command), Cause::OURS, now);
        self.cached(len, now);
        self.settle(now);
        Ok(())
    }

    /// A connection to a peer is up, `dialed` by us or by it. False: the peer is kept away, or comes too often; close it.
    pub(crate) fn peer_connected(&mut self, peer: P, dialed: bool, now: Instant) -> bool {
        let queued = if dialed {
            self.dials.finished(&peer)
        } else {
            self.dials.take_queue(&peer)
        };
        let welcome = !self.left && peer != self.me && !self.is_banned(&peer, now);
        if !welcome || !(dialed || self.visited(peer, now)) {
            self.settle(now);
            return false;
        }
        self.failed.remove(&peer);
        self.links.entry(peer).or_insert_with(|| Link::new(now));
        for message in queued {
            self.send(peer, message);
        }
        self.settle(now);
        true
    }

    /// Counts a visit; false if the peer comes too often.
    fn visited(&mut self, peer: P, now: Instant) -> bool {
        let welcome = self.means(peer, now).visits.take(1, now);
        if !welcome {
            self.metrics.refused_visits.inc();
        }
        welcome
    }

    fn means(&mut self, peer: P, now: Instant) -> &mut Means {
        let rate = self.config.max_messages_per_s;
        self.means
            .get_or_insert_with(peer, || Means::new(rate, now))
    }

    /// The connection to a peer is gone.
    pub(crate) fn peer_closed(&mut self, peer: P, now: Instant) {
        self.drop_link(peer);
        self.settle(now);
    }

    /// A dial came to nothing.
    pub(crate) fn dial_failed(&mut self, peer: P, now: Instant) {
        self.dials.finished(&peer);
        if !self.links.contains_key(&peer) {
            self.metrics.dial_failures.inc();
            self.forget_unreachable(peer, now);
        }
        self.settle(now);
    }

    /// A peer takes nothing from its full queue.
    pub(crate) fn peer_stuck(&mut self, peer: P, now: Instant) {
        if self.links.contains_key(&peer) {
            self.metrics.peers_stuck.inc();
            self.failed.insert(peer, now + heal::AVOID);
            self.close(peer, CloseWhy::Stuck);
        }
        self.settle(now);
    }

    /// A peer is a member no more: it is closed, and kept away for as long as a key that it knows opens connections.
    pub(crate) fn evict(&mut self, peer: P, now: Instant) {
        self.cut_off(peer, CloseWhy::Evicted, now);
        self.settle(now);
    }

    /// What others need to connect to us has changed.
    pub(crate) fn set_data(&mut self, data: Bytes, now: Instant) {
        if data.len() <= MAX_PEER_DATA {
            let event = topic::InEvent::UpdatePeerData(PeerData::new(data));
            self.feed(event, Cause::OURS, now);
            self.settle(now);
        }
    }

    /// Dials nobody from now on: the topic is about to be left.
    pub(crate) fn stop_dialing(&mut self) {
        self.no_dials = true;
    }

    /// Runs what is due.
    pub(crate) fn tick(&mut self, now: Instant) {
        if self.left {
            return;
        }
        while let Some(timer) = self.timers.due(now) {
            let mut cause = Cause::OURS;
            match timer.kind {
                TimerKind::Graft(Some(id)) => {
                    let (since, delay) = (timer.since, timer.delay);
                    if let Some(until) = self.tree.patience(&id, since, delay, now) {
                        self.timers.put_off(timer, until);
                        continue;
                    }
                    cause.missing = Some(id);
                }
                TimerKind::Evict => self.cache.forget(now),
                TimerKind::Graft(None) | TimerKind::Other => {}
            }
            let event = topic::InEvent::TimerExpired(timer.timer);
            self.feed(event, cause, now);
        }
        self.maintain(now);
        self.settle(now);
    }

    /// Says goodbye to the neighbours and closes every connection. Nothing is done afterwards.
    pub(crate) fn leave(&mut self, now: Instant) {
        if self.left {
            return;
        }
        let quit = topic::InEvent::Command(proto::Command::Quit);
        self.feed(quit, Cause::OURS, now);
        self.left = true;
        for peer in std::mem::take(&mut self.active) {
            self.metrics.neighbors_down.inc();
            self.out.push_back(Output::NeighborDown(peer));
        }
        for peer in std::mem::take(&mut self.links).into_keys() {
            let why = CloseWhy::Done;
            self.out.push_back(Output::Close { peer, why });
        }
        self.follow_ups.clear();
        self.timers.clear();
    }

    /// Gives the protocol an event, and does what it wants done.
    fn feed(&mut self, event: topic::InEvent<P>, mut cause: Cause<P, G::Opened>, now: Instant) {
        let wanted: Vec<_> = self.proto.handle(event, now).collect();
        // The protocol sends one frame to several peers: it is encoded once.
        let mut encoded: Option<(topic::Message<P>, Bytes)> = None;
        let mut farewells = BTreeSet::new();
        let mut lost = Vec::new();
        let mut walks = 0;
        let strayed = |from| cause.opened.is_some() && !self.active.contains(&from);
        let is_stray = cause.from.is_some_and(strayed);
        let successor = cause.from.and_then(|from| self.tree.successor(&from, now));
        let mut asked_before = false;
        for want in wanted {
            match want {
                // It takes us for a neighbour: see `frame`.
                topic::OutEvent::SendMessage(to, _) if to == self.me => self.heal.dirty = true,
                topic::OutEvent::SendMessage(to, message) => {
                    let bytes = match &encoded {
                        Some((same, bytes)) if *same == message => bytes.clone(),
                        _ => match mirror::to_bytes(&message) {
                            Some(bytes) => bytes,
                            None => continue,
                        },
                    };
                    encoded = Some((message, bytes.clone()));
                    match mirror::kind(&bytes) {
                        Kind::Disconnect => {
                            farewells.insert(to);
                        }
                        // Our parent has it already, and would prune us for one that is no neighbour any more.
                        Kind::Data if is_stray && self.tree.is_parent(&to) => continue,
                        Kind::Data if cause.opened.is_some() && successor == Some(to) => continue,
                        Kind::Data if cause.opened.is_some() => {
                            self.metrics.frames_forwarded.inc();
                        }
                        // Each walk of a newcomer ends at a node that drops a neighbour for it.
                        Kind::ForwardJoin if walks == WALKS => continue,
                        Kind::ForwardJoin => walks += 1,
                        kind => {
                            self.tree.exchanged(to, kind);
                            // Nobody answers twice.
                            if let (Kind::Graft, Some(id)) = (kind, cause.missing)
                                && !self.tree.asked(to, id, now)
                            {
                                asked_before = true;
                            }
                        }
                    }
                    self.send_or_dial(to, bytes, cause.from, now);
                }
                topic::OutEvent::EmitEvent(event) => {
                    if let proto::Event::NeighborDown(peer) = &event {
                        lost.push(*peer);
                    }
                    self.emit(event, &mut cause, now);
                }
                topic::OutEvent::ScheduleTimer(delay, timer) => {
                    // There is no answer to wait for: the next one is asked.
                    let delay = if asked_before { Duration::ZERO } else { delay };
                    self.timers.set(timer, delay, cause.missing, now);
                }
                topic::OutEvent::DisconnectPeer(peer) => {
                    let goodbye =
                        farewells.contains(&peer) || (cause.goodbye && cause.from == Some(peer));
                    if goodbye {
                        self.close(peer, CloseWhy::Done);
                    } else if let Some(link) = self.links.get_mut(&peer) {
                        // The protocol drops whoever is no neighbour after one message of his; but a goodbye
                        // often follows, and tells that he is alive.
                        let at = now + LINGER;
                        link.close_at = Some(link.close_at.map_or(at, |due| due.min(at)));
                    }
                }
                // The address book has it already: see `inspect`.
                topic::OutEvent::PeerData(_, _) => {}
            }
        }
        // Whoever asked in vain to be a neighbour is sent a goodbye too.
        for peer in lost.into_iter().filter(|peer| farewells.contains(peer)) {
            self.parted.expire(now);
            self.parted.insert(peer, now + LINGER);
        }
    }

    fn emit(&mut self, event: proto::Event<P>, cause: &mut Cause<P, G::Opened>, now: Instant) {
        match event {
            proto::Event::NeighborUp(peer) => {
                self.active.insert(peer);
                self.tree.forget(&peer);
                if let Some(link) = self.links.get_mut(&peer) {
                    link.close_at = None;
                    link.tell = true;
                }
                self.metrics.neighbors_up.inc();
                self.heal.gained();
                self.out.push_back(Output::NeighborUp(peer));
            }
            proto::Event::NeighborDown(peer) => {
                self.active.remove(&peer);
                if self.tree.is_parent(&peer) {
                    self.follow_ups.push_back(FollowUp::Bereft);
                }
                self.tree.forget(&peer);
                if let Some(link) = self.links.get_mut(&peer) {
                    link.close_at = Some(now + LINGER);
                }
                self.metrics.neighbors_down.inc();
                let alone = self.active.is_empty();
                self.heal.lost(alone, now, &mut self.rng);
                self.out.push_back(Output::NeighborDown(peer));
            }
            proto::Event::Received(frame) => {
                if let Some((opened, hops)) = cause.opened.take() {
                    let from = cause.from.unwrap_or(frame.delivered_from);
                    self.out.push_back(Output::Deliver { opened, from, hops });
                }
            }
        }
    }

    /// Sends to a peer that is connected; dials one that is not, if the message is worth it.
    fn send_or_dial(&mut self, peer: P, message: Bytes, introducer: Option<P>, now: Instant) {
        if peer == self.me {
            return;
        }
        let kind = mirror::kind(&message);
        if self.is_banned(&peer, now) {
            self.follow_ups.push_back(FollowUp::Lost(peer));
            return;
        }
        let asks = matches!(kind, Kind::Neighbor | Kind::Request);
        if asks {
            self.asked.insert(peer, now);
        }
        if let Some(link) = self.links.get_mut(&peer) {
            link.tell |= asks;
            self.send(peer, message);
        } else if kind == Kind::Request && (!self.seeks_neighbors() || !self.requests.take(1, now))
        {
            // Most peers have no room either: a mesh that seeks to fill every view is never done connecting.
            self.follow_ups.push_back(FollowUp::NotAsked(peer));
        } else if asks || kind == Kind::Introduction {
            // What we want ourselves is not held against anyone.
            let introducer = introducer.filter(|from| *from != self.me && *from != peer);
            if !self.dials.request(peer, message, introducer, now) {
                self.metrics.refused_introductions.inc();
                self.follow_ups.push_back(FollowUp::Lost(peer));
            }
        }
    }

    fn send(&mut self, peer: P, message: Bytes) {
        let kind = match mirror::kind(&message) {
            Kind::Data => SendKind::Data,
            _ => SendKind::Control,
        };
        self.out.push_back(Output::Send {
            peer,
            message,
            kind,
        });
    }

    /// Works off what the protocol has to be told, and starts the dials that there is room for.
    fn settle(&mut self, now: Instant) {
        for _ in 0..MAX_FOLLOW_UPS {
            let Some(follow_up) = self.follow_ups.pop_front() else {
                break;
            };
            if self.left {
                continue;
            }
            match follow_up {
                FollowUp::Lost(peer) => {
                    self.asked.remove(&peer);
                    self.feed(topic::InEvent::PeerDisconnected(peer), Cause::OURS, now);
                }
                FollowUp::NotAsked(peer) => self.forget_request(peer, now),
                FollowUp::Refill => self.refill(Vec::new(), now),
                FollowUp::Bereft => {
                    if let Some(heir) = self.tree.inherit(&self.active, now, &mut self.rng) {
                        self.take_back(heir, now);
                    }
                }
            }
        }
        while !self.left
            && !self.no_dials
            && let Some(peer) = self.dials.start()
        {
            self.metrics.dials.inc();
            let data = self.book.get(&peer).map(|entry| entry.data.clone());
            self.out.push_back(Output::Dial { peer, data });
        }
    }

    /// Closes a connection and, if it needs to know, tells the protocol.
    fn close(&mut self, peer: P, why: CloseWhy) {
        if self.links.contains_key(&peer) {
            self.out.push_back(Output::Close { peer, why });
            self.drop_link(peer);
        }
    }

    fn drop_link(&mut self, peer: P) {
        let Some(link) = self.links.remove(&peer) else {
            return;
        };
        // Telling the protocol makes it forget the peer, so it is not told of connections that merely carried a message.
        if link.tell || self.active.contains(&peer) || self.asked.contains_key(&peer) {
            self.follow_ups.push_back(FollowUp::Lost(peer));
        }
    }

    /// Closes a peer's connection for cause and keeps it away.
    fn cut_off(&mut self, peer: P, why: CloseWhy, now: Instant) {
        if why == CloseWhy::Evicted {
            if self.links.contains_key(&peer) {
                self.metrics.peers_cut_off.inc();
            }
            self.evicted.expire(now);
            self.evicted.insert(peer, now + EVICTED_FOR);
        } else {
            self.metrics.peers_cut_off.inc();
            self.banned.expire(now);
            self.banned.insert(peer, now + self.config.ban);
        }
        self.bootstrap
            .retain(|known| *known != peer || why != CloseWhy::Evicted);
        self.book.remove(&peer);
        self.dials.take_queue(&peer);
        self.close(peer, why);
        self.follow_ups.push_back(FollowUp::Lost(peer));
    }

    /// A peer could not be reached: others are tried.
    fn forget_unreachable(&mut self, peer: P, now: Instant) {
        self.failed.insert(peer, now + heal::AVOID);
        self.book.remove(&peer);
        self.follow_ups.push_back(FollowUp::Lost(peer));
        self.follow_ups.push_back(FollowUp::Refill);
    }

    /// The protocol has taken a frame. A cache that is too full is emptied before the time.
    fn cached(&mut self, len: usize, now: Instant) {
        let forget = self.cache.add(len, now);
        if let (Some(forget), Some(timer)) = (forget, self.timers.evict()) {
            self.metrics.frames_uncached.inc_by(forget.frames as u64);
            let event = topic::InEvent::TimerExpired(timer);
            // All it does beside is set the timer again, which is set already.
            let _ = self.proto.handle(event, forget.until).count();
        }
    }

    fn note_seen(&mut self, id: mirror::Id, now: Instant) {
        // Shorter than the protocol's own memory: what is seen here, it knows for a repeat.
        let life = self
            .config
            .id_retention
            .saturating_sub(Duration::from_secs(1));
        self.seen.expire(now);
        self.seen.insert(id, now + life);
    }
}

//! Keeps a node on the topic where the protocol would give up.
//!
//! The protocol refills its view of neighbours only on certain occasions, counts requests that were answered as pending, and
//! does not notice when its part of the mesh has come apart from the rest. So twice a second the core looks after it:
//! no neighbour is joined for, too few are asked for, and a node that hears nothing joins again through a bootstrap peer.

use iroh_gossip::proto::{self, PeerIdentity, topic};
use n0_future::time::{Duration, Instant};
use rand::{RngExt, rngs::StdRng, seq::SliceRandom};

use super::{Cause, CloseWhy, Core, FollowUp};
use crate::gossip::{
    FrameGate, GossipConfig,
    mirror::{self, Message, PeerInfo, Priority, Swarm},
};

/// Through how many peers a node joins at once.
pub(super) const JOINS_AT_ONCE: usize = 1;

/// For how long a peer that could not be reached is not tried again.
pub(super) const AVOID: Duration = Duration::from_secs(20);

/// How often the membership is looked after.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long an answer to a neighbour request may take before the request counts as lost.
const ANSWER: Duration = Duration::from_secs(2);

/// How long one from a peer that is a neighbour by now may take: the protocol counts our own answer to one that asked us as a
/// request, which is often not answered. If it is, it should not come after this, when it would be a request to us.
const NEIGHBORS_ANSWER: Duration = Duration::from_secs(1);

/// How many known peers are offered to the protocol when its view has room.
const OFFER: usize = 4;

/// The pauses between attempts, while there is a neighbour and while there is none.
const RETRY_FROM: Duration = Duration::from_secs(1);
const RETRY_TO: Duration = Duration::from_secs(30);
const ALONE_FROM: Duration = Duration::from_millis(500);
const ALONE_TO: Duration = Duration::from_secs(4);

/// How long a node without neighbours leaves the last attempt alone, as long as a dial is under way.
const PATIENCE: Duration = Duration::from_secs(6);

/// How many offers may come to nothing before a node with a single neighbour insists.
const OFFERS: u32 = 3;

#[derive(Debug)]
pub(super) struct Heal {
    /// When to look next.
    pub(super) due: Instant,
    /// Whether the protocol may hold on to announcements that came to nothing.
    pub(super) dirty: bool,
    /// When to try for more neighbours next, after which pause, and how often it was tried.
    retry_at: Instant,
    pause: Duration,
    tries: u32,
    tried_at: Instant,
    /// When the last new frame was seen, and how long a silence counts as one.
    heard_at: Instant,
    patience: Duration,
    quiet_after: Duration,
    rejoin_at: Instant,
}

impl Heal {
    pub(super) fn new(config: &GossipConfig, now: Instant, rng: &mut StdRng) -> Self {
        Self {
            due: now + jittered(INTERVAL, rng),
            dirty: false,
            retry_at: now + jittered(RETRY_FROM, rng),
            pause: RETRY_FROM,
            tries: 0,
            tried_at: now,
            heard_at: now,
            patience: config.quiet_after,
            quiet_after: config.quiet_after,
            rejoin_at: now + jittered(config.rejoin_interval, rng),
        }
    }

    /// A new frame was seen.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.patience = self.quiet_after;
    }

    /// A neighbour was gained: what is tried works.
    pub(super) fn gained(&mut self) {
        self.pause = RETRY_FROM;
        self.tries = 0;
    }

    /// A neighbour was lost. The protocol looks for another one by itself; who is alone looks soon as well.
    pub(super) fn lost(&mut self, alone: bool, now: Instant, rng: &mut StdRng) {
        self.pause = RETRY_FROM;
        let pause = if alone { ALONE_FROM } else { RETRY_FROM };
        self.retry_at = self.retry_at.min(now + jittered(pause, rng));
    }

    fn tried(&mut self, alone: bool, now: Instant, rng: &mut StdRng) {
        self.tries += 1;
        self.tried_at = now;
        let pause = if alone {
            self.pause.min(ALONE_TO)
        } else {
            self.pause
        };
        self.retry_at = now + jittered(pause, rng);
        self.pause = (self.pause * 2).min(RETRY_TO);
    }
}

/// A pause between half and one and a half of the given one.
fn jittered(pause: Duration, rng: &mut StdRng) -> Duration {
    pause.mul_f64(rng.random_range(0.5..1.5))
}

impl<P: PeerIdentity, G: FrameGate> Core<P, G> {
    /// Looks after the membership, if it is time.
    pub(super) fn maintain(&mut self, now: Instant) {
        if now < self.heal.due {
            return;
        }
        self.heal.due = now + jittered(INTERVAL, &mut self.rng);
        self.banned.expire(now);
        self.failed.expire(now);
        self.seen.expire(now);
        for peer in self.dials.expire(now) {
            self.metrics.refused_introductions.inc();
            self.forget_unreachable(peer, now);
        }
        self.settle_requests(now);
        self.close_idle(now);
        if std::mem::take(&mut self.heal.dirty) {
            // Announcements that nobody could make good stay with the protocol until any peer is lost. So we lose
            // ourselves, which has no other effect.
            let event = topic::InEvent::PeerDisconnected(self.me);
            self.feed(event, Cause::OURS, now);
        }
        self.watch_view(now);
    }

    /// Clears neighbour requests that need no answer, or will get none: each takes up a place among the neighbours, for which
    /// another one is asked then.
    fn settle_requests(&mut self, now: Instant) {
        // Who is alone is looked after by `watch_view`.
        let seeks = !self.active.is_empty() && self.seeks_neighbors();
        let settled: Vec<P> = self
            .asked
            .iter()
            .filter(|(peer, since)| {
                let waited = now.saturating_duration_since(**since);
                let answered = seeks && self.active.contains(*peer) && waited > NEIGHBORS_ANSWER;
                // A dial ends by itself.
                answered || waited > ANSWER && !self.dials.is_for(peer)
            })
            .map(|(peer, _)| *peer)
            .collect();
        let refill = seeks && !settled.is_empty();
        for peer in settled {
            self.forget_request(peer, now);
        }
        if refill {
            self.follow_ups.push_back(FollowUp::Refill);
        }
    }

    /// Makes the protocol forget that it asked a peer to be a neighbour.
    pub(super) fn forget_request(&mut self, peer: P, now: Instant) {
        self.asked.remove(&peer);
        let answer = if self.active.contains(&peer) {
            Swarm::Neighbor {
                priority: Priority::Low,
                data: None,
            }
        } else {
            Swarm::Disconnect {
                alive: false,
                respond: false,
            }
        };
        self.pretend(peer, answer, now);
    }

    /// Whether there are fewer neighbours than there should be.
    pub(super) fn seeks_neighbors(&self) -> bool {
        self.active.len() < self.config.enough_neighbors()
    }

    fn close_idle(&mut self, now: Instant) {
        let idle: Vec<P> = self
            .links
            .iter()
            .filter(|(peer, link)| {
                !self.active.contains(peer) && link.close_at.is_some_and(|at| at <= now)
            })
            .map(|(peer, _)| *peer)
            .collect();
        for peer in idle {
            self.close(peer, CloseWhy::Done);
        }
    }

    fn watch_view(&mut self, now: Instant) {
        let neighbors = self.active.len();
        let enough = self.config.enough_neighbors();
        let alone = neighbors == 0;
        // Another join would make another peer drop a neighbour, for a node that is slow to connect as it is.
        let dialing = self.dials.any() && now < self.heal.tried_at + PATIENCE;
        if self.seeks_neighbors() && now >= self.heal.retry_at && !(alone && dialing) {
            let insist =
                alone || (neighbors == 1 && enough > 1 && self.heal.tries % (OFFERS + 1) == OFFERS);
            self.heal.tried(alone, now, &mut self.rng);
            if insist {
                let peers = self.candidates(if self.heal.tries > 2 { 2 } else { 1 }, now);
                self.rejoin(peers, now);
            } else {
                let offer = self.offer(now);
                self.refill(offer, now);
            }
        }
        let quiet = now.saturating_duration_since(self.heal.heard_at) > self.heal.patience;
        if neighbors > 0 && (quiet || now >= self.heal.rejoin_at) {
            if quiet {
                self.heal.patience = (self.heal.patience
                    + self.heal.patience.mul_f64(self.rng.random_range(0.5..1.5)))
                .min(self.config.rejoin_interval);
            }
            self.heal.rejoin_at = now + jittered(self.config.rejoin_interval, &mut self.rng);
            let mut peers = self.bootstrap_candidates(now);
            peers.shuffle(&mut self.rng);
            peers.truncate(1);
            self.rejoin(peers, now);
        }
    }

    fn rejoin(&mut self, peers: Vec<P>, now: Instant) {
        if !peers.is_empty() {
            self.metrics.rejoins.inc();
            self.request_join(peers, now);
        }
    }

    pub(super) fn request_join(&mut self, peers: Vec<P>, now: Instant) {
        if !peers.is_empty() {
            let join = proto::Command::Join(peers);
            self.feed(topic::InEvent::Command(join), Cause::OURS, now);
        }
    }

    /// Makes the protocol look for neighbours among the peers that it knows, and among these.
    pub(super) fn refill(&mut self, nodes: Vec<PeerInfo<P>>, now: Instant) {
        let nodes = mirror::List(nodes);
        self.pretend(self.me, Swarm::ShuffleReply { nodes }, now);
    }

    /// Gives the protocol a message that nobody sent.
    fn pretend(&mut self, from: P, message: Swarm<P>, now: Instant) {
        if let Some(message) = Message::Swarm(message).to_proto() {
            let event = topic::InEvent::RecvMessage(from, message);
            self.feed(event, Cause::OURS, now);
        }
    }

    fn may_try(&self, peer: &P, now: Instant) -> bool {
        *peer != self.me
            && !self.active.contains(peer)
            && !self.is_banned(peer, now)
            && !self.failed.holds(peer, now)
    }

    fn bootstrap_candidates(&self, now: Instant) -> Vec<P> {
        let candidates = self.bootstrap.iter();
        candidates
            .filter(|peer| self.may_try(peer, now))
            .copied()
            .collect()
    }

    /// Peers to join through: a known one before a bootstrap one, which many turn to.
    fn candidates(&mut self, count: usize, now: Instant) -> Vec<P> {
        let known = self.book.keys();
        let mut known: Vec<P> = known
            .filter(|peer| self.may_try(peer, now))
            .copied()
            .collect();
        known.shuffle(&mut self.rng);
        let mut bootstrap = self.bootstrap_candidates(now);
        if bootstrap.is_empty() && known.is_empty() {
            // All have failed lately; that is no reason to give up on those we were given.
            let given = self.bootstrap.iter().copied();
            bootstrap = given
                .filter(|peer| !self.active.contains(peer) && !self.is_banned(peer, now))
                .collect();
        }
        bootstrap.shuffle(&mut self.rng);
        let mut peers: Vec<P> = known.into_iter().take(count.div_ceil(2)).collect();
        for peer in bootstrap {
            if peers.len() < count && !peers.contains(&peer) {
                peers.push(peer);
            }
        }
        peers
    }

    fn offer(&mut self, now: Instant) -> Vec<PeerInfo<P>> {
        let known = self.book.keys().chain(&self.bootstrap);
        let mut known: Vec<P> = known
            .filter(|peer| self.may_try(peer, now))
            .copied()
            .collect();
        known.sort_unstable();
        known.dedup();
        known.shuffle(&mut self.rng);
        known.truncate(OFFER);
        known
            .into_iter()
            .map(|id| PeerInfo {
                id,
                data: self.book.get(&id).map(|entry| entry.data.clone()),
            })
            .collect()
    }
}

//! What a peer sends is looked at here before the protocol may see it.

use bytes::Bytes;
use iroh_gossip::proto::{PeerIdentity, topic};
use n0_future::time::{Duration, Instant};

use super::{Cause, CloseWhy, Core, Entry, FollowUp, MAX_PEER_DATA};
use crate::gossip::{
    FrameGate, FrameRefused,
    mirror::{self, Data, Gossip, IHave, Kind, Message, PeerInfo, Scope, Swarm},
};

/// The greatest number of hops that is taken as it is. Carriers count hops themselves, and the protocol's
/// counter has no guard at its end; so no honest node says more than one over this.
const MAX_ROUND: u16 = 1000;

/// How far the walks of membership messages may go, as in the protocol's own settings.
const MAX_WALK: u16 = 6;

/// What a message of many peers costs, where others cost one.
const LIST_COST: u32 = 10;

/// What a join costs, where others cost one: each sends several walks through the mesh.
const JOIN_COST: u32 = 10;

/// So many announcements in one message cost as much as a message.
const ANNOUNCEMENTS_AT_ONCE: usize = 16;

/// For so many frames of one message of announcements a neighbour is asked at once. The others wait their time.
const ASKED_AT_ONCE: usize = 64;

/// How long an announcement counts as unanswered.
const ANNOUNCED_FOR: Duration = Duration::from_secs(5);

impl<P: PeerIdentity, G: FrameGate> Core<P, G> {
    /// A message from a peer.
    pub(crate) fn message(&mut self, from: P, message: Bytes, now: Instant) {
        if self.left {
            return;
        }
        if !self.links.contains_key(&from) {
            // What still comes from a peer that we closed is of no use, but for frames that crossed our goodbye.
            if self.has_parted(&from, now)
                && message.len() <= self.config.max_message_size()
                && mirror::kind(&message) == Kind::Data
                && let Some(Message::Gossip(Gossip::Data(data))) = Message::<P>::decode(&message)
            {
                self.metrics.bytes_received.inc_by(message.len() as u64);
                self.frame(from, &message, data, now);
                self.settle(now);
            }
            return;
        }
        self.metrics.bytes_received.inc_by(message.len() as u64);
        if message.len() > self.config.max_message_size() {
            self.oversize(from, now);
        } else {
            match Message::decode(&message) {
                Some(Message::Gossip(Gossip::Data(data))) => self.frame(from, &message, data, now),
                Some(Message::Gossip(gossip)) => self.tree(from, gossip, now),
                Some(Message::Swarm(swarm)) => self.membership(from, swarm, now),
                None => self.malformed(from, now),
            }
        }
        self.settle(now);
    }

    /// A frame that came before the keys that open it.
    pub(super) fn again(&mut self, from: P, message: &Bytes, now: Instant) {
        if self.left || self.is_banned(&from, now) {
            return;
        }
        if let Some(Message::Gossip(Gossip::Data(data))) = Message::<P>::decode(message) {
            self.frame(from, message, data, now);
        }
    }

    /// A peer sent, or was about to send, more than a message may be.
    pub(crate) fn oversize(&mut self, from: P, now: Instant) {
        if self.links.contains_key(&from) {
            self.metrics.refused_oversize.inc();
            self.cut_off(from, CloseWhy::TooLarge, now);
        }
        self.settle(now);
    }

    /// A peer did on its connection what no honest node does.
    pub(crate) fn broke_rules(&mut self, from: P, now: Instant) {
        if self.links.contains_key(&from) {
            self.malformed(from, now);
        }
        self.settle(now);
    }

    fn malformed(&mut self, from: P, now: Instant) {
        self.metrics.refused_malformed.inc();
        self.cut_off(from, CloseWhy::Malformed, now);
    }

    fn forged(&mut self, from: P, now: Instant) {
        self.metrics.refused_forged.inc();
        self.cut_off(from, CloseWhy::Forged, now);
    }

    /// Pays for a message out of its sender's rate. Who goes on without means is cut off.
    fn control_token(&mut self, from: P, cost: u32, now: Instant) -> bool {
        let taken = self.means(from, now).control.take(cost, now);
        if !taken {
            self.too_much(from, cost, now);
        }
        taken
    }

    fn too_much(&mut self, from: P, cost: u32, now: Instant) {
        self.metrics.refused_rate.inc();
        if !self.means(from, now).strikes.take(cost, now) {
            self.metrics.floods.inc();
            self.cut_off(from, CloseWhy::Flooding, now);
        }
    }

    fn not_a_neighbor(&mut self, from: P, now: Instant) {
        self.metrics.refused_not_neighbor.inc();
        self.control_token(from, 1, now);
    }

    /// A frame: opened first, and only then forwarded.
    fn frame(&mut self, from: P, message: &Bytes, data: Data<'_>, now: Instant) {
        let neighbor = self.active.contains(&from);
        if !neighbor && !self.early.is_looked_at() {
            if !self.has_parted(&from, now) {
                return self.not_a_neighbor(from, now);
            }
            // It may not know yet that it should not send them, so what is too much is no fault.
            if !self.means(from, now).control.take(1, now) {
                self.metrics.refused_rate.inc();
                return;
            }
        }
        if data.content.len() > self.config.max_frame_size {
            return self.oversize(from, now);
        }
        // We only ever broadcast to the swarm.
        let Scope::Swarm(round) = data.scope else {
            return self.malformed(from, now);
        };
        let Some(round) = believable(round) else {
            return self.malformed(from, now);
        };
        if blake3::hash(data.content) != blake3::Hash::from_bytes(data.id) {
            self.forged(from, now);
            return;
        }
        let opened = if self.seen.holds(&data.id, now) {
            self.metrics.frames_repeated.inc();
            if !neighbor || !self.control_token(from, 1, now) {
                return;
            }
            self.tree.came_again(&data.id, &from, now);
            // All that the protocol does about a repeat is to prune.
            if !self.tree.may_prune(from, data.id, &self.active) {
                return;
            }
            None
        } else {
            match self.gate.open(&message.slice_ref(data.content)) {
                Ok(opened) => Some((opened, round + 1)),
                Err(FrameRefused::Forged) => return self.forged(from, now),
                Err(FrameRefused::Stale) => {
                    self.metrics.refused_stale.inc();
                    if neighbor {
                        self.control_token(from, 1, now);
                    }
                    return;
                }
                Err(FrameRefused::UnknownGeneration) => {
                    self.metrics.refused_unknown_generation.inc();
                    let counted = self.early.is_looked_at();
                    if counted || self.means(from, now).unknown.take(1, now) {
                        self.early.keep(from, message, now);
                    } else if neighbor {
                        self.too_much(from, 1, now);
                    }
                    return;
                }
            }
        };
        let known = if data.scope == Scope::Swarm(round) {
            mirror::from_bytes(message)
        } else {
            let scope = Scope::Swarm(round);
            Message::Gossip(Gossip::Data(Data { scope, ..data })).to_proto()
        };
        let Some(known) = known else {
            return self.malformed(from, now);
        };
        let new = opened.is_some();
        if new {
            self.metrics.frames_received.inc();
            self.note_seen(data.id, now);
            if neighbor {
                self.tree.comes_over(round, from);
                self.tree.came(data.id, from, now);
            } else {
                self.tree.strayed(data.id, from);
            }
            self.heal.heard(now);
        }
        let cause = Cause {
            from: Some(from),
            opened,
            ..Cause::OURS
        };
        // Whoever brings a frame that the protocol knows for a repeat, and we do not any more, becomes one that announcements go to.
        // That shall be nobody who is no neighbour, so the protocol is told that we bring it; and if it falls for that, `maintain`
        // has it forget us.
        let by = if neighbor { from } else { self.me };
        self.feed(topic::InEvent::RecvMessage(by, known), cause, now);
        if new {
            self.cached(data.content.len(), now);
            if neighbor && let Some(shortcut) = self.tree.shortcut(now) {
                self.shorten(shortcut, now);
            }
        }
    }

    /// Whether a peer was our neighbour until we said goodbye, a moment ago. What it sent before it knew of that is as good as
    /// before: nobody else will bring it unasked.
    fn has_parted(&self, peer: &P, now: Instant) -> bool {
        self.parted.holds(peer, now) && !self.is_banned(peer, now)
    }

    /// A message that runs the broadcast tree. The protocol would take these from anyone.
    fn tree(&mut self, from: P, gossip: Gossip<'_>, now: Instant) {
        if !self.active.contains(&from) {
            return self.not_a_neighbor(from, now);
        }
        let cost = match &gossip {
            Gossip::IHave(list) => 1 + list.0.len() / ANNOUNCEMENTS_AT_ONCE,
            _ => 1,
        };
        if !self.control_token(from, u32::try_from(cost).unwrap_or(u32::MAX), now) {
            return;
        }
        let gossip = match gossip {
            Gossip::IHave(list) => return self.announcements(from, list.0, now),
            Gossip::Graft { id, round } => {
                let Some(round) = believable(round) else {
                    return self.malformed(from, now);
                };
                let id = id.filter(|id| self.first_graft(from, *id, now));
                Gossip::Graft { id, round }
            }
            other => other,
        };
        let kind = match &gossip {
            Gossip::Prune => Kind::Prune,
            Gossip::Graft { .. } => Kind::Graft,
            _ => Kind::Announcement,
        };
        let predecessor = self.tree.predecessor(&from, now);
        self.tree.exchanged(from, kind);
        if kind == Kind::Graft {
            self.tree.brings_to(&from);
        }
        self.pass_on(from, &Message::Gossip(gossip), false, now);
        if kind == Kind::Prune {
            // One that was asked to take a parent's place does not want to.
            let parent = predecessor.filter(|former| self.active.contains(former));
            let parent = parent.or_else(|| self.tree.orphaned_by(from, &self.active));
            if let Some(parent) = parent {
                self.take_back(parent, now);
            }
        }
    }

    /// What a neighbour says it has.
    fn announcements(&mut self, from: P, list: Vec<IHave>, now: Instant) {
        if list.iter().any(|one| believable(one.round).is_none()) {
            return self.malformed(from, now);
        }
        if let Some(hops) = list.last().and_then(|one| believable(one.round)) {
            self.tree.stands(from, hops);
        }
        let delay = self.config.announce_delay;
        let lone = match list.as_slice() {
            [one] => Some(one.id),
            _ => None,
        };
        let mut asked = 0;
        for one in self.news(from, list, now) {
            self.heal.dirty = true;
            self.announced(from, one, now);
            if asked < ASKED_AT_ONCE && self.tree.is_brought_by_nobody(&one.id, &from, &self.active)
            {
                asked += 1;
                self.ask(from, one);
            }
        }
        if lone.is_some_and(|id| self.tree.is_late_shortcut(&from, &id, delay, now)) {
            self.shorten(from, now);
        }
    }

    /// One announcement at a time, so that it is known which frame the protocol sets a timer for.
    fn announced(&mut self, from: P, mut one: IHave, now: Instant) {
        self.tree.announced(from, one.id);
        // No reason for the protocol to change the tree: see `shorten`.
        one.round = MAX_ROUND;
        let cause = Cause {
            from: Some(from),
            missing: Some(one.id),
            ..Cause::OURS
        };
        let message = Message::<P>::Gossip(Gossip::IHave(mirror::List(vec![one])));
        if let Some(message) = message.to_proto() {
            self.feed(topic::InEvent::RecvMessage(from, message), cause, now);
        }
    }

    /// Asks a neighbour for a frame. If that is in vain, the protocol's timer asks whoever else announced it.
    fn ask(&mut self, of: P, frame: IHave) {
        let graft = Message::<P>::Gossip(Gossip::Graft {
            id: Some(frame.id),
            round: frame.round,
        });
        if let Ok(bytes) = postcard::to_stdvec(&graft) {
            self.metrics.frames_asked_at_once.inc();
            self.tree.asked_at_once(of, frame.id);
            self.send(of, bytes.into());
        }
    }

    /// Has a neighbour that is closer to the source of frames bring them, in place of the parent.
    fn shorten(&mut self, shortcut: P, now: Instant) {
        let Some(parent) = self.tree.shortens(shortcut, now) else {
            return;
        };
        self.metrics.parents_replaced.inc();
        self.say(shortcut, Gossip::Graft { id: None, round: 0 }, now);
        if self.active.contains(&parent) {
            self.say(parent, Gossip::Prune, now);
        }
    }

    /// Has a neighbour bring frames again, without asking for one.
    pub(super) fn take_back(&mut self, parent: P, now: Instant) {
        self.metrics.parents_taken_back.inc();
        self.tree.takes_back(parent);
        self.say(parent, Gossip::Graft { id: None, round: 0 }, now);
    }

    /// Sends a message that changes the tree. To the protocol it is all the same which side sends it.
    fn say(&mut self, to: P, gossip: Gossip<'_>, now: Instant) {
        let kind = match &gossip {
            Gossip::Prune => Kind::Prune,
            _ => Kind::Graft,
        };
        let message = Message::<P>::Gossip(gossip);
        let Ok(bytes) = postcard::to_stdvec(&message) else {
            return;
        };
        self.tree.exchanged(to, kind);
        self.pass_on(to, &message, false, now);
        self.send(to, bytes.into());
    }

    /// Whether a peer asks for this frame for the first time. Each answer costs us a frame, so there is one.
    fn first_graft(&mut self, from: P, id: mirror::Id, now: Instant) -> bool {
        let Some(link) = self.links.get_mut(&from) else {
            return false;
        };
        link.grafted.expire(now);
        if link.grafted.is_full() || link.grafted.holds(&id, now) {
            self.metrics.refused_grafts.inc();
            return false;
        }
        link.grafted.insert(id, now + self.config.frame_retention);
        true
    }

    /// The announced frames that we do not have, as far as the peer's share of our memory goes.
    fn news(&mut self, from: P, announced: Vec<IHave>, now: Instant) -> Vec<IHave> {
        let Some(link) = self.links.get_mut(&from) else {
            return Vec::new();
        };
        link.announced.expire(now);
        let mut news = Vec::new();
        for IHave { id, round } in announced {
            if self.seen.holds(&id, now) || link.announced.holds(&id, now) {
                continue;
            }
            if link.announced.is_full() {
                self.metrics.refused_announcements.inc();
                continue;
            }
            link.announced.insert(id, now + ANNOUNCED_FOR);
            let round = round.min(MAX_ROUND);
            news.push(IHave { id, round });
        }
        news
    }

    /// A message about who is on the topic.
    fn membership(&mut self, from: P, swarm: Swarm<P>, now: Instant) {
        let goodbye = matches!(swarm, Swarm::Disconnect { .. });
        if walks_too_far(&swarm) || tells_too_much(&swarm) {
            return self.malformed(from, now);
        }
        // What a peer passes on is not of its own making, so here it takes more to be cut off than to be ignored.
        if !goodbye && !self.control_token(from, 1, now) {
            return;
        }
        let cost = match &swarm {
            Swarm::Disconnect { .. } => 0,
            Swarm::Join(_) => JOIN_COST,
            Swarm::Shuffle { .. } | Swarm::ShuffleReply { .. } => LIST_COST,
            _ => 1,
        };
        if !self.means(from, now).membership.take(cost, now) {
            self.metrics.refused_rate.inc();
            return;
        }
        let walks = matches!(swarm, Swarm::ForwardJoin { .. } | Swarm::Shuffle { .. });
        if walks && !self.active.contains(&from) {
            return self.not_a_neighbor(from, now);
        }
        let swarm = match swarm {
            Swarm::Join(data) => Swarm::Join(self.own_word(from, data)),
            Swarm::Neighbor { priority, data } => {
                self.asked.remove(&from);
                let data = self.own_word(from, data);
                Swarm::Neighbor { priority, data }
            }
            Swarm::ForwardJoin { peer, ttl } => {
                let Some(peer) = self.hearsay(peer, now) else {
                    return;
                };
                Swarm::ForwardJoin { peer, ttl }
            }
            Swarm::Shuffle { origin, nodes, ttl } => {
                if origin == self.me || self.is_banned(&origin, now) {
                    return;
                }
                Swarm::Shuffle {
                    origin,
                    nodes: self.all_hearsay(nodes, now),
                    ttl,
                }
            }
            Swarm::ShuffleReply { nodes } => Swarm::ShuffleReply {
                nodes: self.all_hearsay(nodes, now),
            },
            Swarm::Disconnect { alive, respond } => {
                self.asked.remove(&from);
                if let Some(link) = self.links.get_mut(&from) {
                    link.tell = true;
                }
                Swarm::Disconnect { alive, respond }
            }
        };
        self.pass_on(from, &Message::Swarm(swarm), goodbye, now);
        if goodbye && !self.active.contains(&from) {
            self.close(from, CloseWhy::Done);
        }
    }

    /// Gives the protocol a message as it was left by the inspection.
    fn pass_on(&mut self, from: P, message: &Message<'_, P>, goodbye: bool, now: Instant) {
        let Some(message) = message.to_proto() else {
            return self.malformed(from, now);
        };
        let cause = Cause {
            from: Some(from),
            goodbye,
            ..Cause::OURS
        };
        self.feed(topic::InEvent::RecvMessage(from, message), cause, now);
    }

    /// What a peer says about its own addresses.
    fn own_word(&mut self, peer: P, data: Option<Bytes>) -> Option<Bytes> {
        let data = data.filter(|data| !data.is_empty())?;
        self.remember(peer, data.clone(), true);
        Some(data)
    }

    fn all_hearsay(
        &mut self,
        nodes: mirror::List<PeerInfo<P>, { mirror::MAX_NODES }>,
        now: Instant,
    ) -> mirror::List<PeerInfo<P>, { mirror::MAX_NODES }> {
        let nodes = nodes.0.into_iter();
        mirror::List(nodes.filter_map(|node| self.hearsay(node, now)).collect())
    }

    /// What a peer says about another one. What that one said itself counts for more.
    fn hearsay(&mut self, node: PeerInfo<P>, now: Instant) -> Option<PeerInfo<P>> {
        let PeerInfo { id, data } = node;
        if id == self.me {
            return None;
        }
        if self.is_banned(&id, now) {
            self.metrics.refused_introductions.inc();
            return None;
        }
        let data = match self.book.get(&id) {
            Some(entry) if entry.first_hand => Some(entry.data.clone()),
            _ => {
                let data = data.filter(|data| !data.is_empty());
                if let Some(data) = &data {
                    self.remember(id, data.clone(), false);
                }
                data
            }
        };
        Some(PeerInfo { id, data })
    }

    /// Writes into the address book. The protocol has a book of its own, without an end: what falls out of ours, it is
    /// made to forget.
    fn remember(&mut self, peer: P, data: Bytes, first_hand: bool) {
        let forgotten = self.book.insert(peer, Entry { data, first_hand });
        if let Some(peer) = forgotten
            && !self.active.contains(&peer)
            && !self.links.contains_key(&peer)
        {
            self.follow_ups.push_back(FollowUp::Lost(peer));
        }
    }
}

/// A number of hops, as we go on counting from it; none if no honest node says so many.
fn believable(round: u16) -> Option<u16> {
    (round <= MAX_ROUND + 1).then_some(round.min(MAX_ROUND))
}

/// Whether a message is to go farther than any honest node sends it.
fn walks_too_far<P>(swarm: &Swarm<P>) -> bool {
    match swarm {
        Swarm::ForwardJoin { ttl, .. } | Swarm::Shuffle { ttl, .. } => *ttl > MAX_WALK,
        _ => false,
    }
}

/// Whether a message tells more of a peer than any honest node does.
fn tells_too_much<P>(swarm: &Swarm<P>) -> bool {
    let long = |data: &Option<Bytes>| data.as_ref().is_some_and(|d| d.len() > MAX_PEER_DATA);
    match swarm {
        Swarm::Join(data) | Swarm::Neighbor { data, .. } => long(data),
        Swarm::ForwardJoin { peer, .. } => long(&peer.data),
        Swarm::Shuffle { nodes, .. } | Swarm::ShuffleReply { nodes } => {
            nodes.0.iter().any(|node| long(&node.data))
        }
        Swarm::Disconnect { .. } => false,
    }
}

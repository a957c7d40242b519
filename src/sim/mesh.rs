//! One node's part in the topic: the shipped core, and connections to other nodes made of events.
//!
//! What the network driver does with tasks and streams is done here with the queue of events; what either decides is shared: the
//! [`Core`], the bounded [`Queue`] of each peer, and [which of two connections](Dialled) is used.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use n0_future::time::Instant;

use super::{
    clock::Nanos,
    ctx::{Ctx, Event},
    net::{HUB, NodeId},
};
use crate::gossip::{
    FrameGate, GossipConfig, GossipMetrics,
    core::{AFTER_EVICTION, CloseWhy, Core, Output, SendKind},
    dialled::Dialled,
    queue::Queue,
};
use crate::seal::Opened;

/// How many bytes may be on their way to a peer that has not read them.
const WINDOW: usize = 1_250_000;

/// Our end of a connection.
struct Peer {
    conn: u64,
    dialled: Dialled,
    queue: Queue,
    /// A batch is being put on the wire.
    busy: bool,
    /// Sent and not read.
    unread: usize,
    last_arrival: Nanos,
}

/// What the ends of a connection do, whatever the gate of the node.
pub(super) trait Ends {
    /// Which topic of the run this is.
    fn topic(&self) -> u32;
    /// The generations whose keys the node has, to prove that it is a member or to be proved.
    fn offers(&self, ctx: &Ctx) -> [u32; 2];
    /// A message has come.
    fn message(&mut self, ctx: &mut Ctx, from: NodeId, message: Bytes);
    /// A connection is up here. False: it is not taken.
    fn up(&mut self, ctx: &mut Ctx, peer: NodeId, conn: u64, by_us: bool) -> bool;
    fn dial_failed(&mut self, ctx: &mut Ctx, peer: NodeId);
    /// A connection has ended.
    fn gone(&mut self, ctx: &mut Ctx, peer: NodeId, conn: u64);
    fn has(&self, peer: NodeId, conn: u64) -> bool;
    /// The connections there are.
    fn connections(&self) -> Vec<(NodeId, u64)>;
    /// The peer has read so many bytes.
    fn read(&mut self, ctx: &mut Ctx, peer: NodeId, conn: u64, bytes: usize);
    /// A batch has been put on the wire.
    fn wrote(&mut self, ctx: &mut Ctx, peer: NodeId, conn: u64, messages: usize, bytes: usize);
}

/// A frame that came.
pub(super) struct Delivered<O> {
    pub(super) opened: O,
    pub(super) hops: u16,
}

impl Delivered<Opened> {
    /// The events that came whole: `[from, to)`.
    pub(super) fn events(&self) -> Option<(u64, u64)> {
        match &self.opened {
            Opened::Events { first, bodies } => Some((*first, first + bodies.len() as u64)),
            _ => None,
        }
    }
}

pub(super) struct Mesh<G: FrameGate> {
    me: NodeId,
    topic: u32,
    core: Core<NodeId, G>,
    config: GossipConfig,
    metrics: Arc<GossipMetrics>,
    /// The newest keys that it has, and those before, which still open connections for a while.
    generation: u32,
    previous: Option<(u32, Instant)>,
    peers: BTreeMap<NodeId, Peer>,
}

impl<G: FrameGate> Mesh<G> {
    pub(super) fn new(
        ctx: &mut Ctx,
        me: NodeId,
        topic: u32,
        config: GossipConfig,
        (generation, gate): (u32, G),
    ) -> Self {
        let metrics = ctx.gossip_metrics(me);
        // What others need to connect to us; the sizes are those of two addresses.
        let data = Bytes::from(vec![0; 64]);
        let seed = ctx.seed();
        let now = ctx.clock.tokio();
        let core = Core::new(
            me,
            Some(data),
            config.clone(),
            gate,
            metrics.clone(),
            seed,
            now,
        );
        Self {
            me,
            topic,
            core,
            config,
            metrics,
            generation,
            previous: None,
            peers: BTreeMap::new(),
        }
    }

    /// Learns newer keys, and who is on the topic no more.
    pub(super) fn rekey(
        &mut self,
        ctx: &Ctx,
        generation: u32,
        (evict, revoked): (&[NodeId], bool),
        learn: impl FnOnce(&mut G),
    ) {
        let now = ctx.clock.tokio();
        self.core.with_gate(learn, now);
        let lifetime = match revoked {
            false => self.config.previous_key_lifetime,
            true => AFTER_EVICTION,
        };
        if generation == self.generation
            && let Some((_, until)) = &mut self.previous
        {
            *until = (*until).min(now + lifetime);
        }
        if generation > self.generation {
            self.previous = Some((self.generation, now + lifetime));
            self.generation = generation;
        }
        for peer in evict {
            self.core.evict(*peer, now);
        }
    }

    /// The generation of the newest keys that it has.
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// How many neighbours there are.
    pub(super) fn neighbors(&self) -> usize {
        self.core.neighbors()
    }

    pub(super) fn deadline(&self, ctx: &Ctx) -> Option<Nanos> {
        self.core.deadline().map(|at| ctx.clock.when(at.into_std()))
    }

    pub(super) fn join(&mut self, ctx: &mut Ctx, peers: Vec<NodeId>) {
        self.core.join(peers, ctx.clock.tokio());
    }

    pub(super) fn broadcast(&mut self, ctx: &mut Ctx, frame: Bytes) {
        if self.core.broadcast(frame, ctx.clock.tokio()).is_err() {
            ctx.tally.frames_refused += 1;
        }
    }

    pub(super) fn tick(&mut self, ctx: &mut Ctx) {
        let now = ctx.clock.tokio();
        let after = self.config.stuck_after;
        let stuck = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.queue.stuck(after, now));
        for peer in stuck.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.core.peer_stuck(peer, now);
        }
        self.core.tick(now);
    }

    /// Leaves the topic in order.
    pub(super) fn leave(&mut self, ctx: &mut Ctx) {
        self.core.leave(ctx.clock.tokio());
        self.work_off(ctx, |_, _| {});
    }

    /// Does what the core wants done.
    pub(super) fn work_off(
        &mut self,
        ctx: &mut Ctx,
        mut deliver: impl FnMut(&mut Ctx, Delivered<G::Opened>),
    ) {
        while let Some(output) = self.core.next_output() {
            match output {
                Output::Send {
                    peer,
                    message,
                    kind,
                } => self.send(ctx, peer, message, kind),
                Output::Dial { peer, .. } => {
                    ctx.dial(self.me, peer, self.topic, self.config.dial_timeout);
                }
                Output::Close { peer, why } => {
                    if let Some(mut ended) = self.peers.remove(&peer) {
                        let mut at = ctx.clock.nanos();
                        if why == CloseWhy::Done {
                            Self::flush(self.me, &mut ended, peer, ctx);
                            at = ended.last_arrival;
                        }
                        ctx.gone(peer, self.me, ended.conn, at);
                    }
                }
                Output::Deliver { opened, hops, .. } => deliver(ctx, Delivered { opened, hops }),
                Output::NeighborUp(_) | Output::NeighborDown(_) => {}
            }
        }
    }

    fn send(&mut self, ctx: &mut Ctx, peer: NodeId, message: Bytes, kind: SendKind) {
        let Some(p) = self.peers.get_mut(&peer) else {
            return;
        };
        ctx.tally.sent(self.me == HUB, kind, &message);
        let now = ctx.clock.tokio();
        if !p.queue.push(message, kind, now) {
            self.metrics.queue_dropped.inc();
            return;
        }
        Self::pump(self.me, p, peer, ctx);
    }

    /// Puts what waits for a peer on the wire.
    fn pump(me: NodeId, p: &mut Peer, peer: NodeId, ctx: &mut Ctx) {
        while !p.busy && p.unread < WINDOW {
            let (messages, bytes, done) = Self::batch(me, p, peer, ctx);
            if messages == 0 {
                return;
            }
            if done > ctx.clock.nanos() {
                p.busy = true;
                let conn = p.conn;
                ctx.events.push(
                    done,
                    Event::Wrote {
                        node: me,
                        peer,
                        conn,
                        messages,
                        bytes,
                    },
                );
            } else {
                p.queue.wrote(messages, bytes, ctx.clock.tokio());
            }
        }
    }

    /// Puts all that waits on the wire, before the connection is closed.
    fn flush(me: NodeId, p: &mut Peer, peer: NodeId, ctx: &mut Ctx) {
        while Self::batch(me, p, peer, ctx).0 > 0 {}
    }

    fn batch(me: NodeId, p: &mut Peer, peer: NodeId, ctx: &mut Ctx) -> (usize, usize, Nanos) {
        let (mut messages, mut bytes, mut done) = (0, 0, ctx.clock.nanos());
        let mut taken = Vec::new();
        p.queue.take(|message| taken.push(message));
        for message in taken {
            messages += 1;
            bytes += message.len();
            done = ctx.transmit(me, message.len());
            let arrivals = ctx.net.gossip(me, peer, done, &mut p.last_arrival);
            if arrivals.first.is_some() {
                p.unread += message.len();
            } else {
                ctx.tally.messages_lost += 1;
            }
            let conn = p.conn;
            let event = |message| Event::Message {
                to: peer,
                from: me,
                conn,
                message,
            };
            if let Some(at) = arrivals.second {
                ctx.events.push(at, event(message.clone()));
            }
            if let Some(at) = arrivals.first {
                ctx.events.push(at, event(message));
            }
        }
        (messages, bytes, done)
    }
}

impl<G: FrameGate> Ends for Mesh<G> {
    fn topic(&self) -> u32 {
        self.topic
    }

    fn offers(&self, ctx: &Ctx) -> [u32; 2] {
        let now = ctx.clock.tokio();
        let previous = self.previous.filter(|(_, until)| *until > now);
        [
            self.generation,
            previous.map_or(self.generation, |(generation, _)| generation),
        ]
    }

    fn message(&mut self, ctx: &mut Ctx, from: NodeId, message: Bytes) {
        self.core.message(from, message, ctx.clock.tokio());
    }

    fn up(&mut self, ctx: &mut Ctx, peer: NodeId, conn: u64, by_us: bool) -> bool {
        let now = ctx.clock.tokio();
        let new = Peer {
            conn,
            dialled: Dialled { by_us, up: now },
            queue: Queue::new(self.config.queue_messages, self.config.queue_bytes, now),
            busy: false,
            unread: 0,
            last_arrival: 0,
        };
        let larger = self.me > peer;
        let stands = match self.peers.get(&peer) {
            Some(old) => new.dialled.replaces(&old.dialled, larger),
            None => true,
        };
        let mut refused = false;
        let ended = if stands {
            self.peers.insert(peer, new)
        } else {
            Some(new)
        };
        if !self.core.peer_connected(peer, by_us, now) {
            self.peers.remove(&peer);
            refused = true;
        }
        if let Some(mut ended) = ended {
            Self::flush(self.me, &mut ended, peer, ctx);
            ctx.gone(peer, self.me, ended.conn, ended.last_arrival);
        }
        !refused
    }

    fn dial_failed(&mut self, ctx: &mut Ctx, peer: NodeId) {
        self.core.dial_failed(peer, ctx.clock.tokio());
    }

    fn gone(&mut self, ctx: &mut Ctx, peer: NodeId, conn: u64) {
        if self.peers.get(&peer).is_some_and(|p| p.conn == conn) {
            self.peers.remove(&peer);
            self.core.peer_closed(peer, ctx.clock.tokio());
        }
    }

    fn has(&self, peer: NodeId, conn: u64) -> bool {
        self.peers.get(&peer).is_some_and(|p| p.conn == conn)
    }

    fn connections(&self) -> Vec<(NodeId, u64)> {
        self.peers
            .iter()
            .map(|(id, peer)| (*id, peer.conn))
            .collect()
    }

    fn read(&mut self, ctx: &mut Ctx, peer: NodeId, conn: u64, bytes: usize) {
        if let Some(p) = self.peers.get_mut(&peer)
            && p.conn == conn
        {
            p.unread = p.unread.saturating_sub(bytes);
            Self::pump(self.me, p, peer, ctx);
        }
    }

    fn wrote(&mut self, ctx: &mut Ctx, peer: NodeId, conn: u64, messages: usize, bytes: usize) {
        if let Some(p) = self.peers.get_mut(&peer)
            && p.conn == conn
        {
            p.busy = false;
            p.queue.wrote(messages, bytes, ctx.clock.tokio());
            Self::pump(self.me, p, peer, ctx);
        }
    }
}

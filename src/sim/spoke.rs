//! A spoke: the shipped reception and gossip core, with a link and connections made of events.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use bytes::Bytes;
use iroh::EndpointAddr;

use super::{
    clock::Nanos,
    ctx::{Ctx, Event},
    gate::SharedCheck,
    mesh::Mesh,
    net::{HUB, NodeId},
    options::Breakage,
};
use crate::{
    close::{CloseCode, Closed},
    gossip::GossipConfig,
    listen::Incoming,
    metrics::ReceptionMetrics,
    position::{Epoch, Position},
    protocol::Protocol,
    seal::{Context, Opener},
    spoke::{
        Reconnect, SpokeStatus,
        backoff::Backoff,
        member::SpokeGate,
        outbox::Outbox,
        reception::{Order, Reception, ReceptionConfig},
    },
    wire::{
        broadcast::MAX_FRAME_SIZE,
        framing::Deframer,
        native::{self, Start, ToHub, ToSpoke, Topic, Welcome},
    },
};

/// The link that there is now, or is being made.
struct Link {
    number: u64,
    welcomed: bool,
    deframer: Deframer,
    /// When the last bytes that were sent arrive.
    last_arrival: Nanos,
}

pub(super) struct Spoke {
    pub(super) id: NodeId,
    reception: Reception,
    link: Option<Link>,
    pub(super) mesh: Option<Mesh<SpokeGate<SharedCheck>>>,
    outbox: Outbox,
    backoff: Backoff,
    /// When it is going to be woken.
    pub(super) wakes: Vec<Nanos>,
    /// Does nothing until then; what comes meanwhile waits.
    pub(super) stalled_until: Option<Nanos>,
    pub(super) held: VecDeque<Event>,
    let_out: u64,
    swapped: Option<Incoming>,
    /// The tip when it was revoked. Since then it only listens to the topic, with all that it has.
    revoked_at: Option<u64>,
}

impl Spoke {
    pub(super) fn new(
        ctx: &mut Ctx,
        id: NodeId,
        gossip: bool,
        metrics: &Arc<ReceptionMetrics>,
    ) -> Self {
        let config = ReceptionConfig {
            hub: ctx.hub_id,
            start: Start::Tip,
            gossip,
            max_event_bytes: 16 << 20,
            max_buffered_bytes: 64 << 20,
            seed: ctx.seed(),
        };
        Self {
            id,
            reception: Reception::new(config, metrics.clone(), ctx.clock.now()),
            link: None,
            mesh: None,
            outbox: Outbox::new(Protocol::Native, 4 << 20),
            backoff: Backoff::new(Reconnect::default(), ctx.seed()),
            wakes: Vec::new(),
            stalled_until: None,
            held: VecDeque::new(),
            let_out: 0,
            swapped: None,
            revoked_at: None,
        }
    }

    /// The hub has revoked it when its log stood at `tip`.
    pub(super) fn revoked(&mut self, tip: u64) {
        self.link = None;
        self.revoked_at = Some(tip);
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.revoked_at.is_some()
    }

    /// Looks what the topic still gives to one who was revoked.
    fn eavesdrop(&mut self, ctx: &mut Ctx, tip: u64) {
        if let Some(mesh) = &mut self.mesh {
            mesh.work_off(ctx, |ctx, frame| {
                let is_new = frame.events().is_some_and(|(_, to)| to > tip);
                ctx.tally.read_after_revoked += u64::from(is_new);
            });
        }
    }

    /// The generation of the newest keys of its topic that it has.
    pub(super) fn generation(&self) -> Option<u32> {
        self.mesh.as_ref().map(Mesh::generation)
    }

    /// Whether the topic serves it.
    pub(super) fn is_served(&self) -> bool {
        self.reception.is_served()
    }

    /// Tries to reach the hub.
    pub(super) fn connect(&mut self, ctx: &mut Ctx) {
        if self.revoked_at.is_some() {
            return;
        }
        let number = ctx.number();
        self.link = Some(Link {
            number,
            welcomed: false,
            deframer: Deframer::new(native::MAX_FRAME),
            last_arrival: 0,
        });
        let takes = ctx.net.handshake(3);
        let at = ctx.clock.nanos() + takes;
        let hello = self.reception.hello();
        let mut chunks = Vec::new();
        ToHub::Hello(hello).encode(&mut chunks);
        if let Some(link) = &mut self.link {
            let size: usize = chunks.iter().map(Bytes::len).sum();
            ctx.tally.to_hub.add(size);
            link.last_arrival = ctx
                .net
                .stream(self.id, HUB, at, size, &mut link.last_arrival);
            let arrives = link.last_arrival;
            ctx.events.push(
                arrives,
                Event::ToHub {
                    spoke: self.id,
                    link: number,
                    chunks,
                },
            );
        }
        let limit = ctx.clock.nanos() + ctx.connect_limit;
        ctx.events.push(
            limit,
            Event::ConnectLimit {
                spoke: self.id,
                link: number,
            },
        );
    }

    /// An attempt to reach the hub has taken too long.
    pub(super) fn connect_limit(&mut self, ctx: &mut Ctx, number: u64) {
        let waits = |link: &Link| link.number == number && !link.welcomed;
        if self.link.as_ref().is_some_and(waits) {
            self.lost(ctx, number);
        }
    }

    /// The link is gone; another one is made after a while.
    pub(super) fn lost(&mut self, ctx: &mut Ctx, number: u64) {
        let closed = Closed::by_us(CloseCode::TimedOut, "the hub does not answer");
        self.ended(ctx, number, &closed);
    }

    /// The hub has closed the link.
    pub(super) fn closed(&mut self, ctx: &mut Ctx, number: u64, code: CloseCode) {
        let reason = "the hub has closed the link".to_owned();
        self.ended(ctx, number, &Closed::ByPeer { code, reason });
    }

    fn ended(&mut self, ctx: &mut Ctx, number: u64, closed: &Closed) {
        if self.link.as_ref().is_none_or(|link| link.number != number) {
            return;
        }
        self.link = None;
        self.outbox.end_link();
        let now = ctx.clock.now();
        let Some(retry) = self.backoff.ended(now, closed) else {
            // It would only happen again: the spoke ends, and what it does not get counts as lost.
            return self.reception.closed(now, closed);
        };
        self.reception.lost(now, closed, retry.attempt, retry.after);
        let at = ctx.clock.nanos() + super::clock::nanos(retry.after);
        ctx.events.push(at, Event::Connect { spoke: self.id });
    }

    pub(super) fn link(&self) -> Option<u64> {
        self.link.as_ref().map(|link| link.number)
    }

    /// Bytes came along the link.
    pub(super) fn bytes(&mut self, ctx: &mut Ctx, number: u64, chunks: Vec<Bytes>) {
        let Some(link) = self.link.as_mut().filter(|link| link.number == number) else {
            return;
        };
        let mut frames = Vec::new();
        for chunk in chunks {
            link.deframer.push(chunk);
            while let Ok(Some(frame)) = link.deframer.next() {
                frames.push(frame);
            }
        }
        for frame in frames {
            let frame = match ToSpoke::decode(frame) {
                Ok(Some(frame)) => frame,
                Ok(None) => continue,
                Err(_) => {
                    ctx.tally.misbehaved += 1;
                    continue;
                }
            };
            let now = ctx.clock.now();
            let taken = match frame {
                ToSpoke::Welcome(welcome) => {
                    self.backoff.linked(now);
                    if let Some(link) = &mut self.link {
                        link.welcomed = true;
                    }
                    let position = Position::new(welcome.epoch, welcome.tip);
                    ctx.oracle.welcomed(self.id, position);
                    self.welcomed(now, &welcome)
                }
                frame => self.reception.frame(now, frame).ok(),
            };
            if taken.is_none() {
                ctx.tally.misbehaved += 1;
                return self.lost(ctx, number);
            }
            // Let out at once, so that what comes in its turn is never buffered.
            self.settle(ctx);
        }
    }

    fn welcomed(&mut self, now: Instant, welcome: &Welcome) -> Option<()> {
        let resumed = self.reception.welcomed(now, welcome).ok()?;
        let (published, window) = (welcome.published, welcome.publish_window);
        let most = welcome.max_event_bytes;
        self.outbox
            .begin_link(resumed, published, window, most)
            .ok()?;
        Some(())
    }

    pub(super) fn tick(&mut self, ctx: &mut Ctx) {
        if self.revoked_at.is_none() {
            self.reception.tick(ctx.clock.now());
        }
        if let Some(mesh) = &mut self.mesh {
            mesh.tick(ctx);
        }
    }

    /// When to [`tick`](Self::tick).
    pub(super) fn deadline(&self, ctx: &Ctx) -> Option<Nanos> {
        let reception = self.reception.deadline(false);
        let reception = reception.filter(|_| self.revoked_at.is_none());
        let reception = reception.map(|at| ctx.clock.when(at));
        let mesh = self.mesh.as_ref().and_then(|mesh| mesh.deadline(ctx));
        [reception, mesh].into_iter().flatten().min()
    }

    /// Does all that is to be done now.
    pub(super) fn settle(&mut self, ctx: &mut Ctx) {
        let now = ctx.clock.now();
        if let Some(tip) = self.revoked_at {
            return self.eavesdrop(ctx, tip);
        }
        loop {
            let mut idle = true;
            if let Some(mesh) = &mut self.mesh {
                let reception = &mut self.reception;
                let epoch = reception.position().map(|position| position.epoch);
                mesh.work_off(ctx, |ctx, frame| {
                    idle = false;
                    if let (Some(epoch), Some((from, to))) = (epoch, frame.events()) {
                        for offset in from..to {
                            ctx.oracle.hops(epoch, offset, frame.hops);
                        }
                    }
                    reception.opened(now, frame.opened);
                });
            }
            while let Some(order) = self.reception.poll_order(now) {
                idle = false;
                self.order(ctx, order);
            }
            while let Some(incoming) = self.reception.poll_delivery(now) {
                idle = false;
                self.let_out(ctx, incoming);
            }
            if idle {
                return self.write(ctx);
            }
        }
    }

    fn order(&mut self, ctx: &mut Ctx, order: Order) {
        match order {
            Order::Write(frame) => self.order_frame(ctx, frame),
            Order::Join { topic, epoch } => self.join(ctx, *topic, epoch),
            Order::Meet { peers } => {
                let peers = nodes(ctx, &peers);
                if let Some(mesh) = &mut self.mesh {
                    mesh.join(ctx, peers);
                }
            }
            Order::Rekey(rekey) => {
                let ids = rekey.evict.iter();
                let evict: Vec<_> = ids.filter_map(|id| ctx.node(id)).collect();
                let mut fits = true;
                if let Some(mesh) = &mut self.mesh {
                    mesh.rekey(
                        ctx,
                        rekey.keys.generation,
                        (&evict, rekey.revoked),
                        |gate| {
                            fits = gate.opener().add(&rekey.keys).is_ok();
                        },
                    );
                }
                ctx.tally.misbehaved += u64::from(!fits);
            }
            Order::Leave => {
                if let Some(mut mesh) = self.mesh.take() {
                    mesh.leave(ctx);
                }
            }
            Order::Published { seq } => {
                if self.outbox.acked(seq).is_err() {
                    ctx.tally.misbehaved += 1;
                }
            }
            Order::Tell(_) => {}
        }
    }

    fn order_frame(&mut self, ctx: &mut Ctx, frame: ToHub) {
        if let ToHub::Want { to: Some(_), .. } = frame {
            ctx.tally.wants += 1;
            if ctx.breakage == Breakage::NoWants {
                return;
            }
        }
        if !self.outbox.write(frame) {
            ctx.tally.misbehaved += 1;
        }
    }

    /// Writes what there is for the hub.
    fn write(&mut self, ctx: &mut Ctx) {
        let Some(link) = self.link.as_mut().filter(|link| link.welcomed) else {
            return;
        };
        let mut chunks = Vec::new();
        self.outbox.next_batch(&mut chunks);
        if chunks.is_empty() {
            return;
        }
        let size: usize = chunks.iter().map(Bytes::len).sum();
        ctx.tally.to_hub.add(size);
        let at = ctx.transmit(self.id, size);
        let at = ctx
            .net
            .stream(self.id, HUB, at, size, &mut link.last_arrival);
        let (spoke, link) = (self.id, link.number);
        ctx.events.push(
            at,
            Event::ToHub {
                spoke,
                link,
                chunks,
            },
        );
    }

    fn join(&mut self, ctx: &mut Ctx, topic: Topic, epoch: Epoch) {
        if let Some(mut mesh) = self.mesh.take() {
            mesh.leave(ctx);
        }
        let mut opener = Opener::new(Context::new(ctx.hub_id, topic.topic), epoch);
        let Some((number, check)) = ctx.topic(&topic.topic) else {
            return;
        };
        if opener.add(&topic.keys).is_err() {
            ctx.tally.misbehaved += 1;
            return;
        }
        let config = GossipConfig {
            max_frame_size: (topic.max_frame_bytes as usize).min(MAX_FRAME_SIZE),
            ..GossipConfig::default()
        };
        let gate = SpokeGate::new(opener, check);
        let generation = topic.keys.generation;
        let mut mesh = Mesh::new(ctx, self.id, number, config, (generation, gate));
        mesh.join(ctx, nodes(ctx, &topic.peers));
        self.mesh = Some(mesh);
    }

    /// What listeners see goes to the oracle, unless a test wants it spoilt.
    fn let_out(&mut self, ctx: &mut Ctx, incoming: Incoming) {
        let spoilt = match &incoming {
            Incoming::Event(_) => {
                self.let_out += 1;
                self.let_out.is_multiple_of(100)
            }
            Incoming::Missed(_) if ctx.breakage == Breakage::HidesMissed => return,
            _ => false,
        };
        if spoilt {
            match ctx.breakage {
                Breakage::Repeats => self.tell(ctx, &incoming, false),
                Breakage::Alters => return self.tell(ctx, &incoming, true),
                Breakage::Disorders => {
                    self.swapped = Some(incoming);
                    return;
                }
                _ => {}
            }
        }
        self.tell(ctx, &incoming, false);
        if let Some(swapped) = self.swapped.take() {
            self.tell(ctx, &swapped, false);
        }
    }

    fn tell(&self, ctx: &mut Ctx, incoming: &Incoming, altered: bool) {
        let now = ctx.clock.nanos();
        match incoming {
            Incoming::Event(event) => {
                if let Some(position) = event.position {
                    let body = if altered {
                        b"altered"
                    } else {
                        &event.envelope.body()[..]
                    };
                    ctx.oracle.event(self.id, position, body, now);
                }
            }
            Incoming::Missed(missed) => ctx.oracle.missed(self.id, missed.from, missed.to),
            Incoming::Status(SpokeStatus::Recovered { wholly }) => {
                ctx.oracle.recovered(self.id, *wholly);
            }
            Incoming::Status(SpokeStatus::Reconnecting { .. }) => ctx.oracle.disconnected(self.id),
            _ => {}
        }
    }

    /// Ends in order; says goodbye to the hub and to the mesh.
    pub(super) fn shut_down(mut self, ctx: &mut Ctx) {
        let closed = Closed::by_us(CloseCode::Goodbye, "the spoke ended");
        self.reception.closed(ctx.clock.now(), &closed);
        self.settle(ctx);
        if let Some(link) = &mut self.link {
            let at = ctx
                .net
                .stream(self.id, HUB, ctx.clock.nanos(), 0, &mut link.last_arrival);
            let (spoke, link) = (self.id, link.number);
            ctx.events.push(at, Event::LinkEnds { spoke, link });
        }
    }
}

fn nodes(ctx: &Ctx, peers: &[EndpointAddr]) -> Vec<NodeId> {
    peers.iter().filter_map(|peer| ctx.node(&peer.id)).collect()
}

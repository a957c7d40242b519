//! One run: the nodes, what happens to them, and when it is over.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    clock::{Nanos, SECOND, nanos},
    ctx::{Ctx, Event},
    faults::REKEYED_BY,
    hub::{HELD, Hub},
    net::{HUB, NodeId},
    options::Options,
    report::{Report, Spread},
    spoke::Spoke,
};
use crate::{event::Envelope, metrics::ReceptionMetrics, position::Position};

/// How long the mesh may take to form before the first event.
const WARM_UP: Nanos = 600 * SECOND;

/// How long everything has to be as it should before the first event.
const CALM: Nanos = 2 * SECOND;

/// How often the run looks whether it can go on.
const LOOK: Nanos = 200_000_000;

/// How many spokes begin to connect in a second of the warm-up.
const CONNECTS_PER_S: u64 = 1000;

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// How many spokes are linked, while the mesh forms.
    pub linked: u64,
    /// How many events were broadcast.
    pub broadcast: u64,
    /// The virtual seconds since the beginning.
    pub seconds: f64,
}

pub(super) struct World {
    pub(super) options: Options,
    pub(super) ctx: Ctx,
    pub(super) hub: Option<Hub>,
    /// The tip of a hub that is dead.
    pub(super) last_tip: Option<Position>,
    pub(super) spokes: Vec<Option<Box<Spoke>>>,
    pub(super) live: BTreeSet<NodeId>,
    metrics: Arc<ReceptionMetrics>,
    payload: Payload,
    published: u64,
    /// Since when all spokes are served as they should.
    calm_since: Option<Nanos>,
    pub(super) first_event: Option<Nanos>,
    /// What the hub had sent by then, in bytes: as usual, and to make up for losses.
    before_first: (u64, u64),
    pub(super) last_event: Option<Nanos>,
    pub(super) replaced: f64,
}

/// Makes the payloads of events: text, no two alike.
struct Payload {
    rng: StdRng,
    size: usize,
    /// Made and not taken.
    made: Option<Envelope>,
}

impl Payload {
    fn event(&mut self, number: u64) -> Envelope {
        let made = self.made.get_or_insert_with(|| {
            let mut bytes = vec![0; (self.size / 2).max(1)];
            self.rng.fill_bytes(&mut bytes);
            let text = data_encoding::HEXLOWER.encode(&bytes);
            let json = format!("\"{text}\"");
            let made = Envelope::from_json("sim", &number.to_string(), &json);
            // Text in quotes is JSON, and the names are short.
            made.unwrap_or_else(|_| unreachable!("an event of the simulator is one"))
        });
        made.clone()
    }

    fn taken(&mut self) {
        self.made = None;
    }
}

impl World {
    pub(super) fn new(options: Options) -> Self {
        let mut ctx = Ctx::new(&options);
        let log = Hub::log(&mut ctx, options.log_events);
        let hub = Hub::new(
            &mut ctx,
            options.fan_out.clone(),
            log,
            options.lose_root_frame,
        );
        let rng = StdRng::seed_from_u64(ctx.seed());
        let payload = Payload {
            rng,
            size: options.size,
            made: None,
        };
        let mut world = Self {
            ctx,
            hub: Some(hub),
            last_tip: None,
            spokes: vec![None],
            live: BTreeSet::new(),
            metrics: Arc::default(),
            payload,
            published: 0,
            calm_since: None,
            first_event: None,
            before_first: (0, 0),
            last_event: None,
            replaced: 0.0,
            options,
        };
        for n in 0..u64::from(world.options.spokes) {
            let gossip = n >= u64::from(world.options.direct_spokes);
            let at = n * SECOND / CONNECTS_PER_S;
            world.add_spoke(gossip, at);
        }
        world.ctx.events.push(LOOK, Event::Look);
        world.settle(HUB);
        world
    }

    pub(super) fn add_spoke(&mut self, gossip: bool, at: Nanos) {
        let id = self.ctx.new_node();
        let spoke = Spoke::new(&mut self.ctx, id, gossip, &self.metrics);
        self.spokes.push(Some(Box::new(spoke)));
        self.live.insert(id);
        self.ctx.events.push(at, Event::Connect { spoke: id });
    }

    pub(super) fn spoke(&mut self, id: NodeId) -> Option<&mut Spoke> {
        self.spokes.get_mut(id as usize)?.as_deref_mut()
    }

    /// Runs to the end.
    pub(super) fn run(mut self, mut progress: impl FnMut(Progress)) -> Report {
        while let Some(event) = self.ctx.events.pop(&mut self.ctx.clock) {
            if matches!(event, Event::Look) {
                progress(self.progress());
                if self.is_over() {
                    break;
                }
                self.ctx
                    .events
                    .push(self.ctx.clock.nanos() + LOOK, Event::Look);
                self.look();
                continue;
            }
            self.happen(event);
        }
        self.report()
    }

    fn progress(&self) -> Progress {
        Progress {
            linked: self.hub.as_ref().map_or(0, |hub| hub.counts().0 as u64),
            broadcast: self.published,
            seconds: self.ctx.clock.nanos() as f64 / 1e9,
        }
    }

    /// Begins with the events once the mesh stands.
    fn look(&mut self) {
        let now = self.ctx.clock.nanos();
        if self.first_event.is_some() {
            return;
        }
        let formed = self.hub.as_ref().is_some_and(|hub| {
            let (linked, joining, gossip) = hub.counts();
            let capable = (self.options.spokes
                - self.options.direct_spokes.min(self.options.spokes))
                as usize;
            linked == self.live.len() && joining == 0 && (gossip == 0 || gossip == capable)
        });
        if !formed {
            self.calm_since = None;
        }
        let since = *self.calm_since.get_or_insert(now);
        if (formed && now - since >= CALM) || now >= WARM_UP {
            self.begin();
        }
    }

    fn begin(&mut self) {
        let now = self.ctx.clock.nanos();
        self.first_event = Some(now);
        let tally = &self.ctx.tally;
        self.before_first = (tally.hub_usual(), tally.hub_remedies());
        let events = &mut self.ctx.events;
        events.push(now, Event::Publish);
        for partition in &self.options.partitions {
            let (share, lasts) = (partition.share, nanos(partition.lasts));
            events.push(now + nanos(partition.at), Event::Cut { share, lasts });
        }
        for stall in &self.options.stalls {
            let (spokes, lasts) = (stall.spokes, nanos(stall.lasts));
            events.push(now + nanos(stall.at), Event::Stall { spokes, lasts });
        }
        for restart in &self.options.restarts {
            events.push(now + nanos(restart.at), Event::HubDies(*restart));
        }
        for revocation in &self.options.revocations {
            let spokes = revocation.spokes;
            events.push(now + nanos(revocation.at), Event::Revoke { spokes });
        }
        if self.options.churn.per_s > 0.0 {
            events.push(now, Event::Replace);
        }
    }

    /// Whether there is nothing more to wait for.
    fn is_over(&self) -> bool {
        let Some(last) = self.last_event else {
            return false;
        };
        let now = self.ctx.clock.nanos();
        if now >= last + nanos(self.options.settle) {
            return true;
        }
        let faults = self.options.partitions.iter().map(|f| f.at + f.lasts);
        let faults = faults.chain(self.options.stalls.iter().map(|f| f.at + f.lasts));
        let faults = faults.chain(self.options.revocations.iter().map(|f| f.at + REKEYED_BY));
        let faults = faults.chain(self.options.restarts.iter().map(|f| f.at + f.lasts));
        let begin = self.first_event.unwrap_or(0);
        if faults.max().is_some_and(|at| now <= begin + nanos(at)) {
            return false;
        }
        let Some(hub) = &self.hub else {
            return false;
        };
        let tip = hub.tip();
        self.live.iter().all(|id| self.ctx.oracle.has_all(*id, tip))
    }

    pub(super) fn happen(&mut self, event: Event) {
        let event = match self.hold(event) {
            Some(event) => event,
            None => return,
        };
        match event {
            Event::Wake { node, at } => self.wake(node, at),
            Event::Message {
                to,
                from,
                conn,
                message,
            } => self.message(to, from, conn, message),
            Event::Wrote {
                node,
                peer,
                conn,
                messages,
                bytes,
            } => {
                self.on_mesh(node, |mesh, ctx| {
                    mesh.wrote(ctx, peer, conn, messages, bytes)
                });
            }
            Event::Knock {
                to,
                from,
                conn,
                topic,
                limit,
            } => self.knock(to, from, conn, topic, limit),
            Event::Dialled {
                to,
                peer,
                conn,
                topic,
                up,
            } => self.dialled(to, peer, conn, topic, up),
            Event::Gone { to, from, conn } => {
                self.on_mesh(to, |mesh, ctx| mesh.gone(ctx, from, conn));
                self.settle(to);
            }
            Event::Connect { spoke } => {
                self.on_spoke(spoke, |spoke, ctx| {
                    if spoke.link().is_none() {
                        spoke.connect(ctx);
                    }
                });
                self.settle(spoke);
            }
            Event::ConnectLimit { spoke, link } => {
                self.on_spoke(spoke, |spoke, ctx| spoke.connect_limit(ctx, link));
                self.settle(spoke);
            }
            Event::ToHub {
                spoke,
                link,
                chunks,
            } => {
                self.on_hub(|hub, ctx| hub.bytes(ctx, spoke, link, chunks));
            }
            Event::ToSpoke {
                spoke,
                link,
                chunks,
            } => {
                let size = chunks.iter().map(Bytes::len).sum();
                if self.on_spoke(spoke, |spoke, ctx| spoke.bytes(ctx, link, chunks)) {
                    self.settle(spoke);
                    self.on_hub(|hub, ctx| hub.read(ctx, spoke, link, size));
                }
            }
            Event::LinkWrote { spoke, link } => self.on_hub(|hub, ctx| hub.wrote(ctx, spoke, link)),
            Event::LinkEnds { spoke, link } => {
                self.on_hub(|hub, ctx| hub.link_ends(ctx, spoke, link));
            }
            Event::LinkLost { spoke, link } => {
                self.ctx.tally.links_lost += 1;
                self.on_spoke(spoke, |spoke, ctx| spoke.lost(ctx, link));
                self.settle(spoke);
            }
            Event::LinkClosed { spoke, link, code } => {
                self.ctx.tally.links_lost += 1;
                self.on_spoke(spoke, |spoke, ctx| spoke.closed(ctx, link, code));
                self.settle(spoke);
            }
            Event::Look => {}
            Event::Publish => self.publish(),
            Event::Replace => self.replace(),
            Event::Cut { share, lasts } => self.cut(share, lasts),
            Event::CutIdle => self.cut_idle(),
            Event::Heal => self.ctx.net.heal(self.ctx.clock.nanos()),
            Event::Stall { spokes, lasts } => self.stall(spokes, lasts),
            Event::Continue { spoke } => self.go_on(spoke),
            Event::Revoke { spokes } => self.revoke(spokes),
            Event::Rekeyed { generation } => self.count_rekeyed(generation),
            Event::HubDies(restart) => self.hub_dies(restart),
            Event::HubRises { log } => self.hub_rises(log),
        }
    }

    /// Keeps an event for a spoke that is stopped.
    fn hold(&mut self, event: Event) -> Option<Event> {
        let node = match &event {
            Event::Wake { node, .. } | Event::Wrote { node, .. } => *node,
            Event::Message { to, .. } | Event::Dialled { to, .. } | Event::Gone { to, .. } => *to,
            Event::Connect { spoke }
            | Event::ConnectLimit { spoke, .. }
            | Event::ToSpoke { spoke, .. }
            | Event::LinkLost { spoke, .. }
            | Event::LinkClosed { spoke, .. } => *spoke,
            _ => return Some(event),
        };
        let now = self.ctx.clock.nanos();
        match self.spoke(node) {
            Some(spoke) if spoke.stalled_until.is_some_and(|until| now < until) => {
                spoke.held.push_back(event);
                None
            }
            _ => Some(event),
        }
    }

    pub(super) fn on_spoke(&mut self, id: NodeId, what: impl FnOnce(&mut Spoke, &mut Ctx)) -> bool {
        let Some(Some(spoke)) = self.spokes.get_mut(id as usize) else {
            return false;
        };
        what(spoke, &mut self.ctx);
        true
    }

    pub(super) fn on_hub(&mut self, what: impl FnOnce(&mut Hub, &mut Ctx)) {
        if let Some(hub) = &mut self.hub {
            what(hub, &mut self.ctx);
            self.settle(HUB);
        }
    }

    /// Lets a node do what there is to do, and sees to it that it is woken in time.
    pub(super) fn settle(&mut self, node: NodeId) {
        let ctx = &mut self.ctx;
        let (deadline, wakes) = if node == HUB {
            let Some(hub) = &mut self.hub else {
                return;
            };
            hub.settle(ctx);
            (hub.deadline(ctx), &mut hub.wakes)
        } else {
            let Some(Some(spoke)) = self.spokes.get_mut(node as usize) else {
                return;
            };
            spoke.settle(ctx);
            (spoke.deadline(ctx), &mut spoke.wakes)
        };
        // Time passes: what was due is not done again at the same instant.
        let due = deadline.map(|at| at.max(ctx.clock.nanos() + 1));
        // Woken before, it looks again.
        if let Some(at) = due
            && !wakes.iter().any(|wake| *wake <= at)
        {
            wakes.push(at);
            ctx.events.push(at, Event::Wake { node, at });
        }
    }

    fn wake(&mut self, node: NodeId, at: Nanos) {
        if node == HUB {
            let Some(hub) = &mut self.hub else {
                return;
            };
            hub.wakes.retain(|wake| *wake != at);
            if is_due(hub.deadline(&self.ctx), &self.ctx) {
                hub.tick(&mut self.ctx);
            }
        } else {
            let Some(Some(spoke)) = self.spokes.get_mut(node as usize) else {
                return;
            };
            spoke.wakes.retain(|wake| *wake != at);
            if is_due(spoke.deadline(&self.ctx), &self.ctx) {
                spoke.tick(&mut self.ctx);
            }
        }
        self.settle(node);
    }

    fn publish(&mut self) {
        let now = self.ctx.clock.nanos();
        let interval = (SECOND as f64 * self.options.burst as f64 / self.options.rate) as Nanos;
        for _ in 0..self.options.burst {
            if self.published == self.options.events {
                break;
            }
            let event = self.payload.event(self.published);
            let taken = match &mut self.hub {
                Some(hub) => hub.broadcast(&mut self.ctx, &event),
                None => false,
            };
            if !taken {
                // Held back, or there is no hub: the same again soon.
                self.settle(HUB);
                return self.ctx.events.push(now + HELD, Event::Publish);
            }
            self.payload.taken();
            self.published += 1;
        }
        self.settle(HUB);
        if self.published < self.options.events {
            self.ctx.events.push(now + interval.max(1), Event::Publish);
        } else {
            self.last_event = Some(now);
        }
    }

    fn report(mut self) -> Report {
        let ctx = &mut self.ctx;
        let tip = self.hub.as_ref().map(Hub::tip).or(self.last_tip);
        let steps = ctx.events.number();
        let (times, hops) = ctx.oracle.times();
        if let Some(tip) = tip {
            ctx.oracle.judge(tip, &self.live);
        }
        let tally = &ctx.tally;
        let (events, per_event) = (self.published, |bytes: u64| {
            bytes as f64 / self.published.max(1) as f64
        });
        let (before_usual, before_repairs) = self.before_first;
        let usual = tally.hub_usual().saturating_sub(before_usual);
        let repairs = tally.hub_remedies().saturating_sub(before_repairs);
        let messages = [
            tally.hub_topic,
            tally.hub_beacons,
            tally.hub_again,
            tally.hub_control,
            tally.spokes_topic,
            tally.spokes_control,
        ];
        let seconds = |nanos: Nanos| nanos as f64 / 1e9;
        let begun = self.first_event.unwrap_or(0);
        Report {
            seed: self.options.seed,
            spokes: self.spokes.len() as u64 - 1,
            events,
            warm_up_s: seconds(begun),
            ran_s: seconds(ctx.clock.nanos() - begun),
            verdict: ctx.oracle.verdict(),
            frames: tally.frames_events,
            frames_again: tally.frames_again,
            beacons: tally.beacons,
            hub_copies: tally.hub_topic.sends as f64 / tally.frames_events.max(1) as f64,
            hub_copies_max: tally.most_copies(),
            hub_bytes_per_event: per_event(usual),
            hub_bytes_per_event_in_all: per_event(usual + repairs),
            hub_repair_sends: tally.hub_repairs.sends + tally.hub_again.sends,
            hub_topic: tally.hub_topic,
            hub_beacons: tally.hub_beacons,
            hub_again: tally.hub_again,
            hub_control: tally.hub_control,
            hub_direct: tally.hub_direct,
            hub_fallback: tally.hub_fallback,
            hub_repairs: tally.hub_repairs,
            spokes_topic: tally.spokes_topic,
            spokes_control: tally.spokes_control,
            to_hub: tally.to_hub,
            gossip_messages: messages.iter().map(|traffic| traffic.sends).sum(),
            gossip_messages_lost: tally.messages_lost,
            frames_repeated: ctx.hub_metrics.frames_repeated.get()
                + ctx.spoke_metrics.frames_repeated.get(),
            duplicates: self.metrics.duplicates.get(),
            direct_copies: per_event(tally.direct_events),
            fallback_copies: per_event(tally.fallback_events),
            gossip_messages_dropped: ctx.hub_metrics.queue_dropped.get()
                + ctx.spoke_metrics.queue_dropped.get(),
            wants: tally.wants,
            links: tally.links,
            links_lost: tally.links_lost,
            misbehaved: tally.misbehaved,
            topics: tally.topics,
            topics_failed: tally.topics_failed,
            topics_rejoined: tally.topics_rejoined,
            revoked: tally.revoked,
            read_after_revoked: tally.read_after_revoked,
            messages_to_revoked: tally.messages_to_revoked,
            rekeyed_within_1s: tally.rekeyed_within_1s,
            served_around: tally.served_around,
            last_hop: Spread::of(&hops, f64::from),
            last_spoke_ms: Spread::of(&times, |nanos| nanos as f64 / 1e6),
            steps,
        }
    }
}

/// Whether it is time.
fn is_due(deadline: Option<Nanos>, ctx: &Ctx) -> bool {
    deadline.is_some_and(|at| at <= ctx.clock.nanos())
}

//! The hub: the shipped planner, framer and desks over the shipped log, with links and a topic made of events.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use iroh::EndpointAddr;

use super::{
    clock::Nanos,
    ctx::{Ctx, Event},
    gate::SharedCheck,
    mesh::{Ends, Mesh},
    net::{HUB, NodeId},
    options::Breakage,
    tally::Class,
};
use crate::{
    close::CloseCode,
    event::Envelope,
    fan_out::{AutoFanOut, Decision, FanOut, Path, Planner, PlannerConfig, Traffic},
    gossip::GossipConfig,
    hub::{
        Behind, HubLimits,
        ack_share::{AckShare, Acker, Share, ack_every_ms, all_are_fast},
        budget::Budget,
        desk::{Batch, Desk, TopicOrder},
        framer::{Content, Framer},
        gossip_link::HubGate,
        keys::Keys,
        mailbox::{Mailbox, MailboxLimits},
        pace::{Has, Pace},
        repairs::{Answer, Payer, Repairs, piece_of},
        shared_log::{Entry, SharedLog},
        supervisor::{self, Action, REJOIN_THROUGH, Standing, Supervisor, TopicStanding},
        switchboard::{CONFIRM_ALL, LEAVES_WITHIN},
    },
    instant::after,
    log::{LogConfig, resume::Ask},
    position::{Epoch, Position},
    protocol::Protocol,
    seal::{Context, Opener},
    spoke_id::SpokeId,
    wire::{
        broadcast::OVERHEAD,
        framing::Deframer,
        native::{self, FEATURE_GOSSIP, FEATURE_RUNS, Hello, Start, ToHub, ToSpoke, Welcome},
    },
};

/// How much may be on its way to a spoke that has not read it.
const WINDOW: usize = 1_250_000;

/// How often the hub looks after its spokes.
const TICK: Nanos = supervisor::TICK.as_nanos() as Nanos;

/// How often a publisher that is held back tries again.
pub(super) const HELD: Nanos = 20_000_000;

/// After so many frames a topic delivers nothing more, for [`Breakage::DeadTopic`].
const DIES_AFTER: u64 = 20;

/// A link to a spoke.
struct Link {
    number: u64,
    desk: Desk,
    mailbox: Mailbox,
    deframer: Deframer,
    has: Has,
    fast: bool,
    path: Path,
    /// Everything repaired along it lies below.
    repaired_to: u64,
    /// Sent and not read.
    unread: usize,
    /// A batch is being put on the wire.
    busy: bool,
    last_arrival: Nanos,
}

struct Topic {
    id: [u8; 32],
    keys: Keys<NodeId>,
    framer: Framer<NodeId>,
    mesh: Mesh<HubGate<SharedCheck>>,
    max_frame_bytes: usize,
}

pub(super) struct Hub {
    log: Arc<SharedLog>,
    limits: HubLimits,
    planner: Planner<NodeId>,
    repairs: Repairs<NodeId>,
    budget: Budget<Payer<NodeId>>,
    topic: Option<Topic>,
    supervisor: Supervisor<NodeId>,
    links: BTreeMap<NodeId, Link>,
    /// Links whose cursor waits for the tip.
    following: BTreeSet<NodeId>,
    pace: Pace<NodeId>,
    tick_at: Nanos,
    acks: AckShare,
    /// Whose cursor is to run, on the link with this number, now that they leave the topic, and when.
    leaving: VecDeque<(Instant, NodeId, u64)>,
    bytes_before: u64,
    lose_root_frame: Option<u64>,
    pub(super) wakes: Vec<Nanos>,
    entries: Vec<(u64, Arc<Entry>)>,
}

impl Hub {
    pub(super) fn new(
        ctx: &mut Ctx,
        fan_out: FanOut,
        log: Arc<SharedLog>,
        lose_root_frame: Option<u64>,
    ) -> Self {
        let limits = HubLimits::default();
        // It knows its uplink, as one would tell it.
        let fan_out = match fan_out {
            FanOut::Auto(auto) => FanOut::Auto(AutoFanOut {
                uplink_bytes_per_s: auto.uplink_bytes_per_s.or(ctx.net.bandwidth()),
                ..auto
            }),
            other => other,
        };
        Self {
            log,
            planner: Planner::new(fan_out, PlannerConfig::default(), ctx.seed()),
            repairs: Repairs::new(),
            budget: Budget::new(ctx.clock.now(), limits.repair_bytes_per_s),
            topic: None,
            supervisor: Supervisor::new(ctx.seed()),
            links: BTreeMap::new(),
            following: BTreeSet::new(),
            pace: Pace::new(limits.stall_after, limits.patience),
            limits,
            tick_at: ctx.clock.nanos() + TICK,
            acks: AckShare::default(),
            leaving: VecDeque::new(),
            bytes_before: 0,
            lose_root_frame,
            wakes: Vec::new(),
            entries: Vec::new(),
        }
    }

    /// An empty log of an epoch that the run draws.
    pub(super) fn log(ctx: &mut Ctx, events: usize) -> Arc<SharedLog> {
        let config = LogConfig::default().with_max_events(events);
        let epoch = Epoch::from_u64(ctx.seed());
        Arc::new(SharedLog::with_epoch(config, epoch))
    }

    pub(super) fn tip(&self) -> Position {
        Position::new(self.log.epoch(), self.log.tip())
    }

    pub(super) fn shared_log(&self) -> Arc<SharedLog> {
        self.log.clone()
    }

    /// How many spokes are linked, are on their way to the topic, and are on it.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let counts = self.planner.counts();
        (self.links.len(), counts.joining, counts.gossip)
    }

    pub(super) fn mesh(&mut self) -> Option<&mut dyn Ends> {
        self.topic
            .as_mut()
            .map(|topic| &mut topic.mesh as &mut dyn Ends)
    }

    /// Broadcasts an event, unless the spokes are too far behind.
    pub(super) fn broadcast(&mut self, ctx: &mut Ctx, event: &Envelope) -> bool {
        let tip = self.log.tip();
        let behind = self
            .log
            .back_by(tip, self.limits.pace_events, self.limits.pace_bytes);
        let fast = self.links.iter().filter(|(_, link)| link.fast);
        let fast = fast.map(|(id, link)| (*id, link.has));
        let floor = self.pace.floor(ctx.clock.now(), behind, fast);
        if floor.is_some_and(|floor| floor < behind) {
            return false;
        }
        let Ok(position) = self.log.append(event.clone()) else {
            return false;
        };
        ctx.oracle
            .broadcast(position, event.body(), ctx.clock.nanos());
        ctx.oracle.trimmed(position.epoch, self.log.head());
        for id in std::mem::take(&mut self.following) {
            self.pump(ctx, id);
        }
        true
    }

    /// A spoke says hello.
    fn hello(&mut self, ctx: &mut Ctx, spoke: NodeId, number: u64, hello: &Hello) {
        let ask = match hello.start {
            Start::Tip => Ask::Tip,
            Start::Earliest => Ask::Earliest,
            Start::At(position) => Ask::At(position),
        };
        let begin = self.log.resume(ask);
        let resume = begin.resume;
        self.leaves(ctx, spoke);
        if hello.start == Start::Tip {
            ctx.oracle
                .begins(spoke, Position::new(begin.epoch, resume.start));
        }
        ctx.tally.links += 1;
        let gossip_capable = hello.features & FEATURE_GOSSIP != 0;
        let id = SpokeId {
            endpoint: ctx.endpoint_id(spoke),
            number,
        };
        let limits = MailboxLimits {
            events: self.limits.targeted_events,
            bytes: self.limits.targeted_bytes,
        };
        let mailbox = Mailbox::new(id, Protocol::Native, limits);
        let mut link = Link {
            number,
            desk: Desk::new(Protocol::Native, number, resume.start, Behind::default())
                .with_runs(hello.features & FEATURE_RUNS != 0),
            mailbox,
            deframer: Deframer::new(native::MAX_FRAME),
            has: Has {
                acked: resume.start,
                beats: 0,
            },
            fast: all_are_fast(self.links.len() + 1),
            path: Path::Direct,
            repaired_to: 0,
            unread: 0,
            busy: false,
            last_arrival: 0,
        };
        let welcome = ToSpoke::Welcome(Welcome {
            version: native::VERSION,
            features: FEATURE_GOSSIP,
            session: ctx.session(),
            published: 0,
            epoch: begin.epoch,
            tip: begin.tip,
            start: resume.start,
            continues: resume.continues,
            max_event_bytes: self.limits.max_event_bytes as u64,
            ack_every_ms: ack_every_ms(self.links.len() + 1, self.limits.acks_per_s),
            publish_window: self.limits.publish_window,
        });
        let mut chunks = Vec::new();
        welcome.encode(&mut chunks);
        ctx.tally
            .hub_direct
            .add(chunks.iter().map(Bytes::len).sum());
        write(ctx, spoke, &mut link, chunks);
        self.links.insert(spoke, link);
        self.planner
            .spoke_joined(ctx.clock.now(), spoke, gossip_capable);
        self.pump(ctx, spoke);
    }

    /// Bytes came along a link.
    pub(super) fn bytes(&mut self, ctx: &mut Ctx, spoke: NodeId, number: u64, chunks: Vec<Bytes>) {
        let mut frames = Vec::new();
        let mut fresh = Deframer::new(native::MAX_FRAME);
        let known = self
            .links
            .get_mut(&spoke)
            .filter(|link| link.number == number);
        let linked = known.is_some();
        let deframer = known.map_or(&mut fresh, |link| &mut link.deframer);
        for chunk in chunks {
            deframer.push(chunk);
            while let Ok(Some(frame)) = deframer.next() {
                frames.push(frame);
            }
        }
        for frame in frames {
            match ToHub::decode(frame) {
                Ok(Some(ToHub::Hello(hello))) if !linked => {
                    let newer = |link: &Link| link.number > number;
                    if !self.links.get(&spoke).is_some_and(newer) {
                        self.hello(ctx, spoke, number, &hello);
                    }
                }
                Ok(Some(frame)) if linked => self.frame(ctx, spoke, frame),
                Ok(_) => {}
                Err(_) => ctx.tally.misbehaved += 1,
            }
        }
    }

    fn frame(&mut self, ctx: &mut Ctx, spoke: NodeId, frame: ToHub) {
        let now = ctx.clock.now();
        let tip = self.log.tip();
        let Some(link) = self.links.get_mut(&spoke) else {
            return;
        };
        match frame {
            ToHub::Ack { offset, .. } => {
                if offset > tip {
                    ctx.tally.misbehaved += 1;
                    return;
                }
                link.has = link.has.told(offset, false);
            }
            ToHub::Want { from, to: Some(to) } => {
                if from > to || to > tip {
                    ctx.tally.misbehaved += 1;
                    return;
                }
                let on_topic = self.planner.path(spoke) == Some(Path::Gossip);
                if on_topic && link.fast {
                    self.supervisor.wanted();
                }
                let head = self.log.head();
                self.repairs.want(now, spoke, (from, to), on_topic, head);
            }
            ToHub::Want { from, to: None } => {
                if from > tip {
                    ctx.tally.misbehaved += 1;
                    return;
                }
                link.desk.serve_from(from);
                if self.planner.isolated(now, spoke) {
                    self.supervisor.isolated(spoke);
                }
            }
            ToHub::Served { topic, .. } => {
                if self.topic.as_ref().is_some_and(|now| now.id == topic) {
                    self.planner.on_tree(now, spoke);
                }
            }
            ToHub::Hello(_) => ctx.tally.misbehaved += 1,
            ToHub::Rekeyed { generation } => {
                if let Some(topic) = &mut self.topic {
                    topic.keys.confirmed(now, spoke, generation);
                }
            }
            ToHub::Missed { .. } | ToHub::Refused { .. } | ToHub::Publish { .. } => {}
        }
        self.pump(ctx, spoke);
    }

    /// A spoke has read so many bytes.
    pub(super) fn read(&mut self, ctx: &mut Ctx, spoke: NodeId, number: u64, bytes: usize) {
        if let Some(link) = self.links.get_mut(&spoke)
            && link.number == number
        {
            let was_full = link.unread >= WINDOW;
            link.unread = link.unread.saturating_sub(bytes);
            if was_full {
                self.pump(ctx, spoke);
            }
        }
    }

    /// A batch has been put on the wire.
    pub(super) fn wrote(&mut self, ctx: &mut Ctx, spoke: NodeId, number: u64) {
        if let Some(link) = self.links.get_mut(&spoke)
            && link.number == number
        {
            link.busy = false;
            self.pump(ctx, spoke);
        }
    }

    /// A link has ended.
    pub(super) fn link_ends(&mut self, ctx: &mut Ctx, spoke: NodeId, number: u64) {
        if self
            .links
            .get(&spoke)
            .is_some_and(|link| link.number == number)
        {
            self.leaves(ctx, spoke);
        }
    }

    fn leaves(&mut self, ctx: &Ctx, spoke: NodeId) {
        if self.links.remove(&spoke).is_some() {
            self.following.remove(&spoke);
            self.planner.spoke_left(ctx.clock.now(), spoke);
            self.repairs.left(spoke);
            self.budget.leave(Payer::Spoke(spoke));
            if let Some(topic) = &mut self.topic {
                topic.keys.gone(ctx.clock.now(), spoke);
            }
        }
    }

    /// Revokes spokes, as the hub does. Says which generation of keys begins.
    pub(super) fn revoke(&mut self, ctx: &mut Ctx, spokes: &[NodeId]) -> Option<u32> {
        for spoke in spokes {
            self.leaves(ctx, *spoke);
        }
        let topic = self.topic.as_mut()?;
        let ids: Vec<_> = spokes.iter().map(|spoke| ctx.endpoint_id(*spoke)).collect();
        topic.keys.revoke(ctx.clock.now(), &ids, &mut ctx.rng);
        let keys = topic.keys.current();
        topic
            .mesh
            .rekey(ctx, keys.generation, (spokes, true), |gate| {
                gate.learn(&keys)
            });
        Some(keys.generation)
    }

    /// Tells the members of the topic of new keys, as the switchboard does.
    fn tell_keys(&mut self, ctx: &mut Ctx) {
        let now = ctx.clock.now();
        let Some(topic) = &mut self.topic else {
            return;
        };
        let Some(rekey) = topic.keys.tell() else {
            return;
        };
        let members = self.links.iter_mut();
        let members = members.filter(|(_, link)| link.desk.is_member());
        let mut members: Vec<_> = members.collect();
        let all = members.len() <= CONFIRM_ALL;
        let mut asked = Vec::new();
        for (id, link) in &mut members {
            let confirm = link.path == Path::Gossip && (all || link.fast);
            if confirm {
                asked.push(**id);
            }
            link.desk.rekey(Box::new(native::Rekey {
                confirm,
                ..rekey.clone()
            }));
        }
        let members: Vec<_> = members.into_iter().map(|(id, _)| *id).collect();
        topic.keys.asked(now, rekey.keys.generation, asked);
        for id in members {
            self.pump(ctx, id);
        }
    }

    /// The links there are.
    pub(super) fn links(&self) -> Vec<(NodeId, u64)> {
        self.links
            .iter()
            .map(|(id, link)| (*id, link.number))
            .collect()
    }

    /// Writes what a link has to say.
    fn pump(&mut self, ctx: &mut Ctx, spoke: NodeId) {
        let Some(link) = self.links.get_mut(&spoke) else {
            return;
        };
        let now = ctx.clock.now();
        while !link.busy && link.unread < WINDOW {
            let mut chunks = Vec::new();
            let asks = link.desk.is_paid_for(self.log.tip());
            let paid = !asks || self.budget.ask(now, Payer::Spoke(spoke));
            let repairs = paid && link.desk.repairs_wait();
            let entries = &mut self.entries;
            // What is missed by now is carried to nobody.
            let head = self.log.head();
            let before = link.desk.cursor().map(|cursor| cursor.max(head));
            match link
                .desk
                .next_batch(&mut link.mailbox, &self.log, paid, entries, &mut chunks)
            {
                Ok(Batch::Frames { cost, cursor, all }) => {
                    self.budget.spend(cost);
                    let events = match (before, cursor) {
                        (Some(before), Some(after)) => after.saturating_sub(before),
                        _ => 0,
                    };
                    match link.desk.falls_back() {
                        true => ctx.tally.fallback_events += events,
                        false => ctx.tally.direct_events += events,
                    }
                    let traffic = match (repairs, cost) {
                        (true, _) => &mut ctx.tally.hub_repairs,
                        (false, 1..) => &mut ctx.tally.hub_fallback,
                        (false, 0) => &mut ctx.tally.hub_direct,
                    };
                    traffic.add(chunks.iter().map(Bytes::len).sum());
                    write(ctx, spoke, link, chunks);
                    if all {
                        self.following.insert(spoke);
                        return;
                    }
                }
                Ok(Batch::Idle { follows_tip }) => {
                    if follows_tip {
                        self.following.insert(spoke);
                    }
                    return;
                }
                Err(error) => {
                    // As the task of a link does: the spoke hears why, behind what was written before.
                    ctx.tally.misbehaved += 1;
                    let code = error.closed().code();
                    let at =
                        ctx.net
                            .stream(HUB, spoke, ctx.clock.nanos(), 0, &mut link.last_arrival);
                    let (link, code) = (link.number, code.unwrap_or(CloseCode::Internal));
                    ctx.events.push(at, Event::LinkClosed { spoke, link, code });
                    return self.leaves(ctx, spoke);
                }
            }
        }
    }

    pub(super) fn tick(&mut self, ctx: &mut Ctx) {
        if let Some(topic) = &mut self.topic {
            topic.mesh.tick(ctx);
        }
        if ctx.clock.nanos() >= self.tick_at {
            self.tick_at = ctx.clock.nanos() + TICK;
            let bytes = self.log.bytes_appended();
            let per_s = (bytes - self.bytes_before) * 5;
            self.bytes_before = bytes;
            let traffic = Traffic {
                bytes_per_s: per_s,
                largest_event: self.log.take_largest(),
                rtt: (!self.links.is_empty()).then(|| ctx.net.rtt()),
            };
            self.planner.traffic(ctx.clock.now(), traffic);
            self.share_out_acks(ctx);
            self.supervise(ctx);
        }
    }

    /// Looks whether the topic delivers.
    fn supervise(&mut self, ctx: &mut Ctx) {
        if ctx.breakage == Breakage::NoWants {
            return;
        }
        let standing = |(id, link): (&NodeId, &Link)| Standing {
            id: *id,
            has: link.has,
            fast: link.fast,
            path: link.path,
            repaired_to: link.repaired_to,
        };
        let spokes: Vec<_> = self.links.iter().map(standing).collect();
        let topic = self.topic.as_ref().map(|topic| TopicStanding {
            sent: topic.framer.next(),
            held: topic.framer.is_held(),
            neighbors: topic.mesh.neighbors(),
        });
        let every = self.acks.every(self.limits.acks_per_s);
        let now = ctx.clock.now();
        self.supervisor
            .look(now, self.log.tip(), topic, &spokes, every);
        self.follow_supervisor(ctx);
    }

    fn follow_supervisor(&mut self, ctx: &mut Ctx) {
        let now = ctx.clock.now();
        while let Some(action) = self.supervisor.poll() {
            match action {
                Action::ServeAround(id) => {
                    ctx.tally.served_around += 1;
                    self.planner.isolated(now, id);
                }
                Action::Rejoin => {
                    ctx.tally.topics_rejoined += 1;
                    let peers = self.planner.sample_tree(REJOIN_THROUGH);
                    if let Some(topic) = &mut self.topic {
                        topic.mesh.join(ctx, peers);
                    }
                }
                Action::Fail(_) => {
                    ctx.tally.topics_failed += 1;
                    self.supervisor.topic_changed(true);
                    self.planner.topic_failed(now);
                }
            }
        }
    }

    fn share_out_acks(&mut self, ctx: &mut Ctx) {
        let acker = |(id, link): (&NodeId, &Link)| Acker {
            id: *id,
            on_topic: link.path == Path::Gossip,
            fast: link.fast,
        };
        let ackers: Vec<_> = self.links.iter().map(acker).collect();
        let acks_per_s = self.limits.acks_per_s;
        for Share { id, fast, every_ms } in self.acks.share_out(&mut ctx.rng, acks_per_s, &ackers) {
            if let Some(link) = self.links.get_mut(&id) {
                link.fast = fast;
                link.desk.set_ack_every(every_ms);
            }
            self.pump(ctx, id);
        }
    }

    /// When to [`tick`](Self::tick).
    pub(super) fn deadline(&self, ctx: &Ctx) -> Option<Nanos> {
        let planner = self.planner.deadline().map(|at| ctx.clock.when(at));
        let topic = self.topic.as_ref().map(|topic| {
            let keys = topic.keys.deadline().map(|at| ctx.clock.when(at));
            let framer = topic.framer.deadline().filter(|_| !topic.keys.is_held());
            let framer = framer.map(|at| ctx.clock.when(at));
            [topic.mesh.deadline(ctx), framer, keys]
                .into_iter()
                .flatten()
                .min()
        });
        let leaving = self.leaving.front().map(|(at, ..)| *at);
        let wants = [self.repairs.deadline(), self.budget.deadline(), leaving];
        let wants = wants.into_iter().flatten().min();
        let wants = wants.map(|at| ctx.clock.when(at));
        [planner, topic.flatten(), wants, Some(self.tick_at)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does all that is to be done now.
    pub(super) fn settle(&mut self, ctx: &mut Ctx) {
        let now = ctx.clock.now();
        self.serve_who_left(ctx);
        self.tell_keys(ctx);
        while let Some(decision) = self.planner.poll(now) {
            self.carry_out(ctx, decision);
        }
        let counts = self.planner.counts();
        if let Some(topic) = &self.topic {
            let neighbors = topic.mesh.neighbors();
            self.supervisor.neighbors(neighbors, counts.gossip);
            self.follow_supervisor(ctx);
        }
        let neighbors = self.topic.as_ref().map(|topic| topic.mesh.neighbors());
        let heard = neighbors.is_some_and(|n| n > 0) && counts.gossip > 0;
        self.repairs.set_topic(heard.then_some(counts.gossip));
        self.answer_wants(ctx);
        let (links, log) = (&self.links, &self.log);
        let Some(topic) = &mut self.topic else {
            return;
        };
        topic.framer.set_hurry(self.planner.arriving() > 0);
        let neighbors = topic.mesh.neighbors() > 0;
        topic.framer.set_listeners(neighbors, counts.gossip > 0);
        let acks = || {
            let on_topic = |link: &Link| link.fast && link.path == Path::Gossip;
            let fast = links.iter().filter(move |(_, link)| on_topic(link));
            fast.map(|(id, link)| (*id, link.has)).collect::<Vec<_>>()
        };
        topic.keys.look(now, topic.framer.next());
        while !topic.keys.is_held()
            && let Some(content) = topic.framer.poll(now, log, acks)
        {
            topic.send(ctx, &content, self.lose_root_frame);
        }
        topic.mesh.work_off(ctx, |_, _| {});
    }

    fn answer_wants(&mut self, ctx: &mut Ctx) {
        let now = ctx.clock.now();
        while let Some(payer) = self.budget.poll(now) {
            if let Payer::Spoke(id) = payer {
                self.pump(ctx, id);
            }
        }
        let log = self.log.clone();
        let piece = |from, to| piece_of(&log, from, to);
        while let Some(answer) = self.repairs.poll(now, &mut self.budget, piece) {
            match answer {
                Answer::Direct { id, from, to } => {
                    if let Some(link) = self.links.get_mut(&id) {
                        link.repaired_to = link.repaired_to.max(to);
                        link.desk.repair(from, to);
                    }
                    self.pump(ctx, id);
                }
                Answer::Again(piece) => {
                    if let Some(topic) = &mut self.topic {
                        topic.framer.send_again(piece.from, piece.to);
                    }
                }
            }
        }
    }

    fn carry_out(&mut self, ctx: &mut Ctx, decision: Decision<NodeId>) {
        let id = match decision {
            Decision::StartTopic => {
                self.supervisor.topic_changed(false);
                self.topic = Some(Topic::start(ctx, &self.log, &self.limits));
                return;
            }
            Decision::StopTopic => {
                if let Some(mut topic) = self.topic.take() {
                    topic.mesh.leave(ctx);
                }
                return;
            }
            Decision::TellJoin { id, peers, via_hub } => {
                self.tell_join(ctx, id, &peers, via_hub);
                id
            }
            Decision::TellLeave { id } => {
                self.desk(id, |desk| desk.order_topic(TopicOrder::Leave));
                id
            }
            Decision::Park { id } => {
                self.desk(id, Desk::park);
                self.following.remove(&id);
                id
            }
            Decision::Unpark { id } => {
                match self.links.get_mut(&id) {
                    // As the switchboard does: it is told to leave, and says from where on it is served.
                    Some(link) if !self.planner.gossiping() => {
                        let at = after(ctx.clock.now(), LEAVES_WITHIN);
                        self.leaving.push_back((at, id, link.number));
                    }
                    Some(link) => link.desk.unpark(link.has.acked),
                    None => {}
                }
                id
            }
        };
        let path = self.planner.path(id).unwrap_or(Path::Direct);
        if let Some(link) = self.links.get_mut(&id) {
            link.path = path;
        }
        self.pump(ctx, id);
    }

    /// Serves directly who has not said anything on leaving the topic.
    fn serve_who_left(&mut self, ctx: &mut Ctx) {
        while let Some((at, id, number)) = self.leaving.front().copied()
            && at <= ctx.clock.now()
        {
            self.leaving.pop_front();
            if let Some(link) = self.links.get_mut(&id)
                && link.number == number
                && link.path != Path::Gossip
            {
                link.desk.unpark(link.has.acked);
                self.pump(ctx, id);
            }
        }
    }

    fn desk(&mut self, id: NodeId, order: impl FnOnce(&mut Desk)) {
        if let Some(link) = self.links.get_mut(&id) {
            order(&mut link.desk);
        }
    }

    fn tell_join(&mut self, ctx: &mut Ctx, id: NodeId, peers: &[NodeId], via_hub: bool) {
        let Some(topic) = &mut self.topic else {
            return;
        };
        let mut addrs: Vec<EndpointAddr> = peers
            .iter()
            .filter(|peer| self.links.contains_key(peer))
            .map(|peer| EndpointAddr::new(ctx.endpoint_id(*peer)))
            .collect();
        if via_hub || addrs.is_empty() {
            addrs.push(EndpointAddr::new(ctx.hub_id));
        }
        let counts = self.planner.counts();
        let (keys, next) = topic.keys.give();
        let order = TopicOrder::Join(Box::new(native::Topic {
            topic: topic.id,
            keys,
            peers: addrs,
            max_frame_bytes: topic.max_frame_bytes as u32,
            members: u32::try_from(counts.gossip + counts.joining).unwrap_or(u32::MAX),
        }));
        self.desk(id, |desk| {
            desk.order_topic(order);
            if let Some(next) = next {
                desk.rekey(Box::new(next));
            }
        });
    }
}

impl Topic {
    fn start(ctx: &mut Ctx, log: &SharedLog, limits: &HubLimits) -> Self {
        let (id, number, check) = ctx.new_topic();
        let context = Context::new(ctx.hub_id, id);
        let now = ctx.clock.now();
        let keys = Keys::new(now, context.clone(), log.epoch(), &mut ctx.rng);
        let mut opener = Opener::new(context, log.epoch());
        if opener.add(&keys.current()).is_err() {
            ctx.tally.misbehaved += 1;
        }
        let config = GossipConfig::default().at_source();
        let max_frame_bytes = config.max_frame_size;
        let pace = Pace::new(limits.stall_after, limits.patience);
        Self {
            id,
            keys,
            framer: Framer::new(now, log.tip(), max_frame_bytes - OVERHEAD, pace),
            mesh: Mesh::new(ctx, HUB, number, config, (0, HubGate::new(opener, check))),
            max_frame_bytes,
        }
    }

    fn send(&mut self, ctx: &mut Ctx, content: &Content, lose: Option<u64>) {
        let Content {
            first,
            count,
            of,
            again,
            ..
        } = *content;
        let now = ctx.clock.now();
        let sealed = self
            .keys
            .seal(now, (first, count, of), &content.body, again);
        let Ok(frame) = sealed else {
            return;
        };
        let class = match (count, again) {
            (0, _) => Class::Beacon,
            (_, true) => Class::Again,
            (_, false) => Class::Events,
        };
        ctx.tally.frame(*blake3::hash(&frame).as_bytes(), class);
        if class == Class::Events && lose == Some(ctx.tally.frames_events) {
            return;
        }
        let dead = ctx.breakage == Breakage::DeadTopic && ctx.tally.topics_failed == 0;
        if dead && ctx.tally.frames_events > DIES_AFTER {
            return;
        }
        self.mesh.broadcast(ctx, frame);
    }
}

/// Puts chunks on the wire to a spoke.
fn write(ctx: &mut Ctx, spoke: NodeId, link: &mut Link, chunks: Vec<Bytes>) {
    let size: usize = chunks.iter().map(Bytes::len).sum();
    link.unread += size;
    let done = ctx.transmit(HUB, size);
    let at = ctx
        .net
        .stream(HUB, spoke, done, size, &mut link.last_arrival);
    let number = link.number;
    ctx.events.push(
        at,
        Event::ToSpoke {
            spoke,
            link: number,
            chunks,
        },
    );
    if done > ctx.clock.nanos() {
        link.busy = true;
        ctx.events.push(
            done,
            Event::LinkWrote {
                spoke,
                link: number,
            },
        );
    }
}

//! A native spoke's session: the task that owns its inbox and its part in the topic.
//!
//! Everything that comes in, along the stream and along the topic, goes through one inbox; what it
//! lets out goes to the listeners. While they hold back, the stream is not read (the hub sees a slow
//! spoke) and the topic's frames are dropped where the inbox is full (and wanted again later).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use iroh::{Endpoint, EndpointId};
use n0_error::e;
use tokio::{sync::mpsc, time::sleep_until};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    config::{Gossip, SpokeConfig},
    member::{Change, GossipAcceptor, Member, Reach, SpokeGate},
    outbox::Outbox,
};
use crate::{
    close::{CloseCode, Closed},
    event::Envelope,
    gossip::{GossipEvent, GossipMetrics, GossipNode},
    inbox::{Inbox, InboxConfig, InboxError, Inserted, Output, Part},
    link_io::{FrameReader, LinkError},
    listen::{Event, Incoming, Missed, Source},
    metrics::SpokeMetrics,
    position::{Epoch, Position},
    seal::{Context, Opened, Opener, Really},
    via::Via,
    wire::assembly::{Assembly, BadPart},
    wire::broadcast::MAX_FRAME_SIZE,
    wire::native::{PartOf, ToSpoke, Topic, Welcome},
};

/// How many frames are taken in before the inbox is asked what it has.
const FRAMES_AT_ONCE: usize = 256;

/// A gap is wanted when it has stood for this long in the smallest mesh,
const GAP_WAIT: Duration = Duration::from_millis(250);
/// and for this much longer with every doubling of it: what is late is mostly on its way.
const GAP_WAIT_A_DOUBLING: Duration = Duration::from_millis(50);

/// What the spoke's handle can see of the session.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) epoch: Epoch,
    pub(super) next: AtomicU64,
    pub(super) served: std::sync::atomic::AtomicBool,
}

pub(super) struct Session {
    hub: EndpointId,
    endpoint: Endpoint,
    config: SpokeConfig,
    inbox: Inbox,
    reader: FrameReader,
    outbox: Arc<Outbox>,
    deliver: mpsc::Sender<Incoming>,
    shared: Arc<Shared>,
    metrics: Arc<SpokeMetrics>,
    gossip_metrics: Arc<GossipMetrics>,
    acceptor: GossipAcceptor,
    member: Option<Member>,
    /// Nodes that are leaving their topics.
    leaving: TaskTracker,
    /// The last targeted event that was released, and what was acknowledged last.
    targeted: u64,
    targeted_parts: Assembly,
    acked: (u64, u64),
    ack_every: Duration,
    ack_at: Instant,
    /// Somebody waits for the acknowledgement of everything below this offset.
    ack_for: u64,
}

/// What the session's loop waits for.
enum Woken {
    Frame(Option<Bytes>),
    Gossip(Option<GossipEvent<Opened>>),
    Room(bool),
    Deadline,
}

/// What a session is made of.
pub(super) struct Parts {
    pub(super) endpoint: Endpoint,
    pub(super) hub: EndpointId,
    pub(super) config: SpokeConfig,
    pub(super) welcome: Welcome,
    pub(super) reader: FrameReader,
    pub(super) outbox: Arc<Outbox>,
    pub(super) deliver: mpsc::Sender<Incoming>,
    pub(super) metrics: Arc<SpokeMetrics>,
    pub(super) gossip_metrics: Arc<GossipMetrics>,
    pub(super) acceptor: GossipAcceptor,
}

impl Session {
    pub(super) fn new(parts: Parts) -> (Self, Arc<Shared>) {
        let Parts {
            endpoint,
            hub,
            config,
            welcome,
            reader,
            outbox,
            deliver,
            metrics,
            gossip_metrics,
            acceptor,
        } = parts;
        let now = Instant::now();
        let inbox_config = InboxConfig {
            max_event_bytes: config.limits.max_event_bytes,
            max_buffered_bytes: config.limits.max_buffered_bytes,
            gap_wait: GAP_WAIT,
            gap_jitter: GAP_WAIT / 2,
            ..Default::default()
        };
        let mut inbox = Inbox::new(
            inbox_config,
            now,
            welcome.epoch,
            welcome.start,
            welcome.tip,
            rand::random(),
        );
        inbox.set_direct(now, true);
        let shared = Arc::new(Shared {
            epoch: welcome.epoch,
            next: AtomicU64::new(welcome.start),
            served: false.into(),
        });
        let ack_every = Duration::from_millis(welcome.ack_every_ms.into());
        let session = Self {
            hub,
            endpoint,
            config,
            inbox,
            reader,
            outbox,
            deliver,
            shared: shared.clone(),
            metrics,
            gossip_metrics,
            acceptor,
            member: None,
            leaving: TaskTracker::new(),
            targeted: 0,
            targeted_parts: Assembly::default(),
            acked: (welcome.start, 0),
            ack_every,
            ack_at: now,
            ack_for: 0,
        };
        (session, shared)
    }

    /// Runs until the link ends, and says how. The topic is left before it returns.
    ///
    /// `quit` ends it in order, with events still to be let out.
    pub(super) async fn run(mut self, quit: CancellationToken) -> Closed {
        let ended = tokio::select! {
            ended = self.main_loop() => Some(ended),
            () = quit.cancelled() => None,
        };
        let error = match ended {
            None => LinkError::gone(Closed::by_us(CloseCode::Goodbye, "the spoke ended")),
            Some(Ok(())) => LinkError::gone(Closed::ByPeer {
                code: CloseCode::Goodbye,
                reason: "the hub said goodbye".to_owned(),
            }),
            Some(Err(error)) => error,
        };
        self.leave_topic();
        self.let_out_rest().await;
        self.leaving.close();
        self.leaving.wait().await;
        error.closed()
    }

    async fn main_loop(&mut self) -> Result<(), LinkError> {
        loop {
            let blocked = self.let_out();
            let now = Instant::now();
            self.acknowledge(now);
            let deadline = self.deadline(now);
            let woken = tokio::select! {
                frame = self.reader.next(), if !blocked => Woken::Frame(frame?),
                event = Self::next_gossip(&mut self.member) => Woken::Gossip(event),
                // Room for the next item; the reservation itself is not kept.
                permit = self.deliver.reserve(), if blocked => Woken::Room(permit.is_ok()),
                () = sleep_until(deadline.into()) => Woken::Deadline,
            };
            match woken {
                Woken::Frame(Some(frame)) => self.frames(frame).await?,
                Woken::Frame(None) => return Ok(()),
                Woken::Gossip(Some(event)) => self.gossip(event),
                Woken::Gossip(None) => {
                    warn!("the node on the topic has ended; the hub serves us directly");
                    self.leave_topic();
                    self.want_direct();
                }
                Woken::Room(true) => {}
                Woken::Room(false) => {
                    let closed = Closed::by_us(CloseCode::Goodbye, "the spoke ended");
                    return Err(LinkError::gone(closed));
                }
                Woken::Deadline => self.tick(),
            }
        }
    }

    /// The topic's next event; pends while there is no topic.
    async fn next_gossip(member: &mut Option<Member>) -> Option<GossipEvent<Opened>> {
        match member {
            Some(member) => member.events.recv().await,
            None => std::future::pending().await,
        }
    }

    fn deadline(&self, now: Instant) -> Instant {
        // Looked at now and then even if nothing is due.
        let mut deadline = now + Duration::from_secs(60);
        deadline = deadline.min(self.inbox.deadline().unwrap_or(deadline));
        if self.unacked() != self.acked {
            deadline = deadline.min(self.ack_at);
        }
        if let Some(member) = &self.member {
            deadline = deadline.min(member.reach.deadline().unwrap_or(deadline));
        }
        deadline
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let change = self.member.as_mut().and_then(|m| m.reach.tick(now));
        if change == Some(Change::Isolated) {
            debug!("the topic fell silent; the hub serves us directly");
            self.metrics.isolated.inc();
            self.want_direct();
        }
    }

    fn want_direct(&mut self) {
        self.inbox.set_direct(Instant::now(), true);
        self.shared.served.store(false, Ordering::Release);
        self.outbox.want_direct(self.inbox.next());
    }

    /// Takes in a frame and those behind it that have arrived already.
    async fn frames(&mut self, first: Bytes) -> Result<(), LinkError> {
        let mut frame = Some(first);
        let mut budget = FRAMES_AT_ONCE;
        while let Some(bytes) = frame.take() {
            match ToSpoke::decode(bytes)? {
                Some(frame) => self.frame(frame).await?,
                None => {
                    self.metrics.frames_unknown.inc();
                }
            }
            budget -= 1;
            // Let out at once, so that what comes in its turn is never buffered.
            if !self.let_out() && budget > 0 {
                frame = self.reader.buffered()?;
            }
        }
        Ok(())
    }

    async fn frame(&mut self, frame: ToSpoke) -> Result<(), LinkError> {
        let now = Instant::now();
        match frame {
            ToSpoke::Welcome(_) => Err(e!(LinkError::Misbehaved {
                what: "a second welcome"
            })),
            ToSpoke::Event { offset, of, body } => self.part(now, offset, of, body, Via::Direct),
            ToSpoke::Repair { offset, of, body } => self.part(now, offset, of, body, Via::Repair),
            ToSpoke::Targeted {
                seq,
                after,
                of,
                body,
            } => self.targeted(now, seq, after, of, body),
            ToSpoke::Topic(topic) => {
                self.join_topic(*topic);
                Ok(())
            }
            ToSpoke::LeaveTopic => {
                self.leave_topic();
                self.inbox.set_direct(Instant::now(), true);
                self.shared.served.store(false, Ordering::Release);
                Ok(())
            }
            ToSpoke::Missed { from, to } => {
                self.inbox.on_missed(now, from, to);
                Ok(())
            }
            ToSpoke::Ack { seq } => {
                if self.outbox.acked(seq) {
                    Ok(())
                } else {
                    Err(e!(LinkError::Misbehaved {
                        what: "acknowledged an event that was not sent"
                    }))
                }
            }
            ToSpoke::AckNow { offset } => {
                self.ack_for = self.ack_for.max(offset);
                Ok(())
            }
            ToSpoke::AckEvery { millis } => {
                self.ack_every = Duration::from_millis(millis.into());
                self.ack_at = self.ack_at.min(now + self.ack_every);
                Ok(())
            }
            ToSpoke::Rekey(keys) => {
                if let Some(member) = &self.member {
                    let (generation, key) = (keys.generation, keys.key);
                    let added = member.node.with_gate(move |gate: &mut SpokeGate| {
                        if let Err(error) = gate.opener().add(&keys) {
                            warn!(%error, "the hub's new keys do not fit");
                        }
                    });
                    if added.await.is_err() {
                        debug!("the node on the topic has ended");
                    }
                    member.node.rekey(generation, key);
                }
                Ok(())
            }
        }
    }

    fn part(
        &mut self,
        now: Instant,
        offset: u64,
        of: PartOf,
        body: Bytes,
        via: Via,
    ) -> Result<(), LinkError> {
        let part = Part {
            offset,
            part: of.part,
            parts: of.parts,
            body,
            via,
        };
        match self.inbox.insert(now, part) {
            Ok(Inserted::New) => {}
            Ok(Inserted::Duplicate) => {
                self.metrics.duplicates.inc();
            }
            Ok(Inserted::Dropped) => {
                self.metrics.dropped.inc();
            }
            Err(InboxError::TooLarge { .. }) => {
                warn!(offset, "a broadcast is over this spoke's max_event_bytes");
                let to = offset.saturating_add(1);
                self.inbox.on_missed(now, offset, to);
                self.outbox.missed(offset, to);
            }
            Err(error) => {
                self.metrics.frames_bad.inc();
                debug!(%error, offset, "a part of an event does not fit");
                if via != Via::Gossip {
                    return Err(e!(LinkError::Misbehaved {
                        what: "the parts of an event do not fit together"
                    }));
                }
            }
        }
        Ok(())
    }

    /// Gathers the parts of a targeted event, and hands it to the inbox, which knows its place.
    fn targeted(
        &mut self,
        now: Instant,
        seq: u64,
        after: Position,
        of: PartOf,
        body: Bytes,
    ) -> Result<(), LinkError> {
        let misbehaved = |what| Err(e!(LinkError::Misbehaved { what }));
        let limit = self.config.limits.max_event_bytes;
        let body = match self.targeted_parts.push(seq, of, body, limit) {
            Ok(Some(body)) => body,
            Ok(None) => return Ok(()),
            Err(BadPart::TooLarge { .. }) => {
                return misbehaved("a targeted event is over the limit");
            }
            Err(BadPart::OutOfOrder) => {
                return misbehaved("the parts of a targeted event are out of order");
            }
        };
        if let Err(error) = self.inbox.on_targeted(now, after, body, seq) {
            debug!(%error, "a targeted event does not fit");
            return misbehaved("more targeted events wait than this spoke holds");
        }
        Ok(())
    }

    /// Takes in an event of the topic.
    fn gossip(&mut self, event: GossipEvent<Opened>) {
        let GossipEvent::Frame { opened, .. } = event else {
            debug!(?event, "topic");
            return;
        };
        let now = Instant::now();
        let next = self.inbox.next();
        let (beacon, joins_up) = match opened {
            Opened::Beacon { tip } => {
                self.inbox.on_tip(now, tip);
                (true, tip <= next)
            }
            Opened::Events { first, bodies } => {
                for (offset, body) in (first..).zip(bodies) {
                    let whole = PartOf { part: 0, parts: 1 };
                    // A bad part from the topic is counted, no more.
                    let _ = self.part(now, offset, whole, body, Via::Gossip);
                    self.let_out();
                }
                (false, first <= next)
            }
            Opened::Part { offset, of, body } => {
                let _ = self.part(now, offset, of, body, Via::Gossip);
                (false, offset <= next)
            }
        };
        let Some(member) = &mut self.member else {
            return;
        };
        if member.reach.heard(now, beacon, joins_up) == Some(Change::Served) {
            debug!("the topic serves us");
            self.inbox.set_direct(now, false);
            self.shared.served.store(true, Ordering::Release);
            self.outbox.served(member.topic, next);
        }
    }

    fn join_topic(&mut self, topic: Topic) {
        if self.config.gossip == Gossip::Off {
            return;
        }
        if let Some(member) = &self.member {
            if member.topic == topic.topic {
                // The hub serves us directly though we were told to join; so say again if we are served.
                member.node.join(topic.peers);
                if member.reach.is_served() {
                    self.outbox.served(member.topic, self.inbox.next());
                }
                return;
            }
            self.leave_topic();
            self.inbox.set_direct(Instant::now(), true);
            self.shared.served.store(false, Ordering::Release);
        }
        debug!(peers = topic.peers.len(), "joins the topic");
        let mut opener = Opener::new(Context::new(self.hub, topic.topic), self.inbox.epoch());
        if let Err(error) = opener.add(&topic.keys) {
            warn!(%error, "the hub's keys do not fit; the topic is not joined");
            return;
        }
        let mut config = self.config.gossip_config.clone();
        config.max_frame_size = (topic.max_frame_bytes as usize).min(MAX_FRAME_SIZE);
        let (node, events) = GossipNode::spawn(
            self.endpoint.clone(),
            config,
            topic.topic.into(),
            topic.keys.generation,
            topic.keys.key,
            SpokeGate::new(opener, Really),
            self.gossip_metrics.clone(),
        );
        self.acceptor.set(Some(node.clone()));
        node.join(topic.peers);
        let doublings = topic.members.max(1).ilog2();
        self.inbox
            .set_gap_wait(GAP_WAIT + GAP_WAIT_A_DOUBLING * doublings);
        self.member = Some(Member {
            topic: topic.topic,
            node,
            events,
            reach: Reach::new(Instant::now()),
        });
    }

    /// Leaves the topic in the background: doing so in order takes a while, and the hub's stream is
    /// to be read on.
    fn leave_topic(&mut self) {
        self.acceptor.set(None);
        if let Some(member) = self.member.take() {
            debug!(was_served = member.reach.is_served(), "leaves the topic");
            self.leaving
                .spawn(async move { member.node.shutdown().await });
        }
    }

    /// Hands what the inbox lets out to the listeners; says whether they hold it back.
    fn let_out(&mut self) -> bool {
        loop {
            let permit = match self.deliver.try_reserve() {
                Ok(permit) => permit,
                Err(mpsc::error::TrySendError::Full(())) => return true,
                Err(mpsc::error::TrySendError::Closed(())) => return true,
            };
            let Some(output) = self.inbox.poll(Instant::now()) else {
                return false;
            };
            if let Some(incoming) = Self::incoming(
                output,
                self.hub,
                &self.shared,
                &self.metrics,
                &self.outbox,
                &mut self.targeted,
            ) {
                permit.send(incoming);
            }
        }
    }

    /// Lets out what is whole when the link has ended, as far as the listeners take it.
    async fn let_out_rest(&mut self) {
        while self.let_out() {
            if self.deliver.reserve().await.is_err() {
                return;
            }
        }
    }

    /// What listeners get for an output of the inbox; nothing for a want.
    fn incoming(
        output: Output,
        hub: EndpointId,
        shared: &Shared,
        metrics: &SpokeMetrics,
        outbox: &Outbox,
        targeted: &mut u64,
    ) -> Option<Incoming> {
        let missed = |from, to| {
            metrics.events_missed.inc_by(to - from);
            shared.next.store(to, Ordering::Release);
            Some(Incoming::Missed(Missed {
                from: Position::new(shared.epoch, from),
                to: Position::new(shared.epoch, to),
            }))
        };
        match output {
            Output::Event { offset, body, via } => {
                let envelope = match Envelope::from_body(body) {
                    Ok(envelope) => envelope,
                    Err(error) => {
                        warn!(%error, offset, "the hub broadcast something that is no event");
                        metrics.frames_bad.inc();
                        return missed(offset, offset + 1);
                    }
                };
                match via {
                    Via::Direct => metrics.events_direct.inc(),
                    Via::Gossip => metrics.events_gossip.inc(),
                    Via::Repair => metrics.events_repaired.inc(),
                };
                shared.next.store(offset + 1, Ordering::Release);
                let mut event = Event::new(envelope, Source::Hub(hub));
                event.position = Some(Position::new(shared.epoch, offset));
                event.via = Some(via);
                Some(Incoming::Event(event))
            }
            Output::Missed { from, to } => missed(from, to),
            Output::Targeted { seq, body } => {
                *targeted = seq;
                metrics.events_targeted.inc();
                let envelope = Envelope::from_body(body)
                    .inspect_err(|error| {
                        metrics.frames_bad.inc();
                        warn!(%error, "the hub sent us something that is no event");
                    })
                    .ok()?;
                let mut event = Event::new(envelope, Source::Hub(hub));
                event.via = Some(Via::Direct);
                event.targeted = true;
                Some(Incoming::Event(event))
            }
            Output::Want { from, to } => {
                metrics.wants.inc();
                outbox.want(from, to);
                None
            }
        }
    }

    fn unacked(&self) -> (u64, u64) {
        (self.inbox.next(), self.targeted)
    }

    fn acknowledge(&mut self, now: Instant) {
        let unacked = self.unacked();
        let awaited = self.acked.0 < self.ack_for && self.ack_for <= unacked.0;
        if unacked != self.acked && (awaited || now >= self.ack_at) {
            self.acked = unacked;
            self.ack_at = now + self.ack_every;
            self.outbox.acknowledge(unacked.0, unacked.1);
        }
    }
}

//! A native spoke's session: the task that owns its [`Reception`] and its part in the topic.
//!
//! What comes in, along the stream and along the topic, goes to the reception; what that lets out goes to
//! the listeners, and what it orders is done. While listeners hold back, the stream is read on as long as the
//! inbox has room.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use iroh::{Endpoint, EndpointId};
use n0_error::e;
use tokio::{sync::mpsc, time::sleep_until};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    config::{From, Gossip, SpokeConfig},
    member::{GossipAcceptor, Member, SpokeGate},
    outbox::Outbox,
    reception::{Order, Reception, ReceptionConfig},
};
use crate::{
    close::{CloseCode, Closed},
    gossip::{GossipEvent, GossipMetrics, GossipNode},
    link_io::{FrameReader, LinkError},
    listen::Incoming,
    metrics::SpokeMetrics,
    position::{Epoch, Position},
    seal::{Context, Opened, Opener, Really},
    wire::broadcast::MAX_FRAME_SIZE,
    wire::native::{GenerationKeys, Start, ToSpoke, Topic},
};

/// How many frames are taken in before the inbox is asked what it has.
const FRAMES_AT_ONCE: usize = 256;
/// A session looks around so often though nothing is due.
const LOOK_AROUND: Duration = Duration::from_secs(60);

/// What the spoke's handle can see of the session.
#[derive(Debug)]
pub(super) struct Shared {
    /// The position of the next broadcast that listeners get.
    position: Mutex<Option<Position>>,
    pub(super) served: std::sync::atomic::AtomicBool,
}

impl Shared {
    pub(super) fn position(&self) -> Option<Position> {
        *self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listeners have everything before this position.
    pub(super) fn set_position(&self, position: Position) {
        let mut now = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        *now = Some(position);
    }
}

pub(super) struct Session {
    hub: EndpointId,
    endpoint: Endpoint,
    config: SpokeConfig,
    reception: Reception,
    reader: FrameReader,
    outbox: Arc<Outbox>,
    deliver: mpsc::Sender<Incoming>,
    shared: Arc<Shared>,
    gossip_metrics: Arc<GossipMetrics>,
    metrics: Arc<SpokeMetrics>,
    acceptor: GossipAcceptor,
    member: Option<Member>,
    /// Nodes that are leaving their topics.
    leaving: TaskTracker,
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
    pub(super) reception: Reception,
    pub(super) reader: FrameReader,
    pub(super) outbox: Arc<Outbox>,
    pub(super) deliver: mpsc::Sender<Incoming>,
    pub(super) metrics: Arc<SpokeMetrics>,
    pub(super) gossip_metrics: Arc<GossipMetrics>,
    pub(super) acceptor: GossipAcceptor,
}

/// The reception of a spoke with this configuration.
pub(super) fn reception(
    hub: EndpointId,
    config: &SpokeConfig,
    metrics: Arc<SpokeMetrics>,
) -> Reception {
    let config = ReceptionConfig {
        hub,
        start: match config.from {
            From::Tip => Start::Tip,
            From::Earliest => Start::Earliest,
            From::Position(position) => Start::At(position),
        },
        gossip: config.gossip == Gossip::Full,
        max_event_bytes: config.limits.max_event_bytes,
        max_buffered_bytes: config.limits.max_buffered_bytes,
        seed: rand::random(),
    };
    Reception::new(config, metrics, Instant::now())
}

impl Session {
    pub(super) fn new(parts: Parts) -> (Self, Arc<Shared>) {
        let Parts {
            endpoint,
            hub,
            config,
            reception,
            reader,
            outbox,
            deliver,
            metrics,
            gossip_metrics,
            acceptor,
        } = parts;
        let shared = Arc::new(Shared {
            position: Mutex::new(reception.position()),
            served: false.into(),
        });
        let session = Self {
            hub,
            endpoint,
            config,
            reception,
            reader,
            outbox,
            deliver,
            shared: shared.clone(),
            gossip_metrics,
            metrics,
            acceptor,
            member: None,
            leaving: TaskTracker::new(),
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
        let closed = error.closed();
        self.reception.closed(Instant::now(), &closed);
        self.let_out_rest().await;
        self.leaving.close();
        self.leaving.wait().await;
        closed
    }

    async fn main_loop(&mut self) -> Result<(), LinkError> {
        loop {
            let held = self.let_out().await?;
            let now = Instant::now();
            let reads = !held || self.reception.has_room();
            let deadline = self.reception.deadline(held).unwrap_or(now + LOOK_AROUND);
            let woken = tokio::select! {
                frame = self.reader.next(), if reads => Woken::Frame(frame?),
                event = Self::next_gossip(&mut self.member) => Woken::Gossip(event),
                // Room for the next item; the reservation itself is not kept.
                permit = self.deliver.reserve(), if held => Woken::Room(permit.is_ok()),
                () = sleep_until(deadline.into()) => Woken::Deadline,
            };
            match woken {
                Woken::Frame(Some(frame)) => self.frames(frame).await?,
                Woken::Frame(None) => return Ok(()),
                Woken::Gossip(Some(event)) => self.gossip(event),
                Woken::Gossip(None) => {
                    warn!("the node on the topic has ended; the hub serves us directly");
                    self.reception.topic_ended(Instant::now());
                }
                Woken::Room(true) => {}
                Woken::Room(false) => {
                    let closed = Closed::by_us(CloseCode::Goodbye, "the spoke ended");
                    return Err(LinkError::gone(closed));
                }
                Woken::Deadline => self.reception.tick(Instant::now()),
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

    /// Takes in a frame and those behind it that have arrived already.
    async fn frames(&mut self, first: Bytes) -> Result<(), LinkError> {
        let mut frame = Some(first);
        let mut budget = FRAMES_AT_ONCE;
        while let Some(bytes) = frame.take() {
            match ToSpoke::decode(bytes)? {
                Some(frame) => self.reception.frame(Instant::now(), frame)?,
                None => {
                    self.metrics.frames_unknown.inc();
                }
            }
            budget -= 1;
            // Let out at once, so that what comes in its turn is never buffered.
            let held = self.let_out().await?;
            if budget > 0 && (!held || self.reception.has_room()) {
                frame = self.reader.buffered()?;
            }
        }
        Ok(())
    }

    fn gossip(&mut self, event: GossipEvent<Opened>) {
        match event {
            GossipEvent::Frame { opened, .. } => self.reception.opened(Instant::now(), opened),
            event => debug!(?event, "topic"),
        }
    }

    /// Hands what is let out to the listeners, and does what is ordered; says whether they hold it back.
    async fn let_out(&mut self) -> Result<bool, LinkError> {
        let held = loop {
            let Ok(permit) = self.deliver.try_reserve() else {
                break true;
            };
            let Some(item) = self.reception.poll_delivery(Instant::now()) else {
                break false;
            };
            permit.send(item);
        };
        while let Some(order) = self.reception.poll_order(Instant::now()) {
            self.obey(order).await?;
        }
        let served = self.reception.is_served();
        self.shared
            .served
            .store(served, std::sync::atomic::Ordering::Release);
        Ok(held)
    }

    async fn obey(&mut self, order: Order) -> Result<(), LinkError> {
        match order {
            Order::Write(frame) => {
                if !self.outbox.write(frame) {
                    return Err(e!(LinkError::TooMany {
                        what: "events over this spoke's limit, faster than the hub is told of them"
                    }));
                }
            }
            Order::Published { seq } => {
                if !self.outbox.acked(seq) {
                    return Err(e!(LinkError::Misbehaved {
                        what: "acknowledged an event that was not sent"
                    }));
                }
            }
            Order::Join { topic, epoch } => self.join_topic(*topic, epoch),
            Order::Meet { peers } => {
                if let Some(member) = &self.member {
                    member.node.join(peers);
                }
            }
            Order::Rekey(keys) => self.rekey(keys).await,
            Order::Leave => self.leave_topic(),
            Order::Tell(status) => debug!(%status, "status"),
        }
        Ok(())
    }

    /// Lets out what is whole when the link has ended, as far as the listeners take it.
    async fn let_out_rest(&mut self) {
        while let Ok(true) = self.let_out().await {
            if self.deliver.reserve().await.is_err() {
                return;
            }
        }
    }

    async fn rekey(&mut self, keys: GenerationKeys) {
        let Some(member) = &self.member else { return };
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

    fn join_topic(&mut self, topic: Topic, epoch: Epoch) {
        debug!(peers = topic.peers.len(), "joins the topic");
        let mut opener = Opener::new(Context::new(self.hub, topic.topic), epoch);
        if let Err(error) = opener.add(&topic.keys) {
            warn!(%error, "the hub's keys do not fit; the topic is not joined");
            return self.reception.topic_ended(Instant::now());
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
        self.member = Some(Member { node, events });
    }

    /// Leaves the topic in the background: doing so in order takes a while, and the hub's stream is
    /// to be read on.
    fn leave_topic(&mut self) {
        self.acceptor.set(None);
        if let Some(member) = self.member.take() {
            self.leaving
                .spawn(async move { member.node.shutdown().await });
        }
    }
}

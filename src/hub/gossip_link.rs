//! The gossip link: the cursor that serves the topic, as if it were one very large spoke.
//!
//! What to send next is the [`Framer`]'s decision; here it is sealed and handed to the node.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytes::Bytes;
use iroh::EndpointId;
use n0_future::task::{self, AbortOnDropHandle};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use super::{
    Inner,
    framer::{Content, Framer},
    keys::{Keys, NotSealed},
    pace::Pace,
    supervisor::TopicStanding,
};
use crate::{
    fan_out::Path,
    gossip::{FrameGate, FrameRefused, GossipEvent, GossipNode, GossipSendError},
    metrics::events,
    position::Epoch,
    seal::{Check, Context, OpenError, Opener, Really},
    spoke_id::SpokeId,
    wire::{broadcast::OVERHEAD, native::GenerationKeys},
};

/// How many ranges may wait to be taken up by the framer.
const AGAIN: usize = 1024;

pub(super) struct GossipLink {
    topic: CurrentTopic,
    max_frame_bytes: u32,
    neighbors: watch::Receiver<usize>,
    audience: watch::Sender<Audience>,
    standing: Arc<CursorStanding>,
    again: mpsc::Sender<(u64, u64)>,
    cancel: CancellationToken,
    task: AbortOnDropHandle<End>,
}

impl GossipLink {
    /// Draws a topic and its keys, and begins to serve it from the tip on.
    pub(super) fn start(hub: &Arc<Inner>) -> Self {
        let topic: [u8; 32] = rand::random();
        let context = Context::new(hub.me, topic);
        let epoch = hub.log.epoch();
        let now = Instant::now().into_std();
        let keys = Keys::new(now, context.clone(), epoch, &mut rand::rng());
        let first = keys.current();
        let mut opener = Opener::new(context, epoch);
        if let Err(error) = opener.add(&first) {
            warn!(%error, "our own keys do not fit");
        }
        let config = hub.config.gossip.clone();
        let max_frame_bytes = config.max_frame_size;
        let (node, events) = GossipNode::spawn(
            hub.endpoint.clone(),
            config,
            topic.into(),
            &first,
            HubGate::new(opener, Really),
            hub.admits(),
            hub.metrics.gossip.clone(),
        );
        let keys = Arc::new(TopicKeys {
            keys: Mutex::new(keys),
            changed: Notify::new(),
        });
        let audience = watch::Sender::new(Audience::default());
        let standing = Arc::new(CursorStanding::default());
        standing.sent.store(hub.log.tip(), Ordering::Release);
        let neighbors = node.neighbors();
        let (again, again_rx) = mpsc::channel(AGAIN);
        let cancel = hub.cancel.child_token();
        let limits = &hub.config.limits;
        let cursor = Cursor {
            hub: hub.clone(),
            node: node.clone(),
            epoch,
            keys: keys.clone(),
            gate_knows: first.generation,
            framer: Framer::new(
                now,
                hub.log.tip(),
                max_frame_bytes - OVERHEAD,
                Pace::new(limits.stall_after, limits.patience),
            ),
            neighbors: node.neighbors(),
            audience: audience.subscribe(),
            standing: standing.clone(),
            again: again_rx,
        };
        let span = info_span!("gossip_link", me = %hub.me.fmt_short());
        let task = task::spawn(cursor.run(events, cancel.clone()).instrument(span));
        Self {
            topic: CurrentTopic {
                id: topic,
                node,
                keys,
            },
            max_frame_bytes: max_frame_bytes as u32,
            neighbors,
            audience,
            standing,
            again,
            cancel,
            task: AbortOnDropHandle::new(task),
        }
    }

    pub(super) fn topic(&self) -> &CurrentTopic {
        &self.topic
    }

    /// Everything below this offset was sent, or was not for the topic.
    pub(super) fn sent(&self) -> u64 {
        self.standing.sent.load(Ordering::Acquire)
    }

    pub(super) fn max_frame_bytes(&self) -> u32 {
        self.max_frame_bytes
    }

    pub(super) fn node(&self) -> &GossipNode<HubGate> {
        &self.topic.node
    }

    pub(super) fn set_audience(&self, audience: Audience) {
        self.audience
            .send_if_modified(|now| std::mem::replace(now, audience) != audience);
    }

    /// Seals nothing any more: from when this returns on, who is revoked need not be looked for on this topic.
    pub(super) fn close(&self) {
        self.topic.keys.lock().close();
        self.cancel.cancel();
    }

    /// Shows how the topic stands.
    pub(super) fn probe(&self) -> Probe {
        Probe {
            neighbors: self.topic.node.neighbors(),
            standing: self.standing.clone(),
        }
    }

    /// Sends `[from, to)` again. What finds no place is wanted again.
    pub(super) fn send_again(&self, from: u64, to: u64) {
        if self.again.try_send((from, to)).is_err() {
            debug!(from, to, "too much is to be sent again");
        }
    }

    /// Waits for what the switchboard has to know; for ever, if there is no topic. Not to be called again
    /// after [`LinkEvent::Ended`].
    pub(super) async fn event(link: &mut Option<Self>) -> LinkEvent {
        let Some(link) = link else {
            return std::future::pending().await;
        };
        tokio::select! {
            ended = &mut link.task => {
                let end = ended.unwrap_or_else(|error| {
                    warn!(%error, "the topic's cursor failed");
                    End::Failed
                });
                LinkEvent::Ended { epoch: end == End::Epoch }
            }
            Ok(()) = link.neighbors.changed() => {
                LinkEvent::Neighbors(*link.neighbors.borrow_and_update())
            }
        }
    }

    pub(super) async fn stop(mut self) {
        self.cancel.cancel();
        self.topic.node.shutdown().await;
        if !self.task.is_finished() {
            let _ = (&mut self.task).await;
        }
    }
}

/// However it ends.
impl Drop for GossipLink {
    fn drop(&mut self) {
        self.close();
    }
}

/// A topic that runs: what is shared of it.
#[derive(Clone, Debug)]
pub(super) struct CurrentTopic {
    pub(super) id: [u8; 32],
    /// Our node on it, for connections that others make.
    pub(super) node: GossipNode<HubGate>,
    pub(super) keys: Arc<TopicKeys>,
}

impl CurrentTopic {
    /// From when this returns on, nothing is sealed that former members can read. Those of them that were told of the
    /// topic lately are kept away by our node, and named to its members; no others are named to anyone.
    pub(super) fn revoke(&self, ids: &[EndpointId]) {
        let now = Instant::now().into_std();
        let current = {
            let mut keys = self.keys.lock();
            keys.revoke(now, ids, &mut rand::rng());
            keys.current()
        };
        self.node.rekey(&current, ids, true);
        self.keys.changed.notify_one();
    }
}

/// The keys of a topic: the cursor seals with them, the switchboard tells of them.
#[derive(Debug)]
pub(super) struct TopicKeys {
    keys: Mutex<Keys<SpokeId>>,
    /// Wakes the cursor.
    pub(super) changed: Notify,
}

impl TopicKeys {
    pub(super) fn lock(&self) -> MutexGuard<'_, Keys<SpokeId>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For whom the topic is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Audience {
    /// How many spokes are on their way to it that have not tried for long.
    pub(super) arriving: usize,
    /// How many it serves.
    pub(super) served: usize,
}

/// What happens to a topic by itself.
pub(super) enum LinkEvent {
    /// The hub has so many neighbours now.
    Neighbors(usize),
    /// It has ended, though nobody asked it to; because a new `epoch` began, or failing.
    Ended { epoch: bool },
}

/// Why a topic's cursor ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The log began a new epoch, of which this topic is not.
    Epoch,
    Failed,
    /// It was told to.
    Told,
}

/// Shows how a topic stands, while there is one.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    neighbors: watch::Receiver<usize>,
    standing: Arc<CursorStanding>,
}

impl Probe {
    pub(super) fn standing(&self) -> TopicStanding {
        TopicStanding {
            sent: self.standing.sent.load(Ordering::Acquire),
            held: self.standing.held.load(Ordering::Acquire),
            neighbors: *self.neighbors.borrow(),
        }
    }
}

/// How far the cursor is, for who watches it.
#[derive(Debug, Default)]
struct CursorStanding {
    sent: AtomicU64,
    held: AtomicBool,
}

async fn due(at: Option<std::time::Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

struct Cursor {
    hub: Arc<Inner>,
    node: GossipNode<HubGate>,
    epoch: Epoch,
    keys: Arc<TopicKeys>,
    /// The generation that our gate has learned last.
    gate_knows: u32,
    framer: Framer<SpokeId>,
    neighbors: watch::Receiver<usize>,
    audience: watch::Receiver<Audience>,
    standing: Arc<CursorStanding>,
    again: mpsc::Receiver<(u64, u64)>,
}

impl Cursor {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<GossipEvent<()>>,
        cancel: CancellationToken,
    ) -> End {
        let hub = self.hub.clone();
        let mut tip = hub.log.watch_tip();
        loop {
            tip.mark_unchanged();
            while let Ok((from, to)) = self.again.try_recv() {
                self.send_again(from, to);
            }
            self.look_around();
            let progress = hub.progress.notified();
            let acks = || hub.fast_acks(Some(Path::Gossip));
            let now = Instant::now().into_std();
            let content = self.framer.poll(now, &hub.log, acks);
            if content.is_none() {
                // It may have gone over what is for nobody.
                self.standing
                    .sent
                    .store(self.framer.next(), Ordering::Release);
            }
            // Looked at after reading: what was read before the epoch began is of the one before.
            if hub.log.epoch() != self.epoch {
                info!("the topic ends with its epoch");
                return End::Epoch;
            }
            if let Some(content) = content {
                let sent = tokio::select! {
                    sent = self.send(&content) => sent,
                    () = cancel.cancelled() => return End::Told,
                };
                if sent.is_err() {
                    return End::Failed;
                }
                continue;
            }
            tokio::select! {
                _ = tip.changed() => {}
                () = progress, if self.framer.is_held() => {}
                () = due(self.framer.deadline()) => {}
                Ok(()) = self.audience.changed() => {}
                Ok(()) = self.neighbors.changed() => {}
                Some((from, to)) = self.again.recv() => self.send_again(from, to),
                event = events.recv() => match event {
                    Some(event) => debug!(?event, "topic"),
                    // The driver is gone.
                    None => return End::Failed,
                },
                () = cancel.cancelled() => return End::Told,
            }
        }
    }

    /// Tells the framer who listens, and others how far it is.
    fn look_around(&mut self) {
        let audience = *self.audience.borrow_and_update();
        let neighbors = *self.neighbors.borrow_and_update();
        self.framer.set_hurry(audience.arriving > 0);
        self.framer
            .set_listeners(neighbors > 0, audience.served > 0);
        let sent = self.framer.next();
        self.standing.sent.store(sent, Ordering::Release);
        let held = self.framer.is_held();
        self.standing.held.store(held, Ordering::Release);
    }

    fn send_again(&mut self, from: u64, to: u64) {
        if !self.framer.send_again(from, to) {
            debug!(from, to, "too much is to be sent again");
        }
    }

    /// Seals a frame and broadcasts it, when spokes have the keys for it.
    async fn send(&mut self, content: &Content) -> Result<(), Ended> {
        let Some(frame) = self.seal(content).await? else {
            return Ok(());
        };
        let keys = {
            let keys = self.keys.lock();
            (keys.generation() != self.gate_knows).then(|| keys.current())
        };
        if let Some(keys) = keys {
            // What others make of the new keys is to be told from what they are for.
            self.gate_knows = keys.generation;
            self.hub.metrics.topic.rekeyed.inc();
            debug!(target: events::REKEYED, generation = keys.generation);
            let learn = move |gate: &mut HubGate| gate.learn(&keys);
            self.node.with_gate(learn).await.map_err(not_taken)?;
        }
        self.hub.metrics.topic.frames_sent.inc();
        self.node.broadcast(frame).await.map_err(not_taken)
    }

    /// Nothing, if it is not to be sent.
    async fn seal(&mut self, content: &Content) -> Result<Option<Bytes>, Ended> {
        let Content {
            first, count, of, ..
        } = *content;
        loop {
            let deadline = {
                let now = Instant::now().into_std();
                let mut keys = self.keys.lock();
                keys.look(now, first);
                let held = keys.is_held();
                self.standing.held.store(held, Ordering::Release);
                match keys.seal(now, (first, count, of), &content.body, content.again) {
                    Ok(frame) => return Ok(Some(frame)),
                    Err(NotSealed::Held) => keys.deadline(),
                    Err(NotSealed::TooOld) => {
                        // Who wants it gets it along its link.
                        debug!(first, count, "a spoke on the topic may not read it");
                        return Ok(None);
                    }
                    Err(NotSealed::Over) => return Err(Ended),
                }
            };
            tokio::select! {
                () = self.keys.changed.notified() => {}
                () = due(deadline) => {}
            }
        }
    }
}

fn not_taken(error: GossipSendError) -> Ended {
    warn!(%error, "the topic does not take frames");
    Ended
}

/// The topic cannot be served any more.
struct Ended;

/// The hub's gate: only the hub writes frames, so what comes in is an echo or a forgery.
#[derive(Debug)]
pub(crate) struct HubGate<C = Really> {
    opener: Opener,
    check: C,
}

impl<C: Check> HubGate<C> {
    pub(crate) fn new(opener: Opener, check: C) -> Self {
        Self { opener, check }
    }

    /// Learns the keys of a generation.
    pub(crate) fn learn(&mut self, keys: &GenerationKeys) {
        if let Err(error) = self.opener.add(keys) {
            warn!(%error, "our own keys do not fit");
        }
    }
}

impl<C: Check + Send + 'static> FrameGate for HubGate<C> {
    type Opened = ();

    fn open(&mut self, frame: &Bytes) -> Result<(), FrameRefused> {
        match self.opener.open_with(frame, &mut self.check) {
            Ok(_) | Err(OpenError::Replayed { .. } | OpenError::OtherEpoch { .. }) => {
                Err(FrameRefused::Stale)
            }
            Err(OpenError::UnknownGeneration { .. }) => Err(FrameRefused::UnknownGeneration),
            Err(_) => Err(FrameRefused::Forged),
        }
    }
}

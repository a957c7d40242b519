//! The gossip link: the cursor that serves the topic, as if it were one very large spoke.
//!
//! It packs what the log has before it into frames, seals them and broadcasts them. While there is
//! nothing to send, it says where the tip is (a beacon), ever more rarely, so that spokes see what
//! they lost at the end, and their own isolation.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use n0_future::task::{self, AbortOnDropHandle};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use super::{Inner, pace::Pace, shared_log::Entry};
use crate::{
    fan_out::Path,
    gossip::{FrameGate, FrameRefused, GossipEvent, GossipNode},
    log::Read,
    seal::{Check, Context, OpenError, Opener, Really, Sealer},
    spoke_id::SpokeId,
    wire::{
        broadcast::{BEACON_FIRST, BEACON_LAST, OVERHEAD, Packer},
        native::{GenerationKeys, PartOf, parts},
    },
};

/// How far the topic may run ahead of its spokes: less than what their neighbours' queues hold, so
/// that a burst waits here and is not dropped there.
const WINDOW_EVENTS: u64 = 16_384;
const WINDOW_BYTES: u64 = 1 << 20;
/// How long to wait for an acknowledgement before the window is looked at again.
const WINDOW_POLL: Duration = Duration::from_millis(20);

/// How many events of the log are looked at for one frame.
const FRAME_EVENTS: usize = 4096;

pub(super) struct GossipLink {
    topic: [u8; 32],
    keys: GenerationKeys,
    max_frame_bytes: u32,
    node: GossipNode<HubGate>,
    hurry: watch::Sender<bool>,
    cancel: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl GossipLink {
    /// Draws a topic and its keys, and begins to serve it from the tip on.
    pub(super) fn start(hub: &Arc<Inner>) -> Self {
        let topic: [u8; 32] = rand::random();
        let context = Context::new(hub.me, topic);
        let sealer = Sealer::new(context.clone(), hub.log.epoch(), 0);
        let keys = sealer.keys();
        let mut opener = Opener::new(context, hub.log.epoch());
        if let Err(error) = opener.add(&keys) {
            warn!(%error, "our own keys do not fit");
        }
        let config = hub.config.gossip.clone();
        let max_frame_bytes = config.max_frame_size;
        let (node, events) = GossipNode::spawn(
            hub.endpoint.clone(),
            config,
            topic.into(),
            keys.generation,
            keys.key,
            HubGate::new(opener, Really),
            hub.gossip_metrics.clone(),
        );
        let hurry = watch::Sender::new(true);
        let cancel = hub.cancel.child_token();
        let cursor = Cursor {
            hub: hub.clone(),
            node: node.clone(),
            sealer,
            next: hub.log.tip(),
            content_limit: max_frame_bytes - OVERHEAD,
            quiet: BEACON_FIRST,
            last_sent: Instant::now(),
            hurry: hurry.subscribe(),
            packer: Packer::default(),
            pace: Pace::new(hub.config.limits.stall_after, hub.config.limits.patience),
        };
        let span = info_span!("gossip_link", me = %hub.me.fmt_short());
        let task = task::spawn(cursor.run(events, cancel.clone()).instrument(span));
        Self {
            topic,
            keys,
            max_frame_bytes: max_frame_bytes as u32,
            node,
            hurry,
            cancel,
            task: AbortOnDropHandle::new(task),
        }
    }

    pub(super) fn topic(&self) -> [u8; 32] {
        self.topic
    }

    pub(super) fn keys(&self) -> GenerationKeys {
        self.keys.clone()
    }

    pub(super) fn max_frame_bytes(&self) -> u32 {
        self.max_frame_bytes
    }

    pub(super) fn node(&self) -> &GossipNode<HubGate> {
        &self.node
    }

    /// While somebody is joining, beacons come at their shortest interval.
    pub(super) fn set_hurry(&self, hurry: bool) {
        self.hurry
            .send_if_modified(|now| std::mem::replace(now, hurry) != hurry);
    }

    /// Resolves when the link has ended without having been asked to.
    pub(super) async fn failed(link: &mut Option<Self>) {
        match link {
            Some(link) => {
                let _ = (&mut link.task).await;
            }
            None => std::future::pending().await,
        }
    }

    pub(super) async fn stop(mut self) {
        self.cancel.cancel();
        self.node.shutdown().await;
        if !self.task.is_finished() {
            let _ = (&mut self.task).await;
        }
    }
}

struct Cursor {
    hub: Arc<Inner>,
    node: GossipNode<HubGate>,
    sealer: Sealer,
    next: u64,
    content_limit: usize,
    /// How long after the last frame or beacon the next beacon is due.
    quiet: Duration,
    last_sent: Instant,
    hurry: watch::Receiver<bool>,
    packer: Packer,
    pace: Pace<SpokeId>,
}

impl Cursor {
    async fn run(mut self, mut events: mpsc::Receiver<GossipEvent<()>>, cancel: CancellationToken) {
        let mut tip = self.hub.log.watch_tip();
        let mut entries = Vec::new();
        loop {
            tip.mark_unchanged();
            let sent = tokio::select! {
                sent = self.send_batch(&mut entries) => sent,
                () = cancel.cancelled() => return,
            };
            match sent {
                Ok(true) => continue,
                Ok(false) => {}
                Err(Ended) => return,
            }
            let beacon = self.last_sent + self.quiet;
            tokio::select! {
                _ = tip.changed() => {}
                () = sleep_until(beacon) => {
                    if self.beacon().await.is_err() {
                        return;
                    }
                }
                Ok(()) = self.hurry.changed() => self.quiet = BEACON_FIRST,
                event = events.recv() => match event {
                    Some(event) => debug!(?event, "topic"),
                    // The driver is gone.
                    None => return,
                },
                () = cancel.cancelled() => return,
            }
        }
    }

    /// Broadcasts what the log has before the cursor, at most one read of it. Says whether there was
    /// anything.
    async fn send_batch(&mut self, entries: &mut Vec<(u64, Arc<Entry>)>) -> Result<bool, Ended> {
        self.wait_for_window().await?;
        entries.clear();
        match self
            .hub
            .log
            .read(self.next, FRAME_EVENTS, 4 * self.content_limit, entries)
        {
            Read::Events => {}
            Read::AtTip | Read::Beyond { .. } => return Ok(false),
            // Spokes want what is missing, and are told what is gone.
            Read::Trimmed { head } => {
                self.next = head;
                return Ok(true);
            }
        }
        let mut first = self.next;
        for (offset, entry) in entries.drain(..) {
            let body = entry.envelope.body();
            if self.packer.push(body, self.content_limit) {
                continue;
            }
            self.flush(first).await?;
            first = offset;
            if self.packer.push(body, self.content_limit) {
                continue;
            }
            for (of, part) in parts(body) {
                let frame = self.sealer.seal(offset, 1, of, &part);
                self.broadcast(frame.map_err(|_| Ended)?).await?;
            }
            first = offset + 1;
            self.next = first;
        }
        self.flush(first).await?;
        Ok(true)
    }

    /// Waits while the spokes on the topic that acknowledge fast, and keep up, are a window behind.
    async fn wait_for_window(&mut self) -> Result<(), Ended> {
        loop {
            let progress = self.hub.progress.notified();
            let behind = self.hub.log.back_by(self.next, WINDOW_EVENTS, WINDOW_BYTES);
            let fast = self.hub.fast_acks(Some(Path::Gossip));
            let floor = self
                .pace
                .floor(Instant::now().into_std(), behind, fast.into_iter());
            if floor.is_none_or(|floor| floor >= behind) {
                return Ok(());
            }
            let _ = timeout(WINDOW_POLL, progress).await;
            if self.last_sent.elapsed() > BEACON_FIRST {
                // Silence would be taken for isolation.
                self.beacon().await?;
            }
        }
    }

    /// Seals and broadcasts what is packed, which begins at `first`.
    async fn flush(&mut self, first: u64) -> Result<(), Ended> {
        let count = self.packer.count();
        if count == 0 {
            return Ok(());
        }
        let content = self.packer.take();
        let whole = PartOf { part: 0, parts: 1 };
        let frame = self.sealer.seal(first, count, whole, &content);
        self.broadcast(frame.map_err(|_| Ended)?).await?;
        self.next = first + u64::from(count);
        Ok(())
    }

    async fn broadcast(&mut self, frame: Bytes) -> Result<(), Ended> {
        self.hub.metrics.gossip_frames.inc();
        self.quiet = BEACON_FIRST;
        self.last_sent = Instant::now();
        self.node.broadcast(frame).await.map_err(|error| {
            warn!(%error, "the topic does not take frames");
            Ended
        })
    }

    async fn beacon(&mut self) -> Result<(), Ended> {
        let frame = self.sealer.beacon(self.next).map_err(|_| Ended)?;
        let quiet = if *self.hurry.borrow() {
            BEACON_FIRST
        } else {
            (self.quiet * 2).min(BEACON_LAST)
        };
        self.broadcast(frame).await?;
        self.quiet = quiet;
        Ok(())
    }
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
}

impl<C: Check + Send + 'static> FrameGate for HubGate<C> {
    type Opened = ();

    fn open(&mut self, frame: &Bytes) -> Result<(), FrameRefused> {
        match self.opener.open_with(frame, &mut self.check) {
            Ok(_) | Err(OpenError::Replayed { .. }) => Err(FrameRefused::Stale),
            Err(OpenError::UnknownGeneration { .. }) => Err(FrameRefused::UnknownGeneration),
            Err(_) => Err(FrameRefused::Forged),
        }
    }
}

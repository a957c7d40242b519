//! A spoke's part in the topic: its node, and what lets frames through to it. Whether the topic serves the
//! spoke is the business of the `reception`.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use iroh::{
    Endpoint, EndpointAddr,
    endpoint::Connection,
    protocol::{AcceptError, ProtocolHandler},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::shared::Shared;
use crate::{
    close::CloseCode,
    gossip::{FrameGate, FrameRefused, GossipEvent, GossipNode, told_by_hub},
    metrics::events,
    position::Epoch,
    seal::{Check, Context, OpenError, Opened, Opener, Really},
    wire::{
        broadcast::MAX_FRAME_SIZE,
        native::{Rekey, Topic},
    },
};

/// How long leaving the topic may take.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// Takes the gossip connections of other spokes for a [`Spoke`](super::Spoke) that lives on your own
/// router.
///
/// Register it for [`GOSSIP_ALPN`](crate::GOSSIP_ALPN), and give it to the spoke's builder
/// ([`SpokeBuilder::acceptor`](super::SpokeBuilder::acceptor)). While the spoke is on no topic, it
/// turns connections away. Cloning is cheap: clones are the same.
#[derive(Clone, Debug, Default)]
pub struct GossipAcceptor {
    node: Arc<Mutex<Option<GossipNode<SpokeGate>>>>,
}

impl GossipAcceptor {
    /// Makes an acceptor without a spoke.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn node(&self) -> Option<GossipNode<SpokeGate>> {
        let node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        node.clone()
    }

    pub(super) fn set(&self, node: Option<GossipNode<SpokeGate>>) {
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = node;
    }
}

impl ProtocolHandler for GossipAcceptor {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        match self.node() {
            Some(node) => node.handle_connection(connection),
            None => connection.close(CloseCode::NotAMember.to_varint(), b"on no topic"),
        }
        Ok(())
    }
}

/// A spoke's place on the topic, if it has one.
pub(super) struct Seat {
    endpoint: Endpoint,
    hub: EndpointAddr,
    shared: Arc<Shared>,
    acceptor: GossipAcceptor,
    member: Option<Member>,
    /// Nodes that are leaving their topics.
    leaving: TaskTracker,
}

struct Member {
    node: GossipNode<SpokeGate>,
    events: mpsc::Receiver<GossipEvent<Opened>>,
}

impl Seat {
    pub(super) fn new(
        endpoint: Endpoint,
        hub: EndpointAddr,
        shared: Arc<Shared>,
        acceptor: GossipAcceptor,
    ) -> Self {
        Self {
            endpoint,
            hub,
            shared,
            acceptor,
            member: None,
            leaving: TaskTracker::new(),
        }
    }

    /// The topic's next event; `None` if its node has ended. Pends while there is no topic.
    pub(super) async fn next(&mut self) -> Option<GossipEvent<Opened>> {
        match &mut self.member {
            Some(member) => member.events.recv().await,
            None => std::future::pending().await,
        }
    }

    /// Joins a topic. False if the hub's keys are none.
    pub(super) fn join(&mut self, topic: Topic, epoch: Epoch) -> bool {
        debug!(target: events::MEMBER_JOINS, peers = topic.peers.len());
        let mut opener = Opener::new(Context::new(self.hub.id, topic.topic), epoch);
        if let Err(error) = opener.add(&topic.keys) {
            warn!(%error, "the hub's keys do not fit; the topic is not joined");
            return false;
        }
        let mut config = self.shared.config.gossip_config.clone();
        config.hub = Some(self.hub.id);
        config.max_frame_size = (topic.max_frame_bytes as usize).min(MAX_FRAME_SIZE);
        let (node, events) = GossipNode::spawn(
            self.endpoint.clone(),
            config,
            topic.topic.into(),
            &topic.keys,
            SpokeGate::new(opener, Really),
            // Who proves to have the key of the hub's generation is a spoke of the hub's.
            Arc::new(|_| true),
            self.shared.metrics.gossip.clone(),
        );
        self.acceptor.set(Some(node.clone()));
        node.join(self.may_dial(topic.peers));
        self.member = Some(Member { node, events });
        true
    }

    /// Joins the topic through these peers too.
    pub(super) fn meet(&self, peers: Vec<EndpointAddr>) {
        if let Some(member) = &self.member {
            member.node.join(self.may_dial(peers));
        }
    }

    fn may_dial(&self, peers: Vec<EndpointAddr>) -> Vec<EndpointAddr> {
        let own = self.endpoint.addr();
        let allowed = |peer: EndpointAddr| match peer.id == self.hub.id {
            // Where it is, our user told us.
            true => self.hub.clone(),
            false => told_by_hub(peer, &own),
        };
        let mut peers: Vec<_> = peers.into_iter().map(allowed).collect();
        if !peers.is_empty() && peers.iter().all(|peer| peer.addrs.is_empty()) {
            // Nobody is where we may go: the hub is, and it is on the topic.
            peers.push(self.hub.clone());
        }
        peers
    }

    /// Learns keys of the topic, and who is on it no more.
    pub(super) async fn rekey(&self, rekey: Rekey) {
        let Some(member) = &self.member else { return };
        let Rekey {
            keys,
            evict,
            revoked,
            ..
        } = rekey;
        // The gate first: who proves to have the new keys may send frames under them.
        let learned = keys.clone();
        let added = member.node.with_gate(move |gate: &mut SpokeGate| {
            if let Err(error) = gate.opener().add(&learned) {
                warn!(%error, "the hub's new keys do not fit; its frames under them will not open");
            }
        });
        if added.await.is_err() {
            debug!("the node on the topic has ended");
        }
        member.node.rekey(&keys, &evict, revoked);
    }

    /// Leaves the topic in the background: doing so in order takes a while, and the hub's stream is
    /// to be read on.
    pub(super) fn leave(&mut self) {
        self.acceptor.set(None);
        if let Some(member) = self.member.take() {
            self.leaving
                .spawn(async move { member.node.shutdown().await });
        }
    }

    /// Leaves the topic and waits until all that was left has ended.
    pub(super) async fn close(mut self) {
        self.leave();
        self.leaving.close();
        if timeout(LEAVE_LIMIT, self.leaving.wait()).await.is_err() {
            warn!("the node on the topic did not end in time");
        }
    }
}

/// Lets through what the hub sealed.
#[derive(Debug)]
pub(crate) struct SpokeGate<C = Really> {
    opener: Opener,
    check: C,
}

impl<C: Check> SpokeGate<C> {
    pub(crate) fn new(opener: Opener, check: C) -> Self {
        Self { opener, check }
    }

    /// The keys that frames are opened with.
    pub(crate) fn opener(&mut self) -> &mut Opener {
        &mut self.opener
    }
}

impl<C: Check + Send + 'static> FrameGate for SpokeGate<C> {
    type Opened = Opened;

    fn open(&mut self, frame: &Bytes) -> Result<Opened, FrameRefused> {
        let opened = self.opener.open_with(frame, &mut self.check);
        opened.map_err(|error| match error {
            OpenError::Replayed { .. } | OpenError::OtherEpoch { .. } => FrameRefused::Stale,
            OpenError::UnknownGeneration { .. } => FrameRefused::UnknownGeneration,
            _ => FrameRefused::Forged,
        })
    }
}

//! A spoke's part in the topic: its node, and what lets frames through to it. Whether the topic serves the
//! spoke is the business of the `reception`.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use iroh::{
    endpoint::Connection,
    protocol::{AcceptError, ProtocolHandler},
};
use tokio::sync::mpsc;

use crate::{
    close::CloseCode,
    gossip::{FrameGate, FrameRefused, GossipEvent, GossipNode},
    seal::{Check, OpenError, Opened, Opener, Really},
};

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

    pub(super) fn set(&self, node: Option<GossipNode<SpokeGate>>) {
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = node;
    }
}

impl ProtocolHandler for GossipAcceptor {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let node = self
            .node
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match node {
            Some(node) => node.handle_connection(connection),
            None => connection.close(CloseCode::NotAMember.to_varint(), b"on no topic"),
        }
        Ok(())
    }
}

/// A spoke's membership of one topic.
pub(super) struct Member {
    pub(super) node: GossipNode<SpokeGate>,
    pub(super) events: mpsc::Receiver<GossipEvent<Opened>>,
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

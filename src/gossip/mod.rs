//! The topic: iroh-gossip's protocol, driven in a way that one peer cannot stall, flood or lie to the others.
//!
//! - [`core`] is the protocol and every decision around it, for one topic, without sockets, tasks or a clock;
//! - [`node`] is the network around it: one actor, a bounded queue per peer, authenticated connections.
//!
//! A frame is opened by a [`FrameGate`] before the protocol may forward it. What a frame says, in which order
//! frames matter and what was lost is not known here: the log and the inbox see to that.

mod addr;
mod auth;
mod bounded;
mod config;
mod conn;
pub(crate) mod core;
pub(crate) mod dialled;
mod metrics;
mod mirror;
pub(crate) mod node;
mod outbox;
pub(crate) mod queue;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use iroh::EndpointId;

pub(crate) use self::{
    addr::told_by_hub,
    bounded::Bucket,
    node::{Admits, GossipNode, GossipSendError},
};
pub use self::{config::GossipConfig, metrics::GossipMetrics};

/// The ALPN of gossip connections between the hub and its native spokes, and among them.
pub const GOSSIP_ALPN: &[u8] = b"iroh-hub/gossip/1";

/// Opens frames. What it refuses is never forwarded.
pub(crate) trait FrameGate: Send + 'static {
    /// A frame that was opened.
    type Opened: Send + 'static;

    /// Checks and opens a frame that a neighbour sent.
    fn open(&mut self, frame: &Bytes) -> Result<Self::Opened, FrameRefused>;
}

/// Why a frame was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameRefused {
    /// The hub did not make it. Since everyone checks before forwarding, its sender is to blame.
    Forged,
    /// It is of another epoch, or was counted before. Nobody's fault.
    Stale,
    /// It is sealed under a key that is not known here (yet). Nobody's fault.
    UnknownGeneration,
}

/// What the topic tells its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GossipEvent<O> {
    /// A new frame.
    Frame {
        /// What the gate made of it.
        opened: O,
        /// The neighbour that it came from last; not its author.
        from: EndpointId,
        /// How many connections it crossed, as far as its carriers say: 1 is straight from its author.
        hops: u16,
    },
    /// A peer became a neighbour.
    NeighborUp(EndpointId),
    /// A peer is a neighbour no more.
    NeighborDown(EndpointId),
}

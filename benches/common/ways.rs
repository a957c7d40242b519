//! All ways to fan out, by name, so that some can take turns.

use super::{
    Arrived, Auto, AutoUntold, BareGossip, BareStreams, Bench, Direct, Gossip, HubMesh, Mesh,
    Paced, Result,
};

/// One way to fan out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// iroh and nothing else.
    BareStreams,
    /// `iroh_gossip::net` and nothing else.
    BareGossip,
    /// This crate, a stream a spoke.
    Direct,
    /// This crate, the topic.
    Gossip,
    /// This crate, whatever the hub chooses that knows its uplink.
    Auto,
    /// This crate, whatever the hub chooses by default.
    AutoUntold,
}

/// A running mesh of whichever way.
pub enum AnyMesh {
    /// See [`Way::BareStreams`].
    BareStreams(Bench<BareStreams>),
    /// See [`Way::BareGossip`].
    BareGossip(Bench<BareGossip>),
    /// See [`Way::Direct`].
    Direct(Bench<HubMesh<Direct>>),
    /// See [`Way::Gossip`].
    Gossip(Bench<HubMesh<Gossip>>),
    /// See [`Way::Auto`].
    Auto(Bench<HubMesh<Auto>>),
    /// See [`Way::AutoUntold`].
    AutoUntold(Bench<HubMesh<AutoUntold>>),
}

macro_rules! each {
    ($mesh:expr, $bench:ident => $body:expr) => {
        match $mesh {
            AnyMesh::BareStreams($bench) => $body,
            AnyMesh::BareGossip($bench) => $body,
            AnyMesh::Direct($bench) => $body,
            AnyMesh::Gossip($bench) => $body,
            AnyMesh::Auto($bench) => $body,
            AnyMesh::AutoUntold($bench) => $body,
        }
    };
}

impl Way {
    /// The name in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::BareStreams => BareStreams::NAME,
            Self::BareGossip => BareGossip::NAME,
            Self::Direct => HubMesh::<Direct>::NAME,
            Self::Gossip => HubMesh::<Gossip>::NAME,
            Self::Auto => HubMesh::<Auto>::NAME,
            Self::AutoUntold => HubMesh::<AutoUntold>::NAME,
        }
    }

    /// Starts a mesh.
    ///
    /// # Errors
    ///
    /// If it does not come to stand.
    pub async fn start(self, spokes: usize, max_payload: usize) -> Result<AnyMesh> {
        Ok(match self {
            Self::BareStreams => AnyMesh::BareStreams(Bench::start(spokes, max_payload).await?),
            Self::BareGossip => AnyMesh::BareGossip(Bench::start(spokes, max_payload).await?),
            Self::Direct => AnyMesh::Direct(Bench::start(spokes, max_payload).await?),
            Self::Gossip => AnyMesh::Gossip(Bench::start(spokes, max_payload).await?),
            Self::Auto => AnyMesh::Auto(Bench::start(spokes, max_payload).await?),
            Self::AutoUntold => AnyMesh::AutoUntold(Bench::start(spokes, max_payload).await?),
        })
    }
}

impl AnyMesh {
    /// See [`Bench::burst`].
    ///
    /// # Errors
    ///
    /// If the hub takes no events.
    pub async fn burst(&self, events: usize, size: usize) -> Result<Arrived> {
        each!(self, bench => bench.burst(events, size).await)
    }

    /// See [`Bench::lone`].
    ///
    /// # Errors
    ///
    /// If the hub takes no events.
    pub async fn lone(&self, size: usize) -> Result<Arrived> {
        each!(self, bench => bench.lone(size).await)
    }

    /// See [`Bench::paced`].
    ///
    /// # Errors
    ///
    /// If the hub takes no events.
    pub async fn paced(&self, events: usize, per_s: u32, size: usize) -> Result<Paced> {
        each!(self, bench => bench.paced(events, per_s, size).await)
    }

    /// See [`Bench::paths`].
    pub fn paths(&self) -> Option<String> {
        each!(self, bench => bench.paths())
    }

    /// See [`Bench::stop`].
    pub async fn stop(self) {
        each!(self, bench => bench.stop().await);
    }
}

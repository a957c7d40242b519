//! What the benches share: the meshes to measure, and the counting of what arrived.
//!
//! A new way to fan out is one file here that implements [`Mesh`]: start a hub and its spokes, publish one payload. The
//! sending of bursts, the timing and the counting of losses are written once, in [`Bench`].

// Each bench uses a part of it.
#![allow(dead_code, unused_imports)]

pub mod args;
pub mod bare_gossip;
pub mod bare_streams;
pub mod endpoints;
pub mod hub_mesh;
mod place;
pub mod results;
mod tally;
mod ways;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

pub use self::{
    bare_gossip::BareGossip,
    bare_streams::BareStreams,
    hub_mesh::{Auto, AutoUntold, Direct, Gossip, HubMesh, Strategy},
    place::{Loopback, Place, Role},
    tally::{Arrived, MIN_PAYLOAD, Tally},
    ways::{AnyMesh, Way},
};

/// Whatever goes wrong in a bench ends it with a message.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// See [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A burst or a lone event is given up when nothing has arrived for this long.
const PATIENCE: Duration = Duration::from_secs(1);
/// Times that a mesh is started until it reaches every spoke.
const STARTS: u32 = 5;
/// The pause before a lone event, so that it meets an idle mesh: longer than QUIC waits to acknowledge the one before (25 ms). With
/// 20 ms, a way that took a little longer met all acknowledgements of its last event, and another none of them.
const IDLE: Duration = Duration::from_millis(60);

/// One way to get a payload from a hub to all of its spokes, which are endpoints of their own in this process.
pub trait Mesh: Sized {
    /// The name in the results.
    const NAME: &'static str;

    /// Starts a hub and `spokes` spokes at a place, and returns once all are connected. Each spoke passes every
    /// payload that it receives to [`Tally::record`] with its own number.
    async fn start(
        place: &dyn Place,
        spokes: usize,
        max_payload: usize,
        tally: Arc<Tally>,
    ) -> Result<Self>;

    /// Hands one payload to the hub. May wait if the hub is behind.
    async fn publish(&self, payload: Bytes) -> Result<()>;

    /// By which paths the spokes are served, where there is a choice.
    fn paths(&self) -> Option<String> {
        None
    }

    /// Closes all endpoints.
    async fn stop(self);
}

/// The outcome of a paced round.
pub struct Paced {
    /// As of a burst.
    pub arrived: Arrived,
    /// For each event that arrived anywhere, until it last did.
    pub times: Vec<Duration>,
}

/// A running mesh and the count of what its spokes received.
pub struct Bench<M> {
    mesh: M,
    tally: Arc<Tally>,
}

impl<M: Mesh> Bench<M> {
    /// Starts a mesh on loopback; see [`start_at`](Self::start_at).
    pub async fn start(spokes: usize, max_payload: usize) -> Result<Self> {
        Self::start_at(&Loopback, spokes, max_payload).await
    }

    /// Starts a mesh and sends a few events through it, so that windows and trees have formed. A mesh in which a spoke
    /// then gets nothing (bare gossip leaves one behind at times) is said and started again, a few times at most.
    pub async fn start_at(place: &dyn Place, spokes: usize, max_payload: usize) -> Result<Self> {
        let mut tries = 0;
        loop {
            let tally = Arc::new(Tally::new(spokes));
            let mesh = M::start(place, spokes, max_payload, tally.clone()).await?;
            let bench = Self { mesh, tally };
            bench.burst(8, MIN_PAYLOAD).await?;
            let last = bench.burst(8, MIN_PAYLOAD).await?;
            tries += 1;
            if last.delivered == last.expected || tries == STARTS {
                return Ok(bench);
            }
            eprintln!(
                "{}/{spokes}: {} of {} deliveries missing once all had joined; starting again",
                M::NAME,
                last.expected - last.delivered,
                last.expected,
            );
            bench.stop().await;
        }
    }

    /// Sends `events` payloads of `size` bytes as fast as the mesh takes them and waits until they are everywhere, or
    /// until nothing more arrives.
    pub async fn burst(&self, events: usize, size: usize) -> Result<Arrived> {
        let payloads = self.tally.begin(events, size);
        let sent = Instant::now();
        for payload in payloads {
            self.mesh.publish(payload).await?;
        }
        Ok(self.tally.finish(sent, PATIENCE).await)
    }

    /// Sends one payload over the idle mesh; the time is that of its last arrival.
    pub async fn lone(&self, size: usize) -> Result<Arrived> {
        tokio::time::sleep(IDLE).await;
        self.burst(1, size).await
    }

    /// Sends so many payloads a second, and gives each one's time until its last arrival.
    pub async fn paced(&self, events: usize, per_s: u32, size: usize) -> Result<Paced> {
        let payloads = self.tally.begin(events, size);
        let begun = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_secs(1) / per_s);
        let mut sent = Vec::with_capacity(events);
        for payload in payloads {
            tick.tick().await;
            sent.push(Instant::now());
            self.mesh.publish(payload).await?;
        }
        let arrived = self.tally.finish(begun, PATIENCE).await;
        let last = self.tally.last_arrivals();
        let times = sent.into_iter().zip(last);
        let times = times.filter_map(|(sent, last)| Some(last? - sent));
        Ok(Paced {
            arrived,
            times: times.collect(),
        })
    }

    /// See [`Mesh::paths`].
    pub fn paths(&self) -> Option<String> {
        self.mesh.paths()
    }

    /// Closes the mesh.
    pub async fn stop(self) {
        self.mesh.stop().await;
    }
}

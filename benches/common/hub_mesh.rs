//! This crate: a hub and its spokes by one strategy, with order, repair and proof.

use std::{
    collections::BTreeMap,
    marker::PhantomData,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use iroh_hub::{
    AutoFanOut, Envelope, FanOut, Hub, Incoming, Listener, Path, Pattern, Spoke, endpoint,
};
use tokio::{task::JoinSet, time::sleep};

use super::{Error, Mesh, Place, Result, Role, Tally};

/// Until every spoke is on the path that the strategy means for it.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
/// Auto has made up its mind when no spoke has changed its path for this long: it waits for a second itself.
const SETTLED: Duration = Duration::from_millis(1500);

/// A strategy to measure.
pub trait Strategy {
    /// The name in the results.
    const NAME: &'static str;

    /// What the hub is told.
    fn fan_out() -> FanOut;

    /// Whether spokes on these paths are where the strategy means them to be: on either, where the hub chooses.
    fn is_meant(paths: &[Path]) -> bool {
        paths.iter().all(|path| *path != Path::Joining)
    }
}

/// A stream per spoke.
pub struct Direct;
/// The topic.
pub struct Gossip;
/// What the hub chooses when it knows that its uplink suffices.
pub struct Auto;
/// What the hub chooses when it has not been told its uplink, which is the default.
pub struct AutoUntold;

impl Strategy for Direct {
    const NAME: &'static str = "direct";

    fn fan_out() -> FanOut {
        FanOut::Direct
    }

    fn is_meant(paths: &[Path]) -> bool {
        paths.iter().all(|path| *path == Path::Direct)
    }
}

impl Strategy for Gossip {
    const NAME: &'static str = "gossip";

    fn fan_out() -> FanOut {
        FanOut::Gossip
    }

    fn is_meant(paths: &[Path]) -> bool {
        paths.iter().all(|path| *path == Path::Gossip)
    }
}

impl Strategy for Auto {
    const NAME: &'static str = "auto";

    fn fan_out() -> FanOut {
        // Nothing limits what is sent here.
        FanOut::Auto(AutoFanOut::default().with_uplink_bytes_per_s(u64::MAX))
    }
}

impl Strategy for AutoUntold {
    const NAME: &'static str = "auto_untold";

    fn fan_out() -> FanOut {
        FanOut::default()
    }
}

/// A hub with its spokes.
pub struct HubMesh<S> {
    hub: Hub,
    spokes: Vec<Spoke>,
    _tasks: JoinSet<()>,
    _strategy: PhantomData<S>,
}

impl<S: Strategy> Mesh for HubMesh<S> {
    const NAME: &'static str = S::NAME;

    async fn start(
        place: &dyn Place,
        spokes: usize,
        _max_payload: usize,
        tally: Arc<Tally>,
    ) -> Result<Self> {
        let endpoint = place.bind(Role::Hub, endpoint::local(None)).await?;
        let addr = place.addr_of(&endpoint);
        let hub = Hub::builder().fan_out(S::fan_out()).spawn(endpoint)?;
        let mut mesh = Self {
            hub,
            spokes: Vec::with_capacity(spokes),
            _tasks: JoinSet::new(),
            _strategy: PhantomData,
        };
        for number in 0..spokes {
            let endpoint = place.bind(Role::Spoke, endpoint::local(None)).await?;
            let spoke = Spoke::connect(endpoint, addr.clone()).await?;
            let listener = spoke.listen(Pattern::any());
            mesh._tasks.spawn(read(listener, number, tally.clone()));
            mesh.spokes.push(spoke);
        }
        settle::<S>(&mesh.hub, spokes).await?;
        Ok(mesh)
    }

    async fn publish(&self, payload: Bytes) -> Result<()> {
        broadcast(&self.hub, payload).await
    }

    fn paths(&self) -> Option<String> {
        let mut counts = BTreeMap::new();
        for spoke in self.hub.spokes() {
            *counts.entry(spoke.path.to_string()).or_insert(0) += 1;
        }
        let counts = counts
            .iter()
            .map(|(path, spokes)| format!("{spokes} {path}"));
        let handshakes = self.hub.metrics().connections.handshakes_begun.get();
        let paths = counts.collect::<Vec<_>>().join(", ");
        Some(format!(
            "{paths}; {handshakes} handshakes at the hub so far"
        ))
    }

    async fn stop(self) {
        n0_future::join_all(self.spokes.iter().map(Spoke::shutdown)).await;
        self.hub.shutdown().await;
    }
}

/// Broadcasts a payload.
pub async fn broadcast(hub: &Hub, payload: Bytes) -> Result<()> {
    // Payloads are JSON here: a string that is as long as the bytes of the baselines.
    let text = std::str::from_utf8(&payload)?;
    hub.broadcast(Envelope::new("bench", &text)?).await?;
    Ok(())
}

/// Waits until so many spokes are where the strategy means them to be.
pub async fn settle<S: Strategy>(hub: &Hub, spokes: usize) -> Result<()> {
    let started = Instant::now();
    let mut before = Vec::new();
    let mut since = started;
    while started.elapsed() < SETTLE_LIMIT {
        let paths: Vec<Path> = hub.spokes().iter().map(|spoke| spoke.path).collect();
        if paths != before {
            since = Instant::now();
        }
        if paths.len() == spokes && S::is_meant(&paths) && since.elapsed() > SETTLED {
            return Ok(());
        }
        before = paths;
        sleep(Duration::from_millis(20)).await;
    }
    Err(Error::from("the spokes did not settle on their path"))
}

/// Counts what a spoke's listener gets.
pub async fn read(mut listener: Listener, spoke: usize, tally: Arc<Tally>) {
    while let Some(incoming) = listener.recv().await {
        if let Incoming::Event(event) = incoming {
            // As it came, as the baselines have it: what a listener makes of JSON is its own affair.
            let text = event.envelope.payload_json().trim_matches('"');
            tally.record(spoke, text.as_bytes());
        }
    }
}

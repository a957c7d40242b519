//! A hub, and spokes, as `compare` makes and uses them: on loopback alone, each spoke an endpoint of its own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use iroh::Endpoint;
use iroh_hub::{
    Envelope, FanOut, Hub, Incoming, Listener, Path, Pattern, Spoke, endpoint::bind_local,
};
use iroh_tickets::endpoint::EndpointTicket;
use n0_future::{BufferedStreamExt, StreamExt, stream};
use tokio::{task::JoinSet, time::sleep};

use super::{
    super::args::auto,
    probe::{Header, Probe},
    row::Strategy,
    tally::Tally,
    usage::clock_ns,
};

/// The type of the events.
const EVENT_TYPE: &str = "compare";
/// Spokes that connect at once.
const CONNECTING: usize = 32;
/// How often the hub is asked where its spokes are.
const POLL: Duration = Duration::from_millis(20);
/// Auto has made up its mind when no spoke has changed its path for this long.
const SETTLED: Duration = Duration::from_secs(1);

/// The hub.
pub(crate) struct HubSide {
    hub: Hub,
    strategy: Strategy,
}

impl HubSide {
    pub(crate) async fn start(strategy: Strategy, uplink: Option<u64>) -> Result<Self> {
        let fan_out = match strategy {
            Strategy::Direct => FanOut::Direct,
            Strategy::Gossip => FanOut::Gossip,
            Strategy::Auto => FanOut::Auto(auto(uplink)),
        };
        let hub = Hub::builder().fan_out(fan_out).spawn(bind_local().await?)?;
        Ok(Self { hub, strategy })
    }

    pub(crate) fn ticket(&self) -> String {
        self.hub.ticket().to_string()
    }

    /// Waits until so many spokes are here, each on the path that the strategy means for it.
    pub(crate) async fn ready(&self, spokes: usize, limit: Duration) -> Result<()> {
        let started = Instant::now();
        let mut before = Vec::new();
        let mut since = started;
        loop {
            let mut paths: Vec<_> = self.hub.spokes().iter().map(|s| (s.id, s.path)).collect();
            paths.sort_unstable_by_key(|(id, _)| *id);
            if paths != before {
                since = Instant::now();
            }
            let on = |path| paths.iter().filter(|(_, at)| *at == path).count();
            let there = match self.strategy {
                Strategy::Direct => on(Path::Direct) == spokes,
                Strategy::Gossip => on(Path::Gossip) == spokes,
                Strategy::Auto => {
                    paths.len() == spokes && on(Path::Joining) == 0 && since.elapsed() > SETTLED
                }
            };
            if there {
                return Ok(());
            }
            if started.elapsed() > limit {
                bail!(
                    "after {} s, {} of {spokes} spokes are here, {} of them direct and {} on the topic",
                    limit.as_secs(),
                    paths.len(),
                    on(Path::Direct),
                    on(Path::Gossip),
                );
            }
            before = paths;
            sleep(POLL).await;
        }
    }

    pub(crate) async fn broadcast(&self, probe: &Probe<'_>) -> Result<()> {
        self.hub
            .broadcast(Envelope::new(EVENT_TYPE, probe)?)
            .await?;
        Ok(())
    }

    pub(crate) fn bytes_sent(&self) -> u64 {
        sent(self.hub.endpoint())
    }

    pub(crate) async fn stop(self) {
        self.hub.shutdown().await;
    }
}

/// The spokes.
pub(crate) struct SpokesSide {
    spokes: Vec<Spoke>,
    _listening: JoinSet<()>,
}

impl SpokesSide {
    /// Connects them all and listens on each.
    pub(crate) async fn connect(ticket: &str, spokes: usize, tally: &Arc<Tally>) -> Result<Self> {
        let ticket: EndpointTicket = ticket.parse().context("the hub's ticket cannot be read")?;
        let hub = ticket.endpoint_addr();
        let mut side = Self {
            spokes: Vec::with_capacity(spokes),
            _listening: JoinSet::new(),
        };
        let mut connecting = stream::iter(0..spokes)
            .map(|_| async {
                let endpoint = bind_local().await?;
                anyhow::Ok(Spoke::connect(endpoint, hub.clone()).await?)
            })
            .buffered_unordered(CONNECTING);
        while let Some(connected) = connecting.next().await {
            let spoke = connected?;
            let listener = spoke.listen(Pattern::any());
            side._listening
                .spawn(listen(listener, side.spokes.len(), tally.clone()));
            side.spokes.push(spoke);
        }
        Ok(side)
    }

    pub(crate) fn count(&self) -> usize {
        self.spokes.len()
    }

    pub(crate) fn bytes_sent(&self) -> u64 {
        self.spokes.iter().map(|spoke| sent(spoke.endpoint())).sum()
    }

    pub(crate) async fn stop(self) {
        n0_future::join_all(self.spokes.iter().map(Spoke::shutdown)).await;
    }
}

/// What a listener does not get is not counted, and so is missing from the outcome.
async fn listen(mut listener: Listener, spoke: usize, tally: Arc<Tally>) {
    while let Some(incoming) = listener.recv().await {
        let now = clock_ns();
        if let Incoming::Event(event) = incoming
            && let Some(header) = Header::read(event.envelope.payload_json())
        {
            tally.record(spoke, header, now);
        }
    }
}

/// Bytes that an endpoint gave to its sockets.
fn sent(endpoint: &Endpoint) -> u64 {
    let socket = &endpoint.metrics().socket;
    socket.send_ipv4.get() + socket.send_ipv6.get() + socket.send_relay.get()
}

//! A hub, and spokes of one process, in one of the layouts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use iroh::Endpoint;
use iroh_hub::{
    Envelope, FanOut, Gossip, Hub, HubLimits, Incoming, Pattern, Protocol, Spoke, SpokeChange,
    endpoint::{bind_at, bind_local, local},
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    bare_hub::{self, BareHub},
    client::{self, Frames, Target},
    common::{Arrived, Error, Result, Tally},
};

/// A burst or a lone event is given up when nothing has arrived for so long.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long all spokes may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// The pause before a lone event, so that it meets an idle process.
const IDLE: Duration = Duration::from_millis(5);
const PLENTY: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    BareShared,
    BareOwn,
    PlainShared,
    PlainOwn,
    NativeOwn,
}

impl Layout {
    pub(crate) const ALL: [Self; 5] = [
        Self::BareShared,
        Self::BareOwn,
        Self::PlainShared,
        Self::PlainOwn,
        Self::NativeOwn,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BareShared => "bare_shared",
            Self::BareOwn => "bare_own",
            Self::PlainShared => "plain_shared",
            Self::PlainOwn => "plain_own",
            Self::NativeOwn => "native_own",
        }
    }
}

enum HubEnd {
    Bare(BareHub),
    Hub(Hub),
}

/// Both ends, bound and not connected yet.
pub(crate) struct Process {
    layout: Layout,
    hub: HubEnd,
    endpoint: Endpoint,
    spokes: Vec<Spoke>,
    readers: JoinSet<()>,
    tally: Arc<Tally>,
}

impl Process {
    pub(crate) async fn start(layout: Layout, spokes: usize) -> Result<Self> {
        let hub = match layout {
            Layout::BareShared | Layout::BareOwn => {
                let builder = local(None).alpns(vec![bare_hub::ALPN.to_vec()]);
                let endpoint = bind_at(builder, ([127, 0, 0, 1], 0).into()).await?;
                HubEnd::Bare(BareHub::start(endpoint))
            }
            Layout::PlainShared | Layout::PlainOwn | Layout::NativeOwn => {
                let builder = Hub::builder().fan_out(FanOut::Direct).limits(limits());
                HubEnd::Hub(builder.spawn(bind_local().await?)?)
            }
        };
        Ok(Self {
            layout,
            hub,
            endpoint: bind_local().await?,
            spokes: Vec::new(),
            readers: JoinSet::new(),
            tally: Arc::new(Tally::new(spokes)),
        })
    }

    /// How long it takes until the hub has all of them.
    pub(crate) async fn connect(&mut self, spokes: usize) -> Result<Duration> {
        let began = Instant::now();
        timeout(CONNECT_LIMIT, self.connect_all(spokes)).await??;
        Ok(began.elapsed())
    }

    async fn connect_all(&mut self, spokes: usize) -> Result<()> {
        let mut watch = None;
        let (hub, alpn, frames) = match &self.hub {
            HubEnd::Bare(hub) => (hub.endpoint.addr(), bare_hub::ALPN, Frames::Payloads),
            HubEnd::Hub(hub) => {
                watch = Some(hub.watch_spokes());
                (hub.addr(), Protocol::Compat.alpn(), Frames::Envelopes)
            }
        };
        let to = Target {
            hub: &hub,
            alpn,
            frames,
        };
        let (endpoint, tally) = (&self.endpoint, &self.tally);
        match self.layout {
            Layout::BareShared | Layout::PlainShared => {
                client::share(endpoint, to, spokes, tally, &mut self.readers).await?;
            }
            Layout::BareOwn | Layout::PlainOwn => {
                client::own(endpoint, to, spokes, tally, &mut self.readers).await?;
            }
            Layout::NativeOwn => {
                let mut connecting = JoinSet::new();
                for _ in 0..spokes {
                    // One endpoint has room for one spoke on the topic, and nothing here needs it.
                    let builder = Spoke::builder().gossip(Gossip::Off);
                    connecting.spawn(builder.connect(endpoint.clone(), hub.clone()));
                }
                while let Some(spoke) = connecting.join_next().await {
                    let spoke = spoke??;
                    let number = self.spokes.len();
                    self.readers.spawn(listen(&spoke, number, tally.clone()));
                    self.spokes.push(spoke);
                }
            }
        }
        match (&mut self.hub, watch) {
            (HubEnd::Bare(hub), _) => hub.has(spokes).await,
            (HubEnd::Hub(_), None) => Ok(()),
            (HubEnd::Hub(_), Some(mut watch)) => {
                let mut joined = 0;
                while joined < spokes {
                    let change = watch.next().await.ok_or("the hub is gone")?;
                    let change = change.map_err(|_| "the watch was too slow")?;
                    joined += usize::from(matches!(change, SpokeChange::Joined { .. }));
                }
                Ok(())
            }
        }
    }

    async fn publish(&self, payload: Bytes) -> Result<()> {
        match &self.hub {
            HubEnd::Bare(hub) => hub.publish(&payload).await,
            HubEnd::Hub(hub) => {
                let text = std::str::from_utf8(&payload)?;
                hub.broadcast(Envelope::new("bench", &text)?).await?;
                Ok(())
            }
        }
    }

    /// Sends so many events as fast as they are taken.
    pub(crate) async fn burst(&self, events: usize, size: usize) -> Result<Arrived> {
        let payloads = self.tally.begin(events, size);
        let sent = Instant::now();
        for payload in payloads {
            self.publish(payload).await?;
        }
        let arrived = self.tally.finish(sent, PATIENCE).await;
        if arrived.delivered < arrived.expected || arrived.disordered > 0 {
            let (name, lost) = (self.layout.name(), arrived.expected - arrived.delivered);
            return Err(Error::from(format!(
                "{name}: {lost} lost, {} out of order",
                arrived.disordered
            )));
        }
        Ok(arrived)
    }

    /// Sends one event to spokes that had nothing for a moment.
    pub(crate) async fn lone(&self, size: usize) -> Result<Arrived> {
        sleep(IDLE).await;
        self.burst(1, size).await
    }

    pub(crate) async fn stop(self) {
        n0_future::join_all(self.spokes.iter().map(Spoke::shutdown)).await;
        self.endpoint.close().await;
        match self.hub {
            HubEnd::Bare(hub) => hub.stop().await,
            HubEnd::Hub(hub) => {
                hub.shutdown().await;
            }
        }
    }
}

/// What is one process here would be held back as one address, and has more streams than a connection may have.
fn limits() -> HubLimits {
    let mut limits = HubLimits::default();
    limits.max_streams = PLENTY;
    limits.handshakes_of_addr_per_s = 1_000_000;
    limits.handshakes_of_addr = Some(PLENTY);
    limits.max_handshakes = PLENTY;
    limits.validate_above = PLENTY;
    limits
}

fn listen(spoke: &Spoke, number: usize, tally: Arc<Tally>) -> impl Future<Output = ()> + use<> {
    let mut listener = spoke.listen(Pattern::any());
    async move {
        while let Some(incoming) = listener.recv().await {
            if let Incoming::Event(event) = incoming
                && let Ok(payload) = event.envelope.payload::<&str>()
            {
                tally.record(number, payload.as_bytes());
            }
        }
    }
}

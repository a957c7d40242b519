//! The hub's process.

use bytes::Bytes;
use iroh::{Endpoint, address_lookup::memory::MemoryLookup};
use iroh_hub::{
    Hub, HubLimits,
    endpoint::{bind_at, bind_local, hub_transport_config, local},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{
    protocol::{Account, Alternative, HubCommand, HubReply, Round},
    worker::serve,
};
use crate::common::{
    Direct, Error, Gossip, Loopback, Result, Tally,
    bare_gossip::BareGossipHub,
    bare_streams::{self, BareStreamsHub},
    hub_mesh::{Strategy, broadcast, settle},
};

/// Answers the parent until it is gone.
pub(crate) async fn run() -> Result<()> {
    let mut child = Child::default();
    serve(async |command: HubCommand| {
        let answer = child.answer(command).await;
        (answer.map_err(|error| error.to_string()), false)
    })
    .await?;
    Ok(())
}

#[derive(Default)]
struct Child {
    side: Option<HubSide>,
    spokes: usize,
    /// Makes payloads, counting rounds as the spokes' tally does.
    payloads: Option<Tally>,
}

impl Child {
    async fn answer(&mut self, command: HubCommand) -> Result<HubReply> {
        if let HubCommand::Start {
            alternative,
            spokes,
            max_payload,
        } = command
        {
            let side = HubSide::start(alternative, spokes, max_payload).await?;
            let addr = side.endpoint().addr();
            *self = Self {
                side: Some(side),
                spokes,
                payloads: Some(Tally::new(0)),
            };
            return Ok(HubReply::Started(addr));
        }
        let (Some(side), Some(payloads)) = (&mut self.side, &self.payloads) else {
            return Err("this process has not been started yet".into());
        };
        match command {
            HubCommand::Start { .. } | HubCommand::AwaitReady => {
                side.ready(self.spokes).await?;
                Ok(HubReply::Ready)
            }
            HubCommand::Publish(round) => {
                let payloads = payloads.begin(round.events, round.size);
                publish(side, payloads, round).await?;
                Ok(HubReply::Published)
            }
            HubCommand::Account => {
                let sent = side.endpoint().metrics().socket.send_ipv4.get();
                Ok(HubReply::Account(Account::now(sent, side.fallbacks())))
            }
        }
    }
}

/// A gap is kept from start to start, so that a slow hub is not spared.
async fn publish(side: &HubSide, payloads: Vec<Bytes>, round: Round) -> Result<()> {
    let mut due = Instant::now();
    for payload in payloads {
        if let Some(gap) = round.gap {
            sleep_until(due).await;
            due += gap;
        }
        side.publish(payload).await?;
    }
    Ok(())
}

enum HubSide {
    Ours {
        hub: Hub,
        alternative: Alternative,
    },
    BareStreams {
        endpoint: Endpoint,
        /// Until all spokes are accepted.
        accepting: Option<JoinHandle<Result<BareStreamsHub>>>,
        hub: Option<BareStreamsHub>,
    },
    BareGossip(BareGossipHub),
}

impl HubSide {
    async fn start(alternative: Alternative, spokes: usize, max_payload: usize) -> Result<Self> {
        let fan_out = match alternative {
            Alternative::Direct => Direct::fan_out(),
            Alternative::Gossip => Gossip::fan_out(),
            Alternative::BareStreams => return Self::bare_streams(spokes).await,
            Alternative::BareGossip => {
                let known = MemoryLookup::new();
                let hub = BareGossipHub::start(&Loopback, &known, max_payload).await?;
                return Ok(Self::BareGossip(hub));
            }
        };
        let hub = Hub::builder().fan_out(fan_out).limits(limits());
        let hub = hub.spawn(bind_local().await?)?;
        Ok(Self::Ours { hub, alternative })
    }

    /// With the QUIC settings that our hub's connections have: the same windows, the same keep-alive.
    async fn bare_streams(spokes: usize) -> Result<Self> {
        let builder = local(None)
            .transport_config(hub_transport_config(&limits()))
            .alpns(vec![bare_streams::ALPN.to_vec()]);
        let endpoint = bind_at(builder, ([127, 0, 0, 1], 0).into()).await?;
        let mut hub = BareStreamsHub::new(endpoint.clone());
        let accepting = tokio::spawn(async move {
            for _ in 0..spokes {
                hub.accept().await?;
            }
            Ok(hub)
        });
        Ok(Self::BareStreams {
            endpoint,
            accepting: Some(accepting),
            hub: None,
        })
    }

    fn endpoint(&self) -> &Endpoint {
        match self {
            Self::Ours { hub, .. } => hub.endpoint(),
            Self::BareStreams { endpoint, .. } => endpoint,
            Self::BareGossip(hub) => hub.endpoint(),
        }
    }

    async fn ready(&mut self, spokes: usize) -> Result<()> {
        match self {
            Self::Ours { hub, alternative } => {
                let paths: Vec<_> = hub.spokes().iter().map(|spoke| spoke.path).collect();
                let gossip = *alternative == Alternative::Gossip;
                let is_meant = match gossip {
                    true => Gossip::is_meant(&paths),
                    false => Direct::is_meant(&paths),
                };
                match gossip {
                    _ if is_meant && paths.len() == spokes => Ok(()),
                    true => settle::<Gossip>(hub, spokes).await,
                    false => settle::<Direct>(hub, spokes).await,
                }
            }
            Self::BareStreams { accepting, hub, .. } => {
                if let Some(accepting) = accepting.take() {
                    *hub = Some(accepting.await??);
                }
                Ok(())
            }
            // Its spokes know when they have joined.
            Self::BareGossip(_) => Ok(()),
        }
    }

    fn fallbacks(&self) -> u64 {
        match self {
            Self::Ours { hub, .. } => {
                let metrics = hub.metrics();
                metrics.topic.failed.get() + metrics.repair.served_around.get()
            }
            Self::BareStreams { .. } | Self::BareGossip(_) => 0,
        }
    }

    async fn publish(&self, payload: Bytes) -> Result<()> {
        match self {
            Self::Ours { hub, .. } => broadcast(hub, payload).await,
            Self::BareStreams { hub, .. } => {
                let hub = hub.as_ref();
                let hub = hub.ok_or_else(|| Error::from("not all spokes are there"))?;
                hub.publish(payload).await
            }
            Self::BareGossip(hub) => hub.publish(payload).await,
        }
    }
}

/// All spokes come from one address, and at once: here that is no attack.
fn limits() -> HubLimits {
    let mut limits = HubLimits::default();
    limits.handshakes_of_addr_per_s = 100_000;
    limits.handshakes_of_addr = Some(limits.max_handshakes);
    limits.waiting_of_addr = Some(limits.max_waiting);
    limits
}

//! Bare `iroh_gossip::net`: one topic, one message per payload.
//!
//! It may lose and reorder, and nothing repairs it: the benches count that beside the time.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use iroh::{Endpoint, EndpointId, address_lookup::memory::MemoryLookup, protocol::Router};
use iroh_gossip::{
    TopicId,
    api::{Event, GossipReceiver, GossipSender, JoinOptions},
    net::{GOSSIP_ALPN, Gossip},
};
use n0_future::StreamExt;
use tokio::{task::JoinSet, time::timeout};

use super::{Mesh, Place, Result, Role, Tally, endpoints::bind};

/// What gossip's own framing takes of `max_message_size`.
const FRAMING: usize = 64;
/// How many nodes a joining spoke is given to dial: spokes that have joined, taken from all over the mesh. Joining
/// through the same few pushes earlier neighbours out of their views, and some are then left alone.
const BOOTSTRAPS: usize = 4;
/// How many spokes join at once. All at once leaves some without a neighbour.
const JOINING: usize = 20;
/// How long a spoke may take to find its first neighbour.
const JOIN_LIMIT: Duration = Duration::from_secs(20);

/// A hub that is one node of a gossip topic, and its spokes, which are the others.
pub struct BareGossip {
    hub: BareGossipHub,
    spokes: BareGossipSpokes,
}

impl Mesh for BareGossip {
    const NAME: &'static str = "bare_gossip";

    async fn start(
        place: &dyn Place,
        spokes: usize,
        max_payload: usize,
        tally: Arc<Tally>,
    ) -> Result<Self> {
        let known = MemoryLookup::new();
        let hub = BareGossipHub::start(place, &known, max_payload).await?;
        let hub_id = hub.endpoint().id();
        let spokes =
            BareGossipSpokes::join(place, &known, hub_id, spokes, max_payload, tally).await?;
        Ok(Self { hub, spokes })
    }

    async fn publish(&self, payload: Bytes) -> Result<()> {
        self.hub.publish(payload).await
    }

    async fn stop(self) {
        let routers = self.spokes.routers.iter().chain([&self.hub.router]);
        for closed in n0_future::join_all(routers.map(Router::shutdown)).await {
            if let Err(error) = closed {
                eprintln!("a router did not shut down: {error}");
            }
        }
    }
}

/// The hub of [`BareGossip`] alone.
pub struct BareGossipHub {
    sender: GossipSender,
    router: Router,
    _draining: JoinSet<()>,
}

impl BareGossipHub {
    /// Waits for spokes to join.
    pub async fn start(
        place: &dyn Place,
        known: &MemoryLookup,
        max_payload: usize,
    ) -> Result<Self> {
        let (router, gossip) = node(place, Role::Hub, known, max_payload + FRAMING).await?;
        let (sender, mut events) = subscribe(&gossip, topic(), vec![]).await?.split();
        let mut draining = JoinSet::new();
        // Nobody reads the topic at the hub, but a stream that is not drained lags.
        draining.spawn(async move { while let Some(Ok(_)) = events.next().await {} });
        Ok(Self {
            sender,
            router,
            _draining: draining,
        })
    }

    /// The hub's endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        self.router.endpoint()
    }

    /// Hands one payload to the topic.
    pub async fn publish(&self, payload: Bytes) -> Result<()> {
        Ok(self.sender.broadcast(payload).await?)
    }
}

/// The spokes of [`BareGossip`] alone.
pub struct BareGossipSpokes {
    routers: Vec<Router>,
    _reading: JoinSet<()>,
}

impl BareGossipSpokes {
    /// Joins so many to the topic of a hub, whose address is known.
    pub async fn join(
        place: &dyn Place,
        known: &MemoryLookup,
        hub: EndpointId,
        spokes: usize,
        max_payload: usize,
        tally: Arc<Tally>,
    ) -> Result<Self> {
        let mut reading = JoinSet::new();
        let mut routers = Vec::with_capacity(spokes);
        let mut joined: Vec<EndpointId> = Vec::new();
        let mut joining = Vec::new();
        for number in 0..spokes {
            let (router, gossip) = node(place, Role::Spoke, known, max_payload + FRAMING).await?;
            let early = joined.len() < BOOTSTRAPS;
            let peers = if early {
                vec![hub]
            } else {
                let stride = joined.len() / BOOTSTRAPS;
                let nth = |n| joined[(number + n * stride) % joined.len()];
                (0..BOOTSTRAPS).map(nth).collect()
            };
            let (sender, events) = subscribe(&gossip, topic(), peers).await?.split();
            joining.push((number, router.endpoint().id(), sender, events));
            routers.push(router);
            if early || joining.len() == JOINING || number + 1 == spokes {
                for (number, id, sender, mut events) in joining.drain(..) {
                    timeout(JOIN_LIMIT, events.joined())
                        .await
                        .map_err(|_| "a spoke found no neighbour")??;
                    reading.spawn(read(sender, events, number, tally.clone()));
                    joined.push(id);
                }
            }
        }
        // The overlay goes on shuffling neighbours for a while after the last join.
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(Self {
            routers,
            _reading: reading,
        })
    }
}

fn topic() -> TopicId {
    TopicId::from_bytes([7; 32])
}

async fn node(
    place: &dyn Place,
    role: Role,
    known: &MemoryLookup,
    max: usize,
) -> Result<(Router, Gossip)> {
    let endpoint: Endpoint = bind(place, role, GOSSIP_ALPN, known).await?;
    known.add_endpoint_info(place.addr_of(&endpoint));
    let gossip = Gossip::builder()
        .max_message_size(max)
        .spawn(endpoint.clone());
    let router = Router::builder(endpoint)
        .accept(GOSSIP_ALPN, gossip.clone())
        .spawn();
    Ok((router, gossip))
}

async fn subscribe(
    gossip: &Gossip,
    topic: TopicId,
    peers: Vec<EndpointId>,
) -> Result<iroh_gossip::api::GossipTopic> {
    let options = JoinOptions {
        bootstrap: peers.into_iter().collect(),
        subscription_capacity: 16 * 1024,
    };
    Ok(gossip.subscribe_with_opts(topic, options).await?)
}

/// Holds the sender too: a topic whose halves are both dropped is left.
async fn read(_sender: GossipSender, mut events: GossipReceiver, spoke: usize, tally: Arc<Tally>) {
    while let Some(Ok(event)) = events.next().await {
        if let Event::Received(message) = event {
            tally.record(spoke, &message.content);
        }
    }
}

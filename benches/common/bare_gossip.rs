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

/// A hub that is one node of a gossip topic.
pub struct BareGossip {
    hub: GossipSender,
    routers: Vec<Router>,
    _tasks: JoinSet<()>,
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
        let topic = TopicId::from_bytes([7; 32]);
        let max = max_payload + FRAMING;
        let mut tasks = JoinSet::new();

        let (hub_router, hub_gossip) = node(place, Role::Hub, &known, max).await?;
        let hub_id = hub_router.endpoint().id();
        let (hub, mut hub_events) = subscribe(&hub_gossip, topic, vec![]).await?.split();
        // Nobody reads the topic at the hub, but a stream that is not drained lags.
        tasks.spawn(async move { while let Some(Ok(_)) = hub_events.next().await {} });

        let mut routers = vec![hub_router];
        let mut joined: Vec<EndpointId> = Vec::new();
        let mut joining = Vec::new();
        for number in 0..spokes {
            let (router, gossip) = node(place, Role::Spoke, &known, max).await?;
            let early = joined.len() < BOOTSTRAPS;
            let peers = if early {
                vec![hub_id]
            } else {
                let stride = joined.len() / BOOTSTRAPS;
                let nth = |n| joined[(number + n * stride) % joined.len()];
                (0..BOOTSTRAPS).map(nth).collect()
            };
            let (sender, events) = subscribe(&gossip, topic, peers).await?.split();
            joining.push((number, router.endpoint().id(), sender, events));
            routers.push(router);
            if early || joining.len() == JOINING || number + 1 == spokes {
                for (number, id, sender, mut events) in joining.drain(..) {
                    timeout(JOIN_LIMIT, events.joined())
                        .await
                        .map_err(|_| "a spoke found no neighbour")??;
                    tasks.spawn(read(sender, events, number, tally.clone()));
                    joined.push(id);
                }
            }
        }
        // The overlay goes on shuffling neighbours for a while after the last join.
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(Self {
            hub,
            routers,
            _tasks: tasks,
        })
    }

    async fn publish(&self, payload: Bytes) -> Result<()> {
        Ok(self.hub.broadcast(payload).await?)
    }

    async fn stop(self) {
        let closing = self.routers.iter().map(Router::shutdown);
        for closed in n0_future::join_all(closing).await {
            if let Err(error) = closed {
                eprintln!("a router did not shut down: {error}");
            }
        }
    }
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

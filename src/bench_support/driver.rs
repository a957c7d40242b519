//! The driver of the topic among nodes of one process, with frames that are sealed and opened, or are not.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use iroh::{
    EndpointId,
    endpoint::Connection,
    protocol::{AcceptError, ProtocolHandler, Router},
};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    endpoint,
    gossip::{FrameGate, FrameRefused, GOSSIP_ALPN, GossipConfig, GossipEvent, GossipNode},
    position::Epoch,
    seal::{Context, Opener, Sealer},
    wire::native::PartOf,
};

/// How long the mesh may take to form, and a burst to arrive.
const LIMIT: Duration = Duration::from_secs(60);

/// Opens frames for real, or takes whatever comes.
struct Gate(Option<Opener>);

impl FrameGate for Gate {
    type Opened = ();

    fn open(&mut self, frame: &Bytes) -> Result<(), FrameRefused> {
        match &mut self.0 {
            Some(opener) => opener
                .open(frame)
                .map(drop)
                .map_err(|_| FrameRefused::Forged),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Debug)]
struct Accepts(GossipNode<Gate>);

impl ProtocolHandler for Accepts {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        self.0.handle_connection(connection);
        Ok(())
    }
}

struct Node {
    node: GossipNode<Gate>,
    events: mpsc::Receiver<GossipEvent<()>>,
    router: Router,
}

/// One node that broadcasts and others that receive, on loopback.
pub struct DriverMesh {
    nodes: Vec<Node>,
    sealer: Option<Sealer>,
    sent: u64,
}

impl DriverMesh {
    /// A mesh of so many nodes that receive.
    ///
    /// # Errors
    ///
    /// If an endpoint cannot be bound, or the mesh does not form within a minute.
    pub async fn start(receivers: usize, sealed: bool) -> std::io::Result<Self> {
        let hub = iroh::SecretKey::from_bytes(&[1; 32]).public();
        let topic = rand::random();
        let context = Context::new(hub, topic);
        let epoch = Epoch::from_u64(1);
        let sealer = Sealer::new(context.clone(), epoch, 0);
        let mut nodes: Vec<Node> = Vec::new();
        for _ in 0..=receivers {
            let mut opener = Opener::new(context.clone(), epoch);
            opener.add(&sealer.keys()).map_err(std::io::Error::other)?;
            let endpoint = endpoint::bind_local()
                .await
                .map_err(std::io::Error::other)?;
            let (node, events) = GossipNode::spawn(
                endpoint.clone(),
                GossipConfig::default(),
                topic.into(),
                &sealer.keys(),
                Gate(sealed.then_some(opener)),
                Arc::new(|_: &EndpointId| true),
                Arc::default(),
            );
            let router = Router::builder(endpoint)
                .accept(GOSSIP_ALPN, Accepts(node.clone()))
                .spawn();
            let known = nodes
                .len()
                .checked_sub(1)
                .map(|last| last.min(last / 2 + 1));
            if let Some(peer) = known.and_then(|at| nodes.get(at)) {
                node.join(vec![peer.router.endpoint().addr()]);
            }
            nodes.push(Node {
                node,
                events,
                router,
            });
        }
        let formed = async {
            while !nodes
                .iter()
                .all(|node| *node.node.neighbors().borrow() >= 2)
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, formed).await?;
        Ok(Self {
            nodes,
            sealer: sealed.then_some(sealer),
            sent: 0,
        })
    }

    /// Broadcasts so many frames with this content, and gives the time until every node has had all.
    ///
    /// # Errors
    ///
    /// If they do not arrive within a minute.
    pub async fn burst(&mut self, frames: usize, content: &[u8]) -> std::io::Result<Duration> {
        let begun = Instant::now();
        let Some((first, others)) = self.nodes.split_first_mut() else {
            return Ok(Duration::ZERO);
        };
        let whole = PartOf { part: 0, parts: 2 };
        let sealer = &mut self.sealer;
        let sent = &mut self.sent;
        let send = async {
            for _ in 0..frames {
                *sent += 1;
                let frame = match sealer {
                    Some(sealer) => sealer
                        .seal(*sent, 1, whole, content)
                        .map_err(std::io::Error::other)?,
                    None => [&sent.to_be_bytes(), content].concat().into(),
                };
                first
                    .node
                    .broadcast(frame)
                    .await
                    .map_err(std::io::Error::other)?;
            }
            Ok::<_, std::io::Error>(())
        };
        let receive = async {
            for other in others {
                let mut missing = frames;
                while missing > 0 {
                    match other.events.recv().await {
                        Some(GossipEvent::Frame { .. }) => missing -= 1,
                        Some(_) => {}
                        None => return Err(std::io::Error::other("a node has ended")),
                    }
                }
            }
            Ok(())
        };
        let (sent, received) = timeout(LIMIT, async { tokio::join!(send, receive) }).await?;
        sent.and(received)?;
        Ok(begun.elapsed())
    }

    /// Ends all nodes.
    pub async fn end(self) {
        for node in self.nodes {
            node.node.shutdown().await;
            // The endpoint closes by itself, and nothing is measured any more.
            let _ = node.router.shutdown().await;
        }
    }
}

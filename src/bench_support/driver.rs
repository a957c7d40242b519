//! The driver of the topic among nodes of one process, with frames that are sealed and opened, or are not.
//!
//! Every node takes the events out of the frames and through an inbox, as a spoke does, until a listener would have them.

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
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    endpoint,
    event::Envelope,
    gossip::{FrameGate, FrameRefused, GOSSIP_ALPN, GossipConfig, GossipEvent, GossipNode},
    inbox::{Inbox, InboxConfig, Output, Part},
    position::Epoch,
    seal::{Context, Opened, Opener, Sealer},
    via::Via,
    wire::{
        broadcast::{self, Packer},
        native::{MAX_PART, PartOf},
    },
};

/// How long the mesh may take to form, and a burst to arrive.
const LIMIT: Duration = Duration::from_secs(60);

/// How often it is looked whether the mesh has formed,
const LOOK: Duration = Duration::from_millis(20);
/// and after how long a node that is on its own is told of all others.
const JOIN_AGAIN: Duration = Duration::from_secs(2);

/// Before a frame that is not sealed: the first offset, and how many events there are.
const BARE_HEADER: usize = 8 + 2;

/// Opens frames for real, or takes whatever comes.
struct Gate(Option<Opener>);

/// The events of a frame, from this offset on.
type Events = (u64, Vec<Bytes>);

impl FrameGate for Gate {
    type Opened = Events;

    fn open(&mut self, frame: &Bytes) -> Result<Events, FrameRefused> {
        let events = match &mut self.0 {
            Some(opener) => match opener.open(frame) {
                Ok(Opened::Events { first, bodies }) => Some((first, bodies)),
                _ => None,
            },
            None => bare_events(frame),
        };
        events.ok_or(FrameRefused::Forged)
    }
}

fn bare_events(frame: &Bytes) -> Option<Events> {
    let (header, content) = frame.split_first_chunk::<BARE_HEADER>()?;
    let (first, count) = header.split_first_chunk()?;
    let count = u16::from_be_bytes(count.try_into().ok()?);
    let bodies = broadcast::unpack(&frame.slice_ref(content), count).ok()?;
    Some((u64::from_be_bytes(*first), bodies))
}

/// Takes events to where a listener would have them, and tells how many it had.
async fn listen(
    mut events: mpsc::Receiver<GossipEvent<Events>>,
    epoch: Epoch,
    heard: watch::Sender<u64>,
) {
    let mut inbox = Inbox::new(InboxConfig::default(), Instant::now(), epoch, 0, 0, 1);
    while let Some(event) = events.recv().await {
        let GossipEvent::Frame { opened, .. } = event else {
            continue;
        };
        let (first, bodies) = opened;
        let mut whole = 0;
        for (offset, body) in (first..).zip(bodies) {
            let part = Part {
                offset,
                part: 0,
                parts: 1,
                body,
                via: Via::Gossip,
            };
            if inbox.insert(Instant::now(), part).is_err() {
                return;
            }
            while let Some(output) = inbox.poll(Instant::now()) {
                if let Output::Event { body, .. } = output {
                    whole += u64::from(Envelope::from_body(body).is_ok());
                }
            }
        }
        heard.send_modify(|heard| *heard += whole);
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
    heard: watch::Receiver<u64>,
    listener: JoinHandle<()>,
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
            let (told, heard) = watch::channel(0);
            nodes.push(Node {
                node,
                heard,
                listener: tokio::spawn(listen(events, epoch, told)),
                router,
            });
        }
        let addrs: Vec<_> = nodes.iter().map(|n| n.router.endpoint().addr()).collect();
        let formed = async {
            loop {
                let lonely = |node: &&Node| *node.node.neighbors().borrow() < 2;
                let mut waited = Duration::ZERO;
                while nodes.iter().any(|node| lonely(&node)) && waited < JOIN_AGAIN {
                    tokio::time::sleep(LOOK).await;
                    waited += LOOK;
                }
                if !nodes.iter().any(|node| lonely(&node)) {
                    return;
                }
                // There is no hub here that would name others to them.
                for node in nodes.iter().filter(lonely) {
                    node.node.join(addrs.clone());
                }
            }
        };
        timeout(LIMIT, formed).await?;
        Ok(Self {
            nodes,
            sealer: sealed.then_some(sealer),
            sent: 0,
        })
    }

    /// Broadcasts frames with so many of these events each, and gives the time until every node has had all.
    ///
    /// # Errors
    ///
    /// If they do not arrive within a minute, or do not fit into a frame.
    pub async fn burst(&mut self, frames: usize, events: &[Envelope]) -> std::io::Result<Duration> {
        let begun = Instant::now();
        let Some((first, others)) = self.nodes.split_first_mut() else {
            return Ok(Duration::ZERO);
        };
        let mut packer = Packer::default();
        for _ in 0..frames {
            if !events
                .iter()
                .all(|event| packer.push(event.body(), MAX_PART))
            {
                return Err(std::io::Error::other("a frame does not hold as many"));
            }
            let (offset, count, content) = (self.sent, packer.count(), packer.take());
            self.sent += u64::from(count);
            let frame = match &mut self.sealer {
                Some(sealer) => sealer
                    .seal(offset, count, PartOf::WHOLE, &content)
                    .map_err(std::io::Error::other)?,
                None => [
                    &offset.to_be_bytes()[..],
                    &count.to_be_bytes()[..],
                    &content[..],
                ]
                .concat()
                .into(),
            };
            let sent = timeout(LIMIT, first.node.broadcast(frame)).await?;
            sent.map_err(std::io::Error::other)?;
        }
        let sent = self.sent;
        let everywhere = async {
            for other in others {
                let heard = other.heard.wait_for(|heard| *heard >= sent).await;
                heard.map_err(std::io::Error::other)?;
            }
            Ok(begun.elapsed())
        };
        timeout(LIMIT, everywhere).await?
    }

    /// Ends all nodes.
    pub async fn end(self) {
        let ends = self.nodes.into_iter().map(async |node| {
            node.node.shutdown().await;
            node.listener.abort();
            // The endpoint closes by itself, and nothing is measured any more.
            let _ = node.router.shutdown().await;
        });
        n0_future::join_all(ends).await;
    }
}

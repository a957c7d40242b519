//! What happens, and what all nodes share.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use iroh::{EndpointId, SecretKey};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    clock::{Clock, Events, Nanos, nanos},
    gate::SharedCheck,
    net::{CONNECT_LIMIT, HUB, IDLE, Network, NodeId},
    options::{Breakage, Options, Restart},
    oracle::Oracle,
    tally::Tally,
};
use crate::{
    close::CloseCode, gossip::GossipMetrics, hub::shared_log::SharedLog, wire::native::SessionId,
};

/// Something that happens.
#[derive(Debug)]
pub(super) enum Event {
    /// A node's deadline.
    Wake {
        node: NodeId,
        at: Nanos,
    },
    /// A gossip message arrives.
    Message {
        to: NodeId,
        from: NodeId,
        conn: u64,
        message: Bytes,
    },
    /// A batch of gossip messages is on the wire.
    Wrote {
        node: NodeId,
        peer: NodeId,
        conn: u64,
        messages: usize,
        bytes: usize,
    },
    /// Somebody wants a gossip connection, and gives up at `limit`.
    Knock {
        to: NodeId,
        from: NodeId,
        conn: u64,
        topic: u32,
        limit: Nanos,
    },
    /// What came of a dial.
    Dialled {
        to: NodeId,
        peer: NodeId,
        conn: u64,
        topic: u32,
        up: bool,
    },
    /// A gossip connection has ended.
    Gone {
        to: NodeId,
        from: NodeId,
        conn: u64,
    },
    /// A spoke tries to reach the hub.
    Connect {
        spoke: NodeId,
    },
    ConnectLimit {
        spoke: NodeId,
        link: u64,
    },
    ToHub {
        spoke: NodeId,
        link: u64,
        chunks: Vec<Bytes>,
    },
    ToSpoke {
        spoke: NodeId,
        link: u64,
        chunks: Vec<Bytes>,
    },
    /// A batch for a spoke is on the wire.
    LinkWrote {
        spoke: NodeId,
        link: u64,
    },
    /// The hub notices the end of a link.
    LinkEnds {
        spoke: NodeId,
        link: u64,
    },
    /// A spoke notices the end of its link.
    LinkLost {
        spoke: NodeId,
        link: u64,
    },
    /// A spoke hears that the hub has closed its link.
    LinkClosed {
        spoke: NodeId,
        link: u64,
        code: CloseCode,
    },
    /// It is time to look whether the run goes on.
    Look,
    Publish,
    Replace,
    Cut {
        share: f64,
        lasts: Nanos,
    },
    CutIdle,
    Heal,
    Stall {
        spokes: u32,
        lasts: Nanos,
    },
    Continue {
        spoke: NodeId,
    },
    Revoke {
        spokes: u32,
    },
    /// It is time to look who has the keys that a revocation began.
    Rekeyed {
        generation: u32,
    },
    HubDies(Restart),
    HubRises {
        log: Option<KeptLog>,
    },
}

/// The log that a durable hub comes back with.
pub(super) struct KeptLog(pub(super) Arc<SharedLog>);

impl std::fmt::Debug for KeptLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeptLog")
    }
}

/// What all nodes share.
pub(super) struct Ctx {
    pub(super) clock: Clock,
    pub(super) events: Events<Event>,
    pub(super) net: Network,
    pub(super) rng: StdRng,
    pub(super) tally: Tally,
    pub(super) oracle: Oracle,
    pub(super) hub_id: EndpointId,
    pub(super) breakage: Breakage,
    pub(super) connect_limit: Nanos,
    number: u64,
    /// When each node's uplink is free again.
    uplinks: BTreeMap<NodeId, Nanos>,
    ids: Vec<EndpointId>,
    nodes: BTreeMap<EndpointId, NodeId>,
    topics: Vec<([u8; 32], SharedCheck)>,
    pub(super) hub_metrics: Arc<GossipMetrics>,
    pub(super) spoke_metrics: Arc<GossipMetrics>,
}

impl Ctx {
    pub(super) fn new(options: &Options) -> Self {
        let mut rng = StdRng::seed_from_u64(options.seed);
        let hub_id = SecretKey::from_bytes(&rng.random()).public();
        Self {
            clock: Clock::new(),
            events: Events::new(),
            net: Network::new(&options.links, rng.random()),
            tally: Tally::default(),
            oracle: Oracle::default(),
            hub_id,
            breakage: options.breakage,
            connect_limit: nanos(CONNECT_LIMIT),
            number: 0,
            uplinks: BTreeMap::new(),
            ids: vec![hub_id],
            nodes: BTreeMap::from([(hub_id, HUB)]),
            topics: Vec::new(),
            hub_metrics: Arc::default(),
            spoke_metrics: Arc::default(),
            rng,
        }
    }

    /// A number that was not given before.
    pub(super) fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    pub(super) fn seed(&mut self) -> u64 {
        self.rng.random()
    }

    pub(super) fn session(&mut self) -> SessionId {
        SessionId(self.rng.random())
    }

    pub(super) fn gossip_metrics(&self, node: NodeId) -> Arc<GossipMetrics> {
        if node == HUB {
            self.hub_metrics.clone()
        } else {
            self.spoke_metrics.clone()
        }
    }

    /// When bytes that a node sends now have left it.
    pub(super) fn transmit(&mut self, node: NodeId, bytes: usize) -> Nanos {
        let now = self.clock.nanos();
        if !self.net.is_limited() {
            return now;
        }
        let free = self.uplinks.entry(node).or_insert(now);
        *free = now.max(*free) + self.net.transmission(bytes);
        *free
    }

    /// A new topic: its id, its number, and what checks its frames.
    pub(super) fn new_topic(&mut self) -> ([u8; 32], u32, SharedCheck) {
        let id = self.rng.random();
        let check = SharedCheck::default();
        self.topics.push((id, check.clone()));
        self.tally.topics += 1;
        (id, self.topics.len() as u32 - 1, check)
    }

    pub(super) fn topic(&self, id: &[u8; 32]) -> Option<(u32, SharedCheck)> {
        let number = self.topics.iter().rposition(|(known, _)| known == id)?;
        let (_, check) = self.topics.get(number)?;
        Some((number as u32, check.clone()))
    }

    pub(super) fn endpoint_id(&self, node: NodeId) -> EndpointId {
        self.ids.get(node as usize).copied().unwrap_or(self.hub_id)
    }

    pub(super) fn node(&self, id: &EndpointId) -> Option<NodeId> {
        self.nodes.get(id).copied()
    }

    pub(super) fn new_node(&mut self) -> NodeId {
        let id = SecretKey::from_bytes(&self.rng.random()).public();
        let node = self.ids.len() as NodeId;
        self.ids.push(id);
        self.nodes.insert(id, node);
        node
    }

    /// A node dials another one.
    pub(super) fn dial(&mut self, from: NodeId, to: NodeId, topic: u32, limit: Duration) {
        let conn = self.number();
        let limit = self.clock.nanos() + nanos(limit);
        let at = self.clock.nanos() + self.net.handshake(3);
        self.events.push(
            at.min(limit),
            Event::Knock {
                to,
                from,
                conn,
                topic,
                limit,
            },
        );
    }

    /// A node's end of a connection is closed; the other end hears of it, not before a time.
    pub(super) fn gone(&mut self, to: NodeId, from: NodeId, conn: u64, at: Nanos) {
        let at = if self.net.is_cut(from, to) {
            self.clock.nanos() + IDLE
        } else {
            at.max(self.clock.nanos()) + self.net.flight()
        };
        self.events.push(at, Event::Gone { to, from, conn });
    }
}

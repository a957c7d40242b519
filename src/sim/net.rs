//! The network: what becomes of a message between two nodes.
//!
//! A stream of a direct link is reliable and ordered, as QUIC's are: a lost packet costs a retransmission time and holds up
//! what is behind it. A gossip connection is harsher than QUIC: a message that the network loses is lost for good, as one is
//! that finds a queue full.

use std::{collections::BTreeSet, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    clock::{Nanos, nanos},
    options::Links,
};

/// A node; 0 is the hub. A spoke that replaces another has a number of its own.
pub(super) type NodeId = u32;

/// The hub.
pub(super) const HUB: NodeId = 0;

/// A connection over which nothing comes for so long is given up by both ends.
pub(super) const IDLE: Nanos = 15 * super::clock::SECOND;

/// How many bytes fit into a packet.
const PACKET: usize = 1200;

/// The shortest time after which a lost packet is sent again.
const MIN_RETRANSMIT: Nanos = 30_000_000;

/// When a gossip message arrives: never, once, or twice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Arrivals {
    pub(super) first: Option<Nanos>,
    pub(super) second: Option<Nanos>,
}

#[derive(Debug)]
pub(super) struct Network {
    rng: StdRng,
    delay: Nanos,
    jitter: Nanos,
    loss: f64,
    duplicate: f64,
    reorder: f64,
    bandwidth: Option<u64>,
    /// Nanoseconds a byte takes.
    per_byte: Option<f64>,
    /// Who is cut off, and until when.
    cut: BTreeSet<NodeId>,
    cut_until: Nanos,
}

impl Network {
    pub(super) fn new(links: &Links, seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            delay: nanos(links.delay),
            jitter: nanos(links.jitter),
            loss: links.loss,
            duplicate: links.duplicate,
            reorder: links.reorder,
            bandwidth: links.bandwidth,
            per_byte: links
                .bandwidth
                .map(|bandwidth| 1e9 / bandwidth.max(1) as f64),
            cut: BTreeSet::new(),
            cut_until: 0,
        }
    }

    /// What a node can send, in bytes a second, if that is limited.
    pub(super) fn bandwidth(&self) -> Option<u64> {
        self.bandwidth
    }

    /// How long it takes to a node and back, at least.
    pub(super) fn rtt(&self) -> Duration {
        Duration::from_nanos(self.delay).saturating_mul(2)
    }

    pub(super) fn is_limited(&self) -> bool {
        self.per_byte.is_some()
    }

    /// How long it takes to put so many bytes on the wire.
    pub(super) fn transmission(&self, bytes: usize) -> Nanos {
        self.per_byte
            .map_or(0, |per_byte| (bytes as f64 * per_byte) as Nanos)
    }

    /// How long a packet takes from one node to another.
    pub(super) fn flight(&mut self) -> Nanos {
        self.delay + self.rng.random_range(0..=self.jitter)
    }

    fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.random_bool(share.min(1.0))
    }

    /// When a gossip message that leaves at `at` arrives; not before what was sent before it arrived, unless it is overtaken.
    pub(super) fn gossip(
        &mut self,
        from: NodeId,
        to: NodeId,
        at: Nanos,
        last: &mut Nanos,
    ) -> Arrivals {
        if self.is_cut(from, to) || self.chance(self.loss) {
            return Arrivals::default();
        }
        let mut arrives = at + self.flight();
        if self.chance(self.reorder) {
            arrives += self.rng.random_range(0..=4 * self.delay.max(1_000_000));
        } else {
            arrives = arrives.max(*last);
            *last = arrives;
        }
        let second = self
            .chance(self.duplicate)
            .then(|| arrives + self.delay.max(1));
        Arrivals {
            first: Some(arrives),
            second,
        }
    }

    /// When bytes on a stream that leave at `at` arrive, behind what was sent before them.
    pub(super) fn stream(
        &mut self,
        from: NodeId,
        to: NodeId,
        at: Nanos,
        bytes: usize,
        last: &mut Nanos,
    ) -> Nanos {
        let mut arrives = at + self.flight();
        if self.is_cut(from, to) {
            // Sent again once that is over. If that is too late, the link has been given up.
            arrives = arrives.max(self.cut_until + self.retransmit() + self.delay);
        }
        let packets = bytes.div_ceil(PACKET).max(1) as i32;
        let mut lost = 1.0 - (1.0 - self.loss).powi(packets);
        let mut wait = self.retransmit();
        while self.chance(lost) {
            arrives += wait;
            wait = (wait * 2).min(super::clock::SECOND);
            lost = self.loss;
        }
        *last = arrives.max(*last);
        *last
    }

    /// How long until a packet that was lost is sent again.
    fn retransmit(&self) -> Nanos {
        (3 * self.delay).max(MIN_RETRANSMIT)
    }

    /// How long a handshake of so many flights takes.
    pub(super) fn handshake(&mut self, flights: u32) -> Nanos {
        let mut takes = 0;
        for _ in 0..flights {
            let mut wait = self.retransmit().max(200_000_000);
            takes += self.flight();
            while self.chance(self.loss) {
                takes += wait;
                wait *= 2;
            }
        }
        takes
    }

    /// Cuts nodes off from all others until a time.
    pub(super) fn cut_off(&mut self, nodes: BTreeSet<NodeId>, until: Nanos) {
        self.cut = nodes;
        self.cut_until = until;
    }

    /// Joins what was cut off again, unless the next cut has begun by now.
    pub(super) fn heal(&mut self, now: Nanos) {
        if now >= self.cut_until {
            self.cut.clear();
        }
    }

    /// Whether nothing gets from one to the other.
    pub(super) fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        !self.cut.is_empty() && self.cut.contains(&a) != self.cut.contains(&b)
    }
}

/// How long an attempt to reach the hub may take.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(15);

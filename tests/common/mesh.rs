//! A hub and honest spokes on its topic, for tests in which somebody else is not honest.

use iroh::EndpointAddr;
use iroh_hub::{
    FanOut, GossipConfig, Hub, Listener, Path, Spoke, SpokeInfo, metrics::GossipMetrics,
};

use super::{
    expect_numbers, hub, numbered,
    raw_member::{Neighbor, RawMember, say},
    soon, spoke, until,
};

/// A hub and honest spokes on its topic.
pub struct Mesh {
    pub hub: Hub,
    pub spokes: Vec<(Spoke, Listener)>,
    /// How many events were broadcast, and how many of them every spoke has heard.
    pub sent: u64,
    pub heard: u64,
}

impl Mesh {
    pub async fn new(spokes: usize) -> Self {
        Self::with(spokes, GossipConfig::default()).await
    }

    pub async fn with(count: usize, config: GossipConfig) -> Self {
        let builder = Hub::builder().fan_out(FanOut::Gossip);
        let hub = hub(builder.gossip(config.clone())).await;
        Self::around(hub, count, config).await
    }

    /// Spokes around a hub that has a topic.
    pub async fn around(hub: Hub, count: usize, config: GossipConfig) -> Self {
        let mut spokes = Vec::new();
        for _ in 0..count {
            let builder = Spoke::builder().gossip_config(config.clone());
            let spoke = spoke(&hub, builder).await;
            let listener = spoke.listen("n");
            spokes.push((spoke, listener));
        }
        until("they are on the tree", || {
            let on_tree = |info: &SpokeInfo| info.path == Path::Gossip;
            hub.spokes().iter().all(on_tree)
        })
        .await;
        Self {
            hub,
            spokes,
            sent: 0,
            heard: 0,
        }
    }

    /// Broadcasts so many events.
    pub async fn publish(&mut self, count: u64) {
        for _ in 0..count {
            let sending = self.hub.broadcast(numbered(self.sent));
            soon("room", sending).await.expect("the hub is open");
            self.sent += 1;
        }
    }

    /// Every spoke hears all that was broadcast, in order, once each.
    pub async fn all_hear(&mut self) {
        let (first, count) = (self.heard, self.sent - self.heard);
        for (_, listener) in &mut self.spokes {
            expect_numbers(listener, first, count).await;
        }
        self.heard = self.sent;
    }

    pub fn addrs(&self) -> Vec<EndpointAddr> {
        let spokes = self.spokes.iter().map(|(spoke, _)| spoke.endpoint().addr());
        spokes.chain([self.hub.addr()]).collect()
    }

    /// What everyone counts; the hub comes last.
    pub fn metrics(&self) -> Vec<&GossipMetrics> {
        let spokes = self
            .spokes
            .iter()
            .map(|(spoke, _)| &*spoke.metrics().gossip);
        spokes.chain([&*self.hub.metrics().gossip]).collect()
    }

    pub fn sum(&self, of: impl Fn(&GossipMetrics) -> u64) -> u64 {
        self.metrics().into_iter().map(of).sum()
    }

    /// How many peers each has cut off.
    pub fn cut_off(&self) -> Vec<u64> {
        let metrics = self.metrics();
        metrics.iter().map(|m| m.peers_cut_off.get()).collect()
    }

    pub async fn end(mut self) {
        self.publish(20).await;
        self.all_hear().await;
        assert!(self.hub.shutdown().await.behind.is_empty());
    }
}

/// A member that everyone is a neighbour of.
pub struct Friend {
    pub member: RawMember,
    pub neighbors: Vec<(Neighbor, EndpointAddr)>,
}

impl Friend {
    pub async fn of_all(mesh: &Mesh) -> Self {
        let member = RawMember::admitted(&mesh.hub).await;
        let mut neighbors = Vec::new();
        for addr in mesh.addrs() {
            neighbors.push((member.befriend(&addr).await, addr));
        }
        Self { member, neighbors }
    }

    /// Says this to everyone, as a neighbour that nobody may refuse; who has closed meanwhile is connected to again, and is
    /// not told what was said on a topic that is over.
    pub async fn says(&mut self, messages: &[Vec<u8>]) {
        for (neighbor, addr) in &mut self.neighbors {
            loop {
                let topic = neighbor.topic;
                let current = |message: &&Vec<u8>| self.member.may_say(message, topic);
                let messages: Vec<_> = messages.iter().filter(current).cloned().collect();
                if neighbor.insist(&messages).await {
                    break;
                }
                *neighbor = self.member.befriend(addr).await;
            }
        }
    }

    /// New frames of the hub, as it takes them from its neighbours.
    pub async fn takes(&mut self, mesh: &mut Mesh) -> Vec<Vec<u8>> {
        let before = self.member.frames().len();
        mesh.publish(50).await;
        while self.member.frames().len() == before {
            // Who repeats what is known is sent no more, until it asks.
            self.says(&[say::graft(None, 0)]).await;
            mesh.publish(1).await;
            mesh.all_hear().await;
        }
        mesh.all_hear().await;
        self.member.frames().split_off(before)
    }

    pub async fn leave(self) {
        self.member.leave().await;
    }
}

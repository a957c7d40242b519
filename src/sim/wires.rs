//! Gossip messages and connections between nodes.

use bytes::Bytes;

use super::{
    clock::Nanos,
    ctx::{Ctx, Event},
    mesh::Ends,
    net::{HUB, NodeId},
    world::World,
};

impl World {
    /// A node's ends of gossip connections, if it is on a topic.
    pub(super) fn on_mesh<T>(
        &mut self,
        node: NodeId,
        what: impl FnOnce(&mut dyn Ends, &mut Ctx) -> T,
    ) -> Option<T> {
        let mesh = if node == HUB {
            self.hub.as_mut()?.mesh()?
        } else {
            let spoke = self.spokes.get_mut(node as usize)?.as_deref_mut()?;
            spoke.mesh.as_mut()? as &mut dyn Ends
        };
        Some(what(mesh, &mut self.ctx))
    }

    pub(super) fn message(&mut self, to: NodeId, from: NodeId, conn: u64, message: Bytes) {
        let len = message.len();
        if self.spoke(to).is_some_and(|spoke| spoke.is_revoked()) {
            self.ctx.tally.messages_to_revoked += 1;
        }
        let taken = self.on_mesh(to, |mesh, ctx| mesh.message(ctx, from, message));
        if taken.is_some() {
            self.settle(to);
        }
        let exists = to == HUB || matches!(self.spokes.get(to as usize), Some(Some(_)));
        if exists {
            // Read, and so off the sender's window.
            self.on_mesh(from, |mesh, ctx| mesh.read(ctx, to, conn, len));
        }
    }

    /// Somebody wants a connection.
    pub(super) fn knock(&mut self, to: NodeId, from: NodeId, conn: u64, topic: u32, limit: Nanos) {
        let now = self.ctx.clock.nanos();
        let cut = self.ctx.net.is_cut(from, to);
        let stopped = self
            .spoke(to)
            .is_some_and(|spoke| spoke.stalled_until.is_some_and(|until| now < until));
        let there = to == HUB && self.hub.is_some() || self.spoke(to).is_some();
        let answer = |up| Event::Dialled {
            to: from,
            peer: to,
            conn,
            topic,
            up,
        };
        if cut || stopped || !there || now >= limit {
            return self.ctx.events.push(limit, answer(false));
        }
        let offered = self.on_mesh(from, |mesh, ctx| mesh.offers(ctx));
        let up = self.on_mesh(to, |mesh, ctx| {
            let known = mesh.offers(ctx);
            let proved = offered.is_some_and(|o| o.iter().any(|o| known.contains(o)));
            proved && mesh.topic() == topic && mesh.up(ctx, from, conn, false)
        });
        self.settle(to);
        let at = now + self.ctx.net.flight();
        self.ctx.events.push(at, answer(up == Some(true)));
    }

    /// What came of a dial.
    pub(super) fn dialled(&mut self, to: NodeId, peer: NodeId, conn: u64, topic: u32, up: bool) {
        // The peer may have closed it meanwhile.
        let stands = up && self.on_mesh(peer, |mesh, _| mesh.has(to, conn)) == Some(true);
        let taken = self.on_mesh(to, |mesh, ctx| {
            if mesh.topic() != topic {
                return false;
            }
            if stands {
                mesh.up(ctx, peer, conn, true)
            } else {
                mesh.dial_failed(ctx, peer);
                false
            }
        });
        if stands && taken != Some(true) {
            let now = self.ctx.clock.nanos();
            self.ctx.gone(peer, to, conn, now);
        }
        self.settle(to);
    }
}

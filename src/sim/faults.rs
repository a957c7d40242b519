//! What befalls a run: spokes go and come, parts are cut off, nodes stop, the hub dies and rises.

use std::{collections::BTreeSet, time::Duration};

use rand::{RngExt, seq::IteratorRandom};

use super::{
    clock::{Nanos, SECOND, nanos},
    ctx::{Event, KeptLog},
    hub::Hub,
    net::{HUB, IDLE, NodeId},
    options::Restart,
    spoke::Spoke,
    world::World,
};

/// When it is counted who has new keys.
pub(super) const REKEYED_BY: Duration = Duration::from_secs(1);

/// How often spokes are replaced.
const REPLACE: Nanos = SECOND / 20;

impl World {
    /// Replaces as many spokes as are due.
    pub(super) fn replace(&mut self) {
        if self.last_event.is_some() {
            return;
        }
        let share = self.options.churn.per_s * REPLACE as f64 / SECOND as f64;
        self.replaced += f64::from(self.options.spokes) * share;
        while self.replaced >= 1.0 {
            self.replaced -= 1.0;
            let Some(id) = self.live.iter().copied().choose(&mut self.ctx.rng) else {
                break;
            };
            let gossip = id > self.options.direct_spokes;
            if self
                .ctx
                .rng
                .random_bool(self.options.churn.crash.clamp(0.0, 1.0))
            {
                self.crash(id);
            } else {
                self.shut_down(id);
            }
            let now = self.ctx.clock.nanos();
            self.add_spoke(gossip, now);
        }
        self.ctx
            .events
            .push(self.ctx.clock.nanos() + REPLACE, Event::Replace);
    }

    fn shut_down(&mut self, id: NodeId) {
        self.live.remove(&id);
        if let Some(spoke) = self.spokes.get_mut(id as usize).and_then(Option::take) {
            spoke.shut_down(&mut self.ctx);
        }
        self.ctx.oracle.ends(id);
    }

    /// A spoke is gone without a word: others notice when its connections have been idle for long.
    fn crash(&mut self, id: NodeId) {
        self.live.remove(&id);
        let Some(spoke) = self.spokes.get_mut(id as usize).and_then(Option::take) else {
            return;
        };
        let at = self.ctx.clock.nanos() + IDLE;
        if let Some(mesh) = &spoke.mesh {
            for (to, conn) in super::mesh::Ends::connections(mesh) {
                self.ctx.events.push(at, Event::Gone { to, from: id, conn });
            }
        }
        if let Some(link) = spoke.link() {
            self.ctx
                .events
                .push(at, Event::LinkEnds { spoke: id, link });
        }
        self.ctx.oracle.ends(id);
    }

    /// Cuts spokes off from the hub and the others.
    pub(super) fn cut(&mut self, share: f64, lasts: Nanos) {
        let count = (self.live.len() as f64 * share.clamp(0.0, 1.0)).round() as usize;
        let cut: BTreeSet<NodeId> = self
            .live
            .iter()
            .copied()
            .sample(&mut self.ctx.rng, count)
            .into_iter()
            .collect();
        let now = self.ctx.clock.nanos();
        self.ctx.net.cut_off(cut, now + lasts);
        self.ctx.events.push(now + lasts, Event::Heal);
        if lasts > IDLE {
            self.ctx.events.push(now + IDLE, Event::CutIdle);
        }
    }

    /// Ends every connection that has been cut for long.
    pub(super) fn cut_idle(&mut self) {
        let now = self.ctx.clock.nanos();
        for id in self.live.clone() {
            let link = self.spoke(id).and_then(|spoke| spoke.link());
            if let Some(link) = link.filter(|_| self.ctx.net.is_cut(HUB, id)) {
                self.ctx
                    .events
                    .push(now, Event::LinkLost { spoke: id, link });
                self.ctx
                    .events
                    .push(now, Event::LinkEnds { spoke: id, link });
            }
            let connections = self
                .on_mesh(id, |mesh, _| mesh.connections())
                .unwrap_or_default();
            for (peer, conn) in connections {
                if self.ctx.net.is_cut(id, peer) {
                    self.ctx.events.push(
                        now,
                        Event::Gone {
                            to: id,
                            from: peer,
                            conn,
                        },
                    );
                    self.ctx.events.push(
                        now,
                        Event::Gone {
                            to: peer,
                            from: id,
                            conn,
                        },
                    );
                }
            }
        }
    }

    /// Stops spokes.
    pub(super) fn stall(&mut self, spokes: u32, lasts: Nanos) {
        let now = self.ctx.clock.nanos();
        let chosen = self
            .live
            .iter()
            .copied()
            .sample(&mut self.ctx.rng, spokes as usize);
        for id in chosen {
            let Some(spoke) = self.spoke(id) else {
                continue;
            };
            spoke.stalled_until = Some(now + lasts);
            let link = spoke.link();
            self.ctx
                .events
                .push(now + lasts, Event::Continue { spoke: id });
            if lasts < IDLE {
                continue;
            }
            if let Some(link) = link {
                self.ctx
                    .events
                    .push(now + IDLE, Event::LinkLost { spoke: id, link });
                self.ctx
                    .events
                    .push(now + IDLE, Event::LinkEnds { spoke: id, link });
            }
            for (peer, conn) in self
                .on_mesh(id, |mesh, _| mesh.connections())
                .unwrap_or_default()
            {
                self.ctx.events.push(
                    now + IDLE,
                    Event::Gone {
                        to: id,
                        from: peer,
                        conn,
                    },
                );
                self.ctx.events.push(
                    now + IDLE,
                    Event::Gone {
                        to: peer,
                        from: id,
                        conn,
                    },
                );
            }
        }
    }

    /// A stopped spoke goes on, and finds what has come meanwhile.
    pub(super) fn go_on(&mut self, id: NodeId) {
        let Some(spoke) = self.spoke(id) else {
            return;
        };
        spoke.stalled_until = None;
        for event in std::mem::take(&mut spoke.held) {
            self.happen(event);
        }
        self.settle(id);
    }

    /// The hub is killed.
    pub(super) fn hub_dies(&mut self, restart: Restart) {
        let Some(mut hub) = self.hub.take() else {
            return;
        };
        self.last_tip = Some(hub.tip());
        let now = self.ctx.clock.nanos();
        for (spoke, link) in hub.links() {
            self.ctx
                .events
                .push(now + IDLE, Event::LinkLost { spoke, link });
        }
        for (to, conn) in hub
            .mesh()
            .map(|mesh| mesh.connections())
            .unwrap_or_default()
        {
            self.ctx.events.push(
                now + IDLE,
                Event::Gone {
                    to,
                    from: HUB,
                    conn,
                },
            );
        }
        let log = restart.durable.then(|| KeptLog(hub.shared_log()));
        self.ctx
            .events
            .push(now + nanos(restart.lasts), Event::HubRises { log });
    }

    /// Revokes some of those that the topic serves.
    pub(super) fn revoke(&mut self, spokes: u32) {
        let served: Vec<_> = self.live.iter().copied().collect();
        let served = served.into_iter().filter(|id| {
            let spoke = self.spokes.get(*id as usize).and_then(Option::as_deref);
            spoke.is_some_and(Spoke::is_served)
        });
        let served: Vec<_> = served.collect();
        let chosen = served
            .into_iter()
            .sample(&mut self.ctx.rng, spokes as usize);
        let Some(tip) = self.hub.as_ref().map(|hub| hub.tip().offset) else {
            return;
        };
        for id in &chosen {
            self.live.remove(id);
            self.ctx.oracle.ends(*id);
            if let Some(spoke) = self.spoke(*id) {
                spoke.revoked(tip);
            }
        }
        self.ctx.tally.revoked += chosen.len() as u64;
        let mut generation = None;
        self.on_hub(|hub, ctx| generation = hub.revoke(ctx, &chosen));
        if let Some(generation) = generation {
            let at = self.ctx.clock.nanos() + nanos(REKEYED_BY);
            self.ctx.events.push(at, Event::Rekeyed { generation });
        }
    }

    /// Counts who has the keys that a revocation began.
    pub(super) fn count_rekeyed(&mut self, generation: u32) {
        let spokes = self.live.iter().filter_map(|id| {
            let spoke = self.spokes.get(*id as usize)?.as_deref()?;
            spoke.is_served().then(|| spoke.generation())?
        });
        let (mut all, mut have) = (0u32, 0u32);
        for known in spokes {
            all += 1;
            have += u32::from(known >= generation);
        }
        let share = f64::from(have) / f64::from(all.max(1));
        let least = &mut self.ctx.tally.rekeyed_within_1s;
        *least = Some(least.map_or(share, |least| least.min(share)));
    }

    /// Another life of the hub begins.
    pub(super) fn hub_rises(&mut self, log: Option<KeptLog>) {
        let events = self.options.log_events;
        let log = log.map_or_else(|| Hub::log(&mut self.ctx, events), |log| log.0);
        let (fan_out, lose) = (self.options.fan_out.clone(), self.options.lose_root_frame);
        let hub = Hub::new(&mut self.ctx, fan_out, log, lose);
        self.hub = Some(hub);
        self.settle(HUB);
    }
}

//! The one task that owns the core, the connections and the addresses.

use std::{collections::BTreeMap, sync::Arc};

use iroh::{Endpoint, EndpointAddr, EndpointId, Watcher, endpoint::Connection};
use n0_future::{
    StreamExt,
    time::{Duration, Instant, sleep_until, timeout},
};
use tokio::sync::{mpsc, watch};
use tracing::{debug, trace};

use super::{Command, Inbound, Shared, Up};
use crate::gossip::{
    FrameGate, GossipEvent, addr,
    auth::Membership,
    conn::{Code, Link, ReadLimits},
    core::{Core, MAX_BOOTSTRAP, Output},
    dialled::Dialled,
    outbox::Outbox,
};

/// How much is done at once before the outputs are worked off.
const TURN: usize = 32;

/// How long the tasks have to end by themselves after the goodbye.
const FAREWELL: Duration = Duration::from_millis(2200);

/// The connection over which a peer is sent to.
struct Peer {
    number: u64,
    conn: Connection,
    outbox: Arc<Outbox>,
    dialled: Dialled,
}

pub(super) struct Actor<G: FrameGate> {
    core: Core<EndpointId, G>,
    endpoint: Endpoint,
    own: EndpointAddr,
    shared: Arc<Shared>,
    events: mpsc::Sender<GossipEvent<G::Opened>>,
    neighbors: watch::Sender<usize>,
    peers: BTreeMap<EndpointId, Peer>,
    /// Addresses that we were given by our owner; the policy for those that peers tell does not apply.
    given: BTreeMap<EndpointId, EndpointAddr>,
    next_number: u64,
}

impl<G: FrameGate> Actor<G> {
    pub(super) fn new(
        endpoint: Endpoint,
        gate: G,
        shared: Arc<Shared>,
        events: mpsc::Sender<GossipEvent<G::Opened>>,
        neighbors: watch::Sender<usize>,
    ) -> Self {
        let own = endpoint.addr();
        let core = Core::new(
            endpoint.id(),
            Some(addr::encode(&own)),
            shared.config.clone(),
            gate,
            shared.metrics.clone(),
            rand::random(),
            Instant::now(),
        );
        Self {
            core,
            endpoint,
            own,
            shared,
            events,
            neighbors,
            peers: BTreeMap::new(),
            given: BTreeMap::new(),
            next_number: 0,
        }
    }

    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command<G>>,
        mut inbound: mpsc::Receiver<Inbound>,
    ) {
        // Should the actor fail, no task outlives it.
        let _kill = self.shared.kill.clone().drop_guard();
        let mut addrs = self.endpoint.watch_addr().stream();
        let mut addrs_end = false;
        let stop = self.shared.stop.clone();
        let shared = self.shared.clone();
        loop {
            let deadline = self.core.deadline();
            let due = async {
                match deadline {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = stop.cancelled() => break,
                _ = shared.wake.notified() => self.asked(),
                command = commands.recv() => {
                    let Some(command) = command else { break };
                    self.command(command);
                    for _ in 1..TURN {
                        let Ok(command) = commands.try_recv() else { break };
                        self.command(command);
                        self.work_off();
                    }
                }
                Some(first) = inbound.recv() => {
                    self.inbound(first);
                    for _ in 1..TURN {
                        let Ok(next) = inbound.try_recv() else { break };
                        self.work_off();
                        self.inbound(next);
                    }
                }
                _ = due => self.tick(),
                own = addrs.next(), if !addrs_end => match own {
                    Some(own) => self.moved(own),
                    None => addrs_end = true,
                },
            }
            self.work_off();
        }
        stop.cancel();
        self.core.leave(Instant::now());
        self.work_off();
        // From here on nobody reads what comes, and whoever waits to tell us something is let go.
        drop(commands);
        inbound.close();
        // Until whoever had a place already has used it.
        while let Some(unread) = inbound.recv().await {
            unread.discard();
        }
        shared.tasks.close();
        timeout(FAREWELL, shared.tasks.wait()).await.ok();
        shared.kill.cancel();
        shared.tasks.wait().await;
    }

    fn asked(&mut self) {
        let asked = std::mem::take(&mut *self.shared.asked());
        let now = Instant::now();
        if asked.no_dials {
            self.core.stop_dialing();
        }
        for peer in asked.evictions {
            self.core.evict(peer, now);
        }
        if asked.joins.is_empty() {
            return;
        }
        let ids: Vec<EndpointId> = asked.joins.iter().map(|addr| addr.id).collect();
        for addr in asked.joins {
            self.given.insert(addr.id, addr);
        }
        while self.given.len() > MAX_BOOTSTRAP {
            let Some(old) = self.given.keys().find(|id| !ids.contains(id)).copied() else {
                break;
            };
            self.given.remove(&old);
        }
        self.core.join(ids, now);
    }

    fn command(&mut self, command: Command<G>) {
        match command {
            Command::Broadcast(frame) => {
                if let Err(err) = self.core.broadcast(frame, Instant::now()) {
                    debug!("not broadcast: {err:#}");
                }
            }
            Command::Gate(run) => self.core.with_gate(run, Instant::now()),
        }
    }

    fn inbound(&mut self, inbound: Inbound) {
        let now = Instant::now();
        match inbound {
            Inbound::Message {
                peer,
                message,
                place,
            } => {
                self.core.message(peer, message, now);
                drop(place);
            }
            Inbound::Up(up) => self.up(up, now),
            Inbound::DialFailed(peer) => self.core.dial_failed(peer, now),
            Inbound::Oversize { peer } => self.core.oversize(peer, now),
            Inbound::BrokeRules { peer } => self.core.broke_rules(peer, now),
            Inbound::Gone { peer, number } => {
                if self.peers.get(&peer).is_some_and(|p| p.number == number) {
                    self.peers.remove(&peer);
                    self.core.peer_closed(peer, now);
                }
            }
        }
    }

    /// A member's connection is up.
    fn up(&mut self, up: Up, now: Instant) {
        let Up {
            conn,
            proved,
            dialed,
            place,
        } = up;
        let peer = conn.remote_id();
        // First: one that is turned away takes nothing from a connection that stands.
        if !self.core.peer_connected(peer, dialed, now) {
            let code = match self.core.is_banned(&peer, now) {
                true => Code::Banned,
                false => Code::TooOften,
            };
            return code.close(&conn);
        }
        let number = self.next_number;
        self.next_number += 1;
        let config = &self.shared.config;
        let outbox = Arc::new(Outbox::new(config.queue_messages, config.queue_bytes));
        let new = Peer {
            number,
            conn: conn.clone(),
            outbox: outbox.clone(),
            dialled: Dialled {
                by_us: dialed,
                up: now,
            },
        };
        let larger = self.endpoint.id() > peer;
        match self.peers.get(&peer) {
            Some(old) if !new.dialled.replaces(&old.dialled, larger) => {
                // What the peer has sent on it is still read.
                outbox.end(Code::Replaced);
            }
            _ => {
                if let Some(old) = self.peers.insert(peer, new) {
                    old.outbox.end(Code::Replaced);
                }
            }
        }
        trace!(remote = %peer.fmt_short(), dialed, number, "gossip connection up");
        let member = Membership {
            conn: conn.clone(),
            me: self.endpoint.id(),
            dialed,
            generation: proved.generation,
        };
        let link = Link {
            number,
            peer,
            conn,
            send: proved.send,
            recv: proved.recv,
            keys: self.shared.keys.clone(),
            member,
            outbox,
            limits: ReadLimits {
                max_message: config.max_message_size(),
                timeout: config.message_timeout,
            },
            inbound: self.shared.inbound.clone(),
            metrics: self.shared.metrics.clone(),
            place,
        };
        let kill = self.shared.kill.clone();
        self.shared.tasks.spawn(link.run(kill));
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let after = self.shared.config.stuck_after;
        let stuck: Vec<EndpointId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.outbox.stuck(after, now))
            .map(|(id, _)| *id)
            .collect();
        for peer in stuck {
            self.core.peer_stuck(peer, now);
        }
        self.core.tick(now);
    }

    /// Our own addresses have changed.
    fn moved(&mut self, own: EndpointAddr) {
        if own != self.own {
            self.core.set_data(addr::encode(&own), Instant::now());
            self.own = own;
        }
    }

    /// Does what the core wants done.
    fn work_off(&mut self) {
        while let Some(output) = self.core.next_output() {
            match output {
                Output::Send {
                    peer,
                    message,
                    kind,
                } => {
                    if let Some(peer) = self.peers.get(&peer)
                        && !peer.outbox.push(message, kind, Instant::now())
                    {
                        self.shared.metrics.queue_dropped.inc();
                    }
                }
                Output::Dial { peer, data } => self.dial(peer, data.as_deref()),
                Output::Close { peer, why } => {
                    if let Some(peer) = self.peers.remove(&peer) {
                        let code = Code::from(why);
                        peer.outbox.end(code);
                        if !code.is_polite() {
                            code.close(&peer.conn);
                        }
                    }
                }
                Output::Deliver { opened, from, hops } => {
                    self.event(GossipEvent::Frame { opened, from, hops });
                }
                Output::NeighborUp(peer) => self.event(GossipEvent::NeighborUp(peer)),
                Output::NeighborDown(peer) => self.event(GossipEvent::NeighborDown(peer)),
            }
        }
        let count = self.core.neighbors();
        self.neighbors
            .send_if_modified(|known| std::mem::replace(known, count) != count);
    }

    fn dial(&mut self, peer: EndpointId, data: Option<&[u8]>) {
        let data = data.filter(|_| self.shared.config.hub != Some(peer));
        let told = data.map(|data| addr::decode(peer, data, &self.own));
        let mut addr = told.unwrap_or_else(|| EndpointAddr::new(peer));
        if let Some(given) = self.given.get(&peer) {
            addr = addr.with_addrs(given.addrs.iter().cloned());
        }
        let dial = self.shared.clone().dial(self.endpoint.clone(), addr);
        self.shared.tasks.spawn(dial);
    }

    fn event(&mut self, event: GossipEvent<G::Opened>) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.events.try_send(event) {
            self.shared.metrics.delivered_dropped.inc();
        }
    }
}

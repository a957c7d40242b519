//! The topic on the network: [`GossipNode`] is the handle, one actor owns the core and all that belongs to it.
//!
//! The actor waits for nobody: it takes what comes through bounded channels, and what it has for a peer or for its owner
//! it leaves in a bounded queue, or drops and counts. Each connection has a task of its own. Every task belongs to a tracker and has
//! ended when [`GossipNode::shutdown`] returns.

mod actor;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use iroh::{
    Endpoint, EndpointAddr, EndpointId,
    endpoint::{ConnectOptions, Connection},
};
use iroh_gossip::proto::TopicId;
use n0_error::{e, stack_error};
use n0_future::time::{Duration, timeout};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::AbortHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, error_span};

use self::actor::Actor;
use super::{
    FrameGate, GossipConfig, GossipEvent, GossipMetrics,
    auth::{self, Keyring, Proved},
    conn::Code,
    core::{AFTER_EVICTION, MAX_BOOTSTRAP},
};
use crate::{
    places::{Place, Places},
    wire::native::GenerationKeys,
};

/// How many frames and requests of the owner may wait for the actor.
const COMMANDS: usize = 256;

/// How many things from the network may wait for the actor, all peers together.
const INBOUND: usize = 1024;

/// How many events may wait for the owner.
const EVENTS: usize = 1024;

/// How long a shutdown may take.
const SHUTDOWN: Duration = Duration::from_secs(3);

/// Why a frame was not broadcast.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub(crate) enum GossipSendError {
    /// The frame is larger than `max_frame_size`.
    #[error("a frame of {len} bytes is over the topic's limit of {max}: send it in parts")]
    TooLarge { len: usize, max: usize },
    /// The topic was left.
    #[error("the gossip topic was left: start it again or send directly")]
    Closed,
}

/// What the actor is asked for.
enum Command<G> {
    Broadcast(Bytes),
    Gate(Box<dyn FnOnce(&mut G) + Send>),
}

/// What the network has for the actor.
pub(super) enum Inbound {
    /// A connection that proved to be a member's.
    Up(Up),
    DialFailed(EndpointId),
    Message {
        peer: EndpointId,
        message: Bytes,
        /// Its place in the peer's budget.
        place: OwnedSemaphorePermit,
    },
    /// A peer announced a message beyond the limit.
    Oversize {
        peer: EndpointId,
    },
    /// A peer did on its connection what no member does.
    BrokeRules {
        peer: EndpointId,
    },
    /// A connection is of no use any more.
    Gone {
        peer: EndpointId,
        number: u64,
    },
}

impl Inbound {
    /// Nobody is left to take it: a peer whose connection that was hears why it ends.
    pub(super) fn discard(self) {
        if let Self::Up(up) = self {
            Code::Done.close(&up.conn);
        }
    }
}

pub(super) struct Up {
    conn: Connection,
    proved: Proved,
    dialed: bool,
    place: OwnedSemaphorePermit,
}

/// Says whether a node may have a connection to a peer at all; asked before anything else is said or dialled.
pub(crate) type Admits = Arc<dyn Fn(&EndpointId) -> bool + Send + Sync>;

/// What the handles and the actor share.
struct Shared {
    me: EndpointId,
    config: GossipConfig,
    metrics: Arc<GossipMetrics>,
    keys: Keyring,
    admits: Admits,
    inbound: mpsc::Sender<Inbound>,
    /// Joins and evictions that the actor has not seen yet; bounded.
    asked: Mutex<Asked>,
    wake: Notify,
    /// Places for connections of members, and for dials.
    places: Arc<Semaphore>,
    /// Places for those that have not proved to be members'.
    unproven: Places<EndpointId>,
    /// Everything but the actor.
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Ends every task at once.
    kill: CancellationToken,
}

#[derive(Default)]
struct Asked {
    joins: Vec<EndpointAddr>,
    evictions: BTreeSet<EndpointId>,
    no_dials: bool,
}

/// One node's part in the topic. Dropping the last clone leaves the topic.
pub(crate) struct GossipNode<G> {
    commands: mpsc::Sender<Command<G>>,
    neighbors: watch::Receiver<usize>,
    shared: Arc<Shared>,
    actor: TaskTracker,
    abort: AbortHandle,
}

impl<G> Clone for GossipNode<G> {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
            neighbors: self.neighbors.clone(),
            shared: self.shared.clone(),
            actor: self.actor.clone(),
            abort: self.abort.clone(),
        }
    }
}

impl<G> std::fmt::Debug for GossipNode<G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GossipNode")
            .field("me", &self.shared.me.fmt_short().to_string())
            .finish_non_exhaustive()
    }
}

impl<G: FrameGate> GossipNode<G> {
    /// Starts a node that has no peers yet; [`join`](Self::join) gives it some.
    ///
    /// The receiver gets what is new. It is never waited for: what finds no place is dropped and counted. It ends when the
    /// topic was left, or the actor failed.
    pub(crate) fn spawn(
        endpoint: Endpoint,
        config: GossipConfig,
        topic: TopicId,
        keys: &GenerationKeys,
        gate: G,
        admits: Admits,
        metrics: Arc<GossipMetrics>,
    ) -> (Self, mpsc::Receiver<GossipEvent<G::Opened>>) {
        let (commands, command_rx) = mpsc::channel(COMMANDS);
        let (inbound, inbound_rx) = mpsc::channel(INBOUND);
        let (events, event_rx) = mpsc::channel(EVENTS);
        let (neighbors_tx, neighbors) = watch::channel(0);
        let me = endpoint.id();
        let shared = Arc::new(Shared {
            me,
            keys: Keyring::new(topic, keys.generation, keys.key),
            admits,
            inbound,
            asked: Mutex::default(),
            wake: Notify::new(),
            places: Arc::new(Semaphore::new(config.max_connections)),
            unproven: Places::new(config.max_unproven, config.unproven_of_one),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
            config,
            metrics,
        });
        let actor = Actor::new(endpoint, gate, shared.clone(), events, neighbors_tx);
        let tracker = TaskTracker::new();
        let span = error_span!("gossip", me = %me.fmt_short(), topic = %topic.fmt_short());
        let task = tracker.spawn(actor.run(command_rx, inbound_rx).instrument(span));
        tracker.close();
        let node = Self {
            commands,
            neighbors,
            shared,
            actor: tracker,
            abort: task.abort_handle(),
        };
        (node, event_rx)
    }

    /// Joins the topic through peers that are on it, and comes back through them if need be. Never waits.
    pub(crate) fn join(&self, peers: Vec<EndpointAddr>) {
        let mut asked = self.shared.asked();
        asked.joins.extend(peers);
        let surplus = asked.joins.len().saturating_sub(MAX_BOOTSTRAP);
        asked.joins.drain(..surplus);
        drop(asked);
        self.shared.wake.notify_one();
    }

    /// Broadcasts a frame; waits for a place in the actor's queue, and for nothing else.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped before it is ready, the frame was not queued.
    pub(crate) async fn broadcast(&self, frame: Bytes) -> Result<(), GossipSendError> {
        let (len, max) = (frame.len(), self.shared.config.max_frame_size);
        if len > max {
            return Err(e!(GossipSendError::TooLarge { len, max }));
        }
        self.commands
            .send(Command::Broadcast(frame))
            .await
            .map_err(|_| e!(GossipSendError::Closed))
    }

    /// Takes a connection that came in for [`GOSSIP_ALPN`](super::GOSSIP_ALPN). Never waits.
    pub(crate) fn handle_connection(&self, conn: Connection) {
        let shared = self.shared.clone();
        if shared.stop.is_cancelled() {
            return Code::Done.close(&conn);
        }
        let Some(unproven) = shared.unproven.take(conn.remote_id()) else {
            shared.metrics.refused_unproven.inc();
            return Code::Busy.close(&conn);
        };
        let task = shared.clone().accept(conn, unproven);
        self.shared.tasks.spawn(task);
    }

    /// Takes the key of a newer generation. The one before still opens connections for a while: a short one, if
    /// somebody was `revoked`. The connections of those to `evict` are closed, and they are kept away. Never waits.
    pub(crate) fn rekey(&self, keys: &GenerationKeys, evict: &[EndpointId], revoked: bool) {
        let config = &self.shared.config;
        let lifetime = match revoked {
            false => config.previous_key_lifetime,
            true => config.previous_key_lifetime.min(AFTER_EVICTION),
        };
        let until = auth::previous_until(lifetime);
        self.shared.keys.rekey(keys.generation, keys.key, until);
        self.evict(evict);
    }

    /// Dials nobody from now on: the topic is about to be left. Never waits.
    pub(crate) fn stop_dialing(&self) {
        self.shared.asked().no_dials = true;
        self.shared.wake.notify_one();
    }

    /// Closes the connections to these peers and keeps them away; they are members no more. Never waits.
    fn evict(&self, peers: &[EndpointId]) {
        let mut asked = self.shared.asked();
        asked.evictions.extend(peers);
        drop(asked);
        self.shared.wake.notify_one();
    }

    /// The number of neighbours, now and as it changes.
    pub(crate) fn neighbors(&self) -> watch::Receiver<usize> {
        self.neighbors.clone()
    }

    /// Runs something on the gate, in order with the frames broadcast before and after. Waits for a place in the actor's queue.
    pub(crate) async fn with_gate(
        &self,
        run: impl FnOnce(&mut G) + Send + 'static,
    ) -> Result<(), GossipSendError> {
        self.commands
            .send(Command::Gate(Box::new(run)))
            .await
            .map_err(|_| e!(GossipSendError::Closed))
    }

    /// How many connections there are, in the making included.
    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        let proven = self.shared.config.max_connections - self.shared.places.available_permits();
        proven + self.shared.unproven.taken()
    }

    #[cfg(test)]
    pub(super) fn tasks(&self) -> usize {
        self.actor.len() + self.shared.tasks.len()
    }

    /// Says goodbye to the neighbours, leaves the topic and waits until every task has ended, for 3 seconds at most.
    pub(crate) async fn shutdown(&self) {
        self.shared.stop.cancel();
        let all = async {
            self.actor.wait().await;
            self.shared.tasks.close();
            self.shared.tasks.wait().await;
        };
        if timeout(SHUTDOWN, all).await.is_err() {
            self.shared.kill.cancel();
            self.abort.abort();
            debug!(me = %self.shared.me.fmt_short(), "gossip did not end in time and was cut short");
        }
    }
}

impl Shared {
    fn asked(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds out whether a connection that came in is a member's, and tells the actor.
    async fn accept(self: Arc<Self>, conn: Connection, unproven: Place<EndpointId>) {
        let proof = timeout(self.config.auth_timeout, self.keys.accept(&conn, self.me));
        let proof = tokio::select! {
            proof = proof => proof,
            _ = self.stop.cancelled() => return Code::Done.close(&conn),
        };
        let Some(proved) = self.proved(&conn, proof, false) else {
            return;
        };
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            self.metrics.refused_busy.inc();
            return Code::Busy.close(&conn);
        };
        drop(unproven);
        let up = Up {
            conn,
            proved,
            dialed: false,
            place,
        };
        self.tell(Inbound::Up(up)).await;
    }

    /// Connects to a peer, and tells the actor how it went.
    async fn dial(self: Arc<Self>, endpoint: Endpoint, addr: EndpointAddr) {
        let peer = addr.id;
        let up = self.try_dial(endpoint, addr).await;
        self.tell(up.map_or(Inbound::DialFailed(peer), Inbound::Up))
            .await;
    }

    async fn try_dial(&self, endpoint: Endpoint, addr: EndpointAddr) -> Option<Up> {
        let remote = addr.id;
        if !(self.admits)(&remote) {
            self.metrics.refused_stranger.inc();
            return None;
        }
        let place = self.places.clone().try_acquire_owned().ok()?;
        let options = match &self.config.transport {
            Some(config) => ConnectOptions::new().with_transport_config(config.clone()),
            None => ConnectOptions::new(),
        };
        let connect = async {
            let connecting = endpoint
                .connect_with_opts(addr, super::GOSSIP_ALPN, options)
                .await
                .map_err(|err| format!("{err:#}"))?;
            connecting.await.map_err(|err| format!("{err:#}"))
        };
        let dialed = tokio::select! {
            dialed = timeout(self.config.dial_timeout, connect) => dialed,
            _ = self.stop.cancelled() => return None,
        };
        let conn = match dialed {
            Ok(Ok(conn)) => conn,
            Ok(Err(err)) => {
                debug!(remote = %remote.fmt_short(), "gossip dial failed: {err}");
                return None;
            }
            Err(_) => {
                debug!(remote = %remote.fmt_short(), "gossip dial took too long");
                return None;
            }
        };
        let proof = self.keys.dial(&conn, self.me);
        let proof = tokio::select! {
            proof = timeout(self.config.auth_timeout, proof) => proof,
            // The other side may have accepted ours.
            _ = self.stop.cancelled() => {
                Code::Done.close(&conn);
                return None;
            }
        };
        let proved = self.proved(&conn, proof, true)?;
        Some(Up {
            conn,
            proved,
            dialed: true,
            place,
        })
    }

    fn proved<E>(
        &self,
        conn: &Connection,
        proof: Result<Result<Proved, auth::AuthError>, E>,
        dialed: bool,
    ) -> Option<Proved> {
        let (code, why) = match proof {
            // It may have been revoked meanwhile.
            Ok(Ok(_)) if !(self.admits)(&conn.remote_id()) => {
                (Code::Evicted, "a member no more".to_owned())
            }
            Ok(Ok(proved)) => return Some(proved),
            Ok(Err(err)) => (err.code(), err.to_string()),
            Err(_) => (Code::Late, "no proof in time".to_owned()),
        };
        self.metrics.auth_failed.inc();
        debug!(remote = %conn.remote_id().fmt_short(), dialed, "not a member's gossip connection: {why}");
        code.close(conn);
        None
    }

    async fn tell(&self, inbound: Inbound) {
        let room = tokio::select! {
            room = self.inbound.reserve() => room.ok(),
            _ = self.stop.cancelled() => None,
        };
        match room {
            Some(room) => room.send(inbound),
            None => inbound.discard(),
        }
    }
}

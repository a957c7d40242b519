//! The hub: its handle, and the parts that make it up.
//!
//! [`Hub`] is a cheap handle on shared state ([`Inner`]). The tasks around it: one per connection
//! (`connection`), one per spoke (`link_task`), the `switchboard` that decides the paths, and the
//! `gossip_link` while there is a topic. Nothing that they share waits on one spoke.

mod absent;
pub(crate) mod ack_share;
mod arrivals;
pub(crate) mod budget;
mod builder;
mod ceiling;
mod config;
mod connection;
mod crowd;
pub(crate) mod desk;
mod door;
mod entrance;
mod error;
mod floors;
pub(crate) mod framer;
pub(crate) mod gossip_link;
mod health;
pub(crate) mod keys;
mod link;
mod link_task;
mod link_writer;
#[cfg(feature = "durable")]
mod log_writer;
mod mail;
pub(crate) mod mailbox;
mod open;
pub(crate) mod pace;
mod receipt;
mod record;
pub(crate) mod repairs;
mod roster;
mod send;
pub(crate) mod session;
pub(crate) mod sessions;
pub(crate) mod shared_log;
mod spokes;
pub(crate) mod supervisor;
pub(crate) mod switchboard;
mod throttle;
mod vitals;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use iroh::{
    Endpoint, EndpointAddr, EndpointId,
    endpoint::Connection,
    protocol::{AcceptError, IncomingFilter, ProtocolHandler, RouterBuilder},
};
use iroh_tickets::endpoint::EndpointTicket;
use n0_error::{AnyError, e};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use self::{
    budget::Budget,
    config::HubConfig,
    crowd::Crowd,
    floors::Floors,
    gossip_link::{CurrentTopic, HubGate},
    health::Board,
    link::Link,
    mailbox::MailboxLimits,
    open::Open,
    pace::{Has, Pace},
    repairs::Payer,
    roster::{Asked, Roster},
    session::Session,
    sessions::SessionLimits,
    shared_log::{Begin, NotAppended, SharedLog},
    switchboard::{NOTES, Note},
};
pub use self::{
    builder::HubBuilder,
    config::{Behind, HubLimits},
    error::{BroadcastError, HubError, SendError, TryBroadcastError},
    health::{Health, PathHealth, Problem, RepairHealth, TopicHealth, TopicState},
    receipt::{Acknowledgements, NotAcknowledged, Receipt},
    send::{Recipient, SendOptions},
    spokes::{SpokeChange, SpokeInfo, SpokeWatch, WatchLagged},
};
use crate::{
    admission::{Admission, Guards, NOT_ADMITTED, REVOKED},
    close::{CloseCode, Closed},
    event::Envelope,
    fan_out::{FanOut, Path},
    gossip::{Admits, Bucket, GOSSIP_ALPN, GossipNode},
    instant::bound,
    intake::Intake,
    link_io::LinkError,
    listen::{ListenOptions, Listener, Listeners},
    log::{LogFailed, resume::Ask},
    metrics::{HubMetrics, LogMetrics, events},
    pattern::Pattern,
    position::Position,
    protocol::Protocol,
    spoke_id::SpokeId,
    target::{DispatchError, Dispatching, EventTarget},
};

/// A hub: broadcasts events to all of its spokes, sends events to one, and hears what spokes send.
///
/// A hub is made by a [builder](Self::builder). It is a [`ProtocolHandler`] for a [`Router`](iroh::protocol::Router) that you
/// have ([`accept_on`](Self::accept_on)), or has an endpoint to itself
/// ([`HubBuilder::spawn`]). Cloning is cheap: clones are the same hub.
///
/// End a hub with [`shutdown`](Self::shutdown); dropping the last clone ends it at once, and spokes
/// see a lost connection or none at all.
#[derive(Clone, Debug)]
pub struct Hub {
    inner: Arc<Inner>,
    /// It takes every connection of its endpoint.
    takes_all: bool,
    /// Ends the tasks when the last handle is dropped; the tasks hold `inner`, not this.
    _alive: Arc<tokio_util::sync::DropGuard>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    me: EndpointId,
    endpoint: Endpoint,
    config: HubConfig,
    log: Arc<SharedLog>,
    roster: Roster,
    crowd: Crowd,
    /// What spokes have sent and nobody has taken.
    intake: Intake,
    listeners: Listeners,
    metrics: HubMetrics,
    notes: mpsc::Sender<Note>,
    topic: Mutex<Option<CurrentTopic>>,
    floors: Mutex<Floors>,
    /// Wakes the switchboard when somebody was revoked.
    revoked: Notify,
    open: Open,
    paces: Mutex<Paces>,
    /// What repairs, and spokes that the topic does not reach, may take.
    budget: Mutex<Budget<Payer<SpokeId>>>,
    board: Mutex<Board>,
    /// What receipts may ask of spokes.
    asks: Mutex<Bucket>,
    /// Wakes who calls those that wait for the budget.
    budget_line: Notify,
    /// Wakes whoever waits for spokes to have more.
    progress: Notify,
    closing: AtomicBool,
    /// The task that takes connections has ended, where the hub has one.
    takes_none: AtomicBool,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Paces {
    /// Over the spokes that acknowledge fast, with the window of the settings.
    fast: Pace<SpokeId>,
    /// Over all, with half of the log.
    all: Pace<SpokeId>,
    /// Up to this offset, and to so many bytes appended, nobody need look again.
    clear: (u64, u64),
}

/// A part of the window, or of half of the log, may pass between two looks at the spokes.
const LOOK_AGAIN: u64 = 8;

/// So much of a second's asks for acknowledgements may be made at once,
const ASKS_AT_ONCE: u32 = 4;
/// and at least so many.
const MIN_ASKS_AT_ONCE: u32 = 20;

/// How a hub ended.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Drained {
    /// Spokes that were connected when the hub began to end, and did not have everything within the limit
    /// or were lost before they had.
    pub behind: Vec<SpokeInfo>,
}

impl Hub {
    /// Begins to make a hub.
    pub fn builder() -> HubBuilder {
        HubBuilder::default()
    }

    fn start(endpoint: Endpoint, config: HubConfig) -> Result<Self, HubError> {
        let config = config.sound();
        let cancel = CancellationToken::new();
        let tasks = TaskTracker::new();
        let metrics = HubMetrics::default();
        let log = open_log(endpoint.id(), &config, &metrics.log, &tasks, &cancel)?;
        let (notes, notes_rx) = mpsc::channel(NOTES);
        let limits = &config.limits;
        let pace = || Pace::new(limits.stall_after, limits.patience);
        let roster = Roster::new(
            SessionLimits {
                connected: limits.max_spokes,
                of_one: limits.spokes_of_one,
                away: limits.away_spokes,
                away_bytes: limits.away_bytes,
                lifetime: limits.session_lifetime,
            },
            MailboxLimits {
                events: limits.targeted_events,
                bytes: limits.targeted_bytes,
            },
            limits.targeted_bytes_of_all,
            limits.remembered_spokes,
            metrics.clone(),
        );
        let intake = Intake::new(
            limits.intake_bytes,
            limits.intake_of_one,
            metrics.direct.clone(),
        );
        let crowd = Crowd::new(limits, metrics.connections.clone());
        let inner = Arc::new(Inner {
            me: endpoint.id(),
            endpoint,
            log,
            roster,
            crowd,
            intake,
            listeners: Listeners::new(limits.first_listener_wait),
            metrics,
            notes,
            topic: Mutex::default(),
            floors: Mutex::default(),
            revoked: Notify::new(),
            open: Open::default(),
            paces: Mutex::new(Paces {
                fast: pace(),
                all: pace(),
                clear: (0, 0),
            }),
            budget: Mutex::new(Budget::new(
                std::time::Instant::now(),
                limits.repair_bytes_per_s,
            )),
            board: Mutex::default(),
            asks: Mutex::new(Bucket::new(
                limits.acks_per_s,
                (limits.acks_per_s / ASKS_AT_ONCE).max(MIN_ASKS_AT_ONCE),
                Instant::now(),
            )),
            budget_line: Notify::new(),
            progress: Notify::new(),
            closing: AtomicBool::new(false),
            takes_none: AtomicBool::new(false),
            cancel: cancel.clone(),
            tasks,
            config,
        });
        let guard: Weak<dyn Guards> = Arc::downgrade(&(inner.clone() as Arc<dyn Guards>));
        inner.config.admission.guard(guard);
        inner.tasks.spawn(switchboard::run(inner.clone(), notes_rx));
        Ok(Self {
            inner,
            takes_all: false,
            _alive: Arc::new(cancel.drop_guard()),
        })
    }

    /// Takes every connection of the endpoint from now on.
    fn take_all(&mut self) {
        self.takes_all = true;
        let inner = &self.inner;
        let taking = entrance::run(inner.clone(), inner.endpoint.clone());
        inner.tasks.spawn(taking);
    }

    /// A filter for the router that the hub is on, which keeps the hub's limits for handshakes:
    /// [`HubLimits::max_handshakes`], [`handshakes_of_addr`](HubLimits::handshakes_of_addr),
    /// [`validate_above`](HubLimits::validate_above) and
    /// [`handshakes_of_addr_per_s`](HubLimits::handshakes_of_addr_per_s). It is asked for every connection, those of other
    /// protocols too. A hub that [spawns](HubBuilder::spawn) needs none.
    ///
    /// A filter cannot let an address wait for its turn, and is not told how a handshake ends, so those of the last second
    /// count as in flight, and there is no limit to how long one may take but the endpoint's idle timeout. Give the endpoint
    /// [`hub_transport_config`](crate::endpoint::hub_transport_config) too, if what else runs on it can live with that.
    ///
    /// ```
    /// use iroh::protocol::Router;
    /// use iroh_hub::{Hub, HubLimits, endpoint};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let limits = HubLimits::default();
    /// let endpoint = endpoint::local(None)
    ///     .transport_config(endpoint::hub_transport_config(&limits))
    ///     .bind()
    ///     .await?;
    /// let hub = Hub::builder().limits(limits).build(endpoint.clone())?;
    /// let router = Router::builder(endpoint).incoming_filter(hub.incoming_filter());
    /// let router = hub.accept_on(router).spawn();
    /// # router.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn incoming_filter(&self) -> IncomingFilter {
        let inner = &self.inner;
        entrance::filter(&inner.config.limits, inner.metrics.connections.clone())
    }

    /// Registers the hub's protocols on a router that serves others too; see [`incoming_filter`](Self::incoming_filter).
    pub fn accept_on(&self, router: RouterBuilder) -> RouterBuilder {
        router
            .accept(Protocol::Native.alpn(), self.clone())
            .accept(Protocol::Compat.alpn(), self.clone())
            .accept(GOSSIP_ALPN, self.clone())
    }

    /// The endpoint that the hub runs on.
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// The hub's id.
    pub fn id(&self) -> EndpointId {
        self.inner.me
    }

    /// Where spokes find the hub, as far as the endpoint knows now.
    pub fn addr(&self) -> EndpointAddr {
        self.inner.endpoint.addr()
    }

    /// The hub's address as a text to hand to spokes.
    pub fn ticket(&self) -> EndpointTicket {
        EndpointTicket::new(self.addr())
    }

    /// Broadcasts an event to every spoke, and waits while the spokes are too far behind to take it.
    ///
    /// It waits for spokes that keep up: not for one that has stopped taking anything
    /// ([`HubLimits::stall_after`]), and only so long for one that is slower than most
    /// ([`HubLimits::patience`]).
    ///
    /// With a [durable log](HubBuilder::durable_log) it returns when the event is synced. Broadcasts that
    /// wait at the same time share a sync; [`append`](Self::append) does not wait for it.
    ///
    /// # Errors
    ///
    /// If the event is larger than [`HubLimits::max_event_bytes`], the hub is shut down, or the durable
    /// log could not be written.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if the future is dropped before it resolves, the event was not broadcast; with a
    /// durable log it may have been.
    pub async fn broadcast(&self, event: Envelope) -> Result<Receipt, BroadcastError> {
        let mut receipt = self.append(event).await?;
        receipt.position = receipt
            .durable()
            .await
            .map_err(|failed| self.inner.failed(failed))?;
        Ok(receipt)
    }

    /// As [`broadcast`](Self::broadcast), but does not wait for a durable log: [`Receipt::durable`] does,
    /// and until then no spoke gets the event. It waits while too much waits for the disk
    /// ([`HubLimits::unsynced_events`], [`HubLimits::unsynced_bytes`]).
    ///
    /// # Errors
    ///
    /// As [`broadcast`](Self::broadcast).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if the future is dropped before it resolves, the event was not broadcast.
    pub async fn append(&self, mut event: Envelope) -> Result<Receipt, BroadcastError> {
        let inner = &self.inner;
        inner.check(&event)?;
        let mut held = false;
        loop {
            let progress = inner.progress.notified();
            let mut tip = inner.log.watch_tip();
            if inner.may_append() {
                event = match inner.append(event) {
                    Ok(receipt) => return Ok(receipt),
                    Err(NotAppended::Full(event)) => event,
                    Err(NotAppended::Failed(failed)) => return Err(inner.failed(failed)),
                };
            }
            if !std::mem::replace(&mut held, true) {
                inner.metrics.events.broadcasts_held.inc();
            }
            // Looked at again even if nobody acknowledges: who is stalled stops to count.
            tokio::select! {
                () = progress => {}
                _ = tip.changed() => {}
                () = sleep(PACE_POLL) => {}
            }
            inner.check(&event)?;
        }
    }

    /// Broadcasts an event if the spokes are near enough to take it. Does not wait for a durable log:
    /// [`Receipt::durable`] does, and until then no spoke gets the event.
    ///
    /// # Errors
    ///
    /// As [`broadcast`](Self::broadcast); and [`TryBroadcastError::Behind`], with the event, where the
    /// spokes, or [what waits for the disk](HubLimits::unsynced_events), would have to be waited for.
    pub fn try_broadcast(&self, event: Envelope) -> Result<Receipt, TryBroadcastError> {
        let inner = &self.inner;
        inner
            .check(&event)
            .map_err(|source| e!(TryBroadcastError::Refused, source))?;
        if !inner.may_append() {
            inner.metrics.events.broadcasts_held.inc();
            return Err(e!(TryBroadcastError::Behind { event }));
        }
        inner.append(event).map_err(|error| match error {
            NotAppended::Full(event) => {
                inner.metrics.events.broadcasts_held.inc();
                e!(TryBroadcastError::Behind { event })
            }
            NotAppended::Failed(failed) => {
                e!(TryBroadcastError::Refused, inner.failed(failed))
            }
        })
    }

    /// Listens to the events that spokes send, with the default options.
    pub fn listen(&self, pattern: impl Into<Pattern>) -> Listener {
        self.listen_with(pattern.into(), ListenOptions::default())
    }

    /// The spokes as they are now, those that are away included.
    pub fn spokes(&self) -> Vec<SpokeInfo> {
        let everyone = self.inner.roster.everyone();
        let infos = everyone
            .iter()
            .map(|(session, link)| info(session, link.as_deref()));
        infos.collect()
    }

    /// How many spokes are connected.
    pub fn spoke_count(&self) -> usize {
        self.inner.roster.len()
    }

    /// Watches spokes come and go from now on.
    pub fn watch_spokes(&self) -> SpokeWatch {
        SpokeWatch(self.inner.roster.watch())
    }

    /// Who may connect.
    pub fn admission(&self) -> &Admission {
        &self.inner.config.admission
    }

    /// Changes how broadcasts reach the spokes.
    pub async fn set_fan_out(&self, fan_out: FanOut) {
        self.inner.note(Note::FanOut(fan_out)).await;
    }

    /// The position after the last event that spokes can have: the next event gets it, unless there are
    /// some that wait for the disk.
    pub fn tip(&self) -> Position {
        self.inner.log.tip_position()
    }

    /// Resolves when the durable log cannot be written, so that no event is broadcast any more, or when
    /// the hub has ended. Never resolves with a log in memory.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only looks.
    pub async fn log_failed(&self) -> LogFailed {
        self.inner.log.failed().await
    }

    /// For tests.
    pub(crate) async fn panic_switchboard(&self) {
        self.inner.note(Note::Panic).await;
    }

    /// The hub's node on the topic.
    pub(crate) fn topic_node(&self) -> Option<GossipNode<HubGate>> {
        self.inner.node()
    }

    /// How the hub does, and what is wrong if something is.
    ///
    /// It is found anew with each call, by looking at every spoke. Whether a backlog grows takes some
    /// seconds to be seen.
    pub fn health(&self) -> Health {
        self.inner.examine(&self.inner.roster.all())
    }

    /// What the hub counts, to be read or [registered](crate::metrics).
    pub fn metrics(&self) -> &HubMetrics {
        &self.inner.metrics
    }

    /// Ends the hub: takes no more events and spokes, lets every spoke have what is left within
    /// [`HubLimits::drain_timeout`], says goodbye, and joins every task. If the hub was
    /// [spawned](HubBuilder::spawn), its endpoint is closed too.
    ///
    /// Returns who did not have everything.
    pub async fn shutdown(&self) -> Drained {
        self.shutdown_within(self.inner.config.limits.drain_timeout)
            .await
    }

    /// As [`shutdown`](Self::shutdown), with another limit.
    pub async fn shutdown_within(&self, mut limit: Duration) -> Drained {
        bound([&mut limit]);
        let drained = self.inner.drain(limit).await;
        if self.takes_all {
            // Everyone has been told; what is left is that QUIC forgets the connections.
            let endpoint = self.inner.endpoint.clone();
            let closing = tokio::spawn(async move { endpoint.close().await });
            if timeout(CLOSE_LIMIT, closing).await.is_err() {
                debug!("the endpoint closes in the background");
            }
        }
        drained
    }
}

/// How often a waiting broadcast looks again though nobody acknowledged.
const PACE_POLL: Duration = Duration::from_millis(20);
/// How long the hub's own endpoint may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);
/// How long tasks may take to end once they are told to.
const JOIN_LIMIT: Duration = Duration::from_secs(10);

/// The log of the settings, and the task that writes it if it is durable.
fn open_log(
    hub: EndpointId,
    config: &HubConfig,
    metrics: &Arc<LogMetrics>,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> Result<Arc<SharedLog>, HubError> {
    #[cfg(feature = "durable")]
    if let Some(path) = &config.log_file {
        let (log, writer) = log_writer::open(path, hub, config, metrics.clone())
            .map_err(|source| e!(HubError::Log, source))?;
        tasks.spawn(writer.run(cancel.clone()));
        return Ok(log);
    }
    let _ = (hub, metrics, tasks, cancel);
    Ok(Arc::new(SharedLog::new(config.log)))
}

/// Whether a spoke whose link ended so may go on with another. One that said goodbye or was sent away for
/// what it did may not.
fn may_come_back(closed: &Closed) -> bool {
    match closed {
        Closed::Lost { .. } => true,
        Closed::ByPeer { code, .. } => *code != CloseCode::Goodbye,
        Closed::ByUs { code, .. } => matches!(
            code,
            CloseCode::TimedOut | CloseCode::FellBehind | CloseCode::Internal | CloseCode::NewEpoch
        ),
    }
}

fn info(session: &Session, link: Option<&Link>) -> SpokeInfo {
    let paths = link.map(|link| link.connection.paths());
    let selected = paths
        .as_ref()
        .and_then(|paths| paths.iter().find(|path| path.is_selected()));
    SpokeInfo {
        id: session.id,
        addr: selected.as_ref().map(|path| path.remote_addr().clone()),
        protocol: session.protocol,
        gossip_capable: link.is_some_and(Link::gossips),
        path: link.map_or(Path::Direct, Link::path),
        rtt: selected.as_ref().map(|path| path.rtt()),
        acked: link.map_or_else(|| session.acked(), Link::acked),
        away: link.is_none(),
    }
}

impl Inner {
    fn check(&self, event: &Envelope) -> Result<(), BroadcastError> {
        if self.is_ending() {
            return Err(e!(BroadcastError::Closed));
        }
        let limit = self.config.limits.max_event_bytes;
        if event.size() > limit {
            return Err(e!(BroadcastError::TooLarge {
                len: event.size(),
                limit
            }));
        }
        Ok(())
    }

    fn append(self: &Arc<Self>, event: Envelope) -> Result<Receipt, NotAppended> {
        let size = event.size() as u64;
        let position = self.log.append(event)?;
        self.metrics.events.events_broadcast.inc();
        self.metrics.events.broadcast_bytes.inc_by(size);
        Ok(Receipt::new(position, self.clone()))
    }

    fn failed(&self, source: LogFailed) -> BroadcastError {
        if self.closing.load(Ordering::Acquire) || self.cancel.is_cancelled() {
            return e!(BroadcastError::Closed);
        }
        e!(BroadcastError::Log { source })
    }

    /// Whether the spokes that count are near enough to the tip.
    fn may_append(&self) -> bool {
        let limits = &self.config.limits;
        let tip = self.log.tip();
        let bytes = self.log.bytes_appended();
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        if tip < paces.clear.0 && bytes < paces.clear.1 {
            return true;
        }
        let now = std::time::Instant::now();
        let behind = self.log.back_by(tip, limits.pace_events, limits.pace_bytes);
        let fast = self.fast_acks(None);
        let floor = paces.fast.floor(now, behind, fast.into_iter());
        if floor.is_some_and(|floor| floor < behind) {
            return false;
        }
        let log = &self.config.log;
        let (half_events, half_bytes) = (log.max_events as u64 / 2, log.max_bytes as u64 / 2);
        let mut half = self.log.back_by(tip, half_events, half_bytes);
        if half + 1 == tip && self.log.bytes_from(half) > half_bytes {
            // The next one may take the place of the last.
            half = tip;
        }
        if half > self.log.head() {
            let all = self.roster.all();
            let acks = all.iter().map(|link| (link.id, link.has()));
            let floor = paces.all.floor(now, half, acks);
            if floor.is_some_and(|floor| floor < half) {
                // Most acknowledge rarely: whoever is waited for is asked, once for each time.
                for link in all.iter().filter(|link| link.acked() < half) {
                    link.session.await_ack(half);
                }
                return false;
            }
        }
        // A small log would be run through before the next look.
        paces.clear = (
            tip + limits.pace_events.min(half_events) / LOOK_AGAIN,
            bytes + limits.pace_bytes.min(half_bytes) / LOOK_AGAIN,
        );
        true
    }

    /// What the spokes that acknowledge fast have, of those on one path or of all.
    fn fast_acks(&self, path: Option<Path>) -> Vec<(SpokeId, Has)> {
        self.roster
            .all()
            .iter()
            .filter(|link| link.fast.load(Ordering::Acquire))
            .filter(|link| path.is_none_or(|path| link.path() == path))
            .map(|link| (link.id, link.has()))
            .collect()
    }

    async fn note(&self, note: Note) {
        // The switchboard never waits on a link, so this is short; it ends with the hub.
        tokio::select! {
            _ = self.notes.send(note) => {}
            () = self.cancel.cancelled() => {}
        }
    }

    fn ack_every_ms(&self) -> u32 {
        ack_share::ack_every_ms(self.roster.len(), self.config.limits.acks_per_s)
    }

    /// Makes a stream a spoke, or the new link of one that comes back.
    async fn join(&self, asked: Asked, connection: Connection) -> Result<Arc<Link>, LinkError> {
        let cancel = self.cancel.child_token();
        let behind = self.config.limits.behind;
        let make = |given| Link::new(given, connection, asked.start, behind, cancel);
        let floor = || match self.config.admission.is_denied(&asked.endpoint) {
            // Since its connection was let in.
            true => Err(LinkError::gone(revoked())),
            false => Ok(self.floors().of(asked.endpoint)),
        };
        let (link, promoted) = self.roster.join(asked, floor, || self.log.tip(), make)?;
        // Where it goes on says what it has.
        self.progress.notify_waiters();
        let all_fast = ack_share::all_are_fast(self.roster.len());
        link.fast.store(all_fast, Ordering::Release);
        for id in [Some(link.id), promoted].into_iter().flatten() {
            self.note(Note::Spoke(id)).await;
        }
        Ok(link)
    }

    /// Where a spoke begins that asks for this. If it comes from beyond the tip of a durable log, that
    /// begins a new epoch first, and everyone connects again.
    async fn begin(&self, ask: Ask) -> Begin {
        let begin = self.log.resume(ask);
        if !begin.resume.begins_new_epoch || !self.log.begin_epoch().await {
            return begin;
        }
        for link in self.roster.all() {
            link.wake.notify_one();
        }
        self.log.resume(ask)
    }

    async fn leave(&self, link: &Link, closed: &Closed) {
        let broke_off = match closed {
            Closed::ByPeer { .. } => false,
            Closed::ByUs { code, .. } => !matches!(code, CloseCode::Goodbye | CloseCode::Fenced),
            Closed::Lost { .. } => true,
        };
        if broke_off && !link.is_served(self.log.tip()) {
            link.cut_off.store(true, Ordering::Release);
        }
        link.cancel.cancel();
        // A spoke that gave the attempt up before the welcome came does not know the session.
        let gave_up = matches!(
            closed,
            Closed::ByPeer {
                code: CloseCode::TimedOut,
                ..
            }
        );
        let unknown = gave_up && !link.session.is_known();
        let may_come_back = !unknown && !self.is_ending() && may_come_back(closed);
        for id in self
            .roster
            .leave(link, closed, may_come_back, || self.log.tip())
        {
            self.note(Note::Spoke(id)).await;
        }
        self.progress.notify_waiters();
    }

    fn is_ending(&self) -> bool {
        self.closing.load(Ordering::Acquire) || self.cancel.is_cancelled()
    }

    /// Whether a receipt may ask one more spoke to acknowledge at once.
    fn may_ask(&self) -> bool {
        let mut asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
        asks.take(1, Instant::now())
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn budget(&self) -> MutexGuard<'_, Budget<Payer<SpokeId>>> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the budget has room for a batch. If not, the link is woken when it is its turn.
    fn ask_budget(&self, id: SpokeId) -> bool {
        let now = std::time::Instant::now();
        let room = self.budget().ask(now, Payer::Spoke(id));
        if !room {
            self.metrics.repair.held.inc();
            self.budget_line.notify_one();
        }
        room
    }

    fn spend(&self, bytes: u64) {
        if bytes > 0 {
            self.metrics.repair.bytes.inc_by(bytes);
            self.budget().spend(bytes);
        }
    }

    fn set_topic(&self, topic: Option<CurrentTopic>) {
        *self.topic.lock().unwrap_or_else(PoisonError::into_inner) = topic;
    }

    /// The topic that spokes are on, if any.
    fn topic(&self) -> Option<CurrentTopic> {
        self.topic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn node(&self) -> Option<GossipNode<HubGate>> {
        self.topic().map(|topic| topic.node)
    }

    /// Whom our node on a topic may have connections with: our spokes, and nobody else.
    fn admits(self: &Arc<Self>) -> Admits {
        let hub = Arc::downgrade(self);
        Arc::new(move |id| hub.upgrade().is_some_and(|hub| hub.roster.knows(*id)))
    }

    fn floors(&self) -> MutexGuard<'_, Floors> {
        self.floors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until what was appended before a spoke was admitted can be read by others, so that the spoke begins behind
    /// it; not for long.
    async fn reaches(&self, floor: u64) {
        let mut tip = self.log.watch_tip();
        let reached = async {
            while self.log.tip() < floor && self.log.failure().is_none() {
                if tip.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(self.config.limits.hello_timeout, reached)
            .await
            .is_err()
        {
            debug!(floor, "the log has not been synced in time");
        }
    }

    /// Takes a gossip connection, if it is one of our spokes'.
    fn accept_gossip(&self, connection: Connection) {
        let remote = connection.remote_id();
        if !self.roster.knows(remote) {
            self.metrics.admission.refused.inc();
            let (protocol, reason) = ("gossip", NOT_ADMITTED);
            debug!(target: events::REFUSED, remote = %remote.fmt_short(), %protocol, %reason);
            let code = CloseCode::Refused.to_varint();
            return connection.close(code, reason.as_bytes());
        }
        match self.node() {
            Some(node) => node.handle_connection(connection),
            None => {
                let code = CloseCode::NotAMember.to_varint();
                connection.close(code, b"there is no topic");
            }
        }
    }

    /// Takes a connection of any of the hub's protocols. Never waits.
    fn take(self: &Arc<Self>, connection: Connection) {
        if self.closing.load(Ordering::Acquire) {
            let code = CloseCode::Goodbye.to_varint();
            return connection.close(code, b"the hub is shutting down");
        }
        match Protocol::from_alpn(connection.alpn()) {
            Some(protocol) => {
                let arrived = self.crowd.arrives(&connection);
                let serving = connection::run(self.clone(), connection, protocol);
                // On a task of our own: a panic in it must not reach the router.
                self.tasks.spawn(async move {
                    let _arrived = arrived;
                    serving.await;
                });
            }
            None => self.accept_gossip(connection),
        }
    }

    async fn drain(&self, limit: Duration) -> Drained {
        self.closing.store(true, Ordering::Release);
        self.roster.close(|| self.log.tip());
        let deadline = Instant::now() + limit;
        // What is not synced yet is still to be sent.
        let _ = timeout_at(deadline, self.log.flushed()).await;
        let links = self.roster.all();
        // The topic shrinks as spokes leave; it is not to be mended any more.
        if let Some(node) = self.node() {
            node.stop_dialing();
        }
        for link in &links {
            link.drain(self.log.tip());
        }
        let mut drained = Drained::default();
        for link in &links {
            let ended = timeout_at(deadline, link.cancel.cancelled()).await;
            if ended.is_err() || link.cut_off.load(Ordering::Acquire) {
                drained.behind.push(info(&link.session, Some(link)));
            }
        }
        for info in &drained.behind {
            debug!(spoke = %info.id.fmt_short(), acked = info.acked, "did not take everything in time");
        }
        self.cancel.cancel();
        self.tasks.close();
        if timeout(JOIN_LIMIT, self.tasks.wait()).await.is_err() {
            warn!("tasks of the hub did not end in time");
        }
        self.listeners.close();
        drained
    }
}

fn revoked() -> Closed {
    Closed::by_us(CloseCode::Refused, REVOKED)
}

impl Guards for Inner {
    fn revoked(&self, ids: &[EndpointId]) {
        // Nobody new of these is let in by now.
        let mut members = Vec::new();
        for id in ids {
            let (links, was_member) = self.roster.revoke(*id, &revoked(), || self.log.tip());
            members.extend(was_member.then_some(*id));
            // Before the links end, so that this is what the peer hears. Those of former links too, and those that are none
            // yet.
            self.open.close(*id, CloseCode::Refused, REVOKED);
            for link in links {
                link.revoke();
            }
            self.metrics.admission.revoked.inc();
            debug!(target: events::REVOKED, remote = %id.fmt_short());
        }
        // A topic that begins after this is one that they are not told of.
        if let Some(topic) = self.topic() {
            topic.revoke(&members);
        }
        self.revoked.notify_one();
        self.progress.notify_waiters();
    }

    fn admitted(&self, ids: &[EndpointId], were_denied: bool) {
        if self.config.history {
            return;
        }
        // Who is here was let in before, by a decision or before it was denied.
        let here = |id: &EndpointId| match were_denied {
            true => self.roster.is_connected(*id),
            false => self.roster.knows(*id),
        };
        let ids: Vec<_> = ids.iter().copied().filter(|id| !here(id)).collect();
        let (floor, head) = (self.log.appended(), self.log.head());
        self.floors().set(&ids, floor, head);
    }
}

impl ProtocolHandler for Hub {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        self.inner.take(connection);
        Ok(())
    }

    async fn shutdown(&self) {
        let limit = self.inner.config.limits.drain_timeout;
        self.inner.drain(limit).await;
    }
}

impl EventTarget for Hub {
    fn dispatch(&self, event: Envelope) -> Dispatching<'_> {
        Box::pin(async move {
            match self.broadcast(event).await {
                Ok(_) => Ok(()),
                Err(error) => Err(e!(DispatchError::Target {
                    source: AnyError::from_stack(error)
                })),
            }
        })
    }

    fn listen_with(&self, pattern: Pattern, options: ListenOptions) -> Listener {
        self.inner.listeners.add(pattern, options)
    }
}

//! The spoke: its handle, and the tasks around it.
//!
//! Three tasks a spoke: the session (`session`, or `compat` for the plain protocol) takes events in, puts
//! them in order and makes a new link when one is lost; the `writer` sends what the `outbox` has, one task
//! a link; and the deliverer waits for listeners without room, as their policies say. What is decided, and not merely done, is sans-IO: `reception` and `backoff`.

pub(crate) mod backoff;
mod builder;
mod compat;
mod config;
mod deliverer;
mod error;
mod hands;
mod link;
pub(crate) mod member;
pub(crate) mod outbox;
pub(crate) mod reception;
mod session;
mod shared;
mod status;
mod writer;

use std::{sync::Arc, time::Duration};

use iroh::{Endpoint, EndpointAddr, EndpointId, protocol::Router};
use n0_error::{AnyError, e};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, info_span};

pub use self::{
    backoff::Reconnect,
    builder::SpokeBuilder,
    config::{From, Gossip, SpokeLimits},
    error::{ConnectError, SpokeSendError},
    member::GossipAcceptor,
    status::{SpokeStatus, StatusWatch},
};
use self::{
    config::SpokeConfig,
    deliverer::{Deliverer, Deliveries, deliver_all, deliverer},
    outbox::Lost,
    session::Session,
    shared::Shared,
};
use crate::{
    close::{CloseCode, Closed},
    delivery::{Loss, SendReceipt},
    event::Envelope,
    gossip::GOSSIP_ALPN,
    listen::{ListenOptions, Listener, Listeners},
    metrics::SpokeMetrics,
    pattern::Pattern,
    position::Position,
    protocol::Protocol,
    target::{DispatchError, Dispatching, EventTarget},
};

/// How many events may wait between the inbox and the listeners.
const DELIVERIES: usize = 256;

/// How long the spoke's own endpoint may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// A spoke: hears what its hub broadcasts and sends it, and sends events to the hub.
///
/// When its link is lost, it [comes back](Reconnect) by itself and goes on where it was; [`watch`](Self::watch)
/// tells. Cloning is cheap: clones are the same spoke. End it with [`shutdown`](Self::shutdown); dropping the
/// last clone ends it at once.
#[derive(Clone, Debug)]
pub struct Spoke {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    hub: EndpointId,
    endpoint: Endpoint,
    shared: Arc<Shared>,
    listeners: Arc<Listeners>,
    router: Option<Router>,
    /// Asks for the end in order: what is left is written, and the stream finished.
    finish: CancellationToken,
    cancel: CancellationToken,
    /// The session has ended, and let out what there was.
    let_out: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A spoke whose session does not run yet.
struct Parts {
    endpoint: Endpoint,
    hub: EndpointAddr,
    shared: Arc<Shared>,
    acceptor: GossipAcceptor,
    /// Whether the spoke needs a router of its own for gossip.
    routes: bool,
    finish: CancellationToken,
    cancel: CancellationToken,
    listeners: Arc<Listeners>,
    deliver: Deliverer,
    deliveries: Deliveries,
}

impl Spoke {
    /// Begins to make a spoke.
    pub fn builder() -> SpokeBuilder {
        SpokeBuilder::default()
    }

    /// Connects to the hub at an address (or the address in a ticket) with the default settings.
    ///
    /// # Errors
    ///
    /// As [`SpokeBuilder::connect`].
    pub async fn connect(
        endpoint: Endpoint,
        hub: impl Into<EndpointAddr>,
    ) -> Result<Self, ConnectError> {
        Self::builder().connect(endpoint, hub).await
    }

    async fn connected(
        endpoint: Endpoint,
        hub: EndpointAddr,
        config: SpokeConfig,
        acceptor: Option<GossipAcceptor>,
    ) -> Result<Self, ConnectError> {
        let parts = Parts::new(endpoint, hub, config, acceptor);
        let (shared, finish, cancel) = parts.handles();
        match shared.config.protocol {
            Protocol::Native => {
                let mut session = parts.session();
                session.connect().await?;
                Ok(parts.run(session.run(cancel)))
            }
            Protocol::Compat => {
                let (endpoint, hub) = (parts.endpoint.clone(), parts.hub.clone());
                let greeted = compat::connect(endpoint, hub, &shared).await?;
                let deliver = parts.deliver.clone();
                Ok(parts.run(compat::run(greeted, shared, deliver, finish, cancel)))
            }
        }
    }

    fn spawned(
        endpoint: Endpoint,
        hub: EndpointAddr,
        config: SpokeConfig,
        acceptor: Option<GossipAcceptor>,
    ) -> Self {
        let parts = Parts::new(endpoint, hub, config, acceptor);
        let (shared, finish, cancel) = parts.handles();
        match shared.config.protocol {
            Protocol::Native => {
                let session = parts.session();
                parts.run(session.run(cancel))
            }
            Protocol::Compat => {
                let (endpoint, hub) = (parts.endpoint.clone(), parts.hub.clone());
                let deliver = parts.deliver.clone();
                parts.run(async move {
                    let connected = tokio::select! {
                        connected = compat::connect(endpoint, hub, &shared) => connected,
                        () = cancel.cancelled() => return,
                    };
                    match connected {
                        Ok(greeted) => {
                            compat::run(greeted, shared, deliver, finish, cancel).await;
                        }
                        Err(error) => shared.end(error.closed()),
                    }
                })
            }
        }
    }

    /// The hub's id.
    pub fn hub(&self) -> EndpointId {
        self.inner.hub
    }

    /// The endpoint that the spoke runs on.
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// Sends an event to the hub: queues it, waiting for room for [`SpokeLimits::send_wait`] at most. While
    /// there is no link it is queued too, and sent when there is one again.
    ///
    /// The receipt tells what became of it; so does [`flush`](Self::flush), for all.
    ///
    /// # Errors
    ///
    /// If the event is too large, the hub takes nothing, or the spoke has ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if the future is dropped before it resolves, the event was not queued.
    pub async fn send(&self, event: Envelope) -> Result<SendReceipt, SpokeSendError> {
        let shared = &self.inner.shared;
        let limit = shared.max_event_bytes();
        if event.size() > limit {
            return Err(e!(SpokeSendError::TooLarge {
                len: event.size(),
                limit
            }));
        }
        let deadline = Instant::now() + shared.config.limits.send_wait;
        let receipt = self
            .wait(deadline, |closed| match closed {
                None => shared.outbox.try_send(&event).map(Ok),
                Some(closed) => Some(Err(e!(SpokeSendError::Closed { closed }))),
            })
            .await?;
        shared.metrics.link.events_sent.inc();
        if let Some(closed) = shared.statuses.closed() {
            // It ended between the look and the queue, which nobody reads any more.
            shared.close_outbox(&closed);
        }
        Ok(receipt)
    }

    /// Waits until it is known what became of every event sent so far: the hub has acknowledged it, or it
    /// is lost. Over the compat protocol, which cannot acknowledge, until they are written.
    ///
    /// # Errors
    ///
    /// [`SpokeSendError::Lost`] if something that was sent since the last flush is lost;
    /// [`SpokeSendError::Stalled`] if it takes longer than [`SpokeLimits::send_wait`].
    pub async fn flush(&self) -> Result<(), SpokeSendError> {
        let shared = &self.inner.shared;
        let deadline = Instant::now() + shared.config.limits.send_wait;
        let settled = |_| shared.outbox.is_empty().then_some(Ok(()));
        self.wait(deadline, settled).await?;
        match shared.outbox.lost() {
            Lost {
                not_delivered: 0,
                maybe_delivered: 0,
                ..
            } => Ok(()),
            Lost {
                not_delivered,
                maybe_delivered,
                reason,
            } => Err(e!(SpokeSendError::Lost {
                not_delivered,
                maybe_delivered,
                reason: reason.unwrap_or(Loss::Internal),
            })),
        }
    }

    /// Waits until `done`, which is told how the spoke ended if it has, gives something; asks whenever the hub
    /// has taken something.
    async fn wait<T>(
        &self,
        deadline: Instant,
        done: impl Fn(Option<Closed>) -> Option<Result<T, SpokeSendError>>,
    ) -> Result<T, SpokeSendError> {
        let shared = &self.inner.shared;
        let mut changes = shared.statuses.changes();
        loop {
            let taken = shared.outbox.taken.notified();
            tokio::pin!(taken);
            taken.as_mut().enable();
            if let Some(result) = done(shared.statuses.closed()) {
                return result;
            }
            tokio::select! {
                waited = timeout_at(deadline, taken) => if waited.is_err() {
                    return Err(e!(SpokeSendError::Stalled));
                },
                _ = changes.changed() => {}
            }
        }
    }

    /// Listens to what the hub broadcasts and sends, with the default options.
    ///
    /// Events wait for the first listener of a new spoke for a short time
    /// ([`SpokeLimits::first_listener_wait`]), so that none is lost between connecting and listening.
    pub fn listen(&self, pattern: impl Into<Pattern>) -> Listener {
        self.listen_with(pattern.into(), ListenOptions::default())
    }

    /// The position of the next broadcast that listeners get. `None` over the compat protocol, and before the
    /// first welcome of a spoke that does not begin at a [position](From::Position).
    ///
    /// Events before it may still wait in the queues of listeners. To go on after a restart without losing
    /// one, save what you have handled instead: [`Event::position`](crate::Event::position), and the
    /// [`next`](Position::next) after it; and [`Missed::to`](crate::Missed::to).
    pub fn position(&self) -> Option<Position> {
        self.inner.shared.position()
    }

    /// How the link stands: [`Connected`](SpokeStatus::Connected),
    /// [`Reconnecting`](SpokeStatus::Reconnecting) or [`Closed`](SpokeStatus::Closed). `None` before the first
    /// attempt of a spoke that was [spawned](SpokeBuilder::spawn) has ended.
    pub fn status(&self) -> Option<SpokeStatus> {
        self.inner.shared.statuses.now()
    }

    /// Watches what becomes of the link from now on. It tells at once; a listener can have the same in its
    /// place among the events ([`ListenOptions::statuses`]).
    pub fn watch(&self) -> StatusWatch {
        self.inner.shared.statuses.watch()
    }

    /// Whether the topic serves this spoke now.
    pub fn is_on_topic(&self) -> bool {
        self.inner.shared.is_served()
    }

    /// The round-trip time to the hub; `None` while there is no link.
    pub fn rtt(&self) -> Option<Duration> {
        self.inner.shared.rtt()
    }

    /// How the spoke ended, if it has. While it [reconnects](SpokeStatus::Reconnecting) it has not.
    pub fn is_closed(&self) -> Option<Closed> {
        self.inner.shared.statuses.closed()
    }

    /// Waits for the end of the spoke. Listeners may still have events to take.
    pub async fn closed(&self) -> Closed {
        let statuses = &self.inner.shared.statuses;
        let mut changes = statuses.changes();
        loop {
            if let Some(closed) = statuses.closed() {
                return closed;
            }
            if changes.changed().await.is_err() {
                return Closed::by_us(CloseCode::Internal, "the spoke's task failed");
            }
        }
    }

    /// What the spoke counts, to be read or [registered](crate::metrics).
    pub fn metrics(&self) -> &SpokeMetrics {
        &self.inner.shared.metrics
    }

    /// Ends the spoke: lets the hub take what was sent within [`SpokeLimits::drain_timeout`], leaves
    /// the topic, says goodbye and joins every task. If the spoke brought a router, that and the
    /// endpoint are closed too.
    pub async fn shutdown(&self) {
        let inner = &*self.inner;
        inner.finish.cancel();
        let limit = inner.shared.config.limits.drain_timeout;
        let _ = timeout(limit, inner.let_out.cancelled()).await;
        inner.cancel.cancel();
        // Listeners that nobody reads hold the deliverer; they are ended, not waited for.
        inner.listeners.close();
        let _ = timeout(limit, inner.tasks.wait()).await;
        if let Some(router) = &inner.router {
            // The hub has been told; what is left is that QUIC forgets the connections.
            match timeout(CLOSE_LIMIT, router.shutdown()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "the spoke's router failed"),
                Err(_) => debug!("the endpoint closes in the background"),
            }
        }
    }
}

impl Parts {
    fn new(
        endpoint: Endpoint,
        hub: EndpointAddr,
        mut config: SpokeConfig,
        acceptor: Option<GossipAcceptor>,
    ) -> Self {
        config.gossip = config.gossip.on(&endpoint);
        let gossips = config.protocol == Protocol::Native && config.gossip != Gossip::Off;
        let listeners = Arc::new(Listeners::unbegun(config.limits.first_listener_wait));
        let shared = Arc::new(Shared::new(config));
        let (deliver, deliveries) = deliverer(listeners.clone(), shared.clone(), DELIVERIES);
        Self {
            endpoint,
            hub,
            shared,
            listeners,
            routes: gossips && acceptor.is_none(),
            acceptor: acceptor.unwrap_or_default(),
            finish: CancellationToken::new(),
            cancel: CancellationToken::new(),
            deliver,
            deliveries,
        }
    }

    fn handles(&self) -> (Arc<Shared>, CancellationToken, CancellationToken) {
        let (finish, cancel) = (self.finish.clone(), self.cancel.clone());
        (self.shared.clone(), finish, cancel)
    }

    fn session(&self) -> Session {
        Session::new(
            self.endpoint.clone(),
            self.hub.clone(),
            self.shared.clone(),
            self.acceptor.clone(),
            self.deliver.clone(),
            self.finish.clone(),
        )
    }

    fn run(self, session: impl Future<Output = ()> + Send + 'static) -> Spoke {
        let Self {
            endpoint,
            hub,
            shared,
            acceptor,
            routes,
            finish,
            cancel,
            listeners,
            deliver,
            deliveries,
        } = self;
        // The session has one of its own, and ends the deliveries when it ends.
        drop(deliver);
        let router = routes.then(|| {
            Router::builder(endpoint.clone())
                .accept(GOSSIP_ALPN, acceptor)
                .spawn()
        });
        let span = info_span!("spoke", me = %endpoint.id().fmt_short(), hub = %hub.id.fmt_short());
        listeners.begin_grace();
        let tasks = TaskTracker::new();
        let let_out = CancellationToken::new();
        let ended = let_out.clone().drop_guard();
        let session = async move {
            session.await;
            drop(ended);
        };
        tasks.spawn(session.instrument(span.clone()));
        tasks.spawn(deliver_all(deliveries).instrument(span));
        tasks.close();
        Spoke {
            inner: Arc::new(Inner {
                hub: hub.id,
                endpoint,
                shared,
                listeners,
                router,
                finish,
                cancel,
                let_out,
                tasks,
            }),
        }
    }
}

impl EventTarget for Spoke {
    fn dispatch(&self, event: Envelope) -> Dispatching<'_> {
        Box::pin(async move {
            match self.send(event).await {
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

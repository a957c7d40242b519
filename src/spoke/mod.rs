//! The spoke: its handle, and the tasks around one link to a hub.
//!
//! Three tasks a spoke: the session (`native` or `compat`) takes events in and puts them in order, the
//! writer sends what the `outbox` has, and the deliverer hands events to the listeners and waits for
//! them as their policies say.

mod builder;
mod compat;
mod config;
mod error;
pub(crate) mod member;
mod native;
mod outbox;
pub(crate) mod reception;
mod status;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use iroh::{
    Endpoint, EndpointAddr, EndpointId,
    endpoint::{Connection, ConnectionError, RecvStream, SendStream},
    protocol::Router,
};
use n0_error::{AnyError, e};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, info_span};

pub use self::{
    builder::SpokeBuilder,
    config::{From, Gossip, SpokeLimits},
    error::{ConnectError, SpokeSendError},
    member::GossipAcceptor,
    status::SpokeStatus,
};
use self::{config::SpokeConfig, outbox::Outbox, reception::Reception};
use crate::{
    close::{CloseCode, Closed},
    event::Envelope,
    gossip::{GOSSIP_ALPN, GossipMetrics},
    link_io::{FrameReader, LinkError, write_all},
    listen::{Incoming, ListenOptions, Listener, Listeners},
    metrics::SpokeMetrics,
    pattern::Pattern,
    position::Position,
    protocol::Protocol,
    target::{DispatchError, Dispatching, EventTarget},
    wire::native::{MAX_FRAME, ToHub, ToSpoke, VERSION, Welcome},
};

/// How many events may wait between the inbox and the listeners.
const DELIVERIES: usize = 256;

/// How long the spoke's own endpoint may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// A spoke: hears what its hub broadcasts and sends it, and sends events to the hub.
///
/// Cloning is cheap: clones are the same spoke. End it with [`shutdown`](Self::shutdown); dropping the
/// last clone ends it at once.
#[derive(Clone, Debug)]
pub struct Spoke {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    hub: EndpointId,
    endpoint: Endpoint,
    connection: Connection,
    config: SpokeConfig,
    outbox: Arc<Outbox>,
    /// The largest event that may be sent: our own limit, or the hub's if that is lower.
    max_event_bytes: usize,
    listeners: Arc<Listeners>,
    shared: Option<Arc<native::Shared>>,
    closed: watch::Receiver<Option<Closed>>,
    router: Option<Router>,
    metrics: Arc<SpokeMetrics>,
    gossip_metrics: Arc<GossipMetrics>,
    /// Asks the writer to write what is left and finish the stream.
    finish: CancellationToken,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
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

    async fn start(
        endpoint: Endpoint,
        hub: EndpointAddr,
        config: SpokeConfig,
        acceptor: Option<GossipAcceptor>,
    ) -> Result<Self, ConnectError> {
        let deadline = Instant::now() + config.limits.connect_timeout;
        let metrics = Arc::<SpokeMetrics>::default();
        let mut reception = native::reception(hub.id, &config, metrics.clone());
        let shaking = shake_hands(&endpoint, hub, &config, &mut reception);
        let hands = timeout_at(deadline, shaking)
            .await
            .map_err(|_| e!(ConnectError::TimedOut))??;
        Ok(Self::run(
            endpoint, config, acceptor, hands, reception, metrics,
        ))
    }

    fn run(
        endpoint: Endpoint,
        config: SpokeConfig,
        acceptor: Option<GossipAcceptor>,
        hands: Hands,
        reception: Reception,
        metrics: Arc<SpokeMetrics>,
    ) -> Self {
        let Hands {
            connection,
            send,
            reader,
            welcome,
        } = hands;
        let hub = connection.remote_id();
        let gossip_metrics = Arc::<GossipMetrics>::default();
        let window = welcome
            .as_ref()
            .map_or(u64::MAX, |welcome| welcome.publish_window)
            .min(config.limits.send_buffer_bytes as u64);
        let outbox = Arc::new(Outbox::new(config.protocol, window));
        let max_event_bytes = welcome
            .as_ref()
            .and_then(|welcome| usize::try_from(welcome.max_event_bytes).ok())
            .map_or(config.limits.max_event_bytes, |hub| {
                hub.min(config.limits.max_event_bytes)
            });
        let listeners = Arc::new(Listeners::new(config.limits.first_listener_wait));
        let (deliver, deliveries) = mpsc::channel(DELIVERIES);
        let gossips = config.protocol == Protocol::Native && config.gossip == Gossip::Full;
        let (acceptor, router) = match acceptor {
            Some(acceptor) => (acceptor, None),
            None if gossips => {
                let acceptor = GossipAcceptor::new();
                let router = Router::builder(endpoint.clone())
                    .accept(GOSSIP_ALPN, acceptor.clone())
                    .spawn();
                (acceptor, Some(router))
            }
            None => (GossipAcceptor::new(), None),
        };
        let span = info_span!("spoke", me = %endpoint.id().fmt_short(), hub = %hub.fmt_short());
        let quit = CancellationToken::new();
        let (session, shared): (Session, _) = match welcome {
            Some(_) => {
                let (session, shared) = native::Session::new(native::Parts {
                    endpoint: endpoint.clone(),
                    hub,
                    config: config.clone(),
                    reception,
                    reader,
                    outbox: outbox.clone(),
                    deliver,
                    metrics: metrics.clone(),
                    gossip_metrics: gossip_metrics.clone(),
                    acceptor,
                });
                (Box::pin(session.run(quit.clone())), Some(shared))
            }
            None => (Box::pin(compat::run(hub, reader, deliver)), None),
        };
        let (closed_tx, closed) = watch::channel(None);
        let cancel = CancellationToken::new();
        let finish = CancellationToken::new();
        let tasks = TaskTracker::new();
        let ends = Ends {
            connection: connection.clone(),
            quit,
            closed: closed_tx,
            cancel: cancel.clone(),
        };
        let writer = write(send, outbox.clone(), finish.clone());
        tasks.spawn(ends.run(session, writer).instrument(span.clone()));
        let delivery = deliver_all(deliveries, listeners.clone(), shared.clone());
        tasks.spawn(delivery.instrument(span));
        tasks.close();
        Self {
            inner: Arc::new(Inner {
                hub,
                endpoint,
                connection,
                config,
                outbox,
                max_event_bytes,
                listeners,
                shared,
                closed,
                router,
                metrics,
                gossip_metrics,
                finish,
                cancel,
                tasks,
            }),
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

    /// Sends an event to the hub: queues it, waiting for room for [`SpokeLimits::send_wait`] at most.
    ///
    /// Whether the hub has it is told by [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// If the event is too large, the hub takes nothing, or the link has ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if the future is dropped before it resolves, the event was not queued.
    pub async fn send(&self, event: Envelope) -> Result<(), SpokeSendError> {
        let inner = &*self.inner;
        let limit = inner.max_event_bytes;
        if event.size() > limit {
            return Err(e!(SpokeSendError::TooLarge {
                len: event.size(),
                limit
            }));
        }
        let deadline = Instant::now() + inner.config.limits.send_wait;
        self.wait(deadline, |open| open && inner.outbox.try_send(&event))
            .await
    }

    /// Waits until the hub has acknowledged every event sent so far; over the compat protocol, which
    /// cannot acknowledge, until they are written.
    ///
    /// # Errors
    ///
    /// If that takes longer than [`SpokeLimits::send_wait`], or the link ends.
    pub async fn flush(&self) -> Result<(), SpokeSendError> {
        let deadline = Instant::now() + self.inner.config.limits.send_wait;
        self.wait(deadline, |_| self.inner.outbox.is_empty()).await
    }

    /// Waits until `done`, which is told whether the link is open, says so; looks whenever the hub has taken something.
    async fn wait(
        &self,
        deadline: Instant,
        done: impl Fn(bool) -> bool,
    ) -> Result<(), SpokeSendError> {
        let inner = &*self.inner;
        let mut closed = inner.closed.clone();
        loop {
            let taken = inner.outbox.taken.notified();
            tokio::pin!(taken);
            taken.as_mut().enable();
            let closed_now = self.is_closed();
            if done(closed_now.is_none()) {
                return Ok(());
            }
            if let Some(closed) = closed_now {
                return Err(e!(SpokeSendError::Closed { closed }));
            }
            tokio::select! {
                waited = timeout_at(deadline, taken) => if waited.is_err() {
                    return Err(e!(SpokeSendError::Stalled));
                },
                _ = closed.changed() => {}
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

    /// The position of the next broadcast that listeners get; `None` over the compat protocol.
    pub fn position(&self) -> Option<Position> {
        self.inner.shared.as_ref()?.position()
    }

    /// Whether the topic serves this spoke now.
    pub fn is_on_topic(&self) -> bool {
        self.inner
            .shared
            .as_ref()
            .is_some_and(|shared| shared.served.load(Ordering::Acquire))
    }

    /// The round-trip time to the hub.
    pub fn rtt(&self) -> Option<Duration> {
        let paths = self.inner.connection.paths();
        paths
            .iter()
            .find(|path| path.is_selected())
            .map(|path| path.rtt())
    }

    /// How the link to the hub ended, if it has.
    pub fn is_closed(&self) -> Option<Closed> {
        self.inner.closed.borrow().clone()
    }

    /// Waits for the end of the link to the hub. Listeners may still have events to take.
    pub async fn closed(&self) -> Closed {
        let mut closed = self.inner.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(closed) => closed.clone(),
            Err(_) => None,
        }
        .unwrap_or_else(|| Closed::by_us(CloseCode::Internal, "the spoke's task failed"))
    }

    /// The spoke's counters.
    pub fn metrics(&self) -> &Arc<SpokeMetrics> {
        &self.inner.metrics
    }

    /// The counters of the spoke's node on the topic.
    pub fn gossip_metrics(&self) -> &Arc<GossipMetrics> {
        &self.inner.gossip_metrics
    }

    /// Ends the spoke: lets the hub take what was sent within [`SpokeLimits::drain_timeout`], leaves
    /// the topic, says goodbye and joins every task. If the spoke brought a router, that and the
    /// endpoint are closed too.
    pub async fn shutdown(&self) {
        let inner = &*self.inner;
        inner.finish.cancel();
        let limit = inner.config.limits.drain_timeout;
        let _ = timeout(limit, self.closed()).await;
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

/// How long a session may take to leave the topic.
const QUIT_LIMIT: Duration = Duration::from_secs(5);

type Session = std::pin::Pin<Box<dyn Future<Output = Closed> + Send>>;

/// A link that both sides have agreed on.
struct Hands {
    connection: Connection,
    send: SendStream,
    reader: FrameReader,
    /// `None` over the compat protocol.
    welcome: Option<Welcome>,
}

async fn shake_hands(
    endpoint: &Endpoint,
    hub: EndpointAddr,
    config: &SpokeConfig,
    reception: &mut Reception,
) -> Result<Hands, ConnectError> {
    let connection = endpoint
        .connect(hub, config.protocol.alpn())
        .await
        .map_err(|source| {
            refusal(&source).unwrap_or_else(|| e!(ConnectError::Unreachable, source))
        })?;
    let opening = async {
        let (send, recv) = connection.open_bi().await?;
        match config.protocol {
            Protocol::Compat => greet_plainly(send, recv, config).await,
            Protocol::Native => greet(send, recv, config, reception).await,
        }
    };
    match opening.await {
        Ok((send, reader, welcome)) => Ok(Hands {
            connection,
            send,
            reader,
            welcome,
        }),
        Err(error) => {
            // A stream fails a moment before the connection tells why.
            let closed = match connection.close_reason() {
                Some(reason) => Closed::from(&reason),
                None => error.closed(),
            };
            if let Closed::ByUs { code, reason } = &closed {
                connection.close(code.to_varint(), reason.as_bytes());
            }
            Err(match closed {
                Closed::ByPeer { code, reason } => e!(ConnectError::Refused { code, reason }),
                closed => e!(ConnectError::Broken { closed }),
            })
        }
    }
}

/// The hub's own words, if it closed the connection while it was being made.
fn refusal(error: &iroh::endpoint::ConnectError) -> Option<ConnectError> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<ConnectionError>()
            && let Closed::ByPeer { code, reason } = Closed::from(error)
        {
            return Some(e!(ConnectError::Refused { code, reason }));
        }
        source = error.source();
    }
    None
}

type Greeted = (SendStream, FrameReader, Option<Welcome>);

async fn greet_plainly(
    mut send: SendStream,
    recv: RecvStream,
    config: &SpokeConfig,
) -> Result<Greeted, LinkError> {
    // The hub's `accept_bi` waits for the first bytes.
    send.write_chunk(crate::wire::compat::EMPTY_FRAME).await?;
    let limits = &config.limits;
    let max_frame = limits.max_event_bytes + crate::wire::compat::FRAME_OVERHEAD;
    let reader = FrameReader::new(recv, max_frame, limits.frame_timeout);
    Ok((send, reader, None))
}

async fn greet(
    mut send: SendStream,
    recv: RecvStream,
    config: &SpokeConfig,
    reception: &mut Reception,
) -> Result<Greeted, LinkError> {
    let hello = ToHub::Hello(reception.hello());
    let mut chunks = Vec::new();
    hello.encode(&mut chunks);
    write_all(&mut send, &mut chunks).await?;
    let mut reader = FrameReader::new(recv, MAX_FRAME, config.limits.frame_timeout);
    loop {
        let Some(frame) = reader.next().await? else {
            return Err(e!(LinkError::Misbehaved {
                what: "the stream ended before the hub's welcome"
            }));
        };
        match ToSpoke::decode(frame)? {
            Some(ToSpoke::Welcome(welcome)) => {
                if welcome.version != VERSION {
                    return Err(e!(LinkError::Version {
                        theirs: welcome.version,
                        ours: VERSION
                    }));
                }
                reception.welcomed(std::time::Instant::now(), &welcome)?;
                return Ok((send, reader, Some(welcome)));
            }
            Some(_) => {
                return Err(e!(LinkError::Misbehaved {
                    what: "the first frame is not a welcome"
                }));
            }
            // A kind that we do not know is passed over.
            None => {}
        }
    }
}

/// Sees the link to its end, whichever half ends first.
struct Ends {
    connection: Connection,
    /// Asks the session to leave the topic and end.
    quit: CancellationToken,
    closed: watch::Sender<Option<Closed>>,
    cancel: CancellationToken,
}

impl Ends {
    async fn run(self, mut session: Session, writer: impl Future<Output = Result<(), LinkError>>) {
        let closed = {
            tokio::pin!(writer);
            tokio::select! {
                closed = &mut session => closed,
                written = &mut writer => match written {
                    // The spoke finished its stream: goodbye.
                    Ok(()) => {
                        self.quit.cancel();
                        let _ = timeout(QUIT_LIMIT, &mut session).await;
                        Closed::by_us(CloseCode::Goodbye, "the spoke says goodbye")
                    }
                    Err(error) => self.after_write_error(error, &mut session).await,
                },
                () = self.cancel.cancelled() => Closed::by_us(CloseCode::Goodbye, "the spoke ended"),
            }
        };
        let closed = match (closed, self.connection.close_reason()) {
            (Closed::ByPeer { code, .. }, Some(reason)) if code != CloseCode::Goodbye => {
                Closed::from(&reason)
            }
            (closed, _) => closed,
        };
        let (code, reason) = match &closed {
            Closed::ByUs { code, reason } => (*code, reason.as_str()),
            _ => (CloseCode::Goodbye, "goodbye"),
        };
        self.connection.close(code.to_varint(), reason.as_bytes());
        debug!(%closed, "the link to the hub has ended");
        drop(session);
        self.closed.send_replace(Some(closed));
    }

    /// The hub no longer reads, but what it wrote before is still to be taken: the session sees the
    /// end of it.
    async fn after_write_error(&self, error: LinkError, session: &mut Session) -> Closed {
        let limit = Duration::from_secs(10);
        match timeout(limit, session).await {
            Ok(closed) => closed,
            Err(_) => error.closed(),
        }
    }
}

async fn write(
    mut send: SendStream,
    outbox: Arc<Outbox>,
    finish: CancellationToken,
) -> Result<(), LinkError> {
    let mut chunks = Vec::new();
    loop {
        outbox.next_batch(&mut chunks);
        if !chunks.is_empty() {
            write_all(&mut send, &mut chunks).await?;
            outbox.taken.notify_waiters();
            continue;
        }
        if finish.is_cancelled() && outbox.is_empty() {
            let _ = send.finish();
            let stopped = timeout(Duration::from_secs(5), send.stopped()).await;
            debug!(?stopped, "finished the stream");
            return Ok(());
        }
        tokio::select! {
            () = outbox.wake.notified() => {}
            () = outbox.taken.notified(), if finish.is_cancelled() => {}
            () = finish.cancelled(), if !finish.is_cancelled() => {}
        }
    }
}

async fn deliver_all(
    mut deliveries: mpsc::Receiver<Incoming>,
    listeners: Arc<Listeners>,
    shared: Option<Arc<native::Shared>>,
) {
    while let Some(item) = deliveries.recv().await {
        let position = match &item {
            Incoming::Event(event) => event.position.map(Position::next),
            Incoming::Missed(missed) => Some(missed.to),
            Incoming::Lagged(_) | Incoming::Status(_) => None,
        };
        listeners.dispatch(item).await;
        if let (Some(shared), Some(position)) = (&shared, position) {
            shared.set_position(position);
        }
    }
    listeners.close();
}

impl EventTarget for Spoke {
    fn dispatch(&self, event: Envelope) -> Dispatching<'_> {
        Box::pin(async move {
            self.send(event).await.map_err(|error| {
                e!(DispatchError::Target {
                    source: AnyError::from_stack(error)
                })
            })
        })
    }

    fn listen_with(&self, pattern: Pattern, options: ListenOptions) -> Listener {
        self.inner.listeners.add(pattern, options)
    }
}

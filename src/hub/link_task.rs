//! The task of one spoke: a reader and a writer over its stream, from hello to goodbye.

use std::{panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use iroh::endpoint::{Connection, RecvStream, SendStream, StoppedError};
use n0_error::e;
use n0_future::{FutureExt, FuturesUnorderedBounded, StreamExt};
use tokio::{
    task::coop::consume_budget,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{Instrument, debug, error, info_span};

use super::{
    Inner, desk::Batch, link::Link, roster::Asked, session::see_through, switchboard::Note,
    throttle::Throttle,
};
use crate::{
    admission::REVOKED,
    close::{CloseCode, Closed},
    event::Envelope,
    gossip::Bucket,
    intake::{Customer, Reserved},
    link_io::{FrameReader, LinkError, write_all},
    listen::{Event, Incoming, Source},
    log::resume::{Ask, Resume},
    metrics::events,
    protocol::Protocol,
    wire::{
        assembly::{Assembly, BadPart},
        compat,
        native::{self, FEATURE_GOSSIP, FEATURE_RUNS, PartOf, Start, ToHub, ToSpoke, Welcome},
    },
};

/// Serves the stream until it ends, and says how it ended. A spoke that begins may read nothing below
/// `floor`. Never panics on what a peer sends. Calls `known` when the stream has become a spoke.
pub(super) async fn run(
    hub: Arc<Inner>,
    connection: Connection,
    (protocol, floor): (Protocol, u64),
    (mut send, recv): (SendStream, RecvStream),
    known: impl FnOnce(),
) -> Closed {
    let max_frame = match protocol {
        Protocol::Native => native::MAX_FRAME,
        Protocol::Compat => hub.config.limits.max_event_bytes + compat::FRAME_OVERHEAD,
    };
    let remote = connection.remote_id();
    let customer = || hub.intake.customer(remote);
    let mut reader =
        FrameReader::new(recv, max_frame, hub.config.limits.frame_timeout).reserving(customer());
    let error = match welcome(&hub, connection, (protocol, floor), &mut send, &mut reader).await {
        Ok((link, first)) => {
            known();
            let span = info_span!("link", remote = %link.id.fmt_short(), %protocol);
            let serving =
                serve(&hub, &link, first, &mut send, &mut reader, customer()).instrument(span);
            match AssertUnwindSafe(serving).catch_unwind().await {
                Ok(error) => error,
                Err(_) => {
                    // Nobody serves it any more, so it must not stay in the roster.
                    error!(remote = %link.id.fmt_short(), "the task of a spoke panicked");
                    let error = LinkError::gone(internal("internal error"));
                    hub.leave(&link, &error.closed()).await;
                    error
                }
            }
        }
        Err(error) => {
            debug!(%error, "a stream did not become a spoke");
            error
        }
    };
    let closed = error.closed();
    let code = closed.code().map(CloseCode::to_u64);
    debug!(target: events::LINK_CLOSED, remote = %remote.fmt_short(), %protocol, code, %closed);
    if let Closed::ByUs { code, .. } = &closed {
        if *code != CloseCode::Goodbye {
            if *code != CloseCode::Refused {
                hub.metrics.direct.links_failed.inc();
            }
            let _ = send.reset(code.to_varint());
        }
        reader.stop(*code);
    }
    closed
}

/// What arrived before a connection was closed can still be read: an attempt that its spoke has given up must
/// not take over from the link that it has made since.
fn still_there(connection: &Connection) -> Result<(), LinkError> {
    match connection.close_reason() {
        Some(reason) => Err(LinkError::gone(Closed::from(&reason))),
        None => Ok(()),
    }
}

fn internal(reason: &str) -> Closed {
    Closed::by_us(CloseCode::Internal, reason)
}

/// Waits for the hello (native) or the first frame (compat), and makes the stream a spoke.
async fn welcome(
    hub: &Arc<Inner>,
    connection: Connection,
    (protocol, floor): (Protocol, u64),
    send: &mut SendStream,
    reader: &mut FrameReader,
) -> Result<(Arc<Link>, Option<Bytes>), LinkError> {
    let wait = hub.config.limits.hello_timeout;
    let first = timeout(wait, reader.next())
        .await
        .map_err(|_| {
            e!(LinkError::TimedOut {
                what: "the first frame of a stream"
            })
        })??
        .ok_or_else(|| {
            e!(LinkError::Misbehaved {
                what: "the stream ended before its first frame"
            })
        })?;
    if protocol == Protocol::Compat {
        let asked = Asked {
            endpoint: connection.remote_id(),
            protocol,
            can_gossip: false,
            reads_runs: false,
            session: None,
            start: hub.log.tip(),
            has_before: true,
            floor,
        };
        // Though it has left meanwhile: what it sent is to be heard.
        let link = hub.join(asked, connection).await?;
        return Ok((link, Some(first)));
    }
    let Some(ToHub::Hello(hello)) = ToHub::decode(first)? else {
        return Err(e!(LinkError::Misbehaved {
            what: "the first frame is not a hello"
        }));
    };
    if hello.version != native::VERSION {
        return Err(e!(LinkError::Version {
            theirs: hello.version,
            ours: native::VERSION
        }));
    }
    let ask = match hello.start {
        Start::Tip => Ask::Tip,
        Start::Earliest => Ask::Earliest,
        Start::At(position) => Ask::At(position),
    };
    // Of what was appended before it was admitted, nothing is this spoke's.
    let floor_now = floor.max(hub.floors().of(connection.remote_id()).of_events);
    hub.reaches(floor_now).await;
    let begin = hub.begin(ask).await;
    let Resume {
        mut start,
        continues,
        ..
    } = begin.resume;
    if hello.start == Start::Earliest {
        // For others, the cursor says what they are not to have.
        start = start.max(floor_now).min(begin.tip);
    }
    let asked = Asked {
        endpoint: connection.remote_id(),
        protocol,
        can_gossip: hello.features & FEATURE_GOSSIP != 0,
        reads_runs: hello.features & FEATURE_RUNS != 0,
        session: hello.session.map(|key| (key, hello.targeted)),
        start,
        has_before: continues && matches!(hello.start, Start::At(_)),
        floor,
    };
    still_there(&connection)?;
    let link = hub.join(asked, connection).await?;
    let _ = link.epoch.set(begin.epoch);
    let published = link.session.heard();
    let welcome = ToSpoke::Welcome(Welcome {
        version: native::VERSION,
        features: FEATURE_GOSSIP,
        session: link.session.key,
        published,
        epoch: begin.epoch,
        tip: begin.tip,
        start,
        continues,
        max_event_bytes: hub.config.limits.max_event_bytes as u64,
        ack_every_ms: hub.ack_every_ms(),
        publish_window: hub.config.limits.publish_window,
    });
    let mut chunks = Vec::new();
    welcome.encode(&mut chunks);
    let written = timeout(wait, write_all(send, &mut chunks)).await;
    let written = written.unwrap_or_else(|_| {
        Err(e!(LinkError::TimedOut {
            what: "room for the welcome"
        }))
    });
    if let Err(error) = written {
        hub.leave(&link, &error.closed()).await;
        return Err(error);
    }
    Ok((link, None))
}

async fn serve(
    hub: &Arc<Inner>,
    link: &Arc<Link>,
    first: Option<Bytes>,
    send: &mut SendStream,
    reader: &mut FrameReader,
    customer: Customer,
) -> LinkError {
    debug!("welcome");
    let error = first_end(hub, link, first, send, reader, customer).await;
    let closed = error.closed();
    hub.leave(link, &closed).await;
    error
}

/// What a link ends by.
enum End {
    Cancelled,
    Read(LinkError),
    Written(LinkError),
}

/// Serves both halves until the link is over.
///
/// Each is polled only when it was woken itself: to look for what has come takes the connection's lock, which is not to be
/// taken for every event that goes out. Neither half is restarted, so neither has to be cancel safe.
async fn first_end(
    hub: &Arc<Inner>,
    link: &Link,
    first: Option<Bytes>,
    send: &mut SendStream,
    reader: &mut FrameReader,
    customer: Customer,
) -> LinkError {
    let cancelled = async {
        link.cancel.cancelled().await;
        End::Cancelled
    };
    // When the connection ends, this says so, behind what had arrived before.
    let reading = async { End::Read(read(hub, link, first, reader, customer).await) };
    let writing = async { End::Written(write(hub, link, send).await) };
    let all: [Pin<Box<dyn Future<Output = End> + Send + '_>>; 3] =
        [Box::pin(cancelled), Box::pin(reading), Box::pin(writing)];
    let mut all: FuturesUnorderedBounded<_> = all.into_iter().collect();
    let written = match all.next().await {
        Some(End::Written(error)) => error,
        Some(End::Read(error)) => return error,
        Some(End::Cancelled) => return cancelled_by(hub, link),
        None => return LinkError::gone(internal("internal error")),
    };
    if let Closed::ByUs { .. } = written.closed() {
        return written;
    }
    // The spoke takes nothing more, but what it sent before is still to be heard.
    match timeout(hub.config.limits.drain_timeout, all.next()).await {
        Ok(Some(End::Read(error) | End::Written(error))) => error,
        Ok(Some(End::Cancelled)) => cancelled_by(hub, link),
        Ok(None) | Err(_) => written,
    }
}

/// Why a link was cancelled.
fn cancelled_by(hub: &Inner, link: &Link) -> LinkError {
    LinkError::gone(if link.is_revoked() {
        Closed::by_us(CloseCode::Refused, REVOKED)
    } else if link.is_fenced() {
        Closed::by_us(
            CloseCode::Fenced,
            "a newer link of the same spoke took over",
        )
    } else if link.is_served(hub.log.tip()) {
        Closed::by_us(CloseCode::Goodbye, "the hub ended")
    } else {
        Closed::by_us(
            CloseCode::TimedOut,
            "the hub ended before this spoke had everything",
        )
    })
}

async fn read(
    hub: &Arc<Inner>,
    link: &Link,
    first: Option<Bytes>,
    reader: &mut FrameReader,
    customer: Customer,
) -> LinkError {
    let limits = &hub.config.limits;
    let (frames, bytes) = (limits.publish_frames_per_s, limits.publish_bytes_per_s);
    let mut inbound = Inbound {
        hub,
        link,
        last_seq: link.session.heard(),
        assembly: Assembly::default(),
        wants: Bucket::new(WANTS_PER_S, WANTS_AT_ONCE, Instant::now()),
        throttle: Throttle::new(frames, bytes, Instant::now()),
        customer,
        reserved: None,
        due: None,
    };
    let result = async {
        if let Some(frame) = first {
            inbound.take(frame, reader).await?;
        }
        while let Some(frame) = inbound.next(reader).await? {
            inbound.take(frame, reader).await?;
        }
        Ok(())
    };
    match result.await {
        Ok(()) => LinkError::gone(Closed::ByPeer {
            code: CloseCode::Goodbye,
            reason: "the stream ended".to_owned(),
        }),
        Err(error) => error,
    }
}

/// What arrives from one spoke.
struct Inbound<'a> {
    hub: &'a Arc<Inner>,
    link: &'a Link,
    /// The last of the spoke's events that came whole, on this link or before.
    last_seq: u64,
    assembly: Assembly,
    wants: Bucket,
    throttle: Throttle,
    customer: Customer,
    /// Room for the event that is coming, if it was made already.
    reserved: Option<Reserved>,
    /// When the event has to be whole that comes in several frames.
    due: Option<Instant>,
}

/// What an event costs beside its bytes until a listener has it.
const EVENT_COST: usize = 512;
/// So many parts of an event have to come within the time that a frame may take: a mebibyte.
const PARTS_IN_TIME: usize = 16;

/// How many ranges a second a spoke may want again: each costs the hub some work for all of them. One more
/// is dropped; an inbox that lacks something wants it again after a while.
const WANTS_PER_S: u32 = 200;
/// And how many at once.
const WANTS_AT_ONCE: u32 = 1000;

impl Inbound<'_> {
    /// The next frame, unless an event in parts runs out of time.
    async fn next(&mut self, reader: &mut FrameReader) -> Result<Option<Bytes>, LinkError> {
        match self.due {
            None => reader.next().await,
            Some(due) => timeout_at(due, reader.next()).await.map_err(|_| {
                e!(LinkError::TimedOut {
                    what: "the rest of an event"
                })
            })?,
        }
    }

    /// Takes a frame, and waits if the spoke is too fast.
    async fn take(&mut self, frame: Bytes, reader: &mut FrameReader) -> Result<(), LinkError> {
        let wait = self.throttle.spend(frame.len(), Instant::now());
        if let Some(reserved) = reader.take_reserved() {
            self.reserved = Some(reserved);
        }
        self.frame(frame).await?;
        if let Some(wait) = wait {
            self.hub.metrics.direct.reads_throttled.inc();
            tokio::select! {
                () = sleep(wait) => {}
                // What has come is read to its end.
                _ = self.link.connection.closed() => {}
            }
        }
        Ok(())
    }

    /// Makes room for an event of so many bytes that is to come, or has, if there was none made.
    async fn reserve(&mut self, bytes: usize) -> Reserved {
        match self.reserved.take() {
            Some(reserved) => reserved,
            None => self.customer.reserve(bytes).await,
        }
    }

    async fn frame(&mut self, frame: Bytes) -> Result<(), LinkError> {
        self.hub.metrics.direct.frames_received.inc();
        self.link.session.is_known_now();
        // Most frames need no waiting, and a flood of them is not to keep a worker.
        consume_budget().await;
        match self.link.protocol {
            Protocol::Compat if frame.is_empty() => Ok(()),
            Protocol::Compat => {
                let envelope = compat::decode(&frame)?;
                drop(frame);
                self.check_size(envelope.size())?;
                let reserved = self.reserve(envelope.size() + EVENT_COST).await;
                self.deliver(envelope, move || drop(reserved)).await;
                Ok(())
            }
            Protocol::Native => match ToHub::decode(frame)? {
                Some(frame) => self.native(frame).await,
                None => {
                    self.hub.metrics.direct.frames_unknown.inc();
                    Ok(())
                }
            },
        }
    }

    async fn native(&mut self, frame: ToHub) -> Result<(), LinkError> {
        let misbehaved = |what| Err(e!(LinkError::Misbehaved { what }));
        let tip = self.hub.log.tip();
        match frame {
            ToHub::Hello(_) => misbehaved("a second hello"),
            ToHub::Missed { from, to } => {
                if from > to || to > tip {
                    return misbehaved("missed events that do not exist");
                }
                self.hub.metrics.repair.events_given_up.inc_by(to - from);
                let session = &self.link.session;
                session.record(|record| record.says_missed(from, to));
                self.hub.progress.notify_waiters();
                Ok(())
            }
            ToHub::Refused { seq } => {
                self.hub.metrics.events.targeted_refused.inc();
                let (session, number) = (&self.link.session, self.link.number);
                session.mailbox(|mailbox| mailbox.refused(number, seq))
            }
            ToHub::Publish { seq, of, body } => self.publish(seq, of, body).await,
            ToHub::Ack { offset, seq } => {
                if offset > tip {
                    return misbehaved("acknowledged an event that does not exist yet");
                }
                self.hub.metrics.direct.acks_received.inc();
                let targeted = seq > 0 && self.link.targeted_acked(seq)?;
                if self.link.set_acked(offset, targeted) {
                    self.hub.progress.notify_waiters();
                }
                Ok(())
            }
            ToHub::Want { from, to: Some(to) } => {
                if from > to || to > tip {
                    return misbehaved("wants events that do not exist");
                }
                self.hub.metrics.repair.wants.inc();
                // What it has acknowledged it has.
                let from = from.max(self.link.acked());
                if from >= to {
                    return Ok(());
                }
                if !self.wants.take(1, Instant::now()) {
                    self.hub.metrics.repair.wants_dropped.inc();
                    return Ok(());
                }
                let id = self.link.id;
                self.hub.note(Note::Want { id, from, to }).await;
                Ok(())
            }
            ToHub::Want { from, to: None } => {
                if from > tip {
                    return misbehaved("wants events that do not exist");
                }
                self.hub.metrics.repair.wants_direct.inc();
                self.link.serve_from(from);
                self.hub
                    .note(Note::OffTree(self.link.id, self.link.number))
                    .await;
                Ok(())
            }
            ToHub::Rekeyed { generation } => {
                let (id, link) = (self.link.id, self.link.number);
                self.hub
                    .note(Note::Rekeyed {
                        id,
                        link,
                        generation,
                    })
                    .await;
                Ok(())
            }
            ToHub::Served { topic, from } => {
                if from > tip {
                    return misbehaved("is served events that do not exist");
                }
                if self.hub.topic().is_none_or(|now| now.id != topic) {
                    // Said of a topic that has ended meanwhile.
                    return Ok(());
                }
                self.hub
                    .note(Note::OnTree(self.link.id, self.link.number, topic))
                    .await;
                Ok(())
            }
        }
    }

    /// Takes a part of the spoke's next event; or of one that was taken already, which the spoke was not
    /// told.
    async fn publish(&mut self, seq: u64, of: PartOf, body: Bytes) -> Result<(), LinkError> {
        if (1..=self.last_seq).contains(&seq) {
            return self.repeated(of);
        }
        if seq != self.last_seq.wrapping_add(1) {
            return Err(e!(LinkError::Misbehaved {
                what: "its events are not numbered one by one"
            }));
        }
        let limits = &self.hub.config.limits;
        let limit = limits.max_event_bytes;
        if of.parts > 1 && !self.assembly.is_partial() {
            let most = (usize::from(of.parts) * native::MAX_PART).min(limit);
            self.reserved = Some(self.reserve(most + EVENT_COST).await);
            self.due = Some(Instant::now() + limits.frame_timeout);
        } else if of.parts > 1 && usize::from(of.part) % PARTS_IN_TIME == 0 {
            // Another piece of it has come.
            self.due = Some(Instant::now() + limits.frame_timeout);
        }
        let pushed = self.assembly.push(seq, of, body, limit);
        if !self.assembly.is_partial() {
            self.due = None;
        }
        let body = match pushed {
            // A small piece of a large packet would keep all of it.
            Ok(Some(body)) if of.parts == 1 => Bytes::copy_from_slice(&body),
            Ok(Some(body)) => body,
            Ok(None) => return Ok(()),
            Err(BadPart::TooLarge { len }) => return self.check_size(len),
            Err(BadPart::OutOfOrder) => {
                return Err(e!(LinkError::Misbehaved {
                    what: "the parts of an event are out of order"
                }));
            }
        };
        self.check_size(body.len())?;
        let envelope = Envelope::from_body(body)?;
        self.last_seq = seq;
        let reserved = self.reserve(envelope.size() + EVENT_COST).await;
        let session = &self.link.session;
        // A delivery that an earlier link began goes on, and may be that of this very event.
        let turn = session.hearing().await;
        if self.link.is_fenced() {
            // The spoke sends it again on its newer link.
            return Ok(());
        }
        if seq <= session.heard() {
            drop(turn);
            return self.repeated(of);
        }
        if seq != session.heard() + 1 {
            return Err(LinkError::gone(internal(
                "an event was not heard to its end",
            )));
        }
        let heard = session.clone();
        self.deliver(envelope, move || {
            heard.has_heard(seq);
            drop((turn, reserved));
        })
        .await;
        self.link.acknowledge(session.heard());
        Ok(())
    }

    fn repeated(&self, of: PartOf) -> Result<(), LinkError> {
        if of.part + 1 == of.parts {
            self.hub.metrics.events.events_repeated.inc();
            self.link.acknowledge(self.link.session.heard());
        }
        Ok(())
    }

    fn check_size(&self, len: usize) -> Result<(), LinkError> {
        let limit = self.hub.config.limits.max_event_bytes;
        if len > limit {
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            let too_large = e!(crate::wire::framing::FrameError::TooLarge { len, limit });
            return Err(too_large.into());
        }
        Ok(())
    }

    /// Hands an event to the listeners, then does what is to be done `after` that; both are seen through
    /// whatever becomes of the link.
    async fn deliver(&self, envelope: Envelope, after: impl FnOnce() + Send + 'static) {
        self.hub.metrics.events.events_received.inc();
        let event = Event::new(envelope, Source::Spoke(self.link.id));
        let hub = self.hub.clone();
        let delivery = async move {
            hub.listeners.dispatch(Incoming::Event(event)).await;
            after();
        };
        see_through(self.hub, Box::pin(delivery)).await;
    }
}

async fn write(hub: &Inner, link: &Link, send: &mut SendStream) -> LinkError {
    match write_loop(hub, link, send).await {
        Ok(()) => LinkError::gone(Closed::by_us(CloseCode::Goodbye, "the hub said goodbye")),
        Err(error) => error,
    }
}

async fn write_loop(hub: &Inner, link: &Link, send: &mut SendStream) -> Result<(), LinkError> {
    let mut tip = hub.log.watch_tip();
    let mut entries = Vec::new();
    let mut chunks = Vec::new();
    loop {
        tip.mark_unchanged();
        let paid = !link.is_paid_for(hub.log.tip()) || hub.ask_budget(link.id);
        let batch = link.next_batch(&hub.log, paid, &mut entries, &mut chunks)?;
        // Looked at after reading: what was read before the epoch began is of the one before.
        let epoch = link.epoch.get();
        if epoch.is_some_and(|epoch| *epoch != hub.log.epoch()) {
            return Err(e!(LinkError::NewEpoch));
        }
        match batch {
            Batch::Frames { cursor, cost } => {
                hub.spend(cost);
                hub.metrics.repair.events_missed.inc_by(link.take_missed());
                tokio::select! {
                    // Most writes need not wait, and then nothing else need be looked at.
                    biased;
                    written = write_all(send, &mut chunks) => written?,
                    // Nothing after this is written, so a torn frame does no harm.
                    error = fallen_behind(hub, link) => return Err(error),
                }
                if link.protocol == Protocol::Compat {
                    link.session.has_room();
                }
                // A plain spoke cannot acknowledge; what its stream took is what is known.
                if let (Protocol::Compat, Some(cursor)) = (link.protocol, cursor)
                    && link.set_acked(cursor, false)
                {
                    hub.progress.notify_waiters();
                }
            }
            Batch::Idle { follows_tip } => {
                if !link.is_draining() {
                    tokio::select! {
                        () = link.wake.notified() => {}
                        _ = tip.changed(), if follows_tip => {}
                    }
                    continue;
                }
                if link.has_all(hub.log.tip()) {
                    return goodbye(send, hub.config.limits.drain_timeout).await;
                }
                // An acknowledgement is what is waited for.
                tokio::select! {
                    () = link.wake.notified() => {}
                    _ = tip.changed(), if follows_tip => {}
                    () = hub.progress.notified() => {}
                    () = sleep(DRAIN_POLL) => {}
                }
            }
        }
    }
}

/// Resolves when the log has gone past a spoke that does not take what is written to it, if that ends its
/// link; others are told what they missed once they take something again.
async fn fallen_behind(hub: &Inner, link: &Link) -> LinkError {
    if !link.ends_if_behind() {
        return std::future::pending().await;
    }
    let mut tip = hub.log.watch_tip();
    loop {
        if let Some(events) = link.fell_behind(hub.log.head()) {
            return e!(LinkError::FellBehind { events });
        }
        if tip.changed().await.is_err() {
            return std::future::pending().await;
        }
        // Not with every event: each link that is being written to waits here.
        sleep(BEHIND_POLL).await;
    }
}

/// How soon a link looks again whether the log has gone past its spoke.
const BEHIND_POLL: Duration = Duration::from_millis(50);

/// How often a draining link looks again whether its spoke has everything.
const DRAIN_POLL: Duration = Duration::from_millis(50);

/// Finishes the stream and waits until the spoke has read it to the end.
async fn goodbye(send: &mut SendStream, limit: Duration) -> Result<(), LinkError> {
    if send.finish().is_ok() {
        match timeout(limit, send.stopped()).await {
            Ok(Ok(_)) => {}
            Ok(Err(StoppedError::ConnectionLost(error))) => return Err(error.into()),
            Ok(Err(_)) | Err(_) => {
                return Err(e!(LinkError::TimedOut {
                    what: "the spoke's acknowledgement of the end of its stream"
                }));
            }
        }
    }
    Ok(())
}

//! The task of one spoke, from hello to goodbye: it reads its stream, and owns the [`Writer`].

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc};

use bytes::Bytes;
use iroh::endpoint::{Connection, RecvStream, SendStream};
use n0_error::e;
use n0_future::FutureExt;
use tokio::{
    task::coop::consume_budget,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{Instrument, debug, error, info_span};

use super::{
    Inner, link::Link, link_writer::Writer, roster::Asked, session::see_through, switchboard::Note,
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
    let welcomed = welcome(&hub, connection, (protocol, floor), &mut send, &mut reader).await;
    let (error, send) = match welcomed {
        Ok((link, first)) => {
            known();
            let span = info_span!("link", remote = %link.id.fmt_short(), %protocol);
            let serving = serve(&hub, &link, first, (send, &mut reader), customer());
            serving.instrument(span).await
        }
        Err(error) => {
            debug!(%error, "a stream did not become a spoke");
            (error, Some(send))
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
            if let Some(mut send) = send {
                let _ = send.reset(code.to_varint());
            }
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

/// Serves both halves of the stream until the link is over, and gives back the one that was written.
async fn serve(
    hub: &Arc<Inner>,
    link: &Arc<Link>,
    first: Option<Bytes>,
    (send, reader): (SendStream, &mut FrameReader),
    customer: Customer,
) -> (LinkError, Option<SendStream>) {
    debug!("welcome");
    let mut writer = Writer::start(hub, link, send);
    let ending = first_end(hub, link, first, &mut writer, reader, customer);
    let ended = AssertUnwindSafe(ending).catch_unwind().await;
    let send = writer.stop().await;
    let error = ended.unwrap_or_else(|_| {
        error!("the task of a spoke panicked");
        LinkError::internal("internal error")
    });
    // Nobody serves it any more, so it must not stay in the roster.
    hub.leave(link, &error.closed()).await;
    (error, send)
}

/// Reads, while the writer writes, until the link is over.
async fn first_end(
    hub: &Arc<Inner>,
    link: &Link,
    first: Option<Bytes>,
    writer: &mut Writer,
    reader: &mut FrameReader,
    customer: Customer,
) -> LinkError {
    // When the connection ends, this says so, behind what had arrived before.
    let mut reading = pin!(read(hub, link, first, reader, customer));
    let written = tokio::select! {
        error = &mut reading => return error,
        error = writer.ended() => error,
        () = link.cancel.cancelled() => return cancelled_by(hub, link),
    };
    if let Closed::ByUs { .. } = written.closed() {
        return written;
    }
    // The spoke takes nothing more, but what it sent before is still to be heard.
    tokio::select! {
        error = &mut reading => error,
        () = link.cancel.cancelled() => cancelled_by(hub, link),
        () = sleep(hub.config.limits.drain_timeout) => written,
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
                if self.link.set_acked(offset, targeted) || targeted {
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
            return Err(LinkError::internal("an event was not heard to its end"));
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

//! The task of a native spoke, from its first link to its end: it owns the [`Reception`], the link and the
//! place on the topic.
//!
//! What comes in, along the link and along the topic, goes to the reception; what that lets out goes to the
//! listeners, and what it orders is done. When the link ends, the topic and the listeners are served on, and
//! after a while the session makes a new link, unless the end was a final one. While listeners hold back,
//! the link is read on as long as the inbox has room.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use iroh::{Endpoint, EndpointAddr};
use n0_error::e;
use tokio::{
    task::yield_now,
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    ConnectError,
    backoff::Backoff,
    config::{From, Gossip},
    deliverer::Deliverer,
    hands::{self, Greeted},
    link::{Heard, Link},
    member::{GossipAcceptor, Seat},
    reception::{Order, Reception, ReceptionConfig},
    shared::{LastWord, Shared},
    status::SpokeStatus,
};
use crate::{
    close::{CloseCode, Closed},
    gossip::GossipEvent,
    link_io::LinkError,
    seal::Opened,
    wire::native::{Start, ToSpoke, Welcome},
};

/// How many events are taken in (another frame counts as one) before the rest of the session, and the listeners, have their turn: as many as tokio lets a
/// listener take in one.
const EVENTS_AT_ONCE: usize = 128;
/// A session looks around so often though nothing is due.
const LOOK_AROUND: Duration = Duration::from_secs(60);
/// How long listeners may take to have the rest when the spoke itself ends.
const LAST_EVENTS: Duration = Duration::from_secs(5);

pub(super) struct Session {
    endpoint: Endpoint,
    hub: EndpointAddr,
    shared: Arc<Shared>,
    reception: Reception,
    backoff: Backoff,
    link: Link,
    /// When the present attempt to make a link has to be done.
    attempt_until: Instant,
    seat: Seat,
    deliver: Deliverer,
    /// Asks for the end in order: when the hub has everything.
    finish: CancellationToken,
    /// Tells the writer of the link that it is so, and that there is no more to say.
    goodbye: CancellationToken,
}

/// What the session's loop waits for.
#[allow(clippy::large_enum_variant, reason = "moved once, where it is made")]
enum Woken {
    Link(Heard),
    Gossip(Option<GossipEvent<Opened>>),
    Room(bool),
    Deadline,
    Finish,
}

/// Why the loop stops.
enum Ended {
    /// The link broke.
    Link(LinkError),
    /// An attempt to make one failed.
    Attempt(ConnectError),
    /// The spoke is over.
    Spoke(Closed),
}

impl std::convert::From<LinkError> for Ended {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl Session {
    /// A session that makes its first link at once when it runs.
    pub(super) fn new(
        endpoint: Endpoint,
        hub: EndpointAddr,
        shared: Arc<Shared>,
        acceptor: GossipAcceptor,
        deliver: Deliverer,
        finish: CancellationToken,
    ) -> Self {
        let now = Instant::now();
        let config = &shared.config;
        let reception = ReceptionConfig {
            hub: hub.id,
            start: match config.from {
                From::Tip => Start::Tip,
                From::Earliest => Start::Earliest,
                From::Position(position) => Start::At(position),
            },
            gossip: config.gossip != Gossip::Off,
            max_event_bytes: config.limits.max_event_bytes,
            max_buffered_bytes: config.limits.max_buffered_bytes,
            seed: rand::random(),
        };
        Self {
            reception: Reception::new(reception, shared.metrics.reception.clone(), now),
            backoff: Backoff::new(config.reconnect.clone(), rand::random()),
            link: Link::Waiting(now.into()),
            attempt_until: now,
            seat: Seat::new(endpoint.clone(), hub.clone(), shared.clone(), acceptor),
            endpoint,
            hub,
            shared,
            deliver,
            finish,
            goodbye: CancellationToken::new(),
        }
    }

    /// Makes the first link, in one attempt.
    pub(super) async fn connect(&mut self) -> Result<(), ConnectError> {
        self.dial();
        loop {
            let heard = self.link.next(true).await;
            match self.heard(heard).await {
                Ok(()) if self.link.is_up() => {
                    return self.let_out().await.map(drop).map_err(|error| {
                        let closed = error.closed();
                        e!(ConnectError::Broken { closed })
                    });
                }
                Ok(()) => {}
                Err(Ended::Attempt(error)) => return Err(error),
                Err(Ended::Link(error)) => {
                    let closed = error.closed();
                    return Err(e!(ConnectError::Broken { closed }));
                }
                Err(Ended::Spoke(closed)) => return Err(e!(ConnectError::Broken { closed })),
            }
        }
    }

    /// Runs until the end of the spoke. `cancel` ends it at once.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let last_word = LastWord(self.shared.clone());
        let closed = tokio::select! {
            closed = self.live() => closed,
            () = cancel.cancelled() => Closed::by_us(CloseCode::Goodbye, "the spoke ended"),
        };
        debug!(%closed, "the spoke ends");
        self.hang_up(&LinkError::gone(closed.clone())).await;
        // Told before the listeners have the rest, for which one of them may take its time.
        self.shared.end(closed.clone());
        self.reception.closed(Instant::now(), &closed);
        tokio::select! {
            () = self.let_out_rest() => {}
            () = cancel.cancelled() => {}
        }
        let Self { seat, deliver, .. } = self;
        drop(deliver);
        seat.close().await;
        last_word.0.end(closed);
    }

    /// From link to link.
    async fn live(&mut self) -> Closed {
        loop {
            let closed = match self.turn().await {
                Ok(()) => continue,
                Err(Ended::Spoke(closed)) => return closed,
                Err(Ended::Attempt(error)) => {
                    self.link.end().await;
                    error.closed()
                }
                Err(Ended::Link(error)) => {
                    self.shared.metrics.link.lost.inc();
                    self.hang_up(&error).await
                }
            };
            let now = Instant::now();
            // On an endpoint that is closed there is nothing to try again.
            let retry = Some(&self.endpoint).filter(|endpoint| !endpoint.is_closed());
            let retry = retry.and_then(|_| self.backoff.ended(now, &closed));
            let Some(retry) = retry else { return closed };
            info!(%closed, attempt = retry.attempt, after = ?retry.after, "no link to the hub");
            self.reception
                .lost(now, &closed, retry.attempt, retry.after);
            self.link = Link::Waiting((now + retry.after).into());
        }
    }

    /// Ends the link, and says how it ended.
    async fn hang_up(&mut self, error: &LinkError) -> Closed {
        // Closed before the writer ends, which would finish the stream: the hub would take that for a goodbye.
        let closed = match self.link.connection() {
            Some(connection) => hands::close(connection, error),
            None => error.closed(),
        };
        self.link.end().await;
        self.shared.outbox.end_link();
        self.shared.set_connection(None);
        closed
    }

    async fn turn(&mut self) -> Result<(), Ended> {
        let held = self.let_out().await?;
        let up = self.link.is_up();
        let finishes = self.finish.is_cancelled();
        if finishes && !up && self.shared.outbox.is_empty() {
            return Err(Ended::Spoke(goodbye()));
        }
        let now = Instant::now();
        if finishes && up && self.shared.outbox.is_empty() && !self.goodbye.is_cancelled() {
            // The hub is told first what listeners have, lest its receipts have this spoke as gone.
            self.reception.last_ack(now);
            self.let_out_at(now).await?;
            self.goodbye.cancel();
        }
        let reads = !held || self.reception.has_room();
        let deadline = self.reception.deadline(held).unwrap_or(now + LOOK_AROUND);
        let woken = tokio::select! {
            heard = self.link.next(reads) => Woken::Link(heard),
            event = self.seat.next() => Woken::Gossip(event),
            room = self.deliver.has_place(), if held => Woken::Room(room),
            () = sleep_until(deadline.into()) => Woken::Deadline,
            () = self.finish.cancelled(), if !finishes => Woken::Finish,
        };
        match woken {
            Woken::Link(heard) => self.heard(heard).await?,
            Woken::Gossip(Some(GossipEvent::Frame { opened, .. })) => {
                self.reception.opened(Instant::now(), opened);
            }
            Woken::Gossip(Some(event)) => debug!(?event, "topic"),
            Woken::Gossip(None) => {
                warn!("the node on the topic has ended; the hub serves us directly");
                self.reception.topic_ended(Instant::now());
            }
            Woken::Room(true) | Woken::Finish => {}
            // Nobody will take anything any more.
            Woken::Room(false) => return Err(Ended::Spoke(goodbye())),
            Woken::Deadline => self.reception.tick(Instant::now()),
        }
        Ok(())
    }

    async fn heard(&mut self, heard: Heard) -> Result<(), Ended> {
        match heard {
            Heard::Due => self.dial(),
            Heard::Dialed(dialed) => {
                let hello = self.reception.hello();
                let until = self.attempt_until.into();
                self.link = Link::greet(dialed, hello, &self.shared, until);
            }
            Heard::Greeted(greeted, welcome) => {
                let connection = greeted.connection.clone();
                if let Err(error) = self.welcome(greeted, &welcome) {
                    return Err(Ended::Attempt(hands::broken(&connection, &error)));
                }
            }
            Heard::Failed(error) => return Err(Ended::Attempt(error)),
            Heard::Frame(frame) => self.frames(frame).await?,
            Heard::Goodbye => {
                return Err(Ended::Link(LinkError::gone(Closed::ByPeer {
                    code: CloseCode::Goodbye,
                    reason: "the hub said goodbye".to_owned(),
                })));
            }
            Heard::Finished => return Err(Ended::Spoke(goodbye())),
            Heard::Broke(error) => return Err(Ended::Link(error)),
        }
        Ok(())
    }

    fn dial(&mut self) {
        self.shared.metrics.link.attempts.inc();
        self.attempt_until = Instant::now() + self.shared.config.limits.connect_timeout;
        self.link = Link::dial(
            self.endpoint.clone(),
            self.hub.clone(),
            self.attempt_until.into(),
        );
    }

    fn welcome(&mut self, greeted: Greeted, welcome: &Welcome) -> Result<(), LinkError> {
        let now = Instant::now();
        let resumed = self.reception.welcomed(now, welcome)?;
        let begun = self.shared.outbox.begin_link(
            resumed,
            welcome.published,
            welcome.publish_window,
            welcome.max_event_bytes,
        );
        let lost = begun.map_err(|_| never_sent())?;
        self.shared.count_lost(&lost);
        self.shared.metrics.link.welcomed.inc();
        self.shared.limit_events(welcome.max_event_bytes);
        self.shared.begin_at(self.reception.position());
        self.shared.set_connection(Some(greeted.connection.clone()));
        self.backoff.linked(now);
        info!(epoch = %welcome.epoch, start = welcome.start, tip = welcome.tip, resumed, "welcomed");
        self.goodbye = CancellationToken::new();
        self.link = Link::up(greeted, self.shared.clone(), self.goodbye.clone());
        Ok(())
    }

    /// Takes in a frame and those behind it that have arrived already.
    async fn frames(&mut self, first: Bytes) -> Result<(), LinkError> {
        let mut frame = Some(first);
        let mut budget = EVENTS_AT_ONCE;
        // They are all here by now.
        let now = Instant::now();
        while let Some(bytes) = frame.take() {
            match ToSpoke::decode(bytes)? {
                Some(frame) => {
                    budget = budget.saturating_sub(frame.events().max(1));
                    self.reception.frame(now, frame)?;
                }
                None => {
                    self.shared.metrics.link.frames_unknown.inc();
                    budget -= 1;
                }
            }
            // Let out at once, so that of what comes in its turn no more than a frame is buffered.
            let held = self.let_out_at(now).await?;
            if budget > 0 && (!held || self.reception.has_room()) {
                frame = self.link.buffered()?;
            }
        }
        if budget == 0 {
            // What listeners have by now is still in the cache.
            yield_now().await;
        }
        Ok(())
    }

    /// Hands what is let out to the listeners, and does what is ordered; says whether they hold it back.
    async fn let_out(&mut self) -> Result<bool, LinkError> {
        self.let_out_at(Instant::now()).await
    }

    async fn let_out_at(&mut self, now: Instant) -> Result<bool, LinkError> {
        let held = loop {
            let Some(place) = self.deliver.try_reserve() else {
                break true;
            };
            let Some(item) = self.reception.poll_delivery(now) else {
                break false;
            };
            let Err((place, item)) = place.try_put(item) else {
                continue;
            };
            if !place.is_behind() {
                // A listener that keeps up makes room as soon as it has its turn, and waiting for it costs more than that.
                yield_now().await;
            }
            place.put(item);
        };
        while let Some(order) = self.reception.poll_order(now) {
            self.obey(order).await?;
        }
        self.shared.set_served(self.reception.is_served());
        Ok(held)
    }

    async fn obey(&mut self, order: Order) -> Result<(), LinkError> {
        match order {
            Order::Write(frame) => {
                if !self.shared.outbox.write(frame) {
                    return Err(e!(LinkError::TooMany {
                        what: "events over this spoke's limit, faster than the hub is told of them"
                    }));
                }
            }
            Order::Published { seq } => {
                self.shared.outbox.acked(seq).map_err(|_| never_sent())?;
            }
            Order::Join { topic, epoch } => {
                if !self.seat.join(*topic, epoch) {
                    self.reception.topic_ended(Instant::now());
                }
            }
            Order::Meet { peers } => self.seat.meet(peers),
            Order::Rekey(rekey) => self.seat.rekey(*rekey).await,
            Order::Leave => self.seat.leave(),
            Order::Tell(status) => {
                if let SpokeStatus::Recovered { .. } = status {
                    self.shared.metrics.link.recovered.inc();
                }
                self.shared.statuses.tell(status);
            }
        }
        Ok(())
    }

    /// Lets out what is whole, as far as the listeners take it; if the spoke itself ends, for a short time.
    async fn let_out_rest(&mut self) {
        let finishes = self.finish.is_cancelled();
        let rest = async {
            while let Ok(true) = self.let_out().await {
                if !self.deliver.has_place().await {
                    return;
                }
            }
        };
        if finishes {
            let _ = timeout(LAST_EVENTS, rest).await;
        } else {
            rest.await;
        }
    }
}

fn goodbye() -> Closed {
    Closed::by_us(CloseCode::Goodbye, "the spoke says goodbye")
}

fn never_sent() -> LinkError {
    e!(LinkError::Misbehaved {
        what: "acknowledged an event that was not sent"
    })
}

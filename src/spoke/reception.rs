//! What a spoke makes of what reaches it: the half of the contract that is a spoke's, over all of its links.
//!
//! One [`Reception`] lives as long as its spoke. It is told what comes along the link and the topic, and when
//! a link begins and ends; it puts everything through one [`Inbox`], and gives what listeners get
//! ([`poll_delivery`](Reception::poll_delivery)) and what is to be done
//! ([`poll_order`](Reception::poll_order)): frames for the hub, the topic to join, statuses to tell. A new
//! link goes on where the inbox stands, whatever became of the old one.
//!
//! Sans-IO: it knows no socket, no task and no clock, so that the simulator runs it as it ships. Not for:
//! what the spoke itself sends (`outbox`), and when to connect again (`backoff`).

mod acks;
mod given_up;
mod reach;
mod recovery;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use iroh::{EndpointAddr, EndpointId};
use n0_error::e;
use tracing::{debug, warn};

use self::{
    acks::Acks,
    given_up::GivenUp,
    reach::{Change, Reach},
    recovery::Recovery,
};
use super::{outbox::MAX_REFUSED, status::SpokeStatus};
use crate::{
    close::Closed,
    event::Envelope,
    inbox::{Inbox, InboxConfig, InboxError, Inserted, Output, Part},
    link_io::LinkError,
    listen::{Event, Incoming, Missed, Source},
    metrics::{ReceptionMetrics, events},
    position::{Epoch, Position},
    seal::Opened,
    via::Via,
    wire::{
        assembly::{Assembly, BadPart},
        broadcast::{WANT_JITTER, arrives_within},
        native::{
            FEATURE_GOSSIP, FEATURE_RUNS, Hello, MAX_PART, PartOf, Rekey, SessionId, Start, ToHub,
            ToSpoke, Topic, VERSION, Welcome,
        },
        run,
    },
};

/// How many statuses wait for listeners that hold everything back. Beyond, the latest takes the place of
/// the one before.
const MAX_STATUSES: usize = 64;

/// The settings of a [`Reception`].
#[derive(Clone, Debug)]
pub(crate) struct ReceptionConfig {
    /// Whose events these are.
    pub(crate) hub: EndpointId,
    /// Where to begin.
    pub(crate) start: Start,
    /// Whether to take part in topics.
    pub(crate) gossip: bool,
    /// The largest event, in bytes.
    pub(crate) max_event_bytes: usize,
    /// The most bytes of broadcasts that wait for earlier ones, or for listeners.
    pub(crate) max_buffered_bytes: usize,
    /// For jitter.
    pub(crate) seed: u64,
}

/// Something to do that does not wait for listeners.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Order {
    /// Write this to the hub, on the link that there is now.
    Write(ToHub),
    /// The hub has this spoke's own events up to `seq`; if they were never sent, it misbehaves.
    Published { seq: u64 },
    /// Leave the topic, if there is one, and join this.
    Join { topic: Box<Topic>, epoch: Epoch },
    /// Join the topic through these peers too.
    Meet { peers: Vec<EndpointAddr> },
    /// Learn these keys of the topic, and who is on it no more.
    Rekey(Box<Rekey>),
    /// Leave the topic.
    Leave,
    /// Tell who watches.
    Tell(SpokeStatus),
}

/// How the link stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// There is none.
    Away,
    /// The hub was told where the inbox stands. Until it has answered, the inbox lets nothing out, so that
    /// the answer fits.
    Greeting,
    /// The hub has welcomed the spoke.
    Linked,
}

/// The topic that the spoke is on.
#[derive(Debug)]
struct Membership {
    topic: [u8; 32],
    reach: Reach,
    /// Whether the hub told of it on this link. What is left over from an earlier one is listened to
    /// while there is something to hear.
    told: bool,
}

/// See the [module](self).
///
/// After everything that comes in, and at [`deadline`](Self::deadline) after a [`tick`](Self::tick), poll for
/// orders until there are none, and for deliveries as long as listeners take them.
#[derive(Debug)]
pub(crate) struct Reception {
    config: ReceptionConfig,
    metrics: Arc<ReceptionMetrics>,
    phase: Phase,
    /// None before the first welcome.
    inbox: Option<Inbox>,
    session: Option<SessionId>,
    targeted: Targeted,
    acks: Acks,
    given_up: GivenUp,
    topic: Option<Membership>,
    recovery: Recovery,
    /// What listeners get before anything else from the inbox.
    ready: VecDeque<Incoming>,
    /// What they get last.
    end: Option<SpokeStatus>,
    orders: VecDeque<Order>,
}

/// The targeted events of the session.
#[derive(Debug, Default)]
struct Targeted {
    parts: Assembly,
    /// The last one that was taken whole.
    taken: u64,
    /// All up to this one were let out, and these beyond it.
    released: u64,
    ahead: BTreeSet<u64>,
    /// How many were taken in earlier sessions: in the inbox, the numbers go on over all of them.
    before: u64,
    /// Over the limit, and its last part has not come yet.
    refusing: Option<u64>,
    /// Those that were over the limit, oldest first; said again on a new link.
    refused: VecDeque<u64>,
}

impl Targeted {
    /// A session begins that knows nothing of those before.
    fn begin_session(&mut self) {
        *self = Self {
            before: self.before.saturating_add(self.taken),
            ..Self::default()
        };
    }

    /// An event is over the limit, or a later part of it came. It counts as taken and let out once its last
    /// part is here.
    fn refuse(&mut self, seq: u64, of: PartOf) {
        self.parts = Assembly::default();
        self.refusing = Some(seq);
        if of.part + 1 < of.parts {
            return;
        }
        self.refusing = None;
        self.taken = seq;
        if self.refused.len() >= MAX_REFUSED {
            self.refused.pop_front();
        }
        self.refused.push_back(seq);
        self.release(self.before.saturating_add(seq));
    }

    /// The inbox has let out the event with this number of its own.
    fn release(&mut self, number: u64) {
        // Of what was taken in an earlier session nothing is acknowledged any more.
        let Some(seq) = number.checked_sub(self.before).filter(|seq| *seq > 0) else {
            return;
        };
        self.ahead.insert(seq);
        while self.ahead.remove(&self.released.saturating_add(1)) {
            self.released += 1;
        }
    }
}

impl Reception {
    pub(crate) fn new(
        config: ReceptionConfig,
        metrics: Arc<ReceptionMetrics>,
        now: Instant,
    ) -> Self {
        // To begin at a position is to go on.
        let resumes = matches!(config.start, Start::At(_));
        let acks = Acks::new(now, config.seed);
        Self {
            config,
            metrics,
            phase: Phase::Away,
            inbox: None,
            session: None,
            targeted: Targeted::default(),
            acks,
            given_up: GivenUp::default(),
            topic: None,
            recovery: Recovery::new(resumes),
            ready: VecDeque::new(),
            end: None,
            orders: VecDeque::new(),
        }
    }

    /// What to say to the hub on a new link. From now on until [`welcomed`](Self::welcomed) or
    /// [`lost`](Self::lost), broadcasts are taken and none is let out.
    pub(crate) fn hello(&mut self) -> Hello {
        self.phase = Phase::Greeting;
        Hello {
            version: VERSION,
            features: match self.config.gossip {
                true => FEATURE_RUNS | FEATURE_GOSSIP,
                false => FEATURE_RUNS,
            },
            session: self.session,
            targeted: self.targeted.taken,
            start: self.start(),
        }
    }

    fn start(&self) -> Start {
        self.position().map_or(self.config.start, Start::At)
    }

    /// The position of the next broadcast to let out; none before the first welcome.
    pub(crate) fn position(&self) -> Option<Position> {
        self.inbox.as_ref().map(Inbox::position)
    }

    /// The hub has answered the hello. Says whether the session goes on.
    ///
    /// # Errors
    ///
    /// If the answer does not fit the hello; give the link up.
    pub(crate) fn welcomed(&mut self, now: Instant, welcome: &Welcome) -> Result<bool, LinkError> {
        self.resume(now, welcome)?;
        let resumed = self.session == Some(welcome.session);
        if !resumed {
            self.session = Some(welcome.session);
            self.targeted.begin_session();
        }
        self.phase = Phase::Linked;
        let every = Duration::from_millis(welcome.ack_every_ms.into());
        self.acks.begin(now, every, (welcome.start, 0));
        // What was given up on the last link may not have reached the hub.
        for (from, to) in self.given_up.ranges(welcome.epoch) {
            self.orders
                .push_back(Order::Write(ToHub::Missed { from, to }));
        }
        // The hub knows then that the welcome has come.
        self.orders.push_back(Order::Write(ToHub::Ack {
            offset: welcome.start,
            seq: 0,
        }));
        if resumed {
            for seq in &self.targeted.refused {
                let refused = ToHub::Refused { seq: *seq };
                self.orders.push_back(Order::Write(refused));
            }
        }
        let position = self.position();
        self.tell(SpokeStatus::Connected { position });
        self.recovery.welcomed(welcome.tip);
        self.look_for_recovery();
        Ok(resumed)
    }

    /// Brings the inbox to where the hub goes on.
    fn resume(&mut self, now: Instant, welcome: &Welcome) -> Result<(), LinkError> {
        let start = Position::new(welcome.epoch, welcome.start);
        let asked = match self.start() {
            Start::At(asked) => Some(asked),
            Start::Tip | Start::Earliest => None,
        };
        let fits = match asked {
            Some(asked) if welcome.continues => asked.offset == start.offset,
            _ => true,
        };
        if !fits || welcome.tip < welcome.start {
            return Err(e!(LinkError::Misbehaved {
                what: "the welcome does not answer the hello"
            }));
        }
        if !welcome.continues {
            // What is here was sent before; what follows is of another life of the log.
            self.let_out_rest(now);
        }
        let from = self.position().or(asked);
        match &mut self.inbox {
            None => {
                let config = InboxConfig {
                    max_event_bytes: self.config.max_event_bytes,
                    max_buffered_bytes: self.config.max_buffered_bytes,
                    gap_wait: gap_wait(1),
                    gap_jitter: WANT_JITTER,
                    ..Default::default()
                };
                let seed = self.config.seed;
                let inbox = Inbox::new(config, now, start.epoch, start.offset, welcome.tip, seed);
                self.inbox = Some(inbox);
            }
            Some(inbox) => {
                if start.epoch != inbox.epoch() || !welcome.continues {
                    inbox.begin_epoch(now, start.epoch, start.offset, welcome.tip);
                } else {
                    inbox.on_tip(now, welcome.tip);
                }
            }
        }
        if from.is_some_and(|from| from.epoch != start.epoch) {
            // Its topic belongs to the old epoch.
            self.leave_topic();
        }
        if let Some(from) = from
            && !welcome.continues
        {
            self.metrics.positions_lost.inc();
            let hole = self.missed(from, start);
            // Holes without an event between them are one.
            match self.ready.iter_mut().rev().find_map(as_missed) {
                Some(last) if last.to == from => last.to = start,
                _ => self.ready.push_back(hole),
            }
        }
        if let Some(topic) = &mut self.topic {
            topic.told = false;
            topic.reach.relapse();
        }
        self.serve_directly(now);
        Ok(())
    }

    /// The link is lost, or an attempt to make one failed; the next one begins after a while.
    pub(crate) fn lost(&mut self, now: Instant, closed: &Closed, attempt: u32, after: Duration) {
        self.cut(now);
        if self.inbox.is_some() {
            self.recovery.lost();
        }
        self.tell(SpokeStatus::Reconnecting {
            attempt,
            after,
            closed: closed.clone(),
        });
    }

    /// The spoke ends. What is here and in its turn can still be let out, and the end behind it.
    pub(crate) fn closed(&mut self, now: Instant, closed: &Closed) {
        self.cut(now);
        self.leave_topic();
        self.end = Some(SpokeStatus::Closed(closed.clone()));
    }

    fn cut(&mut self, now: Instant) {
        self.phase = Phase::Away;
        self.targeted.parts = Assembly::default();
        self.targeted.refusing = None;
        self.orders
            .retain(|order| !matches!(order, Order::Write(_) | Order::Published { .. }));
        if let Some(topic) = &mut self.topic {
            topic.told = false;
        }
        // There is nobody to want anything from.
        self.serve_directly(now);
    }

    fn serve_directly(&mut self, now: Instant) {
        if let Some(inbox) = &mut self.inbox {
            inbox.set_direct(now, true);
        }
    }

    /// Takes a frame that came along the link.
    ///
    /// # Errors
    ///
    /// If the hub breaks the protocol or a bound; give the link up.
    pub(crate) fn frame(&mut self, now: Instant, frame: ToSpoke) -> Result<(), LinkError> {
        let Some(inbox) = &mut self.inbox else {
            return Err(misbehaved("a frame before the welcome"));
        };
        match frame {
            ToSpoke::Welcome(_) => return Err(misbehaved("a second welcome")),
            ToSpoke::Event { offset, of, body } => {
                self.part(now, offset, of, body, Via::Direct)?;
            }
            ToSpoke::Events { first, bodies } => {
                // This way round, the range is not asked for what lies behind the last of all offsets.
                for (body, offset) in bodies.into_iter().zip(first..) {
                    self.part(now, offset, PartOf::WHOLE, body, Via::Direct)?;
                }
            }
            ToSpoke::Repair { offset, of, body } => {
                self.part(now, offset, of, body, Via::Repair)?;
            }
            ToSpoke::Targeted {
                seq,
                after,
                of,
                body,
            } => self.targeted(now, seq, after, of, body)?,
            ToSpoke::Topic(topic) => self.on_topic(now, topic),
            ToSpoke::LeaveTopic => {
                let was_served = self.is_served();
                self.leave_topic();
                if was_served {
                    // The hub knows only what was acknowledged, which may be long ago.
                    self.want_direct(now);
                } else {
                    self.serve_directly(now);
                }
            }
            ToSpoke::Missed { from, to } => inbox.on_missed(now, from, to),
            ToSpoke::Ack { seq } => self.orders.push_back(Order::Published { seq }),
            ToSpoke::AckNow { offset } => self.acks.hurry(offset),
            ToSpoke::AckEvery { millis } => {
                self.acks.pace(now, Duration::from_millis(millis.into()));
            }
            ToSpoke::Rekey(rekey) => {
                let generation = rekey.keys.generation;
                let confirm = rekey.confirm;
                if self.topic.is_some() {
                    self.orders.push_back(Order::Rekey(rekey));
                }
                if confirm {
                    let rekeyed = ToHub::Rekeyed { generation };
                    self.orders.push_back(Order::Write(rekeyed));
                }
            }
        }
        Ok(())
    }

    fn part(
        &mut self,
        now: Instant,
        offset: u64,
        of: PartOf,
        body: Bytes,
        via: Via,
    ) -> Result<(), LinkError> {
        let Some(inbox) = &mut self.inbox else {
            return Ok(());
        };
        let part = Part {
            offset,
            part: of.part,
            parts: of.parts,
            body,
            via,
        };
        match inbox.insert(now, part) {
            Ok(Inserted::New) => {
                if of.parts > 1 && offset == inbox.next() {
                    self.acks.moving();
                }
            }
            Ok(Inserted::Duplicate) => {
                self.metrics.duplicates.inc();
            }
            Ok(Inserted::Dropped) => {
                self.metrics.dropped.inc();
            }
            Err(InboxError::TooLarge { .. }) => {
                warn!(offset, "a broadcast is over this spoke's max_event_bytes");
                let to = offset.saturating_add(1);
                inbox.on_missed(now, offset, to);
                self.given_up.add(inbox.epoch(), offset, to);
                self.orders
                    .push_back(Order::Write(ToHub::Missed { from: offset, to }));
            }
            Err(error) => {
                self.metrics.frames_bad.inc();
                debug!(%error, offset, "a part of an event does not fit");
                if via != Via::Gossip {
                    return Err(misbehaved("the parts of an event do not fit together"));
                }
            }
        }
        Ok(())
    }

    /// Gathers the parts of a targeted event, and hands it to the inbox, which knows its place.
    fn targeted(
        &mut self,
        now: Instant,
        seq: u64,
        after: Position,
        of: PartOf,
        body: Bytes,
    ) -> Result<(), LinkError> {
        if seq <= self.targeted.taken {
            // Sent again, since the hub did not know that we have it.
            self.metrics.duplicates.inc();
            return Ok(());
        }
        if seq != self.targeted.taken.saturating_add(1) {
            return Err(misbehaved("targeted events are not numbered one by one"));
        }
        if self.targeted.refusing == Some(seq) {
            self.refuse(seq, of);
            return Ok(());
        }
        let limit = self.config.max_event_bytes;
        let body = match self.targeted.parts.push(seq, of, body, limit) {
            Ok(Some(body)) => body,
            Ok(None) => return Ok(()),
            Err(BadPart::TooLarge { .. }) => {
                self.refuse(seq, of);
                return Ok(());
            }
            Err(BadPart::OutOfOrder) => {
                return Err(misbehaved("the parts of a targeted event are out of order"));
            }
        };
        let Some(inbox) = &mut self.inbox else {
            return Ok(());
        };
        let number = self.targeted.before.saturating_add(seq);
        match inbox.on_targeted(now, after, body, number) {
            Ok(()) => {
                self.targeted.taken = seq;
                Ok(())
            }
            // It is sent again on the next link, when some of those that wait have gone.
            Err(InboxError::TargetedFull { .. }) => Err(e!(LinkError::TooMany {
                what: "more targeted events wait than this spoke holds"
            })),
            Err(_) => {
                self.refuse(seq, of);
                Ok(())
            }
        }
    }

    /// A targeted event is over this spoke's limit: its sender is told.
    fn refuse(&mut self, seq: u64, of: PartOf) {
        self.targeted.refuse(seq, of);
        if self.targeted.refusing.is_none() {
            warn!(seq, "an event for this spoke is over its max_event_bytes");
            let refused = ToHub::Refused { seq };
            self.orders.push_back(Order::Write(refused));
        }
    }

    fn on_topic(&mut self, now: Instant, topic: Box<Topic>) {
        if !self.config.gossip {
            return;
        }
        let Some(inbox) = &mut self.inbox else {
            return;
        };
        inbox.set_gap_wait(gap_wait(topic.members));
        if let Some(member) = &mut self.topic
            && member.topic == topic.topic
        {
            let was_told = std::mem::replace(&mut member.told, true);
            let served = member.reach.is_served();
            let id = member.topic;
            if served && was_told {
                // The hub serves us directly, since the topic does not reach us as far as it sees.
                member.reach.relapse();
            }
            self.orders.push_back(Order::Rekey(Box::new(Rekey {
                keys: topic.keys,
                evict: Vec::new(),
                revoked: false,
                confirm: false,
            })));
            self.orders.push_back(Order::Meet { peers: topic.peers });
            if served && was_told {
                // A word of ours that the topic serves us may be under way. This one comes behind it.
                self.want_direct(now);
            } else if served {
                let from = inbox.next();
                inbox.set_direct(now, false);
                let served = ToHub::Served { topic: id, from };
                self.orders.push_back(Order::Write(served));
            }
            return;
        }
        let epoch = inbox.epoch();
        self.leave_topic();
        self.serve_directly(now);
        self.topic = Some(Membership {
            topic: topic.topic,
            reach: Reach::new(now),
            told: true,
        });
        self.orders.push_back(Order::Join { topic, epoch });
    }

    fn leave_topic(&mut self) {
        if let Some(member) = self.topic.take() {
            let was_served = member.reach.is_served();
            debug!(target: events::MEMBER_LEFT, was_served);
            self.orders.push_back(Order::Leave);
        }
    }

    /// The topic could not be joined, or its node has ended.
    pub(crate) fn topic_ended(&mut self, now: Instant) {
        if let Some(member) = self.topic.take() {
            let was_served = member.reach.is_served();
            self.orders.push_back(Order::Leave);
            if was_served {
                self.want_direct(now);
            }
        }
    }

    fn want_direct(&mut self, now: Instant) {
        self.serve_directly(now);
        if let Some(inbox) = &self.inbox
            && self.phase == Phase::Linked
        {
            let from = inbox.next();
            self.orders
                .push_back(Order::Write(ToHub::Want { from, to: None }));
        }
    }

    /// Takes what a frame of the topic carried.
    pub(crate) fn opened(&mut self, now: Instant, opened: Opened) {
        let (Some(inbox), Some(_)) = (&mut self.inbox, &self.topic) else {
            return;
        };
        let next = inbox.next();
        // A bad part from the topic is counted, no more.
        let (beacon, joins_up) = match opened {
            Opened::Beacon { tip } => {
                inbox.on_tip(now, tip);
                (true, tip <= next)
            }
            Opened::Events { first, bodies } => {
                for (body, offset) in bodies.into_iter().zip(first..) {
                    let _ = self.part(now, offset, PartOf::WHOLE, body, Via::Gossip);
                }
                (false, first <= next)
            }
            Opened::Part { offset, of, body } => {
                let _ = self.part(now, offset, of, body, Via::Gossip);
                (false, offset <= next)
            }
        };
        let (Some(inbox), Some(member)) = (&mut self.inbox, &mut self.topic) else {
            return;
        };
        if member.reach.heard(now, beacon, joins_up) == Some(Change::Served) && member.told {
            debug!(target: events::MEMBER_SERVED, from = next);
            inbox.set_direct(now, false);
            let topic = member.topic;
            self.orders
                .push_back(Order::Write(ToHub::Served { topic, from: next }));
        }
    }

    /// Looks at the time.
    pub(crate) fn tick(&mut self, now: Instant) {
        let Some(member) = &mut self.topic else {
            return;
        };
        if member.told {
            if member.reach.tick(now) == Some(Change::Isolated) {
                let from = self.inbox.as_ref().map(Inbox::next);
                debug!(target: events::MEMBER_ISOLATED, from);
                self.metrics.isolated.inc();
                self.want_direct(now);
            }
        } else if now >= member.reach.silent_at() {
            // No hub speaks on it, and none has told of it since the link was lost.
            self.leave_topic();
        }
    }

    /// When to [`tick`](Self::tick) and poll though nothing comes. `held` says that listeners take nothing.
    pub(crate) fn deadline(&self, held: bool) -> Option<Instant> {
        let inbox = self.inbox.as_ref().filter(|_| !held);
        let topic = self.topic.as_ref().and_then(|member| {
            if member.told {
                member.reach.deadline()
            } else {
                Some(member.reach.silent_at())
            }
        });
        let acks = self.acks.deadline(self.released());
        [
            inbox.and_then(Inbox::deadline),
            topic,
            acks.filter(|_| self.phase == Phase::Linked),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The spoke is about to say goodbye: what it has, it acknowledges now.
    pub(crate) fn last_ack(&mut self, now: Instant) {
        self.acks.due(now);
    }

    fn released(&self) -> (u64, u64) {
        let next = self.inbox.as_ref().map_or(0, Inbox::next);
        (next, self.targeted.released)
    }

    /// Whether there is room for what comes along the link while listeners take nothing.
    pub(crate) fn has_room(&self) -> bool {
        let has_room =
            |inbox: &Inbox| inbox.has_room() && inbox.has_room_for(run::MAX_EVENTS, MAX_PART);
        self.inbox.as_ref().is_none_or(has_room)
    }

    /// Whether the topic serves this spoke.
    pub(crate) fn is_served(&self) -> bool {
        let served = |member: &Membership| member.told && member.reach.is_served();
        self.topic.as_ref().is_some_and(served)
    }

    /// The next thing to do, if there is one.
    pub(crate) fn poll_order(&mut self, now: Instant) -> Option<Order> {
        if let Some(order) = self.orders.pop_front() {
            return Some(order);
        }
        if self.phase != Phase::Linked {
            return None;
        }
        let (offset, seq) = self.acks.poll(now, self.released())?;
        Some(Order::Write(ToHub::Ack { offset, seq }))
    }

    /// What listeners get next, if there is something. There may be [orders](Self::poll_order) behind it.
    pub(crate) fn poll_delivery(&mut self, now: Instant) -> Option<Incoming> {
        if let Some(item) = self.ready.pop_front() {
            return Some(item);
        }
        if self.phase == Phase::Greeting {
            return None;
        }
        match self.poll_inbox(now) {
            Some(item) => Some(item),
            None => self.end.take().map(Incoming::Status),
        }
    }

    fn poll_inbox(&mut self, now: Instant) -> Option<Incoming> {
        loop {
            let inbox = self.inbox.as_mut()?;
            let epoch = inbox.epoch();
            let output = inbox.poll(now)?;
            let item = match output {
                Output::Event { offset, body, via } => {
                    let position = Position::new(epoch, offset);
                    Some(self.broadcast(position, body, via))
                }
                Output::Missed { from, to } => {
                    let (from, to) = (Position::new(epoch, from), Position::new(epoch, to));
                    Some(self.missed(from, to))
                }
                Output::Targeted { seq, body } => self.released_targeted(seq, body),
                Output::Want { from, to } => {
                    self.metrics.wants.inc();
                    let want = ToHub::Want { from, to: Some(to) };
                    self.orders.push_back(Order::Write(want));
                    None
                }
            };
            self.look_for_recovery();
            if item.is_some() {
                return item;
            }
        }
    }

    /// Brings to the front what is whole and in its turn, within the bounds of an inbox.
    fn let_out_rest(&mut self, now: Instant) {
        let mut bytes: usize = self.ready.iter().map(size).sum();
        while bytes <= self.config.max_buffered_bytes
            && let Some(item) = self.poll_inbox(now)
        {
            bytes = bytes.saturating_add(size(&item));
            self.ready.push_back(item);
        }
    }

    fn broadcast(&mut self, position: Position, body: Bytes, via: Via) -> Incoming {
        self.acks.released(body.len());
        let envelope = match Envelope::from_body(body) {
            Ok(envelope) => envelope,
            Err(error) => {
                warn!(%error, %position, "the hub broadcast something that is no event");
                self.metrics.frames_bad.inc();
                return self.missed(position, position.next());
            }
        };
        match via {
            Via::Direct => self.metrics.events_direct.inc(),
            Via::Gossip => self.metrics.events_gossip.inc(),
            Via::Repair => self.metrics.events_repaired.inc(),
        };
        let mut event = Event::new(envelope, Source::Hub(self.config.hub));
        event.position = Some(position);
        event.via = Some(via);
        Incoming::Event(event)
    }

    fn missed(&mut self, from: Position, to: Position) -> Incoming {
        let missed = Missed { from, to };
        self.metrics
            .events_missed
            .inc_by(missed.events().unwrap_or(0));
        self.recovery.missed();
        self.orders
            .push_back(Order::Tell(SpokeStatus::Missed(missed)));
        Incoming::Missed(missed)
    }

    fn released_targeted(&mut self, number: u64, body: Bytes) -> Option<Incoming> {
        self.targeted.release(number);
        self.metrics.events_targeted.inc();
        let envelope = Envelope::from_body(body)
            .inspect_err(|error| {
                self.metrics.frames_bad.inc();
                warn!(%error, "the hub sent us something that is no event");
            })
            .ok()?;
        let mut event = Event::new(envelope, Source::Hub(self.config.hub));
        event.via = Some(Via::Direct);
        event.targeted = true;
        Some(Incoming::Event(event))
    }

    /// Says so if the inbox has reached what the welcome named. Listeners get it behind what was let out.
    fn look_for_recovery(&mut self) {
        let next = self.inbox.as_ref().map_or(0, Inbox::next);
        if let Some(wholly) = self.recovery.reached(next) {
            self.tell(SpokeStatus::Recovered { wholly });
        }
    }

    fn tell(&mut self, status: SpokeStatus) {
        self.orders.push_back(Order::Tell(status.clone()));
        let statuses = self
            .ready
            .iter()
            .filter(|item| matches!(item, Incoming::Status(_)))
            .count();
        if statuses >= MAX_STATUSES
            && let Some(last) = self.ready.back_mut()
            && matches!(last, Incoming::Status(_))
        {
            *last = Incoming::Status(status);
            return;
        }
        self.ready.push_back(Incoming::Status(status));
    }
}

/// How long a gap may close by itself on a topic of so many: what is late is mostly on its way.
fn gap_wait(members: u32) -> Duration {
    arrives_within(usize::try_from(members).unwrap_or(usize::MAX))
}

fn as_missed(item: &mut Incoming) -> Option<&mut Missed> {
    match item {
        Incoming::Missed(missed) => Some(missed),
        _ => None,
    }
}

fn misbehaved(what: &'static str) -> LinkError {
    e!(LinkError::Misbehaved { what })
}

fn size(item: &Incoming) -> usize {
    match item {
        Incoming::Event(event) => event.envelope.size(),
        Incoming::Missed(_) | Incoming::Lagged(_) | Incoming::Status(_) => 0,
    }
}

//! One life of the hub in a case: its log, the sessions it knows, and the links it believes in.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use iroh::EndpointId;
use rand::{Rng, RngExt};

use tracing::trace;

use super::{Breakage, model::Model};
use crate::{
    delivery::{Loss, SendReceipt},
    event::Envelope,
    hub::{
        Behind,
        desk::{Batch, Desk, TopicOrder},
        mailbox::{Mailbox, MailboxLimits, NoRoom},
        sessions::{SessionLimits, Sessions},
        shared_log::{Loading, SharedLog, Unsynced, UnsyncedLimits},
    },
    link_io::LinkError,
    log::{
        LogConfig, Read,
        resume::{Ask, Previous},
    },
    position::{Epoch, Position},
    protocol::Protocol,
    seal::Opened,
    spoke_id::SpokeId,
    wire::{
        assembly::Assembly,
        framing::Deframer,
        native::{
            self, FEATURE_GOSSIP, FEATURE_RUNS, GenerationKeys, Hello, SessionId, Start, ToHub,
            ToSpoke, Topic, Welcome,
        },
    },
};

/// What is in the file of a durable log.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    epoch: Epoch,
    previous: Vec<Previous>,
    head: u64,
    events: Vec<Bytes>,
}

impl Disk {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            previous: Vec::new(),
            head: 0,
            events: Vec::new(),
        }
    }

    fn tip(&self) -> u64 {
        self.head + self.events.len() as u64
    }

    /// One commit: all of it or nothing.
    fn commit(&mut self, unsynced: &Unsynced) {
        if let Some(epoch) = unsynced.begin {
            let fork = self.tip();
            self.previous.push(Previous {
                epoch: self.epoch,
                fork,
            });
            self.epoch = epoch;
        }
        self.events.extend(unsynced.bodies.iter().cloned());
        let gone = unsynced
            .head
            .saturating_sub(self.head)
            .min(self.events.len() as u64);
        self.events.drain(..gone as usize);
        self.head += gone;
    }

    /// What the log does with a file that is not the one it was written to: it begins an epoch.
    pub(super) fn restored(&mut self, epoch: Epoch) -> (Epoch, u64) {
        let fork = self.tip();
        let parent = std::mem::replace(&mut self.epoch, epoch);
        self.previous.push(Previous {
            epoch: parent,
            fork,
        });
        (parent, fork)
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// What is kept of one spoke through all links of its session.
struct Member {
    key: SessionId,
    mailbox: Mailbox,
    /// The last of its events that the listeners have.
    heard: u64,
    acked: u64,
}

/// A link that the hub believes in.
struct Link {
    id: SpokeId,
    /// The sessions' number of it.
    number: u64,
    epoch: Epoch,
    desk: Desk,
    deframer: Deframer,
    last_seq: u64,
    assembly: Assembly,
}

pub(super) struct Hub {
    log: SharedLog,
    pub(super) disk: Option<Disk>,
    sessions: Sessions,
    members: BTreeMap<SpokeId, Member>,
    /// By the number of the wire.
    links: BTreeMap<u64, Link>,
    topic: [u8; 32],
    breakage: Breakage,
    entries: Vec<(u64, Arc<crate::hub::shared_log::Entry>)>,
}

/// The number that an event carries.
pub(super) fn number(event: &Envelope) -> u64 {
    event.id().parse().unwrap_or(u64::MAX)
}

/// A hello is refused.
pub(super) const NOT_TAKEN: &str = "the hub does not take the spoke";

fn limits() -> SessionLimits {
    SessionLimits {
        of_one: 1000,
        connected: 8,
        away: 3,
        away_bytes: 4096,
        lifetime: Duration::from_secs(120),
    }
}

impl Hub {
    pub(super) fn new(
        config: LogConfig,
        disk: Option<Disk>,
        epoch: Epoch,
        breakage: Breakage,
        rng: &mut impl Rng,
    ) -> Self {
        let log = match &disk {
            None => SharedLog::with_epoch(config, epoch),
            Some(disk) => {
                let limits = UnsyncedLimits {
                    events: 6,
                    bytes: 1 << 20,
                };
                let events = disk.events.iter().cloned().map(Envelope::from_body);
                let events = events.filter_map(Result::ok);
                let mut loading = Loading::new(config);
                for (offset, event) in (disk.head..).zip(events) {
                    loading.push(offset, event);
                }
                let tip = disk.head + disk.events.len() as u64;
                loading.finish(limits, (disk.epoch, disk.previous.clone()), tip)
            }
        };
        Self {
            log,
            disk,
            sessions: Sessions::new(limits()),
            members: BTreeMap::new(),
            links: BTreeMap::new(),
            topic: rng.random(),
            breakage,
            entries: Vec::new(),
        }
    }

    pub(super) fn tip(&self) -> Position {
        self.log.tip_position()
    }

    /// Broadcasts an event; false: too much waits for the disk.
    pub(super) fn broadcast(&mut self, event: Envelope, model: &mut Model) -> bool {
        let number = number(&event);
        let Ok(position) = self.log.append(event) else {
            return false;
        };
        if self.disk.is_none() {
            model.readable(position.epoch, position.offset, number);
        }
        model.head(position.epoch, self.log.head());
        true
    }

    /// What was appended gets to the disk, and may be read.
    pub(super) fn sync(&mut self, model: &mut Model) {
        let (Some(disk), Some(unsynced)) = (&mut self.disk, self.log.unsynced()) else {
            return;
        };
        let synced = disk.tip();
        disk.commit(&unsynced);
        if let Some(epoch) = unsynced.begin {
            let parent = disk
                .previous
                .last()
                .map(|previous| (previous.epoch, previous.fork));
            model.epoch(epoch, parent);
        }
        for (offset, body) in (synced..).zip(&unsynced.bodies) {
            let event = Envelope::from_body(body.clone()).map_or(u64::MAX, |event| number(&event));
            model.readable(disk.epoch, offset, event);
        }
        self.log.set_synced(&unsynced);
        model.head(self.log.epoch(), self.log.head());
    }

    /// How many events are appended and not on the disk.
    pub(super) fn waiting(&self) -> u64 {
        self.log
            .unsynced()
            .map_or(0, |unsynced| unsynced.bodies.len() as u64)
    }

    /// Where the spoke begins; from beyond the tip of a durable log, a new epoch begins first.
    fn begin(
        &mut self,
        ask: Ask,
        epoch: Epoch,
        model: &mut Model,
    ) -> crate::hub::shared_log::Begin {
        let begin = self.log.resume(ask);
        if begin.resume.begins_new_epoch && self.log.want_epoch(epoch).is_some() {
            self.sync(model);
            return self.log.resume(ask);
        }
        begin
    }

    /// A spoke says hello on a wire. Gives the welcome, unless it is refused.
    fn hello(
        &mut self,
        wire: u64,
        endpoint: EndpointId,
        hello: &Hello,
        rng: &mut impl Rng,
        model: &mut Model,
    ) -> Option<Vec<Bytes>> {
        let ask = match hello.start {
            Start::Tip => Ask::Tip,
            Start::Earliest => Ask::Earliest,
            Start::At(position) => Ask::At(position),
        };
        let begin = self.begin(ask, Epoch::from_u64(rng.random()), model);
        let start = Position::new(begin.epoch, begin.resume.start);
        if !matches!(hello.start, Start::At(_)) {
            model.begins(wire, start);
        }
        let back = hello
            .session
            .and_then(|key| self.sessions.find(endpoint, &key));
        if let Some(member) = back.and_then(|id| self.members.get(&id))
            && member.mailbox.check_taken(hello.targeted).is_err()
        {
            return None;
        }
        let key = SessionId(rng.random());
        let can_gossip = hello.features & FEATURE_GOSSIP != 0;
        let joined = self.sessions.join(endpoint, back, Some(key), can_gossip)?;
        let fenced: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, link)| link.id == joined.id)
            .map(|(wire, _)| *wire)
            .collect();
        for wire in fenced {
            self.links.remove(&wire);
            model.counts.fenced += 1;
        }
        let member = self.members.entry(joined.id).or_insert_with(|| Member {
            key,
            mailbox: Mailbox::new(
                joined.id,
                Protocol::Native,
                MailboxLimits {
                    events: 32,
                    bytes: 1 << 20,
                },
            ),
            heard: 0,
            acked: start.offset,
        });
        if self.breakage == Breakage::ForgetsHeard {
            member.heard = 0;
        }
        let taken = if joined.returned { hello.targeted } else { 0 };
        member.mailbox.attach(joined.link, taken);
        member.acked = member.acked.max(start.offset);
        let welcome = ToSpoke::Welcome(Welcome {
            version: native::VERSION,
            features: FEATURE_GOSSIP,
            session: member.key,
            published: member.heard,
            epoch: begin.epoch,
            tip: begin.tip,
            start: start.offset,
            continues: begin.resume.continues || self.breakage == Breakage::SaysContinues,
            max_event_bytes: 1 << 20,
            ack_every_ms: 20,
            publish_window: 4 << 20,
        });
        let link = Link {
            id: joined.id,
            number: joined.link,
            epoch: begin.epoch,
            desk: Desk::new(Protocol::Native, joined.link, start.offset, Behind::Skip)
                .with_runs(hello.features & FEATURE_RUNS != 0),
            deframer: Deframer::new(native::MAX_FRAME),
            last_seq: member.heard,
            assembly: Assembly::default(),
        };
        self.links.insert(wire, link);
        let mut chunks = Vec::new();
        welcome.encode(&mut chunks);
        Some(chunks)
    }

    /// Bytes of a spoke arrive on a wire. Gives what is to be written at once; an error ends the link.
    pub(super) fn bytes(
        &mut self,
        wire: u64,
        endpoint: EndpointId,
        chunks: Vec<Bytes>,
        rng: &mut impl Rng,
        model: &mut Model,
    ) -> Result<Option<Vec<Bytes>>, String> {
        let mut fresh = Deframer::new(native::MAX_FRAME);
        let mut frames = Vec::new();
        let linked = self.links.contains_key(&wire);
        let deframer = self
            .links
            .get_mut(&wire)
            .map_or(&mut fresh, |link| &mut link.deframer);
        for chunk in chunks {
            deframer.push(chunk);
            while let Some(frame) = deframer.next().map_err(|error| error.to_string())? {
                frames.push(frame);
            }
        }
        let mut welcome = None;
        for frame in frames {
            let frame = ToHub::decode(frame).map_err(|error| error.to_string())?;
            trace!(wire, ?frame, "to the hub");
            match frame {
                Some(ToHub::Hello(hello)) if !linked => {
                    let chunks = self.hello(wire, endpoint, &hello, rng, model);
                    welcome = Some(chunks.ok_or(NOT_TAKEN)?);
                }
                Some(frame) => self
                    .frame(wire, frame, model)
                    .map_err(|error| error.to_string())?,
                None => return Err("a frame of an unknown kind".to_owned()),
            }
        }
        Ok(welcome)
    }

    fn frame(&mut self, wire: u64, frame: ToHub, model: &mut Model) -> Result<(), LinkError> {
        let misbehaved = |what| Err(n0_error::e!(LinkError::Misbehaved { what }));
        let tip = self.log.tip();
        let Some(link) = self.links.get_mut(&wire) else {
            // Fenced off, or ended.
            return Ok(());
        };
        let Some(member) = self.members.get_mut(&link.id) else {
            return Ok(());
        };
        match frame {
            ToHub::Hello(_) => misbehaved("a second hello"),
            ToHub::Ack { offset, .. } | ToHub::Want { from: offset, .. } if offset > tip => {
                misbehaved("acknowledged or wanted what does not exist")
            }
            ToHub::Ack { offset, seq } => {
                member.acked = member.acked.max(offset);
                member.mailbox.acked(link.number, seq).map(|_| ())
            }
            ToHub::Want { from, to: Some(to) } => {
                if to > tip || from > to {
                    return misbehaved("wants what does not exist");
                }
                link.desk.repair(from, to);
                Ok(())
            }
            ToHub::Want { from, to: None } => {
                link.desk.serve_from(from);
                Ok(())
            }
            ToHub::Served { topic, .. } => {
                if topic == self.topic {
                    link.desk.park();
                }
                Ok(())
            }
            ToHub::Rekeyed { .. } => misbehaved("says it has keys that nobody asked about"),
            ToHub::Missed { .. } | ToHub::Refused { .. } => {
                misbehaved("gave something up, though it has room")
            }
            ToHub::Publish { seq, of, body } => {
                if seq <= link.last_seq {
                    link.desk.acknowledge(link.last_seq);
                    return Ok(());
                }
                if seq != link.last_seq + 1 {
                    return misbehaved("its events are not numbered one by one");
                }
                let whole = link.assembly.push(seq, of, body, 1 << 20);
                let Ok(Some(body)) = whole else {
                    return whole
                        .map(|_| ())
                        .or_else(|_| misbehaved("its parts are out of order"));
                };
                let event = Envelope::from_body(body).map(|event| number(&event));
                model.heard(event.unwrap_or(u64::MAX));
                link.last_seq = seq;
                member.heard = seq;
                link.desk.acknowledge(seq);
                Ok(())
            }
        }
    }

    /// What a link has to write, if anything. An error ends it.
    pub(super) fn batch(&mut self, wire: u64) -> Result<Vec<Bytes>, String> {
        let mut chunks = Vec::new();
        let Some(link) = self.links.get_mut(&wire) else {
            return Ok(chunks);
        };
        let Some(member) = self.members.get_mut(&link.id) else {
            return Ok(chunks);
        };
        let entries = &mut self.entries;
        let batch =
            link.desk
                .next_batch(&mut member.mailbox, &self.log, true, entries, &mut chunks);
        let batch = batch.map_err(|error| error.to_string())?;
        // What was read before the epoch began is of the one before.
        if link.epoch != self.log.epoch() {
            return Err("a new epoch begins".to_owned());
        }
        debug_assert_eq!(chunks.is_empty(), matches!(batch, Batch::Idle { .. }));
        Ok(chunks)
    }

    /// The hub notices the end of a link. The spoke is away, unless it said goodbye.
    pub(super) fn link_ends(&mut self, wire: u64, now: Instant, goodbye: bool) {
        let Some(link) = self.links.remove(&wire) else {
            return;
        };
        let keep = self
            .members
            .get_mut(&link.id)
            .filter(|_| !goodbye)
            .map(|member| {
                member.mailbox.detach();
                member.mailbox.cost()
            });
        let left = self.sessions.leave(now, link.id, link.number, keep);
        if left.was_current && goodbye {
            self.forget(link.id, &Loss::ShutDown);
        }
        for id in left.evicted {
            self.forget(id, &Loss::Evicted);
        }
    }

    fn forget(&mut self, id: SpokeId, reason: &Loss) {
        if let Some(mut member) = self.members.remove(&id) {
            member.mailbox.end(reason);
        }
    }

    /// Sessions whose spokes have been away for long are given up.
    pub(super) fn expire(&mut self, now: Instant, model: &mut Model) {
        for id in self.sessions.expire(now) {
            model.counts.expired += 1;
            self.forget(id, &Loss::Expired);
        }
    }

    /// The process ends: what was sent to spokes is lost with it.
    pub(super) fn end(&mut self) {
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.forget(id, &Loss::ShutDown);
        }
    }

    /// Sends an event to the spoke that came last, connected or away. Gives its place and receipt, if there is room.
    pub(super) fn target(
        &mut self,
        event: &Envelope,
        overtake: bool,
    ) -> Option<(Position, SendReceipt)> {
        let tip = self.log.tip_position();
        let (&id, member) = self.members.last_key_value()?;
        let before = member.mailbox.cost();
        let member = self.members.get_mut(&id)?;
        let receipt = match member.mailbox.push(event, self.log.appended(), overtake) {
            Ok(receipt) => receipt,
            Err(NoRoom::Full | NoRoom::Away | NoRoom::Ended) => return None,
        };
        let more = member.mailbox.cost().saturating_sub(before);
        for id in self.sessions.keep_more(id, more) {
            self.forget(id, &Loss::Evicted);
        }
        Some((tip, receipt))
    }

    /// Tells the spoke of the topic.
    pub(super) fn tell_topic(&mut self, wire: u64, hub: EndpointId) {
        let topic = Topic {
            topic: self.topic,
            keys: GenerationKeys {
                generation: 0,
                key: [1; 32],
                verify_key: [2; 32],
            },
            peers: vec![iroh::EndpointAddr::new(hub)],
            max_frame_bytes: 65 * 1024,
            members: 1,
        };
        if let Some(link) = self.links.get_mut(&wire) {
            link.desk.order_topic(TopicOrder::Join(Box::new(topic)));
        }
    }

    /// Serves a spoke directly again.
    pub(super) fn unpark(&mut self, wire: u64) {
        if let Some(link) = self.links.get_mut(&wire)
            && let Some(member) = self.members.get(&link.id)
        {
            link.desk.unpark(member.acked);
        }
    }

    /// What a frame of the topic carries: up to `count` events from `from` on, or the tip.
    pub(super) fn frame_of_topic(&mut self, from: u64, count: usize) -> Opened {
        let tip = self.log.tip();
        self.entries.clear();
        match self.log.read(from, count, 1 << 20, &mut self.entries) {
            Read::Events => {
                let bodies = self
                    .entries
                    .drain(..)
                    .map(|(_, entry)| entry.envelope.body().clone());
                Opened::Events {
                    first: from,
                    bodies: bodies.collect(),
                }
            }
            Read::AtTip | Read::Trimmed { .. } | Read::Beyond { .. } => Opened::Beacon { tip },
        }
    }

    pub(super) fn topic(&self) -> ([u8; 32], Epoch) {
        (self.topic, self.log.epoch())
    }

    pub(super) fn head(&self) -> u64 {
        self.log.head()
    }

    /// Whether every event for the spoke that came last has reached it.
    pub(super) fn has_delivered_all(&self) -> bool {
        let last = self.members.last_key_value();
        last.is_none_or(|(_, member)| member.mailbox.is_empty())
    }

    pub(super) fn has_link(&self, wire: u64) -> bool {
        self.links.contains_key(&wire)
    }
}

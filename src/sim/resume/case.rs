//! One random life of a hub and a spoke, and the wires between them.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use iroh::{EndpointId, SecretKey};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IteratorRandom};

use super::{
    Breakage,
    hub::{Disk, Hub, NOT_TAKEN, number},
    model::{Counts, Model},
};
use tracing::trace;

use crate::{
    close::{CloseCode, Closed},
    delivery::Loss,
    event::Envelope,
    listen::Incoming,
    log::LogConfig,
    metrics::ReceptionMetrics,
    position::{Epoch, Position},
    protocol::Protocol,
    spoke::{
        SpokeStatus,
        outbox::Outbox,
        reception::{Order, Reception, ReceptionConfig},
    },
    wire::{
        framing::Deframer,
        native::{self, Start, ToHub, ToSpoke},
    },
};

/// How many rounds the two have in the end to get everything across.
const ROUNDS: usize = 3000;

/// A connection: what is under way on it, each way.
#[derive(Default)]
struct Wire {
    up: VecDeque<Vec<Bytes>>,
    down: VecDeque<Vec<Bytes>>,
}

/// One life of the spoke's process.
struct Spoke {
    reception: Reception,
    outbox: Outbox,
    /// The wire that it uses, and whether it was welcomed on it.
    wire: Option<(u64, bool)>,
    deframer: Deframer,
    /// The topic that it is on.
    topic: Option<([u8; 32], Epoch)>,
    attempt: u32,
    /// The last event for it alone that came.
    targeted: u64,
}

pub(super) struct Case {
    rng: StdRng,
    now: Instant,
    hub_id: EndpointId,
    endpoint: EndpointId,
    config: LogConfig,
    durable: bool,
    hub: Option<Hub>,
    /// What the file has, while there is no hub.
    disk: Option<Disk>,
    /// A copy of the file.
    copy: Option<Disk>,
    spoke: Spoke,
    wires: BTreeMap<u64, Wire>,
    last_wire: u64,
    last_event: u64,
    /// Positions that the spoke could have saved.
    saved: Vec<Position>,
    model: Model,
    breakage: Breakage,
}

impl Case {
    pub(super) fn new(seed: u64, breakage: Breakage) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let config = LogConfig::default().with_max_events(rng.random_range(2..40));
        let durable = rng.random_bool(0.6);
        let epoch = Epoch::from_u64(rng.random());
        let mut model = Model::default();
        model.epoch(epoch, None);
        let disk = durable.then(|| Disk::new(epoch));
        let hub = Hub::new(config, disk, epoch, breakage, &mut rng);
        let now = Instant::now();
        let [hub_id, endpoint] = [7, 8].map(|n| SecretKey::from_bytes(&[n; 32]).public());
        let start = if rng.random_bool(0.5) {
            Start::Tip
        } else {
            Start::Earliest
        };
        let spoke = Spoke::new(hub_id, start, now, rng.random());
        Self {
            rng,
            now,
            hub_id,
            endpoint,
            config,
            durable,
            hub: Some(hub),
            disk: None,
            copy: None,
            spoke,
            wires: BTreeMap::new(),
            last_wire: 0,
            last_event: 0,
            saved: Vec::new(),
            model,
            breakage,
        }
    }

    /// Runs the case. Says what happened, and what was wrong first.
    pub(super) fn run(mut self) -> (Counts, Option<String>) {
        for _ in 0..self.rng.random_range(20..160) {
            self.step();
            if self.model.broken.is_some() {
                break;
            }
        }
        self.settle();
        if self.model.broken.is_none() {
            self.spoke.outbox.close(&Loss::ShutDown);
            if let Some(hub) = &mut self.hub {
                hub.end();
            }
            self.model.judge();
        }
        (self.model.counts, self.model.broken)
    }

    fn broke(&mut self, words: String) {
        self.model.broken.get_or_insert(words);
    }

    fn step(&mut self) {
        let what = self.rng.random_range(0..1000);
        trace!(what, spoke = ?self.spoke.wire, wires = ?self.wires.keys(), tip = ?self.hub.as_ref().map(Hub::tip), "step");
        match what {
            0..120 => self.broadcast(),
            120..170 => self.sync(),
            170..220 => self.target(),
            220..270 => self.publish(),
            270..370 => self.hub_writes(),
            370..470 => self.hub_reads(),
            470..590 => {
                self.spoke_reads();
            }
            590..690 => {
                let most = self.rng.random_range(1..12);
                self.let_out(most);
            }
            690..780 => {
                self.spoke_writes();
            }
            780..850 => self.connect(),
            850..880 => self.cut(),
            880..900 => self.hub_notices(),
            900..908 => self.hub_restarts(),
            908..916 => self.spoke_restarts(),
            916..926 => self.tell_topic(),
            926..966 => self.topic_frame(),
            966..971 => self.unpark(),
            971..976 => self.copy = self.hub.as_ref().and_then(|hub| hub.disk.clone()),
            976..980 => {
                let seconds = self.rng.random_range(1..200);
                self.pass(Duration::from_secs(seconds));
            }
            _ => {
                let millis = self.rng.random_range(1..300);
                self.pass(Duration::from_millis(millis));
            }
        }
    }

    fn event(&mut self) -> Option<Envelope> {
        self.last_event += 1;
        let id = self.last_event.to_string();
        Envelope::from_json("r", &id, "null").ok()
    }

    fn broadcast(&mut self) {
        for _ in 0..self.rng.random_range(1..6) {
            if let (Some(event), Some(hub)) = (self.event(), &mut self.hub) {
                hub.broadcast(event, &mut self.model);
            }
        }
    }

    fn sync(&mut self) {
        if let Some(hub) = &mut self.hub {
            hub.sync(&mut self.model);
        }
    }

    fn target(&mut self) {
        let overtake = self.rng.random_bool(0.2);
        if let (Some(event), Some(hub)) = (self.event(), &mut self.hub)
            && let Some((after, receipt)) = hub.target(&event, overtake)
        {
            self.model.target(number(&event), after, overtake, receipt);
        }
    }

    fn publish(&mut self) {
        if let Some(event) = self.event()
            && let Some(receipt) = self.spoke.outbox.try_send(&event)
        {
            self.model.publish(number(&event), receipt);
        }
    }

    fn any_wire(&mut self) -> Option<u64> {
        self.wires.keys().copied().choose(&mut self.rng)
    }

    fn hub_writes(&mut self) {
        if let Some(wire) = self.any_wire() {
            self.hub_writes_on(wire);
        }
    }

    fn hub_writes_on(&mut self, wire: u64) -> bool {
        let Some(hub) = &mut self.hub else {
            return false;
        };
        match hub.batch(wire) {
            Ok(chunks) if chunks.is_empty() => false,
            Ok(chunks) => {
                if let Some(wire) = self.wires.get_mut(&wire) {
                    wire.down.push_back(chunks);
                }
                true
            }
            Err(_) => {
                // A new epoch, or the log went past: the link ends, and its spoke notices now or later.
                self.hub_closes(wire, false);
                true
            }
        }
    }

    fn hub_closes(&mut self, wire: u64, goodbye: bool) {
        if let Some(hub) = &mut self.hub {
            hub.link_ends(wire, self.now, goodbye);
        }
        if self.rng.random_bool(0.7) {
            self.spoke_loses(wire);
        }
    }

    fn hub_reads(&mut self) {
        if let Some(wire) = self.any_wire() {
            self.hub_reads_on(wire);
        }
    }

    fn hub_reads_on(&mut self, wire: u64) -> bool {
        let Some(chunks) = self
            .wires
            .get_mut(&wire)
            .and_then(|wire| wire.up.pop_front())
        else {
            return false;
        };
        let Some(hub) = &mut self.hub else {
            return true;
        };
        match hub.bytes(wire, self.endpoint, chunks, &mut self.rng, &mut self.model) {
            Ok(Some(welcome)) => {
                if let Some(wire) = self.wires.get_mut(&wire) {
                    wire.down.push_back(welcome);
                }
            }
            Ok(None) => {}
            // An attempt that the spoke has given up, and that comes behind the link that it has made since: what
            // it says it has taken is old, and nobody hears the answer.
            Err(words)
                if words == NOT_TAKEN && self.spoke.wire.is_none_or(|(own, _)| own != wire) =>
            {
                self.wires.remove(&wire);
            }
            Err(words) => self.broke(format!("the hub ends a link: {words}")),
        }
        true
    }

    fn spoke_reads(&mut self) -> bool {
        let Some((number, _)) = self.spoke.wire else {
            return false;
        };
        let Some(chunks) = self
            .wires
            .get_mut(&number)
            .and_then(|wire| wire.down.pop_front())
        else {
            return false;
        };
        if let Err(words) = self.spoke.bytes(chunks, self.now, &mut self.model) {
            self.broke(format!("the spoke ends its link: {words}"));
        }
        self.orders();
        true
    }

    /// Does what the reception wants done.
    fn orders(&mut self) {
        while let Some(order) = self.spoke.reception.poll_order(self.now) {
            let spoke = &mut self.spoke;
            match order {
                Order::Write(mut frame) => {
                    if let (Breakage::AcksAhead, ToHub::Ack { seq, .. }) =
                        (self.breakage, &mut frame)
                    {
                        *seq = spoke.targeted;
                    }
                    if !spoke.outbox.write(frame) {
                        self.model
                            .broken
                            .get_or_insert("too much was given up".to_owned());
                    }
                }
                Order::Published { seq } => {
                    if spoke.outbox.acked(seq).is_err() {
                        let words = format!("the hub acknowledged event {seq}, which was not sent");
                        self.model.broken.get_or_insert(words);
                    }
                }
                Order::Join { topic, epoch } => spoke.topic = Some((topic.topic, epoch)),
                Order::Leave => spoke.topic = None,
                Order::Meet { .. } | Order::Rekey(_) | Order::Tell(_) => {}
            }
        }
    }

    fn spoke_writes(&mut self) -> bool {
        self.orders();
        let Some((number, true)) = self.spoke.wire else {
            return false;
        };
        let mut chunks = Vec::new();
        self.spoke.outbox.next_batch(&mut chunks);
        if chunks.is_empty() {
            return false;
        }
        if let Some(wire) = self.wires.get_mut(&number) {
            wire.up.push_back(chunks);
        }
        true
    }

    /// Listeners take up to so many.
    fn let_out(&mut self, most: usize) -> bool {
        for n in 0..most {
            let Some(incoming) = self.spoke.reception.poll_delivery(self.now) else {
                return n > 0;
            };
            trace!(?incoming, "let out");
            let model = &mut self.model;
            match incoming {
                Incoming::Event(event) => match event.position {
                    Some(position) => {
                        model.delivered(position, number(&event.envelope));
                        self.saved.push(position.next());
                    }
                    None => model.targeted(number(&event.envelope)),
                },
                Incoming::Missed(missed) if self.breakage == Breakage::HidesMissed => {
                    self.saved.push(missed.to);
                }
                Incoming::Missed(missed) => {
                    model.missed(missed.from, missed.to);
                    self.saved.push(missed.to);
                }
                Incoming::Status(SpokeStatus::Connected { .. }) => model.connected(),
                Incoming::Status(SpokeStatus::Recovered { wholly }) => model.recovered(wholly),
                Incoming::Status(SpokeStatus::Reconnecting { .. }) => model.disconnected(),
                Incoming::Status(_) | Incoming::Lagged(_) => {}
            }
        }
        true
    }

    /// The spoke makes a link, if it has none; now and then it gives up the one it has for another, before the hub knows.
    fn connect(&mut self) {
        if let Some((wire, _)) = self.spoke.wire {
            if self.rng.random_bool(0.95) {
                return;
            }
            self.spoke_loses(wire);
        }
        self.last_wire += 1;
        let mut wire = Wire::default();
        let hello = ToHub::Hello(self.spoke.reception.hello());
        let mut chunks = Vec::new();
        hello.encode(&mut chunks);
        wire.up.push_back(chunks);
        self.wires.insert(self.last_wire, wire);
        self.spoke.wire = Some((self.last_wire, false));
        self.spoke.deframer = Deframer::new(native::MAX_FRAME);
    }

    /// A link is lost. What was under way on it may arrive, and either side may know first.
    fn cut(&mut self) {
        let Some(wire) = self.any_wire() else {
            return;
        };
        match self.rng.random_range(0..4) {
            0 => self.spoke_loses(wire),
            1 => {
                if let Some(hub) = &mut self.hub {
                    hub.link_ends(wire, self.now, false);
                }
            }
            _ => {
                self.spoke_loses(wire);
                if let Some(hub) = &mut self.hub {
                    hub.link_ends(wire, self.now, false);
                }
                self.wires.remove(&wire);
            }
        }
    }

    fn spoke_loses(&mut self, wire: u64) {
        if self.spoke.wire.is_some_and(|(number, _)| number == wire) {
            self.spoke.lose(self.now);
            self.orders();
            // What was written may still arrive at the hub.
            if let Some(wire) = self.wires.get_mut(&wire) {
                wire.down.clear();
            }
        }
    }

    /// The hub finds links dead that their spoke has left.
    fn hub_notices(&mut self) {
        let current = self.spoke.wire.map(|(number, _)| number);
        let stale: Vec<u64> = self
            .wires
            .keys()
            .copied()
            .filter(|wire| Some(*wire) != current)
            .collect();
        for wire in stale {
            if let Some(hub) = &mut self.hub {
                hub.link_ends(wire, self.now, false);
            }
            self.wires.remove(&wire);
        }
        // And its spoke one that the hub has left.
        if let (Some(wire), Some(hub)) = (current, &self.hub)
            && self.spoke.wire == Some((wire, true))
            && !hub.has_link(wire)
        {
            self.spoke_loses(wire);
        }
    }

    fn hub_restarts(&mut self) {
        self.hub_dies();
        self.hub_rises();
    }

    fn hub_dies(&mut self) {
        let Some(mut hub) = self.hub.take() else {
            return;
        };
        self.model.counts.unsynced += hub.waiting();
        // What the process knew is gone; that it was not delivered, nobody is told but by its end.
        hub.end();
        self.disk = hub.disk.take();
        for wire in self.wires.keys().copied().collect::<Vec<_>>() {
            self.spoke_loses(wire);
        }
        self.wires.clear();
    }

    fn hub_rises(&mut self) {
        self.model.counts.hub_restarts += 1;
        let mut epoch = Epoch::from_u64(self.rng.random());
        let mut disk = self.disk.take();
        if let (true, Some(copy)) = (self.rng.random_bool(0.2), &self.copy) {
            // Somebody puts an older copy of the file in its place.
            let mut copy = copy.clone();
            let (parent, fork) = copy.restored(epoch);
            self.model.epoch(epoch, Some((parent, fork)));
            self.model.counts.restored += 1;
            disk = Some(copy);
        }
        match &disk {
            Some(disk) => epoch = disk.epoch(),
            None => self.model.epoch(epoch, None),
        }
        debug_assert_eq!(disk.is_some(), self.durable);
        let hub = Hub::new(self.config, disk, epoch, self.breakage, &mut self.rng);
        self.model.head(epoch, hub.head());
        self.hub = Some(hub);
    }

    /// The spoke's process is killed, and started again from what it had saved, or from something made up.
    fn spoke_restarts(&mut self) {
        self.model.counts.spoke_restarts += 1;
        if let Some((wire, _)) = self.spoke.wire {
            self.spoke_loses(wire);
        }
        // Nobody is left to hear what became of what it had sent; but it was sent, and may arrive.
        self.spoke.outbox.close(&Loss::ShutDown);
        let saved = self.saved.len();
        let last = self.saved.last().copied();
        let back = self.rng.random_range(1..4usize).min(saved);
        let older = saved
            .checked_sub(back)
            .and_then(|at| self.saved.get(at))
            .copied();
        let begins = match self.rng.random_range(0..10) {
            0..5 => older.or(last),
            5 => {
                self.model.counts.false_positions += 1;
                last.map(|last| {
                    Position::new(last.epoch, last.offset + self.rng.random_range(1..200))
                })
            }
            6 => {
                self.model.counts.false_positions += 1;
                let epoch = Epoch::from_u64(self.rng.random());
                Some(Position::new(epoch, self.rng.random_range(0..50)))
            }
            7 => self.saved.iter().copied().choose(&mut self.rng),
            _ => None,
        };
        let start = match begins {
            Some(position) => Start::At(position),
            None if self.rng.random_bool(0.5) => Start::Tip,
            None => Start::Earliest,
        };
        self.spoke = Spoke::new(self.hub_id, start, self.now, self.rng.random());
        self.model.spoke_begins(begins);
    }

    fn tell_topic(&mut self) {
        if let (Some(wire), Some(hub)) = (self.any_wire(), &mut self.hub) {
            hub.tell_topic(wire, self.hub_id);
        }
    }

    /// A frame of the topic reaches the spoke, some time, perhaps; late ones and such as come twice among them.
    fn topic_frame(&mut self) {
        let Some(hub) = &mut self.hub else {
            return;
        };
        // What else there is on a topic of another life, the spoke's node does not let through.
        if self.spoke.topic != Some(hub.topic()) {
            return;
        }
        let (head, tip) = (hub.head(), hub.tip().offset);
        let next = self.model.next().map_or(tip, |next| next.offset);
        let from = match self.rng.random_range(0..4) {
            0 => tip,
            1 => self.rng.random_range(head..=tip),
            _ => next.clamp(head, tip),
        };
        let count = self.rng.random_range(1..4);
        let opened = hub.frame_of_topic(from, count);
        self.spoke.reception.opened(self.now, opened);
        self.orders();
    }

    fn unpark(&mut self) {
        if let (Some(wire), Some(hub)) = (self.any_wire(), &mut self.hub) {
            hub.unpark(wire);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        if let Some(hub) = &mut self.hub {
            hub.expire(self.now, &mut self.model);
        }
        self.spoke.reception.tick(self.now);
        self.orders();
    }

    /// In the end both are there, and everything gets across.
    fn settle(&mut self) {
        if self.hub.is_none() {
            self.hub_rises();
        }
        let mut idle = 0;
        for _ in 0..ROUNDS {
            if self.model.broken.is_some() {
                return;
            }
            self.hub_notices();
            self.sync();
            if self.spoke.wire.is_none() {
                self.connect();
            }
            let mut moved = false;
            for wire in self.wires.keys().copied().collect::<Vec<_>>() {
                moved |= self.hub_reads_on(wire);
                moved |= self.hub_writes_on(wire);
            }
            moved |= self.spoke_reads();
            moved |= self.let_out(64);
            moved |= self.spoke_writes();
            idle = if moved { 0 } else { idle + 1 };
            if idle > 3 && self.is_settled() {
                return;
            }
            if !moved {
                self.pass(Duration::from_millis(100));
                self.beacon();
            }
        }
        let tip = self.hub.as_ref().map(Hub::tip);
        let next = self.model.next();
        self.broke(format!("the spoke stands at {next:?}, the log at {tip:?}"));
    }

    /// The topic says where the tip is.
    fn beacon(&mut self) {
        let Some(hub) = &mut self.hub else {
            return;
        };
        if self.spoke.topic == Some(hub.topic()) {
            let tip = hub.tip().offset;
            let opened = hub.frame_of_topic(tip, 1);
            self.spoke.reception.opened(self.now, opened);
            self.orders();
        }
    }

    fn is_settled(&self) -> bool {
        let tip = self.hub.as_ref().map(Hub::tip);
        let (Some(tip), Some(next)) = (tip, self.model.next()) else {
            return false;
        };
        let welcomed = matches!(self.spoke.wire, Some((_, true)));
        let mail = self.hub.as_ref().is_none_or(Hub::has_delivered_all);
        welcomed && mail && self.spoke.outbox.is_empty() && self.model.stands_at(next, tip)
    }
}

impl Spoke {
    fn new(hub: EndpointId, start: Start, now: Instant, seed: u64) -> Self {
        let config = ReceptionConfig {
            hub,
            start,
            gossip: true,
            max_event_bytes: 1 << 20,
            max_buffered_bytes: 4 << 20,
            seed,
        };
        Self {
            reception: Reception::new(config, Arc::new(ReceptionMetrics::default()), now),
            outbox: Outbox::new(Protocol::Native, 1 << 20),
            wire: None,
            deframer: Deframer::new(native::MAX_FRAME),
            topic: None,
            attempt: 0,
            targeted: 0,
        }
    }

    fn bytes(&mut self, chunks: Vec<Bytes>, now: Instant, model: &mut Model) -> Result<(), String> {
        let mut frames = Vec::new();
        for chunk in chunks {
            self.deframer.push(chunk);
            while let Some(frame) = self.deframer.next().map_err(|error| error.to_string())? {
                frames.push(frame);
            }
        }
        for frame in frames {
            let frame = ToSpoke::decode(frame).map_err(|error| error.to_string())?;
            trace!(?frame, "to the spoke");
            if let Some(ToSpoke::Targeted { seq, .. }) = &frame {
                self.targeted = *seq;
            }
            match frame {
                Some(ToSpoke::Welcome(welcome)) => {
                    let resumed = self
                        .reception
                        .welcomed(now, &welcome)
                        .map_err(|error| error.to_string())?;
                    let begun = self.outbox.begin_link(
                        resumed,
                        welcome.published,
                        welcome.publish_window,
                        welcome.max_event_bytes,
                    );
                    if begun.is_err() {
                        return Err("the hub has an event that was not sent".to_owned());
                    }
                    self.attempt = 0;
                    let tip = Position::new(welcome.epoch, welcome.tip);
                    if let Some((wire, welcomed)) = &mut self.wire {
                        *welcomed = true;
                        model.welcomed(*wire, tip, resumed);
                    }
                }
                Some(frame) => self
                    .reception
                    .frame(now, frame)
                    .map_err(|error| error.to_string())?,
                None => return Err("a frame of an unknown kind".to_owned()),
            }
        }
        Ok(())
    }

    fn lose(&mut self, now: Instant) {
        self.wire = None;
        self.attempt += 1;
        self.outbox.end_link();
        let closed = Closed::by_us(CloseCode::TimedOut, "the link is gone");
        self.reception
            .lost(now, &closed, self.attempt, Duration::from_secs(1));
    }
}

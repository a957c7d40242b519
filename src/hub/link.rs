//! One spoke as the hub sees it: its cursor on the log, and what else is to be written to it.
//!
//! A [`Link`] holds state, not a queue of frames: where the cursor stands, which ranges are wanted,
//! up to where the spoke's own events are acknowledged. Whoever changes it wakes the link's writer,
//! which turns the state into frames as fast as the spoke takes them. Only targeted events queue, and
//! they are bounded.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use iroh::{EndpointAddr, endpoint::Connection};
use n0_error::e;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::shared_log::{Entry, SharedLog};
use crate::{
    event::Envelope,
    fan_out::Path,
    link_io::LinkError,
    log::Read,
    position::Position,
    protocol::Protocol,
    spoke_id::SpokeId,
    wire::native::{self, ToSpoke, Topic},
};

/// How much is gathered for one write, in bytes.
const BATCH_BYTES: usize = 256 * 1024;
/// How many events at most, so that one lock of the log stays short.
const BATCH_EVENTS: usize = 1024;
/// How many ranges a spoke may want at once; more are merged into the last.
const MAX_REPAIRS: usize = 64;

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: SpokeId,
    pub(crate) protocol: Protocol,
    /// Whether the spoke can gossip.
    pub(crate) gossip_capable: bool,
    pub(crate) connection: Connection,
    desk: Mutex<Desk>,
    pub(crate) wake: Notify,
    /// Wakes whoever waits for room in the queue of targeted events.
    pub(crate) room: Notify,
    /// Native: everything below was released by the spoke. Compat: was written to its stream.
    acked: AtomicU64,
    /// The path that serves the spoke, as last announced.
    path: Mutex<Path>,
    /// Whether the spoke acknowledges fast, so that pace and supervision can go by it.
    pub(crate) fast: AtomicBool,
    /// Asks the link to finish what it has and say goodbye.
    pub(crate) drain: CancellationToken,
    /// Ends the link at once.
    pub(crate) cancel: CancellationToken,
    /// The link ended without a goodbye before the spoke was known to have everything.
    pub(crate) cut_off: AtomicBool,
}

/// What the writer has to do.
#[derive(Debug)]
struct Desk {
    /// The next offset to write; `None` while the topic serves the spoke.
    cursor: Option<u64>,
    /// Wanted ranges, oldest first.
    repairs: VecDeque<(u64, u64)>,
    targeted: VecDeque<Targeted>,
    /// Targeted events that were written and are not acknowledged: sequence number and bytes.
    unacked: VecDeque<(u64, usize)>,
    /// Bytes of `targeted` and `unacked`.
    targeted_bytes: usize,
    next_seq: u64,
    /// The spoke's events up to this one are to be acknowledged.
    ack: Option<u64>,
    ack_every: Option<u32>,
    topic: Option<TopicOrder>,
}

#[derive(Debug)]
struct Targeted {
    seq: u64,
    /// The tip when it was sent.
    after: u64,
    envelope: Envelope,
}

#[derive(Debug)]
pub(crate) enum TopicOrder {
    Join(Box<Topic>),
    Leave,
}

/// What there was to write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// Chunks were appended; when they are written, the cursor stands here (if it moves).
    Frames { cursor: Option<u64> },
    /// Nothing; wait to be woken, and for the tip if the cursor follows it.
    Idle { follows_tip: bool },
}

impl Link {
    pub(crate) fn new(
        id: SpokeId,
        protocol: Protocol,
        gossip_capable: bool,
        connection: Connection,
        cursor: u64,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            id,
            protocol,
            gossip_capable,
            connection,
            desk: Mutex::new(Desk {
                cursor: Some(cursor),
                repairs: VecDeque::new(),
                targeted: VecDeque::new(),
                unacked: VecDeque::new(),
                targeted_bytes: 0,
                next_seq: 1,
                ack: None,
                ack_every: None,
                topic: None,
            }),
            wake: Notify::new(),
            room: Notify::new(),
            acked: AtomicU64::new(cursor),
            path: Mutex::new(Path::Direct),
            fast: AtomicBool::new(true),
            drain: CancellationToken::new(),
            cancel,
            cut_off: AtomicBool::new(false),
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the desk and wakes the writer.
    fn order<T>(&self, change: impl FnOnce(&mut Desk) -> T) -> T {
        let out = change(&mut self.desk());
        self.wake.notify_one();
        out
    }

    pub(crate) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }

    /// The next offset to write; `None` while the topic serves the spoke.
    pub(crate) fn cursor(&self) -> Option<u64> {
        self.desk().cursor
    }

    pub(crate) fn path(&self) -> Path {
        *self.path.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether that is news.
    pub(crate) fn set_path(&self, path: Path) -> bool {
        let mut now = self.path.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *now, path) != path
    }

    /// Everything below `offset` reached the spoke. Says whether that is news.
    pub(crate) fn set_acked(&self, offset: u64) -> bool {
        self.acked.fetch_max(offset, Ordering::AcqRel) < offset
    }

    /// Stops the cursor: the topic serves the spoke.
    pub(crate) fn park(&self) {
        self.order(|desk| desk.cursor = None);
    }

    /// Starts the cursor again where the spoke stands, if it is parked.
    pub(crate) fn unpark(&self) {
        let acked = self.acked();
        self.order(|desk| {
            desk.cursor.get_or_insert(acked);
        });
    }

    /// Serves the spoke directly from `from` on, because it asked for it.
    pub(crate) fn serve_from(&self, from: u64) {
        self.order(|desk| {
            desk.cursor = Some(desk.cursor.map_or(from, |cursor| cursor.min(from)));
        });
    }

    /// The spoke wants `[from, to)` again.
    pub(crate) fn repair(&self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        self.order(|desk| {
            // What the cursor will bring, or a repair under way, need not be brought twice.
            if desk.cursor.is_some_and(|cursor| cursor <= from) {
                return;
            }
            if let Some(range) = desk
                .repairs
                .iter_mut()
                .find(|(f, t)| from <= *t && *f <= to)
            {
                *range = (range.0.min(from), range.1.max(to));
            } else if desk.repairs.len() < MAX_REPAIRS {
                desk.repairs.push_back((from, to));
            } else if let Some(last) = desk.repairs.back_mut() {
                *last = (last.0.min(from), last.1.max(to));
            }
        });
    }

    pub(crate) fn acknowledge(&self, seq: u64) {
        self.order(|desk| desk.ack = Some(seq));
    }

    pub(crate) fn set_ack_every(&self, millis: u32) {
        self.order(|desk| desk.ack_every = Some(millis));
    }

    pub(crate) fn order_topic(&self, order: TopicOrder) {
        self.order(|desk| desk.topic = Some(order));
    }

    /// Queues a targeted event if there is room.
    pub(crate) fn try_target(
        &self,
        envelope: &Envelope,
        after: u64,
        max_events: usize,
        max_bytes: usize,
    ) -> bool {
        let bytes = envelope.size();
        self.order(|desk| {
            let events = desk.targeted.len() + desk.unacked.len();
            let fits = events < max_events && desk.targeted_bytes + bytes <= max_bytes;
            if !fits && events > 0 {
                return false;
            }
            let seq = desk.next_seq;
            desk.next_seq += 1;
            desk.targeted_bytes += bytes;
            desk.targeted.push_back(Targeted {
                seq,
                after,
                envelope: envelope.clone(),
            });
            true
        })
    }

    /// The spoke has its targeted events up to `seq`.
    pub(crate) fn targeted_acked(&self, seq: u64) -> Result<(), LinkError> {
        let mut desk = self.desk();
        let written = desk
            .targeted
            .front()
            .map_or(desk.next_seq, |targeted| targeted.seq);
        if seq >= written {
            return Err(e!(LinkError::Misbehaved {
                what: "acknowledged a targeted event that was not sent"
            }));
        }
        let mut freed = false;
        while let Some((first, bytes)) = desk.unacked.front().copied() {
            if first > seq {
                break;
            }
            desk.unacked.pop_front();
            desk.targeted_bytes -= bytes;
            freed = true;
        }
        drop(desk);
        if freed {
            self.room.notify_waiters();
        }
        Ok(())
    }

    /// Whether everything up to `tip` has reached the spoke, and everything targeted.
    pub(crate) fn has_all(&self, tip: u64) -> bool {
        if self.acked() < tip {
            return false;
        }
        let desk = self.desk();
        desk.targeted.is_empty() && desk.unacked.is_empty()
    }

    /// Whether the spoke is known to have everything up to `tip` though its link breaks off now. What
    /// a plain spoke's stream took need not have reached it before the goodbye is answered.
    pub(crate) fn is_served(&self, tip: u64) -> bool {
        let told = self.protocol == Protocol::Native || !self.drain.is_cancelled();
        told && self.has_all(tip)
    }

    /// The spoke's address as the connection shows it: what other spokes need to reach it.
    pub(crate) fn remote_addr(&self) -> EndpointAddr {
        EndpointAddr::from_parts(
            self.id.endpoint,
            self.connection
                .paths()
                .iter()
                .map(|path| path.remote_addr().clone()),
        )
    }

    /// Gathers what is to be written next into `chunks`: control frames, repairs, and what the
    /// cursor has before it, with targeted events in their places.
    pub(crate) fn next_batch(
        &self,
        log: &SharedLog,
        entries: &mut Vec<(u64, Arc<Entry>)>,
        chunks: &mut Vec<Bytes>,
    ) -> Result<Batch, LinkError> {
        let mut desk = self.desk();
        let desk = &mut *desk;
        if self.protocol == Protocol::Native {
            desk.put_control(chunks);
            desk.put_repairs(log, entries, chunks);
        }
        let mut moved = None;
        let mut at_tip = false;
        if let Some(cursor) = desk.cursor {
            let (next, tip) = self.advance(desk, cursor, log, entries, chunks)?;
            at_tip = tip;
            desk.cursor = Some(next);
            moved = (next != cursor).then_some(next);
        }
        desk.put_targeted(self.protocol, log, chunks);
        if chunks.is_empty() {
            return Ok(Batch::Idle {
                follows_tip: at_tip,
            });
        }
        Ok(Batch::Frames { cursor: moved })
    }

    /// Moves the cursor over a batch of events; says where it stands then and whether at the tip.
    fn advance(
        &self,
        desk: &mut Desk,
        cursor: u64,
        log: &SharedLog,
        entries: &mut Vec<(u64, Arc<Entry>)>,
        chunks: &mut Vec<Bytes>,
    ) -> Result<(u64, bool), LinkError> {
        // A targeted event goes out where the cursor passes its place.
        let stop = desk.targeted.front().map(|targeted| targeted.after);
        let room = match stop {
            Some(stop) => stop.saturating_sub(cursor).min(BATCH_EVENTS as u64) as usize,
            None => BATCH_EVENTS,
        };
        if room == 0 {
            return Ok((cursor, false));
        }
        entries.clear();
        match log.read(cursor, room, BATCH_BYTES, entries) {
            Read::Events => {
                let mut next = cursor;
                for (offset, entry) in entries.drain(..) {
                    match self.protocol {
                        Protocol::Native => chunks.extend_from_slice(entry.native(offset)),
                        Protocol::Compat => chunks.push(entry.compat().clone()),
                    }
                    next = offset + 1;
                }
                Ok((next, false))
            }
            Read::AtTip => Ok((cursor, true)),
            Read::Beyond { .. } => Ok((cursor, true)),
            Read::Trimmed { head } => match self.protocol {
                Protocol::Native => {
                    ToSpoke::Missed {
                        from: cursor,
                        to: head,
                    }
                    .encode(chunks);
                    Ok((head, false))
                }
                Protocol::Compat => Err(e!(LinkError::FellBehind {
                    events: head - cursor
                })),
            },
        }
    }
}

impl Desk {
    fn put_control(&mut self, chunks: &mut Vec<Bytes>) {
        if let Some(seq) = self.ack.take() {
            ToSpoke::Ack { seq }.encode(chunks);
        }
        if let Some(millis) = self.ack_every.take() {
            ToSpoke::AckEvery { millis }.encode(chunks);
        }
        match self.topic.take() {
            Some(TopicOrder::Join(topic)) => ToSpoke::Topic(topic).encode(chunks),
            Some(TopicOrder::Leave) => ToSpoke::LeaveTopic.encode(chunks),
            None => {}
        }
    }

    /// Answers wants, a batch at a time.
    fn put_repairs(
        &mut self,
        log: &SharedLog,
        entries: &mut Vec<(u64, Arc<Entry>)>,
        chunks: &mut Vec<Bytes>,
    ) {
        let Some((from, to)) = self.repairs.pop_front() else {
            return;
        };
        let room = (to - from).min(BATCH_EVENTS as u64) as usize;
        entries.clear();
        let next = match log.read(from, room, BATCH_BYTES, entries) {
            Read::Events => {
                let mut next = from;
                for (offset, entry) in entries.drain(..) {
                    native::put_event(chunks, offset, entry.envelope.body(), true);
                    next = offset + 1;
                }
                next
            }
            Read::Trimmed { head } => {
                let to = head.min(to);
                ToSpoke::Missed { from, to }.encode(chunks);
                to
            }
            // Nothing there yet; the topic or the cursor brings it.
            Read::AtTip | Read::Beyond { .. } => to,
        };
        if next < to {
            self.repairs.push_front((next, to));
        }
    }

    /// Writes the targeted events whose place the cursor has reached; all of them if the topic
    /// serves the spoke, whose inbox then keeps the order.
    fn put_targeted(&mut self, protocol: Protocol, log: &SharedLog, chunks: &mut Vec<Bytes>) {
        let mut bytes = 0;
        while let Some(targeted) = self.targeted.front() {
            let due = self.cursor.is_none_or(|cursor| cursor >= targeted.after);
            if !due || bytes >= BATCH_BYTES {
                return;
            }
            let Some(targeted) = self.targeted.pop_front() else {
                return;
            };
            bytes += targeted.envelope.size();
            match protocol {
                Protocol::Native => {
                    let after = Position::new(log.epoch(), targeted.after);
                    let body = targeted.envelope.body();
                    native::put_targeted(chunks, targeted.seq, after, body);
                    self.unacked.push_back((targeted.seq, body.len()));
                }
                Protocol::Compat => {
                    chunks.push(crate::wire::compat::encode(&targeted.envelope));
                    self.targeted_bytes -= targeted.envelope.size();
                }
            }
        }
    }
}

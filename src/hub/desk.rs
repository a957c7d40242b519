//! What is to be written to one spoke: sans-IO.
//!
//! A [`Desk`] is state, not a queue of frames: where the cursor stands, which ranges are wanted, up to
//! where the spoke's own events are acknowledged. Orders change it; [`Desk::next_batch`] turns it into
//! frames, as fast as the spoke takes them. Targeted events are in the spoke's [`Mailbox`].
//!
//! Not for: waking the writer, or what a connection looks like.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use n0_error::e;
use tracing::debug;

use super::{
    config::Behind,
    mailbox::Mailbox,
    shared_log::{Entry, SharedLog},
};
use crate::{
    link_io::LinkError,
    log::Read,
    metrics::events,
    position::Position,
    protocol::Protocol,
    wire::{
        compat,
        native::{self, MAX_EVICTED, Rekey, ToSpoke, Topic},
        run,
    },
};

/// How much is gathered for one write, in bytes of events; repairs have as much beside it.
pub(super) const BATCH_BYTES: usize = 256 * 1024;
/// How many events, so that one lock of the log stays short; of runs, the last may have some more.
const BATCH_EVENTS: usize = 1024;
/// How many ranges a spoke may want at once; more are merged into the last.
const MAX_REPAIRS: usize = 64;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Desk {
    protocol: Protocol,
    /// The number of the link that this is the desk of.
    link: u64,
    behind: Behind,
    /// The spoke may read nothing that was broadcast before.
    floor: u64,
    /// It reads frames of several events.
    reads_runs: bool,
    /// Where the cursor began, until it moves: that the log is beyond that already is not held against the
    /// spoke.
    begun_at: Option<u64>,
    /// The next offset to write; `None` while the topic serves the spoke.
    cursor: Option<u64>,
    /// The event at the cursor, if it is a large one of which some parts are written.
    begun: Option<Begun>,
    /// The cursor runs only because the topic does not reach the spoke.
    fell_back: bool,
    /// The topic that the spoke was told to join.
    member: Option<[u8; 32]>,
    /// Wanted ranges, oldest first.
    repairs: VecDeque<(u64, u64)>,
    /// The spoke's events up to this one are to be acknowledged.
    ack: Option<u64>,
    ack_every: Option<u32>,
    topic: Option<TopicOrder>,
    /// Newer keys of the topic that the spoke was told to join.
    rekey: Option<Box<Rekey>>,
    /// The spoke was asked last to acknowledge everything below.
    asked: u64,
    /// What the spoke was told to be lost, since somebody looked.
    told_lost: Vec<(u64, u64)>,
}

/// An event that is written part by part, so that control frames need not wait for all of it.
#[derive(Debug)]
struct Begun {
    offset: u64,
    entry: Arc<Entry>,
    part: u16,
}

#[derive(Debug)]
pub(crate) enum TopicOrder {
    Join(Box<Topic>),
    Leave,
}

/// What there was to write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// Chunks were appended; when they are written, the cursor stands here (if it moves). So many of their
    /// bytes are to be paid for. If they are `all`, there is nothing more before an order or the tip's next move.
    Frames {
        cursor: Option<u64>,
        cost: u64,
        all: bool,
    },
    /// Nothing; wait for an order, and for the tip if the cursor follows it.
    Idle { follows_tip: bool },
}

impl Desk {
    /// The desk of a spoke that is served directly from `cursor` on.
    pub(crate) fn new(protocol: Protocol, link: u64, cursor: u64, behind: Behind) -> Self {
        Self {
            protocol,
            link,
            behind,
            floor: 0,
            reads_runs: false,
            begun_at: Some(cursor),
            cursor: Some(cursor),
            begun: None,
            fell_back: false,
            member: None,
            repairs: VecDeque::new(),
            ack: None,
            ack_every: None,
            topic: None,
            rekey: None,
            asked: 0,
            told_lost: Vec::new(),
        }
    }

    /// The spoke may read nothing that was broadcast before `floor`.
    pub(crate) fn with_floor(mut self, floor: u64) -> Self {
        self.floor = floor;
        self
    }

    /// Whether the spoke reads frames of several events.
    pub(crate) fn with_runs(mut self, reads_runs: bool) -> Self {
        self.reads_runs = reads_runs;
        self
    }

    /// Stops the cursor: the topic serves the spoke.
    pub(crate) fn park(&mut self) {
        self.cursor = None;
        self.begun = None;
        self.fell_back = false;
    }

    /// Starts the cursor again where the spoke stands, if it is parked.
    pub(crate) fn unpark(&mut self, acked: u64) {
        if self.cursor.is_none() {
            self.cursor = Some(acked);
            self.begun_at = Some(acked);
            self.fell_back = true;
        }
    }

    /// Serves the spoke directly from `from` on, because it asked for it: it has everything before. What a
    /// cursor that runs already has passed is on its way.
    pub(crate) fn serve_from(&mut self, from: u64) {
        self.unpark(from);
        self.cursor = self.cursor.max(Some(from));
        self.begun = self.begun.take().filter(|begun| begun.offset >= from);
    }

    /// Whether the cursor runs only because the topic does not reach the spoke.
    pub(crate) fn falls_back(&self) -> bool {
        self.member.is_some() && self.fell_back
    }

    /// The spoke wants `[from, to)` again.
    pub(crate) fn repair(&mut self, from: u64, to: u64) {
        // What the cursor will bring, or a repair under way, need not be brought twice.
        if from >= to || self.cursor.is_some_and(|cursor| cursor <= from) {
            return;
        }
        if let Some(range) = self
            .repairs
            .iter_mut()
            .find(|(f, t)| from <= *t && *f <= to)
        {
            *range = (range.0.min(from), range.1.max(to));
        } else if self.repairs.len() < MAX_REPAIRS {
            self.repairs.push_back((from, to));
        } else if let Some(last) = self.repairs.back_mut() {
            *last = (last.0.min(from), last.1.max(to));
        }
    }

    /// The next offset to write, unless the topic serves the spoke.
    #[cfg(feature = "cli")]
    pub(crate) fn cursor(&self) -> Option<u64> {
        self.cursor
    }

    /// Whether a repair is due: the next batch has one.
    #[cfg(feature = "cli")]
    pub(crate) fn repairs_wait(&self) -> bool {
        !self.repairs.is_empty()
    }

    /// The hub has the spoke's events up to `seq`.
    pub(crate) fn acknowledge(&mut self, seq: u64) {
        self.ack = Some(seq);
    }

    pub(crate) fn set_ack_every(&mut self, millis: u32) {
        self.ack_every = Some(millis);
    }

    pub(crate) fn order_topic(&mut self, order: TopicOrder) {
        let member = match &order {
            TopicOrder::Join(topic) => Some(topic.topic),
            TopicOrder::Leave => None,
        };
        let before = std::mem::replace(&mut self.member, member);
        if before.is_some() != member.is_some() {
            self.fell_back = false;
        }
        if before != member {
            self.rekey = None;
        }
        // Who is to be kept away is said though the order has newer keys.
        if let (TopicOrder::Join(topic), Some(rekey)) = (&order, &mut self.rekey)
            && topic.keys.generation > rekey.keys.generation
        {
            rekey.keys = topic.keys.clone();
        }
        self.topic = Some(order);
    }

    /// Whether the spoke was told to be on a topic.
    pub(crate) fn is_member(&self) -> bool {
        self.member.is_some()
    }

    /// The spoke is to have newer keys of its topic.
    pub(crate) fn rekey(&mut self, mut rekey: Box<Rekey>) {
        if let Some(before) = self.rekey.take() {
            rekey.confirm |= before.confirm;
            rekey.revoked |= before.revoked;
            let room = MAX_EVICTED.saturating_sub(rekey.evict.len());
            rekey.evict.extend(before.evict.iter().take(room));
        }
        self.rekey = Some(rekey);
    }

    /// Whether something is to be written that the hub's budget for repairs has to have room for.
    pub(crate) fn is_paid_for(&self, tip: u64) -> bool {
        let falls_back = self.falls_back() && self.cursor.is_some_and(|cursor| cursor < tip);
        !self.repairs.is_empty() || falls_back
    }

    /// Gathers what is to be written next into `chunks`: control frames, repairs, and what the
    /// cursor has before it, with targeted events in their places. `paid` says whether the budget has room
    /// for what [has to be paid for](Self::is_paid_for); it is left alone otherwise.
    pub(crate) fn next_batch(
        &mut self,
        mailbox: &mut Mailbox,
        log: &SharedLog,
        paid: bool,
        entries: &mut Vec<(u64, Arc<Entry>)>,
        chunks: &mut Vec<Bytes>,
    ) -> Result<Batch, LinkError> {
        if self.protocol == Protocol::Native {
            self.put_control(chunks);
        }
        let before = bytes_of(chunks);
        if paid && self.protocol == Protocol::Native {
            self.put_repairs(log, entries, chunks)?;
        }
        let mut cost = bytes_of(chunks) - before;
        let mut moved = None;
        let mut at_tip = false;
        if let Some(cursor) = self.cursor
            && (paid || !self.falls_back() || cursor >= log.tip())
        {
            let before = bytes_of(chunks);
            let mut next = cursor;
            if self.begun.is_none() {
                // A targeted event goes out where the cursor passes its place.
                let stop = mailbox.stop(self.link);
                (next, at_tip) = self.advance(cursor, stop, log, entries, chunks)?;
            }
            if next == cursor && self.go_on(chunks) {
                next += 1;
            }
            if self.falls_back() {
                cost += bytes_of(chunks) - before;
            }
            self.cursor = Some(next);
            if next != cursor {
                self.begun_at = None;
            }
            moved = (next != cursor).then_some(next);
        }
        let all_due = self.put_targeted(mailbox, log, chunks);
        let waits = mailbox.stop(self.link).is_some();
        // A plain spoke is told nothing of what it passes over.
        if chunks.is_empty() && moved.is_none() {
            return Ok(Batch::Idle {
                follows_tip: at_tip || (self.cursor.is_none() && waits),
            });
        }
        Ok(Batch::Frames {
            cursor: moved,
            cost,
            all: at_tip && all_due && !waits && self.repairs.is_empty(),
        })
    }

    /// Moves the cursor over a batch of events; says where it stands then and whether at the tip.
    fn advance(
        &mut self,
        cursor: u64,
        stop: Option<u64>,
        log: &SharedLog,
        entries: &mut Vec<(u64, Arc<Entry>)>,
        chunks: &mut Vec<Bytes>,
    ) -> Result<(u64, bool), LinkError> {
        if stop.is_some_and(|stop| stop <= cursor) {
            return Ok((cursor, false));
        }
        let mut cursor = cursor;
        if cursor < self.floor {
            // No further than there are events that others can have.
            let to = self.floor.min(log.tip());
            let to = stop.map_or(to, |stop| to.min(stop)).max(cursor);
            if to > cursor {
                self.withhold(cursor, to, chunks);
            }
            if to < self.floor {
                return Ok((to, stop.is_none_or(|stop| to < stop)));
            }
            cursor = to;
        }
        let end = stop.unwrap_or(u64::MAX);
        let (mut next, mut bytes) = (cursor, 0);
        let room_at = |next: u64| {
            let room = (BATCH_EVENTS as u64).saturating_sub(next - cursor);
            room.min(end - next) as usize
        };
        loop {
            let mut room = room_at(next);
            if self.reads_runs {
                let bounds = (room, BATCH_BYTES - bytes);
                let runs = log.put_runs(next, end, bounds, chunks);
                bytes += runs.bytes;
                next = runs.next;
                if runs.is_full {
                    return Ok((next, false));
                }
                room = room_at(next);
                // One by one to where a run may begin.
                room = room.min(run::MAX_EVENTS - (next % run::MAX_EVENTS as u64) as usize);
            }
            if room == 0 || bytes >= BATCH_BYTES {
                return Ok((next, false));
            }
            entries.clear();
            match log.read(next, room, BATCH_BYTES - bytes, entries) {
                Read::Events => {}
                // It was trimmed in between.
                Read::Trimmed { .. } if next > cursor => return Ok((next, false)),
                Read::AtTip | Read::Beyond { .. } => return Ok((next, true)),
                Read::Trimmed { head } => {
                    self.skip(cursor, head, chunks)?;
                    return Ok((head, false));
                }
            }
            let is_short = entries.len() < room;
            for (offset, entry) in entries.drain(..) {
                bytes += entry.size();
                match self.protocol {
                    Protocol::Native if entry.size() > BATCH_BYTES => {
                        self.begun = Some(Begun {
                            offset,
                            entry,
                            part: 0,
                        });
                        return Ok((offset, false));
                    }
                    Protocol::Native => chunks.extend_from_slice(entry.native(offset)),
                    Protocol::Compat => chunks.push(entry.compat().clone()),
                }
                next = offset + 1;
            }
            // At the tip, or there is no room for the next one.
            if is_short || bytes >= BATCH_BYTES {
                return Ok((next, next == log.tip()));
            }
        }
    }

    /// Writes on at the event that was begun, if there is one. Says whether that is whole now.
    fn go_on(&mut self, chunks: &mut Vec<Bytes>) -> bool {
        let Some(begun) = &mut self.begun else {
            return false;
        };
        let mut bytes = 0;
        while bytes < BATCH_BYTES {
            let body = begun.entry.envelope.body();
            let put = native::put_event_part(chunks, begun.offset, body, begun.part);
            let (len, last) = put.unwrap_or((0, true));
            if last {
                self.begun = None;
                return true;
            }
            bytes += len;
            begun.part += 1;
        }
        false
    }

    /// Tells the spoke that the log no longer has `[from, to)`, if it may be behind at all.
    fn skip(&mut self, from: u64, to: u64, chunks: &mut Vec<Bytes>) -> Result<(), LinkError> {
        let may_skip = match self.protocol {
            Protocol::Native => self.behind == Behind::Skip || self.begun_at == Some(from),
            Protocol::Compat => false,
        };
        if !may_skip {
            let events = to.saturating_sub(from);
            return Err(e!(LinkError::FellBehind { events }));
        }
        ToSpoke::Missed { from, to }.encode(chunks);
        debug!(target: events::MISSED, from, to);
        self.told_lost.push((from, to));
        Ok(())
    }

    /// Tells the spoke that it will not get `[from, to)`: it was not admitted yet.
    fn withhold(&mut self, from: u64, to: u64, chunks: &mut Vec<Bytes>) {
        if self.protocol == Protocol::Native {
            ToSpoke::Missed { from, to }.encode(chunks);
            debug!(target: events::MISSED, from, to);
            self.told_lost.push((from, to));
        }
    }

    /// What the spoke was told to be lost, since this was asked last.
    pub(crate) fn take_told_lost(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.told_lost)
    }

    /// Somebody waits until the spoke, which has acknowledged everything below `acked`, has everything below
    /// `awaited`: it is asked to say so at once, unless it has yet to answer the last time.
    pub(crate) fn put_ask(&mut self, awaited: u64, acked: u64, chunks: &mut Vec<Bytes>) {
        if self.protocol == Protocol::Native && awaited > acked && self.asked <= acked {
            self.asked = awaited;
            ToSpoke::AckNow { offset: awaited }.encode(chunks);
        }
    }

    /// Whether the link is to end if the log goes past the spoke. Others are told what they missed.
    pub(crate) fn ends_if_behind(&self) -> bool {
        self.protocol != Protocol::Native || self.behind != Behind::Skip
    }

    /// How far the spoke is behind the log, if its link is to end for that.
    pub(crate) fn fell_behind(&self, head: u64) -> Option<u64> {
        let ends = self.ends_if_behind();
        let cursor = self.cursor.filter(|cursor| ends && *cursor < head)?;
        (self.begun_at != Some(cursor)).then(|| head - cursor)
    }

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
        if let Some(rekey) = self.rekey.take() {
            ToSpoke::Rekey(rekey).encode(chunks);
        }
    }

    /// Answers wants, a batch at a time.
    fn put_repairs(
        &mut self,
        log: &SharedLog,
        entries: &mut Vec<(u64, Arc<Entry>)>,
        chunks: &mut Vec<Bytes>,
    ) -> Result<(), LinkError> {
        let Some((from, to)) = self.repairs.pop_front() else {
            return Ok(());
        };
        if from < self.floor {
            let below = to.min(self.floor);
            self.withhold(from, below, chunks);
            if below < to {
                self.repairs.push_front((below, to));
            }
            return Ok(());
        }
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
                self.skip(from, to, chunks)?;
                to
            }
            // Nothing there yet; the topic or the cursor brings it.
            Read::AtTip | Read::Beyond { .. } => to,
        };
        if next < to {
            self.repairs.push_front((next, to));
        }
        Ok(())
    }

    /// Writes the targeted events whose place the cursor has reached; if the topic serves the spoke, those
    /// whose place it can reach, since the spoke's inbox then keeps the order. Says whether those were all.
    fn put_targeted(
        &self,
        mailbox: &mut Mailbox,
        log: &SharedLog,
        chunks: &mut Vec<Bytes>,
    ) -> bool {
        let tip = log.tip();
        let mut written = self.cursor.unwrap_or(tip);
        let waits = mailbox.stop(self.link).is_some_and(|after| after > tip);
        if waits && written >= tip && log.failure().is_some() {
            // Broadcasts that the log will never have are not waited for.
            written = u64::MAX;
        }
        let epoch = log.epoch();
        let mut bytes = 0;
        while bytes < BATCH_BYTES {
            let Some(due) = mailbox.next(self.link, written) else {
                return true;
            };
            bytes += due.envelope.size();
            match self.protocol {
                Protocol::Native => {
                    let after = Position::new(epoch, due.after.min(tip));
                    native::put_targeted(chunks, due.seq, after, due.envelope.body());
                }
                Protocol::Compat => chunks.push(compat::encode(&due.envelope)),
            }
        }
        false
    }
}

fn bytes_of(chunks: &[Bytes]) -> u64 {
    chunks.iter().map(|chunk| chunk.len() as u64).sum()
}

#[cfg(test)]
mod tests;

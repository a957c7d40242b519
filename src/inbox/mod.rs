//! A spoke's half of the contract: it orders, dedups, assembles parts, finds gaps and decides when to want a
//! repair.
//!
//! Whatever path an event took, the inbox lets it out in the order of offsets, once. What it lacks it wants
//! ([`Output::Want`]); what the hub no longer has it says ([`Output::Missed`]). It knows no socket, no task
//! and no clock: parts and the time come in, [`Output`]s come out of [`Inbox::poll`].
//!
//! Not for: deciding who may send (frames are verified before they get here), queues of listeners, or what
//! becomes of a link. Ranges of offsets are half-open: `[from, to)`.
//!
//! Every event must be cut into the same parts on every path, since a part of one copy completes another.

mod config;
mod error;
mod gaps;
mod missed;
mod slot;
mod targeted;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use n0_error::e;

pub(crate) use self::{config::InboxConfig, error::InboxError};
use self::{
    config::OVERHEAD,
    gaps::Gaps,
    missed::MissedRanges,
    slot::{Partial, Slot, Whole},
    targeted::TargetedQueue,
};
use crate::{
    position::{Epoch, Position},
    via::Via,
};

/// A part of a broadcast event, as it came along one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The offset of the event.
    pub(crate) offset: u64,
    /// Which part this is, from 0.
    pub(crate) part: u16,
    /// How many parts the event has, at least 1.
    pub(crate) parts: u16,
    /// The bytes of this part. Kept as they are while it is the next one's turn; a small one that has to wait is copied, so
    /// that it does not keep the buffer that it is a slice of.
    pub(crate) body: Bytes,
    /// By which path it came.
    pub(crate) via: Via,
}

/// What became of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// It was not there before.
    New,
    /// It was there, or its event has been released or given up.
    Duplicate,
    /// There is no room for it; it will be wanted again.
    Dropped,
}

/// What an inbox lets out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// The next broadcast event.
    Event { offset: u64, body: Bytes, via: Via },
    /// The events `[from, to)` cannot be had any more.
    Missed { from: u64, to: u64 },
    /// A targeted event whose turn it is.
    Targeted { seq: u64, body: Bytes },
    /// Ask the hub for the events `[from, to)`.
    Want { from: u64, to: u64 },
}

/// Events for which an empty run keeps room.
const KEPT: usize = 64;

/// See the [module](self).
///
/// After everything that comes in, and at [`deadline`](Self::deadline), call [`poll`](Self::poll) until it
/// gives nothing.
#[derive(Debug)]
pub(crate) struct Inbox {
    config: InboxConfig,
    epoch: Epoch,
    /// The offset to release next.
    next: u64,
    /// One past the highest offset that is known to exist. `[next, tip)` is, offset by offset, whole here,
    /// missed, or in `gaps`.
    tip: u64,
    /// The events from `next` on that came in their turn: the common case does without the map.
    run: VecDeque<Whole>,
    /// Events behind the run.
    slots: BTreeMap<u64, Slot>,
    /// The cost of `run` and `slots`.
    bytes: usize,
    missed: MissedRanges,
    gaps: Gaps,
    targeted: TargetedQueue,
}

impl Inbox {
    /// An inbox which releases the events of `epoch` from `next` on, and knows of events up to `tip`.
    pub(crate) fn new(
        config: InboxConfig,
        now: Instant,
        epoch: Epoch,
        next: u64,
        tip: u64,
        seed: u64,
    ) -> Self {
        let config = config.sound();
        let mut inbox = Self {
            config,
            epoch,
            next,
            tip: next,
            run: VecDeque::new(),
            slots: BTreeMap::new(),
            bytes: 0,
            missed: MissedRanges::new(config.max_buffered_events.saturating_add(1)),
            gaps: Gaps::new(config, seed),
            targeted: TargetedQueue::new(config.max_targeted_events, config.max_targeted_bytes),
        };
        inbox.on_tip(now, tip);
        inbox
    }

    /// Begins another epoch at `next`. Broadcasts of the old one that were not released are forgotten;
    /// targeted events stay, and those that waited in the old epoch are released.
    pub(crate) fn begin_epoch(&mut self, now: Instant, epoch: Epoch, next: u64, tip: u64) {
        self.epoch = epoch;
        self.next = next;
        self.tip = next;
        self.run.clear();
        self.slots.clear();
        self.bytes = 0;
        self.missed.clear();
        self.gaps.clear();
        self.targeted.begin_epoch();
        self.on_tip(now, tip);
    }

    /// Takes a part of an event.
    ///
    /// The part that is needed next is always taken if [`poll`](Self::poll) has been called until it gave
    /// nothing, and so are whole events in a row if they all fit into an empty inbox. When there is no room, what is
    /// farthest ahead gives way to what is nearer.
    pub(crate) fn insert(&mut self, now: Instant, part: Part) -> Result<Inserted, InboxError> {
        self.check(&part)?;
        let (offset, number) = (part.offset, part.part);
        if offset < self.next {
            self.gaps.repeated(now, offset, number);
            return Ok(Inserted::Duplicate);
        }
        if self.is_in_turn(&part) {
            self.tip = offset.saturating_add(1);
            let whole = Whole {
                body: part.body,
                via: part.via,
            };
            self.bytes = self.bytes.saturating_add(whole.cost());
            self.run.push_back(whole);
            return Ok(Inserted::New);
        }
        self.on_tip(now, offset);
        let inserted = self.take(now, part);
        // Unless it is whole now, the event is a gap itself.
        self.on_tip(now, offset.saturating_add(1));
        if let Ok(Inserted::Duplicate) = inserted {
            self.gaps.repeated(now, offset, number);
        }
        inserted
    }

    /// Whether nothing is lacking, and this is the whole of the next event: what a spoke that keeps up gets. All of
    /// [`take`](Self::take) comes to keeping it then.
    fn is_in_turn(&self, part: &Part) -> bool {
        let cost = part.body.len().saturating_add(OVERHEAD);
        part.parts == 1
            && part.offset == self.tip
            && self.tip == self.run_end()
            && self.slots.is_empty()
            && self.run.len() < self.config.max_buffered_events
            && self.bytes.saturating_add(cost) <= self.config.max_buffered_bytes
    }

    /// The offset behind the run.
    fn run_end(&self) -> u64 {
        self.next.saturating_add(self.run.len() as u64)
    }

    fn take(&mut self, now: Instant, part: Part) -> Result<Inserted, InboxError> {
        let Part {
            offset,
            part,
            parts,
            body,
            via,
        } = part;
        if offset < self.run_end() {
            return Ok(Inserted::Duplicate);
        }
        self.gaps.touch(now, offset, offset.saturating_add(1));
        match self.slots.get(&offset) {
            Some(Slot::Whole(_)) => return Ok(Inserted::Duplicate),
            Some(Slot::Partial(partial)) => {
                let (before, bytes) = (partial.parts, partial.bytes());
                if before != parts {
                    self.remove(offset);
                    return Err(e!(InboxError::PartsDiffer {
                        offset,
                        before,
                        parts
                    }));
                }
                if partial.has(part) {
                    return Ok(Inserted::Duplicate);
                }
                let max = self.config.max_event_bytes;
                if bytes.saturating_add(body.len()) > max {
                    self.remove(offset);
                    return Err(e!(InboxError::TooLarge { offset, max }));
                }
            }
            None => {}
        }
        if !self.make_room(now, offset, body.len().saturating_add(OVERHEAD)) {
            return Ok(Inserted::Dropped);
        }
        if parts == 1 {
            self.gaps.completed(offset, part);
            self.store(now, offset, Whole { body, via });
            return Ok(Inserted::New);
        }
        let mut partial = match self.remove(offset) {
            Some(Slot::Partial(partial)) => partial,
            Some(Slot::Whole(_)) | None => Partial::new(parts),
        };
        partial.add(part, body);
        if partial.is_complete() {
            self.gaps.completed(offset, part);
            let body = partial.join();
            self.store(now, offset, Whole { body, via });
        } else {
            self.bytes = self.bytes.saturating_add(partial.cost());
            self.slots.insert(offset, Slot::Partial(partial));
            self.gaps.came(now, offset);
        }
        Ok(Inserted::New)
    }

    fn check(&self, part: &Part) -> Result<(), InboxError> {
        let Part {
            offset,
            part,
            parts,
            ref body,
            ..
        } = *part;
        let (max_parts, max) = (self.config.max_parts, self.config.max_event_bytes);
        if parts == 0 {
            return Err(e!(InboxError::NoParts { offset }));
        }
        if part >= parts {
            return Err(e!(InboxError::PartOutOfRange {
                offset,
                part,
                parts
            }));
        }
        if parts > max_parts.max(1) {
            let max = max_parts;
            return Err(e!(InboxError::TooManyParts { offset, parts, max }));
        }
        if body.len() > max {
            return Err(e!(InboxError::TooLarge { offset, max }));
        }
        if offset == u64::MAX {
            return Err(e!(InboxError::NoSuchOffset { offset }));
        }
        Ok(())
    }

    /// Keeps a whole event for which there is room.
    fn store(&mut self, now: Instant, offset: u64, whole: Whole) {
        let after = offset.saturating_add(1);
        self.gaps.close(now, offset, after);
        self.tip = self.tip.max(after);
        self.bytes = self.bytes.saturating_add(whole.cost());
        if offset == self.run_end() {
            self.run.push_back(whole);
        } else {
            self.slots.insert(offset, Slot::Whole(whole.of_its_own()));
        }
    }

    fn remove(&mut self, offset: u64) -> Option<Slot> {
        let slot = self.slots.remove(&offset)?;
        self.bytes = self.bytes.saturating_sub(slot.cost());
        Some(slot)
    }

    /// Makes room for `cost` at `offset` by giving up what is farther ahead, farthest first; or gives up
    /// nothing if that would not do.
    fn make_room(&mut self, now: Instant, offset: u64, cost: usize) -> bool {
        let events = self.events() + usize::from(!self.slots.contains_key(&offset));
        let bytes = self.bytes.saturating_add(cost);
        let mut excess_events = events.saturating_sub(self.config.max_buffered_events);
        let mut excess_bytes = bytes.saturating_sub(self.config.max_buffered_bytes);
        let mut farther = self.slots.range(offset.saturating_add(1)..).rev();
        let mut evict = 0usize;
        while excess_events > 0 || excess_bytes > 0 {
            let Some((_, slot)) = farther.next() else {
                return false;
            };
            excess_events = excess_events.saturating_sub(1);
            excess_bytes = excess_bytes.saturating_sub(slot.cost());
            evict += 1;
        }
        for _ in 0..evict {
            let Some((offset, slot)) = self.slots.pop_last() else {
                break;
            };
            self.bytes = self.bytes.saturating_sub(slot.cost());
            // An event in parts has been a gap all along.
            if matches!(slot, Slot::Whole(_)) && !self.missed.contains(offset) {
                self.gaps.open(now, offset, offset.saturating_add(1));
            }
        }
        true
    }

    fn events(&self) -> usize {
        self.slots.len() + self.run.len()
    }

    /// The hub's tip is known to be `tip` at least: what is not here up to there is a gap.
    pub(crate) fn on_tip(&mut self, now: Instant, tip: u64) {
        if tip > self.tip {
            self.gaps.open(now, self.tip, tip);
            self.tip = tip;
        }
    }

    /// The hub's log no longer has `[from, to)`. What is here of it is still released.
    pub(crate) fn on_missed(&mut self, now: Instant, from: u64, to: u64) {
        let from = from.max(self.next);
        if from >= to {
            return;
        }
        self.on_tip(now, to);
        if self.missed.add(self.next, from, to) {
            self.gaps.close(now, from, to);
        }
    }

    /// Takes a whole targeted event, sent when the hub's tip was `after`. It is released once everything
    /// before `after` has been released or missed; those of one place, in the order of arrival.
    ///
    /// What bounds its wait: everything before `after` counts as existing from now on, so it is brought by the
    /// direct cursor, or wanted again and again until the hub fills the gap or says that it is missed; a hub
    /// that does neither is one whose link the spoke gives up, and the epoch or the resume that follows (the
    /// `Missed` or the [new epoch](Self::begin_epoch) in it) sets the event free.
    pub(crate) fn on_targeted(
        &mut self,
        now: Instant,
        after: Position,
        body: Bytes,
        seq: u64,
    ) -> Result<(), InboxError> {
        let max = self.config.max_event_bytes;
        if body.len() > max {
            return Err(e!(InboxError::TargetedTooLarge { seq, max }));
        }
        if !self.targeted.push(self.position(), after, seq, body) {
            return Err(e!(InboxError::TargetedFull { seq }));
        }
        if after.epoch == self.epoch {
            self.on_tip(now, after.offset);
        }
        Ok(())
    }

    /// Changes how long a gap stands before it is wanted: longer in a larger mesh.
    pub(crate) fn set_gap_wait(&mut self, gap_wait: Duration) {
        self.gaps.set_gap_wait(gap_wait);
    }

    /// Says whether the hub serves this spoke by its direct cursor. While it does, gaps close by themselves
    /// and none is wanted; when that ends they count from now. Open wants are forgotten at either change.
    pub(crate) fn set_direct(&mut self, now: Instant, direct: bool) {
        self.gaps.set_direct(now, direct);
    }

    /// Gives the next thing to do, until there is nothing more.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Output> {
        if let Some((seq, body)) = self.targeted.pop(self.next) {
            return Some(Output::Targeted { seq, body });
        }
        if let Some(Whole { body, via }) = self.take_next() {
            let offset = self.next;
            self.next = offset.saturating_add(1);
            self.missed.pass(self.next);
            return Some(Output::Event { offset, body, via });
        }
        if let Some((from, to)) = self.pass_missed() {
            return Some(Output::Missed { from, to });
        }
        // Without room, what lies beyond all that is here would only be dropped again.
        let limit = (!self.has_room()).then(|| self.reach());
        let (from, to) = self.gaps.poll(now, limit)?;
        Some(Output::Want { from, to })
    }

    fn take_next(&mut self) -> Option<Whole> {
        let whole = match self.run.pop_front() {
            Some(whole) => {
                if self.run.is_empty() {
                    self.run.shrink_to(KEPT);
                }
                whole
            }
            None => {
                let first = self.slots.first_entry()?;
                if *first.key() != self.next || matches!(first.get(), Slot::Partial(_)) {
                    return None;
                }
                let Slot::Whole(whole) = first.remove() else {
                    return None;
                };
                whole
            }
        };
        self.bytes = self.bytes.saturating_sub(whole.cost());
        Some(whole)
    }

    /// Passes what is missed from `next` up to the first event that is here.
    fn pass_missed(&mut self) -> Option<(u64, u64)> {
        let from = self.next;
        let mut to = self.missed.end(from)?;
        while let Some((&offset, slot)) = self.slots.first_key_value()
            && offset < to
        {
            match slot {
                Slot::Whole(_) => to = offset,
                Slot::Partial(_) => drop(self.remove(offset)),
            }
        }
        self.next = to;
        self.missed.pass(to);
        Some((from, to))
    }

    /// One past the farthest event that is here.
    fn reach(&self) -> u64 {
        let last = self.slots.last_key_value().map(|(offset, _)| *offset);
        let end = last.map(|last| last.saturating_add(1));
        end.unwrap_or(self.run_end())
            .max(self.next.saturating_add(1))
    }

    /// When [`poll`](Self::poll) may have something though nothing came in.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.gaps.deadline()
    }

    /// The life of the log that offsets count in.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The position to release next.
    pub(crate) fn position(&self) -> Position {
        Position::new(self.epoch, self.next)
    }

    /// The offset to release next: all before it has been given out by [`poll`](Self::poll).
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// One past the highest offset that is known to exist.
    #[cfg(test)]
    pub(crate) fn tip(&self) -> u64 {
        self.tip
    }

    /// What waits for its turn, with the overhead that is counted for each part.
    #[cfg(test)]
    pub(crate) fn buffered_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether so many whole events would be taken, of so many bytes together, without giving up another.
    pub(crate) fn has_room_for(&self, events: usize, bytes: usize) -> bool {
        let cost = bytes.saturating_add(events.saturating_mul(OVERHEAD));
        self.events().saturating_add(events) <= self.config.max_buffered_events
            && self.bytes.saturating_add(cost) <= self.config.max_buffered_bytes
    }

    /// Whether any event whatever would be taken without giving up another.
    ///
    /// A hint for what may pause, like the topic. The direct link must be read on even without room: the
    /// event that makes room comes along it.
    pub(crate) fn has_room(&self) -> bool {
        let parts = usize::from(self.config.max_parts).saturating_mul(OVERHEAD);
        let event = self.config.max_event_bytes.saturating_add(parts);
        self.events() < self.config.max_buffered_events
            && self.bytes.saturating_add(event) <= self.config.max_buffered_bytes
    }

    /// Whether everything that is known to exist has been released or missed.
    #[cfg(test)]
    pub(crate) fn is_caught_up(&self) -> bool {
        self.next >= self.tip
    }
}

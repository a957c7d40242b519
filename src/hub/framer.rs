//! What goes on the topic next: sans-IO.
//!
//! A [`Framer`] is the topic's cursor on the log. It packs what lies before it into frames, cuts events
//! that are too large for one into parts, sends again what many spokes lack, and does not run ahead of
//! the spokes by more than a window. While there is nothing to send it says where the tip is (a beacon),
//! ever more rarely, so that spokes see what they lost at the end, and their own isolation.
//!
//! Not for: sealing frames and sending them (the gossip link does), or deciding what is sent again.

use std::{
    collections::VecDeque,
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    pace::{Has, Pace},
    shared_log::{Entry, SharedLog},
};
use crate::{
    log::Read,
    wire::{
        broadcast::{BEACON_FIRST, BEACON_LAST, Packer},
        native::{MAX_PART, PartOf, parts},
    },
};

/// How far the topic may run ahead of its spokes: less than what their neighbours' queues hold, so
/// that a burst waits here and is not dropped there.
const WINDOW_EVENTS: u64 = 16_384;
const WINDOW_BYTES: u64 = 1 << 20;
/// A closed window is looked at again after this long, though nobody acknowledged anything.
const WINDOW_POLL: Duration = Duration::from_millis(20);

/// How many events are read at once, and how many frames' worth of bytes.
const READ_EVENTS: usize = 4096;
const READ_FRAMES: usize = 4;

/// How many ranges may wait to be sent again.
const MAX_AGAIN: usize = 1024;

/// What a frame is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Content {
    /// The offset of the first event.
    pub(crate) first: u64,
    /// How many events; 0 in a beacon, whose `first` is the tip.
    pub(crate) count: u16,
    pub(crate) of: PartOf,
    pub(crate) body: Bytes,
    /// It was sent before.
    pub(crate) again: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Audience {
    /// The hub has neighbours.
    There,
    /// It has none, but spokes rely on the topic.
    Lost,
    /// There is nobody.
    Nobody,
}

/// See the [module](self).
///
/// Call [`poll`](Self::poll) until it gives nothing; again at [`deadline`](Self::deadline), when the log
/// grows, and while [`is_held`](Self::is_held) when spokes acknowledge.
#[derive(Debug)]
pub(crate) struct Framer<Id> {
    /// The most bytes of a frame's body.
    limit: usize,
    pace: Pace<Id>,
    packer: Packer,
    new: Cutter,
    /// What is being sent again, and what is to be.
    again: Option<Cutter>,
    waiting: VecDeque<(u64, u64)>,
    /// New frames and those sent again take turns.
    turn_of_again: bool,
    /// How long after the last frame the next beacon is due.
    quiet: Duration,
    last_sent: Instant,
    hurry: bool,
    audience: Audience,
    /// The window is closed, and is looked at again then.
    held_until: Option<Instant>,
}

impl<Id: Copy + Ord + Debug> Framer<Id> {
    /// A cursor that begins at `next`. `limit` is the most bytes of a frame's body: at least a part and
    /// the longest prefix of one.
    pub(crate) fn new(now: Instant, next: u64, limit: usize, pace: Pace<Id>) -> Self {
        Self {
            limit,
            pace,
            packer: Packer::default(),
            new: Cutter::new(next, u64::MAX),
            again: None,
            waiting: VecDeque::new(),
            turn_of_again: false,
            quiet: BEACON_FIRST,
            last_sent: now,
            hurry: true,
            audience: Audience::There,
            held_until: None,
        }
    }

    /// Everything below was given out as frames, or was not for the topic.
    pub(crate) fn next(&self) -> u64 {
        self.new.next
    }

    /// Whether the window is closed: what spokes acknowledge may open it.
    pub(crate) fn is_held(&self) -> bool {
        self.held_until.is_some()
    }

    /// While somebody is joining, beacons come at their shortest interval.
    pub(crate) fn set_hurry(&mut self, hurry: bool) {
        if std::mem::replace(&mut self.hurry, hurry) != hurry {
            self.quiet = BEACON_FIRST;
        }
    }

    /// Says whether the hub has neighbours on the topic, and whether the topic serves any spoke. Without
    /// neighbours frames would go nowhere: they wait if there are spokes that rely on them, until the
    /// hub has neighbours again or the topic is given up; otherwise the topic begins at the tip once there
    /// are some.
    pub(crate) fn set_listeners(&mut self, neighbors: bool, served: bool) {
        self.audience = match (neighbors, served) {
            (true, _) => Audience::There,
            (false, true) => Audience::Lost,
            (false, false) => Audience::Nobody,
        };
    }

    /// Sends `[from, to)` again, as far as it was sent. False: too much waits to be sent again already.
    pub(crate) fn send_again(&mut self, from: u64, to: u64) -> bool {
        let to = to.min(self.new.next);
        if from < to {
            if self.waiting.len() >= MAX_AGAIN {
                return false;
            }
            self.waiting.push_back((from, to));
        }
        true
    }

    /// What to send next, if anything. `acks` is asked for the spokes that the window goes by, each with
    /// what it has acknowledged.
    pub(crate) fn poll<A>(
        &mut self,
        now: Instant,
        log: &SharedLog,
        acks: impl FnOnce() -> A,
    ) -> Option<Content>
    where
        A: IntoIterator<Item = (Id, Has)>,
    {
        if self.audience != Audience::There {
            self.held_until = None;
            if self.audience == Audience::Nobody {
                self.new.skip(log.tip());
            }
            // A beacon is due as soon as somebody is there to hear it.
            return None;
        }
        let content = if self.turn_of_again {
            self.poll_again(log)
                .or_else(|| self.poll_new(now, log, acks))
        } else {
            self.poll_new(now, log, acks)
                .or_else(|| self.poll_again(log))
        };
        if let Some(content) = content {
            self.turn_of_again = !content.again;
            self.quiet = BEACON_FIRST;
            self.last_sent = now;
            return Some(content);
        }
        self.beacon(now)
    }

    /// When to call [`poll`](Self::poll) again though nothing happened.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let beacon = self.beacon_at();
        let due = self.held_until.map_or(beacon, |at| at.min(beacon));
        (self.audience == Audience::There).then_some(due)
    }

    fn poll_new<A>(
        &mut self,
        now: Instant,
        log: &SharedLog,
        acks: impl FnOnce() -> A,
    ) -> Option<Content>
    where
        A: IntoIterator<Item = (Id, Has)>,
    {
        let tip = log.tip();
        self.new.leave_runt(self.limit, tip);
        if self.new.is_empty() {
            self.held_until = None;
            if self.new.next >= tip {
                return None;
            }
            if !self.may_go_on(now, log, acks()) {
                self.held_until = Some(now + WINDOW_POLL);
                return None;
            }
            self.new.read(log, READ_FRAMES * self.limit);
        }
        self.new.cut(&mut self.packer, self.limit, false)
    }

    /// Whether the spokes that acknowledge fast, and keep up, are within the window.
    fn may_go_on(
        &mut self,
        now: Instant,
        log: &SharedLog,
        acks: impl IntoIterator<Item = (Id, Has)>,
    ) -> bool {
        let behind = log.back_by(self.new.next, WINDOW_EVENTS, WINDOW_BYTES);
        let floor = self.pace.floor(now, behind, acks.into_iter());
        floor.is_none_or(|floor| floor >= behind)
    }

    fn poll_again(&mut self, log: &SharedLog) -> Option<Content> {
        loop {
            let again = match &mut self.again {
                Some(again) => again,
                None => {
                    let (from, to) = self.waiting.pop_front()?;
                    self.again.insert(Cutter::new(from, to))
                }
            };
            again.leave_runt(self.limit, again.end);
            if again.is_empty() {
                // A frame at a time: the next piece is read when it is due.
                again.read(log, self.limit);
            }
            match again.cut(&mut self.packer, self.limit, true) {
                Some(content) => return Some(content),
                None => self.again = None,
            }
        }
    }

    fn beacon_at(&self) -> Instant {
        // With the window closed, silence would be taken for isolation.
        let quiet = if self.is_held() {
            BEACON_FIRST
        } else {
            self.quiet
        };
        self.last_sent + quiet
    }

    fn beacon(&mut self, now: Instant) -> Option<Content> {
        if now < self.beacon_at() {
            return None;
        }
        self.quiet = if self.hurry {
            BEACON_FIRST
        } else {
            (self.quiet * 2).min(BEACON_LAST)
        };
        self.last_sent = now;
        Some(Content {
            first: self.new.next,
            count: 0,
            of: PartOf::WHOLE,
            body: Bytes::new(),
            again: false,
        })
    }
}

/// Whether an event travels uncut. A frame may have room for more than a part, and a link has not: what has come as a part along
/// the one is completed by the other.
fn is_whole(body: &Bytes) -> bool {
    body.len() <= MAX_PART
}

/// Cuts a stretch of the log into frames.
#[derive(Debug)]
struct Cutter {
    next: u64,
    end: u64,
    /// Read and not cut yet, from `next` on.
    entries: VecDeque<(u64, Arc<Entry>)>,
    /// What is left of the event at `next`.
    parts: VecDeque<(PartOf, Bytes)>,
}

impl Cutter {
    /// Leaves out what lies before `next`.
    fn skip(&mut self, next: u64) {
        if next > self.next {
            *self = Self::new(next, self.end);
        }
    }

    fn new(next: u64, end: u64) -> Self {
        Self {
            next,
            end,
            entries: VecDeque::new(),
            parts: VecDeque::new(),
        }
    }

    /// Forgets what was read if it fills no frame and the log goes on behind it, up to `end`: it is read again together
    /// with that.
    fn leave_runt(&mut self, limit: usize, end: u64) {
        let goes_on = self.entries.back().is_some_and(|(last, _)| last + 1 < end);
        if goes_on && self.parts.is_empty() && !self.fills_a_frame(limit) {
            self.entries.clear();
        }
    }

    fn fills_a_frame(&self, limit: usize) -> bool {
        let mut room = limit;
        let mut entries = self.entries.iter();
        entries.any(|(_, entry)| {
            let body = entry.envelope.body();
            let left = room.checked_sub(Packer::cost(body));
            room = left.unwrap_or_default();
            left.is_none() || !is_whole(body)
        })
    }

    /// Whether the log has to be read on.
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.parts.is_empty()
    }

    fn read(&mut self, log: &SharedLog, max_bytes: usize) {
        let mut entries = Vec::new();
        loop {
            let left = usize::try_from(self.end.saturating_sub(self.next)).unwrap_or(usize::MAX);
            if left == 0 {
                return;
            }
            match log.read(self.next, left.min(READ_EVENTS), max_bytes, &mut entries) {
                Read::Events => {
                    self.entries = entries.into();
                    return;
                }
                Read::AtTip | Read::Beyond { .. } => return,
                // Spokes want what is missing, and are told what is gone.
                Read::Trimmed { head } => self.next = head,
            }
        }
    }

    /// The next frame of what was read.
    fn cut(&mut self, packer: &mut Packer, limit: usize, again: bool) -> Option<Content> {
        if self.parts.is_empty() {
            let first = self.next;
            while let Some((offset, entry)) = self.entries.front()
                && is_whole(entry.envelope.body())
                && packer.push(entry.envelope.body(), limit)
            {
                self.next = offset + 1;
                self.entries.pop_front();
            }
            let count = packer.count();
            if count > 0 {
                return Some(Content {
                    first,
                    count,
                    of: PartOf::WHOLE,
                    body: packer.take().freeze(),
                    again,
                });
            }
            let (_, entry) = self.entries.pop_front()?;
            self.parts = parts(entry.envelope.body()).collect();
        }
        let (of, body) = self.parts.pop_front()?;
        let first = self.next;
        if self.parts.is_empty() {
            self.next = first + 1;
        }
        Some(Content {
            first,
            count: 1,
            of,
            body,
            again,
        })
    }
}

#[cfg(test)]
mod tests;

//! The protocol's timers, and which is which.
//!
//! The types of the tree's timers have no public names, so they are told apart by what they print.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use iroh_gossip::proto::topic;
use n0_future::time::{Duration, Instant};

use crate::gossip::mirror::Id;

/// What a timer is for, as far as the core has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimerKind {
    /// The protocol empties its caches.
    Evict,
    /// It asks for a frame that was announced; this one, if that is known.
    Graft(Option<Id>),
    Other,
}

/// A timer; ordered by time, then by age.
#[derive(Debug)]
pub(super) struct Timer<P> {
    pub(super) at: Instant,
    number: u64,
    pub(super) kind: TimerKind,
    /// When it was set, and for how long.
    pub(super) since: Instant,
    pub(super) delay: Duration,
    pub(super) timer: topic::Timer<P>,
}

impl<P> PartialEq for Timer<P> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl<P> Eq for Timer<P> {}
impl<P> PartialOrd for Timer<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<P> Ord for Timer<P> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Those that are set.
#[derive(Debug)]
pub(super) struct Timers<P> {
    heap: BinaryHeap<Reverse<Timer<P>>>,
    number: u64,
    /// What those look like of which there is one.
    evict: Option<topic::Timer<P>>,
    announce: Option<topic::Timer<P>>,
}

impl<P: Clone + PartialEq> Timers<P> {
    pub(super) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            number: 0,
            evict: None,
            announce: None,
        }
    }

    /// `frame` is what the protocol was told of when it set the timer.
    pub(super) fn set(
        &mut self,
        timer: topic::Timer<P>,
        delay: Duration,
        frame: Option<Id>,
        now: Instant,
    ) {
        let kind = self.kind(&timer, frame);
        let number = self.number;
        self.number += 1;
        self.heap.push(Reverse(Timer {
            at: now + delay,
            number,
            kind,
            since: now,
            delay,
            timer,
        }));
    }

    fn kind(&mut self, timer: &topic::Timer<P>, frame: Option<Id>) -> TimerKind {
        let topic::Timer::Gossip(tree) = timer else {
            return TimerKind::Other;
        };
        if self.evict.is_none() || self.announce.is_none() {
            match format!("{tree:?}").as_str() {
                "EvictCache" => self.evict = Some(timer.clone()),
                "DispatchLazyPush" => self.announce = Some(timer.clone()),
                _ => {}
            }
        }
        if self.evict.as_ref() == Some(timer) {
            TimerKind::Evict
        } else if self.announce.as_ref() == Some(timer) {
            TimerKind::Other
        } else {
            TimerKind::Graft(frame)
        }
    }

    /// When the next one is due.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(timer)| timer.at)
    }

    /// Takes the next one out that is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<Timer<P>> {
        self.next_at().filter(|at| *at <= now)?;
        self.heap.pop().map(|Reverse(timer)| timer)
    }

    /// Puts a timer off.
    pub(super) fn put_off(&mut self, timer: Timer<P>, until: Instant) {
        self.heap.push(Reverse(Timer { at: until, ..timer }));
    }

    /// The one at which the protocol empties its caches, once it has set it.
    pub(super) fn evict(&self) -> Option<topic::Timer<P>> {
        self.evict.clone()
    }

    pub(super) fn clear(&mut self) {
        self.heap.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    #[cfg(test)]
    pub(super) fn count(&self, kind: TimerKind) -> usize {
        self.heap
            .iter()
            .filter(|timer| timer.0.kind == kind)
            .count()
    }
}

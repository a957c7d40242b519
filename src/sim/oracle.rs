//! Judges what spokes let out, knowing nothing of how it got there.
//!
//! It is told what the hub broadcast, and of every spoke where it begins and, in order, what its listeners see. Each
//! event must be the next one, and the bytes that were broadcast. What is jumped over without a word is lost.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Serialize;

use super::{clock::Nanos, net::NodeId};
use crate::position::{Epoch, Position};

/// What the oracle found.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Events that spokes let out.
    pub deliveries: u64,
    /// Events that a spoke never saw and was not told of.
    pub lost: u64,
    /// Events that a spoke saw again.
    pub repeated: u64,
    /// Events that a spoke saw after a later one.
    pub disordered: u64,
    /// Events that are not what was broadcast.
    pub altered: u64,
    /// Events that spokes were told are missed.
    pub missed: u64,
    /// Those of them that the hub's log still had.
    pub missed_in_window: u64,
    /// Claims to have recovered wholly that are not true.
    pub false_recoveries: u64,
}

impl Verdict {
    /// Whether the contract was kept.
    pub fn is_kept(&self) -> bool {
        let Self {
            deliveries: _,
            lost,
            repeated,
            disordered,
            altered,
            missed: _,
            missed_in_window,
            false_recoveries,
        } = *self;
        [
            lost,
            repeated,
            disordered,
            altered,
            missed_in_window,
            false_recoveries,
        ] == [0; 6]
    }
}

/// What was broadcast in one epoch.
#[derive(Debug, Default)]
struct Life {
    events: Vec<Broadcast>,
    /// The log begins here.
    head: u64,
}

#[derive(Debug)]
struct Broadcast {
    hash: u64,
    at: Nanos,
    last: Nanos,
    last_hop: u16,
}

/// What one spoke has seen.
#[derive(Debug)]
struct Seen {
    next: Position,
    /// Jumped over, in this epoch.
    jumped: BTreeMap<u64, u64>,
    /// The tip of the last welcome.
    tip: Position,
    /// It was told of something missed since it lost its link.
    missed: bool,
    /// It lost its link, and has not said since that it has caught up.
    recovering: bool,
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    lives: BTreeMap<Epoch, Life>,
    seen: BTreeMap<NodeId, Seen>,
    /// Who went. What they had said may still be on its way to the hub.
    ended: BTreeSet<NodeId>,
    verdict: Verdict,
}

fn hash(body: &[u8]) -> u64 {
    let hash = blake3::hash(body);
    let (first, _) = hash.as_bytes().split_at(8);
    first.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

impl Oracle {
    /// The hub broadcast this.
    pub(super) fn broadcast(&mut self, position: Position, body: &Bytes, now: Nanos) {
        let life = self.lives.entry(position.epoch).or_default();
        debug_assert_eq!(life.events.len() as u64, position.offset);
        life.events.push(Broadcast {
            hash: hash(body),
            at: now,
            last: now,
            last_hop: 0,
        });
    }

    /// The log has nothing before `head` any more.
    pub(super) fn trimmed(&mut self, epoch: Epoch, head: u64) {
        self.lives.entry(epoch).or_default().head = head;
    }

    /// A spoke came and shall see everything from here on.
    pub(super) fn begins(&mut self, spoke: NodeId, at: Position) {
        if self.ended.contains(&spoke) {
            return;
        }
        let seen = Seen {
            next: at,
            jumped: BTreeMap::new(),
            tip: at,
            missed: false,
            recovering: false,
        };
        self.seen.insert(spoke, seen);
    }

    /// A spoke went, and need not see any more. What it jumped over stays lost.
    pub(super) fn ends(&mut self, spoke: NodeId) {
        self.ended.insert(spoke);
        if let Some(seen) = self.seen.remove(&spoke) {
            self.verdict.lost += seen.lost();
        }
    }

    /// A spoke let an event out.
    pub(super) fn event(&mut self, spoke: NodeId, position: Position, body: &[u8], now: Nanos) {
        self.verdict.deliveries += 1;
        let Some(seen) = self.seen.get_mut(&spoke) else {
            self.verdict.repeated += 1;
            return;
        };
        let life = self.lives.get_mut(&position.epoch);
        let broadcast = life.and_then(|life| life.events.get_mut(position.offset as usize));
        match broadcast {
            Some(broadcast) if broadcast.hash == hash(body) => broadcast.last = now,
            _ => self.verdict.altered += 1,
        }
        if position.epoch != seen.next.epoch {
            // It was not told of a new epoch.
            self.verdict.disordered += 1;
        } else if position.offset < seen.next.offset {
            if seen.was_jumped(position.offset) {
                self.verdict.disordered += 1;
            } else {
                self.verdict.repeated += 1;
            }
        } else {
            if position.offset > seen.next.offset {
                seen.jumped.insert(seen.next.offset, position.offset);
            }
            seen.next = position.next();
        }
    }

    /// An event came so many hops along the topic.
    pub(super) fn hops(&mut self, epoch: Epoch, offset: u64, hops: u16) {
        let life = self.lives.get_mut(&epoch);
        if let Some(broadcast) = life.and_then(|life| life.events.get_mut(offset as usize)) {
            broadcast.last_hop = broadcast.last_hop.max(hops);
        }
    }

    /// A spoke was told that it misses what lies between two positions.
    pub(super) fn missed(&mut self, spoke: NodeId, from: Position, to: Position) {
        let Some(seen) = self.seen.get_mut(&spoke) else {
            return;
        };
        seen.missed = true;
        if from != seen.next || (from.epoch == to.epoch && from.offset >= to.offset) {
            self.verdict.disordered += 1;
            return;
        }
        let head = self.lives.get(&to.epoch).map_or(0, |life| life.head);
        // Of another epoch, all that its log has should come.
        let gone = if from.epoch == to.epoch {
            self.verdict.missed += to.offset - from.offset;
            head.max(from.offset)
        } else {
            self.verdict.lost += seen.lost();
            seen.jumped.clear();
            head
        };
        self.verdict.missed_in_window += to.offset.saturating_sub(gone);
        seen.next = to;
    }

    /// Whether a spoke has seen everything before `tip`.
    pub(super) fn has_all(&self, spoke: NodeId, tip: Position) -> bool {
        self.seen.get(&spoke).is_some_and(|seen| seen.next == tip)
    }

    /// What was found so far.
    pub(super) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// A spoke was welcomed, when the hub's tip was this.
    pub(super) fn welcomed(&mut self, spoke: NodeId, tip: Position) {
        if let Some(seen) = self.seen.get_mut(&spoke) {
            seen.tip = tip;
        }
    }

    /// A spoke lost its link.
    pub(super) fn disconnected(&mut self, spoke: NodeId) {
        // It may be lost again on the way.
        if let Some(seen) = self.seen.get_mut(&spoke)
            && !std::mem::replace(&mut seen.recovering, true)
        {
            seen.missed = false;
        }
    }

    /// A spoke says that it has caught up, `wholly` or with holes.
    pub(super) fn recovered(&mut self, spoke: NodeId, wholly: bool) {
        let Some(seen) = self.seen.get_mut(&spoke) else {
            return;
        };
        let recovering = std::mem::take(&mut seen.recovering);
        let there = seen.next.epoch == seen.tip.epoch && seen.next.offset >= seen.tip.offset;
        if !there || !recovering || (wholly && (seen.missed || seen.lost() > 0)) {
            self.verdict.false_recoveries += 1;
        }
    }

    /// Judges the run: what the spokes that are there (`live`) have not seen up to `tip` is lost. One that never
    /// began has lost something, whatever there was.
    pub(super) fn judge(&mut self, tip: Position, live: &BTreeSet<NodeId>) -> Verdict {
        let never_began = live.iter().filter(|id| !self.seen.contains_key(id));
        self.verdict.lost += never_began.count() as u64;
        for (_, seen) in std::mem::take(&mut self.seen) {
            self.verdict.lost += seen.lost();
            self.verdict.lost += if seen.next.epoch == tip.epoch {
                tip.offset.saturating_sub(seen.next.offset)
            } else {
                // It does not even know of the epoch: nothing of it was seen.
                tip.offset.max(1)
            };
        }
        self.verdict
    }

    /// How long each event took to the last spoke that saw it, and how many hops at most, in order of the former.
    pub(super) fn times(&self) -> (Vec<Nanos>, Vec<u16>) {
        let all = || self.lives.values().flat_map(|life| &life.events);
        let mut times: Vec<Nanos> = all().map(|b| b.last - b.at).collect();
        let mut hops: Vec<u16> = all().map(|b| b.last_hop).filter(|hops| *hops > 0).collect();
        times.sort_unstable();
        hops.sort_unstable();
        (times, hops)
    }
}

impl Seen {
    fn lost(&self) -> u64 {
        self.jumped.iter().map(|(from, to)| to - from).sum()
    }

    /// Takes an offset out of what was jumped over, if it is there.
    fn was_jumped(&mut self, offset: u64) -> bool {
        let Some((&from, &to)) = self.jumped.range(..=offset).next_back() else {
            return false;
        };
        if offset >= to {
            return false;
        }
        self.jumped.remove(&from);
        if from < offset {
            self.jumped.insert(from, offset);
        }
        if offset + 1 < to {
            self.jumped.insert(offset + 1, to);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch::from_u64(7);

    fn at(offset: u64) -> Position {
        Position::new(EPOCH, offset)
    }

    fn body(offset: u64) -> Bytes {
        Bytes::copy_from_slice(&offset.to_be_bytes())
    }

    /// What is found when a spoke of ten events sees these; a pair is missed.
    fn judged(seen: &[(u64, u64)], head: u64) -> Verdict {
        let mut oracle = Oracle::default();
        for offset in 0..10 {
            oracle.broadcast(at(offset), &body(offset), 0);
        }
        oracle.trimmed(EPOCH, head);
        oracle.begins(1, at(2));
        for (from, to) in seen {
            if from == to {
                oracle.event(1, at(*from), &body(*from), 9);
            } else {
                oracle.missed(1, at(*from), at(*to));
            }
        }
        oracle.judge(at(10), &BTreeSet::from([1]))
    }

    fn each(offsets: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
        offsets.into_iter().map(|offset| (offset, offset)).collect()
    }

    #[test]
    fn every_event_in_order_once_is_well() {
        let verdict = judged(&each(2..10), 0);
        assert_eq!(verdict.deliveries, 8);
        assert!(verdict.is_kept(), "{verdict:?}");
    }

    #[test]
    fn what_is_jumped_over_or_does_not_come_is_lost() {
        assert_eq!(judged(&each([2, 3, 6, 7, 8, 9]), 0).lost, 2);
        assert_eq!(judged(&each(2..9), 0).lost, 1);
        assert_eq!(judged(&[], 0).lost, 8);
    }

    #[test]
    fn what_comes_late_is_out_of_order_and_what_comes_again_is_repeated() {
        let verdict = judged(&each([2, 4, 3, 5, 6, 6, 7, 8, 9]), 0);
        assert_eq!(
            (verdict.disordered, verdict.repeated, verdict.lost),
            (1, 1, 0)
        );
        assert_eq!(judged(&each([2, 2, 3, 4, 5, 6, 7, 8, 9]), 0).repeated, 1);
        assert_eq!(judged(&each([1, 2, 3, 4, 5, 6, 7, 8, 9]), 0).repeated, 1);
    }

    #[test]
    fn what_is_missed_must_be_gone_from_the_log() {
        let mut seen = vec![(2, 5)];
        seen.extend(each(5..10));
        let verdict = judged(&seen, 5);
        assert!(verdict.is_kept() && verdict.missed == 3, "{verdict:?}");
        assert_eq!(judged(&seen, 3).missed_in_window, 2);
        seen[0] = (3, 5);
        assert_eq!(judged(&seen, 5).disordered, 1);
    }

    #[test]
    fn who_never_began_has_lost_something_and_who_went_has_not() {
        let mut oracle = Oracle::default();
        oracle.broadcast(at(0), &body(0), 0);
        assert!(!oracle.has_all(1, at(1)));
        // Its hello comes to the hub when it is gone already.
        oracle.ends(2);
        oracle.begins(2, at(0));
        assert_eq!(oracle.judge(at(1), &BTreeSet::from([1])).lost, 1);
    }

    #[test]
    fn nobody_recovers_wholly_who_missed_something_between_two_attempts() {
        let told_within = |attempts: u32| {
            let mut oracle = Oracle::default();
            for offset in 0..10 {
                oracle.broadcast(at(offset), &body(offset), 0);
            }
            oracle.trimmed(EPOCH, 10);
            oracle.begins(1, at(0));
            oracle.disconnected(1);
            oracle.missed(1, at(0), at(10));
            for _ in 1..attempts {
                oracle.disconnected(1);
            }
            oracle.welcomed(1, at(10));
            oracle.recovered(1, true);
            oracle.verdict().false_recoveries
        };
        assert_eq!((told_within(1), told_within(3)), (1, 1));
    }

    #[test]
    fn other_bytes_are_altered() {
        let mut oracle = Oracle::default();
        oracle.broadcast(at(0), &body(0), 0);
        oracle.begins(1, at(0));
        oracle.event(1, at(0), b"other", 1);
        assert_eq!(oracle.judge(at(1), &BTreeSet::new()).altered, 1);
    }
}

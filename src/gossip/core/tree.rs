//! Who brings frames to this node, and whom it prunes.
//!
//! The protocol prunes every neighbour that sends a frame which another one brought first, in both directions, and asks
//! for a frame a set time after somebody announced it (Plumtree: Leitão, Pereira, Rodrigues, SRDS 2007, sections 3.2 and
//! 3.3). With many frames under way that undoes the tree:
//!
//! - of two neighbours that bring a frame first each, both are pruned, and nobody brings anything;
//! - a node prunes its child for a frame that the child had from elsewhere, and the child is without a parent;
//! - what waits behind other frames is asked for a second time, and the one who answers becomes a parent too.
//!
//! So a neighbour is pruned only for one that still brings frames, a node that was left without a parent takes the last one
//! back, and nothing is asked for while frames come in, up to a limit. Not for: whom to be neighbours with (`heal`).

use std::{collections::BTreeSet, hash::Hash};

use n0_future::time::{Duration, Instant};

use crate::gossip::{
    bounded::Remembered,
    mirror::{Id, Kind},
};

/// Of how many frames it is remembered who brought them first.
const BROUGHT: usize = 1024;

/// For how many times as long as the protocol means to wait a frame is waited for while others come in.
const PATIENCE: u32 = 5;
/// How often within that time it is looked at again.
const LOOKS: u32 = 4;
/// Of how many frames it is remembered when they were announced, and whether they were asked for.
const ANNOUNCED: usize = 4096;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Tree<P> {
    me: P,
    /// Who brought a frame first, of those that bring frames.
    brought: Remembered<Id, P>,
    /// Neighbours that bring nothing unasked: those that were pruned, by either side.
    lazy: BTreeSet<P>,
    /// Who brought the last new frame.
    last: Option<P>,
    /// Frames in the order in which somebody announced them first.
    announced: Remembered<Id, u64>,
    announcements: u64,
    /// Frames that were asked for.
    asked: Remembered<Id, ()>,
    /// When a frame came last that was not asked for, and the latest place among the announced that one had.
    flowed_at: Option<Instant>,
    flowed_to: u64,
}

impl<P: Copy + Ord + Hash> Tree<P> {
    pub(super) fn new(me: P) -> Self {
        Self {
            me,
            brought: Remembered::new(BROUGHT),
            lazy: BTreeSet::new(),
            last: None,
            announced: Remembered::new(ANNOUNCED),
            announcements: 0,
            asked: Remembered::new(ANNOUNCED),
            flowed_at: None,
            flowed_to: 0,
        }
    }

    /// A new frame came from there; from ourselves if we made it.
    pub(super) fn came(&mut self, id: Id, from: P, now: Instant) {
        self.brought.insert(id, from);
        self.last = Some(from);
        let place = self.announced.remove(&id);
        if self.asked.remove(&id).is_none() {
            self.flowed_at = Some(now);
            let place = place.unwrap_or(self.announcements);
            self.flowed_to = self.flowed_to.max(place);
        }
    }

    /// A neighbour announced a frame that is not here.
    pub(super) fn announced(&mut self, id: Id) {
        if self.announced.get(&id).is_none() {
            self.announcements += 1;
            self.announced.insert(id, self.announcements);
        }
    }

    /// A frame is asked for.
    pub(super) fn asked(&mut self, id: Id) {
        self.asked.insert(id, ());
    }

    /// Whether the protocol may prune the sender of a repeat: another one that brought the frame has to go on bringing
    /// frames. If there is none, the sender is the one.
    pub(super) fn may_prune(&mut self, sender: P, id: Id, neighbors: &BTreeSet<P>) -> bool {
        match self.brought.get(&id) {
            Some(first) if *first == self.me => true,
            Some(first) if *first == sender => false,
            Some(first) if neighbors.contains(first) && !self.lazy.contains(first) => true,
            Some(_) => {
                self.brought.insert(id, sender);
                false
            }
            // Of so long ago that it is no sign of anything but a second path.
            None => true,
        }
    }

    /// A message went to, or came from, this neighbour.
    pub(super) fn exchanged(&mut self, peer: P, kind: Kind) {
        match kind {
            Kind::Prune => {
                self.lazy.insert(peer);
            }
            Kind::Graft => {
                self.lazy.remove(&peer);
            }
            _ => {}
        }
    }

    /// A neighbour is new, or one no longer: either way, it brings frames until it is pruned.
    pub(super) fn forget(&mut self, peer: &P) {
        self.lazy.remove(peer);
    }

    /// Whom to take back as a parent now that `pruned` brings nothing any more: nobody, if another one does.
    pub(super) fn orphaned_by(&self, pruned: P, neighbors: &BTreeSet<P>) -> Option<P> {
        let needs_parent = self.last.is_some_and(|from| from != self.me);
        let orphaned = needs_parent && neighbors.is_subset(&self.lazy);
        (orphaned && neighbors.contains(&pruned)).then_some(pruned)
    }

    /// Until when to put off asking for a frame that was to be waited for `delay` from `since` on; none if it is time.
    ///
    /// While frames come in unasked, it may be on its way behind them; unless one came that was announced after it.
    pub(super) fn patience(
        &self,
        id: &Id,
        since: Instant,
        delay: Duration,
        now: Instant,
    ) -> Option<Instant> {
        let place = self.announced.get(id)?;
        let flows = self.flowed_at.is_some_and(|at| at + delay > now);
        let may_wait = now < since + delay * PATIENCE;
        (flows && may_wait && *place > self.flowed_to).then(|| now + delay / LOOKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Id = [1; 32];
    const NEXT: Id = [2; 32];

    #[test]
    fn of_two_that_bring_a_frame_first_each_one_stays() {
        let (mut tree, now) = (Tree::new(0), Instant::now());
        let neighbors = BTreeSet::from([1, 2]);
        tree.came(FRAME, 1, now);
        assert!(tree.may_prune(2, FRAME, &neighbors));
        tree.exchanged(2, Kind::Prune);
        // Sent before it heard of the prune.
        tree.came(NEXT, 2, now);
        assert!(!tree.may_prune(1, NEXT, &neighbors));
        assert!(!tree.may_prune(1, NEXT, &neighbors));
        assert!(tree.may_prune(2, NEXT, &neighbors));
    }

    #[test]
    fn a_neighbour_that_is_gone_is_no_reason_to_prune_another() {
        let (mut tree, now) = (Tree::new(0), Instant::now());
        tree.came(FRAME, 1, now);
        assert!(!tree.may_prune(2, FRAME, &BTreeSet::from([2])));
    }

    #[test]
    fn the_maker_of_frames_prunes_whoever_sends_them_back_and_needs_no_parent() {
        let (mut tree, now) = (Tree::new(0), Instant::now());
        let neighbors = BTreeSet::from([1]);
        tree.came(FRAME, 0, now);
        assert!(tree.may_prune(1, FRAME, &neighbors));
        tree.exchanged(1, Kind::Prune);
        assert_eq!(tree.orphaned_by(1, &neighbors), None);
    }

    #[test]
    fn who_is_left_without_a_parent_takes_the_last_one_back() {
        let (mut tree, now) = (Tree::new(0), Instant::now());
        let neighbors = BTreeSet::from([1, 2]);
        tree.came(FRAME, 1, now);
        tree.exchanged(2, Kind::Prune);
        assert_eq!(tree.orphaned_by(2, &neighbors), None);
        tree.exchanged(1, Kind::Prune);
        assert_eq!(tree.orphaned_by(1, &neighbors), Some(1));
        tree.exchanged(1, Kind::Graft);
        assert!(tree.may_prune(2, FRAME, &neighbors));
    }

    #[test]
    fn a_frame_is_waited_for_while_others_come_before_it_and_not_for_ever() {
        let (mut tree, start) = (Tree::new(0), Instant::now());
        let delay = Duration::from_millis(80);
        tree.announced(FRAME);
        assert_eq!(tree.patience(&FRAME, start, delay, start + delay), None);
        let mut now = start + delay;
        // Announced before it, as all that comes here.
        for id in 10..100 {
            tree.announced([id; 32]);
        }
        tree.announced(NEXT);
        for id in 10..100 {
            tree.came([id; 32], 1, now);
            let Some(until) = tree.patience(&NEXT, start, delay, now) else {
                break;
            };
            assert!(until > now);
            now = until;
        }
        assert_eq!(now, start + delay * PATIENCE);
    }

    #[test]
    fn what_was_passed_by_or_comes_only_when_asked_for_is_asked_for() {
        let (mut tree, start) = (Tree::new(0), Instant::now());
        let delay = Duration::from_millis(80);
        let now = start + delay;
        tree.announced(FRAME);
        tree.announced(NEXT);
        tree.announced([3; 32]);
        // What was asked for is no sign that others come.
        tree.asked(FRAME);
        tree.came(FRAME, 1, now);
        assert_eq!(tree.patience(&NEXT, start, delay, now), None);
        // What was announced behind it came before it.
        tree.came([3; 32], 1, now);
        assert_eq!(tree.patience(&NEXT, start, delay, now), None);
        tree.announced([4; 32]);
        assert!(tree.patience(&[4; 32], start, delay, now).is_some());
        assert_eq!(
            tree.patience(&[4; 32], start, delay, now + delay),
            None,
            "nothing comes"
        );
    }
}

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

/// How often a graft is put off for what comes in meanwhile.
const PATIENCE: u32 = 5;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Tree<P> {
    me: P,
    brought: Remembered<Id, P>,
    /// Neighbours that bring nothing unasked: those that were pruned, by either side.
    lazy: BTreeSet<P>,
    /// The last new frame: who brought it, and when.
    last: Option<(P, Instant)>,
}

impl<P: Copy + Ord + Hash> Tree<P> {
    pub(super) fn new(me: P) -> Self {
        Self {
            me,
            brought: Remembered::new(BROUGHT),
            lazy: BTreeSet::new(),
            last: None,
        }
    }

    /// A new frame came from there; from ourselves if we made it.
    pub(super) fn came(&mut self, id: Id, from: P, now: Instant) {
        self.brought.insert(id, from);
        self.last = Some((from, now));
    }

    /// Whether the protocol may prune the sender of a repeat: who brought the frame first has to go on bringing frames.
    pub(super) fn may_prune(&self, sender: P, id: &Id, neighbors: &BTreeSet<P>) -> bool {
        match self.brought.get(id) {
            Some(first) if *first == self.me => true,
            Some(first) => {
                *first != sender && neighbors.contains(first) && !self.lazy.contains(first)
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
        let needs_parent = self.last.is_some_and(|(from, _)| from != self.me);
        let orphaned = needs_parent && neighbors.is_subset(&self.lazy);
        (orphaned && neighbors.contains(&pruned)).then_some(pruned)
    }

    /// Until when to put off a graft that is due and was meant for `delay` after `since`; none if it is time.
    pub(super) fn patience(
        &self,
        since: Instant,
        delay: Duration,
        now: Instant,
    ) -> Option<Instant> {
        let (_, heard) = self.last?;
        let until = (heard + delay).min(since + delay * PATIENCE);
        (until > now).then_some(until)
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
        assert!(tree.may_prune(2, &FRAME, &neighbors));
        tree.exchanged(2, Kind::Prune);
        // Sent before it heard of the prune.
        tree.came(NEXT, 2, now);
        assert!(!tree.may_prune(1, &NEXT, &neighbors));
        assert!(!tree.may_prune(2, &NEXT, &neighbors));
    }

    #[test]
    fn a_neighbour_that_is_gone_is_no_reason_to_prune_another() {
        let (mut tree, now) = (Tree::new(0), Instant::now());
        tree.came(FRAME, 1, now);
        assert!(!tree.may_prune(2, &FRAME, &BTreeSet::from([2])));
    }

    #[test]
    fn the_maker_of_frames_prunes_whoever_sends_them_back_and_needs_no_parent() {
        let (mut tree, now) = (Tree::new(0), Instant::now());
        let neighbors = BTreeSet::from([1]);
        tree.came(FRAME, 0, now);
        assert!(tree.may_prune(1, &FRAME, &neighbors));
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
        assert!(tree.may_prune(2, &FRAME, &neighbors));
    }

    #[test]
    fn a_graft_waits_while_frames_come_and_not_for_ever() {
        let (mut tree, start) = (Tree::new(0), Instant::now());
        let delay = Duration::from_millis(80);
        assert_eq!(tree.patience(start, delay, start + delay), None);
        let mut now = start + delay;
        let mut put_off = 0;
        loop {
            tree.came([put_off; 32], 1, now);
            let Some(until) = tree.patience(start, delay, now) else {
                break;
            };
            assert!(until > now);
            now = until;
            put_off += 1;
        }
        assert_eq!(u32::from(put_off), PATIENCE - 1);
        assert_eq!(now, start + delay * PATIENCE);
        // And at once when nothing more came.
        let late = now + delay;
        assert_eq!(tree.patience(now, delay, late), None);
    }
}

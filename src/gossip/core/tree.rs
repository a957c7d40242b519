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
//! back, or if that one is no neighbour any more the closest of the others, and nothing is asked for while frames come in, up
//! to a limit, nor as soon as before where what was asked for came twice. What the parent itself announces it does not bring, so
//! that is asked for at once.
//!
//! Not for: who takes the place of a parent for being closer (`shortcut`), and whom to be neighbours with (`heal`).

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hash,
};

use n0_future::time::{Duration, Instant};
use rand::{Rng, seq::IteratorRandom};

use super::shortcut::Shortcuts;
use crate::{
    gossip::{
        bounded::Remembered,
        mirror::{Id, Kind},
    },
    patience::Patience,
};

/// Of how many frames it is remembered who brought them first.
const BROUGHT: usize = 1024;

/// For how many times as long as the protocol means to wait a frame is waited for while others come in.
const PATIENCE: u32 = 25;
/// Frames come in as long as the next one takes no longer than so many times what one takes on average, which on a machine
/// that is busy may be longer than the protocol waits; and no longer than so many times that.
const PAUSE: u32 = 4;
/// Frames that are further apart than this do not follow each other.
const LONG: Duration = Duration::from_secs(1);
/// So many frames make an average.
const AVERAGE: u32 = 8;
/// How often within that time it is looked at again.
const LOOKS: u32 = 4;
/// How much longer a frame is waited for where asking turns out to be needless: from so much on, up to so much,
const LEAST_PATIENCE: Duration = Duration::from_millis(80);
const MOST_PATIENCE: Duration = Duration::from_millis(320);
/// and no longer than so many times what the protocol means to wait: less for the answer than for the frame.
const STRETCH: u32 = 5;
/// A neighbour that is closer to the source of a frame by so many hops than this node may take the place of its parent: frames
/// come over one hop less at least. The protocol's own figure, 7, leaves a tree of a hundred as deep as it happened to grow.
const SHORTCUT: u16 = 2;
/// Of how many frames it is remembered who was asked for them.
const ASKED: usize = 256;
/// Of how many frames of one neighbour it is remembered when it announced them, and whether it was asked for them. As many as
/// it may announce, and of each its own: made-up ones push out nobody else's.
const ANNOUNCED: usize = 4096;

/// What one neighbour says it has.
#[derive(Debug)]
struct Share {
    /// Places in the order in which somebody announced frames first.
    announced: Remembered<Id, u64>,
    /// Frames that it was asked for.
    asked: Remembered<Id, ()>,
    /// Over how many hops it had the frame that it announced, or brought, last.
    hops: Option<u16>,
}

impl Share {
    fn new() -> Self {
        Self {
            announced: Remembered::new(ANNOUNCED),
            asked: Remembered::new(ANNOUNCED),
            hops: None,
        }
    }

    /// A frame came. Says whether this neighbour was asked for it.
    fn came(&mut self, id: &Id) -> bool {
        self.announced.remove(id);
        self.asked.remove(id).is_some()
    }
}

/// Who was asked for a frame, and when first.
#[derive(Debug)]
struct Asked<P> {
    first: Instant,
    of: Vec<P>,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Tree<P> {
    me: P,
    /// Who brought a frame first, of those that bring frames.
    brought: Remembered<Id, P>,
    /// Neighbours that bring nothing unasked: those that were pruned, by either side.
    lazy: BTreeSet<P>,
    /// Neighbours that brought a new frame unasked and were not pruned since.
    bringers: BTreeSet<P>,
    /// The parent: who brought the last new frame, or was asked since to bring them.
    last: Option<P>,
    /// Of each neighbour that announced something.
    shares: BTreeMap<P, Share>,
    announcements: u64,
    /// When a frame came last that was not asked for, and the latest place among the announced that one had.
    flowed_at: Option<Instant>,
    flowed_to: u64,
    /// How long such frames are apart, on average while they come in.
    apart: Duration,
    shortcuts: Shortcuts<P>,
    /// Over how many hops the last new frame of a neighbour came.
    hops: u16,
    /// Frames that were asked for.
    asked: Remembered<Id, Asked<P>>,
    /// For frames that come from one who was not asked: whoever was, was asked in vain.
    slow: Patience<Id>,
}

impl<P: Copy + Ord + Hash> Tree<P> {
    pub(super) fn new(me: P) -> Self {
        Self {
            me,
            brought: Remembered::new(BROUGHT),
            lazy: BTreeSet::new(),
            bringers: BTreeSet::new(),
            last: None,
            shares: BTreeMap::new(),
            announcements: 0,
            flowed_at: None,
            flowed_to: 0,
            apart: Duration::ZERO,
            shortcuts: Shortcuts::new(),
            hops: 0,
            asked: Remembered::new(ASKED),
            slow: Patience::new(LEAST_PATIENCE, MOST_PATIENCE),
        }
    }

    /// The new frame that this neighbour brings now came there over so many hops.
    pub(super) fn comes_over(&mut self, hops: u16, neighbor: P) {
        self.stands(neighbor, hops);
        self.hops = hops.saturating_add(1);
    }

    /// A new frame came from a peer that is no neighbour any more.
    pub(super) fn strayed(&mut self, id: Id, from: P) {
        self.brought.insert(id, from);
        for share in self.shares.values_mut() {
            share.came(&id);
        }
    }

    /// A neighbour has a frame, whether it is here or not, over so many hops.
    pub(super) fn stands(&mut self, neighbor: P, hops: u16) {
        self.share(neighbor).hops = Some(hops);
    }

    /// A new frame came from there; from ourselves if we made it.
    pub(super) fn came(&mut self, id: Id, from: P, now: Instant) {
        self.brought.insert(id, from);
        let place = self.place(&id);
        let in_order = place.is_some_and(|place| place > self.flowed_to);
        let under_way = self.under_way() - u64::from(in_order);
        let mut asked = false;
        let mut bringer_was = false;
        for (peer, share) in &mut self.shares {
            let was_asked = share.came(&id);
            asked |= was_asked;
            bringer_was |= was_asked && *peer == from;
        }
        if !self.shortcuts.crosses(&from, now) {
            self.last = Some(from);
        }
        let alone = under_way == 0 && !asked && from != self.me;
        self.shortcuts.came(id, alone, now);
        if !bringer_was && from != self.me && !self.lazy.contains(&from) {
            self.bringers.insert(from);
        }
        if let Some(asked) = self.asked.get(&id) {
            self.slow.answered(asked.first.into(), id);
            self.came_again(&id, &from, now);
        }
        if !asked {
            let last = self.flowed_at.replace(now);
            let apart = last.map(|last| now.saturating_duration_since(last));
            self.apart = match apart.filter(|apart| *apart < LONG) {
                Some(apart) => (self.apart * (AVERAGE - 1) + apart) / AVERAGE,
                // What comes after so long begins to flow again.
                None => Duration::ZERO,
            };
            let place = place.unwrap_or(self.announcements);
            self.flowed_to = self.flowed_to.max(place);
        }
    }

    /// A neighbour brought a frame that is here.
    pub(super) fn came_again(&mut self, id: &Id, from: &P, now: Instant) {
        // Two that were asked both answer where the way there and back takes longer than was waited for the first.
        let asked = self.asked.get(id);
        if asked.is_some_and(|asked| !asked.of.contains(from)) {
            self.slow.repeated(now.into(), id);
        }
    }

    /// A neighbour announced a frame that is not here.
    pub(super) fn announced(&mut self, from: P, id: Id) {
        let place = self.place(&id).unwrap_or_else(|| {
            self.announcements += 1;
            self.announcements
        });
        let alone = self.under_way() == 1;
        self.shortcuts.announced(from, id, alone);
        let share = self.share(from);
        if share.announced.get(&id).is_none() {
            share.announced.insert(id, place);
        }
    }

    /// How many frames were announced since the latest place among them that one had which came unasked.
    fn under_way(&self) -> u64 {
        self.announcements - self.flowed_to
    }

    /// Whether nobody brings a frame that one of those who bring frames announces: when it had it, it took this node for one that
    /// others bring them to, as happens while parents change. And so did all others who bring frames.
    pub(super) fn is_brought_by_nobody(
        &self,
        id: &Id,
        announcer: &P,
        neighbors: &BTreeSet<P>,
    ) -> bool {
        let parent = self.last.as_ref();
        let parent = parent.filter(|last| neighbors.contains(*last) && !self.lazy.contains(*last));
        let brings = self.bringers.contains(announcer) || parent == Some(announcer);
        let announces = |peer: &P| {
            let share = self.shares.get(peer);
            share.is_some_and(|share| share.announced.get(id).is_some())
        };
        brings && self.bringers.iter().chain(parent).all(announces)
    }

    /// A neighbour is asked for a frame as soon as it announced it, which says nothing of how soon others should be.
    pub(super) fn asked_at_once(&mut self, of: P, id: Id) {
        self.share(of).asked.insert(id, ());
    }

    fn share(&mut self, neighbor: P) -> &mut Share {
        self.shares.entry(neighbor).or_insert_with(Share::new)
    }

    /// Over how many hops a neighbour had the frame that it announced, or brought, last.
    fn hops_of(&self, neighbor: &P) -> Option<u16> {
        self.shares.get(neighbor)?.hops
    }

    /// Which place a frame has among those that were announced, counted from the first time.
    fn place(&self, id: &Id) -> Option<u64> {
        let places = self.shares.values().map(|share| share.announced.get(id));
        places.flatten().min().copied()
    }

    /// Who is to take the place of the parent, of those that announced the last frame before it came: the closest to its source.
    pub(super) fn shortcut(&self, now: Instant) -> Option<P> {
        let early = self.shortcuts.early();
        let closer = early.filter(|peer| self.is_shortcut(peer, now));
        closer.min_by_key(|peer| self.hops_of(peer))
    }

    /// Whether one that announces a frame only now is to take the place of the parent even so, announcements being held back for
    /// so long.
    pub(super) fn is_late_shortcut(
        &self,
        announcer: &P,
        id: &Id,
        held_back: Duration,
        now: Instant,
    ) -> bool {
        self.under_way() == 0
            && self.shortcuts.had_earlier(id, held_back, now)
            && self.is_shortcut(announcer, now)
    }

    fn is_shortcut(&self, peer: &P, now: Instant) -> bool {
        self.lazy.contains(peer)
            && !self.is_parent(peer)
            && self.shortcuts.may_take(peer, now)
            && self
                .hops_of(peer)
                .is_some_and(|hops| hops + SHORTCUT <= self.hops)
    }

    /// A neighbour takes the place of the parent, which is returned, for being closer to the source.
    pub(super) fn shortens(&mut self, shortcut: P, now: Instant) -> Option<P> {
        let parent = self.last.replace(shortcut)?;
        self.shortcuts.takes(shortcut, parent, now);
        Some(parent)
    }

    /// Who replaced a parent that sent this frame before it heard of that: he has it, and would prune us for it.
    pub(super) fn successor(&self, from: &P, now: Instant) -> Option<P> {
        self.shortcuts.successor(from, now)
    }

    /// Whom a neighbour replaced as the parent just now.
    pub(super) fn predecessor(&self, of: &P, now: Instant) -> Option<P> {
        self.shortcuts.predecessor(of, now)
    }

    /// A neighbour is asked for a frame that it announced; false if it was before.
    pub(super) fn asked(&mut self, of: P, id: Id, now: Instant) -> bool {
        let Some(share) = self.shares.get_mut(&of) else {
            return true;
        };
        let new = share.asked.get(&id).is_none();
        share.asked.insert(id, ());
        let first = || Asked {
            first: now,
            of: Vec::new(),
        };
        let asked = self.asked.get_or_insert_with(id, first);
        if !asked.of.contains(&of) {
            asked.of.push(of);
        }
        new
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
                self.bringers.remove(&peer);
                self.shortcuts.undone_by(&peer);
            }
            Kind::Graft => {
                self.lazy.remove(&peer);
                self.shortcuts.revived(&peer);
            }
            _ => {}
        }
    }

    /// A neighbour asks this node to bring frames.
    pub(super) fn brings_to(&mut self, child: &P) {
        self.shortcuts.needed_by(child);
    }

    /// A neighbour is new, or one no longer: either way, it brings frames until it is pruned, and has announced nothing.
    pub(super) fn forget(&mut self, peer: &P) {
        self.lazy.remove(peer);
        self.shares.remove(peer);
        self.bringers.remove(peer);
        self.shortcuts.forget(peer);
    }

    /// Whom to take back as a parent now that `pruned` brings nothing any more: nobody, if another one does.
    pub(super) fn orphaned_by(&self, pruned: P, neighbors: &BTreeSet<P>) -> Option<P> {
        let needs_parent = self.last.is_some_and(|from| from != self.me);
        let orphaned = needs_parent && neighbors.is_subset(&self.lazy);
        (orphaned && neighbors.contains(&pruned)).then_some(pruned)
    }

    /// A neighbour is asked to bring frames from now on.
    pub(super) fn takes_back(&mut self, parent: P) {
        self.shortcuts.overtaken();
        self.last = Some(parent);
    }

    /// Whether a neighbour is the one that brings frames.
    pub(super) fn is_parent(&self, neighbor: &P) -> bool {
        self.last.as_ref() == Some(neighbor)
    }

    /// Whom to take for a parent now that the last one is no neighbour any more: whoever is closest to the source of frames of
    /// those that bring nothing, and any of them if that are several. Who was further from it than this node may be its own
    /// descendant. Who then goes in turn before it brings anything is inherited from as well.
    ///
    /// The paper waits for the next frame's announcement then, and for a while after it. Who lies about how close it is makes
    /// us do that.
    pub(super) fn inherit(
        &self,
        neighbors: &BTreeSet<P>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<P> {
        let idle = neighbors.intersection(&self.lazy).copied();
        // Who took a parent's place lately has lost it since.
        let (tried, others): (Vec<P>, Vec<P>) =
            idle.partition(|peer| self.shortcuts.took(peer, now));
        let heir = self.closest(&others, rng);
        heir.or_else(|| self.closest(&tried, rng))
    }

    fn closest(&self, neighbors: &[P], rng: &mut impl Rng) -> Option<P> {
        let hops = |peer: &P| self.hops_of(peer);
        let least = neighbors.iter().filter_map(hops).min()?;
        if least > self.hops {
            return None;
        }
        let closest = neighbors.iter();
        let closest = closest.filter(|peer| hops(peer) == Some(least));
        closest.choose(rng).copied()
    }

    /// Until when to put off asking for a frame that was to be waited for `delay` from `since` on; none if it is time.
    ///
    /// While frames come in unasked, it may be on its way behind them; and where frames came lately that were asked for in vain,
    /// it may be late. Unless one came that was announced after it.
    pub(super) fn patience(
        &self,
        id: &Id,
        since: Instant,
        delay: Duration,
        now: Instant,
    ) -> Option<Instant> {
        let passed_by = self.place(id)? <= self.flowed_to;
        if passed_by {
            return None;
        }
        let extra = self.slow.extra(now.into()).min(delay * STRETCH);
        let slow = since + delay + extra;
        if now < slow {
            return Some(slow);
        }
        let pause = (self.apart * PAUSE).clamp(delay, delay * PAUSE);
        let flows = self.flowed_at.is_some_and(|at| at + pause > now);
        let may_wait = now < since + delay * PATIENCE;
        (flows && may_wait).then(|| now + delay / LOOKS)
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

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
        tree.announced(2, FRAME);
        assert_eq!(tree.patience(&FRAME, start, delay, start + delay), None);
        let mut now = start + delay;
        // Announced before it, as all that comes here.
        for id in 10..140 {
            tree.announced(2, [id; 32]);
        }
        tree.announced(2, NEXT);
        for id in 10..140 {
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
    fn on_a_busy_machine_frames_are_further_apart_and_still_come_in() {
        let (mut tree, start) = (Tree::new(0), Instant::now());
        let delay = Duration::from_millis(80);
        let apart = Duration::from_millis(100);
        let mut now = start;
        for id in 10..40 {
            tree.announced(2, [id; 32]);
        }
        tree.announced(2, NEXT);
        for id in 10..40 {
            now += apart;
            tree.came([id; 32], 1, now);
        }
        let waits = |after: Duration| {
            let since = now + after - delay;
            tree.patience(&NEXT, since, delay, now + after).is_some()
        };
        assert!(waits(2 * delay));
        assert!(waits(3 * delay));
        assert!(!waits(4 * delay));
        // After a pause nobody knows how far apart they are.
        now += LONG;
        tree.announced(2, FRAME);
        tree.announced(2, [3; 32]);
        tree.came(FRAME, 1, now);
        let id = &[3; 32];
        assert!(tree.patience(id, now, delay, now + delay / 2).is_some());
        assert!(tree.patience(id, now, delay, now + delay).is_none());
    }

    #[test]
    fn where_frames_come_that_another_was_asked_for_the_next_is_waited_for_longer() {
        let (mut tree, now) = (Tree::new(0), Instant::now());
        let delay = Duration::from_millis(80);
        let extra = |tree: &Tree<u32>| {
            let due = now + delay;
            let until = tree.patience(&[9; 32], now, delay, due);
            until.map_or(Duration::ZERO, |until| until - due)
        };
        tree.announced(4, [9; 32]);
        // Two that were asked answer, and one of them twice.
        for peer in [2, 3] {
            tree.announced(peer, FRAME);
            tree.asked(peer, FRAME, now);
        }
        tree.came(FRAME, 3, now);
        tree.came_again(&FRAME, &2, now);
        tree.came_again(&FRAME, &3, now);
        assert_eq!(extra(&tree), Duration::ZERO);
        // The parent brings it behind the answer,
        tree.came_again(&FRAME, &1, now);
        assert_eq!(extra(&tree), LEAST_PATIENCE);
        tree.came_again(&FRAME, &1, now);
        assert_eq!(extra(&tree), LEAST_PATIENCE);
        // or before it.
        tree.announced(2, NEXT);
        tree.asked(2, NEXT, now);
        tree.came(NEXT, 1, now);
        assert_eq!(extra(&tree), 2 * LEAST_PATIENCE);
        // In proportion, where the protocol means to wait for less.
        let until = tree.patience(&[9; 32], now, delay / 4, now);
        assert_eq!(until, Some(now + delay / 4 * (1 + STRETCH)));
        // What was passed by is lost.
        tree.announced(4, [8; 32]);
        tree.came([8; 32], 4, now);
        assert_eq!(extra(&tree), Duration::ZERO);
    }

    const HELD_BACK: Duration = Duration::from_millis(20);

    /// A node four hops from the source, whose parent is 1, and whose other neighbours stand where it says.
    fn node_with(others: &[(u32, u16)]) -> Tree<u32> {
        let mut tree = Tree::new(0);
        for (peer, hops) in others {
            tree.exchanged(*peer, Kind::Prune);
            tree.stands(*peer, *hops);
        }
        tree.comes_over(3, 1);
        tree
    }

    fn is_late(tree: &Tree<u32>, announcer: u32, id: Id, now: Instant) -> bool {
        tree.is_late_shortcut(&announcer, &id, HELD_BACK, now)
    }

    #[test]
    fn the_closest_of_those_that_announce_a_frame_before_it_comes_takes_the_place_of_the_parent() {
        let now = Instant::now();
        let mut tree = node_with(&[(2, 2), (3, 1), (4, 0), (5, 0)]);
        tree.exchanged(5, Kind::Graft);
        for peer in [2, 3, 5] {
            tree.announced(peer, FRAME);
        }
        tree.came(FRAME, 1, now);
        let taken = tree.shortcut(now);
        assert_eq!(taken, Some(3), "4 said nothing, 5 brings frames");
        assert_eq!(tree.shortens(3, now), Some(1));
        assert!(tree.is_parent(&3));
        assert_eq!(tree.shortcut(now), None, "one at a time");
    }

    #[test]
    fn who_is_as_close_as_the_parent_does_not_take_its_place_nor_does_the_parent() {
        let now = Instant::now();
        let mut tree = node_with(&[(2, 3)]);
        tree.exchanged(1, Kind::Prune);
        tree.stands(1, 1);
        tree.announced(2, FRAME);
        tree.came(FRAME, 1, now);
        assert_eq!(tree.shortcut(now), None);
        assert!(!is_late(&tree, 2, FRAME, now));
        assert!(!is_late(&tree, 1, FRAME, now));
    }

    #[test]
    fn the_maker_of_a_frame_has_no_parent_to_replace() {
        let now = Instant::now();
        let mut tree = node_with(&[(2, 1)]);
        tree.came(FRAME, 0, now);
        assert_eq!(tree.shortcut(now), None);
        assert!(!is_late(&tree, 2, FRAME, now));
    }

    #[test]
    fn who_announces_a_frame_after_it_came_had_it_earlier_if_it_is_no_later_than_announcements_are_held_back()
     {
        let now = Instant::now();
        let mut tree = node_with(&[(2, 1)]);
        tree.came(FRAME, 1, now);
        assert_eq!(tree.shortcut(now), None);
        assert!(is_late(&tree, 2, FRAME, now));
        assert!(!is_late(&tree, 2, NEXT, now));
        let last = now + HELD_BACK - Duration::from_nanos(1);
        assert!(is_late(&tree, 2, FRAME, last));
        assert!(!is_late(&tree, 2, FRAME, now + HELD_BACK));
        tree.came(NEXT, 1, now);
        assert!(!is_late(&tree, 2, FRAME, now), "not of the last frame");
    }

    #[test]
    fn while_another_frame_is_under_way_nobody_takes_the_place_of_the_parent() {
        let now = Instant::now();
        let mut tree = node_with(&[(2, 1), (3, 1)]);
        let shorter = |tree: &Tree<u32>, id| {
            let early = tree.shortcut(now).is_some();
            (early, is_late(tree, 3, id, now))
        };
        tree.announced(2, FRAME);
        tree.announced(2, NEXT);
        tree.came(FRAME, 1, now);
        assert_eq!(shorter(&tree, FRAME), (false, false));
        // It was not alone when it was announced.
        tree.came(NEXT, 1, now);
        assert_eq!(shorter(&tree, NEXT), (false, true));
        tree.announced(3, [4; 32]);
        assert_eq!(shorter(&tree, NEXT), (false, false));
        // What was passed by is no longer under way.
        tree.announced(2, [5; 32]);
        tree.came([5; 32], 1, now);
        tree.announced(2, [6; 32]);
        tree.came([6; 32], 1, now);
        assert_eq!(shorter(&tree, [6; 32]), (true, true));
        // Nor does it count, when it comes, for one that is.
        tree.announced(2, [7; 32]);
        tree.came([4; 32], 1, now);
        assert_eq!(shorter(&tree, [4; 32]), (false, false));
        // What comes unannounced shows that nothing waits.
        tree.came([8; 32], 1, now);
        tree.announced(2, [9; 32]);
        tree.came([9; 32], 1, now);
        assert_eq!(shorter(&tree, [9; 32]), (true, true));
        // What was asked for says nothing of the tree.
        tree.announced(2, [10; 32]);
        tree.asked(2, [10; 32], now);
        tree.came([10; 32], 2, now);
        assert_eq!(shorter(&tree, [10; 32]), (false, false));
    }

    #[test]
    fn what_the_former_parent_still_sends_does_not_make_it_the_parent_again_unless_it_was_asked() {
        let now = Instant::now();
        let changed = || {
            let mut tree = node_with(&[(2, 1)]);
            tree.came(FRAME, 1, now);
            tree.shortens(2, now);
            tree.exchanged(2, Kind::Graft);
            tree.exchanged(1, Kind::Prune);
            tree
        };
        let mut tree = changed();
        tree.announced(2, NEXT);
        tree.asked_at_once(2, NEXT);
        assert_eq!(tree.successor(&1, now), Some(2));
        tree.came(NEXT, 1, now);
        assert!(tree.is_parent(&2));
        let mut tree = changed();
        tree.announced(1, NEXT);
        tree.asked(1, NEXT, now);
        tree.exchanged(1, Kind::Graft);
        tree.came(NEXT, 1, now);
        assert!(tree.is_parent(&1));
        assert_eq!(tree.successor(&1, now), None);
    }

    #[test]
    fn what_all_who_bring_frames_announce_is_brought_by_nobody() {
        let now = Instant::now();
        let mut tree = node_with(&[(3, 1)]);
        let brought_by_nobody = |tree: &Tree<u32>, announcer| {
            let neighbors = BTreeSet::from([1, 2, 3, 4, 5, 6]);
            tree.is_brought_by_nobody(&NEXT, &announcer, &neighbors)
        };
        for peer in [2, 3, 4] {
            tree.announced(peer, NEXT);
        }
        tree.came(FRAME, 1, now);
        // 4 is a child, which brings nothing.
        for announcer in [2, 3, 4] {
            assert!(!brought_by_nobody(&tree, announcer));
        }
        tree.announced(1, NEXT);
        assert!(brought_by_nobody(&tree, 1));
        // While two bring frames, both have to say so.
        tree.came([3; 32], 5, now);
        assert!(!brought_by_nobody(&tree, 1));
        tree.exchanged(5, Kind::Prune);
        assert!(brought_by_nobody(&tree, 1));
        // What one that was pruned sent before it knew makes it no bringer.
        tree.came([4; 32], 5, now);
        assert!(brought_by_nobody(&tree, 1));
        tree.came([5; 32], 6, now);
        assert!(!brought_by_nobody(&tree, 1));
        tree.forget(&6);
        tree.came([6; 32], 1, now);
        assert!(brought_by_nobody(&tree, 1));
        // What one brings that was asked for makes it no bringer either, unless another was.
        tree.announced(2, [7; 32]);
        tree.asked_at_once(2, [7; 32]);
        tree.came([7; 32], 2, now);
        tree.announced(2, [8; 32]);
        tree.asked_at_once(2, [8; 32]);
        tree.came([8; 32], 1, now);
        assert!(brought_by_nobody(&tree, 1));
        tree.announced(2, [9; 32]);
        tree.asked_at_once(2, [9; 32]);
        tree.exchanged(5, Kind::Graft);
        tree.came([9; 32], 5, now);
        assert!(!brought_by_nobody(&tree, 1));
        tree.forget(&5);
        // One that is gone brings nothing, though it brought the last one.
        tree.came([10; 32], 7, now);
        tree.forget(&7);
        assert!(brought_by_nobody(&tree, 1));
        // A new parent may.
        tree.takes_back(4);
        tree.exchanged(4, Kind::Graft);
        assert!(brought_by_nobody(&tree, 4), "4 announced it");
        tree.takes_back(6);
        assert!(!brought_by_nobody(&tree, 1), "6 did not");
        tree.takes_back(1);
        // Who was asked to bring frames is the parent before it has brought one.
        tree.exchanged(1, Kind::Prune);
        assert!(!brought_by_nobody(&tree, 1));
        tree.exchanged(3, Kind::Graft);
        tree.takes_back(3);
        assert!(brought_by_nobody(&tree, 3));
    }

    #[test]
    fn what_was_passed_by_or_comes_only_when_asked_for_is_asked_for() {
        let (mut tree, start) = (Tree::new(0), Instant::now());
        let delay = Duration::from_millis(80);
        let now = start + delay;
        tree.announced(2, FRAME);
        tree.announced(2, NEXT);
        tree.announced(2, [3; 32]);
        // What was asked for is no sign that others come.
        tree.asked(2, FRAME, start);
        tree.came(FRAME, 2, now);
        assert_eq!(tree.patience(&NEXT, start, delay, now), None);
        // What was announced behind it came before it.
        tree.came([3; 32], 1, now);
        assert_eq!(tree.patience(&NEXT, start, delay, now), None);
        tree.announced(2, [4; 32]);
        assert!(tree.patience(&[4; 32], start, delay, now).is_some());
        assert_eq!(
            tree.patience(&[4; 32], start, delay, now + delay),
            None,
            "nothing comes"
        );
    }

    fn made_up(n: usize) -> Id {
        let mut id = [0xff; 32];
        id[..8].copy_from_slice(&n.to_le_bytes());
        id
    }

    #[test]
    fn made_up_announcements_of_one_neighbour_push_out_nobody_elses() {
        let (mut tree, start) = (Tree::new(0), Instant::now());
        let delay = Duration::from_millis(80);
        let now = start + delay;
        let asked = [4; 32];
        tree.announced(2, FRAME);
        tree.announced(2, NEXT);
        tree.announced(2, asked);
        tree.asked(2, asked, now);
        for n in 0..2 * ANNOUNCED {
            tree.announced(3, made_up(n));
            tree.asked(3, made_up(n), now);
        }
        // What the neighbour was asked for is still no sign that others come.
        tree.came(asked, 1, now);
        assert_eq!(tree.patience(&NEXT, start, delay, now), None);
        // And what comes is still known for one that was announced before.
        tree.came(FRAME, 1, now);
        assert!(tree.patience(&NEXT, start, delay, now).is_some());
        let share = &tree.shares[&3];
        assert_eq!(share.announced.len(), ANNOUNCED);
        assert_eq!(share.asked.len(), ANNOUNCED);
    }

    #[test]
    fn the_closest_of_those_that_bring_nothing_takes_the_place_of_a_parent_that_is_gone() {
        let now = Instant::now();
        let mut rng = StdRng::seed_from_u64(7);
        let mut tree = Tree::new(0);
        for peer in [3, 4, 5, 6] {
            tree.exchanged(peer, Kind::Prune);
        }
        tree.comes_over(2, 1);
        tree.came(FRAME, 1, now);
        let mut neighbors = BTreeSet::from([2, 3, 4, 5, 6]);
        let none = tree.inherit(&neighbors, now, &mut rng);
        assert_eq!(none, None, "none has shown where it stands");
        assert!(tree.is_parent(&1));
        // A child; one below it; one as far from the source as we are; and the closest, which was further away before.
        for (peer, hops) in [(2, 1), (3, 4), (4, 3), (5, 9), (5, 2), (6, 1)] {
            tree.stands(peer, hops);
        }
        // It has the parent's place, and loses it again.
        tree.shortens(6, now);
        assert!(tree.is_parent(&6));
        for heir in [Some(5), Some(4), Some(6), None] {
            assert_eq!(tree.inherit(&neighbors, now, &mut rng), heir);
            if let Some(heir) = heir {
                neighbors.remove(&heir);
                tree.forget(&heir);
            }
        }
    }

    #[test]
    fn of_several_that_are_as_close_any_may_inherit() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut tree = Tree::new(0);
        tree.comes_over(2, 1);
        let now = Instant::now();
        tree.came(FRAME, 1, now);
        for peer in [2, 3, 4] {
            tree.exchanged(peer, Kind::Prune);
            tree.stands(peer, 2);
        }
        let neighbors = BTreeSet::from([2, 3, 4]);
        let heirs = (0..50).filter_map(|_| tree.inherit(&neighbors, now, &mut rng));
        assert_eq!(heirs.collect::<BTreeSet<_>>(), neighbors);
    }

    #[test]
    fn what_two_announced_keeps_its_place_when_the_first_of_them_is_gone() {
        let (mut tree, start) = (Tree::new(0), Instant::now());
        let delay = Duration::from_millis(80);
        let now = start + delay;
        tree.announced(2, FRAME);
        tree.announced(2, NEXT);
        tree.announced(3, [3; 32]);
        tree.announced(3, FRAME);
        tree.forget(&2);
        assert_eq!(tree.shares.len(), 1);
        tree.asked(2, NEXT, now);
        assert_eq!(tree.shares.len(), 1);
        tree.came(FRAME, 1, now);
        assert!(tree.patience(&[3; 32], start, delay, now).is_some());
        // Nobody has it any more.
        assert_eq!(tree.patience(&NEXT, start, delay, now), None);
    }
}

//! When a neighbour takes the place of the parent for being closer to the source of frames: Plumtree's optimization of the tree
//! (Leitão, Pereira, Rodrigues, SRDS 2007).
//!
//! The paper goes by what is announced before it comes. That has to be announced at once, which on busy machines costs the
//! frames their time. Announcements are held back for a set time, so who announces a frame within that time after it came most
//! likely had it earlier as well.
//!
//! - Only a frame that is alone under way tells: with many, that one was early says little.
//! - One at a time, and each neighbour once in five seconds: so often may one that lies about how close it is have frames come
//!   late.
//! - What the former parent sent before it heard of it still comes, for a second at most. It says nothing of who the parent is,
//!   and goes to all but the new one, who has it and would prune this node for it.
//!
//! Not for: how many hops closer is close enough, and who brings frames (`tree`).

use std::{collections::BTreeSet, hash::Hash};

use n0_future::time::{Duration, Instant};

use crate::gossip::{bounded::Remembered, mirror::Id};

/// For how long a neighbour that took the place of a parent does not do so again. With a minute, trees grow deeper where nodes
/// come and go and frames are lost (`iroh-hub simulate --loss 2% --churn 1%`).
const ONCE_IN: Duration = Duration::from_secs(5);
/// Of how many neighbours that is remembered.
const TAKEN: usize = 64;

/// For how long frames of a parent that was replaced may be under way.
const CROSSES: Duration = Duration::from_secs(1);

/// The last new frame, which came while no other was known to be under way.
#[derive(Debug)]
struct Lone<P> {
    id: Id,
    at: Instant,
    /// Who announced it before it came.
    early: BTreeSet<P>,
}

/// A parent was replaced, and frames of its may still be under way.
#[derive(Debug, Clone, Copy)]
struct Change<P> {
    from: P,
    to: P,
    until: Instant,
    /// The new parent needs no frames of the former one, for all that is known.
    withheld: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Shortcuts<P> {
    /// The frame that was announced while no other was known to be under way, and who announced it.
    announced: Option<(Id, BTreeSet<P>)>,
    lone: Option<Lone<P>>,
    change: Option<Change<P>>,
    taken: Remembered<P, Instant>,
}

impl<P: Copy + Ord + Hash> Shortcuts<P> {
    pub(super) fn new() -> Self {
        Self {
            announced: None,
            lone: None,
            change: None,
            taken: Remembered::new(TAKEN),
        }
    }

    /// A neighbour announces a frame that is not here, `alone` if no other is known to be under way.
    pub(super) fn announced(&mut self, by: P, id: Id, alone: bool) {
        match &mut self.announced {
            Some((same, early)) if alone && *same == id => {
                early.insert(by);
            }
            announced => *announced = alone.then(|| (id, BTreeSet::from([by]))),
        }
    }

    /// A new frame came, `alone` if no other is known to be under way.
    pub(super) fn came(&mut self, id: Id, alone: bool, now: Instant) {
        let announced = self.announced.take();
        let early = announced.filter(|(same, _)| *same == id);
        self.lone = alone.then(|| Lone {
            id,
            at: now,
            early: early.map(|(_, early)| early).unwrap_or_default(),
        });
    }

    /// Those that announced the last frame before it came, if that was alone.
    pub(super) fn early(&self) -> impl Iterator<Item = P> {
        self.lone.iter().flat_map(|lone| &lone.early).copied()
    }

    /// Whether one that announces a frame only now had it before it came here, for all that is known, as announcements are held
    /// back for so long: it is the last one, and was alone.
    pub(super) fn had_earlier(&self, id: &Id, held_back: Duration, now: Instant) -> bool {
        let lone = self.lone.as_ref();
        lone.is_some_and(|lone| lone.id == *id && now < lone.at + held_back)
    }

    /// Whether a neighbour may take the place of the parent.
    pub(super) fn may_take(&self, neighbor: &P, now: Instant) -> bool {
        self.changing(now).is_none() && !self.took(neighbor, now)
    }

    /// Whether a neighbour took the place of the parent lately.
    pub(super) fn took(&self, neighbor: &P, now: Instant) -> bool {
        self.taken.holds(neighbor, now)
    }

    /// A neighbour takes the place of the parent.
    pub(super) fn takes(&mut self, to: P, from: P, now: Instant) {
        self.taken.insert(to, now + ONCE_IN);
        self.change = Some(Change {
            from,
            to,
            until: now + CROSSES,
            withheld: true,
        });
        // One frame makes one change.
        self.lone = None;
    }

    fn changing(&self, now: Instant) -> Option<Change<P>> {
        self.change.filter(|change| now < change.until)
    }

    /// Whether a parent that was replaced sends this, for all that is known before it heard of that.
    pub(super) fn crosses(&self, from: &P, now: Instant) -> bool {
        self.changing(now)
            .is_some_and(|change| change.from == *from)
    }

    /// Whom not to send what such a parent sends.
    pub(super) fn successor(&self, from: &P, now: Instant) -> Option<P> {
        let change = self.changing(now).filter(|change| change.withheld)?;
        (change.from == *from).then_some(change.to)
    }

    /// Whom a neighbour replaced as the parent just now.
    pub(super) fn predecessor(&self, of: &P, now: Instant) -> Option<P> {
        let change = self.changing(now)?;
        (change.to == *of).then_some(change.from)
    }

    /// Who brings frames has changed for another reason.
    pub(super) fn overtaken(&mut self) {
        self.lone = None;
        self.change = None;
    }

    /// The new parent asks for frames.
    pub(super) fn needed_by(&mut self, parent: &P) {
        if let Some(change) = &mut self.change
            && change.to == *parent
        {
            change.withheld = false;
        }
    }

    /// The new parent was pruned.
    pub(super) fn undone_by(&mut self, parent: &P) {
        self.change.take_if(|change| change.to == *parent);
    }

    /// The former parent brings frames again, or this node brings them to it.
    pub(super) fn revived(&mut self, former: &P) {
        self.change.take_if(|change| change.from == *former);
    }

    /// A neighbour is new, or one no longer.
    pub(super) fn forget(&mut self, neighbor: &P) {
        let of_it = |change: &mut Change<P>| [change.from, change.to].contains(neighbor);
        self.change.take_if(of_it);
        if let Some((_, early)) = &mut self.announced {
            early.remove(neighbor);
        }
        if let Some(lone) = &mut self.lone {
            lone.early.remove(neighbor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Id = [1; 32];

    #[test]
    fn a_neighbour_takes_the_place_of_a_parent_once_in_a_while() {
        let now = Instant::now();
        let mut shortcuts = Shortcuts::new();
        assert!(shortcuts.may_take(&2, now));
        shortcuts.takes(2, 1, now);
        for (at, may) in [(now, false), (now + ONCE_IN, true)] {
            // Whatever becomes of it.
            shortcuts.undone_by(&2);
            assert_eq!(shortcuts.may_take(&2, at), may);
            assert!(shortcuts.may_take(&3, at));
        }
        shortcuts.takes(2, 1, now);
        shortcuts.forget(&2);
        assert!(!shortcuts.may_take(&2, now), "it came back");
    }

    #[test]
    fn until_it_is_over_there_is_no_other_change() {
        let now = Instant::now();
        let over = |end: fn(&mut Shortcuts<u32>)| {
            let mut shortcuts = Shortcuts::new();
            shortcuts.takes(2, 1, now);
            // However many others come.
            shortcuts.came(FRAME, true, now);
            assert!(!shortcuts.may_take(&3, now));
            assert_eq!(shortcuts.successor(&1, now), Some(2));
            assert_eq!(shortcuts.successor(&2, now), None);
            assert_eq!(shortcuts.predecessor(&2, now), Some(1));
            let later = now + CROSSES;
            assert!(shortcuts.may_take(&3, later));
            assert_eq!(shortcuts.successor(&1, later), None);
            end(&mut shortcuts);
            assert_eq!(shortcuts.successor(&1, now), None);
            shortcuts.may_take(&3, now)
        };
        assert!(over(|shortcuts| shortcuts.undone_by(&2)));
        assert!(!over(|shortcuts| shortcuts.needed_by(&2)));
        assert!(over(|shortcuts| shortcuts.revived(&1)));
        assert!(over(|shortcuts| shortcuts.forget(&1)));
        assert!(over(|shortcuts| shortcuts.forget(&2)));
        assert!(over(|shortcuts| shortcuts.overtaken()));
    }

    #[test]
    fn after_another_change_the_last_frame_tells_nothing() {
        let now = Instant::now();
        let mut shortcuts = Shortcuts::new();
        shortcuts.announced(2, FRAME, true);
        shortcuts.came(FRAME, true, now);
        assert_eq!(shortcuts.early().collect::<Vec<_>>(), [2]);
        let delay = Duration::from_millis(1);
        assert!(shortcuts.had_earlier(&FRAME, delay, now));
        shortcuts.overtaken();
        assert_eq!(shortcuts.early().count(), 0);
        assert!(!shortcuts.had_earlier(&FRAME, delay, now));
    }

    #[test]
    fn who_is_gone_has_announced_nothing() {
        let now = Instant::now();
        let mut shortcuts = Shortcuts::new();
        for peer in [2, 3, 4] {
            shortcuts.announced(peer, FRAME, true);
        }
        shortcuts.forget(&2);
        shortcuts.came(FRAME, true, now);
        shortcuts.forget(&3);
        assert_eq!(shortcuts.early().collect::<Vec<_>>(), [4]);
    }
}

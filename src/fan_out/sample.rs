//! A set from which some members are drawn at random.

use std::collections::{BTreeMap, btree_map::Entry};

use rand::{rngs::StdRng, seq::index};

#[derive(Debug)]
pub(super) struct SampleSet<Id> {
    members: Vec<Id>,
    /// Where each member is.
    index: BTreeMap<Id, usize>,
}

impl<Id: Copy + Ord> SampleSet<Id> {
    pub(super) fn new() -> Self {
        Self {
            members: Vec::new(),
            index: BTreeMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn contains(&self, id: Id) -> bool {
        self.index.contains_key(&id)
    }

    pub(super) fn insert(&mut self, id: Id) {
        if let Entry::Vacant(entry) = self.index.entry(id) {
            entry.insert(self.members.len());
            self.members.push(id);
        }
    }

    pub(super) fn remove(&mut self, id: Id) {
        let Some(at) = self.index.remove(&id) else {
            return;
        };
        self.members.swap_remove(at);
        if let Some(moved) = self.members.get(at) {
            self.index.insert(*moved, at);
        }
    }

    /// Adds members other than `not` to `out`, drawn at random, until it has `most` or there are no more.
    pub(super) fn sample(&self, rng: &mut StdRng, not: Option<Id>, most: usize, out: &mut Vec<Id>) {
        let len = self.members.len();
        // One more than can be used, since one of them may be `not`, and as many as are there already.
        let draw = most.saturating_add(1).saturating_add(out.len()).min(len);
        for at in index::sample(rng, len, draw) {
            if out.len() >= most {
                return;
            }
            match self.members.get(at) {
                Some(id) if Some(*id) != not && !out.contains(id) => out.push(*id),
                _ => {}
            }
        }
    }
}

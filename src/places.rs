//! Places that are taken for a while, bounded over all and for each holder.
//!
//! For strangers: what one of them may hold is bounded, and what all of them hold together too. Memory is bounded by the
//! places, not by who has ever asked.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// So many places, and so many of them for one holder.
///
/// Clones are the same.
#[derive(Debug)]
pub(crate) struct Places<K: Hash + Eq>(Arc<Mutex<Taken<K>>>);

#[derive(Debug)]
struct Taken<K> {
    most: usize,
    most_of_one: usize,
    all: usize,
    of: HashMap<K, usize>,
}

/// A place that is taken; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Hash + Eq> {
    of: Option<K>,
    places: Arc<Mutex<Taken<K>>>,
}

fn lock<K>(taken: &Mutex<Taken<K>>) -> MutexGuard<'_, Taken<K>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Hash + Eq> Clone for Places<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Hash + Eq + Clone> Places<K> {
    /// At least one place.
    pub(crate) fn new(most: usize, most_of_one: usize) -> Self {
        Self(Arc::new(Mutex::new(Taken {
            most: most.max(1),
            most_of_one: most_of_one.max(1),
            all: 0,
            of: HashMap::new(),
        })))
    }

    /// A place for `who`, if there is one.
    pub(crate) fn take(&self, who: K) -> Option<Place<K>> {
        let mut taken = lock(&self.0);
        let of_one = taken.of.get(&who).copied().unwrap_or_default();
        if taken.all >= taken.most || of_one >= taken.most_of_one {
            return None;
        }
        taken.all += 1;
        taken.of.insert(who.clone(), of_one + 1);
        Some(Place {
            of: Some(who),
            places: self.0.clone(),
        })
    }

    /// How many of them `who` has.
    pub(crate) fn taken_by(&self, who: &K) -> usize {
        lock(&self.0).of.get(who).copied().unwrap_or_default()
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        lock(&self.0).all
    }
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let Some(who) = self.of.take() else { return };
        let mut taken = lock(&self.places);
        taken.all = taken.all.saturating_sub(1);
        if let Some(of_one) = taken.of.get_mut(&who) {
            *of_one = of_one.saturating_sub(1);
            if *of_one == 0 {
                taken.of.remove(&who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_more_than_allowed_are_taken_and_all_are_given_back(
            most in 0usize..8,
            of_one in 0usize..4,
            steps in prop::collection::vec((any::<bool>(), 0u8..4), 0..200),
        ) {
            let places = Places::new(most, of_one);
            let mut held: Vec<(u8, Place<u8>)> = Vec::new();
            for (take, who) in steps {
                let mine = held.iter().filter(|(holder, _)| *holder == who).count();
                if take {
                    let room = held.len() < most.max(1) && mine < of_one.max(1);
                    let place = places.take(who);
                    prop_assert_eq!(place.is_some(), room);
                    held.extend(place.map(|place| (who, place)));
                } else if let Some(at) = held.iter().position(|(holder, _)| *holder == who) {
                    held.swap_remove(at);
                }
                prop_assert_eq!(places.taken(), held.len());
                let mine = held.iter().filter(|(holder, _)| *holder == who).count();
                prop_assert_eq!(places.taken_by(&who), mine);
                prop_assert!(lock(&places.0).of.len() <= held.len());
            }
            drop(held);
            prop_assert!(places.taken() == 0 && lock(&places.0).of.is_empty());
        }
    }
}

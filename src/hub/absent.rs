//! Which spokes are away, in the order in which they went, over all and by endpoint: sans-IO.
//!
//! Where there are too many, or too much is kept for them, it is of the endpoint with the most that one gives way: an endpoint
//! that comes and goes all the time is not to push out the others. Every step costs the logarithm of how many there are.
//!
//! Not for: how many may be away, or what is kept for them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Instant,
};

use iroh::EndpointId;

use crate::spoke_id::SpokeId;

/// See the [module](self). Each absence has a turn, a number higher than those of all before.
#[derive(Debug, Default)]
pub(super) struct Absent {
    all: BTreeMap<u64, Absence>,
    of: HashMap<EndpointId, Of>,
    bytes: usize,
    /// How many an endpoint has, and the turn of its first.
    by_count: BTreeSet<(usize, Reverse<u64>)>,
    /// The same with the bytes that are kept for them.
    by_bytes: BTreeSet<(usize, Reverse<u64>)>,
}

#[derive(Clone, Copy, Debug)]
struct Absence {
    id: SpokeId,
    since: Instant,
    bytes: usize,
}

/// The absences of one endpoint.
#[derive(Debug, Default)]
struct Of {
    turns: BTreeSet<u64>,
    bytes: usize,
}

impl Absent {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// What is kept for all of them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many are this endpoint's.
    pub(super) fn len_of(&self, endpoint: EndpointId) -> usize {
        self.of.get(&endpoint).map_or(0, |of| of.turns.len())
    }

    /// A spoke went away at this turn, and so many bytes are kept for it.
    pub(super) fn enter(&mut self, turn: u64, id: SpokeId, since: Instant, bytes: usize) {
        self.all.insert(turn, Absence { id, since, bytes });
        self.bytes = self.bytes.saturating_add(bytes);
        self.change(id.endpoint, |of| {
            of.turns.insert(turn);
            of.bytes = of.bytes.saturating_add(bytes);
        });
    }

    /// It is back, or is forgotten.
    pub(super) fn remove(&mut self, turn: u64) {
        let Some(Absence { id, bytes, .. }) = self.all.remove(&turn) else {
            return;
        };
        self.bytes = self.bytes.saturating_sub(bytes);
        self.change(id.endpoint, |of| {
            of.turns.remove(&turn);
            of.bytes = of.bytes.saturating_sub(bytes);
        });
    }

    /// So many more bytes are kept for it.
    pub(super) fn keep_more(&mut self, turn: u64, more: usize) {
        let Some(absence) = self.all.get_mut(&turn) else {
            return;
        };
        absence.bytes = absence.bytes.saturating_add(more);
        let endpoint = absence.id.endpoint;
        self.bytes = self.bytes.saturating_add(more);
        self.change(endpoint, |of| of.bytes = of.bytes.saturating_add(more));
    }

    /// Who went first, and when.
    pub(super) fn oldest(&self) -> Option<(SpokeId, Instant)> {
        let (_, absence) = self.all.first_key_value()?;
        Some((absence.id, absence.since))
    }

    /// Who went first of this endpoint's.
    pub(super) fn oldest_of(&self, endpoint: EndpointId) -> Option<SpokeId> {
        self.at(*self.of.get(&endpoint)?.turns.first()?)
    }

    /// Who went first of the endpoint that has the most away; if several have, of them all.
    pub(super) fn oldest_of_most(&self) -> Option<SpokeId> {
        self.at(self.by_count.last()?.1.0)
    }

    /// Who went first of the endpoint for which the most is kept; if there are several, of them all.
    pub(super) fn oldest_of_heaviest(&self) -> Option<SpokeId> {
        self.at(self.by_bytes.last()?.1.0)
    }

    fn at(&self, turn: u64) -> Option<SpokeId> {
        self.all.get(&turn).map(|absence| absence.id)
    }

    /// Changes what there is of an endpoint, and its ranks with it.
    fn change(&mut self, endpoint: EndpointId, change: impl FnOnce(&mut Of)) {
        let of = self.of.entry(endpoint).or_default();
        if let Some(first) = of.turns.first() {
            self.by_count.remove(&(of.turns.len(), Reverse(*first)));
            self.by_bytes.remove(&(of.bytes, Reverse(*first)));
        }
        change(of);
        match of.turns.first() {
            Some(first) => {
                self.by_count.insert((of.turns.len(), Reverse(*first)));
                self.by_bytes.insert((of.bytes, Reverse(*first)));
            }
            None => {
                self.of.remove(&endpoint);
            }
        }
    }

    /// Nothing is remembered of those that are away no more.
    #[cfg(test)]
    pub(super) fn is_consistent(&self) -> bool {
        let endpoints = self.of.len();
        let turns: usize = self.of.values().map(|of| of.turns.len()).sum();
        let bytes: usize = self.of.values().map(|of| of.bytes).sum();
        (turns, bytes) == (self.all.len(), self.bytes)
            && (self.by_count.len(), self.by_bytes.len()) == (endpoints, endpoints)
    }
}

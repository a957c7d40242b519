//! Which spokes there are, and who watches them come and go.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use iroh::EndpointId;
use tokio::sync::broadcast;

use super::{link::Link, spokes::SpokeChange};
use crate::spoke_id::SpokeId;

/// How many changes a watch may be behind before it is told that it lagged.
const WATCH_CAPACITY: usize = 1024;

#[derive(Debug)]
pub(super) struct Roster {
    inner: Mutex<Inner>,
    changes: broadcast::Sender<SpokeChange>,
}

#[derive(Debug, Default)]
struct Inner {
    links: BTreeMap<SpokeId, Arc<Link>>,
    last_number: u64,
    closed: bool,
}

impl Roster {
    pub(super) fn new() -> Self {
        Self {
            inner: Mutex::default(),
            changes: broadcast::Sender::new(WATCH_CAPACITY),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the link that `make` builds for the next id; `None` if the roster is full or closed.
    pub(super) fn add(
        &self,
        endpoint: EndpointId,
        max_spokes: usize,
        make: impl FnOnce(SpokeId) -> Link,
    ) -> Option<Arc<Link>> {
        let mut inner = self.inner();
        if inner.closed || inner.links.len() >= max_spokes {
            return None;
        }
        inner.last_number += 1;
        let id = SpokeId {
            endpoint,
            number: inner.last_number,
        };
        let link = Arc::new(make(id));
        inner.links.insert(id, link.clone());
        Some(link)
    }

    /// Removes a link; says whether it was there.
    pub(super) fn remove(&self, id: SpokeId) -> bool {
        self.inner().links.remove(&id).is_some()
    }

    pub(super) fn get(&self, id: SpokeId) -> Option<Arc<Link>> {
        self.inner().links.get(&id).cloned()
    }

    pub(super) fn of_endpoint(&self, endpoint: EndpointId) -> Vec<Arc<Link>> {
        let first = SpokeId {
            endpoint,
            number: 0,
        };
        let last = SpokeId {
            endpoint,
            number: u64::MAX,
        };
        self.inner()
            .links
            .range(first..=last)
            .map(|(_, link)| link.clone())
            .collect()
    }

    pub(super) fn all(&self) -> Vec<Arc<Link>> {
        self.inner().links.values().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.inner().links.len()
    }

    /// Lets no more spokes in.
    pub(super) fn close(&self) {
        self.inner().closed = true;
    }

    pub(super) fn announce(&self, change: SpokeChange) {
        // Nobody may be watching.
        let _ = self.changes.send(change);
    }

    pub(super) fn watch(&self) -> broadcast::Receiver<SpokeChange> {
        self.changes.subscribe()
    }
}

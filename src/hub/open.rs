//! The open connections of the direct protocols, by their endpoint: so that all of one can be closed at once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use iroh::{EndpointId, endpoint::Connection};

use crate::close::CloseCode;

/// See the [module](self). Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Open(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    by_id: BTreeMap<(EndpointId, u64), Connection>,
    last: u64,
}

/// An open connection; it counts as closed when this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    open: Open,
    key: (EndpointId, u64),
}

impl Open {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, this connection is one that is [closed](Self::close) with its endpoint's others.
    pub(super) fn enter(&self, connection: &Connection) -> Entry {
        let mut inner = self.inner();
        inner.last += 1;
        let key = (connection.remote_id(), inner.last);
        inner.by_id.insert(key, connection.clone());
        Entry {
            open: self.clone(),
            key,
        }
    }

    /// Closes all connections of an endpoint. What is not on its way yet is not sent any more.
    pub(super) fn close(&self, id: EndpointId, code: CloseCode, reason: &str) {
        let inner = self.inner();
        for (_, connection) in inner.by_id.range((id, 0)..=(id, u64::MAX)) {
            connection.close(code.to_varint(), reason.as_bytes());
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.open.inner().by_id.remove(&self.key);
    }
}

//! Where the open connections of each endpoint come from: whoever counts what an endpoint has can count what its network has,
//! too. Ids cost nothing, and addresses something.
//!
//! Not for: handshakes, which the [door](super::door) counts before there is an id.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use iroh::{EndpointId, TransportAddr, endpoint::Connection};

use super::door::network;

/// See the [module](self). Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals(Arc<Mutex<HashMap<EndpointId, From>>>);

#[derive(Debug)]
struct From {
    /// The network of the connection that came last.
    network: TransportAddr,
    connections: usize,
}

/// A connection that has come; it is forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct Arrived {
    arrivals: Arrivals,
    who: EndpointId,
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, HashMap<EndpointId, From>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection has come. `None` if it is gone again, so that nobody knows where it came from.
    pub(super) fn enter(&self, connection: &Connection) -> Option<Arrived> {
        let paths = connection.paths();
        let selected = paths.iter().find(|path| path.is_selected());
        let path = selected.or_else(|| paths.iter().next())?;
        Some(self.record(connection.remote_id(), path.remote_addr()))
    }

    fn record(&self, who: EndpointId, addr: &TransportAddr) -> Arrived {
        let network = network_of(addr);
        let mut all = self.lock();
        let from = all.entry(who).or_insert_with(|| From {
            network: network.clone(),
            connections: 0,
        });
        from.network = network;
        from.connections += 1;
        Arrived {
            arrivals: self.clone(),
            who,
        }
    }

    /// Where this endpoint's last connection came from, if one is open.
    pub(super) fn network(&self, who: EndpointId) -> Option<TransportAddr> {
        self.lock().get(&who).map(|from| from.network.clone())
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        if let Entry::Occupied(mut from) = self.arrivals.lock().entry(self.who) {
            from.get_mut().connections -= 1;
            if from.get().connections == 0 {
                from.remove();
            }
        }
    }
}

/// All who come by one relay are counted as one network: it does not say where they are, and they are not to take the places of
/// those that come by themselves.
fn network_of(addr: &TransportAddr) -> TransportAddr {
    match addr {
        TransportAddr::Ip(addr) => TransportAddr::Ip((network(addr.ip()), 0).into()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_where_its_last_connection_came_from_until_all_are_gone() {
        let arrivals = Arrivals::default();
        let who = iroh::SecretKey::from_bytes(&[1; 32]).public();
        let ip = |addr: &str| TransportAddr::Ip(addr.parse().unwrap());
        let first = arrivals.record(who, &ip("192.0.2.1:7"));
        assert_eq!(arrivals.network(who), Some(ip("192.0.2.1:0")));
        let second = arrivals.record(who, &ip("[2001:db8:1:2:3:4:5:6]:7"));
        assert_eq!(arrivals.network(who), Some(ip("[2001:db8:1:2::]:0")));
        drop(first);
        assert_eq!(arrivals.network(who), Some(ip("[2001:db8:1:2::]:0")));
        drop(second);
        assert_eq!(arrivals.network(who), None);
        assert!(arrivals.lock().is_empty());
    }

    #[test]
    fn those_that_come_by_one_relay_are_one_network() {
        let arrivals = Arrivals::default();
        let ids = [1, 2].map(|n| iroh::SecretKey::from_bytes(&[n; 32]).public());
        let relay = |url: &str| TransportAddr::Relay(url.parse().unwrap());
        let _arrived = ids.map(|id| arrivals.record(id, &relay("https://relay.example")));
        assert_eq!(arrivals.network(ids[0]), arrivals.network(ids[1]));
        assert!(arrivals.network(ids[0]).is_some());
    }
}

//! The connections of the direct protocols that are open: how many there may be, and what each may have in flight.
//!
//! One that has had no spoke yet is a stranger's: it has one of few places, of which its endpoint and its network may have a
//! part, and a small window. With its first spoke it gives
//! the place back, and gets a larger window from what there is for all.
//!
//! Not for: whether its endpoint is admitted, or what is said on its streams.

use std::sync::{Arc, Mutex, PoisonError};

use iroh::{EndpointId, TransportAddr, endpoint::Connection};

use super::{
    arrivals::{Arrivals, Arrived},
    config::HubLimits,
};
use crate::{
    endpoint::widen,
    metrics::ConnectionMetrics,
    places::{Place, Places},
    pool::{Pool, Share},
};

#[derive(Debug)]
pub(super) struct Crowd {
    all: Places<EndpointId>,
    waiting: Strangers,
    /// Streams that are no spokes yet.
    streams: Strangers,
    arrivals: Arrivals,
    windows: Pool,
    waiting_window: usize,
    receive_window: usize,
    max_streams: usize,
    metrics: Arc<ConnectionMetrics>,
}

/// Places of strangers, counted by endpoint and by network.
#[derive(Debug)]
struct Strangers {
    of_endpoint: Places<EndpointId>,
    of_network: Places<TransportAddr>,
}

/// The place of a stranger; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Stranger {
    _of_endpoint: Place<EndpointId>,
    _of_network: Option<Place<TransportAddr>>,
}

impl Strangers {
    fn new(limits: &HubLimits) -> Self {
        Self {
            of_endpoint: Places::new(limits.max_waiting, limits.waiting_of_one),
            of_network: Places::new(limits.max_waiting, limits.most_waiting_of_addr()),
        }
    }

    fn take(&self, who: EndpointId, network: Option<TransportAddr>) -> Option<Stranger> {
        let of_endpoint = self.of_endpoint.take(who)?;
        let of_network = match network {
            Some(network) => Some(self.of_network.take(network)?),
            None => None,
        };
        Some(Stranger {
            _of_endpoint: of_endpoint,
            _of_network: of_network,
        })
    }
}

/// Why there is no place for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoPlace {
    Full,
    Waiting,
}

impl NoPlace {
    /// What the peer is told.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Full => "the hub takes no more connections",
            Self::Waiting => "too many connections wait for a welcome",
        }
    }
}

/// The place of one connection.
#[derive(Debug)]
pub(super) struct Member {
    state: Mutex<State>,
    metrics: Arc<ConnectionMetrics>,
    _place: Place<EndpointId>,
}

#[derive(Debug)]
enum State {
    Waiting(#[expect(dead_code, reason = "it is held")] Stranger),
    Known(#[expect(dead_code, reason = "it is held")] Option<Share>),
}

impl Crowd {
    pub(super) fn new(limits: &HubLimits, metrics: Arc<ConnectionMetrics>) -> Self {
        // An endpoint can have a connection for each of its spokes, and some that wait.
        let of_one = limits.spokes_of_one.saturating_add(limits.waiting_of_one);
        Self {
            all: Places::new(limits.max_connections, of_one),
            waiting: Strangers::new(limits),
            streams: Strangers::new(limits),
            arrivals: Arrivals::default(),
            windows: Pool::new(limits.receive_bytes),
            waiting_window: limits.waiting_window as usize,
            receive_window: limits.receive_window as usize,
            max_streams: limits.max_streams,
            metrics,
        }
    }

    /// A connection has come, and counts towards its network until what this gives back is dropped.
    pub(super) fn arrives(&self, connection: &Connection) -> Option<Arrived> {
        self.arrivals.enter(connection)
    }

    /// A place for a connection of this endpoint, which has [arrived](Self::arrives).
    pub(super) fn enter(&self, who: EndpointId) -> Result<Member, NoPlace> {
        let network = self.arrivals.network(who);
        let waiting = self.waiting.take(who, network).ok_or_else(|| {
            self.metrics.refused_waiting.inc();
            NoPlace::Waiting
        })?;
        let place = self.all.take(who).ok_or_else(|| {
            self.metrics.refused_full.inc();
            NoPlace::Full
        })?;
        self.metrics.open.inc();
        self.metrics.waiting.inc();
        Ok(Member {
            state: Mutex::new(State::Waiting(waiting)),
            metrics: self.metrics.clone(),
            _place: place,
        })
    }

    /// A place for a stream of this endpoint, until it is a spoke.
    pub(super) fn enter_stream(&self, who: EndpointId) -> Option<Stranger> {
        self.streams.take(who, self.arrivals.network(who))
    }

    /// The connection has a spoke.
    pub(super) fn is_known(&self, member: &Member, connection: &Connection) {
        let mut state = member.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Waiting(_) = *state {
            let more = self.receive_window.saturating_sub(self.waiting_window);
            let share = self.windows.share(more);
            let window = self.waiting_window + share.as_ref().map_or(0, Share::len);
            widen(connection, window, self.max_streams);
            *state = State::Known(share);
            self.metrics.waiting.dec();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.metrics.open.dec();
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let State::Waiting(_) = state {
            self.metrics.waiting.dec();
        }
    }
}

//! What spokes have sent and nobody has taken yet, in bytes: events of which a part has come, and those that wait for a
//! listener with no room.
//!
//! Whoever reads from a spoke reserves the bytes first and waits while there are none, so the spoke waits too. One endpoint
//! has its part of it, and a second hostile one cannot have that. Large events, for which room is made when they are
//! announced, have three quarters of it all to themselves, so that no number of them keeps the others waiting.
//!
//! Not for: the rate at which a spoke may speak, or in what order events are heard.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use iroh::EndpointId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::DirectMetrics;

/// Permits are for so many bytes: there may be more bytes than permits can be asked for.
const UNIT: usize = 256;

/// How many endpoints are remembered that have nothing reserved, beside as many as have.
const SPARE: usize = 64;

/// Events beyond this many bytes are large.
const LARGE: usize = 128 * 1024;

/// What there is for all, or for one endpoint.
#[derive(Debug)]
struct Bounds {
    small: Bound,
    large: Bound,
}

impl Bounds {
    fn of(&self, bytes: usize) -> &Bound {
        if bytes > LARGE {
            &self.large
        } else {
            &self.small
        }
    }
}

#[derive(Debug)]
pub(crate) struct Intake {
    all: Arc<Bounds>,
    of_one: usize,
    metrics: Arc<DirectMetrics>,
    endpoints: Mutex<Endpoints>,
}

/// The bounds of the endpoints that read or have something reserved, and of some that do no more.
#[derive(Debug, Default)]
struct Endpoints {
    bounds: HashMap<EndpointId, Weak<Bounds>>,
    /// How many are kept until those that are of no use are looked for.
    most: usize,
}

#[derive(Clone, Debug)]
struct Bound {
    places: Arc<Semaphore>,
    units: u32,
}

impl Bound {
    fn new(bytes: usize) -> Self {
        let units = units(bytes).max(1);
        Self {
            places: Arc::new(Semaphore::new(units as usize)),
            units,
        }
    }

    /// What is larger than all there is takes all there is.
    async fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = units(bytes).min(self.units);
        self.places.clone().acquire_many_owned(units).await.ok()
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.places.available_permits() >= units(bytes).min(self.units) as usize
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

/// Bytes that are reserved; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    /// Remembered as long as something of it is reserved.
    #[expect(dead_code, reason = "it is held")]
    bounds: Arc<Bounds>,
    _of_one: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

/// Reserves for one stream.
#[derive(Debug)]
pub(crate) struct Customer {
    own: Arc<Bounds>,
    all: Arc<Bounds>,
    metrics: Arc<DirectMetrics>,
}

impl Intake {
    pub(crate) fn new(bytes: usize, of_one: usize, metrics: Arc<DirectMetrics>) -> Self {
        Self {
            all: Arc::new(Bounds {
                small: Bound::new(bytes / 4),
                large: Bound::new(bytes - bytes / 4),
            }),
            of_one,
            metrics,
            endpoints: Mutex::default(),
        }
    }

    /// Somebody reads from a stream of this endpoint.
    pub(crate) fn customer(&self, endpoint: EndpointId) -> Customer {
        let mut endpoints = self
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let endpoints = &mut *endpoints;
        let known = endpoints.bounds.get(&endpoint).and_then(Weak::upgrade);
        let own = known.unwrap_or_else(|| {
            if endpoints.bounds.len() >= endpoints.most {
                endpoints.bounds.retain(|_, bound| bound.strong_count() > 0);
                endpoints.most = 2 * endpoints.bounds.len() + SPARE;
            }
            let own = Arc::new(Bounds {
                small: Bound::new(self.of_one / 4),
                large: Bound::new(self.of_one),
            });
            endpoints.bounds.insert(endpoint, Arc::downgrade(&own));
            own
        });
        Customer {
            own,
            all: self.all.clone(),
            metrics: self.metrics.clone(),
        }
    }
}

impl Customer {
    /// Waits until there is room for so many bytes. Cancel safe.
    pub(crate) async fn reserve(&self, bytes: usize) -> Reserved {
        let (own, all) = (self.own.of(bytes), self.all.of(bytes));
        let bytes = bytes.min(own.units as usize * UNIT);
        if !own.has_room(bytes) || !all.has_room(bytes) {
            self.metrics.reads_held.inc();
        }
        // In this order: who waits for its own part holds nothing of what is everyone's.
        let of_one = own.reserve(bytes).await;
        let of_all = all.reserve(bytes).await;
        Reserved {
            bounds: self.own.clone(),
            _of_one: of_one,
            _of_all: of_all,
        }
    }
}

#[cfg(test)]
mod tests {
    use n0_future::future::poll_once;
    use tokio::task::unconstrained;

    use super::*;

    fn id(n: u8) -> EndpointId {
        iroh::SecretKey::from_bytes(&[n; 32]).public()
    }

    async fn now(customer: &Customer, bytes: usize) -> Option<Reserved> {
        let reserved = poll_once(unconstrained(customer.reserve(bytes))).await;
        let held = customer.metrics.reads_held.get();
        assert!(reserved.is_some() || held > 0);
        reserved
    }

    #[tokio::test]
    async fn one_endpoint_has_its_part_and_all_together_what_there_is() {
        let intake = Intake::new(4 * 4096, 4 * 2048, Arc::default());
        let (one, again, other) = (
            intake.customer(id(1)),
            intake.customer(id(1)),
            intake.customer(id(2)),
        );
        let first = now(&one, 1024).await.expect("room");
        let _second = now(&again, 1024).await.expect("room");
        assert!(now(&one, 1).await.is_none() && now(&again, 1).await.is_none());
        // What is larger than its part takes all of it.
        let large = now(&other, LARGE).await.expect("room");
        let third = intake.customer(id(3));
        assert!(now(&third, 1).await.is_none());
        drop(first);
        assert!(now(&third, 1024).await.is_some());
        drop(large);
        let _third = now(&third, 2048).await.expect("room");
        assert!(now(&other, 2048).await.is_none());
    }

    #[tokio::test]
    async fn large_events_that_do_not_come_leave_room_for_small_ones() {
        let intake = Intake::new(8 * LARGE, 4 * LARGE, Arc::default());
        let mut announced = Vec::new();
        for n in 1..=3 {
            announced.push(now(&intake.customer(id(n)), 2 * LARGE).await.expect("room"));
        }
        let late = intake.customer(id(4));
        assert!(now(&late, 2 * LARGE).await.is_none());
        assert!(now(&late, LARGE).await.is_some());
        drop(announced);
        assert!(now(&late, 2 * LARGE).await.is_some());
    }

    #[tokio::test]
    async fn what_is_reserved_counts_though_its_stream_has_ended_and_is_forgotten_when_it_is_not() {
        let intake = Intake::new(1 << 20, 4 * 1024, Arc::default());
        let reserved = now(&intake.customer(id(0)), 1024).await.expect("room");
        assert!(now(&intake.customer(id(0)), 1).await.is_none());
        drop(reserved);
        for n in 0..200 {
            assert!(now(&intake.customer(id(n)), 1024).await.is_some());
        }
        let endpoints = intake.endpoints.lock().unwrap();
        assert!(endpoints.bounds.len() <= SPARE + 1);
    }
}

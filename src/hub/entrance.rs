//! Where connections come in, for a hub that has its endpoint to itself: handshakes, each on a task with a time limit.
//!
//! A hub on somebody else's router has [`filter`] instead, which decides by the same [`Door`].

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use iroh::{
    Endpoint,
    endpoint::{Incoming, ServerConfig},
    protocol::{IncomingFilter, IncomingFilterOutcome},
};
use tokio::time::{Duration, Instant, sleep, timeout};
use tracing::{debug, error};

use super::{
    Inner,
    config::HubLimits,
    door::{Door, DoorLimits, InFlight, Verdict},
};
use crate::{
    endpoint::hub_transport_config,
    gossip::GOSSIP_ALPN,
    metrics::ConnectionMetrics,
    places::{Place, Places},
    protocol::Protocol,
};

fn door(limits: &HubLimits) -> Door {
    let limits = DoorLimits {
        in_flight: limits.max_handshakes,
        in_flight_of_addr: limits.most_handshakes_of_addr(),
        validate_above: limits.validate_above,
        of_addr_per_s: limits.handshakes_of_addr_per_s,
    };
    Door::new(limits, Instant::now())
}

/// A place for each handshake in flight, held by an address as the [`Door`] tells them apart.
type Handshakes = Places<u64>;

fn handshakes(limits: &HubLimits) -> Handshakes {
    Places::new(limits.max_handshakes, limits.most_handshakes_of_addr())
}

/// Asks the door, and counts what it says. With a place for the handshake, if it is to be begun: of `waiting`, if it has to wait
/// for its turn and may.
fn knock(
    door: &mut Door,
    incoming: &Incoming,
    handshakes: &Handshakes,
    waiting: Option<&Handshakes>,
    metrics: &ConnectionMetrics,
) -> (Verdict, Option<Place<u64>>) {
    let validated = incoming.remote_addr_validated();
    let now = Instant::now();
    let from = incoming.remote_addr();
    let key = door.key(&from);
    let in_flight = InFlight {
        all: handshakes.taken(),
        of_addr: handshakes.taken_by(&key) + waiting.map_or(0, |waiting| waiting.taken_by(&key)),
    };
    let mut verdict = door.knock(now, &from, validated, in_flight);
    let place = match verdict {
        Verdict::Begin { after } => {
            let places = waiting.filter(|_| !after.is_zero()).unwrap_or(handshakes);
            let place = places.take(key);
            if place.is_none() {
                verdict = Verdict::Crowded;
            }
            place
        }
        _ => None,
    };
    match verdict {
        Verdict::Begin { .. } => {}
        Verdict::Retry => {
            metrics.handshakes_retried.inc();
        }
        Verdict::OverRate => {
            metrics.handshakes_over_rate.inc();
        }
        Verdict::Crowded => {
            metrics.handshakes_crowded.inc();
        }
    }
    (verdict, place)
}

/// Held while connections are taken: however that ends, by a panic too, the hub's health says so.
struct Taking(Arc<Inner>);

impl Drop for Taking {
    fn drop(&mut self) {
        self.0.takes_none.store(true, Ordering::Release);
        if !self.0.is_ending() {
            error!("no connections are taken any more");
        }
    }
}

/// Takes connections until the hub ends.
pub(super) fn run(hub: Arc<Inner>, endpoint: Endpoint) -> impl Future<Output = ()> + Send {
    let taking = Taking(hub.clone());
    async move {
        let _taking = taking;
        take_all(hub, endpoint).await;
    }
}

async fn take_all(hub: Arc<Inner>, endpoint: Endpoint) {
    let alpns = [
        Protocol::Native.alpn(),
        Protocol::Compat.alpn(),
        GOSSIP_ALPN,
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    endpoint.set_alpns(alpns.clone());
    let limits = &hub.config.limits;
    let config = endpoint
        .create_server_config_builder(alpns)
        .set_transport_config(hub_transport_config(limits))
        .build();
    let config = Arc::new(config);
    let mut door = door(limits);
    let handshakes = handshakes(limits);
    // Those that wait for their turn have places of their own: they are no reason to send others away.
    let waiting = self::handshakes(limits);
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = hub.cancel.cancelled() => return,
        };
        let Some(incoming) = incoming else { return };
        let metrics = &hub.metrics.connections;
        let known = knock(&mut door, &incoming, &handshakes, Some(&waiting), metrics);
        match known {
            (Verdict::Begin { after }, Some(place)) => {
                let key = door.key(&incoming.remote_addr());
                let (hub, config, handshakes) = (hub.clone(), config.clone(), handshakes.clone());
                hub.clone().tasks.spawn(async move {
                    let mut place = place;
                    if !after.is_zero() {
                        tokio::select! {
                            () = sleep(after) => {}
                            () = hub.cancel.cancelled() => return,
                        }
                        let Some(turn) = handshakes.take(key) else {
                            hub.metrics.connections.handshakes_crowded.inc();
                            return incoming.ignore();
                        };
                        place = turn;
                    }
                    handshake(&hub, incoming, config, place).await;
                });
            }
            (Verdict::Retry, _) => {
                if let Err(error) = incoming.retry() {
                    error.into_incoming().ignore();
                }
            }
            _ => incoming.ignore(),
        }
    }
}

/// Sees a handshake through. The place is given back when it has ended, either way.
async fn handshake(
    hub: &Arc<Inner>,
    incoming: Incoming,
    config: Arc<ServerConfig>,
    place: Place<u64>,
) {
    let metrics = &hub.metrics.connections;
    metrics.handshakes_begun.inc();
    let accepting = match incoming.accept_with(config) {
        Ok(accepting) => accepting,
        Err(error) => {
            metrics.handshakes_failed.inc();
            return debug!("a connection could not be accepted: {error:#}");
        }
    };
    metrics.handshakes.inc();
    let done = tokio::select! {
        done = timeout(hub.config.limits.handshake_timeout, accepting) => Some(done),
        () = hub.cancel.cancelled() => None,
    };
    metrics.handshakes.dec();
    drop(place);
    match done {
        Some(Ok(Ok(connection))) => hub.take(connection),
        Some(Ok(Err(error))) => {
            metrics.handshakes_failed.inc();
            debug!("a handshake failed: {error:#}");
        }
        Some(Err(_)) => {
            metrics.handshakes_failed.inc();
            debug!("a handshake took too long");
        }
        None => {}
    }
}

/// For so long a handshake is taken to be in flight that nothing is heard of again.
const IN_FLIGHT: Duration = Duration::from_secs(1);

/// The handshakes that were begun of late.
struct Begun {
    door: Door,
    handshakes: Handshakes,
    at: VecDeque<(Instant, Place<u64>)>,
}

/// See [`Hub::incoming_filter`](super::Hub::incoming_filter).
pub(super) fn filter(limits: &HubLimits, metrics: Arc<ConnectionMetrics>) -> IncomingFilter {
    let begun = Mutex::new(Begun {
        door: door(limits),
        handshakes: handshakes(limits),
        at: VecDeque::new(),
    });
    Arc::new(move |incoming: &Incoming| {
        let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = &mut *begun;
        let now = Instant::now();
        let over = |(at, _): &(Instant, _)| *at + IN_FLIGHT <= now;
        while begun.at.front().is_some_and(over) {
            begun.at.pop_front();
        }
        match knock(&mut begun.door, incoming, &begun.handshakes, None, &metrics) {
            // A router's filter cannot let one wait for its turn.
            (Verdict::Begin { .. }, Some(place)) => {
                metrics.handshakes_begun.inc();
                begun.at.push_back((now, place));
                IncomingFilterOutcome::Accept
            }
            (Verdict::Retry, _) => IncomingFilterOutcome::Retry,
            _ => IncomingFilterOutcome::Ignore,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        endpoint::bind_local,
        hub::{Hub, Problem},
    };

    #[tokio::test]
    async fn a_hub_whose_task_that_takes_connections_is_gone_is_not_healthy() {
        let hub = Hub::builder().build(bind_local().await.unwrap()).unwrap();
        let taking = tokio::spawn(run(hub.inner.clone(), bind_local().await.unwrap()));
        assert!(hub.health().healthy);
        taking.abort();
        taking.await.unwrap_err();
        assert_eq!(hub.health().problems, [Problem::NotAccepting]);
        hub.shutdown().await;
        assert_eq!(hub.health().problems, [Problem::Ending]);
    }
}

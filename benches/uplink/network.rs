//! A network with a hub behind a narrow uplink: what the hub sends waits in a queue and leaves it packet after packet
//! at a set rate; what finds the queue full is lost. Spokes send to each other and to the hub as fast as they like.
//! Every packet, whoever sends it to whom, then takes the same delay to arrive.
//!
//! Endpoints on it have no sockets, so nothing gets around it; [`Network::check`] looks whether that is so.

use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use iroh::{
    Endpoint, EndpointAddr, EndpointId, SecretKey, endpoint::Builder, metrics::EndpointMetrics,
};
use n0_future::boxed::BoxFuture;

use crate::{
    common::{Place, Result, Role},
    medium::{self, Medium, Packet, Sockets},
};

/// What IPv4 and UDP add to a packet.
const HEADERS: u64 = 28;

/// What a network is like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What the hub can send, headers included.
    pub uplink_bits_per_s: u64,
    /// What can wait for that, in bytes.
    pub queue: u64,
    /// How long every packet takes, one way.
    pub delay: Duration,
}

/// What a network has carried.
#[derive(Debug, Clone, Copy, Default)]
pub struct Carried {
    /// Packets that left the hub by its uplink.
    pub packets: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
    /// Packets that were lost, since the queue was full.
    pub dropped: u64,
    /// Packets that whom they were for did not take. Many are of endpoints that have closed.
    pub refused: u64,
    /// Bytes that others than the hub sent.
    pub others: u64,
}

impl Carried {
    /// What was carried between these two.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            bytes: self.bytes - before.bytes,
            dropped: self.dropped - before.dropped,
            refused: self.refused - before.refused,
            others: self.others - before.others,
        }
    }
}

/// The network of one hub and its spokes.
#[derive(Debug)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shape: Shape,
    sockets: Sockets,
    state: Mutex<State>,
    sooner: Condvar,
    metrics: Mutex<Vec<EndpointMetrics>>,
}

#[derive(Debug)]
struct State {
    hub: Option<EndpointId>,
    /// When the last packet in the queue will have left it.
    free: Instant,
    underway: BinaryHeap<Due>,
    next: u64,
    carried: Carried,
    over: bool,
}

/// The earliest is the greatest.
#[derive(Debug)]
struct Due {
    at: Instant,
    number: u64,
    packet: Packet,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Due {}

impl Network {
    /// A network with nobody on it.
    pub fn new(shape: Shape) -> Self {
        let inner = Arc::new(Inner {
            shape,
            sockets: Sockets::default(),
            state: Mutex::new(State {
                hub: None,
                free: Instant::now(),
                underway: BinaryHeap::new(),
                next: 0,
                carried: Carried::default(),
                over: false,
            }),
            sooner: Condvar::new(),
            metrics: Mutex::default(),
        });
        // The clock of a runtime counts milliseconds, and a packet leaves in less.
        let delivering = inner.clone();
        thread::spawn(move || delivering.deliver());
        Self(inner)
    }

    /// What it has carried so far.
    pub fn carried(&self) -> Carried {
        self.0.state().carried
    }

    /// Returns once nothing is underway, or at the limit.
    pub async fn quiet(&self, limit: Duration) {
        let until = Instant::now() + limit;
        while Instant::now() < until && !self.0.state().underway.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// # Errors
    ///
    /// If an endpoint has sent or got anything by another way.
    pub fn check(&self) -> Result<()> {
        let metrics = self.0.metrics.lock().expect("no panic");
        for metrics in metrics.iter() {
            let socket = &metrics.socket;
            let around = [
                &socket.send_ipv4,
                &socket.send_ipv6,
                &socket.send_relay,
                &socket.recv_data_ipv4,
                &socket.recv_data_ipv6,
                &socket.recv_data_relay,
            ];
            if around.iter().any(|counter| counter.get() > 0) {
                return Err("packets went around the network".into());
            }
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.0.state().over = true;
        self.0.sooner.notify_all();
    }
}

impl Place for Network {
    fn bind(&self, role: Role, builder: Builder) -> BoxFuture<Result<Endpoint>> {
        let inner = self.0.clone();
        Box::pin(async move {
            let key = SecretKey::generate();
            if role == Role::Hub {
                inner.state().hub = Some(key.public());
            }
            let endpoint = medium::on(inner.clone(), key, builder).bind().await?;
            if !endpoint.bound_sockets().is_empty() {
                return Err("an endpoint has a way around the network".into());
            }
            let metrics = endpoint.metrics().clone();
            inner.metrics.lock().expect("no panic").push(metrics);
            Ok(endpoint)
        })
    }

    fn addr_of(&self, endpoint: &Endpoint) -> EndpointAddr {
        medium::addr_of(endpoint.id())
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    /// How long the uplink takes for so many bytes.
    fn takes(&self, bytes: u64) -> Duration {
        Duration::from_nanos(bytes * 8 * 1_000_000_000 / self.shape.uplink_bits_per_s)
    }

    fn deliver(&self) {
        let mut state = self.state();
        while !state.over {
            let now = Instant::now();
            let wait = match state.underway.peek() {
                None => Duration::MAX,
                Some(due) => due.at.saturating_duration_since(now),
            };
            if wait > Duration::ZERO {
                let waited = self.sooner.wait_timeout(state, wait);
                state = waited.expect("no panic").0;
            } else if let Some(due) = state.underway.pop() {
                drop(state);
                let taken = self.sockets.deliver(due.packet);
                state = self.state();
                state.carried.refused += u64::from(!taken);
            }
        }
    }
}

impl Medium for Inner {
    fn carry(&self, packet: Packet) {
        let now = Instant::now();
        let bytes = packet.data.len() as u64 + HEADERS;
        let mut state = self.state();
        let mut sent = now;
        if state.hub == Some(packet.from) {
            let begins = state.free.max(now);
            let waiting = begins - now;
            if waiting + self.takes(bytes) > self.takes(self.shape.queue) {
                state.carried.dropped += 1;
                return;
            }
            sent = begins + self.takes(bytes);
            state.free = sent;
            state.carried.packets += 1;
            state.carried.bytes += bytes;
        } else {
            state.carried.others += bytes;
        }
        let at = sent + self.shape.delay;
        if at <= now {
            drop(state);
            if !self.sockets.deliver(packet) {
                self.state().carried.refused += 1;
            }
            return;
        }
        let number = state.next;
        state.next += 1;
        let sooner = state.underway.peek().is_none_or(|due| at < due.at);
        state.underway.push(Due { at, number, packet });
        drop(state);
        if sooner {
            self.sooner.notify_all();
        }
    }

    fn sockets(&self) -> &Sockets {
        &self.sockets
    }
}

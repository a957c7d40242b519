//! A network inside of the test: endpoints whose packets pass through here, to be lost, kept from a hub that is cut
//! off, and counted. It needs nothing of the machine, and there is no way around it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use bytes::Bytes;
use iroh::{Endpoint, EndpointAddr, EndpointId, SecretKey, endpoint::QuicTransportConfig};
use iroh_hub::endpoint;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::medium::{self, Medium, Packet, Sockets};

/// The network. Clones are the same.
#[derive(Clone, Debug)]
pub struct Wire(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sockets: Sockets,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rng: StdRng,
    loss: f64,
    cut: BTreeSet<EndpointId>,
    /// The first packet of every connection that someone tried to make, by its own id for it.
    attempts: BTreeMap<(EndpointId, Bytes), Attempt>,
    packets: u64,
    lost: u64,
}

/// Someone tries to make a connection.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    pub to: EndpointId,
    pub at: Instant,
}

impl Wire {
    pub fn new(seed: u64) -> Self {
        let state = Mutex::new(State {
            rng: StdRng::seed_from_u64(seed),
            loss: 0.0,
            cut: BTreeSet::new(),
            attempts: BTreeMap::new(),
            packets: 0,
            lost: 0,
        });
        let sockets = Sockets::default();
        Self(Arc::new(Inner { sockets, state }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic")
    }

    /// An endpoint on this network alone.
    pub async fn endpoint(&self) -> Endpoint {
        self.endpoint_with(endpoint::transport_config()).await
    }

    /// The same with other settings of QUIC.
    pub async fn endpoint_with(&self, config: QuicTransportConfig) -> Endpoint {
        let builder = endpoint::local(None).transport_config(config);
        medium::on(self.0.clone(), SecretKey::generate(), builder)
            .bind()
            .await
            .expect("it binds to nothing")
    }

    /// Where an endpoint of this network is found. (It learns so itself only a while after it is bound.)
    pub fn addr_of(endpoint: EndpointId) -> EndpointAddr {
        medium::addr_of(endpoint)
    }

    /// Loses this share of all packets from now on.
    pub fn lose(&self, share: f64) {
        self.state().loss = share;
    }

    /// Loses all packets from and to this endpoint.
    pub fn cut(&self, endpoint: EndpointId) {
        self.state().cut.insert(endpoint);
    }

    /// Ends the cut.
    pub fn join(&self, endpoint: EndpointId) {
        self.state().cut.remove(&endpoint);
    }

    /// Connections that someone tried to make, the same one counted once however often its first packet was sent.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.state().attempts.values().copied().collect()
    }

    /// How many packets there were, and how many of them were lost.
    pub fn packets(&self) -> (u64, u64) {
        let state = self.state();
        (state.packets, state.lost)
    }
}

impl Medium for Inner {
    fn carry(&self, packet: Packet) {
        let mut state = self.state.lock().expect("no panic");
        let state = &mut *state;
        let Packet { from, to, .. } = packet;
        if let Some(id) = connection_id_of_initial(&packet.data) {
            let id = (from, Bytes::copy_from_slice(id));
            let at = Instant::now();
            state.attempts.entry(id).or_insert(Attempt { to, at });
        }
        state.packets += 1;
        let cut = state.cut.contains(&from) || state.cut.contains(&to);
        let lost = cut || state.rng.random_bool(state.loss);
        if lost || !self.sockets.deliver(packet) {
            state.lost += 1;
        }
    }

    fn sockets(&self) -> &Sockets {
        &self.sockets
    }
}

/// The client's own id for its connection, if this is its first packet in QUIC version 1 (RFC 9000, 17.2.2): server's
/// answers have the same form, but they go the other way.
fn connection_id_of_initial(packet: &[u8]) -> Option<&[u8]> {
    // The long header, of the kind "initial"; the second bit may be anything.
    let (first, rest) = packet.split_first()?;
    let (_version, rest) = rest.split_at_checked(4)?;
    if first & 0b1011_0000 != 0b1000_0000 {
        return None;
    }
    let (len, rest) = rest.split_first()?;
    let (_theirs, rest) = rest.split_at_checked(usize::from(*len))?;
    let (len, rest) = rest.split_first()?;
    rest.get(..usize::from(*len))
}

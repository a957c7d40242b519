//! A network inside of the test: endpoints whose packets pass through here, to be lost, kept from a hub that is cut off, and
//! counted. It needs nothing of the machine, and there is no way around it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSliceMut},
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use iroh::{
    Endpoint, EndpointAddr, EndpointId, SecretKey, TransportAddr,
    endpoint::{
        QuicTransportConfig,
        transports::{CustomEndpoint, CustomSender, CustomTransport, RecvInfo, Transmit},
    },
};
use iroh_base::CustomAddr;
use iroh_hub::endpoint;
use n0_watcher::{Direct, Watchable};
use noq_udp::RecvMeta;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::mpsc;

/// Any number that iroh does not use itself.
const TRANSPORT: u64 = 0x0063_6861_6f73;
/// Packets that wait for one endpoint; more are lost.
const WAITING: usize = 4096;

/// The network. Clones are the same.
#[derive(Clone, Debug)]
pub struct Wire(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    rng: StdRng,
    loss: f64,
    cut: BTreeSet<EndpointId>,
    sockets: BTreeMap<EndpointId, mpsc::Sender<Packet>>,
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

#[derive(Debug)]
struct Packet {
    from: EndpointId,
    data: Bytes,
}

impl Wire {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: StdRng::seed_from_u64(seed),
            loss: 0.0,
            cut: BTreeSet::new(),
            sockets: BTreeMap::new(),
            attempts: BTreeMap::new(),
            packets: 0,
            lost: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic")
    }

    /// An endpoint on this network alone.
    pub async fn endpoint(&self) -> Endpoint {
        self.endpoint_with(endpoint::transport_config()).await
    }

    /// The same with other settings of QUIC.
    pub async fn endpoint_with(&self, config: QuicTransportConfig) -> Endpoint {
        let key = SecretKey::generate();
        let me = key.public();
        let transport = Transport {
            wire: self.clone(),
            me,
        };
        endpoint::local(Some(key))
            .transport_config(config)
            .clear_ip_transports()
            .add_custom_transport(Arc::new(transport))
            .bind()
            .await
            .expect("it binds to nothing")
    }

    /// Where an endpoint of this network is found. (It learns so itself only a while after it is bound.)
    pub fn addr_of(endpoint: EndpointId) -> EndpointAddr {
        EndpointAddr::from_parts(endpoint, [TransportAddr::Custom(addr(endpoint))])
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

    fn send(&self, from: EndpointId, to: EndpointId, data: &[u8]) {
        let mut state = self.state();
        let state = &mut *state;
        if let Some(id) = connection_id_of_initial(data) {
            let id = (from, Bytes::copy_from_slice(id));
            let at = Instant::now();
            state.attempts.entry(id).or_insert(Attempt { to, at });
        }
        state.packets += 1;
        let cut = state.cut.contains(&from) || state.cut.contains(&to);
        let lost = cut || state.rng.random_bool(state.loss);
        let data = Bytes::copy_from_slice(data);
        let socket = state.sockets.get(&to).filter(|_| !lost);
        if socket.is_none_or(|socket| socket.try_send(Packet { from, data }).is_err()) {
            state.lost += 1;
        }
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

/// One endpoint's way into the network.
#[derive(Clone, Debug)]
struct Transport {
    wire: Wire,
    me: EndpointId,
}

fn addr(endpoint: EndpointId) -> CustomAddr {
    CustomAddr::from((TRANSPORT, &endpoint.as_bytes()[..]))
}

fn endpoint_at(addr: &CustomAddr) -> io::Result<EndpointId> {
    let bytes = <&[u8; 32]>::try_from(addr.data()).map_err(io::Error::other)?;
    EndpointId::from_bytes(bytes).map_err(io::Error::other)
}

impl CustomTransport for Transport {
    fn bind(&self) -> io::Result<Box<dyn CustomEndpoint>> {
        let (socket, packets) = mpsc::channel(WAITING);
        self.wire.state().sockets.insert(self.me, socket);
        Ok(Box::new(Socket {
            transport: self.clone(),
            addrs: Watchable::new(vec![addr(self.me)]),
            packets,
            batch: Vec::new(),
        }))
    }
}

impl CustomSender for Transport {
    fn is_valid_send_addr(&self, addr: &CustomAddr) -> bool {
        addr.id() == TRANSPORT
    }

    fn poll_send(
        &self,
        _: &mut Context<'_>,
        to: &CustomAddr,
        _: Option<&CustomAddr>,
        transmit: &Transmit<'_>,
    ) -> Poll<io::Result<()>> {
        let to = endpoint_at(to)?;
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        for packet in transmit.contents.chunks(size.max(1)) {
            self.wire.send(self.me, to, packet);
        }
        Poll::Ready(Ok(()))
    }
}

#[derive(Debug)]
struct Socket {
    transport: Transport,
    addrs: Watchable<Vec<CustomAddr>>,
    packets: mpsc::Receiver<Packet>,
    batch: Vec<Packet>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Transport { wire, me } = &self.transport;
        wire.state().sockets.remove(me);
    }
}

impl CustomEndpoint for Socket {
    fn watch_local_addrs(&self) -> Direct<Vec<CustomAddr>> {
        self.addrs.watch()
    }

    fn create_sender(&self) -> Arc<dyn CustomSender> {
        Arc::new(self.transport.clone())
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
        infos: &mut [RecvInfo],
    ) -> Poll<io::Result<usize>> {
        self.batch.clear();
        let room = bufs.len().max(1);
        if self
            .packets
            .poll_recv_many(cx, &mut self.batch, room)
            .is_pending()
        {
            return Poll::Pending;
        }
        let me = addr(self.transport.me);
        let mut count = 0;
        for packet in &self.batch {
            let len = packet.data.len();
            let slot = bufs.get_mut(count).and_then(|buf| buf.get_mut(..len));
            // What does not fit is lost.
            let Some(slot) = slot else { continue };
            slot.copy_from_slice(&packet.data);
            (metas[count].len, metas[count].stride) = (len, len);
            infos[count] = RecvInfo::new(addr(packet.from), Some(me.clone()));
            count += 1;
        }
        Poll::Ready(Ok(count))
    }
}

//! Endpoints that have no sockets: all of their packets are handed to a medium inside of this process, which delivers
//! them or does not. It needs nothing of the machine, and there is no way around it.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io::{self, IoSliceMut},
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use bytes::Bytes;
use iroh::{
    EndpointAddr, EndpointId, SecretKey, TransportAddr,
    endpoint::{
        Builder,
        transports::{CustomEndpoint, CustomSender, CustomTransport, RecvInfo, Transmit},
    },
};
use iroh_base::CustomAddr;
use n0_watcher::{Direct, Watchable};
use noq_udp::RecvMeta;
use tokio::sync::mpsc;

/// Any number that iroh does not use itself.
const TRANSPORT: u64 = 0x0063_6861_6f73;
/// Packets that wait for one endpoint; more are lost.
const WAITING: usize = 4096;

/// A packet on its way.
#[derive(Debug)]
pub struct Packet {
    pub from: EndpointId,
    pub to: EndpointId,
    pub data: Bytes,
}

/// What carries packets.
pub trait Medium: Debug + Send + Sync + 'static {
    /// Takes a packet that an endpoint sends. To be [delivered](Sockets::deliver) now, later, or never.
    fn carry(&self, packet: Packet);

    /// The endpoints that it reaches.
    fn sockets(&self) -> &Sockets;
}

/// The endpoints on a medium.
#[derive(Debug, Default)]
pub struct Sockets(Mutex<BTreeMap<EndpointId, mpsc::Sender<Packet>>>);

impl Sockets {
    fn of(&self) -> MutexGuard<'_, BTreeMap<EndpointId, mpsc::Sender<Packet>>> {
        self.0.lock().expect("no panic")
    }

    /// Hands a packet to the one that it is for. Whether that one took it.
    pub fn deliver(&self, packet: Packet) -> bool {
        let socket = self.of().get(&packet.to).cloned();
        socket.is_some_and(|socket| socket.try_send(packet).is_ok())
    }
}

/// An endpoint with this key on this medium alone.
pub fn on(medium: Arc<dyn Medium>, key: SecretKey, builder: Builder) -> Builder {
    let me = key.public();
    builder
        .secret_key(key)
        .clear_ip_transports()
        .add_custom_transport(Arc::new(Transport { medium, me }))
}

/// Where an endpoint of a medium is found. (It learns so itself only a while after it is bound.)
pub fn addr_of(endpoint: EndpointId) -> EndpointAddr {
    EndpointAddr::from_parts(endpoint, [TransportAddr::Custom(addr(endpoint))])
}

fn addr(endpoint: EndpointId) -> CustomAddr {
    CustomAddr::from((TRANSPORT, &endpoint.as_bytes()[..]))
}

fn endpoint_at(addr: &CustomAddr) -> io::Result<EndpointId> {
    let bytes = <&[u8; 32]>::try_from(addr.data()).map_err(io::Error::other)?;
    EndpointId::from_bytes(bytes).map_err(io::Error::other)
}

/// One endpoint's way into the medium.
#[derive(Clone, Debug)]
struct Transport {
    medium: Arc<dyn Medium>,
    me: EndpointId,
}

impl CustomTransport for Transport {
    fn bind(&self) -> io::Result<Box<dyn CustomEndpoint>> {
        let (socket, packets) = mpsc::channel(WAITING);
        self.medium.sockets().of().insert(self.me, socket);
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
        for data in transmit.contents.chunks(size.max(1)) {
            self.medium.carry(Packet {
                from: self.me,
                to,
                data: Bytes::copy_from_slice(data),
            });
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
        let Transport { medium, me } = &self.transport;
        medium.sockets().of().remove(me);
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

//! Bare iroh: one bi-stream and one writer task per spoke, each payload encoded once.
//!
//! No order across reconnects, no repair, no admission: what the library has to be measured against.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use iroh::{
    Endpoint, EndpointAddr,
    address_lookup::memory::MemoryLookup,
    endpoint::{Connection, RecvStream, SendStream},
};
use tokio::{sync::mpsc, task::JoinSet};

use super::{Error, Mesh, Place, Result, Role, Tally, endpoints::bind};

/// What its endpoints speak.
pub const ALPN: &[u8] = b"bench/bare-streams";
/// Payloads that one spoke's writer may be behind by.
pub const QUEUE: usize = 1024;
/// Payloads that go out in one write.
const COALESCE: usize = 64;

/// A hub with one stream per spoke, and its spokes.
pub struct BareStreams {
    hub: BareStreamsHub,
    spokes: Vec<Endpoint>,
    _reading: JoinSet<()>,
}

impl Mesh for BareStreams {
    const NAME: &'static str = "bare_streams";

    async fn start(
        place: &dyn Place,
        spokes: usize,
        _max_payload: usize,
        tally: Arc<Tally>,
    ) -> Result<Self> {
        let known = MemoryLookup::new();
        let mut mesh = Self {
            hub: BareStreamsHub::new(bind(place, Role::Hub, ALPN, &known).await?),
            spokes: Vec::with_capacity(spokes),
            _reading: JoinSet::new(),
        };
        for number in 0..spokes {
            let spoke = bind(place, Role::Spoke, ALPN, &known).await?;
            let dial = BareStream::dial(&spoke, place.addr_of(&mesh.hub.endpoint));
            let (dialled, ()) = tokio::try_join!(dial, mesh.hub.accept())?;
            mesh._reading.spawn(dialled.read(number, tally.clone()));
            mesh.spokes.push(spoke);
        }
        Ok(mesh)
    }

    async fn publish(&self, payload: Bytes) -> Result<()> {
        self.hub.publish(payload).await
    }

    async fn stop(self) {
        drop(self.hub.writers);
        let endpoints = self.spokes.iter().chain([&self.hub.endpoint]);
        n0_future::join_all(endpoints.map(Endpoint::close)).await;
    }
}

/// The hub of [`BareStreams`] alone.
pub struct BareStreamsHub {
    endpoint: Endpoint,
    writers: Vec<mpsc::Sender<Bytes>>,
    _writing: JoinSet<()>,
}

impl BareStreamsHub {
    /// On an endpoint that accepts [`ALPN`].
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            writers: Vec::new(),
            _writing: JoinSet::new(),
        }
    }

    /// The hub's endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Waits for one more spoke.
    pub async fn accept(&mut self) -> Result<()> {
        let incoming = self.endpoint.accept().await;
        let incoming = incoming.ok_or_else(|| Error::from("the hub's endpoint is closed"))?;
        let connection = incoming.await?;
        let (send, recv) = connection.accept_bi().await?;
        let (queue, payloads) = mpsc::channel(QUEUE);
        self.writers.push(queue);
        self._writing.spawn(async move {
            // The connection and the unused half live as long as the writer.
            let (_connection, _recv) = (connection, recv);
            write(send, payloads).await;
        });
        Ok(())
    }

    /// Hands one payload to every writer.
    pub async fn publish(&self, payload: Bytes) -> Result<()> {
        let frame = frame(&payload);
        for writer in &self.writers {
            writer.send(frame.clone()).await?;
        }
        Ok(())
    }
}

/// The stream of one spoke of [`BareStreams`].
pub struct BareStream {
    _connection: Connection,
    send: Option<SendStream>,
    recv: RecvStream,
}

impl BareStream {
    /// Connects a spoke to its hub.
    pub async fn dial(spoke: &Endpoint, hub: EndpointAddr) -> Result<Self> {
        let connection = spoke.connect(hub, ALPN).await?;
        let (mut send, recv) = connection.open_bi().await?;
        // The stream exists for the hub only once something is written on it.
        send.write_all(&[0]).await?;
        Ok(Self {
            _connection: connection,
            send: Some(send),
            recv,
        })
    }

    /// The half that speaks to the hub, which does not listen.
    pub fn take_send(&mut self) -> Option<SendStream> {
        self.send.take()
    }

    /// Counts what comes, until the stream ends.
    pub async fn read(mut self, number: usize, tally: Arc<Tally>) {
        read(&mut self.recv, |payload| tally.record(number, payload)).await;
    }
}

/// A payload behind its length.
pub fn frame(payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(4 + payload.len());
    frame.put_u32(payload.len() as u32);
    frame.put_slice(payload);
    frame.freeze()
}

/// Writes what is queued, as much at a time as there is.
pub async fn write(mut send: SendStream, mut payloads: mpsc::Receiver<Bytes>) {
    let mut batch = Vec::with_capacity(COALESCE);
    while payloads.recv_many(&mut batch, COALESCE).await > 0 {
        if send.write_all_chunks(&mut batch).await.is_err() {
            return;
        }
        batch.clear();
    }
}

/// Reads frames, and hands on what is in each.
pub async fn read(recv: &mut RecvStream, mut each: impl FnMut(&[u8])) {
    let mut buffer = BytesMut::new();
    while let Ok(Some(chunk)) = recv.read_chunk(256 * 1024).await {
        buffer.extend_from_slice(&chunk);
        while let Some(prefix) = buffer.first_chunk::<4>() {
            let len = u32::from_be_bytes(*prefix) as usize;
            if buffer.len() < 4 + len {
                break;
            }
            let frame = buffer.split_to(4 + len);
            each(&frame[4..]);
        }
    }
}

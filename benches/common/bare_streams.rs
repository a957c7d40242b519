//! Bare iroh: one bi-stream and one writer task per spoke, each payload encoded once.
//!
//! No order across reconnects, no repair, no admission: what the library has to be measured against.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use iroh::{
    Endpoint,
    address_lookup::memory::MemoryLookup,
    endpoint::{RecvStream, SendStream},
};
use tokio::{sync::mpsc, task::JoinSet};

use super::{Error, Mesh, Place, Result, Role, Tally, endpoints::bind};

const ALPN: &[u8] = b"bench/bare-streams";
/// Payloads that one spoke's writer may be behind by.
const QUEUE: usize = 1024;
/// Payloads that go out in one write.
const COALESCE: usize = 64;

/// A hub with one stream per spoke.
pub struct BareStreams {
    writers: Vec<mpsc::Sender<Bytes>>,
    endpoints: Vec<Endpoint>,
    _tasks: JoinSet<()>,
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
        let hub = bind(place, Role::Hub, ALPN, &known).await?;
        let mut mesh = Self {
            writers: Vec::with_capacity(spokes),
            endpoints: vec![hub.clone()],
            _tasks: JoinSet::new(),
        };
        for number in 0..spokes {
            let spoke = bind(place, Role::Spoke, ALPN, &known).await?;
            let dial = async {
                let connection = spoke.connect(place.addr_of(&hub), ALPN).await?;
                let (mut send, recv) = connection.open_bi().await?;
                // The stream exists for the hub only once something is written on it.
                send.write_all(&[0]).await?;
                Ok::<_, Error>((connection, send, recv))
            };
            let accept = async {
                let incoming = hub
                    .accept()
                    .await
                    .ok_or_else(|| Error::from("the hub's endpoint is closed"))?;
                let connection = incoming.await?;
                let (send, recv) = connection.accept_bi().await?;
                Ok::<_, Error>((connection, send, recv))
            };
            let (dialled, accepted) = tokio::try_join!(dial, accept)?;
            let (queue, payloads) = mpsc::channel(QUEUE);
            mesh.writers.push(queue);
            mesh._tasks.spawn(async move {
                // The connection and the unused half live as long as the writer.
                let (_connection, send, _recv) = accepted;
                write(send, payloads).await;
            });
            let tally = tally.clone();
            mesh._tasks.spawn(async move {
                let (_connection, _send, recv) = dialled;
                read(recv, number, &tally).await;
            });
            mesh.endpoints.push(spoke);
        }
        Ok(mesh)
    }

    async fn publish(&self, payload: Bytes) -> Result<()> {
        let mut frame = BytesMut::with_capacity(4 + payload.len());
        frame.put_u32(payload.len() as u32);
        frame.put_slice(&payload);
        let frame = frame.freeze();
        for writer in &self.writers {
            writer.send(frame.clone()).await?;
        }
        Ok(())
    }

    async fn stop(self) {
        drop(self.writers);
        n0_future::join_all(self.endpoints.iter().map(Endpoint::close)).await;
    }
}

async fn write(mut send: SendStream, mut payloads: mpsc::Receiver<Bytes>) {
    let mut batch = Vec::with_capacity(COALESCE);
    while payloads.recv_many(&mut batch, COALESCE).await > 0 {
        if send.write_all_chunks(&mut batch).await.is_err() {
            return;
        }
        batch.clear();
    }
}

async fn read(mut recv: RecvStream, spoke: usize, tally: &Tally) {
    let mut buffer = BytesMut::new();
    while let Ok(Some(chunk)) = recv.read_chunk(256 * 1024).await {
        buffer.extend_from_slice(&chunk);
        while let Some(prefix) = buffer.first_chunk::<4>() {
            let len = u32::from_be_bytes(*prefix) as usize;
            if buffer.len() < 4 + len {
                break;
            }
            let frame = buffer.split_to(4 + len);
            tally.record(spoke, &frame[4..]);
        }
    }
}

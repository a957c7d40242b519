//! Bare iroh: a datagram for each payload and spoke. Nothing sends it again if it is lost.

use std::{array, sync::Arc};

use bytes::Bytes;
use iroh::{Endpoint, address_lookup::memory::MemoryLookup, endpoint::Connection};
use tokio::{sync::mpsc, task::JoinSet};

use crate::common::{
    Error, Mesh, Place, Result, Role, Tally, bare_streams::QUEUE, endpoints::bind,
};

const ALPN: &[u8] = b"bench/bare-datagrams";
/// Datagrams that are taken or handed over at once.
const BATCH: usize = 64;

pub(crate) struct BareDatagrams {
    writers: Vec<mpsc::Sender<Bytes>>,
    endpoints: Vec<Endpoint>,
    _tasks: JoinSet<()>,
}

impl Mesh for BareDatagrams {
    const NAME: &'static str = "datagrams";

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
            let dial = async { Ok::<_, Error>(spoke.connect(place.addr_of(&hub), ALPN).await?) };
            let accept = async {
                let incoming = hub.accept().await.ok_or("the hub's endpoint is closed")?;
                Ok::<_, Error>(incoming.await?)
            };
            let (dialled, accepted) = tokio::try_join!(dial, accept)?;
            let (queue, payloads) = mpsc::channel(QUEUE);
            mesh.writers.push(queue);
            mesh._tasks.spawn(write(accepted, payloads));
            mesh._tasks.spawn(read(dialled, number, tally.clone()));
            mesh.endpoints.push(spoke);
        }
        Ok(mesh)
    }

    async fn publish(&self, payload: Bytes) -> Result<()> {
        for writer in &self.writers {
            writer.send(payload.clone()).await?;
        }
        Ok(())
    }

    async fn stop(self) {
        drop(self.writers);
        n0_future::join_all(self.endpoints.iter().map(Endpoint::close)).await;
    }
}

/// A whole batch at once while there is room for it, and one by one otherwise: what does not fit would push out older
/// ones.
async fn write(connection: Connection, mut payloads: mpsc::Receiver<Bytes>) {
    let mut batch = Vec::with_capacity(BATCH);
    while payloads.recv_many(&mut batch, BATCH).await > 0 {
        let bytes: usize = batch.iter().map(Bytes::len).sum();
        // Twice, since the room is also for what the buffer needs to hold them.
        if connection.datagram_send_buffer_space() > 2 * bytes {
            if connection.send_many_datagrams(&batch).is_err() {
                return;
            }
        } else {
            for payload in &batch {
                if connection
                    .send_datagram_wait(payload.clone())
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
        batch.clear();
    }
}

async fn read(connection: Connection, spoke: usize, tally: Arc<Tally>) {
    let mut batch: [Bytes; BATCH] = array::from_fn(|_| Bytes::new());
    while let Ok(count) = connection.read_many_datagrams(&mut batch).await {
        for payload in &batch[..count] {
            tally.record(spoke, payload);
        }
    }
}

//! The hub's end of bare streams: whatever connections they come on, a writer each.

use bytes::Bytes;
use iroh::{
    Endpoint,
    endpoint::{Connection, RecvStream, SendStream},
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use crate::common::{
    Error, Result,
    bare_streams::{QUEUE, frame, write},
};

pub(crate) const ALPN: &[u8] = b"bench/layout";

type Writer = mpsc::Sender<Bytes>;

pub(crate) struct BareHub {
    pub(crate) endpoint: Endpoint,
    accepting: AbortHandle,
    new: mpsc::UnboundedReceiver<Writer>,
    writers: Vec<Writer>,
}

impl BareHub {
    /// On an endpoint that accepts [`ALPN`].
    pub(crate) fn start(endpoint: Endpoint) -> Self {
        let (found, new) = mpsc::unbounded_channel();
        let accepting = tokio::spawn(accept_all(endpoint.clone(), found)).abort_handle();
        Self {
            endpoint,
            accepting,
            new,
            writers: Vec::new(),
        }
    }

    /// Waits until so many streams are here.
    pub(crate) async fn has(&mut self, streams: usize) -> Result<()> {
        while self.writers.len() < streams {
            let writer = self.new.recv().await;
            self.writers
                .push(writer.ok_or("the bare hub takes no more streams")?);
        }
        Ok(())
    }

    pub(crate) async fn publish(&self, payload: &[u8]) -> Result<()> {
        let frame = frame(payload);
        for writer in &self.writers {
            writer.send(frame.clone()).await?;
        }
        Ok(())
    }

    pub(crate) async fn stop(self) {
        self.accepting.abort();
        drop(self.writers);
        self.endpoint.close().await;
    }
}

async fn accept_all(hub: Endpoint, found: mpsc::UnboundedSender<Writer>) {
    let mut connections = JoinSet::new();
    while let Some(incoming) = hub.accept().await {
        let found = found.clone();
        connections.spawn(async move { take(incoming.await?, found).await });
    }
}

async fn take(connection: Connection, found: mpsc::UnboundedSender<Writer>) -> Result<()> {
    let mut streams = JoinSet::new();
    loop {
        let (send, recv) = connection.accept_bi().await?;
        streams.spawn(serve(send, recv, found.clone()));
    }
}

async fn serve(
    send: SendStream,
    mut recv: RecvStream,
    found: mpsc::UnboundedSender<Writer>,
) -> Result<(), Error> {
    // What a stream is opened with.
    recv.read_exact(&mut [0; 4]).await?;
    let (queue, payloads) = mpsc::channel(QUEUE);
    found.send(queue)?;
    write(send, payloads).await;
    Ok(())
}

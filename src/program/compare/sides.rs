//! TEMPORARY stand-in for the hub and spoke: bare streams.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use iroh::{
    Endpoint,
    endpoint::{PortmapperConfig, presets},
};
use iroh_tickets::endpoint::EndpointTicket;
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    probe::{Header, Probe},
    row::Strategy,
    tally::Tally,
    usage::clock_ns,
};

const ALPN: &[u8] = b"compare/bare";

async fn bind() -> Result<Endpoint> {
    Ok(Endpoint::builder(presets::Minimal)
        .clear_ip_transports()
        .bind_addr((Ipv4Addr::LOCALHOST, 0))?
        .portmapper_config(PortmapperConfig::Disabled)
        .alpns(vec![ALPN.to_vec()])
        .bind()
        .await?)
}

fn sent(endpoint: &Endpoint) -> u64 {
    let socket = &endpoint.metrics().socket;
    socket.send_ipv4.get() + socket.send_ipv6.get() + socket.send_relay.get()
}

pub(crate) struct HubSide {
    endpoint: Endpoint,
    writers: Arc<Mutex<Vec<mpsc::Sender<Bytes>>>>,
}

impl HubSide {
    pub(crate) async fn start(_strategy: Strategy) -> Result<Self> {
        let endpoint = bind().await?;
        let writers: Arc<Mutex<Vec<mpsc::Sender<Bytes>>>> = Arc::default();
        let this = Self {
            endpoint: endpoint.clone(),
            writers: writers.clone(),
        };
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let writers = writers.clone();
                tokio::spawn(async move {
                    let conn = incoming.await.unwrap();
                    let (mut send, _recv) = conn.accept_bi().await.unwrap();
                    let (tx, mut rx) = mpsc::channel(1024);
                    writers.lock().unwrap().push(tx);
                    let mut batch = Vec::new();
                    while rx.recv_many(&mut batch, 64).await > 0 {
                        send.write_all_chunks(&mut batch).await.unwrap();
                        batch.clear();
                    }
                });
            }
        });
        Ok(this)
    }
    pub(crate) fn ticket(&self) -> String {
        EndpointTicket::from(self.endpoint.addr()).to_string()
    }
    pub(crate) async fn ready(&self, spokes: usize, limit: Duration) -> Result<()> {
        tokio::time::timeout(limit, async {
            while self.writers.lock().unwrap().len() < spokes {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .context("not all spokes")
    }
    pub(crate) async fn broadcast(&self, probe: &Probe<'_>) -> Result<()> {
        let payload = serde_json::to_vec(probe)?;
        let mut frame = BytesMut::new();
        frame.put_u32(payload.len() as u32);
        frame.put_slice(&payload);
        let frame = frame.freeze();
        let writers = self.writers.lock().unwrap().clone();
        for w in writers.iter() {
            w.send(frame.clone()).await?;
        }
        Ok(())
    }
    pub(crate) fn bytes_sent(&self) -> u64 {
        sent(&self.endpoint)
    }
    pub(crate) async fn stop(self) {
        self.endpoint.close().await;
    }
}

pub(crate) struct SpokesSide {
    endpoints: Vec<Endpoint>,
    _tasks: JoinSet<()>,
}

impl SpokesSide {
    pub(crate) async fn connect(ticket: &str, spokes: usize, tally: &Arc<Tally>) -> Result<Self> {
        let ticket: EndpointTicket = ticket.parse()?;
        let mut this = Self {
            endpoints: Vec::new(),
            _tasks: JoinSet::new(),
        };
        for number in 0..spokes {
            let endpoint = bind().await?;
            let conn = endpoint
                .connect(ticket.endpoint_addr().clone(), ALPN)
                .await?;
            let (mut send, mut recv) = conn.open_bi().await?;
            send.write_all(&[0]).await?;
            let tally = tally.clone();
            this.endpoints.push(endpoint);
            this._tasks.spawn(async move {
                let (_c, _s) = (conn, send);
                let mut buffer = BytesMut::new();
                while let Ok(Some(chunk)) = recv.read_chunk(256 * 1024).await {
                    buffer.extend_from_slice(&chunk);
                    while buffer.len() >= 4 {
                        let len = (&buffer[..4]).get_u32() as usize;
                        if buffer.len() < 4 + len {
                            break;
                        }
                        let frame = buffer.split_to(4 + len);
                        let text = std::str::from_utf8(&frame[4..]).unwrap();
                        tally.record(number, Header::read(text).unwrap(), clock_ns());
                    }
                }
            });
        }
        Ok(this)
    }
    pub(crate) fn count(&self) -> usize {
        self.endpoints.len()
    }
    pub(crate) fn bytes_sent(&self) -> u64 {
        self.endpoints.iter().map(sent).sum()
    }
    pub(crate) async fn stop(self) {
        n0_future::join_all(self.endpoints.iter().map(Endpoint::close)).await;
    }
}

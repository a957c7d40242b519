//! TEMPORARY: the two child processes over bare streams, until the hub and spoke are there.
use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use iroh::{
    Endpoint,
    endpoint::{PortmapperConfig, presets},
};
use iroh_tickets::endpoint::EndpointTicket;
use tokio::sync::{Mutex, mpsc};

use super::{
    input::Bodies,
    probe::Header,
    protocol::{Answer, HubCommand, HubReply, SpokesCommand, SpokesReply},
    tally::Tally,
    usage::{Usage, clock_ns},
    worker::serve,
};

const ALPN: &[u8] = b"compare/bare";

async fn bind() -> Result<Endpoint, String> {
    let bound = async {
        anyhow::Ok(
            Endpoint::builder(presets::Minimal)
                .clear_ip_transports()
                .bind_addr((Ipv4Addr::LOCALHOST, 0))?
                .portmapper_config(PortmapperConfig::Disabled)
                .alpns(vec![ALPN.to_vec()])
                .bind()
                .await?,
        )
    };
    bound.await.map_err(|e| format!("{e:#}"))
}

#[derive(Default)]
struct HubState {
    endpoint: Option<Endpoint>,
    bodies: Option<Bodies>,
}

pub(crate) async fn hub_child() -> anyhow::Result<()> {
    let state = Arc::new(Mutex::new(HubState::default()));
    let writers: Arc<Mutex<Vec<mpsc::Sender<Bytes>>>> = Arc::default();
    serve(move |command| {
        let (state, writers) = (state.clone(), writers.clone());
        async move {
            let last = command == HubCommand::Stop;
            let mut state = state.lock().await;
            (hub_command(&mut state, writers, command).await, last)
        }
    })
    .await
}

async fn hub_command(
    state: &mut HubState,
    writers: Arc<Mutex<Vec<mpsc::Sender<Bytes>>>>,
    command: HubCommand,
) -> Answer<HubReply> {
    match command {
        HubCommand::Start { input, .. } => {
            let endpoint = bind().await?;
            state.bodies = Some(input.load().map_err(|e| format!("{e:#}"))?);
            state.endpoint = Some(endpoint.clone());
            let ticket = EndpointTicket::from(endpoint.addr()).to_string();
            tokio::spawn(async move {
                while let Some(incoming) = endpoint.accept().await {
                    let writers = writers.clone();
                    tokio::spawn(async move {
                        let conn = incoming.await.unwrap();
                        let (mut send, _recv) = conn.accept_bi().await.unwrap();
                        let (tx, mut rx) = mpsc::channel(1024);
                        writers.lock().await.push(tx);
                        let mut batch = Vec::new();
                        while rx.recv_many(&mut batch, 64).await > 0 {
                            send.write_all_chunks(&mut batch).await.unwrap();
                            batch.clear();
                        }
                    });
                }
            });
            Ok(HubReply::Ticket(ticket))
        }
        HubCommand::AwaitReady { spokes, .. } => {
            while writers.lock().await.len() < spokes {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(HubReply::Ready)
        }
        HubCommand::Publish { round, events, gap } => {
            let bodies = state.bodies.as_ref().unwrap();
            for index in 0..events {
                let payload = serde_json::to_vec(&bodies.probe(round, index, clock_ns())).unwrap();
                let mut frame = BytesMut::new();
                frame.put_u32(payload.len() as u32);
                frame.put_slice(&payload);
                let frame = frame.freeze();
                for w in writers.lock().await.iter() {
                    w.send(frame.clone()).await.unwrap();
                }
                if let Some(gap) = gap {
                    tokio::time::sleep(gap).await;
                }
            }
            Ok(HubReply::Published)
        }
        HubCommand::Usage => Ok(HubReply::Usage(Usage::now(
            state
                .endpoint
                .as_ref()
                .map_or(0, |e| e.metrics().socket.send_ipv4.get()),
        ))),
        HubCommand::Stop => Ok(HubReply::Stopped),
    }
}

pub(crate) async fn spokes_child() -> anyhow::Result<()> {
    let tally = Arc::new(Tally::default());
    let spokes = Arc::new(Mutex::new(0));
    serve(move |command| {
        let (tally, n) = (tally.clone(), spokes.clone());
        async move {
            let last = command == SpokesCommand::Stop;
            (spokes_command(tally, n, command).await, last)
        }
    })
    .await
}

async fn spokes_command(
    tally: Arc<Tally>,
    n: Arc<Mutex<usize>>,
    command: SpokesCommand,
) -> Answer<SpokesReply> {
    match command {
        SpokesCommand::Connect { ticket, spokes } => {
            *n.lock().await = spokes;
            let ticket: EndpointTicket = ticket.parse().map_err(|e| format!("{e:#}"))?;
            for number in 0..spokes {
                let endpoint = bind().await?;
                let conn = endpoint
                    .connect(ticket.endpoint_addr().clone(), ALPN)
                    .await
                    .map_err(|e| format!("{e:#}"))?;
                let (mut send, mut recv) = conn.open_bi().await.map_err(|e| format!("{e:#}"))?;
                send.write_all(&[0]).await.map_err(|e| format!("{e:#}"))?;
                let tally = tally.clone();
                tokio::spawn(async move {
                    let (_e, _c, _s) = (endpoint, conn, send);
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
            Ok(SpokesReply::Connected)
        }
        SpokesCommand::Expect { round, events } => {
            tally.expect(round, *n.lock().await, events)?;
            Ok(SpokesReply::Expecting)
        }
        SpokesCommand::Report { patience } => {
            Ok(SpokesReply::Outcome(tally.outcome(patience).await))
        }
        SpokesCommand::Usage => Ok(SpokesReply::Usage(Usage::now(0))),
        SpokesCommand::Stop => Ok(SpokesReply::Stopped),
    }
}

//! A hub and a spoke on routers that serve other protocols too: `cargo run --example router`.
//!
//! Use this where an endpoint is shared. `spawn` and a plain `connect` bring a router of their own,
//! which accepts every connection of the endpoint.

use anyhow::Result;
use iroh::{
    endpoint::Connection,
    protocol::{AcceptError, ProtocolHandler, Router},
};
use iroh_hub::{Envelope, GOSSIP_ALPN, GossipAcceptor, Hub, Incoming, Spoke, endpoint};

/// The other protocol: sends back what comes.
#[derive(Clone, Debug)]
struct Echo;

const ECHO: &[u8] = b"example/echo/1";

impl ProtocolHandler for Echo {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let (mut send, mut recv) = connection.accept_bi().await?;
        tokio::io::copy(&mut recv, &mut send).await?;
        send.finish()?;
        connection.closed().await;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    // The hub takes three protocols of its router; echo is another.
    let hub = Hub::builder().build(endpoint::bind_local().await?)?;
    let router = Router::builder(hub.endpoint().clone()).accept(ECHO, Echo);
    let hub_router = hub.accept_on(router).spawn();

    // A spoke that gossips is connected to by other spokes: its acceptor goes on the router.
    let acceptor = GossipAcceptor::new();
    let spoke_router = Router::builder(endpoint::bind_local().await?)
        .accept(ECHO, Echo)
        .accept(GOSSIP_ALPN, acceptor.clone())
        .spawn();
    let spoke = Spoke::builder()
        .acceptor(acceptor)
        .connect(spoke_router.endpoint().clone(), hub.addr())
        .await?;

    let mut listener = spoke.listen("greeting");
    hub.broadcast(Envelope::new("greeting", &"hello, spoke")?)
        .await?;
    if let Some(Incoming::Event(event)) = listener.recv().await {
        println!("the spoke heard {}", event.envelope.payload_json());
    }

    // On the same two endpoints, the other protocol.
    let connection = spoke.endpoint().connect(hub.addr(), ECHO).await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(b"anyone there?").await?;
    send.finish()?;
    let echo = recv.read_to_end(1024).await?;
    println!("the echo says {:?}", String::from_utf8_lossy(&echo));
    connection.close(0u32.into(), b"thanks");

    // The hub and the spoke first, so that they can say goodbye; then the routers and endpoints.
    spoke.shutdown().await;
    hub.shutdown().await;
    spoke_router.shutdown().await?;
    hub_router.shutdown().await?;
    Ok(())
}

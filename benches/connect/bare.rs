//! A bare welcome: iroh and nothing else.

use iroh::{Endpoint, EndpointAddr, endpoint::Connection};
use iroh_hub::endpoint::{bind_at, local};
use tokio::task::JoinSet;

use crate::{
    common::{Error, Result},
    storm::{Times, arrive},
};

const ALPN: &[u8] = b"bench/bare-welcome";
/// About as long as a hello.
const HELLO: [u8; 32] = [1; 32];
/// About as long as a welcome.
const WELCOME: [u8; 64] = [2; 64];

pub(crate) async fn storm(endpoints: Vec<Endpoint>) -> Result<Times> {
    let hub = bind_at(
        local(None).alpns(vec![ALPN.to_vec()]),
        ([127, 0, 0, 1], 0).into(),
    )
    .await?;
    let accepting = tokio::spawn(accept_all(hub.clone()));
    let addr = hub.addr();
    let arrived = arrive(&endpoints, |endpoint| connect(endpoint, addr.clone())).await;
    accepting.abort();
    n0_future::join_all(endpoints.iter().chain([&hub]).map(Endpoint::close)).await;
    Ok(arrived.times)
}

async fn connect(endpoint: Endpoint, hub: EndpointAddr) -> Result<Connection> {
    let connection = endpoint.connect(hub, ALPN).await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&HELLO).await?;
    recv.read_exact(&mut [0; WELCOME.len()]).await?;
    Ok(connection)
}

/// Each on a task of its own, so that none waits for another.
async fn accept_all(hub: Endpoint) {
    let mut spokes = JoinSet::new();
    while let Some(incoming) = hub.accept().await {
        spokes.spawn(async move {
            let connection = incoming.await?;
            let (mut send, mut recv) = connection.accept_bi().await?;
            recv.read_exact(&mut [0; HELLO.len()]).await?;
            send.write_all(&WELCOME).await?;
            connection.closed().await;
            Ok::<_, Error>(())
        });
    }
}

//! The endpoint that a command runs on.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context;
use iroh::{Endpoint, SecretKey, endpoint::presets};
use iroh_hub::endpoint;
use tokio::time::timeout;

use super::{args::NetworkArgs, exit::Failure, key};

/// How long an endpoint may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// By which ways an endpoint is reached.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reach {
    /// All that there are.
    Any,
    /// This address, and a relay.
    At(SocketAddr),
    /// A relay, and no address of its own.
    RelayOnly,
}

impl From<Option<SocketAddr>> for Reach {
    fn from(addr: Option<SocketAddr>) -> Self {
        addr.map_or(Self::Any, Self::At)
    }
}

/// Binds an endpoint as the command line says.
pub(super) async fn bind(args: &NetworkArgs, reach: Reach) -> Result<Endpoint, Failure> {
    let key = match &args.key {
        Some(path) => key::load_or_create(path)?,
        None => SecretKey::generate(),
    };
    let builder = if args.local {
        endpoint::local(Some(key))
    } else {
        Endpoint::builder(presets::N0)
            .transport_config(endpoint::transport_config())
            .secret_key(key)
    };
    let reach = match reach {
        Reach::At(addr) if args.local && !addr.ip().is_loopback() => {
            return Err(Failure::usage(format_args!(
                "--local stays on this machine, and --bind {addr} does not; bind to 127.0.0.1, or leave one of both out"
            )));
        }
        Reach::Any if args.local => Reach::At((Ipv4Addr::LOCALHOST, 0).into()),
        reach => reach,
    };
    Ok(match reach {
        Reach::At(addr) => endpoint::bind_at(builder, addr).await.with_context(|| {
            format!("{addr} cannot be bound; is its port in use? End who has it, or give another")
        })?,
        Reach::Any => builder.bind().await.context("no socket can be bound")?,
        Reach::RelayOnly => {
            let builder = builder.clear_ip_transports();
            builder
                .bind()
                .await
                .context("the endpoint cannot be made")?
        }
    })
}

/// Closes an endpoint, so that peers need not wait for its silence.
pub(super) async fn close(endpoint: &Endpoint) {
    let _ = timeout(CLOSE_LIMIT, endpoint.close()).await;
}

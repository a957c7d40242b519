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

/// Binds an endpoint as the command line says.
pub(super) async fn bind(
    args: &NetworkArgs,
    addr: Option<SocketAddr>,
) -> Result<Endpoint, Failure> {
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
    let addr = match addr {
        Some(addr) if args.local && !addr.ip().is_loopback() => {
            return Err(Failure::usage(format_args!(
                "--local stays on this machine, and --bind {addr} does not; bind to 127.0.0.1, or leave one of both out"
            )));
        }
        None if args.local => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        addr => addr,
    };
    Ok(match addr {
        Some(addr) => endpoint::bind_at(builder, addr).await.with_context(|| {
            format!("{addr} cannot be bound; is its port in use? End who has it, or give another")
        })?,
        None => builder.bind().await.context("no socket can be bound")?,
    })
}

/// Closes an endpoint, so that peers need not wait for its silence.
pub(super) async fn close(endpoint: &Endpoint) {
    let _ = timeout(CLOSE_LIMIT, endpoint.close()).await;
}

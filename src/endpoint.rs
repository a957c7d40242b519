//! Endpoints fit for hubs and spokes.
//!
//! Any iroh endpoint will do; these set what a hub should not leave at its default. Not for relays
//! and look-up: those are your choice, made with a preset.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use iroh::{
    Endpoint, SecretKey,
    endpoint::{
        BindError as IrohBindError, Builder, Connection, InvalidSocketAddr, PortmapperConfig,
        QuicTransportConfig, QuicTransportConfigBuilder, VarInt, presets,
    },
};
use n0_error::stack_error;

use crate::hub::HubLimits;

/// An endpoint was not bound.
#[stack_error(derive, add_meta, from_sources)]
#[non_exhaustive]
pub enum BindError {
    /// The address is not one to bind to.
    #[error(transparent)]
    Addr {
        /// What iroh says.
        source: InvalidSocketAddr,
    },
    /// The socket could not be bound, for example because its port is in use.
    #[error(transparent)]
    Bind {
        /// What iroh says.
        source: IrohBindError,
    },
}

/// How much one peer may have in flight towards us over all of its streams, in bytes.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// How much we may have in flight towards one peer, in bytes: what a stuck spoke can hold of the
/// hub's memory beside the log.
const SEND_WINDOW: u64 = 4 << 20;

/// After so long without a sign of life a connection is lost. A hub that was killed and started again knows
/// nothing of its connections, so this is how long its spokes take to notice.
const IDLE_TIMEOUT_MS: u32 = 15_000;

/// QUIC settings for an endpoint that runs a hub or a spoke: windows that bound what one peer can make
/// it hold, and a keep-alive that notices a dead peer within fifteen seconds.
pub fn transport_config() -> QuicTransportConfig {
    base()
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .build()
}

fn base() -> QuicTransportConfigBuilder {
    QuicTransportConfig::builder()
        .keep_alive_interval(Duration::from_secs(4))
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
}

/// How many streams at once QUIC lets a peer have that is no spoke yet.
const WAITING_STREAMS: usize = 8;
/// How many more than it may have it lets a peer open that is one, so that the hub can tell it so.
const SPARE_STREAMS: usize = 16;
const MIN_STREAMS: usize = 100;

/// QUIC settings for the connections that come in to a hub with these limits: what a stranger can make the hub hold is
/// little, and [`HubLimits::receive_window`] is for those that have become spokes.
///
/// A hub that [spawns](crate::HubBuilder::spawn) uses them by itself. One on a router of yours does if its endpoint is built
/// with them.
pub fn hub_transport_config(limits: &HubLimits) -> QuicTransportConfig {
    // Nothing of ours uses unidirectional streams or datagrams, and what a peer sends on them nobody would read.
    let streams = limits.max_streams.min(WAITING_STREAMS) + 1;
    base()
        .receive_window(VarInt::from_u32(limits.waiting_window))
        .send_window(limits.send_window.into())
        .max_concurrent_bidi_streams(varint(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .build()
}

/// Gives a connection what one with spokes may have: so many bytes in flight, and so many streams.
pub(crate) fn widen(connection: &Connection, window: usize, max_streams: usize) {
    connection.set_receive_window(varint(window));
    let streams = (max_streams + SPARE_STREAMS).max(MIN_STREAMS);
    connection.set_max_concurrent_bi_streams(varint(streams));
}

fn varint(n: usize) -> VarInt {
    VarInt::try_from(n).unwrap_or(VarInt::MAX)
}

/// A builder for an endpoint that is reachable on this machine only: one socket on the loopback
/// address, no relay, no look-up of addresses, no port mapping.
///
/// For tests, examples and several processes on one machine. `secret_key` is drawn if there is none.
pub fn local(secret_key: Option<SecretKey>) -> Builder {
    let builder = Endpoint::builder(presets::Minimal)
        .transport_config(transport_config())
        .portmapper_config(PortmapperConfig::Disabled);
    match secret_key {
        Some(key) => builder.secret_key(key),
        None => builder,
    }
}

/// Binds a [`local`] endpoint to a free port.
///
/// # Errors
///
/// If no socket can be bound.
pub async fn bind_local() -> Result<Endpoint, BindError> {
    bind_at(
        local(None),
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
    )
    .await
}

/// Binds an endpoint to one address, and to no other socket.
///
/// # Errors
///
/// If the address cannot be bound, for example because its port is in use.
pub async fn bind_at(builder: Builder, addr: SocketAddr) -> Result<Endpoint, BindError> {
    Ok(builder
        .clear_ip_transports()
        .bind_addr(addr)?
        .bind()
        .await?)
}

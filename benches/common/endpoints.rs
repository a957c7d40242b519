//! Endpoints on loopback alone: no relay, no look-up, no port mapping.

use std::net::Ipv4Addr;

use iroh::{
    Endpoint,
    address_lookup::memory::MemoryLookup,
    endpoint::{PortmapperConfig, presets},
};

use super::Result;

/// Binds one endpoint that accepts `alpn` and resolves ids by `known`.
pub async fn bind(alpn: &[u8], known: &MemoryLookup) -> Result<Endpoint> {
    Ok(Endpoint::builder(presets::Minimal)
        .clear_ip_transports()
        .bind_addr((Ipv4Addr::LOCALHOST, 0))?
        .portmapper_config(PortmapperConfig::Disabled)
        .alpns(vec![alpn.to_vec()])
        .address_lookup(known.clone())
        .bind()
        .await?)
}

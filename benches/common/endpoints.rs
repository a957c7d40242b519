//! Endpoints with iroh's own settings, for the baselines.

use iroh::{
    Endpoint,
    address_lookup::memory::MemoryLookup,
    endpoint::{PortmapperConfig, presets},
};

use super::{Place, Result, Role};

/// Binds one endpoint that accepts `alpn` and resolves ids by `known`.
pub async fn bind(
    place: &dyn Place,
    role: Role,
    alpn: &[u8],
    known: &MemoryLookup,
) -> Result<Endpoint> {
    let builder = Endpoint::builder(presets::Minimal)
        .portmapper_config(PortmapperConfig::Disabled)
        .alpns(vec![alpn.to_vec()])
        .address_lookup(known.clone());
    place.bind(role, builder).await
}

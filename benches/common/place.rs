//! Where the endpoints of a mesh are: on loopback, or on a network of the bench's own.

use std::net::Ipv4Addr;

use iroh::{Endpoint, EndpointAddr, endpoint::Builder};
use n0_future::boxed::BoxFuture;

use super::Result;

/// What an endpoint is in its mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sends the events.
    Hub,
    /// Receives them.
    Spoke,
}

/// A network that endpoints can be on.
pub trait Place: Send + Sync {
    /// Binds an endpoint here, and nowhere else.
    fn bind(&self, role: Role, builder: Builder) -> BoxFuture<Result<Endpoint>>;

    /// Where another endpoint here finds this one.
    fn addr_of(&self, endpoint: &Endpoint) -> EndpointAddr;
}

/// One socket on loopback each.
#[derive(Debug, Clone, Copy)]
pub struct Loopback;

impl Place for Loopback {
    fn bind(&self, _: Role, builder: Builder) -> BoxFuture<Result<Endpoint>> {
        Box::pin(async move {
            let builder = builder
                .clear_ip_transports()
                .bind_addr((Ipv4Addr::LOCALHOST, 0))?;
            Ok(builder.bind().await?)
        })
    }

    fn addr_of(&self, endpoint: &Endpoint) -> EndpointAddr {
        endpoint.addr()
    }
}

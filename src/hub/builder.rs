//! Makes hubs.

use iroh::{Endpoint, protocol::Router};
use n0_error::e;

use super::{Hub, HubError, HubLimits, config::HubConfig};
use crate::{admission::Admission, fan_out::FanOut, gossip::GossipConfig, log::LogConfig};

/// Makes a [`Hub`]. Every setting has a default.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct HubBuilder {
    config: HubConfig,
}

impl HubBuilder {
    /// How broadcasts reach the spokes. Default: [`FanOut::Auto`].
    pub fn fan_out(mut self, fan_out: FanOut) -> Self {
        self.config.fan_out = fan_out;
        self
    }

    /// Who may connect. Default: everyone.
    pub fn admission(mut self, admission: Admission) -> Self {
        self.config.admission = admission;
        self
    }

    /// How much of the past the hub keeps.
    pub fn log(mut self, config: LogConfig) -> Self {
        self.config.log = config;
        self
    }

    /// The settings of the topic.
    pub fn gossip(mut self, config: GossipConfig) -> Self {
        self.config.gossip = config;
        self
    }

    /// The limits that the hub keeps.
    pub fn limits(mut self, limits: HubLimits) -> Self {
        self.config.limits = limits;
        self
    }

    /// Makes a hub for a router that you have; see [`Hub::accept_on`].
    ///
    /// # Errors
    ///
    /// If the endpoint is closed.
    pub fn build(self, endpoint: Endpoint) -> Result<Hub, HubError> {
        if endpoint.is_closed() {
            return Err(e!(HubError::EndpointClosed));
        }
        Ok(Hub::start(endpoint, self.config))
    }

    /// Makes a hub and a router for it, which accepts every connection of the endpoint.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn spawn(self, endpoint: Endpoint) -> Result<Hub, HubError> {
        let mut hub = self.build(endpoint.clone())?;
        let router = hub.accept_on(Router::builder(endpoint)).spawn();
        hub.router = Some(router);
        Ok(hub)
    }
}

//! Makes spokes.

use iroh::{Endpoint, EndpointAddr};
use iroh_tickets::endpoint::EndpointTicket;
use n0_error::{AnyError, e};

use super::{
    ConnectError, Reconnect, Spoke,
    config::{From, Gossip, SpokeConfig, SpokeLimits},
    member::GossipAcceptor,
};
use crate::{gossip::GossipConfig, protocol::Protocol};

/// Connects [`Spoke`]s. Every setting has a default.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct SpokeBuilder {
    config: SpokeConfig,
    acceptor: Option<GossipAcceptor>,
}

impl SpokeBuilder {
    /// The protocol to speak. Default: [`Protocol::Native`].
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.config.protocol = protocol;
        self
    }

    /// Whether to take part in the topic. Default: [`Gossip::Full`].
    ///
    /// What other spokes learn by it is said [there](Gossip).
    ///
    /// One endpoint can have one spoke on the topic; give its other spokes [`Gossip::Off`].
    pub fn gossip(mut self, gossip: Gossip) -> Self {
        self.config.gossip = gossip;
        self
    }

    /// Where in the hub's log to begin. Default: [`From::Tip`]. The compat protocol always begins at
    /// the tip.
    pub fn from(mut self, from: From) -> Self {
        self.config.from = from;
        self
    }

    /// The limits that the spoke keeps.
    pub fn limits(mut self, limits: SpokeLimits) -> Self {
        self.config.limits = limits;
        self
    }

    /// How the spoke comes back after its link was lost. Default: see [`Reconnect`].
    pub fn reconnect(mut self, reconnect: Reconnect) -> Self {
        self.config.reconnect = reconnect;
        self
    }

    /// The settings of the topic.
    pub fn gossip_config(mut self, config: GossipConfig) -> Self {
        self.config.gossip_config = config;
        self
    }

    /// For an endpoint that has a router already: this acceptor, registered there for
    /// [`GOSSIP_ALPN`](crate::GOSSIP_ALPN), takes the spoke's gossip connections. Without it, a spoke
    /// that gossips brings a router of its own, which accepts every connection of the endpoint.
    pub fn acceptor(mut self, acceptor: GossipAcceptor) -> Self {
        self.acceptor = Some(acceptor);
        self
    }

    /// Connects to the hub at an address, and waits for its welcome. There is one attempt; once welcomed, the
    /// spoke [comes back](Reconnect) by itself when its link is lost.
    ///
    /// A plain hub (compat) gives no welcome; whether it takes the spoke shows afterwards.
    ///
    /// # Errors
    ///
    /// If the hub is not reached in [`SpokeLimits::connect_timeout`], or refuses the spoke.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing stays behind but a connection that closes.
    pub async fn connect(
        self,
        endpoint: Endpoint,
        hub: impl Into<EndpointAddr>,
    ) -> Result<Spoke, ConnectError> {
        Spoke::connected(endpoint, hub.into(), self.config.sound(), self.acceptor).await
    }

    /// Starts a spoke that connects in the background, and tries again as after a lost link while the hub
    /// is not there. What is sent meanwhile waits, within [`SpokeLimits::send_buffer_bytes`].
    ///
    /// [`Spoke::watch`] tells how it goes, [`Spoke::closed`] if it ends. Of the plain protocol, there is one
    /// attempt.
    ///
    /// Must be called within a Tokio runtime.
    pub fn spawn(self, endpoint: Endpoint, hub: impl Into<EndpointAddr>) -> Spoke {
        Spoke::spawned(endpoint, hub.into(), self.config.sound(), self.acceptor)
    }

    /// Connects to the hub of a ticket's text.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect); and if the ticket cannot be read.
    pub async fn connect_ticket(
        self,
        endpoint: Endpoint,
        ticket: &str,
    ) -> Result<Spoke, ConnectError> {
        let ticket: EndpointTicket = ticket.trim().parse().map_err(|error| {
            e!(ConnectError::Ticket {
                source: AnyError::from_stack(error)
            })
        })?;
        self.connect(endpoint, ticket.endpoint_addr().clone()).await
    }
}

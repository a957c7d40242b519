//! Makes hubs.

use iroh::Endpoint;
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

    /// Whether those that are [admitted](Admission::allow) while the hub runs may read what was broadcast
    /// before, as far as the log has it. Default: false. Those that may connect from the beginning may in any
    /// case.
    pub fn history(mut self, history: bool) -> Self {
        self.config.history = history;
        self
    }

    /// How much of the past the hub keeps.
    pub fn log(mut self, config: LogConfig) -> Self {
        self.config.log = config;
        self
    }

    /// Keeps the log in this file, so that a hub that is started again with it, and with the same key,
    /// goes on where it was: same epoch, next offset, nothing lost that [`Hub::broadcast`] had returned.
    /// The file is made if there is none. Default: in memory only.
    ///
    /// What is kept is bounded as [`log`](Self::log) says, and also in memory, from where it is read. See
    /// [`log`](crate::log#durable-logs) for what a durable log promises.
    ///
    /// ```
    /// use iroh::SecretKey;
    /// use iroh_hub::{Envelope, Hub, endpoint};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("hub.log");
    /// // The log belongs to this key.
    /// let key = SecretKey::generate();
    /// let mut tip = None;
    /// for life in 0..2 {
    ///     let endpoint = endpoint::local(Some(key.clone())).bind().await?;
    ///     let hub = Hub::builder().durable_log(&path).spawn(endpoint)?;
    ///     // When this returns, the event is on the disk.
    ///     let receipt = hub.broadcast(Envelope::new("life", &life)?).await?;
    ///     if let Some(tip) = tip.replace(hub.tip()) {
    ///         assert_eq!(receipt.position(), tip);
    ///     }
    ///     hub.shutdown().await;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "durable")]
    pub fn durable_log(mut self, path: impl Into<std::path::PathBuf>) -> Self {
        self.config.log_file = Some(path.into());
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
    /// With a [durable log](Self::durable_log) it reads the whole file first, which blocks: call it in
    /// [`spawn_blocking`](tokio::task::spawn_blocking) where that matters.
    ///
    /// # Errors
    ///
    /// If the endpoint is closed, or the durable log cannot be opened.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn build(self, endpoint: Endpoint) -> Result<Hub, HubError> {
        if endpoint.is_closed() {
            return Err(e!(HubError::EndpointClosed));
        }
        Hub::start(endpoint, self.config)
    }

    /// Makes a hub that takes every connection of the endpoint.
    ///
    /// The endpoint's own QUIC settings are not used for connections that come in: those follow from the
    /// [limits](Self::limits), see [`hub_transport_config`](crate::endpoint::hub_transport_config).
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn spawn(self, endpoint: Endpoint) -> Result<Hub, HubError> {
        let mut hub = self.build(endpoint)?;
        hub.take_all();
        Ok(hub)
    }
}

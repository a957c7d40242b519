//! Makes hubs.

use iroh::Endpoint;
use n0_error::e;

use super::{Hub, HubError, HubLimits, ceiling, config::HubConfig};
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

    /// How much memory a hub with these settings takes at most, in bytes, whoever connects and whatever they do.
    ///
    /// The sum of, rounded up here and there:
    ///
    /// | for | bytes |
    /// |---|---|
    /// | the process | 64 MiB |
    /// | packets for handshakes that wait for their turn | 100 MiB |
    /// | the log | 4 × [`max_bytes`](LogConfig::max_bytes) (each event as itself, as spokes read it, by itself and with others, and as a plain one does) + 512 × [`max_events`](LogConfig::max_events) |
    /// | targeted events | [`targeted_bytes_of_all`](HubLimits::targeted_bytes_of_all) |
    /// | sessions | 4 KiB × ([`max_spokes`](HubLimits::max_spokes) + [`away_spokes`](HubLimits::away_spokes)) + 256 × [`remembered_spokes`](HubLimits::remembered_spokes) |
    /// | connections and handshakes | 128 KiB × ([`max_connections`](HubLimits::max_connections) + [`max_handshakes`](HubLimits::max_handshakes)) |
    /// | what has come and was not read | 2.5 × ([`max_connections`](HubLimits::max_connections) × [`waiting_window`](HubLimits::waiting_window) + [`receive_bytes`](HubLimits::receive_bytes)) |
    /// | events of spokes that nobody has taken | 2 × [`intake_bytes`](HubLimits::intake_bytes) |
    /// | spokes | [`max_spokes`](HubLimits::max_spokes) × ([`send_window`](HubLimits::send_window) + [`max_event_bytes`](HubLimits::max_event_bytes) + 742 KiB): what is on its way to one that has stopped reading, the large event in the middle of which it did, and what was read from it and not taken |
    /// | streams that are no spokes yet | [`max_waiting`](HubLimits::max_waiting) × 228 KiB |
    /// | the topic | [`cache_bytes`](GossipConfig::cache_bytes) + [`active_view`](GossipConfig::active_view), 4 at most, × [`queue_bytes`](GossipConfig::queue_bytes) + ([`max_connections`](GossipConfig::max_connections) + [`max_unproven`](GossipConfig::max_unproven)) × (2.5 × [`waiting_window`](HubLimits::waiting_window) + [`send_window`](HubLimits::send_window) + 128 KiB + 512 KiB or 4 × [`max_frame_size`](GossipConfig::max_frame_size), whichever is more), unless everyone is served directly |
    ///
    /// On top come the hub's own listeners, each [`capacity_bytes`](crate::ListenOptions::capacity_bytes). On a router of
    /// yours, it holds if the endpoint has [`hub_transport_config`](crate::endpoint::hub_transport_config).
    ///
    /// Nearly all of it is what spokes may cost: set [`max_spokes`](HubLimits::max_spokes) to how many you expect, and
    /// [`max_event_bytes`](HubLimits::max_event_bytes) to what you send. The defaults are for 16,384 spokes and events of
    /// 16 MiB, whose ceiling no machine has: 292 GiB. A hub for 1,000 spokes and events of 64 KiB stays below 3 GiB like this:
    ///
    /// ```
    /// use iroh_hub::{Hub, HubLimits, GossipConfig, log::LogConfig};
    ///
    /// let mut limits = HubLimits::default();
    /// limits.max_spokes = 1000;
    /// limits.away_spokes = 1000;
    /// limits.max_connections = 1100;
    /// limits.max_waiting = 100;
    /// limits.max_handshakes = 100;
    /// limits.max_event_bytes = 64 << 10;
    /// limits.send_window = 256 << 10;
    /// limits.receive_bytes = 64 << 20;
    /// limits.intake_bytes = 64 << 20;
    /// let mut gossip = GossipConfig::default();
    /// gossip.max_connections = 64;
    /// gossip.queue_bytes = 4 << 20;
    /// let hub = Hub::builder().limits(limits).gossip(gossip);
    /// assert!(hub.memory_ceiling() < 3 << 30);
    /// assert_eq!(Hub::builder().memory_ceiling() >> 30, 292);
    /// ```
    pub fn memory_ceiling(&self) -> u64 {
        ceiling::of(&self.config.clone().sound())
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

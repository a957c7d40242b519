//! What a hub and a spoke count: groups of [`iroh_metrics`], never labelled by endpoint.
//!
//! [`Hub::metrics`](crate::Hub::metrics) and [`Spoke::metrics`](crate::Spoke::metrics) are each a
//! [`MetricsGroupSet`](iroh_metrics::MetricsGroupSet) like that of an iroh endpoint, to be read one by one or
//! registered as a whole:
//!
//! ```
//! use iroh_hub::{Hub, endpoint};
//! use iroh_metrics::{MetricsSource, Registry};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let hub = Hub::builder().spawn(endpoint::bind_local().await?)?;
//! assert_eq!(hub.metrics().events.events_broadcast.get(), 0);
//!
//! let mut registry = Registry::default();
//! registry.register_all(hub.metrics());
//! // The endpoint's own, with names that say whose they are.
//! registry
//!     .sub_registry_with_prefix("iroh")
//!     .register_all(hub.endpoint().metrics());
//! let text = registry.encode_openmetrics_to_string()?;
//! assert!(text.contains("iroh_hub_events_broadcast_total 0"));
//! assert!(text.ends_with("# EOF\n"));
//! # hub.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! A process that has several hubs or spokes tells them apart by labels of its own
//! ([`Registry::sub_registry_with_label`](iroh_metrics::Registry::sub_registry_with_label)).
//!
#![doc = include_str!("../docs/metrics.md")]

pub(crate) mod events;
mod hub;
mod spoke;
#[cfg(test)]
mod table;

pub use self::{
    hub::{
        AdmissionMetrics, ConnectionMetrics, DirectMetrics, EventMetrics, HealthMetrics,
        HubMetrics, LogMetrics, RepairMetrics, RosterMetrics, TopicMetrics,
    },
    spoke::{LinkMetrics, ReceptionMetrics, SpokeMetrics},
};
pub use crate::gossip::GossipMetrics;

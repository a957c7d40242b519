//! One hub, many spokes, over iroh.
#[cfg_attr(not(test), allow(dead_code, reason = "wired up by hub and spoke"))]
mod gossip;
pub mod position;

pub use gossip::{GOSSIP_ALPN, GossipConfig, GossipMetrics};

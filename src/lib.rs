//! One hub, many spokes, over iroh.
#[cfg_attr(not(test), allow(dead_code, reason = "wired up by hub and spoke"))]
mod inbox;
mod instant;
pub mod log;
pub mod position;
mod via;

pub use via::Via;

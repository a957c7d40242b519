//! One hub, many spokes, over iroh.
#[cfg_attr(
    not(test),
    allow(dead_code, unused_imports, reason = "wired up by hub and spoke")
)]
mod fan_out;
#[cfg_attr(not(test), allow(dead_code, reason = "wired up by hub and spoke"))]
mod inbox;
mod instant;
pub mod log;
pub mod position;
mod via;

pub use fan_out::{AutoFanOut, FanOut, ParseFanOutError, Path};
pub use via::Via;

//! One hub, many spokes, over iroh.
pub mod log;
pub mod position;

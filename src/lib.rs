//! One hub, many spokes, over iroh.
pub mod position;

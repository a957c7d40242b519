//! One hub, many spokes, over iroh.
mod close;
mod event;
mod pattern;
mod position;
mod seal;
mod wire;

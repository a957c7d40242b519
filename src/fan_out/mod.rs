//! Which spokes are served by which path, and when to switch: the hub's half of the contract.
//!
//! The [`Planner`] hears who is there, who is on the tree and how much is broadcast, and decides when there is
//! a topic, who is told to join it and whose direct cursor rests. It knows no socket, no task and no
//! clock: what happened and the time come in, [`Decision`]s come out of [`Planner::poll`].
//!
//! Not for: moving cursors (the hub does what is decided), the shape of the tree (that is gossip's), or
//! finding out that a topic has stopped delivering (the supervisor says so).

mod planner;
mod sample;
mod strategy;
#[cfg(test)]
mod tests;
mod traffic;

pub use self::strategy::{AutoFanOut, FanOut, ParseFanOutError, Path};
pub(crate) use self::{
    planner::{Decision, Planner, PlannerConfig},
    traffic::Traffic,
};

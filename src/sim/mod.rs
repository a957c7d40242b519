//! A deterministic simulator of the shipped core: virtual time, one seed, one thread, one queue of events.
//!
//! It runs what ships: the gossip core and its queues, the spoke's reception and inbox, the hub's planner, framer, desks
//! and log, and the real bytes of every frame. What is simulated is what lies between the nodes (`net`), and what the tasks
//! around the core do: they read, write, dial and wait, and decide nothing. The same [`Options`] give the same [`Report`], byte for byte.
//!
//! What is simpler than the world:
//! - Frames are sealed and opened with the real keys, but a frame that several nodes open is verified and decrypted once
//!   (`gate`). The proof of membership on a new gossip connection goes by which keys its sides know; connections that stand
//!   are not asked to prove newer ones. Keys change on a revocation only, and nobody is admitted again.
//! - Nodes take no time to think, and listeners take whatever there is. A spoke that [stalls](Stall) does nothing at all.
//! - A message that is lost on a gossip connection is lost for good, which QUIC would not do; a connection ends when one side
//!   closes it or when it was idle for 15 s.
//!
//! What spokes let out is judged by an `oracle` that knows what was broadcast and nothing else.

mod clock;
mod ctx;
mod faults;
mod gate;
mod hub;
mod mesh;
mod net;
mod options;
mod oracle;
mod report;
mod resume;
mod spoke;
mod tally;
mod wires;
mod world;

pub use self::{
    options::{Breakage, Churn, Links, Options, Partition, Restart, Revocation, Stall},
    oracle::Verdict,
    report::{Report, Spread},
    resume::{Counts, ResumeReport, resume_cases},
    tally::Traffic,
    world::Progress,
};

/// Runs a simulation to its end. `progress` is told now and then how far it is.
pub fn run(options: Options, progress: impl FnMut(Progress)) -> Report {
    world::World::new(options).run(progress)
}

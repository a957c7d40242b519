//! What a broadcast and a spoke cost the hub, measured with the hub alone in its process.
//!
//! The bench starts itself again as two processes for each alternative: one is the hub, one is all of its spokes
//! (endpoints of their own, on loopback). So CPU time, memory and bytes of the hub's process are the hub's alone.
//!
//! - `broadcast/SPOKES/SIZE`: CPU time (user and system) and bytes sent by the hub for a broadcast, in a burst and at
//!   50 a second. The meshes of all alternatives are up at the same time, and take turns, in an order that is reversed
//!   each round. It proves that gossip spares the hub, and that direct costs what the streams under it do.
//! - `idle/SPOKES`: memory of the hub for each spoke that is connected and idle, and CPU time for each spoke and
//!   second. The meshes are started afresh for each round, and their CPU time is taken over the same seconds, after every
//!   spoke has said a word in its turn, so that keep-alives are spread out alike. It proves that the library adds little to
//!   a connection.
//!
//! - `spoke/SPOKES/SIZE`: the other side of it: memory of one spoke on the topic, alone in its process, its whole program
//!   included, at 10 MB/s in events of 1 KiB and of 16 KiB, the most that it held. It proves that what a spoke keeps for others is bounded.
//!
//! `direct` and `gossip` are this crate. `bare_streams` (iroh and nothing else: encoded once, a writer task per spoke,
//! writes coalesced) has the QUIC settings of the hub's connections, its windows and keep-alive; `bare_gossip` is
//! `iroh_gossip::net` and nothing else, to 100 spokes at most. Ratios are of the two that ran in the same round. What
//! was lost or came out of order is printed. A round in which the hub gave its topic up, or served a spoke around it
//! (as it does when the spokes get too little CPU time), is left out, and that is printed.
//!
//! `cargo bench --bench hub_cost` takes half an hour or more on two busy cores; a filter such as `-- broadcast/300` runs
//! a part. `cargo test --benches` sends a few events, to show that
//! all of this works.

#[path = "../common/mod.rs"]
mod common;

// The program's `compare` has processes like these.
#[allow(dead_code, unused_imports)]
#[path = "../../src/program/compare/usage.rs"]
mod usage;
#[allow(dead_code)]
#[path = "../../src/program/compare/worker.rs"]
mod worker;

mod broadcast;
mod hub_side;
mod idle;
mod pair;
mod plan;
mod protocol;
mod spoke;
mod spokes_side;

use std::future::Future;

use common::{Result, args::runtime, results::Results};
use plan::Plan;

/// What the children are started with.
const HUB_CHILD: &str = "hub-cost-hub";
const SPOKES_CHILD: &str = "hub-cost-spokes";

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some(HUB_CHILD) => block_on(hub_side::run()),
        Some(SPOKES_CHILD) => block_on(spokes_side::run()),
        _ => block_on(all(&Plan::from_args())),
    }
}

fn block_on(run: impl Future<Output = Result<()>>) -> Result<()> {
    runtime()?.block_on(run)
}

async fn all(plan: &Plan) -> Result<()> {
    let mut results = Results::new("hub_cost", plan.smoke);
    broadcast::measure(plan, &mut results).await?;
    idle::measure(plan, &mut results).await?;
    spoke::measure(plan, &mut results).await
}

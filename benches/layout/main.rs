//! How spokes and their events are best laid out on QUIC.
//!
//! It answers the third of the questions that the specification (`seeds/`, "R&D Needed") left open: "Stream vs.
//! connection per spoke: one bidirectional stream per spoke on a single connection, or one connection per spoke?",
//! and whether datagrams pay for small events. `benches/README.md` has the figures of the last run. In short: with streams on one
//! connection, the spokes of one process take less memory and CPU time the more they are; they share the connection's windows, and its end, so
//! spokes that are to be independent of each other have a connection each. Datagrams are a little cheaper, by less than what it takes
//! to put them in order and to send again what is lost.
//!
//! `sharing`: 1, 10 and 100 spokes of one process (one endpoint) and a hub, both in this process, on loopback and two
//! workers.
//!
//! - `bare_shared`, `bare_own`: iroh and nothing else; a stream each on one connection, and a connection each.
//! - `plain_shared`, `plain_own`: the same to a [`Hub`](iroh_hub::Hub) that serves them directly, by `alkpubsub/1`,
//!   where one connection may have many spokes.
//! - `native_own`: [`Spoke`](iroh_hub::Spoke)s. Each dials for itself, so they share their endpoint and no
//!   connection.
//!
//! For each: the time until the hub has all of them (`connect`), deliveries a second of a burst of 1 KiB events
//! (`burst`) with what the process spends on each (`burst_cpu`), the time until the last has one event (`lone`), and
//! what the process grows by per spoke, hub and spoke together (`memory`, from `/proc`, in a process of its own for
//! each figure, hence on Linux only). The hub's limit on streams of one connection (`max_streams`, 64 by default) is
//! raised for 100, and those on handshakes of one address.
//!
//! `datagrams`: a bare hub that sends events of 64 B and 1 KiB to 10 and 100 bare spokes with an endpoint each, over
//! a stream (`streams`), or in datagrams (`datagrams`), which may be lost: time until the last has a burst
//! (`datagrams_burst`), a lone event (`datagrams_lone`), and the median event of those that are paced at 50 a second
//! (`datagrams_paced`), what the process spends on each delivery in bursts and paced (`..._cpu`), and the deliveries
//! lost (`..._lost`).
//!
//! Everything is measured in turns within one run, A B C, then C B A.
//!
//! `cargo bench --bench layout` takes about four minutes; `-- sharing`, `-- datagrams/paced` or `--
//! datagrams/burst/100` run a part. `cargo test --benches` sends a few events, to show that all of this works.

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, unused_imports)]
#[path = "../../src/program/compare/usage.rs"]
mod usage;

mod bare_datagrams;
mod bare_hub;
mod client;
mod datagrams;
mod memory;
mod process;
mod sharing;

use common::{
    Result,
    args::{Filter, is_smoke, runtime},
    results::Results,
};

/// How much to measure.
struct Plan {
    /// Spokes of one process, and events of a burst to them.
    sharing: &'static [(usize, usize)],
    /// Spokes to send datagrams to.
    datagrams: &'static [usize],
    /// Events of a burst to them.
    burst: usize,
    /// Events of a paced round.
    paced: usize,
    /// Rounds of what takes milliseconds.
    rounds: usize,
    /// Rounds of what takes a second or more.
    few_rounds: usize,
}

const FULL: Plan = Plan {
    sharing: &[(1, 2000), (10, 1000), (100, 256)],
    datagrams: &[10, 100],
    burst: 256,
    paced: 75,
    rounds: 15,
    few_rounds: 7,
};
const SMOKE: Plan = Plan {
    sharing: &[(3, 16)],
    datagrams: &[3],
    burst: 16,
    paced: 3,
    rounds: 1,
    few_rounds: 1,
};

fn main() -> Result<()> {
    if let Some(asked) = memory::Asked::from_args() {
        return runtime()?.block_on(asked.answer());
    }
    let smoke = is_smoke();
    let plan = if smoke { SMOKE } else { FULL };
    let filter = Filter::from_args();
    let mut results = Results::new("layout", smoke);
    runtime()?.block_on(async {
        sharing::run(&plan, &filter, &mut results).await?;
        datagrams::run(&plan, &filter, &mut results).await
    })
}

/// The indexes of so many alternatives, forwards and backwards in turn.
fn order(round: usize, alternatives: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..alternatives).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

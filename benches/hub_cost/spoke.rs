//! What a busy topic costs one of its spokes.

use std::time::Duration;

use super::{
    HUB_CHILD, SPOKES_CHILD,
    pair::{STEP_LIMIT, ask},
    plan::Plan,
    protocol::{Alternative, HubCommand, HubReply, Outcome, Round, SpokesCommand, SpokesReply},
    worker::Worker,
};
use crate::common::{
    Result,
    results::{Results, Row, Spread},
};

const SIZE: usize = 16 * 1024;
const BYTES_PER_S: usize = 10_000_000;
/// A part of the whole time, after which all have to have everything.
const SECOND: Round = Round {
    events: BYTES_PER_S / SIZE,
    size: SIZE,
    gap: Some(Duration::from_micros(
        (SIZE * 1_000_000 / BYTES_PER_S) as u64,
    )),
};

/// Runs the cell if it is asked for.
pub(crate) async fn measure(plan: &Plan, results: &mut Results) -> Result<()> {
    let (spokes, seconds) = plan.spoke;
    if !plan.has(&format!("spoke/{spokes}")) {
        return Ok(());
    }
    let (mut peaks, mut faults) = (Vec::new(), Outcome::default());
    for _ in 0..plan.spoke_rounds {
        peaks.extend(round(spokes, seconds, &mut faults).await?);
    }
    println!("hub_cost spoke, {spokes} spokes: {faults}");
    let row = Row {
        case: "spoke_memory_at_10_MB_per_s",
        spokes,
        size: Some(SIZE),
    };
    let mib = peaks.iter().map(|peak| *peak as f64 / f64::from(1 << 20));
    results.measured(row, "gossip", "MiB", Spread::of(mib));
    Ok(())
}

/// The most that the process of one spoke held, where the system tells. The other spokes are in another process.
async fn round(spokes: usize, seconds: usize, faults: &mut Outcome) -> Result<Option<u64>> {
    let alternative = Alternative::Gossip;
    let mut hub = Worker::spawn("hub", HUB_CHILD)?;
    let start = HubCommand::Start {
        alternative,
        spokes,
        max_payload: SIZE,
    };
    let addr = ask!(hub, start, HubReply::Started(addr) => addr);
    let (mut one, mut others) = (
        Worker::spawn("spokes", SPOKES_CHILD)?,
        Worker::spawn("spokes", SPOKES_CHILD)?,
    );
    for (worker, spokes) in [(&mut one, 1), (&mut others, spokes - 1)] {
        let connect = SpokesCommand::Connect {
            alternative,
            hub: addr.clone(),
            spokes,
            max_payload: SIZE,
        };
        ask!(worker, connect, SpokesReply::Connected => ());
    }
    ask!(hub, HubCommand::AwaitReady, HubReply::Ready => ());
    for _ in 0..seconds {
        for worker in [&mut one, &mut others] {
            ask!(worker, SpokesCommand::Expect(SECOND), SpokesReply::Expecting => ());
        }
        ask!(hub, HubCommand::Publish(SECOND), HubReply::Published => ());
        for worker in [&mut one, &mut others] {
            let report = SpokesCommand::Report;
            faults.add(ask!(worker, report, SpokesReply::Outcome(outcome) => outcome));
        }
    }
    let account = ask!(one, SpokesCommand::Account, SpokesReply::Account(account) => account);
    Ok(account.usage.peak_bytes)
}

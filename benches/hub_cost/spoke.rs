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

const SIZES: [usize; 2] = [1024, 16 * 1024];
const BYTES_PER_S: usize = 10_000_000;

/// A part of the whole time, after which all have to have everything.
fn second(size: usize) -> Round {
    let events = BYTES_PER_S / size;
    Round {
        events,
        size,
        gap: Some(Duration::from_secs(1) / events as u32),
    }
}

/// Runs the cells that are asked for.
pub(crate) async fn measure(plan: &Plan, results: &mut Results) -> Result<()> {
    let (spokes, seconds) = plan.spoke;
    for size in SIZES {
        if !plan.has(&format!("spoke/{spokes}/{size}")) {
            continue;
        }
        let (mut peaks, mut faults, mut fell_back) = (Vec::new(), Outcome::default(), 0);
        for _ in 0..plan.spoke_rounds {
            let used = round(spokes, seconds, second(size), &mut faults).await?;
            peaks.extend(used.peak_bytes);
            fell_back += used.fallbacks;
        }
        println!(
            "hub_cost spoke, {spokes} spokes, {size} B: {faults}; fell back from the topic {fell_back} times"
        );
        let row = Row {
            case: "spoke_memory_at_10_MB_per_s",
            spokes,
            size: Some(size),
        };
        let mib = peaks.iter().map(|peak| *peak as f64 / f64::from(1 << 20));
        results.measured(row, "gossip", "MiB", Spread::of(mib));
    }
    Ok(())
}

struct Used {
    /// The most that the process of one spoke held, where the system tells. The other spokes are in another process.
    peak_bytes: Option<u64>,
    /// Times that the topic was left, which would make this what the topic does not cost.
    fallbacks: u64,
}

async fn round(spokes: usize, seconds: usize, second: Round, faults: &mut Outcome) -> Result<Used> {
    let alternative = Alternative::Gossip;
    let mut hub = Worker::spawn("hub", HUB_CHILD)?;
    let start = HubCommand::Start {
        alternative,
        spokes,
        max_payload: second.size,
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
            max_payload: second.size,
        };
        ask!(worker, connect, SpokesReply::Connected => ());
    }
    ask!(hub, HubCommand::AwaitReady, HubReply::Ready => ());
    for _ in 0..seconds {
        for worker in [&mut one, &mut others] {
            ask!(worker, SpokesCommand::Expect(second), SpokesReply::Expecting => ());
        }
        ask!(hub, HubCommand::Publish(second), HubReply::Published => ());
        for worker in [&mut one, &mut others] {
            let report = SpokesCommand::Report;
            faults.add(ask!(worker, report, SpokesReply::Outcome(outcome) => outcome));
        }
    }
    let account = ask!(one, SpokesCommand::Account, SpokesReply::Account(account) => account);
    let hub = ask!(hub, HubCommand::Account, HubReply::Account(account) => account);
    Ok(Used {
        peak_bytes: account.usage.peak_bytes,
        fallbacks: hub.fallbacks,
    })
}

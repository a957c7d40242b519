//! What the two child processes do: they answer the parent's commands with a hub, or with spokes.
//!
//! How a hub and spokes are made and used is in [`sides`](super::sides).

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep_until};

use super::{
    input::Bodies,
    protocol::{HubCommand, HubReply, SpokesCommand, SpokesReply},
    sides::{HubSide, SpokesSide},
    tally::Tally,
    usage::{Usage, clock_ns},
    worker::serve,
};

/// A command came before the one that it builds on.
const TOO_EARLY: &str = "this process has not been started yet";

/// The hub's process.
pub(crate) async fn hub_child() -> Result<()> {
    let mut started: Option<(HubSide, Bodies)> = None;
    serve(async |command: HubCommand| {
        let last = command == HubCommand::Stop;
        let answer = hub(&mut started, command).await;
        (answer.map_err(|error| format!("{error:#}")), last)
    })
    .await
}

async fn hub(started: &mut Option<(HubSide, Bodies)>, command: HubCommand) -> Result<HubReply> {
    match command {
        HubCommand::Start {
            strategy,
            uplink,
            input,
        } => {
            let side = HubSide::start(strategy, uplink).await?;
            let ticket = side.ticket();
            *started = Some((side, input.load()?));
            Ok(HubReply::Ticket(ticket))
        }
        HubCommand::AwaitReady { spokes, limit } => {
            let (side, _) = started.as_ref().context(TOO_EARLY)?;
            side.ready(spokes, limit).await?;
            Ok(HubReply::Ready)
        }
        HubCommand::Publish { round, events, gap } => {
            let (side, bodies) = started.as_ref().context(TOO_EARLY)?;
            publish(side, bodies, round, events, gap).await?;
            Ok(HubReply::Published)
        }
        HubCommand::Usage => {
            let sent = started.as_ref().map_or(0, |(side, _)| side.bytes_sent());
            Ok(HubReply::Usage(Usage::now(sent)))
        }
        HubCommand::Stop => {
            if let Some((side, _)) = started.take() {
                side.stop().await;
            }
            Ok(HubReply::Stopped)
        }
    }
}

/// Sends the events of a round. A gap is kept from start to start, so that a slow hub is not spared.
async fn publish(
    side: &HubSide,
    bodies: &Bodies,
    round: u32,
    events: u64,
    gap: Option<Duration>,
) -> Result<()> {
    let mut due = Instant::now();
    for index in 0..events {
        if let Some(gap) = gap {
            sleep_until(due).await;
            due += gap;
        }
        side.broadcast(&bodies.probe(round, index, clock_ns()))
            .await?;
    }
    Ok(())
}

/// The spokes' process.
pub(crate) async fn spokes_child() -> Result<()> {
    let tally = Arc::new(Tally::default());
    let mut connected: Option<SpokesSide> = None;
    serve(async |command: SpokesCommand| {
        let last = command == SpokesCommand::Stop;
        let answer = spokes(&tally, &mut connected, command).await;
        (answer.map_err(|error| format!("{error:#}")), last)
    })
    .await
}

async fn spokes(
    tally: &Arc<Tally>,
    connected: &mut Option<SpokesSide>,
    command: SpokesCommand,
) -> Result<SpokesReply> {
    match command {
        SpokesCommand::Connect { ticket, spokes } => {
            *connected = Some(SpokesSide::connect(&ticket, spokes, tally).await?);
            Ok(SpokesReply::Connected)
        }
        SpokesCommand::Expect { round, events } => {
            let side = connected.as_ref().context(TOO_EARLY)?;
            tally.expect(round, side.count(), events)?;
            Ok(SpokesReply::Expecting)
        }
        SpokesCommand::Report { patience } => {
            Ok(SpokesReply::Outcome(tally.outcome(patience).await))
        }
        SpokesCommand::Usage => {
            let sent = connected.as_ref().map_or(0, SpokesSide::bytes_sent);
            Ok(SpokesReply::Usage(Usage::now(sent)))
        }
        SpokesCommand::Stop => {
            if let Some(side) = connected.take() {
                side.stop().await;
            }
            Ok(SpokesReply::Stopped)
        }
    }
}

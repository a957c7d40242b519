//! The command `hub`.

use std::{io, path::Path, time::Duration};

use anyhow::Context;
use iroh::Endpoint;
use iroh_hub::{
    EventTarget, FanOut, Hub, HubBuilder, HubLimits, Incoming, ListenOptions, Listener, OnFull,
    SpokeChange, SpokeWatch,
};
use tokio::time::timeout;

use super::{
    admitted::Admitted,
    args::HubArgs,
    exit::{Exit, Failure},
    feed::feed,
    gather::gather,
    input,
    network::{self, Reach},
    output::Printer,
    receipts::Receipts,
    request,
    say::say,
    scrape,
    sent::Sent,
    stop::Stop,
    ticket,
};

/// How long a hub that is not local waits for a relay before it gives out its ticket.
const ONLINE_LIMIT: Duration = Duration::from_secs(10);
/// How long what spokes sent may take to get through stdout when the hub ends.
const PRINT_LIMIT: Duration = Duration::from_secs(5);
/// How long a stdout that takes nothing may hold back the spokes that send.
const HOLD: Duration = Duration::from_secs(30);

pub(super) async fn run(args: HubArgs, stop: Stop) -> Result<Exit, Failure> {
    let admitted = Admitted::read(&args.admission).await?;
    let metrics = scrape::bind(args.network.metrics).await?;
    let endpoint = network::bind(&args.network, Reach::from(args.bind)).await?;
    let receipts = match &args.receipts {
        Some(path) => Some(Receipts::create(path).await?),
        None => None,
    };
    if !args.network.local {
        tokio::select! {
            online = timeout(ONLINE_LIMIT, endpoint.online()) => if online.is_err() {
                say(format_args!("no relay is reached; the ticket leads to this network only"));
            },
            () = stop.requested() => {}
        }
    }
    let mut limits = HubLimits::default();
    limits.drain_timeout = args.drain_timeout;
    let line_limit = request::line_limit(limits.max_event_bytes);
    let builder = Hub::builder()
        .fan_out(args.fan_out())
        .admission(admitted.admission())
        .limits(limits);
    let hub = start(builder, &args, endpoint).await?;
    let metrics = scrape::serve(metrics, hub.endpoint(), |all| {
        all.register_all(hub.metrics())
    })?;
    let on_full = OnFull::Hold { at_most: HOLD };
    let heard = hub.listen_with("*".into(), ListenOptions::default().on_full(on_full));
    let mut printing = tokio::spawn(print(heard));
    let watching = tokio::spawn(tell_losses(hub.watch_spokes()));
    let following = tokio::spawn(admitted.follow(hub.clone()));
    #[cfg(unix)]
    let asked = tokio::spawn(tell_health(health_asked()?, hub.clone()));

    let sent = Sent::new();
    let mut skipped = 0;
    let served = async {
        announce(&hub, args.ticket.as_deref())?;
        let on_tree = matches!(args.fan_out, FanOut::Gossip);
        gather(&hub, args.wait_for, on_tree).await;
        let lines = input::stdin(line_limit).await;
        feed(
            &hub,
            lines,
            args.input,
            receipts.as_ref(),
            &sent.watcher(),
            &mut skipped,
        )
        .await?;
        if !args.exit_on_eof && !receipts_failed(receipts.as_ref()) {
            stop.requested().await;
        }
        anyhow::Ok(())
    };
    let served = tokio::select! {
        served = served => served,
        failed = hub.log_failed() => Err(failed.into()),
        () = stop.requested() => Ok(()),
    };
    if stop.is_requested() {
        say(format_args!("ending; interrupt again to wait for nobody"));
    }

    let drained = hub.shutdown_within(args.drain_timeout).await;
    let tip = hub.tip();
    watching.abort();
    following.abort();
    #[cfg(unix)]
    asked.abort();
    scrape::end(metrics).await;
    if timeout(PRINT_LIMIT, &mut printing).await.is_err() {
        say(format_args!(
            "stdout takes nothing; some events from spokes are not printed"
        ));
    }
    let written = match receipts {
        Some(receipts) => receipts.finish().await,
        None => Ok(()),
    };
    for spoke in &drained.behind {
        let id = spoke.id;
        if spoke.acked < tip.offset {
            say(format_args!(
                "spoke {id} did not get everything: it has {} of {} broadcasts",
                spoke.acked, tip.offset
            ));
        } else {
            say(format_args!(
                "spoke {id} did not get everything, or did not confirm it: the last of it may be lost"
            ));
        }
    }
    let lost = sent.finish().await;
    served?;
    written?;
    Ok(if !drained.behind.is_empty() || lost > 0 {
        Exit::Behind
    } else if skipped > 0 {
        say(format_args!("{skipped} lines of stdin were skipped"));
        Exit::LinesSkipped
    } else {
        Exit::Ok
    })
}

/// Reads the log, if there is one, which takes a while.
async fn start(mut builder: HubBuilder, args: &HubArgs, endpoint: Endpoint) -> anyhow::Result<Hub> {
    if let Some(path) = &args.log {
        builder = builder.durable_log(path);
    }
    let started = tokio::task::spawn_blocking(move || builder.spawn(endpoint)).await;
    started
        .context("the hub does not start")?
        .context("the hub does not start")
}

fn receipts_failed(receipts: Option<&Receipts>) -> bool {
    receipts.is_some_and(Receipts::failed)
}

fn announce(hub: &Hub, file: Option<&Path>) -> anyhow::Result<()> {
    let ticket = hub.ticket().to_string();
    if let Some(path) = file {
        ticket::write(path, &ticket).with_context(|| {
            format!(
                "the ticket cannot be written to {}; give another place for it",
                path.display()
            )
        })?;
    }
    say(format_args!("ticket: {ticket}"));
    Ok(())
}

/// Prints what spokes send.
async fn print(mut heard: Listener) {
    let mut printer = Printer::new();
    loop {
        match printer.next(&mut heard).await {
            Ok(Some(Incoming::Event(event))) => printer.sent(&event),
            Ok(Some(Incoming::Lagged(lagged))) => {
                printer.lagged(lagged.events);
                say(format_args!(
                    "stdout was too slow; {} events from spokes are not printed",
                    lagged.events
                ));
            }
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => return tell_closed(&error),
        }
    }
    if let Err(error) = printer.flush().await {
        tell_closed(&error);
    }
}

/// The hub goes on broadcasting.
fn tell_closed(error: &io::Error) {
    say(format_args!(
        "stdout takes no more, so what spokes send is not printed from now on: {error}"
    ));
}

#[cfg(unix)]
fn health_asked() -> anyhow::Result<tokio::signal::unix::Signal> {
    use tokio::signal::unix::{SignalKind, signal};
    signal(SignalKind::user_defined1()).context("the signal SIGUSR1 cannot be caught")
}

/// Says how the hub does whenever it is asked.
#[cfg(unix)]
async fn tell_health(mut asked: tokio::signal::unix::Signal, hub: Hub) {
    while asked.recv().await.is_some() {
        match serde_json::to_string(&hub.health()) {
            Ok(health) => say(format_args!("{health}")),
            Err(error) => say(format_args!("the hub's health cannot be written: {error}")),
        }
    }
}

/// Says which spokes are lost.
async fn tell_losses(mut watch: SpokeWatch) {
    while let Some(change) = watch.next().await {
        match change {
            Ok(SpokeChange::Away { id, closed }) => {
                say(format_args!("spoke {id} is away: {closed}"));
            }
            Ok(SpokeChange::Returned { id }) => say(format_args!("spoke {id} is back")),
            Ok(SpokeChange::Left { id, closed }) if !closed.is_goodbye() => {
                say(format_args!("spoke {id} is lost: {closed}"));
            }
            _ => {}
        }
    }
}

//! The command `spoke`.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use iroh::Endpoint;
use iroh_hub::{
    CloseCode, Closed, ConnectError, EventTarget, From, ListenOptions, Listener, OnFull, Pattern,
    Protocol, Reconnect, SendReceipt, Spoke, SpokeBuilder, SpokeLimits, SpokeSendError,
    SpokeStatus,
};
use iroh_tickets::endpoint::EndpointTicket;
use tokio::{net::TcpListener, runtime::Handle, time::timeout};

use super::{
    args::{GossipMode, InputFormat, SpokeArgs, Start},
    exit::{Exit, Failure},
    input,
    kept::{self, Ended},
    network::{self, Reach},
    output::Printer,
    position::PositionFile,
    request::{Request, line_limit},
    say::say,
    scrape,
    sent::{Sent, Watcher},
    stop::Stop,
    telling::Telling,
};

/// How long a stdout that takes nothing holds the hub back before events are given up: long, since
/// who pages through the output is no reason to lose any. With a position to keep, none are given up.
const HOLD: Duration = Duration::from_secs(3600);
const HOLD_KEPT: Duration = Duration::from_secs(365 * 86_400);

/// How long stdout may take to take what is left. Whoever stopped us may also have stopped reading.
const LAST_LINES: Duration = Duration::from_secs(5);

pub(super) async fn run(args: SpokeArgs, stop: Stop) -> Result<Exit, Failure> {
    if args.compat && args.from == Start::Earliest {
        return Err(Failure::usage(
            "--compat begins with the next event; leave out --from earliest",
        ));
    }
    let ticket: EndpointTicket = args.ticket.trim().parse().map_err(|_| {
        Failure::usage(
            "this is not a hub's ticket; copy the whole line that the hub printed after \"ticket:\"",
        )
    })?;
    let hub = ticket.endpoint_addr().id;
    let position = match &args.position {
        Some(path) => Some(PositionFile::open(path, hub)?),
        None => None,
    };
    let metrics = scrape::bind(args.network.metrics).await?;
    let endpoint = network::bind(&args.network, reach(&args)?).await?;
    say(format_args!("this spoke is {}", endpoint.id()));
    let builder = builder(&args, position.as_ref());
    let connected = if args.retry || args.position.is_some() {
        Ok(builder.spawn(endpoint.clone(), ticket))
    } else {
        tokio::select! {
            connected = builder.connect(endpoint.clone(), ticket) => connected.map_err(not_connected),
            () = stop.requested() => return Ok(Exit::Ok),
        }
    };
    let ended = match connected {
        Ok(spoke) => serve_with_metrics(&spoke, &endpoint, metrics, &args, position, &stop).await,
        Err(failure) => Err(failure),
    };
    network::close(&endpoint).await;
    ended
}

fn reach(args: &SpokeArgs) -> Result<Reach, Failure> {
    match (args.gossip, args.network.local) {
        (GossipMode::RelayOnly, true) => Err(Failure::usage(
            "--gossip relay-only goes by a relay, and --local has none; leave one of both out",
        )),
        (GossipMode::RelayOnly, false) => Ok(Reach::RelayOnly),
        _ => Ok(Reach::Any),
    }
}

fn builder(args: &SpokeArgs, position: Option<&PositionFile>) -> SpokeBuilder {
    let from = match position.and_then(PositionFile::position) {
        Some(position) => From::Position(position),
        None => args.from.into(),
    };
    let mut reconnect = match args.no_reconnect {
        true => Reconnect::never(),
        false => Reconnect::default(),
    };
    reconnect.after_goodbye = args.stay;
    Spoke::builder()
        .protocol(if args.compat {
            Protocol::Compat
        } else {
            Protocol::Native
        })
        .gossip(args.gossip.into())
        .from(from)
        .reconnect(reconnect)
}

fn not_connected(error: ConnectError) -> Failure {
    let exit = match error {
        ConnectError::Refused { .. } => Exit::Refused,
        _ => Exit::NotConnected,
    };
    Failure::new(exit, error)
}

async fn serve_with_metrics(
    spoke: &Spoke,
    endpoint: &Endpoint,
    metrics: Option<TcpListener>,
    args: &SpokeArgs,
    position: Option<PositionFile>,
    stop: &Stop,
) -> Result<Exit, Failure> {
    let metrics = scrape::serve(metrics, endpoint, |all| all.register_all(spoke.metrics()))?;
    let ended = serve(spoke, args, position, stop).await;
    scrape::end(metrics).await;
    ended
}

async fn serve(
    spoke: &Spoke,
    args: &SpokeArgs,
    position: Option<PositionFile>,
    stop: &Stop,
) -> Result<Exit, Failure> {
    let skipped = Arc::<AtomicU64>::default();
    let sent = Sent::new();
    let sending = tokio::spawn(send_lines(
        spoke.clone(),
        args.input,
        skipped.clone(),
        sent.watcher(),
    ));
    let telling = Telling::new(args.output, args.filter.clone(), args.count);
    let ended = match position {
        Some(position) => print_kept(spoke, telling, position, stop).await,
        None => {
            let heard = listen(spoke, args.filter.clone(), HOLD);
            print(heard, telling, stop).await
        }
    };
    sending.abort();
    let _ = sending.await;
    let closed = match &ended {
        Ended::All => Some(spoke.closed().await),
        Ended::Enough | Ended::Stdout(_) | Ended::Position(_) => None,
    };
    spoke.shutdown().await;
    let lost = sent.finish().await;
    match ended {
        Ended::All | Ended::Enough => {}
        // Whoever read our output has enough of it.
        Ended::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Ok),
        Ended::Stdout(error) => return Err(anyhow!("stdout cannot be written: {error}").into()),
        Ended::Position(error) => {
            return Err(anyhow!("the position file cannot be written: {error}").into());
        }
    }
    if let Some(closed) = closed {
        end_of(&closed)?;
    }
    let skipped = skipped.load(Ordering::Acquire);
    if skipped > 0 {
        say(format_args!("{skipped} lines of stdin were skipped"));
    }
    Ok(match (skipped, lost) {
        (0, 0) => Exit::Ok,
        (0, _) => Exit::Behind,
        (_, _) => Exit::LinesSkipped,
    })
}

fn listen(spoke: &Spoke, filter: Pattern, hold: Duration) -> Listener {
    let options = ListenOptions::default()
        .on_full(OnFull::Hold { at_most: hold })
        .statuses(true);
    spoke.listen_with(filter, options)
}

/// What the end of the spoke means.
fn end_of(closed: &Closed) -> Result<(), Failure> {
    match closed {
        closed if closed.is_goodbye() => Ok(()),
        Closed::ByPeer {
            code: CloseCode::Refused,
            reason,
        } => Err(Failure::new(
            Exit::Refused,
            anyhow!("the hub refused this spoke: {reason}"),
        )),
        closed => Err(Failure::new(
            Exit::HubGone,
            anyhow!("the hub is gone without a goodbye ({closed}); connect again once it runs"),
        )),
    }
}

/// Prints what is heard, many lines at a time where there are many.
async fn print(mut heard: Listener, mut telling: Telling, stop: &Stop) -> Ended {
    let mut printer = Printer::new();
    let printing = async {
        loop {
            match printer.next(&mut heard).await {
                Ok(Some(item)) if telling.tell(&item, printer.lines()) => return Ended::Enough,
                Ok(Some(_)) => {}
                Ok(None) => return Ended::All,
                Err(error) => return Ended::Stdout(error),
            }
        }
    };
    let ended = tokio::select! {
        ended = printing => ended,
        () = stop.requested() => Ended::Enough,
    };
    if let Ended::Stdout(error) = ended {
        return Ended::Stdout(error);
    }
    match timeout(LAST_LINES, printer.flush()).await {
        Ok(Ok(())) => ended,
        Ok(Err(error)) => Ended::Stdout(error),
        Err(_) => Ended::Stdout(io::ErrorKind::TimedOut.into()),
    }
}

/// Prints what is heard, and keeps the position behind each.
async fn print_kept(spoke: &Spoke, telling: Telling, position: PositionFile, stop: &Stop) -> Ended {
    // All events, though not all are printed: the position moves with every one.
    let heard = listen(spoke, Pattern::any(), HOLD_KEPT);
    let printing = tokio::task::spawn_blocking({
        let stop = stop.clone();
        move || kept::print(heard, position, telling, &stop, &Handle::current())
    });
    tokio::pin!(printing);
    let ended = tokio::select! {
        ended = &mut printing => Some(ended),
        // It sees that for itself, unless it waits for a stdout that takes nothing.
        () = stop.requested() => timeout(LAST_LINES, &mut printing).await.ok(),
    };
    match ended {
        Some(Ok(ended)) => ended,
        Some(Err(error)) => Ended::Stdout(io::Error::other(error)),
        None => Ended::Stdout(io::ErrorKind::TimedOut.into()),
    }
}

/// Sends the lines of stdin to the hub, until either ends.
async fn send_lines(spoke: Spoke, format: InputFormat, skipped: Arc<AtomicU64>, sent: Watcher) {
    let limit = line_limit(SpokeLimits::default().max_event_bytes);
    let mut lines = input::stdin(limit).await;
    loop {
        let line = match lines.next().await {
            Ok(Some(line)) => line,
            Ok(None) => return,
            // Nothing to send is no reason not to listen.
            Err(error) => return say(format_args!("stdin cannot be read: {error}")),
        };
        let request = Request::read(&line, format);
        let number = lines.number();
        let error = match send(&spoke, request).await {
            Ok(receipt) => {
                sent.add(number, None, receipt).await;
                continue;
            }
            Err(error) => error,
        };
        skipped.fetch_add(1, Ordering::AcqRel);
        say(format_args!(
            "error: line {number} of stdin is skipped: {error:#}"
        ));
        if spoke.is_closed().is_some() {
            return;
        }
    }
}

async fn send(spoke: &Spoke, request: anyhow::Result<Request>) -> anyhow::Result<SendReceipt> {
    let request = request?;
    if request.to.is_some() {
        bail!("a spoke sends to its hub only; leave out \"to\"");
    }
    loop {
        match spoke.send(request.event.clone()).await {
            // Who has no link has time; stdin waits.
            Err(SpokeSendError::Stalled { .. }) if !is_connected(spoke) => {}
            sent => return sent.context("it was not sent"),
        }
    }
}

fn is_connected(spoke: &Spoke) -> bool {
    matches!(spoke.status(), Some(SpokeStatus::Connected { .. }))
}

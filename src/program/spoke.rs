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
use iroh_hub::{
    CloseCode, Closed, ConnectError, EventTarget, Gossip, Incoming, ListenOptions, Listener,
    OnFull, Protocol, Reconnect, Spoke, SpokeLimits,
};
use iroh_tickets::endpoint::EndpointTicket;

use super::{
    args::{InputFormat, OutputFormat, SpokeArgs, Start},
    exit::{Exit, Failure},
    input, network,
    output::Printer,
    request::{Request, line_limit},
    say::say,
    scrape,
    stop::Stop,
};

/// How long a stdout that takes nothing holds the hub back before events are given up: long, since
/// who pages through the output is no reason to lose any.
const HOLD: Duration = Duration::from_secs(3600);

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
    let metrics = scrape::bind(args.network.metrics).await?;
    let endpoint = network::bind(&args.network, None).await?;
    say(format_args!("this spoke is {}", endpoint.id()));
    let connecting = Spoke::builder()
        .protocol(if args.compat {
            Protocol::Compat
        } else {
            Protocol::Native
        })
        .gossip(if args.no_gossip {
            Gossip::Off
        } else {
            Gossip::Full
        })
        .from(args.from.into())
        .reconnect(Reconnect::never())
        .connect(endpoint.clone(), ticket);
    let connected = tokio::select! {
        connected = connecting => connected.map_err(not_connected),
        () = stop.requested() => return Ok(Exit::Ok),
    };
    let ended = match connected {
        Ok(spoke) => {
            let metrics =
                scrape::serve(metrics, &endpoint, |all| all.register_all(spoke.metrics()))?;
            let ended = serve(&spoke, &args, &stop).await;
            scrape::end(metrics).await;
            ended
        }
        Err(failure) => Err(failure),
    };
    network::close(&endpoint).await;
    ended
}

fn not_connected(error: ConnectError) -> Failure {
    let exit = match error {
        ConnectError::Refused { .. } => Exit::Refused,
        _ => Exit::NotConnected,
    };
    Failure::new(exit, error)
}

async fn serve(spoke: &Spoke, args: &SpokeArgs, stop: &Stop) -> Result<Exit, Failure> {
    let on_full = OnFull::Hold { at_most: HOLD };
    let heard = spoke.listen_with(
        args.filter.clone(),
        ListenOptions::default().on_full(on_full),
    );
    let skipped = Arc::<AtomicU64>::default();
    let sending = tokio::spawn(send_lines(spoke.clone(), args.input, skipped.clone()));
    let mut printer = Printer::new();
    let printed = tokio::select! {
        printed = print(heard, &mut printer, args.output, args.count) => printed,
        () = stop.requested() => Ok(Printed::Enough),
    };
    let flushed = match &printed {
        // Whoever stopped us may also have stopped reading.
        Ok(_) => match tokio::time::timeout(Duration::from_secs(5), printer.flush()).await {
            Ok(flushed) => flushed,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        },
        Err(_) => Ok(()),
    };
    sending.abort();
    let closed = match printed {
        Ok(Printed::All) => Some(spoke.closed().await),
        Ok(Printed::Enough) | Err(_) => None,
    };
    spoke.shutdown().await;
    match printed.map(|_| ()).and(flushed) {
        Ok(()) => {}
        // Whoever read our output has enough of it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Ok),
        Err(error) => return Err(anyhow!("stdout cannot be written: {error}").into()),
    }
    if let Some(closed) = closed {
        end_of(&closed)?;
    }
    Ok(match skipped.load(Ordering::Acquire) {
        0 => Exit::Ok,
        skipped => {
            say(format_args!("{skipped} lines of stdin were skipped"));
            Exit::LinesSkipped
        }
    })
}

/// What the end of the link means.
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

/// Why nothing more is printed.
enum Printed {
    /// The link has ended, and all that came along it is printed.
    All,
    /// As many events as were wanted are.
    Enough,
}

async fn print(
    mut heard: Listener,
    printer: &mut Printer,
    format: OutputFormat,
    count: Option<u64>,
) -> io::Result<Printed> {
    let mut events = 0;
    while let Some(item) = printer.next(&mut heard).await? {
        match item {
            Incoming::Event(event) => {
                printer.heard(&event, format);
                events += 1;
                if Some(events) == count {
                    return Ok(Printed::Enough);
                }
            }
            Incoming::Missed(missed) => {
                say(format_args!(
                    "this spoke {missed}: the hub no longer has them"
                ));
                if format == OutputFormat::Json {
                    printer.missed(&missed);
                }
            }
            Incoming::Lagged(lagged) => {
                let events = lagged.events;
                say(format_args!(
                    "stdout was too slow; {events} events are not printed"
                ));
                if format == OutputFormat::Json {
                    printer.lagged(events);
                }
            }
            _ => {}
        }
    }
    Ok(Printed::All)
}

/// Sends the lines of stdin to the hub, until either ends.
async fn send_lines(spoke: Spoke, format: InputFormat, skipped: Arc<AtomicU64>) {
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
        let Err(error) = send(&spoke, request).await else {
            continue;
        };
        skipped.fetch_add(1, Ordering::AcqRel);
        let number = lines.number();
        say(format_args!(
            "error: line {number} of stdin is skipped: {error:#}"
        ));
        if spoke.is_closed().is_some() {
            return;
        }
    }
}

async fn send(spoke: &Spoke, request: anyhow::Result<Request>) -> anyhow::Result<()> {
    let request = request?;
    if request.to.is_some() {
        bail!("a spoke sends to its hub only; leave out \"to\"");
    }
    spoke.send(request.event).await.context("it was not sent")?;
    Ok(())
}

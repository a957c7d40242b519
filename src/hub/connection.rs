//! One connection of a peer: who it is, whether it is let in, and its streams, each a spoke.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use iroh::endpoint::Connection;
use n0_future::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{Instrument, debug, info_span, warn};

use super::{Inner, link_task};
use crate::{
    admission::{Candidate, Decision},
    close::{CloseCode, Closed},
    link_io::short_reason,
    metrics::events,
    protocol::Protocol,
};

/// Serves a connection until it ends. Runs on a task of the hub's own, so that nothing that happens
/// here reaches the router.
pub(super) async fn run(hub: Arc<Inner>, connection: Connection, protocol: Protocol) {
    let remote = connection.remote_id();
    let span = info_span!("connection", me = %hub.me.fmt_short(), remote = %remote.fmt_short());
    serve(hub, connection, protocol).instrument(span).await;
}

async fn serve(hub: Arc<Inner>, connection: Connection, protocol: Protocol) {
    let member = match hub.crowd.enter(connection.remote_id()) {
        Ok(member) => Arc::new(member),
        Err(none) => {
            debug!(target: events::REFUSED, remote = %connection.remote_id().fmt_short(), %protocol, reason = none.reason());
            return close(&connection, CloseCode::TooMany, none.reason());
        }
    };
    let candidate = Candidate {
        endpoint: connection.remote_id(),
        protocol,
    };
    // Before the decision: whoever is revoked from now on is closed by that.
    let _open = hub.open.enter(&connection);
    let floor = match hub.config.admission.decide(candidate).await {
        Decision::Allow => 0,
        Decision::AllowFromNow => hub.log.appended(),
        Decision::Refuse { reason } => {
            hub.metrics.admission.refused.inc();
            debug!(target: events::REFUSED, remote = %connection.remote_id().fmt_short(), %protocol, %reason);
            close(&connection, CloseCode::Refused, &reason);
            return;
        }
    };
    let mut streams = JoinSet::new();
    let hello_timeout = hub.config.limits.hello_timeout;
    let mut idle_since = Instant::now();
    let has_spoke = Arc::new(AtomicBool::new(false));
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => {
                let (mut send, mut recv) = match accepted {
                    Ok(stream) => stream,
                    Err(_) => break,
                };
                let place = hub.crowd.enter_stream(connection.remote_id());
                let full = streams.len() >= hub.config.limits.max_streams;
                let Some(place) = place.filter(|_| !full) else {
                    hub.metrics.admission.streams_refused.inc();
                    debug!("a stream more than the connection, or its endpoint, may have");
                    let code = CloseCode::TooMany.to_varint();
                    let _ = send.reset(code);
                    let _ = recv.stop(code);
                    continue;
                };
                let known = {
                    let (hub, member, connection) = (hub.clone(), member.clone(), connection.clone());
                    let has_spoke = has_spoke.clone();
                    move || {
                        has_spoke.store(true, Ordering::Release);
                        drop(place);
                        hub.crowd.is_known(&member, &connection);
                    }
                };
                let link = link_task::run(
                    hub.clone(),
                    connection.clone(),
                    (protocol, floor),
                    (send, recv),
                    known,
                );
                streams.spawn(link.in_current_span());
            }
            Some(ended) = streams.join_next(), if !streams.is_empty() => {
                if has_spoke.load(Ordering::Acquire) {
                    idle_since = Instant::now();
                }
                let closed = ended.unwrap_or_else(|error| {
                    warn!(%error, "the task of a spoke failed");
                    Closed::by_us(CloseCode::Internal, "internal error")
                });
                // The other spokes on the connection go on; without any, its end is the answer.
                if streams.is_empty()
                    && let Closed::ByUs { code, reason } = &closed {
                        close(&connection, *code, reason);
                        break;
                    }
            }
            // Until the first hello, streams that come and go win no time.
            () = sleep_until(idle_since + hello_timeout), if streams.is_empty() || !has_spoke.load(Ordering::Acquire) => {
                if has_spoke.load(Ordering::Acquire) && !streams.is_empty() {
                    continue;
                }
                hub.metrics.direct.links_failed.inc();
                close(&connection, CloseCode::TimedOut, "no spoke said hello in time");
                break;
            }
            () = hub.cancel.cancelled() => {
                let (code, reason) = last_words(&mut streams).await;
                close(&connection, code, &reason);
                break;
            }
        }
    }
    // The links see the connection's end by themselves, and tell the hub.
    while streams.join_next().await.is_some() {}
}

/// How long streams that end with the hub may take to say how they ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What to say when the hub ends: goodbye, unless one of the spokes has to hear something else.
async fn last_words(streams: &mut JoinSet<Closed>) -> (CloseCode, String) {
    let worse = async {
        while let Some(ended) = streams.join_next().await {
            if let Ok(Closed::ByUs { code, reason }) = ended
                && code != CloseCode::Goodbye
            {
                return Some((code, reason));
            }
        }
        None
    };
    let worse = timeout(LAST_WORDS, worse).await.ok().flatten();
    worse.unwrap_or_else(|| (CloseCode::Goodbye, "the hub ended".to_owned()))
}

fn close(connection: &Connection, code: CloseCode, reason: &str) {
    connection.close(code.to_varint(), short_reason(reason).as_bytes());
}

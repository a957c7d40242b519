//! The writer of one spoke's stream, in a task of its own: every broadcast wakes it, so that no more is to be woken with
//! it than it needs. What there is to write is the [`Desk`](super::desk::Desk)'s business.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use iroh::endpoint::{SendStream, StoppedError};
use n0_error::e;
use n0_future::{
    FutureExt,
    task::{self, AbortOnDropHandle},
};
use tokio::{
    sync::{oneshot, watch},
    time::{sleep, timeout},
};
use tracing::{Instrument, error};

use super::{Inner, desk::Batch, link::Link};
use crate::{
    close::{CloseCode, Closed},
    link_io::{LinkError, write_all},
    protocol::Protocol,
};

/// Owned by the task of the link, which stops it.
#[derive(Debug)]
pub(super) struct Writer {
    /// Dropped to stop it.
    go_on: Option<oneshot::Sender<()>>,
    /// Gives back the stream, which a drop would finish: that is a goodbye. And why it ended, unless it was stopped.
    task: Option<AbortOnDropHandle<(SendStream, Option<LinkError>)>>,
    send: Option<SendStream>,
}

impl Writer {
    pub(super) fn start(hub: &Arc<Inner>, link: &Arc<Link>, mut send: SendStream) -> Self {
        let (go_on, stopped) = oneshot::channel();
        let (hub, link) = (hub.clone(), link.clone());
        let writing = async move {
            let writing = AssertUnwindSafe(write(&hub, &link, &mut send)).catch_unwind();
            let ended = tokio::select! {
                biased;
                ended = writing => Some(ended.unwrap_or_else(|_| {
                    error!("the writer of a spoke panicked");
                    LinkError::internal("internal error")
                })),
                _ = stopped => None,
            };
            (send, ended)
        };
        let writing = task::spawn(writing.in_current_span());
        Self {
            go_on: Some(go_on),
            task: Some(AbortOnDropHandle::new(writing)),
            send: None,
        }
    }

    /// Waits until it has ended by itself, and says why. Not to be asked again then.
    ///
    /// Cancel safe.
    pub(super) async fn ended(&mut self) -> LinkError {
        let ended = self.joined().await;
        ended.unwrap_or_else(|| LinkError::internal("internal error"))
    }

    /// Stops it, if it has not ended by itself, and gives back the stream.
    pub(super) async fn stop(mut self) -> Option<SendStream> {
        self.go_on = None;
        self.joined().await;
        self.send
    }

    async fn joined(&mut self) -> Option<LinkError> {
        let ended = self.task.as_mut()?.await;
        self.task = None;
        let (send, error) = ended.ok()?;
        self.send = Some(send);
        error
    }
}

async fn write(hub: &Inner, link: &Link, send: &mut SendStream) -> LinkError {
    match write_loop(hub, link, send).await {
        Ok(()) => LinkError::gone(Closed::by_us(CloseCode::Goodbye, "the hub said goodbye")),
        Err(error) => error,
    }
}

async fn write_loop(hub: &Inner, link: &Link, send: &mut SendStream) -> Result<(), LinkError> {
    let mut tip = hub.log.watch_tip();
    let mut entries = Vec::new();
    let mut chunks = Vec::new();
    loop {
        tip.mark_unchanged();
        let draining = link.is_draining();
        // From here on, no news of what the spoke has is missed.
        let progress = hub.progress.notified();
        // Before what there is to write is looked at: what the spoke is owed, it gets before the goodbye.
        let served = draining && link.has_all(hub.log.tip());
        let paid = !link.is_paid_for(hub.log.tip()) || hub.ask_budget(link.id);
        let batch = link.next_batch(&hub.log, paid, &mut entries, &mut chunks)?;
        // Looked at after reading: what was read before the epoch began is of the one before.
        let epoch = link.epoch.get();
        if epoch.is_some_and(|epoch| *epoch != hub.log.epoch()) {
            return Err(e!(LinkError::NewEpoch));
        }
        let follows_tip = match batch {
            Batch::Frames { cursor, cost, all } => {
                hub.spend(cost);
                hub.metrics.repair.events_missed.inc_by(link.take_missed());
                tokio::select! {
                    // Most writes need not wait, and then nothing else need be looked at.
                    biased;
                    written = write_all(send, &mut chunks) => written?,
                    // Nothing after this is written, so a torn frame does no harm.
                    error = fallen_behind(hub, link) => return Err(error),
                }
                if link.protocol == Protocol::Compat {
                    link.session.has_room();
                }
                // A plain spoke cannot acknowledge; what its stream took is what is known.
                if let (Protocol::Compat, Some(cursor)) = (link.protocol, cursor)
                    && link.set_acked(cursor, false)
                {
                    hub.progress.notify_waiters();
                }
                if !all || draining {
                    continue;
                }
                true
            }
            Batch::Idle { .. } if served => {
                return goodbye(send, hub.config.limits.drain_timeout).await;
            }
            Batch::Idle { follows_tip } => follows_tip,
        };
        if !draining {
            wait(link, &mut tip, follows_tip).await;
            continue;
        }
        // An acknowledgement is what is waited for.
        tokio::select! {
            () = wait(link, &mut tip, follows_tip) => {}
            () = progress => {}
            () = sleep(DRAIN_POLL) => {}
        }
    }
}

/// Waits for an order, or for the tip to move if that is followed.
async fn wait(link: &Link, tip: &mut watch::Receiver<()>, follows_tip: bool) {
    tokio::select! {
        () = link.wake.notified() => {}
        _ = tip.changed(), if follows_tip => {}
    }
}

/// Resolves when the log has gone past a spoke that does not take what is written to it, if that ends its
/// link; others are told what they missed once they take something again.
async fn fallen_behind(hub: &Inner, link: &Link) -> LinkError {
    if !link.ends_if_behind() {
        return std::future::pending().await;
    }
    let mut tip = hub.log.watch_tip();
    loop {
        if let Some(events) = link.fell_behind(hub.log.head()) {
            return e!(LinkError::FellBehind { events });
        }
        if tip.changed().await.is_err() {
            return std::future::pending().await;
        }
        // Not with every event: each link that is being written to waits here.
        sleep(BEHIND_POLL).await;
    }
}

/// How soon a link looks again whether the log has gone past its spoke.
const BEHIND_POLL: Duration = Duration::from_millis(50);

/// How often a draining link looks again whether its spoke has everything.
const DRAIN_POLL: Duration = Duration::from_millis(50);

/// Finishes the stream and waits until the spoke has read it to the end.
async fn goodbye(send: &mut SendStream, limit: Duration) -> Result<(), LinkError> {
    if send.finish().is_ok() {
        match timeout(limit, send.stopped()).await {
            Ok(Ok(_)) => {}
            Ok(Err(StoppedError::ConnectionLost(error))) => return Err(error.into()),
            Ok(Err(_)) | Err(_) => {
                return Err(e!(LinkError::TimedOut {
                    what: "the spoke's acknowledgement of the end of its stream"
                }));
            }
        }
    }
    Ok(())
}

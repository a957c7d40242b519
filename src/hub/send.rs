//! Sending events to one spoke, or to all spokes of one endpoint.

use std::sync::Arc;

use iroh::EndpointId;
use n0_error::e;
use tokio::time::{Instant, timeout_at};

use super::{BroadcastError, Hub, Inner, SendError, mailbox::NoRoom, session::Session};
use crate::{
    delivery::{Loss, SendReceipt, Ticket},
    event::Envelope,
    log::LogFailed,
    spoke_id::SpokeId,
};

/// To whom [`Hub::send`] sends: one spoke, or all spokes of one endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Recipient {
    /// One spoke.
    Spoke(SpokeId),
    /// Every spoke of this endpoint.
    Endpoint(EndpointId),
}

impl From<SpokeId> for Recipient {
    fn from(id: SpokeId) -> Self {
        Self::Spoke(id)
    }
}

impl From<EndpointId> for Recipient {
    fn from(id: EndpointId) -> Self {
        Self::Endpoint(id)
    }
}

/// How an event is sent with [`Hub::send_with`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub struct SendOptions {
    /// The event need not wait for the broadcasts before it, nor for events to the same spoke that do.
    /// Those that overtake keep their own order. Default: it waits.
    pub overtake: bool,
}

impl SendOptions {
    /// Sets [`overtake`](Self::overtake).
    pub fn overtake(mut self, overtake: bool) -> Self {
        self.overtake = overtake;
        self
    }
}

impl Hub {
    /// Sends an event to one spoke, or to all spokes of one endpoint. They see it after every
    /// broadcast before it, in the order of sending, once.
    ///
    /// Resolves when the event is queued; waits for room in the spoke's queue for
    /// [`HubLimits::send_wait`](super::HubLimits::send_wait) at most. The receipt tells what becomes of it:
    /// a native spoke that is lost and comes back within its session's lifetime
    /// ([`HubLimits::session_lifetime`](super::HubLimits::session_lifetime)) still gets it.
    ///
    /// # Errors
    ///
    /// If there is no such spoke, it takes nothing, the event is too large, the hub is shut down, or the
    /// disk of a durable log takes nothing. With several spokes, it is an error if none has room; the receipt tells of each.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it resolves, the event was not queued for one spoke; of several, some
    /// may get it.
    pub async fn send(
        &self,
        to: impl Into<Recipient>,
        event: Envelope,
    ) -> Result<SendReceipt, SendError> {
        self.send_with(to, event, SendOptions::default()).await
    }

    /// As [`send`](Self::send), with options.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn send_with(
        &self,
        to: impl Into<Recipient>,
        event: Envelope,
        options: SendOptions,
    ) -> Result<SendReceipt, SendError> {
        let inner = &*self.inner;
        inner
            .check(&event)
            .map_err(|source| e!(SendError::Refused, source))?;
        let sessions = match to.into() {
            Recipient::Spoke(id) => inner.roster.session(id).into_iter().collect(),
            Recipient::Endpoint(id) => inner.roster.sessions_of(id),
        };
        let deadline = Instant::now() + inner.config.limits.send_wait;
        // It comes after every broadcast before it, so those must be sure to come.
        if !options.overtake && timeout_at(deadline, inner.log.flushed()).await.is_err() {
            let failed = LogFailed::because("the disk takes too long");
            let source = e!(BroadcastError::Log, failed);
            return Err(e!(SendError::Refused { source }));
        }
        let mut receipts = Vec::with_capacity(sessions.len());
        // Whatever has become of it since: a spoke may have refused it already.
        let mut queued = false;
        // One that is full is not to hold up the others.
        let mut full = Vec::new();
        let mut error = None;
        for session in sessions {
            match inner.push(&session, &event, options) {
                Ok(receipt) => {
                    queued = true;
                    receipts.push(receipt);
                }
                Err(NoRoom::Full | NoRoom::Away) => full.push(session),
                Err(NoRoom::Ended) => {}
            }
        }
        for session in full {
            match inner.push_wait(&session, &event, options, deadline).await {
                Ok(receipt) => {
                    queued = true;
                    receipts.push(receipt);
                }
                Err(stalled @ SendError::Stalled { .. }) => {
                    let (ticket, receipt) = Ticket::new(Some(session.id));
                    ticket.not_delivered(Loss::Stalled);
                    receipts.push(receipt);
                    error = Some(stalled);
                }
                Err(gone) => error = error.or(Some(gone)),
            }
        }
        match error {
            _ if queued => Ok(SendReceipt::over(receipts)),
            Some(error) => Err(error),
            None => Err(e!(SendError::NoSuchSpoke)),
        }
    }
}

impl Inner {
    fn push(
        &self,
        session: &Arc<Session>,
        event: &Envelope,
        options: SendOptions,
    ) -> Result<SendReceipt, NoRoom> {
        let end = self.log.appended();
        let overtake = options.overtake;
        let pushed = match session.push(event, end, overtake, false) {
            Err(NoRoom::Away) => {
                let tip = self.log.tip();
                let pushed = self.roster.push_away(session, event, end, tip, overtake);
                // Others may have been given up for it.
                self.progress.notify_waiters();
                pushed
            }
            pushed => pushed,
        };
        if pushed.is_ok() {
            self.metrics.events.events_targeted.inc();
        }
        pushed
    }

    async fn push_wait(
        &self,
        session: &Arc<Session>,
        event: &Envelope,
        options: SendOptions,
        deadline: Instant,
    ) -> Result<SendReceipt, SendError> {
        loop {
            let room = session.room().notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match self.push(session, event, options) {
                Ok(receipt) => return Ok(receipt),
                Err(NoRoom::Ended) => return Err(e!(SendError::NoSuchSpoke)),
                Err(NoRoom::Full | NoRoom::Away) => {}
            }
            if timeout_at(deadline, room).await.is_err() {
                let spoke = session.id;
                return Err(e!(SendError::Stalled { spoke }));
            }
        }
    }
}

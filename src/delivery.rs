//! What became of an event that was sent to one peer: by a hub to a spoke, or by a spoke to its hub.
//!
//! Whoever keeps the event holds a [`Ticket`], and says once what became of it; whoever sent it holds a
//! [`SendReceipt`]. Not for broadcasts, which have [receipts](crate::Receipt) of their own.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use n0_error::{e, stack_error};
use tokio::sync::Notify;

use crate::{close::Closed, spoke_id::SpokeId};

/// An event that was sent is not known to have been delivered.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum Undelivered {
    /// Nobody has got it and nobody will: it may be sent again.
    #[error("the event was not delivered: {reason}")]
    NotDelivered {
        /// Why not.
        reason: Loss,
    },
    /// It was on its way, and whether it got there is not known: sent again, it may come twice.
    #[error("the event may have been delivered, or not: {reason}")]
    MaybeDelivered {
        /// Why that is not known.
        reason: Loss,
    },
}

/// Why an event was not delivered, or is not known to have been.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Loss {
    /// The other side left, or was sent away.
    Closed(Closed),
    /// The other side was lost, and did not come back within the lifetime of its session.
    Expired,
    /// The other side was away, and its session was given up to bound what is kept for such.
    Evicted,
    /// The other side came back and does not know the session any more: it was restarted, or was waited
    /// for in vain.
    Forgotten,
    /// Our side was shut down.
    ShutDown,
    /// It is over the other side's own limit.
    TooLarge,
    /// The other side took nothing for too long, and its queue was full.
    Stalled,
    /// The other side's protocol cannot acknowledge. Its stream took the event.
    CannotAcknowledge,
    /// An error of our own.
    Internal,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed(closed) => return closed.fmt(f),
            Self::Expired => "the other side did not come back in time",
            Self::Evicted => "too much is kept for those who are away",
            Self::Forgotten => "the other side no longer knows the session",
            Self::ShutDown => "it was shut down here before the other side had it",
            Self::TooLarge => "it is larger than the other side takes",
            Self::Stalled => "the queue was full, and the other side took nothing",
            Self::CannotAcknowledge => "the other side's protocol cannot acknowledge",
            Self::Internal => "an internal error",
        })
    }
}

/// What became of an event that was sent, as far as that is known now.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Delivery {
    /// It is kept until the other side acknowledges it, and sent again if the other side was lost and
    /// comes back.
    Pending,
    /// The other side has handed it to its listeners.
    Delivered,
    /// It was not delivered and will not be.
    NotDelivered(Loss),
    /// It may have been delivered; nothing more will be known.
    MaybeDelivered(Loss),
}

impl Delivery {
    /// Over two recipients of one event. As long as one is pending, so is the whole. It was not delivered
    /// only if neither has it.
    fn and(self, other: Self) -> Self {
        use Delivery::{Delivered, MaybeDelivered, NotDelivered, Pending};
        match (self, other) {
            (Pending, _) | (_, Pending) => Pending,
            (Delivered, Delivered) => Delivered,
            (NotDelivered(reason), NotDelivered(_)) => NotDelivered(reason),
            (MaybeDelivered(reason), _)
            | (_, MaybeDelivered(reason))
            | (NotDelivered(reason), Delivered)
            | (Delivered, NotDelivered(reason)) => MaybeDelivered(reason),
        }
    }
}

#[derive(Debug, Default)]
struct Cell {
    outcome: OnceLock<Delivery>,
    settled: Notify,
}

impl Cell {
    fn now(&self) -> Delivery {
        self.outcome.get().cloned().unwrap_or(Delivery::Pending)
    }

    fn settle(&self, outcome: Delivery) {
        if self.outcome.set(outcome).is_ok() {
            self.settled.notify_waiters();
        }
    }
}

/// The sender's side of an event that was sent to one spoke, to all spokes of one endpoint, or to the hub.
///
/// Costs nothing to drop: the event is delivered all the same.
#[derive(Clone, Debug)]
pub struct SendReceipt {
    parts: Vec<(Option<SpokeId>, Arc<Cell>)>,
}

impl SendReceipt {
    /// Waits until the other side has handed the event to its listeners, or that will never be known.
    ///
    /// Takes as long as the other side does: while it is connected there is no limit, and when it is lost
    /// there is the lifetime of its session. It ends when either side is shut down.
    ///
    /// Sent to an endpoint with several spokes, all of them have to have it.
    ///
    /// # Errors
    ///
    /// If it was not delivered, or if that is not known. With several spokes,
    /// [`NotDelivered`](Undelivered::NotDelivered) means that none has it; [`each`](Self::each) tells more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; and it can be asked again.
    pub async fn delivered(&self) -> Result<(), Undelivered> {
        for (_, cell) in &self.parts {
            let settled = cell.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if cell.outcome.get().is_none() {
                settled.await;
            }
        }
        match self.now() {
            Delivery::Delivered => Ok(()),
            Delivery::NotDelivered(reason) => Err(e!(Undelivered::NotDelivered { reason })),
            Delivery::MaybeDelivered(reason) => Err(e!(Undelivered::MaybeDelivered { reason })),
            // All have settled.
            Delivery::Pending => Err(e!(Undelivered::MaybeDelivered {
                reason: Loss::Internal
            })),
        }
    }

    /// What is known now.
    pub fn now(&self) -> Delivery {
        let each = self.parts.iter().map(|(_, cell)| cell.now());
        each.reduce(Delivery::and)
            .unwrap_or(Delivery::NotDelivered(Loss::Internal))
    }

    /// What is known now of each spoke that a hub sent the event to; nothing for what a spoke sent.
    pub fn each(&self) -> impl Iterator<Item = (SpokeId, Delivery)> + '_ {
        self.parts
            .iter()
            .filter_map(|(spoke, cell)| Some(((*spoke)?, cell.now())))
    }

    /// One receipt over several recipients.
    pub(crate) fn over(receipts: impl IntoIterator<Item = Self>) -> Self {
        let parts = receipts.into_iter().flat_map(|receipt| receipt.parts);
        Self {
            parts: parts.collect(),
        }
    }
}

/// The keeper's side: says once what became of the event. Dropped, it says that nobody knows.
#[derive(Debug)]
#[allow(
    dead_code,
    reason = "used as soon as hub and spoke keep what they send"
)]
pub(crate) struct Ticket(Arc<Cell>);

#[allow(
    dead_code,
    reason = "used as soon as hub and spoke keep what they send"
)]
impl Ticket {
    /// A ticket and its receipt; with the recipient, if it is a spoke.
    pub(crate) fn new(spoke: Option<SpokeId>) -> (Self, SendReceipt) {
        let cell = Arc::<Cell>::default();
        let receipt = SendReceipt {
            parts: vec![(spoke, cell.clone())],
        };
        (Self(cell), receipt)
    }

    /// The other side has handed the event to its listeners.
    pub(crate) fn delivered(self) {
        self.0.settle(Delivery::Delivered);
    }

    /// The event never left.
    pub(crate) fn not_delivered(self, reason: Loss) {
        self.0.settle(Delivery::NotDelivered(reason));
    }

    /// The event left, and nobody will know.
    pub(crate) fn maybe_delivered(self, reason: Loss) {
        self.0.settle(Delivery::MaybeDelivered(reason));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.settle(Delivery::MaybeDelivered(Loss::Internal));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Delivery::{Delivered, MaybeDelivered, NotDelivered, Pending};

    #[tokio::test]
    async fn what_is_said_first_counts_and_can_be_asked_again() {
        let (ticket, receipt) = Ticket::new(None);
        assert_eq!(receipt.now(), Pending);
        let asking = tokio::spawn({
            let receipt = receipt.clone();
            async move { receipt.delivered().await }
        });
        tokio::task::yield_now().await;
        ticket.not_delivered(Loss::Expired);
        for result in [asking.await.unwrap(), receipt.delivered().await] {
            assert!(
                matches!(
                    result,
                    Err(Undelivered::NotDelivered {
                        reason: Loss::Expired,
                        ..
                    })
                ),
                "{result:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_ticket_that_is_dropped_leaves_nobody_waiting() {
        let (ticket, receipt) = Ticket::new(None);
        drop(ticket);
        let result = receipt.delivered().await;
        assert!(matches!(result, Err(Undelivered::MaybeDelivered { .. })));
    }

    #[tokio::test]
    async fn over_several_recipients_all_have_to_have_it_and_nobody_must_for_not_delivered() {
        let lost = || NotDelivered(Loss::Expired);
        let maybe = || MaybeDelivered(Loss::Expired);
        for (one, other, both) in [
            (Delivered, Delivered, Delivered),
            (Delivered, lost(), maybe()),
            (lost(), lost(), lost()),
            (lost(), maybe(), maybe()),
            (maybe(), Delivered, maybe()),
            (Pending, lost(), Pending),
        ] {
            assert_eq!(one.clone().and(other.clone()), both);
            assert_eq!(other.and(one), both);
        }
        let id = |number| SpokeId {
            endpoint: iroh::SecretKey::from_bytes(&[7; 32]).public(),
            number,
        };
        let (first, one) = Ticket::new(Some(id(1)));
        let (second, other) = Ticket::new(Some(id(2)));
        let both = SendReceipt::over([one, other]);
        first.delivered();
        assert_eq!(both.now(), Pending);
        let each: Vec<_> = both.each().collect();
        assert_eq!(each, [(id(1), Delivered), (id(2), Pending)]);
        second.delivered();
        both.delivered().await.unwrap();
    }
}

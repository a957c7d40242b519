//! The receipt of a broadcast: where it stands, and who has it.

use std::{fmt, sync::Arc, time::Duration};

use n0_error::{e, stack_error};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Inner, record::Stands, session::Session};
use crate::{instant::after, log::LogFailed, position::Position, spoke_id::SpokeId};

/// Proof that an event is in the hub's log; and, for whoever asks, who has it.
///
/// Costs nothing to keep or to drop: what spokes have is looked up when it is asked for.
#[derive(Clone)]
pub struct Receipt {
    pub(super) position: Position,
    hub: Arc<Inner>,
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// How the spokes that were there when an event was broadcast stand to it.
///
/// A spoke was there if it was connected, or away and might have come back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Acknowledgements {
    /// These acknowledged it: it is in its place for their listeners. A spoke whose listeners hold it back
    /// acknowledges up to 256 events that are still on their way to them inside of it; if it is shut down
    /// then, they do not get those.
    pub acked: Vec<SpokeId>,
    /// These missed it: the log no longer had it when they needed it, or it was over their own limits. Of a
    /// spoke that missed very many single events, some that it had may be counted as missed.
    pub missed: Vec<SpokeId>,
    /// These went for good before they acknowledged it. They may have it.
    pub gone: Vec<SpokeId>,
    /// These speak a protocol that cannot acknowledge. They may have it.
    pub cannot_acknowledge: Vec<SpokeId>,
    /// These have not acknowledged it yet; they may be away.
    pub waiting: Vec<SpokeId>,
    /// Others were there and are gone, so long ago or so many that the hub does not remember them
    /// ([`HubLimits::remembered_spokes`](super::HubLimits::remembered_spokes)).
    pub forgotten: bool,
}

impl Acknowledgements {
    /// Whether every spoke that was there and can acknowledge has done so.
    pub fn are_complete(&self) -> bool {
        let others = [&self.missed, &self.gone, &self.waiting];
        !self.forgotten && others.iter().all(|spokes| spokes.is_empty())
    }

    fn add(&mut self, id: SpokeId, stands: Stands) {
        let spokes = match stands {
            Stands::Acked => &mut self.acked,
            Stands::Missed => &mut self.missed,
            Stands::Gone => &mut self.gone,
            Stands::CannotAcknowledge => &mut self.cannot_acknowledge,
            Stands::Waiting => &mut self.waiting,
        };
        spokes.push(id);
    }
}

impl fmt::Display for Acknowledgements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acknowledged it, {} missed it, {} are gone, {} cannot acknowledge, {} are waited for{}",
            self.acked.len(),
            self.missed.len(),
            self.gone.len(),
            self.cannot_acknowledge.len(),
            self.waiting.len(),
            if self.forgotten {
                ", others are forgotten"
            } else {
                ""
            }
        )
    }
}

/// A broadcast was not acknowledged by as many spokes as was asked for.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum NotAcknowledged {
    /// Not in time. It may still be.
    #[error("not acknowledged in time: of the spokes, {acknowledgements}")]
    TimedOut {
        /// How things stood then.
        acknowledgements: Acknowledgements,
    },
    /// It never will be: too many missed it or are gone.
    #[error("it will not be acknowledged by so many: of the spokes, {acknowledgements}")]
    TooFew {
        /// How things stand.
        acknowledgements: Acknowledgements,
    },
}

impl Receipt {
    pub(super) fn new(position: Position, hub: Arc<Inner>) -> Self {
        Self { position, hub }
    }

    /// Where the event stands.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Resolves when the event is in the file of a durable log and synced: at once if that is so already,
    /// or if the log is in memory.
    ///
    /// Returns the position under which spokes get it, which is that of the receipt unless the log began a new
    /// [epoch](Position::epoch) before it was synced.
    ///
    /// # Errors
    ///
    /// If the log could not be written. Spokes do not get the event, unless it turns out to be in the log
    /// when the hub is started again.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing depends on its being awaited.
    pub async fn durable(&self) -> Result<Position, LogFailed> {
        self.hub.log.synced(self.position.offset).await
    }

    /// Who has the event now, as far as the hub knows. Nobody is asked for it.
    pub fn now(&self) -> Acknowledgements {
        self.look().0
    }

    /// Waits until nobody is waited for any more: every spoke that was there has acknowledged the event,
    /// missed it, gone, or cannot acknowledge. The spokes that are waited for are asked to acknowledge at
    /// once, [so many a second](super::HubLimits::acks_per_s).
    ///
    /// A spoke that is away is waited for until it is back or gone for good.
    ///
    /// # Errors
    ///
    /// If that takes longer than `within`; or if some missed it, are gone, or are forgotten. Spokes that
    /// cannot acknowledge are no error.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; and it can be asked again.
    pub async fn all(&self, within: Duration) -> Result<Acknowledgements, NotAcknowledged> {
        let deadline = deadline(within);
        loop {
            let progress = self.hub.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            let (acknowledgements, waited_for) = self.look();
            let asked_all = self.ask(&waited_for);
            // Who will probably be the last.
            let Some(last) = waited_for.iter().min_by_key(|session| session.acked()) else {
                return settled(acknowledgements);
            };
            // As long as this one is waited for, nobody else need be looked at.
            while last.stands_to(self.position.offset) == Some(Stands::Waiting) && !last.has_ended()
            {
                let until = if asked_all {
                    deadline
                } else {
                    deadline.min(Instant::now() + ASK_ON_AFTER)
                };
                if timeout_at(until, progress.as_mut()).await.is_err() {
                    if Instant::now() < deadline {
                        break;
                    }
                    let acknowledgements = self.now();
                    return if acknowledgements.waiting.is_empty() {
                        settled(acknowledgements)
                    } else {
                        Err(e!(NotAcknowledged::TimedOut { acknowledgements }))
                    };
                }
                progress.set(self.hub.progress.notified());
                progress.as_mut().enable();
            }
        }
    }

    /// Waits until at least so many spokes have acknowledged the event. The spokes that are waited for are
    /// asked to acknowledge at once.
    ///
    /// # Errors
    ///
    /// If that takes longer than `within`; or as soon as it cannot be any more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; and it can be asked again.
    pub async fn at_least(
        &self,
        spokes: usize,
        within: Duration,
    ) -> Result<Acknowledgements, NotAcknowledged> {
        let deadline = deadline(within);
        loop {
            let progress = self.hub.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            let (acknowledgements, waited_for) = self.look();
            let acked = acknowledgements.acked.len();
            if acked >= spokes {
                return Ok(acknowledgements);
            }
            if acked + acknowledgements.waiting.len() < spokes {
                return Err(e!(NotAcknowledged::TooFew { acknowledgements }));
            }
            let asked_all = self.ask(&waited_for);
            // Looking costs a little for every spoke, so there is a little time between two looks.
            let pause = PAUSE_A_SPOKE.saturating_mul(waited_for.len() as u32);
            let news = async {
                if asked_all {
                    progress.await;
                } else {
                    let _ = timeout(ASK_ON_AFTER, progress).await;
                }
                sleep(pause).await;
            };
            if timeout_at(deadline, news).await.is_err() {
                let acknowledgements = self.now();
                return if acknowledgements.acked.len() >= spokes {
                    Ok(acknowledgements)
                } else {
                    Err(e!(NotAcknowledged::TimedOut { acknowledgements }))
                };
            }
        }
    }

    fn look(&self) -> (Acknowledgements, Vec<Arc<Session>>) {
        let mut acknowledgements = Acknowledgements::default();
        let offset = self.position.offset;
        let (remembered, waited_for) = self.hub.roster.stand_to(offset, |id, stands| {
            acknowledgements.add(id, stands);
        });
        acknowledgements.forgotten = !remembered;
        (acknowledgements, waited_for)
    }

    /// Asks these to acknowledge at once, as far as the budget for that goes. Says whether all are asked.
    fn ask(&self, waited_for: &[Arc<Session>]) -> bool {
        let offset = self.position.next().offset;
        waited_for.iter().all(|session| {
            let asked = session.record(|record| record.awaited() >= offset);
            let may = asked || self.hub.may_ask();
            if may && !asked {
                session.await_ack(offset);
            }
            may
        })
    }
}

/// Nobody is waited for any more.
#[expect(clippy::result_large_err, reason = "it is the result of whoever asked")]
fn settled(acknowledgements: Acknowledgements) -> Result<Acknowledgements, NotAcknowledged> {
    if acknowledgements.are_complete() {
        Ok(acknowledgements)
    } else {
        Err(e!(NotAcknowledged::TooFew { acknowledgements }))
    }
}

/// So much later more spokes are asked, if the budget did not reach for all.
const ASK_ON_AFTER: Duration = Duration::from_millis(50);

/// The pause between two looks, for each spoke that is waited for.
const PAUSE_A_SPOKE: Duration = Duration::from_micros(1);

fn deadline(within: Duration) -> Instant {
    after(Instant::now().into_std(), within).into()
}

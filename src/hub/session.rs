//! What is kept of one spoke through all links of its session.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
};

use tokio::sync::{Notify, OwnedMutexGuard};

use super::{
    Inner,
    mail::{Counted, Mail},
    mailbox::{Mailbox, MailboxLimits, NoRoom},
    record::{Record, Stands},
};
use crate::{
    delivery::{Loss, SendReceipt},
    event::Envelope,
    protocol::Protocol,
    spoke_id::SpokeId,
    wire::native::SessionId,
};

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SpokeId,
    pub(crate) protocol: Protocol,
    /// What the spoke shows to come back. Plain spokes are not told theirs.
    pub(crate) key: SessionId,
    /// The spoke may read nothing that was broadcast before.
    pub(crate) floor: u64,
    /// It was told to be on a topic.
    pub(crate) was_member: AtomicBool,
    outgoing: Mutex<Outgoing>,
    /// Wakes whoever waits for room in the mailbox.
    room: Notify,
    /// Held while an event of the spoke is handed to the listeners.
    hearing: Arc<tokio::sync::Mutex<()>>,
    /// The last of the spoke's events that the listeners have.
    heard: AtomicU64,
    /// Which broadcasts the spoke has.
    record: Mutex<Record>,
    ended: AtomicBool,
    /// The spoke knows of the session: it has said something since it was welcomed.
    known: AtomicBool,
}

#[derive(Debug)]
struct Outgoing {
    mailbox: Counted,
    /// Wakes the writer of the link.
    wake: Option<Arc<Notify>>,
}

impl Session {
    pub(crate) fn new(
        id: SpokeId,
        protocol: Protocol,
        key: SessionId,
        limits: MailboxLimits,
        mail: Arc<Mail>,
        record: Record,
    ) -> Self {
        Self {
            id,
            protocol,
            key,
            floor: 0,
            was_member: AtomicBool::new(false),
            outgoing: Mutex::new(Outgoing {
                mailbox: Counted::new(Mailbox::new(id, protocol, limits), mail),
                wake: None,
            }),
            room: Notify::new(),
            hearing: Arc::default(),
            heard: AtomicU64::new(0),
            record: Mutex::new(record),
            ended: AtomicBool::new(false),
            known: AtomicBool::new(false),
        }
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the mailbox, or takes from it. Nothing else may be locked inside.
    pub(crate) fn mailbox<T>(&self, look: impl FnOnce(&mut Mailbox) -> T) -> T {
        self.outgoing().mailbox.change(look)
    }

    /// From now on, the link with this number serves the spoke, which has taken its events up to `taken`.
    pub(crate) fn attach(&self, link: u64, taken: u64, wake: Arc<Notify>) {
        let mut outgoing = self.outgoing();
        outgoing
            .mailbox
            .change(|mailbox| mailbox.attach(link, taken));
        outgoing.wake = Some(wake);
    }

    /// The spoke is away. Says what is kept for it, in bytes.
    pub(crate) fn detach(&self) -> usize {
        let mut outgoing = self.outgoing();
        outgoing.wake = None;
        outgoing.mailbox.change(|mailbox| {
            mailbox.detach();
            mailbox.cost()
        })
    }

    /// Queues an event for the spoke, which must have a link that is woken, or `may_be_away`: what is kept
    /// for those that are has a bound of its own.
    pub(crate) fn push(
        &self,
        event: &Envelope,
        end: u64,
        overtake: bool,
        may_be_away: bool,
    ) -> Result<SendReceipt, NoRoom> {
        let mut outgoing = self.outgoing();
        let has_ended = outgoing.mailbox.change(|mailbox| mailbox.has_ended());
        if outgoing.wake.is_none() && !may_be_away && !has_ended {
            return Err(NoRoom::Away);
        }
        let room = has_ended || outgoing.mailbox.make_room(event.size());
        // Counts anew what was set aside, if it is not used.
        let receipt = outgoing.mailbox.change(|mailbox| match room {
            true => mailbox.push(event, end, overtake),
            false => Err(NoRoom::Full),
        })?;
        if let Some(wake) = &outgoing.wake {
            wake.notify_one();
        }
        Ok(receipt)
    }

    /// Wakes whoever waits for room, as there is some, or will never be.
    pub(crate) fn has_room(&self) {
        self.room.notify_waiters();
    }

    pub(crate) fn room(&self) -> &Notify {
        &self.room
    }

    /// The session has ended. Says how many events were not delivered, and how many may have been.
    pub(crate) fn end(&self, reason: &Loss) -> (usize, usize) {
        let mut outgoing = self.outgoing();
        outgoing.wake = None;
        self.ended.store(true, Ordering::Release);
        let ended = outgoing.mailbox.change(|mailbox| mailbox.end(reason));
        drop(outgoing);
        self.has_room();
        ended
    }

    /// The last of the spoke's events that the listeners have.
    pub(crate) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    /// Waits for the turn to hand an event of the spoke to the listeners.
    pub(crate) async fn hearing(&self) -> OwnedMutexGuard<()> {
        self.hearing.clone().lock_owned().await
    }

    /// The listeners have the spoke's event number `seq`.
    pub(crate) fn has_heard(&self, seq: u64) {
        self.heard.store(seq, Ordering::Release);
    }

    /// Looks at what the spoke has, or changes it. Nothing else may be locked inside.
    pub(crate) fn record<T>(&self, look: impl FnOnce(&mut Record) -> T) -> T {
        look(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Every broadcast below is known to have reached the spoke, or to be missed.
    pub(crate) fn acked(&self) -> u64 {
        self.record(|record| record.acked())
    }

    /// How the spoke stands to a broadcast; `None` if it was not there then.
    pub(crate) fn stands_to(&self, offset: u64) -> Option<Stands> {
        self.record(|record| record.stands_to(offset))
    }

    /// Somebody waits until the spoke has everything below `offset`: it is asked to say so at once.
    pub(crate) fn await_ack(&self, offset: u64) {
        if self.record(|record| record.await_ack(offset))
            && let Some(wake) = &self.outgoing().wake
        {
            wake.notify_one();
        }
    }

    /// The spoke has said something after its welcome.
    pub(crate) fn is_known_now(&self) {
        self.known.store(true, Ordering::Release);
    }

    /// Whether the spoke can come back to the session: if the welcome did not reach it, it does not know the
    /// key.
    pub(crate) fn is_known(&self) -> bool {
        self.known.load(Ordering::Acquire)
    }

    /// Whether the spoke is gone for good.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

/// Runs a delivery to its end, though whoever waits for it goes away: half of the listeners having an
/// event is of no use to anyone. Only the end of the hub cuts it short.
pub(super) async fn see_through(
    hub: &Arc<Inner>,
    mut delivery: Pin<Box<dyn Future<Output = ()> + Send>>,
) {
    // Mostly there is nothing to wait for.
    let done = std::future::poll_fn(|cx| Poll::Ready(delivery.as_mut().poll(cx).is_ready())).await;
    if done {
        return;
    }
    let cancel = hub.cancel.clone();
    let task = hub.tasks.spawn(async move {
        tokio::select! {
            () = delivery => {}
            () = cancel.cancelled() => {}
        }
    });
    let _ = task.await;
}

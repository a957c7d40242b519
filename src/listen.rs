//! Listeners: who wants which events, each behind a bounded queue of its own.
//!
//! [`Listeners`] hands every event to the listeners whose pattern it matches, in order. What happens
//! when one of them is slow is that listener's own policy ([`OnFull`]); it is always told what it
//! did not get.

mod queue;

use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use iroh::EndpointId;
use n0_error::{e, stack_error};
use n0_future::Stream;
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::queue::Full;
use crate::{
    event::{DecodeError, Envelope, TypedEvent},
    pattern::Pattern,
    position::Position,
    spoke::SpokeStatus,
    spoke_id::SpokeId,
    via::Via,
};

/// Where an event came from. The ids are proven by the connection it came along, or by the hub's
/// signature.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Source {
    /// The hub with this id.
    Hub(EndpointId),
    /// A spoke of this hub.
    Spoke(SpokeId),
    /// This process.
    Local,
}

/// An event as a listener gets it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Event {
    /// What was sent.
    pub envelope: Envelope,
    /// Who sent it.
    pub source: Source,
    /// Where it stands in the hub's log. Only broadcasts that came by the native protocol have a
    /// position.
    pub position: Option<Position>,
    /// The path it came along, for a spoke's listeners.
    pub via: Option<Via>,
    /// Whether it was sent to this spoke alone.
    pub targeted: bool,
}

impl Event {
    pub(crate) fn new(envelope: Envelope, source: Source) -> Self {
        Self {
            envelope,
            source,
            position: None,
            via: None,
            targeted: false,
        }
    }
}

/// Broadcasts that this spoke will never see: the hub's log no longer had them, they were over the spoke's
/// own limit, or the log that they were in is gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Missed {
    /// The first one missed.
    pub from: Position,
    /// The first one after it that was not. In another epoch, if the hub's log began anew: how many events
    /// of the old one there were after `from` is not known then, and may be none.
    pub to: Position,
}

impl Missed {
    /// How many; unknown if the hub's log began anew in between.
    pub fn events(&self) -> Option<u64> {
        let of_one_log = self.from.epoch == self.to.epoch;
        let events = self.to.offset.checked_sub(self.from.offset);
        events.filter(|_| of_one_log)
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        match self.events() {
            Some(_) => write!(f, "missed the events from {from} to before {to}"),
            None => write!(
                f,
                "missed what may have followed {from}: the hub's log began anew, and it goes on at {to}"
            ),
        }
    }
}

/// Events that this listener did not get because it was too slow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Lagged {
    /// How many.
    pub events: u64,
}

/// What a listener receives.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Incoming {
    /// An event.
    Event(Event),
    /// A hole in what the hub broadcast; the events behind it follow.
    Missed(Missed),
    /// A hole that this listener made by being slow; the events behind it follow.
    Lagged(Lagged),
    /// What became of the spoke's link, in its place among the events. Only for listeners that ask for it
    /// ([`ListenOptions::statuses`]).
    Status(SpokeStatus),
}

/// What to do with an event when a listener's queue is full.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum OnFull {
    /// Hold back the link that the event came along, until the listener has room or the time is
    /// over; then as [`Lag`](Self::Lag), until the listener has caught up.
    Hold {
        /// How long at most.
        at_most: Duration,
    },
    /// Drop the event for this listener and tell it with [`Incoming::Lagged`].
    Lag,
}

/// How a listener is served.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct ListenOptions {
    /// How many events may wait in the listener's queue, and up to 32 (an eighth of this, if that is less) beyond it, which
    /// the listener has taken at once. Default 1,024; at least 1.
    pub capacity: usize,
    /// How many bytes of events may wait in it, 256 bytes for each included; one event is always taken. Default 64 MiB.
    pub capacity_bytes: usize,
    /// What to do when they do. Default: hold for at most 30 s.
    pub on_full: OnFull,
    /// Whether the listener gets [`Incoming::Status`] too. Default: no.
    pub statuses: bool,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            capacity: 1024,
            capacity_bytes: 64 << 20,
            on_full: OnFull::Hold {
                at_most: Duration::from_secs(30),
            },
            statuses: false,
        }
    }
}

impl ListenOptions {
    /// Sets [`capacity`](Self::capacity).
    pub fn capacity(mut self, events: usize) -> Self {
        self.capacity = events;
        self
    }

    /// Sets [`capacity_bytes`](Self::capacity_bytes).
    pub fn capacity_bytes(mut self, bytes: usize) -> Self {
        self.capacity_bytes = bytes;
        self
    }

    /// Sets [`on_full`](Self::on_full).
    pub fn on_full(mut self, on_full: OnFull) -> Self {
        self.on_full = on_full;
        self
    }

    /// Sets [`statuses`](Self::statuses).
    pub fn statuses(mut self, statuses: bool) -> Self {
        self.statuses = statuses;
        self
    }
}

/// What an item costs beside its bytes.
const ITEM_COST: usize = 256;

#[derive(Debug)]
struct Slot {
    pattern: Pattern,
    on_full: OnFull,
    statuses: bool,
    queue: queue::Sender,
}

/// The listeners of one hub, spoke or local target.
#[derive(Debug)]
pub(crate) struct Listeners {
    now: Mutex<Now>,
    /// Says when there is the first listener, or there will be none.
    begun: watch::Sender<bool>,
    grace: Duration,
    grace_ends: OnceLock<Instant>,
    /// Says when nothing more comes.
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct Now {
    slots: Vec<Arc<Slot>>,
    /// Whether there has been a listener.
    begun: bool,
    /// Nothing more comes.
    closed: bool,
}

impl Listeners {
    /// `grace` is how long events wait for the very first listener, counted from now, so that none
    /// is lost between making a hub or spoke and listening to it.
    pub(crate) fn new(grace: Duration) -> Self {
        let listeners = Self::unbegun(grace);
        listeners.begin_grace();
        listeners
    }

    /// As [`new`](Self::new), with a grace that begins later.
    pub(crate) fn unbegun(grace: Duration) -> Self {
        Self {
            now: Mutex::default(),
            begun: watch::Sender::new(false),
            grace,
            grace_ends: OnceLock::new(),
            closed: CancellationToken::new(),
        }
    }

    /// The time that events wait for the very first listener counts from now, or from the first call.
    pub(crate) fn begin_grace(&self) -> Instant {
        *self.grace_ends.get_or_init(|| Instant::now() + self.grace)
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, pattern: Pattern, options: ListenOptions) -> Listener {
        let (queue, incoming) = queue::queue(options.capacity, options.capacity_bytes);
        {
            let mut now = self.now();
            now.begun = true;
            // One that comes after the end is at its end at once.
            if !now.closed {
                now.slots.push(Arc::new(Slot {
                    pattern,
                    on_full: options.on_full,
                    statuses: options.statuses,
                    queue,
                }));
            }
        }
        self.begun.send_replace(true);
        Listener { incoming }
    }

    /// Hands an item to every listener that wants it, waiting as their policies say.
    ///
    /// Not cancel safe: a listener may be left out.
    pub(crate) async fn dispatch(&self, item: Incoming) {
        self.hand_out(item, || {}).await;
    }

    /// Hands an item to every listener that wants it, if all of them have room now and there has been one; else gives it
    /// back, and nobody has it. Calls `handed` before any listener can see the item.
    #[expect(clippy::result_large_err, reason = "the item itself, given back")]
    pub(crate) fn try_hand_out(
        &self,
        item: Incoming,
        handed: impl FnOnce(),
    ) -> Result<(), Incoming> {
        let now = self.now();
        if !now.begun || now.closed {
            return Err(item);
        }
        let bytes = cost(&item);
        let mut wanting = now.slots.iter().filter(|slot| slot.wants(&item));
        let Some(last) = wanting.next() else {
            handed();
            return Ok(());
        };
        let Ok(last_place) = last.queue.try_place(bytes) else {
            return Err(item);
        };
        let mut others = Vec::new();
        for slot in wanting {
            match slot.queue.try_place(bytes) {
                Ok(place) => others.push(place),
                Err(_) => return Err(item),
            }
        }
        handed();
        for place in others {
            place.put(item.clone());
        }
        last_place.put(item);
        Ok(())
    }

    /// As [`dispatch`](Self::dispatch). Calls `handed` before any listener can see the item, and not before
    /// one has room for it; more than once if there are several.
    pub(crate) async fn hand_out(&self, item: Incoming, handed: impl Fn()) {
        if !*self.begun.borrow() {
            let mut begun = self.begun.subscribe();
            let _ = timeout_at(self.begin_grace(), begun.wait_for(|begun| *begun)).await;
        }
        let bytes = cost(&item);
        let mut closed = false;
        // Under the lock, since no waker of tokio's comes back here. Whoever has room is served at once; only those who
        // are to be waited for cost more than that.
        let mut full = Vec::new();
        {
            let now = self.now();
            // Nobody gets it, so it is not handed out.
            if now.closed {
                return;
            }
            for slot in now.slots.iter().filter(|slot| slot.wants(&item)) {
                match slot.give_now(&item, bytes, &handed) {
                    Given::Done => {}
                    Given::Wait(at_most) => full.push((slot.clone(), at_most)),
                    Given::Closed => closed = true,
                }
            }
        }
        for (slot, at_most) in full {
            tokio::select! {
                biased;
                () = slot.give(item.clone(), bytes, at_most, &handed) => {}
                // Who holds back is not waited for when everything ends.
                () = self.closed.cancelled() => return,
            }
            closed |= slot.queue.is_closed();
        }
        handed();
        if closed {
            self.now().slots.retain(|slot| !slot.queue.is_closed());
        }
    }

    /// Ends every listener once it has taken what is queued.
    pub(crate) fn close(&self) {
        let slots = {
            let mut now = self.now();
            now.closed = true;
            std::mem::take(&mut now.slots)
        };
        self.closed.cancel();
        drop(slots);
        self.begun.send_replace(true);
    }
}

/// What an item costs the queue that it waits in.
fn cost(item: &Incoming) -> usize {
    let bytes = match item {
        Incoming::Event(event) => event.envelope.size(),
        Incoming::Missed(_) | Incoming::Lagged(_) | Incoming::Status(_) => 0,
    };
    bytes.saturating_add(ITEM_COST)
}

/// What became of an item for one listener.
enum Given {
    /// It has it, or has been told that it is too slow for it.
    Done,
    /// It has no room, and wants the link to be held back for so long at most.
    Wait(Duration),
    /// Nobody listens any more.
    Closed,
}

impl Slot {
    fn wants(&self, item: &Incoming) -> bool {
        match item {
            Incoming::Event(event) => {
                self.pattern.is_any() || self.pattern.matches(event.envelope.event_type())
            }
            Incoming::Missed(_) | Incoming::Lagged(_) => true,
            Incoming::Status(_) => self.statuses,
        }
    }

    fn give_now(&self, item: &Incoming, bytes: usize, handed: impl Fn()) -> Given {
        match self.queue.try_place(bytes) {
            Ok(place) => {
                handed();
                place.put(item.clone());
                Given::Done
            }
            Err(Full::Closed) => Given::Closed,
            Err(Full::NoRoom) => match self.on_full {
                // Who was waited for in vain is not waited for again before it has caught up.
                OnFull::Hold { at_most } if !self.queue.is_behind() => Given::Wait(at_most),
                OnFull::Hold { .. } | OnFull::Lag => {
                    self.drop_one(item);
                    Given::Done
                }
            },
        }
    }

    /// Waits for room.
    async fn give(&self, item: Incoming, bytes: usize, at_most: Duration, handed: impl Fn()) {
        let placed = match self.queue.try_place(bytes) {
            Ok(place) => Ok(Some(place)),
            Err(Full::Closed) => return,
            // While others were waited for, this one may have been, in vain.
            Err(Full::NoRoom) if self.queue.is_behind() => return self.drop_one(&item),
            Err(Full::NoRoom) => timeout(at_most, self.queue.place(bytes)).await,
        };
        match placed {
            Ok(Some(place)) => {
                handed();
                place.put(item);
            }
            Ok(None) => {}
            Err(_) => self.drop_one(&item),
        }
    }

    fn drop_one(&self, item: &Incoming) {
        let events = match item {
            Incoming::Event(_) => 1,
            // Of how many there were nothing more is known.
            Incoming::Missed(missed) => missed.events().unwrap_or(1),
            Incoming::Lagged(lagged) => lagged.events,
            Incoming::Status(_) => return,
        };
        self.queue.drop_events(events);
    }
}

/// Receives the events that match one pattern.
///
/// Also a [`Stream`] of [`Incoming`]. Dropping it ends the listening.
#[derive(Debug)]
pub struct Listener {
    incoming: queue::Receiver,
}

impl Listener {
    /// The next event, or what stands in its place; `None` once its hub or spoke is closed and
    /// everything was taken.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is lost if the future is dropped.
    pub async fn recv(&mut self) -> Option<Incoming> {
        std::future::poll_fn(|cx| self.incoming.poll_next(cx)).await
    }

    /// Reads the events as `T`; see [`TypedListener`].
    pub fn typed<T: TypedEvent>(self) -> TypedListener<T> {
        TypedListener {
            listener: self,
            of: PhantomData,
        }
    }
}

impl Stream for Listener {
    type Item = Incoming;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.incoming.poll_next(cx)
    }
}

/// Receives the events of one type as values of `T`.
///
/// An event whose payload is not a `T` comes as an error value; the listening goes on behind it.
#[derive(Debug)]
pub struct TypedListener<T> {
    listener: Listener,
    of: PhantomData<fn() -> T>,
}

/// A value and the event that carried it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Typed<T> {
    /// What the payload says.
    pub value: T,
    /// The event, with its source and position.
    pub event: Event,
}

/// What a typed listener gets in place of an event.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum TypedListenError {
    /// The payload is not of the listener's type.
    #[error("an event could not be read")]
    Decode {
        /// The event as it came.
        event: Box<Event>,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The hub's log no longer had some events.
    #[error("{missed}")]
    Missed {
        /// Which ones.
        missed: Missed,
    },
    /// This listener was too slow for some events.
    #[error("this listener was too slow for {} events", lagged.events)]
    Lagged {
        /// How many.
        lagged: Lagged,
    },
}

impl<T: TypedEvent> TypedListener<T> {
    /// The next event of the type, or what stands in its place; `None` once its hub or spoke is
    /// closed.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<Result<Typed<T>, TypedListenError>> {
        loop {
            return Some(match self.listener.recv().await? {
                Incoming::Event(event) => match event.envelope.payload() {
                    Ok(value) => Ok(Typed { value, event }),
                    Err(source) => Err(e!(TypedListenError::Decode {
                        event: Box::new(event),
                        source
                    })),
                },
                Incoming::Missed(missed) => Err(e!(TypedListenError::Missed { missed })),
                Incoming::Lagged(lagged) => Err(e!(TypedListenError::Lagged { lagged })),
                // There is no value to make of it.
                Incoming::Status(_) => continue,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn event(n: usize) -> Incoming {
        Incoming::Event(Event::new(Envelope::new("n", &n).unwrap(), Source::Local))
    }

    fn number(incoming: &Incoming) -> usize {
        match incoming {
            Incoming::Event(event) => event.envelope.payload().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn listeners() -> Listeners {
        Listeners::new(Duration::ZERO)
    }

    #[tokio::test]
    async fn a_slow_listener_is_bounded_and_told_and_disturbs_no_other() {
        let listeners = listeners();
        let options = ListenOptions::default();
        let mut slow = listeners.add("n".into(), options.capacity(2).on_full(OnFull::Lag));
        let mut quick = listeners.add("*".into(), options);
        for n in 0..10 {
            listeners.dispatch(event(n)).await;
        }
        for n in 0..10 {
            assert_eq!(number(&quick.recv().await.unwrap()), n);
        }
        assert_eq!(number(&slow.recv().await.unwrap()), 0);
        listeners.dispatch(event(10)).await;
        assert_eq!(number(&slow.recv().await.unwrap()), 1);
        assert_eq!(
            slow.recv().await,
            Some(Incoming::Lagged(Lagged { events: 8 }))
        );
        assert_eq!(number(&slow.recv().await.unwrap()), 10);
    }

    #[tokio::test]
    async fn who_has_room_does_not_wait_for_who_holds_back() {
        let listeners = Arc::new(listeners());
        let options = ListenOptions::default();
        let mut holds = listeners.add("n".into(), options.capacity(1));
        let mut quick = listeners.add("n".into(), options);
        listeners.dispatch(event(0)).await;
        let handed = Arc::new(AtomicU64::new(0));
        let second = tokio::spawn({
            let (listeners, handed) = (listeners.clone(), handed.clone());
            async move {
                let handed = || {
                    handed.fetch_add(1, Ordering::AcqRel);
                };
                listeners.hand_out(event(1), handed).await;
            }
        });
        for n in 0..2 {
            assert_eq!(number(&quick.recv().await.unwrap()), n);
        }
        // Before it could be seen.
        assert!(handed.load(Ordering::Acquire) >= 1);
        assert!(!second.is_finished());
        for n in 0..2 {
            assert_eq!(number(&holds.recv().await.unwrap()), n);
        }
        second.await.unwrap();
    }

    #[tokio::test]
    async fn what_waits_for_a_listener_is_bounded_in_bytes_too() {
        let listeners = Arc::new(listeners());
        let large = |n: usize| {
            let envelope = Envelope::new("n", &n).unwrap();
            let envelope = envelope.with_id(&"x".repeat(200)).unwrap();
            Incoming::Event(Event::new(envelope, Source::Local))
        };
        let options = ListenOptions::default().capacity_bytes(1000);
        let mut lags = listeners.add("n".into(), options.on_full(OnFull::Lag));
        let mut holds = listeners.add("n".into(), options);
        // Two have room, of some five hundred bytes each.
        listeners.dispatch(large(0)).await;
        listeners.dispatch(large(1)).await;
        let third = tokio::spawn({
            let (listeners, item) = (listeners.clone(), large(2));
            async move { listeners.dispatch(item).await }
        });
        tokio::task::yield_now().await;
        assert!(!third.is_finished());
        for n in 0..3 {
            assert_eq!(number(&holds.recv().await.unwrap()), n);
        }
        third.await.unwrap();
        for n in 0..2 {
            assert_eq!(number(&lags.recv().await.unwrap()), n);
        }
        let lagged = Incoming::Lagged(Lagged { events: 1 });
        assert_eq!(lags.recv().await, Some(lagged));
        // One event is always taken, whatever its size.
        let listeners = super::Listeners::new(Duration::ZERO);
        let mut narrow = listeners.add("n".into(), options.capacity_bytes(0));
        listeners.dispatch(large(7)).await;
        assert_eq!(number(&narrow.recv().await.unwrap()), 7);
    }

    #[tokio::test]
    async fn at_the_end_nobody_is_waited_for_and_who_comes_later_gets_nothing() {
        let listeners = Arc::new(listeners());
        let hold = OnFull::Hold {
            at_most: Duration::from_secs(3600),
        };
        let options = ListenOptions::default().capacity(1).on_full(hold);
        let mut slow = listeners.add("n".into(), options);
        listeners.dispatch(event(0)).await;
        let held = tokio::spawn({
            let listeners = listeners.clone();
            async move { listeners.dispatch(event(1)).await }
        });
        tokio::task::yield_now().await;
        assert!(!held.is_finished());
        listeners.close();
        held.await.unwrap();
        let mut late = listeners.add("n".into(), options);
        assert_eq!(late.recv().await, None);
        // What was queued is taken.
        assert_eq!(number(&slow.recv().await.unwrap()), 0);
        assert_eq!(slow.recv().await, None);
    }

    #[tokio::test]
    async fn a_listener_that_has_taken_everything_is_told_what_it_lost_at_the_end() {
        let listeners = listeners();
        let options = ListenOptions::default().capacity(1).on_full(OnFull::Lag);
        let mut slow = listeners.add("n".into(), options);
        for n in 0..3 {
            listeners.dispatch(event(n)).await;
        }
        assert_eq!(number(&slow.recv().await.unwrap()), 0);
        assert_eq!(
            slow.recv().await,
            Some(Incoming::Lagged(Lagged { events: 2 }))
        );
        listeners.close();
        assert_eq!(slow.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_holds_the_link_back_only_as_long_as_it_may() {
        let listeners = listeners();
        let at_most = Duration::from_secs(5);
        let mut slow = listeners.add(
            "n".into(),
            ListenOptions::default()
                .capacity(1)
                .on_full(OnFull::Hold { at_most }),
        );
        let begin = Instant::now();
        for n in 0..4 {
            listeners.dispatch(event(n)).await;
        }
        // Once, not three times: it is not waited for again before it has caught up.
        assert_eq!(begin.elapsed().as_secs(), 5);
        assert_eq!(number(&slow.recv().await.unwrap()), 0);
        assert_eq!(
            slow.recv().await,
            Some(Incoming::Lagged(Lagged { events: 3 }))
        );
    }

    #[tokio::test]
    async fn events_wait_for_the_first_listener() {
        let listeners = Arc::new(Listeners::new(Duration::from_secs(60)));
        let dispatching = tokio::spawn({
            let listeners = listeners.clone();
            async move { listeners.dispatch(event(7)).await }
        });
        tokio::task::yield_now().await;
        let mut listener = listeners.add(Pattern::any(), ListenOptions::default());
        dispatching.await.unwrap();
        assert_eq!(number(&listener.recv().await.unwrap()), 7);
    }

    #[tokio::test]
    async fn a_listener_gets_what_its_pattern_matches_until_it_is_dropped() {
        let listeners = listeners();
        let mut orders = listeners.add("order.*".into(), ListenOptions::default());
        for kind in ["order.a", "price", "order.b"] {
            let envelope = Envelope::new(kind, &()).unwrap();
            listeners
                .dispatch(Incoming::Event(Event::new(envelope, Source::Local)))
                .await;
        }
        for kind in ["order.a", "order.b"] {
            let Some(Incoming::Event(event)) = orders.recv().await else {
                panic!("no event")
            };
            assert_eq!(event.envelope.event_type(), kind);
        }
        drop(orders);
        listeners.dispatch(event(1)).await;
        listeners
            .dispatch(Incoming::Lagged(Lagged { events: 1 }))
            .await;
        assert!(listeners.now().slots.is_empty());
    }
}

//! What waits for one listener: bounded in items and in bytes, and taken several at a time.
//!
//! Not a channel of tokio's, since items are large and come by the hundred thousand a second: its blocks would be allocated
//! over and over, and every item would be released by itself.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use tokio::{
    sync::{Semaphore, SemaphorePermit, TryAcquireError},
    task::coop::poll_proceed,
};

use super::{Incoming, Lagged};

/// Items that a listener takes at once.
const MOST_AT_ONCE: usize = 32;
/// And what part of the queue, so that no more than this waits beyond its bounds.
const PART_AT_ONCE: usize = 8;
/// Items for which an empty queue keeps room.
const KEPT: usize = 64;

#[derive(Debug)]
struct Queued {
    /// Events dropped right before this item.
    lagged: u64,
    item: Incoming,
    /// Its bytes of the queue.
    cost: u32,
}

#[derive(Debug)]
struct Shared {
    /// How many more items may come, and how many bytes; closed when nobody listens any more.
    places: Semaphore,
    room: Semaphore,
    /// How many bytes may wait.
    bytes: u32,
    items_at_once: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<Queued>,
    /// Events dropped since the last item.
    lagged: u64,
    /// Nothing more comes.
    ended: bool,
    listener: Option<Waker>,
}

/// Wakes the listener, without the lock.
fn wake(mut waiting: MutexGuard<'_, Waiting>) {
    let listener = waiting.listener.take();
    drop(waiting);
    if let Some(listener) = listener {
        listener.wake();
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue for so many items and bytes, at least one each.
pub(super) fn queue(capacity: usize, capacity_bytes: usize) -> (Sender, Receiver) {
    let capacity = capacity.clamp(1, Semaphore::MAX_PERMITS);
    let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
    let bytes = u32::try_from(capacity_bytes.max(1)).unwrap_or(most);
    let shared = Arc::new(Shared {
        places: Semaphore::new(capacity),
        room: Semaphore::new(bytes as usize),
        bytes,
        items_at_once: (capacity / PART_AT_ONCE).clamp(1, MOST_AT_ONCE),
        waiting: Mutex::default(),
    });
    let taken = VecDeque::new();
    (Sender(shared.clone()), Receiver { shared, taken })
}

/// Why there is no place in a queue.
#[derive(Debug)]
pub(super) enum Full {
    NoRoom,
    Closed,
}

impl From<TryAcquireError> for Full {
    fn from(error: TryAcquireError) -> Self {
        match error {
            TryAcquireError::Closed => Self::Closed,
            TryAcquireError::NoPermits => Self::NoRoom,
        }
    }
}

/// The end of a queue that items come in at. Dropping it ends the queue behind what waits there.
#[derive(Debug)]
pub(super) struct Sender(Arc<Shared>);

/// A place in a queue for one item; given back if it is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    shared: &'a Shared,
    place: SemaphorePermit<'a>,
    room: SemaphorePermit<'a>,
    cost: u32,
}

impl Sender {
    /// What an item of so many bytes costs here: what is larger than all there is takes all there is.
    fn cost(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.0.bytes)
    }

    /// A place for so many bytes, if there is one.
    pub(super) fn try_place(&self, bytes: usize) -> Result<Place<'_>, Full> {
        let (shared, cost) = (&*self.0, self.cost(bytes));
        Ok(Place {
            shared,
            place: shared.places.try_acquire()?,
            room: shared.room.try_acquire_many(cost)?,
            cost,
        })
    }

    /// Waits for a place; `None` if nobody listens any more.
    ///
    /// Cancel safe: no place is kept.
    pub(super) async fn place(&self, bytes: usize) -> Option<Place<'_>> {
        let (shared, cost) = (&*self.0, self.cost(bytes));
        // Who waits for bytes has a place for them already, so that nobody gets in between.
        let place = shared.places.acquire().await.ok()?;
        let room = shared.room.acquire_many(cost).await.ok()?;
        Some(Place {
            shared,
            place,
            room,
            cost,
        })
    }

    /// Counts events that were dropped behind what waits.
    pub(super) fn drop_events(&self, events: u64) {
        let mut waiting = self.0.waiting();
        waiting.lagged = waiting.lagged.saturating_add(events);
        wake(waiting);
    }

    /// Whether events were dropped behind what waits.
    pub(super) fn is_behind(&self) -> bool {
        self.0.waiting().lagged > 0
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.places.is_closed()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        waiting.ended = true;
        wake(waiting);
    }
}

impl Place<'_> {
    pub(super) fn put(self, item: Incoming) {
        let Self {
            shared,
            place,
            room,
            cost,
        } = self;
        // Given back by the listener.
        place.forget();
        room.forget();
        let mut waiting = shared.waiting();
        let lagged = std::mem::take(&mut waiting.lagged);
        waiting.items.push_back(Queued { lagged, item, cost });
        wake(waiting);
    }
}

/// The listener's end. Dropping it closes the queue.
#[derive(Debug)]
pub(super) struct Receiver {
    shared: Arc<Shared>,
    /// What was taken out of the queue and is still to be given.
    taken: VecDeque<Queued>,
}

impl Receiver {
    /// The next item, or how many were dropped before it; `None` at the end.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        let turn = ready!(poll_proceed(cx));
        if self.taken.is_empty() {
            let shared = &*self.shared;
            let mut waiting = shared.waiting();
            if waiting.items.is_empty() {
                // What waited came before the hole.
                match std::mem::take(&mut waiting.lagged) {
                    0 if waiting.ended => return Poll::Ready(None),
                    0 => {
                        let waker = cx.waker();
                        let same = waiting.listener.as_ref();
                        if !same.is_some_and(|known| known.will_wake(waker)) {
                            waiting.listener = Some(waker.clone());
                        }
                        return Poll::Pending;
                    }
                    events => {
                        turn.made_progress();
                        return Poll::Ready(Some(Incoming::Lagged(Lagged { events })));
                    }
                }
            }
            let (mut places, mut bytes) = (0, 0usize);
            let part = shared.bytes as usize / PART_AT_ONCE;
            while places < shared.items_at_once
                && (places == 0 || bytes < part)
                && let Some(queued) = waiting.items.pop_front()
            {
                places += 1;
                bytes += queued.cost as usize;
                self.taken.push_back(queued);
            }
            if waiting.items.is_empty() {
                waiting.items.shrink_to(KEPT);
            }
            drop(waiting);
            shared.places.add_permits(places);
            shared.room.add_permits(bytes);
        }
        turn.made_progress();
        let Some(next) = self.taken.front_mut() else {
            return Poll::Ready(None);
        };
        Poll::Ready(match std::mem::take(&mut next.lagged) {
            0 => self.taken.pop_front().map(|queued| queued.item),
            events => Some(Incoming::Lagged(Lagged { events })),
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.places.close();
        self.shared.room.close();
        // Not under the lock: what an item drops is not ours.
        let items = std::mem::take(&mut self.shared.waiting().items);
        drop(items);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        event::Envelope,
        listen::{Event, Source},
    };

    fn event(n: u64) -> Incoming {
        Incoming::Event(Event::new(Envelope::new("n", &n).unwrap(), Source::Local))
    }

    #[derive(Clone, Debug)]
    enum Op {
        Put { bytes: usize },
        Drop { events: u64 },
        Take,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0usize..200).prop_map(|bytes| Op::Put { bytes }),
            1 => (1u64..5).prop_map(|events| Op::Drop { events }),
            3 => Just(Op::Take),
        ]
    }

    proptest! {
        #[test]
        fn what_is_put_comes_out_in_order_with_the_holes_in_their_places_and_within_bounds(
            capacity in 1usize..40,
            bytes in 1usize..2000,
            ops in prop::collection::vec(op(), 0..200),
        ) {
            let (sender, mut receiver) = queue(capacity, bytes);
            // An event, or how many were dropped; with its cost.
            let mut model: VecDeque<(Incoming, usize)> = VecDeque::new();
            let mut cx = Context::from_waker(Waker::noop());
            let mut number = 0;
            let lost = |events| Incoming::Lagged(Lagged { events });
            for op in ops {
                match op {
                    Op::Put { bytes: len } => {
                        let cost = len.min(bytes);
                        let events = model.iter().filter(|(_, cost)| *cost != usize::MAX).count();
                        match sender.try_place(len) {
                            Ok(place) => {
                                number += 1;
                                place.put(event(number));
                                model.push_back((event(number), cost));
                                let most = capacity + (capacity / PART_AT_ONCE).clamp(1, MOST_AT_ONCE);
                                prop_assert!(events < most);
                            }
                            Err(Full::NoRoom) => {
                                let used: usize = model
                                    .iter()
                                    .map(|(_, cost)| *cost)
                                    .filter(|cost| *cost != usize::MAX)
                                    .sum();
                                prop_assert!(events >= capacity || used + cost > bytes);
                            }
                            Err(Full::Closed) => prop_assert!(false, "somebody listens"),
                        }
                    }
                    Op::Drop { events } => {
                        sender.drop_events(events);
                        match model.back_mut() {
                            Some((Incoming::Lagged(lagged), _)) => lagged.events += events,
                            _ => model.push_back((lost(events), usize::MAX)),
                        }
                    }
                    Op::Take => match (receiver.poll_next(&mut cx), model.pop_front()) {
                        (Poll::Ready(Some(got)), Some((due, _))) => prop_assert_eq!(got, due),
                        (Poll::Pending, None) => {}
                        other => prop_assert!(false, "{:?}", other),
                    },
                }
            }
            drop(sender);
            for (due, _) in model {
                prop_assert_eq!(receiver.poll_next(&mut cx), Poll::Ready(Some(due)));
            }
            prop_assert_eq!(receiver.poll_next(&mut cx), Poll::Ready(None));
        }
    }

    #[tokio::test]
    async fn who_waits_for_a_place_gets_it_when_the_listener_takes_and_learns_that_it_has_gone() {
        let (sender, mut receiver) = queue(1, 100);
        sender.try_place(10).unwrap().put(event(1));
        {
            let waits = sender.place(10);
            tokio::pin!(waits);
            assert!(is_pending(waits.as_mut()));
            let taken = std::future::poll_fn(|cx| receiver.poll_next(cx)).await;
            assert_eq!(taken, Some(event(1)));
            waits.await.unwrap().put(event(2));
        }
        let waits = sender.place(10);
        tokio::pin!(waits);
        assert!(is_pending(waits.as_mut()));
        drop(receiver);
        assert!(waits.await.is_none());
        assert!(matches!(sender.try_place(1), Err(Full::Closed)));
        assert!(sender.is_closed());
    }

    fn is_pending<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
        future
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    }
}

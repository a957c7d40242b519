//! From the session to the listeners, in order.
//!
//! Whoever has room is served by the session itself. What a listener has to be waited for goes through a queue, behind
//! which a task waits for it, as the listener's policy says; until that queue is empty again, everything goes through it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

use super::shared::Shared;
use crate::{
    listen::{Incoming, Listeners},
    position::Position,
};

/// The session's end.
#[derive(Clone, Debug)]
pub(super) struct Deliverer {
    queue: mpsc::Sender<Queued>,
    outlet: Outlet,
}

/// What comes out of the queue, for [`deliver_all`].
#[derive(Debug)]
pub(super) struct Deliveries {
    queue: mpsc::Receiver<Queued>,
    outlet: Outlet,
}

#[derive(Clone, Debug)]
struct Outlet {
    listeners: Arc<Listeners>,
    shared: Arc<Shared>,
    /// Items in the queue, and the one that is being handed out.
    waiting: Arc<AtomicUsize>,
}

/// A place in the queue for one item.
pub(super) struct Place<'a> {
    permit: mpsc::Permit<'a, Queued>,
    outlet: &'a Outlet,
}

/// An item that is counted as waiting until it has been handed out.
#[derive(Debug)]
struct Queued {
    item: Incoming,
    _counted: Counted,
}

#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// `capacity` is how many items may wait in the queue.
pub(super) fn deliverer(
    listeners: Arc<Listeners>,
    shared: Arc<Shared>,
    capacity: usize,
) -> (Deliverer, Deliveries) {
    let (queue, taken) = mpsc::channel(capacity);
    let outlet = Outlet {
        listeners,
        shared,
        waiting: Arc::default(),
    };
    let deliveries = Deliveries {
        queue: taken,
        outlet: outlet.clone(),
    };
    (Deliverer { queue, outlet }, deliveries)
}

impl Deliverer {
    /// A place for one item, if there is one now.
    pub(super) fn try_reserve(&self) -> Option<Place<'_>> {
        let permit = self.queue.try_reserve().ok()?;
        Some(Place {
            permit,
            outlet: &self.outlet,
        })
    }

    /// Waits until there is a place; false if nobody will take anything any more. The place is not kept.
    ///
    /// Cancel safe.
    pub(super) async fn has_place(&self) -> bool {
        self.queue.reserve().await.is_ok()
    }

    /// Delivers an item once there is a place for it; false if nobody will take anything any more.
    ///
    /// Cancel safe: the item is delivered, or was not.
    pub(super) async fn deliver(&self, item: Incoming) -> bool {
        let Ok(permit) = self.queue.reserve().await else {
            return false;
        };
        let outlet = &self.outlet;
        Place { permit, outlet }.put(item);
        true
    }
}

impl Place<'_> {
    pub(super) fn put(self, item: Incoming) {
        let Self { permit, outlet } = self;
        // Only the session adds to what waits, so that nothing comes in between here.
        let item = match outlet.waiting.load(Ordering::Acquire) {
            0 => match outlet.try_hand_out(item) {
                Ok(()) => return,
                Err(item) => item,
            },
            _ => item,
        };
        outlet.waiting.fetch_add(1, Ordering::Relaxed);
        permit.send(Queued {
            item,
            _counted: Counted(outlet.waiting.clone()),
        });
    }
}

impl Outlet {
    #[expect(clippy::result_large_err, reason = "the item itself, given back")]
    fn try_hand_out(&self, item: Incoming) -> Result<(), Incoming> {
        let position = behind(&item);
        self.listeners.try_hand_out(item, || self.passed(position))
    }

    fn passed(&self, position: Option<Position>) {
        if let Some(position) = position {
            self.shared.set_position(position);
        }
    }
}

/// The position behind an item, if it has one.
fn behind(item: &Incoming) -> Option<Position> {
    match item {
        Incoming::Event(event) => event.position.map(Position::next),
        Incoming::Missed(missed) => Some(missed.to),
        Incoming::Lagged(_) | Incoming::Status(_) => None,
    }
}

/// Hands out what is queued until the session has ended, and ends the listeners.
pub(super) async fn deliver_all(deliveries: Deliveries) {
    let Deliveries { mut queue, outlet } = deliveries;
    while let Some(Queued { item, _counted }) = queue.recv().await {
        let position = behind(&item);
        let handed = || outlet.passed(position);
        outlet.listeners.hand_out(item, handed).await;
    }
    outlet.listeners.close();
}

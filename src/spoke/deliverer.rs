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
#[derive(Debug)]
pub(super) struct Deliverer {
    queue: mpsc::Sender<Queued>,
    /// A place in it that was not needed yet.
    spare: Option<mpsc::OwnedPermit<Queued>>,
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
    permit: mpsc::OwnedPermit<Queued>,
    spare: &'a mut Option<mpsc::OwnedPermit<Queued>>,
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
    let deliverer = Deliverer {
        queue,
        spare: None,
        outlet,
    };
    (deliverer, deliveries)
}

impl Clone for Deliverer {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            spare: None,
            outlet: self.outlet.clone(),
        }
    }
}

impl Deliverer {
    /// A place for one item, if there is one now.
    pub(super) fn try_reserve(&mut self) -> Option<Place<'_>> {
        let permit = match self.spare.take() {
            Some(permit) => permit,
            None => self.queue.clone().try_reserve_owned().ok()?,
        };
        Some(Place {
            permit,
            spare: &mut self.spare,
            outlet: &self.outlet,
        })
    }

    /// Waits until there is a place; false if nobody will take anything any more. The place is not kept.
    ///
    /// Cancel safe.
    pub(super) async fn has_place(&self) -> bool {
        self.spare.is_some() || self.queue.reserve().await.is_ok()
    }

    /// Delivers an item once there is a place for it; false if nobody will take anything any more.
    ///
    /// Cancel safe: the item is delivered, or was not.
    pub(super) async fn deliver(&mut self, item: Incoming) -> bool {
        if !self.has_place().await {
            return false;
        }
        // Only we take places.
        match self.try_reserve() {
            Some(place) => place.put(item),
            None => return false,
        }
        true
    }
}

impl Place<'_> {
    /// Hands an item out at once, if everyone who wants it has room and nothing waits before it.
    #[expect(clippy::result_large_err, reason = "the item itself, given back")]
    pub(super) fn try_put(self, item: Incoming) -> Result<(), (Self, Incoming)> {
        // Only the session adds to what waits, so that nothing comes in between here.
        if self.is_behind() {
            return Err((self, item));
        }
        match self.outlet.try_hand_out(item) {
            Ok(()) => {
                *self.spare = Some(self.permit);
                Ok(())
            }
            Err(item) => Err((self, item)),
        }
    }

    /// Whether something waits before it.
    pub(super) fn is_behind(&self) -> bool {
        self.outlet.waiting.load(Ordering::Acquire) > 0
    }

    /// Hands an item out at once, or lets it wait.
    pub(super) fn put(self, item: Incoming) {
        let Err((place, item)) = self.try_put(item) else {
            return;
        };
        let Self { permit, outlet, .. } = place;
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

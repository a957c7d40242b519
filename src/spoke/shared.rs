//! What a spoke's handle and its tasks share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use iroh::endpoint::Connection;

use super::{
    config::{From, SpokeConfig},
    outbox::{Lost, Outbox},
    status::{SpokeStatus, Statuses},
};
use crate::{
    close::{CloseCode, Closed},
    delivery::Loss,
    metrics::SpokeMetrics,
    position::Position,
};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: SpokeConfig,
    pub(super) outbox: Outbox,
    pub(super) statuses: Statuses,
    pub(super) metrics: SpokeMetrics,
    /// Listeners have everything before this.
    position: Mutex<Option<Position>>,
    /// The present link.
    connection: Mutex<Option<Connection>>,
    /// The largest event that may be sent: our own limit, or the hub's if that is lower.
    max_event_bytes: AtomicUsize,
    served: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(config: SpokeConfig) -> Self {
        let limits = &config.limits;
        Self {
            outbox: Outbox::new(config.protocol, limits.send_buffer_bytes as u64),
            statuses: Statuses::new(config.protocol),
            metrics: SpokeMetrics::default(),
            position: Mutex::new(match config.from {
                From::Position(position) => Some(position),
                From::Tip | From::Earliest => None,
            }),
            connection: Mutex::default(),
            max_event_bytes: AtomicUsize::new(limits.max_event_bytes),
            served: AtomicBool::new(false),
            config,
        }
    }

    pub(super) fn position(&self) -> Option<Position> {
        *lock(&self.position)
    }

    /// Listeners have everything before this position.
    pub(super) fn set_position(&self, position: Position) {
        *lock(&self.position) = Some(position);
    }

    /// Where a spoke begins that began nowhere yet.
    pub(super) fn begin_at(&self, position: Option<Position>) {
        let mut now = lock(&self.position);
        *now = now.or(position);
    }

    pub(super) fn set_connection(&self, connection: Option<Connection>) {
        *lock(&self.connection) = connection;
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        let connection = lock(&self.connection);
        let paths = connection.as_ref()?.paths();
        let selected = paths.iter().find(|path| path.is_selected());
        selected.map(|path| path.rtt())
    }

    pub(super) fn max_event_bytes(&self) -> usize {
        self.max_event_bytes.load(Ordering::Acquire)
    }

    /// The hub takes events of up to `hub` bytes.
    pub(super) fn limit_events(&self, hub: u64) {
        let ours = self.config.limits.max_event_bytes;
        let limit = usize::try_from(hub).map_or(ours, |hub| hub.min(ours));
        self.max_event_bytes.store(limit, Ordering::Release);
    }

    pub(super) fn is_served(&self) -> bool {
        self.served.load(Ordering::Acquire)
    }

    pub(super) fn set_served(&self, served: bool) {
        self.served.store(served, Ordering::Release);
    }

    /// Counts what became of events that will not be sent any more.
    pub(super) fn count_lost(&self, lost: &Lost) {
        self.metrics
            .link
            .events_not_delivered
            .inc_by(lost.not_delivered);
        self.metrics
            .link
            .events_maybe_delivered
            .inc_by(lost.maybe_delivered);
    }

    /// Nothing more is sent.
    pub(super) fn close_outbox(&self, closed: &Closed) {
        let reason = match closed {
            Closed::ByUs {
                code: CloseCode::Goodbye,
                ..
            } => Loss::ShutDown,
            closed => Loss::Closed(closed.clone()),
        };
        self.count_lost(&self.outbox.close(&reason));
    }

    /// Tells the end.
    pub(super) fn end(&self, closed: Closed) {
        self.close_outbox(&closed);
        self.set_connection(None);
        self.set_served(false);
        self.statuses.tell(SpokeStatus::Closed(closed));
    }
}

/// Tells the end of a spoke whose task fails without doing so.
#[derive(Debug)]
pub(super) struct LastWord(pub(super) Arc<Shared>);

impl Drop for LastWord {
    fn drop(&mut self) {
        let closed = Closed::by_us(CloseCode::Internal, "the spoke's task failed");
        self.0.end(closed);
    }
}

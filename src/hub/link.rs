//! One spoke as the hub sees it: its connection, what it has, and what is to be written to it.
//!
//! A [`Link`] is a [`Desk`] and the connection that it is for. Whoever gives the desk an order wakes
//! the link's writer.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytes::Bytes;
use iroh::{EndpointAddr, endpoint::Connection};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    desk::{Batch, Desk, TopicOrder},
    shared_log::{Entry, SharedLog},
};
use crate::{
    event::Envelope, fan_out::Path, link_io::LinkError, protocol::Protocol, spoke_id::SpokeId,
};

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: SpokeId,
    pub(crate) protocol: Protocol,
    /// Whether the spoke can gossip.
    pub(crate) gossip_capable: bool,
    pub(crate) connection: Connection,
    desk: Mutex<Desk>,
    pub(crate) wake: Notify,
    /// Wakes whoever waits for room in the queue of targeted events.
    pub(crate) room: Notify,
    /// Native: everything below was released by the spoke. Compat: was written to its stream.
    acked: AtomicU64,
    /// The path that serves the spoke, as last announced.
    path: Mutex<Path>,
    /// Whether the spoke acknowledges fast, so that pace and supervision can go by it.
    pub(crate) fast: AtomicBool,
    /// Asks the link to finish what it has and say goodbye.
    pub(crate) drain: CancellationToken,
    /// Ends the link at once.
    pub(crate) cancel: CancellationToken,
    /// The link ended without a goodbye before the spoke was known to have everything.
    pub(crate) cut_off: AtomicBool,
}

impl Link {
    pub(crate) fn new(
        id: SpokeId,
        protocol: Protocol,
        gossip_capable: bool,
        connection: Connection,
        cursor: u64,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            id,
            protocol,
            gossip_capable,
            connection,
            desk: Mutex::new(Desk::new(protocol, cursor)),
            wake: Notify::new(),
            room: Notify::new(),
            acked: AtomicU64::new(cursor),
            path: Mutex::new(Path::Direct),
            fast: AtomicBool::new(true),
            drain: CancellationToken::new(),
            cancel,
            cut_off: AtomicBool::new(false),
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the desk and wakes the writer.
    fn order<T>(&self, change: impl FnOnce(&mut Desk) -> T) -> T {
        let out = change(&mut self.desk());
        self.wake.notify_one();
        out
    }

    pub(crate) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }

    /// The next offset to write; `None` while the topic serves the spoke.
    pub(crate) fn cursor(&self) -> Option<u64> {
        self.desk().cursor()
    }

    pub(crate) fn path(&self) -> Path {
        *self.path.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether that is news.
    pub(crate) fn set_path(&self, path: Path) -> bool {
        let mut now = self.path.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *now, path) != path
    }

    /// Everything below `offset` reached the spoke. Says whether that is news.
    pub(crate) fn set_acked(&self, offset: u64) -> bool {
        self.acked.fetch_max(offset, Ordering::AcqRel) < offset
    }

    /// Stops the cursor: the topic serves the spoke.
    pub(crate) fn park(&self) {
        self.order(Desk::park);
    }

    /// Starts the cursor again where the spoke stands, if it is parked.
    pub(crate) fn unpark(&self) {
        let acked = self.acked();
        self.order(|desk| desk.unpark(acked));
    }

    /// Serves the spoke directly from `from` on, because it asked for it.
    pub(crate) fn serve_from(&self, from: u64) {
        self.order(|desk| desk.serve_from(from));
    }

    /// The spoke wants `[from, to)` again.
    pub(crate) fn repair(&self, from: u64, to: u64) {
        self.order(|desk| desk.repair(from, to));
    }

    pub(crate) fn acknowledge(&self, seq: u64) {
        self.order(|desk| desk.acknowledge(seq));
    }

    pub(crate) fn set_ack_every(&self, millis: u32) {
        self.order(|desk| desk.set_ack_every(millis));
    }

    pub(crate) fn order_topic(&self, order: TopicOrder) {
        self.order(|desk| desk.order_topic(order));
    }

    /// Queues a targeted event if there is room.
    pub(crate) fn try_target(
        &self,
        envelope: &Envelope,
        after: u64,
        max_events: usize,
        max_bytes: usize,
    ) -> bool {
        self.order(|desk| desk.try_target(envelope, after, max_events, max_bytes))
    }

    /// The spoke has its targeted events up to `seq`.
    pub(crate) fn targeted_acked(&self, seq: u64) -> Result<(), LinkError> {
        if self.desk().targeted_acked(seq)? {
            self.room.notify_waiters();
        }
        Ok(())
    }

    /// Whether everything up to `tip` has reached the spoke, and everything targeted.
    pub(crate) fn has_all(&self, tip: u64) -> bool {
        self.acked() >= tip && self.desk().has_all_targeted()
    }

    /// Whether the spoke is known to have everything up to `tip` though its link breaks off now. What
    /// a plain spoke's stream took need not have reached it before the goodbye is answered.
    pub(crate) fn is_served(&self, tip: u64) -> bool {
        let told = self.protocol == Protocol::Native || !self.drain.is_cancelled();
        told && self.has_all(tip)
    }

    /// The spoke's address as the connection shows it: what other spokes need to reach it.
    pub(crate) fn remote_addr(&self) -> EndpointAddr {
        EndpointAddr::from_parts(
            self.id.endpoint,
            self.connection
                .paths()
                .iter()
                .map(|path| path.remote_addr().clone()),
        )
    }

    /// See [`Desk::is_paid_for`].
    pub(crate) fn is_paid_for(&self, tip: u64) -> bool {
        self.desk().is_paid_for(tip)
    }

    /// Gathers what is to be written next into `chunks`; see [`Desk::next_batch`].
    pub(crate) fn next_batch(
        &self,
        log: &SharedLog,
        paid: bool,
        entries: &mut Vec<(u64, Arc<Entry>)>,
        chunks: &mut Vec<Bytes>,
    ) -> Result<Batch, LinkError> {
        self.desk().next_batch(log, paid, entries, chunks)
    }
}

//! One stream to one spoke: its connection, what it has, and what is to be written to it.
//!
//! A [`Link`] is a [`Desk`] and the connection that it is for. Whoever gives the desk an order wakes
//! the link's writer. What outlives the link is in its [`Session`].

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use iroh::{EndpointAddr, endpoint::Connection};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    config::Behind,
    desk::{Batch, Desk, TopicOrder},
    pace::Has,
    roster::Given,
    session::Session,
    shared_log::{Entry, SharedLog},
};
use crate::{
    fan_out::Path, link_io::LinkError, position::Epoch, protocol::Protocol, spoke_id::SpokeId,
    wire::native::Rekey,
};

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: SpokeId,
    pub(crate) protocol: Protocol,
    /// Which of all links of the hub this is; a later one has a higher number.
    pub(crate) number: u64,
    pub(crate) session: Arc<Session>,
    /// Whether the spoke can be on the topic.
    gossips: AtomicBool,
    pub(crate) connection: Connection,
    desk: Mutex<Desk>,
    pub(crate) wake: Arc<Notify>,
    /// Native: everything below was released by the spoke. Compat: was written to its stream.
    acked: AtomicU64,
    /// The epoch that its welcome named, if it is one that positions mean something to.
    pub(crate) epoch: OnceLock<Epoch>,
    /// How often the spoke has said what it has.
    beats: AtomicU64,
    /// Everything repaired along this link lies below.
    repaired_to: AtomicU64,
    /// The path that serves the spoke, as last announced.
    path: Mutex<Path>,
    /// Whether the spoke acknowledges fast, so that pace and supervision can go by it.
    pub(crate) fast: AtomicBool,
    /// Since when it is to, if it did not to begin with.
    fast_since: Mutex<Option<Instant>>,
    /// The link is to finish what it has and say goodbye.
    draining: AtomicBool,
    /// Ends the link at once.
    pub(crate) cancel: CancellationToken,
    /// The link ended without a goodbye before the spoke was known to have everything.
    pub(crate) cut_off: AtomicBool,
    /// A newer link of the same spoke took over.
    fenced: AtomicBool,
    /// The spoke is not admitted any more.
    revoked: AtomicBool,
    /// The spoke may have no keys under which anything from before was sealed.
    pub(crate) key_floor: u64,
}

impl Link {
    /// How long it takes to the spoke and back, by the path that is in use.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        let paths = self.connection.paths();
        let selected = paths.iter().find(|path| path.is_selected());
        selected.map(|path| path.rtt())
    }

    pub(crate) fn new(
        given: Given,
        connection: Connection,
        cursor: u64,
        behind: Behind,
        cancel: CancellationToken,
    ) -> Self {
        let Given {
            session,
            number,
            gossips,
            reads_runs,
            floor,
            key_floor,
        } = given;
        let protocol = session.protocol;
        Self {
            id: session.id,
            protocol,
            number,
            session,
            gossips: AtomicBool::new(gossips),
            connection,
            desk: Mutex::new(
                Desk::new(protocol, number, cursor, behind)
                    .with_floor(floor)
                    .with_runs(reads_runs),
            ),
            wake: Arc::default(),
            acked: AtomicU64::new(cursor),
            epoch: OnceLock::new(),
            beats: AtomicU64::new(0),
            repaired_to: AtomicU64::new(0),
            path: Mutex::new(Path::Direct),
            fast: AtomicBool::new(true),
            fast_since: Mutex::new(None),
            draining: AtomicBool::new(false),
            cancel,
            cut_off: AtomicBool::new(false),
            fenced: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
            key_floor,
        }
    }

    /// Whether the spoke can be on the topic.
    pub(crate) fn gossips(&self) -> bool {
        self.gossips.load(Ordering::Acquire)
    }

    /// The spoke can be on the topic from now on.
    pub(crate) fn promote(&self) {
        self.gossips.store(true, Ordering::Release);
    }

    /// Ends the link, since a newer one of the same spoke took over.
    pub(crate) fn fence(&self) {
        self.fenced.store(true, Ordering::Release);
        self.cancel.cancel();
    }

    /// Ends the link, since the spoke is not admitted any more; whoever calls this closes its connection.
    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
        self.cancel.cancel();
    }

    /// Whether the spoke is not admitted any more.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// Whether a newer link took over.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
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

    /// Whether the link is to end if the log goes past the spoke; see [`Desk::ends_if_behind`].
    pub(crate) fn ends_if_behind(&self) -> bool {
        self.desk().ends_if_behind()
    }

    /// How far the spoke is behind the log, if its link is to end for that; see [`Desk::fell_behind`].
    pub(crate) fn fell_behind(&self, head: u64) -> Option<u64> {
        self.desk().fell_behind(head)
    }

    pub(crate) fn path(&self) -> Path {
        *self.path.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether that is news.
    pub(crate) fn set_path(&self, path: Path) -> bool {
        let mut now = self.path.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *now, path) != path
    }

    /// Says whether the spoke is to acknowledge fast from now on.
    pub(crate) fn set_fast(&self, now: Instant, fast: bool) {
        if !self.fast.swap(fast, Ordering::AcqRel) && fast {
            *self.since() = Some(now);
        }
    }

    /// Whether the spoke acknowledges fast, or is to from now on.
    pub(crate) fn is_fast(&self) -> bool {
        self.fast.load(Ordering::Acquire)
    }

    /// Whether the spoke acknowledges fast, and has had so long to begin with it.
    pub(crate) fn is_fast_for(&self, now: Instant, settled: Duration) -> bool {
        let since = *self.since();
        let settled = since.is_none_or(|at| now.saturating_duration_since(at) >= settled);
        settled && self.fast.load(Ordering::Acquire)
    }

    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        let since = self.fast_since.lock();
        since.unwrap_or_else(PoisonError::into_inner)
    }

    /// What the spoke has, as far as it has said.
    pub(crate) fn has(&self) -> Has {
        Has {
            acked: self.acked(),
            beats: self.beats.load(Ordering::Acquire),
        }
    }

    /// Everything below `offset` reached the spoke, which may have said so only because of targeted events.
    /// Says whether that is news. Of one link, only one task says it: the reader, or the writer of a plain
    /// spoke.
    pub(crate) fn set_acked(&self, offset: u64, targeted: bool) -> bool {
        let beats = self.has().told(offset, targeted).beats;
        self.beats.store(beats, Ordering::Release);
        let awaited = self.session.record(|record| {
            record.set_acked(offset);
            record.awaited()
        });
        if awaited > offset {
            // There may be more to ask for.
            self.wake.notify_one();
        }
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

    /// What the spoke has of all below came along this link, or may have.
    pub(crate) fn repaired_to(&self) -> u64 {
        self.repaired_to.load(Ordering::Acquire)
    }

    /// The spoke wants `[from, to)` again.
    pub(crate) fn repair(&self, from: u64, to: u64) {
        self.repaired_to.fetch_max(to, Ordering::AcqRel);
        self.order(|desk| desk.repair(from, to));
    }

    pub(crate) fn acknowledge(&self, seq: u64) {
        self.order(|desk| desk.acknowledge(seq));
    }

    pub(crate) fn set_ack_every(&self, millis: u32) {
        self.order(|desk| desk.set_ack_every(millis));
    }

    pub(crate) fn order_topic(&self, order: TopicOrder) {
        if let TopicOrder::Join(_) = order {
            self.session.was_member.store(true, Ordering::Release);
        }
        self.order(|desk| desk.order_topic(order));
    }

    /// The spoke is to have newer keys of its topic.
    pub(crate) fn rekey(&self, rekey: Box<Rekey>) {
        self.order(|desk| desk.rekey(rekey));
    }

    /// Whether the spoke was told to be on a topic.
    pub(crate) fn is_member(&self) -> bool {
        self.desk().is_member()
    }

    /// The spoke has its targeted events up to `seq`. Says whether that is news.
    pub(crate) fn targeted_acked(&self, seq: u64) -> Result<bool, LinkError> {
        let number = self.number;
        let news = self.session.mailbox(|mailbox| mailbox.acked(number, seq))?;
        if news {
            self.session.has_room();
        }
        Ok(news)
    }

    /// Whether everything up to `tip` has reached the spoke, and everything targeted.
    pub(crate) fn has_all(&self, tip: u64) -> bool {
        self.acked() >= tip && self.session.mailbox(|mailbox| mailbox.is_empty())
    }

    /// Says goodbye once the spoke has everything below `tip`, which it is asked to say at once.
    pub(crate) fn drain(&self, tip: u64) {
        self.session.record(|record| record.await_ack(tip));
        self.draining.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether it says goodbye once the spoke has everything.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether the spoke is known to have everything up to `tip` though its link breaks off now. What
    /// a plain spoke's stream took need not have reached it before the goodbye is answered.
    pub(crate) fn is_served(&self, tip: u64) -> bool {
        let told = self.protocol == Protocol::Native || !self.is_draining();
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

    /// How many broadcasts the spoke was told it missed since this was asked last. That it missed them is
    /// recorded with this.
    pub(crate) fn take_missed(&self) -> u64 {
        let told = self.desk().take_told_lost();
        let missed = told.iter().map(|(from, to)| to.saturating_sub(*from));
        let missed = missed.sum();
        for (from, to) in told {
            self.session.record(|record| record.was_told(from, to));
        }
        missed
    }

    /// Gathers what is to be written next into `chunks`; see [`Desk::next_batch`].
    pub(crate) fn next_batch(
        &self,
        log: &SharedLog,
        paid: bool,
        entries: &mut Vec<(u64, Arc<Entry>)>,
        chunks: &mut Vec<Bytes>,
    ) -> Result<Batch, LinkError> {
        let (awaited, acked) = self
            .session
            .record(|record| (record.awaited(), record.acked()));
        let mut desk = self.desk();
        desk.put_ask(awaited, acked, chunks);
        self.session
            .mailbox(|mailbox| desk.next_batch(mailbox, log, paid, entries, chunks))
    }
}

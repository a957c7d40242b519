//! The spokes of the hub, connected and away, with their links; and who watches them come and go.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Instant,
};

use iroh::EndpointId;
use n0_error::e;
use tokio::sync::broadcast;

use super::{
    floors::Floor,
    link::Link,
    mail::Mail,
    mailbox::{MailboxLimits, NoRoom},
    record::{Departed, Record, Stands},
    session::Session,
    sessions::{SessionLimits, Sessions},
    spokes::SpokeChange,
};
use crate::{
    close::{CloseCode, Closed},
    delivery::{Loss, SendReceipt},
    event::Envelope,
    link_io::LinkError,
    metrics::HubMetrics,
    protocol::Protocol,
    spoke_id::SpokeId,
    wire::native::SessionId,
};

/// How many changes a watch may be behind before it is told that it lagged.
const WATCH_CAPACITY: usize = 1024;

#[derive(Debug)]
pub(super) struct Roster {
    inner: Mutex<Inner>,
    changes: broadcast::Sender<SpokeChange>,
    mailbox_limits: MailboxLimits,
    /// What waits for all spokes.
    mail: Arc<Mail>,
    metrics: HubMetrics,
}

#[derive(Debug)]
struct Inner {
    sessions: Sessions,
    members: BTreeMap<SpokeId, Member>,
    departed: Departed,
}

#[derive(Debug)]
struct Member {
    session: Arc<Session>,
    /// `Err` while the spoke is away: how its last link ended.
    link: Result<Arc<Link>, Closed>,
}

/// What a stream asks for that is to become a spoke.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) endpoint: EndpointId,
    pub(super) protocol: Protocol,
    pub(super) can_gossip: bool,
    /// It reads frames of several events.
    pub(super) reads_runs: bool,
    /// The session to go on with, and the last targeted event that the spoke has taken.
    pub(super) session: Option<(SessionId, u64)>,
    /// Where its broadcasts begin.
    pub(super) start: u64,
    /// It has everything before.
    pub(super) has_before: bool,
    /// It may read nothing that was broadcast before, unless it goes on with a session.
    pub(super) floor: u64,
}

/// What a new link is given.
pub(super) struct Given {
    pub(super) session: Arc<Session>,
    pub(super) number: u64,
    pub(super) gossips: bool,
    pub(super) reads_runs: bool,
    /// It may read nothing that was broadcast before,
    pub(super) floor: u64,
    /// nor have keys under which it was sealed, nor what came before this.
    pub(super) key_floor: u64,
}

impl Roster {
    pub(super) fn new(
        limits: SessionLimits,
        mailbox_limits: MailboxLimits,
        mail_bytes: usize,
        remembered: usize,
        metrics: HubMetrics,
    ) -> Self {
        Self {
            inner: Mutex::new(Inner {
                sessions: Sessions::new(limits),
                members: BTreeMap::new(),
                departed: Departed::new(remembered),
            }),
            changes: broadcast::Sender::new(WATCH_CAPACITY),
            mailbox_limits,
            mail: Arc::new(Mail::new(mail_bytes, metrics.events.clone())),
            metrics,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the link that `make` builds the one of its spoke: of a new spoke, or of the one that comes
    /// back. A link that the spoke has had until now is fenced off. All in one step.
    ///
    /// Says whose place on the topic changed beside its own. `floor` says from where on the spoke may read, if
    /// it is admitted: whoever is revoked from now on has a link that [`revoke`](Self::revoke) finds.
    pub(super) fn join(
        &self,
        asked: Asked,
        floor: impl FnOnce() -> Result<Floor, LinkError>,
        tip: impl FnOnce() -> u64,
        make: impl FnOnce(Given) -> Link,
    ) -> Result<(Arc<Link>, Option<SpokeId>), LinkError> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let floor = floor()?;
        let back = asked.session.and_then(|(key, taken)| {
            let id = inner.sessions.find(asked.endpoint, &key)?;
            Some((inner.members.get(&id)?.session.clone(), taken))
        });
        if let Some((session, taken)) = &back {
            session.mailbox(|mailbox| mailbox.check_taken(*taken))?;
        }
        let key = SessionId(rand::random());
        let can_come_back = asked.protocol == Protocol::Native;
        let joined = inner
            .sessions
            .join(
                asked.endpoint,
                back.as_ref().map(|(session, _)| session.id),
                can_come_back.then_some(key),
                asked.can_gossip,
            )
            .ok_or_else(|| {
                e!(LinkError::TooMany {
                    what: "the hub takes no more spokes"
                })
            })?;
        let id = joined.id;
        let (session, taken) = back.unwrap_or_else(|| {
            let limits = self.mailbox_limits;
            let record = Record::new(can_come_back, tip(), asked.start);
            let mail = self.mail.clone();
            let mut session = Session::new(id, asked.protocol, key, limits, mail, record);
            session.floor = asked.floor;
            (Arc::new(session), 0)
        });
        let key_floor = session.floor.max(floor.of_keys);
        let floor = session.floor.max(floor.of_events);
        let link = Arc::new(make(Given {
            session: session.clone(),
            number: joined.link,
            gossips: joined.gossips,
            reads_runs: asked.reads_runs,
            floor,
            key_floor,
        }));
        session.attach(joined.link, taken, link.wake.clone());
        let member = Member {
            session,
            link: Ok(link.clone()),
        };
        let before = inner.members.insert(id, member);
        if let Some(Ok(fenced)) = before.map(|member| member.link) {
            self.metrics.spokes.fenced.inc();
            fenced.fence();
            let reason = "a newer link of the same spoke took over";
            self.announce(SpokeChange::Away {
                id,
                closed: Closed::by_us(CloseCode::Fenced, reason),
            });
        }
        if joined.returned {
            let (start, has_before) = (asked.start, asked.has_before);
            link.session
                .record(|record| record.returns(start, has_before));
            self.metrics.spokes.returned.inc();
            self.announce(SpokeChange::Returned { id });
        } else {
            self.metrics.spokes.joined.inc();
            let protocol = asked.protocol;
            self.announce(SpokeChange::Joined { id, protocol });
        }
        inner.promote(joined.promoted);
        self.gauge(inner);
        Ok((link, joined.promoted))
    }

    /// A link has ended. Its spoke is away, if it may come back, or gone.
    ///
    /// Says which spokes' places changed: of this one, unless another link has taken over, and of one that
    /// has the place on the topic now.
    pub(super) fn leave(
        &self,
        link: &Link,
        closed: &Closed,
        may_come_back: bool,
        tip: impl Fn() -> u64,
    ) -> Vec<SpokeId> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let id = link.id;
        let current = inner.members.get(&id).filter(|member| {
            let current = member.link.as_ref();
            current.is_ok_and(|current| current.number == link.number)
        });
        let keep = current
            .filter(|_| may_come_back)
            .map(|member| member.session.detach());
        let left = inner.sessions.leave(Instant::now(), id, link.number, keep);
        if !left.was_current {
            return Vec::new();
        }
        if may_come_back && link.protocol == Protocol::Native {
            if let Some(member) = inner.members.get_mut(&id) {
                member.link = Err(closed.clone());
            }
            let closed = closed.clone();
            self.announce(SpokeChange::Away { id, closed });
        } else {
            self.forget(inner, id, Some(closed), &Loss::Closed(closed.clone()), &tip);
        }
        self.evict(inner, left.evicted, &tip);
        inner.promote(left.promoted);
        self.gauge(inner);
        [Some(id), left.promoted].into_iter().flatten().collect()
    }

    /// Ends the sessions of all spokes of an endpoint, connected and away. Gives back the links to end, and whether
    /// one of the spokes was told to be on a topic.
    pub(super) fn revoke(
        &self,
        endpoint: EndpointId,
        closed: &Closed,
        tip: impl Fn() -> u64,
    ) -> (Vec<Arc<Link>>, bool) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let (mut links, mut was_member) = (Vec::new(), false);
        for id in inner.sessions.remove_all_of(endpoint) {
            let session = inner.members.get(&id).map(|member| &member.session);
            was_member |= session.is_some_and(|s| s.was_member.load(Ordering::Acquire));
            let link = inner.members.get(&id).map(|member| member.link.clone());
            links.extend(link.and_then(Result::ok));
            self.forget(inner, id, Some(closed), &Loss::Closed(closed.clone()), &tip);
        }
        self.gauge(inner);
        (links, was_member)
    }

    /// Whether a spoke of this endpoint is connected.
    pub(super) fn is_connected(&self, endpoint: EndpointId) -> bool {
        let id = |number| SpokeId { endpoint, number };
        let inner = self.inner();
        let mut members = inner.members.range(id(0)..=id(u64::MAX));
        members.any(|(_, member)| member.link.is_ok())
    }

    /// Whether there is a spoke of this endpoint, connected or away.
    pub(super) fn knows(&self, endpoint: EndpointId) -> bool {
        self.inner().sessions.knows(endpoint)
    }

    /// Queues an event for a spoke that is away, perhaps; others may be given up for that.
    pub(super) fn push_away(
        &self,
        session: &Session,
        event: &Envelope,
        end: u64,
        tip: u64,
        overtake: bool,
    ) -> Result<SendReceipt, NoRoom> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let before = session.mailbox(|mailbox| mailbox.cost());
        let receipt = session.push(event, end, overtake, true)?;
        let cost = session.mailbox(|mailbox| mailbox.cost());
        let evicted = inner
            .sessions
            .keep_more(session.id, cost.saturating_sub(before));
        self.evict(inner, evicted, &|| tip);
        self.gauge(inner);
        Ok(receipt)
    }

    /// Forgets who has been away for too long. Says whether there was anyone.
    pub(super) fn expire(&self, now: Instant, tip: impl Fn() -> u64) -> bool {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let expired = inner.sessions.expire(now);
        let any = !expired.is_empty();
        self.metrics.spokes.expired.inc_by(expired.len() as u64);
        for id in expired {
            self.forget(inner, id, None, &Loss::Expired, &tip);
        }
        self.gauge(inner);
        any
    }

    /// Lets no more links in, and forgets who is away: the hub ends.
    pub(super) fn close(&self, tip: impl Fn() -> u64) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        inner.sessions.close();
        for id in inner.sessions.give_up_away() {
            self.forget(inner, id, None, &Loss::ShutDown, &tip);
        }
        self.gauge(inner);
    }

    fn evict(&self, inner: &mut Inner, evicted: Vec<SpokeId>, tip: &dyn Fn() -> u64) {
        self.metrics.spokes.evicted.inc_by(evicted.len() as u64);
        for id in evicted {
            self.forget(inner, id, None, &Loss::Evicted, tip);
        }
    }

    /// Ends the session of a spoke that is gone for good.
    fn forget(
        &self,
        inner: &mut Inner,
        id: SpokeId,
        closed: Option<&Closed>,
        reason: &Loss,
        tip: &dyn Fn() -> u64,
    ) {
        let Some(member) = inner.members.remove(&id) else {
            return;
        };
        let record = member.session.record(|record| record.clone());
        inner.departed.add(id, record, tip());
        let (lost, unknown) = member.session.end(reason);
        self.metrics.events.targeted_lost.inc_by(lost as u64);
        self.metrics.events.targeted_unknown.inc_by(unknown as u64);
        let closed = match (closed, member.link) {
            (Some(closed), _) => closed.clone(),
            (None, Err(closed)) => closed,
            (None, Ok(_)) => Closed::by_us(CloseCode::Unspecified, reason.to_string()),
        };
        self.announce(SpokeChange::Left { id, closed });
    }

    fn gauge(&self, inner: &Inner) {
        self.metrics
            .spokes
            .connected
            .set(inner.sessions.connected() as i64);
        self.metrics.spokes.away.set(inner.sessions.away() as i64);
    }

    /// The link of a spoke, if it is connected.
    pub(super) fn get(&self, id: SpokeId) -> Option<Arc<Link>> {
        self.inner().members.get(&id)?.link.as_ref().ok().cloned()
    }

    pub(super) fn session(&self, id: SpokeId) -> Option<Arc<Session>> {
        Some(self.inner().members.get(&id)?.session.clone())
    }

    /// The spokes of an endpoint, connected or away.
    pub(super) fn sessions_of(&self, endpoint: EndpointId) -> Vec<Arc<Session>> {
        let id = |number| SpokeId { endpoint, number };
        self.inner()
            .members
            .range(id(0)..=id(u64::MAX))
            .map(|(_, member)| member.session.clone())
            .collect()
    }

    /// All spokes that are connected.
    pub(super) fn all(&self) -> Vec<Arc<Link>> {
        let inner = self.inner();
        let links = inner.members.values();
        links
            .filter_map(|member| member.link.as_ref().ok().cloned())
            .collect()
    }

    /// All spokes, with the links of those that are connected.
    pub(super) fn everyone(&self) -> Vec<(Arc<Session>, Option<Arc<Link>>)> {
        let inner = self.inner();
        let members = inner.members.values();
        members
            .map(|member| (member.session.clone(), member.link.as_ref().ok().cloned()))
            .collect()
    }

    /// Says of every spoke that was there for the broadcast at `offset` how it stands to it, and gives back
    /// whether all are remembered, and those that are waited for.
    pub(super) fn stand_to(
        &self,
        offset: u64,
        mut say: impl FnMut(SpokeId, Stands),
    ) -> (bool, Vec<Arc<Session>>) {
        let inner = self.inner();
        let mut waited_for = Vec::new();
        for (id, member) in &inner.members {
            let Some(stands) = member.session.stands_to(offset) else {
                continue;
            };
            if stands == Stands::Waiting {
                waited_for.push(member.session.clone());
            }
            say(*id, stands);
        }
        for (id, stands) in inner.departed.stand_to(offset) {
            say(id, stands);
        }
        (inner.departed.remembers(offset), waited_for)
    }

    /// How many spokes are connected.
    pub(super) fn len(&self) -> usize {
        self.inner().sessions.connected()
    }

    pub(super) fn announce(&self, change: SpokeChange) {
        change.trace();
        // Nobody may be watching.
        let _ = self.changes.send(change);
    }

    pub(super) fn watch(&self) -> broadcast::Receiver<SpokeChange> {
        self.changes.subscribe()
    }
}

impl Inner {
    /// A spoke has the place of its endpoint on the topic.
    fn promote(&self, id: Option<SpokeId>) {
        if let Some(member) = id.and_then(|id| self.members.get(&id))
            && let Ok(link) = &member.link
        {
            link.promote();
        }
    }
}

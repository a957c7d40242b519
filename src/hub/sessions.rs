//! Which spokes there are, and through which link: sans-IO.
//!
//! A spoke is a session: it keeps its id through any number of links, one at a time. A newer link takes
//! over from an older one; without any, the spoke is away, and is forgotten when it does not come back
//! in time, or when too many are away or keep too much and its endpoint has the most of them. Spokes that cannot come back (the plain
//! protocol has no sessions) are forgotten with their link.
//!
//! Not for: what is kept for a spoke, or what is said to it.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use iroh::EndpointId;

use super::absent::Absent;
use crate::{instant::after, spoke_id::SpokeId, wire::native::SessionId};

/// The bounds of [`Sessions`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionLimits {
    /// The most spokes that are connected.
    pub(crate) connected: usize,
    /// The most spokes of one endpoint that are connected, and the most that are away.
    pub(crate) of_one: usize,
    /// The most spokes that are away.
    pub(crate) away: usize,
    /// The most bytes that are kept for all of them.
    pub(crate) away_bytes: usize,
    /// How long a spoke may be away.
    pub(crate) lifetime: Duration,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Sessions {
    limits: SessionLimits,
    spokes: BTreeMap<SpokeId, Spoke>,
    /// The spokes that can come back.
    by_key: HashMap<SessionId, SpokeId>,
    away: Absent,
    last_number: u64,
    /// Numbers links and absences.
    last_turn: u64,
    closed: bool,
}

#[derive(Debug)]
struct Spoke {
    key: Option<SessionId>,
    state: State,
}

#[derive(Debug)]
enum State {
    Connected {
        link: u64,
        /// It could be on the topic.
        can_gossip: bool,
        /// It is the one of its endpoint that may be.
        gossips: bool,
    },
    Away {
        turn: u64,
    },
}

/// A link serves a spoke from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Joined {
    pub(crate) id: SpokeId,
    /// The number of the link: higher than that of any link before.
    pub(crate) link: u64,
    /// The spoke came back, or changed its link.
    pub(crate) returned: bool,
    /// The number of the link that is to end: the spoke has had another until now.
    pub(crate) fenced: Option<u64>,
    /// The spoke may be on the topic.
    pub(crate) gossips: bool,
    /// Another spoke of the endpoint may be on the topic now, since this one cannot any more.
    pub(crate) promoted: Option<SpokeId>,
}

/// A link has ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Left {
    /// The link was the spoke's own until now; nothing else happened if not.
    pub(crate) was_current: bool,
    /// Another spoke of the endpoint may be on the topic now.
    pub(crate) promoted: Option<SpokeId>,
    /// These were given up, so that what is kept for the others stays in its bounds.
    pub(crate) evicted: Vec<SpokeId>,
}

impl Sessions {
    pub(crate) fn new(limits: SessionLimits) -> Self {
        Self {
            limits,
            spokes: BTreeMap::new(),
            by_key: HashMap::new(),
            away: Absent::default(),
            last_number: 0,
            last_turn: 0,
            closed: false,
        }
    }

    /// How many spokes are connected.
    pub(crate) fn connected(&self) -> usize {
        self.spokes.len() - self.away.len()
    }

    /// How many are away.
    pub(crate) fn away(&self) -> usize {
        self.away.len()
    }

    /// What is kept for all that are away.
    #[cfg(test)]
    pub(crate) fn away_bytes(&self) -> usize {
        self.away.bytes()
    }

    /// Lets no more links in.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    fn turn(&mut self) -> u64 {
        self.last_turn += 1;
        self.last_turn
    }

    /// The spoke of this session, if it is one of this endpoint's: a key that another endpoint presents
    /// is worth nothing.
    pub(crate) fn find(&self, endpoint: EndpointId, key: &SessionId) -> Option<SpokeId> {
        let id = *self.by_key.get(key)?;
        (id.endpoint == endpoint).then_some(id)
    }

    /// A link begins: of the spoke `back`, which was [found](Self::find), or of a new one, which can come
    /// back if it has a `key`. `None` if there is no place for it, or nobody is let in any more.
    pub(crate) fn join(
        &mut self,
        endpoint: EndpointId,
        back: Option<SpokeId>,
        key: Option<SessionId>,
        can_gossip: bool,
    ) -> Option<Joined> {
        if self.closed {
            return None;
        }
        let fenced = back.and_then(|id| self.link(id));
        if fenced.is_none() && self.connected() >= self.limits.connected {
            return None;
        }
        // One endpoint is not to take the places of all others.
        let of_one = self.of_endpoint(endpoint).filter(is_connected).count();
        if back.is_none() && of_one >= self.limits.of_one {
            return None;
        }
        let (id, key) = match back.and_then(|id| Some((id, self.forget(id)?.key))) {
            Some((id, key)) => (id, key),
            None => {
                self.last_number += 1;
                let number = self.last_number;
                (SpokeId { endpoint, number }, key)
            }
        };
        // One node of the topic has one id, so of one endpoint's spokes only one can be on it.
        let gossips = can_gossip && self.gossiping(endpoint).is_none();
        let link = self.turn();
        let state = State::Connected {
            link,
            can_gossip,
            gossips,
        };
        if let Some(key) = key {
            self.by_key.insert(key, id);
        }
        self.spokes.insert(id, Spoke { key, state });
        Some(Joined {
            id,
            link,
            returned: back.is_some_and(|back| back == id),
            fenced,
            gossips,
            promoted: self.promote(endpoint),
        })
    }

    /// A link has ended. The spoke is away if it can come back and what is kept for it (`keep`, in bytes)
    /// is said; otherwise it is gone.
    pub(crate) fn leave(
        &mut self,
        now: Instant,
        id: SpokeId,
        link: u64,
        keep: Option<usize>,
    ) -> Left {
        if self.link(id) != Some(link) {
            return Left::default();
        }
        let turn = self.turn();
        if let Some(spoke) = self.spokes.get_mut(&id)
            && spoke.key.is_some()
            && let Some(bytes) = keep
        {
            spoke.state = State::Away { turn };
            self.away.enter(turn, id, now, bytes);
        } else {
            self.forget(id);
        }
        let mut evicted = self.evict();
        evicted.extend(self.evict_of(id.endpoint));
        Left {
            was_current: true,
            promoted: self.promote(id.endpoint),
            evicted,
        }
    }

    /// So many more bytes are kept for a spoke, which matters if it is away. Says who is given up for that,
    /// perhaps itself.
    pub(crate) fn keep_more(&mut self, id: SpokeId, more: usize) -> Vec<SpokeId> {
        if let Some(Spoke {
            state: State::Away { turn },
            ..
        }) = self.spokes.get(&id)
        {
            self.away.keep_more(*turn, more);
        }
        self.evict()
    }

    /// Gives up those that have been away for too long.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<SpokeId> {
        let mut expired = Vec::new();
        while let Some((id, since)) = self.away.oldest()
            && after(since, self.limits.lifetime) <= now
        {
            self.forget(id);
            expired.push(id);
        }
        expired
    }

    /// Gives up all that are away.
    pub(crate) fn give_up_away(&mut self) -> Vec<SpokeId> {
        let mut given_up = Vec::new();
        while let Some((id, _)) = self.away.oldest() {
            self.forget(id);
            given_up.push(id);
        }
        given_up
    }

    /// Gives up all spokes of an endpoint, connected and away.
    pub(crate) fn remove_all_of(&mut self, endpoint: EndpointId) -> Vec<SpokeId> {
        let all: Vec<_> = self.of_endpoint(endpoint).map(|(id, _)| *id).collect();
        for id in &all {
            self.forget(*id);
        }
        all
    }

    /// Whether there is a spoke of this endpoint, connected or away.
    pub(crate) fn knows(&self, endpoint: EndpointId) -> bool {
        self.of_endpoint(endpoint).next().is_some()
    }

    /// Gives up of the endpoint with the most who went first, until all are within the bounds.
    fn evict(&mut self) -> Vec<SpokeId> {
        let mut evicted = Vec::new();
        loop {
            let next = if self.away.len() > self.limits.away {
                self.away.oldest_of_most()
            } else if self.away.bytes() > self.limits.away_bytes {
                self.away.oldest_of_heaviest()
            } else {
                None
            };
            let Some(id) = next else { return evicted };
            self.forget(id);
            evicted.push(id);
        }
    }

    /// Gives up who went first of an endpoint that has too many away.
    fn evict_of(&mut self, endpoint: EndpointId) -> Option<SpokeId> {
        if self.away.len_of(endpoint) <= self.limits.of_one {
            return None;
        }
        let oldest = self.away.oldest_of(endpoint)?;
        self.forget(oldest);
        Some(oldest)
    }

    fn forget(&mut self, id: SpokeId) -> Option<Spoke> {
        let spoke = self.spokes.remove(&id)?;
        if let Some(key) = &spoke.key {
            self.by_key.remove(key);
        }
        if let State::Away { turn } = spoke.state {
            self.away.remove(turn);
        }
        Some(spoke)
    }

    /// The number of the link of a spoke that is connected.
    fn link(&self, id: SpokeId) -> Option<u64> {
        match self.spokes.get(&id)?.state {
            State::Connected { link, .. } => Some(link),
            State::Away { .. } => None,
        }
    }

    fn of_endpoint(&self, endpoint: EndpointId) -> impl Iterator<Item = (&SpokeId, &Spoke)> {
        let id = |number| SpokeId { endpoint, number };
        self.spokes.range(id(0)..=id(u64::MAX))
    }

    /// Who of this endpoint may be on the topic.
    fn gossiping(&self, endpoint: EndpointId) -> Option<SpokeId> {
        let gossips = |(_, spoke): &(_, &Spoke)| {
            matches!(spoke.state, State::Connected { gossips: true, .. })
        };
        self.of_endpoint(endpoint).find(gossips).map(|(id, _)| *id)
    }

    /// Gives the free place of an endpoint on the topic to the newest link that wants it.
    fn promote(&mut self, endpoint: EndpointId) -> Option<SpokeId> {
        if self.gossiping(endpoint).is_some() {
            return None;
        }
        let wanting = self
            .of_endpoint(endpoint)
            .filter_map(|(id, spoke)| match spoke.state {
                State::Connected {
                    link,
                    can_gossip: true,
                    ..
                } => Some((link, *id)),
                _ => None,
            });
        let (_, id) = wanting.max()?;
        match self.spokes.get_mut(&id) {
            Some(Spoke {
                state: State::Connected { gossips, .. },
                ..
            }) => *gossips = true,
            _ => return None,
        }
        Some(id)
    }
}

fn is_connected((_, spoke): &(&SpokeId, &Spoke)) -> bool {
    matches!(spoke.state, State::Connected { .. })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);
    const LIMITS: SessionLimits = SessionLimits {
        connected: 5,
        of_one: 100,
        away: 3,
        away_bytes: 100,
        lifetime: Duration::from_secs(10),
    };

    fn endpoint(n: u8) -> EndpointId {
        static KNOWN: LazyLock<[EndpointId; 8]> = LazyLock::new(|| {
            [0, 1, 2, 3, 4, 5, 6, 7].map(|n| iroh::SecretKey::from_bytes(&[n; 32]).public())
        });
        KNOWN[usize::from(n)]
    }

    fn key(n: u8) -> Option<SessionId> {
        Some(SessionId([n; 16]))
    }

    #[test]
    fn one_endpoint_takes_no_more_than_its_part_of_the_places() {
        let limits = SessionLimits {
            connected: 100,
            of_one: 2,
            away: 100,
            ..LIMITS
        };
        let mut sessions = Sessions::new(limits);
        let now = Instant::now();
        let honest = sessions.join(endpoint(1), None, key(1), true).unwrap();
        let left = sessions.leave(now, honest.id, honest.link, Some(0));
        assert!(left.evicted.is_empty());
        // One joins and is lost again and again: it is its own spokes that give way.
        for n in 2..50 {
            let joined = sessions.join(endpoint(2), None, key(n), true).unwrap();
            let left = sessions.leave(now, joined.id, joined.link, Some(0));
            assert!(left.evicted.iter().all(|id| id.endpoint == endpoint(2)));
            assert!(sessions.away() <= 3);
        }
        assert_eq!(
            sessions.find(endpoint(1), &SessionId([1; 16])),
            Some(honest.id)
        );
        for n in 60..62 {
            assert!(sessions.join(endpoint(2), None, key(n), true).is_some());
        }
        assert!(sessions.join(endpoint(2), None, key(99), true).is_none());
        assert!(sessions.join(endpoint(3), None, key(98), true).is_some());
    }

    #[test]
    fn an_endpoint_with_many_away_gives_way_and_not_who_went_before_it() {
        let mut sessions = Sessions::new(LIMITS);
        let now = Instant::now();
        let mut lose = |from, n, bytes| {
            let joined = sessions.join(endpoint(from), None, key(n), false).unwrap();
            let left = sessions.leave(now, joined.id, joined.link, Some(bytes));
            (joined.id, left.evicted)
        };
        let (honest, _) = lose(1, 1, 10);
        let (first, _) = lose(2, 2, 10);
        let (second, _) = lose(2, 3, 10);
        // There are too many; or too much is kept.
        assert_eq!(lose(3, 4, 0).1, [first]);
        assert_eq!(lose(2, 5, 0).1, [second]);
        assert_eq!(lose(2, 6, 100).1.len(), 2);
        assert_eq!(
            sessions.find(endpoint(1), &SessionId([1; 16])),
            Some(honest)
        );
    }

    #[test]
    fn a_spoke_that_comes_back_keeps_its_id_and_its_place_on_the_topic() {
        let mut sessions = Sessions::new(LIMITS);
        let now = Instant::now();
        let one = sessions.join(endpoint(1), None, key(1), true).unwrap();
        assert!(one.gossips && !one.returned && one.fenced.is_none());
        let other = sessions.join(endpoint(1), None, key(2), true).unwrap();
        assert!(!other.gossips, "one of an endpoint");
        // The old link has not been noticed to be dead.
        let back = sessions.find(endpoint(1), &SessionId([1; 16]));
        assert_eq!(back, Some(one.id));
        let again = sessions.join(endpoint(1), back, key(3), true).unwrap();
        assert_eq!((again.id, again.fenced), (one.id, Some(one.link)));
        assert!(again.gossips && again.returned && again.link > other.link);
        // When it is, it has no say any more.
        let left = sessions.leave(now, one.id, one.link, Some(0));
        assert_eq!(left, Left::default());
        assert_eq!((sessions.connected(), sessions.away()), (2, 0));
        // Its key is the one it was given first.
        assert_eq!(sessions.find(endpoint(1), &SessionId([3; 16])), None);
        let left = sessions.leave(now, again.id, again.link, Some(0));
        assert_eq!((left.was_current, left.promoted), (true, Some(other.id)));
        assert_eq!((sessions.connected(), sessions.away()), (1, 1));
    }

    #[test]
    fn a_key_is_worth_nothing_to_another_endpoint_or_after_the_end() {
        let mut sessions = Sessions::new(LIMITS);
        let one = sessions.join(endpoint(1), None, key(1), true).unwrap();
        assert_eq!(sessions.find(endpoint(2), &SessionId([1; 16])), None);
        sessions.leave(Instant::now(), one.id, one.link, None);
        assert_eq!(sessions.find(endpoint(1), &SessionId([1; 16])), None);
        let plain = sessions.join(endpoint(1), None, None, false).unwrap();
        sessions.leave(Instant::now(), plain.id, plain.link, Some(0));
        assert_eq!((sessions.connected(), sessions.away()), (0, 0));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Join {
            endpoint: u8,
            plain: bool,
            can_gossip: bool,
        },
        /// The spoke with this place in the list comes back, from this endpoint.
        Back {
            spoke: prop::sample::Index,
            endpoint: Option<u8>,
            can_gossip: bool,
        },
        Leave {
            spoke: prop::sample::Index,
            keep: Option<usize>,
            stale: bool,
        },
        Revoke {
            endpoint: u8,
        },
        KeepMore {
            spoke: prop::sample::Index,
            bytes: usize,
        },
        Pass(u32),
    }

    fn op() -> impl Strategy<Value = Op> {
        let index = any::<prop::sample::Index>;
        prop_oneof![
            3 => (1..4u8, prop::bool::weighted(0.2), any::<bool>())
                .prop_map(|(endpoint, plain, can_gossip)| Op::Join { endpoint, plain, can_gossip }),
            3 => (index(), prop::option::weighted(0.2, 1..4u8), any::<bool>())
                .prop_map(|(spoke, endpoint, can_gossip)| Op::Back { spoke, endpoint, can_gossip }),
            4 => (index(), prop::option::weighted(0.8, 0..60usize), prop::bool::weighted(0.1))
                .prop_map(|(spoke, keep, stale)| Op::Leave { spoke, keep, stale }),
            1 => (1..4u8).prop_map(|endpoint| Op::Revoke { endpoint }),
            1 => (index(), 0..60usize).prop_map(|(spoke, bytes)| Op::KeepMore { spoke, bytes }),
            2 => (0..6u32).prop_map(Op::Pass),
        ]
    }

    /// What there is, told the long way.
    #[derive(Default)]
    struct Model {
        all: Vec<(SpokeId, Option<SessionId>)>,
        links: BTreeMap<SpokeId, (u64, bool)>,
        /// Oldest first: since when, and bytes.
        away: Vec<(SpokeId, Instant, usize)>,
        keys: u8,
    }

    impl Model {
        fn evict(&mut self) -> Vec<SpokeId> {
            let mut evicted = Vec::new();
            loop {
                let bytes = |of: EndpointId| -> usize {
                    let all = self.away.iter().filter(|(id, ..)| id.endpoint == of);
                    all.map(|(_, _, bytes)| bytes).sum()
                };
                let count = |of: EndpointId| -> usize {
                    self.away
                        .iter()
                        .filter(|(id, ..)| id.endpoint == of)
                        .count()
                };
                let weight: &dyn Fn(EndpointId) -> usize = if self.away.len() > LIMITS.away {
                    &count
                } else if self.away.iter().map(|(_, _, bytes)| bytes).sum::<usize>()
                    > LIMITS.away_bytes
                {
                    &bytes
                } else {
                    break;
                };
                let most = self.away.iter().map(|(id, ..)| weight(id.endpoint)).max();
                let first = self
                    .away
                    .iter()
                    .position(|(id, ..)| Some(weight(id.endpoint)) == most);
                evicted.push(self.away.remove(first.unwrap()).0);
            }
            evicted
        }

        fn knows(&self, id: SpokeId) -> bool {
            self.links.contains_key(&id) || self.away.iter().any(|(away, ..)| *away == id)
        }
    }

    crate::fuzz::machine! {
        fn one_link_a_spoke_and_away_ones_within_their_bounds(
            ops in prop::collection::vec(op(), 1..120),
        ) {
            let mut sessions = Sessions::new(LIMITS);
            let mut model = Model::default();
            let mut now = Instant::now();
            let mut last_link = 0;
            for op in ops {
                match op {
                    Op::Join { endpoint: n, plain, can_gossip } => {
                        model.keys += 1;
                        let key = if plain { None } else { key(model.keys) };
                        let joined = sessions.join(endpoint(n), None, key, can_gossip);
                        prop_assert_eq!(joined.is_some(), model.links.len() < LIMITS.connected);
                        let Some(joined) = joined else { continue };
                        prop_assert!(model.all.iter().all(|(id, _)| *id != joined.id), "a new id");
                        prop_assert_eq!((joined.returned, joined.fenced), (false, None));
                        prop_assert!(joined.link > last_link);
                        last_link = joined.link;
                        model.all.push((joined.id, key));
                        model.links.insert(joined.id, (joined.link, can_gossip));
                    }
                    Op::Back { spoke, endpoint: other, can_gossip } => {
                        if model.all.is_empty() { continue }
                        let (id, key) = *spoke.get(&model.all);
                        let Some(key) = key else { continue };
                        let from = other.map_or(id.endpoint, endpoint);
                        let found = sessions.find(from, &key);
                        prop_assert_eq!(found.is_some(), from == id.endpoint && model.knows(id));
                        let Some(found) = found else { continue };
                        prop_assert_eq!(found, id);
                        let before = model.links.get(&id).copied();
                        let joined = sessions.join(from, Some(id), Some(SessionId([99; 16])), can_gossip);
                        let room = before.is_some() || model.links.len() < LIMITS.connected;
                        prop_assert_eq!(joined.is_some(), room);
                        let Some(joined) = joined else { continue };
                        prop_assert_eq!((joined.id, joined.returned), (id, true));
                        prop_assert_eq!(joined.fenced, before.map(|(link, _)| link));
                        prop_assert!(joined.link > last_link);
                        last_link = joined.link;
                        model.away.retain(|(away, ..)| *away != id);
                        model.links.insert(id, (joined.link, can_gossip));
                    }
                    Op::Leave { spoke, keep, stale } => {
                        if model.all.is_empty() { continue }
                        let (id, key) = *spoke.get(&model.all);
                        let current = model.links.get(&id).map(|(link, _)| *link);
                        let link = current.unwrap_or(last_link) - u64::from(stale);
                        let left = sessions.leave(now, id, link, keep);
                        prop_assert_eq!(left.was_current, current == Some(link));
                        if current != Some(link) {
                            prop_assert_eq!(left, Left::default());
                            continue;
                        }
                        model.links.remove(&id);
                        if let (Some(bytes), Some(_)) = (keep, key) {
                            model.away.push((id, now, bytes));
                        }
                        prop_assert_eq!(left.evicted, model.evict());
                    }
                    Op::Revoke { endpoint: n } => {
                        let mut removed = sessions.remove_all_of(endpoint(n));
                        prop_assert!(!sessions.knows(endpoint(n)));
                        let known = model.all.iter().map(|(id, _)| *id);
                        let mut expected: Vec<_> = known
                            .filter(|id| id.endpoint == endpoint(n) && model.knows(*id))
                            .collect();
                        removed.sort();
                        expected.sort();
                        prop_assert_eq!(removed, expected);
                        model.links.retain(|id, _| id.endpoint != endpoint(n));
                        model.away.retain(|(id, ..)| id.endpoint != endpoint(n));
                    }
                    Op::KeepMore { spoke, bytes } => {
                        if model.all.is_empty() { continue }
                        let (id, _) = *spoke.get(&model.all);
                        let evicted = sessions.keep_more(id, bytes);
                        if let Some(away) = model.away.iter_mut().find(|(away, ..)| *away == id) {
                            away.2 += bytes;
                        }
                        prop_assert_eq!(evicted, model.evict());
                    }
                    Op::Pass(seconds) => {
                        now += seconds * S;
                        let expired = sessions.expire(now);
                        let over = |(_, since, _): &(_, Instant, _)| *since + LIMITS.lifetime <= now;
                        let expected: Vec<_> = model.away.iter().filter(|a| over(a)).map(|a| a.0).collect();
                        model.away.retain(|away| !over(away));
                        prop_assert_eq!(expired, expected);
                    }
                }
                prop_assert_eq!(sessions.connected(), model.links.len());
                prop_assert_eq!(sessions.away(), model.away.len());
                let bytes: usize = model.away.iter().map(|(_, _, bytes)| bytes).sum();
                prop_assert_eq!(sessions.away_bytes(), bytes);
                prop_assert!(sessions.away.is_consistent());
                for (id, (link, _)) in &model.links {
                    prop_assert_eq!(sessions.link(*id), Some(*link));
                }
                for n in 1..4 {
                    let gossips = sessions.of_endpoint(endpoint(n)).filter(|(_, spoke)| {
                        matches!(spoke.state, State::Connected { gossips: true, .. })
                    });
                    let could = model.links.iter().any(|(id, (_, can))| id.endpoint == endpoint(n) && *can);
                    prop_assert_eq!(gossips.count(), usize::from(could), "one, if any can");
                }
            }
            let given_up = sessions.give_up_away();
            let away: Vec<_> = model.away.iter().map(|away| away.0).collect();
            prop_assert_eq!(given_up, away);
            prop_assert_eq!(sessions.away_bytes(), 0);
        }
    }
}

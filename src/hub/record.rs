//! Who has a broadcast: sans-IO.
//!
//! A [`Record`] says of one spoke since when it is there, up to where it has acknowledged, and what it
//! missed; [`Departed`] remembers the records of those that are gone, up to a bound. Any broadcast can be
//! asked about at any time, and nothing is done for one that nobody asks about.

use std::collections::VecDeque;

use crate::spoke_id::SpokeId;

/// How many ranges a spoke can have missed before the oldest of them are taken as one.
const MAX_MISSED: usize = 64;

/// What one spoke has.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// It can acknowledge. If not, what its stream took is what is known.
    can_acknowledge: bool,
    /// The tip when it joined: what was broadcast before is none of its business.
    since: u64,
    /// It has everything below, or missed it.
    acked: u64,
    /// Ranges that it missed, in order, apart from each other.
    missed: VecDeque<(u64, u64)>,
    /// Somebody waits for everything below.
    awaited: u64,
}

/// How a spoke stands to a broadcast that was dispatched while it was there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Stands {
    Acked,
    Missed,
    Gone,
    CannotAcknowledge,
    Waiting,
}

impl Record {
    /// A spoke joined when the log stood at `tip`, and has everything below `start`.
    pub(crate) fn new(can_acknowledge: bool, tip: u64, start: u64) -> Self {
        Self {
            can_acknowledge,
            since: tip,
            acked: start,
            missed: VecDeque::new(),
            awaited: 0,
        }
    }

    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    /// It has everything below `offset` but what it missed.
    pub(crate) fn set_acked(&mut self, offset: u64) {
        self.acked = self.acked.max(offset);
    }

    /// The spoke came back and begins at `start`, having everything below or not.
    pub(crate) fn returns(&mut self, start: u64, has_before: bool) {
        if !has_before {
            self.was_told(self.acked, start);
        }
        self.set_acked(start);
    }

    /// The hub told it that `[from, to)` is lost; what it has acknowledged it has all the same.
    pub(crate) fn was_told(&mut self, from: u64, to: u64) {
        self.add_missed(from.max(self.acked), to);
    }

    /// It says itself that it missed `[from, to)`.
    pub(crate) fn says_missed(&mut self, from: u64, to: u64) {
        self.add_missed(from, to);
    }

    fn add_missed(&mut self, from: u64, to: u64) {
        let (mut from, mut to) = (from.max(self.since), to);
        if from >= to {
            return;
        }
        self.missed.retain(|(start, end)| {
            let apart = *end < from || to < *start;
            if !apart {
                from = from.min(*start);
                to = to.max(*end);
            }
            apart
        });
        let at = self.missed.partition_point(|(start, _)| *start < from);
        self.missed.insert(at, (from, to));
        if self.missed.len() > MAX_MISSED
            && let Some((from, _)) = self.missed.pop_front()
            && let Some(second) = self.missed.front_mut()
        {
            // Rather say of an event that it was missed than that it is there.
            second.0 = from;
        }
    }

    /// Somebody waits for everything below `offset`. Says whether that is more than anybody waited for
    /// before.
    pub(crate) fn await_ack(&mut self, offset: u64) -> bool {
        let news = self.can_acknowledge && self.awaited < offset;
        if news {
            self.awaited = offset;
        }
        news
    }

    /// What somebody waits for.
    pub(crate) fn awaited(&self) -> u64 {
        self.awaited
    }

    /// How the spoke stands to the broadcast at `offset`; `None` if it was not there then.
    pub(crate) fn stands_to(&self, offset: u64) -> Option<Stands> {
        if offset < self.since {
            return None;
        }
        if !self.can_acknowledge {
            return Some(Stands::CannotAcknowledge);
        }
        let after = self.missed.partition_point(|(start, _)| *start <= offset);
        let before = after.checked_sub(1).and_then(|n| self.missed.get(n));
        Some(if before.is_some_and(|(_, end)| offset < *end) {
            Stands::Missed
        } else if offset < self.acked {
            Stands::Acked
        } else {
            Stands::Waiting
        })
    }
}

/// What is remembered of spokes that are gone.
#[derive(Debug)]
pub(crate) struct Departed {
    max: usize,
    /// With the tip when they went, in that order.
    spokes: VecDeque<(SpokeId, Record, u64)>,
    /// Some that were there for broadcasts below are no longer remembered.
    forgotten: u64,
}

impl Departed {
    /// Remembers the last `max`.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            spokes: VecDeque::new(),
            forgotten: 0,
        }
    }

    /// A spoke has gone when the log stood at `tip`.
    pub(crate) fn add(&mut self, id: SpokeId, record: Record, tip: u64) {
        if record.since >= tip {
            // There was nothing for it.
            return;
        }
        self.spokes.push_back((id, record, tip));
        while self.spokes.len() > self.max
            && let Some((_, _, until)) = self.spokes.pop_front()
        {
            self.forgotten = self.forgotten.max(until);
        }
    }

    /// How those that were there for the broadcast at `offset` stand to it.
    pub(crate) fn stand_to(&self, offset: u64) -> impl Iterator<Item = (SpokeId, Stands)> + '_ {
        self.spokes.iter().filter_map(move |(id, record, until)| {
            if offset >= *until {
                return None;
            }
            let stands = match record.stands_to(offset)? {
                Stands::Waiting => Stands::Gone,
                // Its stream has not even taken it.
                Stands::CannotAcknowledge if offset >= record.acked => Stands::Gone,
                stands => stands,
            };
            Some((*id, stands))
        })
    }

    /// Whether all are remembered that were there for the broadcast at `offset`.
    pub(crate) fn remembers(&self, offset: u64) -> bool {
        offset >= self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn id(number: u64) -> SpokeId {
        SpokeId {
            endpoint: iroh::SecretKey::from_bytes(&[7; 32]).public(),
            number,
        }
    }

    #[test]
    fn ranges_that_touch_are_one_and_too_many_are_taken_as_one_from_the_oldest() {
        let mut record = Record::new(true, 0, 0);
        record.says_missed(2, 4);
        record.says_missed(6, 8);
        record.says_missed(4, 6);
        assert_eq!(record.missed, [(2, 8)]);
        for n in 1..200 {
            record.says_missed(10 * n, 10 * n + 1);
            assert!(record.missed.len() <= MAX_MISSED);
        }
        assert_eq!(record.missed[0], (2, 10 * 136 + 1));
        record.set_acked(2000);
        assert_eq!(record.stands_to(1365), Some(Stands::Acked));
        assert_eq!(record.stands_to(1370), Some(Stands::Missed));
        assert_eq!(record.stands_to(1371), Some(Stands::Acked));
    }

    #[test]
    fn what_was_acknowledged_stays_so_whatever_the_hub_says_but_not_what_the_spoke_says() {
        let mut record = Record::new(true, 0, 0);
        record.set_acked(5);
        record.was_told(3, 7);
        assert_eq!(record.stands_to(4), Some(Stands::Acked));
        assert_eq!(record.stands_to(5), Some(Stands::Missed));
        record.says_missed(4, 5);
        assert_eq!(record.stands_to(4), Some(Stands::Missed));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Join {
            can_acknowledge: bool,
            back: u64,
        },
        Broadcast(u64),
        Ack {
            spoke: prop::sample::Index,
            n: u64,
        },
        Told {
            spoke: prop::sample::Index,
            n: u64,
        },
        Says {
            spoke: prop::sample::Index,
            from: u64,
            n: u64,
        },
        Returns {
            spoke: prop::sample::Index,
            n: u64,
            has_before: bool,
        },
        Leave {
            spoke: prop::sample::Index,
        },
    }

    fn op() -> impl Strategy<Value = Op> {
        let index = any::<prop::sample::Index>;
        prop_oneof![
            2 => (prop::bool::weighted(0.8), 0..4u64)
                .prop_map(|(can_acknowledge, back)| Op::Join { can_acknowledge, back }),
            4 => (1..4u64).prop_map(Op::Broadcast),
            4 => (index(), 0..4u64).prop_map(|(spoke, n)| Op::Ack { spoke, n }),
            1 => (index(), 0..4u64).prop_map(|(spoke, n)| Op::Told { spoke, n }),
            1 => (index(), 0..8u64, 0..4u64).prop_map(|(spoke, from, n)| Op::Says { spoke, from, n }),
            1 => (index(), 0..4u64, any::<bool>())
                .prop_map(|(spoke, n, has_before)| Op::Returns { spoke, n, has_before }),
            2 => index().prop_map(|spoke| Op::Leave { spoke }),
        ]
    }

    /// A spoke told the long way: each broadcast that it was there for, and what it has said of it.
    #[derive(Clone, Default)]
    struct Model {
        can_acknowledge: bool,
        there: BTreeSet<u64>,
        missed: BTreeSet<u64>,
        acked: u64,
        gone: bool,
    }

    impl Model {
        fn stands(&self, offset: u64) -> Option<Stands> {
            if !self.there.contains(&offset) {
                return None;
            }
            let below = offset < self.acked;
            Some(match (self.can_acknowledge, self.gone) {
                (false, true) if !below => Stands::Gone,
                (false, _) => Stands::CannotAcknowledge,
                _ if self.missed.contains(&offset) => Stands::Missed,
                _ if below => Stands::Acked,
                (_, true) => Stands::Gone,
                (_, false) => Stands::Waiting,
            })
        }
    }

    crate::fuzz::machine! {
        fn every_broadcast_is_answered_for_as_if_it_had_been_watched_from_the_start(
            ops in prop::collection::vec(op(), 1..80),
            remembered in 0..6usize,
        ) {
            let mut tip = 0;
            let mut records: BTreeMap<SpokeId, Record> = BTreeMap::new();
            let mut departed = Departed::new(remembered);
            let mut model: BTreeMap<SpokeId, Model> = BTreeMap::new();
            let pick = |spoke: prop::sample::Index, records: &BTreeMap<SpokeId, Record>| {
                let ids: Vec<_> = records.keys().copied().collect();
                (!ids.is_empty()).then(|| ids[spoke.index(ids.len())])
            };
            for op in ops {
                match op {
                    Op::Join { can_acknowledge, back } => {
                        let id = id(model.len() as u64);
                        let start = tip - back.min(tip);
                        records.insert(id, Record::new(can_acknowledge, tip, start));
                        let joined = Model { can_acknowledge, acked: start, ..Model::default() };
                        model.insert(id, joined);
                    }
                    Op::Broadcast(n) => for _ in 0..n {
                        for model in model.values_mut().filter(|model| !model.gone) {
                            model.there.insert(tip);
                        }
                        tip += 1;
                    }
                    Op::Ack { spoke, n } => {
                        let Some(id) = pick(spoke, &records) else { continue };
                        let (record, model) = (records.get_mut(&id).unwrap(), model.get_mut(&id).unwrap());
                        let to = (record.acked() + n).min(tip);
                        record.set_acked(to);
                        model.acked = model.acked.max(to);
                    }
                    Op::Told { spoke, n } => {
                        let Some(id) = pick(spoke, &records) else { continue };
                        let (record, model) = (records.get_mut(&id).unwrap(), model.get_mut(&id).unwrap());
                        let (from, to) = (record.acked().saturating_sub(1), (record.acked() + n).min(tip));
                        record.was_told(from, to);
                        model.missed.extend(from.max(model.acked)..to);
                    }
                    Op::Says { spoke, from, n } => {
                        let Some(id) = pick(spoke, &records) else { continue };
                        let to = (from + n).min(tip);
                        records.get_mut(&id).unwrap().says_missed(from, to);
                        model.get_mut(&id).unwrap().missed.extend(from..to);
                    }
                    Op::Returns { spoke, n, has_before } => {
                        let Some(id) = pick(spoke, &records) else { continue };
                        let (record, model) = (records.get_mut(&id).unwrap(), model.get_mut(&id).unwrap());
                        let start = (record.acked() + n).min(tip);
                        record.returns(start, has_before);
                        if !has_before {
                            model.missed.extend(model.acked..start);
                        }
                        model.acked = model.acked.max(start);
                    }
                    Op::Leave { spoke } => {
                        let Some(id) = pick(spoke, &records) else { continue };
                        departed.add(id, records.remove(&id).unwrap(), tip);
                        model.get_mut(&id).unwrap().gone = true;
                    }
                }
            }
            for offset in 0..tip {
                let expected: BTreeMap<_, _> = model
                    .iter()
                    .filter_map(|(id, model)| Some((*id, model.stands(offset)?)))
                    .collect();
                let now = records.iter().filter_map(|(id, record)| Some((*id, record.stands_to(offset)?)));
                let got: BTreeMap<_, _> = now.chain(departed.stand_to(offset)).collect();
                if departed.remembers(offset) {
                    prop_assert_eq!(&got, &expected, "{}", offset);
                } else {
                    // What is said is true, of those that are remembered.
                    for (id, stands) in &got {
                        prop_assert_eq!(Some(stands), expected.get(id));
                    }
                    prop_assert!(got.len() <= expected.len());
                }
            }
        }
    }
}

use std::collections::{BTreeSet, BinaryHeap};

use bytes::Bytes;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    inbox::{Inbox, InboxConfig, Output, Part},
    position::Epoch,
    via::Via,
};

const MS: Duration = Duration::from_millis(1);
/// So many events are a piece, and so many bytes an event.
const PIECE: u64 = 16;
const BYTES: u64 = 1000;

fn cut(from: u64, to: u64) -> Option<Piece> {
    let to = to.min(from + PIECE);
    let bytes = (to - from) * BYTES;
    Some(Piece { from, to, bytes })
}

struct Hub {
    repairs: Repairs<u32>,
    budget: Budget<Payer<u32>>,
    now: Instant,
}

impl Hub {
    fn new(members: usize) -> Self {
        let now = Instant::now();
        let mut repairs = Repairs::new();
        repairs.set_topic(Some(members));
        let budget = Budget::new(now, 32 << 20);
        Self {
            repairs,
            budget,
            now,
        }
    }

    fn want(&mut self, id: u32, from: u64, to: u64) -> bool {
        self.repairs.want(self.now, id, (from, to), true, 0)
    }

    fn pass(&mut self, time: Duration) -> Vec<Answer<u32>> {
        self.now += time;
        std::iter::from_fn(|| self.repairs.poll(self.now, &mut self.budget, cut)).collect()
    }
}

fn direct(id: u32, from: u64, to: u64) -> Answer<u32> {
    Answer::Direct { id, from, to }
}

fn again(from: u64, to: u64) -> Answer<u32> {
    let bytes = (to - from) * BYTES;
    Answer::Again(Piece { from, to, bytes })
}

#[test]
fn what_a_few_want_goes_along_their_links_once_it_was_gathered() {
    let mut hub = Hub::new(100);
    hub.want(1, 5, 8);
    hub.want(2, 6, 20);
    assert_eq!(hub.pass(GATHER - MS), []);
    assert_eq!(hub.pass(MS), [direct(1, 5, 8), direct(2, 6, 20)]);
    assert_eq!(hub.repairs.deadline(), None);
}

#[test]
fn what_many_want_goes_on_the_topic_again_once_and_nobody_gets_it_twice() {
    let mut hub = Hub::new(100);
    for id in 0..10 {
        hub.want(id, 5, 8);
    }
    hub.want(11, 7, 9);
    assert_eq!(hub.pass(GATHER), [direct(11, 8, 9), again(5, 8)]);
    for id in 0..100 {
        assert!(hub.want(id, 5, 8));
        assert_eq!(hub.pass(MS), []);
    }
    // By then it has arrived or did not.
    hub.pass(arrives_within(100) - 100 * MS);
    hub.want(4, 6, 7);
    assert_eq!(hub.pass(GATHER), [direct(4, 6, 7)]);
}

#[test]
fn wants_that_trickle_in_are_many_too() {
    let mut hub = Hub::new(100);
    let mut answers = Vec::new();
    for id in 0..11 {
        hub.want(id, 5, 8);
        answers.extend(hub.pass(10 * GATHER));
    }
    let few = (0..7).map(|id| direct(id, 5, 8));
    assert_eq!(answers, few.chain([again(5, 8)]).collect::<Vec<_>>());
}

#[test]
fn one_spoke_is_not_many_however_often_it_asks() {
    let mut hub = Hub::new(100);
    for _ in 0..100 {
        hub.want(1, 5, 8);
        assert_eq!(hub.pass(GATHER), [direct(1, 5, 8)]);
    }
}

#[test]
fn without_a_topic_or_beside_it_wants_are_answered_at_once() {
    let mut hub = Hub::new(100);
    hub.repairs.want(hub.now, 7, (5, 8), false, 0);
    assert_eq!(hub.pass(MS), [direct(7, 5, 8)]);
    for id in 0..2 {
        hub.want(id, 5, 8);
    }
    hub.repairs.set_topic(None);
    hub.want(9, 1, 2);
    let all = [direct(0, 5, 8), direct(1, 5, 8), direct(9, 1, 2)];
    assert_eq!(hub.pass(MS), all);
}

#[test]
fn what_the_log_has_lost_is_for_links_to_say() {
    let mut hub = Hub::new(100);
    let many = MANY as u32;
    for id in 0..many {
        hub.repairs.want(hub.now, id, (5, 8), true, 6);
    }
    let lost: Vec<_> = (0..many).map(|id| direct(id, 5, 6)).collect();
    assert_eq!(hub.pass(MS), lost);
    // And some more is lost until it is its turn.
    hub.now += GATHER;
    let piece = |_, _| {
        Some(Piece {
            from: 7,
            to: 8,
            bytes: BYTES,
        })
    };
    let answer = hub.repairs.poll(hub.now, &mut hub.budget, piece);
    assert_eq!(answer, Some(again(7, 8)));
    hub.want(1, 6, 7);
    assert_eq!(hub.pass(GATHER), [direct(1, 6, 7)]);
}

#[test]
fn a_long_range_goes_in_pieces_that_the_budget_has_room_for() {
    let mut hub = Hub::new(100);
    hub.budget = Budget::new(hub.now, 100 * BYTES);
    hub.budget.spend(256 * 1024);
    for id in 0..MANY as u32 {
        hub.want(id, 0, 100);
    }
    let begin = hub.now;
    let mut sent = Vec::new();
    hub.now += GATHER;
    while sent.last() != Some(&again(96, 100)) {
        sent.extend(hub.pass(Duration::ZERO));
        hub.want(9, 0, 1);
        if let Some(at) = hub.budget.deadline() {
            hub.now = hub.now.max(at);
            while hub.budget.poll(hub.now).is_some() {}
        }
    }
    let pieces: Vec<_> = (0..100)
        .step_by(PIECE as usize)
        .map(|from| again(from, (from + PIECE).min(100)))
        .collect();
    // What went first may have been wanted again meanwhile.
    sent.retain(|answer| matches!(answer, Answer::Again(_)));
    assert_eq!(sent, pieces);
    // Up to the last piece, which is paid for afterwards.
    assert!(hub.now - begin > Duration::from_millis(900));
}

#[test]
fn what_the_topic_never_brings_goes_along_links_in_the_end() {
    let mut hub = Hub::new(100);
    let mut answers = Vec::new();
    for _ in 0..6 {
        for id in 0..10 {
            hub.want(id, 5, 8);
        }
        answers.extend(hub.pass(GATHER));
        hub.pass(1000 * MS);
    }
    let (again, direct): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .partition(|answer| matches!(answer, Answer::Again(_)));
    assert_eq!(again.len(), usize::from(MAX_AGAIN));
    assert_eq!(direct.len(), 10 * 3);
}

/// A frame is lost at the root of ten thousand.
#[test]
fn a_storm_of_wants_is_answered_by_one_frame_and_silence() {
    const SPOKES: u32 = 10_000;
    let mut hub = Hub::new(SPOKES as usize);
    let mut rng = StdRng::seed_from_u64(1);
    let mut wants: Vec<(u64, u32)> = (0..SPOKES)
        .map(|id| (rng.random_range(0..600_000), id))
        .collect();
    wants.sort();
    let mut answers = Vec::new();
    let begin = hub.now;
    for (at, id) in wants {
        let at = begin + Duration::from_micros(at);
        while let Some(due) = hub.repairs.deadline()
            && due <= at
        {
            hub.now = due;
            answers.extend(hub.pass(Duration::ZERO));
        }
        hub.now = at;
        hub.want(id, 1000, 1004);
    }
    answers.extend(hub.pass(GATHER));
    assert_eq!(answers, [again(1000, 1004)]);
}

/// Wants of odd ranges, by a spoke that means no good.
#[test]
fn one_spoke_cannot_make_the_hub_forget_what_many_want() {
    let mut hub = Hub::new(100);
    for id in 1..MANY as u32 {
        hub.want(id, 1_000_000, 1_000_001);
    }
    hub.pass(GATHER);
    for n in 0..3000 {
        hub.want(66, 2 * n, 2 * n + 1);
        hub.pass(MS / 2);
        assert!(hub.repairs.runs.len() <= MAX_RUNS);
    }
    hub.want(MANY as u32, 1_000_000, 1_000_001);
    let answers = hub.pass(GATHER);
    assert!(answers.contains(&again(1_000_000, 1_000_001)));
}

crate::fuzz::machine! {
    fn memory_is_bounded_and_nothing_is_answered_to_who_did_not_want_it(
        wants in prop::collection::vec((0u32..50, 0u64..1500, 1u64..80, 0u32..30), 1..300),
        members in 1usize..5000,
    ) {
        let mut hub = Hub::new(members);
        let mut wanted: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        let mut last_again: BTreeMap<u64, Instant> = BTreeMap::new();
        for (id, from, len, pass) in wants {
            hub.want(id, from, from + len);
            wanted.entry(id).or_default().extend(from..from + len);
            for answer in hub.pass(pass * MS) {
                match answer {
                    Answer::Direct { id, from, to } => {
                        let wanted = wanted.get(&id).expect("it wanted something");
                        for offset in from..to {
                            prop_assert!(wanted.contains(&offset));
                            let quiet = last_again.get(&offset).is_none_or(|at| {
                                hub.now >= *at + arrives_within(members)
                            });
                            prop_assert!(quiet, "{} is on its way", offset);
                        }
                    }
                    Answer::Again(Piece { from, to, .. }) => for offset in from..to {
                        let before = last_again.insert(offset, hub.now);
                        let quiet = before.is_none_or(|at| hub.now >= at + arrives_within(members));
                        prop_assert!(quiet, "{} is on its way", offset);
                    },
                }
            }
            let repairs = &hub.repairs;
            prop_assert!(repairs.runs.len() <= MAX_RUNS);
            prop_assert!(repairs.gathered.values().all(|n| *n <= MAX_OF_ONE));
            let mut end = 0;
            for (from, run) in &repairs.runs {
                prop_assert!(*from >= end && run.to > *from);
                end = run.to;
                if let State::Wanted { wants, got } = &run.state {
                    prop_assert!(wants.len() + got.len() <= 2 * MANY_OF_LARGE);
                }
            }
        }
        prop_assert!(hub.repairs.deadline().is_none_or(|at| at <= hub.now + GATHER));
    }
}

/// Something on its way, ordered by when it arrives.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Arrival {
    at: std::cmp::Reverse<Instant>,
    id: u32,
    what: What,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Want(u64, u64),
    Repair(u64),
    Frame(u64),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// The shipped inboxes on a topic that loses some of everything: each has all in the end, soon.
    #[test]
    fn every_spoke_gets_what_it_wants_in_bounded_time(
        seed: u64, spokes in 1u32..60, loss in 0.0f64..0.6, events in 1u64..60, dead in 0u32..4
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut hub = Hub::new(spokes as usize);
        let begin = hub.now;
        let config = InboxConfig {
            gap_wait: arrives_within(spokes as usize),
            gap_jitter: 125 * MS,
            ..InboxConfig::default()
        };
        let epoch = Epoch::from_u64(1);
        let mut inboxes: Vec<Inbox> = (0..spokes)
            .map(|id| Inbox::new(config, begin, epoch, 0, events, u64::from(id)))
            .collect();
        let mut ways = BinaryHeap::new();
        let send = |ways: &mut BinaryHeap<Arrival>, rng: &mut StdRng, now: Instant, offset: u64| {
            for id in dead..spokes {
                if !rng.random_bool(loss) {
                    let at = now + rng.random_range(1..200) * MS;
                    ways.push(Arrival { at: std::cmp::Reverse(at), id, what: What::Frame(offset) });
                }
            }
        };
        for offset in 0..events {
            send(&mut ways, &mut rng, begin, offset);
        }
        let part = |offset, via| Part { offset, part: 0, parts: 1, body: Bytes::new(), via };
        let deadline = begin + Duration::from_secs(30);
        loop {
            let timers = inboxes.iter().filter_map(Inbox::deadline);
            let budget = hub.budget.deadline();
            let next = timers
                .chain(hub.repairs.deadline())
                .chain(budget)
                .chain(ways.peek().map(|arrival| arrival.at.0))
                .min();
            let Some(next) = next else { break };
            let now = next.max(hub.now);
            prop_assert!(now < deadline, "not in time");
            while hub.budget.poll(now).is_some() {}
            while let Some(arrival) = ways.peek() && arrival.at.0 <= now {
                let Some(Arrival { id, what, .. }) = ways.pop() else { break };
                let inbox = &mut inboxes[id as usize];
                match what {
                    What::Want(from, to) => { hub.repairs.want(now, id, (from, to), true, 0); }
                    What::Repair(offset) => { inbox.insert(now, part(offset, Via::Repair)).unwrap(); }
                    What::Frame(offset) => { inbox.insert(now, part(offset, Via::Gossip)).unwrap(); }
                }
            }
            for answer in hub.pass(now.saturating_duration_since(hub.now)) {
                match answer {
                    Answer::Direct { id, from, to } => for offset in from..to {
                        let at = std::cmp::Reverse(now + rng.random_range(1..50) * MS);
                        ways.push(Arrival { at, id, what: What::Repair(offset) });
                    },
                    Answer::Again(Piece { from, to, .. }) => for offset in from..to {
                        send(&mut ways, &mut rng, now, offset);
                    },
                }
            }
            for (id, inbox) in inboxes.iter_mut().enumerate() {
                while let Some(output) = inbox.poll(now) {
                    if let Output::Want { from, to } = output {
                        let at = std::cmp::Reverse(now + rng.random_range(1..50) * MS);
                        ways.push(Arrival { at, id: id as u32, what: What::Want(from, to) });
                    }
                }
            }
        }
        for inbox in &inboxes {
            prop_assert_eq!(inbox.next(), events);
        }
    }
}

#[test]
fn what_is_on_its_way_has_arrived_before_a_spoke_wants_it_again() {
    let retry = InboxConfig::default().want_retry;
    for members in [0, 1, 1000, 10_000, usize::MAX] {
        assert!(arrives_within(members) + GATHER < retry);
    }
}

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{traffic::REMEMBER, *};

const MS: Duration = Duration::from_millis(1);

fn config() -> PlannerConfig {
    PlannerConfig {
        joins_per_s: 20,
        bootstrap_peers: 2,
        joins_at_once: 64,
        ..PlannerConfig::default()
    }
}

/// Does what a planner decides, and checks that each decision may be made then.
struct Hub {
    planner: Planner<u8>,
    now: Instant,
    topic: bool,
    /// Whether it can gossip.
    spokes: BTreeMap<u8, bool>,
    told: BTreeSet<u8>,
    on_tree: BTreeSet<u8>,
    parked: BTreeSet<u8>,
    joins: Vec<Instant>,
    log: Vec<Decision<u8>>,
}

impl Hub {
    fn new(fan_out: FanOut) -> Self {
        Self {
            planner: Planner::new(fan_out, config(), 1),
            now: Instant::now(),
            topic: false,
            spokes: BTreeMap::new(),
            told: BTreeSet::new(),
            on_tree: BTreeSet::new(),
            parked: BTreeSet::new(),
            joins: Vec::new(),
            log: Vec::new(),
        }
    }

    fn join(&mut self, id: u8, capable: bool) {
        self.leave(id);
        self.spokes.insert(id, capable);
        self.planner.spoke_joined(self.now, id, capable);
    }

    fn leave(&mut self, id: u8) {
        self.spokes.remove(&id);
        self.told.remove(&id);
        self.on_tree.remove(&id);
        self.parked.remove(&id);
        self.planner.spoke_left(self.now, id);
    }

    fn on_tree(&mut self, id: u8) {
        if self.told.contains(&id) {
            self.on_tree.insert(id);
        }
        self.planner.on_tree(self.now, id);
    }

    fn isolated(&mut self, id: u8) {
        self.on_tree.remove(&id);
        let _ = self.planner.isolated(self.now, id);
    }

    fn poll(&mut self) -> Option<Decision<u8>> {
        let decision = self.planner.poll(self.now)?;
        match &decision {
            Decision::StartTopic => {
                assert!(!self.topic && self.told.is_empty());
                self.topic = true;
            }
            Decision::StopTopic => {
                assert!(self.topic && self.told.is_empty() && self.parked.is_empty());
                self.topic = false;
            }
            Decision::TellJoin { id, peers, via_hub } => {
                assert!(self.topic && self.spokes[id] && !self.on_tree.contains(id));
                assert!(!peers.contains(id) && peers.iter().all(|p| self.told.contains(p)));
                let distinct: BTreeSet<_> = peers.iter().collect();
                assert!(distinct.len() == peers.len() && peers.len() <= 2);
                assert!(*via_hub || !peers.is_empty(), "nobody to join through");
                self.told.insert(*id);
                self.joins.push(self.now);
            }
            Decision::TellLeave { id } => {
                assert!(self.topic && !self.parked.contains(id));
                assert!(self.told.remove(id));
                self.on_tree.remove(id);
            }
            Decision::Park { id } => {
                assert!(self.topic && self.told.contains(id) && self.on_tree.contains(id));
                assert!(self.parked.insert(*id));
            }
            Decision::Unpark { id } => {
                assert!(self.topic && self.parked.remove(id));
                self.on_tree.remove(id);
            }
        }
        self.log.push(decision.clone());
        Some(decision)
    }

    fn drain(&mut self) -> Vec<Decision<u8>> {
        let decisions: Vec<_> = std::iter::from_fn(|| self.poll()).take(2000).collect();
        assert!(decisions.len() < 2000, "polling does not end");
        assert!(self.planner.deadline().is_none_or(|at| at > self.now));
        self.check();
        decisions
    }

    fn check(&self) {
        let planner = &self.planner;
        assert_eq!(planner.gossiping(), self.topic);
        assert!(self.topic || self.told.is_empty());
        // Nobody is parked who is not on the tree, and nobody on the tree is served twice.
        assert_eq!(self.parked, self.on_tree);
        let counts = planner.counts();
        let capable = self.spokes.values().filter(|capable| **capable).count();
        assert_eq!(counts.gossip, self.parked.len());
        assert_eq!(counts.joining, self.told.len() - self.parked.len());
        assert_eq!(counts.direct, capable - self.told.len());
        assert_eq!(counts.incapable, self.spokes.len() - capable);
        for id in self.spokes.keys() {
            let path = match (self.parked.contains(id), self.told.contains(id)) {
                (true, _) => Path::Gossip,
                (_, true) => Path::Joining,
                _ => Path::Direct,
            };
            assert_eq!(planner.path(*id), Some(path));
        }
        assert_eq!(planner.path(u8::MAX), None);
    }

    /// Twenty a second, two of them at once.
    fn check_rate(&self) {
        for (n, from) in self.joins.iter().enumerate() {
            for (more, to) in self.joins[n..].iter().enumerate() {
                let most = 2 + (*to - *from).as_millis() as usize / 50;
                assert!(more < most, "{} joins in {:?}", more + 1, *to - *from);
            }
        }
    }

    fn starts(&self) -> usize {
        let starts = self.log.iter().filter(|d| **d == Decision::StartTopic);
        starts.count()
    }

    /// So much traffic for a while, looked at as often as a hub does.
    fn traffic(&mut self, lasts: Duration, traffic: Traffic) {
        let end = self.now + lasts;
        while self.now < end {
            self.run(200 * MS);
            self.planner.traffic(self.now, traffic);
        }
    }

    /// Lets time pass until nothing more is planned, or for `limit`.
    fn run(&mut self, limit: Duration) {
        let end = self.now + limit;
        self.drain();
        while let Some(at) = self.planner.deadline().filter(|at| *at <= end) {
            self.now = at;
            self.drain();
        }
        self.now = end;
    }
}

fn quick_auto() -> FanOut {
    FanOut::Auto(
        AutoFanOut::default()
            .with_gossip_from(6)
            .with_direct_below(4),
    )
}

#[test]
fn direct_decides_nothing() {
    let mut hub = Hub::new(FanOut::Direct);
    for id in 0..100 {
        hub.join(id, true);
    }
    hub.run(Duration::from_secs(10));
    assert_eq!(hub.log, []);
    assert_eq!(hub.planner.deadline(), None);
}

#[test]
fn gossip_tells_those_who_can_at_a_bounded_rate() {
    let mut hub = Hub::new(FanOut::Gossip);
    for id in 0..40 {
        hub.join(id, id % 4 != 0);
    }
    hub.run(Duration::from_secs(3));
    hub.check_rate();
    assert_eq!(hub.log[0], Decision::StartTopic);
    let told: Vec<u8> = hub.log[1..]
        .iter()
        .map(|decision| match decision {
            Decision::TellJoin { id, .. } => *id,
            other => panic!("{other:?}"),
        })
        .collect();
    let capable: Vec<u8> = (0..40).filter(|id| id % 4 != 0).collect();
    assert_eq!(told, capable, "oldest first");
}

#[test]
fn no_more_are_on_their_way_than_are_on_the_tree() {
    let now = Instant::now();
    let mut planner = Planner::new(FanOut::Gossip, PlannerConfig::default(), 1);
    for id in 0..100u32 {
        planner.spoke_joined(now, id, true);
    }
    let mut waves = Vec::new();
    let mut at = now;
    while planner.counts().gossip < 100 {
        let mut told = Vec::new();
        // Long enough for the rate, too short for another try.
        for _ in 0..20 {
            at += Duration::from_millis(50);
            while let Some(decision) = planner.poll(at) {
                if let Decision::TellJoin { id, .. } = decision {
                    told.push(id);
                }
            }
        }
        waves.push(told.len());
        for id in told {
            planner.on_tree(at, id);
        }
    }
    assert_eq!(waves[..3], [16, 16, 32]);
    assert_eq!(waves.iter().sum::<usize>(), 100);
}

#[test]
fn only_the_first_few_join_through_the_hub() {
    let mut hub = Hub::new(FanOut::Gossip);
    for id in 0..20 {
        hub.join(id, true);
    }
    hub.run(Duration::from_secs(2));
    let via_hub = |hub: &Hub| -> Vec<u8> {
        let ids = hub.log.iter().filter_map(|decision| match decision {
            Decision::TellJoin { id, via_hub, .. } if *via_hub => Some(*id),
            _ => None,
        });
        ids.collect()
    };
    assert_eq!(via_hub(&hub), [0, 1]);

    // None of them got there. They are told again, through the hub until there is a tree.
    hub.log.clear();
    hub.run(Duration::from_millis(8500));
    assert!(via_hub(&hub).len() >= 2, "{:?}", hub.log);
    let ids = via_hub(&hub);
    hub.on_tree(ids[0]);
    hub.on_tree(ids[1]);
    hub.log.clear();
    hub.run(Duration::from_secs(1));
    let parked: BTreeSet<u8> = ids[..2].iter().copied().collect();
    assert_eq!(hub.parked, parked);
    let mut joins = 0;
    for decision in &hub.log {
        if let Decision::TellJoin { peers, via_hub, .. } = decision {
            assert!(!via_hub);
            assert_eq!(peers.iter().copied().collect::<BTreeSet<_>>(), parked);
            joins += 1;
        }
    }
    assert!(joins > 0);
}

#[test]
fn a_spoke_that_falls_off_the_tree_is_served_directly_and_told_again() {
    let mut hub = Hub::new(FanOut::Gossip);
    hub.join(1, true);
    hub.drain();
    hub.on_tree(1);
    assert_eq!(hub.drain(), [Decision::Park { id: 1 }]);
    hub.run(Duration::from_secs(60));
    hub.log.clear();
    hub.isolated(1);
    let join = Decision::TellJoin {
        id: 1,
        peers: vec![],
        via_hub: true,
    };
    assert_eq!(hub.drain(), [Decision::Unpark { id: 1 }, join]);
    assert_eq!(hub.planner.path(1), Some(Path::Joining));
    hub.on_tree(1);
    assert_eq!(hub.drain(), [Decision::Park { id: 1 }]);
}

#[test]
fn a_spoke_that_says_it_is_isolated_is_told_of_others_at_once_but_not_again_and_again() {
    let mut hub = Hub::new(FanOut::Gossip);
    for id in 0..3 {
        hub.join(id, true);
    }
    hub.run(Duration::from_secs(1));
    for id in 0..3 {
        hub.on_tree(id);
    }
    hub.run(Duration::from_secs(60));
    hub.log.clear();
    hub.isolated(1);
    let decisions = hub.drain();
    assert_eq!(decisions[0], Decision::Unpark { id: 1 });
    let Decision::TellJoin { id: 1, peers, .. } = &decisions[1] else {
        panic!("{decisions:?}");
    };
    let peers: BTreeSet<u8> = peers.iter().copied().collect();
    assert_eq!(peers, BTreeSet::from([0, 2]));
    hub.on_tree(1);
    hub.drain();
    hub.now += Duration::from_secs(1);
    hub.isolated(1);
    assert_eq!(hub.drain(), [Decision::Unpark { id: 1 }]);
    hub.log.clear();
    hub.run(Duration::from_millis(8900));
    assert_eq!(hub.log, []);
    hub.run(Duration::from_millis(200));
    assert_eq!(hub.log.len(), 1);
}

#[test]
fn after_a_topic_that_is_over_the_next_one_begins_at_once() {
    let mut hub = Hub::new(FanOut::Gossip);
    hub.join(1, true);
    hub.drain();
    hub.on_tree(1);
    hub.drain();
    hub.planner.topic_over();
    let join = Decision::TellJoin {
        id: 1,
        peers: vec![],
        via_hub: true,
    };
    let all = [
        Decision::Unpark { id: 1 },
        Decision::TellLeave { id: 1 },
        Decision::StopTopic,
        Decision::StartTopic,
        join,
    ];
    assert_eq!(hub.drain(), all);
}

#[test]
fn a_spoke_that_never_gets_on_the_tree_is_told_ever_more_rarely_and_hurries_nobody() {
    let mut hub = Hub::new(FanOut::Gossip);
    hub.join(0, true);
    hub.join(1, true);
    hub.run(Duration::from_secs(1));
    hub.on_tree(0);
    assert_eq!(hub.planner.arriving(), 1);
    hub.run(Duration::from_secs(600));
    assert_eq!(hub.planner.arriving(), 0);
    let apart: Vec<u64> = hub.joins[1..]
        .windows(2)
        .map(|told| (told[1] - told[0]).as_secs())
        .collect();
    assert_eq!(apart, [10, 20, 40, 80, 120, 120, 120]);
    // Once it was there, it is as any other.
    hub.on_tree(1);
    hub.isolated(1);
    hub.joins.clear();
    hub.run(Duration::from_secs(200));
    let apart = hub.joins[1] - hub.joins[0];
    assert_eq!(apart.as_secs(), 10);
}

#[test]
fn spokes_that_the_topic_does_not_reach_keep_nobody_from_joining() {
    let mut hub = Hub::new(FanOut::Gossip);
    let config = PlannerConfig {
        joins_per_s: 200,
        joins_at_once: 2,
        ..config()
    };
    hub.planner = Planner::new(FanOut::Gossip, config, 1);
    for id in 0..6 {
        hub.join(id, true);
        hub.drain();
        hub.on_tree(id);
    }
    hub.run(Duration::from_secs(60));
    for id in 0..4 {
        hub.isolated(id);
    }
    for id in 10..12 {
        hub.join(id, true);
    }
    hub.log.clear();
    hub.run(Duration::from_secs(1));
    let told = |id| {
        let joins = |d: &&Decision<u8>| matches!(d, Decision::TellJoin { id: of, .. } if *of == id);
        hub.log.iter().filter(joins).count()
    };
    for id in [0, 1, 2, 3, 10, 11] {
        assert_eq!(told(id), 1, "{id}");
    }
}

#[test]
fn auto_changes_only_after_the_reason_has_stood() {
    let mut hub = Hub::new(quick_auto());
    for id in 0..6 {
        hub.join(id, true);
    }
    assert_eq!(hub.drain(), []);
    hub.now += 900 * MS;
    hub.leave(5);
    hub.join(5, true);
    hub.run(900 * MS);
    assert_eq!(
        hub.log,
        [],
        "the reason did not stand for a second without a break"
    );
    hub.run(200 * MS);
    assert!(hub.topic);

    // Between the thresholds everything stays as it is.
    hub.leave(5);
    hub.leave(4);
    hub.run(Duration::from_secs(5));
    assert!(hub.topic);
    hub.leave(3);
    hub.run(900 * MS);
    assert!(hub.topic);
    hub.run(200 * MS);
    assert!(!hub.topic);
}

#[test]
fn traffic_that_comes_in_bursts_starts_one_topic() {
    const S: Duration = Duration::from_secs(1);
    let mut hub = Hub::new(FanOut::default());
    for id in 0..100 {
        hub.join(id, true);
    }
    let burst = Traffic {
        bytes_per_s: 200 << 10,
        largest_event: 1 << 10,
        rtt: Some(MS),
    };
    let quiet = Traffic {
        rtt: Some(MS),
        ..Traffic::default()
    };
    for _ in 0..120 {
        hub.traffic(2 * S, burst);
        hub.traffic(3 * S, quiet);
    }
    assert!(hub.topic, "it goes there at once");
    assert_eq!(hub.starts(), 1);
    hub.traffic(REMEMBER - 5 * S, quiet);
    assert!(hub.topic);
    hub.traffic(REMEMBER + 10 * S, quiet);
    assert!(!hub.topic, "it goes back in the end");
    assert_eq!(hub.starts(), 1);
}

#[test]
fn going_direct_unparks_all_before_anyone_leaves() {
    let mut hub = Hub::new(FanOut::Gossip);
    for id in 0..4 {
        hub.join(id, true);
    }
    hub.run(Duration::from_secs(1));
    hub.on_tree(0);
    hub.on_tree(2);
    hub.drain();
    hub.planner.set_fan_out(hub.now, FanOut::Direct);
    let unpark = [0, 2].map(|id| Decision::Unpark { id });
    let leave = [0, 1, 2, 3].map(|id| Decision::TellLeave { id });
    let all: Vec<_> = unpark
        .into_iter()
        .chain(leave)
        .chain([Decision::StopTopic])
        .collect();
    assert_eq!(hub.drain(), all);
}

#[test]
fn a_topic_that_failed_is_tried_again_later_and_later() {
    let mut hub = Hub::new(FanOut::Gossip);
    hub.join(1, true);
    hub.drain();
    for backoff in [1, 2, 4, 8, 16, 32, 60, 60] {
        hub.planner.topic_failed(hub.now);
        let leave = [Decision::TellLeave { id: 1 }, Decision::StopTopic];
        assert_eq!(hub.drain(), leave);
        let again = hub.now + Duration::from_secs(backoff);
        assert_eq!(hub.planner.deadline(), Some(again));
        hub.now = again;
        let decisions = hub.drain();
        assert_eq!(decisions[0], Decision::StartTopic);
        assert!(matches!(decisions[1], Decision::TellJoin { id: 1, .. }));
    }
    hub.run(Duration::from_secs(60));
    hub.planner.topic_failed(hub.now);
    hub.drain();
    let again = hub.now + Duration::from_secs(1);
    assert_eq!(hub.planner.deadline(), Some(again));
}

#[test]
fn ten_thousand_spokes_move_to_the_tree_and_back() {
    let mut now = Instant::now();
    let config = PlannerConfig {
        joins_per_s: 10_000,
        ..PlannerConfig::default()
    };
    let mut planner = Planner::new(FanOut::default(), config, 2);
    for id in 0..10_000u32 {
        planner.spoke_joined(now, id, true);
    }
    while planner.counts().gossip < 10_000 {
        now = planner.deadline().expect("it goes on");
        while let Some(decision) = planner.poll(now) {
            if let Decision::TellJoin { id, .. } = decision {
                planner.on_tree(now, id);
            }
        }
    }
    planner.set_fan_out(now, FanOut::Direct);
    let decisions = std::iter::from_fn(|| planner.poll(now)).count();
    assert_eq!(decisions, 20_001);
    assert_eq!(planner.counts().direct, 10_000);
}

#[test]
fn a_large_tree_takes_in_a_twentieth_a_second_and_so_many_at_once() {
    let mut planner = Planner::new(FanOut::Gossip, PlannerConfig::default(), 3);
    let told = |planner: &mut Planner<u32>, now| {
        let decisions = std::iter::from_fn(|| planner.poll(now));
        let told = decisions.filter_map(|decision| match decision {
            Decision::TellJoin { id, .. } => Some(id),
            _ => None,
        });
        told.collect::<Vec<u32>>()
    };
    // Who is told gets there at once. How many are told within a second?
    let second = |planner: &mut Planner<u32>, now: &mut Instant| {
        let (until, mut count) = (*now + Duration::from_secs(1), 0);
        while *now <= until {
            for id in told(planner, *now) {
                count += 1;
                planner.on_tree(*now, id);
            }
            *now = planner
                .deadline()
                .unwrap_or(until)
                .max(*now + Duration::from_millis(1));
        }
        count
    };
    let now = &mut Instant::now();
    for id in 0..10_000 {
        planner.spoke_joined(*now, id, true);
    }
    let first = second(&mut planner, now);
    assert!((200..=221).contains(&first), "{first}");
    while planner.counts().gossip < 8000 {
        second(&mut planner, now);
    }
    let on_tree = planner.counts().gossip;
    let large = second(&mut planner, now);
    assert!((on_tree / 20..on_tree / 14).contains(&large), "{large}");
    // A tree that has shrunk is a small one.
    for id in 100..10_000 {
        planner.spoke_left(*now, id);
    }
    for id in 10_000..11_000 {
        planner.spoke_joined(*now, id, true);
    }
    let again = second(&mut planner, now);
    assert!((199..=221).contains(&again), "{again}");
}

#[derive(Clone, Debug)]
enum Op {
    Join(u8, bool),
    Leave(u8),
    OnTree(u8),
    Isolated(u8),
    Traffic(u64, u64),
    Direct,
    Gossip,
    Auto,
    Failed,
    Over,
    Wait(u64),
    /// So many decisions only, before the next thing happens.
    Poll(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0u8..12, prop::bool::weighted(0.8)).prop_map(|(id, c)| Op::Join(id, c)),
        4 => (0u8..12).prop_map(Op::Leave),
        12 => (0u8..12).prop_map(Op::OnTree),
        8 => (0u8..12).prop_map(Op::Isolated),
        1 => (any::<u64>(), prop_oneof![Just(0), 0u64..100_000, any::<u64>()])
            .prop_map(|(rate, event)| Op::Traffic(rate, event)),
        1 => Just(Op::Direct),
        3 => Just(Op::Gossip),
        1 => Just(Op::Auto),
        1 => Just(Op::Failed),
        1 => Just(Op::Over),
        6 => (0u64..2500).prop_map(Op::Wait),
        12 => (0usize..8).prop_map(Op::Poll),
    ]
}

crate::fuzz::machine! {
    fn whatever_happens_every_decision_may_be_made(
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let mut hub = Hub::new(quick_auto());
        for op in ops {
            match op {
                Op::Join(id, capable) => hub.join(id, capable),
                Op::Leave(id) => hub.leave(id),
                Op::OnTree(id) => {
                    // A spoke says it at any time; it counts only on a topic that is not being taken down.
                    if hub.planner.gossiping() {
                        hub.on_tree(id);
                    } else {
                        hub.planner.on_tree(hub.now, id);
                    }
                }
                Op::Isolated(id) => {
                    if hub.planner.gossiping() {
                        hub.isolated(id);
                    } else {
                        let _ = hub.planner.isolated(hub.now, id);
                    }
                }
                Op::Traffic(bytes_per_s, largest_event) => {
                    let traffic = Traffic { bytes_per_s, largest_event, rtt: None };
                    hub.planner.traffic(hub.now, traffic);
                }
                Op::Direct => hub.planner.set_fan_out(hub.now, FanOut::Direct),
                Op::Gossip => hub.planner.set_fan_out(hub.now, FanOut::Gossip),
                Op::Auto => {
                    let FanOut::Auto(auto) = quick_auto() else { unreachable!() };
                    let auto = FanOut::Auto(auto.with_uplink_bytes_per_s(1000));
                    hub.planner.set_fan_out(hub.now, auto);
                }
                Op::Failed => hub.planner.topic_failed(hub.now),
                Op::Over => hub.planner.topic_over(),
                Op::Wait(ms) => hub.now += Duration::from_millis(ms),
                Op::Poll(0) => drop(hub.drain()),
                Op::Poll(most) => {
                    for _ in 0..most {
                        hub.poll();
                    }
                }
            }
        }
        hub.drain();

        // Left alone with gossip, all who can are told to join.
        hub.planner.set_fan_out(hub.now, FanOut::Gossip);
        hub.run(Duration::from_secs(70));
        let capable: BTreeSet<u8> = hub.spokes.iter().filter(|(_, c)| **c).map(|(id, _)| *id).collect();
        prop_assert_eq!(&hub.told, &capable);

        hub.planner.set_fan_out(hub.now, FanOut::Direct);
        hub.drain();
        prop_assert!(!hub.topic && hub.parked.is_empty() && hub.told.is_empty());
        prop_assert_eq!(hub.planner.deadline(), None);
        hub.check_rate();
    }
}

crate::fuzz::machine! {
    fn whatever_is_broadcast_topics_begin_rarely(
        spokes in 0u8..40,
        // What those look like that are near the thresholds, and any others.
        looks in prop::collection::vec(
            (0u64..10_000, prop_oneof![Just(0), 0u64..2_000_000, any::<u64>()],
             prop_oneof![Just(0), 0u64..100_000, any::<u64>()]),
            0..100,
        ),
    ) {
        let mut hub = Hub::new(FanOut::default());
        for id in 0..spokes {
            hub.join(id, id % 5 != 0);
        }
        let began = hub.now;
        for (ms, bytes_per_s, largest_event) in looks {
            hub.run(Duration::from_millis(ms));
            let traffic = Traffic { bytes_per_s, largest_event, rtt: Some(MS) };
            hub.planner.traffic(hub.now, traffic);
            hub.drain();
        }
        let most = 1 + (hub.now - began).as_secs() / REMEMBER.as_secs();
        prop_assert!(hub.starts() as u64 <= most, "{} in {:?}", hub.starts(), hub.now - began);
    }
}

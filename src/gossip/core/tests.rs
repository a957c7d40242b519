//! The core among cores: a small network of them, in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::gossip::{
    FrameRefused,
    mirror::{Data, Gossip, IHave, List, Message, PeerInfo, Priority, Scope, Swarm},
};

/// Reads what a test wrote: the first byte says what the gate makes of it.
#[derive(Default)]
struct TestGate {
    /// It has the keys for what begins with `U`.
    knows: bool,
}

impl FrameGate for TestGate {
    type Opened = Bytes;

    fn open(&mut self, frame: &Bytes) -> Result<Bytes, FrameRefused> {
        match frame.first() {
            Some(b'F') => Err(FrameRefused::Forged),
            Some(b'S') => Err(FrameRefused::Stale),
            Some(b'U') if !self.knows => Err(FrameRefused::UnknownGeneration),
            _ => Ok(frame.clone()),
        }
    }
}

type TestCore = Core<u32, TestGate>;

fn core(me: u32, now: Instant) -> TestCore {
    core_with(me, GossipConfig::default(), now)
}

fn core_with(me: u32, config: GossipConfig, now: Instant) -> TestCore {
    let data = Some(Bytes::from(vec![1; 20]));
    Core::new(
        me,
        data,
        config,
        TestGate::default(),
        Default::default(),
        me.into(),
        now,
    )
}

fn outputs(core: &mut TestCore) -> Vec<Output<u32, Bytes>> {
    std::iter::from_fn(|| core.next_output()).collect()
}

fn bytes(message: &Message<'_, u32>) -> Bytes {
    postcard::to_stdvec(message).unwrap().into()
}

fn join() -> Bytes {
    bytes(&Message::Swarm(Swarm::Join(None)))
}

fn data(content: &[u8], round: u16) -> Bytes {
    let id = *blake3::hash(content).as_bytes();
    let scope = Scope::Swarm(round);
    bytes(&Message::Gossip(Gossip::Data(Data { id, content, scope })))
}

/// A core with these neighbours.
fn with_neighbors(peers: &[u32], now: Instant) -> TestCore {
    with_neighbors_and(peers, GossipConfig::default(), now)
}

fn with_neighbors_and(peers: &[u32], config: GossipConfig, now: Instant) -> TestCore {
    let mut core = core_with(0, config, now);
    for peer in peers {
        assert!(core.peer_connected(*peer, false, now));
        core.message(*peer, join(), now);
    }
    assert_eq!(core.neighbors(), peers.len());
    outputs(&mut core);
    core
}

fn closes(outputs: &[Output<u32, Bytes>]) -> Vec<(u32, CloseWhy)> {
    let closes = outputs.iter().filter_map(|output| match output {
        Output::Close { peer, why } => Some((*peer, *why)),
        _ => None,
    });
    closes.collect()
}

fn frames_to(outputs: &[Output<u32, Bytes>]) -> BTreeSet<u32> {
    let sends = outputs.iter().filter_map(|output| match output {
        Output::Send {
            peer,
            kind: SendKind::Data,
            ..
        } => Some(*peer),
        _ => None,
    });
    sends.collect()
}

fn delivered(outputs: &[Output<u32, Bytes>]) -> usize {
    let is = |output: &&Output<_, _>| matches!(output, Output::Deliver { .. });
    outputs.iter().filter(is).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn frames_are_kept_for_grafts_within_the_bytes_there_are_for_them_the_newest_first(
        // Not at once: the protocol forgets by time, all of one moment together.
        frames in prop::collection::vec((any::<bool>(), 1usize..3000, 1u64..300), 1..100),
        cache_bytes in 1usize..60_000,
    ) {
        let mut now = Instant::now();
        let config = GossipConfig { cache_bytes, ..Default::default() };
        let mut core = with_neighbors_and(&[1, 2], config.clone(), now);
        let mut sent: Vec<(Bytes, Instant)> = Vec::new();
        for (n, (ours, len, ms)) in frames.into_iter().enumerate() {
            now += Duration::from_millis(ms);
            core.tick(now);
            let content = Bytes::from([&(n as u32).to_be_bytes()[..], &vec![7; len]].concat());
            if ours {
                core.broadcast(content.clone(), now).unwrap();
            } else {
                core.message(1, data(&content, 1), now);
            }
            sent.push((content, now));
        }
        outputs(&mut core);
        let mut kept = Vec::new();
        for (content, came) in &sent {
            let id = Some(*blake3::hash(content).as_bytes());
            core.message(2, bytes(&Message::Gossip(Gossip::Graft { id, round: 0 })), now);
            kept.push((frames_to(&outputs(&mut core)).contains(&2), content.len(), *came));
        }
        let held: usize = kept.iter().filter(|kept| kept.0).map(|kept| kept.1).sum();
        prop_assert!(held <= cache_bytes, "{} of {}", held, cache_bytes);
        // What is not kept is older than what is; and what has room, and its time, is kept.
        let first = kept.iter().position(|kept| kept.0).unwrap_or(kept.len());
        prop_assert!(kept[first..].iter().all(|kept| kept.0));
        let mut room = cache_bytes / 8 * 7;
        for (is_kept, len, came) in kept.iter().rev() {
            let cost = len + 256;
            if cost > room || *came + config.frame_retention <= now {
                break;
            }
            room -= cost;
            prop_assert!(is_kept);
        }
    }
}

#[test]
fn a_frame_that_was_kept_for_less_is_still_known_for_a_repeat() {
    let now = Instant::now();
    let config = GossipConfig {
        cache_bytes: 2000,
        ..Default::default()
    };
    let mut core = with_neighbors_and(&[1, 2], config, now);
    for n in 0..20u8 {
        let now = now + Duration::from_millis(n.into());
        core.message(1, data(&[n; 1000], 1), now);
    }
    assert_eq!(delivered(&outputs(&mut core)), 20);
    assert_eq!(core.metrics.frames_uncached.get(), 19);
    for n in 0..20u8 {
        core.message(2, data(&[n; 1000], 1), now);
    }
    assert_eq!(delivered(&outputs(&mut core)), 0);
    assert_eq!(core.metrics.frames_repeated.get(), 20);
    // The protocol's timer was not set a second time.
    assert_eq!(core.timers.count(timers::TimerKind::Evict), 1);
}

#[test]
fn the_mirror_reads_and_writes_what_the_protocol_does() {
    // Two protocol states talk until every kind of message has been seen.
    let now = Instant::now();
    let mut config = GossipConfig::default().to_proto();
    config.membership.shuffle_interval = Duration::from_millis(10);
    let mut states: Vec<_> = (0..8u32)
        .map(|me| {
            let data = Some(PeerData::new(vec![me as u8; 9]));
            let mut config = config.clone();
            config.membership.active_view_capacity = 3;
            topic::State::with_rng(me, data, config, StdRng::seed_from_u64(me.into()))
        })
        .collect();
    let mut kinds = BTreeSet::new();
    let mut wire: VecDeque<(u32, u32, topic::Message<u32>)> = VecDeque::new();
    let mut timers: Vec<(u32, topic::Timer<u32>)> = Vec::new();
    let run = |states: &mut Vec<topic::State<u32, StdRng>>,
               wire: &mut VecDeque<_>,
               timers: &mut Vec<_>,
               at: u32,
               event| {
        for out in states[at as usize].handle(event, now) {
            match out {
                topic::OutEvent::SendMessage(to, message) => wire.push_back((at, to, message)),
                topic::OutEvent::ScheduleTimer(_, timer) => timers.push((at, timer)),
                _ => {}
            }
        }
    };
    for round in 0..60u32 {
        for me in 1..8 {
            if round < 2 {
                let join = topic::InEvent::Command(proto::Command::Join(vec![0]));
                run(&mut states, &mut wire, &mut timers, me, join);
            }
        }
        let content = Bytes::from(vec![round as u8; 300]);
        let say = proto::Command::Broadcast(content, proto::Scope::Swarm);
        let say = topic::InEvent::Command(say);
        run(&mut states, &mut wire, &mut timers, round % 8, say);
        for (at, timer) in std::mem::take(&mut timers) {
            let timer = topic::InEvent::TimerExpired(timer);
            run(&mut states, &mut wire, &mut timers, at, timer);
        }
        let mut number = 0;
        while let Some((from, to, message)) = wire.pop_front() {
            let real = postcard::to_stdvec(&message).unwrap();
            let mirrored: Message<'_, u32> = Message::decode(&real).expect("mirror reads it");
            assert_eq!(postcard::to_stdvec(&mirrored).unwrap(), real);
            assert_eq!(mirrored.to_proto().as_ref(), Some(&message));
            kinds.insert((real[0], real[1]));
            let kind = match &mirrored {
                Message::Gossip(Gossip::Data(_)) => Kind::Data,
                Message::Gossip(Gossip::Prune) => Kind::Prune,
                Message::Gossip(Gossip::Graft { .. }) => Kind::Graft,
                Message::Gossip(Gossip::IHave(_)) => Kind::Announcement,
                Message::Swarm(Swarm::Neighbor { priority, .. }) => match priority {
                    Priority::High => Kind::Neighbor,
                    Priority::Low => Kind::Request,
                },
                Message::Swarm(Swarm::ForwardJoin { .. }) => Kind::ForwardJoin,
                Message::Swarm(Swarm::Disconnect { .. }) => Kind::Disconnect,
                Message::Swarm(Swarm::Join(_) | Swarm::ShuffleReply { .. }) => Kind::Introduction,
                Message::Swarm(_) => Kind::Walk,
            };
            assert_eq!(mirror::kind(&real), kind);
            if let Message::Gossip(Gossip::Data(Data { scope, .. })) = mirrored {
                assert!(matches!(scope, Scope::Swarm(round) if round < 10));
            }
            number += 1;
            // Some frames are lost, so that they are asked for.
            if kind == Kind::Data && number % 3 == 0 {
                continue;
            }
            let event = topic::InEvent::RecvMessage(from, message);
            run(&mut states, &mut wire, &mut timers, to, event);
        }
    }
    let all: BTreeSet<(u8, u8)> = (0..6)
        .map(|n| (0, n))
        .chain((0..4).map(|n| (1, n)))
        .collect();
    assert_eq!(kinds, all, "every kind of message was seen");
}

#[test]
fn a_forged_frame_is_not_forwarded_and_its_sender_is_cut_off() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2, 3], now);
    core.message(1, data(b"F", 0), now);
    let out = outputs(&mut core);
    assert_eq!(closes(&out), [(1, CloseWhy::Forged)]);
    assert!(frames_to(&out).is_empty());
    assert_eq!(delivered(&out), 0);
    assert_eq!(core.metrics.refused_forged.get(), 1);
    assert!(!core.peer_connected(1, false, now), "it is kept away");
    let later = now + GossipConfig::default().ban * 2;
    assert!(core.peer_connected(1, false, later), "but not for ever");
}

#[test]
fn a_frame_under_a_false_id_counts_as_forged() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2], now);
    let content = b"ok".as_slice();
    let scope = Scope::Swarm(0);
    let id = [0; 32];
    let message = Message::Gossip(Gossip::Data(Data { id, content, scope }));
    core.message(1, bytes(&message), now);
    assert_eq!(closes(&outputs(&mut core)), [(1, CloseWhy::Forged)]);
}

#[test]
fn a_frame_that_cannot_be_opened_yet_is_dropped_and_blamed_on_nobody() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2], now);
    core.message(1, data(b"S", 0), now);
    core.message(1, data(b"U", 0), now);
    assert!(outputs(&mut core).is_empty());
    assert_eq!(core.metrics.refused_stale.get(), 1);
    assert_eq!(core.metrics.refused_unknown_generation.get(), 1);
    assert_eq!(core.neighbors(), 2);
}

#[test]
fn a_good_frame_is_delivered_once_and_forwarded_to_the_others() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2, 3], now);
    core.message(1, data(b"ok", 4), now);
    let out = outputs(&mut core);
    assert_eq!(frames_to(&out), BTreeSet::from([2, 3]));
    assert!(out.iter().any(|out| matches!(
        out,
        Output::Deliver {
            from: 1,
            hops: 5,
            ..
        }
    )));
    core.message(2, data(b"ok", 4), now);
    let out = outputs(&mut core);
    assert_eq!(delivered(&out), 0);
    let prune = bytes(&Message::Gossip(Gossip::Prune));
    assert!(
        matches!(&out[..], [Output::Send { peer: 2, message, .. }] if *message == prune),
        "{out:?}"
    );
}

#[test]
fn a_number_of_hops_that_no_honest_carrier_says_costs_its_sender_the_connection() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2, 3], now);
    // The most that an honest one says, who may have been told the most that is believed.
    core.message(1, data(b"ok", 1001), now);
    let out = outputs(&mut core);
    assert_eq!(frames_to(&out), BTreeSet::from([2, 3]));
    for output in &out {
        if let Output::Send { message, .. } = output {
            let told = Message::<u32>::decode(message);
            let Some(Message::Gossip(Gossip::Data(told))) = told else {
                panic!("{told:?}");
            };
            assert_eq!(
                told.scope,
                Scope::Swarm(1001),
                "the next one believes it too"
            );
        }
    }
    assert_eq!(core.neighbors(), 3);
    let id = *blake3::hash(b"other").as_bytes();
    for (peer, message) in [
        (1, data(b"other", u16::MAX)),
        (
            2,
            bytes(&Message::Gossip(Gossip::Graft {
                id: None,
                round: 1002,
            })),
        ),
        (
            3,
            bytes(&Message::Gossip(Gossip::IHave(List(vec![IHave {
                id,
                round: 1002,
            }])))),
        ),
    ] {
        core.message(peer, message, now);
        let why = CloseWhy::Malformed;
        assert_eq!(closes(&outputs(&mut core)), [(peer, why)]);
    }
    assert_eq!(core.metrics.refused_malformed.get(), 3);
}

#[test]
fn a_peer_is_sent_the_same_frame_once_however_often_it_asks() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2, 3], now);
    core.message(1, data(b"ok", 0), now);
    outputs(&mut core);
    let id = Some(*blake3::hash(b"ok").as_bytes());
    let graft = bytes(&Message::Gossip(Gossip::Graft { id, round: 0 }));
    for _ in 0..100 {
        core.message(2, graft.clone(), now);
    }
    core.message(3, graft, now);
    let out = outputs(&mut core);
    let sent = |to| {
        let to_it = |output: &&Output<u32, Bytes>| matches!(output, Output::Send { peer, kind: SendKind::Data, .. } if *peer == to);
        out.iter().filter(to_it).count()
    };
    assert_eq!((sent(2), sent(3)), (1, 1));
    assert_eq!(core.metrics.refused_grafts.get(), 99);
}

#[test]
fn who_goes_on_sending_too_much_is_cut_off() {
    let id = |n: u32| *blake3::hash(&n.to_le_bytes()).as_bytes();
    let flood: [fn(u32, [u8; 32]) -> Bytes; 6] = [
        |_, id| {
            bytes(&Message::Gossip(Gossip::Graft {
                id: Some(id),
                round: 0,
            }))
        },
        |_, _| bytes(&Message::Gossip(Gossip::Prune)),
        |_, _| data(b"ok", 0),
        |n, _| data(format!("S{n}").as_bytes(), 0),
        |n, _| data(format!("U{n}").as_bytes(), 0),
        |_, _| join(),
    ];
    for one in flood {
        let now = Instant::now();
        let mut core = with_neighbors(&[1, 2], now);
        core.message(1, data(b"ok", 0), now);
        outputs(&mut core);
        let mut closed = Vec::new();
        for n in 0..20_000 {
            core.message(2, one(n, id(n)), now);
            closed.extend(closes(&outputs(&mut core)));
        }
        assert_eq!(closed, [(2, CloseWhy::Flooding)]);
        assert!(core.is_banned(&2, now));
        assert_eq!(core.metrics.floods.get(), 1);
    }
}

#[test]
fn what_a_neighbour_merely_passes_on_does_not_count_as_a_flood() {
    let mut now = Instant::now();
    let mut core = with_neighbors(&[1, 2], now);
    // All that four more neighbours may have made it pass on, for a minute.
    for n in 0..60 * 500 {
        now += Duration::from_millis(2);
        let peer = PeerInfo {
            id: 1000 + n,
            data: None,
        };
        let walk = Swarm::ForwardJoin { peer, ttl: 3 };
        core.message(1, bytes(&Message::Swarm(walk)), now);
        assert_eq!(closes(&outputs(&mut core)), []);
    }
}

#[test]
fn who_comes_and_goes_all_the_time_is_turned_away_for_a_while() {
    let mut now = Instant::now();
    let mut core = with_neighbors(&[1], now);
    let mut taken = 0;
    while core.peer_connected(2, false, now) {
        core.message(2, bytes(&Message::Swarm(Swarm::Join(None))), now);
        core.peer_closed(2, now);
        taken += 1;
    }
    assert_eq!(taken, VISITS);
    assert_eq!(core.metrics.refused_visits.get(), 1);
    assert!(core.peer_connected(3, false, now), "others are welcome");
    assert!(core.peer_connected(2, true, now), "it is if we want it");
    core.peer_closed(2, now);
    now += Duration::from_secs(2);
    assert!(core.peer_connected(2, false, now), "it is after a while");
}

#[test]
fn only_neighbours_are_listened_to() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2], now);
    core.peer_connected(9, false, now);
    let id = Some(*blake3::hash(b"ok").as_bytes());
    core.message(1, data(b"ok", 0), now);
    outputs(&mut core);
    for message in [
        data(b"other", 0),
        bytes(&Message::Gossip(Gossip::Graft { id, round: 0 })),
        bytes(&Message::Gossip(Gossip::Prune)),
        bytes(&Message::Gossip(Gossip::IHave(List(vec![])))),
    ] {
        core.message(9, message, now);
    }
    assert!(outputs(&mut core).is_empty());
    assert_eq!(core.metrics.refused_not_neighbor.get(), 4);
    core.message(77, join(), now);
    assert_eq!(core.neighbors(), 2, "without a connection there is no peer");
}

#[test]
fn frames_that_crossed_our_goodbye_are_heard_and_passed_on_and_nothing_else_is() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2, 3, 4, 5], now);
    core.peer_connected(6, false, now);
    core.message(6, join(), now);
    let dropped = (1..=5).find(|peer| !core.active.contains(peer));
    let dropped = dropped.expect("there are five places");
    assert_eq!(closes(&outputs(&mut core)), [(dropped, CloseWhy::Done)]);
    let others: Vec<u32> = core.active.iter().copied().collect();
    let have = |content: &[u8], round| {
        let id = *blake3::hash(content).as_bytes();
        bytes(&Message::Gossip(Gossip::IHave(List(vec![IHave {
            id,
            round,
        }]))))
    };
    // Somebody closer has announced it.
    core.message(others[0], have(b"late", 0), now);
    core.message(others[1], bytes(&Message::Gossip(Gossip::Prune)), now);
    assert!(core.peer_connected(dropped, false, now), "it comes back");
    outputs(&mut core);
    let (late, later) = (now + LINGER / 2, now + LINGER);
    core.message(dropped, data(b"late", 5), late);
    let out = outputs(&mut core);
    let from = |output: &Output<_, _>| match output {
        Output::Deliver { from, hops, .. } => Some((*from, *hops)),
        _ => None,
    };
    assert_eq!(out.iter().find_map(from), Some((dropped, 6)));
    let eager = others.iter().copied().filter(|other| *other != others[1]);
    assert_eq!(frames_to(&out), eager.collect());
    core.peer_closed(dropped, late);
    // A frame that another one brought, and whatever is no frame.
    core.message(others[0], data(b"known", 0), late);
    outputs(&mut core);
    let high = Swarm::Neighbor {
        priority: Priority::High,
        data: None,
    };
    for message in [
        data(b"late", 5),
        data(b"known", 5),
        have(b"more", 0),
        bytes(&Message::Gossip(Gossip::Graft { id: None, round: 0 })),
        join(),
        bytes(&Message::Swarm(high)),
    ] {
        core.message(dropped, message, late);
        assert!(outputs(&mut core).is_empty());
        assert!(!core.active.contains(&dropped));
    }
    // It may repeat itself as much as a neighbour, and is not looked at beyond that, and not blamed.
    while core.metrics.refused_rate.get() == 0 {
        core.message(dropped, data(b"known", 5), late);
    }
    let repeated = core.metrics.frames_repeated.get();
    assert!(repeated >= u64::from(core.config.max_messages_per_s));
    for _ in 0..50 * core.config.max_messages_per_s {
        core.message(dropped, data(b"too much", 5), late);
    }
    assert!(outputs(&mut core).is_empty());
    assert_eq!(core.metrics.floods.get(), 0);
    assert!(!core.is_banned(&dropped, late));
    // Announcements of it go to neighbours.
    assert!(core.peer_connected(dropped, false, late));
    core.tick(late + core.config.announce_delay);
    let announced: Vec<_> = outputs(&mut core)
        .into_iter()
        .filter_map(|output| match output {
            Output::Send { peer, .. } => Some(peer),
            _ => None,
        })
        .collect();
    assert!(announced.contains(&others[1]), "{announced:?}");
    assert!(!announced.contains(&dropped), "{announced:?}");
    core.message(dropped, data(b"later", 3), later);
    assert_eq!(delivered(&outputs(&mut core)), 0);
    // Nor is a frame of one that asked to be a neighbour in vain.
    let low = Swarm::Neighbor {
        priority: Priority::Low,
        data: None,
    };
    core.peer_connected(9, false, late);
    core.message(9, bytes(&Message::Swarm(low)), late);
    assert!(!core.active.contains(&9));
    core.message(9, data(b"of a stranger", 3), late);
    assert_eq!(delivered(&outputs(&mut core)), 0);
    // And what is forged has consequences.
    let late = late + Duration::from_millis(100);
    core.message(dropped, data(b"F", 3), late);
    assert!(core.is_banned(&dropped, late));
    core.message(dropped, data(b"good", 3), late);
    assert_eq!(delivered(&outputs(&mut core)), 0);
}

#[test]
fn a_node_whose_parent_is_gone_has_another_neighbour_bring_frames_at_once() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2, 3], now);
    core.message(1, data(b"first", 2), now);
    for peer in [2, 3] {
        core.message(peer, bytes(&Message::Gossip(Gossip::Prune)), now);
    }
    let next = *blake3::hash(b"next").as_bytes();
    core.message(1, data(b"next", 2), now);
    for (peer, round) in [(2, 3), (3, 2)] {
        let have = List(vec![IHave { id: next, round }]);
        core.message(peer, bytes(&Message::Gossip(Gossip::IHave(have))), now);
    }
    outputs(&mut core);
    core.peer_closed(1, now);
    let graft = bytes(&Message::Gossip(Gossip::Graft { id: None, round: 0 }));
    let asked: Vec<_> = outputs(&mut core)
        .into_iter()
        .filter_map(|output| match output {
            Output::Send { peer, message, .. } if message == graft => Some(peer),
            _ => None,
        })
        .collect();
    assert_eq!(asked, [3]);
    core.peer_closed(3, now);
    assert_eq!(
        core.metrics.parents_taken_back.get(),
        2,
        "2 has inherited in turn"
    );
}

#[test]
fn a_frame_that_crossed_our_goodbye_to_a_parent_goes_to_all_but_its_heir_who_would_prune_us_for_it()
{
    let now = Instant::now();
    let mut found = 0;
    for parent in 1..=5 {
        let mut core = with_neighbors(&[1, 2, 3, 4, 5], now);
        let heir = parent % 5 + 1;
        core.message(parent, data(b"first", 2), now);
        let id = *blake3::hash(b"first").as_bytes();
        let have = List(vec![IHave { id, round: 0 }]);
        core.message(heir, bytes(&Message::Gossip(Gossip::IHave(have))), now);
        core.message(heir, bytes(&Message::Gossip(Gossip::Prune)), now);
        outputs(&mut core);
        core.peer_connected(6, false, now);
        core.message(6, join(), now);
        if core.active.contains(&parent) {
            continue;
        }
        found += 1;
        outputs(&mut core);
        assert_eq!(core.metrics.parents_taken_back.get(), 1);
        core.message(parent, data(b"crosses", 2), now);
        let out = outputs(&mut core);
        assert_eq!(delivered(&out), 1);
        let others = core.active.iter().copied().filter(|other| *other != heir);
        assert_eq!(frames_to(&out), others.collect());
        // What the heir brings from now on goes to all others.
        core.message(heir, data(b"next", 1), now);
        assert_eq!(frames_to(&outputs(&mut core)).len(), 4);
    }
    assert_eq!(found, 1, "there are five places");
}

#[test]
fn a_frame_that_came_before_its_key_is_heard_though_its_sender_is_gone_unless_that_was_evicted() {
    let now = Instant::now();
    for evicted in [false, true] {
        let mut core = with_neighbors(&[1, 2], now);
        core.message(1, data(b"U", 3), now);
        assert_eq!(delivered(&outputs(&mut core)), 0);
        if evicted {
            core.evict(1, now);
        } else {
            core.peer_closed(1, now);
        }
        outputs(&mut core);
        core.with_gate(|gate| gate.knows = true, now);
        let out = outputs(&mut core);
        let from = out.iter().find_map(|output| match output {
            Output::Deliver { from, .. } => Some(*from),
            _ => None,
        });
        assert_eq!(from, (!evicted).then_some(1));
        let passed_on = if evicted { vec![] } else { vec![2] };
        assert_eq!(frames_to(&out), passed_on.into_iter().collect());
    }
}

#[test]
fn announcements_are_bounded_and_leave_nothing_behind() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2], now);
    let mut at = now;
    for round in 0..20u64 {
        let list = (0..1000u64).map(|n| IHave {
            id: *blake3::hash(&(round * 1000 + n).to_le_bytes()).as_bytes(),
            round: 0,
        });
        let message = Message::Gossip(Gossip::IHave(List(list.collect())));
        core.message(1, bytes(&message), at);
        core.message(1, bytes(&message), at);
    }
    assert!(core.metrics.refused_announcements.get() >= 15_000);
    assert!(core.timers.len() <= ANNOUNCED + 16);
    for _ in 0..40 {
        at += Duration::from_millis(200);
        core.tick(at);
    }
    assert!(core.timers.len() < 16);
    let text = format!("{:?}", core.proto);
    let missing = text.split("missing_messages: ").nth(1).unwrap();
    assert!(missing.starts_with("{}"), "{}", &missing[..80]);
}

#[test]
fn a_flood_of_control_messages_is_bounded() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2], now);
    for n in 0..10_000u32 {
        let peer = PeerInfo {
            id: 1000 + n,
            data: Some(vec![0; 100].into()),
        };
        let message = Message::Swarm(Swarm::ForwardJoin { peer, ttl: 0 });
        core.message(1, bytes(&message), now);
        if n == 4000 {
            assert_eq!(core.neighbors(), 2);
        }
    }
    assert!(core.metrics.refused_rate.get() > 7_000);
    assert!(core.book.len() <= BOOK);
    let (running, waiting) = core.dials.sizes();
    assert!(running <= core.config.max_dials && waiting <= 64);
    assert_eq!(core.neighbors(), 1, "it is cut off in the end");
}

#[test]
fn peer_data_is_forgotten_with_the_book() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2], now);
    for n in 0..200u32 {
        let at = now + Duration::from_secs(n.into());
        let nodes = (0..16).map(|k| PeerInfo {
            id: 1000 + n * 16 + k,
            data: Some(vec![7; 100].into()),
        });
        let nodes = List(nodes.collect());
        core.message(1, bytes(&Message::Swarm(Swarm::ShuffleReply { nodes })), at);
        outputs(&mut core);
    }
    let text = format!("{:?}", core.proto);
    let kept = text.matches("PeerData(100b)").count();
    assert!(kept <= BOOK + 64, "{kept} entries");
}

#[test]
fn hearsay_does_not_replace_a_peers_own_word() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2], now);
    let own = Bytes::from_static(b"own word");
    let neighbor = Swarm::Neighbor {
        priority: Priority::Low,
        data: Some(own.clone()),
    };
    core.message(2, bytes(&Message::Swarm(neighbor)), now);
    let peer = PeerInfo {
        id: 2,
        data: Some(Bytes::from_static(b"a lie")),
    };
    let nodes = List(vec![peer]);
    core.message(
        1,
        bytes(&Message::Swarm(Swarm::ShuffleReply { nodes })),
        now,
    );
    assert_eq!(core.book.get(&2).map(|entry| entry.data.clone()), Some(own));
}

#[test]
fn a_frame_beyond_the_limit_is_refused_with_its_size() {
    let now = Instant::now();
    let mut core = core(0, now);
    let max = core.config.max_frame_size;
    let err = core.broadcast(vec![0; max + 1].into(), now).unwrap_err();
    assert!(err.to_string().contains(&max.to_string()));
    assert!(core.broadcast(vec![0; max].into(), now).is_ok());
}

#[test]
fn leaving_says_goodbye_to_every_neighbour() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2, 3], now);
    core.leave(now);
    let out = outputs(&mut core);
    let closed: BTreeSet<u32> = closes(&out).into_iter().map(|(peer, _)| peer).collect();
    assert_eq!(closed, BTreeSet::from([1, 2, 3]));
    let goodbyes = out.iter().filter(|out| {
        matches!(out, Output::Send { message, .. } if mirror::kind(message) == Kind::Disconnect)
    });
    assert_eq!(goodbyes.count(), 3);
    assert_eq!(core.deadline(), None);
}

/// Many cores, and what is under way between them.
struct Net {
    now: Instant,
    cores: BTreeMap<u32, TestCore>,
    conns: BTreeSet<(u32, u32)>,
    wire: VecDeque<(Instant, Event)>,
    /// Peers that answer nothing.
    dead: BTreeSet<u32>,
    /// Nodes of different sides cannot connect.
    side: BTreeMap<u32, u8>,
    got: BTreeMap<u32, Vec<Bytes>>,
}

enum Event {
    Message(u32, u32, Bytes),
    Dialed(u32, u32),
}

fn pair(a: u32, b: u32) -> (u32, u32) {
    (a.min(b), a.max(b))
}

impl Net {
    fn new(nodes: u32, config: &GossipConfig) -> Self {
        let now = Instant::now();
        let cores = (0..nodes).map(|me| (me, core_with(me, config.clone(), now)));
        Self {
            now,
            cores: cores.collect(),
            conns: BTreeSet::new(),
            wire: VecDeque::new(),
            dead: BTreeSet::new(),
            side: BTreeMap::new(),
            got: BTreeMap::new(),
        }
    }

    fn with(&mut self, at: u32, run: impl FnOnce(&mut TestCore, Instant)) {
        let now = self.now;
        if let Some(core) = self.cores.get_mut(&at) {
            run(core, now);
        }
        self.collect(at);
    }

    fn reachable(&self, a: u32, b: u32) -> bool {
        let side = |node| self.side.get(&node).copied().unwrap_or(0);
        !self.dead.contains(&b) && self.cores.contains_key(&b) && side(a) == side(b)
    }

    fn collect(&mut self, at: u32) {
        let Some(core) = self.cores.get_mut(&at) else {
            return;
        };
        let mut closed = Vec::new();
        while let Some(output) = core.next_output() {
            match output {
                Output::Send { peer, message, .. } => {
                    let event = Event::Message(at, peer, message);
                    self.wire.push_back((self.now, event));
                }
                Output::Dial { peer, .. } => {
                    self.wire.push_back((self.now, Event::Dialed(at, peer)));
                }
                Output::Close { peer, .. } => closed.push(peer),
                Output::Deliver { opened, .. } => self.got.entry(at).or_default().push(opened),
                Output::NeighborUp(_) | Output::NeighborDown(_) => {}
            }
        }
        for peer in closed {
            // What was sent before arrives before the end of the connection is seen.
            self.deliver_between(at, peer);
            if self.conns.remove(&pair(at, peer)) {
                self.with(peer, |core, now| core.peer_closed(at, now));
            }
        }
    }

    fn deliver_between(&mut self, from: u32, to: u32) {
        let mut rest = VecDeque::new();
        let mut due = Vec::new();
        for (at, event) in std::mem::take(&mut self.wire) {
            match event {
                Event::Message(a, b, message) if a == from && b == to => due.push(message),
                event => rest.push_back((at, event)),
            }
        }
        self.wire = rest;
        for message in due {
            if self.conns.contains(&pair(from, to)) && !self.dead.contains(&to) {
                self.with(to, |core, now| core.message(from, message, now));
            }
        }
    }

    /// One millisecond.
    fn step(&mut self) {
        self.now += Duration::from_millis(1);
        let batch = std::mem::take(&mut self.wire);
        for (_, event) in batch {
            match event {
                Event::Message(from, to, message) => {
                    if self.conns.contains(&pair(from, to)) && !self.dead.contains(&to) {
                        self.with(to, |core, now| core.message(from, message, now));
                    }
                }
                Event::Dialed(from, to) => {
                    if !self.reachable(from, to) {
                        self.with(from, |core, now| core.dial_failed(to, now));
                    } else {
                        self.conns.insert(pair(from, to));
                        self.with(to, |core, now| {
                            core.peer_connected(from, false, now);
                        });
                        self.with(from, |core, now| {
                            core.peer_connected(to, true, now);
                        });
                    }
                }
            }
        }
        let due: Vec<u32> = self
            .cores
            .iter()
            .filter(|(id, core)| {
                !self.dead.contains(id) && core.deadline().is_some_and(|at| at <= self.now)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.with(id, |core, now| core.tick(now));
        }
    }

    fn run(&mut self, duration: Duration) {
        for _ in 0..duration.as_millis() {
            self.step();
        }
    }

    fn kill(&mut self, node: u32) {
        self.dead.insert(node);
        self.cores.remove(&node);
        let conns = std::mem::take(&mut self.conns);
        let (cut, rest) = conns
            .into_iter()
            .partition(|(a, b)| *a == node || *b == node);
        self.conns = rest;
        let cut: BTreeSet<(u32, u32)> = cut;
        for (a, b) in cut {
            let (other, gone) = if a == node { (b, a) } else { (a, b) };
            self.with(other, |core, now| core.peer_closed(gone, now));
        }
    }

    fn cut_between_sides(&mut self) {
        let side = |node: &u32| self.side.get(node).copied().unwrap_or(0);
        let cut: Vec<(u32, u32)> = self
            .conns
            .iter()
            .filter(|(a, b)| side(a) != side(b))
            .copied()
            .collect();
        for (a, b) in cut {
            self.conns.remove(&(a, b));
            self.with(a, |core, now| core.peer_closed(b, now));
            self.with(b, |core, now| core.peer_closed(a, now));
        }
    }

    /// Broadcasts from node 0 and says who did not get it in time.
    fn missed(&mut self, name: &str) -> Vec<u32> {
        let frame = Bytes::from(name.to_owned());
        self.with(0, |core, now| core.broadcast(frame.clone(), now).unwrap());
        self.run(Duration::from_millis(800));
        let got = |id: &u32| {
            let got = self.got.get(id).map_or(&[][..], Vec::as_slice);
            let times = got.iter().filter(|other| **other == frame).count();
            assert!(times <= 1, "{name} came {times} times to {id}");
            times == 1
        };
        let nodes = self.cores.keys().filter(|id| **id != 0);
        nodes.filter(|id| !got(id)).copied().collect()
    }
}

#[test]
fn a_hundred_nodes_that_join_at_once_through_one_all_get_the_frames() {
    let mut net = Net::new(100, &GossipConfig::default());
    for id in 1..100 {
        net.with(id, |core, now| core.join([0], now));
    }
    net.run(Duration::from_secs(8));
    for (id, core) in &net.cores {
        assert!(core.neighbors() >= 1, "{id} has no neighbour");
        assert!(core.neighbors() <= core.config.active_view);
    }
    for n in 0..20 {
        assert_eq!(net.missed(&format!("frame {n}")), Vec::<u32>::new());
    }
    let few = net.cores.values().filter(|core| core.neighbors() < 3);
    assert!(few.count() <= 5);
    assert!(
        net.conns.len() <= 100 * 5 / 2 + 20,
        "former neighbours are closed"
    );
}

#[test]
fn the_others_go_on_when_a_third_of_the_nodes_dies() {
    let mut net = Net::new(60, &GossipConfig::default());
    for id in 1..60 {
        net.with(id, |core, now| core.join([0, 1, 2], now));
    }
    net.run(Duration::from_secs(5));
    assert_eq!(net.missed("before"), Vec::<u32>::new());
    for id in (1..60).step_by(3) {
        net.kill(id);
    }
    net.run(Duration::from_secs(15));
    assert_eq!(net.missed("after"), Vec::<u32>::new());
    assert!(net.cores.values().all(|core| core.neighbors() >= 2));
}

#[test]
fn a_partition_heals() {
    let config = GossipConfig {
        quiet_after: Duration::from_secs(5),
        ..Default::default()
    };
    let mut net = Net::new(30, &config);
    for id in 1..30 {
        net.with(id, |core, now| core.join([0, 1], now));
    }
    net.run(Duration::from_secs(4));
    assert_eq!(net.missed("before"), Vec::<u32>::new());
    net.side = (15..30).map(|id| (id, 1)).collect();
    net.cut_between_sides();
    net.run(Duration::from_secs(30));
    assert_eq!(net.missed("apart").len(), 15);
    assert!(net.cores.values().all(|core| core.neighbors() >= 1));
    net.side.clear();
    for n in 0..60 {
        // An idle hub's beacons.
        let _ = net.missed(&format!("beacon {n}"));
    }
    assert_eq!(net.missed("together"), Vec::<u32>::new());
}

#[test]
fn a_node_whose_first_dials_fail_joins_once_it_can() {
    let mut net = Net::new(4, &GossipConfig::default());
    net.side.insert(3, 1);
    for id in 1..4 {
        net.with(id, |core, now| core.join([0], now));
    }
    net.run(Duration::from_secs(20));
    assert_eq!(net.cores[&3].neighbors(), 0);
    assert!(net.cores[&3].metrics.dial_failures.get() >= 2);
    net.side.clear();
    net.run(Duration::from_secs(60));
    assert_eq!(net.missed("late"), Vec::<u32>::new());
}

#[derive(Debug, Clone)]
enum Op {
    Connected(u32, bool),
    Closed(u32),
    DialFailed(u32),
    Stuck(u32),
    Evict(u32),
    Join(Vec<u32>),
    Broadcast(Vec<u8>),
    Raw(u32, Vec<u8>),
    Message(u32, Vec<u8>),
    Tick(u64),
}

fn peer() -> impl Strategy<Value = u32> {
    0..40u32
}

fn info() -> impl Strategy<Value = PeerInfo<u32>> {
    let data = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..600));
    (peer(), data).prop_map(|(id, data)| PeerInfo {
        id,
        data: data.map(Bytes::from),
    })
}

fn swarm() -> impl Strategy<Value = Swarm<u32>> {
    let nodes = || proptest::collection::vec(info(), 0..16).prop_map(List);
    prop_oneof![
        Just(Swarm::Join(None)),
        (info(), any::<u16>()).prop_map(|(peer, ttl)| Swarm::ForwardJoin { peer, ttl }),
        (peer(), nodes(), 0..9u16).prop_map(|(origin, nodes, ttl)| Swarm::Shuffle {
            origin,
            nodes,
            ttl
        }),
        nodes().prop_map(|nodes| Swarm::ShuffleReply { nodes }),
        any::<bool>().prop_map(|high| Swarm::Neighbor {
            priority: if high { Priority::High } else { Priority::Low },
            data: None,
        }),
        any::<bool>().prop_map(|alive| Swarm::Disconnect {
            alive,
            respond: false
        }),
    ]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let id = || {
        let of = |n: u8| *blake3::hash(&[n]).as_bytes();
        prop_oneof![(0..8u8).prop_map(of), any::<[u8; 32]>()]
    };
    let ihave = (id(), any::<u16>()).prop_map(|(id, round)| IHave { id, round });
    prop_oneof![
        3 => swarm().prop_map(|swarm| bytes(&Message::Swarm(swarm)).to_vec()),
        2 => (0..8u8, any::<u16>()).prop_map(|(n, round)| data(&[n], round).to_vec()),
        1 => (0..4usize).prop_map(|n| data(&b"FSUg"[n..=n], 0).to_vec()),
        1 => Just(bytes(&Message::Gossip(Gossip::Prune)).to_vec()),
        1 => (proptest::option::of(id()), any::<u16>()).prop_map(|(id, round)| {
            bytes(&Message::Gossip(Gossip::Graft { id, round })).to_vec()
        }),
        1 => proptest::collection::vec(ihave, 0..40)
            .prop_map(|list| bytes(&Message::Gossip(Gossip::IHave(List(list)))).to_vec()),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (peer(), any::<bool>()).prop_map(|(peer, dialed)| Op::Connected(peer, dialed)),
        2 => peer().prop_map(Op::Closed),
        1 => peer().prop_map(Op::DialFailed),
        1 => peer().prop_map(Op::Stuck),
        1 => peer().prop_map(Op::Evict),
        1 => proptest::collection::vec(peer(), 0..40).prop_map(Op::Join),
        1 => proptest::collection::vec(any::<u8>(), 0..8).prop_map(Op::Broadcast),
        1 => (peer(), proptest::collection::vec(any::<u8>(), 0..80))
            .prop_map(|(peer, raw)| Op::Raw(peer, raw)),
        10 => (peer(), message()).prop_map(|(peer, message)| Op::Message(peer, message)),
        3 => (0..3000u64).prop_map(Op::Tick),
    ]
}

fn real() -> Vec<(&'static str, Vec<u8>)> {
    let info = |id| PeerInfo {
        id,
        data: Some(Bytes::from(vec![1; 20])),
    };
    let id = *blake3::hash(b"a frame").as_bytes();
    let round = 3;
    let swarm = |swarm| bytes(&Message::Swarm(swarm)).to_vec();
    let gossip = |gossip| bytes(&Message::Gossip(gossip)).to_vec();
    let nodes = || List((3..9).map(info).collect());
    vec![
        ("join", join().to_vec()),
        (
            "forward-join",
            swarm(Swarm::ForwardJoin {
                peer: info(3),
                ttl: 5,
            }),
        ),
        (
            "shuffle",
            swarm(Swarm::Shuffle {
                origin: 3,
                nodes: nodes(),
                ttl: 6,
            }),
        ),
        (
            "shuffle-reply",
            swarm(Swarm::ShuffleReply { nodes: nodes() }),
        ),
        (
            "neighbor",
            swarm(Swarm::Neighbor {
                priority: Priority::High,
                data: None,
            }),
        ),
        (
            "disconnect",
            swarm(Swarm::Disconnect {
                alive: true,
                respond: false,
            }),
        ),
        ("frame", data(b"a frame", 2).to_vec()),
        ("frame-far", data(b"a frame", u16::MAX).to_vec()),
        ("bad-forged", data(b"Forged", 2).to_vec()),
        ("bad-stale", data(b"Stale", 2).to_vec()),
        ("prune", gossip(Gossip::Prune)),
        (
            "graft",
            gossip(Gossip::Graft {
                id: Some(id),
                round,
            }),
        ),
        (
            "ihave",
            gossip(Gossip::IHave(List(vec![IHave { id, round }; 5]))),
        ),
    ]
}

crate::fuzz::decoder!(gossip_core, real(), |raw| {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2], now);
    core.message(1, Bytes::copy_from_slice(raw), now);
    core.tick(now + Duration::from_secs(1));
    let mut links = BTreeSet::from([1, 2]);
    for output in outputs(&mut core) {
        match output {
            Output::Send { peer, message, .. } => {
                assert!(links.contains(&peer));
                assert!(message.len() <= core.config.max_message_size());
            }
            Output::Close { peer, .. } => assert!(links.remove(&peer)),
            Output::Deliver { opened, hops, .. } => {
                assert!(!matches!(opened.first(), Some(b'F' | b'S' | b'U')));
                assert!(hops < u16::MAX);
            }
            _ => {}
        }
    }
    assert!(links.contains(&2), "only the culprit is cut off");
    assert!(core.active.len() <= core.config.active_view);
});

crate::fuzz::machine! {
    fn whatever_happens_every_bound_holds(ops in proptest::collection::vec(op(), 1..200)) {
        let mut now = Instant::now();
        let mut core = core(0, now);
        let mut links = BTreeSet::new();
        let mut dials = BTreeSet::new();
        for op in ops {
            match op {
                Op::Connected(peer, dialed) => {
                    // A dial ends once.
                    let dialed = dialed && dials.remove(&peer);
                    if core.peer_connected(peer, dialed, now) {
                        links.insert(peer);
                    }
                }
                Op::Closed(peer) => {
                    links.remove(&peer);
                    core.peer_closed(peer, now);
                }
                Op::DialFailed(peer) => {
                    if dials.remove(&peer) {
                        core.dial_failed(peer, now);
                    }
                }
                Op::Stuck(peer) => core.peer_stuck(peer, now),
                Op::Evict(peer) => core.evict(peer, now),
                Op::Join(peers) => core.join(peers, now),
                Op::Broadcast(frame) => core.broadcast(frame.into(), now).unwrap(),
                Op::Raw(peer, raw) | Op::Message(peer, raw) => core.message(peer, raw.into(), now),
                Op::Tick(millis) => {
                    now += Duration::from_millis(millis);
                    core.tick(now);
                }
            }
            while let Some(output) = core.next_output() {
                match output {
                    Output::Send { peer, message, .. } => {
                        prop_assert!(links.contains(&peer), "sent to {peer}, which is not connected");
                        prop_assert!(message.len() <= core.config.max_message_size());
                    }
                    Output::Dial { peer, .. } => {
                        prop_assert!(peer != 0 && !core.is_banned(&peer, now));
                        prop_assert!(dials.insert(peer), "{peer} is dialled already");
                    }
                    Output::Close { peer, .. } => {
                        prop_assert!(links.remove(&peer), "{peer} is not connected");
                    }
                    Output::Deliver { opened, .. } => {
                        prop_assert!(!matches!(opened.first(), Some(b'F' | b'S' | b'U')));
                    }
                    Output::NeighborUp(_) | Output::NeighborDown(_) => {}
                }
            }
            prop_assert!(core.active.len() <= core.config.active_view);
            prop_assert!(core.active.iter().all(|peer| links.contains(peer)), "a neighbour without a connection");
            prop_assert!(dials.len() <= core.config.max_dials);
            prop_assert!(core.bootstrap.len() <= MAX_BOOTSTRAP);
            prop_assert!(core.deadline().is_some());
        }
    }
}

/// What is sent about the broadcast tree, and to whom.
fn tree_messages(outputs: &[Output<u32, Bytes>]) -> Vec<(u32, Kind)> {
    let sent = outputs.iter().filter_map(|out| match out {
        Output::Send { peer, message, .. } => Some((*peer, mirror::kind(message))),
        _ => None,
    });
    sent.filter(|(_, kind)| matches!(kind, Kind::Prune | Kind::Graft))
        .collect()
}

#[test]
fn the_hub_has_no_fifth_neighbour() {
    let now = Instant::now();
    let mut hub = core_with(0, GossipConfig::default().at_source(), now);
    for peer in 1..=5 {
        assert!(hub.peer_connected(peer, false, now));
        hub.message(peer, join(), now);
        assert_eq!(hub.neighbors(), peer.min(4) as usize);
    }
    let closed = closes(&outputs(&mut hub));
    assert_eq!(closed.len(), 1, "whoever joins has a place: {closed:?}");
}

#[test]
fn what_neighbours_were_answered_takes_up_no_place_and_another_peer_is_asked() {
    let mut now = Instant::now();
    let mut hub = with_neighbors_and(&[1, 2, 3], GossipConfig::default().at_source(), now);
    let known = Swarm::ShuffleReply {
        nodes: List(vec![PeerInfo { id: 9, data: None }]),
    };
    hub.message(1, bytes(&Message::Swarm(known)), now);
    let dials = |hub: &mut TestCore| {
        let dials = outputs(hub).into_iter().filter_map(|output| match output {
            Output::Dial { peer, .. } => Some(peer),
            _ => None,
        });
        dials.collect::<Vec<_>>()
    };
    assert!(dials(&mut hub).is_empty(), "three and three answers");
    let mut dialled = Vec::new();
    for _ in 0..19 {
        now += Duration::from_millis(100);
        hub.tick(now);
        dialled.append(&mut dials(&mut hub));
    }
    assert_eq!(dialled, [9]);
}

#[test]
fn of_neighbours_that_bring_frames_in_turns_one_goes_on() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2, 3], now);
    for from in [1, 2, 3] {
        core.message(from, data(b"one", 1), now);
    }
    assert_eq!(
        tree_messages(&outputs(&mut core)),
        [(2, Kind::Prune), (3, Kind::Prune)]
    );
    // The second frame was under way from them before they heard of it.
    for from in [2, 3, 1] {
        core.message(from, data(b"two", 1), now);
    }
    let out = outputs(&mut core);
    assert_eq!(delivered(&out), 1);
    assert_eq!(tree_messages(&out), []);
}

#[test]
fn whoever_is_pruned_by_its_last_parent_takes_it_back() {
    let now = Instant::now();
    let mut core = with_neighbors(&[1, 2], now);
    core.message(1, data(b"one", 1), now);
    core.message(2, data(b"one", 1), now);
    assert_eq!(tree_messages(&outputs(&mut core)), [(2, Kind::Prune)]);
    let prune = bytes(&Message::Gossip(Gossip::Prune));
    core.message(1, prune.clone(), now);
    assert_eq!(tree_messages(&outputs(&mut core)), [(1, Kind::Graft)]);
    assert_eq!(core.metrics.parents_taken_back.get(), 1);
    // What the other brings is passed on to it again.
    core.message(2, data(b"two", 1), now);
    let forwarded = outputs(&mut core).into_iter().any(|out| {
        matches!(out, Output::Send { peer: 1, message, .. } if mirror::kind(&message) == Kind::Data)
    });
    assert!(forwarded);
    // The other one is not needed, and may go.
    core.message(2, prune, now);
    assert_eq!(tree_messages(&outputs(&mut core)), []);
}

#[test]
fn a_closer_neighbour_that_had_a_lone_frame_earlier_brings_them_from_now_on() {
    let start = Instant::now();
    let held_back = GossipConfig::default().announce_delay;
    let announce = |core: &mut TestCore, ids: &[mirror::Id], at| {
        let all = ids.iter().map(|id| IHave { id: *id, round: 1 });
        let have = Message::Gossip(Gossip::IHave(List(all.collect())));
        core.message(2, bytes(&have), at);
    };
    // Announced before it came, and after; later than it would have come; and along with another one.
    for (early, after, with, taken) in [
        (true, Duration::ZERO, None, true),
        (false, held_back - Duration::from_millis(1), None, true),
        (false, held_back, None, false),
        (false, Duration::ZERO, Some("first"), false),
        (true, Duration::ZERO, Some("unseen"), false),
    ] {
        let mut core = with_neighbors(&[1, 2], start);
        core.message(1, data(b"first", 3), start);
        core.message(2, bytes(&Message::Gossip(Gossip::Prune)), start);
        let with = with.map(|other: &str| id_of(other.as_bytes()));
        let ids: Vec<_> = with.into_iter().chain([id_of(b"lone")]).collect();
        if early {
            announce(&mut core, &ids, start);
        }
        outputs(&mut core);
        core.message(1, data(b"lone", 3), start);
        if !early {
            announce(&mut core, &ids, start + after);
        }
        let said = tree_messages(&outputs(&mut core));
        let changes = [(2, Kind::Graft), (1, Kind::Prune)];
        assert_eq!(said, if taken { &changes[..] } else { &[] });
        let parent = if taken { 2 } else { 1 };
        core.message(parent, data(b"next", 1), start + held_back);
        let to = frames_to(&outputs(&mut core));
        assert!(to.is_empty(), "the other one is pruned");
    }
}

/// What the id of a frame is.
fn id_of(content: &[u8]) -> mirror::Id {
    *blake3::hash(content).as_bytes()
}

/// 25 times the default of 65 ms, as it is looked at every 40 ms.
const WAITED_FOR: Duration = Duration::from_millis(1640);

/// After what time neighbour 2 is asked for a frame that it announced, while 1 brings others that it announced before. `behind`
/// happens in between.
fn asked_after(
    core: &mut TestCore,
    start: Instant,
    behind: impl FnOnce(&mut TestCore),
) -> Duration {
    core.message(1, data(b"first", 1), start);
    let others = (1..100u8).map(|n| id_of(&[n]));
    let all: Vec<_> = others.chain([id_of(b"late")]).collect();
    for ids in all.chunks(16) {
        let ids = ids.iter().map(|id| IHave { id: *id, round: 1 });
        let announced = Message::Gossip(Gossip::IHave(mirror::List(ids.collect())));
        core.message(2, bytes(&announced), start);
    }
    behind(core);
    for n in 1..100u8 {
        let now = start + Duration::from_millis(40) * n.into();
        core.tick(now);
        if tree_messages(&outputs(core)).contains(&(2, Kind::Graft)) {
            return now - start;
        }
        core.message(1, data(&[n], 1), now);
    }
    panic!("it is never asked for");
}

#[test]
fn an_announced_frame_is_waited_for_while_others_come_and_asked_for_in_the_end() {
    let start = Instant::now();
    let mut core = with_neighbors(&[1, 2], start);
    let after = asked_after(&mut core, start, |_| {});
    assert_eq!(after, WAITED_FOR);
    // And soon, when nothing comes.
    let mut core = with_neighbors(&[1, 2], start);
    core.message(2, have(b"late"), start);
    core.tick(start + Duration::from_millis(80));
    assert_eq!(tree_messages(&outputs(&mut core)), [(2, Kind::Graft)]);
}

/// An announcement of one frame.
fn have(name: &[u8]) -> Bytes {
    let (id, round) = (id_of(name), 1);
    bytes(&Message::Gossip(Gossip::IHave(List(vec![IHave {
        id,
        round,
    }]))))
}

fn sent(core: &mut TestCore) -> Vec<(u32, Bytes)> {
    let sent = outputs(core).into_iter().filter_map(|output| match output {
        Output::Send { peer, message, .. } => Some((peer, message)),
        _ => None,
    });
    sent.collect()
}

fn graft(name: &[u8]) -> Bytes {
    let (id, round) = (Some(id_of(name)), 1);
    bytes(&Message::Gossip(Gossip::Graft { id, round }))
}

#[test]
fn what_whoever_brings_frames_announces_is_asked_for_at_once_and_of_others_if_that_is_in_vain() {
    let start = Instant::now();
    // 3 is a child: to it goes what 1 brings.
    let mut core = with_neighbors(&[1, 2, 3], start);
    core.message(1, data(b"first", 1), start);
    core.message(2, bytes(&Message::Gossip(Gossip::Prune)), start);
    assert_eq!(frames_to(&outputs(&mut core)), BTreeSet::from([2, 3]));
    core.message(2, have(b"elsewhere"), start);
    assert_eq!(sent(&mut core), [], "it may be on its way from 1");
    core.message(1, have(b"next"), start);
    assert_eq!(sent(&mut core), [(1, graft(b"next"))]);
    core.message(1, have(b"next"), start);
    assert_eq!(sent(&mut core), [], "once");
    assert_eq!(core.metrics.frames_asked_at_once.get(), 1);
    // It does not answer, nor would it the second time.
    core.message(2, have(b"next"), start);
    core.tick(start + core.config.graft_timeout);
    let asked = tree_messages(&outputs(&mut core));
    let of = [2, 1, 2].map(|peer| (peer, Kind::Graft));
    assert_eq!(asked, of, "2 for the other one too");
}

#[test]
fn one_message_of_announcements_has_so_many_frames_asked_for_at_once() {
    let start = Instant::now();
    let mut core = with_neighbors(&[1, 2], start);
    core.message(1, data(b"first", 1), start);
    outputs(&mut core);
    let many = (0..1000u64).map(|n| IHave {
        id: id_of(&n.to_le_bytes()),
        round: 1,
    });
    let many = Message::Gossip(Gossip::IHave(List(many.collect())));
    core.message(1, bytes(&many), start);
    assert_eq!(sent(&mut core).len(), 64);
}

#[test]
fn what_the_former_parent_still_sends_goes_to_all_but_its_successor_who_would_prune_us_for_it() {
    let start = Instant::now();
    let replaced = || {
        let mut core = with_neighbors(&[1, 2, 3], start);
        core.message(2, bytes(&Message::Gossip(Gossip::Prune)), start);
        core.message(1, data(b"lone", 3), start);
        core.message(2, have(b"lone"), start);
        assert_eq!(core.metrics.parents_replaced.get(), 1);
        outputs(&mut core);
        core.message(1, data(b"crosses", 3), start);
        assert_eq!(frames_to(&outputs(&mut core)), BTreeSet::from([3]));
        core
    };
    // It has not come to be the parent again: one is lost when the successor is.
    let mut core = replaced();
    core.peer_closed(2, start);
    assert_eq!(core.metrics.parents_taken_back.get(), 1);
    // Nor is there none when the successor does not want to be one.
    let mut core = replaced();
    core.message(2, bytes(&Message::Gossip(Gossip::Prune)), start);
    assert_eq!(tree_messages(&outputs(&mut core)), [(1, Kind::Graft)]);
    // One that asks for frames gets them.
    let mut core = replaced();
    let (id, round) = (None, 0);
    core.message(
        2,
        bytes(&Message::Gossip(Gossip::Graft { id, round })),
        start,
    );
    core.message(1, data(b"more", 3), start);
    assert_eq!(frames_to(&outputs(&mut core)), BTreeSet::from([2, 3]));
    core.message(2, bytes(&Message::Gossip(Gossip::Prune)), start);
    assert_eq!(tree_messages(&outputs(&mut core)), [(1, Kind::Graft)]);
}

#[test]
fn where_one_was_asked_for_what_another_brings_the_next_frame_is_asked_for_later() {
    let start = Instant::now();
    let ms = Duration::from_millis;
    // 3 may bring what 2 announces, for all that is known.
    let mut core = with_neighbors(&[1, 2, 3], start);
    core.message(3, data(b"first", 1), start);
    let asks = |core: &mut TestCore, at: Instant| {
        core.tick(at);
        tree_messages(&outputs(core)).contains(&(2, Kind::Graft))
    };
    let mut now = start;
    let mut asked_after = |core: &mut TestCore, content: &[u8], again: bool| {
        core.message(2, have(content), now);
        let after = (1..20)
            .map(|n| ms(40) * n)
            .find(|after| asks(core, now + *after));
        let after = after.expect("it is asked for");
        let came = now + after + ms(10);
        core.message(2, data(content, 1), came);
        if again {
            core.message(1, data(content, 1), came);
        }
        outputs(core);
        now = came + ms(500);
        after
    };
    assert_eq!(asked_after(&mut core, b"lost", false), ms(80));
    assert_eq!(asked_after(&mut core, b"late", true), ms(80));
    assert_eq!(asked_after(&mut core, b"later", true), ms(160));
    assert_eq!(asked_after(&mut core, b"lost again", false), ms(240));
}

#[test]
fn made_up_announcements_of_one_neighbour_do_not_have_frames_asked_for_that_are_on_their_way() {
    let start = Instant::now();
    let mut core = with_neighbors(&[1, 2, 3], start);
    let after = asked_after(&mut core, start, |core| {
        for round in 0..5u64 {
            let made_up = (0..1000u64).map(|n| IHave {
                id: id_of(&(round * 1000 + n).to_le_bytes()),
                round: 1,
            });
            let announced = Message::Gossip(Gossip::IHave(mirror::List(made_up.collect())));
            core.message(3, bytes(&announced), start);
        }
        assert!(core.metrics.refused_announcements.get() > 0);
    });
    assert_eq!(after, WAITED_FOR);
}

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const EPOCH: Epoch = Epoch::from_u64(7);

/// Small bounds, so that short runs meet all of them.
fn small() -> InboxConfig {
    InboxConfig {
        max_event_bytes: 100,
        max_parts: 4,
        max_buffered_bytes: 900,
        max_buffered_events: 6,
        max_targeted_bytes: 400,
        max_targeted_events: 4,
        max_want: 5,
        max_wants: 3,
        ..InboxConfig::default()
    }
}

fn inbox(config: InboxConfig, tip: u64) -> (Inbox, Instant) {
    let now = Instant::now();
    (Inbox::new(config, now, EPOCH, 0, tip, 1), now)
}

/// The body of an event, and how it is cut: both follow from its offset.
fn body(offset: u64) -> Bytes {
    let n = offset as u8;
    Bytes::from(vec![n; usize::from(n.wrapping_mul(37) % 100)])
}

fn parts(offset: u64) -> u16 {
    (offset % 3) as u16 + 1
}

fn part(offset: u64, part: u16, via: Via) -> Part {
    let (body, parts) = (body(offset), parts(offset));
    let size = body.len().div_ceil(usize::from(parts));
    let at = |n: u16| (usize::from(n) * size).min(body.len());
    Part {
        offset,
        part,
        parts,
        body: body.slice(at(part)..at(part + 1)),
        via,
    }
}

fn whole(offset: u64) -> Part {
    Part {
        offset,
        part: 0,
        parts: 1,
        body: body(offset),
        via: Via::Gossip,
    }
}

fn drain(inbox: &mut Inbox, now: Instant) -> Vec<Output> {
    std::iter::from_fn(|| inbox.poll(now)).collect()
}

fn event(offset: u64, via: Via) -> Output {
    let body = body(offset);
    Output::Event { offset, body, via }
}

#[test]
fn an_event_in_its_turn_is_released_at_once() {
    let (mut inbox, now) = inbox(small(), 0);
    let first = part(0, 0, Via::Direct);
    let bytes = first.body.as_ptr();
    assert_eq!(inbox.insert(now, first.clone()).unwrap(), Inserted::New);
    assert_eq!(inbox.insert(now, first).unwrap(), Inserted::Duplicate);
    let Some(Output::Event {
        offset: 0, body, ..
    }) = inbox.poll(now)
    else {
        panic!("the event was not released");
    };
    assert_eq!(body.as_ptr(), bytes, "the body was copied");
    assert!(inbox.is_caught_up() && inbox.buffered_bytes() == 0);
    assert_eq!((inbox.epoch(), inbox.next()), (EPOCH, 1));
    assert_eq!(inbox.deadline(), None);
}

proptest! {
    #[test]
    fn events_in_a_row_are_all_taken_if_they_fit_whatever_waits_ahead(
        ahead in prop::collection::vec(1..200u64, 0..100), events in 1..20usize
    ) {
        let (mut inbox, now) = inbox(small(), 0);
        for offset in ahead {
            let _ = inbox.insert(now, whole(offset));
        }
        prop_assert_eq!(drain(&mut inbox, now), []);
        let (empty, _) = self::inbox(small(), 0);
        let bytes = |events: usize| (0..events as u64).map(|offset| body(offset).len()).sum();
        let fit = (1..=events).rev().find(|events| empty.has_room_for(*events, bytes(*events)));
        for offset in 0..fit.unwrap_or(1) as u64 {
            prop_assert_ne!(inbox.insert(now, whole(offset)).unwrap(), Inserted::Dropped);
        }
    }
}

#[test]
fn events_are_released_in_order_whatever_the_order_of_their_parts() {
    let (mut inbox, now) = inbox(small(), 0);
    for (offset, n, via) in [
        (2, 2, Via::Gossip),
        (1, 1, Via::Gossip),
        (2, 0, Via::Direct),
        (1, 0, Via::Repair),
        (2, 1, Via::Direct),
    ] {
        let inserted = inbox.insert(now, part(offset, n, via)).unwrap();
        assert_eq!(inserted, Inserted::New);
    }
    assert_eq!(drain(&mut inbox, now), []);
    inbox.insert(now, part(0, 0, Via::Direct)).unwrap();
    let events = [
        event(0, Via::Direct),
        event(1, Via::Repair),
        event(2, Via::Direct),
    ];
    assert_eq!(drain(&mut inbox, now), events);
    assert_eq!(inbox.buffered_bytes(), 0);
}

#[test]
fn a_gap_is_wanted_once_it_has_stood_and_again_when_nothing_comes() {
    let config = small();
    let (mut inbox, start) = inbox(config, 0);
    inbox.insert(start, whole(2)).unwrap();
    assert_eq!(drain(&mut inbox, start), []);
    let ripe = inbox.deadline().unwrap();
    let stood = ripe - start;
    assert!(stood >= config.gap_wait && stood <= config.gap_wait + config.gap_jitter);
    assert_eq!(drain(&mut inbox, ripe), [Output::Want { from: 0, to: 2 }]);

    let mut wait = config.want_retry;
    let mut now = ripe;
    for _ in 0..4 {
        let retry = inbox.deadline().unwrap();
        assert!(retry - now >= wait && retry - now <= wait + wait / 4);
        assert_eq!(drain(&mut inbox, retry - Duration::from_millis(1)), []);
        assert_eq!(drain(&mut inbox, retry), [Output::Want { from: 0, to: 2 }]);
        now = retry;
        wait = (wait * 2).min(config.want_retry_max);
    }

    // A part of an answer buys the rest of it time.
    let retry = inbox.deadline().unwrap();
    let before = retry - Duration::from_millis(1);
    inbox.insert(before, part(1, 0, Via::Repair)).unwrap();
    assert_eq!(drain(&mut inbox, retry), []);
    assert!(inbox.deadline().unwrap() > retry);
    inbox.insert(retry, part(1, 1, Via::Repair)).unwrap();
    inbox.insert(retry, part(0, 0, Via::Repair)).unwrap();
    assert_eq!(drain(&mut inbox, retry).len(), 3);
    assert_eq!(inbox.deadline(), None);
}

#[test]
fn while_parts_of_an_event_come_in_it_is_not_wanted_and_what_is_before_it_is() {
    let (mut inbox, start) = inbox(small(), 0);
    inbox.insert(start, part(2, 0, Via::Gossip)).unwrap();
    let ripe = inbox.deadline().unwrap();
    let before = ripe - Duration::from_millis(1);
    inbox.insert(before, part(2, 1, Via::Gossip)).unwrap();
    assert_eq!(drain(&mut inbox, ripe), [Output::Want { from: 0, to: 2 }]);
    // As long as it stood before, and no longer where what comes was there.
    let stands = before + (ripe - start);
    inbox.insert(ripe, part(2, 1, Via::Gossip)).unwrap();
    let want = Output::Want { from: 2, to: 3 };
    assert_eq!(drain(&mut inbox, stands - Duration::from_millis(1)), []);
    assert_eq!(drain(&mut inbox, stands), [want]);
}

#[test]
fn what_is_put_off_is_an_event_of_which_a_part_comes_late_and_nothing_beside_it() {
    let wants = |inbox: &mut Inbox, at: Instant| -> Vec<_> {
        let wants = drain(inbox, at).into_iter();
        wants
            .map(|want| match want {
                Output::Want { from, to } => (from, to),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    let (mut late, start) = inbox(small(), 4);
    let ripe = late.deadline().unwrap();
    let before = ripe - Duration::from_millis(1);
    late.insert(before, part(2, 0, Via::Gossip)).unwrap();
    assert_eq!(wants(&mut late, ripe), [(0, 2), (3, 4)]);
    assert_eq!(wants(&mut late, before + (ripe - start)), [(2, 3)]);
    // What is wanted is not put off but by its answer.
    late.insert(before + (ripe - start), part(2, 1, Via::Gossip))
        .unwrap();
    assert_eq!(late.gaps.wants(), 3);

    let (mut prompt, start) = inbox(small(), 4);
    let ripe = prompt.deadline().unwrap();
    let soon = start + small().gap_wait / 5;
    prompt.insert(soon, part(2, 0, Via::Gossip)).unwrap();
    assert_eq!(wants(&mut prompt, ripe), [(0, 4)]);
}

#[test]
fn an_event_that_comes_in_by_drips_is_wanted_in_the_end() {
    let config = InboxConfig {
        gap_jitter: Duration::ZERO,
        ..InboxConfig::default()
    };
    let (mut inbox, start) = inbox(config, 1);
    let mut now = start;
    for number in 0..100 {
        let drip = Part {
            offset: 0,
            part: number,
            parts: 100,
            ..single(0)
        };
        inbox.insert(now, drip).unwrap();
        now += config.gap_wait / 2;
        if drain(&mut inbox, now) == [Output::Want { from: 0, to: 1 }] {
            assert_eq!(now - start, config.gap_wait * 8);
            return;
        }
    }
    panic!("it is never wanted");
}

#[test]
fn the_tail_up_to_the_tip_is_a_gap_wanted_in_bounded_pieces_oldest_first() {
    let (mut inbox, now) = inbox(small(), 30);
    let ripe = inbox.deadline().unwrap();
    assert_eq!(drain(&mut inbox, now), []);
    let wants = [(0, 5), (5, 10), (10, 15)].map(|(from, to)| Output::Want { from, to });
    assert_eq!(drain(&mut inbox, ripe), wants);
    for offset in 0..5 {
        inbox.insert(ripe, single(offset)).unwrap();
        inbox.poll(ripe).unwrap();
    }
    assert_eq!(drain(&mut inbox, ripe), [Output::Want { from: 15, to: 20 }]);
}

fn single(offset: u64) -> Part {
    Part {
        body: Bytes::from_static(b"x"),
        ..whole(offset)
    }
}

#[test]
fn a_gap_stands_longer_where_what_was_wanted_comes_twice_and_no_longer_where_it_was_lost() {
    let config = small();
    let (mut inbox, mut now) = inbox(config, 0);
    // How long the event at `offset` is waited for, that then comes so many times.
    let mut waited = |offset: u64, times: usize| {
        inbox.on_tip(now, offset + 1);
        let ripe = inbox.deadline().unwrap();
        let want = Output::Want {
            from: offset,
            to: offset + 1,
        };
        assert_eq!(drain(&mut inbox, ripe), [want]);
        let stood = ripe - now;
        now = ripe;
        for _ in 0..times {
            for number in 0..parts(offset) {
                inbox
                    .insert(now, part(offset, number, Via::Gossip))
                    .unwrap();
            }
            drain(&mut inbox, now);
        }
        stood
    };
    let longest = config.gap_wait + config.gap_jitter;
    for offset in 0..10 {
        assert!(waited(offset, 1) <= longest);
    }
    assert!(waited(10, 2) <= longest);
    assert!(waited(11, 2) >= config.gap_wait * 3 / 2);
    assert!(waited(12, 1) >= config.gap_wait * 2);
}

#[test]
fn a_repair_that_brings_more_than_was_lost_was_not_needless_and_one_behind_a_gap_may_be() {
    let config = small();
    let (mut inbox, now) = inbox(config, 0);
    // The last of three parts is lost, and its repair brings all.
    for number in [0, 1] {
        inbox.insert(now, part(2, number, Via::Gossip)).unwrap();
    }
    let ripe = inbox.deadline().unwrap();
    assert_eq!(drain(&mut inbox, ripe), [Output::Want { from: 0, to: 3 }]);
    for number in 0..3 {
        inbox.insert(ripe, part(2, number, Via::Repair)).unwrap();
    }
    inbox.insert(ripe, part(2, 0, Via::Gossip)).unwrap();
    assert_eq!(inbox.gaps.extra(ripe), Duration::ZERO);
    // It waits behind a gap when what completed it comes again.
    inbox.insert(ripe, part(2, 2, Via::Gossip)).unwrap();
    assert_eq!(inbox.gaps.extra(ripe), config.gap_wait / 2);
}

#[test]
fn what_the_direct_cursor_brings_again_was_not_wanted_in_vain() {
    let (mut inbox, _) = inbox(small(), 1);
    let ripe = inbox.deadline().unwrap();
    assert_eq!(drain(&mut inbox, ripe), [Output::Want { from: 0, to: 1 }]);
    inbox.insert(ripe, single(0)).unwrap();
    inbox.set_direct(ripe, true);
    inbox.insert(ripe, single(0)).unwrap();
    assert_eq!(inbox.gaps.extra(ripe), Duration::ZERO);
}

#[test]
fn what_was_passed_over_is_not_put_off_by_what_comes_after_it() {
    let (mut inbox, _) = inbox(small(), 10);
    let ripe = inbox.deadline().unwrap();
    assert_eq!(drain(&mut inbox, ripe).len(), 2);
    let late = ripe + Duration::from_millis(999);
    inbox.insert(late, single(6)).unwrap();
    let wants = drain(&mut inbox, ripe + Duration::from_millis(1200));
    assert_eq!(wants, [Output::Want { from: 0, to: 5 }]);
}

#[test]
fn nothing_is_wanted_while_the_hub_serves_directly() {
    let config = small();
    let (mut inbox, now) = inbox(config, 0);
    inbox.set_direct(now, true);
    inbox.on_tip(now, 4);
    assert_eq!(inbox.deadline(), None);
    let later = now + Duration::from_secs(60);
    assert_eq!(drain(&mut inbox, later), []);
    inbox.set_direct(later, false);
    let ripe = inbox.deadline().unwrap();
    assert!(ripe - later >= config.gap_wait);
    assert_eq!(drain(&mut inbox, ripe), [Output::Want { from: 0, to: 4 }]);
}

#[test]
fn what_is_missed_is_said_once_and_what_is_here_is_still_released() {
    let (mut inbox, now) = inbox(small(), 0);
    inbox.insert(now, part(2, 1, Via::Gossip)).unwrap();
    inbox.insert(now, part(3, 0, Via::Gossip)).unwrap();
    inbox.on_missed(now, 0, 2);
    inbox.on_missed(now, 2, 6);
    inbox.on_missed(now, 1, 5);
    let outputs = [
        Output::Missed { from: 0, to: 3 },
        event(3, Via::Gossip),
        Output::Missed { from: 4, to: 6 },
    ];
    assert_eq!(drain(&mut inbox, now), outputs);
    assert!(inbox.is_caught_up());
    assert_eq!((inbox.next(), inbox.buffered_bytes()), (6, 0));
}

#[test]
fn a_small_event_behind_a_gap_does_not_keep_the_frame_that_it_came_in() {
    let (mut inbox, now) = inbox(InboxConfig::default(), 0);
    let frame = Bytes::from(vec![1; 60 << 10]);
    for (offset, part, parts) in [(1, 0, 1), (2, 0, 2), (4, 0, 1)] {
        let body = frame.slice(..100);
        let via = Via::Gossip;
        let part = Part {
            offset,
            part,
            parts,
            body,
            via,
        };
        assert_eq!(inbox.insert(now, part).unwrap(), Inserted::New);
    }
    assert!(frame.is_unique(), "the frame is kept");
}

#[test]
fn a_nearer_event_takes_the_place_of_the_farthest() {
    let (mut inbox, now) = inbox(small(), 0);
    for offset in 10..16 {
        assert_eq!(inbox.insert(now, single(offset)).unwrap(), Inserted::New);
    }
    assert!(!inbox.has_room());
    assert_eq!(inbox.insert(now, single(20)).unwrap(), Inserted::Dropped);
    assert_eq!(inbox.insert(now, single(5)).unwrap(), Inserted::New);
    // What was given up is missing again, but not wanted while there is no room for it.
    assert_eq!(inbox.gaps.ranges(), [(0, 5), (6, 10), (15, 21)]);
    let later = now + Duration::from_secs(1);
    let wants = [(0, 5), (6, 10)].map(|(from, to)| Output::Want { from, to });
    assert_eq!(drain(&mut inbox, later), wants);
    for offset in 0..5 {
        inbox.insert(later, single(offset)).unwrap();
        inbox.poll(later).unwrap();
    }
    inbox.poll(later).unwrap();
    assert!(inbox.has_room());
    let last = drain(&mut inbox, later + Duration::from_millis(200));
    // The repair took the place of another one meanwhile.
    let wants = [(14, 19), (19, 21)].map(|(from, to)| Output::Want { from, to });
    assert_eq!(last, wants);
}

#[test]
fn a_targeted_event_waits_for_the_broadcasts_before_it() {
    let (mut inbox, now) = inbox(small(), 0);
    let after = |offset| Position::new(EPOCH, offset);
    let targeted = |seq| Output::Targeted {
        seq,
        body: Bytes::new(),
    };
    for (offset, seq) in [(1, 0), (0, 1), (3, 2), (1, 3)] {
        inbox
            .on_targeted(now, after(offset), Bytes::new(), seq)
            .unwrap();
    }
    assert_eq!(inbox.tip(), 3);
    // One that need not wait is not held back by one that must.
    assert_eq!(drain(&mut inbox, now), [targeted(1)]);
    inbox.insert(now, part(0, 0, Via::Direct)).unwrap();
    let outputs = [event(0, Via::Direct), targeted(0), targeted(3)];
    assert_eq!(drain(&mut inbox, now), outputs);
    inbox.on_missed(now, 1, 4);
    let outputs = [Output::Missed { from: 1, to: 4 }, targeted(2)];
    assert_eq!(drain(&mut inbox, now), outputs);

    inbox.on_targeted(now, after(9), Bytes::new(), 3).unwrap();
    assert_eq!(drain(&mut inbox, now), []);
    inbox.begin_epoch(now, Epoch::from_u64(8), 0, 0);
    assert_eq!(drain(&mut inbox, now), [targeted(3)]);
}

#[test]
fn what_breaks_the_protocol_or_a_bound_is_refused() {
    let (mut inbox, now) = inbox(small(), 0);
    let bad = |offset, part, parts, bytes| Part {
        offset,
        part,
        parts,
        body: Bytes::from(vec![0; bytes]),
        via: Via::Gossip,
    };
    let mut refused = |part| inbox.insert(now, part).unwrap_err();
    assert!(matches!(
        refused(bad(0, 0, 0, 1)),
        InboxError::NoParts { .. }
    ));
    assert!(matches!(
        refused(bad(0, 2, 2, 1)),
        InboxError::PartOutOfRange { .. }
    ));
    assert!(matches!(
        refused(bad(0, 0, 5, 1)),
        InboxError::TooManyParts { .. }
    ));
    assert!(matches!(
        refused(bad(0, 0, 1, 101)),
        InboxError::TooLarge { .. }
    ));
    assert!(matches!(
        refused(bad(u64::MAX, 0, 1, 1)),
        InboxError::NoSuchOffset { .. }
    ));
    assert_eq!((inbox.tip(), inbox.buffered_bytes()), (0, 0));

    // An event whose parts do not agree can still be had: what is there of it goes.
    inbox.insert(now, bad(0, 0, 3, 60)).unwrap();
    let error = inbox.insert(now, bad(0, 1, 2, 1)).unwrap_err();
    assert!(matches!(
        error,
        InboxError::PartsDiffer {
            before: 3,
            parts: 2,
            ..
        }
    ));
    assert_eq!(inbox.buffered_bytes(), 0);
    inbox.insert(now, bad(0, 0, 3, 60)).unwrap();
    let error = inbox.insert(now, bad(0, 1, 3, 60)).unwrap_err();
    assert!(matches!(error, InboxError::TooLarge { .. }));
    inbox.insert(now, whole(0)).unwrap();
    assert_eq!(drain(&mut inbox, now), [event(0, Via::Gossip)]);

    let at = Position::new(EPOCH, 9);
    let error = inbox
        .on_targeted(now, at, Bytes::from(vec![0; 101]), 0)
        .unwrap_err();
    assert!(matches!(error, InboxError::TargetedTooLarge { .. }));
    for seq in 0..4 {
        inbox.on_targeted(now, at, Bytes::new(), seq).unwrap();
    }
    let error = inbox.on_targeted(now, at, Bytes::new(), 4).unwrap_err();
    assert!(matches!(error, InboxError::TargetedFull { seq: 4, .. }));
}

#[derive(Clone, Debug)]
enum Op {
    /// One part (its number is taken modulo the event's parts).
    Part(u64, u16, Via),
    Event(u64, Via),
    Tip(u64),
    Missed(u64, u64),
    Direct(bool),
    Targeted(u64, bool),
    Wait(u64),
    /// Whether to release what has come so far, or to wait until more has.
    Drain(bool),
}

/// Offsets in `range`.
fn op(range: std::ops::Range<u64>) -> impl Strategy<Value = Op> {
    let via = prop_oneof![Just(Via::Direct), Just(Via::Gossip), Just(Via::Repair)];
    let o = range;
    prop_oneof![
        12 => (o.clone(), any::<u16>(), via.clone()).prop_map(|(o, n, v)| Op::Part(o, n, v)),
        12 => (o.clone(), via).prop_map(|(o, v)| Op::Event(o, v)),
        2 => o.clone().prop_map(Op::Tip),
        2 => (o.clone(), 0u64..6).prop_map(|(o, n)| Op::Missed(o, o.saturating_add(n))),
        2 => any::<bool>().prop_map(Op::Direct),
        3 => (o, any::<bool>()).prop_map(|(o, ours)| Op::Targeted(o, ours)),
        4 => (0u64..400).prop_map(Op::Wait),
        2 => any::<bool>().prop_map(Op::Drain),
    ]
}

/// Checks an inbox against what it was told.
struct Model {
    inbox: Inbox,
    now: Instant,
    /// What the hub said it no longer has.
    told_missed: BTreeSet<u64>,
    next: u64,
    tip: u64,
    seq: u64,
    /// Targeted events that wait: number, and the offset if it is in our epoch.
    waiting: Vec<(u64, Option<u64>)>,
    direct: bool,
    draining: bool,
    max_bytes: usize,
}

impl Model {
    fn new(config: InboxConfig, next: u64) -> Self {
        let now = Instant::now();
        Self {
            inbox: Inbox::new(config, now, EPOCH, next, next, 3),
            now,
            told_missed: BTreeSet::new(),
            next,
            tip: next,
            seq: 0,
            waiting: Vec::new(),
            direct: false,
            draining: true,
            max_bytes: config.sound().max_buffered_bytes,
        }
    }

    fn insert(&mut self, part: Part) {
        let offset = part.offset;
        self.tip = self.tip.max(offset + 1);
        let inserted = self.inbox.insert(self.now, part).unwrap();
        if offset < self.next {
            assert_eq!(inserted, Inserted::Duplicate);
        }
        if offset == self.next && self.draining {
            assert_ne!(inserted, Inserted::Dropped, "the next event was dropped");
        }
    }

    fn event(&mut self, offset: u64, via: Via) {
        for n in 0..parts(offset) {
            self.insert(part(offset, n, via));
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Part(offset, n, via) => self.insert(part(offset, n % parts(offset), via)),
            Op::Event(offset, via) => self.event(offset, via),
            Op::Tip(tip) => {
                self.tip = self.tip.max(tip);
                self.inbox.on_tip(self.now, tip);
            }
            Op::Missed(from, to) => {
                if to > from.max(self.next) {
                    self.tip = self.tip.max(to);
                    self.told_missed.extend(from..to);
                }
                self.inbox.on_missed(self.now, from, to);
            }
            Op::Direct(direct) => {
                self.direct = direct;
                self.inbox.set_direct(self.now, direct);
            }
            Op::Targeted(offset, ours) => {
                let epoch = if ours { EPOCH } else { Epoch::from_u64(1) };
                let after = Position::new(epoch, offset);
                let sent = self
                    .inbox
                    .on_targeted(self.now, after, Bytes::new(), self.seq);
                assert_eq!(sent.is_ok(), self.waiting.len() < 4);
                if sent.is_ok() {
                    self.waiting.push((self.seq, ours.then_some(offset)));
                    self.seq += 1;
                    if ours {
                        self.tip = self.tip.max(offset);
                    }
                }
            }
            Op::Wait(ms) => self.now += Duration::from_millis(ms),
            Op::Drain(drain) => self.draining = drain,
        }
        if self.draining {
            self.drain();
        }
        self.check();
    }

    /// Polls until nothing more comes; gives what is wanted.
    fn drain(&mut self) -> Vec<(u64, u64)> {
        let mut wanted = Vec::new();
        for _ in 0..1000 {
            let Some(output) = self.inbox.poll(self.now) else {
                assert!(self.inbox.deadline().is_none_or(|at| at > self.now));
                assert_eq!(self.waiting.len(), self.inbox.targeted.len());
                let free = |(_, after): &(u64, Option<u64>)| after.is_none_or(|o| o <= self.next);
                assert!(!self.waiting.iter().any(free));
                return wanted;
            };
            match output {
                Output::Event {
                    offset, body: b, ..
                } => {
                    assert_eq!(offset, self.next);
                    assert_eq!(b, body(offset));
                    self.next += 1;
                }
                Output::Missed { from, to } => {
                    assert_eq!(from, self.next);
                    assert!(to > from);
                    assert!((from..to).all(|o| self.told_missed.contains(&o)));
                    self.next = to;
                }
                Output::Targeted { seq, .. } => {
                    let place = self.waiting.iter().position(|(other, _)| *other == seq);
                    let place = place.expect("once each");
                    let (_, after) = self.waiting.remove(place);
                    assert!(after.is_none_or(|offset| offset <= self.next));
                    let earlier = &self.waiting[..place];
                    assert!(earlier.iter().all(|(_, other)| *other > after), "in order");
                }
                Output::Want { from, to } => {
                    assert!(!self.direct, "wanted while served directly");
                    assert!(self.next <= from && from < to && to <= self.tip);
                    assert!(to - from <= 5);
                    wanted.push((from, to));
                }
            }
            self.check();
        }
        panic!("polling does not end");
    }

    fn check(&self) {
        let inbox = &self.inbox;
        assert_eq!((inbox.next(), inbox.tip()), (self.next, self.tip));
        assert_eq!(inbox.is_caught_up(), self.next == self.tip);
        assert!(inbox.buffered_bytes() <= self.max_bytes);
        assert!(inbox.events() <= 6);
        assert!(inbox.gaps.wants() <= 3);
        let costs: usize = inbox.slots.values().map(Slot::cost).sum();
        let front: usize = inbox.run.iter().map(Whole::cost).sum();
        assert_eq!(inbox.buffered_bytes(), costs + front);
        // Every offset up to the tip is here, missed or a gap, and only one of missed and gap.
        let gaps = inbox.gaps.ranges();
        assert!(gaps.windows(2).all(|w| w[0].1 <= w[1].0));
        assert!(gaps.iter().all(|(from, to)| from < to && *to <= self.tip));
        for offset in self.next..self.tip {
            let whole = matches!(inbox.slots.get(&offset), Some(Slot::Whole(_)))
                || (self.next..inbox.run_end()).contains(&offset);
            let missed = inbox.missed.contains(offset);
            let gap = gaps.iter().any(|(from, to)| (*from..*to).contains(&offset));
            assert_eq!(gap, !whole && !missed, "offset {offset}");
        }
    }

    /// The network heals: time passes, and whatever is wanted comes, unless `loses` it.
    fn settle(&mut self, mut loses: impl FnMut(u64) -> bool) {
        self.draining = true;
        self.apply(Op::Direct(false));
        for _ in 0..2000 {
            for (from, to) in self.drain() {
                for offset in from..to {
                    if !loses(offset) {
                        self.event(offset, Via::Repair);
                    }
                }
            }
            self.drain();
            if self.inbox.is_caught_up() {
                assert!(self.waiting.is_empty());
                assert_eq!(self.inbox.buffered_bytes(), 0);
                assert_eq!(self.inbox.deadline(), None);
                return;
            }
            let at = self.inbox.deadline().expect("nothing will ever be wanted");
            assert!(at >= self.now);
            self.now = at;
        }
        panic!("it never caught up");
    }
}

crate::fuzz::machine! {
    fn every_event_is_released_once_in_order_or_missed(
        next in 0u64..3,
        ops in prop::collection::vec(op(0..40), 0..150),
        losses in prop::collection::vec(any::<bool>(), 0..64),
    ) {
        let mut model = Model::new(small(), next);
        for op in ops {
            model.apply(op);
        }
        let mut losses = losses.into_iter();
        model.settle(|_| losses.next().unwrap_or(false));
    }

    fn the_end_of_the_numbers_is_no_special_place(
        ops in prop::collection::vec(op(u64::MAX - 20..u64::MAX), 0..100),
    ) {
        let mut model = Model::new(small(), u64::MAX - 20);
        for op in ops {
            model.apply(op);
        }
        model.settle(|_| false);
    }

    fn nothing_that_comes_in_can_break_it(
        next in prop_oneof![Just(0u64), any::<u64>()],
        tip in any::<u64>(),
        ops in prop::collection::vec(
            (
                0u8..6,
                prop_oneof![any::<u64>(), 0u64..20, u64::MAX - 20..=u64::MAX],
                prop_oneof![any::<u64>(), 0u64..20, u64::MAX - 20..=u64::MAX],
                (0u16..6, 0u16..6, 0usize..120),
            ),
            0..100,
        ),
    ) {
        let now = Instant::now();
        let mut inbox = Inbox::new(small(), now, EPOCH, next, tip, 5);
        let bound = small().sound().max_buffered_bytes;
        for (n, (kind, a, b, (part, parts, bytes))) in ops.into_iter().enumerate() {
            let now = now + Duration::from_millis(50 * n as u64);
            match kind {
                0 => inbox.on_tip(now, a),
                1 => inbox.on_missed(now, a, b),
                2 => inbox.set_direct(now, a.is_multiple_of(2)),
                3 => drop(inbox.on_targeted(now, Position::new(EPOCH, a), Bytes::from(vec![0; bytes]), b)),
                _ => {
                    let body = Bytes::from(vec![0; bytes]);
                    drop(inbox.insert(now, Part { offset: a, part, parts, body, via: Via::Gossip }));
                }
            }
            for polls in 0.. {
                prop_assert!(polls < 1000);
                let before = inbox.next();
                match inbox.poll(now) {
                    None => break,
                    Some(Output::Event { offset, .. }) => prop_assert_eq!(offset, before),
                    Some(Output::Missed { from, to }) => prop_assert!(from == before && to > from),
                    Some(Output::Want { from, to }) => prop_assert!(before <= from && from < to),
                    Some(Output::Targeted { .. }) => {}
                }
                prop_assert!(inbox.next() >= before);
            }
            prop_assert!(inbox.buffered_bytes() <= bound && inbox.next() <= inbox.tip());
            inbox.deadline();
        }
    }

    /// An endless tail of tips with nothing behind them.
    fn gaps_do_not_pile_up(steps in prop::collection::vec((1u64..4, 0u64..60), 1..400)) {
        let (mut inbox, mut now) = inbox(small(), 0);
        let mut tip = 0;
        for (more, ms) in steps {
            tip += more;
            now += Duration::from_millis(ms);
            inbox.on_tip(now, tip);
            drain(&mut inbox, now);
            prop_assert!(inbox.gaps.ranges().len() < 20);
        }
    }
}

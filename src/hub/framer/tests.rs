use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    event::Envelope,
    log::LogConfig,
    wire::{
        broadcast::{MIN_FRAME_SIZE, OVERHEAD, unpack},
        native::MAX_PART,
    },
};

const LIMIT: usize = MIN_FRAME_SIZE - OVERHEAD;

fn framer(now: Instant) -> Framer<u32> {
    framer_of(now, LIMIT)
}

fn framer_of(now: Instant, limit: usize) -> Framer<u32> {
    let pace = Pace::new(Duration::from_millis(500), Duration::from_secs(2));
    Framer::new(now, 0, limit, pace)
}

fn log_of(sizes: &[usize]) -> SharedLog {
    let log = SharedLog::new(LogConfig::default());
    for (n, size) in sizes.iter().enumerate() {
        append(&log, n, *size);
    }
    log
}

fn append(log: &SharedLog, n: usize, size: usize) {
    let payload = serde_json::to_string(&"x".repeat(size)).unwrap();
    let event = Envelope::from_json("t", &n.to_string(), &payload).unwrap();
    log.append(event).unwrap();
}

fn nobody() -> Vec<(u32, Has)> {
    Vec::new()
}

fn has(acked: u64) -> Has {
    Has { acked, beats: 0 }
}

/// Puts events together from frames, and checks that no frame is over the limit.
#[derive(Default)]
struct Receiver {
    whole: BTreeMap<u64, Bytes>,
    parts: BTreeMap<u64, BTreeMap<u16, (u16, Bytes)>>,
}

impl Receiver {
    fn take(&mut self, content: &Content, limit: usize) {
        assert!(content.body.len() <= limit);
        if content.of.parts == 1 {
            let bodies = unpack(&content.body, content.count).expect("packed");
            self.whole.extend((content.first..).zip(bodies));
            return;
        }
        assert_eq!(content.count, 1);
        let parts = self.parts.entry(content.first).or_default();
        parts.insert(content.of.part, (content.of.parts, content.body.clone()));
        if parts.len() == usize::from(content.of.parts) {
            let body: Vec<u8> = parts.values().flat_map(|(_, b)| b.to_vec()).collect();
            self.whole.insert(content.first, body.into());
        }
    }

    /// How many parts an event was cut into, as links would cut it.
    fn is_cut_alike(&self, offset: u64, body: &Bytes) -> bool {
        let came = self.parts.get(&offset);
        came.map_or(1, BTreeMap::len) == parts(body).count()
    }

    fn check(&self, log: &SharedLog, from: u64, to: u64) {
        let mut entries = Vec::new();
        let _ = log.read(0, usize::MAX, usize::MAX, &mut entries);
        for (offset, entry) in entries {
            let there = self.whole.get(&offset);
            if (from..to).contains(&offset) {
                let body = entry.envelope.body();
                assert_eq!(there, Some(body), "{offset}");
                assert!(self.is_cut_alike(offset, body), "{offset}");
            } else {
                assert_eq!(there, None, "{offset}");
            }
        }
    }
}

fn drain(framer: &mut Framer<u32>, now: Instant, log: &SharedLog) -> Vec<Content> {
    std::iter::from_fn(|| framer.poll(now, log, nobody)).collect()
}

/// Sizes around every bound: of parts, of frames, of small events.
fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![
        4 => 0usize..300,
        1 => MAX_PART - 30..MAX_PART + 30,
        1 => 2 * MAX_PART - 30..2 * MAX_PART + 30,
        1 => 0usize..4 * MAX_PART,
    ];
    prop::collection::vec(size, 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn frames_carry_every_event_once_in_order_and_cut_as_links_cut_it(sizes in sizes(), room in 0..4 * MAX_PART) {
        let now = Instant::now();
        let log = log_of(&sizes);
        let limit = LIMIT + room;
        let mut framer = framer_of(now, limit);
        let mut receiver = Receiver::default();
        let mut next = (0, 0);
        for content in drain(&mut framer, now, &log) {
            prop_assert!(!content.again && content.count > 0);
            prop_assert_eq!((content.first, content.of.part), next);
            next = if content.of.part + 1 == content.of.parts {
                (content.first + u64::from(content.count), 0)
            } else {
                (content.first, content.of.part + 1)
            };
            receiver.take(&content, limit);
        }
        prop_assert_eq!(framer.next(), sizes.len() as u64);
        receiver.check(&log, 0, sizes.len() as u64);
    }

    #[test]
    fn what_is_sent_again_is_the_range_as_far_as_it_was_sent(
        sizes in sizes(), from in 0u64..20, len in 0u64..20, more in sizes()
    ) {
        let now = Instant::now();
        let log = log_of(&sizes);
        let mut framer = framer(now);
        let sent = sizes.len() as u64;
        drain(&mut framer, now, &log);
        for size in &more {
            append(&log, 0, *size);
        }
        prop_assert!(framer.send_again(from, from + len));
        let (again, new): (Vec<_>, Vec<_>) =
            drain(&mut framer, now, &log).into_iter().partition(|content| content.again);
        let mut receiver = Receiver::default();
        again.iter().for_each(|content| receiver.take(content, LIMIT));
        receiver.check(&log, from, (from + len).min(sent));
        let mut receiver = Receiver::default();
        new.iter().for_each(|content| receiver.take(content, LIMIT));
        receiver.check(&log, sent, sent + more.len() as u64);
    }
}

#[test]
fn every_frame_of_a_burst_is_full_but_the_last() {
    const SIZE: usize = 1000;
    let now = Instant::now();
    let log = log_of(&[SIZE; 1000]);
    let mut framer = framer(now);
    let is_full = |content: &Content| content.body.len() + SIZE + 20 > LIMIT;
    let frames = drain(&mut framer, now, &log);
    let (last, before) = frames.split_last().unwrap();
    assert!(before.len() > 10 && before.iter().all(is_full));
    assert_eq!(last.first + u64::from(last.count), 1000);
    framer.send_again(0, 500);
    let again = drain(&mut framer, now, &log);
    let (last, before) = again.split_last().unwrap();
    assert!(before.len() > 5 && before.iter().all(is_full));
    assert_eq!(last.first + u64::from(last.count), 500);
}

#[test]
fn new_frames_and_those_sent_again_take_turns() {
    let now = Instant::now();
    let log = log_of(&[MAX_PART; 6]);
    let mut framer = framer(now);
    drain(&mut framer, now, &log);
    for n in 0..6 {
        append(&log, n, MAX_PART);
    }
    assert!(framer.send_again(0, 6));
    let again: Vec<bool> = drain(&mut framer, now, &log)
        .iter()
        .take(8)
        .map(|content| content.again)
        .collect();
    assert_eq!(again, [true, false].repeat(4));
}

#[test]
fn what_the_log_has_lost_is_not_sent_again() {
    let now = Instant::now();
    let log = SharedLog::new(LogConfig::default().with_max_events(4));
    let mut framer = framer(now);
    for n in 0..4 {
        append(&log, n, 10);
    }
    drain(&mut framer, now, &log);
    assert!(framer.send_again(0, 3));
    assert!(framer.send_again(2, 4));
    for n in 4..6 {
        append(&log, n, 10);
    }
    let frames = drain(&mut framer, now, &log);
    let ranges: Vec<_> = frames
        .iter()
        .filter(|content| content.again)
        .map(|content| (content.first, content.count))
        .collect();
    assert_eq!(ranges, [(2, 1), (2, 2)]);
}

#[test]
fn only_so_many_ranges_wait_to_be_sent_again() {
    let now = Instant::now();
    let log = log_of(&[10]);
    let mut framer = framer(now);
    drain(&mut framer, now, &log);
    let taken = (0..2 * MAX_AGAIN).filter(|_| framer.send_again(0, 1));
    assert_eq!(taken.count(), MAX_AGAIN);
}

#[test]
fn an_idle_topic_says_where_the_tip_is_ever_more_rarely() {
    let mut now = Instant::now();
    let log = log_of(&[10]);
    let mut framer = framer(now);
    drain(&mut framer, now, &log);
    framer.set_hurry(false);
    let mut waits = Vec::new();
    for _ in 0..7 {
        let at = framer.deadline().unwrap();
        assert_eq!(
            framer.poll(at - Duration::from_millis(1), &log, nobody),
            None
        );
        let beacon = framer.poll(at, &log, nobody).expect("it is time");
        assert_eq!((beacon.first, beacon.count), (1, 0));
        waits.push((at - now).as_millis());
        now = at;
    }
    assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000, 5000]);
    // Somebody joins, and is not to wait for long.
    framer.set_hurry(true);
    assert_eq!(framer.deadline(), Some(now + BEACON_FIRST));
}

#[test]
fn the_topic_runs_a_window_ahead_of_its_spokes_and_no_further() {
    let now = Instant::now();
    let log = log_of(&[60_000; 100]);
    let mut framer = framer(now);
    let mut acked = 0;
    let mut at = now;
    while framer.next() < 100 {
        while let Some(content) = framer.poll(at, &log, || vec![(1, has(acked))]) {
            if content.count == 0 {
                assert!(framer.is_held());
            }
        }
        let ahead = framer.next() - acked;
        // What was read at once is sent at once.
        let most = WINDOW_BYTES / 60_000 + READ_FRAMES as u64 + 1;
        assert!(ahead <= most, "{ahead}");
        if framer.next() < 100 {
            assert!(framer.is_held());
            assert!(framer.deadline().unwrap() <= at + WINDOW_POLL);
        }
        acked += 1;
        at += Duration::from_millis(100);
    }
}

#[test]
fn what_fills_no_frame_waits_with_the_rest_while_the_window_is_closed() {
    const SIZE: usize = 1000;
    let now = Instant::now();
    let log = log_of(&[SIZE; 3000]);
    let mut framer = framer(now);
    let (mut receiver, mut acked) = (Receiver::default(), 0);
    let mut at = now;
    while framer.next() < 3000 {
        let mut frames = 0;
        while let Some(content) = framer.poll(at, &log, || vec![(1, has(acked))]) {
            if content.count > 0 {
                let is_last = content.first + u64::from(content.count) == 3000;
                assert!(is_last || content.body.len() + SIZE + 20 > LIMIT);
                receiver.take(&content, LIMIT);
                frames += 1;
            }
        }
        assert!(frames > 0 || framer.is_held());
        acked = framer.next().saturating_sub(500).max(acked);
        at += Duration::from_millis(100);
    }
    receiver.check(&log, 0, 3000);
}

#[test]
fn a_closed_window_is_not_silence() {
    let mut now = Instant::now();
    let log = log_of(&[60_000; 100]);
    let mut framer = framer(now);
    framer.set_hurry(false);
    let mut beacons = 0;
    let begin = now;
    while now < begin + Duration::from_millis(1900) {
        while let Some(content) = framer.poll(now, &log, || vec![(1, has(0)), (2, has(0))]) {
            beacons += u32::from(content.count == 0);
        }
        now = framer.deadline().unwrap();
    }
    assert!(framer.is_held());
    assert_eq!(beacons, 7);
}

#[test]
fn frames_wait_for_neighbours_if_spokes_rely_on_them_and_begin_at_the_tip_otherwise() {
    let now = Instant::now();
    let log = log_of(&[10; 3]);
    let mut framer = framer(now);
    framer.set_listeners(false, false);
    assert_eq!(framer.poll(now, &log, nobody), None);
    assert_eq!((framer.next(), framer.deadline()), (3, None));
    framer.set_listeners(true, false);
    append(&log, 3, 10);
    let frames = drain(&mut framer, now, &log);
    assert_eq!(
        frames
            .iter()
            .map(|f| (f.first, f.count))
            .collect::<Vec<_>>(),
        [(3, 1)]
    );
    framer.set_listeners(false, true);
    for n in 4..7 {
        append(&log, n, 10);
    }
    assert_eq!(framer.poll(now + BEACON_LAST, &log, nobody), None);
    assert_eq!((framer.next(), framer.deadline()), (4, None));
    framer.set_listeners(true, true);
    let frames = drain(&mut framer, now, &log);
    assert_eq!(
        frames
            .iter()
            .map(|f| (f.first, f.count))
            .collect::<Vec<_>>(),
        [(4, 3)]
    );
}

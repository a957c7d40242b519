use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    event::Envelope,
    hub::{
        mailbox::MailboxLimits,
        shared_log::{Loading, UnsyncedLimits},
    },
    log::{LogConfig, LogFailed},
    position::Epoch,
    spoke_id::SpokeId,
    wire::{
        assembly::Assembly,
        framing::Deframer,
        native::{GenerationKeys, MAX_FRAME},
    },
};

fn event(n: u64) -> Envelope {
    Envelope::new("n", &n).unwrap()
}

fn mailbox() -> Mailbox {
    let spoke = SpokeId {
        endpoint: iroh::SecretKey::from_bytes(&[7; 32]).public(),
        number: 1,
    };
    let limits = MailboxLimits {
        events: 100,
        bytes: 1 << 20,
    };
    let mut mailbox = Mailbox::new(spoke, Protocol::Native, limits);
    mailbox.attach(1, 0);
    mailbox
}

fn desk(behind: Behind, cursor: u64) -> Desk {
    Desk::new(Protocol::Native, 1, cursor, behind).with_runs(true)
}

/// What is written next, in short: offsets, and targeted events with what they wait for.
fn next(desk: &mut Desk, mailbox: &mut Mailbox, log: &SharedLog) -> Result<Vec<String>, LinkError> {
    let mut chunks = Vec::new();
    let mut all = Vec::new();
    let mut was_all = false;
    loop {
        match desk.next_batch(mailbox, log, true, &mut Vec::new(), &mut chunks)? {
            Batch::Idle { follows_tip } => {
                assert!(follows_tip || !was_all);
                break;
            }
            Batch::Frames { all, .. } => {
                assert!(!was_all, "there was more");
                was_all = all;
            }
        }
        all.append(&mut chunks);
    }
    let mut deframer = Deframer::new(MAX_FRAME);
    deframer.push(Bytes::from(all.concat()));
    let mut words = Vec::new();
    while let Some(frame) = deframer.next().unwrap() {
        words.push(match ToSpoke::decode(frame).unwrap().unwrap() {
            ToSpoke::Event { offset, .. } => format!("{offset}"),
            ToSpoke::Events { first, bodies } => {
                format!("{first}-{}", first + bodies.len() as u64 - 1)
            }
            ToSpoke::Targeted { seq, after, .. } => format!("#{seq} after {}", after.offset),
            ToSpoke::Missed { from, to } => format!("missed {from}..{to}"),
            ToSpoke::AckNow { offset } => format!("ask {offset}"),
            other => format!("{other:?}"),
        });
    }
    Ok(words)
}

#[test]
fn targeted_events_go_out_in_their_places_or_ahead_of_them() {
    let log = SharedLog::new(LogConfig::default());
    let mut mailbox = mailbox();
    let mut desk = desk(Behind::Skip, 0);
    for n in 0..4 {
        if n == 2 {
            mailbox.push(&event(n), log.appended(), false).unwrap();
        }
        log.append(event(n)).unwrap();
    }
    mailbox.push(&event(9), log.appended(), true).unwrap();
    let written = next(&mut desk, &mut mailbox, &log).unwrap();
    assert_eq!(written, ["0", "1", "#1 after 0", "#2 after 2", "2", "3"]);
    // On the topic, the spoke keeps the order itself.
    desk.park();
    log.append(event(4)).unwrap();
    mailbox.push(&event(5), log.appended(), false).unwrap();
    let written = next(&mut desk, &mut mailbox, &log).unwrap();
    assert_eq!(written, ["#3 after 5"]);
    // A later link begins with what the spoke did not take, wherever its cursor is.
    mailbox.attach(2, 1);
    assert_eq!(next(&mut desk, &mut mailbox, &log).unwrap(), [""; 0]);
    let mut again = Desk::new(Protocol::Native, 2, 0, Behind::Skip);
    let written = next(&mut again, &mut mailbox, &log).unwrap();
    assert_eq!(
        written,
        ["0", "1", "2", "3", "4", "#2 after 2", "#3 after 5"]
    );
}

#[test]
fn an_event_waits_for_broadcasts_that_are_not_synced_yet_but_not_for_those_that_never_will_be() {
    let limits = UnsyncedLimits {
        events: 100,
        bytes: 1 << 20,
    };
    let lives = (Epoch::from_u64(7), Vec::new());
    let log = Loading::new(LogConfig::default()).finish(limits, lives, 0);
    for on_topic in [false, true] {
        let begin = log.tip();
        let mut mailbox = mailbox();
        let mut desk = desk(Behind::Skip, begin);
        if on_topic {
            desk.park();
        }
        log.append(event(0)).unwrap();
        mailbox.push(&event(1), log.appended(), false).unwrap();
        assert_eq!(next(&mut desk, &mut mailbox, &log).unwrap(), [""; 0]);
        log.set_synced(&log.unsynced().unwrap());
        let written = next(&mut desk, &mut mailbox, &log).unwrap();
        let targeted = format!("#1 after {}", begin + 1);
        match on_topic {
            true => assert_eq!(written, [targeted]),
            false => assert_eq!(written, [format!("{begin}"), targeted]),
        }
    }
    let end = log.tip();
    let mut of_direct = (mailbox(), desk(Behind::Skip, end));
    let mut of_topic = (mailbox(), desk(Behind::Skip, end));
    of_topic.1.park();
    log.append(event(0)).unwrap();
    for (mailbox, _) in [&mut of_direct, &mut of_topic] {
        mailbox.push(&event(1), log.appended(), false).unwrap();
    }
    log.fail(LogFailed::because("no space"));
    for (mailbox, desk) in [&mut of_direct, &mut of_topic] {
        let written = next(desk, mailbox, &log).unwrap();
        assert_eq!(written, [format!("#1 after {end}")]);
    }
}

#[test]
fn who_falls_behind_skips_or_is_closed_but_never_for_where_it_began() {
    for behind in [Behind::Skip, Behind::Close] {
        let log = SharedLog::new(LogConfig::default().with_max_events(4));
        for n in 0..10 {
            log.append(event(n)).unwrap();
        }
        let mut mailbox = mailbox();
        let mut desk = desk(behind, 2);
        assert_eq!(desk.fell_behind(log.head()), None);
        let written = next(&mut desk, &mut mailbox, &log).unwrap();
        assert_eq!(written, ["missed 2..6", "6", "7", "8", "9"]);
        assert_eq!(desk.take_told_lost(), [(2, 6)]);
        for n in 10..20 {
            log.append(event(n)).unwrap();
        }
        let fell_behind = desk.fell_behind(log.head());
        let written = next(&mut desk, &mut mailbox, &log);
        match behind {
            Behind::Skip => {
                assert_eq!(fell_behind, None);
                assert_eq!(written.unwrap()[0], "missed 10..16");
            }
            Behind::Close => {
                assert_eq!(fell_behind, Some(6));
                let error = written.unwrap_err();
                assert!(matches!(error, LinkError::FellBehind { events: 6, .. }));
            }
        }
    }
}

#[test]
fn a_spoke_is_asked_to_acknowledge_when_somebody_waits_and_it_has_answered() {
    let mut desk = desk(Behind::Skip, 0);
    let mut asks = |awaited, acked| {
        let mut chunks = Vec::new();
        desk.put_ask(awaited, acked, &mut chunks);
        !chunks.is_empty()
    };
    assert!(!asks(0, 0) && !asks(5, 5), "nobody waits");
    assert!(asks(7, 5));
    assert!(!asks(7, 5) && !asks(9, 6), "it has not answered");
    assert!(asks(9, 7));
    assert!(!asks(9, 9));
}

#[test]
fn control_frames_and_events_that_overtake_go_between_the_parts_of_a_large_event() {
    let log = SharedLog::new(LogConfig::default());
    let payload = format!("\"{}\"", "x".repeat(10 * BATCH_BYTES));
    let large = Envelope::from_json("n", "", &payload).unwrap();
    log.append(event(0)).unwrap();
    log.append(large.clone()).unwrap();
    log.append(event(2)).unwrap();
    let mut mailbox = mailbox();
    mailbox.push(&event(3), log.appended(), false).unwrap();
    let mut desk = desk(Behind::Skip, 0);
    let mut deframer = Deframer::new(MAX_FRAME);
    let mut assembly = Assembly::default();
    let mut order = Vec::new();
    for turn in 1.. {
        desk.acknowledge(turn);
        if turn == 5 {
            mailbox.push(&event(4), log.appended(), true).unwrap();
        }
        let mut chunks = Vec::new();
        let batch = desk
            .next_batch(&mut mailbox, &log, true, &mut Vec::new(), &mut chunks)
            .unwrap();
        assert!(bytes_of(&chunks) < 2 * BATCH_BYTES as u64);
        deframer.push(Bytes::from(chunks.concat()));
        while let Some(frame) = deframer.next().unwrap() {
            match ToSpoke::decode(frame).unwrap().unwrap() {
                ToSpoke::Ack { seq } => assert_eq!(seq, turn),
                ToSpoke::Event { offset, of, body } => {
                    if let Some(body) = assembly.push(offset, of, body, usize::MAX).unwrap() {
                        assert!(offset != 1 || body == large.body());
                        order.push(format!("{offset}"));
                    }
                }
                ToSpoke::Targeted { seq, .. } => order.push(format!("#{seq}")),
                frame => panic!("{frame:?}"),
            }
        }
        if matches!(batch, Batch::Frames { cursor: None, .. }) && order.len() == 5 {
            assert!(turn > 10, "in many batches");
            break;
        }
    }
    assert_eq!(order, ["0", "#1", "1", "2", "#2"]);
}

#[test]
fn who_is_behind_gets_small_events_together_from_where_it_stands_to_where_it_has_to_stop() {
    let log = SharedLog::new(LogConfig::default());
    for n in 0..100 {
        log.append(event(n)).unwrap();
    }
    let mut mailbox = mailbox();
    let mut desk = desk(Behind::Skip, 3).with_floor(5);
    let words = |desk: &mut Desk, mailbox: &mut Mailbox| next(desk, mailbox, &log).unwrap();
    let behind = [
        "missed 3..5",
        "5-31",
        "32-63",
        "64-95",
        "96",
        "97",
        "98",
        "99",
    ];
    assert_eq!(words(&mut desk, &mut mailbox), behind);
    // All the same memory for everybody.
    let chunks = || {
        let mut chunks = Vec::new();
        let put = log.put_runs(32, u64::MAX, (1000, BATCH_BYTES), &mut chunks);
        assert_eq!((put.next, put.is_full), (96, false));
        chunks
    };
    assert_eq!(chunks()[0].as_ptr(), chunks()[0].as_ptr());
    // Not those who do not know such frames.
    let mut plain = self::desk(Behind::Skip, 90).with_runs(false);
    let one_by_one: Vec<_> = (90..100).map(|n| n.to_string()).collect();
    assert_eq!(words(&mut plain, &mut mailbox), one_by_one);
    // Up to the place of a targeted event, one by one where less than a run is left.
    for n in 100..130 {
        log.append(event(n)).unwrap();
    }
    mailbox.push(&event(0), log.appended(), false).unwrap();
    for n in 130..200 {
        log.append(event(n)).unwrap();
    }
    let words = words(&mut desk, &mut mailbox);
    let targeted = words.iter().position(|word| word.starts_with('#')).unwrap();
    assert_eq!(words[..targeted].last().unwrap(), "129");
    assert_eq!(words[targeted + 1..][..2], ["130-159", "160-191"]);
}

#[test]
fn a_batch_is_all_only_when_nothing_is_left_of_what_was_sent_to_one() {
    let log = SharedLog::new(LogConfig::default());
    log.append(event(0)).unwrap();
    let (mut mailbox, mut desk) = (mailbox(), desk(Behind::Skip, 0));
    let large = Envelope::new("n", &"x".repeat(BATCH_BYTES / 2)).unwrap();
    for _ in 0..3 {
        mailbox.push(&large, log.appended(), true).unwrap();
    }
    let mut all = |mailbox: &mut Mailbox| {
        let mut alls = Vec::new();
        loop {
            let mut chunks = Vec::new();
            match desk.next_batch(mailbox, &log, true, &mut Vec::new(), &mut chunks) {
                Ok(Batch::Frames { all, .. }) => alls.push(all),
                Ok(Batch::Idle { follows_tip }) => {
                    assert!(follows_tip);
                    return alls;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    assert_eq!(all(&mut mailbox), [false, true]);
    // To the next link, all that was not acknowledged once more.
    mailbox.detach();
    mailbox.attach(1, 0);
    assert_eq!(all(&mut mailbox), [false, true]);
}

#[test]
fn a_plain_spoke_that_is_let_in_ahead_of_the_tip_follows_it_and_goes_on_behind_its_floor() {
    let log = SharedLog::new(LogConfig::default());
    let plain = |floor| Desk::new(Protocol::Compat, 1, 0, Behind::Skip).with_floor(floor);
    let mut mailbox = mailbox();
    let mut next = |desk: &mut Desk| {
        let mut chunks = Vec::new();
        let batch = desk.next_batch(&mut mailbox, &log, true, &mut Vec::new(), &mut chunks);
        (batch.unwrap(), chunks.len())
    };
    let mut desk = plain(3);
    let all = |cursor| Batch::Frames {
        cursor: Some(cursor),
        cost: 0,
        all: true,
    };
    for n in 0..3 {
        assert_eq!(next(&mut desk), (Batch::Idle { follows_tip: true }, 0));
        log.append(event(n)).unwrap();
        assert_eq!(next(&mut desk), (all(n + 1), 0));
    }
    assert_eq!(next(&mut desk), (Batch::Idle { follows_tip: true }, 0));
    log.append(event(3)).unwrap();
    assert_eq!(next(&mut desk), (all(4), 1));
    // And when some of both is there at once.
    assert_eq!(next(&mut plain(2)), (all(4), 2));
}

#[test]
fn who_keeps_up_makes_no_run() {
    let log = SharedLog::new(LogConfig::default());
    let (mut mailbox, mut desk) = (mailbox(), desk(Behind::Skip, 0));
    for n in 0..200 {
        log.append(event(n)).unwrap();
        let words = next(&mut desk, &mut mailbox, &log).unwrap();
        assert_eq!(words, [n.to_string()]);
    }
}

#[test]
fn a_batch_is_bounded_and_goes_on_over_large_events_between_small_ones() {
    let log = SharedLog::new(LogConfig::default());
    let sizes = (0..2000).map(|n| match n % 50 {
        7 => 5_000,
        9 => 300_000,
        _ => 1_500 * (n / 300 % 2) + 10,
    });
    for size in sizes.clone() {
        let payload = format!("\"{}\"", "x".repeat(size));
        log.append(Envelope::from_json("n", "", &payload).unwrap())
            .unwrap();
    }
    let (mut mailbox, mut desk) = (mailbox(), desk(Behind::Skip, 3));
    let mut deframer = Deframer::new(MAX_FRAME);
    let (mut expected, mut batches) = (3, 0);
    let mut assembly = Assembly::default();
    loop {
        let mut chunks = Vec::new();
        let batch = desk.next_batch(&mut mailbox, &log, true, &mut Vec::new(), &mut chunks);
        let Batch::Frames { all, .. } = batch.unwrap() else {
            break;
        };
        batches += 1;
        assert!(bytes_of(&chunks) <= (BATCH_BYTES + MAX_FRAME) as u64);
        deframer.push(Bytes::from(chunks.concat()));
        while let Some(frame) = deframer.next().unwrap() {
            let bodies = match ToSpoke::decode(frame).unwrap().unwrap() {
                ToSpoke::Event { offset, of, body } => {
                    assert_eq!(offset, expected);
                    let whole = assembly.push(offset, of, body, usize::MAX).unwrap();
                    whole.into_iter().collect()
                }
                ToSpoke::Events { first, bodies } => {
                    assert_eq!(first, expected);
                    bodies
                }
                frame => panic!("{frame:?}"),
            };
            for body in bodies {
                assert_eq!(&body, log_body(&log, expected).envelope.body());
                expected += 1;
            }
        }
        assert!(!all || expected == 2000, "there was more");
    }
    assert_eq!(expected, 2000);
    // A large event takes one to begin and two to send; what lies between is not cut short.
    assert!(batches < 40 * 5, "{batches}");
}

fn log_body(log: &SharedLog, offset: u64) -> Arc<Entry> {
    let mut entries = Vec::new();
    assert_eq!(log.read(offset, 1, 0, &mut entries), Read::Events);
    entries.remove(0).1
}

#[test]
fn a_large_event_of_which_some_parts_are_written_is_begun_anew_where_the_spoke_asks_for_it() {
    let log = SharedLog::new(LogConfig::default());
    let payload = format!("\"{}\"", "x".repeat(4 * BATCH_BYTES));
    for _ in 0..2 {
        log.append(Envelope::from_json("n", "", &payload).unwrap())
            .unwrap();
    }
    let mut mailbox = mailbox();
    let parts = |desk: &mut Desk, mailbox: &mut Mailbox| -> Vec<(u64, u16)> {
        let mut chunks = Vec::new();
        desk.next_batch(mailbox, &log, true, &mut Vec::new(), &mut chunks)
            .unwrap();
        let mut deframer = Deframer::new(MAX_FRAME);
        deframer.push(Bytes::from(chunks.concat()));
        let mut parts = Vec::new();
        while let Some(frame) = deframer.next().unwrap() {
            if let ToSpoke::Event { offset, of, .. } = ToSpoke::decode(frame).unwrap().unwrap() {
                parts.push((offset, of.part));
            }
        }
        parts
    };
    let mut desk = desk(Behind::Skip, 0);
    assert_eq!(parts(&mut desk, &mut mailbox)[0], (0, 0));
    assert_eq!(parts(&mut desk, &mut mailbox)[0], (0, 4), "it goes on");
    // The topic brought it meanwhile.
    desk.serve_from(1);
    assert_eq!(parts(&mut desk, &mut mailbox)[0], (1, 0));
    // The topic serves the spoke, and no longer.
    desk.park();
    assert!(parts(&mut desk, &mut mailbox).is_empty());
    desk.unpark(1);
    assert_eq!(parts(&mut desk, &mut mailbox)[0], (1, 0));
}

#[derive(Clone, Debug)]
enum Op {
    Broadcast(u8),
    Send {
        overtake: bool,
    },
    Want(u64, u64),
    Park,
    /// Starts again so many events before the tip.
    Unpark(u64),
    Serve(u64),
    Ack(u64),
    Topic(bool),
    /// So many batches are written, and repairs are paid for or not.
    Write(u8, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let offset = || prop_oneof![8 => 0..60u64, 1 => any::<u64>()];
    prop_oneof![
        6 => (1..9u8).prop_map(Op::Broadcast),
        2 => any::<bool>().prop_map(|overtake| Op::Send { overtake }),
        4 => (offset(), offset()).prop_map(|(from, to)| Op::Want(from, to)),
        2 => Just(Op::Park),
        2 => (0..30u64).prop_map(Op::Unpark),
        2 => (0..60u64).prop_map(Op::Serve),
        1 => any::<u64>().prop_map(Op::Ack),
        1 => any::<bool>().prop_map(Op::Topic),
        6 => (1..4u8, any::<bool>()).prop_map(|(n, paid)| Op::Write(n, paid)),
    ]
}

fn topic() -> Box<Topic> {
    Box::new(Topic {
        topic: [5; 32],
        keys: GenerationKeys {
            generation: 0,
            key: [1; 32],
            verify_key: [2; 32],
        },
        peers: Vec::new(),
        max_frame_bytes: 1 << 17,
        members: 1,
    })
}

crate::fuzz::machine! {
    fn the_cursor_passes_over_nothing_whatever_a_spoke_wants(
        ops in prop::collection::vec(op(), 1..100), kept in prop_oneof![Just(16usize), Just(100)]
    ) {
        let log = SharedLog::new(LogConfig::default().with_max_events(kept));
        // Some are too large for a run.
        let event = |n: u64| match n % 43 {
            11 => Envelope::new("n", &"x".repeat(5000)).unwrap(),
            _ => event(n),
        };
        let mut mailbox = mailbox();
        let mut desk = desk(Behind::Skip, 0);
        let mut cursor = Some(0);
        let mut wanted: Vec<(u64, u64)> = Vec::new();
        let mut sent = 0;
        let mut was_all = false;
        let rest = [Op::Unpark(0), Op::Write(100, true)];
        for op in ops.into_iter().chain(rest) {
            let tip = log.tip();
            match op {
                Op::Broadcast(n) => for n in 0..u64::from(n) {
                    log.append(event(tip + n)).unwrap();
                },
                Op::Send { overtake } => {
                    sent += u64::from(mailbox.push(&event(sent), log.appended(), overtake).is_ok());
                }
                Op::Want(from, to) => {
                    desk.repair(from, to);
                    wanted.push((from, to));
                }
                Op::Park => {
                    desk.park();
                    cursor = None;
                }
                Op::Unpark(back) => {
                    let acked = tip.saturating_sub(back);
                    desk.unpark(acked);
                    cursor.get_or_insert(acked);
                }
                Op::Serve(from) => {
                    desk.serve_from(from);
                    cursor = cursor.max(Some(from));
                }
                Op::Ack(seq) => desk.acknowledge(seq),
                Op::Topic(true) => desk.order_topic(TopicOrder::Join(topic())),
                Op::Topic(false) => desk.order_topic(TopicOrder::Leave),
                Op::Write(batches, paid) => for turn in 0..batches {
                    let mut chunks = Vec::new();
                    let batch = desk.next_batch(&mut mailbox, &log, paid, &mut Vec::new(), &mut chunks);
                    prop_assert!(batch.is_ok());
                    if turn > 0 && was_all {
                        prop_assert_eq!(batch.as_ref().ok(), Some(&Batch::Idle { follows_tip: true }));
                    }
                    was_all = matches!(batch, Ok(Batch::Frames { all: true, .. }));
                    let mut deframer = Deframer::new(MAX_FRAME);
                    deframer.push(Bytes::from(chunks.concat()));
                    while let Some(frame) = deframer.next().unwrap() {
                        match ToSpoke::decode(frame).unwrap().unwrap() {
                            ToSpoke::Event { offset, body, .. } => {
                                prop_assert_eq!(Some(offset), cursor);
                                prop_assert_eq!(body, event(offset).body().clone());
                                cursor = Some(offset + 1);
                            }
                            ToSpoke::Events { first, bodies } => for (offset, body) in (first..).zip(bodies) {
                                prop_assert_eq!(Some(offset), cursor);
                                prop_assert_eq!(body, event(offset).body().clone());
                                cursor = Some(offset + 1);
                            }
                            ToSpoke::Repair { offset, body, .. } => {
                                prop_assert!(wanted.iter().any(|(from, to)| (*from..*to).contains(&offset))
                                    || wanted.len() > 1, "{} was not wanted", offset);
                                prop_assert_eq!(body, event(offset).body().clone());
                            }
                            ToSpoke::Missed { from, to } => {
                                prop_assert!(from < to && to <= log.head(), "the log has it");
                                // Of a repair, or of the cursor: the spoke cannot tell, and need not.
                                if cursor >= Some(from) && desk.cursor >= Some(to) {
                                    cursor = cursor.max(Some(to));
                                }
                            }
                            ToSpoke::Targeted { after, .. } => {
                                prop_assert!(cursor.is_none_or(|cursor| after.offset <= cursor));
                            }
                            _ => {}
                        }
                    }
                },
            }
            prop_assert_eq!(desk.cursor, cursor);
            prop_assert!(desk.repairs.len() <= MAX_REPAIRS);
        }
        prop_assert!(cursor >= Some(log.tip()), "it gets to the end");
    }
}

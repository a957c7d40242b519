//! A reception against a model of a hub: links break, logs are trimmed and begin anew, the topic carries
//! some of it, and listeners take what they take.

use std::collections::VecDeque;

use iroh::SecretKey;
use proptest::prelude::*;

use super::*;
use crate::wire::native::{GenerationKeys, MAX_PART, SessionId};

const PART: PartOf = PartOf::WHOLE;

fn reception(start: Start) -> (Reception, Instant) {
    let now = Instant::now();
    let config = ReceptionConfig {
        hub: SecretKey::from_bytes(&[1; 32]).public(),
        start,
        gossip: true,
        max_event_bytes: MAX_PART,
        max_buffered_bytes: 1 << 20,
        seed: 7,
    };
    (Reception::new(config, Arc::default(), now), now)
}

fn at(epoch: u64, offset: u64) -> Position {
    Position::new(Epoch::from_u64(epoch), offset)
}

fn welcome(session: u8, start: Position, tip: u64, continues: bool) -> Welcome {
    Welcome {
        version: VERSION,
        features: 0,
        session: SessionId([session; 16]),
        published: 0,
        epoch: start.epoch,
        tip,
        start: start.offset,
        continues,
        max_event_bytes: 1 << 20,
        ack_every_ms: 0,
        publish_window: 1 << 20,
    }
}

fn body(value: &impl serde::Serialize) -> Bytes {
    Envelope::new("t", value).unwrap().body().clone()
}

fn event(offset: u64) -> ToSpoke {
    let body = body(&offset);
    ToSpoke::Event {
        offset,
        of: PART,
        body,
    }
}

fn targeted(seq: u64, after: Position) -> ToSpoke {
    let body = body(&seq);
    ToSpoke::Targeted {
        seq,
        after,
        of: PART,
        body,
    }
}

fn topic(id: u8) -> ToSpoke {
    ToSpoke::Topic(Box::new(Topic {
        topic: [id; 32],
        keys: GenerationKeys {
            generation: 0,
            key: [0; 32],
            verify_key: [0; 32],
        },
        peers: Vec::new(),
        max_frame_bytes: 1 << 16,
        members: 1,
    }))
}

fn lost() -> Closed {
    Closed::Lost {
        reason: "a test".to_owned(),
    }
}

fn lose(reception: &mut Reception, now: Instant) {
    reception.lost(now, &lost(), 1, Duration::ZERO);
}

/// What listeners get, shortened: offsets of broadcasts, numbers of targeted events, holes, statuses.
#[derive(PartialEq, Debug)]
enum Heard {
    Event(u64),
    Targeted(u64),
    Missed(Position, Position),
    Connected,
    Reconnecting,
    Recovered(bool),
    Closed,
}

fn heard(reception: &mut Reception, now: Instant) -> Vec<Heard> {
    let mut all = Vec::new();
    while let Some(item) = reception.poll_delivery(now) {
        all.push(match item {
            Incoming::Event(event) if event.targeted => {
                Heard::Targeted(event.envelope.payload().unwrap())
            }
            Incoming::Event(event) => Heard::Event(event.position.unwrap().offset),
            Incoming::Missed(missed) => Heard::Missed(missed.from, missed.to),
            Incoming::Status(SpokeStatus::Connected { .. }) => Heard::Connected,
            Incoming::Status(SpokeStatus::Reconnecting { .. }) => Heard::Reconnecting,
            Incoming::Status(SpokeStatus::Recovered { wholly }) => Heard::Recovered(wholly),
            Incoming::Status(SpokeStatus::Closed(_)) => Heard::Closed,
            other => panic!("{other:?}"),
        });
    }
    all
}

fn orders(reception: &mut Reception, now: Instant) -> Vec<Order> {
    std::iter::from_fn(|| reception.poll_order(now)).collect()
}

/// A reception that was welcomed at the tip 0 of epoch 1, in session 1.
fn linked() -> (Reception, Instant) {
    let (mut reception, now) = reception(Start::Tip);
    assert_eq!(reception.hello().start, Start::Tip);
    let resumed = reception.welcomed(now, &welcome(1, at(1, 0), 0, true));
    assert!(!resumed.unwrap());
    assert_eq!(heard(&mut reception, now), [Heard::Connected]);
    orders(&mut reception, now);
    (reception, now)
}

fn take(reception: &mut Reception, now: Instant, frames: impl IntoIterator<Item = ToSpoke>) {
    for frame in frames {
        reception.frame(now, frame).unwrap();
    }
}

#[test]
fn a_new_link_goes_on_where_the_inbox_stands() {
    let (mut reception, now) = linked();
    take(&mut reception, now, [event(0), event(1)]);
    assert_eq!(
        heard(&mut reception, now),
        [Heard::Event(0), Heard::Event(1)]
    );
    lose(&mut reception, now);
    let hello = reception.hello();
    assert_eq!(hello.start, Start::At(at(1, 2)));
    assert_eq!(hello.session, Some(SessionId([1; 16])));
    let resumed = reception.welcomed(now, &welcome(1, at(1, 2), 4, true));
    assert!(resumed.unwrap());
    take(&mut reception, now, [event(2), event(3), event(4)]);
    assert_eq!(
        heard(&mut reception, now),
        [
            Heard::Reconnecting,
            Heard::Connected,
            Heard::Event(2),
            Heard::Event(3),
            Heard::Recovered(true),
            Heard::Event(4)
        ]
    );
}

#[test]
fn a_frame_of_several_events_is_taken_as_each_of_them_would_be() {
    let (mut reception, now) = linked();
    take(&mut reception, now, [event(0), event(1)]);
    let mut bodies: Vec<Bytes> = (1..6u64).map(|n| body(&n)).collect();
    bodies[2] = Bytes::from(vec![b'x'; MAX_PART + 1]);
    take(&mut reception, now, [ToSpoke::Events { first: 1, bodies }]);
    let expected = [
        Heard::Event(0),
        Heard::Event(1),
        Heard::Event(2),
        Heard::Missed(at(1, 3), at(1, 4)),
        Heard::Event(4),
        Heard::Event(5),
    ];
    assert_eq!(heard(&mut reception, now), expected);
    let missed = Order::Write(ToHub::Missed { from: 3, to: 4 });
    assert!(orders(&mut reception, now).contains(&missed));
    // The last offsets that there are.
    let (first, bodies) = (u64::MAX - 1, vec![body(&0)]);
    take(&mut reception, now, [ToSpoke::Events { first, bodies }]);
    assert_eq!(heard(&mut reception, now), []);
}

#[test]
fn while_listeners_take_nothing_there_is_room_for_a_whole_frame_of_events_or_none_is_read() {
    let (mut reception, now) = linked();
    let mut next = 0;
    while reception.has_room() {
        let bodies = (0..run::MAX_EVENTS as u64).map(|n| body(&(next + n)));
        let bodies = bodies.collect();
        take(
            &mut reception,
            now,
            [ToSpoke::Events {
                first: next,
                bodies,
            }],
        );
        next += run::MAX_EVENTS as u64;
    }
    assert!(next > 500);
    let all: Vec<_> = (0..next).map(Heard::Event).collect();
    assert_eq!(heard(&mut reception, now), all, "none was dropped");
}

#[test]
fn a_log_that_began_anew_is_a_hole_behind_what_is_here() {
    let (mut reception, now) = linked();
    take(&mut reception, now, [event(0), event(1), event(3)]);
    lose(&mut reception, now);
    reception.hello();
    let welcome = welcome(2, at(2, 5), 6, false);
    assert!(!reception.welcomed(now, &welcome).unwrap());
    take(&mut reception, now, [event(5)]);
    assert_eq!(
        heard(&mut reception, now),
        [
            Heard::Reconnecting,
            Heard::Event(0),
            Heard::Event(1),
            Heard::Missed(at(1, 2), at(2, 5)),
            Heard::Connected,
            Heard::Event(5),
            Heard::Recovered(false)
        ]
    );
    assert_eq!(reception.position(), Some(at(2, 6)));
    assert_eq!(reception.metrics.positions_lost.get(), 1);
}

#[test]
fn an_epoch_that_continues_the_one_before_is_no_hole() {
    let (mut reception, now) = linked();
    // Event 1 is here, and may be another one in the new epoch: it is not taken from the old one.
    take(&mut reception, now, [event(0)]);
    assert_eq!(heard(&mut reception, now), [Heard::Event(0)]);
    lose(&mut reception, now);
    reception.hello();
    reception
        .welcomed(now, &welcome(2, at(2, 1), 2, true))
        .unwrap();
    take(&mut reception, now, [event(1)]);
    assert_eq!(
        heard(&mut reception, now),
        [
            Heard::Reconnecting,
            Heard::Connected,
            Heard::Event(1),
            Heard::Recovered(true)
        ]
    );
    assert_eq!(reception.position(), Some(at(2, 2)));
}

#[test]
fn nothing_is_let_out_between_the_hello_and_its_answer() {
    let (mut reception, now) = linked();
    take(&mut reception, now, [topic(3)]);
    lose(&mut reception, now);
    heard(&mut reception, now);
    assert_eq!(reception.hello().start, Start::At(at(1, 0)));
    let events = |first| Opened::Events {
        first,
        bodies: vec![body(&0)],
    };
    reception.opened(now, events(0));
    assert_eq!(heard(&mut reception, now), []);
    reception
        .welcomed(now, &welcome(1, at(1, 0), 1, true))
        .unwrap();
    assert_eq!(
        heard(&mut reception, now),
        [Heard::Connected, Heard::Event(0), Heard::Recovered(true)]
    );
}

#[test]
fn a_welcome_that_does_not_answer_the_hello_is_refused() {
    for (start, tip) in [(at(1, 1), 9), (at(2, 4), 9), (at(1, 0), 9)] {
        let (mut reception, now) = linked();
        take(&mut reception, now, (0..3).map(event));
        heard(&mut reception, now);
        lose(&mut reception, now);
        reception.hello();
        let answer = reception.welcomed(now, &welcome(1, start, tip, true));
        assert!(matches!(answer, Err(LinkError::Misbehaved { .. })));
        assert_eq!(reception.position(), Some(at(1, 3)), "nothing is changed");
    }
    let (mut reception, now) = reception(Start::Earliest);
    reception.hello();
    let answer = reception.welcomed(now, &welcome(1, at(1, 5), 4, true));
    assert!(matches!(answer, Err(LinkError::Misbehaved { .. })));
}

#[test]
fn a_saved_position_that_the_hub_cannot_go_on_from_is_a_hole() {
    let (mut first, now) = reception(Start::At(at(1, 7)));
    assert_eq!(first.hello().start, Start::At(at(1, 7)));
    first
        .welcomed(now, &welcome(1, at(2, 0), 1, false))
        .unwrap();
    take(&mut first, now, [event(0)]);
    assert_eq!(
        heard(&mut first, now),
        [
            Heard::Missed(at(1, 7), at(2, 0)),
            Heard::Connected,
            Heard::Event(0),
            Heard::Recovered(false)
        ]
    );
    let (mut second, now) = reception(Start::At(at(1, 7)));
    second.hello();
    second
        .welcomed(now, &welcome(1, at(1, 7), 7, true))
        .unwrap();
    assert_eq!(
        heard(&mut second, now),
        [Heard::Connected, Heard::Recovered(true)]
    );
}

#[test]
fn a_spoke_that_was_never_welcomed_has_nothing_to_recover() {
    let (mut reception, now) = reception(Start::Tip);
    for _ in 0..3 {
        assert_eq!(reception.hello().start, Start::Tip);
        lose(&mut reception, now);
    }
    reception.hello();
    reception
        .welcomed(now, &welcome(1, at(1, 9), 9, true))
        .unwrap();
    let expected = [
        Heard::Reconnecting,
        Heard::Reconnecting,
        Heard::Reconnecting,
        Heard::Connected,
    ];
    assert_eq!(heard(&mut reception, now), expected);
}

#[test]
fn targeted_events_that_are_sent_again_are_taken_once() {
    let (mut reception, now) = linked();
    let after = at(1, 0);
    take(
        &mut reception,
        now,
        [targeted(1, after), targeted(2, at(1, 5))],
    );
    assert_eq!(heard(&mut reception, now), [Heard::Targeted(1)]);
    lose(&mut reception, now);
    assert_eq!(reception.hello().targeted, 2);
    reception
        .welcomed(now, &welcome(1, at(1, 0), 0, true))
        .unwrap();
    heard(&mut reception, now);
    let told = orders(&mut reception, now);
    let ack = Order::Write(ToHub::Ack { offset: 0, seq: 1 });
    assert!(
        told.contains(&ack),
        "the hub may not have heard it: {told:?}"
    );
    take(&mut reception, now, [targeted(2, at(1, 5))]);
    take(&mut reception, now, [targeted(3, at(1, 5))]);
    assert_eq!(heard(&mut reception, now), []);
    take(&mut reception, now, (0..5).map(event));
    let all = heard(&mut reception, now);
    assert_eq!(all[5..], [Heard::Targeted(2), Heard::Targeted(3)]);
    let gap = reception.frame(now, targeted(5, after));
    assert!(matches!(gap, Err(LinkError::Misbehaved { .. })));
}

#[test]
fn an_event_that_need_not_wait_passes_those_that_do_and_is_acknowledged_in_its_turn() {
    let (mut reception, now) = linked();
    take(
        &mut reception,
        now,
        [targeted(1, at(1, 1)), targeted(2, at(1, 0))],
    );
    assert_eq!(heard(&mut reception, now), [Heard::Targeted(2)]);
    assert_eq!(reception.released(), (0, 0), "cumulative");
    take(&mut reception, now, [event(0), targeted(3, at(1, 1))]);
    let all = [Heard::Event(0), Heard::Targeted(1), Heard::Targeted(3)];
    assert_eq!(heard(&mut reception, now), all);
    assert_eq!(reception.released(), (1, 3));
}

#[test]
fn what_waits_of_an_old_session_is_not_acknowledged_in_the_new_one() {
    let (mut reception, now) = linked();
    take(
        &mut reception,
        now,
        [targeted(1, at(1, 1)), targeted(2, at(1, 1))],
    );
    lose(&mut reception, now);
    reception.hello();
    reception
        .welcomed(now, &welcome(2, at(1, 0), 1, true))
        .unwrap();
    orders(&mut reception, now);
    take(&mut reception, now, [targeted(1, at(1, 1)), event(0)]);
    let all = heard(&mut reception, now);
    let [.., first, second, third] = &all[..] else {
        panic!("{all:?}")
    };
    assert_eq!([first, second], [&Heard::Targeted(1), &Heard::Targeted(2)]);
    assert_eq!(third, &Heard::Targeted(1));
    let told = orders(&mut reception, now);
    let ack = Order::Write(ToHub::Ack { offset: 1, seq: 1 });
    assert!(told.contains(&ack), "{told:?}");
}

#[test]
fn more_targeted_events_than_are_held_cost_the_link_and_nothing_else() {
    let (mut reception, now) = linked();
    let mut seq = 0;
    let error = loop {
        seq += 1;
        if let Err(error) = reception.frame(now, targeted(seq, at(1, 1))) {
            break error;
        }
    };
    assert!(matches!(error, LinkError::TooMany { .. }));
    lose(&mut reception, now);
    assert_eq!(reception.hello().targeted, seq - 1);
}

#[test]
fn a_targeted_event_over_the_limit_is_refused_and_the_next_one_taken() {
    let (mut reception, now) = linked();
    let part = |seq, part, parts| ToSpoke::Targeted {
        seq,
        after: at(1, 0),
        of: PartOf { part, parts },
        body: Bytes::from(vec![b'x'; MAX_PART]),
    };
    // Cut off in the middle, it comes again from its first part.
    take(&mut reception, now, [part(1, 0, 4), part(1, 1, 4)]);
    let refused = Order::Write(ToHub::Refused { seq: 1 });
    assert!(!orders(&mut reception, now).contains(&refused));
    for (session, again) in [(1, false), (1, true), (2, false)] {
        lose(&mut reception, now);
        assert_eq!(reception.hello().targeted, u64::from(again || session == 2));
        let welcome = welcome(session, at(1, 0), 0, true);
        reception.welcomed(now, &welcome).unwrap();
        let told = orders(&mut reception, now);
        assert_eq!(told.contains(&refused), again, "said again in its session");
        if session == 1 && !again {
            take(&mut reception, now, (0..4).map(|n| part(1, n, 4)));
            let told = orders(&mut reception, now);
            let ack = Order::Write(ToHub::Ack { offset: 0, seq: 1 });
            let place = |order| told.iter().position(|told| *told == order);
            assert!(place(refused.clone()) < place(ack), "{told:?}");
        }
    }
    heard(&mut reception, now);
    take(&mut reception, now, [targeted(1, at(1, 0))]);
    assert_eq!(heard(&mut reception, now), [Heard::Targeted(1)]);
}

#[test]
fn what_was_given_up_is_said_again_on_every_new_link() {
    let (mut reception, now) = linked();
    let part = |part| ToSpoke::Event {
        offset: 0,
        of: PartOf { part, parts: 3 },
        body: Bytes::from(vec![b'x'; MAX_PART]),
    };
    let _ = reception.frame(now, part(0));
    let _ = reception.frame(now, part(1));
    let given_up = Order::Write(ToHub::Missed { from: 0, to: 1 });
    assert!(orders(&mut reception, now).contains(&given_up));
    let hole = Heard::Missed(at(1, 0), at(1, 1));
    assert_eq!(heard(&mut reception, now), [hole]);
    for session in [1, 2] {
        lose(&mut reception, now);
        reception.hello();
        let welcome = welcome(session, at(1, 1), 1, true);
        reception.welcomed(now, &welcome).unwrap();
        assert!(orders(&mut reception, now).contains(&given_up));
    }
}

#[test]
fn the_topic_is_kept_while_it_speaks_and_left_when_it_is_silent() {
    let (mut reception, mut now) = linked();
    let beacon = |tip| Opened::Beacon { tip };
    take(&mut reception, now, [topic(3)]);
    for _ in 0..2 {
        reception.opened(now, beacon(0));
    }
    assert!(reception.is_served());
    let join = |order: &Order| matches!(order, Order::Join { .. });
    let all = orders(&mut reception, now);
    assert!(all.iter().any(join), "{all:?}");
    lose(&mut reception, now);
    assert!(!reception.is_served());
    for _ in 0..10 {
        now += Duration::from_secs(4);
        reception.opened(now, beacon(0));
        reception.tick(now);
    }
    assert!(!orders(&mut reception, now).contains(&Order::Leave));
    // The hub is back, and tells of the same topic.
    reception.hello();
    reception
        .welcomed(now, &welcome(1, at(1, 0), 0, true))
        .unwrap();
    reception.opened(now, beacon(0));
    take(&mut reception, now, [topic(3)]);
    assert!(!reception.is_served(), "it has to show it again");
    reception.opened(now, beacon(0));
    assert!(reception.is_served());
    let all = orders(&mut reception, now);
    assert!(!all.iter().any(join), "{all:?}");
    // It is gone for good.
    lose(&mut reception, now);
    now = reception.deadline(false).unwrap();
    reception.tick(now);
    assert!(orders(&mut reception, now).contains(&Order::Leave));
    assert_eq!(reception.deadline(false), None);
}

#[test]
fn a_spoke_that_is_told_of_its_topic_again_is_served_directly_until_the_topic_shows_anew() {
    let (mut reception, now) = linked();
    let beacon = || Opened::Beacon { tip: 0 };
    let served = |order: &Order| matches!(order, Order::Write(ToHub::Served { .. }));
    take(&mut reception, now, [topic(3)]);
    reception.opened(now, beacon());
    reception.opened(now, beacon());
    assert!(orders(&mut reception, now).iter().any(served));
    // The hub does not see that the topic reaches it.
    take(&mut reception, now, [topic(3)]);
    assert!(!reception.is_served());
    let all = orders(&mut reception, now);
    let want = ToHub::Want { from: 0, to: None };
    assert!(matches!(all[0], Order::Rekey(_)) && matches!(all[1], Order::Meet { .. }));
    assert_eq!(all[2..], [Order::Write(want)]);
    // Told once more it has nothing to add.
    take(&mut reception, now, [topic(3)]);
    assert_eq!(orders(&mut reception, now).len(), 2);
    reception.opened(now, beacon());
    assert!(!reception.is_served());
    reception.opened(now, beacon());
    assert!(orders(&mut reception, now).iter().any(served) && reception.is_served());
}

#[test]
fn what_may_still_arrive_on_a_topic_of_that_size_is_not_wanted() {
    let (mut reception, now) = linked();
    // As it joins, and when it is told of the same one that has grown or shrunk.
    for members in [1, 1000, 20, 1 << 30] {
        let ToSpoke::Topic(mut told) = topic(3) else {
            unreachable!()
        };
        told.members = members;
        take(&mut reception, now, [ToSpoke::Topic(told)]);
        let inbox = reception.inbox.as_mut().unwrap();
        inbox.begin_epoch(now, inbox.epoch(), 0, 0);
        for tip in [0, 0, 1] {
            reception.opened(now, Opened::Beacon { tip });
        }
        assert!(reception.is_served());
        let inbox = reception.inbox.as_mut().unwrap();
        let wait = inbox.deadline().expect("it lacks something") - now;
        let arrives = arrives_within(members as usize);
        assert!(wait >= arrives && wait <= arrives + WANT_JITTER, "{wait:?}");
    }
}

#[test]
fn a_topic_of_another_epoch_or_id_is_left() {
    for (epoch, id) in [(2, None), (1, Some(4))] {
        let (mut reception, now) = linked();
        take(&mut reception, now, [topic(3)]);
        orders(&mut reception, now);
        lose(&mut reception, now);
        reception.hello();
        let welcome = welcome(1, at(epoch, 0), 0, epoch == 1);
        reception.welcomed(now, &welcome).unwrap();
        take(&mut reception, now, id.map(topic));
        let all = orders(&mut reception, now);
        assert!(all.contains(&Order::Leave), "{all:?}");
        let joins = all
            .iter()
            .filter(|order| matches!(order, Order::Join { .. }));
        assert_eq!(joins.count(), usize::from(id.is_some()));
    }
}

#[test]
fn statuses_that_nobody_takes_are_bounded() {
    let (mut reception, now) = linked();
    for session in 0..10_000u32 {
        lose(&mut reception, now);
        reception.hello();
        let start = at(u64::from(session) + 10, 0);
        reception
            .welcomed(now, &welcome(1, start, 0, false))
            .unwrap();
        orders(&mut reception, now);
    }
    assert!(reception.ready.len() < 2 * MAX_STATUSES);
    let all = heard(&mut reception, now);
    let holes: Vec<_> = all
        .iter()
        .filter(|item| matches!(item, Heard::Missed(..)))
        .collect();
    assert_eq!(holes, [&Heard::Missed(at(1, 0), at(10_009, 0))]);
}

/// A hub, as far as a spoke can tell.
#[derive(Debug)]
struct Hub {
    epoch: u64,
    head: u64,
    /// What each offset of this epoch holds: drawn once, so that no two events are alike.
    log: Vec<u64>,
    /// The epoch that this one continues, and up to where.
    previous: Option<(u64, u64)>,
    next_value: u64,
    link: Option<HubLink>,
    session: u8,
    /// Targeted events of the session that the spoke is not known to have.
    targeted: VecDeque<Sent>,
    last_targeted: u64,
}

#[derive(Debug)]
struct HubLink {
    cursor: Option<u64>,
    repairs: VecDeque<(u64, u64)>,
    targeted: VecDeque<Sent>,
}

/// A targeted event: the session's number, its own, and what it waits for unless it overtakes.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
struct Sent {
    session: u8,
    seq: u64,
    after: Position,
    overtakes: bool,
}

impl Hub {
    fn tip(&self) -> u64 {
        self.log.len() as u64
    }

    fn answer(&self, hello: &Hello) -> Welcome {
        let (start, continues) = match hello.start {
            Start::Tip => (self.tip(), true),
            Start::Earliest => (self.head, true),
            Start::At(position) => {
                let old = position.epoch.to_u64();
                let known = if old == self.epoch {
                    position.offset <= self.tip()
                } else {
                    let previous = self.previous;
                    previous.is_some_and(|(epoch, fork)| old == epoch && position.offset <= fork)
                };
                if known {
                    (position.offset, true)
                } else {
                    (self.head, false)
                }
            }
        };
        welcome(self.session, at(self.epoch, start), self.tip(), continues)
    }

    fn frame(&mut self) -> Option<ToSpoke> {
        let (tip, head) = (self.tip(), self.head);
        let link = self.link.as_mut()?;
        let (from, to, repair) = if let Some((from, to)) = link.repairs.pop_front() {
            if from + 1 < to {
                link.repairs.push_front((from + 1, to));
            }
            (from, to, true)
        } else {
            if let Some(sent) = link.targeted.front().copied()
                && (sent.overtakes
                    || sent.after.epoch.to_u64() != self.epoch
                    || link.cursor.is_none_or(|cursor| cursor >= sent.after.offset))
            {
                link.targeted.pop_front();
                let after = match sent.overtakes {
                    true => Position::new(sent.after.epoch, 0),
                    false => sent.after,
                };
                return Some(ToSpoke::Targeted {
                    seq: sent.seq,
                    after,
                    of: PART,
                    body: body(&sent),
                });
            }
            let cursor = link.cursor.filter(|cursor| *cursor < tip)?;
            link.cursor = Some(cursor + 1);
            (cursor, tip, false)
        };
        if from < head {
            let to = if repair {
                head.min(to)
            } else {
                link.cursor = Some(head);
                head
            };
            return Some(ToSpoke::Missed { from, to });
        }
        let body = body(self.log.get(from as usize)?);
        let offset = from;
        Some(if repair {
            ToSpoke::Repair {
                offset,
                of: PART,
                body,
            }
        } else {
            ToSpoke::Event {
                offset,
                of: PART,
                body,
            }
        })
    }
}

/// A hub, a spoke, and what the spoke's listeners may expect.
struct World {
    hub: Hub,
    reception: Reception,
    now: Instant,
    /// What every position ever held.
    history: std::collections::BTreeMap<(u64, u64), u64>,
    /// Which epoch continues which, and up to where.
    forks: Vec<(u64, u64, u64)>,
    position: Option<Position>,
    /// Whether the link was lost and nothing has recovered since, and whether there was a hole since.
    recovers: Option<bool>,
    /// What the last welcome named.
    named: Option<Position>,
    /// The last targeted events, of those that wait and of those that overtake.
    last: [(u8, u64); 2],
    /// How many of the last session there were.
    targeted: (u8, u64),
}

#[derive(Clone, Debug)]
enum Op {
    Broadcast(u8),
    Target { overtakes: bool },
    Frames(u8),
    Gossip { back: u8, count: u8 },
    Listen(u8),
    Cut,
    Connect,
    Restart { keeps: Option<u8>, forgets: bool },
    Trim(u8),
    Wait(u16),
    Topic(u8),
}

impl World {
    fn new(start: Start) -> Self {
        let (reception, now) = reception(start);
        Self {
            hub: Hub {
                epoch: 1,
                head: 0,
                log: Vec::new(),
                previous: None,
                next_value: 0,
                link: None,
                session: 1,
                targeted: VecDeque::new(),
                last_targeted: 0,
            },
            reception,
            now,
            history: Default::default(),
            forks: Vec::new(),
            position: None,
            recovers: matches!(start, Start::At(_)).then_some(false),
            named: None,
            last: [(0, 0); 2],
            targeted: (0, 0),
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Broadcast(count) => {
                for _ in 0..count {
                    let hub = &mut self.hub;
                    hub.next_value += 1;
                    self.history.insert((hub.epoch, hub.tip()), hub.next_value);
                    hub.log.push(hub.next_value);
                }
            }
            Op::Target { overtakes } => {
                let hub = &mut self.hub;
                hub.last_targeted += 1;
                let event = Sent {
                    session: hub.session,
                    seq: hub.last_targeted,
                    after: at(hub.epoch, hub.tip()),
                    overtakes,
                };
                hub.targeted.push_back(event);
                if let Some(link) = &mut hub.link {
                    link.targeted.push_back(event);
                }
            }
            Op::Frames(count) => {
                for _ in 0..count {
                    let Some(frame) = self.hub.frame() else { break };
                    self.reception.frame(self.now, frame).unwrap();
                    self.obey();
                }
            }
            Op::Gossip { back, count } => {
                let hub = &self.hub;
                // A frame of another epoch is not opened.
                let epoch = self.reception.position().map(|at| at.epoch.to_u64());
                if epoch != Some(hub.epoch) {
                    return;
                }
                let first = hub.tip().saturating_sub(back.into()).max(hub.head);
                let bodies: Vec<_> = hub
                    .log
                    .iter()
                    .skip(first as usize)
                    .take(count.into())
                    .map(body)
                    .collect();
                if bodies.is_empty() {
                    let tip = hub.tip();
                    self.reception.opened(self.now, Opened::Beacon { tip });
                } else {
                    let events = Opened::Events { first, bodies };
                    self.reception.opened(self.now, events);
                }
                self.obey();
            }
            Op::Listen(count) => {
                for _ in 0..count {
                    if !self.listen() {
                        break;
                    }
                }
            }
            Op::Cut => self.cut(),
            Op::Connect => self.connect(),
            Op::Restart { keeps, forgets } => self.restart(keeps, forgets),
            Op::Trim(count) => {
                let hub = &mut self.hub;
                hub.head = (hub.head + u64::from(count)).min(hub.tip());
            }
            Op::Wait(ms) => {
                self.now += Duration::from_millis(ms.into());
                self.reception.tick(self.now);
                self.obey();
            }
            Op::Topic(id) => {
                if self.hub.link.is_some() {
                    // A topic belongs to an epoch.
                    let id = id % 2 + 2 * self.hub.epoch as u8;
                    self.reception.frame(self.now, topic(id)).unwrap();
                    self.obey();
                }
            }
        }
    }

    fn cut(&mut self) {
        if self.hub.link.take().is_some() {
            lose(&mut self.reception, self.now);
            self.obey();
        }
    }

    fn connect(&mut self) {
        if self.hub.link.is_some() {
            return;
        }
        let hello = self.reception.hello();
        // Listeners are there all the time; nothing may slip past the hello.
        while self.listen() {}
        let hub = &mut self.hub;
        if hello.session == Some(SessionId([hub.session; 16])) {
            hub.targeted.retain(|sent| sent.seq > hello.targeted);
        } else {
            hub.session += 1;
            hub.targeted.clear();
            hub.last_targeted = 0;
        }
        let welcome = hub.answer(&hello);
        hub.link = Some(HubLink {
            cursor: Some(welcome.start),
            repairs: VecDeque::new(),
            targeted: hub.targeted.clone(),
        });
        if self.position.is_none() && welcome.continues {
            self.position = Some(at(hub.epoch, welcome.start));
        }
        self.named = Some(at(hub.epoch, welcome.tip));
        self.reception.welcomed(self.now, &welcome).unwrap();
        self.obey();
    }

    fn restart(&mut self, keeps: Option<u8>, forgets: bool) {
        self.cut();
        let hub = &mut self.hub;
        let old = hub.epoch;
        hub.epoch += 1;
        match keeps {
            Some(lost) => {
                let fork = hub.tip().saturating_sub(lost.into()).max(hub.head);
                hub.log.truncate(fork as usize);
                hub.previous = Some((old, fork));
                self.forks.push((old, hub.epoch, fork));
                for offset in 0..fork {
                    if let Some(value) = self.history.get(&(old, offset)).copied() {
                        self.history.insert((hub.epoch, offset), value);
                    }
                }
            }
            None => {
                hub.log.clear();
                hub.head = 0;
                hub.previous = None;
            }
        }
        if forgets {
            hub.session += 1;
            hub.targeted.clear();
            hub.last_targeted = 0;
        }
    }

    /// Does what the reception orders, as a link and a topic would.
    fn obey(&mut self) {
        while let Some(order) = self.reception.poll_order(self.now) {
            let (Order::Write(frame), tip) = (order, self.hub.tip()) else {
                continue;
            };
            let head = self.hub.head;
            let link = self
                .hub
                .link
                .as_mut()
                .expect("there is somebody to hear it");
            match frame {
                ToHub::Want { from, to: Some(to) } => {
                    assert!(from < to && to <= tip);
                    link.repairs.push_back((from, to));
                }
                ToHub::Want { from, to: None } => {
                    assert!(from <= tip);
                    link.cursor = Some(link.cursor.map_or(from, |cursor| cursor.min(from)));
                }
                ToHub::Served { from, .. } => {
                    assert!(from <= tip);
                    link.cursor = None;
                }
                ToHub::Ack { offset, seq } => {
                    assert!(offset <= tip.max(head) && seq <= self.hub.last_targeted);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Takes the next item and checks it; says whether there was one.
    fn listen(&mut self) -> bool {
        let Some(item) = self.reception.poll_delivery(self.now) else {
            self.obey();
            return false;
        };
        match item {
            Incoming::Event(event) if event.targeted => {
                let sent: Sent = event.envelope.payload().unwrap();
                // Or a new epoch has begun, which sets it free.
                let now = self.reception.position().expect("a beginning");
                let position = self.position.expect("a beginning");
                assert!(
                    sent.overtakes
                        || now.epoch != sent.after.epoch
                        || position.offset >= sent.after.offset
                );
                let last = &mut self.last[usize::from(sent.overtakes)];
                assert!(*last < (sent.session, sent.seq), "in order, once each");
                *last = (sent.session, sent.seq);
                if self.targeted.0 < sent.session {
                    self.targeted = (sent.session, 0);
                }
                if self.targeted.0 == sent.session {
                    self.targeted.1 += 1;
                }
            }
            Incoming::Event(event) => {
                let position = event.position.unwrap();
                let expected = self.position.expect("a beginning");
                if position.epoch != expected.epoch {
                    assert!(
                        self.continues(expected, position.epoch),
                        "{expected} {position}"
                    );
                }
                assert_eq!(position.offset, expected.offset, "nothing is passed over");
                let value: u64 = event.envelope.payload().unwrap();
                let held = self
                    .history
                    .get(&(position.epoch.to_u64(), position.offset));
                assert_eq!(Some(&value), held);
                self.position = Some(position.next());
            }
            Incoming::Missed(missed) => {
                if let Some(position) = self.position {
                    assert_eq!(missed.from.offset, position.offset);
                    assert!(
                        missed.from.epoch == position.epoch
                            || self.continues(position, missed.from.epoch)
                    );
                }
                self.position = Some(missed.to);
                if let Some(hole) = &mut self.recovers {
                    *hole = true;
                }
            }
            Incoming::Status(SpokeStatus::Recovered { wholly }) => {
                let (position, named) = (self.position.unwrap(), self.named.unwrap());
                assert!(position.offset >= named.offset, "{position} {named}");
                let hole = self.recovers.take().expect("something to recover from");
                assert_eq!(wholly, !hole, "no false claim, and no false modesty");
            }
            Incoming::Status(SpokeStatus::Reconnecting { .. }) => {
                self.recovers.get_or_insert(false);
            }
            Incoming::Status(_) => {}
            other => panic!("{other:?}"),
        }
        self.obey();
        true
    }

    fn continues(&self, from: Position, to: Epoch) -> bool {
        let mut epoch = from.epoch.to_u64();
        while epoch != to.to_u64() {
            let fork = self.forks.iter().find(|(old, ..)| *old == epoch);
            let Some((_, new, fork)) = fork else {
                return false;
            };
            if from.offset > *fork {
                return false;
            }
            epoch = *new;
        }
        true
    }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1..5u8).prop_map(Op::Broadcast),
        3 => any::<bool>().prop_map(|overtakes| Op::Target { overtakes }),
        8 => (1..9u8).prop_map(Op::Frames),
        5 => (0..9u8, 0..5u8).prop_map(|(back, count)| Op::Gossip { back, count }),
        6 => (1..9u8).prop_map(Op::Listen),
        3 => Just(Op::Cut),
        5 => Just(Op::Connect),
        1 => (prop::option::of(0..5u8), any::<bool>())
            .prop_map(|(keeps, forgets)| Op::Restart { keeps, forgets }),
        1 => (1..5u8).prop_map(Op::Trim),
        4 => (1..5000u16).prop_map(Op::Wait),
        3 => any::<u8>().prop_map(Op::Topic),
    ]
}

fn start() -> impl Strategy<Value = Start> {
    prop_oneof![
        Just(Start::Tip),
        Just(Start::Earliest),
        (1..3u64, 0..9u64).prop_map(|(epoch, offset)| Start::At(at(epoch, offset))),
    ]
}

crate::fuzz::machine! {
    #![cases(512)]

    fn every_loss_is_told_and_no_recovery_is_claimed_falsely(
        start in start(),
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut world = World::new(start);
        for op in &ops {
            world.run(op);
        }
        // In the end everything arrives.
        world.cut();
        world.connect();
        for _ in 0..1000 {
            world.run(&Op::Frames(255));
            world.run(&Op::Gossip { back: 0, count: 0 });
            while world.listen() {}
            world.run(&Op::Wait(1000));
            let tip = at(world.hub.epoch, world.hub.tip());
            if world.reception.position() == Some(tip) {
                break;
            }
        }
        let tip = world.hub.tip();
        prop_assert_eq!(world.position.map(|at| at.offset), Some(tip));
        prop_assert_eq!(world.recovers, None);
        let targeted = world.hub.last_targeted;
        prop_assert_eq!(world.reception.targeted.released, targeted);
        if targeted > 0 {
            prop_assert_eq!(world.targeted, (world.hub.session, targeted));
        }
    }
}

//! The checker is checked: a history without fault passes, and one with a fault of any kind does not.

mod checker;

use checker::{Fault, Life, Report, Spoke, check};
use proptest::{prelude::*, sample::Index};
use serde_json::json;

/// A line before it is written.
#[derive(Clone, PartialEq, Debug)]
enum Line {
    Event {
        epoch: usize,
        offset: u64,
        payload: u64,
    },
    Missed {
        from: (usize, u64),
        to: (usize, u64),
    },
    Targeted,
    Lagged(u64),
    Reconnecting,
    Recovered {
        wholly: bool,
    },
    Garbage,
}

fn position((epoch, offset): (usize, u64)) -> serde_json::Value {
    json!({"epoch": format!("{epoch:016x}"), "offset": offset})
}

impl Line {
    fn write(&self, receipt: bool) -> String {
        let line = match *self {
            Self::Event {
                epoch,
                offset,
                payload,
            } => {
                let mut line = json!({"position": position((epoch, offset)), "type": "n", "id": "", "payload": payload});
                if !receipt {
                    line["via"] = json!("direct");
                }
                line
            }
            Self::Missed { from, to } => {
                json!({"missed": {"from": position(from), "to": position(to)}})
            }
            Self::Targeted => {
                json!({"position": null, "type": "t", "id": "", "payload": 0, "via": "direct", "targeted": true})
            }
            Self::Lagged(events) => json!({"lagged": {"events": events}}),
            Self::Reconnecting => json!({"status": "reconnecting", "attempt": 1}),
            Self::Recovered { wholly } => json!({"status": "recovered", "wholly": wholly}),
            Self::Garbage => json!({"positron": 7}),
        };
        format!("{line}\n")
    }
}

#[derive(Clone, Debug)]
struct LifeModel {
    lines: Vec<Line>,
    killed: bool,
    /// Half of a line at its end.
    torn: bool,
}

impl LifeModel {
    fn life(&self, receipt: bool) -> Life {
        let mut text: String = self.lines.iter().map(|line| line.write(receipt)).collect();
        if self.torn {
            text.push_str("{\"position\":{\"epo");
        }
        Life {
            text: text.into(),
            killed: self.killed,
        }
    }
}

#[derive(Clone, Debug)]
struct SpokeModel {
    lives: Vec<LifeModel>,
    begins_at: Option<u64>,
    has_all: bool,
}

#[derive(Clone, Debug)]
struct Model {
    receipts: Vec<LifeModel>,
    spokes: Vec<SpokeModel>,
}

impl Model {
    fn check(&self) -> Report {
        let receipts: Vec<_> = self.receipts.iter().map(|life| life.life(true)).collect();
        let spokes: Vec<_> = self
            .spokes
            .iter()
            .enumerate()
            .map(|(n, model)| {
                let lives = model.lives.iter().map(|life| life.life(false)).collect();
                let mut spoke = Spoke::new(n, lives);
                if let Some(offset) = model.begins_at {
                    spoke = spoke.begins_at(offset);
                }
                if model.has_all {
                    spoke.has_all()
                } else {
                    spoke
                }
            })
            .collect();
        check(&receipts, &spokes)
    }
}

fn kinds(report: &Report) -> Vec<&'static str> {
    report.faults.iter().map(Fault::kind).collect()
}

/// How one epoch follows the one before.
#[derive(Clone, Copy, Debug)]
enum Follows {
    /// The same log, in another life of the hub.
    Continues,
    /// A new epoch, in which the offsets go on.
    Forks,
    /// A new epoch from 0.
    Begins,
}

/// Everything that was broadcast, in order, and whether a receipt was written.
fn broadcasts(lives: &[(Follows, usize, usize)]) -> (Vec<LifeModel>, Vec<Line>) {
    let (mut epoch, mut offset, mut payload) = (0, 0, 0);
    let (mut receipts, mut all) = (Vec::new(), Vec::new());
    for (n, (follows, events, unwritten)) in lives.iter().enumerate() {
        let last = n + 1 == lives.len();
        if n > 0 {
            match follows {
                Follows::Continues => {}
                Follows::Forks => epoch += 1,
                Follows::Begins => (epoch, offset) = (epoch + 1, 0),
            }
        }
        let mut lines = Vec::new();
        for _ in 0..*events {
            // Some events are alike.
            payload += u64::from(offset % 7 != 0);
            lines.push(Line::Event {
                epoch,
                offset,
                payload,
            });
            offset += 1;
        }
        all.extend_from_slice(&lines);
        if !last {
            lines.truncate(events - unwritten);
        }
        receipts.push(LifeModel {
            lines,
            killed: !last,
            torn: !last && *unwritten > 0,
        });
    }
    (receipts, all)
}

fn at(line: &Line) -> (usize, u64) {
    match line {
        Line::Event { epoch, offset, .. } => (*epoch, *offset),
        other => panic!("no event: {other:?}"),
    }
}

/// What a spoke of a good hub prints of `all` from `begin` on: lives of so many events, each killed or not and with
/// a repeat or half a line if it was; and at some places events that it misses.
fn spoke(
    all: &[Line],
    begin: usize,
    lives: &[(usize, bool, bool)],
    misses: &[(Index, usize)],
    has_all: bool,
) -> SpokeModel {
    let rest = &all[begin..];
    let mut lines = Vec::new();
    let mut n = 0;
    let miss_at: Vec<_> = misses
        .iter()
        .map(|(place, size)| (place.index(rest.len().max(1)), *size))
        .collect();
    while n < rest.len() {
        let miss = miss_at.iter().find(|(place, _)| *place == n && n > 0);
        let size = miss.map_or(0, |(_, size)| *size);
        // The end of an epoch is left to those that see it.
        let to = rest.get(n + size).filter(|_| size > 0);
        if let Some(to) = to {
            let (from, to) = (at(&rest[n]), at(to));
            // Missed up to where the other epoch begins for it.
            lines.push(Line::Missed { from, to });
            n += size;
        } else {
            lines.push(rest[n].clone());
            n += 1;
        }
        if n % 11 == 5 {
            lines.push(Line::Targeted);
        }
        if n % 13 == 5 {
            lines.push(Line::Reconnecting);
        }
        if n % 13 == 9 {
            // Since it lost its link first, after it had caught up last.
            let before = lines
                .iter()
                .rposition(|l| matches!(l, Line::Recovered { .. }));
            let since = lines.iter().skip(before.map_or(0, |at| at + 1));
            let mut since = since.skip_while(|l| **l != Line::Reconnecting);
            if since.next().is_some() {
                let missed = since.any(|l| matches!(l, Line::Missed { .. }));
                lines.push(Line::Recovered { wholly: !missed });
            }
        }
    }
    // A spoke that is to have all begins where it says.
    let begins_at = (has_all && begin == 0).then_some(0);
    let mut out = Vec::new();
    let mut left = &lines[..];
    for (take, killed, again) in lives {
        let (now, later) = left.split_at((*take).min(left.len()));
        let mut now = now.to_vec();
        if let Some(LifeModel {
            lines,
            killed: true,
            torn: false,
        }) = out.last()
            && let Some(last @ (Line::Event { .. } | Line::Missed { .. })) = lines.last()
        {
            now.insert(0, last.clone());
        }
        out.push(LifeModel {
            lines: now,
            killed: *killed,
            torn: *killed && !again,
        });
        left = later;
    }
    let last = out.last_mut().expect("a life");
    last.killed = false;
    last.torn = false;
    last.lines.extend_from_slice(left);
    SpokeModel {
        lives: out,
        begins_at,
        has_all,
    }
}

fn models() -> impl Strategy<Value = Model> {
    let follows = prop_oneof![
        3 => Just(Follows::Continues),
        1 => Just(Follows::Forks),
        1 => Just(Follows::Begins),
    ];
    let hub_life = (follows, 4..40usize, 0..4usize);
    let spoke_life = (1..30usize, any::<bool>(), any::<bool>());
    let spoke_parts = (
        any::<Index>(),
        prop::collection::vec(spoke_life, 1..5),
        prop::collection::vec((any::<Index>(), 1..5usize), 0..3),
        any::<bool>(),
    );
    (
        prop::collection::vec(hub_life, 1..5),
        prop::collection::vec(spoke_parts, 1..5),
    )
        .prop_map(|(lives, spokes)| {
            let (receipts, all) = broadcasts(&lives);
            let spokes = spokes
                .iter()
                .map(|(begin, lives, misses, has_all)| {
                    let begin = if *has_all { 0 } else { begin.index(all.len()) };
                    spoke(&all, begin, lives, misses, *has_all)
                })
                .collect();
            Model { receipts, spokes }
        })
}

/// A fault that is put into a history.
#[derive(Clone, Copy, Debug)]
enum Break {
    Lose,
    LoseTail,
    Repeat,
    Swap,
    Alter,
    TwoReceipts,
    Garbage,
    TornInLife,
    MissFalsely,
    LagTooFew,
    RecoverFalsely,
}

const BREAKS: [Break; 11] = [
    Break::Lose,
    Break::LoseTail,
    Break::Repeat,
    Break::Swap,
    Break::Alter,
    Break::TwoReceipts,
    Break::Garbage,
    Break::TornInLife,
    Break::MissFalsely,
    Break::LagTooFew,
    Break::RecoverFalsely,
];

/// Lines of a life that are events of one epoch, with such neighbours, and not what a life before it wrote too.
fn inner(life: &LifeModel) -> Vec<usize> {
    let offset = |n: usize| match life.lines.get(n) {
        Some(Line::Event { epoch, offset, .. }) => Some((*epoch, *offset)),
        _ => None,
    };
    (2..life.lines.len())
        .filter(|n| {
            let next =
                |a, b| matches!((a, b), (Some((e, a)), Some((f, b))) if e == f && a + 1 == b);
            next(offset(n - 2), offset(n - 1))
                && next(offset(n - 1), offset(*n))
                && next(offset(*n), offset(n + 1))
        })
        .collect()
}

/// Breaks the history; `None` if there is no place for that. Gives back the kinds of which one must be reported.
fn break_it(model: &mut Model, how: Break, place: Index) -> Option<&'static [&'static str]> {
    if matches!(how, Break::TwoReceipts) {
        let lives = model.receipts.iter_mut();
        let life = lives.max_by_key(|life| life.lines.len())?;
        let n = place.index(life.lines.len());
        let mut line = life.lines.get(n)?.clone();
        if let Line::Event { payload, .. } = &mut line {
            *payload += 100_000;
        }
        life.lines.insert(n + 1, line);
        return Some(&["two events"]);
    }
    if matches!(how, Break::LoseTail) {
        let spoke = model.spokes.iter_mut().find(|spoke| spoke.has_all)?;
        let life = spoke.lives.last_mut()?;
        let tail = life
            .lines
            .iter()
            .rposition(|line| *line != Line::Targeted)?;
        let lost = life.lines.split_off(tail);
        let ends_with_event = matches!(lost[0], Line::Event { .. });
        return (tail > 0 && ends_with_event).then_some(&["lost"]);
    }
    let mut lives: Vec<_> = model
        .spokes
        .iter_mut()
        .flat_map(|spoke| spoke.lives.iter_mut())
        .filter(|life| !inner(life).is_empty())
        .collect();
    let count = lives.len();
    let life = lives.get_mut(place.index(count.max(1)))?;
    let places = inner(life);
    let n = places[place.index(places.len())];
    let lines = &mut life.lines;
    match how {
        Break::Lose => {
            lines.remove(n);
            Some(&["lost"])
        }
        Break::Repeat => {
            lines.insert(n, lines[n].clone());
            Some(&["repeated"])
        }
        Break::Swap => {
            lines.swap(n, n + 1);
            Some(&["reordered"])
        }
        Break::Alter => {
            if let Line::Event { payload, .. } = &mut lines[n] {
                *payload += 100_000;
            }
            // Without a receipt, it differs from what the others print, if there are others.
            Some(&["altered", "two events", "?"])
        }
        Break::Garbage => {
            lines.insert(n, Line::Garbage);
            Some(&["garbage"])
        }
        Break::TornInLife => {
            lines.truncate(n + 1);
            (life.killed, life.torn) = (false, true);
            Some(&["garbage"])
        }
        Break::MissFalsely => {
            let from = at(&lines[n]);
            let to = (from.0, from.1 + 1);
            lines.insert(n + 1, Line::Missed { from, to });
            Some(&["falsely missed"])
        }
        Break::LagTooFew => {
            lines.drain(n - 1..=n);
            lines.insert(n - 1, Line::Lagged(1));
            Some(&["lost"])
        }
        Break::RecoverFalsely => {
            // The event that stood there is missed now, and yet it says otherwise.
            let from = at(&lines[n]);
            let to = (from.0, from.1 + 1);
            lines[n] = Line::Missed { from, to };
            lines.insert(n + 1, Line::Recovered { wholly: true });
            Some(&["falsely recovered"])
        }
        Break::LoseTail | Break::TwoReceipts => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_history_without_fault_passes(model in models()) {
        let report = model.check();
        prop_assert!(report.faults.is_empty(), "{report}\n{model:?}");
    }

    #[test]
    fn every_kind_of_fault_is_reported(model in models(), place: Index) {
        for how in BREAKS {
            let mut model = model.clone();
            let Some(expected) = break_it(&mut model, how, place) else {
                continue;
            };
            let report = model.check();
            let found = kinds(&report);
            let any = expected.iter().any(|kind| found.contains(kind));
            // An event that has no receipt, and that nobody else prints, is what it is.
            let alone = expected.contains(&"?") && found.is_empty();
            prop_assert!(any || alone, "{how:?}: {report}\n{model:?}");
        }
    }

    #[test]
    fn any_bytes_are_read(text in prop::collection::vec(any::<u8>(), 0..200), killed: bool) {
        let life = Life { text, killed };
        check(std::slice::from_ref(&life), &[Spoke::new("a", vec![life.clone()]).has_all()]);
    }
}

fn event(epoch: usize, offset: u64, payload: u64) -> Line {
    Line::Event {
        epoch,
        offset,
        payload,
    }
}

/// One hub that ended well, and one spoke.
fn model(receipts: Vec<Line>, lives: Vec<LifeModel>) -> Model {
    Model {
        receipts: vec![ended(receipts)],
        spokes: vec![SpokeModel {
            lives,
            begins_at: Some(0),
            has_all: true,
        }],
    }
}

fn ended(lines: Vec<Line>) -> LifeModel {
    LifeModel {
        lines,
        killed: false,
        torn: false,
    }
}

fn killed(lines: Vec<Line>) -> LifeModel {
    LifeModel {
        killed: true,
        ..ended(lines)
    }
}

fn events(epoch: usize, offsets: std::ops::Range<u64>) -> Vec<Line> {
    offsets.map(|n| event(epoch, n, n)).collect()
}

#[test]
fn an_altered_event_is_reported() {
    let mut lines = events(0, 0..5);
    lines[2] = event(0, 2, 99);
    let report = model(events(0, 0..5), vec![ended(lines)]).check();
    assert_eq!(kinds(&report), ["altered"]);
}

#[test]
fn an_offset_that_two_spokes_print_differently_is_reported_without_receipts_too() {
    let spoke = |payload| SpokeModel {
        lives: vec![ended(vec![event(0, 0, 0), event(0, 1, payload)])],
        begins_at: None,
        has_all: false,
    };
    let model = Model {
        receipts: vec![killed(events(0, 0..1))],
        spokes: vec![spoke(1), spoke(2)],
    };
    assert_eq!(kinds(&model.check()), ["two events"]);
}

#[test]
fn an_event_that_no_receipt_names_is_reported_if_no_hub_was_killed() {
    let report = model(events(0, 0..3), vec![ended(events(0, 0..4))]).check();
    assert_eq!(kinds(&report), ["forged"]);
}

#[test]
fn only_one_event_may_be_written_again_and_only_after_a_kill() {
    let lives = |first: LifeModel, second| vec![first, ended(events(0, second))];
    let receipts = || events(0, 0..9);
    let one = model(receipts(), lives(killed(events(0, 0..5)), 4..9)).check();
    assert_eq!((kinds(&one), one.written_again), (vec![], 1));
    assert_eq!(one.events, 9);
    let two = model(receipts(), lives(killed(events(0, 0..5)), 3..9)).check();
    assert_eq!(kinds(&two), ["repeated", "repeated"]);
    let unkilled = model(receipts(), lives(ended(events(0, 0..5)), 4..9)).check();
    assert_eq!(kinds(&unkilled), ["repeated"]);
}

#[test]
fn an_epoch_that_is_left_without_a_word_is_owed() {
    let mut receipts = events(0, 0..5);
    receipts.extend(events(1, 0..5));
    let seen = |old: std::ops::Range<u64>, new: std::ops::Range<u64>| {
        let mut lines = events(0, old);
        lines.extend(events(1, new));
        model(receipts.clone(), vec![ended(lines)]).check()
    };
    assert_eq!(kinds(&seen(0..5, 0..5)), Vec::<&str>::new());
    // Not the last two of the old epoch; their offsets hold the same in the new one, so it had them after all.
    assert_eq!(kinds(&seen(0..3, 0..5)), Vec::<&str>::new());
    assert_eq!(kinds(&seen(0..5, 2..5)), Vec::<&str>::new());
    assert_eq!(kinds(&seen(0..3, 4..5)), ["lost"; 2]);

    let other = |n| event(1, n, 100 + n);
    let mut receipts = events(0, 0..5);
    receipts.extend((0..5).map(other));
    let seen = |lines: Vec<Line>| model(receipts.clone(), vec![ended(lines)]).check();
    let mut lines = events(0, 0..3);
    lines.extend((0..5).map(other));
    assert_eq!(kinds(&seen(lines)), ["lost"]);
    let mut lines = events(0, 0..3);
    lines.push(Line::Missed {
        from: (0, 3),
        to: (1, 2),
    });
    lines.extend((2..5).map(other));
    assert_eq!(kinds(&seen(lines)), Vec::<&str>::new());
}

#[test]
fn an_event_after_it_was_said_to_be_missed_is_reported() {
    let mut lines = events(0, 0..3);
    lines.push(Line::Missed {
        from: (0, 3),
        to: (0, 6),
    });
    lines.push(event(0, 4, 4));
    lines.extend(events(0, 6..9));
    let report = model(events(0, 0..9), vec![ended(lines)]).check();
    assert_eq!(kinds(&report), ["reordered"]);
    assert_eq!(report.missed, 3);
}

#[test]
fn a_spoke_without_positions_is_placed_by_what_it_prints() {
    let plain = |offsets: &[u64]| -> String {
        let line = |n: &u64| json!({"position": null, "type": "n", "id": "", "payload": n, "via": "direct"});
        offsets.iter().map(|n| format!("{}\n", line(n))).collect()
    };
    let receipts: String = events(0, 0..9).iter().map(|l| l.write(true)).collect();
    let found = |offsets: &[u64]| {
        let spoke = Spoke::new("plain", vec![Life::ended(plain(offsets))]);
        let report = check(&[Life::ended(receipts.clone())], &[spoke]);
        kinds(&report).join(" ")
    };
    assert_eq!(found(&[3, 4, 5]), "");
    assert_eq!(found(&[3, 5]), "lost");
    assert_eq!(found(&[3, 4, 4, 5]), "repeated");
    assert_eq!(found(&[3, 99]), "forged");
}

#[test]
fn what_is_missed_between_two_attempts_to_come_back_counts() {
    let told = |between: bool, wholly: bool| {
        let missed = Line::Missed {
            from: (0, 1),
            to: (0, 3),
        };
        let mut lines = events(0, 0..1);
        lines.push(Line::Reconnecting);
        lines.push(missed);
        if between {
            lines.push(Line::Reconnecting);
        }
        lines.push(Line::Recovered { wholly });
        // The next one begins anew.
        lines.push(Line::Reconnecting);
        lines.push(Line::Recovered { wholly: true });
        lines.extend(events(0, 3..5));
        kinds(&model(events(0, 0..5), vec![ended(lines)]).check())
    };
    for between in [false, true] {
        assert_eq!(told(between, true), ["falsely recovered"]);
        assert!(told(between, false).is_empty());
    }
}

//! Spokes come and go, and nothing stays behind: what the hub's process uses, against bare iroh with the same connections.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::roles::{Ask, Crowd, Host, Kind, Usage};

/// How long a host may take to settle.
const SETTLE: Duration = Duration::from_secs(120);
/// For so long iroh keeps a task for who was connected.
const REMEMBERED: Duration = Duration::from_secs(65);

/// Waits until nobody is connected; what is used then, with the least tasks of a few seconds: a hub's topic still tries
/// now and then to connect to who has left.
fn settled(host: &mut Host) -> Usage {
    let begin = Instant::now();
    let mut since = begin;
    let mut least = host.usage();
    while since.elapsed() < Duration::from_secs(3) {
        thread::sleep(Duration::from_millis(250));
        let now = host.usage();
        if now.peers > 0 {
            since = Instant::now();
            least = now;
        }
        let tasks = least.tasks.min(now.tasks);
        least = Usage { tasks, ..now };
        assert!(begin.elapsed() < SETTLE, "it does not settle: {now:?}");
    }
    least
}

/// How much a figure grows with each step, by the least squares; and how far off a point is from that line.
fn slope(figures: &[f64]) -> (f64, f64) {
    let n = figures.len() as f64;
    let mean_x = (n - 1.0) / 2.0;
    let mean_y = figures.iter().sum::<f64>() / n;
    let (mut xy, mut xx) = (0.0, 0.0);
    for (x, y) in figures.iter().enumerate() {
        let x = x as f64 - mean_x;
        xy += x * (y - mean_y);
        xx += x * x;
    }
    let slope = xy / xx;
    let off = figures.iter().enumerate().map(|(x, y)| {
        let line = mean_y + slope * (x as f64 - mean_x);
        (y - line).powi(2)
    });
    (slope, (off.sum::<f64>() / n).sqrt())
}

#[test]
fn a_slope_is_found() {
    let (slope, off) = slope(&[1.0, 3.0, 5.0, 7.0]);
    assert!((slope - 2.0).abs() < 1e-9 && off < 1e-9);
}

/// What a process used over time, and how much each figure grows.
#[derive(Default)]
struct Course(Vec<Usage>);

impl Course {
    fn say(&self, what: &str, step: &str) {
        for (name, figure) in FIGURES {
            let figures: Vec<f64> = self.0.iter().map(figure).collect();
            let (slope, off, _) = self.late_slope(figure);
            println!(
                "  {what}, {name}: {:.0} to {:.0}, late {slope:+.3} a {step} (off by {off:.2})",
                figures.first().copied().unwrap_or_default(),
                figures.last().copied().unwrap_or_default(),
            );
        }
    }

    /// Without the first third, in which pools and caches fill.
    fn late_slope(&self, figure: fn(&Usage) -> f64) -> (f64, f64, usize) {
        let late = &self.0[self.0.len() / 3..];
        let (slope, off) = slope(&late.iter().map(figure).collect::<Vec<_>>());
        (slope, off, late.len())
    }
}

type Figure = (&'static str, fn(&Usage) -> f64);

const FIGURES: [Figure; 3] = [
    ("files", |usage| usage.files as f64),
    ("tasks", |usage| usage.tasks as f64),
    ("KiB", |usage| usage.memory_kib as f64),
];

/// Whether each figure grows no more than that of bare iroh, give or take what the points are off.
fn assert_no_slope_beyond(ours: &Course, bare: &Course) {
    for (what, figure) in FIGURES {
        let (our_slope, our_off, points) = ours.late_slope(figure);
        let (bare_slope, bare_off, _) = bare.late_slope(figure);
        // A line through so many points that scatter so much may rise so far by chance.
        let chance = 3.0 * (our_off + bare_off) / points as f64;
        assert!(
            our_slope <= bare_slope.max(0.0) + chance + 1e-6,
            "{what}: {our_slope:+.3} a step, bare iroh {bare_slope:+.3}, {chance:.3} by chance"
        );
    }
}

/// A host and its crowd, and what they used.
struct Mesh {
    kind: Kind,
    host: Host,
    crowd: Crowd,
    host_course: Course,
    crowd_course: Course,
}

impl Mesh {
    fn start(kind: Kind) -> Self {
        let (host, ticket) = Host::start(kind);
        Self {
            kind,
            crowd: Crowd::start(kind, &ticket),
            host,
            host_course: Course::default(),
            crowd_course: Course::default(),
        }
    }

    /// So many rounds of joins and leaves; what is used after each.
    fn rounds(mut self, rounds: u64, joins: u64, rest: Duration) -> Self {
        self.crowd.ask(Ask::JoinAndLeave(10));
        for round in 0..=rounds {
            if round > 0 {
                self.crowd.ask(Ask::JoinAndLeave(joins));
                thread::sleep(rest);
            }
            self.host_course.0.push(settled(&mut self.host));
            let crowd = self.crowd_settled();
            self.crowd_course.0.push(crowd);
        }
        self
    }

    /// What the crowd uses once it has no more files open than at first, or does not get there.
    fn crowd_settled(&mut self) -> Usage {
        let begin = Instant::now();
        let first = self.crowd_course.0.first().map(|usage| usage.files);
        loop {
            let now = self.crowd.ask(Ask::Nothing);
            // An endpoint may still be closing.
            if first.is_none_or(|files| now.files <= files) || begin.elapsed() > SETTLE {
                return now;
            }
            thread::sleep(Duration::from_millis(250));
        }
    }

    /// So many stay, and some of them are replaced each second.
    fn churn(mut self, spokes: u64, minutes: u64) -> Self {
        self.crowd.ask(Ask::Stay(spokes));
        for _ in 0..minutes * 6 {
            let usage = self.crowd.ask(Ask::Churn {
                seconds: 10,
                per_s: 2,
            });
            self.crowd_course.0.push(usage);
            self.host_course.0.push(self.host.usage());
        }
        self.crowd.ask(Ask::Leave);
        self
    }

    /// What is left once all have left and are forgotten.
    fn rest(&mut self) -> [Usage; 2] {
        settled(&mut self.host);
        thread::sleep(REMEMBERED);
        [settled(&mut self.host), self.crowd.ask(Ask::Nothing)]
    }

    /// What the host and the crowd used since this was asked last.
    fn take_courses(&mut self) -> [Course; 2] {
        [&mut self.host_course, &mut self.crowd_course].map(std::mem::take)
    }

    fn say(&self, step: &str) {
        let kind = self.kind;
        self.host_course.say(&format!("{kind:?}"), step);
        self.crowd_course.say(&format!("{kind:?}'s crowd"), step);
    }
}

/// The same with this crate and with bare iroh, at the same time.
fn both<T: Send>(run: impl Fn(Kind) -> T + Sync) -> (T, T) {
    thread::scope(|scope| {
        let hub = scope.spawn(|| run(Kind::Hub));
        let bare = scope.spawn(|| run(Kind::Bare));
        let both = (hub.join(), bare.join());
        (both.0.expect("no panic"), both.1.expect("no panic"))
    })
}

/// Attempts of a hub's topic to reach who has left, which it gives up after a while.
const DIALS: u64 = 5;

#[test]
fn spokes_that_come_and_go_leave_no_file_and_no_task_behind() {
    let (hub, bare) = both(|kind| Mesh::start(kind).rounds(2, 30, Duration::ZERO));
    hub.say("30 joins");
    bare.say("30 joins");
    let growth = |course: &Course, figure: fn(&Usage) -> u64| {
        figure(&course.0[2]).saturating_sub(figure(&course.0[0]))
    };
    for (ours, bare) in [
        (&hub.host_course, &bare.host_course),
        (&hub.crowd_course, &bare.crowd_course),
    ] {
        assert_eq!(growth(ours, |usage| usage.files), 0);
        // iroh keeps one for each peer for a while.
        let tasks = [ours, bare].map(|course| growth(course, |usage| usage.tasks));
        assert!(tasks[0] <= tasks[1] + DIALS, "{tasks:?}");
    }
}

#[test]
#[ignore = "takes minutes; see the module"]
fn ten_thousand_joins_and_ten_minutes_of_churn_leave_nothing_behind_that_bare_iroh_does_not() {
    println!("\n10,000 joins and leaves; then 100 spokes, 2 replaced a second, 10 minutes");
    let (hub, bare) = both(|kind| {
        let mut mesh = Mesh::start(kind).rounds(5, 2000, REMEMBERED);
        let joins = mesh.take_courses();
        let mut mesh = mesh.churn(SPOKES, MINUTES);
        let churn = mesh.take_courses();
        let heard = mesh.crowd.ask(Ask::Nothing);
        (
            [(joins, "2,000 joins"), (churn, "10 s")],
            heard,
            mesh.rest(),
        )
    });
    for (kind, (courses, heard, [host, crowd])) in [("hub", &hub), ("bare", &bare)] {
        for ([host, crowd], step) in courses {
            host.say(kind, step);
            crowd.say(&format!("{kind}'s crowd"), step);
        }
        println!(
            "  left of {kind}: {host:?}\n    of its crowd: {crowd:?}; heard {}",
            heard.heard
        );
    }
    // While all that, events arrived: ten a second at each.
    let (heard, wrong) = (hub.1.heard, hub.1.wrong);
    assert_eq!(wrong, 0, "of {heard} events");
    assert!(heard > SPOKES * MINUTES * 60 * 8, "{heard} events");
    for (ours, bare) in hub.0.iter().zip(&bare.0) {
        for (ours, bare) in ours.0.iter().zip(&bare.0) {
            assert_no_slope_beyond(ours, bare);
        }
    }
    for (ours, bare) in hub.2.iter().zip(&bare.2) {
        // Of its own, a hub has its router's, the switchboard's, and those of the topic.
        assert!(
            ours.tasks <= bare.tasks + 20 + DIALS,
            "{ours:?}, bare iroh {bare:?}"
        );
        assert!(ours.files <= bare.files + 5, "{ours:?}, bare iroh {bare:?}");
    }
}

const SPOKES: u64 = 100;
const MINUTES: u64 = 10;

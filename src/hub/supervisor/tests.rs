//! A mesh whose topic may die, stall or lose the hub, watched by the supervisor as the hub runs it.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// How what is sent reaches a spoke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// At once.
    Well,
    /// Neither path brings it anything, or it does not get to run.
    Stopped,
    /// The topic does not reach it.
    CutOff,
    /// Nor this one, but it is repaired what it lacks.
    Repaired,
    /// The parts of something large come in.
    InParts,
}

#[derive(Clone, Copy, Debug)]
struct Spoke {
    state: State,
    has: Has,
    on_topic: bool,
    fast: bool,
    /// Whether it knows that it is to be.
    paced: bool,
    /// What it has, said or not.
    took: u64,
    repaired_to: u64,
}

struct Mesh {
    supervisor: Supervisor<usize>,
    now: Instant,
    tip: u64,
    sent: u64,
    neighbors: usize,
    topic: bool,
    delivers: bool,
    spokes: Vec<Spoke>,
    /// How often those acknowledge that are not fast, in ticks.
    slow_ticks: usize,
    ticks: usize,
    actions: Vec<(Duration, Action<usize>)>,
    begin: Instant,
}

impl Mesh {
    fn new(spokes: usize) -> Self {
        let now = Instant::now();
        let spoke = |n| {
            let fast = spokes <= 20 || n % (spokes / 8) == 0;
            Spoke {
                state: State::Well,
                has: Has::default(),
                on_topic: true,
                fast,
                paced: fast,
                took: 0,
                repaired_to: 0,
            }
        };
        Self {
            supervisor: Supervisor::new(7),
            now,
            tip: 0,
            sent: 0,
            neighbors: 4,
            topic: true,
            delivers: true,
            spokes: (0..spokes).map(spoke).collect(),
            slow_ticks: 1,
            ticks: 0,
            actions: Vec::new(),
            begin: now,
        }
    }

    fn follow(&mut self) {
        while let Some(action) = self.supervisor.poll() {
            self.actions.push((self.now - self.begin, action));
            match action {
                Action::ServeAround(id) => self.spokes[id].on_topic = false,
                Action::Fail(_) => {
                    self.topic = false;
                    for spoke in &mut self.spokes {
                        spoke.on_topic = false;
                    }
                    self.supervisor.topic_changed(true);
                }
                Action::Rejoin => {}
            }
        }
    }

    /// One tick of this length, in which some events are broadcast.
    fn tick(&mut self, long: Duration, events: u64) {
        self.now += long;
        self.tip += events;
        if self.topic && self.neighbors > 0 {
            self.sent = self.tip;
        }
        self.ticks += 1;
        for (n, spoke) in self.spokes.iter_mut().enumerate() {
            let reached = if spoke.on_topic {
                self.delivers && spoke.state == State::Well
            } else {
                matches!(spoke.state, State::Well | State::CutOff | State::Repaired)
            };
            if reached {
                let to = if spoke.on_topic { self.sent } else { self.tip };
                spoke.took = spoke.took.max(to);
            }
            if spoke.state == State::Repaired && spoke.on_topic {
                spoke.repaired_to = self.sent.saturating_sub(20);
                spoke.took = spoke.took.max(spoke.repaired_to);
            }
            let due = spoke.paced || (self.ticks + n).is_multiple_of(self.slow_ticks);
            if due && spoke.has.acked < spoke.took {
                spoke.has.acked = spoke.took;
                spoke.has.beats += 1;
            }
            if spoke.state == State::InParts {
                spoke.has.beats += 1;
            }
            spoke.paced = spoke.fast;
        }
        let topic = self.topic.then_some(TopicStanding {
            sent: self.sent,
            held: false,
            neighbors: self.neighbors,
        });
        let standings: Vec<_> = self
            .spokes
            .iter()
            .enumerate()
            .map(|(id, spoke)| Standing {
                id,
                has: spoke.has,
                fast: spoke.fast,
                path: if spoke.on_topic {
                    Path::Gossip
                } else {
                    Path::Joining
                },
                repaired_to: spoke.repaired_to,
            })
            .collect();
        let slow = 20 * MS + (self.slow_ticks as u32 - 1) * TICK;
        self.supervisor
            .look(self.now, self.tip, topic, &standings, slow);
        self.follow();
    }

    fn run(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.tick(TICK, 10);
        }
    }

    fn failure(&self) -> Option<(Duration, Failure)> {
        self.actions.iter().find_map(|(at, action)| match action {
            Action::Fail(failure) => Some((*at, *failure)),
            _ => None,
        })
    }

    fn served_around(&self) -> Vec<usize> {
        let around = self.actions.iter().filter_map(|(_, action)| match action {
            Action::ServeAround(id) => Some(*id),
            _ => None,
        });
        around.collect()
    }
}

#[test]
fn a_topic_that_delivers_is_left_alone() {
    for spokes in [1, 2, 20, 100] {
        let mut mesh = Mesh::new(spokes);
        mesh.run(1000);
        assert_eq!(mesh.actions, []);
        assert_eq!(mesh.supervisor.condition(), Condition::Alive);
        // Nor if nothing is broadcast.
        for _ in 0..1000 {
            mesh.tick(TICK, 0);
        }
        assert_eq!(mesh.actions, []);
    }
}

#[test]
fn who_says_late_that_it_has_what_was_lost_is_left_alone() {
    for spokes in [1, 2, 20, 100] {
        let mut mesh = Mesh::new(spokes);
        mesh.slow_ticks = 10;
        mesh.run(100);
        for _ in 0..100 {
            mesh.tick(TICK, 0);
        }
        // A beacon shows that a frame was lost, which is wanted, comes after all, and is acknowledged by then.
        let beacon = BEACON_FIRST * 2;
        let late = beacon + arrives_within(spokes) + WANT_JITTER + ACK_LITTLE_WITHIN;
        let silent = late.as_millis() / TICK.as_millis();
        mesh.delivers = false;
        for events in [1].into_iter().chain([0; 20]).take(silent as usize) {
            mesh.tick(TICK, events);
        }
        mesh.delivers = true;
        for _ in 0..50 {
            mesh.tick(TICK, 0);
        }
        assert_eq!(mesh.actions, [], "{spokes}");
    }
}

#[test]
fn who_becomes_fast_is_not_judged_by_what_it_did_when_it_was_slow() {
    let mut mesh = Mesh::new(1000);
    mesh.slow_ticks = 8;
    for redraw in 0..40 {
        mesh.run(6);
        for (n, spoke) in mesh.spokes.iter_mut().enumerate() {
            spoke.fast = n % 125 == redraw;
        }
    }
    assert_eq!(mesh.actions, []);
}

#[test]
fn who_gets_parts_of_what_follows_a_repair_is_reached_by_the_topic() {
    let around = |beyond: u64| {
        let mut mesh = Mesh::new(20);
        mesh.run(10);
        let spoke = &mut mesh.spokes[3];
        spoke.state = State::InParts;
        spoke.repaired_to = spoke.has.acked + beyond;
        mesh.run(20);
        mesh.served_around()
    };
    assert_eq!(around(0), Vec::<usize>::new());
    // Parts of the repair itself show nothing.
    assert_eq!(around(1), [3]);
}

#[test]
fn a_topic_that_reaches_nobody_has_failed_within_two_seconds() {
    for spokes in [2, 5, 20, 100, 1000] {
        let mut mesh = Mesh::new(spokes);
        mesh.run(100);
        let dead = mesh.now - mesh.begin;
        mesh.delivers = false;
        mesh.run(10);
        let (at, failure) = mesh.failure().expect("it is noticed");
        assert_eq!(failure, Failure::Dead);
        assert!(at - dead <= 2000 * MS, "{spokes}: {:?}", at - dead);
        assert!(mesh.served_around().len() <= FEW);
    }
}

#[test]
fn a_single_event_that_reaches_nobody_is_enough() {
    let mut mesh = Mesh::new(100);
    mesh.run(100);
    for _ in 0..100 {
        mesh.tick(TICK, 0);
    }
    let dead = mesh.now - mesh.begin;
    mesh.delivers = false;
    mesh.tick(TICK, 1);
    for _ in 0..9 {
        mesh.tick(TICK, 0);
    }
    let (at, failure) = mesh.failure().expect("it is noticed");
    assert_eq!(failure, Failure::Dead);
    assert!(at - dead <= 2000 * MS);
}

#[test]
fn wants_show_that_the_topic_is_heard_and_win_it_time_once() {
    let fails_after = |wants: bool| {
        let mut mesh = Mesh::new(1000);
        mesh.run(20);
        mesh.delivers = false;
        mesh.run(4);
        assert_eq!(mesh.actions, []);
        let begin = mesh.now;
        while mesh.failure().is_none() {
            if wants {
                mesh.supervisor.wanted();
            }
            mesh.run(1);
        }
        mesh.now - begin
    };
    let silent = fails_after(false);
    let heard = fails_after(true);
    assert!(
        heard >= silent + 800 * MS && heard <= silent + 1200 * MS,
        "{silent:?} {heard:?}"
    );
    // What is sent again arrives in this time, and everything goes on.
    let mut mesh = Mesh::new(1000);
    mesh.run(20);
    mesh.delivers = false;
    mesh.run(4);
    mesh.supervisor.wanted();
    mesh.run(4);
    mesh.delivers = true;
    mesh.run(20);
    assert_eq!(mesh.actions, []);
}

#[test]
fn a_mesh_that_does_not_move_on_any_path_keeps_its_topic() {
    let mut mesh = Mesh::new(100);
    mesh.run(10);
    for spoke in &mut mesh.spokes {
        spoke.state = State::Stopped;
    }
    mesh.run(15);
    assert_eq!(mesh.supervisor.condition(), Condition::Stalled);
    for spoke in &mut mesh.spokes {
        spoke.state = State::Well;
    }
    mesh.run(100);
    assert_eq!(mesh.failure(), None);
    assert_eq!(mesh.supervisor.condition(), Condition::Alive);
    // Those of the trial were served directly, nobody else.
    assert!(mesh.served_around().len() <= 3 * FEW);
}

#[test]
fn time_in_which_the_hub_did_not_run_does_not_count() {
    let mut mesh = Mesh::new(100);
    mesh.run(10);
    for _ in 0..20 {
        // They are reached a little late every time.
        mesh.delivers = false;
        mesh.tick(5000 * MS, 10);
        mesh.delivers = true;
        mesh.tick(TICK, 0);
    }
    assert_eq!(mesh.failure(), None);
}

#[test]
fn a_few_stopped_spokes_are_served_around_and_the_topic_goes_on() {
    let mut mesh = Mesh::new(100);
    mesh.run(10);
    let stopped: Vec<usize> = (5..15).collect();
    for n in &stopped {
        mesh.spokes[*n].state = State::Stopped;
    }
    mesh.run(100);
    assert_eq!(mesh.failure(), None);
    let mut around = mesh.served_around();
    around.sort();
    assert_eq!(around, stopped);
    assert!(
        mesh.actions
            .iter()
            .all(|(at, _)| *at <= 10 * TICK + 1800 * MS)
    );
}

#[test]
fn a_spoke_that_the_topic_alone_does_not_reach_is_served_around_soon() {
    for spokes in [3, 50] {
        let mut mesh = Mesh::new(spokes);
        mesh.run(10);
        mesh.spokes[0].state = State::CutOff;
        mesh.run(5);
        assert_eq!(mesh.served_around(), [0]);
        mesh.run(100);
        assert_eq!(mesh.failure(), None);
    }
}

/// Runs until the topic has failed, and says how long that took.
fn fails(mesh: &mut Mesh) -> Duration {
    let begin = mesh.now - mesh.begin;
    mesh.run(50);
    let (at, failure) = mesh.failure().expect("it is noticed");
    assert_eq!(failure, Failure::Dead);
    at - begin
}

#[test]
fn a_topic_that_does_not_reach_its_only_spoke_has_failed() {
    let mut mesh = Mesh::new(1);
    mesh.run(10);
    mesh.spokes[0].state = State::CutOff;
    let took = fails(&mut mesh);
    assert!(took <= 2000 * MS, "{took:?}");
    // If it has stopped, another topic would not reach it either.
    let mut mesh = Mesh::new(1);
    mesh.run(10);
    mesh.spokes[0].state = State::Stopped;
    mesh.run(1000);
    assert_eq!(mesh.failure(), None);
    assert_eq!(mesh.supervisor.condition(), Condition::Stalled);
}

#[test]
fn a_topic_whose_spokes_live_on_repairs_has_failed() {
    for spokes in [1, 8, 100] {
        let mut mesh = Mesh::new(spokes);
        mesh.run(10);
        for spoke in &mut mesh.spokes {
            spoke.state = State::Repaired;
        }
        let took = fails(&mut mesh);
        assert!(took <= 2000 * MS, "{spokes}: {took:?}");
    }
}

#[test]
fn a_topic_that_reaches_a_minority_has_failed_and_one_that_reaches_most_has_not() {
    for (spokes, cut) in [(3, 2), (8, 5), (8, 7), (20, 11), (20, 19)] {
        let mut mesh = Mesh::new(spokes);
        mesh.run(10);
        for spoke in &mut mesh.spokes[..cut] {
            spoke.state = State::CutOff;
        }
        let took = fails(&mut mesh);
        assert!(took <= 2000 * MS, "{cut} of {spokes}: {took:?}");
    }
    for (spokes, cut) in [(2, 1), (8, 4), (20, 10), (1000, 400)] {
        let mut mesh = Mesh::new(spokes);
        mesh.run(10);
        for n in 0..cut {
            mesh.spokes[spokes - 1 - n].state = State::CutOff;
        }
        mesh.run(1000);
        assert_eq!(mesh.failure(), None, "{cut} of {spokes}");
        assert_eq!(mesh.supervisor.condition(), Condition::Alive);
        assert_eq!(mesh.served_around().len(), cut);
    }
}

#[test]
fn a_topic_that_most_have_left_by_themselves_has_failed() {
    let mut mesh = Mesh::new(8);
    mesh.run(10);
    for n in 0..4 {
        mesh.supervisor.isolated(n);
        mesh.spokes[n].on_topic = false;
    }
    mesh.run(50);
    assert_eq!(mesh.failure(), None);
    mesh.supervisor.isolated(4);
    mesh.spokes[4].on_topic = false;
    let took = fails(&mut mesh);
    assert!(took <= 2000 * MS, "{took:?}");
    // Not if they are on it again soon, or gone.
    let mut mesh = Mesh::new(8);
    mesh.run(10);
    for n in 0..8 {
        mesh.supervisor.isolated(n);
        mesh.spokes[n].on_topic = false;
    }
    mesh.run(3);
    for spoke in &mut mesh.spokes {
        spoke.on_topic = true;
    }
    mesh.run(100);
    assert_eq!(mesh.actions, []);
    assert!(mesh.supervisor.off.is_empty());
}

#[test]
fn spokes_that_stop_and_go_on_long_after_have_time_to_be_on_the_topic_again() {
    let mut mesh = Mesh::new(8);
    mesh.run(10);
    for spoke in &mut mesh.spokes[..6] {
        spoke.state = State::Stopped;
    }
    mesh.run(60);
    for spoke in &mut mesh.spokes {
        spoke.state = State::Well;
    }
    mesh.run(4);
    for spoke in &mut mesh.spokes {
        spoke.on_topic = true;
    }
    mesh.run(100);
    assert_eq!(mesh.failure(), None);
    assert_eq!(mesh.supervisor.condition(), Condition::Alive);
}

#[test]
fn a_topic_that_nobody_gets_on_has_failed_after_half_a_minute() {
    let mut mesh = Mesh::new(8);
    for spoke in &mut mesh.spokes {
        spoke.on_topic = false;
    }
    mesh.run(140);
    assert_eq!(mesh.actions, []);
    mesh.run(20);
    let failed = mesh.failure().map(|(_, failure)| failure);
    assert_eq!(failed, Some(Failure::Unjoined));
}

#[test]
fn an_event_in_many_parts_that_comes_in_is_no_stall() {
    let mut mesh = Mesh::new(30);
    mesh.run(10);
    for spoke in &mut mesh.spokes {
        spoke.state = State::InParts;
    }
    mesh.run(300);
    assert_eq!(mesh.actions, []);
    assert_eq!(mesh.supervisor.condition(), Condition::Alive);
}

#[test]
fn a_hub_without_neighbours_joins_again_at_once_and_gives_up_after_a_while() {
    let mut mesh = Mesh::new(30);
    mesh.run(10);
    mesh.neighbors = 0;
    // Told between two ticks.
    mesh.supervisor.neighbors(0, 30);
    assert_eq!(mesh.supervisor.condition(), Condition::Stalled);
    mesh.follow();
    assert_eq!(mesh.actions.len(), 1);
    mesh.run(2);
    mesh.neighbors = 1;
    mesh.supervisor.neighbors(1, 30);
    mesh.run(20);
    assert_eq!(mesh.actions.len(), 1, "{:?}", mesh.actions);
    let alone = mesh.now - mesh.begin;
    mesh.neighbors = 0;
    mesh.run(10);
    let (at, failure) = mesh.failure().expect("it gives up");
    assert_eq!(failure, Failure::Alone);
    assert!(at - alone <= 2000 * MS);
    // While nobody is on the topic there is nothing to miss.
    let mut mesh = Mesh::new(0);
    mesh.neighbors = 0;
    mesh.run(100);
    assert_eq!(mesh.actions, []);
}

#[test]
fn a_cursor_that_stands_still_though_nothing_holds_it_has_failed() {
    let mut mesh = Mesh::new(30);
    mesh.run(10);
    let standings: Vec<_> = (0..30)
        .map(|id| Standing {
            id,
            has: mesh.spokes[id].has,
            fast: true,
            path: Path::Gossip,
            repaired_to: 0,
        })
        .collect();
    for held in [true, false] {
        let topic = TopicStanding {
            sent: mesh.sent,
            held,
            neighbors: 4,
        };
        let begin = mesh.now;
        while mesh.now - begin < 2000 * MS {
            mesh.now += TICK;
            let tip = mesh.sent + 5;
            mesh.supervisor
                .look(mesh.now, tip, Some(topic), &standings, 20 * MS);
        }
        let failed = mesh.supervisor.poll();
        let stuck = Some(Action::Fail(Failure::CursorStuck));
        assert_eq!(failed, stuck.filter(|_| !held));
    }
}

#[test]
fn the_trial_lasts_longer_after_each_failure_and_as_ever_after_a_good_run() {
    let mut mesh = Mesh::new(100);
    let fail = |mesh: &mut Mesh| {
        mesh.topic = true;
        mesh.delivers = true;
        for spoke in &mut mesh.spokes {
            spoke.on_topic = true;
        }
        mesh.supervisor.topic_changed(false);
        mesh.run(10);
        mesh.actions.clear();
        mesh.delivers = false;
        let begin = mesh.now - mesh.begin;
        mesh.run(100);
        mesh.failure().expect("it is noticed").0 - begin
    };
    let lasted: Vec<_> = (0..5).map(|_| fail(&mut mesh)).collect();
    assert!(lasted[0] <= 2000 * MS);
    assert!(lasted[1] > lasted[0] && lasted[2] > lasted[1] && lasted[4] <= 6000 * MS);
    mesh.topic = true;
    mesh.delivers = true;
    for spoke in &mut mesh.spokes {
        spoke.on_topic = true;
    }
    mesh.supervisor.topic_changed(false);
    mesh.run(400);
    assert!(fail(&mut mesh) <= 2000 * MS);
}

#[derive(Clone, Debug)]
enum Op {
    State(usize, State),
    OnTopic(usize, bool),
    Fast(usize, bool),
    Neighbors(usize),
    Delivers(bool),
    Topic(bool),
    Run(u8, u16, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let state = prop_oneof![
        Just(State::Well),
        Just(State::Stopped),
        Just(State::CutOff),
        Just(State::Repaired),
        Just(State::InParts)
    ];
    prop_oneof![
        (0usize..40, state).prop_map(|(n, state)| Op::State(n, state)),
        (0usize..40, any::<bool>()).prop_map(|(n, on)| Op::OnTopic(n, on)),
        (0usize..40, any::<bool>()).prop_map(|(n, fast)| Op::Fast(n, fast)),
        (0usize..3).prop_map(Op::Neighbors),
        any::<bool>().prop_map(Op::Delivers),
        any::<bool>().prop_map(Op::Topic),
        (1u8..20, 0u16..1000, 0u64..5).prop_map(|(n, ms, events)| Op::Run(n, ms, events)),
    ]
}

crate::fuzz::machine! {
    fn whatever_happens_a_living_topic_is_not_given_up_and_memory_is_bounded(
        n in 1usize..40, ops in prop::collection::vec(op(), 1..60)
    ) {
        let mut mesh = Mesh::new(n);
        for op in ops {
            match op {
                Op::State(id, state) => mesh.spokes[id % n].state = state,
                Op::OnTopic(id, on) => mesh.spokes[id % n].on_topic = on && mesh.topic,
                Op::Fast(id, fast) => mesh.spokes[id % n].fast = fast,
                Op::Neighbors(neighbors) => mesh.neighbors = neighbors,
                Op::Delivers(delivers) => mesh.delivers = delivers,
                Op::Topic(topic) => {
                    mesh.topic = topic;
                    mesh.spokes.iter_mut().for_each(|spoke| spoke.on_topic &= topic);
                    mesh.supervisor.topic_changed(false);
                }
                Op::Run(ticks, ms, events) => for _ in 0..ticks {
                    let seen = mesh.actions.len();
                    let lives = mesh.delivers && mesh.neighbors > 0;
                    let well = |spoke: &Spoke| spoke.fast && spoke.on_topic && spoke.state == State::Well;
                    let lives = lives && mesh.spokes.iter().any(well);
                    // One that has lost most of its spokes is dead all the same.
                    let on_topic = mesh.spokes.iter().filter(|spoke| spoke.on_topic).count();
                    let lives = lives && on_topic * 2 >= n;
                    mesh.tick(u32::from(ms) * MS, events);
                    for (_, action) in &mesh.actions[seen..] {
                        prop_assert!(!(lives && *action == Action::Fail(Failure::Dead)));
                    }
                    prop_assert!(mesh.supervisor.watched.len() <= n && mesh.supervisor.off.len() <= n);
                    prop_assert!(mesh.supervisor.out.is_empty());
                },
            }
        }
    }
}

#[test]
fn a_rest_counts_for_nothing_that_begins_at_its_end() {
    let mut mesh = Mesh::new(40);
    for _ in 0..10 {
        mesh.tick(TICK, 1);
    }
    for _ in 0..5 {
        mesh.tick(TICK, 0);
    }
    mesh.now += 5 * TICK;
    mesh.supervisor.rested(mesh.now);
    let lost = mesh.now - mesh.begin;
    mesh.neighbors = 0;
    mesh.supervisor.neighbors(0, 40);
    for _ in 0..10 {
        mesh.tick(TICK, 0);
    }
    let failed = mesh
        .actions
        .iter()
        .find(|(_, action)| *action == Action::Fail(Failure::Alone));
    let (failed, _) = failed.expect("the hub is nobody's neighbour");
    assert!(*failed >= lost + ALONE, "{failed:?} {lost:?}");
}

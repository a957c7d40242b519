//! A flood of connections by ids that nobody admitted, from one address: the hub's memory is bounded, and fifty spokes hardly
//! notice. The control suffers the same attack on a decoy hub in another process.

use std::time::Duration;

use iroh_hub::{Incoming, Listener, Spoke};
use tokio::task::JoinSet;

use crate::{
    attacked::{Attacked, Attacker, Do, Flood, Flooded, Setup, State, age},
    common::{LIMIT, bind},
    figures::{Latencies, Ratios},
};

/// Spokes that are let in, and what they have heard.
struct Honest {
    spokes: Vec<Spoke>,
    hearing: JoinSet<(u64, Latencies)>,
}

async fn hear(mut listener: Listener) -> (u64, Latencies) {
    let mut latencies = Latencies::default();
    let mut next = 0;
    while let Some(item) = listener.recv().await {
        let Incoming::Event(event) = item else {
            panic!("a spoke has lost something: {item:?}");
        };
        let (n, sent): (u64, u64) = event.envelope.payload().expect("a pair");
        assert_eq!(n, next, "in order, once each");
        next += 1;
        latencies.add(age(sent));
    }
    (next, latencies)
}

impl Honest {
    async fn connect(hub: &mut Attacked, count: usize) -> Self {
        let mut endpoints = Vec::new();
        for _ in 0..count {
            endpoints.push(bind().await);
        }
        hub.ask(Do::Allow(endpoints.iter().map(|e| e.id()).collect()));
        let mut honest = Self {
            spokes: Vec::new(),
            hearing: JoinSet::new(),
        };
        for endpoint in endpoints {
            let spoke = Spoke::connect(endpoint, hub.addr.clone()).await;
            let spoke = spoke.expect("it is admitted");
            honest.hearing.spawn(hear(spoke.listen("n")));
            honest.spokes.push(spoke);
        }
        honest
    }

    /// How many events each heard, and how late.
    async fn end(self) -> (Vec<u64>, Latencies) {
        for spoke in self.spokes {
            spoke.shutdown().await;
        }
        let mut counts = Vec::new();
        let mut all = Latencies::default();
        for (count, latencies) in self.hearing.join_all().await {
            counts.push(count);
            all.append(latencies);
        }
        (counts, all)
    }
}

/// What one run shows.
struct Run {
    /// Of the deliveries to the honest.
    latencies: Latencies,
    flooded: Flooded,
    /// Of the hub that was flooded.
    before: State,
    after: State,
}

/// Spokes hear paced events of one hub while it, or a decoy, is flooded.
async fn run(spokes: usize, per_s: u64, flood: Flood, decoyed: bool) -> Run {
    let mut hub = Attacked::start(Setup::Guarded);
    let mut decoy = Attacked::start(Setup::Guarded);
    let honest = Honest::connect(&mut hub, spokes).await;
    hub.ask(Do::Pace { per_s });
    let target = if decoyed { &mut decoy } else { &mut hub };
    let before = target.ask(Do::Nothing);
    let ticket = target.ticket.clone();
    let attacking = tokio::task::spawn_blocking(move || Attacker::start(&ticket).flood(flood));
    let flooded = attacking.await.expect("no panic");
    let after = target.ask(Do::Nothing);
    let sent = hub.ask(Do::Rest).broadcast;
    // What was sent last is on its way.
    let heard = tokio::time::timeout(LIMIT, async {
        while honest.spokes.iter().any(|spoke| {
            spoke
                .position()
                .is_none_or(|position| position.offset < sent)
        }) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    heard.await.expect("everyone has everything");
    let (counts, latencies) = honest.end().await;
    assert!(
        counts.iter().all(|count| *count == sent),
        "{sent}: {counts:?}"
    );
    assert_eq!((flooded.open, flooded.otherwise), (0, 0), "{flooded:?}");
    assert_eq!(flooded.closed + flooded.no_answer, flood.attempts);
    // Whom the hub did not answer cost it nothing; whom it did, it refused.
    let more = |count: fn(&State) -> u64| count(&after) - count(&before);
    assert!(more(|state| state.begun) >= flooded.closed, "{after:?}");
    assert!(more(|state| state.refused) > 0, "{after:?}");
    assert!(after.open <= before.open && after.waiting == 0, "{after:?}");
    Run {
        latencies,
        flooded,
        before,
        after,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_a_few_hundred_strangers_is_turned_away_and_no_spoke_loses_anything() {
    let flood = Flood {
        attempts: 600,
        ids: 8,
        at_once: 64,
    };
    let run = run(5, 20, flood, false).await;
    println!(
        "{:?}\n  before {:?}\n  after {:?}",
        run.flooded, run.before, run.after
    );
    let grown = run.after.peak_kib.saturating_sub(run.before.memory_kib);
    assert!(grown < MOST_KIB, "{grown} KiB for a flood");
}

/// Far less than ten thousand connections would take. Those that were closed a second ago are not forgotten yet.
const MOST_KIB: u64 = 128 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn a_flood_of_ten_thousand_costs_bounded_memory_and_fifty_spokes_hardly_anything() {
    let flood = Flood {
        attempts: 10_000,
        ids: 50,
        at_once: 128,
    };
    let mut ratios = Ratios::default();
    for pair in 0..5 {
        let mut p99 = [0.0; 2];
        // Which comes first takes turns.
        for decoyed in [pair % 2 == 0, pair % 2 != 0] {
            let mut run = run(50, 20, flood, decoyed).await;
            let [p50, p99_now] = [0.5, 0.99].map(|q| run.latencies.quantile(q));
            let what = if decoyed { "decoy" } else { "hub" };
            println!(
                "  {what} flooded: p50 {p50:?}, p99 {p99_now:?}; {:?}",
                run.flooded
            );
            println!("    {:?}", run.after);
            p99[usize::from(decoyed)] = p99_now.as_secs_f64();
            let grown = run.after.peak_kib.saturating_sub(run.before.memory_kib);
            assert!(grown < MOST_KIB, "{grown} KiB for a flood");
        }
        ratios.add(p99[0], p99[1]);
    }
    println!("p99 with the hub flooded, to that with a decoy flooded: {ratios}");
    assert!(ratios.median() <= 1.5, "{ratios}");
}

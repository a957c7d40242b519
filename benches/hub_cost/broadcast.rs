//! What a broadcast costs the hub.

use std::collections::BTreeMap;

use super::{
    pair::{Pair, Used},
    plan::Plan,
    protocol::{Alternative, Round},
};
use crate::common::{
    Result,
    results::{Results, Row, Spread},
};

/// In the order of what each round used.
static ALL: [Alternative; 4] = [
    Alternative::Direct,
    Alternative::Gossip,
    Alternative::BareStreams,
    Alternative::BareGossip,
];

/// A bare gossip mesh of more spokes takes minutes to start on a busy machine, and then leaves some of them behind.
const MOST_BARE_GOSSIP: usize = 100;

/// The alternatives for so many spokes.
fn alternatives(spokes: usize) -> &'static [Alternative] {
    let left_out = usize::from(spokes > MOST_BARE_GOSSIP);
    &ALL[..ALL.len() - left_out]
}

/// Who is compared with whom: what of the first, over that of the second.
const RATIOS: [(Alternative, Alternative); 3] = [
    (Alternative::Direct, Alternative::BareStreams),
    (Alternative::Gossip, Alternative::Direct),
    (Alternative::Gossip, Alternative::BareGossip),
];

/// Runs all cells that are asked for.
pub(crate) async fn measure(plan: &Plan, results: &mut Results) -> Result<()> {
    // Copies that gossip sent, paced, for each size and number of spokes.
    let mut copies: BTreeMap<usize, BTreeMap<usize, Vec<f64>>> = BTreeMap::new();
    for &(spokes, sizes) in plan.meshes {
        let asked = |size: &&usize| plan.has(&format!("broadcast/{spokes}/{size}"));
        let sizes: Vec<usize> = sizes.iter().filter(asked).copied().collect();
        let Some(max_payload) = sizes.iter().copied().max() else {
            continue;
        };
        let mut pairs = Vec::new();
        for alternative in alternatives(spokes) {
            pairs.push(Pair::warm(*alternative, spokes, max_payload).await?);
        }
        for size in sizes {
            let cell = Cell::run(plan, &mut pairs, spokes, size).await?;
            cell.report(results);
            let of_size = copies.entry(size).or_default();
            of_size.insert(spokes, cell.copies(&cell.paced, 1));
        }
    }
    for (size, by_spokes) in copies {
        growth(results, size, &by_spokes);
    }
    Ok(())
}

/// How many more copies go to the most spokes than to fifty: none, if their number does not matter.
fn growth(results: &mut Results, size: usize, by_spokes: &BTreeMap<usize, Vec<f64>>) {
    let (Some(few), Some((&spokes, many))) = (by_spokes.get(&50), by_spokes.last_key_value())
    else {
        return;
    };
    let row = Row {
        case: "paced_copies",
        spokes,
        size: Some(size),
    };
    let pairs = many.iter().copied().zip(few.iter().copied());
    results.ratio(row, "gossip/gossip to 50 spokes", Spread::of_ratios(pairs));
}

/// What each alternative used in each round, in the order of [`ALL`].
type Rounds = Vec<[Used; ALL.len()]>;

struct Cell {
    spokes: usize,
    size: usize,
    burst: Rounds,
    paced: Rounds,
    /// What the hub of each holds for a spoke when all rounds are over, where the system tells.
    held: Vec<Option<f64>>,
}

impl Cell {
    async fn run(plan: &Plan, pairs: &mut [Pair], spokes: usize, size: usize) -> Result<Self> {
        let burst = Round {
            events: plan.burst(spokes),
            size,
            gap: None,
        };
        let paced = Round {
            events: plan.paced_events,
            size,
            gap: Some(plan.pace),
        };
        let mut cell = Self {
            spokes,
            size,
            burst: Rounds::new(),
            paced: Rounds::new(),
            held: Vec::new(),
        };
        // The first burst opens windows.
        turns(pairs, burst, false).await?;
        for round in 0..plan.rounds {
            let reversed = round % 2 == 1;
            cell.burst.push(turns(pairs, burst, reversed).await?);
            cell.paced.push(turns(pairs, paced, reversed).await?);
        }
        for pair in pairs {
            let grown = pair.grown().await?;
            cell.held
                .push(grown.map(|bytes| bytes as f64 / spokes as f64));
            let faults = std::mem::take(&mut pair.faults);
            let name = pair.alternative.name();
            println!("hub_cost {name}, {spokes} spokes, {size} B: {faults}");
        }
        Ok(cell)
    }

    fn report(&self, results: &mut Results) {
        let row = |case| Row {
            case,
            spokes: self.spokes,
            size: Some(self.size),
        };
        let spokes = self.spokes as f64;
        let ran = alternatives(self.spokes);
        for (alternative, held) in ran.iter().zip(&self.held) {
            let held = Spread::of(*held);
            results.measured(row("memory_in_use"), alternative.name(), "bytes", held);
        }
        let kinds = [
            ("burst", "burst_per_delivery", "burst_copies", &self.burst),
            ("paced", "paced_per_delivery", "paced_copies", &self.paced),
        ];
        for (cpu, per_delivery, copies, rounds) in kinds {
            for (at, alternative) in ran.iter().enumerate() {
                let name = alternative.name();
                let took = || {
                    rounds
                        .iter()
                        .map(|round| round[at])
                        .filter(|used| !used.fell_back)
                };
                if let left_out @ 1.. = rounds.len() - took().count() {
                    println!(
                        "hub_cost {cpu}, {spokes} spokes: {left_out} of {} rounds of {name} fell back from the topic, and are left out",
                        rounds.len()
                    );
                }
                let of = |value: fn(Used) -> f64| Spread::of(took().map(value));
                results.measured(row(cpu), name, "us", of(|used| used.cpu_us));
                let each = Spread::of(took().map(|used| used.cpu_us / spokes));
                results.measured(row(per_delivery), name, "us", each);
                results.measured(row(cpu), name, "bytes", of(|used| used.bytes));
                let copied = Spread::of(self.copies(rounds, at));
                results.measured(row(copies), name, "copies", copied);
            }
            for (a, b) in RATIOS {
                let at = |which| ran.iter().position(|each| *each == which);
                let (Some(at_a), Some(at_b)) = (at(a), at(b)) else {
                    continue;
                };
                let both = |round: &[Used; ALL.len()]| (round[at_a], round[at_b]);
                let pairs = rounds.iter().map(both);
                let pairs = pairs.filter(|(a, b)| !a.fell_back && !b.fell_back);
                let pairs = pairs.map(|(a, b)| (a.cpu_us, b.cpu_us));
                let ratio = format!("{}/{}", a.name(), b.name());
                results.ratio(row(cpu), &ratio, Spread::of_ratios(pairs));
            }
        }
    }

    /// How often an event's payload would fit into what the hub sent for it.
    fn copies(&self, rounds: &Rounds, at: usize) -> Vec<f64> {
        let used = rounds.iter().map(|round| round[at]);
        let used = used.filter(|used| !used.fell_back);
        used.map(|used| used.bytes / self.size as f64).collect()
    }
}

/// One round of each, one after the other.
async fn turns(pairs: &mut [Pair], round: Round, reversed: bool) -> Result<[Used; ALL.len()]> {
    let mut used = [Used::NONE; ALL.len()];
    let turns: Box<dyn Iterator<Item = _> + Send> = match reversed {
        true => Box::new(pairs.iter_mut().zip(&mut used).rev()),
        false => Box::new(pairs.iter_mut().zip(&mut used)),
    };
    for (pair, used) in turns {
        *used = pair.round(round).await?;
    }
    Ok(used)
}

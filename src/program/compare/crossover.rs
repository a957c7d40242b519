//! Where one strategy overtakes another, and how that is said.

use super::row::{Cell, Row, Strategy};

/// Something that is compared, of which less or more is better.
#[derive(Clone, Copy)]
pub(crate) struct Metric {
    /// The heading of its plot.
    pub(crate) title: &'static str,
    /// What the better strategy does, as in "gossip {better}".
    pub(crate) better: &'static str,
    pub(crate) more_is_better: bool,
    /// Counts bytes, whose round figures are powers of two.
    pub(crate) binary: bool,
    /// Two strategies whose figures differ by less than this part are called equal: so much do two runs of one and the
    /// same strategy differ on two busy cores.
    pub(crate) noise: f64,
    pub(crate) value: fn(&Row) -> Option<f64>,
    /// A figure with its unit.
    pub(crate) show: fn(f64) -> String,
}

/// How two strategies compare over the numbers of spokes that were measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Verdict {
    /// One is better everywhere.
    Always(Strategy),
    /// One is better wherever they differ, which is not everywhere.
    Mostly(Strategy),
    /// `below` is better up to `at` spokes, `above` from there on. `at` is interpolated.
    Crosses {
        below: Strategy,
        above: Strategy,
        at: f64,
    },
    /// The lead changes hands more than once.
    Mixed,
    /// They differ by less than the noise everywhere.
    Equal,
    /// They were not both measured anywhere.
    Unknown,
}

/// Compares two strategies for one size of event.
pub(crate) fn verdict(
    cells: &[Cell],
    size: u64,
    metric: &Metric,
    a: Strategy,
    b: Strategy,
) -> Verdict {
    let mut points: Vec<(usize, f64)> = cells
        .iter()
        .filter(|cell| cell.row.size == size && cell.row.strategy == a)
        .filter_map(|cell| {
            let other = cells.iter().find(|other| {
                other.row.size == size
                    && other.row.strategy == b
                    && other.row.spokes == cell.row.spokes
            })?;
            let (ours, theirs) = ((metric.value)(&cell.row)?, (metric.value)(&other.row)?);
            if ours <= 0.0 || theirs <= 0.0 {
                return None;
            }
            // Positive: `a` is better.
            let lead = (theirs / ours).ln();
            Some((
                cell.row.spokes,
                if metric.more_is_better { -lead } else { lead },
            ))
        })
        .collect();
    points.sort_unstable_by_key(|(spokes, _)| *spokes);
    if points.is_empty() {
        return Verdict::Unknown;
    }
    let measured = points.len();
    points.retain(|(_, lead)| lead.abs() > metric.noise.ln_1p());
    let better = |lead: f64| if lead > 0.0 { a } else { b };
    let Some(&(_, first)) = points.first() else {
        return Verdict::Equal;
    };
    let changes: Vec<_> = points
        .windows(2)
        .filter_map(|pair| match pair {
            &[before, after] if better(before.1) != better(after.1) => Some((before, after)),
            _ => None,
        })
        .collect();
    match changes.as_slice() {
        [] if points.len() == measured => Verdict::Always(better(first)),
        [] => Verdict::Mostly(better(first)),
        &[(before, after)] => Verdict::Crosses {
            below: better(before.1),
            above: better(after.1),
            at: zero_between(before, after),
        },
        _ => Verdict::Mixed,
    }
}

/// Where the lead is nothing: linear in the logarithms of the spokes and of the figures' ratio, since costs are powers
/// of the number of spokes more than they are lines.
fn zero_between(before: (usize, f64), after: (usize, f64)) -> f64 {
    let (x0, x1) = ((before.0 as f64).ln(), (after.0 as f64).ln());
    let part = before.1 / (before.1 - after.1);
    (x0 + part * (x1 - x0)).exp()
}

/// A verdict as a sentence.
pub(crate) fn sentence(
    verdict: Verdict,
    metric: &Metric,
    a: Strategy,
    b: Strategy,
    spokes: &[usize],
) -> String {
    let better = metric.better;
    let measured = match (spokes.iter().min(), spokes.iter().max()) {
        (Some(least), Some(most)) if least < most => format!("from {least} to {most} spokes"),
        (Some(only), _) => format!("at {only} spokes, all that was measured"),
        _ => "nowhere".to_owned(),
    };
    match verdict {
        Verdict::Always(winner) => {
            format!(
                "{} {better} {measured}; no crossover was found.",
                capital(winner.name())
            )
        }
        Verdict::Mostly(winner) => format!(
            "{} {better} where the two differ by more than {:.0}%; no crossover was found {measured}.",
            capital(winner.name()),
            metric.noise * 100.0
        ),
        Verdict::Crosses { below, above, at } => format!(
            "{} {better} from about {at:.0} spokes on; {} does below that.",
            capital(above.name()),
            below.name(),
        ),
        Verdict::Mixed => format!(
            "Which of {} and {} {better} changes more than once {measured}: too close to call.",
            a.name(),
            b.name()
        ),
        Verdict::Equal => format!(
            "{} and {} are within {:.0}% of each other {measured}: neither {better}.",
            capital(a.name()),
            b.name(),
            metric.noise * 100.0
        ),
        Verdict::Unknown => format!(
            "{} and {} were not both measured, so no crossover can be given.",
            capital(a.name()),
            b.name()
        ),
    }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::compare::{report::METRICS, row::tests::cell};

    use Strategy::{Direct, Gossip};

    /// Cells whose hub CPU is as given, by spokes, for direct and gossip.
    fn cpu(points: &[(usize, f64, f64)]) -> Vec<Cell> {
        let with = |spokes, strategy, us| {
            let mut cell = cell(spokes, strategy, 1024);
            cell.row.hub_cpu_us_per_broadcast = us;
            cell
        };
        points
            .iter()
            .flat_map(|&(spokes, direct, gossip)| {
                [with(spokes, Direct, direct), with(spokes, Gossip, gossip)]
            })
            .collect()
    }

    fn metric(title: &str) -> &'static Metric {
        METRICS
            .iter()
            .find(|metric| metric.title == title)
            .expect("there")
    }

    fn judge(points: &[(usize, f64, f64)]) -> Verdict {
        verdict(
            &cpu(points),
            1024,
            metric("Hub CPU per broadcast"),
            Direct,
            Gossip,
        )
    }

    #[test]
    fn a_crossover_is_interpolated_between_measured_counts() {
        // Direct grows as N, gossip stays: they meet at 40.
        let found = judge(&[(10, 100.0, 400.0), (100, 1000.0, 400.0)]);
        let Verdict::Crosses {
            below: Direct,
            above: Gossip,
            at,
        } = found
        else {
            panic!("{found:?}");
        };
        assert!((at - 40.0).abs() < 0.5, "{at}");
    }

    #[test]
    fn one_strategy_may_be_better_everywhere() {
        assert_eq!(
            judge(&[(10, 1.0, 2.0), (100, 1.0, 2.0)]),
            Verdict::Always(Direct)
        );
        assert_eq!(judge(&[(10, 2.0, 1.0)]), Verdict::Always(Gossip));
    }

    #[test]
    fn noise_is_no_crossover() {
        assert_eq!(
            judge(&[(10, 100.0, 101.0), (100, 101.0, 100.0)]),
            Verdict::Equal
        );
        assert_eq!(
            judge(&[(10, 100.0, 200.0), (50, 101.0, 100.0), (100, 100.0, 200.0)]),
            Verdict::Mostly(Direct)
        );
        assert_eq!(
            judge(&[(1, 1.0, 2.0), (2, 2.0, 1.0), (3, 1.0, 2.0)]),
            Verdict::Mixed
        );
    }

    #[test]
    fn what_was_not_measured_is_unknown() {
        assert_eq!(judge(&[]), Verdict::Unknown);
        let cells = cpu(&[(10, 1.0, 2.0)]);
        let metric = metric("Hub CPU per broadcast");
        assert_eq!(
            verdict(&cells, 64, metric, Direct, Gossip),
            Verdict::Unknown
        );
        assert_eq!(
            verdict(&cells, 1024, metric, Direct, Strategy::Auto),
            Verdict::Unknown
        );
    }

    #[test]
    fn more_is_better_for_throughput() {
        let mut cells = cpu(&[(10, 1.0, 1.0)]);
        if let Some(first) = cells.first_mut() {
            first.row.deliveries_per_s *= 2.0;
        }
        let found = verdict(
            &cells,
            1024,
            metric("Deliveries per second"),
            Direct,
            Gossip,
        );
        assert_eq!(found, Verdict::Always(Direct));
    }

    #[test]
    fn verdicts_read_as_sentences() {
        let metric = metric("Hub CPU per broadcast");
        let crosses = Verdict::Crosses {
            below: Direct,
            above: Gossip,
            at: 32.3,
        };
        assert_eq!(
            sentence(crosses, metric, Direct, Gossip, &[10, 100]),
            "Gossip costs the hub less CPU from about 32 spokes on; direct does below that."
        );
        assert_eq!(
            sentence(Verdict::Always(Direct), metric, Direct, Gossip, &[10, 100]),
            "Direct costs the hub less CPU from 10 to 100 spokes; no crossover was found."
        );
    }
}

//! Percentiles, and the ratios of interleaved pairs.

use std::{fmt, time::Duration};

/// How long deliveries took, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<u32>);

impl Latencies {
    pub fn add(&mut self, took: Duration) {
        self.0
            .push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// The latency that this share of the deliveries does not exceed.
    pub fn quantile(&mut self, q: f64) -> Duration {
        let last = self.0.len().saturating_sub(1);
        let at = ((last as f64) * q).round() as usize;
        if self.0.is_empty() {
            return Duration::ZERO;
        }
        let (_, value, _) = self.0.select_nth_unstable(at.min(last));
        Duration::from_micros(u64::from(*value))
    }

    pub fn max(&self) -> Duration {
        Duration::from_micros(self.0.iter().copied().max().unwrap_or_default().into())
    }
}

/// What one figure with the fault is to the same without, over pairs of runs.
#[derive(Clone, Debug, Default)]
pub struct Ratios(Vec<f64>);

impl Ratios {
    pub fn add(&mut self, fault: f64, control: f64) {
        self.0.push(fault / control.max(f64::MIN_POSITIVE));
    }

    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }
}

impl fmt::Display for Ratios {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self
            .0
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), ratio| {
                (low.min(*ratio), high.max(*ratio))
            });
        let pairs = self.0.len();
        write!(
            f,
            "{:.3} (median of {pairs} pairs, {low:.3} to {high:.3})",
            self.median()
        )
    }
}

#[test]
fn a_median_is_in_the_middle_and_a_quantile_at_its_place() {
    let mut ratios = Ratios::default();
    for n in [3.0, 1.0, 2.0, 10.0] {
        ratios.add(n, 1.0);
    }
    assert_eq!(ratios.median(), 2.5);
    let mut latencies = Latencies::default();
    for n in 0..=100 {
        latencies.add(Duration::from_micros(n));
    }
    assert_eq!(latencies.quantile(0.99), Duration::from_micros(99));
    assert_eq!(latencies.max(), Duration::from_micros(100));
}

//! What one cell of the comparison came to.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A way to fan out, as the hub is told to use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Strategy {
    /// One stream per spoke.
    Direct,
    /// One topic for all spokes.
    Gossip,
    /// Whichever the hub chooses.
    Auto,
}

impl Strategy {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Gossip => "gossip",
            Self::Auto => "auto",
        }
    }
}

/// One cell: a strategy with a number of spokes and a size of event. This is an object of `--json`, key for key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) spokes: usize,
    pub(crate) strategy: Strategy,
    /// Bytes of an event's payload; of a file's lines, their mean.
    pub(crate) size: u64,
    /// Deliveries of the burst that arrived, each counted once.
    pub(crate) delivered: u64,
    /// Events of the burst times spokes.
    pub(crate) expected: u64,
    /// Deliveries of the burst, from the first send to the last arrival.
    pub(crate) deliveries_per_s: f64,
    /// Time from the send of a lone event to its arrival at the last spoke. `None` if no lone event reached every spoke.
    pub(crate) last_p50_ms: Option<f64>,
    pub(crate) last_p99_ms: Option<f64>,
    /// What the hub's sockets sent per lone event, packet headers above UDP included.
    pub(crate) hub_bytes_per_broadcast: f64,
    /// CPU time of the hub's process per lone event.
    pub(crate) hub_cpu_us_per_broadcast: f64,
    /// CPU time of the hub's and the spokes' processes per lone event.
    pub(crate) total_cpu_us_per_broadcast: f64,
}

/// A cell's row and what the report says beside it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cell {
    pub(crate) row: Row,
    /// Deliveries of the burst that were not the next event of their spoke.
    pub(crate) out_of_order: u64,
    /// Deliveries of an event that the spoke already had.
    pub(crate) repeated: u64,
    /// Lone events that did not reach every spoke.
    pub(crate) lone_incomplete: u64,
    /// CPU time of the hub per event of the burst, where many events share a write.
    pub(crate) hub_cpu_us_in_burst: f64,
    /// What the hub sent per event of the burst.
    pub(crate) hub_bytes_in_burst: f64,
    /// The most memory that the hub's process held, where the system tells.
    pub(crate) hub_peak_bytes: Option<u64>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A cell with figures that tests vary.
    pub(crate) fn cell(spokes: usize, strategy: Strategy, size: u64) -> Cell {
        Cell {
            row: Row {
                spokes,
                strategy,
                size,
                delivered: 500 * spokes as u64,
                expected: 500 * spokes as u64,
                deliveries_per_s: 110_000.0,
                last_p50_ms: Some(3.4),
                last_p99_ms: Some(4.4),
                hub_bytes_per_broadcast: 105_000.0,
                hub_cpu_us_per_broadcast: 3_100.0,
                total_cpu_us_per_broadcast: 6_000.0,
            },
            out_of_order: 0,
            repeated: 0,
            lone_incomplete: 0,
            hub_cpu_us_in_burst: 600.0,
            hub_bytes_in_burst: 104_000.0,
            hub_peak_bytes: Some(25_000_000),
        }
    }

    #[test]
    fn a_row_has_exactly_the_keys_that_are_promised() {
        let row = serde_json::to_value(cell(10, Strategy::Direct, 1024).row).expect("encodes");
        let keys: Vec<_> = row
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect();
        let mut expected = vec![
            "spokes",
            "strategy",
            "size",
            "delivered",
            "expected",
            "deliveries_per_s",
            "last_p50_ms",
            "last_p99_ms",
            "hub_bytes_per_broadcast",
            "hub_cpu_us_per_broadcast",
            "total_cpu_us_per_broadcast",
        ];
        expected.sort_unstable();
        let mut keys = keys;
        keys.sort_unstable();
        assert_eq!(keys, expected);
        assert_eq!(row.get("strategy"), Some(&"direct".into()));
    }
}

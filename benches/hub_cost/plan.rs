//! How much to measure.

use std::time::Duration;

use crate::common::args::{Filter, is_smoke};

/// Spokes, and the sizes of the events that they are sent.
type Mesh = (usize, &'static [usize]);

pub(crate) struct Plan {
    pub(crate) smoke: bool,
    pub(crate) meshes: &'static [Mesh],
    pub(crate) rounds: usize,
    /// Deliveries of a burst, within bounds for its events.
    burst_deliveries: usize,
    burst_events: (usize, usize),
    /// Events that are paced.
    pub(crate) paced_events: usize,
    pub(crate) pace: Duration,
    pub(crate) idle_spokes: &'static [usize],
    /// How long spokes are left alone before memory is looked at.
    pub(crate) idle_before: Duration,
    /// Over how long they speak, one after the other, before CPU time is taken: an interval of the keep-alive, 4 s.
    pub(crate) idle_stir: Duration,
    /// How long CPU time is taken for: whole intervals of the keep-alive.
    pub(crate) idle_for: Duration,
    /// Spokes of a topic, and for how many seconds it is busy, in so many rounds.
    pub(crate) spoke: (usize, usize),
    pub(crate) spoke_rounds: usize,
    filter: Filter,
}

impl Plan {
    const FULL: Self = Self {
        smoke: false,
        meshes: &[
            (10, &[1024]),
            (50, &[1024]),
            (100, &[1024, 64]),
            (300, &[1024]),
        ],
        rounds: 11,
        burst_deliveries: 50_000,
        burst_events: (512, 2048),
        // Two seconds: in which each spoke that acknowledges rarely does so once, as it would at that pace for ever.
        paced_events: 100,
        pace: Duration::from_millis(20),
        idle_spokes: &[50, 300],
        idle_before: Duration::from_secs(2),
        idle_stir: Duration::from_secs(4),
        idle_for: Duration::from_secs(8),
        spoke: (10, 10),
        spoke_rounds: 5,
        filter: Filter::ALL,
    };
    const SMOKE: Self = Self {
        smoke: true,
        meshes: &[(4, &[1024])],
        rounds: 1,
        burst_deliveries: 64,
        burst_events: (1, 16),
        paced_events: 8,
        pace: Duration::from_millis(2),
        idle_spokes: &[4],
        idle_before: Duration::from_millis(100),
        idle_stir: Duration::from_millis(50),
        idle_for: Duration::from_millis(500),
        spoke: (4, 1),
        spoke_rounds: 1,
        filter: Filter::ALL,
    };

    /// Smoke-runs unless `cargo bench` called.
    pub(crate) fn from_args() -> Self {
        if is_smoke() {
            Self::SMOKE
        } else {
            Self {
                filter: Filter::from_args(),
                ..Self::FULL
            }
        }
    }

    /// Whether a part is asked for.
    pub(crate) fn has(&self, part: &str) -> bool {
        self.filter.takes(part)
    }

    /// Events of a burst: fewer where each is many deliveries.
    pub(crate) fn burst(&self, spokes: usize) -> usize {
        let (least, most) = self.burst_events;
        (self.burst_deliveries / spokes).clamp(least, most)
    }
}

//! What a user chooses: [`FanOut`]. What becomes of it for a spoke: [`Path`].

use std::{fmt, str::FromStr, time::Duration};

use n0_error::{e, stack_error};
use serde::{Deserialize, Serialize};

/// How the hub gets its broadcasts to the spokes.
///
/// Spokes cannot tell which from what they receive; it is a matter of cost. As a text it is `direct`,
/// `gossip` or `auto`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FanOut {
    /// Along the hub's stream to each spoke, always.
    Direct,
    /// Along the topic to every spoke that can gossip, always. The others are served directly.
    Gossip,
    /// Directly while the mesh is small, along the topic once that is cheaper.
    Auto(AutoFanOut),
}

impl Default for FanOut {
    fn default() -> Self {
        Self::Auto(AutoFanOut::default())
    }
}

impl fmt::Display for FanOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Gossip => "gossip",
            Self::Auto(_) => "auto",
        })
    }
}

/// A text that names no fan-out.
#[stack_error(derive, add_meta)]
#[error("a fan-out is one of direct, gossip and auto")]
pub struct ParseFanOutError;

impl FromStr for FanOut {
    type Err = ParseFanOutError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "direct" => Ok(Self::Direct),
            "gossip" => Ok(Self::Gossip),
            "auto" => Ok(Self::default()),
            _ => Err(e!(ParseFanOutError)),
        }
    }
}

/// When [`FanOut::Auto`] changes between the direct streams and the topic.
///
/// It goes to the topic when at least [`gossip_from`](Self::gossip_from) spokes can gossip; or when serving all
/// spokes directly would take more than 80% of the stated uplink and at least 8 spokes can gossip. It
/// goes back when fewer than [`direct_below`](Self::direct_below) can gossip and serving all directly would take
/// at most 50% of the uplink, and in any case when fewer than 4 can. Either has to be so for
/// [`settle`](Self::settle) without a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AutoFanOut {
    /// So many spokes that can gossip call for the topic. Default 32.
    pub gossip_from: usize,
    /// With fewer spokes that can gossip than this, direct streams do. Default 24; no more than
    /// [`gossip_from`](Self::gossip_from) has any effect.
    pub direct_below: usize,
    /// What the hub can send, in bytes per second. Unknown by default; then only the number of spokes counts.
    pub uplink_bytes_per_s: Option<u64>,
    /// For how long the reason for a change has to stand. Default 1 s.
    pub settle: Duration,
}

impl Default for AutoFanOut {
    fn default() -> Self {
        Self {
            gossip_from: 32,
            direct_below: 24,
            uplink_bytes_per_s: None,
            settle: Duration::from_secs(1),
        }
    }
}

/// The topic has to be worth its upkeep, however busy the uplink.
const MIN_CAPABLE: usize = 8;

impl AutoFanOut {
    /// The same with another [`gossip_from`](Self::gossip_from).
    #[must_use]
    pub const fn with_gossip_from(mut self, spokes: usize) -> Self {
        self.gossip_from = spokes;
        self
    }

    /// The same with another [`direct_below`](Self::direct_below).
    #[must_use]
    pub const fn with_direct_below(mut self, spokes: usize) -> Self {
        self.direct_below = spokes;
        self
    }

    /// The same with this [`uplink_bytes_per_s`](Self::uplink_bytes_per_s).
    #[must_use]
    pub const fn with_uplink_bytes_per_s(mut self, bytes_per_s: u64) -> Self {
        self.uplink_bytes_per_s = Some(bytes_per_s);
        self
    }

    /// The same with another [`settle`](Self::settle).
    #[must_use]
    pub const fn with_settle(mut self, settle: Duration) -> Self {
        self.settle = settle;
        self
    }

    /// Whether to gossip, given whether that is so now, with `spokes` in all of which `capable` can gossip.
    pub(super) fn wants_gossip(
        &self,
        gossip: bool,
        spokes: usize,
        capable: usize,
        bytes_per_s: u64,
    ) -> bool {
        let direct = (spokes as u128).saturating_mul(u128::from(bytes_per_s));
        // Whether serving all directly takes more than so much of the uplink.
        let busy = |percent: u128| {
            let uplink = self.uplink_bytes_per_s.map(u128::from);
            uplink.is_some_and(|uplink| direct.saturating_mul(100) > uplink.saturating_mul(percent))
        };
        if gossip {
            let few = capable < self.direct_below.min(self.gossip_from);
            !(few && (!busy(50) || capable < MIN_CAPABLE / 2))
        } else {
            capable >= self.gossip_from || (busy(80) && capable >= MIN_CAPABLE)
        }
    }
}

/// By which path a spoke is served now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Path {
    /// Along its stream.
    Direct,
    /// Along its stream still; it has been told to join the topic.
    Joining,
    /// Along the topic.
    Gossip,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Joining => "joining",
            Self::Gossip => "gossip",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fan_out_reads_back_what_it_prints() {
        for name in ["direct", "gossip", "auto"] {
            assert_eq!(name.parse::<FanOut>().unwrap().to_string(), name);
        }
        for bad in ["", "Auto", "direct ", "mesh"] {
            assert!(bad.parse::<FanOut>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_number_of_spokes_and_the_uplink_decide() {
        let auto = AutoFanOut::default();
        assert!(!auto.wants_gossip(false, 1000, 31, u64::MAX));
        assert!(auto.wants_gossip(false, 32, 32, 0));
        assert!(auto.wants_gossip(true, 24, 24, 0));
        assert!(!auto.wants_gossip(true, 1000, 23, u64::MAX));

        let auto = auto.with_uplink_bytes_per_s(1000);
        assert!(!auto.wants_gossip(false, 8, 8, 100));
        assert!(auto.wants_gossip(false, 8, 8, 101));
        assert!(!auto.wants_gossip(false, 100, 7, 101));
        assert!(auto.wants_gossip(true, 8, 8, 63));
        assert!(!auto.wants_gossip(true, 8, 8, 62));
        assert!(!auto.wants_gossip(true, 100, 3, u64::MAX));
    }

    #[test]
    fn thresholds_that_cross_do_not_flap() {
        let auto = AutoFanOut::default()
            .with_gossip_from(5)
            .with_direct_below(9);
        for capable in 0..20 {
            let gossip = auto.wants_gossip(false, capable, capable, 0);
            assert_eq!(auto.wants_gossip(gossip, capable, capable, 0), gossip);
        }
    }
}

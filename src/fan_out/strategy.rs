//! What a user chooses: [`FanOut`]. What becomes of it for a spoke: [`Path`].

use std::{fmt, str::FromStr, time::Duration};

use n0_error::{e, stack_error};
use serde::{Deserialize, Serialize};

use super::traffic::Traffic;

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
/// It goes to the topic for any of three reasons, if at least 8 spokes can gossip:
///
/// | reason | goes | goes back |
/// |---|---|---|
/// | all that is broadcast, sent to every spoke directly, takes so much of the [uplink](Self::uplink_bytes_per_s) | over 80% | at 50% |
/// | the largest event of the last minutes leaves the hub for the last spoke so much later directly: (spokes - 6) x bytes / uplink | over 10 ms and two round trips | at half of that |
/// | so many spokes can gossip | [`gossip_from`](Self::gossip_from) | fewer than [`direct_below`](Self::direct_below) |
///
/// It goes back when none of them stands any more, and in any case when fewer than 4 spokes can gossip. Either has to be so
/// for [`settle`](Self::settle) without a break.
///
/// # Why these numbers
///
/// They are what the crate's benches say; the figures are in `benches/README.md`.
///
/// - *Nothing speaks for the topic while the uplink suffices*: in every cell of `fan_out`, up to 300 spokes, direct streams
///   carry more and are sooner at the last spoke, for the tree costs each event four or five hops, each of which opens what
///   it passes on. So the number of spokes by itself decides late.
/// - *What is short first is the uplink*: `uplink` has 50 spokes and events of 16 KiB behind 10 Mbit/s. Directly that is
///   50 copies, 0.7 s to the last spoke; along the topic the hub sends one to each of at most 6 neighbours (`hub_cost` counts
///   the bytes), and an event is there in a tenth of the time. The difference is (spokes - 6) x bytes / uplink. Against it
///   stand the hops of the tree, four more than directly: each is half a round trip, and `fan_out` has some 10 ms for what
///   all of them do.
/// - *What is short next is the hub's processor*: `hub_cost` has some 30 us for each paced event and spoke directly. With 400
///   spokes and 50 events a second that is more than half a core, and a fraction of it along the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AutoFanOut {
    /// So many spokes that can gossip call for the topic, whatever is broadcast. Default 400.
    pub gossip_from: usize,
    /// With fewer spokes that can gossip than this, their number is no reason to stay. Default 300; no more than
    /// [`gossip_from`](Self::gossip_from) has any effect.
    pub direct_below: usize,
    /// What the hub can send, in bytes per second. Unknown by default, and taken for 100 Mbit/s, which is 12,500,000. Where
    /// nothing limits it, say [`u64::MAX`].
    pub uplink_bytes_per_s: Option<u64>,
    /// For how long the reason for a change has to stand. Default 1 s.
    pub settle: Duration,
}

impl Default for AutoFanOut {
    fn default() -> Self {
        Self {
            gossip_from: 400,
            direct_below: 300,
            uplink_bytes_per_s: None,
            settle: Duration::from_secs(1),
        }
    }
}

/// The topic has to be worth its upkeep, whatever the reason.
const MIN_CAPABLE: usize = 8;
/// An uplink that nobody has stated: 100 Mbit/s.
const ASSUMED_UPLINK: u64 = 12_500_000;
/// How many copies of an event the hub sends along the topic, at most.
const TOPIC_COPIES: u64 = 6;
/// What the hops of the tree take, without the way.
const TREE: Duration = Duration::from_millis(10);
/// How many hops there are more along the topic, times two: a hop is half a round trip.
const ROUND_TRIPS: u32 = 2;

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
        traffic: Traffic,
    ) -> bool {
        let uplink = u128::from(self.uplink_bytes_per_s.unwrap_or(ASSUMED_UPLINK).max(1));
        let copies = spokes as u64;
        let times = |copies: u64, bytes: u64| u128::from(copies).saturating_mul(bytes.into());
        // Whether serving all directly takes more than so much of the uplink.
        let busy = |percent: u128| {
            let direct = times(copies, traffic.bytes_per_s);
            direct.saturating_mul(100) > uplink.saturating_mul(percent)
        };
        // How much later the largest event may leave for the last spoke, and whether it would.
        let hops = traffic.rtt.unwrap_or_default().saturating_mul(ROUND_TRIPS);
        let worth = TREE.saturating_add(hops);
        let late = |than: Duration| {
            let more = times(copies.saturating_sub(TOPIC_COPIES), traffic.largest_event);
            more.saturating_mul(1_000_000) > uplink.saturating_mul(than.as_micros())
        };
        if gossip {
            let many = capable >= self.direct_below.min(self.gossip_from);
            many || (capable >= MIN_CAPABLE / 2 && (busy(50) || late(worth / 2)))
        } else {
            capable >= self.gossip_from || (capable >= MIN_CAPABLE && (busy(80) || late(worth)))
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

    fn steady(bytes_per_s: u64) -> Traffic {
        Traffic {
            bytes_per_s,
            ..Traffic::default()
        }
    }

    /// Events now and then, up to that size.
    fn rare(largest_event: u64) -> Traffic {
        Traffic {
            largest_event,
            ..Traffic::default()
        }
    }

    #[test]
    fn the_number_of_spokes_decides_whatever_is_broadcast() {
        let auto = AutoFanOut::default().with_uplink_bytes_per_s(u64::MAX);
        let most = Traffic {
            bytes_per_s: 1 << 40,
            largest_event: 1 << 30,
            rtt: None,
        };
        assert!(!auto.wants_gossip(false, 1000, 399, most));
        assert!(auto.wants_gossip(false, 400, 400, Traffic::default()));
        assert!(auto.wants_gossip(true, 300, 300, Traffic::default()));
        assert!(!auto.wants_gossip(true, 1000, 299, most));
    }

    #[test]
    fn a_busy_uplink_decides() {
        let auto = AutoFanOut::default().with_uplink_bytes_per_s(1000);
        assert!(!auto.wants_gossip(false, 8, 8, steady(100)));
        assert!(auto.wants_gossip(false, 8, 8, steady(101)));
        assert!(!auto.wants_gossip(false, 100, 7, steady(101)));
        assert!(auto.wants_gossip(true, 8, 8, steady(63)));
        assert!(!auto.wants_gossip(true, 8, 8, steady(62)));
        assert!(!auto.wants_gossip(true, 100, 3, steady(u64::MAX)));
    }

    #[test]
    fn a_large_event_that_would_be_late_decides_however_rare_it_is() {
        // What `uplink` measures: 10 Mbit/s, 50 spokes, 16 KiB and 1 KiB.
        let auto = AutoFanOut::default().with_uplink_bytes_per_s(1_250_000);
        let far = |traffic| Traffic {
            rtt: Some(Duration::from_millis(20)),
            ..traffic
        };
        assert!(auto.wants_gossip(false, 50, 50, rare(16 << 10)));
        assert!(auto.wants_gossip(false, 50, 50, far(rare(16 << 10))));
        assert!(auto.wants_gossip(false, 50, 50, rare(1 << 10)));
        // The hops take as long as 44 events of 1 KiB.
        assert!(!auto.wants_gossip(false, 50, 50, far(rare(1 << 10))));
        assert!(auto.wants_gossip(true, 50, 50, far(rare(1 << 10))));
        assert!(!auto.wants_gossip(true, 50, 50, far(rare(500))));
        // An uplink that nobody states is one of 100 Mbit/s.
        let auto = AutoFanOut::default();
        assert!(!auto.wants_gossip(false, 128, 128, rare(1 << 10)));
        assert!(auto.wants_gossip(false, 130, 130, rare(1 << 10)));
    }

    #[test]
    fn thresholds_that_cross_do_not_flap() {
        let auto = AutoFanOut::default()
            .with_gossip_from(5)
            .with_direct_below(9);
        for capable in 0..20 {
            let gossip = auto.wants_gossip(false, capable, capable, Traffic::default());
            let again = auto.wants_gossip(gossip, capable, capable, Traffic::default());
            assert_eq!(again, gossip);
        }
    }
}

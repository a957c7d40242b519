//! What a user chooses: [`FanOut`]. What becomes of it for a spoke: [`Path`].

use std::{fmt, str::FromStr, time::Duration};

use n0_error::{e, stack_error};
use serde::{Deserialize, Serialize};

use super::traffic::Lately;
use crate::wire::native::MAX_PART;

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
/// It goes to the topic for any of three reasons, the first two of which count if at least 8 spokes can gossip:
///
/// | reason | goes | goes back |
/// |---|---|---|
/// | all that is broadcast, sent to every spoke directly, takes so much of the [uplink](Self::uplink_bytes_per_s), and the topic would save at least a quarter of it | over 80% now | at 50% or less in the busiest fifth of a second of the last minutes, or if it saves less than an eighth |
/// | the largest event of the last minutes is at the last spoke so much sooner as the copies take that need not be waited for: (spokes that can gossip - twice the hops) x bytes / uplink | longer than all hops but the first take: half a round trip and 1 ms each | at half of that |
/// | so many spokes can gossip | [`gossip_from`](Self::gossip_from) | fewer than [`direct_below`](Self::direct_below) |
///
/// *Saved* are the spokes that can gossip, but 5: so many copies the hub sends along the topic itself.
///
/// It goes back when none of them stands any more. Either has to be so for [`settle`](Self::settle) without a break. The
/// last minutes are 5 to 10, so that bursts, or large events now and then, do not begin a topic each time.
///
/// # Why these numbers
///
/// They are what the crate's benches say; `benches/README.md` has the figures of the last run, and `cargo bench --bench
/// report` makes it.
///
/// - *Nothing speaks for the topic while the uplink suffices*: `fan_out` has 8, 32, 100 and 300 spokes over loopback. There
///   direct streams carry more, or as much, and are sooner at the last spoke, for the tree costs each event four or five
///   hops, each of which opens what it passes on. So the number of spokes by itself decides late.
/// - *What is short first is the uplink*: `uplink` has 50 spokes and events of 16 KiB behind 10 Mbit/s. Directly that is
///   50 copies, 0.7 s to the last spoke; along the topic the hub sends one to each of its 4 neighbours, 5 with all that the
///   topic says besides (`hub_cost` counts the bytes), and an event is there in a tenth of the time.
/// - *Against that stand the hops of the tree*: 3 for fewer than 20 spokes, 4 for fewer than 60, and so on by threes
///   (`simulate`; the last spoke of all may be one further, of 10,000 two, and of 100,000 four). Each is half a round trip, and takes 1 ms besides (`fan_out`). At each, a spoke has whole what it passes on,
///   to up to 4 others one after the other, and two copies leave until the one that the last spoke waits for has left. How fast
///   they do is not known; spokes are taken for no faster than the hub. `iroh-hub simulate --bandwidth` limits them all: hops and
///   copies hold there from 8 to 300 spokes; `uplink`, where nothing limits the spokes, beats what is reckoned here. Larger
///   events travel in parts of 64 KiB, and a hop waits for a part only, while the hub sends 5 copies of the rest. Each copy
///   counts 90 bytes more than the event, which is what the protocols below add.
/// - *An uplink that is not stated* may be ten times the 100 Mbit/s that it is taken for, so the topic has to be sooner by twice
///   as much: with events of 1 KiB and spokes next door, from 100 of them on.
/// - *What is short next is the hub's processor*: `hub_cost` has 32 to 42 us for each paced event and spoke directly, from 50 on. With 400
///   spokes and 50 events a second that is more than half a core, and less than half of that along the topic.
/// - *What no bench decides*: 80% and 50%, a quarter and an eighth, 400 and 300, and the second lie apart so that what wavers by a
///   third does not move every spoke to and fro. Of 8 spokes the topic saves three eighths, at 5 copies. And no bench goes beyond 300
///   spokes: in `fan_out` an event takes longer to those by the topic, up to forty times, on two cores that do the work of all
///   nodes; it is the hub's share of that which 400 is about.
///
/// How many events there are a second, and what they cost the hub's processor, is not looked at beyond that number of spokes.
/// A delivery along a direct stream costs the hub 1.2 times what a bare stream costs when paced, and 0.6 to 0.8 times in a burst, which
/// shares writes (`hub_cost`), and with 100 spokes on two cores direct streams are ahead of the topic in events a second and in time to the
/// last spoke alike (`fan_out`): up to there a busy processor is no reason to change. If the hub's processor is what you have little of, choose
/// [`FanOut::Gossip`], or a smaller [`gossip_from`](Self::gossip_from).
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

/// The topic has to be worth its upkeep.
const MIN_CAPABLE: usize = 8;
/// An uplink that nobody has stated: 100 Mbit/s.
const ASSUMED_UPLINK: u64 = 12_500_000;
/// How many copies of an event the hub sends along the topic.
const TOPIC_COPIES: usize = 5;
/// How many copies leave a node, the hub too, until the one has left that the last spoke waits for: of 4, on average.
const COPIES_A_HOP: u64 = 2;
/// What a hop takes, without the way and what is sent.
const HOP: Duration = Duration::from_millis(1);
/// What the protocols below add to an event on its way, in bytes.
const HEADERS: u64 = 90;

/// How many hops it is to the last of so many, the first one included.
fn hops(spokes: usize) -> u32 {
    (spokes / 20).checked_ilog(3).map_or(3, |more| 4 + more)
}

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
        lately: Lately,
    ) -> bool {
        let many = match gossip {
            false => capable >= self.gossip_from,
            true => capable >= self.direct_below.min(self.gossip_from),
        };
        let enough = gossip || capable >= MIN_CAPABLE;
        many || (enough
            && (self.busy(gossip, spokes, capable, lately) || self.late(gossip, capable, lately)))
    }

    /// Whether serving all directly takes so much of the uplink, and the topic would make that clearly less.
    fn busy(&self, gossip: bool, spokes: usize, capable: usize, lately: Lately) -> bool {
        // To begin a topic for the next burst costs more than to keep it over the pause.
        let (percent, bytes_per_s, one_in) = match gossip {
            false => (80, lately.bytes_per_s, 4),
            true => (50, lately.most_bytes_per_s, 8),
        };
        let saves = saved(capable).saturating_mul(one_in) >= spokes && saved(capable) > 0;
        saves
            && times(spokes, bytes_per_s).saturating_mul(100)
                > self.uplink().saturating_mul(percent)
    }

    /// Whether the largest event is at the last spoke sooner along the tree, on an uplink that is idle.
    fn late(&self, gossip: bool, capable: usize, lately: Lately) -> bool {
        if lately.largest_event == 0 {
            return false;
        }
        let event = lately.largest_event.saturating_add(HEADERS);
        let part = event.min(MAX_PART as u64);
        let hops = hops(capable);
        let direct = times(capable, event);
        let tree = times(TOPIC_COPIES, event - part)
            .saturating_add(u128::from(part * COPIES_A_HOP * u64::from(hops)));
        let way = lately.rtt.unwrap_or_default() / 2;
        let longer = way.saturating_add(HOP).saturating_mul(hops - 1);
        // In millionths of a byte that the uplink carries meanwhile.
        let sooner = direct.saturating_sub(tree).saturating_mul(1_000_000);
        let longer = self.uplink().saturating_mul(longer.as_micros());
        let doubt = if self.uplink_bytes_per_s.is_some() {
            1
        } else {
            2
        };
        sooner.saturating_mul(if gossip { 2 } else { 1 }) > longer.saturating_mul(doubt)
    }

    fn uplink(&self) -> u128 {
        u128::from(self.uplink_bytes_per_s.unwrap_or(ASSUMED_UPLINK).max(1))
    }
}

/// How many copies the hub need not send if there is a topic.
const fn saved(capable: usize) -> usize {
    capable.saturating_sub(TOPIC_COPIES)
}

fn times(copies: usize, bytes: u64) -> u128 {
    (copies as u128).saturating_mul(bytes.into())
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

    const MBIT: u64 = 125_000;
    const KIB: u64 = 1 << 10;

    fn steady(bytes_per_s: u64) -> Lately {
        Lately {
            bytes_per_s,
            most_bytes_per_s: bytes_per_s,
            ..Lately::default()
        }
    }

    /// Events now and then, up to that size.
    fn rare(largest_event: u64) -> Lately {
        Lately {
            largest_event,
            ..Lately::default()
        }
    }

    fn far(ms: u64, lately: Lately) -> Lately {
        Lately {
            rtt: Some(Duration::from_millis(ms)),
            ..lately
        }
    }

    #[test]
    fn the_number_of_spokes_decides_whatever_is_broadcast() {
        let auto = AutoFanOut::default().with_uplink_bytes_per_s(u64::MAX);
        let most = Lately {
            largest_event: 1 << 30,
            ..steady(1 << 40)
        };
        assert!(!auto.wants_gossip(false, 1000, 399, most));
        assert!(auto.wants_gossip(false, 400, 400, Lately::default()));
        assert!(auto.wants_gossip(true, 300, 300, Lately::default()));
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
    }

    #[test]
    fn an_uplink_that_the_topic_would_hardly_relieve_does_not_decide() {
        let auto = AutoFanOut::default().with_uplink_bytes_per_s(1000);
        let most = steady(u64::MAX);
        // A quarter is saved, and an eighth on the way back.
        assert!(auto.wants_gossip(false, 40, 15, most));
        assert!(!auto.wants_gossip(false, 41, 15, most));
        assert!(auto.wants_gossip(true, 80, 15, most));
        assert!(!auto.wants_gossip(true, 81, 15, most));
        // Nothing is, however few there are.
        assert!(!auto.wants_gossip(true, 5, 5, most));
        assert!(!auto.wants_gossip(true, 0, 0, most));
    }

    #[test]
    fn a_burst_keeps_the_topic_when_it_is_over_and_does_not_begin_one() {
        let auto = AutoFanOut::default().with_uplink_bytes_per_s(1000);
        let over = Lately {
            bytes_per_s: 0,
            ..steady(63)
        };
        assert!(auto.wants_gossip(true, 8, 8, over));
        let over = Lately {
            bytes_per_s: 0,
            ..steady(1000)
        };
        assert!(!auto.wants_gossip(false, 8, 8, over));
    }

    #[test]
    fn an_event_that_would_be_late_decides_however_rare_it_is() {
        // What `uplink` measures: 10 Mbit/s, 50 spokes, 16 KiB and 1 KiB.
        let auto = AutoFanOut::default().with_uplink_bytes_per_s(10 * MBIT);
        for ms in [0, 20, 40] {
            assert!(auto.wants_gossip(false, 50, 50, far(ms, rare(16 * KIB))));
        }
        for ms in [0, 20] {
            assert!(auto.wants_gossip(false, 50, 50, far(ms, rare(KIB))));
        }
        // Three more hops take as long as 42 events of 1 KiB.
        assert!(!auto.wants_gossip(false, 50, 50, far(40, rare(KIB))));
        assert!(auto.wants_gossip(true, 50, 50, far(40, rare(KIB))));
        assert!(!auto.wants_gossip(true, 50, 50, far(60, rare(KIB))));
        let auto = AutoFanOut::default().with_uplink_bytes_per_s(100 * MBIT);
        assert!(!auto.wants_gossip(false, 41, 41, rare(KIB)));
        assert!(auto.wants_gossip(false, 42, 42, rare(KIB)));
        // One that nobody states is taken for as fast, and that is doubted.
        let auto = AutoFanOut::default();
        assert!(!auto.wants_gossip(false, 99, 99, rare(KIB)));
        assert!(auto.wants_gossip(false, 100, 100, rare(KIB)));
    }

    #[test]
    fn what_simulate_has_with_all_uplinks_limited_is_chosen() {
        // `simulate --bandwidth 1250000B --delay .. --jitter 0`: ms to the last spoke, directly and along the topic.
        let auto = AutoFanOut::default().with_uplink_bytes_per_s(10 * MBIT);
        for (spokes, rtt, bytes, direct, gossip) in [
            (8, 20, 1024, 16.7, 33.8),
            (8, 20, 61_000, 400.5, 264.7),
            (16, 20, 1024, 23.3, 36.7),
            (16, 20, 16_384, 220.0, 122.7),
            (16, 40, 1024, 33.3, 64.8),
            (16, 40, 61_000, 801.0, 304.7),
            (24, 20, 1024, 30.0, 47.6),
            (24, 20, 16_384, 324.9, 145.9),
            (32, 20, 1024, 36.7, 45.7),
            (32, 40, 16_384, 439.9, 179.2),
            (50, 0, 1024, 41.7, 9.5),
            (50, 20, 1024, 51.7, 48.6),
            (50, 40, 1024, 61.7, 89.5),
            (100, 20, 1024, 93.4, 62.4),
            (100, 40, 1024, 103.4, 131.4),
            (300, 20, 1024, 260.1, 72.4),
            (300, 40, 1024, 270.1, 131.4),
        ] {
            let wants = auto.wants_gossip(false, spokes, spokes, far(rtt, rare(bytes)));
            assert_eq!(
                wants,
                gossip < direct,
                "{spokes} spokes, {rtt} ms, {bytes} B"
            );
        }
    }

    #[test]
    fn fewer_than_eight_stay_direct_whatever_they_get() {
        for mbit in [1, 10, 100, 1000] {
            let auto = AutoFanOut::default().with_uplink_bytes_per_s(mbit * MBIT);
            for spokes in 0..8 {
                for kib in [1, 16, 60, 1 << 20] {
                    let wants = auto.wants_gossip(false, spokes, spokes, rare(kib * KIB));
                    assert!(!wants, "{mbit} Mbit/s, {spokes} spokes, {kib} KiB");
                }
            }
        }
    }

    #[test]
    fn what_spokes_have_to_pass_on_keeps_small_meshes_direct() {
        let auto = AutoFanOut::default().with_uplink_bytes_per_s(100 * MBIT);
        for (spokes, kib) in [(8, 1), (8, 60), (12, 16), (16, 16), (24, 8)] {
            let wants = auto.wants_gossip(false, spokes, spokes, far(40, rare(kib * KIB)));
            assert!(!wants, "{spokes} spokes, {kib} KiB");
        }
        // What travels part by part is passed on before it is there.
        assert!(auto.wants_gossip(false, 8, 8, far(40, rare(1 << 20))));
    }

    #[test]
    fn only_the_copies_that_are_saved_are_sooner() {
        let auto = AutoFanOut::default().with_uplink_bytes_per_s(10 * MBIT);
        assert!(!auto.wants_gossip(false, 1000, 9, far(40, rare(16 * KIB))));
        assert!(auto.wants_gossip(false, 1000, 50, far(40, rare(16 * KIB))));
    }

    #[test]
    fn the_way_to_the_last_grows_as_a_logarithm() {
        let all = [0, 8, 19, 20, 59, 60, 179, 180, 10_000, usize::MAX].map(hops);
        assert_eq!(all, [3, 3, 3, 4, 4, 5, 5, 6, 9, 41]);
    }

    #[test]
    fn thresholds_that_cross_do_not_flap() {
        let auto = AutoFanOut::default()
            .with_gossip_from(5)
            .with_direct_below(9);
        for capable in 0..20 {
            let gossip = auto.wants_gossip(false, capable, capable, Lately::default());
            let again = auto.wants_gossip(gossip, capable, capable, Lately::default());
            assert_eq!(again, gossip);
        }
    }

    #[test]
    fn what_goes_for_the_topic_does_not_go_back_at_once() {
        for mbit in [1, 10, 100] {
            let auto = AutoFanOut::default().with_uplink_bytes_per_s(mbit * MBIT);
            for capable in 0..50 {
                for spokes in [capable, capable + 20] {
                    for kib in [0, 1, 16, 64, 4096] {
                        for lately in [rare(kib * KIB), steady(kib * KIB), far(50, rare(kib * KIB))]
                        {
                            let gossip = auto.wants_gossip(false, spokes, capable, lately);
                            let again = auto.wants_gossip(true, spokes, capable, lately);
                            assert!(!gossip || again, "{auto:?} {spokes} {capable} {lately:?}");
                        }
                    }
                }
            }
        }
    }
}

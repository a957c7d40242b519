//! What a hub says of its health.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    Inner,
    gossip_link::Probe,
    link::Link,
    vitals::{Disk, PathVitals, Sign, Vitals},
};
use crate::{fan_out::Path, metrics::HealthMetrics, position::Position};

/// How a hub does, as [`Hub::health`](super::Hub::health) finds it.
///
/// As JSON it is one object; times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// Nothing is wrong. Never so while a backlog grows.
    pub healthy: bool,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// The position that the next event will get.
    pub tip: Position,
    /// How many spokes are away, for which targeted events are kept.
    pub away: usize,
    /// The spokes that are served along their links.
    pub direct: PathHealth,
    /// The spokes that the topic serves.
    pub gossip: PathHealth,
    /// The topic itself.
    pub topic: TopicHealth,
    /// What was sent again since the hub began.
    pub repair: RepairHealth,
}

/// Something that is wrong with a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Problem {
    /// So many spokes on this path have not acknowledged what is older than two seconds, and twice
    /// the interval at which they acknowledge.
    Behind {
        /// Which path: [`Path::Direct`] or [`Path::Gossip`].
        path: Path,
        /// How many spokes.
        spokes: usize,
    },
    /// The spokes on this path that acknowledge fast are farther behind all the time.
    BacklogGrows {
        /// Which path: [`Path::Direct`] or [`Path::Gossip`].
        path: Path,
    },
    /// The topic reaches nobody, or the hub has no neighbours on it.
    TopicStalled,
    /// The last topic has failed, everyone is served directly, and another one is going to be begun.
    TopicRebuilding,
    /// The log cannot be written: nothing is broadcast any more.
    LogFailed,
    /// Events have waited for the disk for more than two seconds, and none was synced meanwhile.
    LogStalled,
    /// The task that looks after the spokes has not run for seconds.
    Unattended,
    /// No connections are taken any more: the endpoint was closed, or the task that takes them has failed. Where the hub is on
    /// a router of yours, only the former is seen.
    NotAccepting,
    /// The hub is ending, or has ended.
    Ending,
}

/// How the spokes on one path do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PathHealth {
    /// How many there are.
    pub spokes: usize,
    /// How many of them are behind; see [`Problem::Behind`].
    pub behind: usize,
    /// How many events lie between the tip and what the one farthest behind has acknowledged.
    pub backlog_events: u64,
    /// The bytes of these, as far as the log still has them.
    pub backlog_bytes: u64,
    /// How old the oldest event is that one of them has not acknowledged, to a fifth of a second or of its age, whichever is
    /// more.
    pub oldest_unacked_ms: u64,
}

/// How the topic does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TopicHealth {
    /// Whether there is one, and whether it delivers.
    pub state: TopicState,
    /// How many neighbours the hub has on it.
    pub neighbors: usize,
    /// How many events of the log have not been sent on it yet.
    pub unsent_events: u64,
    /// How often one has failed.
    pub failed: u64,
    /// How often one was begun in place of one that failed.
    pub rebuilt: u64,
}

/// What becomes of the topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TopicState {
    /// There is none, and none is called for.
    #[default]
    None,
    /// It serves nobody yet.
    Starting,
    /// It delivers.
    Alive,
    /// It reaches nobody, or the hub has no neighbours on it.
    Stalled,
    /// It has failed, and another one is going to be begun.
    Rebuilding,
}

/// What was sent again, or around the topic, since the hub began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RepairHealth {
    /// Ranges that spokes wanted again.
    pub wants: u64,
    /// Ranges that went to one spoke, along its link.
    pub direct: u64,
    /// Pieces of the log that went on the topic again.
    pub rebroadcasts: u64,
    /// Bytes along links, again or because the topic does not reach their spoke.
    pub bytes: u64,
    /// Times that a spoke was served directly because the topic did not reach it.
    pub served_around: u64,
}

/// So long without a look at the spokes is a hub that does not look after them.
const UNATTENDED: Duration = Duration::from_secs(5);

/// What the switchboard leaves for whoever asks.
#[derive(Debug, Default)]
pub(super) struct Board {
    pub(super) vitals: Vitals,
    pub(super) disk: Disk,
    pub(super) state: TopicState,
    pub(super) probe: Option<Probe>,
    /// How often spokes acknowledge that are not fast ones.
    pub(super) slow_every: Duration,
}

/// So long after a spoke was told to acknowledge fast, it is not taken for slow if it does not yet.
const SETTLED: Duration = Duration::from_secs(3);

/// What the links say.
pub(super) fn signs(now: Instant, links: &[Arc<Link>]) -> Vec<Sign> {
    let sign = |link: &Arc<Link>| Sign {
        on_topic: link.path() == Path::Gossip,
        acked: link.acked(),
        fast: link.is_fast_for(now, SETTLED),
    };
    links.iter().map(sign).collect()
}

impl Inner {
    /// Looks at the hub as it is now, with these links.
    pub(super) fn examine(&self, links: &[Arc<Link>]) -> Health {
        let now = Instant::now();
        let signs = signs(now, links);
        // Behind the signs, so that nobody is ahead of it.
        let tip = self.log.tip_position();
        let board = self.board();
        let examine = |on_topic| {
            let every = board.slow_every;
            board
                .vitals
                .examine(now, tip.offset, &signs, on_topic, every)
        };
        let paths = [
            (Path::Direct, examine(false)),
            (Path::Gossip, examine(true)),
        ];
        let unseen = board.vitals.unseen(now);
        let log_stalled = board.disk.is_stalled(now);
        let state = board.state;
        let standing = board.probe.as_ref().map(Probe::standing);
        drop(board);

        let mut problems = Vec::new();
        if self.is_ending() {
            problems.push(Problem::Ending);
        } else if self.takes_none.load(Ordering::Acquire) || self.endpoint.is_closed() {
            problems.push(Problem::NotAccepting);
        }
        if self.log.failure().is_some() {
            problems.push(Problem::LogFailed);
        } else if log_stalled {
            problems.push(Problem::LogStalled);
        }
        if unseen > UNATTENDED {
            problems.push(Problem::Unattended);
        }
        match state {
            TopicState::Stalled => problems.push(Problem::TopicStalled),
            TopicState::Rebuilding => problems.push(Problem::TopicRebuilding),
            TopicState::None | TopicState::Starting | TopicState::Alive => {}
        }
        for (path, vitals) in paths {
            if vitals.behind > 0 {
                let spokes = vitals.behind;
                problems.push(Problem::Behind { path, spokes });
            }
            if vitals.grows {
                problems.push(Problem::BacklogGrows { path });
            }
        }
        let [direct, gossip] = paths.map(|(_, vitals)| self.path_health(tip.offset, vitals));
        let (topic, repair) = (&self.metrics.topic, &self.metrics.repair);
        Health {
            healthy: problems.is_empty(),
            problems,
            tip,
            away: usize::try_from(self.metrics.spokes.away.get()).unwrap_or(0),
            direct,
            gossip,
            topic: TopicHealth {
                state,
                neighbors: standing.map_or(0, |standing| standing.neighbors),
                unsent_events: standing.map_or(0, |s| tip.offset.saturating_sub(s.sent)),
                failed: topic.failed.get(),
                rebuilt: topic.rebuilt.get(),
            },
            repair: RepairHealth {
                wants: repair.wants.get(),
                direct: repair.direct.get(),
                rebroadcasts: repair.rebroadcasts.get(),
                bytes: repair.bytes.get(),
                served_around: repair.served_around.get(),
            },
        }
    }

    fn path_health(&self, tip: u64, vitals: PathVitals) -> PathHealth {
        PathHealth {
            spokes: vitals.spokes,
            behind: vitals.behind,
            backlog_events: tip.saturating_sub(vitals.lowest),
            backlog_bytes: self.log.bytes_from(vitals.lowest),
            oldest_unacked_ms: u64::try_from(vitals.oldest.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Sets the gauges to what was found.
pub(super) fn observe(health: &Health, metrics: &HealthMetrics) {
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    metrics.healthy.set(health.healthy.into());
    let not_accepting = health.problems.contains(&Problem::NotAccepting);
    metrics.not_accepting.set(not_accepting.into());
    metrics.topic_state.set(health.topic.state as i64);
    metrics.neighbors.set(gauge(health.topic.neighbors as u64));
    let (direct, gossip) = (&health.direct, &health.gossip);
    metrics.direct_spokes.set(gauge(direct.spokes as u64));
    metrics.direct_behind.set(gauge(direct.behind as u64));
    metrics
        .direct_backlog_events
        .set(gauge(direct.backlog_events));
    metrics
        .direct_backlog_bytes
        .set(gauge(direct.backlog_bytes));
    metrics
        .direct_oldest_unacked_ms
        .set(gauge(direct.oldest_unacked_ms));
    metrics.gossip_spokes.set(gauge(gossip.spokes as u64));
    metrics.gossip_behind.set(gauge(gossip.behind as u64));
    metrics
        .gossip_backlog_events
        .set(gauge(gossip.backlog_events));
    metrics
        .gossip_backlog_bytes
        .set(gauge(gossip.backlog_bytes));
    metrics
        .gossip_oldest_unacked_ms
        .set(gauge(gossip.oldest_unacked_ms));
}

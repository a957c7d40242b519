//! One storm: all begin at the same moment, and each tells when it was welcomed.

use std::time::{Duration, Instant};

use iroh::Endpoint;
use iroh_hub::endpoint::bind_local;
use tokio::task::JoinSet;

use crate::{bare, common::Result, dropped, hub, usage::Usage};

/// What the spokes run against.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Storm {
    Bare,
    Direct,
    Gossip,
    DirectDefaults,
}

impl Storm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Direct => "direct",
            Self::Gossip => "gossip",
            Self::DirectDefaults => "direct_default_limits",
        }
    }

    /// Binds everything, and lets the storm begin.
    pub(crate) async fn run(self, spokes: usize) -> Result<Times> {
        let mut endpoints = Vec::with_capacity(spokes);
        for _ in 0..spokes {
            endpoints.push(bind_local().await?);
        }
        match self {
            Self::Bare => bare::storm(endpoints).await,
            Self::Direct | Self::Gossip | Self::DirectDefaults => hub::storm(self, endpoints).await,
        }
    }
}

/// How long a storm took, from the moment of arrival.
#[derive(Debug)]
pub(crate) struct Times {
    /// Until each spoke was welcomed, sorted.
    pub(crate) welcomed: Vec<Duration>,
    /// CPU time of this process until all were.
    pub(crate) cpu: Duration,
    /// Datagrams that sockets had no room for until then.
    pub(crate) dropped: Option<u64>,
    /// Connects that failed, and what the first of them said.
    pub(crate) failed: (usize, Option<String>),
    /// Until all had heard a broadcast.
    pub(crate) heard: Option<Duration>,
    /// Until the topic served all.
    pub(crate) on_topic: Option<Duration>,
    /// How many it did not serve at last.
    pub(crate) left_out: usize,
}

impl Times {
    pub(crate) const CASES: [&'static str; 6] = [
        "all_welcomed",
        "all_welcomed_cpu",
        "one_spoke_p50",
        "one_spoke_p99",
        "all_heard",
        "all_on_topic",
    ];

    /// What one case came to, in milliseconds.
    pub(crate) fn ms(&self, case: &str) -> Option<f64> {
        let at = |percent: usize| {
            let last = self.welcomed.len().checked_sub(1)?;
            self.welcomed.get(last * percent / 100).copied()
        };
        let time = match case {
            // Without those that failed it would be the time of some.
            "all_welcomed" | "all_welcomed_cpu" if self.failed.0 > 0 => None,
            "all_welcomed" => at(100),
            "all_welcomed_cpu" => Some(self.cpu),
            "one_spoke_p50" => at(50),
            "one_spoke_p99" => at(99),
            "all_heard" => self.heard,
            "all_on_topic" => self.on_topic,
            _ => None,
        };
        Some(time?.as_secs_f64() * 1e3)
    }

    pub(crate) fn report_failures(&self, storm: Storm, spokes: usize) {
        if let (failed, Some(why)) = &self.failed {
            let name = storm.name();
            eprintln!(
                "{name}/{spokes}: {failed} spokes were not welcomed, the first of them: {why}"
            );
        }
    }
}

/// Those that were welcomed, with what they hold, and the times.
pub(crate) struct Arrived<T> {
    pub(crate) began: Instant,
    pub(crate) spokes: Vec<T>,
    pub(crate) times: Times,
}

/// Has each endpoint connect, all at once.
pub(crate) async fn arrive<T, F>(
    endpoints: &[Endpoint],
    connect: impl Fn(Endpoint) -> F,
) -> Arrived<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut connecting = JoinSet::new();
    let (used, dropped) = (Usage::now(0), dropped::so_far());
    let began = Instant::now();
    for endpoint in endpoints {
        let connect = connect(endpoint.clone());
        connecting.spawn(async move { connect.await.map(|spoke| (began.elapsed(), spoke)) });
    }
    let mut spokes = Vec::with_capacity(endpoints.len());
    let mut welcomed = Vec::with_capacity(endpoints.len());
    let mut failed = (0, None);
    while let Some(connected) = connecting.join_next().await {
        match connected
            .map_err(Into::into)
            .and_then(|connected| connected)
        {
            Ok((time, spoke)) => {
                welcomed.push(time);
                spokes.push(spoke);
            }
            Err(error) => {
                failed.0 += 1;
                failed.1.get_or_insert(error.to_string());
            }
        }
    }
    let used = Usage::now(0).since(used);
    let dropped = dropped::so_far().zip(dropped);
    welcomed.sort();
    let times = Times {
        welcomed,
        cpu: Duration::from_micros(used.cpu_us),
        dropped: dropped.map(|(after, before)| after.saturating_sub(before)),
        failed,
        heard: None,
        on_topic: None,
        left_out: 0,
    };
    Arrived {
        began,
        spokes,
        times,
    }
}

//! A paced load: numbered events, written to a hub's stdin at a rate that does not depend on how it fares.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use iroh_hub::Envelope;
use tokio::{
    io::AsyncWriteExt,
    process::ChildStdin,
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::common::LIMIT;

/// How many events a load may have.
const MOST: usize = 1 << 20;

/// How much is written, and when.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub every: Duration,
    /// Events at a time: they share a frame on the topic.
    pub batch: u64,
    /// Bytes of filling in each.
    pub size: usize,
}

impl Pace {
    pub fn events_per_s(self) -> f64 {
        self.batch as f64 / self.every.as_secs_f64()
    }
}

/// When each event was written. Clones are the same.
#[derive(Clone, Debug)]
pub struct Clock {
    base: Instant,
    at_ns: Arc<Vec<AtomicU64>>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            at_ns: Arc::new((0..MOST).map(|_| AtomicU64::new(0)).collect()),
        }
    }
}

impl Clock {
    fn set(&self, n: u64) {
        if let Some(at) = self.at_ns.get(n as usize) {
            let ns = self.base.elapsed().as_nanos();
            at.store(u64::try_from(ns).unwrap_or(u64::MAX), Ordering::Release);
        }
    }

    /// When event `n` was written.
    pub fn written(&self, n: u64) -> Instant {
        let at = self.at_ns.get(n as usize);
        let ns = at.map_or(0, |at| at.load(Ordering::Acquire));
        self.base + Duration::from_nanos(ns)
    }
}

/// The line of event `n`, for `hub --input json`. The payload is `[n, filling]`.
pub fn line(n: u64, size: usize) -> String {
    let filling = "x".repeat(size);
    format!("{{\"type\":\"n\",\"payload\":[{n},\"{filling}\"]}}\n")
}

/// Writes event `n` alone.
pub async fn put(stdin: &mut ChildStdin, n: u64) {
    let writing = async {
        stdin.write_all(line(n, 0).as_bytes()).await?;
        stdin.flush().await
    };
    let written = timeout(LIMIT, writing).await.expect("the hub reads");
    written.expect("the hub is there");
}

/// The same event for a hub inside of the test.
pub fn event(n: u64, size: usize) -> Envelope {
    Envelope::new("n", &(n, "x".repeat(size))).expect("a pair is JSON")
}

/// A load that runs.
pub struct Load {
    task: JoinHandle<(ChildStdin, u64)>,
    stop: watch::Sender<bool>,
}

impl Load {
    /// Writes events from number `first` on, until it is stopped or nobody reads any more.
    pub fn start(mut stdin: ChildStdin, first: u64, pace: Pace, clock: Clock) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut tick = interval(pace.every);
            tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut n = first;
            loop {
                tokio::select! {
                    biased;
                    _ = stopped.wait_for(|stop| *stop) => break,
                    _ = tick.tick() => {}
                }
                let mut lines = String::new();
                for n in n..n + pace.batch {
                    lines.push_str(&line(n, pace.size));
                    clock.set(n);
                }
                let writing = async {
                    stdin.write_all(lines.as_bytes()).await?;
                    stdin.flush().await
                };
                // A hub that is stuck must not hang the test.
                let written = tokio::select! {
                    written = writing => written,
                    _ = stopped.wait_for(|stop| *stop) => break,
                };
                n += pace.batch;
                if written.is_err() {
                    break;
                }
            }
            (stdin, n)
        });
        Self { task, stop }
    }

    /// Gives back the hub's stdin, and the number of the next event.
    pub async fn stop(self) -> (ChildStdin, u64) {
        self.stop.send_replace(true);
        self.task.await.expect("no panic")
    }
}

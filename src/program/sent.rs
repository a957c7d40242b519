//! What becomes of the events that a hub sends to single spokes, and of those that a spoke sends to its hub.

use iroh::EndpointId;
use iroh_hub::{Loss, SendReceipt, Undelivered};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};

use super::say::say;

/// How many events may be on their way; the input waits beyond. More than one spoke has room for.
const ON_THE_WAY: usize = 16_384;

/// Watches every event to its end, on a task of its own, and says which were lost.
#[derive(Debug)]
pub(super) struct Sent {
    to: Watcher,
    watching: JoinHandle<u64>,
}

/// Where receipts go to be watched.
#[derive(Clone, Debug)]
pub(super) struct Watcher(mpsc::Sender<Line>);

/// A line of stdin, to whom it went if not to all there is, and its receipt.
type Line = (u64, Option<EndpointId>, SendReceipt);

impl Watcher {
    /// Watches the event of a line, sent to this endpoint or to the hub.
    pub(super) async fn add(&self, line: u64, to: Option<EndpointId>, receipt: SendReceipt) {
        // The task ends with `finish`.
        let _ = self.0.send((line, to, receipt)).await;
    }
}

impl Sent {
    pub(super) fn new() -> Self {
        let (receipts, waiting) = mpsc::channel(1);
        Self {
            to: Watcher(receipts),
            watching: tokio::spawn(watch(waiting)),
        }
    }

    pub(super) fn watcher(&self) -> Watcher {
        self.to.clone()
    }

    /// Waits for the end of every event, and says how many were lost. Only once the
    /// hub or spoke has ended, and no watcher is left.
    pub(super) async fn finish(self) -> u64 {
        drop(self.to);
        self.watching.await.unwrap_or_default()
    }
}

async fn watch(mut waiting: mpsc::Receiver<Line>) -> u64 {
    let mut on_the_way = JoinSet::new();
    let mut lost = 0;
    let mut open = true;
    while open || !on_the_way.is_empty() {
        tokio::select! {
            receipt = waiting.recv(), if open && on_the_way.len() < ON_THE_WAY => match receipt {
                Some((line, to, receipt)) => {
                    on_the_way.spawn(async move { (line, to, receipt.delivered().await) });
                }
                None => open = false,
            },
            Some(ended) = on_the_way.join_next(), if !on_the_way.is_empty() => {
                if let Ok((line, to, Err(error))) = ended && counts(&error) {
                    lost += 1;
                    match to {
                        Some(to) => say(format_args!("line {line} of stdin, for {to}: {error}")),
                        None => say(format_args!("line {line} of stdin: {error}")),
                    }
                }
            }
        }
    }
    lost
}

/// A plain spoke's stream has taken the event; nobody can know more.
fn counts(error: &Undelivered) -> bool {
    !matches!(
        error,
        Undelivered::MaybeDelivered {
            reason: Loss::CannotAcknowledge,
            ..
        }
    )
}

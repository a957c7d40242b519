//! What becomes of the events that the hub sends to single spokes.

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
    receipts: mpsc::Sender<(u64, EndpointId, SendReceipt)>,
    watching: JoinHandle<u64>,
}

impl Sent {
    pub(super) fn new() -> Self {
        let (receipts, waiting) = mpsc::channel(1);
        Self {
            receipts,
            watching: tokio::spawn(watch(waiting)),
        }
    }

    /// Watches the event of a line, sent to this endpoint.
    pub(super) async fn add(&self, line: u64, to: EndpointId, receipt: SendReceipt) {
        // The task ends with `finish`.
        let _ = self.receipts.send((line, to, receipt)).await;
    }

    /// Waits for the end of every event, and says how many were lost. Only once the hub has ended.
    pub(super) async fn finish(self) -> u64 {
        drop(self.receipts);
        self.watching.await.unwrap_or_default()
    }
}

async fn watch(mut waiting: mpsc::Receiver<(u64, EndpointId, SendReceipt)>) -> u64 {
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
                    say(format_args!("line {line} of stdin, for {to}: {error}"));
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

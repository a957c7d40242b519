//! The file of receipts: a line for every event that the hub has accepted.

use std::path::{Path, PathBuf};

use anyhow::Context;
use iroh_hub::{Envelope, Receipt};
use tokio::{fs::File, io::AsyncWriteExt, sync::mpsc, task::JoinHandle};

use super::output::put_receipt;

/// How many receipts may wait for the file.
const WAITING: usize = 8192;
/// How many are written at once, at most.
const BATCH: usize = 1024;

/// Writes receipts on a task of its own, once their events are in the log, which with `--log` is on the disk: whatever waits is written at once and flushed, so no receipt
/// stays behind longer than the one write before it takes.
#[derive(Debug)]
pub(super) struct Receipts {
    lines: mpsc::Sender<(Receipt, Envelope)>,
    writing: JoinHandle<anyhow::Result<()>>,
}

impl Receipts {
    /// Begins a new file; one that is there is emptied.
    pub(super) async fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).await.with_context(|| {
            format!(
                "the file of receipts {} cannot be made; give another place for it",
                path.display()
            )
        })?;
        let (lines, waiting) = mpsc::channel(WAITING);
        let writing = tokio::spawn(write(waiting, file, path.to_owned()));
        Ok(Self { lines, writing })
    }

    /// Says `false` if the file takes no more; [`finish`](Self::finish) tells why.
    pub(super) async fn add(&self, receipt: Receipt, event: Envelope) -> bool {
        self.lines.send((receipt, event)).await.is_ok()
    }

    /// Whether the file takes no more.
    pub(super) fn failed(&self) -> bool {
        self.lines.is_closed()
    }

    /// Waits until everything is written.
    pub(super) async fn finish(self) -> anyhow::Result<()> {
        drop(self.lines);
        self.writing.await.context("writing receipts failed")?
    }
}

async fn write(
    mut waiting: mpsc::Receiver<(Receipt, Envelope)>,
    mut file: File,
    path: PathBuf,
) -> anyhow::Result<()> {
    let mut batch = Vec::new();
    let mut lines = Vec::new();
    let mut failed = None;
    while failed.is_none() && waiting.recv_many(&mut batch, BATCH).await > 0 {
        lines.clear();
        for (receipt, event) in batch.drain(..) {
            match receipt.durable().await {
                Ok(position) => put_receipt(&mut lines, &position, &event),
                // What is not in the log for certain gets no receipt, but what was before it does.
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let written = async {
            file.write_all(&lines).await?;
            file.flush().await
        };
        written.await.with_context(|| {
            format!(
                "the file of receipts {} cannot be written; is its disk full?",
                path.display()
            )
        })?;
    }
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

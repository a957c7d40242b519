//! The task that brings a durable log to the disk: whatever waits is one commit.
//!
//! It alone has the file. While a commit is under way more events gather, which become the next one, so
//! that many broadcasts share the cost of syncing. It ends with the hub, when everything is synced.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use iroh::EndpointId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::{
    config::HubConfig,
    shared_log::{Loading, SharedLog, UnsyncedLimits},
};
use crate::{
    event::Envelope,
    log::{
        LogFailed, OpenLogError,
        file::{Commit, LogFile},
    },
    metrics::{LogMetrics, events},
};

/// Opens the log of `hub`, or begins one. Blocks for as long as reading the file takes.
pub(super) fn open(
    path: &Path,
    hub: EndpointId,
    config: &HubConfig,
    metrics: Arc<LogMetrics>,
) -> Result<(Arc<SharedLog>, LogWriter), OpenLogError> {
    let mut loading = Loading::new(config.log);
    let file = LogFile::open(path, hub, |offset, body| {
        let event = Envelope::from_body(Bytes::from(body));
        let event = event.map_err(|error| format!("event {offset} is not one: {error}"))?;
        loading.push(offset, event);
        Ok(())
    })?;
    info!(epoch = %file.epoch(), tip = file.tip(), "the log is open");
    metrics.file_bytes.set(len(&file));
    let limits = UnsyncedLimits {
        events: config.limits.unsynced_events,
        bytes: config.limits.unsynced_bytes,
    };
    let lives = (file.epoch(), file.previous().to_vec());
    let log = Arc::new(loading.finish(limits, lives, file.tip()));
    let writer = LogWriter {
        log: log.clone(),
        file: Some(file),
        metrics,
    };
    Ok((log, writer))
}

fn len(file: &LogFile) -> i64 {
    let len = file.len().unwrap_or_default();
    i64::try_from(len).unwrap_or(i64::MAX)
}

#[derive(Debug)]
pub(super) struct LogWriter {
    log: Arc<SharedLog>,
    /// `None` while a commit has it, and when one has failed.
    file: Option<LogFile>,
    metrics: Arc<LogMetrics>,
}

impl LogWriter {
    /// Writes until `cancel` and everything is synced, or until the file takes no more; then closes it.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        loop {
            match self.commit().await {
                Ok(true) => {}
                Ok(false) if cancel.is_cancelled() => {
                    if self.log.end(ended()) {
                        break;
                    }
                }
                Ok(false) => {
                    tokio::select! {
                        () = self.log.work() => {}
                        () = cancel.cancelled() => {}
                    }
                }
                Err(reason) => {
                    error!(%reason, "the log cannot be written, so nothing more is broadcast");
                    self.metrics.failed.set(1);
                    self.log.fail(LogFailed::because(reason));
                    break;
                }
            }
        }
        if let Some(file) = self.file.take() {
            let closed = tokio::task::spawn_blocking(|| file.close()).await;
            match closed {
                Ok(Ok(())) => {}
                // It is mended when it is opened again.
                Ok(Err(error)) => debug!(%error, "the log was not closed cleanly"),
                Err(error) => debug!(%error, "the log was not closed cleanly"),
            }
        }
    }

    /// Writes what waits; says whether there was anything.
    async fn commit(&mut self) -> Result<bool, String> {
        let Some(mut unsynced) = self.log.unsynced() else {
            return Ok(false);
        };
        let Some(mut file) = self.file.take() else {
            return Err("it is gone".to_owned());
        };
        let commit = Commit {
            head: unsynced.head,
            bodies: std::mem::take(&mut unsynced.bodies),
            begin: unsynced.begin,
        };
        let events = commit.bodies.len() as u64;
        let bytes: usize = commit.bodies.iter().map(Bytes::len).sum();
        let started = Instant::now();
        let written = tokio::task::spawn_blocking(move || {
            let written = file.commit(&commit);
            (written, file)
        });
        // A panic, or a runtime that ends. The file went with it.
        let (written, file) = written.await.map_err(|error| error.to_string())?;
        let size = len(&file);
        self.file = Some(file);
        written.map_err(|error| error.to_string())?;
        let took = started.elapsed();
        debug!(target: events::LOG_SYNCED, tip = unsynced.to, events, bytes, ?took);
        self.metrics.commit_seconds.observe(took.as_secs_f64());
        self.metrics.events_synced.inc_by(events);
        self.metrics.synced_bytes.inc_by(bytes as u64);
        self.metrics.file_bytes.set(size);
        if let Some(epoch) = unsynced.begin {
            let fork = unsynced.to - events;
            info!(%epoch, fork, "the log begins a new epoch");
            self.metrics.epochs_begun.inc();
        }
        self.log.set_synced(&unsynced);
        Ok(true)
    }
}

impl Drop for LogWriter {
    /// However it ends, nobody waits for it in vain.
    fn drop(&mut self) {
        self.log.fail(ended());
    }
}

fn ended() -> LogFailed {
    LogFailed::because("the hub has ended")
}

//! Writes what the outbox has to one link, until that ends.

use std::{sync::Arc, time::Duration};

use iroh::endpoint::SendStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::shared::Shared;
use crate::link_io::{LinkError, write_all};

/// How long the hub may take to read the stream to its end.
const FAREWELL: Duration = Duration::from_secs(5);

/// Runs until the link fails, or (`Ok`) `finish` was asked for, the hub has everything and was told that
/// nothing more comes.
pub(super) async fn write(
    mut send: SendStream,
    shared: Arc<Shared>,
    finish: CancellationToken,
) -> Result<(), LinkError> {
    let outbox = &shared.outbox;
    let mut chunks = Vec::new();
    loop {
        // Read once a turn: if it came in between, the writer would wait for a wake that nobody owes it.
        let finishes = finish.is_cancelled();
        outbox.next_batch(&mut chunks);
        if !chunks.is_empty() {
            write_all(&mut send, &mut chunks).await?;
            outbox.taken.notify_waiters();
            continue;
        }
        if finishes && outbox.is_empty() {
            let _ = send.finish();
            let stopped = timeout(FAREWELL, send.stopped()).await;
            debug!(?stopped, "finished the stream");
            return Ok(());
        }
        tokio::select! {
            () = outbox.wake.notified() => {}
            () = finish.cancelled(), if !finishes => {}
        }
    }
}

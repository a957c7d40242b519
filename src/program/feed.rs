//! Feeds lines of stdin to a hub, no faster than its mesh takes them.

use anyhow::Context;
use iroh_hub::{BroadcastError, Hub, Receipt, SendError, SendOptions};
use tokio::io::AsyncBufRead;

use super::{
    args::InputFormat, input::Lines, receipts::Receipts, request::Request, say::say, sent::Watcher,
};

/// Feeds every line, and counts in `skipped` those that it could not. Returns at the end of the input
/// or of the receipts, or when the log cannot be written.
pub(super) async fn feed<R: AsyncBufRead + Unpin>(
    hub: &Hub,
    mut lines: Lines<R>,
    format: InputFormat,
    receipts: Option<&Receipts>,
    sent: &Watcher,
    skipped: &mut u64,
) -> anyhow::Result<()> {
    let mut last = None;
    loop {
        let Some(line) = lines.next().await.context("stdin cannot be read")? else {
            if let Some(last) = last {
                Receipt::durable(&last).await?;
            }
            return Ok(());
        };
        let request = Request::read(&line, format);
        let number = lines.number();
        let taken = match request {
            Ok(request) => take(hub, request, number, receipts, sent).await,
            Err(error) => Err(error),
        };
        match taken {
            Ok(Taken::Broadcast(receipt)) => last = Some(receipt),
            Ok(Taken::Sent) => {}
            Ok(Taken::Ended) => return Ok(()),
            Err(error) if error.downcast_ref().is_some_and(is_of_the_log) => return Err(error),
            Err(error) => {
                *skipped += 1;
                say(format_args!(
                    "error: line {number} of stdin is skipped: {error:#}"
                ));
            }
        }
    }
}

enum Taken {
    Broadcast(Receipt),
    Sent,
    /// There is no point in going on.
    Ended,
}

fn is_of_the_log(error: &BroadcastError) -> bool {
    matches!(error, BroadcastError::Log { .. })
}

async fn take(
    hub: &Hub,
    request: Request,
    number: u64,
    receipts: Option<&Receipts>,
    sent: &Watcher,
) -> anyhow::Result<Taken> {
    let Request {
        event,
        to,
        overtake,
    } = request;
    if let Some(to) = to {
        let options = SendOptions::default().overtake(overtake);
        match hub.send_with(to, event, options).await {
            Ok(receipt) => {
                sent.add(number, Some(to), receipt).await;
                return Ok(Taken::Sent);
            }
            Err(SendError::NoSuchSpoke { .. }) => {
                anyhow::bail!("no spoke of {to} is connected, or was until just now")
            }
            Err(error) => return Err(error.into()),
        }
    }
    // Lines wait for the disk together, and not each for itself.
    let receipt = hub.append(event.clone()).await?;
    if let Some(receipts) = receipts
        && !receipts.add(receipt.clone(), event).await
    {
        return Ok(Taken::Ended);
    }
    Ok(Taken::Broadcast(receipt))
}

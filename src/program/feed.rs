//! Feeds lines of stdin to a hub, no faster than its mesh takes them.

use anyhow::Context;
use iroh_hub::{Hub, SendError, SendOptions};
use tokio::io::AsyncBufRead;

use super::{
    args::InputFormat, input::Lines, receipts::Receipts, request::Request, say::say, sent::Sent,
};

/// Feeds every line, and counts in `skipped` those that it could not. Returns at the end of the input
/// or of the receipts.
pub(super) async fn feed<R: AsyncBufRead + Unpin>(
    hub: &Hub,
    mut lines: Lines<R>,
    format: InputFormat,
    receipts: Option<&Receipts>,
    sent: &Sent,
    skipped: &mut u64,
) -> anyhow::Result<()> {
    loop {
        let Some(line) = lines.next().await.context("stdin cannot be read")? else {
            return Ok(());
        };
        let request = Request::read(&line, format);
        let number = lines.number();
        let taken = match request {
            Ok(request) => take(hub, request, number, receipts, sent).await,
            Err(error) => Err(error),
        };
        match taken {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                *skipped += 1;
                say(format_args!(
                    "error: line {number} of stdin is skipped: {error:#}"
                ));
            }
        }
    }
}

/// Says `false` if there is no point in going on.
async fn take(
    hub: &Hub,
    request: Request,
    number: u64,
    receipts: Option<&Receipts>,
    sent: &Sent,
) -> anyhow::Result<bool> {
    let Request {
        event,
        to,
        overtake,
    } = request;
    if let Some(to) = to {
        let options = SendOptions::default().overtake(overtake);
        match hub.send_with(to, event, options).await {
            Ok(receipt) => {
                sent.add(number, to, receipt).await;
                return Ok(true);
            }
            Err(SendError::NoSuchSpoke { .. }) => {
                anyhow::bail!("no spoke of {to} is connected, or was until just now")
            }
            Err(error) => return Err(error.into()),
        }
    }
    let receipt = hub.broadcast(event.clone()).await?;
    Ok(match receipts {
        Some(receipts) => receipts.add(receipt.position(), event).await,
        None => true,
    })
}

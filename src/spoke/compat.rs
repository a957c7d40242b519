//! A plain spoke's session: reads JSON envelopes and hands them to the listeners.

use iroh::EndpointId;
use n0_error::e;
use tokio::sync::mpsc;

use crate::{
    close::{CloseCode, Closed},
    link_io::{FrameReader, LinkError},
    listen::{Event, Incoming, Source},
    via::Via,
    wire::compat,
};

/// Runs until the link ends, and says how.
pub(super) async fn run(
    hub: EndpointId,
    mut reader: FrameReader,
    deliver: mpsc::Sender<Incoming>,
) -> Closed {
    match main_loop(hub, &mut reader, deliver).await {
        Ok(()) => Closed::ByPeer {
            code: CloseCode::Goodbye,
            reason: "the hub said goodbye".to_owned(),
        },
        Err(error) => error.closed(),
    }
}

async fn main_loop(
    hub: EndpointId,
    reader: &mut FrameReader,
    deliver: mpsc::Sender<Incoming>,
) -> Result<(), LinkError> {
    while let Some(frame) = reader.next().await? {
        if frame.is_empty() {
            continue;
        }
        let mut event = Event::new(compat::decode(&frame)?, Source::Hub(hub));
        event.via = Some(Via::Direct);
        deliver.send(Incoming::Event(event)).await.map_err(|_| {
            e!(LinkError::Gone {
                closed: Closed::by_us(CloseCode::Goodbye, "the spoke ended")
            })
        })?;
    }
    Ok(())
}

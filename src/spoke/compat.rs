//! A plain spoke: reads JSON envelopes from one link and hands them to the listeners. Without positions it
//! could not tell what it missed between two links, so it ends with the first.

use std::{sync::Arc, time::Duration};

use iroh::{Endpoint, EndpointAddr, EndpointId};
use n0_error::e;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    ConnectError,
    deliverer::Deliverer,
    hands::{self, Greeted},
    shared::{LastWord, Shared},
    status::SpokeStatus,
    writer,
};
use crate::{
    close::{CloseCode, Closed},
    event::Envelope,
    link_io::{FrameReader, LinkError},
    listen::{Event, Incoming, Source},
    protocol::Protocol,
    via::Via,
    wire::compat,
};

/// How long a hub that no longer reads may take to say the rest of what it has to say.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Makes the link.
pub(super) async fn connect(
    endpoint: Endpoint,
    hub: EndpointAddr,
    shared: &Shared,
) -> Result<Greeted, ConnectError> {
    let limits = &shared.config.limits;
    let deadline = Instant::now() + limits.connect_timeout;
    let connecting = async {
        let dialed = hands::dial(endpoint, hub, Protocol::Compat).await?;
        hands::greet_plainly(dialed, limits).await
    };
    shared.metrics.link.attempts.inc();
    match timeout_at(deadline, connecting).await {
        Ok(greeted) => greeted,
        Err(_) => Err(e!(ConnectError::TimedOut)),
    }
}

/// Serves the link until it ends, and tells how.
pub(super) async fn run(
    greeted: Greeted,
    shared: Arc<Shared>,
    mut deliver: Deliverer,
    finish: CancellationToken,
    cancel: CancellationToken,
) {
    let last_word = LastWord(shared.clone());
    let Greeted {
        connection,
        send,
        mut reader,
    } = greeted;
    shared.metrics.link.welcomed.inc();
    shared.set_connection(Some(connection.clone()));
    let connected = SpokeStatus::Connected { position: None };
    shared.statuses.tell(connected.clone());
    let error = {
        let reading = async {
            tell(&mut deliver, connected).await;
            read(connection.remote_id(), &mut reader, &mut deliver, &shared).await
        };
        let writing = writer::write(send, shared.clone(), finish);
        tokio::pin!(reading, writing);
        tokio::select! {
            error = &mut reading => error,
            written = &mut writing => match written {
                Ok(()) => ended("the spoke says goodbye"),
                // The hub no longer reads, but what it wrote before is still to be taken: the reader
                // sees the end of it.
                Err(error) => timeout(LAST_WORDS, reading).await.unwrap_or(error),
            },
            () = cancel.cancelled() => ended("the spoke ended"),
        }
    };
    let closed = hands::close(&connection, &error);
    debug!(%closed, "the link to the hub has ended");
    last_word.0.end(closed.clone());
    tokio::select! {
        biased;
        () = tell(&mut deliver, SpokeStatus::Closed(closed)) => {}
        () = cancel.cancelled() => {}
    }
}

fn ended(why: &'static str) -> LinkError {
    LinkError::gone(Closed::by_us(CloseCode::Goodbye, why))
}

/// Tells a status to listeners, in its place.
async fn tell(deliver: &mut Deliverer, status: SpokeStatus) {
    let _ = deliver.deliver(Incoming::Status(status)).await;
}

async fn read(
    hub: EndpointId,
    reader: &mut FrameReader,
    deliver: &mut Deliverer,
    shared: &Shared,
) -> LinkError {
    loop {
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                return LinkError::gone(Closed::ByPeer {
                    code: CloseCode::Goodbye,
                    reason: "the hub said goodbye".to_owned(),
                });
            }
            Err(error) => return error,
        };
        if frame.is_empty() {
            continue;
        }
        let envelope: Envelope = match compat::decode(&frame) {
            Ok(envelope) => envelope,
            Err(error) => {
                warn!(%error, "the hub sent something that is no event");
                shared.metrics.reception.frames_bad.inc();
                return error.into();
            }
        };
        shared.metrics.reception.events_direct.inc();
        let mut event = Event::new(envelope, Source::Hub(hub));
        event.via = Some(Via::Direct);
        if !deliver.deliver(Incoming::Event(event)).await {
            return ended("the spoke ended");
        }
    }
}

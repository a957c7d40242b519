//! Makes a link: dials the hub, opens a stream and shakes hands on it. One attempt; when to make another is
//! the business of the `backoff`.

use iroh::{
    Endpoint, EndpointAddr,
    endpoint::{Connection, ConnectionError, RecvStream, SendStream},
};
use n0_error::e;

use super::{ConnectError, config::SpokeLimits};
use crate::{
    close::{CloseCode, Closed},
    link_io::{FrameReader, LinkError, write_all},
    protocol::Protocol,
    wire::{
        compat,
        native::{Hello, MAX_FRAME, ToHub, ToSpoke, VERSION, Welcome},
    },
};

/// A stream to the hub on which nothing was said yet.
#[derive(Debug)]
pub(super) struct Dialed {
    pub(super) connection: Connection,
    send: SendStream,
    recv: RecvStream,
}

/// A link that both sides have agreed on.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) connection: Connection,
    pub(super) send: SendStream,
    pub(super) reader: FrameReader,
}

/// Connects and opens a stream.
pub(super) async fn dial(
    endpoint: Endpoint,
    hub: EndpointAddr,
    protocol: Protocol,
) -> Result<Dialed, ConnectError> {
    let connecting = endpoint.connect(hub, protocol.alpn());
    let connection = connecting.await.map_err(|source| {
        refusal(&source).unwrap_or_else(|| e!(ConnectError::Unreachable, source))
    })?;
    match connection.open_bi().await {
        Ok((send, recv)) => Ok(Dialed {
            connection,
            send,
            recv,
        }),
        Err(error) => Err(broken(&connection, &error.into())),
    }
}

/// Says hello, and waits for the hub's welcome.
pub(super) async fn greet(
    dialed: Dialed,
    hello: Hello,
    limits: SpokeLimits,
) -> Result<(Greeted, Welcome), ConnectError> {
    let Dialed {
        connection,
        mut send,
        recv,
    } = dialed;
    let mut reader = FrameReader::new(recv, MAX_FRAME, limits.frame_timeout);
    // Dropped before the stream is.
    let given_up = GivenUp(Some(&connection));
    let exchanged = exchange(&mut send, &mut reader, hello).await;
    given_up.disarm();
    match exchanged {
        Ok(welcome) => {
            let greeted = Greeted {
                connection,
                send,
                reader,
            };
            Ok((greeted, welcome))
        }
        Err(error) => Err(broken(&connection, &error)),
    }
}

/// Closes the connection of an attempt that is dropped. The stream would be finished instead, and a hub that
/// has taken the hello would think that the session has said goodbye.
struct GivenUp<'a>(Option<&'a Connection>);

impl GivenUp<'_> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.0 {
            let code = CloseCode::TimedOut.to_varint();
            connection.close(code, b"the hub did not answer in time");
        }
    }
}

async fn exchange(
    send: &mut SendStream,
    reader: &mut FrameReader,
    hello: Hello,
) -> Result<Welcome, LinkError> {
    let mut chunks = Vec::new();
    ToHub::Hello(hello).encode(&mut chunks);
    write_all(send, &mut chunks).await?;
    loop {
        let Some(frame) = reader.next().await? else {
            return Err(e!(LinkError::Misbehaved {
                what: "the stream ended before the hub's welcome"
            }));
        };
        match ToSpoke::decode(frame)? {
            Some(ToSpoke::Welcome(welcome)) if welcome.version == VERSION => return Ok(welcome),
            Some(ToSpoke::Welcome(welcome)) => {
                return Err(e!(LinkError::Version {
                    theirs: welcome.version,
                    ours: VERSION
                }));
            }
            Some(_) => {
                return Err(e!(LinkError::Misbehaved {
                    what: "the first frame is not a welcome"
                }));
            }
            // A kind that we do not know is passed over.
            None => {}
        }
    }
}

/// Begins a plain stream, to which a plain hub gives no answer.
pub(super) async fn greet_plainly(
    dialed: Dialed,
    limits: &SpokeLimits,
) -> Result<Greeted, ConnectError> {
    let Dialed {
        connection,
        mut send,
        recv,
    } = dialed;
    // The hub's `accept_bi` waits for the first bytes.
    if let Err(error) = send.write_chunk(compat::EMPTY_FRAME).await {
        return Err(broken(&connection, &error.into()));
    }
    let max_frame = limits.max_event_bytes + compat::FRAME_OVERHEAD;
    Ok(Greeted {
        connection,
        send,
        reader: FrameReader::new(recv, max_frame, limits.frame_timeout),
    })
}

/// The attempt failed on a connection that there was.
pub(super) fn broken(connection: &Connection, error: &LinkError) -> ConnectError {
    match close(connection, error) {
        Closed::ByPeer { code, reason } => e!(ConnectError::Refused { code, reason }),
        closed => e!(ConnectError::Broken { closed }),
    }
}

/// Closes a connection whose stream failed, and says how it ended.
pub(super) fn close(connection: &Connection, error: &LinkError) -> Closed {
    // A stream fails a moment before the connection tells why.
    let ours = error.closed();
    let theirs = connection
        .close_reason()
        .map(|reason| Closed::from(&reason));
    let closed = match (ours, theirs) {
        (ours, _) if ours.is_goodbye() => ours,
        (ours @ Closed::ByUs { .. }, Some(Closed::Lost { .. }) | None) => ours,
        (_, Some(theirs)) => theirs,
        (ours, None) => ours,
    };
    let (code, reason) = match &closed {
        Closed::ByUs { code, reason } => (*code, reason.as_str()),
        _ => (CloseCode::Goodbye, "goodbye"),
    };
    connection.close(code.to_varint(), reason.as_bytes());
    closed
}

/// The hub's own words, if it closed the connection while it was being made.
fn refusal(error: &iroh::endpoint::ConnectError) -> Option<ConnectError> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<ConnectionError>()
            && let Closed::ByPeer { code, reason } = Closed::from(error)
        {
            return Some(e!(ConnectError::Refused { code, reason }));
        }
        source = error.source();
    }
    None
}

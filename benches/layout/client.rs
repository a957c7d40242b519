//! The spokes' end, without this crate: streams that a reader each waits on.

use std::sync::Arc;

use iroh::{Endpoint, EndpointAddr, endpoint::Connection};
use tokio::task::JoinSet;

use crate::common::{Result, Tally, bare_streams::read};

/// What opens a stream: a frame of no length, for `alkpubsub/1` and for the bare hub.
const OPENING: [u8; 4] = [0; 4];

/// How a payload begins in an envelope of `alkpubsub/1`.
const IN_ENVELOPE: &[u8] = b"\"payload\":\"";

/// What the frames of a stream are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Frames {
    Payloads,
    Envelopes,
}

impl Frames {
    fn payload(self, frame: &[u8]) -> &[u8] {
        match self {
            Self::Payloads => frame,
            Self::Envelopes => {
                let mut windows = frame.windows(IN_ENVELOPE.len());
                let at = windows.position(|window| window == IN_ENVELOPE);
                at.map_or(&[], |at| &frame[at + IN_ENVELOPE.len()..])
            }
        }
    }
}

/// Where the streams go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) hub: &'a EndpointAddr,
    pub(crate) alpn: &'static [u8],
    pub(crate) frames: Frames,
}

/// A stream each on one connection.
pub(crate) async fn share(
    endpoint: &Endpoint,
    to: Target<'_>,
    spokes: usize,
    tally: &Arc<Tally>,
    readers: &mut JoinSet<()>,
) -> Result<()> {
    let connection = endpoint.connect(to.hub.clone(), to.alpn).await?;
    for number in 0..spokes {
        let reader = open(connection.clone(), number, to.frames, tally.clone()).await?;
        readers.spawn(reader);
    }
    Ok(())
}

/// A connection each, dialled at once.
pub(crate) async fn own(
    endpoint: &Endpoint,
    to: Target<'_>,
    spokes: usize,
    tally: &Arc<Tally>,
    readers: &mut JoinSet<()>,
) -> Result<()> {
    let mut dialling = JoinSet::new();
    for number in 0..spokes {
        let (endpoint, hub, tally) = (endpoint.clone(), to.hub.clone(), tally.clone());
        dialling.spawn(async move {
            let connection = endpoint.connect(hub, to.alpn).await?;
            open(connection, number, to.frames, tally).await
        });
    }
    while let Some(dialled) = dialling.join_next().await {
        readers.spawn(dialled??);
    }
    Ok(())
}

/// With what reads it, which holds the connection.
async fn open(
    connection: Connection,
    number: usize,
    frames: Frames,
    tally: Arc<Tally>,
) -> Result<impl Future<Output = ()> + Send> {
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&OPENING).await?;
    Ok(async move {
        let _held = (connection, send);
        read(&mut recv, |frame| {
            tally.record(number, frames.payload(frame))
        })
        .await;
    })
}

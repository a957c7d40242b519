//! The spokes' process: all of them, each an endpoint of its own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use iroh::{Endpoint, EndpointAddr, address_lookup::memory::MemoryLookup, endpoint::SendStream};
use iroh_hub::{Envelope, Pattern, Spoke, endpoint::bind_local};
use n0_future::{BufferedStreamExt, StreamExt, stream};
use tokio::{task::JoinSet, time::sleep_until};

use super::{
    protocol::{Account, Alternative, SpokesCommand, SpokesReply},
    worker::serve,
};
use crate::common::{
    Error, Loopback, Result, Tally, bare_gossip::BareGossipSpokes, bare_streams::BareStream,
    hub_mesh::read,
};

/// Spokes that connect at once.
const CONNECTING: usize = 32;
/// A round is over when nothing has arrived for this long.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers the parent until it is gone.
pub(crate) async fn run() -> Result<()> {
    let mut connected: Option<(SpokesSide, Arc<Tally>)> = None;
    serve(async |command: SpokesCommand| {
        let answer = answer(&mut connected, command).await;
        (answer.map_err(|error| error.to_string()), false)
    })
    .await?;
    Ok(())
}

async fn answer(
    connected: &mut Option<(SpokesSide, Arc<Tally>)>,
    command: SpokesCommand,
) -> Result<SpokesReply> {
    if let SpokesCommand::Connect {
        alternative,
        hub,
        spokes,
        max_payload,
    } = command
    {
        let tally = Arc::new(Tally::new(spokes));
        let side = match alternative {
            Alternative::Direct | Alternative::Gossip => ours(hub, spokes, &tally).await?,
            Alternative::BareStreams => bare_streams(hub, spokes, &tally).await?,
            Alternative::BareGossip => bare_gossip(hub, spokes, max_payload, &tally).await?,
        };
        *connected = Some((side, tally));
        return Ok(SpokesReply::Connected);
    }
    let Some((side, tally)) = connected else {
        return Err("this process has not been started yet".into());
    };
    match command {
        SpokesCommand::Connect { .. } => Ok(SpokesReply::Connected),
        SpokesCommand::Expect(round) => {
            tally.expect(round.events);
            Ok(SpokesReply::Expecting)
        }
        SpokesCommand::Report => {
            let arrived = tally.finish(Instant::now(), PATIENCE).await;
            Ok(SpokesReply::Outcome(arrived.into()))
        }
        SpokesCommand::Stir(over) => {
            side.stir(over).await?;
            Ok(SpokesReply::Stirred)
        }
        SpokesCommand::Account => Ok(SpokesReply::Account(Account::now(0, 0))),
    }
}

/// What keeps the spokes alive.
enum SpokesSide {
    Ours {
        spokes: Vec<Spoke>,
        _reading: JoinSet<()>,
    },
    BareStreams {
        _spokes: Vec<Endpoint>,
        sends: Vec<SendStream>,
        _reading: JoinSet<()>,
    },
    BareGossip {
        _spokes: BareGossipSpokes,
    },
}

impl SpokesSide {
    async fn stir(&mut self, over: Duration) -> Result<()> {
        let begin = tokio::time::Instant::now();
        let turn = |nth: usize, of: usize| sleep_until(begin + over * nth as u32 / of as u32);
        match self {
            Self::Ours { spokes, .. } => {
                for (nth, spoke) in spokes.iter().enumerate() {
                    turn(nth, spokes.len()).await;
                    spoke.send(Envelope::new("stir", &())?).await?;
                }
            }
            Self::BareStreams { sends, .. } => {
                let of = sends.len();
                for (nth, send) in sends.iter_mut().enumerate() {
                    turn(nth, of).await;
                    send.write_all(&[0]).await?;
                }
            }
            Self::BareGossip { .. } => return Err("a mesh of bare gossip has no links".into()),
        }
        Ok(())
    }
}

async fn ours(hub: EndpointAddr, spokes: usize, tally: &Arc<Tally>) -> Result<SpokesSide> {
    let mut connecting = stream::iter(0..spokes)
        .map(|_| async { Ok::<_, Error>(Spoke::connect(bind_local().await?, hub.clone()).await?) })
        .buffered_unordered(CONNECTING);
    let (mut connected, mut reading) = (Vec::with_capacity(spokes), JoinSet::new());
    while let Some(spoke) = connecting.next().await {
        let spoke = spoke?;
        let listener = spoke.listen(Pattern::any());
        reading.spawn(read(listener, connected.len(), tally.clone()));
        connected.push(spoke);
    }
    Ok(SpokesSide::Ours {
        spokes: connected,
        _reading: reading,
    })
}

async fn bare_streams(hub: EndpointAddr, spokes: usize, tally: &Arc<Tally>) -> Result<SpokesSide> {
    let mut connecting = stream::iter(0..spokes)
        .map(|_| async {
            let endpoint = bind_local().await?;
            let stream = BareStream::dial(&endpoint, hub.clone()).await?;
            Ok::<_, Error>((endpoint, stream))
        })
        .buffered_unordered(CONNECTING);
    let (mut connected, mut reading) = (Vec::with_capacity(spokes), JoinSet::new());
    let mut sends = Vec::with_capacity(spokes);
    while let Some(spoke) = connecting.next().await {
        let (endpoint, mut stream) = spoke?;
        sends.extend(stream.take_send());
        reading.spawn(stream.read(connected.len(), tally.clone()));
        connected.push(endpoint);
    }
    Ok(SpokesSide::BareStreams {
        _spokes: connected,
        sends,
        _reading: reading,
    })
}

async fn bare_gossip(
    hub: EndpointAddr,
    spokes: usize,
    max_payload: usize,
    tally: &Arc<Tally>,
) -> Result<SpokesSide> {
    let known = MemoryLookup::new();
    let id = hub.id;
    known.add_endpoint_info(hub);
    let spokes =
        BareGossipSpokes::join(&Loopback, &known, id, spokes, max_payload, tally.clone()).await?;
    Ok(SpokesSide::BareGossip { _spokes: spokes })
}

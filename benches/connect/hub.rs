//! Spokes that are welcomed by a hub, and hear from it.

use std::time::{Duration, Instant};

use iroh::Endpoint;
use iroh_hub::{
    Envelope, FanOut, Hub, HubLimits, Incoming, Listener, Path, Pattern, Spoke, SpokeLimits,
    endpoint::bind_local,
};
use tokio::time::{sleep, timeout};

use crate::{
    common::Result,
    storm::{Storm, Times, arrive},
};

/// Bare iroh would wait too.
const LONG: Duration = Duration::from_secs(60);
/// More than any storm here has.
const PLENTY: usize = 8192;
/// For how long a broadcast, or the topic, may take to reach all.
const LIMIT: Duration = Duration::from_secs(40);
/// How often the hub is asked where its spokes are. That goes over all of them, so not too often.
const POLL: Duration = Duration::from_millis(20);

pub(crate) async fn storm(storm: Storm, endpoints: Vec<Endpoint>) -> Result<Times> {
    let builder = match storm {
        Storm::Gossip => Hub::builder().fan_out(FanOut::Gossip),
        _ => Hub::builder().fan_out(FanOut::Direct),
    };
    let builder = match storm {
        Storm::DirectDefaults => builder,
        _ => builder.limits(limits()),
    };
    let hub = builder.spawn(bind_local().await?)?;
    let addr = hub.addr();
    let mut arrived = arrive(&endpoints, |endpoint| {
        let addr = addr.clone();
        let builder = Spoke::builder().limits(match storm {
            Storm::DirectDefaults => SpokeLimits::default(),
            _ => spoke_limits(),
        });
        async move {
            let spoke = builder.connect(endpoint, addr).await?;
            let listener = spoke.listen(Pattern::any());
            Ok((spoke, listener))
        }
    })
    .await;
    let began = arrived.began;
    let (spokes, listeners): (Vec<_>, Vec<_>) = arrived.spokes.into_iter().unzip();
    let reach = async {
        hub.broadcast(Envelope::new("bench", &"all here")?).await?;
        let heard = n0_future::join_all(listeners.into_iter().map(hear)).await;
        Ok::<_, crate::common::Error>(
            heard
                .into_iter()
                .all(|heard| heard)
                .then(|| began.elapsed()),
        )
    };
    arrived.times.heard = match timeout(LIMIT, reach).await {
        Ok(heard) => heard?,
        Err(_) => None,
    };
    if arrived.times.heard.is_none() {
        eprintln!(
            "{}/{}: not all heard the broadcast",
            storm.name(),
            spokes.len()
        );
    }
    if let Storm::Gossip = storm {
        match on_topic(&hub, spokes.len()).await {
            Ok(()) => arrived.times.on_topic = Some(began.elapsed()),
            Err(left_out) => arrived.times.left_out = left_out,
        }
    }
    n0_future::join_all(spokes.iter().map(Spoke::shutdown)).await;
    hub.shutdown().await;
    Ok(arrived.times)
}

/// All spokes have one address here, and none of them is to wait for that.
fn limits() -> HubLimits {
    let mut limits = HubLimits::default();
    limits.handshakes_of_addr_per_s = 1_000_000;
    limits.max_handshakes = PLENTY;
    limits.handshakes_of_addr = Some(PLENTY);
    limits.validate_above = PLENTY;
    limits.max_waiting = PLENTY;
    limits.waiting_of_addr = Some(PLENTY);
    limits.handshake_timeout = LONG;
    limits.hello_timeout = LONG;
    limits
}

fn spoke_limits() -> SpokeLimits {
    let mut limits = SpokeLimits::default();
    limits.connect_timeout = LONG;
    limits
}

async fn hear(mut listener: Listener) -> bool {
    while let Some(incoming) = listener.recv().await {
        if let Incoming::Event(_) = incoming {
            return true;
        }
    }
    false
}

/// Waits until the topic serves so many spokes, or says how many it does not.
async fn on_topic(hub: &Hub, spokes: usize) -> Result<(), usize> {
    let limit = Instant::now() + LIMIT;
    loop {
        let there = hub.spokes();
        let served = there.iter().filter(|spoke| spoke.path == Path::Gossip);
        let served = served.count();
        if served == spokes {
            return Ok(());
        }
        if Instant::now() > limit {
            let health = hub.health();
            eprintln!("gossip/{spokes}: the topic serves only {served} of them; {health:?}");
            return Err(spokes - served);
        }
        sleep(POLL).await;
    }
}

//! A hub in a process of its own that is attacked, and the process that attacks it. What a hub's memory comes to can only be
//! seen from outside of the attack.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use iroh::{
    Endpoint, EndpointAddr, EndpointId,
    endpoint::{ConnectionError, VarInt},
};
use iroh_hub::{
    Admission, Envelope, FanOut, GossipConfig, Hub, HubBuilder, HubLimits, Protocol, SpokeInfo,
    endpoint, log::LogConfig,
};
use iroh_tickets::endpoint::EndpointTicket;
use serde::{Deserialize, Serialize};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    common::raw::{COMPAT, GOSSIP, NATIVE, code},
    roles::{Process, Ticket, memory_kib, peak_kib, requests, say},
};

/// How the hub is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setup {
    /// Every limit is small, in proportion to the number: a few MiB, and spokes.
    Small(usize),
    /// The same, and a log that is full of bytes though events are small.
    SmallEvents(usize),
    /// The defaults, and nobody is admitted who was not allowed.
    Guarded,
    /// Room for a thousand strangers, who have little time.
    Crowded,
}

impl Setup {
    fn name(self) -> String {
        match self {
            Self::Small(scale) => format!("Small {scale}"),
            Self::SmallEvents(scale) => format!("SmallEvents {scale}"),
            Self::Guarded => "Guarded".to_owned(),
            Self::Crowded => "Crowded".to_owned(),
        }
    }

    fn from_name(name: &str) -> Self {
        match name.split_once(' ') {
            Some(("Small", scale)) => Self::Small(scale.parse().expect("a number")),
            Some(("SmallEvents", scale)) => Self::SmallEvents(scale.parse().expect("a number")),
            _ if name == "Guarded" => Self::Guarded,
            _ if name == "Crowded" => Self::Crowded,
            _ => panic!("{name}"),
        }
    }

    /// To what its limits are in proportion.
    pub fn scale(self) -> usize {
        match self {
            Self::Small(scale) | Self::SmallEvents(scale) => scale,
            Self::Guarded | Self::Crowded => 1,
        }
    }

    /// The hub that it is; the same in every process.
    pub fn builder(self) -> HubBuilder {
        let mut limits = HubLimits::default();
        let mut gossip = GossipConfig::default();
        let mut log = LogConfig::default();
        gossip.max_connections = 8;
        gossip.max_unproven = 8;
        gossip.cache_bytes = 1 << 20;
        gossip.queue_bytes = 2 << 20;
        let builder = Hub::builder().fan_out(FanOut::Direct);
        match self {
            Self::Guarded => {
                return builder.gossip(gossip).admission(Admission::allow_list([]));
            }
            Self::Small(scale) | Self::SmallEvents(scale) => {
                let max_bytes = scale * 6 * MIB;
                let max_events = match self {
                    Self::SmallEvents(_) => max_bytes >> 10,
                    _ => 4096,
                };
                log = log.with_max_bytes(max_bytes).with_max_events(max_events);
                limits.max_spokes = 4 * scale;
                limits.away_spokes = 4 * scale;
                limits.max_connections = 6 * scale;
                limits.max_waiting = 4 * scale;
                limits.waiting_of_one = 4 * scale;
                limits.waiting_of_addr = Some(4 * scale);
                limits.max_handshakes = 32;
                limits.handshakes_of_addr = Some(32);
                limits.max_event_bytes = MIB;
                limits.send_window = MIB as u32;
                limits.receive_window = 4 * MIB as u32;
                limits.receive_bytes = scale * 2 * MIB;
                limits.intake_bytes = scale * 2 * MIB;
                limits.intake_of_one = 2 * MIB;
                limits.targeted_bytes = 8 * MIB;
                limits.targeted_bytes_of_all = scale * 4 * MIB;
                limits.hello_timeout = Duration::from_secs(600);
                limits.frame_timeout = Duration::from_secs(600);
            }
            Self::Crowded => {
                log = log.with_max_bytes(8 * MIB).with_max_events(4096);
                limits.max_spokes = 1200;
                limits.away_spokes = 1200;
                limits.max_connections = 1200;
                limits.max_waiting = 1100;
                limits.waiting_of_addr = Some(1100);
                limits.max_event_bytes = 64 << 10;
                limits.send_window = 64 << 10;
                limits.receive_bytes = 16 * MIB;
                limits.intake_bytes = 16 * MIB;
                limits.targeted_bytes_of_all = 16 * MIB;
                limits.hello_timeout = Duration::from_secs(5);
                // All of them come from one address.
                limits.handshakes_of_addr_per_s = 2000;
                limits.max_handshakes = 256;
                limits.handshakes_of_addr = Some(256);
            }
        }
        // Nobody is waited for.
        limits.send_wait = Duration::from_millis(1);
        limits.stall_after = Duration::from_millis(20);
        limits.patience = Duration::ZERO;
        builder.log(log).limits(limits).gossip(gossip)
    }
}

pub const MIB: usize = 1 << 20;

/// What the hub is asked to do. It answers with how it is afterwards.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Do {
    Nothing,
    /// Let these in.
    Allow(Vec<EndpointId>),
    /// Broadcast so many events of so many bytes.
    Broadcast {
        events: usize,
        bytes: usize,
    },
    /// Send events of so many bytes to every native spoke, as many as there is room for.
    Mail {
        bytes: usize,
    },
    /// Broadcast so many small events a second from now on, each with the time.
    Pace {
        per_s: u64,
    },
    /// No more of that.
    Rest,
}

/// How the hub is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    pub memory_kib: u64,
    pub peak_kib: u64,
    pub spokes: usize,
    pub open: i64,
    pub waiting: i64,
    pub handshakes: i64,
    pub begun: u64,
    /// Attempts that got no answer, or were asked to come again.
    pub unanswered: u64,
    /// Connections that were refused.
    pub refused: u64,
    pub failed: u64,
    pub reads_held: u64,
    pub broadcast: u64,
}

fn state(hub: &Hub) -> State {
    let metrics = hub.metrics();
    let connections = &metrics.connections;
    State {
        memory_kib: memory_kib(),
        peak_kib: peak_kib(),
        spokes: hub.spoke_count(),
        open: connections.open.get(),
        waiting: connections.waiting.get(),
        handshakes: connections.handshakes.get(),
        begun: connections.handshakes_begun.get(),
        unanswered: connections.handshakes_over_rate.get()
            + connections.handshakes_crowded.get()
            + connections.handshakes_retried.get(),
        refused: metrics.admission.refused.get()
            + connections.refused_full.get()
            + connections.refused_waiting.get(),
        failed: metrics.direct.links_failed.get(),
        reads_held: metrics.direct.reads_held.get(),
        broadcast: metrics.events.events_broadcast.get(),
    }
}

/// A hub in a process of its own.
pub struct Attacked {
    process: Process,
    pub addr: EndpointAddr,
    pub ticket: String,
}

impl Attacked {
    pub fn start(setup: Setup) -> Self {
        let mut process = Process::start("attacked", &setup.name(), "");
        let Ticket(ticket) = process.answer();
        let parsed: EndpointTicket = ticket.parse().expect("a ticket");
        Self {
            process,
            addr: parsed.endpoint_addr().clone(),
            ticket,
        }
    }

    pub fn ask(&mut self, what: Do) -> State {
        self.process.ask(&what)
    }
}

/// Runs the hub.
pub async fn hub(setup: &str) {
    let endpoint = endpoint::bind_local().await.expect("loopback binds");
    let ticket = Ticket(EndpointTicket::new(endpoint.addr()).to_string());
    let hub = Setup::from_name(setup).builder().spawn(endpoint);
    let hub = hub.expect("a fresh endpoint");
    say(&ticket);
    let mut pacing: Option<JoinHandle<()>> = None;
    requests(async |what| {
        match what {
            Do::Nothing => {}
            Do::Allow(ids) => {
                for id in ids {
                    hub.admission().allow(id);
                }
            }
            Do::Broadcast { events, bytes } => {
                for n in 0..events {
                    let event = Envelope::new("n", &(n, "x".repeat(bytes))).expect("JSON");
                    hub.broadcast(event).await.expect("open");
                }
            }
            Do::Mail { bytes } => mail(&hub, bytes).await,
            Do::Pace { per_s } => pacing = Some(tokio::spawn(pace(hub.clone(), per_s))),
            Do::Rest => {
                if let Some(pacing) = pacing.take() {
                    pacing.abort();
                }
            }
        }
        say(&state(&hub));
    })
    .await;
}

/// Again and again, until none of those that take nothing has room.
async fn mail(hub: &Hub, bytes: usize) {
    let mut room = true;
    while std::mem::take(&mut room) {
        let stuck = |spoke: &SpokeInfo| spoke.protocol == Protocol::Native;
        for spoke in hub.spokes().into_iter().filter(stuck) {
            let event = Envelope::new("n", &"x".repeat(bytes)).expect("JSON");
            room |= hub.send(spoke.id, event).await.is_ok();
        }
    }
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(0))
}

/// How long ago an event was broadcast, by the clock of this machine.
pub fn age(sent_us: u64) -> Duration {
    Duration::from_micros(now_us().saturating_sub(sent_us))
}

async fn pace(hub: Hub, per_s: u64) {
    let mut tick = interval(Duration::from_secs(1) / u32::try_from(per_s).expect("a rate"));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for n in 0u64.. {
        tick.tick().await;
        let event = Envelope::new("n", &(n, now_us())).expect("a pair is JSON");
        hub.broadcast(event).await.expect("open");
    }
}

/// A flood of connections from endpoints that nobody has heard of.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Flood {
    pub attempts: u64,
    /// With how many ids.
    pub ids: usize,
    /// So many at a time.
    pub at_once: usize,
}

/// How it went.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Flooded {
    /// Attempts that led to a connection, which the hub then closed with a code that says why.
    pub closed: u64,
    /// Attempts that did not.
    pub no_answer: u64,
    /// Connections that the hub left open.
    pub open: u64,
    /// Connections that ended in another way than by such a code.
    pub otherwise: u64,
}

/// For so long an attempt waits for an answer.
const ANSWER: Duration = Duration::from_millis(700);
/// And so long for the hub to close the connection.
const CLOSE: Duration = Duration::from_secs(20);

fn turns_away(code: VarInt) -> bool {
    [code::REFUSED, code::TOO_MANY].contains(&code.into_inner())
}

async fn attempt(endpoint: &Endpoint, hub: EndpointAddr, alpn: &[u8]) -> Flooded {
    let mut flooded = Flooded::default();
    match timeout(ANSWER, endpoint.connect(hub, alpn)).await {
        Ok(Ok(connection)) => match timeout(CLOSE, connection.closed()).await {
            Ok(ConnectionError::ApplicationClosed(close)) if turns_away(close.error_code) => {
                flooded.closed = 1;
            }
            Ok(_) => flooded.otherwise = 1,
            Err(_) => flooded.open = 1,
        },
        _ => flooded.no_answer = 1,
    }
    flooded
}

/// Floods a hub with attempts on each of its protocols.
pub async fn flood(hub: EndpointAddr, flood: Flood) -> Flooded {
    let mut endpoints = Vec::new();
    for _ in 0..flood.ids {
        endpoints.push(endpoint::bind_local().await.expect("loopback binds"));
    }
    let endpoints = Arc::new(endpoints);
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..flood.at_once {
        let (endpoints, next, hub) = (endpoints.clone(), next.clone(), hub.clone());
        tasks.spawn(async move {
            let mut all = Flooded::default();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= flood.attempts {
                    return all;
                }
                let endpoint = &endpoints[n as usize % endpoints.len()];
                let alpn = [NATIVE, COMPAT, GOSSIP][n as usize % 3];
                let one = attempt(endpoint, hub.clone(), alpn).await;
                all.closed += one.closed;
                all.no_answer += one.no_answer;
                all.open += one.open;
                all.otherwise += one.otherwise;
            }
        });
    }
    let mut all = Flooded::default();
    for one in tasks.join_all().await {
        all.closed += one.closed;
        all.no_answer += one.no_answer;
        all.open += one.open;
        all.otherwise += one.otherwise;
    }
    for endpoint in endpoints.iter() {
        let _ = timeout(CLOSE, endpoint.close()).await;
    }
    all
}

/// Attacks in a process of its own.
pub struct Attacker(Process);

impl Attacker {
    pub fn start(ticket: &str) -> Self {
        Self(Process::start("attacker", "", ticket))
    }

    /// Returns when it is over.
    pub fn flood(&mut self, flood: Flood) -> Flooded {
        self.0.ask(&flood)
    }
}

/// Runs the attacker.
pub async fn attacker(ticket: &str) {
    let ticket: EndpointTicket = ticket.parse().expect("a ticket");
    let hub = ticket.endpoint_addr().clone();
    requests(async |what| say(&flood(hub.clone(), what).await)).await;
}

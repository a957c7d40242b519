//! Spokes inside of the test: what they hear becomes the lines that the program would have printed, and when it came is
//! noted.

use std::{
    io::Write,
    ops::Range,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use iroh::endpoint::QuicTransportConfig;
use iroh_hub::{
    Envelope, Event, Hub, Incoming, ListenOptions, Listener, OnFull, Position, Spoke, SpokeStatus,
};
use serde_json::json;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    checker::{Life, Report, Spoke as Printed, check},
    common::{self, LIMIT, soon},
    load::{self, Clock},
};

/// How many spokes connect at once.
const CONNECTING: usize = 16;

/// The line that `iroh-hub spoke` prints.
pub fn put_line(out: &mut Vec<u8>, item: &Incoming) {
    let written = match item {
        Incoming::Event(event) => writeln!(
            out,
            "{{\"position\":{},\"type\":{},\"id\":{},\"payload\":{},\"via\":{}{}}}",
            json!(event.position),
            json!(event.envelope.event_type()),
            json!(event.envelope.id()),
            event.envelope.payload_json(),
            json!(event.via),
            if event.targeted {
                ",\"targeted\":true"
            } else {
                ""
            },
        ),
        Incoming::Missed(missed) => writeln!(
            out,
            "{}",
            json!({"missed": {"from": missed.from, "to": missed.to}})
        ),
        Incoming::Lagged(lagged) => {
            writeln!(out, "{}", json!({"lagged": {"events": lagged.events}}))
        }
        Incoming::Status(status) => {
            let line = match status {
                SpokeStatus::Connected { .. } => json!({"status": "connected"}),
                SpokeStatus::Reconnecting { .. } => json!({"status": "reconnecting"}),
                SpokeStatus::Recovered { wholly } => {
                    json!({"status": "recovered", "wholly": wholly})
                }
                SpokeStatus::Closed(_) => json!({"status": "closed"}),
                // It has a line of its own.
                SpokeStatus::Missed(_) => return,
                other => panic!("what is {other:?}?"),
            };
            writeln!(out, "{line}")
        }
        other => panic!("what is {other:?}?"),
    };
    written.expect("memory can be written");
}

/// The number of an event of a [`Load`](crate::load::Load).
pub fn number(event: &Event) -> Option<u64> {
    let text = event.envelope.payload_json().strip_prefix('[')?;
    text.split(',').next()?.parse().ok()
}

/// QUIC that soon notices a dead peer.
pub fn impatient() -> QuicTransportConfig {
    let idle = Duration::from_secs(3).try_into().expect("in bounds");
    QuicTransportConfig::builder()
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Duration::from_secs(1))
        .build()
}

/// One event that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub n: u64,
    pub at: Instant,
}

/// What was broadcast, as the receipts that `iroh-hub hub --receipts` would have written.
#[derive(Debug, Default)]
pub struct Receipts(Vec<u8>);

impl Receipts {
    /// Broadcasts the events of these numbers, ten at a time and a while between.
    pub async fn broadcast(&mut self, hub: &Hub, numbers: Range<u64>, pause: Duration) {
        for n in numbers {
            let event = load::event(n, 100);
            let receipt = hub.broadcast(event.clone()).await.expect("open");
            self.add(receipt.position(), &event);
            if n % 10 == 9 {
                sleep(pause).await;
            }
        }
    }

    fn add(&mut self, at: Position, event: &Envelope) {
        writeln!(
            self.0,
            "{{\"position\":{},\"type\":{},\"id\":{},\"payload\":{}}}",
            json!(at),
            json!(event.event_type()),
            json!(event.id()),
            event.payload_json(),
        )
        .expect("memory can be written");
    }

    /// Checks what spokes heard that were there from the first event to the last.
    pub fn check(self, heard: &[Heard]) -> Report {
        let printed: Vec<_> = heard
            .iter()
            .enumerate()
            .map(|(n, heard)| heard.printed(n).begins_at(0).has_all())
            .collect();
        check(&[Life::ended(self.0)], &printed)
    }
}

/// What a spoke heard.
#[derive(Debug, Default)]
pub struct Heard {
    pub lines: Vec<u8>,
    pub arrivals: Vec<Arrival>,
}

/// A spoke inside of the test.
pub struct Listening {
    pub spoke: Spoke,
    heard: Arc<Mutex<Heard>>,
}

impl Listening {
    pub fn last(&self) -> Option<u64> {
        let heard = self.heard.lock().expect("no panic");
        heard.arrivals.last().map(|arrival| arrival.n)
    }
}

/// Many of them.
pub struct Listeners {
    pub spokes: Vec<Listening>,
    listening: JoinSet<()>,
}

impl Listeners {
    /// Connects so many spokes, a few at once.
    pub async fn connect<F>(count: usize, connect: impl Fn() -> F) -> Self
    where
        F: Future<Output = Spoke> + Send + 'static,
    {
        let mut all = Self {
            spokes: Vec::with_capacity(count),
            listening: JoinSet::new(),
        };
        let mut connecting = JoinSet::new();
        for n in 0..count {
            if n >= CONNECTING {
                all.add(connecting.join_next().await.expect("one"));
            }
            connecting.spawn(connect());
        }
        while let Some(connected) = connecting.join_next().await {
            all.add(connected);
        }
        all
    }

    /// Connects so many spokes to a hub's ticket, on loopback.
    pub async fn of_ticket(ticket: &str, count: usize) -> Self {
        Self::connect(count, || {
            let ticket = ticket.to_owned();
            async move {
                let endpoint = common::bind().await;
                let spoke = Spoke::builder().connect_ticket(endpoint, &ticket).await;
                spoke.expect("the hub lets us in")
            }
        })
        .await
    }

    fn add(&mut self, connected: Result<Spoke, tokio::task::JoinError>) {
        let spoke = connected.expect("no panic");
        let hold = OnFull::Hold { at_most: LIMIT };
        let options = ListenOptions::default().on_full(hold).statuses(true);
        let listener = iroh_hub::EventTarget::listen_with(&spoke, "*".into(), options);
        let heard = Arc::<Mutex<Heard>>::default();
        self.listening.spawn(hear(listener, heard.clone()));
        self.spokes.push(Listening { spoke, heard });
    }

    /// Waits until the topic serves every spoke.
    pub async fn all_on_topic(&self) {
        common::until("all are on the tree", || {
            self.spokes.iter().all(|one| one.spoke.is_on_topic())
        })
        .await;
    }

    /// Waits until half of the spokes have heard event `n`, or a later one.
    pub async fn half_have(&self, n: u64) {
        common::until("half of them have it", || {
            let have = self.spokes.iter().filter(|spoke| spoke.last() >= Some(n));
            have.count() * 2 >= self.spokes.len()
        })
        .await;
    }

    /// Waits until every spoke has heard event `n`.
    pub async fn all_have(&self, n: u64) {
        common::until("all have it", || {
            self.spokes.iter().all(|spoke| spoke.last() >= Some(n))
        })
        .await;
    }

    /// Waits until the hub is gone for every spoke, and gives back what each heard.
    pub async fn end(mut self) -> Vec<Heard> {
        let ending = async { while self.listening.join_next().await.is_some() {} };
        soon("the ends of the spokes", ending).await;
        for listening in &self.spokes {
            listening.spoke.shutdown().await;
        }
        let take = |listening: &Listening| {
            let mut heard = listening.heard.lock().expect("no panic");
            std::mem::take(&mut *heard)
        };
        self.spokes.iter().map(take).collect()
    }
}

async fn hear(mut listener: Listener, heard: Arc<Mutex<Heard>>) {
    while let Some(item) = listener.recv().await {
        let at = Instant::now();
        let mut heard = heard.lock().expect("no panic");
        put_line(&mut heard.lines, &item);
        if let Incoming::Event(event) = &item
            && let Some(n) = number(event)
        {
            heard.arrivals.push(Arrival { n, at });
        }
    }
}

impl Heard {
    /// For the checker.
    pub fn printed(&self, name: impl std::fmt::Display) -> Printed {
        Printed::new(name, vec![Life::ended(self.lines.clone())])
    }

    /// How late each event was that was written in this time.
    pub fn latencies(
        &self,
        clock: &Clock,
        from: Instant,
        to: Instant,
    ) -> impl Iterator<Item = Duration> {
        self.arrivals.iter().filter_map(move |arrival| {
            let written = clock.written(arrival.n);
            let within = from <= written && written < to;
            within.then(|| arrival.at.saturating_duration_since(written))
        })
    }
}

//! Spokes inside of the test: what they hear becomes the lines that the program would have printed, and when it came is
//! noted.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use iroh_hub::{Event, Incoming, ListenOptions, Listener, OnFull, Spoke, SpokeBuilder};
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    checker::{Life, Spoke as Printed},
    common::{self, LIMIT, soon},
    load::Clock,
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
        other => panic!("what is {other:?}?"),
    };
    written.expect("memory can be written");
}

/// The number of an event of a [`Load`](crate::load::Load).
pub fn number(event: &Event) -> Option<u64> {
    let text = event.envelope.payload_json().strip_prefix('[')?;
    text.split(',').next()?.parse().ok()
}

/// One event that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub n: u64,
    pub at: Instant,
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
    /// Connects so many spokes, each with an endpoint of its own.
    pub async fn connect(ticket: &str, count: usize, builder: &SpokeBuilder) -> Self {
        let mut all = Self {
            spokes: Vec::with_capacity(count),
            listening: JoinSet::new(),
        };
        let mut connecting = JoinSet::new();
        for n in 0..count {
            if n >= CONNECTING {
                all.add(connecting.join_next().await.expect("one"));
            }
            let (ticket, builder) = (ticket.to_owned(), builder.clone());
            connecting.spawn(async move {
                let endpoint = common::bind().await;
                let spoke = builder.connect_ticket(endpoint, &ticket).await;
                spoke.expect("the hub lets us in")
            });
        }
        while let Some(connected) = connecting.join_next().await {
            all.add(connected);
        }
        all
    }

    fn add(&mut self, connected: Result<Spoke, tokio::task::JoinError>) {
        let spoke = connected.expect("no panic");
        let hold = OnFull::Hold { at_most: LIMIT };
        let options = ListenOptions::default().on_full(hold);
        let listener = iroh_hub::EventTarget::listen_with(&spoke, "*".into(), options);
        let heard = Arc::<Mutex<Heard>>::default();
        self.listening.spawn(hear(listener, heard.clone()));
        self.spokes.push(Listening { spoke, heard });
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

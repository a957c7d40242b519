//! What the bench says to its two child processes, and they to it: one JSON value a line, strictly one reply to one command.
//!
//! Both children of a pair count rounds alike: each round is one `Expect` to the spokes, and then one `Publish` to the hub.

use std::{fmt, time::Duration};

use iroh::EndpointAddr;
use serde::{Deserialize, Serialize};

use super::usage::Usage;
use crate::common::Arrived;

/// A child's answer: what was asked for, or why not.
pub(crate) type Answer<T> = Result<T, String>;

/// What is measured side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Alternative {
    /// This crate, a stream per spoke.
    Direct,
    /// This crate, the topic.
    Gossip,
    /// Iroh and nothing else.
    BareStreams,
    /// `iroh_gossip::net` and nothing else.
    BareGossip,
}

impl Alternative {
    /// The name in the results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Gossip => "gossip",
            Self::BareStreams => "bare_streams",
            Self::BareGossip => "bare_gossip",
        }
    }
}

/// What a round consists of.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) events: usize,
    pub(crate) size: usize,
    /// From one event to the next; as fast as the hub takes them if there is none.
    pub(crate) gap: Option<Duration>,
}

/// To the hub's process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum HubCommand {
    /// Start, for so many spokes that are about to connect.
    Start {
        alternative: Alternative,
        spokes: usize,
        max_payload: usize,
    },
    /// Answer once all of them are there, each on the path that is meant for it.
    AwaitReady,
    /// Send the events of a round, and answer when the last is handed over.
    Publish(Round),
    /// Tell what the process has used.
    Account,
}

/// From the hub's process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum HubReply {
    /// Where it is.
    Started(EndpointAddr),
    Ready,
    Published,
    Account(Account),
}

/// To the spokes' process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum SpokesCommand {
    /// Connect so many, each an endpoint of its own, and listen on each.
    Connect {
        alternative: Alternative,
        hub: EndpointAddr,
        spokes: usize,
        max_payload: usize,
    },
    /// Count from nothing: a round is about to be sent.
    Expect(Round),
    /// Answer once the round is complete, or nothing more comes.
    Report,
    /// Let each say a word to the hub, one after the other, spread evenly over this time.
    Stir(Duration),
    /// Tell what the process has used.
    Account,
}

/// From the spokes' process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum SpokesReply {
    Connected,
    Expecting,
    Outcome(Outcome),
    Stirred,
    Account(Account),
}

/// What a process has used since it started, and what it holds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) usage: Usage,
    /// Memory that is resident; only Linux tells.
    pub(crate) resident_bytes: Option<u64>,
    /// How often our topic was given up, or a spoke on it served directly: a round of that is none of gossip.
    pub(crate) fallbacks: u64,
}

impl Account {
    /// This process's, beside what its endpoint counts.
    pub(crate) fn now(bytes_sent: u64, fallbacks: u64) -> Self {
        Self {
            usage: Usage::now(bytes_sent),
            resident_bytes: resident_bytes(),
            fallbacks,
        }
    }
}

/// From `smaps_rollup`, which is exact; `VmRSS` lags behind by some pages for each thread.
fn resident_bytes() -> Option<u64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// What came of a round.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Events times spokes.
    pub(crate) expected: u64,
    pub(crate) lost: u64,
    pub(crate) disordered: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            expected,
            lost,
            disordered,
        } = self;
        write!(
            f,
            "{lost} of {expected} deliveries lost, {disordered} out of order"
        )
    }
}

impl Outcome {
    pub(crate) fn add(&mut self, other: Self) {
        self.expected += other.expected;
        self.lost += other.lost;
        self.disordered += other.disordered;
    }
}

impl From<Arrived> for Outcome {
    fn from(arrived: Arrived) -> Self {
        Self {
            expected: arrived.expected,
            lost: arrived.expected - arrived.delivered,
            disordered: arrived.disordered,
        }
    }
}

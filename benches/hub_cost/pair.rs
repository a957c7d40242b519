//! A hub in one process and its spokes in another, and what they are taken through.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    HUB_CHILD, SPOKES_CHILD,
    protocol::{
        Account, Alternative, HubCommand, HubReply, Outcome, Round, SpokesCommand, SpokesReply,
    },
    worker::Worker,
};
use crate::common::Result;

/// A step of a child may take so long: a burst to 300 spokes, or their arrival.
pub(crate) const STEP_LIMIT: Duration = Duration::from_secs(120);
/// Events before anything is measured, at this pace: windows open, trees settle.
const WARM_UP: usize = 50;
const WARM_UP_GAP: Duration = Duration::from_millis(5);
/// Times that a mesh is started until it reaches every spoke.
const STARTS: u32 = 2;
/// After a round, for the acknowledgements of spokes that acknowledge fast.
const TAIL: Duration = Duration::from_millis(250);
/// Between rounds, for what the one before left to do.
const REST: Duration = Duration::from_millis(250);

/// Dropping it kills both processes.
pub(crate) struct Pair {
    pub(crate) alternative: Alternative,
    hub: Worker,
    spokes: Worker,
    /// How much more memory the hub holds than before its spokes came, when they have just come.
    resident_before: Option<u64>,
    /// What went missing or came out of order since it was last asked for.
    pub(crate) faults: Outcome,
}

/// Asks, and takes the one reply that fits the command.
macro_rules! ask {
    ($worker:expr, $command:expr, $reply:pat => $value:expr) => {
        match $worker.ask(&$command, STEP_LIMIT).await? {
            $reply => $value,
            other => return Err(format!("an answer that does not fit: {other:?}").into()),
        }
    };
}
pub(crate) use ask;

impl Pair {
    /// Starts both, and returns once all spokes are connected. No event has been sent.
    pub(crate) async fn connect(
        alternative: Alternative,
        spokes: usize,
        max_payload: usize,
    ) -> Result<Self> {
        let mut hub = Worker::spawn("hub", HUB_CHILD)?;
        let start = HubCommand::Start {
            alternative,
            spokes,
            max_payload,
        };
        let addr = ask!(hub, start, HubReply::Started(addr) => addr);
        let before = ask!(hub, HubCommand::Account, HubReply::Account(account) => account);
        let mut children = Worker::spawn("spokes", SPOKES_CHILD)?;
        let connect = SpokesCommand::Connect {
            alternative,
            hub: addr,
            spokes,
            max_payload,
        };
        ask!(children, connect, SpokesReply::Connected => ());
        ask!(hub, HubCommand::AwaitReady, HubReply::Ready => ());
        Ok(Self {
            alternative,
            hub,
            spokes: children,
            resident_before: before.resident_bytes,
            faults: Outcome::default(),
        })
    }

    /// Connects, and sends some events. A mesh in which a spoke then misses some (bare gossip leaves one behind at times)
    /// is said and started again.
    pub(crate) async fn warm(
        alternative: Alternative,
        spokes: usize,
        max_payload: usize,
    ) -> Result<Self> {
        let warm_up = Round {
            events: WARM_UP,
            size: max_payload,
            gap: Some(WARM_UP_GAP),
        };
        let mut tries = 0;
        loop {
            let mut pair = Self::connect(alternative, spokes, max_payload).await?;
            pair.round(warm_up).await?;
            pair.faults = Outcome::default();
            pair.round(warm_up).await?;
            let Outcome { expected, lost, .. } = std::mem::take(&mut pair.faults);
            tries += 1;
            if lost == 0 || tries == STARTS {
                return Ok(pair);
            }
            let name = alternative.name();
            eprintln!("{name}/{spokes}: {lost} of {expected} deliveries missing; starting again");
        }
    }

    /// Sends the events of a round, and returns what the hub used for it.
    pub(crate) async fn round(&mut self, round: Round) -> Result<Used> {
        ask!(self.hub, HubCommand::AwaitReady, HubReply::Ready => ());
        let expect = SpokesCommand::Expect(round);
        ask!(self.spokes, expect, SpokesReply::Expecting => ());
        let before = self.account().await?;
        ask!(self.hub, HubCommand::Publish(round), HubReply::Published => ());
        let report = SpokesCommand::Report;
        let outcome = ask!(self.spokes, report, SpokesReply::Outcome(outcome) => outcome);
        sleep(TAIL).await;
        let after = self.account().await?;
        let used = after.usage.since(before.usage);
        self.faults.add(outcome);
        sleep(REST).await;
        let per = |total: u64| total as f64 / round.events.max(1) as f64;
        Ok(Used {
            cpu_us: per(used.cpu_us),
            bytes: per(used.bytes_sent),
            fell_back: after.fallbacks > before.fallbacks,
        })
    }

    /// Lets each spoke say a word to the hub, one after the other, spread evenly over this time.
    pub(crate) async fn stir(&mut self, over: Duration) -> Result<()> {
        ask!(self.spokes, SpokesCommand::Stir(over), SpokesReply::Stirred => ());
        Ok(())
    }

    /// How much more memory the hub holds than before its spokes came.
    pub(crate) async fn grown(&mut self) -> Result<Option<u64>> {
        let now = self.account().await?.resident_bytes;
        let before = self.resident_before;
        Ok(now
            .zip(before)
            .map(|(now, before)| now.saturating_sub(before)))
    }

    /// What the hub has used.
    pub(crate) async fn account(&mut self) -> Result<Account> {
        Ok(ask!(self.hub, HubCommand::Account, HubReply::Account(account) => account))
    }
}

/// What a broadcast took of the hub.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub(crate) cpu_us: f64,
    pub(crate) bytes: f64,
    /// The topic was left for direct streams, in part or whole: this is not what gossip costs.
    pub(crate) fell_back: bool,
}

impl Used {
    pub(crate) const NONE: Self = Self {
        cpu_us: 0.0,
        bytes: 0.0,
        fell_back: false,
    };
}

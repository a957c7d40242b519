//! What `compare` says to its two child processes, and they to it: one JSON value a line, over stdin and stdout.
//!
//! Strictly one reply to one command, so a time limit on the reply is a time limit on the step. The parent drives both
//! children through the same phases:
//!
//! 1. hub: `Start`, which gives a ticket; spokes: `Connect` with it; hub: `AwaitReady`.
//! 2. For each phase (warm-up, burst, lone): spokes: `Expect`; both: `Usage`; hub: `Publish`, answered when the last event
//!    is handed over; spokes: `Report`, answered when everything arrived, or nothing more does; both: `Usage`.
//! 3. spokes: `Stop`; hub: `Stop`.
//!
//! A child whose stdin ends stops: that is how it learns that its parent is gone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{input::Input, row::Strategy, tally::Outcome, usage::Usage};

/// A child's answer: what was asked for, or why not.
pub(crate) type Answer<T> = Result<T, String>;

/// To the hub's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HubCommand {
    /// Spawn a hub on loopback, and load the bodies of the events.
    Start {
        strategy: Strategy,
        /// What auto takes the uplink for, in bytes a second.
        uplink: Option<u64>,
        input: Input,
    },
    /// Answer once so many spokes are welcomed and each is on the path that the strategy means for it.
    AwaitReady { spokes: usize, limit: Duration },
    /// Broadcast events, each `gap` after the one before (no gap: as fast as the hub takes them).
    Publish {
        round: u32,
        events: u64,
        gap: Option<Duration>,
    },
    /// Tell what the process has used.
    Usage,
    /// Shut down.
    Stop,
}

/// From the hub's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HubReply {
    /// The hub's ticket.
    Ticket(String),
    /// All spokes are there.
    Ready,
    /// All events of the round are handed to the hub.
    Published,
    Usage(Usage),
    Stopped,
}

/// To the spokes' process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SpokesCommand {
    /// Connect so many spokes, each an endpoint of its own, and listen on each.
    Connect { ticket: String, spokes: usize },
    /// Count from nothing: a round of so many events is about to be sent.
    Expect { round: u32, events: u64 },
    /// Answer once the round is complete, or once nothing has arrived for `patience`.
    Report { patience: Duration },
    /// Tell what the process has used.
    Usage,
    /// Disconnect.
    Stop,
}

/// From the spokes' process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SpokesReply {
    /// All spokes are welcomed.
    Connected,
    Expecting,
    Outcome(Outcome),
    Usage(Usage),
    Stopped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_answers_are_single_lines_that_read_back() {
        let command = HubCommand::Start {
            strategy: Strategy::Auto,
            uplink: None,
            input: Input::Lines {
                path: "a\nb".into(),
                limit: 3,
            },
        };
        let line = serde_json::to_string(&command).expect("encodes");
        assert!(!line.contains('\n'));
        assert_eq!(
            serde_json::from_str::<HubCommand>(&line).expect("reads"),
            command
        );

        let answer: Answer<SpokesReply> = Ok(SpokesReply::Outcome(Outcome::default()));
        let line = serde_json::to_string(&answer).expect("encodes");
        assert_eq!(
            serde_json::from_str::<Answer<SpokesReply>>(&line).expect("reads"),
            answer
        );

        let failed: Answer<SpokesReply> = Err("no hub there".into());
        let line = serde_json::to_string(&failed).expect("encodes");
        assert_eq!(
            serde_json::from_str::<Answer<SpokesReply>>(&line).expect("reads"),
            failed
        );
    }
    fn real() -> Vec<(&'static str, Vec<u8>)> {
        let start = HubCommand::Start {
            strategy: Strategy::Auto,
            uplink: None,
            input: Input::Lines {
                path: "a\nb".into(),
                limit: 3,
            },
        };
        let connect = SpokesCommand::Connect {
            ticket: "endpoint".to_owned(),
            spokes: 3,
        };
        let outcome: Answer<SpokesReply> = Ok(SpokesReply::Outcome(Outcome::default()));
        vec![
            ("start", serde_json::to_vec(&start).unwrap()),
            ("connect", serde_json::to_vec(&connect).unwrap()),
            ("outcome", serde_json::to_vec(&outcome).unwrap()),
        ]
    }

    crate::fuzz::decoder!(compare_line, real(), |bytes| {
        if let Ok(command) = serde_json::from_slice::<HubCommand>(bytes) {
            let again = serde_json::to_vec(&command).unwrap();
            assert_eq!(
                serde_json::from_slice::<HubCommand>(&again).unwrap(),
                command
            );
        }
        let _ = serde_json::from_slice::<SpokesCommand>(bytes);
        let _ = serde_json::from_slice::<Answer<HubReply>>(bytes);
        let _ = serde_json::from_slice::<Answer<SpokesReply>>(bytes);
    });
}

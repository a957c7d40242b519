//! What the spokes received of a round: how many, in which order, and when the last one had each event.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::timeout};

use super::probe::Header;

/// A round of more deliveries than this is refused: the tally remembers each.
pub(crate) const MAX_DELIVERIES: u64 = 50_000_000;
/// Times to the last spoke are told for at most this many events of a round.
const MAX_TIMES: usize = 10_000;

/// What came of a round.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Events of the round times spokes.
    pub(crate) expected: u64,
    /// Deliveries that were not repeats.
    pub(crate) delivered: u64,
    /// Deliveries of an event that its spoke already had.
    pub(crate) repeated: u64,
    /// Deliveries that were not the next event of their spoke.
    pub(crate) out_of_order: u64,
    /// From the first send to the last arrival.
    pub(crate) elapsed_ns: u64,
    /// For each event that reached every spoke: from its send to its last arrival.
    pub(crate) to_last_ns: Vec<u64>,
}

/// The count of one process's spokes, of one round at a time.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    round: Mutex<Round>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Round {
    number: u32,
    spokes: Vec<Spoke>,
    events: Vec<Event>,
    delivered: u64,
    repeated: u64,
    out_of_order: u64,
    first_sent_ns: Option<u64>,
    last_arrival_ns: u64,
}

#[derive(Debug)]
struct Spoke {
    next: u64,
    /// A bit per event.
    has: Vec<u64>,
}

#[derive(Debug, Clone, Default)]
struct Event {
    spokes: u32,
    last_ns: u64,
}

impl Tally {
    /// Begins a round. Arrivals of earlier rounds are ignored from here on.
    pub(crate) fn expect(&self, number: u32, spokes: usize, events: u64) -> anyhow::Result<()> {
        let deliveries = events.saturating_mul(spokes as u64);
        anyhow::ensure!(
            deliveries <= MAX_DELIVERIES,
            "{events} events to {spokes} spokes are {deliveries} deliveries; the most that is counted is {MAX_DELIVERIES}"
        );
        let events = events as usize;
        let spoke = || Spoke {
            next: 0,
            has: vec![0; events.div_ceil(64)],
        };
        *self.lock() = Round {
            number,
            spokes: std::iter::repeat_with(spoke).take(spokes).collect(),
            events: vec![Event::default(); events],
            ..Round::default()
        };
        Ok(())
    }

    /// Counts one arrival.
    pub(crate) fn record(&self, spoke: usize, header: Header, now_ns: u64) {
        if self.lock().record(spoke, header, now_ns) {
            self.arrived.notify_one();
        }
    }

    /// Waits until the round is complete, or until nothing has arrived for `patience`.
    pub(crate) async fn outcome(&self, patience: Duration) -> Outcome {
        loop {
            let before = {
                let round = self.lock();
                if round.is_complete() {
                    return round.outcome();
                }
                round.delivered + round.repeated
            };
            let waited = timeout(patience, self.arrived.notified()).await;
            let round = self.lock();
            if waited.is_err() && round.delivered + round.repeated == before {
                return round.outcome();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Round {
    fn expected(&self) -> u64 {
        (self.spokes.len() * self.events.len()) as u64
    }

    fn is_complete(&self) -> bool {
        self.delivered == self.expected()
    }

    /// Returns whether this completes the round.
    fn record(&mut self, spoke: usize, header: Header, now_ns: u64) -> bool {
        let Header(round, index, sent_ns, _) = header;
        let at = index as usize;
        let (Some(spoke), Some(event)) = (self.spokes.get_mut(spoke), self.events.get_mut(at))
        else {
            return false;
        };
        let Some(word) = spoke.has.get_mut(at / 64) else {
            return false;
        };
        if round != self.number {
            return false;
        }
        let bit = 1 << (at % 64);
        if *word & bit != 0 {
            self.repeated += 1;
            return false;
        }
        *word |= bit;
        self.out_of_order += u64::from(spoke.next != index);
        spoke.next = index + 1;
        event.spokes += 1;
        event.last_ns = event.last_ns.max(now_ns.saturating_sub(sent_ns));
        self.delivered += 1;
        self.first_sent_ns = Some(
            self.first_sent_ns
                .map_or(sent_ns, |first| first.min(sent_ns)),
        );
        self.last_arrival_ns = self.last_arrival_ns.max(now_ns);
        self.is_complete()
    }

    fn outcome(&self) -> Outcome {
        let everywhere = self
            .events
            .iter()
            .filter(|event| event.spokes as usize == self.spokes.len());
        Outcome {
            expected: self.expected(),
            delivered: self.delivered,
            repeated: self.repeated,
            out_of_order: self.out_of_order,
            elapsed_ns: self
                .first_sent_ns
                .map_or(0, |first| self.last_arrival_ns.saturating_sub(first)),
            to_last_ns: everywhere
                .map(|event| event.last_ns)
                .take(MAX_TIMES)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(round: u32, index: u64, sent_ns: u64) -> Header {
        Header::read(&format!("[{round},{index},{sent_ns},\"\"]")).expect("a header")
    }

    #[tokio::test]
    async fn a_complete_round_tells_the_time_to_the_last_spoke() {
        let tally = Tally::default();
        tally.expect(1, 2, 2).expect("begins");
        tally.record(0, header(1, 0, 100), 110);
        tally.record(1, header(1, 0, 100), 150);
        tally.record(1, header(1, 1, 200), 205);
        tally.record(0, header(1, 1, 200), 230);
        let outcome = tally.outcome(Duration::from_secs(60)).await;
        assert_eq!(
            outcome,
            Outcome {
                expected: 4,
                delivered: 4,
                elapsed_ns: 130,
                to_last_ns: vec![50, 30],
                ..Outcome::default()
            }
        );
    }

    #[tokio::test]
    async fn losses_repeats_and_disorder_are_counted_apart() {
        let tally = Tally::default();
        tally.expect(7, 1, 4).expect("begins");
        for index in [1, 0, 0, 2] {
            tally.record(0, header(7, index, 0), 5);
        }
        let outcome = tally.outcome(Duration::from_millis(1)).await;
        assert_eq!(
            (outcome.delivered, outcome.repeated, outcome.out_of_order),
            (3, 1, 3)
        );
        assert_eq!(outcome.to_last_ns.len(), 3);
    }

    #[tokio::test]
    async fn stragglers_of_an_earlier_round_and_nonsense_are_ignored() {
        let tally = Tally::default();
        tally.expect(1, 1, 3).expect("begins");
        tally.expect(2, 1, 3).expect("begins");
        tally.record(0, header(1, 0, 0), 5);
        tally.record(0, header(2, 9, 0), 5);
        tally.record(4, header(2, 0, 0), 5);
        assert_eq!(tally.outcome(Duration::from_millis(1)).await.delivered, 0);
    }

    #[test]
    fn a_round_too_large_to_remember_is_refused() {
        assert!(Tally::default().expect(1, 1000, u64::MAX).is_err());
    }
}

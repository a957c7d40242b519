//! Whether a spoke comes back after its link ended, and when: capped exponential backoff with full jitter, so
//! that a mesh that lost its hub does not come back all at once.
//!
//! Sans-IO: the time comes in, waits come out.

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    close::{CloseCode, Closed},
    instant::bound,
};

/// How a spoke comes back after its link was lost.
///
/// It comes back when the link broke, timed out or was closed for a passing reason. It does not when it
/// would only happen again: it is refused, of another version, fenced off by a newer link, fell behind by the
/// hub's policy, or one side broke the protocol.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct Reconnect {
    /// Whether at all. Default: yes. Spokes of the plain protocol never do: without positions, what is
    /// broadcast meanwhile would be lost in silence.
    pub enabled: bool,
    /// Whether also after the hub's goodbye. Default: no.
    pub after_goodbye: bool,
    /// The first attempt comes within this time, evenly drawn; the next within twice that, and so on.
    /// Default 500 ms; at least 1 ms.
    pub first: Duration,
    /// Where that doubling ends. Default 15 s.
    pub most: Duration,
    /// A link that stood for so long was a good one: after it, the waits begin anew. Default 10 s.
    pub lasting: Duration,
    /// How many attempts there are after a link, or in the beginning, before the spoke gives up. Default:
    /// without limit.
    pub attempts: Option<u32>,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            enabled: true,
            after_goodbye: false,
            first: Duration::from_millis(500),
            most: Duration::from_secs(15),
            lasting: Duration::from_secs(10),
            attempts: None,
        }
    }
}

impl Reconnect {
    /// A spoke that ends with its link.
    pub fn never() -> Self {
        Self {
            enabled: false,
            ..Self::default()
        }
    }

    pub(super) fn sound(mut self) -> Self {
        bound([&mut self.first, &mut self.most, &mut self.lasting]);
        self.first = self.first.max(Duration::from_millis(1));
        self.most = self.most.max(self.first);
        self
    }
}

/// An attempt to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Retry {
    /// Counts from 1 since the last link that lasted.
    pub(crate) attempt: u32,
    /// How long until then.
    pub(crate) after: Duration,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Backoff {
    config: Reconnect,
    rng: StdRng,
    attempt: u32,
    /// Since when there is a link.
    linked: Option<Instant>,
}

impl Backoff {
    pub(crate) fn new(config: Reconnect, seed: u64) -> Self {
        Self {
            config: config.sound(),
            rng: StdRng::seed_from_u64(seed),
            attempt: 0,
            linked: None,
        }
    }

    /// The hub has welcomed the spoke.
    pub(crate) fn linked(&mut self, now: Instant) {
        self.linked = Some(now);
    }

    /// The link ended, or an attempt failed. Says when to try again; never, if that is none.
    pub(crate) fn ended(&mut self, now: Instant, closed: &Closed) -> Option<Retry> {
        if let Some(since) = self.linked.take()
            && now.saturating_duration_since(since) >= self.config.lasting
        {
            self.attempt = 0;
        }
        let goes_on = self.config.enabled
            && self.comes_back(closed)
            && self.config.attempts.is_none_or(|most| self.attempt < most);
        if !goes_on {
            return None;
        }
        let doublings = self.attempt.min(31);
        self.attempt = self.attempt.saturating_add(1);
        let window = self.config.first.saturating_mul(1 << doublings);
        let window = window.min(self.config.most);
        let micros = u64::try_from(window.as_micros()).unwrap_or(u64::MAX);
        Some(Retry {
            attempt: self.attempt,
            after: Duration::from_micros(self.rng.random_range(0..=micros)),
        })
    }

    fn comes_back(&self, closed: &Closed) -> bool {
        match closed {
            Closed::Lost { .. } => true,
            Closed::ByPeer {
                code: CloseCode::Goodbye,
                ..
            } => self.config.after_goodbye,
            Closed::ByPeer { code, .. } | Closed::ByUs { code, .. } => !matches!(
                code,
                // If it is ours, we have ended.
                CloseCode::Goodbye
                    | CloseCode::Refused
                    | CloseCode::Version
                    | CloseCode::Fenced
                    | CloseCode::FellBehind
                    // It would only happen again.
                    | CloseCode::Misbehaved
                    | CloseCode::BadFrame
                    | CloseCode::TooLarge
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lost() -> Closed {
        Closed::Lost {
            reason: String::new(),
        }
    }

    fn by_peer(code: CloseCode) -> Closed {
        Closed::ByPeer {
            code,
            reason: String::new(),
        }
    }

    #[test]
    fn what_would_only_happen_again_is_the_end() {
        let now = Instant::now();
        for number in 0..20 {
            let code = CloseCode::from_u64(number);
            let passing = matches!(
                code,
                CloseCode::Unspecified
                    | CloseCode::TimedOut
                    | CloseCode::TooMany
                    | CloseCode::NotAMember
                    | CloseCode::NotNeeded
                    | CloseCode::Internal
                    | CloseCode::NewEpoch
                    | CloseCode::Other(_)
            );
            for closed in [by_peer(code), Closed::by_us(code, "")] {
                let mut backoff = Backoff::new(Reconnect::default(), 1);
                let retry = backoff.ended(now, &closed);
                assert_eq!(retry.is_some(), passing, "{closed}");
            }
        }
        let goodbye = by_peer(CloseCode::Goodbye);
        let stays = Reconnect {
            after_goodbye: true,
            ..Reconnect::default()
        };
        assert!(Backoff::new(stays, 1).ended(now, &goodbye).is_some());
        let mut never = Backoff::new(Reconnect::never(), 1);
        assert_eq!(never.ended(now, &lost()), None);
    }

    #[test]
    fn the_number_of_attempts_can_be_limited() {
        let mut now = Instant::now();
        let config = Reconnect {
            attempts: Some(2),
            ..Reconnect::default()
        };
        let mut backoff = Backoff::new(config, 1);
        for _ in 0..2 {
            for attempt in 1..=2 {
                let retry = backoff.ended(now, &lost()).expect("another attempt");
                assert_eq!(retry.attempt, attempt);
            }
            assert_eq!(backoff.ended(now, &lost()), None);
            // A link that lasts is a new beginning.
            backoff.linked(now);
            now += Duration::from_secs(10);
        }
    }

    #[test]
    fn a_mesh_comes_back_spread_over_the_window() {
        let now = Instant::now();
        let config = Reconnect {
            first: Duration::from_secs(8),
            ..Reconnect::default()
        };
        let mut seconds = [0u32; 9];
        for seed in 0..4000 {
            let retry = Backoff::new(config.clone(), seed).ended(now, &lost());
            seconds[retry.expect("an attempt").after.as_secs() as usize] += 1;
        }
        for (second, spokes) in seconds[..8].iter().enumerate() {
            assert!((350..650).contains(spokes), "second {second}: {spokes}");
        }
    }

    proptest! {
        #[test]
        fn waits_stay_within_a_window_that_doubles_up_to_its_cap(
            first in 0..100_000u64,
            most in 0..100_000u64,
            seed: u64,
            links in prop::collection::vec(prop::option::of(0..30u64), 1..100),
        ) {
            let config = Reconnect {
                first: Duration::from_millis(first),
                most: Duration::from_millis(most),
                ..Reconnect::default()
            };
            let sound = config.clone().sound();
            let mut backoff = Backoff::new(config, seed);
            let mut now = Instant::now();
            let mut window = sound.first;
            let mut attempt = 0;
            // Before each loss there was a link for so many seconds, or none.
            for link in links {
                if let Some(seconds) = link {
                    backoff.linked(now);
                    now += Duration::from_secs(seconds);
                    if seconds >= 10 {
                        (attempt, window) = (0, sound.first);
                    }
                }
                attempt += 1;
                let retry = backoff.ended(now, &lost()).expect("without limit");
                prop_assert_eq!(retry.attempt, attempt);
                prop_assert!(retry.after <= window);
                window = (window * 2).min(sound.most);
            }
        }
    }
}

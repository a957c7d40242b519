//! How fast one spoke may speak: sans-IO.
//!
//! A spoke that says more than it may is not closed: it is not read from until it has waited for what it said too soon.

use std::time::Duration;

use tokio::time::Instant;

/// Waits shorter than a timer's tick are left to add up.
const TICK: Duration = Duration::from_millis(2);

/// Frames and bytes a second, and as many at once as in a second.
#[derive(Debug)]
pub(crate) struct Throttle {
    frames: Meter,
    bytes: Meter,
    last: Instant,
}

#[derive(Debug)]
struct Meter {
    rate: f64,
    /// What may still be said at once; below zero, what was said too soon.
    left: f64,
}

impl Meter {
    fn new(rate: u64) -> Self {
        let rate = rate.max(1) as f64;
        Self { rate, left: rate }
    }

    /// Says for how long to wait, in seconds.
    fn spend(&mut self, passed: Duration, amount: f64) -> f64 {
        self.left = (self.left + passed.as_secs_f64() * self.rate).min(self.rate) - amount;
        (-self.left / self.rate).max(0.0)
    }
}

impl Throttle {
    pub(crate) fn new(frames_per_s: u64, bytes_per_s: u64, now: Instant) -> Self {
        Self {
            frames: Meter::new(frames_per_s),
            bytes: Meter::new(bytes_per_s),
            last: now,
        }
    }

    /// A frame of so many bytes has come. Says for how long to read nothing more.
    pub(crate) fn spend(&mut self, bytes: usize, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.last);
        self.last = self.last.max(now);
        let wait = self.frames.spend(passed, 1.0);
        let wait = wait.max(self.bytes.spend(passed, bytes as f64));
        let wait = Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX);
        (wait >= TICK).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn who_waits_as_told_says_no_more_than_allowed_and_who_is_slow_never_waits(
            frames in 1u64..1000,
            bytes in 1u64..100_000,
            steps in prop::collection::vec((0usize..50_000, 0u64..50), 1..300),
        ) {
            let begin = Instant::now();
            let mut now = begin;
            let mut throttle = Throttle::new(frames, bytes, now);
            let (mut said, mut weighed, mut largest) = (0u64, 0u64, 0u64);
            for (len, ms) in steps {
                now += Duration::from_millis(ms);
                let wait = throttle.spend(len, now);
                now += wait.unwrap_or_default();
                (said, weighed) = (said + 1, weighed + len as u64);
                largest = largest.max(len as u64);
                let passed = (now - begin + TICK).as_secs_f64() + 1.0;
                prop_assert!(said as f64 <= passed * frames as f64 + 1.0);
                prop_assert!(weighed as f64 <= passed * bytes as f64 + 1.0);
            }
            // Once it has been quiet for a second, it may say as much as in a second.
            now += Duration::from_secs(1);
            for _ in 0..frames.min(100) {
                prop_assert_eq!(throttle.spend((bytes / frames.max(100)) as usize, now), None);
            }
        }
    }
}

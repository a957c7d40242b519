//! What the protocol's cache of frames holds, in bytes.
//!
//! The protocol keeps each frame for grafts, and forgets it by time alone: when its timer says that the time has come. We
//! own the timer, so a cache that is full is emptied from its old end by telling the timer a later time.

use std::collections::VecDeque;

use n0_future::time::{Duration, Instant};

/// What a frame costs the cache beside its bytes.
const OVERHEAD: usize = 256;

/// When the cache is full it is emptied to so many eighths, so that this is not done with every frame.
const LOW: usize = 7;

/// Mirrors what the protocol's cache holds.
#[derive(Debug)]
pub(super) struct Cache {
    max: usize,
    retention: Duration,
    /// When each frame came, and what it costs, oldest first.
    frames: VecDeque<(Instant, usize)>,
    bytes: usize,
}

impl Cache {
    pub(super) fn new(max: usize, retention: Duration) -> Self {
        Self {
            max,
            retention,
            frames: VecDeque::new(),
            bytes: 0,
        }
    }

    /// The protocol has taken a frame. If its cache is too full now, says up to which time it has to forget.
    pub(super) fn add(&mut self, len: usize, now: Instant) -> Option<Forget> {
        let cost = len.saturating_add(OVERHEAD);
        self.frames.push_back((now, cost));
        self.bytes = self.bytes.saturating_add(cost);
        if self.bytes <= self.max {
            return None;
        }
        let low = self.max / 8 * LOW;
        let (mut left, mut until) = (self.bytes, now);
        for (came, cost) in &self.frames {
            if left <= low {
                break;
            }
            left -= cost;
            until = *came;
        }
        let before = self.frames.len();
        let until = until + self.retention;
        self.forget(until);
        Some(Forget {
            until,
            frames: before - self.frames.len(),
        })
    }

    /// The protocol forgets what is due at this time.
    pub(super) fn forget(&mut self, until: Instant) {
        while let Some((came, cost)) = self.frames.front().copied() {
            if came + self.retention > until {
                break;
            }
            self.bytes -= cost;
            self.frames.pop_front();
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What is to be forgotten before its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Forget {
    pub(super) until: Instant,
    pub(super) frames: usize,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_cache_is_within_its_bound_after_every_frame_and_forgets_no_more_than_it_must(
            max in 1usize..200_000,
            steps in prop::collection::vec((0usize..70_000, 0u64..400), 1..300),
        ) {
            let retention = Duration::from_secs(3);
            let mut cache = Cache::new(max, retention);
            let mut now = Instant::now();
            for (len, ms) in steps {
                now += Duration::from_millis(ms);
                let forget = cache.add(len, now);
                prop_assert!(cache.bytes() <= max);
                let sum: usize = cache.frames.iter().map(|(_, cost)| cost).sum();
                prop_assert_eq!(sum, cache.bytes());
                if let Some(forget) = forget {
                    prop_assert!(forget.frames > 0 && forget.until <= now + retention);
                    prop_assert!(cache.frames.front().is_none_or(|(came, _)| *came + retention > forget.until));
                }
            }
            cache.forget(now + retention);
            prop_assert!(cache.frames.is_empty() && cache.bytes() == 0);
        }
    }
}

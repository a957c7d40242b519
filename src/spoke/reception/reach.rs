//! Whether the topic serves a spoke: served when frames have joined up with its inbox, and isolated when it
//! hears nothing for longer than an idle hub's beacons are apart.

use std::time::{Duration, Instant};

use crate::wire::broadcast::{BEACON_FIRST, BEACON_LAST};

/// How often frames have to join up before the spoke relies on the topic.
const HITS: u32 = 2;
/// What is granted on top of twice the interval of beacons before silence counts as isolation.
const GRACE: Duration = Duration::from_secs(3);

/// Whether the topic serves this spoke.
#[derive(Debug)]
pub(super) struct Reach {
    served: bool,
    hits: u32,
    /// When the next frame or beacon is due.
    expect: Duration,
    heard: Instant,
}

/// What changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// The topic serves this spoke from now on.
    Served,
    /// It does not any more.
    Isolated,
}

impl Reach {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            served: false,
            hits: 0,
            expect: BEACON_LAST,
            heard: now,
        }
    }

    /// A frame or a beacon came. `joins_up` says that nothing lies between it and the inbox.
    pub(super) fn heard(&mut self, now: Instant, beacon: bool, joins_up: bool) -> Option<Change> {
        self.heard = now;
        self.expect = if beacon {
            (self.expect * 2).min(BEACON_LAST)
        } else {
            BEACON_FIRST
        };
        if self.served {
            return None;
        }
        self.hits = if joins_up { self.hits + 1 } else { 0 };
        if self.hits < HITS {
            return None;
        }
        self.served = true;
        Some(Change::Served)
    }

    pub(super) fn tick(&mut self, now: Instant) -> Option<Change> {
        if !self.served || now < self.silent_at() {
            return None;
        }
        self.served = false;
        self.hits = 0;
        Some(Change::Isolated)
    }

    /// When silence becomes isolation.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.served.then(|| self.silent_at())
    }

    /// When silence is no longer what an idle hub may keep.
    pub(super) fn silent_at(&self) -> Instant {
        self.heard + 2 * self.expect + GRACE
    }

    /// The topic has to show again that it serves this spoke.
    pub(super) fn relapse(&mut self) {
        self.served = false;
        self.hits = 0;
    }

    pub(super) fn is_served(&self) -> bool {
        self.served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoke_is_served_when_frames_join_up_and_isolated_when_they_stop() {
        let now = Instant::now();
        let mut reach = Reach::new(now);
        assert_eq!(reach.heard(now, false, true), None);
        assert_eq!(reach.heard(now, false, false), None);
        assert_eq!(reach.heard(now, false, true), None);
        assert_eq!(reach.heard(now, false, true), Some(Change::Served));
        assert_eq!(reach.deadline(), Some(now + 2 * BEACON_FIRST + GRACE));
        assert_eq!(reach.tick(now + GRACE), None);
        let silent = reach.deadline().unwrap();
        assert_eq!(reach.tick(silent), Some(Change::Isolated));
        assert_eq!(reach.deadline(), None);
        assert_eq!(reach.heard(silent, true, true), None);
        assert_eq!(reach.heard(silent, true, true), Some(Change::Served));
    }

    #[test]
    fn an_idle_hub_whose_beacons_become_rare_is_not_taken_for_silence() {
        let mut now = Instant::now();
        let mut reach = Reach::new(now);
        let _ = reach.heard(now, false, true);
        assert_eq!(reach.heard(now, false, true), Some(Change::Served));
        let mut quiet = BEACON_FIRST;
        for _ in 0..20 {
            now += quiet;
            assert_eq!(reach.tick(now), None);
            let _ = reach.heard(now, true, true);
            quiet = (quiet * 2).min(BEACON_LAST);
        }
    }
}

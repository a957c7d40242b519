//! Which of two connections to the same peer is the one to use.

use n0_future::time::{Duration, Instant};

/// For how long two connections between the same peers count as dialled at the same time.
const CONCURRENT: Duration = Duration::from_secs(10);

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialled {
    /// Whether we dialled it.
    pub(crate) by_us: bool,
    /// Since when it is up.
    pub(crate) up: Instant,
}

impl Dialled {
    /// Whether this new connection is the one to use from now on.
    ///
    /// When both sides dialled at the same time, both keep the connection that the larger id dialled. Otherwise the
    /// newer one stands: its peer would not have dialled if the older one were of use.
    pub(crate) fn replaces(&self, old: &Self, mine_is_larger: bool) -> bool {
        let concurrent = self.up.saturating_duration_since(old.up) < CONCURRENT;
        old.by_us == self.by_us || !concurrent || self.by_us == mine_is_larger
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_dial_each_other_at_once_agree_on_one_connection() {
        let up = Instant::now();
        let (ours, theirs) = (Dialled { by_us: true, up }, Dialled { by_us: false, up });
        for larger in [true, false] {
            // Either may be up first, here and there.
            let here = (
                theirs.replaces(&ours, larger),
                ours.replaces(&theirs, larger),
            );
            let there = (
                theirs.replaces(&ours, !larger),
                ours.replaces(&theirs, !larger),
            );
            assert_eq!(here.1, larger, "the one that we dialled");
            assert_eq!(here.0, !larger, "the one that it dialled");
            assert_eq!((here.0, here.1), (there.1, there.0));
        }
        let later = Dialled {
            by_us: false,
            up: up + CONCURRENT,
        };
        assert!(later.replaces(&ours, true) && later.replaces(&ours, false));
    }
}

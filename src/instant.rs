//! Sums of times that cannot overflow, whatever a setting says.

use std::time::{Duration, Instant};

/// `wait` after `now`. What is farther off than any clock will show is a year away.
pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    const LONG: Duration = Duration::from_secs(365 * 86_400);
    now.checked_add(wait.min(LONG)).unwrap_or(now)
}

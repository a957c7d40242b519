//! Sums of times that cannot overflow, whatever a setting says.

use std::time::{Duration, Instant};

/// Longer than anyone waits.
pub(crate) const LONG: Duration = Duration::from_secs(365 * 86_400);

/// `wait` after `now`. What is farther off than any clock will show is a year away.
pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait.min(LONG)).unwrap_or(now)
}

/// Brings settings down to a year, so that adding them to the time does not overflow.
pub(crate) fn bound<const N: usize>(settings: [&mut Duration; N]) {
    for setting in settings {
        *setting = (*setting).min(LONG);
    }
}

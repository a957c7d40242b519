//! The bounds and times of an inbox.

use std::time::Duration;

use crate::wire::native::MAX_PART;

/// What a buffered event or part costs beside its body.
pub(super) const OVERHEAD: usize = 64;

/// The bounds and times of an [`Inbox`](super::Inbox).
#[derive(Clone, Copy, Debug)]
pub(crate) struct InboxConfig {
    /// The largest event that is assembled.
    pub(crate) max_event_bytes: usize,
    /// The most parts that an event may have; as many as the largest one needs in any case.
    pub(crate) max_parts: u16,
    /// The most bytes that wait for their turn, parts and a fixed overhead for each included. At least
    /// two events of the largest size fit in any case.
    pub(crate) max_buffered_bytes: usize,
    /// The most events, whole or in parts, that wait for their turn.
    pub(crate) max_buffered_events: usize,
    /// The most bytes of targeted events that wait for their turn.
    pub(crate) max_targeted_bytes: usize,
    /// The most targeted events that wait for their turn.
    pub(crate) max_targeted_events: usize,
    /// How long a gap stands before it is wanted; longer where wants were needless.
    pub(crate) gap_wait: Duration,
    /// Up to this much longer, drawn for each gap, so that spokes which miss the same do not ask at once.
    pub(crate) gap_jitter: Duration,
    /// How long a want goes without any answer before it is repeated. Doubles with each repetition.
    pub(crate) want_retry: Duration,
    /// Where that doubling ends.
    pub(crate) want_retry_max: Duration,
    /// The most events that are asked for in one want.
    pub(crate) max_want: u64,
    /// The most wants that are open at a time.
    pub(crate) max_wants: usize,
}

impl Default for InboxConfig {
    fn default() -> Self {
        Self {
            max_event_bytes: 16 << 20,
            max_parts: 16_384,
            max_buffered_bytes: 64 << 20,
            max_buffered_events: 65_536,
            max_targeted_bytes: 32 << 20,
            max_targeted_events: 4096,
            gap_wait: Duration::from_millis(120),
            gap_jitter: Duration::from_millis(60),
            want_retry: Duration::from_secs(1),
            want_retry_max: Duration::from_secs(4),
            max_want: 4096,
            max_wants: 8,
        }
    }
}

impl InboxConfig {
    /// Raises what is too small to ever make progress: the next event must fit, whatever else waits, and a
    /// gap must be wanted.
    pub(super) fn sound(mut self) -> Self {
        let event = self.max_event_bytes.saturating_add(OVERHEAD);
        let whole_parts = self.max_event_bytes.div_ceil(MAX_PART);
        let least = u16::try_from(whole_parts).unwrap_or(u16::MAX);
        self.max_parts = self.max_parts.max(least);
        let parts = usize::from(self.max_parts).saturating_mul(OVERHEAD);
        let floor = event.saturating_mul(2).saturating_add(parts);
        self.max_buffered_bytes = self.max_buffered_bytes.max(floor);
        self.max_buffered_events = self.max_buffered_events.max(2);
        self.max_targeted_bytes = self.max_targeted_bytes.max(event);
        self.max_targeted_events = self.max_targeted_events.max(1);
        self.max_want = self.max_want.max(1);
        self.max_wants = self.max_wants.max(1);
        self.want_retry = self.want_retry.max(Duration::from_millis(1));
        self.want_retry_max = self.want_retry_max.max(self.want_retry);
        self
    }
}

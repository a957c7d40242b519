//! Frames under keys that this node has not been told yet.
//!
//! The hub tells all spokes of a new key before it seals under it, but some hear of it a moment later than their
//! neighbours. What comes in that moment is kept, a little of it, and looked at again when there are new keys:
//! nothing in it is believed, and nothing is passed on, before.

use std::collections::VecDeque;

use bytes::Bytes;
use n0_future::time::{Duration, Instant};

/// How many peers find room with all that may be kept of one.
const PEERS: usize = 8;
/// How many messages are kept of one: a peer that makes up such frames takes none of the others' room.
const MAX_OF_ONE: usize = 16;
/// How many bytes of one: two of the largest messages.
const BYTES_OF_ONE: usize = 160 * 1024;
const MAX_ALL: usize = PEERS * MAX_OF_ONE;
const MAX_BYTES: usize = PEERS * BYTES_OF_ONE;

/// For how long.
const KEPT_FOR: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Early<P> {
    messages: VecDeque<(P, Bytes, Instant)>,
    bytes: usize,
    /// When the message came that is looked at again.
    looked_at: Option<Instant>,
}

impl<P> Default for Early<P> {
    fn default() -> Self {
        Self {
            messages: VecDeque::new(),
            bytes: 0,
            looked_at: None,
        }
    }
}

impl<P: PartialEq> Early<P> {
    /// Keeps a message, if there is room.
    pub(super) fn keep(&mut self, from: P, message: &Bytes, now: Instant) {
        // One that was looked at again, in vain, is no younger for that.
        let at = self.looked_at.unwrap_or(now);
        self.expire(now);
        let of_one = self.messages.iter().filter(|(p, ..)| *p == from);
        let (count, bytes) = of_one.fold((0, 0), |(count, bytes), (_, message, _)| {
            (count + 1, bytes + message.len())
        });
        if count < MAX_OF_ONE
            && bytes + message.len() <= BYTES_OF_ONE
            && self.messages.len() < MAX_ALL
            && self.bytes + message.len() <= MAX_BYTES
        {
            self.bytes += message.len();
            self.messages.push_back((from, message.clone(), at));
        }
    }

    /// All that is kept, with when it came, in that order.
    pub(super) fn take(&mut self, now: Instant) -> VecDeque<(P, Bytes, Instant)> {
        self.expire(now);
        std::mem::take(self).messages
    }

    /// What is kept from now on was kept since `at`; or came now.
    pub(super) fn looks_at(&mut self, at: Option<Instant>) {
        self.looked_at = at;
    }

    /// Whether what is kept was kept before.
    pub(super) fn is_looked_at(&self) -> bool {
        self.looked_at.is_some()
    }

    fn expire(&mut self, now: Instant) {
        while let Some((_, message, at)) = self.messages.front()
            && now.saturating_duration_since(*at) > KEPT_FOR
        {
            self.bytes -= message.len();
            self.messages.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_kept_of_one_peer_and_nothing_for_long() {
        let now = Instant::now();
        let mut early = Early::default();
        let message = Bytes::from(vec![0; 100]);
        for _ in 0..1000 {
            early.keep(1, &message, now);
        }
        early.keep(2, &message, now + KEPT_FOR / 2);
        assert_eq!(early.messages.len(), MAX_OF_ONE + 1);
        let later = now + KEPT_FOR + Duration::from_millis(1);
        let left: Vec<_> = early.take(later).into_iter().map(|kept| kept.0).collect();
        assert_eq!(left, [2]);
        assert_eq!(early.bytes, 0);
    }

    #[test]
    fn large_ones_find_room_up_to_a_number_of_bytes() {
        let now = Instant::now();
        let mut early = Early::default();
        let message = Bytes::from(vec![0; BYTES_OF_ONE / 2]);
        for peer in 0..10 {
            for _ in 0..3 {
                early.keep(peer, &message, now);
            }
        }
        let kept: Vec<_> = early.take(now).into_iter().map(|kept| kept.0).collect();
        assert_eq!(kept.len(), 2 * PEERS);
        assert!(kept.iter().all(|peer| *peer < PEERS));
    }
}

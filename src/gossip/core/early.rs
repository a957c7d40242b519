//! Frames under keys that this node has not been told yet.
//!
//! The hub tells all spokes of a new key before it seals under it, but some hear of it a moment later than their
//! neighbours. What comes in that moment is kept, a little of it, and looked at again when there are new keys:
//! nothing in it is believed, and nothing is passed on, before.

use std::collections::VecDeque;

use bytes::Bytes;
use n0_future::time::{Duration, Instant};

/// How much is kept of all peers,
const MAX_BYTES: usize = 1024 * 1024;
/// and how many messages of one: a peer that makes up such frames pushes out none of the others.
const MAX_OF_ONE: usize = 16;
/// and of how many peers.
const MAX_ALL: usize = 8 * MAX_OF_ONE;

/// For how long.
const KEPT_FOR: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Early<P> {
    messages: VecDeque<(P, Bytes, Instant)>,
    bytes: usize,
}

impl<P> Default for Early<P> {
    fn default() -> Self {
        Self {
            messages: VecDeque::new(),
            bytes: 0,
        }
    }
}

impl<P: PartialEq> Early<P> {
    /// Keeps a message, if there is room.
    pub(super) fn keep(&mut self, from: P, message: &Bytes, now: Instant) {
        self.expire(now);
        let of_one = self.messages.iter().filter(|(p, ..)| *p == from).count();
        if of_one < MAX_OF_ONE
            && self.messages.len() < MAX_ALL
            && self.bytes + message.len() <= MAX_BYTES
        {
            self.bytes += message.len();
            self.messages.push_back((from, message.clone(), now));
        }
    }

    /// All that is kept, in the order in which it came.
    pub(super) fn take(&mut self, now: Instant) -> impl Iterator<Item = (P, Bytes)> + use<P> {
        self.expire(now);
        let messages = std::mem::take(self).messages;
        messages
            .into_iter()
            .map(|(from, message, _)| (from, message))
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
        let left: Vec<_> = early.take(later).collect();
        assert_eq!(left, [(2, message)]);
        assert_eq!(early.bytes, 0);
    }

    #[test]
    fn large_ones_find_room_up_to_a_number_of_bytes() {
        let now = Instant::now();
        let mut early = Early::default();
        let message = Bytes::from(vec![0; MAX_BYTES / 4]);
        for peer in 0..10 {
            early.keep(peer, &message, now);
        }
        assert_eq!(early.take(now).count(), 4);
    }
}

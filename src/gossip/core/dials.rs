//! Which peers are dialled, how many at once, and how far others can make us dial.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use iroh_gossip::proto::PeerIdentity;
use n0_future::time::{Duration, Instant};

/// How many messages wait for one dial.
const QUEUE: usize = 8;

/// How many dials wait for their turn.
const WAITING: usize = 64;

/// How many of these others may have brought about, and how long they wait.
const INTRODUCED_WAITING: usize = 32;
const INTRODUCED_WAIT: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Dial<P> {
    queue: Vec<Bytes>,
    /// The peer whose message made us dial.
    introducer: Option<P>,
    since: Instant,
    running: bool,
}

#[derive(Debug)]
pub(super) struct Dials<P> {
    at_once: usize,
    dials: BTreeMap<P, Dial<P>>,
    waiting: VecDeque<P>,
}

impl<P: PeerIdentity> Dials<P> {
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            at_once: at_once.max(2),
            dials: BTreeMap::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Asks for a dial, or adds a message to one that was asked for. False: there is no room.
    pub(super) fn request(
        &mut self,
        peer: P,
        message: Bytes,
        introducer: Option<P>,
        now: Instant,
    ) -> bool {
        if let Some(dial) = self.dials.get_mut(&peer) {
            if dial.queue.len() < QUEUE && !dial.queue.contains(&message) {
                dial.queue.push(message);
            }
            if introducer.is_none() {
                dial.introducer = None;
            }
            return true;
        }
        let introduced = self
            .waiting
            .iter()
            .filter(|peer| self.dials.get(peer).is_some_and(|d| d.introducer.is_some()))
            .count();
        if self.waiting.len() >= WAITING
            || (introducer.is_some() && introduced >= INTRODUCED_WAITING)
        {
            return false;
        }
        self.waiting.push_back(peer);
        self.dials.insert(
            peer,
            Dial {
                queue: vec![message],
                introducer,
                since: now,
                running: false,
            },
        );
        true
    }

    /// The next dial to begin, if there is room for one.
    pub(super) fn start(&mut self) -> Option<P> {
        let running = self.dials.values().filter(|dial| dial.running);
        let (mut own, mut by_others) = (0, Vec::new());
        for dial in running {
            match dial.introducer {
                None => own += 1,
                Some(introducer) => by_others.push(introducer),
            }
        }
        if own + by_others.len() >= self.at_once {
            return None;
        }
        let position = self.waiting.iter().position(|peer| {
            match self.dials.get(peer).and_then(|dial| dial.introducer) {
                None => true,
                Some(by) => {
                    let share = (self.at_once / 4).max(1);
                    by_others.len() < self.at_once / 2
                        && by_others.iter().filter(|other| **other == by).count() < share
                }
            }
        })?;
        let peer = self.waiting.remove(position)?;
        self.dials.get_mut(&peer)?.running = true;
        Some(peer)
    }

    /// A dial has ended; what waited for it.
    pub(super) fn finished(&mut self, peer: &P) -> Vec<Bytes> {
        self.waiting.retain(|waiting| waiting != peer);
        self.dials
            .remove(peer)
            .map(|dial| dial.queue)
            .unwrap_or_default()
    }

    /// The peer connected to us meanwhile; what waited for it. A dial under way still takes up its place.
    pub(super) fn take_queue(&mut self, peer: &P) -> Vec<Bytes> {
        match self.dials.get_mut(peer) {
            Some(dial) if dial.running => std::mem::take(&mut dial.queue),
            _ => self.finished(peer),
        }
    }

    pub(super) fn is_for(&self, peer: &P) -> bool {
        self.dials.contains_key(peer)
    }

    pub(super) fn any(&self) -> bool {
        !self.dials.is_empty()
    }

    /// Gives up what others brought about and what has waited too long.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<P> {
        let late: Vec<P> = self
            .waiting
            .iter()
            .filter(|peer| {
                self.dials.get(peer).is_none_or(|dial| {
                    dial.introducer.is_some()
                        && now.saturating_duration_since(dial.since) > INTRODUCED_WAIT
                })
            })
            .copied()
            .collect();
        for peer in &late {
            self.finished(peer);
        }
        late
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        let running = self.dials.values().filter(|dial| dial.running).count();
        (running, self.waiting.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dials() -> (Dials<u32>, Instant) {
        (Dials::new(4), Instant::now())
    }

    #[test]
    fn one_introducer_gets_a_share_and_our_own_dials_get_the_rest() {
        let (mut dials, now) = dials();
        for peer in 10..20 {
            assert!(dials.request(peer, Bytes::new(), Some(1), now));
        }
        assert_eq!(dials.start(), Some(10));
        assert_eq!(dials.start(), None);
        assert!(dials.request(30, Bytes::new(), Some(2), now));
        assert_eq!(dials.start(), Some(30));
        for peer in 40..50 {
            assert!(dials.request(peer, Bytes::new(), None, now));
        }
        assert_eq!(dials.start(), Some(40));
        assert_eq!(dials.start(), Some(41));
        assert_eq!(dials.start(), None);
        dials.finished(&40);
        assert_eq!(dials.start(), Some(42));
    }

    #[test]
    fn introductions_do_not_wait_for_ever_nor_without_number() {
        let (mut dials, now) = dials();
        let taken = (0..100).filter(|peer| dials.request(*peer, Bytes::new(), Some(200), now));
        assert_eq!(taken.count(), INTRODUCED_WAITING);
        assert!(dials.request(300, Bytes::new(), None, now));
        assert_eq!(dials.expire(now).len(), 0);
        assert_eq!(
            dials.expire(now + Duration::from_secs(3)).len(),
            INTRODUCED_WAITING
        );
        assert_eq!(dials.start(), Some(300));
    }

    #[test]
    fn messages_wait_for_their_dial_in_order() {
        let (mut dials, now) = dials();
        dials.request(1, Bytes::from_static(b"a"), None, now);
        dials.start();
        dials.request(1, Bytes::from_static(b"b"), None, now);
        assert_eq!(dials.take_queue(&1), ["a", "b"]);
        assert_eq!(dials.sizes(), (1, 0));
        assert!(dials.finished(&1).is_empty());
        assert_eq!(dials.sizes(), (0, 0));
    }
}

//! Memory with an end: a map that forgets the oldest, and a bucket of tokens.

use std::{
    collections::{HashMap, VecDeque, hash_map},
    hash::Hash,
};

use n0_future::time::{Duration, Instant};

/// A map that keeps at most `capacity` entries and forgets the one that was written longest ago.
///
/// Iterates in the order of writing, so that a run with the same inputs does the same things.
#[derive(Debug)]
pub(super) struct Remembered<K, V> {
    capacity: usize,
    next: u64,
    entries: HashMap<K, (u64, V)>,
    /// In the order of writing, with some that were written again or removed since: those have another number.
    order: VecDeque<(u64, K)>,
}

impl<K: Hash + Eq + Clone, V> Remembered<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            next: 0,
            entries: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// Writes an entry as the newest; returns the key that was forgotten for it.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<K> {
        let number = self.next;
        self.next += 1;
        let full = self.is_full();
        let new = match self.entries.entry(key.clone()) {
            hash_map::Entry::Occupied(mut entry) => {
                entry.insert((number, value));
                false
            }
            hash_map::Entry::Vacant(entry) => {
                entry.insert((number, value));
                true
            }
        };
        let forgotten = if new && full { self.pop_oldest() } else { None };
        self.order.push_back((number, key));
        self.tidy();
        forgotten
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (_, value) = self.entries.remove(key)?;
        self.tidy();
        Some(value)
    }

    fn pop_oldest(&mut self) -> Option<K> {
        while let Some((number, key)) = self.order.pop_front() {
            if let hash_map::Entry::Occupied(entry) = self.entries.entry(key)
                && entry.get().0 == number
            {
                return Some(entry.remove_entry().0);
            }
        }
        None
    }

    /// Keeps what is out of date from being more than the rest.
    fn tidy(&mut self) {
        if self.order.len() > 2 * self.entries.len() + 16 {
            let entries = &self.entries;
            let stands =
                |(number, key): &(u64, K)| entries.get(key).is_some_and(|e| e.0 == *number);
            self.order.retain(stands);
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        let stands =
            |(number, key): &&(u64, K)| self.entries.get(key).is_some_and(|e| e.0 == *number);
        self.order.iter().filter(stands).map(|(_, key)| key)
    }
}

impl<K: Hash + Eq + Clone> Remembered<K, Instant> {
    /// Whether the key is there and its time has not come.
    pub(super) fn holds(&self, key: &K, now: Instant) -> bool {
        self.get(key).is_some_and(|until| *until > now)
    }

    /// Forgets what has run out, as far as it stands at the old end.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((number, key)) = self.order.front() {
            match self.entries.get(key) {
                Some((at, until)) if at == number && *until > now => break,
                Some((at, _)) if at == number => {
                    self.pop_oldest();
                }
                _ => {
                    self.order.pop_front();
                }
            }
        }
    }
}

/// A bucket of tokens: `burst` at once, `rate` a second over time.
#[derive(Debug)]
pub(crate) struct Bucket {
    tokens: f64,
    burst: f64,
    rate: f64,
    filled: Instant,
}

impl Bucket {
    pub(crate) fn new(rate: u32, burst: u32, now: Instant) -> Self {
        Self {
            tokens: burst.into(),
            burst: burst.into(),
            rate: rate.into(),
            filled: now,
        }
    }

    /// Whether it is as if it had never been used.
    pub(crate) fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens >= self.burst
    }

    fn fill(&mut self, now: Instant) {
        let passed: Duration = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.rate).min(self.burst);
    }

    /// Takes tokens, or says that there are too few.
    pub(crate) fn take(&mut self, tokens: u32, now: Instant) -> bool {
        self.fill(now);
        let tokens = f64::from(tokens);
        if self.tokens < tokens {
            return false;
        }
        self.tokens -= tokens;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_oldest_entry_makes_room() {
        let mut map = Remembered::new(2);
        assert_eq!(map.insert(1, "a"), None);
        assert_eq!(map.insert(2, "b"), None);
        assert_eq!(map.insert(1, "c"), None);
        assert_eq!(map.insert(3, "d"), Some(2));
        assert_eq!(map.get(&1), Some(&"c"));
        assert_eq!(map.keys().copied().collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn what_has_run_out_is_forgotten() {
        let now = Instant::now();
        let mut map = Remembered::new(4);
        map.insert(1, now + Duration::from_secs(1));
        map.insert(2, now + Duration::from_secs(3));
        assert!(map.holds(&1, now));
        map.expire(now + Duration::from_secs(2));
        assert_eq!(map.len(), 1);
        assert!(map.holds(&2, now + Duration::from_secs(2)));
    }

    crate::fuzz::machine! {
        fn a_map_is_what_was_written_last_and_holds_no_more_than_twice_that(
            ops in prop::collection::vec((0..4u8, 0..8u8, 0..20u64), 1..200),
        ) {
            let begin = Instant::now();
            let at = |seconds| begin + Duration::from_secs(seconds);
            let mut map = Remembered::new(5);
            let mut model: Vec<(u8, Instant)> = Vec::new();
            for (op, key, seconds) in ops {
                match op {
                    0 => {
                        model.retain(|(known, _)| *known != key);
                        map.remove(&key);
                    }
                    1 => {
                        let now = at(seconds);
                        let stay = model.iter().position(|(_, until)| *until > now);
                        model.drain(..stay.unwrap_or(model.len()));
                        map.expire(now);
                    }
                    _ => {
                        model.retain(|(known, _)| *known != key);
                        model.push((key, at(seconds)));
                        let expected = (model.len() > 5).then(|| model.remove(0).0);
                        prop_assert_eq!(map.insert(key, at(seconds)), expected);
                    }
                }
                let keys: Vec<u8> = model.iter().map(|(key, _)| *key).collect();
                prop_assert_eq!(map.keys().copied().collect::<Vec<_>>(), keys);
                prop_assert_eq!(map.len(), model.len());
                prop_assert!(map.order.len() <= 2 * map.len() + 17);
                for (key, until) in &model {
                    prop_assert_eq!(map.get(key), Some(until));
                }
            }
        }
    }

    #[test]
    fn a_bucket_refills_with_time_and_no_further_than_its_burst() {
        let now = Instant::now();
        let mut bucket = Bucket::new(10, 5, now);
        assert!(bucket.take(5, now));
        assert!(!bucket.take(1, now));
        assert!(bucket.take(1, now + Duration::from_millis(150)));
        assert!(!bucket.take(6, now + Duration::from_secs(60)));
        assert!(bucket.take(5, now + Duration::from_secs(60)));
    }
}

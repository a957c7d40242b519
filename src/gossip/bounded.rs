//! Memory with an end: a map that forgets the oldest, and a bucket of tokens.

use std::{
    collections::{BTreeMap, HashMap},
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
    order: BTreeMap<u64, K>,
}

impl<K: Hash + Eq + Clone, V> Remembered<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            next: 0,
            entries: HashMap::new(),
            order: BTreeMap::new(),
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
        let forgotten = if self.entries.contains_key(&key) {
            self.remove(&key);
            None
        } else if self.is_full() {
            self.pop_oldest()
        } else {
            None
        };
        self.order.insert(self.next, key.clone());
        self.entries.insert(key, (self.next, value));
        self.next += 1;
        forgotten
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (at, value) = self.entries.remove(key)?;
        self.order.remove(&at);
        Some(value)
    }

    fn pop_oldest(&mut self) -> Option<K> {
        let (_, key) = self.order.pop_first()?;
        self.entries.remove(&key);
        Some(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.order.values()
    }
}

impl<K: Hash + Eq + Clone> Remembered<K, Instant> {
    /// Whether the key is there and its time has not come.
    pub(super) fn holds(&self, key: &K, now: Instant) -> bool {
        self.get(key).is_some_and(|until| *until > now)
    }

    /// Forgets what has run out, as far as it stands at the old end.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((_, key)) = self.order.first_key_value() {
            match self.entries.get(key) {
                Some((_, until)) if *until > now => break,
                _ => {
                    self.pop_oldest();
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

    /// Takes tokens, or says that there are too few.
    pub(crate) fn take(&mut self, tokens: u32, now: Instant) -> bool {
        let passed: Duration = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.rate).min(self.burst);
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

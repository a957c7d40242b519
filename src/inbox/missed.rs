//! What the hub's log no longer has: a bounded set of half-open ranges that a spoke has yet to pass.

use std::collections::BTreeMap;

#[derive(Debug)]
pub(super) struct MissedRanges {
    ranges: BTreeMap<u64, u64>,
    most: usize,
}

impl MissedRanges {
    /// At most so many ranges. Those of a spoke that is served directly have an event between them that
    /// waits for its turn, so one more than of these may be is enough: what is refused there would never be
    /// wanted again.
    pub(super) fn new(most: usize) -> Self {
        Self {
            ranges: BTreeMap::new(),
            most,
        }
    }

    /// Adds `[from, to)`; false if there is no place for another range. One that begins at `next` always
    /// has a place, since it is passed at once.
    pub(super) fn add(&mut self, next: u64, from: u64, to: u64) -> bool {
        let (mut start, mut end) = (from, to);
        let touching: Vec<u64> = self
            .ranges
            .range(..=to)
            .rev()
            .take_while(|(_, end)| **end >= from)
            .map(|(start, _)| *start)
            .collect();
        if touching.is_empty() && from != next && self.ranges.len() >= self.most {
            return false;
        }
        for old in touching {
            start = start.min(old);
            end = end.max(self.ranges.remove(&old).unwrap_or(end));
        }
        self.ranges.insert(start, end);
        true
    }

    pub(super) fn contains(&self, offset: u64) -> bool {
        self.end(offset).is_some()
    }

    /// Where the range ends that has `offset`.
    pub(super) fn end(&self, offset: u64) -> Option<u64> {
        let (_, &end) = self.ranges.range(..=offset).next_back()?;
        (end > offset).then_some(end)
    }

    /// Forgets everything before `next`.
    pub(super) fn pass(&mut self, next: u64) {
        while let Some(entry) = self.ranges.first_entry()
            && *entry.key() < next
        {
            let end = entry.remove();
            if end > next {
                self.ranges.insert(next, end);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.ranges.clear();
    }
}

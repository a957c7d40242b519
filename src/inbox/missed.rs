//! What the hub's log no longer has: a bounded set of half-open ranges that a spoke has yet to pass.

use std::collections::BTreeMap;

/// More ranges than any hub has cause to report. What is refused here is wanted again.
const MAX_RANGES: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct MissedRanges(BTreeMap<u64, u64>);

impl MissedRanges {
    /// Adds `[from, to)`; false if there is no place for another range. One that begins at `next` always
    /// has a place, since it is passed at once.
    pub(super) fn add(&mut self, next: u64, from: u64, to: u64) -> bool {
        let (mut start, mut end) = (from, to);
        let touching: Vec<u64> = self
            .0
            .range(..=to)
            .rev()
            .take_while(|(_, end)| **end >= from)
            .map(|(start, _)| *start)
            .collect();
        if touching.is_empty() && from != next && self.0.len() >= MAX_RANGES {
            return false;
        }
        for old in touching {
            start = start.min(old);
            end = end.max(self.0.remove(&old).unwrap_or(end));
        }
        self.0.insert(start, end);
        true
    }

    pub(super) fn contains(&self, offset: u64) -> bool {
        self.end(offset).is_some()
    }

    /// Where the range ends that has `offset`.
    pub(super) fn end(&self, offset: u64) -> Option<u64> {
        let (_, &end) = self.0.range(..=offset).next_back()?;
        (end > offset).then_some(end)
    }

    /// Forgets everything before `next`.
    pub(super) fn pass(&mut self, next: u64) {
        while let Some(entry) = self.0.first_entry()
            && *entry.key() < next
        {
            let end = entry.remove();
            if end > next {
                self.0.insert(next, end);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

//! From where on those may read who were admitted while the hub runs.

use std::collections::BTreeMap;

use iroh::EndpointId;

/// With more than so many, those are looked for that the log has gone past.
const MANY: usize = 1024;

/// From where on a spoke may read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Floor {
    /// It may read nothing below.
    pub(super) of_events: u64,
    /// It may have no key under which anything below was sealed: who kept the sealed frames could read them.
    pub(super) of_keys: u64,
}

/// The first offset that each may read; all others may read everything that the log has.
#[derive(Debug)]
pub(super) struct Floors {
    by_id: BTreeMap<EndpointId, u64>,
    clean_at: usize,
    /// The highest one that was forgotten, since the log has gone past it.
    forgotten: u64,
}

impl Default for Floors {
    fn default() -> Self {
        Self {
            by_id: BTreeMap::new(),
            clean_at: MANY,
            forgotten: 0,
        }
    }
}

impl Floors {
    pub(super) fn of(&self, id: EndpointId) -> Floor {
        match self.by_id.get(&id) {
            Some(floor) => Floor {
                of_events: *floor,
                of_keys: *floor,
            },
            None => Floor {
                of_events: 0,
                of_keys: self.forgotten,
            },
        }
    }

    /// These may read nothing below `floor`; the log has nothing below `head`.
    pub(super) fn set(&mut self, ids: &[EndpointId], floor: u64, head: u64) {
        self.by_id.extend(ids.iter().map(|id| (*id, floor)));
        if self.by_id.len() > self.clean_at {
            self.by_id.retain(|_, floor| {
                let keep = *floor > head;
                if !keep {
                    self.forgotten = self.forgotten.max(*floor);
                }
                keep
            });
            self.clean_at = (2 * self.by_id.len()).max(MANY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> EndpointId {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        iroh::SecretKey::from_bytes(&key).public()
    }

    #[test]
    fn what_the_log_has_gone_past_is_forgotten_but_for_the_keys_of_then() {
        let mut floors = Floors::default();
        let n = MANY as u64;
        for offset in 1..=3 * n {
            floors.set(&[id(offset)], offset, offset.saturating_sub(10));
            assert!(floors.by_id.len() <= MANY + 1);
        }
        assert_eq!(floors.of(id(3 * n)).of_events, 3 * n);
        let early = floors.of(id(1));
        assert_eq!(early.of_events, 0, "the log has nothing below it any more");
        assert!((1..3 * n).contains(&early.of_keys));
    }
}

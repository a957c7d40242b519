//! From where on those may read who were admitted while the hub runs.

use std::collections::BTreeMap;

use iroh::EndpointId;

/// With more than so many, those are looked for that the log has gone past.
const MANY: usize = 1024;

/// The first offset that each may read; all others may read everything.
#[derive(Debug)]
pub(super) struct Floors {
    by_id: BTreeMap<EndpointId, u64>,
    clean_at: usize,
}

impl Default for Floors {
    fn default() -> Self {
        Self {
            by_id: BTreeMap::new(),
            clean_at: MANY,
        }
    }
}

impl Floors {
    pub(super) fn of(&self, id: EndpointId) -> u64 {
        self.by_id.get(&id).copied().unwrap_or(0)
    }

    /// These may read nothing below `floor`; the log has nothing below `head`.
    pub(super) fn set(&mut self, ids: &[EndpointId], floor: u64, head: u64) {
        self.by_id.extend(ids.iter().map(|id| (*id, floor)));
        if self.by_id.len() > self.clean_at {
            self.by_id.retain(|_, floor| *floor > head);
            self.clean_at = (2 * self.by_id.len()).max(MANY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_log_has_gone_past_is_forgotten() {
        let id = |n: u64| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            iroh::SecretKey::from_bytes(&key).public()
        };
        let mut floors = Floors::default();
        let n = MANY as u64;
        for offset in 0..3 * n {
            floors.set(&[id(offset)], offset, offset.saturating_sub(10));
            assert!(floors.by_id.len() <= MANY + 1);
        }
        assert_eq!(floors.of(id(3 * n - 1)), 3 * n - 1);
        assert_eq!(floors.of(id(3 * n)), 0);
    }
}

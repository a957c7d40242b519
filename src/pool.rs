//! Bytes that are shared out: whoever comes gets a part of what is left, so that nobody can have it all.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// One holder gets at most this part of what is left.
const PART: usize = 16;

#[derive(Debug)]
pub(crate) struct Pool(Arc<AtomicUsize>);

/// A share of the pool; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    len: usize,
    left: Arc<AtomicUsize>,
}

impl Pool {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// As much as is wanted, or a part of what is left; `None` if that is nothing.
    pub(crate) fn share(&self, wanted: usize) -> Option<Share> {
        let part = |left: usize| wanted.min(left / PART);
        let taken = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
                Some(left - part(left))
            });
        let len = taken.map_or(0, part);
        (len > 0).then(|| Share {
            len,
            left: self.0.clone(),
        })
    }
}

impl Share {
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.left.fetch_add(self.len, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_more_than_there_is_is_shared_out_and_all_comes_back(
            bytes in 0usize..100_000,
            steps in prop::collection::vec((any::<bool>(), 0usize..50_000), 0..200),
        ) {
            let pool = Pool::new(bytes);
            let mut shares: Vec<Share> = Vec::new();
            for (take, n) in steps {
                let held: usize = shares.iter().map(Share::len).sum();
                if take {
                    let share = pool.share(n);
                    let len = share.as_ref().map_or(0, Share::len);
                    prop_assert_eq!(len, n.min((bytes - held) / PART));
                    shares.extend(share);
                } else if !shares.is_empty() {
                    shares.swap_remove(n % shares.len());
                }
            }
            drop(shares);
            prop_assert_eq!(pool.0.load(Ordering::Acquire), bytes);
        }
    }
}

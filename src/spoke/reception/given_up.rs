//! What a spoke itself gave up last, to be said again on a new link: the hub may not have heard it.

use std::collections::VecDeque;

use crate::position::Epoch;

/// More than can be on its way unread when a link breaks, in all likelihood.
const MAX_RANGES: usize = 256;

/// Ranges of offsets, oldest first. If there are too many, the two oldest of an epoch become one: rather
/// missed than had.
#[derive(Debug, Default)]
pub(super) struct GivenUp(VecDeque<(Epoch, u64, u64)>);

impl GivenUp {
    pub(super) fn add(&mut self, epoch: Epoch, from: u64, to: u64) {
        match self.0.back_mut() {
            Some((last, _, end)) if *last == epoch && *end == from => *end = to,
            _ => {
                if self.0.len() >= MAX_RANGES
                    && let Some((oldest, from, _)) = self.0.pop_front()
                    && let Some((next, start, _)) = self.0.front_mut()
                    && *next == oldest
                {
                    *start = from;
                }
                self.0.push_back((epoch, from, to));
            }
        }
    }

    pub(super) fn ranges(&self, epoch: Epoch) -> impl Iterator<Item = (u64, u64)> + '_ {
        let of = self.0.iter().filter(move |(of, ..)| *of == epoch);
        of.map(|(_, from, to)| (*from, *to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range_and_the_number_is_bounded() {
        let (old, new) = (Epoch::from_u64(1), Epoch::from_u64(2));
        let mut given_up = GivenUp::default();
        given_up.add(old, 3, 4);
        given_up.add(old, 4, 5);
        given_up.add(new, 5, 6);
        assert_eq!(given_up.ranges(old).collect::<Vec<_>>(), [(3, 5)]);
        for n in 0..10_000 {
            given_up.add(new, 2 * n, 2 * n + 1);
        }
        assert_eq!(given_up.ranges(new).count(), MAX_RANGES);
        assert_eq!(given_up.ranges(new).last(), Some((19_998, 19_999)));
        // All that was given up is in there.
        assert_eq!(given_up.ranges(new).next().map(|(from, _)| from), Some(5));
    }
}

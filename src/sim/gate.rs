//! Frames are opened for real, once.
//!
//! All nodes see the same frames. Who opens one first checks its signature and decrypts it with the real keys; what came of it
//! is kept, and given to whoever opens the same bytes later. Everything else about opening (the form, the epoch, the generation,
//! the replay window) is done at every node by the shipped [`Opener`](crate::seal::Opener).

use std::{
    collections::{HashMap, VecDeque},
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use crate::seal::Check;

/// How many frames are remembered: more than are under way at a time.
const REMEMBERED: usize = 16 * 1024;

/// A frame by its bytes. It ends in its signature, which tells it from others: no more is hashed.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Key(Bytes);

/// So many bytes of it are enough.
const HASHED: usize = 16;

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let end = self.0.len().saturating_sub(HASHED);
        self.0.get(end..).unwrap_or_default().hash(state);
    }
}

#[derive(Debug, Default)]
struct Known {
    verified: Option<bool>,
    content: Option<Option<Bytes>>,
}

#[derive(Debug, Default)]
struct Frames {
    known: HashMap<Key, Known>,
    order: VecDeque<Key>,
}

/// What is known of the frames of one topic. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedCheck(Arc<Mutex<Frames>>);

impl SharedCheck {
    fn with<T>(&self, frame: &Bytes, what: impl FnOnce(&mut Known) -> T) -> T {
        let mut frames = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let frames = &mut *frames;
        if let Some(known) = frames.known.get_mut(&Key(frame.clone())) {
            return what(known);
        }
        if frames.order.len() >= REMEMBERED
            && let Some(oldest) = frames.order.pop_front()
        {
            frames.known.remove(&oldest);
        }
        // A copy of its own: a slice would keep the message that it came in.
        let frame = Key(Bytes::copy_from_slice(frame));
        frames.order.push_back(frame.clone());
        what(frames.known.entry(frame).or_default())
    }
}

impl Check for SharedCheck {
    fn verify(&mut self, frame: &Bytes, really: impl FnOnce() -> bool) -> bool {
        self.with(frame, |known| *known.verified.get_or_insert_with(really))
    }

    fn decrypt(&mut self, frame: &Bytes, really: impl FnOnce() -> Option<Bytes>) -> Option<Bytes> {
        self.with(frame, |known| {
            known.content.get_or_insert_with(really).clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_are_checked_once_and_others_anew() {
        let mut check = SharedCheck::default();
        let mut other = check.clone();
        let (good, bad) = (Bytes::from_static(b"good"), Bytes::from_static(b"gooD"));
        assert!(check.verify(&good, || true));
        assert!(other.verify(&good, || unreachable!("it is known")));
        assert!(!other.verify(&bad, || false));
        assert!(!check.verify(&bad, || unreachable!("it is known")));
        assert_eq!(
            check.decrypt(&good, || Some(bad.clone())),
            Some(bad.clone())
        );
        assert_eq!(other.decrypt(&good, || unreachable!()), Some(bad));
        for n in 0..=REMEMBERED as u32 {
            check.verify(&Bytes::copy_from_slice(&n.to_be_bytes()), || true);
        }
        assert!(
            !other.verify(&good, || false),
            "forgotten, so checked again"
        );
    }
}

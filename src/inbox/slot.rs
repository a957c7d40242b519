//! One buffered event: whole, or the parts of it that are there.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::config::OVERHEAD;
use crate::{via::Via, wire::native::MAX_PART};

/// Parts up to this size are copied. Others are all that their frame brought, or most of it.
const SMALL_PART: usize = MAX_PART / 4;

/// A body of at most so many bytes is copied, so that it does not keep the whole of a large frame for a small event of it.
fn of_its_own(body: Bytes, most: usize) -> Bytes {
    match body.len() <= most {
        true => Bytes::copy_from_slice(&body),
        false => body,
    }
}

/// A whole event that waits for its turn.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) body: Bytes,
    pub(super) via: Via,
}

impl Whole {
    pub(super) fn cost(&self) -> usize {
        self.body.len().saturating_add(OVERHEAD)
    }

    /// The same for an event that has to wait behind a gap: what came with it in a frame goes.
    pub(super) fn of_its_own(self) -> Self {
        Self {
            body: of_its_own(self.body, MAX_PART),
            via: self.via,
        }
    }
}

/// The parts of an event that are there so far.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) parts: u16,
    have: BTreeMap<u16, Bytes>,
    bytes: usize,
}

impl Partial {
    pub(super) fn new(parts: u16) -> Self {
        Self {
            parts,
            have: BTreeMap::new(),
            bytes: 0,
        }
    }

    pub(super) fn has(&self, part: u16) -> bool {
        self.have.contains_key(&part)
    }

    /// The bytes of the parts that are there.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn cost(&self) -> usize {
        let overhead = self.have.len().saturating_mul(OVERHEAD);
        self.bytes.saturating_add(overhead)
    }

    pub(super) fn add(&mut self, part: u16, body: Bytes) {
        self.bytes = self.bytes.saturating_add(body.len());
        self.have.insert(part, of_its_own(body, SMALL_PART));
    }

    pub(super) fn is_complete(&self) -> bool {
        self.have.len() >= usize::from(self.parts)
    }

    /// The parts in order as one body: the one copy that a large part costs.
    pub(super) fn join(self) -> Bytes {
        let mut body = BytesMut::with_capacity(self.bytes);
        for part in self.have.values() {
            body.extend_from_slice(part);
        }
        body.freeze()
    }
}

#[derive(Debug)]
pub(super) enum Slot {
    Whole(Whole),
    Partial(Partial),
}

impl Slot {
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Whole(whole) => whole.cost(),
            Self::Partial(partial) => partial.cost(),
        }
    }
}

//! The inbox alone.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::{
    inbox::{Inbox, InboxConfig, Output, Part},
    position::Epoch,
    via::Via,
};

/// An inbox that is given events in whatever order, block after block.
#[derive(Debug)]
pub struct Order {
    inbox: Inbox,
    body: Bytes,
    parts: u16,
    now: Instant,
    base: u64,
}

impl Order {
    /// Its events come in so many parts, each of so many bytes.
    pub fn new(part_bytes: usize, parts: u16) -> Self {
        let now = Instant::now();
        Self {
            inbox: Inbox::new(InboxConfig::default(), now, Epoch::from_u64(1), 0, 0, 1),
            body: vec![7; part_bytes].into(),
            parts,
            now,
            base: 0,
        }
    }

    /// Takes in the next block, `order` says which of its events when, each offset below `block`; returns how many events
    /// came out. `None` if the inbox refuses one.
    pub fn take(&mut self, block: u64, order: &[u64]) -> Option<usize> {
        // As much later as the events of a busy topic are apart.
        self.now += Duration::from_micros(10);
        let mut released = 0;
        for offset in order {
            for part in 0..self.parts {
                let part = Part {
                    offset: self.base + offset,
                    part,
                    parts: self.parts,
                    body: self.body.clone(),
                    via: Via::Gossip,
                };
                self.inbox.insert(self.now, part).ok()?;
                while let Some(output) = self.inbox.poll(self.now) {
                    released += usize::from(matches!(output, Output::Event { .. }));
                }
            }
        }
        self.base += block;
        Some(released)
    }
}

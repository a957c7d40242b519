//! What is counted while a run goes on.

use std::collections::HashMap;

use serde::Serialize;

use crate::gossip::core::SendKind;

/// A frame's id, as gossip messages carry it.
type FrameId = [u8; 32];

/// What a frame of the topic is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// Events for the first time.
    Events,
    /// Events that were on the topic before.
    Again,
    /// The tip.
    Beacon,
}

/// What is sent, by whom and for what.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Messages, or writes to a stream.
    pub sends: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Traffic {
    pub(super) fn add(&mut self, bytes: usize) {
        self.sends += 1;
        self.bytes += bytes as u64;
    }
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    /// The hub's frames: what each is, and how often the hub itself sent it.
    frames: HashMap<FrameId, (Class, u32)>,
    pub(super) frames_events: u64,
    pub(super) frames_again: u64,
    pub(super) beacons: u64,
    pub(super) frames_refused: u64,
    pub(super) hub_topic: Traffic,
    pub(super) hub_beacons: Traffic,
    pub(super) hub_again: Traffic,
    pub(super) hub_control: Traffic,
    /// What cursors and control frames of links made the hub write.
    pub(super) hub_direct: Traffic,
    /// What went to spokes that the topic served before, and does not reach.
    pub(super) hub_fallback: Traffic,
    /// Writes to links that brought repairs.
    pub(super) hub_repairs: Traffic,
    pub(super) spokes_topic: Traffic,
    pub(super) spokes_control: Traffic,
    pub(super) messages_lost: u64,
    pub(super) to_hub: Traffic,
    pub(super) wants: u64,
    pub(super) links: u64,
    pub(super) links_lost: u64,
    pub(super) misbehaved: u64,
    pub(super) topics: u64,
    pub(super) topics_failed: u64,
    pub(super) topics_rejoined: u64,
    pub(super) revoked: u64,
    pub(super) read_after_revoked: u64,
    pub(super) messages_to_revoked: u64,
    pub(super) rekeyed_within_1s: Option<f64>,
    pub(super) served_around: u64,
    /// Events that cursors of links went over.
    pub(super) direct_events: u64,
    /// Those of spokes that the topic does not reach.
    pub(super) fallback_events: u64,
}

impl Tally {
    /// The hub made this frame.
    pub(super) fn frame(&mut self, id: FrameId, class: Class) {
        self.frames.insert(id, (class, 0));
        match class {
            Class::Events => self.frames_events += 1,
            Class::Again => self.frames_again += 1,
            Class::Beacon => self.beacons += 1,
        }
    }

    /// A gossip message was handed to a connection.
    pub(super) fn sent(&mut self, by_hub: bool, kind: SendKind, message: &[u8]) {
        let len = message.len();
        let traffic = match (by_hub, kind) {
            (true, SendKind::Data) => match self.hub_frame(message) {
                Class::Events => &mut self.hub_topic,
                Class::Again => &mut self.hub_again,
                Class::Beacon => &mut self.hub_beacons,
            },
            (true, SendKind::Control) => &mut self.hub_control,
            (false, SendKind::Data) => &mut self.spokes_topic,
            (false, SendKind::Control) => &mut self.spokes_control,
        };
        traffic.add(len);
    }

    fn hub_frame(&mut self, message: &[u8]) -> Class {
        // Two variant numbers, and then the id.
        let id = message.get(2..34).and_then(|id| FrameId::try_from(id).ok());
        match id.and_then(|id| self.frames.get_mut(&id)) {
            Some((class, copies)) => {
                *copies += 1;
                *class
            }
            None => Class::Events,
        }
    }

    /// Bytes that the hub sent along the topic and directly.
    pub(super) fn hub_usual(&self) -> u64 {
        let (topic, beacons) = (self.hub_topic.bytes, self.hub_beacons.bytes);
        topic + beacons + self.hub_control.bytes + self.hub_direct.bytes
    }

    /// Bytes that it sent since something was lost or did not come by the topic.
    pub(super) fn hub_remedies(&self) -> u64 {
        self.hub_again.bytes + self.hub_repairs.bytes + self.hub_fallback.bytes
    }

    /// The most copies of one frame with new events that the hub sent.
    pub(super) fn most_copies(&self) -> u32 {
        let new = self
            .frames
            .values()
            .filter(|(class, _)| *class == Class::Events);
        new.map(|(_, copies)| *copies).max().unwrap_or(0)
    }
}

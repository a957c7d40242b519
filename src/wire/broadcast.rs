//! A frame on the gossip topic: header, sealed content, signature.
//!
//! ```text
//! version u8 | epoch u64 | generation u32 | counter u64 | first u64 | count u16 | part u16 | parts u16
//! | ciphertext and tag | signature (64 bytes)
//! ```
//!
//! Integers are big endian; the header is associated data of the seal. The content of a frame is
//! `count` events, each a varint length and a body; or, if `parts` is over 1, one part of the event
//! at `first`. A frame of no events is a beacon: `first` is the hub's tip. What sealing means is the
//! business of [`seal`](crate::seal).

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use n0_error::{e, stack_error};

use super::{
    body::{put_varint, take_prefixed, varint_len},
    native::{MAX_PART, PartOf},
};

pub(crate) const VERSION: u8 = 1;
/// An idle topic carries a beacon so long after the last frame; the next after twice that, and so on.
pub(crate) const BEACON_FIRST: Duration = Duration::from_millis(250);
/// No two beacons are further apart.
pub(crate) const BEACON_LAST: Duration = Duration::from_secs(5);
/// Within this time a frame has reached a small topic, also where it comes late,
const LATE: Duration = Duration::from_millis(250);
/// with so much for each doubling of the topic,
const LATE_A_DOUBLING: Duration = Duration::from_millis(50);
/// and this at most: spokes want again what did not come soon afterwards, up to half a second later where that was needless before,
/// and later where parts of it come in. Before that, nodes ask each other, up to 400 ms after a frame was announced.
const LATE_AT_MOST: Duration = Duration::from_millis(950);
/// A spoke wants what has not come up to this much later, drawn for each gap.
pub(crate) const WANT_JITTER: Duration = Duration::from_millis(125);

/// How long a frame may take to reach all of so many: what has not come by then is mostly lost.
pub(crate) fn arrives_within(members: usize) -> Duration {
    (LATE + LATE_A_DOUBLING * members.max(1).ilog2()).min(LATE_AT_MOST)
}

/// Bytes of the header.
pub(crate) const HEADER: usize = 1 + 8 + 4 + 8 + 8 + 2 + 2 + 2;
/// Bytes of the signature.
pub(crate) const SIGNATURE: usize = 64;
/// Bytes of the tag behind the ciphertext.
pub(crate) const TAG: usize = 16;
/// What a frame weighs beyond its content, in bytes.
pub(crate) const OVERHEAD: usize = HEADER + TAG + SIGNATURE;
/// A frame has to be able to hold a part of the largest size, or an event that is not cut, which has its
/// length before it.
pub(crate) const MIN_FRAME_SIZE: usize = MAX_PART + MAX_LENGTH + OVERHEAD;
/// No frame is larger, in bytes, whatever a hub says.
pub(crate) const MAX_FRAME_SIZE: usize = 1 << 20;
/// The longest length before an event, in bytes.
const MAX_LENGTH: usize = 5;
/// The most events in one frame.
pub(crate) const MAX_EVENTS: usize = u16::MAX as usize;

/// What a frame says about itself in the clear.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) epoch: u64,
    pub(crate) generation: u32,
    /// Counts the frames of a generation; never used twice.
    pub(crate) counter: u64,
    /// The offset of the first event; of a beacon, the tip.
    pub(crate) first: u64,
    /// How many events; 0 in a beacon.
    pub(crate) count: u16,
    pub(crate) of: PartOf,
}

/// A frame of the topic does not have the form of one.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum BroadcastError {
    /// It is too short.
    #[error("a broadcast frame is cut off")]
    Truncated {},
    /// It is of a version we do not know.
    #[error("a broadcast frame is of version {version}")]
    Version {
        /// Its version.
        version: u8,
    },
    /// Its numbers contradict each other.
    #[error("the header of a broadcast frame contradicts itself")]
    BadHeader {},
    /// Its content is not what its header says.
    #[error("the content of a broadcast frame is not what its header says")]
    BadContent {},
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        let mut rest = &mut out[..];
        rest.put_u8(VERSION);
        rest.put_u64(self.epoch);
        rest.put_u32(self.generation);
        rest.put_u64(self.counter);
        rest.put_u64(self.first);
        rest.put_u16(self.count);
        rest.put_u16(self.of.part);
        rest.put_u16(self.of.parts);
        out
    }

    fn decode(bytes: &[u8; HEADER]) -> Result<Self, BroadcastError> {
        let mut bytes = &bytes[..];
        let version = bytes.get_u8();
        if version != VERSION {
            return Err(e!(BroadcastError::Version { version }));
        }
        let header = Self {
            epoch: bytes.get_u64(),
            generation: bytes.get_u32(),
            counter: bytes.get_u64(),
            first: bytes.get_u64(),
            count: bytes.get_u16(),
            of: PartOf {
                part: bytes.get_u16(),
                parts: bytes.get_u16(),
            },
        };
        let whole = header.of.part == 0 && header.of.parts == 1;
        let split = header.count == 1 && header.of.part < header.of.parts;
        let counts = header.first.checked_add(header.count.into()).is_some();
        if !(whole || split) || !counts {
            return Err(e!(BroadcastError::BadHeader));
        }
        Ok(header)
    }

    /// Whether the frame carries no events, only the tip.
    pub(crate) fn is_beacon(&self) -> bool {
        self.count == 0
    }
}

/// A frame taken apart; nothing in it is to be believed yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    /// Header and ciphertext: what the signature covers.
    pub(crate) signed: Bytes,
    pub(crate) ciphertext: Bytes,
    pub(crate) signature: [u8; SIGNATURE],
}

impl Frame {
    pub(crate) fn decode(frame: &Bytes) -> Result<Self, BroadcastError> {
        let truncated = || e!(BroadcastError::Truncated);
        let (signed, signature) = frame.split_last_chunk().ok_or_else(truncated)?;
        let (header, ciphertext) = signed.split_first_chunk().ok_or_else(truncated)?;
        if ciphertext.len() < TAG {
            return Err(truncated());
        }
        Ok(Self {
            header: Header::decode(header)?,
            signed: frame.slice_ref(signed),
            ciphertext: frame.slice_ref(ciphertext),
            signature: *signature,
        })
    }
}

/// Gathers events into the content of one frame.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    content: BytesMut,
    count: u16,
}

impl Packer {
    /// Adds an event if the content stays within `limit` bytes, and says whether it did.
    pub(crate) fn push(&mut self, body: &[u8], limit: usize) -> bool {
        if self.content.len() + Self::cost(body) > limit || usize::from(self.count) == MAX_EVENTS {
            return false;
        }
        put_varint(&mut self.content, body.len() as u64);
        self.content.put_slice(body);
        self.count += 1;
        true
    }

    /// What an event takes of a frame, in bytes.
    pub(crate) fn cost(body: &[u8]) -> usize {
        varint_len(body.len() as u64) + body.len()
    }

    pub(crate) fn count(&self) -> u16 {
        self.count
    }

    /// The content, leaving the packer empty.
    pub(crate) fn take(&mut self) -> BytesMut {
        self.count = 0;
        std::mem::take(&mut self.content)
    }
}

/// Takes the events out of the content of a frame that is neither a beacon nor a part.
pub(crate) fn unpack(content: &Bytes, count: u16) -> Result<Vec<Bytes>, BroadcastError> {
    let bad = || e!(BroadcastError::BadContent);
    let mut events = Vec::with_capacity(usize::from(count).min(content.len()));
    let mut rest = content.clone();
    for _ in 0..count {
        events.push(take_prefixed(&mut rest).ok_or_else(bad)?);
    }
    if !rest.is_empty() {
        return Err(bad());
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_reads_back(epoch: u64, generation: u32, counter: u64, first in 0..u64::MAX / 2,
                               count: u16, parts in 1u16.., part: u16) {
            let of = if count == 1 { PartOf { part: part % parts, parts } } else { PartOf::WHOLE };
            let header = Header { epoch, generation, counter, first, count, of };
            prop_assert_eq!(Header::decode(&header.encode()).unwrap(), header);
        }

        #[test]
        fn packed_events_come_out_again(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..40), limit in 0usize..600) {
            let mut packer = Packer::default();
            let packed: Vec<_> = bodies.iter().take_while(|body| packer.push(body, limit)).collect();
            let count = packer.count();
            let content = packer.take().freeze();
            prop_assert!(content.len() <= limit);
            let out = unpack(&content, count).unwrap();
            prop_assert_eq!(out, packed);
        }
    }
    fn real_frames() -> Vec<(&'static str, Vec<u8>)> {
        let frame = |first, count, part, parts| {
            let header = Header {
                epoch: 5,
                generation: 2,
                counter: 9,
                first,
                count,
                of: PartOf { part, parts },
            };
            [&header.encode()[..], &[7; 30 + TAG + SIGNATURE]].concat()
        };
        vec![
            ("events", frame(300, 4, 0, 1)),
            ("part", frame(300, 1, 3, 4)),
            ("beacon", frame(300, 0, 0, 1)),
            ("bad-part", frame(300, 2, 3, 4)),
            ("bad-end", frame(u64::MAX, 1, 0, 1)),
            ("bad-short", frame(300, 4, 0, 1)[..OVERHEAD - 1].to_vec()),
        ]
    }

    crate::fuzz::decoder!(broadcast_frame, real_frames(), |bytes| {
        let bytes = Bytes::copy_from_slice(bytes);
        let Ok(frame) = Frame::decode(&bytes) else {
            return;
        };
        let pieces = [
            &frame.header.encode()[..],
            &frame.ciphertext,
            &frame.signature,
        ];
        assert_eq!(pieces.concat(), bytes);
        assert_eq!(frame.signed, bytes[..bytes.len() - SIGNATURE]);
        assert!(frame.ciphertext.len() >= TAG);
        let PartOf { part, parts } = frame.header.of;
        assert!(part < parts && (parts == 1 || frame.header.count == 1));
        let end = frame.header.first.checked_add(frame.header.count.into());
        assert!(end.is_some());
    });

    fn real_contents() -> Vec<(&'static str, Vec<u8>)> {
        let content = |bodies: &[&[u8]]| {
            let mut packer = Packer::default();
            assert!(bodies.iter().all(|body| packer.push(body, 10_000)));
            // How many come first.
            [&packer.count().to_be_bytes()[..], &packer.take()].concat()
        };
        vec![
            ("one", content(&[b"event"])),
            ("some", content(&[b"a", b"", &[1; 200], b"d"])),
            ("bad-count", vec![255, 255, 1, 1, 1, 2]),
            (
                "bad-length",
                vec![0, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
            ),
        ]
    }

    crate::fuzz::decoder!(broadcast_content, real_contents(), |bytes| {
        let Some((count, content)) = bytes.split_first_chunk() else {
            return;
        };
        let count = u16::from_be_bytes(*count);
        let content = Bytes::copy_from_slice(content);
        let Ok(events) = unpack(&content, count) else {
            return;
        };
        assert_eq!(events.len(), usize::from(count));
        let mut packer = Packer::default();
        // A length may have had more digits than it needs, and never fewer.
        assert!(events.iter().all(|event| packer.push(event, content.len())));
        assert_eq!(unpack(&packer.take().freeze(), count).unwrap(), events);
    });
}

//! Small events in a row, put together once for every link that has them before it.
//!
//! What an event costs a link beside its bytes (a reference, a chunk to write, a frame to read) is more than a small
//! event itself, and in a burst most links have many before them. A [`Run`] holds the frames of consecutive events in
//! one piece, of which a link writes what it lacks.
//!
//! ```text
//! kind u8 | first varint | (length varint | body)*
//! ```
//!
//! Not for: which events make a run (the log says), and events in parts.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{
    body::{put_varint, take_prefixed, take_varint},
    framing::{PREFIX, set_len},
    native::{COPY_BELOW, kind},
};

/// The most events in a run, and in a frame.
pub(crate) const MAX_EVENTS: usize = 32;
/// Frames are filled up to so many bytes. A spoke lets the first event out when it has the last.
const FRAME_BYTES: usize = 8 * 1024;
/// Larger events, in bytes, go by themselves: not copied.
const MAX_BODY: usize = COPY_BELOW;
/// The longest length of an event in a run, in bytes.
const MAX_PREFIX: usize = 2;
/// The longest varint, in bytes.
const MAX_VARINT: usize = 10;
/// The longest head of a frame, in bytes.
const MAX_HEAD: usize = PREFIX + 1 + MAX_VARINT;
/// The largest run, in bytes.
pub(crate) const MAX_BYTES: usize = MAX_EVENTS * (MAX_HEAD + MAX_VARINT + MAX_BODY);

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Run {
    first: u64,
    frames: Bytes,
    events: Box<[Place]>,
}

/// Where an event lies among the frames.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: usize,
    /// Its frame begins with it: what is at its place is the head of that.
    leads: bool,
    frame_ends: usize,
}

impl Run {
    /// The run of these events, of which there are at most [`MAX_EVENTS`]; `None` if one of them is too large for it.
    pub(crate) fn new<'a>(
        first: u64,
        bodies: impl Iterator<Item = &'a Bytes> + Clone,
    ) -> Option<Self> {
        if bodies.clone().any(|body| body.len() > MAX_BODY) {
            return None;
        }
        let bytes: usize = bodies.clone().map(|body| MAX_PREFIX + body.len()).sum();
        // In every frame but the last there is no room for one more event.
        let heads = (bytes / (FRAME_BYTES - MAX_BODY - MAX_VARINT - MAX_HEAD) + 1) * MAX_HEAD;
        let mut frames = BytesMut::with_capacity(bytes + heads);
        let mut events: Vec<Place> = Vec::with_capacity(MAX_EVENTS);
        let mut begun = 0;
        for (offset, body) in (first..).zip(bodies) {
            let filled = frames.len() - begun + MAX_VARINT + body.len();
            let leads = events.is_empty() || filled > FRAME_BYTES;
            if leads {
                begun = frames.len();
            }
            events.push(Place {
                at: frames.len(),
                leads,
                frame_ends: 0,
            });
            if leads {
                put_head(&mut frames, offset);
            }
            put_varint(&mut frames, body.len() as u64);
            frames.put_slice(body);
        }
        let mut ends = frames.len();
        for event in events.iter_mut().rev() {
            event.frame_ends = ends;
            if event.leads {
                set_len(frames.get_mut(event.at..ends)?, 0);
                ends = event.at;
            }
        }
        Some(Self {
            first,
            frames: frames.freeze(),
            events: events.into(),
        })
    }

    /// Appends the frames of the events from `offset` on, and says how many these are and of how many bytes; `None` if
    /// it has no such event, or they are more than `max_bytes`.
    pub(crate) fn put_from(
        &self,
        offset: u64,
        max_bytes: usize,
        out: &mut Vec<Bytes>,
    ) -> Option<(usize, usize)> {
        let nth = usize::try_from(offset.checked_sub(self.first)?).ok()?;
        let event = self.events.get(nth)?;
        let mut head = BytesMut::new();
        if !event.leads {
            put_head(&mut head, offset);
            set_len(&mut head, event.frame_ends - event.at);
        }
        let rest = self.frames.slice(event.at..);
        let bytes = head.len() + rest.len();
        if bytes > max_bytes {
            return None;
        }
        if !head.is_empty() {
            out.push(head.freeze());
        }
        out.push(rest);
        Some((self.events.len() - nth, bytes))
    }
}

/// What a frame begins with; its length is set later.
fn put_head(frames: &mut BytesMut, first: u64) {
    frames.put_u32(0);
    frames.put_u8(kind::EVENTS);
    put_varint(frames, first);
}

/// Encodes what [`unpack`] reads.
pub(super) fn pack(first: u64, bodies: &[Bytes]) -> Bytes {
    let mut frame = BytesMut::new();
    put_head(&mut frame, first);
    for body in bodies {
        put_varint(&mut frame, body.len() as u64);
        frame.put_slice(body);
    }
    set_len(&mut frame, 0);
    frame.freeze()
}

/// Reads a frame behind its kind: the first offset, and the bodies of at most [`MAX_EVENTS`] events; `None` if it is
/// not of that form.
pub(super) fn unpack(mut rest: Bytes) -> Option<(u64, Vec<Bytes>)> {
    let (first, len) = take_varint(&rest)?;
    rest.advance(len);
    let mut bodies = Vec::with_capacity(MAX_EVENTS);
    while !rest.is_empty() {
        if bodies.len() >= MAX_EVENTS {
            return None;
        }
        bodies.push(take_prefixed(&mut rest)?);
    }
    let last = first.checked_add(bodies.len() as u64);
    (last.is_some() && !bodies.is_empty()).then_some((first, bodies))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{
        framing::Deframer,
        native::{MAX_FRAME, ToSpoke},
    };

    fn events(chunks: &[Bytes]) -> Vec<(u64, Bytes)> {
        let mut deframer = Deframer::new(MAX_FRAME);
        deframer.push(Bytes::from(chunks.concat()));
        let mut events = Vec::new();
        while let Some(frame) = deframer.next().unwrap() {
            assert!(frame.len() <= FRAME_BYTES.max(MAX_BODY + MAX_HEAD + MAX_VARINT));
            let Some(ToSpoke::Events { first, bodies }) = ToSpoke::decode(frame).unwrap() else {
                panic!("another frame")
            };
            events.extend((first..).zip(bodies));
        }
        deframer.finish().unwrap();
        events
    }

    proptest! {
        #[test]
        fn whatever_a_link_lacks_of_a_run_comes_out_of_it(
            first in 0..u64::MAX - 32,
            sizes in prop::collection::vec(prop_oneof![0..200usize, 0..=MAX_BODY], 1..=MAX_EVENTS),
            skip in any::<prop::sample::Index>(),
        ) {
            let bodies: Vec<Bytes> = (0u8..)
                .zip(&sizes)
                .map(|(n, len)| Bytes::from(vec![n; *len]))
                .collect();
            let run = Run::new(first, bodies.iter()).unwrap();
            let nth = skip.index(bodies.len());
            let mut chunks = Vec::new();
            let (count, bytes) = run.put_from(first + nth as u64, MAX_BYTES, &mut chunks).unwrap();
            prop_assert_eq!(count, bodies.len() - nth);
            prop_assert_eq!(bytes, chunks.iter().map(Bytes::len).sum::<usize>());
            let mut none = Vec::new();
            prop_assert_eq!(run.put_from(first + nth as u64, bytes - 1, &mut none), None);
            prop_assert!(none.is_empty());
            let expected: Vec<_> = (first..).zip(bodies).skip(nth).collect();
            prop_assert_eq!(events(&chunks), expected);
        }
    }

    #[test]
    fn a_run_has_no_large_event_and_nothing_beyond_its_ends() {
        let large = Bytes::from(vec![0; MAX_BODY + 1]);
        assert!(Run::new(0, [&Bytes::new(), &large].into_iter()).is_none());
        let run = Run::new(64, [&Bytes::new(), &Bytes::new()].into_iter()).unwrap();
        let mut chunks = Vec::new();
        assert_eq!(run.put_from(63, MAX_BYTES, &mut chunks), None);
        assert_eq!(run.put_from(66, MAX_BYTES, &mut chunks), None);
        assert!(chunks.is_empty());
    }

    #[test]
    fn a_frame_of_no_events_too_many_or_cut_off_ones_is_none() {
        let body = Bytes::from_static(b"abc");
        let frame = |n: usize| pack(7, &vec![body.clone(); n]).slice(PREFIX + 1..);
        assert!(unpack(frame(0)).is_none());
        assert_eq!(unpack(frame(MAX_EVENTS)).unwrap().1.len(), MAX_EVENTS);
        assert!(unpack(frame(MAX_EVENTS + 1)).is_none());
        let whole = frame(1);
        assert!(unpack(whole.slice(..whole.len() - 1)).is_none());
        assert!(unpack(pack(u64::MAX, &[body]).slice(PREFIX + 1..)).is_none());
    }
}

//! `iroh-hub/1`: the frames between a hub and its native spokes.
//!
//! A frame is one kind byte and then postcard; the frames that carry (parts of) events end in the raw
//! bytes of that part, and those with several events in those of all of them ([`run`]). A frame of an unknown kind is
//! skipped, so the protocol can grow; what must not be skipped is sent to those who say that they know it.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use iroh::{EndpointAddr, EndpointId};
use n0_error::{e, stack_error};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroize;

use super::{
    framing::{PREFIX, set_len},
    run,
};
use crate::position::{Epoch, Position};

/// The protocol's name in the TLS handshake.
pub(crate) const ALPN: &[u8] = b"iroh-hub/1";

/// The version of the protocol that this crate speaks.
pub(crate) const VERSION: u16 = 1;

/// Feature bit: the peer can gossip.
pub(crate) const FEATURE_GOSSIP: u64 = 1;

/// Feature bit: the peer reads [`ToSpoke::Events`].
pub(crate) const FEATURE_RUNS: u64 = 2;

/// The longest part of an event, in bytes. Longer events travel in several parts, so that control
/// frames find room between them.
pub(crate) const MAX_PART: usize = 64 * 1024;

/// The longest frame, in bytes: one part and its header, or a control frame.
pub(crate) const MAX_FRAME: usize = MAX_PART + 1024;

/// Parts up to this size are copied behind their header: one chunk is cheaper to send than two.
pub(super) const COPY_BELOW: usize = 4 * 1024;

/// A spoke of the topic that acknowledges fast, and has released little, says so this long after at the latest; unless the hub takes
/// so few acknowledgements a second that none is fast.
pub(crate) const ACK_LITTLE_WITHIN: Duration = Duration::from_millis(200);

/// Names one life of one spoke process to the hub, which believes it of the spoke's own endpoint only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct SessionId(pub(crate) [u8; 16]);

/// Does not show it: who comes back with it is taken for the spoke.
impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionId(..)")
    }
}

/// Where a spoke wants to begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Start {
    Tip,
    Earliest,
    At(Position),
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) version: u16,
    pub(crate) features: u64,
    /// The session to go on with; none to begin one.
    pub(crate) session: Option<SessionId>,
    /// The last targeted event of that session that the spoke has whole; 0 if none.
    pub(crate) targeted: u64,
    pub(crate) start: Start,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) version: u16,
    pub(crate) features: u64,
    /// The session that the link belongs to: the one that was asked for, if the hub still knows it.
    pub(crate) session: SessionId,
    /// The last of the spoke's events that the hub has accepted in this session; 0 if none.
    pub(crate) published: u64,
    pub(crate) epoch: Epoch,
    /// The next offset that the hub will give.
    pub(crate) tip: u64,
    /// The first offset that the spoke gets.
    pub(crate) start: u64,
    /// Whether nothing lies between where the spoke asked to begin and `start`. If not, the position
    /// that it asked for is of another life of the log.
    pub(crate) continues: bool,
    pub(crate) max_event_bytes: u64,
    /// How often the spoke may acknowledge, in milliseconds.
    pub(crate) ack_every_ms: u32,
    /// How many bytes of its events the spoke may have unacknowledged.
    pub(crate) publish_window: u64,
}

/// Everything a spoke needs to join the topic.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Topic {
    pub(crate) topic: [u8; 32],
    pub(crate) keys: GenerationKeys,
    pub(crate) peers: Vec<EndpointAddr>,
    pub(crate) max_frame_bytes: u32,
    /// Roughly how many nodes are on the topic: repairs wait longer on a larger one.
    pub(crate) members: u32,
}

/// What opens the frames of one generation and proves membership of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GenerationKeys {
    pub(crate) generation: u32,
    pub(crate) key: [u8; 32],
    pub(crate) verify_key: [u8; 32],
}

impl Drop for GenerationKeys {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// The keys of a newer generation of the topic that a spoke is on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Rekey {
    pub(crate) keys: GenerationKeys,
    /// Members no more: connections to them are closed, and none is made. At most [`MAX_EVICTED`].
    pub(crate) evict: Vec<EndpointId>,
    /// Somebody is a member no more, named or not: the former key is not to be good for long.
    pub(crate) revoked: bool,
    /// Whether the hub waits to hear that the spoke has them ([`ToHub::Rekeyed`]).
    pub(crate) confirm: bool,
}

/// The most former members that one [`Rekey`] names: few, since all members are told. Of others, they learn by the
/// keys that these lack.
pub(crate) const MAX_EVICTED: usize = 64;

/// Shows no key.
impl std::fmt::Debug for GenerationKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GenerationKeys")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// Shows no key.
impl std::fmt::Debug for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Topic")
            .field("keys", &self.keys)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}

/// Which part of which whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PartOf {
    pub(crate) part: u16,
    pub(crate) parts: u16,
}

impl PartOf {
    /// Of an event that is in one piece.
    pub(crate) const WHOLE: Self = Self { part: 0, parts: 1 };
}

/// From the hub to a spoke.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ToSpoke {
    Welcome(Welcome),
    /// Part of the event at `offset`, as the cursor reaches it.
    Event {
        offset: u64,
        of: PartOf,
        body: Bytes,
    },
    /// Small events in a row, whole, as the cursor reaches them: the first has this offset.
    Events {
        first: u64,
        bodies: Vec<Bytes>,
    },
    /// One again, or a part of it, because the spoke wanted it.
    Repair {
        offset: u64,
        of: PartOf,
        body: Bytes,
    },
    /// Part of an event for this spoke alone, to be seen when everything before `after` was.
    Targeted {
        seq: u64,
        after: Position,
        of: PartOf,
        body: Bytes,
    },
    Topic(Box<Topic>),
    LeaveTopic,
    /// The log no longer has `[from, to)`.
    Missed {
        from: u64,
        to: u64,
    },
    /// The hub has all of the spoke's events up to `seq`.
    Ack {
        seq: u64,
    },
    /// How often the spoke may acknowledge from now on.
    AckEvery {
        millis: u32,
    },
    Rekey(Box<Rekey>),
    /// Acknowledge as soon as everything below `offset` is released: somebody waits for it.
    AckNow {
        offset: u64,
    },
}

/// From a spoke to the hub.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ToHub {
    Hello(Hello),
    /// Part of the spoke's event number `seq`, counted from 1.
    Publish {
        seq: u64,
        of: PartOf,
        body: Bytes,
    },
    /// The spoke has released every offset below `offset`, and every targeted event up to `seq`.
    Ack {
        offset: u64,
        seq: u64,
    },
    /// The spoke lacks `[from, to)`; without an end: serve me directly from here on.
    Want {
        from: u64,
        to: Option<u64>,
    },
    /// The spoke gets everything from `from` on from this topic.
    Served {
        topic: [u8; 32],
        from: u64,
    },
    /// The spoke itself gave up `[from, to)`: it acknowledges them, and does not have them.
    Missed {
        from: u64,
        to: u64,
    },
    /// The spoke does not take this targeted event, which is over its limit: it acknowledges it in its turn,
    /// and does not have it.
    Refused {
        seq: u64,
    },
    /// The spoke has the keys of this generation.
    Rekeyed {
        generation: u32,
    },
}

/// A frame is not one of the protocol.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum NativeError {
    /// It has no kind byte.
    #[error("a frame is empty")]
    Empty {},
    /// Its content is not what its kind calls for.
    #[error("a frame of kind {kind} does not decode")]
    Malformed {
        /// The kind byte.
        kind: u8,
    },
    /// It is part 7 of 3, or of none.
    #[error("a frame claims to be part {part} of {parts}")]
    BadPart {
        /// The part, from 0.
        part: u16,
        /// How many there are.
        parts: u16,
    },
}

pub(super) mod kind {
    pub(super) const WELCOME: u8 = 0;
    pub(super) const EVENT: u8 = 1;
    pub(super) const REPAIR: u8 = 2;
    pub(super) const TARGETED: u8 = 3;
    pub(super) const TOPIC: u8 = 4;
    pub(super) const LEAVE_TOPIC: u8 = 5;
    pub(super) const MISSED: u8 = 6;
    pub(super) const ACK: u8 = 7;
    pub(super) const ACK_EVERY: u8 = 8;
    pub(super) const REKEY: u8 = 9;
    pub(super) const ACK_NOW: u8 = 10;
    pub(in crate::wire) const EVENTS: u8 = 11;

    pub(super) const HELLO: u8 = 0;
    pub(super) const PUBLISH: u8 = 1;
    pub(super) const SPOKE_ACK: u8 = 2;
    pub(super) const WANT: u8 = 3;
    pub(super) const SERVED: u8 = 4;
    pub(super) const SPOKE_MISSED: u8 = 5;
    pub(super) const REFUSED: u8 = 6;
    pub(super) const REKEYED: u8 = 7;
}

/// Reads the rest of a frame behind its kind byte.
struct Reader {
    kind: u8,
    rest: Bytes,
}

impl Reader {
    fn new(mut frame: Bytes) -> Result<Self, NativeError> {
        let kind = *frame.first().ok_or_else(|| e!(NativeError::Empty))?;
        let rest = frame.split_off(1);
        Ok(Self { kind, rest })
    }

    fn malformed(&self) -> NativeError {
        e!(NativeError::Malformed { kind: self.kind })
    }

    /// A whole value, with nothing behind it that this version knows.
    fn value<T: DeserializeOwned>(&self) -> Result<T, NativeError> {
        postcard::from_bytes(&self.rest).map_err(|_| self.malformed())
    }

    /// A value, the part numbers, and the part itself.
    fn part<T: DeserializeOwned>(&self) -> Result<(T, PartOf, Bytes), NativeError> {
        let ((head, part, parts), body): ((T, u16, u16), &[u8]) =
            postcard::take_from_bytes(&self.rest).map_err(|_| self.malformed())?;
        if part >= parts {
            return Err(e!(NativeError::BadPart { part, parts }));
        }
        let body = self.rest.slice_ref(body);
        Ok((head, PartOf { part, parts }, body))
    }
}

impl ToSpoke {
    /// Reads a frame without its length prefix; `None` if its kind is unknown.
    pub(crate) fn decode(frame: Bytes) -> Result<Option<Self>, NativeError> {
        let reader = Reader::new(frame)?;
        Ok(Some(match reader.kind {
            kind::WELCOME => Self::Welcome(reader.value()?),
            kind::EVENT => {
                let (offset, of, body) = reader.part()?;
                Self::Event { offset, of, body }
            }
            kind::EVENTS => {
                let unpacked = run::unpack(reader.rest.clone());
                let (first, bodies) = unpacked.ok_or_else(|| reader.malformed())?;
                Self::Events { first, bodies }
            }
            kind::REPAIR => {
                let (offset, of, body) = reader.part()?;
                Self::Repair { offset, of, body }
            }
            kind::TARGETED => {
                let ((seq, after), of, body) = reader.part()?;
                Self::Targeted {
                    seq,
                    after,
                    of,
                    body,
                }
            }
            kind::TOPIC => Self::Topic(Box::new(reader.value()?)),
            kind::LEAVE_TOPIC => Self::LeaveTopic,
            kind::MISSED => {
                let (from, to) = reader.value()?;
                Self::Missed { from, to }
            }
            kind::ACK => Self::Ack {
                seq: reader.value()?,
            },
            kind::ACK_EVERY => Self::AckEvery {
                millis: reader.value()?,
            },
            kind::REKEY => Self::Rekey(Box::new(reader.value()?)),
            kind::ACK_NOW => Self::AckNow {
                offset: reader.value()?,
            },
            _ => return Ok(None),
        }))
    }

    /// Appends the frame, with its length prefix, as chunks to send.
    pub(crate) fn encode(&self, out: &mut Vec<Bytes>) {
        match self {
            Self::Welcome(welcome) => put_value(out, kind::WELCOME, welcome),
            Self::Event { offset, of, body } => put_part(out, kind::EVENT, offset, *of, body),
            Self::Events { first, bodies } => out.push(run::pack(*first, bodies)),
            Self::Repair { offset, of, body } => put_part(out, kind::REPAIR, offset, *of, body),
            Self::Targeted {
                seq,
                after,
                of,
                body,
            } => put_part(out, kind::TARGETED, &(seq, after), *of, body),
            Self::Topic(topic) => put_value(out, kind::TOPIC, topic),
            Self::LeaveTopic => put_value(out, kind::LEAVE_TOPIC, &()),
            Self::Missed { from, to } => put_value(out, kind::MISSED, &(from, to)),
            Self::Ack { seq } => put_value(out, kind::ACK, seq),
            Self::AckEvery { millis } => put_value(out, kind::ACK_EVERY, millis),
            Self::Rekey(rekey) => put_value(out, kind::REKEY, rekey),
            Self::AckNow { offset } => put_value(out, kind::ACK_NOW, offset),
        }
    }

    /// How many events it carries, or parts of one.
    pub(crate) fn events(&self) -> usize {
        match self {
            Self::Event { .. } | Self::Repair { .. } | Self::Targeted { .. } => 1,
            Self::Events { bodies, .. } => bodies.len(),
            _ => 0,
        }
    }
}

impl ToHub {
    /// Reads a frame without its length prefix; `None` if its kind is unknown.
    pub(crate) fn decode(frame: Bytes) -> Result<Option<Self>, NativeError> {
        let reader = Reader::new(frame)?;
        Ok(Some(match reader.kind {
            kind::HELLO => Self::Hello(reader.value()?),
            kind::PUBLISH => {
                let (seq, of, body) = reader.part()?;
                Self::Publish { seq, of, body }
            }
            kind::SPOKE_ACK => {
                let (offset, seq) = reader.value()?;
                Self::Ack { offset, seq }
            }
            kind::WANT => {
                let (from, to) = reader.value()?;
                Self::Want { from, to }
            }
            kind::SERVED => {
                let (topic, from) = reader.value()?;
                Self::Served { topic, from }
            }
            kind::SPOKE_MISSED => {
                let (from, to) = reader.value()?;
                Self::Missed { from, to }
            }
            kind::REFUSED => Self::Refused {
                seq: reader.value()?,
            },
            kind::REKEYED => Self::Rekeyed {
                generation: reader.value()?,
            },
            _ => return Ok(None),
        }))
    }

    /// Appends the frame, with its length prefix, as chunks to send.
    pub(crate) fn encode(&self, out: &mut Vec<Bytes>) {
        match self {
            Self::Hello(hello) => put_value(out, kind::HELLO, hello),
            Self::Publish { seq, of, body } => put_part(out, kind::PUBLISH, seq, *of, body),
            Self::Ack { offset, seq } => put_value(out, kind::SPOKE_ACK, &(offset, seq)),
            Self::Want { from, to } => put_value(out, kind::WANT, &(from, to)),
            Self::Served { topic, from } => put_value(out, kind::SERVED, &(topic, from)),
            Self::Missed { from, to } => put_value(out, kind::SPOKE_MISSED, &(from, to)),
            Self::Refused { seq } => put_value(out, kind::REFUSED, seq),
            Self::Rekeyed { generation } => put_value(out, kind::REKEYED, generation),
        }
    }
}

/// Appends all parts of the broadcast event at `offset`.
pub(crate) fn put_event(out: &mut Vec<Bytes>, offset: u64, body: &Bytes, repair: bool) {
    let kind = if repair { kind::REPAIR } else { kind::EVENT };
    for (of, part) in parts(body) {
        put_part(out, kind, &offset, of, &part);
    }
}

/// Appends one part of a broadcast event that does not come as a repair. Gives the length of its body, and
/// whether it was the last one; `None` if there is no such part.
pub(crate) fn put_event_part(
    out: &mut Vec<Bytes>,
    offset: u64,
    body: &Bytes,
    part: u16,
) -> Option<(usize, bool)> {
    put_one(out, kind::EVENT, offset, body, part)
}

/// Appends all parts of an event for one spoke.
pub(crate) fn put_targeted(out: &mut Vec<Bytes>, seq: u64, after: Position, body: &Bytes) {
    for (of, part) in parts(body) {
        put_part(out, kind::TARGETED, &(seq, after), of, &part);
    }
}

/// Appends one part of an event for the hub. Gives the length of its body, and whether it was the last one;
/// `None` if there is no such part.
pub(crate) fn put_publish(
    out: &mut Vec<Bytes>,
    seq: u64,
    body: &Bytes,
    part: u16,
) -> Option<(usize, bool)> {
    put_one(out, kind::PUBLISH, seq, body, part)
}

fn put_one(
    out: &mut Vec<Bytes>,
    kind: u8,
    number: u64,
    body: &Bytes,
    part: u16,
) -> Option<(usize, bool)> {
    let parts = count_parts(body);
    (part < parts).then(|| {
        let (of, body) = cut(body, part, parts);
        put_part(out, kind, &number, of, &body);
        (body.len(), part + 1 == parts)
    })
}

/// Cuts a body into parts of at most [`MAX_PART`] bytes; at least one.
pub(crate) fn parts(body: &Bytes) -> impl Iterator<Item = (PartOf, Bytes)> + '_ {
    let parts = count_parts(body);
    (0..parts).map(move |part| cut(body, part, parts))
}

fn count_parts(body: &Bytes) -> u16 {
    let parts = body.len().div_ceil(MAX_PART);
    parts.clamp(1, usize::from(u16::MAX)) as u16
}

fn cut(body: &Bytes, part: u16, parts: u16) -> (PartOf, Bytes) {
    let start = (usize::from(part) * MAX_PART).min(body.len());
    let end = (start + MAX_PART).min(body.len());
    (PartOf { part, parts }, body.slice(start..end))
}

/// The largest event that can travel, in bytes: as many parts as can be counted.
pub(crate) const MAX_EVENT_BYTES: usize = u16::MAX as usize * MAX_PART;

fn put_value<T: Serialize + ?Sized>(out: &mut Vec<Bytes>, kind: u8, value: &T) {
    out.push(head(kind, value, 0, 0).freeze());
}

fn put_part<T: Serialize + ?Sized>(
    out: &mut Vec<Bytes>,
    kind: u8,
    value: &T,
    of: PartOf,
    body: &Bytes,
) {
    let value = (value, of.part, of.parts);
    if body.len() <= COPY_BELOW {
        let mut frame = head(kind, &value, body.len(), body.len());
        frame.put_slice(body);
        out.push(frame.freeze());
    } else {
        out.push(head(kind, &value, body.len(), 0).freeze());
        out.push(body.clone());
    }
}

/// A frame up to its body: length prefix, kind, value. `room` is what will be appended.
fn head<T: Serialize + ?Sized>(kind: u8, value: &T, body_len: usize, room: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(PREFIX + 1 + 32 + room);
    frame.put_u32(0);
    frame.put_u8(kind);
    // Our own frames always serialise: they are plain data, and the buffer grows.
    let _ = postcard::to_extend(value, Writer(&mut frame));
    set_len(&mut frame, body_len);
    frame
}

/// Lets postcard extend a `BytesMut` in place.
struct Writer<'a>(&'a mut BytesMut);

impl Extend<u8> for Writer<'_> {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        self.0.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::framing::Deframer;

    fn frames(chunks: Vec<Bytes>) -> Vec<Bytes> {
        let mut deframer = Deframer::new(MAX_FRAME);
        deframer.push(Bytes::from(chunks.concat()));
        let mut out = Vec::new();
        while let Some(frame) = deframer.next().unwrap() {
            out.push(frame);
        }
        deframer.finish().unwrap();
        out
    }

    fn position() -> impl Strategy<Value = Position> {
        any::<(u64, u64)>().prop_map(|(e, o)| Position::new(Epoch::from_u64(e), o))
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..64),
            prop::collection::vec(any::<u8>(), COPY_BELOW..COPY_BELOW + 64),
        ]
        .prop_map(Bytes::from)
    }

    fn part_of() -> impl Strategy<Value = PartOf> {
        (1..=u16::MAX, any::<u16>()).prop_map(|(parts, part)| PartOf {
            part: part % parts,
            parts,
        })
    }

    fn keys() -> impl Strategy<Value = GenerationKeys> {
        any::<(u32, [u8; 32], [u8; 32])>().prop_map(|(generation, key, verify_key)| {
            GenerationKeys {
                generation,
                key,
                verify_key,
            }
        })
    }

    fn to_spoke() -> impl Strategy<Value = ToSpoke> {
        prop_oneof![
            any::<(u16, u64, [u8; 16], u64, u64, u64)>().prop_map(|(v, f, s, e, tip, start)| {
                ToSpoke::Welcome(Welcome {
                    version: v,
                    features: f,
                    session: SessionId(s),
                    published: e ^ f,
                    epoch: Epoch::from_u64(e),
                    tip,
                    start,
                    continues: v % 2 == 0,
                    max_event_bytes: f ^ tip,
                    ack_every_ms: v.into(),
                    publish_window: e ^ tip,
                })
            }),
            (any::<u64>(), part_of(), bytes()).prop_map(|(offset, of, body)| ToSpoke::Event {
                offset,
                of,
                body
            }),
            (0..u64::MAX / 2, prop::collection::vec(bytes(), 1..4))
                .prop_map(|(first, bodies)| ToSpoke::Events { first, bodies }),
            (any::<u64>(), part_of(), bytes()).prop_map(|(offset, of, body)| ToSpoke::Repair {
                offset,
                of,
                body
            }),
            (any::<u64>(), position(), part_of(), bytes()).prop_map(|(seq, after, of, body)| {
                ToSpoke::Targeted {
                    seq,
                    after,
                    of,
                    body,
                }
            }),
            (any::<[u8; 32]>(), keys()).prop_map(|(topic, keys)| ToSpoke::Topic(Box::new(Topic {
                topic,
                keys,
                peers: vec![EndpointAddr::new(
                    iroh::SecretKey::from_bytes(&topic).public()
                )],
                max_frame_bytes: 7,
                members: 9,
            }))),
            Just(ToSpoke::LeaveTopic),
            any::<(u64, u64)>().prop_map(|(from, to)| ToSpoke::Missed { from, to }),
            any::<u64>().prop_map(|seq| ToSpoke::Ack { seq }),
            any::<u32>().prop_map(|millis| ToSpoke::AckEvery { millis }),
            (
                keys(),
                prop::collection::vec(any::<[u8; 32]>(), 0..4),
                any::<bool>()
            )
                .prop_map(|(keys, evict, confirm)| {
                    let id = |key: &[u8; 32]| iroh::SecretKey::from_bytes(key).public();
                    let evict = evict.iter().map(id).collect();
                    ToSpoke::Rekey(Box::new(Rekey {
                        keys,
                        evict,
                        revoked: !confirm,
                        confirm,
                    }))
                }),
            any::<u64>().prop_map(|offset| ToSpoke::AckNow { offset }),
        ]
    }

    fn to_hub() -> impl Strategy<Value = ToHub> {
        let start = prop_oneof![
            Just(Start::Tip),
            Just(Start::Earliest),
            position().prop_map(Start::At)
        ];
        prop_oneof![
            (any::<(u16, u64, Option<[u8; 16]>, u64)>(), start).prop_map(
                |((version, features, session, targeted), start)| ToHub::Hello(Hello {
                    version,
                    features,
                    session: session.map(SessionId),
                    targeted,
                    start
                })
            ),
            (any::<u64>(), part_of(), bytes()).prop_map(|(seq, of, body)| ToHub::Publish {
                seq,
                of,
                body
            }),
            any::<(u64, u64)>().prop_map(|(offset, seq)| ToHub::Ack { offset, seq }),
            any::<(u64, Option<u64>)>().prop_map(|(from, to)| ToHub::Want { from, to }),
            any::<([u8; 32], u64)>().prop_map(|(topic, from)| ToHub::Served { topic, from }),
            any::<(u64, u64)>().prop_map(|(from, to)| ToHub::Missed { from, to }),
            any::<u64>().prop_map(|seq| ToHub::Refused { seq }),
            any::<u32>().prop_map(|generation| ToHub::Rekeyed { generation }),
        ]
    }

    proptest! {
        #[test]
        fn a_frame_to_a_spoke_reads_back(frame in to_spoke()) {
            let mut out = Vec::new();
            frame.encode(&mut out);
            let [bytes] = &frames(out)[..] else { panic!("one frame") };
            prop_assert_eq!(ToSpoke::decode(bytes.clone()).unwrap(), Some(frame));
        }

        #[test]
        fn a_frame_to_the_hub_reads_back(frame in to_hub()) {
            let mut out = Vec::new();
            frame.encode(&mut out);
            let [bytes] = &frames(out)[..] else { panic!("one frame") };
            prop_assert_eq!(ToHub::decode(bytes.clone()).unwrap(), Some(frame));
        }

        #[test]
        fn a_cut_frame_is_never_mistaken_for_another_kind(frame in to_hub(), cut: prop::sample::Index) {
            let mut out = Vec::new();
            frame.encode(&mut out);
            let bytes = frames(out).remove(0);
            let cut = bytes.slice(..cut.index(bytes.len()));
            if let Ok(Some(other)) = ToHub::decode(cut) {
                prop_assert_eq!(
                    std::mem::discriminant(&other),
                    std::mem::discriminant(&frame)
                );
            }
        }
    }

    /// What a frame is without its prefix.
    fn bare(chunks: &[Bytes]) -> Vec<u8> {
        chunks.concat().split_off(PREFIX)
    }

    fn bare_to_hub(frame: &ToHub) -> Vec<u8> {
        let mut chunks = Vec::new();
        frame.encode(&mut chunks);
        bare(&chunks)
    }

    fn bare_to_spoke(frame: &ToSpoke) -> Vec<u8> {
        let mut chunks = Vec::new();
        frame.encode(&mut chunks);
        bare(&chunks)
    }

    fn real_to_hub() -> Vec<(&'static str, Vec<u8>)> {
        let position = Position::new(Epoch::from_u64(5), 300);
        let hello = |session, start| {
            ToHub::Hello(Hello {
                version: VERSION,
                features: FEATURE_GOSSIP,
                session,
                targeted: 3,
                start,
            })
        };
        let of = PartOf { part: 1, parts: 3 };
        let body = Bytes::from_static(b"\x01t\x00\x04null");
        [
            ("hello", hello(None, Start::Tip)),
            (
                "hello-again",
                hello(Some(SessionId([7; 16])), Start::At(position)),
            ),
            ("publish", ToHub::Publish { seq: 9, of, body }),
            (
                "ack",
                ToHub::Ack {
                    offset: 300,
                    seq: 2,
                },
            ),
            (
                "want",
                ToHub::Want {
                    from: 5,
                    to: Some(900),
                },
            ),
            (
                "want-all",
                ToHub::Want {
                    from: u64::MAX,
                    to: None,
                },
            ),
            (
                "served",
                ToHub::Served {
                    topic: [1; 32],
                    from: 12,
                },
            ),
            (
                "missed",
                ToHub::Missed {
                    from: 1,
                    to: u64::MAX,
                },
            ),
            ("refused", ToHub::Refused { seq: 4 }),
            ("rekeyed", ToHub::Rekeyed { generation: 300 }),
        ]
        .map(|(name, frame)| (name, bare_to_hub(&frame)))
        .into()
    }

    fn real_to_spoke() -> Vec<(&'static str, Vec<u8>)> {
        let after = Position::new(Epoch::from_u64(5), 300);
        let of = PartOf::WHOLE;
        let body = Bytes::from_static(b"\x01t\x00\x04null");
        let key = iroh::SecretKey::from_bytes(&[3; 32]).public();
        let keys = GenerationKeys {
            generation: 2,
            key: [8; 32],
            verify_key: *key.as_bytes(),
        };
        let peer = EndpointAddr::new(key)
            .with_ip_addr(([127, 0, 0, 1], 4433).into())
            .with_relay_url("https://relay.example.com".parse().unwrap());
        let rekey = Rekey {
            keys: keys.clone(),
            evict: vec![key; 2],
            revoked: true,
            confirm: true,
        };
        let topic = Topic {
            topic: [5; 32],
            keys,
            peers: vec![peer.clone(), peer],
            max_frame_bytes: 1 << 17,
            members: 40,
        };
        let welcome = Welcome {
            version: VERSION,
            features: FEATURE_GOSSIP,
            session: SessionId([6; 16]),
            published: 1,
            epoch: Epoch::from_u64(5),
            tip: 300,
            start: 200,
            continues: true,
            max_event_bytes: 1 << 24,
            ack_every_ms: 1000,
            publish_window: 1 << 20,
        };
        [
            ("welcome", ToSpoke::Welcome(welcome)),
            (
                "event",
                ToSpoke::Event {
                    offset: 300,
                    of,
                    body: body.clone(),
                },
            ),
            (
                "events",
                ToSpoke::Events {
                    first: 300,
                    bodies: vec![body.clone(); 2],
                },
            ),
            (
                "repair",
                ToSpoke::Repair {
                    offset: 7,
                    of,
                    body: body.clone(),
                },
            ),
            (
                "targeted",
                ToSpoke::Targeted {
                    seq: 1,
                    after,
                    of,
                    body,
                },
            ),
            ("topic", ToSpoke::Topic(Box::new(topic))),
            ("leave-topic", ToSpoke::LeaveTopic),
            ("missed", ToSpoke::Missed { from: 3, to: 300 }),
            ("ack", ToSpoke::Ack { seq: u64::MAX }),
            ("ack-every", ToSpoke::AckEvery { millis: 250 }),
            ("rekey", ToSpoke::Rekey(Box::new(rekey))),
            ("ack-now", ToSpoke::AckNow { offset: 301 }),
        ]
        .map(|(name, frame)| (name, bare_to_spoke(&frame)))
        .into()
    }

    crate::fuzz::decoder!(native_to_hub, real_to_hub(), |bytes| {
        let Ok(Some(frame)) = ToHub::decode(Bytes::copy_from_slice(bytes)) else {
            return;
        };
        let again = bare_to_hub(&frame);
        // A peer may write a number with more digits than it needs, and something behind the end.
        assert!(again.len() <= bytes.len());
        assert_eq!(ToHub::decode(again.into()).unwrap(), Some(frame));
    });

    crate::fuzz::decoder!(native_to_spoke, real_to_spoke(), |bytes| {
        let Ok(Some(frame)) = ToSpoke::decode(Bytes::copy_from_slice(bytes)) else {
            return;
        };
        let again = bare_to_spoke(&frame);
        assert_eq!(ToSpoke::decode(again.into()).unwrap(), Some(frame));
    });

    #[test]
    fn a_large_event_travels_in_parts_that_make_it_up_again() {
        let body = Bytes::from((0..MAX_PART * 2 + 5).map(|n| n as u8).collect::<Vec<_>>());
        let mut out = Vec::new();
        put_event(&mut out, 3, &body, false);
        let frames = frames(out);
        assert_eq!(frames.len(), 3);
        let mut again = Vec::new();
        for (n, frame) in frames.into_iter().enumerate() {
            let Some(ToSpoke::Event { offset, of, body }) = ToSpoke::decode(frame).unwrap() else {
                panic!("not an event")
            };
            assert_eq!((offset, usize::from(of.part), of.parts), (3, n, 3));
            again.extend_from_slice(&body);
        }
        assert_eq!(again, body);
    }

    #[test]
    fn as_many_as_a_rekey_may_name_fit_into_a_frame() {
        let keys = GenerationKeys {
            generation: u32::MAX,
            key: [1; 32],
            verify_key: [2; 32],
        };
        let evict = vec![iroh::SecretKey::from_bytes(&[3; 32]).public(); MAX_EVICTED];
        let mut out = Vec::new();
        ToSpoke::Rekey(Box::new(Rekey {
            keys,
            evict,
            revoked: true,
            confirm: true,
        }))
        .encode(&mut out);
        assert_eq!(frames(out).len(), 1);
    }

    #[test]
    fn an_unknown_kind_is_skipped() {
        assert_eq!(
            ToSpoke::decode(Bytes::from_static(&[200, 1, 2])).unwrap(),
            None
        );
        assert_eq!(
            ToHub::decode(Bytes::from_static(&[200, 1, 2])).unwrap(),
            None
        );
    }

    #[test]
    fn keys_do_not_show_in_debug() {
        let keys = GenerationKeys {
            generation: 1,
            key: [0xab; 32],
            verify_key: [0xcd; 32],
        };
        let rekey = Rekey {
            keys,
            evict: Vec::new(),
            revoked: true,
            confirm: true,
        };
        let text = format!("{:?}", ToSpoke::Rekey(Box::new(rekey)));
        assert!(
            !text.contains("171") && !text.to_lowercase().contains("ab, ab"),
            "{text}"
        );
    }
}

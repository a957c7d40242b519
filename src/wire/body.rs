//! An envelope as it travels and as it is kept: three length-prefixed pieces.
//!
//! The layout is postcard's for `(type: str, id: str, payload: bytes)`: a varint of at most 32 bits
//! before each piece. Whether the payload is JSON is checked by the envelope, not here.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use n0_error::{e, stack_error};

/// Where the pieces of an envelope lie in its body: only of one whose type and id are within their bounds.
///
/// Small, since it goes wherever an event goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    event_type: (u16, u16),
    id: (u16, u16),
    /// It ends where the body does.
    payload: u16,
}

impl Layout {
    fn new([event_type, id, payload]: [&Range<usize>; 3]) -> Self {
        let at = |at: usize| u16::try_from(at).unwrap_or(u16::MAX);
        let piece = |piece: &Range<usize>| (at(piece.start), at(piece.end));
        Self {
            event_type: piece(event_type),
            id: piece(id),
            payload: at(payload.start),
        }
    }

    pub(crate) fn event_type<'a>(&self, body: &'a [u8]) -> &'a str {
        let (start, end) = self.event_type;
        text(body.get(start.into()..end.into()))
    }

    pub(crate) fn id<'a>(&self, body: &'a [u8]) -> &'a str {
        let (start, end) = self.id;
        text(body.get(start.into()..end.into()))
    }

    pub(crate) fn payload<'a>(&self, body: &'a [u8]) -> &'a str {
        text(body.get(self.payload.into()..))
    }
}

/// `parse` and `encode` have seen that these bytes are text.
fn text(bytes: Option<&[u8]>) -> &str {
    bytes
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .unwrap_or_default()
}

/// Bytes that are not the body of an envelope.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum BodyError {
    /// They end too early, or a length is not one.
    #[error("an envelope ends early, or a length in it is not one")]
    Truncated {},
    /// Bytes are left over at the end.
    #[error("{extra} bytes are left over behind an envelope")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// A piece is not UTF-8.
    #[error("an envelope has text that is not UTF-8")]
    NotUtf8 {},
}

/// The longest varint of a length.
const MAX_PREFIX: usize = 5;

pub(crate) fn encode(event_type: &str, id: &str, payload: &[u8]) -> (Bytes, Layout) {
    let mut body =
        BytesMut::with_capacity(3 * MAX_PREFIX + event_type.len() + id.len() + payload.len());
    let mut put = |piece: &[u8]| {
        put_varint(&mut body, piece.len() as u64);
        let start = body.len();
        body.put_slice(piece);
        start..body.len()
    };
    let pieces = [event_type.as_bytes(), id.as_bytes(), payload].map(&mut put);
    let layout = Layout::new(pieces.each_ref());
    (body.freeze(), layout)
}

/// Finds the pieces of a body, and gives them as the text that they are: type, id, payload.
pub(crate) fn parse(body: &[u8]) -> Result<(Layout, [&str; 3]), BodyError> {
    let mut at = 0usize;
    let mut take = || -> Result<(Range<usize>, &str), BodyError> {
        let rest = body.get(at..).ok_or_else(|| e!(BodyError::Truncated))?;
        let (len, prefix) = take_varint(rest).ok_or_else(|| e!(BodyError::Truncated))?;
        let len = u32::try_from(len).map_err(|_| e!(BodyError::Truncated))? as usize;
        let start = at + prefix;
        let end = start
            .checked_add(len)
            .filter(|end| *end <= body.len() && u32::try_from(*end).is_ok())
            .ok_or_else(|| e!(BodyError::Truncated))?;
        let piece = body
            .get(start..end)
            .ok_or_else(|| e!(BodyError::Truncated))?;
        let text = std::str::from_utf8(piece).map_err(|_| e!(BodyError::NotUtf8))?;
        at = end;
        Ok((start..end, text))
    };
    let (event_type, id, payload) = (take()?, take()?, take()?);
    let layout = Layout::new([&event_type.0, &id.0, &payload.0]);
    if at != body.len() {
        return Err(e!(BodyError::Trailing {
            extra: body.len() - at
        }));
    }
    Ok((layout, [event_type.1, id.1, payload.1]))
}

/// Takes a length and that many bytes off the front; `None` if there are fewer. Copies nothing.
pub(crate) fn take_prefixed(rest: &mut Bytes) -> Option<Bytes> {
    let (len, prefix) = take_varint(rest)?;
    let len = usize::try_from(len).ok()?;
    if len > rest.len().checked_sub(prefix)? {
        return None;
    }
    rest.advance(prefix);
    Some(rest.split_to(len))
}

/// Writes a LEB128 varint, as postcard does.
pub(crate) fn put_varint(out: &mut impl BufMut, mut n: u64) {
    while n >= 0x80 {
        out.put_u8((n as u8) | 0x80);
        n >>= 7;
    }
    out.put_u8(n as u8);
}

/// How many bytes [`put_varint`] writes.
pub(crate) fn varint_len(n: u64) -> usize {
    let bits = u64::BITS - (n | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Reads a LEB128 varint and tells how long it was; `None` if it is cut off or over 64 bits.
pub(crate) fn take_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut n = 0u64;
    for (i, byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        let shift = 7 * i as u32;
        if shift == 63 && bits > 1 {
            return None;
        }
        n |= bits << shift;
        if byte & 0x80 == 0 {
            return Some((n, i + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::Envelope;

    proptest! {
        #[test]
        fn an_envelope_reads_back(t in ".{1,40}", id in ".{0,40}", payload in ".{0,300}") {
            let (body, layout) = encode(&t, &id, payload.as_bytes());
            prop_assert_eq!(parse(&body).unwrap().0, layout);
            prop_assert_eq!(layout.event_type(&body), &t);
            prop_assert_eq!(layout.id(&body), &id);
            prop_assert_eq!(layout.payload(&body), &payload);
            let also: (&str, &str, &[u8]) = postcard::from_bytes(&body).unwrap();
            prop_assert_eq!(also, (&*t, &*id, payload.as_bytes()));
        }

        #[test]
        fn a_varint_reads_back_and_its_length_is_known(n: u64, shift in 0..64u32) {
            let n = n >> shift;
            let mut out = Vec::new();
            put_varint(&mut out, n);
            prop_assert_eq!(out.len(), varint_len(n));
            prop_assert_eq!(take_varint(&out), Some((n, out.len())));
            out.pop();
            prop_assert_eq!(take_varint(&out), None);
        }
    }
    fn real() -> Vec<(&'static str, Vec<u8>)> {
        let of = |event_type: &str, id: &str, payload: &str| {
            encode(event_type, id, payload.as_bytes()).0.to_vec()
        };
        vec![
            ("small", of("t", "", "null")),
            (
                "large",
                of(&"ü".repeat(100), "id", &format!("\"{}\"", "x".repeat(300))),
            ),
            (
                "json",
                of("price.tea", "7", r#"{"pence":[1.50,{"a":null}]}"#),
            ),
            ("bad-empty", of("", "", "1")),
            ("bad-json", of("t", "", "[1,")),
        ]
    }

    crate::fuzz::decoder!(body, real(), |bytes| {
        let envelope = Envelope::from_body(Bytes::copy_from_slice(bytes));
        let Ok((layout, _)) = parse(bytes) else {
            assert!(envelope.is_err());
            return;
        };
        let (event_type, id) = (layout.event_type(bytes), layout.id(bytes));
        let payload = layout.payload(bytes);
        let (again, _) = encode(event_type, id, payload.as_bytes());
        // A peer may write a length with more digits than it needs.
        assert!(again.len() <= bytes.len());
        if let Ok(envelope) = envelope {
            let same = Envelope::from_json(event_type, id, payload).unwrap();
            assert_eq!(same.event_type(), envelope.event_type());
            assert_eq!(same.payload_json(), payload.trim_ascii());
            envelope
                .payload::<serde_json::Value>()
                .map(drop)
                .unwrap_or_default();
        }
    });
}

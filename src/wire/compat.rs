//! `alkpubsub/1`: one JSON envelope a frame, `{"type","id","payload"}`.
//!
//! A frame of length zero carries nothing. `id` and `payload` may be missing (then they are empty and
//! `null`), and fields that we do not know are passed over, so that clients can grow.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use n0_error::{e, stack_error};
use serde::{Deserialize, de::Error};
use serde_json::value::RawValue;

use super::framing::PREFIX;
use crate::event::{Envelope, EnvelopeError};

/// The protocol's name in the TLS handshake.
pub(crate) const ALPN: &[u8] = b"alkpubsub/1";

/// A frame of no length: it opens a stream, or says that the peer is there.
pub(crate) const EMPTY_FRAME: Bytes = Bytes::from_static(&[0; PREFIX]);

/// A frame is not an envelope.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum CompatError {
    /// It is not a JSON object with a text `type`, and perhaps a text `id` and a `payload`.
    #[error("a frame is not a JSON envelope with type, id and payload")]
    NotAnEnvelope {
        /// What the parser says.
        #[error(std_err)]
        source: serde_json::Error,
    },
    /// Its type or id breaks its bounds.
    #[error("a frame has an envelope that is out of bounds")]
    Bounds {
        /// Which one.
        source: EnvelopeError,
    },
}

/// The fields of an envelope in JSON.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "type", borrow)]
    event_type: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

/// Reads one frame that is not empty.
pub(crate) fn decode(frame: &[u8]) -> Result<Envelope, CompatError> {
    // A list of the fields would do for serde.
    if frame.trim_ascii_start().first() != Some(&b'{') {
        let source = serde_json::Error::custom("expected an object");
        return Err(e!(CompatError::NotAnEnvelope, source));
    }
    let fields: Fields<'_> =
        serde_json::from_slice(frame).map_err(|source| e!(CompatError::NotAnEnvelope, source))?;
    let payload = fields.payload.map_or("null", RawValue::get);
    Envelope::from_parts(&fields.event_type, &fields.id, payload.as_bytes())
        .map_err(|source| e!(CompatError::Bounds, source))
}

/// One frame with its length prefix.
pub(crate) fn encode(envelope: &Envelope) -> Bytes {
    let mut out = BytesMut::with_capacity(PREFIX + envelope.size() + 48);
    out.put_u32(0);
    out.put_slice(b"{\"type\":");
    put_text(&mut out, envelope.event_type());
    out.put_slice(b",\"id\":");
    put_text(&mut out, envelope.id());
    out.put_slice(b",\"payload\":");
    out.put_slice(envelope.payload_json().as_bytes());
    out.put_u8(b'}');
    let len = (out.len() - PREFIX) as u32;
    if let Some(prefix) = out.first_chunk_mut::<PREFIX>() {
        *prefix = len.to_be_bytes();
    }
    out.freeze()
}

fn put_text(out: &mut BytesMut, text: &str) {
    // Text always serialises.
    let _ = serde_json::to_writer(out.writer(), text);
}

/// How much longer a frame may be than the largest event: room for names, escaped, and braces.
pub(crate) const FRAME_OVERHEAD: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_envelope_reads_back(t in ".{1,40}", id in ".{0,40}", payload: Vec<String>) {
            let envelope = Envelope::new(&t, &payload).unwrap().with_id(&id).unwrap();
            let frame = encode(&envelope);
            let (prefix, json) = frame.split_at(PREFIX);
            prop_assert_eq!(u32::from_be_bytes(prefix.try_into().unwrap()) as usize, json.len());
            prop_assert_eq!(decode(json).unwrap(), envelope);
        }
    }

    fn real() -> Vec<(&'static str, Vec<u8>)> {
        [
            (
                "ours",
                r#"{"type":"price.tea","id":"7","payload":{"pence":[1.50,null]}}"#,
            ),
            (
                "escaped",
                r#"{"type":"a\u0062\n","id":"\"","payload":"\ud83d\ude00"}"#,
            ),
            ("short", r#" {"payload":-0.1e+9,"type":"ping"}"#),
            ("more", r#"{"type":"ping","seen":[{}],"payload":null}"#),
            ("bad-list", r#"["ping","",1]"#),
            ("bad-deep", "{\"type\":\"t\",\"payload\":[[[[[[[[[[[["),
            ("bad-twice", r#"{"type":"t","type":"u","payload":1}"#),
        ]
        .map(|(name, text)| (name, text.as_bytes().to_vec()))
        .into()
    }

    crate::fuzz::decoder!(compat, real(), |bytes| {
        let Ok(envelope) = decode(bytes) else { return };
        assert!(!envelope.event_type().is_empty());
        let frame = encode(&envelope);
        assert_eq!(decode(&frame[PREFIX..]).unwrap(), envelope);
        let body = envelope.body().clone();
        assert_eq!(Envelope::from_body(body).unwrap(), envelope);
    });

    #[test]
    fn a_plain_client_may_leave_out_id_and_payload() {
        let envelope = decode(br#"{"type":"ping","more":1}"#).unwrap();
        assert_eq!(
            (
                envelope.event_type(),
                envelope.id(),
                envelope.payload_json()
            ),
            ("ping", "", "null")
        );
    }

    #[test]
    fn frames_that_are_not_envelopes_are_refused() {
        for bad in [
            &b"{"[..],
            b"[]",
            br#"["t","",1]"#,
            b"{}",
            b"\"x\"",
            br#"{"type":1}"#,
            br#"{"type":"t","id":7}"#,
            br#"{"type":"t","payload":}"#,
            br#"{"type":""}"#,
            b"{\"type\":\"\xff\"}",
        ] {
            assert!(decode(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}

//! What is sent: [`Envelope`], and typed events over it.
//!
//! An envelope is `{ type, id, payload }`. It holds one immutable buffer in the form that travels
//! ([`wire::body`](crate::wire)), so an event is serialised once, at the edge where it is made, and
//! cloning or forwarding it copies no payload. Delivery (order, positions) is not its business.

use std::fmt;

use bytes::Bytes;
use n0_error::{e, stack_error};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, ser::SerializeStruct,
};
use serde_json::value::RawValue;

use crate::wire::body::{self, BodyError, Layout};

/// The longest type of an event, in bytes.
pub const MAX_TYPE_LEN: usize = 1024;
/// The longest id of an event, in bytes.
pub const MAX_ID_LEN: usize = 1024;
// A body's layout counts up to where the payload begins.
const _: () = assert!(MAX_TYPE_LEN + MAX_ID_LEN < u16::MAX as usize / 2);

/// One event: a type, an id and a JSON payload.
///
/// The type is what listeners choose by; it is not empty and at most [`MAX_TYPE_LEN`] bytes. The id
/// is the application's own (a key, a correlation id, or nothing) and at most [`MAX_ID_LEN`] bytes.
/// The payload is JSON text and stays as it was written from dispatch to listener.
///
/// Cloning is cheap: clones share one buffer.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    body: Bytes,
    layout: Layout,
}

/// An envelope could not be made.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// The type is empty.
    #[error("the type of an event is not empty")]
    EmptyType {},
    /// The type is too long.
    #[error(
        "the type of an event has at most {} bytes, this one {len}",
        MAX_TYPE_LEN
    )]
    TypeTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The id is too long.
    #[error("the id of an event has at most {} bytes, this one {len}", MAX_ID_LEN)]
    IdTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The payload is not JSON, or its type could not be serialised to JSON.
    #[error("the payload of an event is JSON")]
    NotJson {
        /// What the parser or serialiser says.
        #[error(std_err)]
        source: serde_json::Error,
    },
    /// The bytes are not an envelope.
    #[error("these bytes are not an encoded envelope")]
    Malformed {
        /// What is wrong with them.
        source: BodyError,
    },
}

/// A payload is not of the type that was asked for.
#[stack_error(derive, add_meta)]
#[error("the payload of an event of type {event_type:?} does not decode")]
pub struct DecodeError {
    /// The type of the event.
    pub event_type: String,
    /// What the parser says.
    #[error(std_err)]
    pub source: serde_json::Error,
}

impl Envelope {
    /// Makes an envelope of `event_type` with an empty id and `payload` serialised to JSON.
    ///
    /// # Errors
    ///
    /// If the type is empty or too long, or the payload does not serialise.
    pub fn new(event_type: &str, payload: &impl Serialize) -> Result<Self, EnvelopeError> {
        let json =
            serde_json::to_vec(payload).map_err(|source| e!(EnvelopeError::NotJson, source))?;
        Self::from_parts(event_type, "", &json)
    }

    /// Makes an envelope from JSON text, which is kept as it is.
    ///
    /// # Errors
    ///
    /// If type or id break their bounds, or `json` is not one JSON value.
    pub fn from_json(event_type: &str, id: &str, json: &str) -> Result<Self, EnvelopeError> {
        check_json(json)?;
        Self::from_parts(event_type, id, json.trim_ascii().as_bytes())
    }

    /// The same event with another id.
    ///
    /// # Errors
    ///
    /// If the id is longer than [`MAX_ID_LEN`].
    pub fn with_id(&self, id: &str) -> Result<Self, EnvelopeError> {
        Self::from_parts(self.event_type(), id, self.payload_json().as_bytes())
    }

    /// `json` is known to be JSON.
    pub(crate) fn from_parts(
        event_type: &str,
        id: &str,
        json: &[u8],
    ) -> Result<Self, EnvelopeError> {
        check_names(event_type, id)?;
        let (body, layout) = body::encode(event_type, id, json);
        Ok(Self { body, layout })
    }

    /// Reads an envelope from its travelling form, which a peer wrote. Copies nothing.
    pub(crate) fn from_body(body: Bytes) -> Result<Self, EnvelopeError> {
        let parsed = body::parse(&body).map_err(|source| e!(EnvelopeError::Malformed, source))?;
        let (layout, [event_type, id, payload]) = parsed;
        check_names(event_type, id)?;
        check_json(payload)?;
        Ok(Self { body, layout })
    }

    /// The travelling form.
    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }

    /// What listeners choose by.
    pub fn event_type(&self) -> &str {
        self.layout.event_type(&self.body)
    }

    /// The application's own id; may be empty.
    pub fn id(&self) -> &str {
        self.layout.id(&self.body)
    }

    /// The payload as JSON text, as its sender wrote it.
    pub fn payload_json(&self) -> &str {
        self.layout.payload(&self.body)
    }

    /// The payload as a value of `T`.
    ///
    /// # Errors
    ///
    /// If the JSON is not of that shape.
    pub fn payload<'a, T: Deserialize<'a>>(&'a self) -> Result<T, DecodeError> {
        serde_json::from_str(self.payload_json()).map_err(|source| {
            e!(DecodeError {
                event_type: self.event_type().to_owned(),
                source
            })
        })
    }

    /// What the event weighs in a log or a queue, in bytes.
    pub fn size(&self) -> usize {
        self.body.len()
    }
}

fn check_names(event_type: &str, id: &str) -> Result<(), EnvelopeError> {
    if event_type.is_empty() {
        return Err(e!(EnvelopeError::EmptyType));
    }
    if event_type.len() > MAX_TYPE_LEN {
        return Err(e!(EnvelopeError::TypeTooLong {
            len: event_type.len()
        }));
    }
    if id.len() > MAX_ID_LEN {
        return Err(e!(EnvelopeError::IdTooLong { len: id.len() }));
    }
    Ok(())
}

fn check_json(json: &str) -> Result<(), EnvelopeError> {
    serde_json::from_str::<&RawValue>(json)
        .map(|_| ())
        .map_err(|source| e!(EnvelopeError::NotJson, source))
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("type", &self.event_type())
            .field("id", &self.id())
            .field("payload_len", &self.payload_json().len())
            .finish()
    }
}

/// As `{"type":…,"id":…,"payload":…}`, the payload unparsed. For JSON only.
impl Serialize for Envelope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let payload: &RawValue =
            serde_json::from_str(self.payload_json()).map_err(serde::ser::Error::custom)?;
        let mut fields = serializer.serialize_struct("Envelope", 3)?;
        fields.serialize_field("type", self.event_type())?;
        fields.serialize_field("id", self.id())?;
        fields.serialize_field("payload", payload)?;
        fields.end()
    }
}

/// From `{"type":…,"id"?:…,"payload"?:…}`; other fields are passed over. For JSON only.
impl<'de> Deserialize<'de> for Envelope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            #[serde(rename = "type")]
            event_type: String,
            #[serde(default)]
            id: String,
            #[serde(default)]
            payload: Option<Box<RawValue>>,
        }
        let fields = Fields::deserialize(deserializer)?;
        let payload = fields.payload.as_deref().map_or("null", RawValue::get);
        Self::from_parts(&fields.event_type, &fields.id, payload.as_bytes())
            .map_err(serde::de::Error::custom)
    }
}

/// A Rust type that travels as the payload of one type of event.
///
/// ```
/// use iroh_hub::TypedEvent;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct OrderCreated {
///     order: u64,
/// }
///
/// impl TypedEvent for OrderCreated {
///     const TYPE: &'static str = "order.created";
/// }
/// ```
pub trait TypedEvent: Serialize + DeserializeOwned + Send + 'static {
    /// The type of the envelopes that carry it.
    const TYPE: &'static str;

    /// Puts the event into an envelope with an empty id.
    ///
    /// # Errors
    ///
    /// If it does not serialise to JSON, or [`TYPE`](Self::TYPE) breaks the bounds of a type.
    fn to_envelope(&self) -> Result<Envelope, EnvelopeError> {
        Envelope::new(Self::TYPE, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_stays_as_it_was_written() {
        let json = r#"{"b": 1.0, "a":[ 2e3 ]}"#;
        let envelope = Envelope::from_json("t", "7", json).unwrap();
        assert_eq!(envelope.payload_json(), json);
        let text = serde_json::to_string(&envelope).unwrap();
        assert_eq!(text, format!(r#"{{"type":"t","id":"7","payload":{json}}}"#));
        assert_eq!(serde_json::from_str::<Envelope>(&text).unwrap(), envelope);
    }

    #[test]
    fn names_and_payloads_out_of_bounds_are_refused() {
        let long = "x".repeat(MAX_TYPE_LEN + 1);
        assert!(matches!(
            Envelope::from_json("", "", "1"),
            Err(EnvelopeError::EmptyType { .. })
        ));
        assert!(matches!(
            Envelope::from_json(&long, "", "1"),
            Err(EnvelopeError::TypeTooLong { .. })
        ));
        assert!(matches!(
            Envelope::from_json("t", &long, "1"),
            Err(EnvelopeError::IdTooLong { .. })
        ));
        for bad in ["", "{", "1 2", "nope"] {
            assert!(matches!(
                Envelope::from_json("t", "", bad),
                Err(EnvelopeError::NotJson { .. })
            ));
        }
    }

    #[test]
    fn a_payload_of_another_shape_is_an_error_that_names_the_type() {
        let envelope = Envelope::new("price", &"high").unwrap();
        let err = envelope.payload::<u32>().unwrap_err();
        assert!(err.to_string().contains("price"), "{err}");
        assert_eq!(envelope.payload::<String>().unwrap(), "high");
    }
}

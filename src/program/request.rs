//! What one line of stdin asks for.

use std::borrow::Cow;

use anyhow::{Context, bail};
use iroh::EndpointId;
use iroh_hub::Envelope;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::{args::InputFormat, input::Line};

/// The type of an event that is a line of text.
const LINE: &str = "line";

/// How long a line may be: longer than the event that it describes by names, quotes and braces.
pub(super) fn line_limit(max_event_bytes: usize) -> usize {
    max_event_bytes + 16 * 1024
}

/// An event, and to whom it goes if not to all.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) event: Envelope,
    pub(super) to: Option<EndpointId>,
    /// It need not wait for the broadcasts before it.
    pub(super) overtake: bool,
}

impl Request {
    /// Reads a line as the format says.
    pub(super) fn read(line: &Line<'_>, format: InputFormat) -> anyhow::Result<Self> {
        let text = match *line {
            Line::Text(text) => text,
            Line::TooLong => bail!("it is longer than an event can be"),
            Line::NotUtf8 => bail!("it is not UTF-8"),
        };
        match format {
            InputFormat::Lines => Ok(Self {
                event: Envelope::new(LINE, &text)?,
                to: None,
                overtake: false,
            }),
            InputFormat::Json => Self::from_json(text),
        }
    }

    fn from_json(text: &str) -> anyhow::Result<Self> {
        // Serde would take an array for the fields too.
        if !text.trim_ascii_start().starts_with('{') {
            bail!("it is not a JSON object");
        }
        let fields: Fields<'_> = serde_json::from_str(text).map_err(|error| {
            // There is one line only.
            let words = error.to_string();
            anyhow::anyhow!("{}", words.replace(" at line 1 column ", " at column "))
        })?;
        let id = fields.id.as_deref().unwrap_or_default();
        let to = match fields.to {
            Some(to) => Some(to.parse().context("\"to\" is not an endpoint id")?),
            None => None,
        };
        if fields.overtake && to.is_none() {
            bail!("\"overtake\" is for an event to one endpoint; add \"to\"");
        }
        Ok(Self {
            event: Envelope::from_json(&fields.event_type, id, fields.payload.get())?,
            to,
            overtake: fields.overtake,
        })
    }
}

/// What a hub or spoke prints about an event is passed over, so that one's output is the other's
/// input; anything else is a mistake, perhaps in the spelling of `to`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    #[serde(rename = "type", borrow)]
    event_type: Cow<'a, str>,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    to: Option<Cow<'a, str>>,
    #[serde(default)]
    overtake: bool,
    #[serde(default, rename = "position")]
    _position: IgnoredAny,
    #[serde(default, rename = "via")]
    _via: IgnoredAny,
    #[serde(default, rename = "targeted")]
    _targeted: IgnoredAny,
    #[serde(default, rename = "from")]
    _from: IgnoredAny,
    #[serde(default, rename = "spoke")]
    _spoke: IgnoredAny,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> anyhow::Result<Request> {
        Request::read(&Line::Text(text), InputFormat::Json)
    }

    #[test]
    fn a_text_becomes_the_payload_of_a_line() {
        for text in ["", "a \"b\"\t\u{7f}é", "{\"type\":\"t\"}"] {
            let request = Request::read(&Line::Text(text), InputFormat::Lines).unwrap();
            assert_eq!(request.event.event_type(), "line");
            assert_eq!(request.event.payload::<String>().unwrap(), text);
            assert_eq!(request.to, None);
        }
    }

    #[test]
    fn json_says_type_and_payload_and_perhaps_id_and_recipient() {
        let request = json(r#"{"type":"a\u0062","payload":{"x": 1.0}}"#).unwrap();
        assert_eq!(request.event.event_type(), "ab");
        assert_eq!(request.event.payload_json(), r#"{"x": 1.0}"#);
        assert_eq!(request.event.id(), "");
        let to = iroh::SecretKey::from_bytes(&[7; 32]).public();
        let text = format!(r#" {{"to":"{to}","id":"7","payload":null,"type":"t"}} "#);
        let request = json(&text).unwrap();
        assert_eq!(request.to, Some(to));
        assert_eq!(request.event.id(), "7");
        assert_eq!(request.event.payload_json(), "null");
        assert!(!request.overtake);
        let text = format!(r#"{{"to":"{to}","payload":0,"type":"t","overtake":true}}"#);
        assert!(json(&text).unwrap().overtake);
    }

    #[test]
    fn what_one_prints_the_other_reads() {
        json(r#"{"position":{"epoch":"00","offset":7},"type":"t","id":"","payload":1,"via":"gossip"}"#).unwrap();
        json(r#"{"from":"x","spoke":3,"type":"t","id":"","payload":1}"#).unwrap();
    }

    #[test]
    fn a_bad_line_is_an_error_that_says_what_is_wrong() {
        for (text, says) in [
            ("", "not a JSON object"),
            ("[\"t\",1]", "not a JSON object"),
            ("{\"type\":\"t\"", "at column"),
            ("{\"type\":\"t\",\"payload\":1} x", "at column"),
            ("{\"type\":\"t\"}", "payload"),
            ("{\"payload\":1}", "type"),
            ("{\"type\":1,\"payload\":1}", "string"),
            ("{\"type\":\"\",\"payload\":1}", "type"),
            ("{\"type\":\"t\",\"payload\":1,\"too\":\"x\"}", "too"),
            ("{\"type\":\"t\",\"payload\":1,\"to\":\"x\"}", "endpoint id"),
            (
                "{\"type\":\"t\",\"payload\":1,\"overtake\":true}",
                "one endpoint",
            ),
        ] {
            let error = format!("{:#}", json(text).unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
        }
        for line in [Line::TooLong, Line::NotUtf8] {
            Request::read(&line, InputFormat::Lines).unwrap_err();
        }
    }
    fn real() -> Vec<(&'static str, Vec<u8>)> {
        let to = iroh::SecretKey::from_bytes(&[7; 32]).public();
        [
            ("event", r#"{"type":"a\u0062","payload":{"x": 1.0}}"#.to_owned()),
            ("to", format!(r#" {{"to":"{to}","id":"7","payload":null,"type":"t","overtake":true}} "#)),
            (
                "printed",
                r#"{"position":{"epoch":"00","offset":7},"type":"t","id":"","payload":1,"via":"gossip"}"#.to_owned(),
            ),
            ("bad-array", "[\"t\",1]".to_owned()),
            ("bad-twice", r#"{"type":"t","type":"t","payload":1}"#.to_owned()),
        ]
        .map(|(name, text)| (name, text.into_bytes()))
        .into()
    }

    crate::fuzz::decoder!(request, real(), |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        let line = Line::Text(text);
        let request = Request::read(&line, InputFormat::Lines).unwrap();
        assert_eq!(request.event.payload::<String>().unwrap(), text);
        match Request::read(&line, InputFormat::Json) {
            Ok(request) => {
                assert!(request.to.is_some() || !request.overtake);
                // Serialised, the event is a line that says the same.
                let again = serde_json::to_string(&request.event).unwrap();
                let again = Request::read(&Line::Text(&again), InputFormat::Json).unwrap();
                assert_eq!(again.event, request.event);
            }
            Err(error) => assert!(!format!("{error:#}").is_empty()),
        }
    });
}

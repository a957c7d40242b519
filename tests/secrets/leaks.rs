//! Finds secrets in what was said, however they are written.

use std::collections::{BTreeSet, HashMap};

use data_encoding::{BASE32_NOPAD, BASE64, BASE64URL, HEXLOWER};

/// How much of a secret may show, in bytes, before it is found.
const WINDOW: usize = 8;

/// What nobody may be told.
#[derive(Clone, Default)]
pub struct Secrets(Vec<(String, Vec<u8>)>);

impl Secrets {
    pub fn add(&mut self, name: impl Into<String>, secret: impl AsRef<[u8]>) {
        self.0.push((name.into(), secret.as_ref().to_vec()));
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// The secrets of which eight bytes in a row show in this text, and how they are written there.
    pub fn shown_in(&self, text: &[u8]) -> BTreeSet<String> {
        let mut needles: HashMap<[u8; WINDOW], Vec<(Vec<u8>, String)>> = HashMap::new();
        for (name, secret) in &self.0 {
            for (form, needle) in needles_of(secret) {
                let first = *needle.first_chunk().expect("needles are longer");
                let found = format!("{name} as {form}");
                needles.entry(first).or_default().push((needle, found));
            }
        }
        // Pretty Debug puts each byte on a line of its own; hexadecimal digits may be capitals.
        let narrow: Vec<u8> = text
            .iter()
            .copied()
            .filter(|byte| !byte.is_ascii_whitespace())
            .collect();
        // Most of a text begins nothing; asking this first is what makes the search quick.
        let mut begins = vec![false; 1 << 16];
        let begin = |first: &[u8; WINDOW]| usize::from(u16::from_le_bytes([first[0], first[1]]));
        for first in needles.keys() {
            begins[begin(first)] = true;
        }
        let mut shown = BTreeSet::new();
        for text in [text, &narrow, &narrow.to_ascii_lowercase()] {
            for (at, window) in text.windows(WINDOW).enumerate() {
                let Some(first) = window.first_chunk().filter(|first| begins[begin(first)]) else {
                    continue;
                };
                for (needle, found) in needles.get(first).into_iter().flatten() {
                    if text[at..].starts_with(needle) {
                        shown.insert(found.clone());
                    }
                }
            }
        }
        shown
    }
}

/// The ways in which eight bytes in a row of a secret may be written.
fn needles_of(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut needles = Vec::new();
    for window in secret.windows(WINDOW) {
        needles.push(("bytes", window.to_vec()));
        needles.push(("hex", HEXLOWER.encode(window).into_bytes()));
        let list = |form: fn(&u8) -> String| {
            let bytes: Vec<String> = window.iter().map(form).collect();
            bytes.join(",").into_bytes()
        };
        needles.push(("a list", list(|byte| format!("{byte}"))));
        needles.push(("a list of hex", list(|byte| format!("{byte:x}"))));
        needles.push((
            "a list of hex of two digits",
            list(|byte| format!("{byte:02x}")),
        ));
        needles.push(("a list of hex with 0x", list(|byte| format!("{byte:#x}"))));
        let escaped = format!("{:?}", bytes::Bytes::copy_from_slice(window));
        let escaped = escaped.trim_start_matches("b\"").trim_end_matches('"');
        needles.push(("an escaped text", escaped.as_bytes().to_vec()));
    }
    // A digit of these is part of two bytes, so it depends on what comes before; secrets are mostly written
    // whole, or behind other bytes.
    for before in 0..5 {
        let padded = [&vec![0; before], secret].concat();
        let inner = |text: String, digits_a_byte: f32| -> Vec<u8> {
            let skip = (before as f32 * digits_a_byte).ceil() as usize;
            let whole = (secret.len() as f32 * digits_a_byte) as usize - 1;
            text.into_bytes()[skip..skip + whole].to_vec()
        };
        let base32 = inner(BASE32_NOPAD.encode(&padded).to_lowercase(), 1.6);
        needles.extend(base32.windows(13).map(|part| ("base32", part.to_vec())));
        for encoding in [BASE64, BASE64URL] {
            let base64 = inner(encoding.encode(&padded), 4.0 / 3.0);
            needles.extend(base64.windows(11).map(|part| ("base64", part.to_vec())));
        }
    }
    // Spaces are gone from what is searched, and so they are from what is searched for.
    needles
        .into_iter()
        .map(|(form, needle)| {
            let keep = |byte: &u8| form == "bytes" || !byte.is_ascii_whitespace();
            (form, needle.into_iter().filter(keep).collect::<Vec<_>>())
        })
        .filter(|(_, needle)| needle.len() >= WINDOW)
        .collect()
}

#[test]
fn a_secret_is_found_however_it_is_written() {
    #[derive(Debug)]
    #[allow(dead_code, reason = "shown")]
    struct Holds {
        key: [u8; 32],
    }
    let key: [u8; 32] = std::array::from_fn(|n| (n as u8).wrapping_mul(37).wrapping_add(11));
    let mut secrets = Secrets::default();
    secrets.add("the key", key);
    let holds = Holds { key };
    for text in [
        HEXLOWER.encode(&key),
        data_encoding::HEXUPPER.encode(&key),
        format!("key={}…", HEXLOWER.encode(&key[3..12])),
        BASE32_NOPAD.encode(&key),
        BASE32_NOPAD.encode(&key).to_lowercase(),
        BASE64.encode(&key),
        BASE64URL.encode(&[&b"ab"[..], &key].concat()),
        format!("{holds:?}"),
        format!("{holds:#?}"),
        format!("{holds:x?}"),
        format!("{holds:02X?}"),
        format!("{:?}", bytes::Bytes::copy_from_slice(&key)),
    ] {
        let text = format!("before {text} after");
        assert!(!secrets.shown_in(text.as_bytes()).is_empty(), "{text}");
    }
    assert!(
        !secrets
            .shown_in(&[b"x", &key[..], b"y"].concat())
            .is_empty()
    );
    let innocent = format!("{} {:?}", HEXLOWER.encode(&[7; 64]), [1; 99]);
    assert!(secrets.shown_in(innocent.as_bytes()).is_empty());
}

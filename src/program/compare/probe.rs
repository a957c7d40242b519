//! The payload of an event that `compare` sends: who it is, when it left, and the body.
//!
//! It is a JSON array, `[round, index, sent_ns, body]`, so that a generated event of 64 B still has room for a body.

use serde::{Deserialize, Serialize};

/// Bytes that an event needs at least: three numbers, and a body that may be empty.
pub(crate) const MIN_SIZE: u64 = 48;

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Probe<'a>(
    /// The phase of the cell that it belongs to.
    pub(crate) u32,
    /// Its number within the phase, from 0.
    pub(crate) u64,
    /// When the hub's process sent it, by [`clock_ns`](super::usage::clock_ns).
    pub(crate) u64,
    /// A line of the file, or filling.
    pub(crate) &'a str,
);

/// What a spoke looks at. The body is skipped, not copied.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub(crate) struct Header(
    pub(crate) u32,
    pub(crate) u64,
    pub(crate) u64,
    /// The body.
    pub(crate) serde::de::IgnoredAny,
);

impl Header {
    /// Reads an event's payload; `None` if it is not one of ours.
    pub(crate) fn read(payload: &str) -> Option<Self> {
        serde_json::from_str(payload).ok()
    }
}

/// The bytes of an event with an empty body.
pub(crate) fn overhead(round: u32, index: u64, sent_ns: u64) -> usize {
    let digits = |n: u64| n.checked_ilog10().unwrap_or(0) as usize + 1;
    // Brackets, three commas, two quotes.
    digits(round.into()) + digits(index) + digits(sent_ns) + 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_from_an_encoded_probe() {
        let text = serde_json::to_string(&Probe(2, 7, 123, "a \"line\"")).expect("encodes");
        let header = Header::read(&text).expect("reads");
        assert_eq!((header.0, header.1, header.2), (2, 7, 123));
        for bad in ["", "{}", "[1,2]", "[1,2,3]", "[-1,2,3,\"\"]", "null"] {
            assert_eq!(Header::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_overhead_is_what_an_empty_body_takes() {
        for (round, index, at) in [(0, 0, 0), (3, 10, 99), (u32::MAX, 1_000_000, u64::MAX)] {
            let text = serde_json::to_string(&Probe(round, index, at, "")).expect("encodes");
            assert_eq!(text.len(), overhead(round, index, at));
        }
        assert!(overhead(99, 10_000_000, u64::MAX) as u64 <= MIN_SIZE);
    }
}

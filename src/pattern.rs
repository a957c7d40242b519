//! Which types of event a listener wants.

use std::{convert::Infallible, fmt, str::FromStr, sync::Arc};

/// Matches types of events: a type by its name, or with `*` for any run of characters.
///
/// `order.created` matches that type only, `order.*` every type that begins with `order.`
/// (`order.created`, `order.item.added`), `*.failed` every type that ends so, and `*` every type.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// The pattern with this text.
    pub fn new(pattern: impl AsRef<str>) -> Self {
        Self(pattern.as_ref().into())
    }

    /// Matches every event.
    pub fn any() -> Self {
        Self::new("*")
    }

    /// Whether it stands for every type, as most do: then an event's type need not be looked at.
    pub(crate) fn is_any(&self) -> bool {
        &*self.0 == "*"
    }

    /// Whether the pattern stands for `event_type`.
    pub fn matches(&self, event_type: &str) -> bool {
        let mut pieces = self.0.split('*');
        let first = pieces.next().unwrap_or_default();
        let Some(mut rest) = event_type.strip_prefix(first) else {
            return false;
        };
        let Some(last) = pieces.next_back() else {
            return rest.is_empty();
        };
        // The earliest place for each inner piece leaves the most room for those behind it.
        for piece in pieces {
            let Some(at) = rest.find(piece) else {
                return false;
            };
            rest = rest.get(at + piece.len()..).unwrap_or_default();
        }
        rest.ends_with(last)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Pattern {
    type Err = Infallible;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(Self::new(s))
    }
}

impl From<&str> for Pattern {
    fn from(pattern: &str) -> Self {
        Self::new(pattern)
    }
}

impl From<String> for Pattern {
    fn from(pattern: String) -> Self {
        Self::new(pattern)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Says the same by trying every way to match, for each beginning of the text at once.
    fn slow_match(pattern: &[u8], text: &[u8]) -> bool {
        let mut reached = vec![false; text.len() + 1];
        reached[0] = true;
        for p in pattern {
            let mut next = vec![false; text.len() + 1];
            for at in 0..=text.len() {
                next[at] = match p {
                    b'*' => reached[at] || (at > 0 && next[at - 1]),
                    p => at > 0 && reached[at - 1] && text[at - 1] == *p,
                };
            }
            reached = next;
        }
        reached[text.len()]
    }

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        for (pattern, yes, no) in [
            ("order.created", "order.created", "order.created2"),
            ("order.*", "order.item.added", "orders"),
            ("*.failed", "job.failed", "failed"),
            ("a*b*c", "aXbYbc", "aXbYb"),
            ("a*a", "aa", "a"),
        ] {
            assert!(Pattern::new(pattern).matches(yes), "{pattern} {yes}");
            assert!(!Pattern::new(pattern).matches(no), "{pattern} {no}");
        }
        assert!(Pattern::any().matches("") && Pattern::any().is_any());
        assert!(!Pattern::new("").is_any() && !Pattern::new("*a").is_any());
    }

    proptest! {
        #[test]
        fn matching_agrees_with_trying_every_way(pattern in "[ab*]{0,8}", text in "[ab]{0,8}") {
            prop_assert_eq!(
                Pattern::new(&pattern).matches(&text),
                slow_match(pattern.as_bytes(), text.as_bytes())
            );
        }
    }
    fn real() -> Vec<(&'static str, Vec<u8>)> {
        let pair = |pattern: &str, text: &str| format!("{pattern}\n{text}").into_bytes();
        vec![
            ("name", pair("order.created", "order.created")),
            ("begins", pair("order.*", "order.item.added")),
            ("ends", pair("*.failed", "job.failed")),
            ("stars", pair("a**b*é*c", "aXbYébc")),
        ]
    }

    crate::fuzz::decoder!(pattern, real(), |bytes| {
        let text = String::from_utf8_lossy(bytes.get(..200).unwrap_or(bytes));
        let (pattern, text) = text.split_once('\n').unwrap_or((&text, ""));
        assert_eq!(
            Pattern::new(pattern).matches(text),
            slow_match(pattern.as_bytes(), text.as_bytes())
        );
    });
}

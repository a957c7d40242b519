//! The documented lines: what a spoke prints, and what a hub names in its file of receipts.

use std::{
    collections::hash_map::DefaultHasher,
    fmt,
    hash::{Hash, Hasher},
    path::Path,
};

use serde::Deserialize;
use serde_json::value::RawValue;

/// Where a broadcast stands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    pub epoch: String,
    pub offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.offset)
    }
}

/// What one life of a process left behind.
#[derive(Clone, Debug)]
pub struct Life {
    pub text: Vec<u8>,
    /// Whether it was killed: only then may it end in half a line, and the next life begin with the
    /// line that this one was writing.
    pub killed: bool,
}

impl Life {
    pub fn ended(text: impl Into<Vec<u8>>) -> Self {
        Self {
            text: text.into(),
            killed: false,
        }
    }

    pub fn killed(text: impl Into<Vec<u8>>) -> Self {
        Self {
            text: text.into(),
            killed: true,
        }
    }

    /// A life whose output is in a file.
    pub fn read(path: &Path, killed: bool) -> Self {
        let text = std::fs::read(path);
        Self {
            text: text.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
            killed,
        }
    }

    /// The lines that are whole, and those that are none.
    /// Whether it wrote nothing.
    #[allow(
        dead_code,
        reason = "not every test that is built with the checker asks"
    )]
    pub fn is_empty(&self) -> bool {
        self.lines().next().is_none()
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = Result<Line, String>> {
        let whole = match self.text.iter().rposition(|byte| *byte == b'\n') {
            Some(last) if self.killed => &self.text[..=last],
            None if self.killed => &[],
            _ => &self.text[..],
        };
        whole
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| match line.strip_suffix(b"\n") {
                Some(line) => read(line).ok_or_else(|| shorten(line)),
                None => Err(shorten(line)),
            })
    }
}

fn shorten(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.chars().take(200).collect()
}

/// What an event carries: its type, id and payload, as they were printed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Content(u64);

/// The way that an event came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Via {
    #[default]
    Direct,
    Gossip,
    Repair,
}

/// One line.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Line {
    /// A broadcast, or a receipt. Plain spokes print no position.
    Event {
        position: Option<Position>,
        content: Content,
        via: Via,
    },
    /// An event to this spoke alone.
    Targeted,
    Missed {
        from: Position,
        to: Position,
    },
    Lagged {
        events: u64,
    },
    /// The link to the hub is lost.
    Reconnecting,
    /// The spoke has caught up; whether it says that nothing is missing.
    Recovered {
        wholly: bool,
    },
    /// Some other status.
    Status,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventLine<'a> {
    position: Option<Position>,
    r#type: String,
    id: String,
    #[serde(borrow)]
    payload: &'a RawValue,
    via: Option<Via>,
    #[serde(default)]
    targeted: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MissedLine {
    missed: Range,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    from: Position,
    to: Position,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LaggedLine {
    lagged: Lagged,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lagged {
    events: u64,
}

/// Each status has some fields more.
#[derive(Deserialize)]
struct StatusLine<'a> {
    status: &'a str,
    wholly: Option<bool>,
}

fn read(line: &[u8]) -> Option<Line> {
    if let Ok(event) = serde_json::from_slice::<EventLine<'_>>(line) {
        if event.targeted {
            return event.position.is_none().then_some(Line::Targeted);
        }
        let mut hasher = DefaultHasher::new();
        (event.r#type, event.id, event.payload.get()).hash(&mut hasher);
        return Some(Line::Event {
            position: event.position,
            content: Content(hasher.finish()),
            via: event.via.unwrap_or_default(),
        });
    }
    if let Ok(MissedLine { missed }) = serde_json::from_slice(line) {
        return Some(Line::Missed {
            from: missed.from,
            to: missed.to,
        });
    }
    if let Ok(LaggedLine { lagged }) = serde_json::from_slice(line) {
        return Some(Line::Lagged {
            events: lagged.events,
        });
    }
    let status: StatusLine<'_> = serde_json::from_slice(line).ok()?;
    match (status.status, status.wholly) {
        ("recovered", Some(wholly)) => Some(Line::Recovered { wholly }),
        ("reconnecting", None) => Some(Line::Reconnecting),
        ("connected" | "closed", None) => Some(Line::Status),
        _ => None,
    }
}

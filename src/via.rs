//! By which path an event came: [`Via`]. A name only; nothing is decided by it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// By which path an event reached a spoke.
///
/// For people and figures: an event is the same whichever way it took. One that came in several parts
/// has the path of the part that completed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Via {
    /// The hub's stream to this spoke.
    Direct,
    /// The topic: passed on by other spokes.
    Gossip,
    /// Read again from the log, since the spoke had missed it.
    Repair,
}

impl Via {
    /// The name in lower case: `direct`, `gossip` or `repair`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Gossip => "gossip",
            Self::Repair => "repair",
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_written_as_it_is_shown() {
        for via in [Via::Direct, Via::Gossip, Via::Repair] {
            let json = serde_json::to_string(&via).unwrap();
            assert_eq!(json, format!("\"{via}\""));
            assert_eq!(serde_json::from_str::<Via>(&json).unwrap(), via);
        }
    }
}

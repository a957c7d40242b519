//! Where an event stands in the hub's log: [`Epoch`], offset, [`Position`].
//!
//! Only names for numbers. What lies at a position is the business of [`log`](crate::log).

use std::{fmt, str::FromStr};

use n0_error::{e, stack_error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One life of a hub's log.
///
/// Offsets of different epochs say nothing about each other. An epoch is drawn at random when a log
/// begins, so that two logs never share one; it is shown as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// Draws a new epoch.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The epoch as a number, for codecs.
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The epoch with this number.
    pub const fn from_u64(epoch: u64) -> Self {
        Self(epoch)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({self})")
    }
}

/// A text that is not an epoch.
#[stack_error(derive, add_meta)]
#[error("an epoch is 16 hexadecimal digits")]
pub struct ParseEpochError;

impl FromStr for Epoch {
    type Err = ParseEpochError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.len() != 16 || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(e!(ParseEpochError));
        }
        u64::from_str_radix(s, 16)
            .map(Self)
            .map_err(|_| e!(ParseEpochError))
    }
}

impl Serialize for Epoch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_u64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?
                .parse()
                .map_err(serde::de::Error::custom)
        } else {
            u64::deserialize(deserializer).map(Self)
        }
    }
}

/// The place of one broadcast event: which log, and the how-manieth event of it, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Position {
    /// The life of the log that `offset` counts in.
    pub epoch: Epoch,
    /// Counts events from 0, one each, without gaps.
    pub offset: u64,
}

impl Position {
    /// The position `offset` of `epoch`.
    pub const fn new(epoch: Epoch, offset: u64) -> Self {
        Self { epoch, offset }
    }

    /// The position after this one: where a reader that has this event goes on.
    pub const fn next(self) -> Self {
        Self {
            epoch: self.epoch,
            offset: self.offset.saturating_add(1),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_reads_back_what_it_prints() {
        for n in [0, 1, 0xdead_beef, u64::MAX] {
            let epoch = Epoch::from_u64(n);
            assert_eq!(epoch.to_string().parse::<Epoch>().unwrap(), epoch);
        }
        for bad in [
            "",
            "0",
            "+000000000000001",
            "00000000000000001",
            "g000000000000000",
        ] {
            assert!(bad.parse::<Epoch>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_position_is_readable_json() {
        let position = Position::new(Epoch::from_u64(255), 7);
        let json = serde_json::to_string(&position).unwrap();
        assert_eq!(json, r#"{"epoch":"00000000000000ff","offset":7}"#);
        assert_eq!(serde_json::from_str::<Position>(&json).unwrap(), position);
    }
    fn real() -> Vec<(&'static str, Vec<u8>)> {
        let position = Position::new(Epoch::from_u64(255), 7);
        vec![
            ("epoch", position.epoch.to_string().into_bytes()),
            ("json", serde_json::to_vec(&position).unwrap()),
            ("bytes", postcard::to_stdvec(&position).unwrap()),
        ]
    }

    crate::fuzz::decoder!(position, real(), |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes)
            && let Ok(epoch) = text.parse::<Epoch>()
        {
            assert_eq!(epoch.to_string(), text.to_ascii_lowercase());
        }
        if let Ok(position) = serde_json::from_slice::<Position>(bytes) {
            let again = serde_json::to_vec(&position).unwrap();
            assert_eq!(
                serde_json::from_slice::<Position>(&again).unwrap(),
                position
            );
        }
        if let Ok(position) = postcard::from_bytes::<Position>(bytes) {
            let again = postcard::to_stdvec(&position).unwrap();
            assert_eq!(postcard::from_bytes::<Position>(&again).unwrap(), position);
        }
    });
}

//! The codes with which connections and streams are closed, the same on every protocol.

use std::fmt;

use iroh::endpoint::{ApplicationClose, ConnectionError, VarInt};

/// Why one side closed a connection or a stream.
///
/// The number travels as QUIC's application error code, beside a readable reason.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum CloseCode {
    /// 0: nothing was said.
    Unspecified,
    /// 1: goodbye; the hub shuts down or the spoke leaves, and all is well.
    Goodbye,
    /// 2: the peer is not admitted.
    Refused,
    /// 3: a frame could not be read: truncated, not UTF-8, not JSON, of the wrong shape.
    BadFrame,
    /// 4: a frame or an event is longer than the limit.
    TooLarge,
    /// 5: the peer did not say in time what it had to say.
    TimedOut,
    /// 6: more streams or spokes than one peer may have.
    TooMany,
    /// 7: the spoke fell behind the log, and its protocol has no way to skip.
    FellBehind,
    /// 8: a newer link of the same spoke took over.
    Fenced,
    /// 9: no version of the protocol in common.
    Version,
    /// 10: the gossip connection did not prove its membership.
    NotAMember,
    /// 11: the connection is no longer needed (a former gossip neighbour).
    NotNeeded,
    /// 12: the peer broke the rules of the protocol.
    Misbehaved,
    /// 13: an error of our own.
    Internal,
    /// 14: the hub's log has begun a new epoch; the spoke connects again, with its position.
    NewEpoch,
    /// Any other number, from a peer that knows more codes than we do.
    Other(u64),
}

impl CloseCode {
    /// The code as the number that travels.
    pub const fn to_u64(self) -> u64 {
        match self {
            Self::Unspecified => 0,
            Self::Goodbye => 1,
            Self::Refused => 2,
            Self::BadFrame => 3,
            Self::TooLarge => 4,
            Self::TimedOut => 5,
            Self::TooMany => 6,
            Self::FellBehind => 7,
            Self::Fenced => 8,
            Self::Version => 9,
            Self::NotAMember => 10,
            Self::NotNeeded => 11,
            Self::Misbehaved => 12,
            Self::Internal => 13,
            Self::NewEpoch => 14,
            Self::Other(code) => code,
        }
    }

    /// The code with this number.
    pub const fn from_u64(code: u64) -> Self {
        match code {
            0 => Self::Unspecified,
            1 => Self::Goodbye,
            2 => Self::Refused,
            3 => Self::BadFrame,
            4 => Self::TooLarge,
            5 => Self::TimedOut,
            6 => Self::TooMany,
            7 => Self::FellBehind,
            8 => Self::Fenced,
            9 => Self::Version,
            10 => Self::NotAMember,
            11 => Self::NotNeeded,
            12 => Self::Misbehaved,
            13 => Self::Internal,
            14 => Self::NewEpoch,
            other => Self::Other(other),
        }
    }

    pub(crate) fn to_varint(self) -> VarInt {
        VarInt::from_u64(self.to_u64()).unwrap_or(VarInt::MAX)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Unspecified => "unspecified",
            Self::Goodbye => "goodbye",
            Self::Refused => "refused",
            Self::BadFrame => "bad frame",
            Self::TooLarge => "too large",
            Self::TimedOut => "timed out",
            Self::TooMany => "too many",
            Self::FellBehind => "fell behind",
            Self::Fenced => "fenced",
            Self::Version => "version",
            Self::NotAMember => "not a member",
            Self::NotNeeded => "not needed",
            Self::Misbehaved => "misbehaved",
            Self::Internal => "internal error",
            Self::NewEpoch => "new epoch",
            Self::Other(code) => return write!(f, "code {code}"),
        };
        f.write_str(name)
    }
}

/// How a link to a peer ended.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Closed {
    /// The peer closed it.
    ByPeer {
        /// Its code.
        code: CloseCode,
        /// Its words; at most about 1 KiB, and not to be trusted.
        reason: String,
    },
    /// We closed it.
    ByUs {
        /// Our code.
        code: CloseCode,
        /// Our words.
        reason: String,
    },
    /// It was lost: the peer is silent, restarted, or out of reach.
    Lost {
        /// What QUIC says.
        reason: String,
    },
}

impl Closed {
    pub(crate) fn by_us(code: CloseCode, reason: impl Into<String>) -> Self {
        Self::ByUs {
            code,
            reason: reason.into(),
        }
    }

    /// The code, if one was given.
    pub fn code(&self) -> Option<CloseCode> {
        match self {
            Self::ByPeer { code, .. } | Self::ByUs { code, .. } => Some(*code),
            Self::Lost { .. } => None,
        }
    }

    /// Whether one side said goodbye.
    pub fn is_goodbye(&self) -> bool {
        self.code() == Some(CloseCode::Goodbye)
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByPeer { code, reason } => write!(f, "closed by the peer ({code}): {reason}"),
            Self::ByUs { code, reason } => write!(f, "closed by us ({code}): {reason}"),
            Self::Lost { reason } => write!(f, "connection lost: {reason}"),
        }
    }
}

impl From<&ConnectionError> for Closed {
    fn from(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason }) => {
                Self::ByPeer {
                    code: CloseCode::from_u64(error_code.into_inner()),
                    reason: String::from_utf8_lossy(reason).into_owned(),
                }
            }
            other => Self::Lost {
                reason: other.to_string(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_from_its_number() {
        for code in 0..64 {
            assert_eq!(CloseCode::from_u64(code).to_u64(), code);
        }
    }
}

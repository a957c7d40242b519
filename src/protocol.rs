//! The two direct protocols.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire;

/// How a spoke and its hub talk over their direct stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Protocol {
    /// `iroh-hub/1`: positions, acknowledgements, repair and gossip.
    #[default]
    Native,
    /// `alkpubsub/1`: length-prefixed JSON envelopes and nothing else; what JavaScript and Python
    /// spokes speak.
    Compat,
}

impl Protocol {
    /// The protocol's name in the TLS handshake.
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Native => wire::native::ALPN,
            Self::Compat => wire::compat::ALPN,
        }
    }

    pub(crate) fn from_alpn(alpn: &[u8]) -> Option<Self> {
        [Self::Native, Self::Compat]
            .into_iter()
            .find(|protocol| protocol.alpn() == alpn)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Compat => "compat",
        })
    }
}

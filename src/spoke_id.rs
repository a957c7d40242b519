//! Names one spoke of a hub.

use std::fmt;

use iroh::EndpointId;
use serde::{Deserialize, Serialize};

/// One spoke of a hub: the endpoint it runs on, and which of that endpoint's streams it is.
///
/// The endpoint id is proven by the connection. The number is the hub's own and counts up over all
/// of its spokes: one process may hold several spokes, and one that comes back is a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpokeId {
    /// Whose spoke it is.
    pub endpoint: EndpointId,
    /// Which one.
    pub number: u64,
}

impl SpokeId {
    /// The id with its endpoint cut to ten digits, for logs.
    pub fn fmt_short(&self) -> impl fmt::Display {
        format!("{}/{}", self.endpoint.fmt_short(), self.number)
    }
}

impl fmt::Display for SpokeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.endpoint, self.number)
    }
}

impl fmt::Debug for SpokeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpokeId({})", self.fmt_short())
    }
}

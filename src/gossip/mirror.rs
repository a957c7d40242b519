//! The layout of iroh-gossip's messages, so that we can look into one before the protocol does.
//!
//! [`iroh_gossip::proto::topic::Message`] keeps its fields to itself. The types here serialise to the same
//! postcard bytes, which a test holds them to against messages that the protocol made. Only a layout:
//! what a message may say is decided in [`inspect`](super::core).

use bytes::Bytes;
use iroh_gossip::proto::{PeerIdentity, topic};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, DeserializeOwned, SeqAccess, Visitor},
};

/// The longest list of peers that a message may carry.
pub(super) const MAX_NODES: usize = 16;

/// The longest list of message ids that a message may carry.
pub(super) const MAX_IHAVE: usize = 2048;

/// A message's id: the blake3 hash of its content.
pub(super) type Id = [u8; 32];

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "P: Serialize", deserialize = "P: DeserializeOwned"))]
pub(super) enum Message<'a, P> {
    Swarm(Swarm<P>),
    #[serde(borrow)]
    Gossip(Gossip<'a>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "P: Serialize", deserialize = "P: DeserializeOwned"))]
pub(super) enum Swarm<P> {
    Join(Option<Bytes>),
    ForwardJoin {
        peer: PeerInfo<P>,
        ttl: u16,
    },
    Shuffle {
        origin: P,
        nodes: List<PeerInfo<P>, MAX_NODES>,
        ttl: u16,
    },
    ShuffleReply {
        nodes: List<PeerInfo<P>, MAX_NODES>,
    },
    Neighbor {
        priority: Priority,
        data: Option<Bytes>,
    },
    Disconnect {
        alive: bool,
        respond: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "P: Serialize", deserialize = "P: DeserializeOwned"))]
pub(super) struct PeerInfo<P> {
    pub(super) id: P,
    pub(super) data: Option<Bytes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) enum Priority {
    High,
    Low,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Gossip<'a> {
    #[serde(borrow)]
    Data(Data<'a>),
    Prune,
    Graft {
        id: Option<Id>,
        round: u16,
    },
    IHave(List<IHave, MAX_IHAVE>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Data<'a> {
    pub(super) id: Id,
    pub(super) content: &'a [u8],
    pub(super) scope: Scope,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) enum Scope {
    Swarm(u16),
    Neighbors,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct IHave {
    pub(super) id: Id,
    pub(super) round: u16,
}

/// A list that is refused, before anything is allocated, when it says that it is longer than `N`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct List<T, const N: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for List<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const N: usize>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Items<T, N> {
            type Value = List<T, N>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a list of at most {N}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let said = seq.size_hint().unwrap_or(0);
                if said > N {
                    return Err(de::Error::invalid_length(said, &self));
                }
                let mut items = Vec::with_capacity(said);
                while let Some(item) = seq.next_element()? {
                    if items.len() == N {
                        return Err(de::Error::invalid_length(N + 1, &self));
                    }
                    items.push(item);
                }
                Ok(List(items))
            }
        }
        deserializer.deserialize_seq(Items(std::marker::PhantomData))
    }
}

/// What kind of message some encoded bytes are, as far as sending it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Carries a frame.
    Data,
    /// Runs the broadcast tree; of no use to anyone but a neighbour.
    Tree,
    /// Asks to be a neighbour, or answers that one is.
    Neighbor,
    /// Asks to be a neighbour if there is room.
    Request,
    /// Says goodbye.
    Disconnect,
    /// Worth a connection of its own.
    Introduction,
    /// Passes a newcomer on.
    ForwardJoin,
    /// Of use to a neighbour only.
    Walk,
}

/// Looks at the two leading variant numbers of an encoded message.
pub(super) fn kind(encoded: &[u8]) -> Kind {
    match encoded {
        [1, 0, ..] => Kind::Data,
        [1, ..] => Kind::Tree,
        [0, 0, ..] | [0, 3, ..] => Kind::Introduction,
        [0, 4, 1, ..] => Kind::Request,
        [0, 4, ..] => Kind::Neighbor,
        [0, 1, ..] => Kind::ForwardJoin,
        [0, 5, ..] => Kind::Disconnect,
        _ => Kind::Walk,
    }
}

impl<'a, P: PeerIdentity> Message<'a, P> {
    /// Reads a message; bytes left over are an error like any other.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        match postcard::take_from_bytes(bytes) {
            Ok((message, [])) => Some(message),
            _ => None,
        }
    }

    /// The protocol's own form of this message.
    pub(super) fn to_proto(&self) -> Option<topic::Message<P>> {
        let bytes = postcard::to_stdvec(self).ok()?;
        from_bytes(&bytes)
    }
}

/// Reads the protocol's own form of a message.
pub(super) fn from_bytes<P: PeerIdentity>(bytes: &[u8]) -> Option<topic::Message<P>> {
    postcard::from_bytes(bytes).ok()
}

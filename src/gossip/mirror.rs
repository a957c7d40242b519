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
    /// Wants no frames unasked any more.
    Prune,
    /// Wants frames unasked again.
    Graft,
    /// Announces frames.
    Announcement,
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
        [1, 1, ..] => Kind::Prune,
        [1, 2, ..] => Kind::Graft,
        [1, ..] => Kind::Announcement,
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

/// Encodes the protocol's own form of a message, in memory of the right size: in such that grows, a frame is copied once more, and
/// half of the pages are for nothing.
pub(super) fn to_bytes<P: PeerIdentity>(message: &topic::Message<P>) -> Option<Bytes> {
    let size = postcard::experimental::serialized_size(message).ok()?;
    let encoded = postcard::to_extend(message, Vec::with_capacity(size)).ok()?;
    debug_assert_eq!(encoded.len(), size);
    Some(encoded.into())
}

/// Reads the protocol's own form of a message.
pub(super) fn from_bytes<P: PeerIdentity>(bytes: &[u8]) -> Option<topic::Message<P>> {
    postcard::from_bytes(bytes).ok()
}

#[cfg(test)]
mod tests {
    use iroh::{EndpointId, SecretKey};

    use super::*;

    fn real() -> Vec<(&'static str, Vec<u8>)> {
        let id = |n| SecretKey::from_bytes(&[n; 32]).public();
        let info = |n| PeerInfo {
            id: id(n),
            data: Some(Bytes::from(vec![n; 20])),
        };
        let nodes = || List((1..4).map(info).collect());
        let data = |content, scope| {
            let id = *blake3::hash(content).as_bytes();
            Message::Gossip(Gossip::Data(Data { id, content, scope }))
        };
        let round = 3;
        let hash = [7; 32];
        let alive = true;
        let respond = false;
        let of: [(&str, Message<'_, EndpointId>); 13] = [
            ("join", Message::Swarm(Swarm::Join(info(1).data))),
            (
                "forward-join",
                Message::Swarm(Swarm::ForwardJoin {
                    peer: info(1),
                    ttl: 5,
                }),
            ),
            (
                "shuffle",
                Message::Swarm(Swarm::Shuffle {
                    origin: id(9),
                    nodes: nodes(),
                    ttl: 6,
                }),
            ),
            (
                "shuffle-reply",
                Message::Swarm(Swarm::ShuffleReply { nodes: nodes() }),
            ),
            (
                "neighbor",
                Message::Swarm(Swarm::Neighbor {
                    priority: Priority::High,
                    data: None,
                }),
            ),
            (
                "request",
                Message::Swarm(Swarm::Neighbor {
                    priority: Priority::Low,
                    data: None,
                }),
            ),
            (
                "disconnect",
                Message::Swarm(Swarm::Disconnect { alive, respond }),
            ),
            ("data", data(b"a frame", Scope::Swarm(2))),
            ("data-near", data(b"another", Scope::Neighbors)),
            ("prune", Message::Gossip(Gossip::Prune)),
            (
                "graft",
                Message::Gossip(Gossip::Graft {
                    id: Some(hash),
                    round,
                }),
            ),
            (
                "graft-link",
                Message::Gossip(Gossip::Graft {
                    id: None,
                    round: u16::MAX,
                }),
            ),
            (
                "ihave",
                Message::Gossip(Gossip::IHave(List(vec![IHave { id: hash, round }; 5]))),
            ),
        ];
        let encode = |(name, message)| (name, postcard::to_stdvec(&message).unwrap());
        let mut all: Vec<_> = of.into_iter().map(encode).collect();
        let (_, mut wide) = all
            .iter()
            .find(|(name, _)| *name == "data")
            .unwrap()
            .clone();
        wide.splice(1..2, [0x80, 0]);
        all.push(("wide-number", wide));
        all.push(("bad-ihave", vec![1, 3, 0xff, 0xff, 0xff, 0xff, 0x0f]));
        all.push(("bad-shuffle", vec![0, 3, 17]));
        all
    }

    crate::fuzz::decoder!(gossip_message, real(), |bytes| {
        let Some(message) = Message::<EndpointId>::decode(bytes) else {
            return;
        };
        // What we read, the protocol reads, and it reads the same.
        let theirs = from_bytes::<EndpointId>(bytes).expect("the protocol's own layout");
        let again = to_bytes(&theirs).unwrap();
        assert_eq!(Message::decode(&again), Some(message.clone()));
        assert_eq!(message.to_proto(), Some(theirs));
        // As it is sent on; a peer may write a number with more digits than it needs.
        let is_data = matches!(message, Message::Gossip(Gossip::Data(_)));
        assert_eq!(kind(&again) == Kind::Data, is_data);
    });
}

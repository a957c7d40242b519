//! One hub, many spokes, over iroh.
#![deny(missing_docs, rustdoc::broken_intra_doc_links, unreachable_pub)]

mod admission;
mod close;
mod event;
mod fan_out;
mod gossip;
mod hub;
mod inbox;
mod instant;
mod link_io;
mod listen;
pub mod log;
mod metrics;
mod pattern;
mod position;
mod protocol;
mod seal;
mod spoke;
mod spoke_id;
mod target;
mod via;
mod wire;

pub mod endpoint;

pub use self::{
    admission::{Admission, Candidate, Decision},
    close::{CloseCode, Closed},
    event::{DecodeError, Envelope, EnvelopeError, MAX_ID_LEN, MAX_TYPE_LEN, TypedEvent},
    fan_out::{AutoFanOut, FanOut, ParseFanOutError, Path},
    gossip::{GOSSIP_ALPN, GossipConfig, GossipMetrics},
    hub::{
        BroadcastError, Drained, Hub, HubBuilder, HubError, HubLimits, Receipt, Recipient,
        SendError, SpokeChange, SpokeInfo, SpokeWatch, TryBroadcastError, WatchLagged,
    },
    listen::{
        Event, Incoming, Lagged, ListenOptions, Listener, Missed, OnFull, Source, Typed,
        TypedListenError, TypedListener,
    },
    metrics::{HubMetrics, SpokeMetrics},
    pattern::Pattern,
    position::{Epoch, ParseEpochError, Position},
    protocol::Protocol,
    spoke::{
        ConnectError, From, Gossip, GossipAcceptor, Spoke, SpokeBuilder, SpokeLimits,
        SpokeSendError,
    },
    spoke_id::SpokeId,
    target::{DispatchError, Dispatching, EventTarget, EventTargetExt, LocalTarget},
    via::Via,
    wire::{body::BodyError, compat::CompatError},
};

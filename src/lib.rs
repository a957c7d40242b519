//! One hub, many spokes, over [iroh](https://docs.rs/iroh): a hub broadcasts events to all of its spokes
//! and sends events to single ones, and spokes send events to the hub, peer to peer over QUIC, with no
//! broker to run.
//!
//! Broadcasts travel along one direct stream per spoke while the mesh is small, and along an
//! iroh-gossip topic, on which the spokes pass them on, once it is large ([`FanOut`]). Listeners
//! cannot tell which: the same events, in the same order, once each, provably from the hub.
//!
//! ```
//! use iroh_hub::{Envelope, Hub, Incoming, Spoke, endpoint};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let hub = Hub::builder().spawn(endpoint::bind_local().await?)?;
//! let spoke = Spoke::connect(endpoint::bind_local().await?, hub.addr()).await?;
//! let mut prices = spoke.listen("price.*");
//!
//! let receipt = hub.broadcast(Envelope::new("price.tea", &12)?).await?;
//! let Some(Incoming::Event(event)) = prices.recv().await else {
//!     return Err("the hub is gone".into());
//! };
//! assert_eq!(event.position, Some(receipt.position()));
//! assert_eq!(event.envelope.payload::<u32>()?, 12);
//! # spoke.shutdown().await;
//! # hub.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//!
//! The hub appends every broadcast to one bounded [`log`] and numbers it: a [`Position`]. Everything
//! that leaves the hub is a cursor on that log: a direct link is a cursor that writes events to one
//! spoke's stream; the topic is served by one cursor that packs events into frames, seals them and
//! broadcasts them; a repair is another read. So a slow spoke holds a number and not a queue, and
//! moving a spoke from one path to the other moves one cursor. A spoke's inbox puts events in order
//! whatever path they came along, and wants what is missing.
//!
//! # The contract
//!
//! 1. Every spoke sees the hub's broadcasts in offset order, each exactly once, whichever path they took.
//! 2. No broadcast is lost silently: a gap is repaired from the log, or listeners get [`Missed`]. A listener
//!    that is too slow for its own queue gets [`Lagged`].
//! 3. A targeted event ([`Hub::send`]) is seen after every broadcast before it, unless it
//!    [overtakes](SendOptions::overtake). It waits for a position; a [`Missed`] past it, or a new epoch, sets
//!    it free.
//! 4. Targeted events reach a spoke, and its own events the hub, in order and once, over lost links too, within
//!    the lifetime of the spoke's session ([`HubLimits::session_lifetime`]). What could not be delivered, or may
//!    have been, is reported to its sender as just that ([`SendReceipt`]).
//! 5. A slow, stuck or hostile spoke holds a cursor at the hub and not a queue, and holds
//!    [`Hub::broadcast`] back no longer than [`HubLimits::stall_after`] and [`HubLimits::patience`] say. Whoever
//!    connects and whatever they do, the hub's memory has a ceiling: [`HubBuilder::memory_ceiling`].
//! 6. A broadcast on the topic is encrypted, and signed by the hub: what does not verify is dropped, counted and
//!    not passed on, and whoever sent it is cut off. Only admitted spokes can read it; once
//!    [`Admission::revoke`] has returned, its subject can read nothing that is dispatched afterwards. The
//!    [threat model](threat_model) says what is promised against whom.
//! 7. The limits that one may want to change are documented settings with defaults: [`HubLimits`],
//!    [`SpokeLimits`], [`log::LogConfig`], [`GossipConfig`], [`ListenOptions`].
//!
//! Spokes of the plain protocol ([`Protocol::Compat`]) have no positions and cannot acknowledge. For
//! them: in order, once, while connected; one that falls behind the log is closed with a code.
//!
//! # What it is not for
//!
//! It is not a database: the log is bounded, and in memory unless it is [durable](log#durable-logs). It
//! is not a mesh of equals: one hub writes, and when it is gone its spokes wait for it to come back.
#![deny(missing_docs, rustdoc::broken_intra_doc_links, unreachable_pub)]

mod admission;
mod close;
mod delivery;
mod event;
mod fan_out;
#[cfg(test)]
mod fuzz;
mod gossip;
mod hub;
mod inbox;
mod instant;
mod intake;
mod link_io;
mod listen;
pub mod log;
mod patience;
mod pattern;
mod places;
mod pool;
mod position;
mod protocol;
mod seal;
mod spoke;
mod spoke_id;
mod target;
mod via;
mod wire;

pub mod endpoint;
pub mod metrics;

#[doc(hidden)]
pub mod bench_support;
#[doc(hidden)]
pub mod fault_support;

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod sim;

pub use self::{
    admission::{Admission, Candidate, Decision},
    close::{CloseCode, Closed},
    delivery::{Delivery, Loss, SendReceipt, Undelivered},
    event::{DecodeError, Envelope, EnvelopeError, MAX_ID_LEN, MAX_TYPE_LEN, TypedEvent},
    fan_out::{AutoFanOut, FanOut, ParseFanOutError, Path},
    gossip::{GOSSIP_ALPN, GossipConfig},
    hub::{
        Acknowledgements, Behind, BroadcastError, Drained, Health, Hub, HubBuilder, HubError,
        HubLimits, NotAcknowledged, PathHealth, Problem, Receipt, Recipient, RepairHealth,
        SendError, SendOptions, SpokeChange, SpokeInfo, SpokeWatch, TopicHealth, TopicState,
        TryBroadcastError, WatchLagged,
    },
    listen::{
        Event, Incoming, Lagged, ListenOptions, Listener, Missed, OnFull, Source, Typed,
        TypedListenError, TypedListener,
    },
    pattern::Pattern,
    position::{Epoch, ParseEpochError, Position},
    protocol::Protocol,
    spoke::{
        ConnectError, From, Gossip, GossipAcceptor, Reconnect, Spoke, SpokeBuilder, SpokeLimits,
        SpokeSendError, SpokeStatus, StatusWatch,
    },
    spoke_id::SpokeId,
    target::{DispatchError, Dispatching, EventTarget, EventTargetExt, LocalTarget},
    via::Via,
    wire::{body::BodyError, compat::CompatError},
};

#[doc = include_str!("../docs/threat-model.md")]
pub mod threat_model {}

/// Runs the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

//! The targets of the tracing events that say how a hub's or a spoke's state changes.
//!
//! They are meant to be counted, stored and matched, unlike the lines for people beside them, whose
//! words may change: a target each, fields and no text, all at level debug. docs/metrics.md lists them.
#![cfg_attr(not(feature = "durable"), allow(dead_code))]

macro_rules! events {
    ($($(#[doc = $words:literal])+ $name:ident = $path:literal [$($field:literal)*];)+) => {
        $($(#[doc = $words])+
        pub(crate) const $name: &str = concat!("iroh_hub::_events::", $path);)+

        /// Target, fields, and what it means.
        #[cfg(test)]
        pub(super) const ALL: &[(&str, &[&str], &str)] = &[
            $(($name, &[$($field),*], concat!($($words),+)),)+
        ];
    };
}

events! {
    /// A hub refused a connection.
    REFUSED = "admission::refused" ["remote" "protocol" "reason"];
    /// An endpoint was revoked at a hub, which has closed its links.
    REVOKED = "admission::revoked" ["remote"];
    /// A hub welcomed a spoke.
    JOINED = "spoke::joined" ["spoke" "protocol"];
    /// A direct link, or a stream that did not become one, ended: the number of the close code, if it has
    /// one, and words.
    LINK_CLOSED = "direct::closed" ["remote" "protocol" "code" "closed"];
    /// A spoke was lost without a goodbye, and may come back.
    AWAY = "spoke::away" ["spoke" "code" "closed"];
    /// A spoke came back.
    RETURNED = "spoke::returned" ["spoke"];
    /// A spoke is gone for good, and how its last link ended.
    LEFT = "spoke::left" ["spoke" "code" "closed"];
    /// A spoke's broadcasts take another path.
    MOVED = "spoke::moved" ["spoke" "path"];
    /// The spoke in whose span this is was told of broadcasts that the log no longer had when they were due.
    MISSED = "spoke::missed" ["from" "to"];
    /// Events of a durable log are synced, up to this tip.
    LOG_SYNCED = "log::synced" ["tip" "events" "bytes" "took"];
    /// A topic began, at a hub that has so many spokes.
    TOPIC_STARTED = "topic::started" ["spokes"];
    /// A topic failed; everyone is served directly until there is another.
    TOPIC_FAILED = "topic::failed" ["spokes"];
    /// A topic began in place of one that failed, at a hub that has so many spokes.
    TOPIC_REBUILT = "topic::rebuilt" ["spokes"];
    /// The frames of a topic are sealed under the keys of this generation from now on.
    REKEYED = "topic::rekeyed" ["generation"];
    /// A topic ended, because it failed or was no longer of use.
    TOPIC_ENDED = "topic::ended" ["spokes"];
    /// A durable log began an epoch, which shares with the one before what is below the fork.
    EPOCH = "log::epoch" ["epoch" "fork"];
    /// A durable log could not be written; nothing more is broadcast.
    LOG_FAILED = "log::failed" ["reason"];
    /// A hub welcomed the spoke that says so.
    CONNECTED = "hub::connected" ["protocol"];
    /// A spoke has no link to its hub, and will try to make one after a while.
    RECONNECTING = "hub::reconnecting" ["attempt" "after" "code" "closed"];
    /// A spoke has caught up after a lost link, and whether it missed nothing.
    RECOVERED = "hub::recovered" ["wholly"];
    /// A spoke will never see these broadcasts.
    MISSED_HERE = "hub::missed" ["from" "to"];
    /// A spoke has ended, and how its link to the hub did.
    CLOSED = "hub::closed" ["code" "closed"];
    /// A spoke joins the topic, with so many peers to begin with.
    MEMBER_JOINS = "member::joins" ["peers"];
    /// The topic serves the spoke from this offset on.
    MEMBER_SERVED = "member::served" ["from"];
    /// The topic fell silent; the hub serves the spoke directly from this offset on.
    MEMBER_ISOLATED = "member::isolated" ["from"];
    /// A spoke leaves the topic.
    MEMBER_LEFT = "member::left" ["was_served"];
}

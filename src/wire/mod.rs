//! Bytes to frames and back, and nothing else.
//!
//! The only place that knows byte layouts. Every decoder takes hostile input: it answers with an
//! error or a frame, never panics, and never allocates more than the bytes that are there (and the
//! stated limits) call for.
//!
//! - [`framing`]: the length prefix that both direct protocols share;
//! - [`assembly`]: events of several parts, where parts come in order;
//! - [`body`]: an envelope as it travels and as it is kept;
//! - [`compat`]: `alkpubsub/1`, JSON envelopes;
//! - [`native`]: `iroh-hub/1`, postcard frames;
//! - [`run`]: small events in a row as one frame of it;
//! - [`broadcast`]: what is inside a frame on the gossip topic.
//!
//! # How often a payload is copied
//!
//! Beside what QUIC does. Whatever is made is made once, however many it goes to.
//!
//! | | from | to | |
//! |---|---|---|---|
//! | hub | log | streams | up to 4 KiB once, into a frame or a [`run`] of them; larger ones never, a stream takes them by reference |
//! | hub | log | topic | twice: into the frame with others, and when that is sealed |
//! | spoke | stream | listener | never, or once if a frame lies in several packets; an event of several parts once more |
//! | spoke | topic | listener | twice: off the stream, and when it is opened; an event of several parts once more |
//!
//! What is more than none to a socket and one to a listener has a reason. A small event by itself would be two chunks of a stream,
//! each with a cost of its own at every link, which is more than one copy for all of them. A frame is sealed in one piece, so that its
//! events have to be in one, and once for all members, at a tenth of what the cipher takes. And a member opens a frame beside what it
//! keeps of it, since that goes to its neighbours as it came.

pub(crate) mod assembly;
pub(crate) mod body;
pub(crate) mod broadcast;
pub(crate) mod compat;
pub(crate) mod framing;
pub(crate) mod native;
pub(crate) mod run;

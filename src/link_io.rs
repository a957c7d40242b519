//! Frames over one QUIC stream, for hub and spoke alike: reading with limits, writing without copies.

use std::{ops::Range, time::Duration};

use bytes::Bytes;
use iroh::endpoint::{ConnectionError, ReadError, RecvStream, SendStream, WriteError};
use n0_error::{StackError, e, stack_error};
use tokio::time::{Instant, timeout_at};

use crate::{
    close::{CloseCode, Closed},
    event::EnvelopeError,
    intake::{Customer, Reserved},
    wire::{
        compat::CompatError,
        framing::{Deframer, FrameError},
        native::{self, NativeError},
    },
};

/// How many chunks are taken from a stream at once, at most. Each is what came in one datagram.
const CHUNKS: usize = 32;

/// Why a link ended that did not end well.
#[stack_error(derive, add_meta, from_sources)]
#[non_exhaustive]
pub(crate) enum LinkError {
    /// A frame's length prefix or end is wrong.
    #[error(transparent)]
    Frame { source: FrameError },
    /// A frame of `iroh-hub/1` does not decode.
    #[error(transparent)]
    Native { source: NativeError },
    /// A frame of `alkpubsub/1` does not decode.
    #[error(transparent)]
    Compat { source: CompatError },
    /// An event in a frame is none.
    #[error(transparent)]
    Envelope { source: EnvelopeError },
    /// The peer did not say in time what it had to say.
    #[error("nothing came in time: {what}")]
    TimedOut { what: &'static str },
    /// The peer broke the rules.
    #[error("{what}")]
    Misbehaved { what: &'static str },
    /// No version in common.
    #[error("the peer speaks version {theirs} of the protocol, we speak {ours}")]
    Version { theirs: u16, ours: u16 },
    /// The spoke fell behind the log.
    #[error("fell behind the log by {events} events")]
    FellBehind { events: u64 },
    /// The log has begun a new epoch, and the link speaks of the one before.
    #[error("the log has begun a new epoch; connect again")]
    NewEpoch {},
    /// More of something than allowed.
    #[error("{what}")]
    TooMany { what: &'static str },
    /// The stream or connection ended under us.
    #[error("the link was closed")]
    Gone { closed: Closed },
}

impl LinkError {
    /// How the link is to be closed, or was.
    pub(crate) fn closed(&self) -> Closed {
        let code = match self {
            Self::Frame {
                source: FrameError::TooLarge { .. },
                ..
            } => CloseCode::TooLarge,
            Self::Frame { .. }
            | Self::Native { .. }
            | Self::Compat { .. }
            | Self::Envelope { .. } => CloseCode::BadFrame,
            Self::TimedOut { .. } => CloseCode::TimedOut,
            Self::Misbehaved { .. } => CloseCode::Misbehaved,
            Self::Version { .. } => CloseCode::Version,
            Self::FellBehind { .. } => CloseCode::FellBehind,
            Self::NewEpoch { .. } => CloseCode::NewEpoch,
            Self::TooMany { .. } => CloseCode::TooMany,
            Self::Gone { closed, .. } => return closed.clone(),
        };
        // What is wrong may quote the peer at length; the reason is sent, logged and kept.
        Closed::by_us(code, short_reason(&self.words()))
    }

    /// What is wrong and why, for people: each error's message without its name.
    fn words(&self) -> String {
        let messages = self.stack().filter(|error| !error.is_transparent());
        let messages: Vec<_> = messages.map(|error| error.to_string()).collect();
        messages.join(": ")
    }

    pub(crate) fn gone(closed: Closed) -> Self {
        e!(Self::Gone { closed })
    }
}

impl From<ReadError> for LinkError {
    fn from(error: ReadError) -> Self {
        let closed = match &error {
            ReadError::ConnectionLost(error) => Closed::from(error),
            ReadError::Reset(code) => Closed::ByPeer {
                code: CloseCode::from_u64(code.into_inner()),
                reason: "the stream was reset".to_owned(),
            },
            other => Closed::Lost {
                reason: other.to_string(),
            },
        };
        Self::gone(closed)
    }
}

impl From<WriteError> for LinkError {
    fn from(error: WriteError) -> Self {
        let closed = match &error {
            WriteError::ConnectionLost(error) => Closed::from(error),
            WriteError::Stopped(code) => Closed::ByPeer {
                code: CloseCode::from_u64(code.into_inner()),
                reason: "the stream was stopped".to_owned(),
            },
            other => Closed::Lost {
                reason: other.to_string(),
            },
        };
        Self::gone(closed)
    }
}

impl From<ConnectionError> for LinkError {
    fn from(error: ConnectionError) -> Self {
        Self::gone(Closed::from(&error))
    }
}

/// Frames up to so many bytes are read without reserving for them.
pub(crate) const SMALL: usize = native::MAX_FRAME;

/// Reads frames from a stream.
#[derive(Debug)]
pub(crate) struct FrameReader {
    /// Where room for large frames is reserved before they are read.
    customer: Option<Customer>,
    reserved: Option<Reserved>,
    recv: RecvStream,
    /// Chunks that were read, of which these are still to be cut into frames.
    chunks: Box<[Bytes; CHUNKS]>,
    uncut: Range<usize>,
    deframer: Deframer,
    /// How long a frame may stay unfinished.
    frame_timeout: Duration,
    frame_began: Option<Instant>,
}

impl FrameReader {
    pub(crate) fn new(recv: RecvStream, max_frame: usize, frame_timeout: Duration) -> Self {
        Self {
            customer: None,
            reserved: None,
            recv,
            chunks: Box::default(),
            uncut: 0..0,
            deframer: Deframer::new(max_frame),
            frame_timeout,
            frame_began: None,
        }
    }

    /// Reserves room for large frames here. The time that this takes is not held against the peer.
    pub(crate) fn reserving(mut self, customer: Customer) -> Self {
        self.customer = Some(customer);
        self
    }

    /// What was reserved for the last frame, if it is a large one.
    pub(crate) fn take_reserved(&mut self) -> Option<Reserved> {
        self.reserved.take()
    }

    /// The next frame; `None` when the stream has ended between frames.
    ///
    /// Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, LinkError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            if let Some(customer) = &self.customer
                && self.reserved.is_none()
                && let Some(len) = self.deframer.expects().filter(|len| *len > SMALL)
            {
                self.reserved = Some(customer.reserve(len).await);
                self.frame_began = Some(Instant::now());
            }
            let reading = self.recv.read_many_chunks(&mut self.chunks[..]);
            let read = if self.deframer.is_mid_frame() {
                let began = *self.frame_began.get_or_insert_with(Instant::now);
                timeout_at(began + self.frame_timeout, reading)
                    .await
                    .map_err(|_| {
                        e!(LinkError::TimedOut {
                            what: "the rest of a frame"
                        })
                    })??
            } else {
                reading.await?
            };
            match read {
                Some(read) => self.uncut = 0..read,
                None => {
                    self.deframer.finish()?;
                    return Ok(None);
                }
            }
        }
    }

    /// The next frame, if it has arrived whole.
    pub(crate) fn buffered(&mut self) -> Result<Option<Bytes>, LinkError> {
        loop {
            if let Some(frame) = self.deframer.next()? {
                self.frame_began = None;
                return Ok(Some(frame));
            }
            let chunk = self.uncut.next().and_then(|nth| self.chunks.get_mut(nth));
            match chunk {
                Some(chunk) => self.deframer.push(std::mem::take(chunk)),
                None => return Ok(None),
            }
        }
    }

    /// Tells the peer that nothing more will be read.
    pub(crate) fn stop(&mut self, code: CloseCode) {
        let _ = self.recv.stop(code.to_varint());
    }
}

/// Writes all chunks, leaving `chunks` empty.
///
/// Not cancel safe: a frame may be torn.
pub(crate) async fn write_all(
    send: &mut SendStream,
    chunks: &mut Vec<Bytes>,
) -> Result<(), LinkError> {
    let mut rest = &mut chunks[..];
    while !rest.is_empty() {
        send.write_many_chunks(&mut rest).await?;
    }
    chunks.clear();
    Ok(())
}

/// Cuts a reason to what a close frame carries well, at a character's edge.
pub(crate) fn short_reason(reason: &str) -> &str {
    const MAX: usize = 512;
    let mut end = reason.len().min(MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default()
}

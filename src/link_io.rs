//! Frames over one QUIC stream, for hub and spoke alike: reading with limits, writing without copies.

use std::{
    future::poll_fn,
    ops::Range,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

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

/// How many chunks are taken from a stream at once, at most. Most are what came in one datagram.
const CHUNKS: usize = 32;

/// How many bytes are taken from a stream at once, at most: QUIC lets the peer send as many more, and it puts what came in
/// small pieces together to chunks of any size.
pub(crate) const READ_BYTES: usize = 64 * 1024;

// A frame that has to be reserved for lies in no chunk whole.
const _: () = assert!(READ_BYTES <= SMALL);

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

    /// Something is wrong on our side.
    pub(crate) fn internal(reason: &str) -> Self {
        Self::gone(Closed::by_us(CloseCode::Internal, reason))
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

/// What has come of a stream and was not taken as frames. Knows no sockets.
#[derive(Debug)]
struct Arrived {
    /// Chunks that were read, of which these are still to be cut into frames.
    chunks: Box<[Bytes; CHUNKS]>,
    uncut: Range<usize>,
    deframer: Deframer,
    /// What is wrong with the stream behind the chunks.
    failed: Option<ReadError>,
}

impl Arrived {
    fn new(max_frame: usize) -> Self {
        Self {
            chunks: Box::default(),
            uncut: 0..0,
            deframer: Deframer::new(max_frame),
            failed: None,
        }
    }

    /// Takes the chunks that are there, of at most [`READ_BYTES`] together; false if the stream has ended. All that was
    /// taken before must have been cut. `read` gives the next chunk of at most so many bytes.
    fn fill(
        &mut self,
        cx: &mut Context<'_>,
        mut read: impl FnMut(&mut Context<'_>, usize) -> Poll<Result<Option<Bytes>, ReadError>>,
    ) -> Poll<Result<bool, ReadError>> {
        debug_assert!(self.uncut.is_empty(), "chunks were left");
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let mut room = READ_BYTES;
        let mut filled = 0;
        for slot in self.chunks.iter_mut() {
            if room == 0 {
                break;
            }
            let chunk = if filled == 0 {
                read(cx, room)
            } else {
                // Nobody waits for what is not there yet.
                read(&mut Context::from_waker(Waker::noop()), room)
            };
            match chunk {
                Poll::Ready(Ok(Some(chunk))) => {
                    room = room.saturating_sub(chunk.len());
                    *slot = chunk;
                    filled += 1;
                }
                Poll::Ready(Err(error)) if filled > 0 => {
                    // The stream would not say it again.
                    self.failed = Some(error);
                    break;
                }
                Poll::Ready(Ok(None)) | Poll::Pending if filled > 0 => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok(false)),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.uncut = 0..filled;
        Poll::Ready(Ok(true))
    }

    /// The next frame, if it is there whole. Unless there `is_room`, a large frame is not put together.
    fn cut(&mut self, is_room: bool) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(frame) = self.deframer.next()? {
                return Ok(Some(frame));
            }
            if !is_room && self.large().is_some() {
                return Ok(None);
            }
            let chunk = self.uncut.next().and_then(|nth| self.chunks.get_mut(nth));
            match chunk {
                Some(chunk) => self.deframer.push(std::mem::take(chunk)),
                None => return Ok(None),
            }
        }
    }

    /// The length of the frame that has begun and is not complete, if it is a large one.
    fn large(&self) -> Option<usize> {
        self.deframer.expects().filter(|len| *len > SMALL)
    }
}

/// Reads frames from a stream.
#[derive(Debug)]
pub(crate) struct FrameReader {
    /// Where room for large frames is reserved before they are read.
    customer: Option<Customer>,
    reserved: Option<Reserved>,
    recv: RecvStream,
    arrived: Arrived,
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
            arrived: Arrived::new(max_frame),
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
                && let Some(len) = self.arrived.large()
            {
                self.reserved = Some(customer.reserve(len).await);
                self.frame_began = Some(Instant::now());
                // More of it may be there.
                continue;
            }
            let is_mid_frame = self.arrived.deframer.is_mid_frame();
            let (arrived, recv) = (&mut self.arrived, &mut self.recv);
            let reading = poll_fn(|cx| {
                // Dropping a read loses nothing, and the next one takes its place.
                arrived.fill(cx, |cx, most| pin!(recv.read_chunk(most)).poll(cx))
            });
            let is_more = if is_mid_frame {
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
            if !is_more {
                self.arrived.deframer.finish()?;
                return Ok(None);
            }
        }
    }

    /// The next frame, if it has arrived whole.
    pub(crate) fn buffered(&mut self) -> Result<Option<Bytes>, LinkError> {
        let is_room = self.customer.is_none() || self.reserved.is_some();
        let frame = self.arrived.cut(is_room)?;
        if frame.is_some() {
            self.frame_began = None;
        }
        Ok(frame)
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

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 200 * 1024;

    /// A stream whose bytes QUIC has put together, as it does with what came in small pieces.
    fn merged(frames: &[usize]) -> Bytes {
        let mut stream = Vec::new();
        for len in frames {
            stream.extend_from_slice(&(*len as u32).to_be_bytes());
            stream.resize(stream.len() + len, b'x');
        }
        stream.into()
    }

    fn fill(arrived: &mut Arrived, stream: &mut Bytes) -> Poll<Result<bool, ReadError>> {
        let mut cx = Context::from_waker(Waker::noop());
        arrived.fill(&mut cx, |_, most| {
            let chunk = stream.split_to(most.min(stream.len()));
            match chunk.is_empty() {
                true => Poll::Pending,
                false => Poll::Ready(Ok(Some(chunk))),
            }
        })
    }

    fn fills(arrived: &mut Arrived, stream: &mut Bytes) -> bool {
        matches!(fill(arrived, stream), Poll::Ready(Ok(true)))
    }

    #[test]
    fn no_more_is_taken_at_once_than_is_counted_however_large_the_chunks_are() {
        let mut arrived = Arrived::new(LARGE);
        let mut stream = merged(&[40; 10_000]);
        let mut frames = 0;
        while !stream.is_empty() {
            let before = stream.len();
            assert!(fills(&mut arrived, &mut stream));
            assert!(before - stream.len() <= READ_BYTES);
            while arrived.cut(false).unwrap().is_some() {
                frames += 1;
            }
        }
        assert_eq!(frames, 10_000);
        assert!(fill(&mut arrived, &mut stream).is_pending());
    }

    #[test]
    fn large_frames_that_lie_in_one_read_are_each_put_together_only_once_there_is_room() {
        let mut arrived = Arrived::new(LARGE);
        let mut stream = merged(&[LARGE, 3, LARGE, LARGE]);
        let (mut sizes, mut asked, mut is_room) = (Vec::new(), 0, false);
        while sizes.len() < 4 {
            if let Some(frame) = arrived.cut(is_room).unwrap() {
                assert!(is_room || frame.len() <= SMALL);
                sizes.push(frame.len());
                is_room = false;
            } else if let (Some(len), false) = (arrived.large(), is_room) {
                assert_eq!(len, LARGE);
                // No more of it than one chunk.
                assert!(arrived.deframer.kept() <= READ_BYTES);
                assert!(arrived.cut(false).unwrap().is_none());
                (asked, is_room) = (asked + 1, true);
            } else {
                assert!(fills(&mut arrived, &mut stream));
            }
        }
        assert_eq!((sizes, asked), (vec![LARGE, 3, LARGE, LARGE], 3));
    }

    #[test]
    fn chunks_that_are_there_wait_until_there_is_room_for_the_frame() {
        let mut arrived = Arrived::new(LARGE);
        let mut stream = merged(&[LARGE]);
        let mut cx = Context::from_waker(Waker::noop());
        let filled = arrived.fill(&mut cx, |_, _| Poll::Ready(Ok(Some(stream.split_to(1200)))));
        assert!(matches!(filled, Poll::Ready(Ok(true))));
        assert!(arrived.cut(false).unwrap().is_none());
        assert!(arrived.deframer.kept() <= 1200);
        assert!(arrived.cut(true).unwrap().is_none());
        assert!(arrived.deframer.kept() > 30 * 1200);
    }

    #[test]
    fn what_came_before_a_stream_was_reset_is_cut_before_that_is_said() {
        let mut arrived = Arrived::new(LARGE);
        let mut stream = merged(&[5]);
        let mut cx = Context::from_waker(Waker::noop());
        let mut said = false;
        // It says so once, and then that it has ended.
        let mut read = |_: &mut Context<'_>, _| match std::mem::take(&mut stream) {
            chunk if !chunk.is_empty() => Poll::Ready(Ok(Some(chunk))),
            _ if !std::mem::replace(&mut said, true) => {
                Poll::Ready(Err(ReadError::Reset(CloseCode::Internal.to_varint())))
            }
            _ => Poll::Ready(Ok(None)),
        };
        assert!(matches!(
            arrived.fill(&mut cx, &mut read),
            Poll::Ready(Ok(true))
        ));
        assert_eq!(arrived.cut(true).unwrap().map(|frame| frame.len()), Some(5));
        assert!(arrived.cut(true).unwrap().is_none());
        let error = ReadError::Reset(CloseCode::Internal.to_varint());
        assert_eq!(arrived.fill(&mut cx, &mut read), Poll::Ready(Err(error)));
    }
}

//! The length prefix that both direct protocols share: u32, big endian, then that many bytes.
//!
//! [`Deframer`] turns the chunks of a stream into frames. It knows no sockets and no time: who reads
//! asks [`is_mid_frame`](Deframer::is_mid_frame) to bound how long a peer may leave one unfinished.

use bytes::{Buf, Bytes, BytesMut};
use n0_error::{e, stack_error};

/// Bytes of the length prefix.
pub(crate) const PREFIX: usize = 4;

/// Sets the length of a frame of which this has been put, its prefix included, and of which so many bytes follow.
pub(super) fn set_len(frame: &mut [u8], rest: usize) {
    let len = (frame.len() + rest).saturating_sub(PREFIX) as u32;
    if let Some(prefix) = frame.first_chunk_mut::<PREFIX>() {
        *prefix = len.to_be_bytes();
    }
}

/// A frame cannot be read.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum FrameError {
    /// Its length prefix is over the limit.
    #[error("a frame of {len} bytes is over the limit of {limit}")]
    TooLarge {
        /// What the prefix says, in bytes.
        len: u32,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The stream ended inside it.
    #[error("the stream ended in the middle of a frame")]
    Truncated {},
}

/// What is set aside at once for a frame that comes in several chunks. More only as it comes: the length prefix is not
/// trusted with an allocation.
const SET_ASIDE: usize = 16 * 1024;

/// Cuts a stream of bytes into frames.
///
/// Holds at most one chunk of the stream and the part of one frame that has arrived, for which at most twice its bytes or
/// [`SET_ASIDE`] are allocated. A frame that lies in one chunk is not copied.
#[derive(Debug)]
pub(crate) struct Deframer {
    limit: usize,
    chunk: Bytes,
    /// What there is of a prefix that came in pieces.
    prefix: [u8; PREFIX],
    have: usize,
    /// A frame that has begun, and how long it is.
    partial: BytesMut,
    len: Option<usize>,
}

impl Deframer {
    /// Refuses frames of more than `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            chunk: Bytes::new(),
            prefix: [0; PREFIX],
            have: 0,
            partial: BytesMut::new(),
            len: None,
        }
    }

    /// Takes the next bytes of the stream. All frames of the last chunk must have been taken out.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "frames were left in the last chunk");
        self.chunk = chunk;
    }

    /// The next whole frame, without its prefix; `None` if more bytes are needed.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        let len = match self.len {
            Some(len) => len,
            None => {
                let Some(len) = self.begin()? else {
                    return Ok(None);
                };
                if self.chunk.len() >= len {
                    return Ok(Some(self.chunk.split_to(len)));
                }
                self.partial = BytesMut::with_capacity(len.min(SET_ASIDE));
                self.len = Some(len);
                len
            }
        };
        let missing = len.saturating_sub(self.partial.len());
        let piece = self.chunk.split_to(missing.min(self.chunk.len()));
        self.partial.extend_from_slice(&piece);
        if self.partial.len() < len {
            return Ok(None);
        }
        self.len = None;
        Ok(Some(std::mem::take(&mut self.partial).freeze()))
    }

    /// Reads a prefix off the chunk; `None` if more bytes are needed.
    fn begin(&mut self) -> Result<Option<usize>, FrameError> {
        let missing = self.prefix.iter_mut().skip(self.have);
        let mut taken = 0;
        for (byte, next) in missing.zip(&self.chunk) {
            *byte = *next;
            taken += 1;
        }
        self.chunk.advance(taken);
        self.have += taken;
        if self.have < PREFIX {
            return Ok(None);
        }
        let len = u32::from_be_bytes(self.prefix);
        if len as usize > self.limit {
            return Err(e!(FrameError::TooLarge {
                len,
                limit: self.limit
            }));
        }
        self.have = 0;
        Ok(Some(len as usize))
    }

    /// The length of the frame that has begun and is not complete, if that much of it has come.
    pub(crate) fn expects(&self) -> Option<usize> {
        self.len
    }

    /// How many bytes there are of it.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        self.partial.len()
    }

    /// Whether a frame has begun and is not complete.
    pub(crate) fn is_mid_frame(&self) -> bool {
        self.len.is_some() || self.have > 0
    }

    /// Says whether the stream may end here.
    pub(crate) fn finish(&self) -> Result<(), FrameError> {
        if self.is_mid_frame() || !self.chunk.is_empty() {
            return Err(e!(FrameError::Truncated));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;

    fn framed(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for frame in frames {
            out.put_u32(frame.len() as u32);
            out.put_slice(frame);
        }
        out
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            cut in 1usize..50,
        ) {
            let mut deframer = Deframer::new(40);
            let mut out = Vec::new();
            for chunk in framed(&frames).chunks(cut) {
                deframer.push(Bytes::copy_from_slice(chunk));
                while let Some(frame) = deframer.next().unwrap() {
                    out.push(frame.to_vec());
                }
            }
            prop_assert!(deframer.finish().is_ok());
            prop_assert_eq!(out, frames);
        }
    }

    const LIMIT: usize = 64;

    /// The frames of a stream and whether it may end there, found without a deframer.
    fn all(mut stream: &[u8]) -> (Vec<&[u8]>, Option<bool>) {
        let mut frames = Vec::new();
        while let Some((prefix, rest)) = stream.split_first_chunk::<PREFIX>() {
            let len = u32::from_be_bytes(*prefix) as usize;
            if len > LIMIT {
                return (frames, None);
            }
            let Some((frame, rest)) = rest.split_at_checked(len) else {
                break;
            };
            frames.push(frame);
            stream = rest;
        }
        (frames, Some(stream.is_empty()))
    }

    fn real() -> Vec<(&'static str, Vec<u8>)> {
        let stream = framed(&[vec![1; 40], vec![], vec![2; 64], vec![3]]);
        let half = &stream[..stream.len() - 1];
        // How it is cut comes first.
        let cut = |cut: [u8; 2], stream: &[u8]| [&cut[..], stream].concat();
        vec![
            ("whole", cut([255, 255], &stream)),
            ("bytes", cut([0, 0], &stream)),
            ("pieces", cut([3, 40], &stream)),
            ("bad-half", cut([7, 1], half)),
            ("bad-large", cut([2, 5], &[0, 0, 0, 65, 1, 2, 3, 4])),
        ]
    }

    crate::fuzz::decoder!(framing, real(), |bytes| {
        let Some(([one, other], stream)) = bytes.split_first_chunk() else {
            return;
        };
        let (expected, ends) = all(stream);
        let mut deframer = Deframer::new(LIMIT);
        let mut frames = Vec::new();
        let mut sizes = [*one, *other].into_iter().cycle();
        let mut rest = stream;
        let mut broken = false;
        while !rest.is_empty() && !broken {
            let size = (1 + usize::from(sizes.next().unwrap())).min(rest.len());
            let (chunk, behind) = rest.split_at(size);
            rest = behind;
            deframer.push(Bytes::copy_from_slice(chunk));
            loop {
                match deframer.next() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(_) => {
                        broken = true;
                        break;
                    }
                }
            }
            assert!(deframer.partial.capacity() <= 4 * LIMIT);
        }
        assert_eq!(frames, expected);
        assert_eq!(broken, ends.is_none());
        if let Some(ends) = ends {
            assert_eq!(deframer.finish().is_ok(), ends);
        }
    });

    #[test]
    fn a_prefix_of_four_gigabytes_is_refused_before_anything_is_kept() {
        let mut deframer = Deframer::new(1024);
        deframer.push(Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 1, 2, 3]));
        assert!(matches!(
            deframer.next(),
            Err(FrameError::TooLarge { len: u32::MAX, .. })
        ));
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_truncated() {
        let mut deframer = Deframer::new(1024);
        deframer.push(Bytes::from_static(&[0, 0, 0, 9, 1]));
        assert!(deframer.next().unwrap().is_none());
        assert!(deframer.is_mid_frame());
        assert!(matches!(
            deframer.finish(),
            Err(FrameError::Truncated { .. })
        ));
    }
}

//! Signs and encrypts the frames of the gossip topic, and opens them again.
//!
//! The hub draws a key and a signing key for each *generation* and tells them to its spokes over
//! their direct links. A frame is sealed with ChaCha20-Poly1305 (RFC 8439) under the generation's key,
//! its header as associated data and its counter as nonce; an Ed25519 signature (RFC 8032) covers a
//! domain string, the hub's id, the topic, and the BLAKE3 hash of header and ciphertext. So a spoke of the topic can
//! read a frame, and nobody but the hub can have written it.
//!
//! The hash, because Ed25519 goes over what it signs with SHA-512, twice: for a full frame that took three times as long as the
//! signature itself, and BLAKE3 takes a tenth of it. Nobody finds two frames with one hash (128 bits of collision resistance, as
//! much as the signature has), so signing the hash is signing the frame.
//!
//! Knows no sockets and no time. How keys travel and when they change is the business of the hub.

use std::{collections::VecDeque, fmt};

use bytes::{Bytes, BytesMut};
use chacha20poly1305::{
    ChaCha20Poly1305,
    aead::{Aead, AeadInOut, KeyInit, Payload},
};
use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey};
use iroh::EndpointId;
use n0_error::{e, stack_error};
use rand::{Rng, RngExt};
use zeroize::Zeroizing;

use crate::{
    position::Epoch,
    wire::{
        broadcast::{self, BroadcastError, Frame, HEADER, Header},
        native::{GenerationKeys, PartOf},
    },
};

const DOMAIN: &[u8] = b"iroh-hub/1 broadcast frame, BLAKE3";

/// What every signature covers beside the frame: it binds the frame to one topic of one hub.
#[derive(Clone, Debug)]
pub(crate) struct Context(Vec<u8>);

impl Context {
    pub(crate) fn new(hub: EndpointId, topic: [u8; 32]) -> Self {
        Self([DOMAIN, &hub.as_bytes()[..], &topic[..]].concat())
    }

    /// What is signed for a frame with this header and ciphertext.
    fn message(&self, signed: &[u8]) -> Vec<u8> {
        [&self.0[..], blake3::hash(signed).as_bytes()].concat()
    }
}

/// The generation's counter is used up; the key must change before another frame is sealed.
#[stack_error(derive, add_meta)]
#[error("the counter of a key generation is used up")]
pub(crate) struct CounterExhausted;

/// Seals the frames of one generation: the hub's side.
pub(crate) struct Sealer {
    context: Context,
    epoch: Epoch,
    generation: u32,
    key: Zeroizing<[u8; 32]>,
    cipher: ChaCha20Poly1305,
    signing_key: SigningKey,
    counter: u64,
}

impl Sealer {
    /// Draws the keys of `generation`.
    pub(crate) fn new(context: Context, epoch: Epoch, generation: u32) -> Self {
        Self::with_rng(context, epoch, generation, &mut rand::rng())
    }

    /// The same, drawn from `rng`: a run that shall be repeated draws from a seed.
    pub(crate) fn with_rng(
        context: Context,
        epoch: Epoch,
        generation: u32,
        rng: &mut impl Rng,
    ) -> Self {
        let key = Zeroizing::new(rng.random::<[u8; 32]>());
        let secret = Zeroizing::new(rng.random::<[u8; 32]>());
        Self {
            context,
            epoch,
            generation,
            cipher: ChaCha20Poly1305::new((&*key).into()),
            key,
            signing_key: SigningKey::from_bytes(&secret),
            counter: 0,
        }
    }

    /// The number of the generation.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// What a spoke needs to open what this seals.
    pub(crate) fn keys(&self) -> GenerationKeys {
        GenerationKeys {
            generation: self.generation,
            key: *self.key,
            verify_key: self.signing_key.verifying_key().to_bytes(),
        }
    }

    /// Seals `count` packed events from offset `first` on, or a part of one.
    pub(crate) fn seal(
        &mut self,
        first: u64,
        count: u16,
        of: PartOf,
        content: &[u8],
    ) -> Result<Bytes, CounterExhausted> {
        let counter = self.counter;
        self.counter = counter.checked_add(1).ok_or_else(|| e!(CounterExhausted))?;
        let header = Header {
            epoch: self.epoch.to_u64(),
            generation: self.generation,
            counter,
            first,
            count,
            of,
        };
        let mut out = BytesMut::with_capacity(content.len() + broadcast::OVERHEAD);
        out.extend_from_slice(&header.encode());
        let at = out.len();
        out.extend_from_slice(content);
        let mut ciphertext = out.split_off(at);
        let tag = self
            .cipher
            .encrypt_inout_detached(
                &nonce(&header).into(),
                &header.encode(),
                (&mut ciphertext[..]).into(),
            )
            // Only over 256 GiB, which no frame is.
            .map_err(|_| e!(CounterExhausted))?;
        out.unsplit(ciphertext);
        out.extend_from_slice(&tag);
        let signature = self.signing_key.sign(&self.context.message(&out));
        out.extend_from_slice(&signature.to_bytes());
        Ok(out.freeze())
    }

    /// Seals a beacon that says where the tip is.
    #[cfg(test)]
    pub(crate) fn beacon(&mut self, tip: u64) -> Result<Bytes, CounterExhausted> {
        self.seal(tip, 0, PartOf::WHOLE, &[])
    }
}

/// Shows no key.
impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("epoch", &self.epoch)
            .field("generation", &self.generation)
            .field("counter", &self.counter)
            .finish_non_exhaustive()
    }
}

fn nonce(header: &Header) -> [u8; 12] {
    let mut nonce = [0; 12];
    let (generation, counter) = nonce.split_at_mut(4);
    generation.copy_from_slice(&header.generation.to_be_bytes());
    counter.copy_from_slice(&header.counter.to_be_bytes());
    nonce
}

/// A frame was not opened.
#[stack_error(derive, add_meta)]
#[non_exhaustive]
pub enum OpenError {
    /// It does not have the form of a frame.
    #[error("not a broadcast frame")]
    Form {
        /// What is wrong with it.
        source: BroadcastError,
    },
    /// It is of another epoch.
    #[error("a frame of another epoch")]
    OtherEpoch {},
    /// Its generation's keys are not known: too old, or not told yet.
    #[error("a frame of the unknown key generation {generation}")]
    UnknownGeneration {
        /// Its generation.
        generation: u32,
    },
    /// The hub did not sign it.
    #[error("the hub did not sign this frame")]
    BadSignature {},
    /// Its counter was seen already, or is too old to tell.
    #[error("a frame with a counter that was used before")]
    Replayed {},
    /// It does not decrypt.
    #[error("a frame does not decrypt")]
    BadSeal {},
    /// The verifying key of a generation is none, or one under which anybody could sign.
    #[error("the verifying key of generation {generation} is none, or a weak one")]
    BadKey {
        /// Its generation.
        generation: u32,
    },
}

/// What a frame of the hub carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Opened {
    /// Whole events, from this offset on.
    Events { first: u64, bodies: Vec<Bytes> },
    /// One part of the event at this offset.
    Part {
        offset: u64,
        of: PartOf,
        body: Bytes,
    },
    /// The tip of the hub's log.
    Beacon { tip: u64 },
}

/// Does the cryptography of opening a frame, or knows what came of it.
pub(crate) trait Check {
    /// Whether the hub signed the frame; `really` finds out.
    fn verify(&mut self, frame: &Bytes, really: impl FnOnce() -> bool) -> bool;

    /// The content of a frame that the hub signed; `really` decrypts it.
    fn decrypt(&mut self, frame: &Bytes, really: impl FnOnce() -> Option<Bytes>) -> Option<Bytes>;
}

/// Checks every frame where it is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Really;

impl Check for Really {
    fn verify(&mut self, _: &Bytes, really: impl FnOnce() -> bool) -> bool {
        really()
    }

    fn decrypt(&mut self, _: &Bytes, really: impl FnOnce() -> Option<Bytes>) -> Option<Bytes> {
        really()
    }
}

/// How many generations an opener keeps: the current one, the one before, and the next.
const GENERATIONS: usize = 3;

/// Opens frames: a spoke's side.
pub(crate) struct Opener {
    context: Context,
    epoch: Epoch,
    generations: VecDeque<Generation>,
}

struct Generation {
    generation: u32,
    cipher: ChaCha20Poly1305,
    verifying_key: VerifyingKey,
    replay: ReplayWindow,
}

impl Opener {
    pub(crate) fn new(context: Context, epoch: Epoch) -> Self {
        Self {
            context,
            epoch,
            generations: VecDeque::new(),
        }
    }

    /// Learns the keys of a generation, and forgets the oldest one if there are too many.
    pub(crate) fn add(&mut self, keys: &GenerationKeys) -> Result<(), OpenError> {
        let generation = keys.generation;
        if self.generations.iter().any(|g| g.generation == generation) {
            return Ok(());
        }
        // Under a weak key anybody's signature may do. `verify_strict` would look for that with each frame again, and refuse a
        // signature whose R is of small order besides, which nobody can make who has not the secret key. `verify` too insists on
        // canonical R and S, so that nobody makes a second signature of one.
        let verifying_key = VerifyingKey::from_bytes(&keys.verify_key)
            .ok()
            .filter(|key| !key.is_weak())
            .ok_or_else(|| e!(OpenError::BadKey { generation }))?;
        if self.generations.len() == GENERATIONS {
            self.generations.pop_front();
        }
        self.generations.push_back(Generation {
            generation,
            cipher: ChaCha20Poly1305::new((&keys.key).into()),
            verifying_key,
            replay: ReplayWindow::default(),
        });
        Ok(())
    }

    /// Opens a frame, really.
    pub(crate) fn open(&mut self, frame: &Bytes) -> Result<Opened, OpenError> {
        self.open_with(frame, &mut Really)
    }

    /// Opens a frame. Nothing in it is believed before `check` has verified its signature, and a frame
    /// is opened once: its counter is remembered.
    pub(crate) fn open_with(
        &mut self,
        bytes: &Bytes,
        check: &mut impl Check,
    ) -> Result<Opened, OpenError> {
        let frame = Frame::decode(bytes).map_err(|source| e!(OpenError::Form, source))?;
        let header = frame.header;
        if header.epoch != self.epoch.to_u64() {
            return Err(e!(OpenError::OtherEpoch));
        }
        let generation = self
            .generations
            .iter_mut()
            .find(|g| g.generation == header.generation)
            .ok_or_else(|| {
                e!(OpenError::UnknownGeneration {
                    generation: header.generation
                })
            })?;
        let signed = check.verify(bytes, || {
            let message = self.context.message(&frame.signed);
            let signature = Signature::from_bytes(&frame.signature);
            generation
                .verifying_key
                .verify(&message, &signature)
                .is_ok()
        });
        if !signed {
            return Err(e!(OpenError::BadSignature));
        }
        if !generation.replay.is_fresh(header.counter) {
            return Err(e!(OpenError::Replayed));
        }
        let aad = frame
            .signed
            .get(..HEADER)
            .ok_or_else(|| e!(OpenError::BadSeal))?;
        let content = check
            .decrypt(bytes, || {
                let msg = &frame.ciphertext[..];
                let content = generation
                    .cipher
                    .decrypt(&nonce(&header).into(), Payload { msg, aad });
                content.ok().map(Bytes::from)
            })
            .ok_or_else(|| e!(OpenError::BadSeal))?;
        generation.replay.note(header.counter);
        if header.is_beacon() {
            Ok(Opened::Beacon { tip: header.first })
        } else if header.of.parts > 1 {
            Ok(Opened::Part {
                offset: header.first,
                of: header.of,
                body: content,
            })
        } else {
            let bodies = broadcast::unpack(&content, header.count)
                .map_err(|source| e!(OpenError::Form, source))?;
            Ok(Opened::Events {
                first: header.first,
                bodies,
            })
        }
    }
}

/// Shows no key.
impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener")
            .field("epoch", &self.epoch)
            .field("generations", &self.generations.len())
            .finish_non_exhaustive()
    }
}

/// How far behind the newest counter a frame may be: a tree reorders, and a graft brings old frames.
const REPLAY_WINDOW: u64 = 1 << 16;
const WORD: u64 = 64;

/// Remembers which of the last counters were seen (after RFC 4303, 3.4.3).
struct ReplayWindow {
    /// One past the highest counter seen.
    end: u64,
    /// A bit for each of the last [`REPLAY_WINDOW`] counters, as a ring.
    seen: Box<[u64]>,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self {
            end: 0,
            seen: vec![0; (REPLAY_WINDOW / WORD) as usize].into(),
        }
    }
}

impl ReplayWindow {
    fn is_fresh(&self, counter: u64) -> bool {
        if counter >= self.end {
            return counter < u64::MAX;
        }
        self.end - counter <= REPLAY_WINDOW && self.word(counter) & bit(counter) == 0
    }

    fn note(&mut self, counter: u64) {
        if counter >= self.end {
            let passed = counter - self.end;
            if passed >= REPLAY_WINDOW {
                self.seen.fill(0);
            } else {
                for skipped in self.end..=counter {
                    *self.word_mut(skipped) &= !bit(skipped);
                }
            }
            self.end = counter.saturating_add(1);
        }
        *self.word_mut(counter) |= bit(counter);
    }

    fn word(&self, counter: u64) -> u64 {
        self.seen.get(slot(counter)).copied().unwrap_or(u64::MAX)
    }

    fn word_mut(&mut self, counter: u64) -> &mut u64 {
        // `slot` is below the length of the ring.
        &mut self.seen[slot(counter)]
    }
}

fn slot(counter: u64) -> usize {
    ((counter / WORD) % (REPLAY_WINDOW / WORD)) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % WORD)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;
    use crate::wire::broadcast::Packer;

    fn hub() -> EndpointId {
        iroh::SecretKey::from_bytes(&[7; 32]).public()
    }

    fn pair() -> (Sealer, Opener) {
        let context = Context::new(hub(), [1; 32]);
        let epoch = Epoch::from_u64(5);
        let sealer = Sealer::new(context.clone(), epoch, 0);
        let mut opener = Opener::new(context, epoch);
        opener.add(&sealer.keys()).unwrap();
        (sealer, opener)
    }

    fn seal_one(sealer: &mut Sealer, first: u64, body: &[u8]) -> Bytes {
        let mut packer = Packer::default();
        assert!(packer.push(body, 1 << 20));
        sealer
            .seal(first, 1, PartOf::WHOLE, &packer.take())
            .unwrap()
    }

    #[test]
    fn what_the_hub_seals_a_spoke_opens_once() {
        let (mut sealer, mut opener) = pair();
        let frame = seal_one(&mut sealer, 9, b"hello");
        assert_eq!(frame.len(), 6 + broadcast::OVERHEAD);
        assert!(!frame.windows(5).any(|w| w == b"hello"));
        let opened = opener.open(&frame).unwrap();
        assert_eq!(
            opened,
            Opened::Events {
                first: 9,
                bodies: vec![Bytes::from_static(b"hello")]
            }
        );
        assert!(matches!(
            opener.open(&frame),
            Err(OpenError::Replayed { .. })
        ));
        let beacon = sealer.beacon(12).unwrap();
        assert_eq!(opener.open(&beacon).unwrap(), Opened::Beacon { tip: 12 });
    }

    #[test]
    fn a_key_under_which_anybody_could_sign_is_refused() {
        let (sealer, mut opener) = pair();
        // The neutral element, and points of order 2, 4 and 8: RFC 8032 has their encodings decode.
        let mut one = [0; 32];
        one[0] = 1;
        let mut minus_one = [0xff; 32];
        minus_one[0] = 0xec;
        minus_one[31] = 0x7f;
        let order_8 = [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef,
            0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88,
            0x6d, 0x53, 0xfc, 0x05,
        ];
        // The neutral element once more, as no encoder would write it: y = p + 1.
        let mut p_and_one = [0xff; 32];
        p_and_one[0] = 0xee;
        p_and_one[31] = 0x7f;
        for verify_key in [one, minus_one, [0; 32], order_8, p_and_one] {
            assert!(VerifyingKey::from_bytes(&verify_key).is_ok());
            let mut keys = sealer.keys();
            keys.generation = 1;
            keys.verify_key = verify_key;
            let added = opener.add(&keys);
            assert!(matches!(
                added,
                Err(OpenError::BadKey { generation: 1, .. })
            ));
        }
    }

    #[test]
    fn frames_of_other_hubs_topics_epochs_and_generations_are_refused() {
        let (mut sealer, opener) = pair();
        let frame = seal_one(&mut sealer, 0, b"x");
        let keys = sealer.keys();
        let epoch = Epoch::from_u64(5);
        let other_hub = iroh::SecretKey::from_bytes(&[8; 32]).public();
        for context in [
            Context::new(other_hub, [1; 32]),
            Context::new(hub(), [2; 32]),
        ] {
            let mut opener = Opener::new(context, epoch);
            opener.add(&keys).unwrap();
            assert!(matches!(
                opener.open(&frame),
                Err(OpenError::BadSignature { .. })
            ));
        }
        let mut other_epoch = Opener::new(opener.context.clone(), Epoch::from_u64(6));
        other_epoch.add(&keys).unwrap();
        assert!(matches!(
            other_epoch.open(&frame),
            Err(OpenError::OtherEpoch { .. })
        ));
        let mut keyless = Opener::new(opener.context.clone(), epoch);
        assert!(matches!(
            keyless.open(&frame),
            Err(OpenError::UnknownGeneration { generation: 0, .. })
        ));
    }

    #[test]
    fn a_member_that_knows_the_key_cannot_write_frames() {
        let (sealer, mut opener) = pair();
        let mut forger = Sealer::new(sealer.context.clone(), sealer.epoch, 0);
        forger.key = sealer.key.clone();
        forger.cipher = ChaCha20Poly1305::new((&*forger.key).into());
        let frame = seal_one(&mut forger, 0, b"forged");
        assert!(matches!(
            opener.open(&frame),
            Err(OpenError::BadSignature { .. })
        ));
    }

    proptest! {
        #[test]
        fn a_frame_with_any_bit_changed_does_not_open(at: prop::sample::Index, bit in 0u32..8) {
            let (mut sealer, mut opener) = pair();
            let mut frame = seal_one(&mut sealer, 3, b"payload").to_vec();
            let at = at.index(frame.len());
            frame[at] ^= 1u8 << bit;
            prop_assert!(opener.open(&frame.into()).is_err());
        }
    }

    crate::fuzz::machine! {
        fn the_replay_window_lets_each_counter_pass_once(
            counters in prop::collection::vec(prop_oneof![0u64..300, 0..3 * REPLAY_WINDOW, any::<u64>()], 0..200)
        ) {
            let mut window = ReplayWindow::default();
            let mut seen = HashSet::new();
            let mut end = 0u64;
            for counter in counters {
                let fresh = window.is_fresh(counter);
                let in_window = counter >= end || end - counter <= REPLAY_WINDOW;
                prop_assert_eq!(fresh, in_window && !seen.contains(&counter) && counter < u64::MAX);
                if fresh {
                    window.note(counter);
                    seen.insert(counter);
                    end = end.max(counter + 1);
                }
            }
        }
    }
    /// The same frames in each run, and the keys to them.
    fn real() -> (GenerationKeys, Vec<(&'static str, Vec<u8>)>) {
        let mut rng = rand::rngs::StdRng::from_seed([4; 32]);
        let context = Context::new(hub(), [1; 32]);
        let mut sealer = Sealer::with_rng(context, Epoch::from_u64(5), 0, &mut rng);
        let part = PartOf { part: 1, parts: 3 };
        let frames = vec![
            ("event", seal_one(&mut sealer, 3, b"an event").to_vec()),
            ("part", sealer.seal(9, 1, part, &[7; 50]).unwrap().to_vec()),
            ("beacon", sealer.beacon(12).unwrap().to_vec()),
            (
                "bad-content",
                sealer.seal(4, 2, PartOf::WHOLE, b"\x01a").unwrap().to_vec(),
            ),
        ];
        (sealer.keys(), frames)
    }

    crate::fuzz::decoder!(sealed_frame, real().1, |bytes| {
        thread_local! {
            static OPENER: std::cell::RefCell<(Opener, Vec<Vec<u8>>, u32)> = {
                let mut opener = Opener::new(Context::new(hub(), [1; 32]), Epoch::from_u64(5));
                let (keys, frames) = real();
                opener.add(&keys).unwrap();
                let frames = frames.into_iter().map(|(_, frame)| frame).collect();
                std::cell::RefCell::new((opener, frames, 0))
            };
        }
        OPENER.with_borrow_mut(|(opener, ours, opened)| {
            match opener.open(&Bytes::copy_from_slice(bytes)) {
                Ok(_) => {
                    assert!(ours.iter().any(|frame| frame == bytes), "forged");
                    *opened += 1;
                    assert!(*opened <= 3, "opened twice");
                }
                Err(OpenError::Replayed { .. } | OpenError::BadSeal { .. }) => {
                    assert!(ours.iter().any(|frame| frame == bytes), "forged");
                }
                Err(_) => {}
            }
        });
    });
}

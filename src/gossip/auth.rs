//! Proves that a gossip connection is a member's, both ways, before its first message.
//!
//! Knowing the key of a generation is being a member. Each side sends a MAC under it over the connection's own
//! secret (so that it cannot be carried to another connection), its role, both ids, the topic and the generation. The side that
//! dialled offers its current key and, while that is still good, the one before; the other takes the newest that it knows
//! and answers under that one.
//!
//! When the key changes, both sides [prove it again](Keyring::stay), or the connection ends: whoever it is that has only
//! former keys, and whatever it calls itself, is a member no more.

use std::{
    pin::pin,
    sync::{Arc, PoisonError, RwLock},
};

use iroh::{
    EndpointId,
    endpoint::{Connection, RecvStream, SendStream},
};
use iroh_gossip::proto::TopicId;
use n0_error::{e, stack_error};
use n0_future::time::{Duration, Instant, sleep, sleep_until, timeout};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::conn::Code;

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"iroh-hub gossip member 1";
const EXPORTER: &[u8] = b"EXPORTER-iroh-hub-gossip-1";

const PROOF: usize = 4 + blake3::OUT_LEN;
const OFFER: usize = 1 + 2 * PROOF;
const ANSWER: usize = 1 + PROOF;

/// Why a connection was not taken for a member's.
#[stack_error(derive, add_meta)]
pub(super) enum AuthError {
    #[error("the peer ended the connection before it proved to be a member")]
    Ended,
    #[error(
        "the peer speaks version {version} of the proof, this node {VERSION}: update the older one"
    )]
    Version { version: u8 },
    #[error("the peer offers generation {generation}, whose key is not known here")]
    UnknownGeneration { generation: u32 },
    #[error("the peer does not know the key of generation {generation} of this topic")]
    Refused { generation: u32 },
    #[error("the connection has no secret of its own to bind the proof to")]
    Unbound,
    #[error(
        "the peer did not prove to have the key of generation {generation} when the key changed"
    )]
    Lapsed { generation: u32 },
    #[error("the peer opened a stream that is none for messages and brought no proof")]
    Idle,
}

impl AuthError {
    /// What the peer is told.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Ended { .. } | Self::Unbound { .. } | Self::Refused { .. } => Code::AuthFailed,
            Self::Version { .. } => Code::Version,
            Self::Lapsed { .. } => Code::Lapsed,
            Self::Idle { .. } => Code::Malformed,
            Self::UnknownGeneration { .. } => Code::UnknownGeneration,
        }
    }
}

#[derive(Clone)]
struct Key {
    generation: u32,
    key: Zeroizing<[u8; 32]>,
}

impl Key {
    fn new(generation: u32, key: [u8; 32]) -> Self {
        let key = Zeroizing::new(key);
        Self { generation, key }
    }
}

struct Keys {
    current: Key,
    previous: Option<(Key, Instant)>,
}

/// The keys that open connections of one topic: the current generation's, and for a while the one before.
#[derive(Clone)]
pub(super) struct Keyring {
    topic: TopicId,
    keys: Arc<RwLock<Keys>>,
    /// The newest generation.
    newest: watch::Sender<u32>,
}

/// The streams of a proof, the first of which carry the messages, and the generation whose key both sides have.
pub(super) struct Proved {
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    pub(super) generation: u32,
}

/// A connection that is a member's.
pub(super) struct Membership {
    pub(super) conn: Connection,
    pub(super) me: EndpointId,
    /// Whether we dialled it.
    pub(super) dialed: bool,
    /// The generation whose key both sides proved to have.
    pub(super) generation: u32,
}

/// How much longer than a former key opens connections, those that it has opened may stay.
const GRACE: Duration = Duration::from_secs(2);

/// No former key is good for longer.
const LONGEST: Duration = Duration::from_secs(86_400);

/// How long a peer has to finish a proof on a connection that stands.
const AGAIN_WITHIN: Duration = Duration::from_secs(5);

/// How long one side waits after a proof that was as it should be.
const SETTLED: Duration = Duration::from_millis(20);

/// How soon a proof is tried again that came too early for one side, and how often one is taken from a peer.
const AGAIN: Duration = Duration::from_millis(200);

/// Which end of the connection a proof is from.
#[derive(Clone, Copy)]
enum Role {
    Dialer,
    Acceptor,
}

impl Keyring {
    pub(super) fn new(topic: TopicId, generation: u32, key: [u8; 32]) -> Self {
        let keys = Keys {
            current: Key::new(generation, key),
            previous: None,
        };
        Self {
            topic,
            keys: Arc::new(RwLock::new(keys)),
            newest: watch::Sender::new(generation),
        }
    }

    /// Takes the key of a newer generation; an older one is ignored.
    pub(super) fn rekey(&self, generation: u32, key: [u8; 32], previous_until: Instant) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if generation == keys.current.generation
            && let Some((_, until)) = &mut keys.previous
        {
            // It may have come before the news that somebody is a member no more.
            *until = (*until).min(previous_until);
        }
        if generation > keys.current.generation {
            let previous = std::mem::replace(&mut keys.current, Key::new(generation, key));
            keys.previous = Some((previous, previous_until));
            drop(keys);
            self.newest.send_replace(generation);
        }
    }

    /// Resolves when the peer of a connection has not proved in time to have newer keys, after they changed, or has opened
    /// a stream for something else.
    pub(super) async fn stay(&self, member: Membership) -> AuthError {
        let Membership {
            conn,
            me,
            dialed,
            generation: mut proved,
        } = member;
        let mut changes = self.newest.subscribe();
        // By when which generation is to be proved.
        let mut due: Option<(u32, Instant)> = None;
        loop {
            let behind = due.is_some();
            let prove = async {
                match dialed {
                    true if behind => self.dial(&conn, me).await,
                    true => std::future::pending().await,
                    false => self.accept_again(&conn, me).await,
                }
            };
            let mut prove = pin!(prove);
            let again = loop {
                let newest = *changes.borrow_and_update();
                let idle = dialed && due.is_none();
                due = match due {
                    _ if newest <= proved => None,
                    Some((generation, at)) if generation > proved => Some((generation, at)),
                    _ => Some((newest, self.previous_until() + GRACE)),
                };
                if idle && due.is_some() {
                    break None;
                }
                let late = async {
                    match due {
                        Some((_, at)) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                // A proof that is under way goes on when the keys change again.
                tokio::select! {
                    again = &mut prove => break Some(again),
                    () = late => {
                        let generation = due.map_or(newest, |(generation, _)| generation);
                        return e!(AuthError::Lapsed { generation });
                    }
                    Ok(()) = changes.changed() => {}
                }
            };
            let wait = match again {
                None => continue,
                Some(Ok(again)) => {
                    proved = proved.max(again.generation);
                    if proved >= *self.newest.borrow() {
                        SETTLED
                    } else {
                        AGAIN
                    }
                }
                Some(Err(error @ (AuthError::Refused { .. } | AuthError::Idle { .. }))) => {
                    return error;
                }
                // It may have been too early.
                Some(Err(_)) => AGAIN,
            };
            if conn.close_reason().is_some() {
                // What came before is still to be read.
                return std::future::pending().await;
            }
            sleep(wait).await;
        }
    }

    /// Waits for another proof of a member. One at a time is all that it has to say beside its messages.
    async fn accept_again(&self, conn: &Connection, me: EndpointId) -> Result<Proved, AuthError> {
        let streams = conn.accept_bi().await.map_err(|_| e!(AuthError::Ended))?;
        tokio::select! {
            proved = timeout(AGAIN_WITHIN, self.answer(conn, me, streams)) => match proved {
                Ok(Err(AuthError::Version { .. })) => Err(e!(AuthError::Idle)),
                Ok(proved) => proved,
                // Its packets may be lost.
                Err(_) => Err(e!(AuthError::Ended)),
            },
            another = conn.accept_bi() => match another {
                Ok(_) => Err(e!(AuthError::Idle)),
                Err(_) => Err(e!(AuthError::Ended)),
            },
        }
    }

    /// Until when the key before the current one is good.
    fn previous_until(&self) -> Instant {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let previous = keys.previous.as_ref();
        previous.map_or_else(Instant::now, |(_, until)| *until)
    }

    /// The keys that are good now, the newest first.
    fn good(&self) -> (Key, Option<Key>) {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let previous = keys.previous.as_ref();
        let previous = previous.filter(|(_, until)| *until > Instant::now());
        (keys.current.clone(), previous.map(|(key, _)| key.clone()))
    }

    fn known(&self, generation: u32) -> Option<Key> {
        let (current, previous) = self.good();
        [Some(current), previous]
            .into_iter()
            .flatten()
            .find(|key| key.generation == generation)
    }

    /// The side that dialled: opens the stream that will carry the messages.
    pub(super) async fn dial(
        &self,
        conn: &Connection,
        me: EndpointId,
    ) -> Result<Proved, AuthError> {
        let binding = Binding::new(conn, self.topic, me, conn.remote_id())?;
        let (mut send, mut recv) = conn.open_bi().await.map_err(|_| e!(AuthError::Ended))?;
        send.write_all(&self.offer(&binding))
            .await
            .map_err(|_| e!(AuthError::Ended))?;
        let mut answer = [0; ANSWER];
        recv.read_exact(&mut answer)
            .await
            .map_err(|_| e!(AuthError::Ended))?;
        let generation = self.check_answer(&answer, &binding)?;
        Ok(Proved {
            send,
            recv,
            generation,
        })
    }

    /// The side that was dialled.
    pub(super) async fn accept(
        &self,
        conn: &Connection,
        me: EndpointId,
    ) -> Result<Proved, AuthError> {
        let streams = conn.accept_bi().await.map_err(|_| e!(AuthError::Ended))?;
        self.answer(conn, me, streams).await
    }

    async fn answer(
        &self,
        conn: &Connection,
        me: EndpointId,
        (mut send, mut recv): (SendStream, RecvStream),
    ) -> Result<Proved, AuthError> {
        let binding = Binding::new(conn, self.topic, conn.remote_id(), me)?;
        let mut offer = [0; OFFER];
        recv.read_exact(&mut offer)
            .await
            .map_err(|_| e!(AuthError::Ended))?;
        let key = self.check_offer(&offer, &binding)?;
        let mut answer = Vec::with_capacity(ANSWER);
        answer.push(VERSION);
        answer.extend_from_slice(&key.generation.to_be_bytes());
        answer.extend_from_slice(binding.proof(&key, Role::Acceptor).as_bytes());
        send.write_all(&answer)
            .await
            .map_err(|_| e!(AuthError::Ended))?;
        Ok(Proved {
            send,
            recv,
            generation: key.generation,
        })
    }

    /// What the side that dials says first.
    fn offer(&self, binding: &Binding) -> Vec<u8> {
        let (current, previous) = self.good();
        let mut offer = Vec::with_capacity(OFFER);
        offer.push(VERSION);
        // Without a previous key the current one stands there twice.
        for key in [&current, previous.as_ref().unwrap_or(&current)] {
            offer.extend_from_slice(&key.generation.to_be_bytes());
            offer.extend_from_slice(binding.proof(key, Role::Dialer).as_bytes());
        }
        offer
    }

    /// The newest key of an offer that is known here, if the peer has it.
    fn check_offer(&self, offer: &[u8; OFFER], binding: &Binding) -> Result<Key, AuthError> {
        let [version, proofs @ ..] = *offer;
        if version != VERSION {
            return Err(e!(AuthError::Version { version }));
        }
        let (proofs, _) = proofs.as_chunks::<PROOF>();
        let best = proofs
            .iter()
            .map(split)
            .filter_map(|(generation, mac)| Some((self.known(generation)?, mac)))
            .max_by_key(|(key, _)| key.generation);
        let Some((key, mac)) = best else {
            let generation = proofs.first().map(split).map_or(0, |(number, _)| number);
            return Err(e!(AuthError::UnknownGeneration { generation }));
        };
        if binding.proof(&key, Role::Dialer) != mac {
            return Err(e!(AuthError::Refused {
                generation: key.generation
            }));
        }
        Ok(key)
    }

    /// The generation of an answer, if its key is known here and the peer has it.
    fn check_answer(&self, answer: &[u8; ANSWER], binding: &Binding) -> Result<u32, AuthError> {
        let [version, proof @ ..] = *answer;
        if version != VERSION {
            return Err(e!(AuthError::Version { version }));
        }
        let (generation, mac) = split(&proof);
        let key = self
            .known(generation)
            .ok_or_else(|| e!(AuthError::UnknownGeneration { generation }))?;
        if binding.proof(&key, Role::Acceptor) != mac {
            return Err(e!(AuthError::Refused { generation }));
        }
        Ok(generation)
    }
}

/// Splits a generation and the MAC under its key. Comparing a [`blake3::Hash`] takes the same time for all.
fn split(proof: &[u8; PROOF]) -> (u32, blake3::Hash) {
    let [a, b, c, d, mac @ ..] = *proof;
    (
        u32::from_be_bytes([a, b, c, d]),
        blake3::Hash::from_bytes(mac),
    )
}

/// What a proof is about, apart from who gives it and under which key.
struct Binding {
    secret: Zeroizing<[u8; 32]>,
    dialer: EndpointId,
    acceptor: EndpointId,
    topic: TopicId,
}

impl Binding {
    fn new(
        conn: &Connection,
        topic: TopicId,
        dialer: EndpointId,
        acceptor: EndpointId,
    ) -> Result<Self, AuthError> {
        let mut secret = Zeroizing::new([0; 32]);
        conn.export_keying_material(&mut secret[..], EXPORTER, b"")
            .map_err(|_| e!(AuthError::Unbound))?;
        Ok(Self {
            secret,
            dialer,
            acceptor,
            topic,
        })
    }

    fn proof(&self, key: &Key, role: Role) -> blake3::Hash {
        // Every part has a fixed length, so no two inputs run into one.
        let mut mac = blake3::Hasher::new_keyed(&key.key);
        mac.update(DOMAIN);
        mac.update(&[match role {
            Role::Dialer => 0,
            Role::Acceptor => 1,
        }]);
        mac.update(&self.secret[..]);
        mac.update(self.dialer.as_bytes());
        mac.update(self.acceptor.as_bytes());
        mac.update(self.topic.as_bytes());
        mac.update(&key.generation.to_be_bytes());
        mac.finalize()
    }
}

/// Until when a key may still be used that is replaced now.
pub(super) fn previous_until(lifetime: Duration) -> Instant {
    Instant::now() + lifetime.min(LONGEST)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    const TOPIC: TopicId = TopicId::from_bytes([7; 32]);

    #[test]
    fn the_previous_key_is_good_for_a_while_only() {
        let ring = Keyring::new(TOPIC, 1, [1; 32]);
        ring.rekey(2, [2; 32], Instant::now() + Duration::from_secs(60));
        assert!(ring.known(1).is_some() && ring.known(2).is_some());
        ring.rekey(3, [3; 32], Instant::now());
        assert!(ring.known(2).is_none() && ring.known(1).is_none());
        ring.rekey(2, [9; 32], Instant::now());
        assert_eq!(ring.good().0.generation, 3);
    }

    #[test]
    fn a_proof_is_for_one_role_key_connection_and_pair() {
        let id = || iroh::SecretKey::generate().public();
        let binding = |secret: [u8; 32], dialer, acceptor, topic| Binding {
            secret: Zeroizing::new(secret),
            dialer,
            acceptor,
            topic,
        };
        let (a, b) = (id(), id());
        let key = Key::new(1, [1; 32]);
        let this = binding([0; 32], a, b, TOPIC);
        let proof = this.proof(&key, Role::Dialer);
        let others = [
            this.proof(&key, Role::Acceptor),
            this.proof(&Key::new(2, [1; 32]), Role::Dialer),
            this.proof(&Key::new(1, [2; 32]), Role::Dialer),
            binding([1; 32], a, b, TOPIC).proof(&key, Role::Dialer),
            binding([0; 32], b, a, TOPIC).proof(&key, Role::Dialer),
            binding([0; 32], a, b, TopicId::from_bytes([8; 32])).proof(&key, Role::Dialer),
        ];
        assert!(others.iter().all(|other| *other != proof));
        assert_eq!(this.proof(&key, Role::Dialer), proof);
    }
    /// A ring with two good keys, and what a proof is about.
    fn member() -> (Keyring, Binding) {
        let id = |n| iroh::SecretKey::from_bytes(&[n; 32]).public();
        let ring = Keyring::new(TOPIC, 1, [1; 32]);
        ring.rekey(2, [2; 32], Instant::now() + Duration::from_secs(1 << 30));
        let binding = Binding {
            secret: Zeroizing::new([4; 32]),
            dialer: id(1),
            acceptor: id(2),
            topic: TOPIC,
        };
        (ring, binding)
    }

    /// An offer, and an answer under each key.
    fn real() -> Vec<(&'static str, Vec<u8>)> {
        let (ring, binding) = member();
        let answer = |generation| {
            let proof = binding.proof(&ring.known(generation).unwrap(), Role::Acceptor);
            [&[VERSION][..], &generation.to_be_bytes(), proof.as_bytes()].concat()
        };
        vec![
            ("offer", ring.offer(&binding)),
            ("answer", answer(2)),
            ("answer-former", answer(1)),
        ]
    }

    crate::fuzz::decoder!(gossip_proof, real(), |bytes| {
        static MEMBER: LazyLock<(Keyring, Binding)> = LazyLock::new(member);
        static REAL: LazyLock<Vec<Vec<u8>>> =
            LazyLock::new(|| real().into_iter().map(|(_, bytes)| bytes).collect());
        let (ring, binding) = &*MEMBER;
        if let Some(offer) = bytes.first_chunk()
            && let Ok(key) = ring.check_offer(offer, binding)
        {
            // One of the two proofs that were given, and in it every byte.
            let given = REAL[0][1..].chunks(PROOF);
            let mut given = given.filter(|proof| proof[..4] == key.generation.to_be_bytes());
            let proof = given.next().expect("a generation that was given");
            assert!(
                offer[1..].chunks(PROOF).any(|other| other == proof),
                "forged"
            );
        }
        if let Some(answer) = bytes.first_chunk::<ANSWER>()
            && ring.check_answer(answer, binding).is_ok()
        {
            assert!(REAL.iter().any(|real| real == answer), "forged");
        }
    });
}

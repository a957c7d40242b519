//! One authenticated connection: a reader and a writer that wait for nobody but their peer.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use iroh::{
    EndpointId,
    endpoint::{Connection, ReadExactError, RecvStream, SendStream},
};
use n0_future::time::{Duration, Instant, timeout};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    GossipMetrics,
    auth::{Keyring, Membership},
    core::CloseWhy,
    node::Inbound,
    outbox::{Next, Outbox},
};
use crate::close::CloseCode;

/// How long the last messages have to arrive, on either side.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a message costs of its reader's budget beyond its bytes.
const MESSAGE_COST: usize = 1024;

/// How much of one peer may wait for the actor, at least.
const BUDGET: usize = 256 * 1024;

/// How much of one peer may wait for the actor, if its messages are of so many bytes at most.
pub(super) fn budget(max_message: usize) -> usize {
    let message = max_message.saturating_add(MESSAGE_COST);
    BUDGET.max(message.saturating_mul(2))
}

/// Why a gossip connection was closed, as its peer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Done,
    Busy,
    AuthFailed,
    UnknownGeneration,
    Version,
    Forged,
    Malformed,
    TooLarge,
    CutShort,
    Flooding,
    Stuck,
    Evicted,
    Banned,
    TooOften,
    Replaced,
    Late,
    Lapsed,
    Unfinished,
}

impl Code {
    pub(super) fn close(self, conn: &Connection) {
        let (code, reason) = match self {
            Self::Done => (CloseCode::NotNeeded, "neighbours no more"),
            Self::Busy => (
                CloseCode::TooMany,
                "too many gossip connections, try another peer",
            ),
            Self::AuthFailed => (CloseCode::NotAMember, "not a member of this topic"),
            Self::UnknownGeneration => (
                CloseCode::NotAMember,
                "unknown key generation, try again once rekeyed",
            ),
            Self::Version => (
                CloseCode::Version,
                "unknown version of the membership proof",
            ),
            Self::Forged => (CloseCode::Misbehaved, "sent a forged frame"),
            Self::Malformed => (CloseCode::BadFrame, "sent a malformed message"),
            Self::TooLarge => (CloseCode::TooLarge, "sent a message beyond the limit"),
            Self::CutShort => (CloseCode::BadFrame, "ended in the middle of a message"),
            Self::Flooding => (CloseCode::Misbehaved, "floods the topic"),
            Self::Stuck => (CloseCode::FellBehind, "takes no messages"),
            Self::Evicted => (CloseCode::Refused, "a member no more"),
            Self::Banned => (CloseCode::Refused, "cut off for now"),
            Self::TooOften => (CloseCode::TooMany, "comes too often, wait a while"),
            Self::Replaced => (CloseCode::Fenced, "replaced by another connection"),
            Self::Late => (CloseCode::TimedOut, "no membership proof in time"),
            Self::Lapsed => (
                CloseCode::NotAMember,
                "no proof of the topic's new key in time",
            ),
            Self::Unfinished => (CloseCode::TimedOut, "a message was not finished in time"),
        };
        conn.close(code.to_varint(), reason.as_bytes());
    }

    /// Whether what was queued shall still be sent.
    pub(super) fn is_polite(self) -> bool {
        matches!(self, Self::Done | Self::Replaced)
    }
}

impl From<CloseWhy> for Code {
    fn from(why: CloseWhy) -> Self {
        match why {
            CloseWhy::Done => Self::Done,
            CloseWhy::Forged => Self::Forged,
            CloseWhy::Malformed => Self::Malformed,
            CloseWhy::TooLarge => Self::TooLarge,
            CloseWhy::Flooding => Self::Flooding,
            CloseWhy::Stuck => Self::Stuck,
            CloseWhy::Evicted => Self::Evicted,
        }
    }
}

/// What is read from a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadLimits {
    /// The longest message, in bytes.
    pub(super) max_message: usize,
    /// How long a message may stay unfinished.
    pub(super) timeout: Duration,
}

/// A connection that proved to be a member's.
pub(super) struct Link {
    pub(super) number: u64,
    pub(super) peer: EndpointId,
    pub(super) conn: Connection,
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    pub(super) outbox: Arc<Outbox>,
    pub(super) limits: ReadLimits,
    pub(super) inbound: mpsc::Sender<Inbound>,
    pub(super) metrics: Arc<GossipMetrics>,
    /// Its place among the connections that may be open.
    pub(super) place: OwnedSemaphorePermit,
    pub(super) keys: Keyring,
    /// Whose it is, as far as it was proved.
    pub(super) member: Membership,
}

impl Link {
    /// Carries messages both ways until either side ends it, and then sees that the last ones arrive.
    pub(super) async fn run(self, kill: CancellationToken) {
        let Self {
            number,
            peer,
            conn,
            send,
            recv,
            outbox,
            limits,
            inbound,
            metrics,
            place,
            keys,
            member,
        } = self;
        let dialed = member.dialed;
        let carry = async {
            let reader = async {
                let reading = Reading { recv, limits };
                let why = tokio::select! {
                    why = reading.run(peer, &inbound) => why,
                    () = anything_else(&conn, dialed) => Code::Malformed,
                };
                if matches!(why, Code::Unfinished | Code::CutShort) {
                    metrics.refused_unfinished.inc();
                }
                // Says so at once: whatever is sent from now on would be lost.
                let gone = match why {
                    Code::TooLarge => Inbound::Oversize { peer },
                    Code::Malformed => Inbound::BrokeRules { peer },
                    _ => Inbound::Gone { peer, number },
                };
                inbound.send(gone).await.ok();
                outbox.end(why);
            };
            let writer = write(send, &outbox, &metrics);
            let farewell = async {
                // The time for the last messages runs from when the end is asked for.
                outbox.ending().await;
                n0_future::time::sleep(FAREWELL).await;
            };
            tokio::select! {
                _ = async { tokio::join!(reader, writer) } => {}
                _ = farewell => {}
            }
        };
        tokio::select! {
            _ = carry => {}
            why = keys.stay(member) => {
                debug!(remote = %peer.fmt_short(), number, %why, "cut off");
                let code = why.code();
                if code == Code::Malformed {
                    inbound.send(Inbound::BrokeRules { peer }).await.ok();
                } else {
                    metrics.lapsed.inc();
                }
                outbox.end(code);
            }
            _ = kill.cancelled() => {}
        }
        outbox.ended().unwrap_or(Code::Done).close(&conn);
        // In case the reader had no time to.
        let gone = Inbound::Gone { peer, number };
        timeout(FAREWELL, inbound.send(gone)).await.ok();
        drop(place);
        debug!(remote = %peer.fmt_short(), number, "gossip connection closed");
    }
}

/// Waits for what no member does, beside the streams of [`Keyring::stay`]: to open another stream, or to send a datagram.
/// It would be kept for us unread.
async fn anything_else(conn: &Connection, dialed: bool) {
    let streams = async {
        match dialed {
            true => conn.accept_bi().await.is_ok(),
            false => std::future::pending().await,
        }
    };
    let did = tokio::select! {
        did = streams => did,
        stream = conn.accept_uni() => stream.is_ok(),
        datagram = conn.read_datagram() => datagram.is_ok(),
    };
    if !did {
        // The connection is gone, which the reader finds out as well.
        std::future::pending::<()>().await;
    }
}

/// What comes from one peer.
struct Reading {
    recv: RecvStream,
    limits: ReadLimits,
}

impl Reading {
    /// Reads messages until the stream ends; says with which code to end our side.
    async fn run(mut self, peer: EndpointId, inbound: &mpsc::Sender<Inbound>) -> Code {
        // Each peer has a budget of its own, so one that floods us waits for itself.
        let places = Arc::new(Semaphore::new(budget(self.limits.max_message)));
        let mut buffer = BytesMut::new();
        loop {
            // Between messages a peer may be silent for as long as it likes.
            let mut first = [0];
            if self.recv.read_exact(&mut first).await.is_err() {
                return Code::Done;
            }
            let began = Instant::now();
            let mut rest = [0; 3];
            if let Err(why) = self.rest(&mut rest, began).await {
                return why;
            }
            let ([a], [b, c, d]) = (first, rest);
            let len = u32::from_be_bytes([a, b, c, d]) as usize;
            if len > self.limits.max_message {
                return Code::TooLarge;
            }
            let cost = u32::try_from(len + MESSAGE_COST).unwrap_or(u32::MAX);
            let waiting = Instant::now();
            let Ok(place) = places.clone().acquire_many_owned(cost).await else {
                return Code::Done;
            };
            // The time in which we took nothing is ours.
            let began = began + waiting.elapsed();
            buffer.resize(len, 0);
            if let Err(why) = self.rest(&mut buffer, began).await {
                return why;
            }
            let message = Inbound::Message {
                peer,
                message: buffer.split().freeze(),
                place,
            };
            if inbound.send(message).await.is_err() {
                return Code::Done;
            }
        }
    }

    /// Fills the buffer with what belongs to a message that began then.
    async fn rest(&mut self, buffer: &mut [u8], began: Instant) -> Result<(), Code> {
        let left = self.limits.timeout.saturating_sub(began.elapsed());
        match timeout(left, self.recv.read_exact(buffer)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ReadExactError::FinishedEarly(_))) => Err(Code::CutShort),
            Ok(Err(_)) => Err(Code::Done),
            Err(_) => Err(Code::Unfinished),
        }
    }
}

/// Writes what is queued until the queue is ended, and then until all of it has arrived.
async fn write(mut send: SendStream, outbox: &Outbox, metrics: &GossipMetrics) {
    let mut batch: Vec<Bytes> = Vec::new();
    while outbox.next(&mut batch).await == Next::Write {
        let messages = batch.len() / 2;
        let bytes: usize = batch.iter().map(Bytes::len).sum();
        if send.write_all_chunks(&mut batch).await.is_err() {
            return;
        }
        batch.clear();
        let payload = bytes.saturating_sub(4 * messages);
        outbox.wrote(messages, payload, Instant::now());
        metrics.bytes_sent.inc_by(bytes as u64);
    }
    if send.finish().is_ok() {
        send.stopped().await.ok();
    }
}

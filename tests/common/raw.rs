//! A peer that speaks the protocols by hand: raw iroh endpoints, and bytes written from the protocol's
//! description rather than with the library's own types.

use iroh::{
    Endpoint, EndpointAddr,
    endpoint::{Connection, ConnectionError, ReadError, RecvStream, SendStream},
};
use iroh_hub::{Hub, endpoint};
use std::net::{Ipv4Addr, SocketAddr};
use tokio::time::timeout;

use super::{LIMIT, bind};

pub const NATIVE: &[u8] = b"iroh-hub/1";
pub const COMPAT: &[u8] = b"alkpubsub/1";
pub const GOSSIP: &[u8] = b"iroh-hub/gossip/1";

/// The longest part of an event, and the longest frame, of `iroh-hub/1`.
pub const MAX_PART: usize = 64 * 1024;
pub const MAX_FRAME: usize = MAX_PART + 1024;

/// The numbers of the close codes, which clients in other languages rely on.
pub mod code {
    pub const GOODBYE: u64 = 1;
    pub const REFUSED: u64 = 2;
    pub const BAD_FRAME: u64 = 3;
    pub const TOO_LARGE: u64 = 4;
    pub const TIMED_OUT: u64 = 5;
    pub const TOO_MANY: u64 = 6;
    pub const FELL_BEHIND: u64 = 7;
    pub const FENCED: u64 = 8;
    pub const VERSION: u64 = 9;
    pub const NOT_A_MEMBER: u64 = 10;
    pub const NOT_NEEDED: u64 = 11;
    pub const MISBEHAVED: u64 = 12;
    pub const NEW_EPOCH: u64 = 14;
}

/// The length prefix and the bytes behind it.
pub fn frame(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    let mut out = (bytes.len() as u32).to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

pub fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push((n as u8) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

/// A frame of `iroh-hub/1`: a kind, integers, and raw bytes.
pub fn native(kind: u8, numbers: &[u64], rest: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    for n in numbers {
        out.extend(varint(*n));
    }
    out.extend_from_slice(rest);
    frame(out)
}

/// An envelope as `iroh-hub/1` carries it.
pub fn body(event_type: &[u8], id: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in [event_type, id, payload] {
        out.extend(varint(piece.len() as u64));
        out.extend_from_slice(piece);
    }
    out
}

/// The number that an event of [`numbered`](super::numbered) carries, from its body.
pub fn number_in(body: &[u8]) -> u64 {
    let mut reading = Reading(body);
    for _ in ["type", "id"] {
        let len = reading.number();
        reading.0 = reading.0.get(len as usize..).expect("so many bytes");
    }
    let _len = reading.number();
    let digits = std::str::from_utf8(reading.0).expect("digits");
    digits.parse().expect("a number")
}

/// A hello: version, features, no session, no targeted events, from the tip.
pub fn hello(version: u64) -> Vec<u8> {
    native(0, &[version, 0, 0, 0, 0], b"")
}

/// A hello that begins with the oldest event.
pub fn hello_from_earliest() -> Vec<u8> {
    native(0, &[1, 0, 0, 0, 1], b"")
}

/// A hello that goes on with a session, from the tip: `targeted` is the last targeted event that was taken.
pub fn hello_again(session: [u8; 16], targeted: u64) -> Vec<u8> {
    let mut out = vec![0, 1, 0, 1];
    out.extend(session);
    out.extend(varint(targeted));
    out.push(0);
    frame(out)
}

/// Reads what the protocol's description says, and fails the test at anything else.
#[derive(Debug)]
pub struct Reading<'a>(pub &'a [u8]);

impl Reading<'_> {
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().expect("a byte");
        self.0 = rest;
        *first
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (first, rest) = self.0.split_first_chunk().expect("so many bytes");
        self.0 = rest;
        *first
    }

    pub fn number(&mut self) -> u64 {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte();
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        n
    }
}

/// A welcome, as far as tests look into it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcomed {
    pub session: [u8; 16],
    pub published: u64,
    pub epoch: u64,
    pub tip: u64,
    pub start: u64,
    pub continues: bool,
}

impl Welcomed {
    pub fn read(frame: &[u8]) -> Self {
        let mut reading = Reading(frame);
        assert_eq!(reading.byte(), 0, "the first frame is a welcome");
        assert_eq!(reading.number(), 1, "of version 1");
        let _features = reading.number();
        let session = reading.bytes();
        let [published, epoch, tip, start] = [(); 4].map(|()| reading.number());
        let continues = reading.byte() == 1;
        Self {
            session,
            published,
            epoch,
            tip,
            start,
            continues,
        }
    }
}

/// A frame of the hub, as far as tests look into it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard {
    /// A whole broadcast: its offset and its body.
    Event(u64, Vec<u8>),
    /// A whole targeted event: its number, the offset that it waits for, and its body.
    Targeted(u64, u64, Vec<u8>),
    Missed(u64, u64),
    Ack(u64),
    AckNow(u64),
    /// A kind, and what tests do not look into.
    Other(u8),
}

impl Heard {
    pub fn read(frame: &[u8]) -> Self {
        let mut reading = Reading(frame);
        let whole = |mut reading: Reading<'_>| {
            assert_eq!((reading.number(), reading.number()), (0, 1), "of one part");
            reading.0.to_vec()
        };
        match reading.byte() {
            1 | 2 => Self::Event(reading.number(), whole(reading)),
            3 => {
                let seq = reading.number();
                let _epoch = reading.number();
                Self::Targeted(seq, reading.number(), whole(reading))
            }
            6 => Self::Missed(reading.number(), reading.number()),
            7 => Self::Ack(reading.number()),
            10 => Self::AckNow(reading.number()),
            kind => Self::Other(kind),
        }
    }
}

pub fn publish(seq: u64, part: u64, parts: u64, body: &[u8]) -> Vec<u8> {
    native(1, &[seq, part, parts], body)
}

pub fn ack(offset: u64, seq: u64) -> Vec<u8> {
    native(2, &[offset, seq], b"")
}

pub fn want(from: u64, to: Option<u64>) -> Vec<u8> {
    match to {
        Some(to) => native(3, &[from, 1, to], b""),
        None => native(3, &[from, 0], b""),
    }
}

/// The spoke gave up `[from, to)` by itself.
pub fn missed(from: u64, to: u64) -> Vec<u8> {
    native(5, &[from, to], b"")
}

/// The spoke does not take a targeted event.
pub fn refused(seq: u64) -> Vec<u8> {
    native(6, &[seq], b"")
}

/// Of a topic whose id is all sevens.
pub fn served(from: u64) -> Vec<u8> {
    served_by([7; 32], from)
}

/// The spoke gets everything from `from` on from this topic.
pub fn served_by(topic: [u8; 32], from: u64) -> Vec<u8> {
    native(4, &[], &[&topic[..], &varint(from)].concat())
}

/// A welcome by a hub of another make.
pub fn welcome(version: u64, epoch: u64, start: u64, tip: u64) -> Vec<u8> {
    welcome_of(version, 7, 0, epoch, start, tip)
}

/// A welcome to a session, whose hub has the spoke's events up to `published`.
pub fn welcome_back(session: u8, published: u64, epoch: u64, start: u64, tip: u64) -> Vec<u8> {
    welcome_of(1, session, published, epoch, start, tip)
}

fn welcome_of(
    version: u64,
    session: u8,
    published: u64,
    epoch: u64,
    start: u64,
    tip: u64,
) -> Vec<u8> {
    let mut out = vec![0];
    for n in [version, 0] {
        out.extend(varint(n));
    }
    out.extend([session; 16]);
    for n in [published, epoch, tip, start] {
        out.extend(varint(n));
    }
    // The start is where the spoke asked to begin.
    out.push(1);
    for n in [16 << 20, 20, 4 << 20] {
        out.extend(varint(n));
    }
    frame(out)
}

pub fn event(offset: u64, part: u64, parts: u64, body: &[u8]) -> Vec<u8> {
    native(1, &[offset, part, parts], body)
}

/// Several events of the same body in one frame.
pub fn events(first: u64, count: usize, body: &[u8]) -> Vec<u8> {
    let one = [varint(body.len() as u64), body.to_vec()].concat();
    native(11, &[first], &one.repeat(count))
}

pub fn targeted(seq: u64, epoch: u64, after: u64, part: u64, parts: u64, body: &[u8]) -> Vec<u8> {
    native(3, &[seq, epoch, after, part, parts], body)
}

/// One stream of a raw peer.
#[derive(Debug)]
pub struct RawStream {
    pub send: SendStream,
    pub recv: RecvStream,
    /// Keeps the connection alive.
    pub endpoint: Endpoint,
}

impl RawStream {
    /// Writes bytes. The other side may have closed meanwhile; what it says is looked at elsewhere.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = timeout(LIMIT, self.send.write_all(bytes.as_ref()))
            .await
            .expect("the other side reads");
    }

    pub fn finish(&mut self) {
        let _ = self.send.finish();
    }

    /// The next frame; `None` at the end of the stream.
    pub async fn frame(&mut self) -> Option<Vec<u8>> {
        timeout(LIMIT, async {
            let mut len = [0; 4];
            self.recv.read_exact(&mut len).await.ok()?;
            let mut frame = vec![0; u32::from_be_bytes(len) as usize];
            self.recv.read_exact(&mut frame).await.ok()?;
            Some(frame)
        })
        .await
        .expect("a frame or the end of the stream")
    }

    /// The next frame as JSON.
    pub async fn json(&mut self) -> serde_json::Value {
        let frame = self.frame().await.expect("a frame");
        serde_json::from_slice(&frame).expect("JSON")
    }

    /// Says hello and takes the welcome.
    pub async fn greet(&mut self) {
        self.greet_with(hello(1)).await;
    }

    /// Says this hello and takes the welcome.
    pub async fn greet_with(&mut self, hello: Vec<u8>) -> Welcomed {
        self.write(hello).await;
        Welcomed::read(&self.frame().await.expect("a welcome"))
    }

    /// The next frame of a hub, but for those that tests do not look into.
    pub async fn heard(&mut self) -> Heard {
        loop {
            let heard = Heard::read(&self.frame().await.expect("a frame"));
            if !matches!(heard, Heard::Other(_)) {
                return heard;
            }
        }
    }

    /// The next frame of a hub, which is a targeted event: its number, and the number that it carries.
    pub async fn targeted(&mut self) -> (u64, u64) {
        match self.heard().await {
            Heard::Targeted(seq, _, body) => (seq, number_in(&body)),
            other => panic!("not a targeted event: {other:?}"),
        }
    }

    /// The codes with which the other side reset and stopped the stream.
    pub async fn reset_codes(&mut self) -> (u64, u64) {
        let reset = async {
            loop {
                match self.recv.read_chunk(1 << 20).await {
                    Ok(Some(_)) => {}
                    Err(ReadError::Reset(code)) => return code.into_inner(),
                    other => panic!("the stream was not reset: {other:?}"),
                }
            }
        };
        let reset = timeout(LIMIT, reset).await.expect("a reset");
        let stopped = timeout(LIMIT, self.send.stopped()).await.expect("a stop");
        let stopped = stopped.expect("the connection lives").expect("a code");
        (reset, stopped.into_inner())
    }
}

/// A peer with one connection.
#[derive(Debug)]
pub struct RawPeer {
    pub endpoint: Endpoint,
    pub connection: Connection,
}

impl RawPeer {
    pub async fn connect(hub: &Hub, alpn: &[u8]) -> Self {
        Self::connect_from(bind().await, hub, alpn).await
    }

    pub async fn connect_from(endpoint: Endpoint, hub: &Hub, alpn: &[u8]) -> Self {
        let connecting = endpoint.connect(hub.addr(), alpn);
        let connection = timeout(LIMIT, connecting).await.expect("an answer");
        Self {
            connection: connection.expect("the hub accepts the connection"),
            endpoint,
        }
    }

    pub async fn open(&self) -> RawStream {
        let opening = timeout(LIMIT, self.connection.open_bi()).await;
        let (send, recv) = opening.expect("room for a stream").expect("a stream");
        let endpoint = self.endpoint.clone();
        RawStream {
            send,
            recv,
            endpoint,
        }
    }

    /// Opens a stream and makes it a spoke.
    pub async fn spoke(&self, alpn: &[u8]) -> RawStream {
        let mut stream = self.open().await;
        match alpn {
            NATIVE => stream.greet().await,
            _ => stream.write(frame(b"")).await,
        }
        stream
    }

    /// Says goodbye. A peer that is only dropped is noticed after the idle timeout.
    pub async fn leave(self) {
        let code = (code::GOODBYE as u32).into();
        self.connection.close(code, b"goodbye");
        let _ = timeout(LIMIT, self.endpoint.close()).await;
    }

    /// The code and the reason with which the other side closed the connection.
    pub async fn closed(&self) -> (u64, String) {
        closed(&self.connection).await
    }
}

/// The code and the reason with which the other side closed a connection.
pub async fn closed(connection: &Connection) -> (u64, String) {
    match timeout(LIMIT, connection.closed()).await {
        Ok(ConnectionError::ApplicationClosed(close)) => (
            close.error_code.into_inner(),
            String::from_utf8(close.reason.to_vec()).expect("a reason in UTF-8"),
        ),
        Ok(other) => panic!("not closed with a code: {other:?}"),
        Err(_) => panic!("not closed in time"),
    }
}

/// A hub that speaks `iroh-hub/1` by hand, to one spoke.
#[derive(Debug)]
pub struct RawHub {
    pub endpoint: Endpoint,
}

impl RawHub {
    pub async fn bind(alpn: &[u8]) -> Self {
        let builder = endpoint::local(None).alpns(vec![alpn.to_vec()]);
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = endpoint::bind_at(builder, addr).await.expect("loopback");
        Self { endpoint }
    }

    pub fn addr(&self) -> EndpointAddr {
        self.endpoint.addr()
    }

    /// Takes the next connection and its first stream, up to the first frame.
    pub async fn accept(&self) -> (Connection, RawStream) {
        timeout(LIMIT, async {
            let incoming = self.endpoint.accept().await.expect("an open endpoint");
            let connection = incoming.await.expect("a connection");
            let (send, recv) = connection.accept_bi().await.expect("a stream");
            let endpoint = self.endpoint.clone();
            let mut stream = RawStream {
                send,
                recv,
                endpoint,
            };
            stream.frame().await.expect("a first frame");
            (connection, stream)
        })
        .await
        .expect("a spoke that connects")
    }
}

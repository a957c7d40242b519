//! A member of the topic that speaks by hand: admitted by the hub, it has the topic's keys, proves itself to other
//! members, and says to them whatever a test likes. Written from the protocols' description: `iroh-hub/1` for the link to the
//! hub, the membership proof and the frames of `iroh-hub/gossip/1`, and iroh-gossip's messages in postcard.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit,
    aead::{Aead, Payload},
};
use ed25519_dalek::{Signer, SigningKey};
use iroh::{
    Endpoint, EndpointAddr, EndpointId, SecretKey,
    endpoint::{Builder, Connection, ConnectionError, RecvStream, SendStream},
};
use iroh_hub::{Hub, endpoint};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{
    LIMIT,
    raw::{self, GOSSIP, NATIVE, RawPeer, Reading, Welcomed, code, varint},
    soon,
};

/// Version, epoch, generation, counter, first offset, and three counts.
const HEADER: usize = 1 + 8 + 4 + 8 + 8 + 3 * 2;

/// The first offset of a frame, or the tip if it is a beacon; and how many events it has.
pub fn first_and_count(frame: &[u8]) -> (u64, u16) {
    let first = frame[21..29].try_into().expect("8 bytes");
    let count = frame[29..31].try_into().expect("2 bytes");
    (u64::from_be_bytes(first), u16::from_be_bytes(count))
}

/// What a member proves itself with.
#[derive(Clone, Copy, Debug)]
pub struct Secrets {
    pub topic: [u8; 32],
    pub generation: u32,
    pub key: [u8; 32],
}

/// What binds a proof to one connection: the secret of its TLS session, who dialled and who was dialled.
fn proof(
    secrets: &Secrets,
    connection: &Connection,
    dialer: EndpointId,
    acceptor: EndpointId,
    by_acceptor: bool,
) -> [u8; 32] {
    let mut secret = [0; 32];
    connection
        .export_keying_material(&mut secret, b"EXPORTER-iroh-hub-gossip-1", b"")
        .expect("a secret of the session");
    let mut mac = blake3::Hasher::new_keyed(&secrets.key);
    mac.update(b"iroh-hub gossip member 1");
    mac.update(&[u8::from(by_acceptor)]);
    mac.update(&secret);
    mac.update(dialer.as_bytes());
    mac.update(acceptor.as_bytes());
    mac.update(&secrets.topic);
    mac.update(&secrets.generation.to_be_bytes());
    *mac.finalize().as_bytes()
}

/// What the side that dialled says first: a version, and two generations, each with a proof.
pub fn offer(
    secrets: &Secrets,
    connection: &Connection,
    me: EndpointId,
    peer: EndpointId,
) -> Vec<u8> {
    let mac = proof(secrets, connection, me, peer, false);
    let one = [&secrets.generation.to_be_bytes()[..], &mac].concat();
    [&[1][..], &one, &one].concat()
}

/// What the side that was dialled answers.
pub fn answer(
    secrets: &Secrets,
    connection: &Connection,
    dialer: EndpointId,
    me: EndpointId,
) -> Vec<u8> {
    let mac = proof(secrets, connection, dialer, me, true);
    [&[1][..], &secrets.generation.to_be_bytes(), &mac].concat()
}

/// Messages of iroh-gossip, as they travel behind a length.
pub mod say {
    use super::{EndpointId, varint};

    fn bytes(bytes: &[u8]) -> Vec<u8> {
        [varint(bytes.len() as u64), bytes.to_vec()].concat()
    }

    fn maybe(data: Option<&[u8]>) -> Vec<u8> {
        data.map_or(vec![0], |data| [vec![1], bytes(data)].concat())
    }

    pub type Peer<'a> = (EndpointId, Option<&'a [u8]>);

    fn peer((id, data): Peer<'_>) -> Vec<u8> {
        [id.as_bytes().to_vec(), maybe(data)].concat()
    }

    fn peers(list: &[Peer<'_>]) -> Vec<u8> {
        let mut out = varint(list.len() as u64);
        list.iter().for_each(|one| out.extend(peer(*one)));
        out
    }

    pub fn join(data: Option<&[u8]>) -> Vec<u8> {
        [vec![0, 0], maybe(data)].concat()
    }

    pub fn forward_join(who: Peer<'_>, ttl: u16) -> Vec<u8> {
        [vec![0, 1], peer(who), varint(ttl.into())].concat()
    }

    pub fn shuffle(origin: EndpointId, list: &[Peer<'_>], ttl: u16) -> Vec<u8> {
        let origin = origin.as_bytes().to_vec();
        [vec![0, 2], origin, peers(list), varint(ttl.into())].concat()
    }

    pub fn shuffle_reply(list: &[Peer<'_>]) -> Vec<u8> {
        [vec![0, 3], peers(list)].concat()
    }

    pub fn neighbor(high: bool, data: Option<&[u8]>) -> Vec<u8> {
        [vec![0, 4, u8::from(!high)], maybe(data)].concat()
    }

    pub fn disconnect(alive: bool) -> Vec<u8> {
        vec![0, 5, u8::from(alive), 0]
    }

    pub fn data_as(id: [u8; 32], content: &[u8], round: u16) -> Vec<u8> {
        let scope = [vec![0], varint(round.into())].concat();
        [vec![1, 0], id.to_vec(), bytes(content), scope].concat()
    }

    /// A frame, under its own id.
    pub fn data(content: &[u8], round: u16) -> Vec<u8> {
        data_as(*blake3::hash(content).as_bytes(), content, round)
    }

    /// A frame for the neighbours only.
    pub fn data_for_neighbors(content: &[u8]) -> Vec<u8> {
        let id = blake3::hash(content).as_bytes().to_vec();
        [vec![1, 0], id, bytes(content), vec![1]].concat()
    }

    pub fn prune() -> Vec<u8> {
        vec![1, 1]
    }

    pub fn graft(id: Option<[u8; 32]>, round: u16) -> Vec<u8> {
        let id = id.map_or(vec![0], |id| [&[1][..], &id].concat());
        [vec![1, 2], id, varint(round.into())].concat()
    }

    pub fn ihave(list: &[([u8; 32], u16)]) -> Vec<u8> {
        let mut out = [vec![1, 3], varint(list.len() as u64)].concat();
        for (id, round) in list {
            out.extend(id);
            out.extend(varint((*round).into()));
        }
        out
    }
}

/// What other members said to a raw one, as far as tests look into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Frame {
        content: Vec<u8>,
        round: u64,
        topic: [u8; 32],
    },
    Prune,
    Graft(Option<[u8; 32]>),
    Have(Vec<[u8; 32]>),
    Neighbor,
    Disconnect,
    Other,
}

impl Said {
    fn read(message: &[u8], topic: [u8; 32]) -> Self {
        let mut reading = Reading(message);
        match (reading.byte(), reading.byte()) {
            (0, 4) => Self::Neighbor,
            (0, 5) => Self::Disconnect,
            (0, _) => Self::Other,
            (1, 0) => {
                let id: [u8; 32] = reading.bytes();
                let len = reading.number() as usize;
                let (content, rest) = reading.0.split_at(len);
                assert_eq!(id, *blake3::hash(content).as_bytes());
                reading.0 = rest;
                assert_eq!(reading.byte(), 0, "for all of the topic");
                let round = reading.number();
                let content = content.to_vec();
                Self::Frame {
                    content,
                    round,
                    topic,
                }
            }
            (1, 1) => Self::Prune,
            (1, 2) => {
                let id = (reading.byte() == 1).then(|| reading.bytes());
                Self::Graft(id)
            }
            (1, 3) => {
                let count = reading.number();
                let mut ids = Vec::new();
                for _ in 0..count {
                    ids.push(reading.bytes());
                    reading.number();
                }
                Self::Have(ids)
            }
            other => panic!("no message: {other:?}"),
        }
    }
}

/// A member's connection to another one, behind the proof.
#[derive(Debug)]
pub struct Neighbor {
    pub connection: Connection,
    pub send: SendStream,
    /// The topic that both are members of.
    pub topic: [u8; 32],
    /// Taken, once somebody reads.
    recv: Option<RecvStream>,
    reading: Option<JoinHandle<()>>,
}

impl Neighbor {
    /// Sends messages. The other side may have closed meanwhile; what it says is looked at elsewhere.
    pub async fn say(&mut self, messages: &[Vec<u8>]) -> bool {
        let all: Vec<u8> = messages.iter().flat_map(raw::frame).collect();
        self.write(&all).await
    }

    /// Sends bytes; false if the other side has closed.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        let written = timeout(LIMIT, self.send.write_all(bytes)).await;
        written.expect("the other side reads").is_ok()
    }

    /// Becomes a neighbour whom the other side may not refuse, and says this.
    pub async fn insist(&mut self, messages: &[Vec<u8>]) -> bool {
        let mut all = vec![say::neighbor(true, None)];
        all.extend_from_slice(messages);
        self.say(&all).await
    }

    /// The code and the reason with which the other side closed.
    pub async fn closed(&self) -> (u64, String) {
        raw::closed(&self.connection).await
    }
}

impl Drop for Neighbor {
    fn drop(&mut self) {
        self.reading.iter().for_each(JoinHandle::abort);
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct RawMember {
    pub peer: RawPeer,
    pub hub: EndpointId,
    pub epoch: u64,
    /// What the hub told last: it may begin another topic.
    told: watch::Receiver<Option<(Secrets, Vec<EndpointAddr>)>>,
    /// Every key that it was ever told.
    every: Arc<Mutex<Vec<Secrets>>>,
    /// What any neighbour said, in the order in which it came.
    pub said: Arc<Mutex<VecDeque<Said>>>,
    link: JoinHandle<()>,
}

impl RawMember {
    /// Is admitted, takes everything that the hub sends and acknowledges it, and waits until it is told of the topic.
    pub async fn admitted(hub: &Hub) -> Self {
        Self::admitted_from(endpoint::local(None), hub).await
    }

    /// The same, under this key.
    pub async fn admitted_as(hub: &Hub, key: SecretKey) -> Self {
        Self::admitted_from(endpoint::local(Some(key)), hub).await
    }

    /// The same, from an endpoint of the test's choice.
    pub async fn admitted_from(builder: Builder, hub: &Hub) -> Self {
        let builder = builder.alpns(vec![GOSSIP.to_vec()]);
        let addr = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
        let endpoint = endpoint::bind_at(builder, addr).await.expect("loopback");
        let peer = RawPeer::connect_from(endpoint, hub, NATIVE).await;
        let mut stream = peer.open().await;
        // Version 1, and it can gossip.
        let hello = raw::native(0, &[1, 1, 0, 0, 0], b"");
        let welcome: Welcomed = stream.greet_with(hello).await;
        let (tell, mut told) = watch::channel(None);
        let every: Arc<Mutex<Vec<Secrets>>> = Arc::default();
        let keep = every.clone();
        let mut next = welcome.start;
        let link = tokio::spawn(async move {
            loop {
                let mut len = [0; 4];
                if stream.recv.read_exact(&mut len).await.is_err() {
                    return;
                }
                let mut frame = vec![0; u32::from_be_bytes(len) as usize];
                if stream.recv.read_exact(&mut frame).await.is_err() {
                    return;
                }
                let mut reading = Reading(&frame);
                match reading.byte() {
                    1 | 2 => {
                        let offset = reading.number();
                        let (part, parts) = (reading.number(), reading.number());
                        if offset == next && part + 1 == parts {
                            next += 1;
                            let _ = stream.send.write_all(&raw::ack(next, 0)).await;
                        }
                    }
                    4 => {
                        let topic = reading.bytes();
                        let generation = reading.number() as u32;
                        let key = reading.bytes();
                        let _verify_key: [u8; 32] = reading.bytes();
                        let (peers, _): (Vec<EndpointAddr>, _) =
                            postcard::take_from_bytes(reading.0).expect("peers");
                        let secrets = Secrets {
                            topic,
                            generation,
                            key,
                        };
                        keep.lock().expect("no panic").push(secrets);
                        tell.send_replace(Some((secrets, peers)));
                    }
                    // Other keys for the same topic. It does not say that it has them.
                    9 => {
                        let generation = reading.number() as u32;
                        let key = reading.bytes();
                        tell.send_modify(|told| {
                            if let Some((secrets, _)) = told {
                                (secrets.generation, secrets.key) = (generation, key);
                                keep.lock().expect("no panic").push(*secrets);
                            }
                        });
                    }
                    _ => {}
                }
            }
        });
        let topic = soon("the topic", told.wait_for(Option::is_some)).await;
        assert!(topic.is_ok(), "the link ended");
        drop(topic);
        Self {
            peer,
            hub: hub.addr().id,
            epoch: welcome.epoch,
            told,
            every,
            said: Arc::default(),
            link,
        }
    }

    pub fn id(&self) -> EndpointId {
        self.peer.endpoint.id()
    }

    /// What opens the topic, and the members that the hub named.
    pub fn topic(&self) -> (Secrets, Vec<EndpointAddr>) {
        self.told.borrow().clone().expect("the hub has told it")
    }

    pub fn secrets(&self) -> Secrets {
        self.topic().0
    }

    /// Connects to a member and proves itself, and reads nothing. Tries again while the other side changes its topic, or has
    /// had too many visits.
    pub async fn dial(&self, to: &EndpointAddr) -> Neighbor {
        let dialing = async {
            loop {
                match self.try_dial(to).await {
                    Ok(neighbor) => return neighbor,
                    Err((code::NOT_A_MEMBER | code::NOT_NEEDED | code::TOO_MANY, _)) => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Err(other) => panic!("it is not taken for a member: {other:?}"),
                }
            }
        };
        soon("a connection", dialing).await
    }

    /// The same; an error is how the other side closed instead.
    pub async fn try_dial(&self, to: &EndpointAddr) -> Result<Neighbor, (u64, String)> {
        self.try_dial_from(&self.peer.endpoint, to).await
    }

    /// The same from another endpoint, which was given the keys.
    pub async fn try_dial_from(
        &self,
        from: &Endpoint,
        to: &EndpointAddr,
    ) -> Result<Neighbor, (u64, String)> {
        let connecting = from.connect(to.clone(), GOSSIP);
        let connection = soon("an answer", connecting).await.expect("a connection");
        let refused = async || match soon("the end", connection.closed()).await {
            // A close is one packet: who loses it, finds that the other side knows of no connection.
            ConnectionError::Reset => (code::NOT_NEEDED, "reset".to_owned()),
            _ => raw::closed(&connection).await,
        };
        let Ok((mut send, mut recv)) = connection.open_bi().await else {
            return Err(refused().await);
        };
        let secrets = self.secrets();
        let offer = offer(&secrets, &connection, from.id(), to.id);
        let _ = send.write_all(&offer).await;
        let mut answered = [0; 1 + 4 + 32];
        let reading = recv.read_exact(&mut answered);
        if soon("an answer to the proof", reading).await.is_err() {
            return Err(refused().await);
        }
        let due = answer(&secrets, &connection, from.id(), to.id);
        assert_eq!(answered[..], due, "the other side proves itself too");
        Ok(Neighbor {
            connection,
            send,
            topic: secrets.topic,
            recv: Some(recv),
            reading: None,
        })
    }

    /// Connects to a member as a neighbour whom it may not refuse, and reads what it says.
    pub async fn befriend(&self, to: &EndpointAddr) -> Neighbor {
        let mut neighbor = self.dial(to).await;
        self.listen_to(&mut neighbor);
        neighbor.insist(&[]).await;
        neighbor
    }

    /// Does something as a member's neighbour, and says how that one closed the connection for it. Another neighbour may take
    /// its place before it is heard, as at any time: then it comes again.
    pub async fn closed_for(
        &self,
        to: &EndpointAddr,
        act: impl AsyncFn(&mut Neighbor),
    ) -> (u64, String) {
        loop {
            let mut neighbor = self.befriend(to).await;
            act(&mut neighbor).await;
            let closed = neighbor.closed().await;
            if !matches!(closed.0, code::NOT_NEEDED | code::NOT_A_MEMBER) {
                return closed;
            }
        }
    }

    /// Reads what a neighbour says from now on.
    pub fn listen_to(&self, neighbor: &mut Neighbor) {
        let Some(mut recv) = neighbor.recv.take() else {
            return;
        };
        let said = self.said.clone();
        let topic = neighbor.topic;
        neighbor.reading = Some(tokio::spawn(async move {
            loop {
                let mut len = [0; 4];
                if recv.read_exact(&mut len).await.is_err() {
                    return;
                }
                let mut message = vec![0; u32::from_be_bytes(len) as usize];
                if recv.read_exact(&mut message).await.is_err() {
                    return;
                }
                said.lock()
                    .expect("no panic")
                    .push_back(Said::read(&message, topic));
            }
        }));
    }

    /// The frames that have come so far, each once, in the order in which they came first.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let mut seen = std::collections::HashSet::new();
        let said = self.said.lock().expect("no panic");
        let frames = said.iter().filter_map(|said| match said {
            Said::Frame { content, .. } => Some(content.clone()),
            _ => None,
        });
        frames.filter(|frame| seen.insert(frame.clone())).collect()
    }

    /// Whether a message is a frame that was sealed for this topic, or none that has come on another one. The hub may begin
    /// another topic at any time, where old frames are forged ones.
    pub fn may_say(&self, message: &[u8], on: [u8; 32]) -> bool {
        let Some(id) = message
            .strip_prefix(&[1, 0])
            .and_then(|rest| rest.first_chunk::<32>())
        else {
            return true;
        };
        let said = self.said.lock().expect("no panic");
        let elsewhere = |said: &Said| matches!(said, Said::Frame { content, topic, .. } if *topic != on && blake3::hash(content) == *id);
        !said.iter().any(elsewhere)
    }

    /// Whether any key that it was ever told opens a frame.
    pub fn opens(&self, frame: &[u8]) -> bool {
        let Some((frame, _signature)) = frame.split_last_chunk::<64>() else {
            return false;
        };
        let Some((header, sealed)) = frame.split_at_checked(HEADER) else {
            return false;
        };
        let nonce: [u8; 12] = header[9..21].try_into().expect("12 bytes");
        let every = self.every.lock().expect("no panic").clone();
        every.iter().any(|secrets| {
            let cipher = ChaCha20Poly1305::new((&secrets.key).into());
            let payload = Payload {
                msg: sealed,
                aad: header,
            };
            cipher.decrypt(&nonce.into(), payload).is_ok()
        })
    }

    /// Seals an event as the hub does, but for the signature, which only the hub can make.
    pub fn seal(
        &self,
        epoch: u64,
        generation: u32,
        counter: u64,
        first: u64,
        body: &[u8],
    ) -> Vec<u8> {
        let mut header = vec![1];
        header.extend(epoch.to_be_bytes());
        header.extend(generation.to_be_bytes());
        header.extend(counter.to_be_bytes());
        header.extend(first.to_be_bytes());
        for n in [1u16, 0, 1] {
            header.extend(n.to_be_bytes());
        }
        let content = [varint(body.len() as u64), body.to_vec()].concat();
        let nonce: Vec<u8> = [&generation.to_be_bytes()[..], &counter.to_be_bytes()].concat();
        let nonce: [u8; 12] = nonce.try_into().expect("12 bytes");
        let cipher = ChaCha20Poly1305::new((&self.secrets().key).into());
        let payload = Payload {
            msg: &content,
            aad: &header,
        };
        let sealed = cipher.encrypt(&nonce.into(), payload).expect("it is short");
        let frame = [header, sealed].concat();
        let domain = b"iroh-hub/1 broadcast frame, BLAKE3";
        let signed = [
            &domain[..],
            self.hub.as_bytes(),
            &self.secrets().topic,
            blake3::hash(&frame).as_bytes(),
        ]
        .concat();
        let mine = SigningKey::from_bytes(&self.peer.endpoint.secret_key().to_bytes());
        [frame, mine.sign(&signed).to_bytes().to_vec()].concat()
    }

    /// Ends without a word on the topic.
    pub async fn leave(self) {
        self.link.abort();
        self.peer.leave().await;
    }
}

//! Secret keys, the keys of the topic and the ids of sessions are shown nowhere: not in logs, `Debug`, errors,
//! metrics, nor in what the program prints.
//!
//! The keys of the topic and the ids of sessions are taken from the wire, by peers that speak the protocol by
//! hand.

#[path = "../common/mod.rs"]
mod common;
mod leaks;
#[cfg(unix)]
mod program;

use std::{
    fmt::Debug,
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use common::{
    raw::{
        GOSSIP, NATIVE, RawHub, RawPeer, RawStream, Reading, body, event, frame, native, varint,
    },
    *,
};
use iroh::{Endpoint, PublicKey, SecretKey, endpoint::Connection};
use iroh_hub::{
    Admission, Candidate, Decision, Envelope, FanOut, GossipAcceptor, GossipConfig, Hub, HubLimits,
    ListenOptions, Protocol, Reconnect, SendOptions, Spoke, SpokeLimits, endpoint,
};
use iroh_metrics::{MetricsSource, Registry};
use leaks::Secrets;
use tokio::time::timeout;

/// All that was logged and shown so far.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    fn show(&self, shown: &dyn Debug) {
        self.tell(format!("{shown:?}\n{shown:#?}\n"));
    }

    /// An error, and all that caused it.
    fn error(&self, error: &(dyn std::error::Error + 'static)) {
        self.show(&error);
        let mut cause = Some(error);
        while let Some(error) = cause {
            self.tell(format!("{error}\n{error:#}\n"));
            cause = error.source();
        }
    }

    fn metrics(&self, register: impl FnOnce(&mut Registry)) {
        let mut registry = Registry::default();
        register(&mut registry);
        let text = registry.encode_openmetrics_to_string();
        self.tell(text.expect("metrics can be encoded"));
    }

    fn tell(&self, text: impl AsRef<[u8]>) {
        let mut said = self.0.lock().expect("nobody panicked");
        said.extend_from_slice(text.as_ref());
    }

    #[track_caller]
    fn shows_none_of(&self, secrets: &Secrets) {
        let shown = {
            let said = self.0.lock().expect("nobody panicked");
            secrets.shown_in(&said)
        };
        assert!(shown.is_empty(), "shown: {shown:?}");
    }

    fn has(&self, words: &str) -> bool {
        let said = self.0.lock().expect("nobody panicked");
        String::from_utf8_lossy(&said).contains(words)
    }
}

impl io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tell(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where everything is that this process logs at any level, whichever test has it logged.
fn logs() -> Said {
    static SAID: OnceLock<Said> = OnceLock::new();
    SAID.get_or_init(|| {
        let said = Said::default();
        let writer = said.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        said
    })
    .clone()
}

/// An endpoint, and its key among the secrets.
async fn bind_known(name: &str, secrets: &mut Secrets) -> Endpoint {
    let key = SecretKey::generate();
    secrets.add(format!("the secret key of {name}"), key.to_bytes());
    let addr = (Ipv4Addr::LOCALHOST, 0).into();
    let bound = endpoint::bind_at(endpoint::local(Some(key)), addr).await;
    bound.expect("loopback binds")
}

/// A spoke by hand that says it can gossip: all that it is told of keys and sessions is among the secrets.
struct Member {
    stream: RawStream,
    connection: Connection,
    name: &'static str,
    keys: usize,
}

impl Member {
    async fn join(
        name: &'static str,
        endpoint: Endpoint,
        hub: iroh::EndpointAddr,
        secrets: &mut Secrets,
    ) -> Self {
        let connection = soon("a connection", endpoint.connect(hub, NATIVE)).await;
        let connection = connection.expect("the hub takes it");
        let (send, recv) = connection.open_bi().await.expect("a stream");
        let mut stream = RawStream {
            send,
            recv,
            endpoint,
        };
        let welcomed = stream.greet_with(native(0, &[1, 1, 0, 0, 0], b"")).await;
        secrets.add(format!("the session of {name}"), welcomed.session);
        Self {
            stream,
            connection,
            name,
            keys: 0,
        }
    }

    /// Waits until it was told so many keys.
    async fn is_told(&mut self, keys: usize, secrets: &mut Secrets) {
        while self.keys < keys {
            let frame = self.stream.frame().await.expect("a frame");
            let mut reading = Reading(&frame);
            match reading.byte() {
                // A topic, and new keys of it.
                4 => drop(reading.bytes::<32>()),
                9 => {}
                _ => continue,
            }
            let generation = reading.number();
            let name = format!("the key of generation {generation}, told to {}", self.name);
            secrets.add(name, reading.bytes::<32>());
            self.keys += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_shows_no_secret_in_logs_debug_errors_or_metrics() {
    let said = logs();
    let mut secrets = Secrets::default();
    let endpoint = bind_known("the hub", &mut secrets).await;
    let stranger = bind_known("a stranger", &mut secrets).await;
    let limits = hub_limits(|limits| limits.max_event_bytes = 100_000);
    let builder = Hub::builder()
        .fan_out(FanOut::Gossip)
        .admission(Admission::deny_list([stranger.id()]))
        .limits(limits);
    said.show(&builder);
    let hub = builder.spawn(endpoint).expect("a fresh endpoint");
    let mut watch = hub.watch_spokes();
    let mut spokes = Vec::new();
    for n in 0..3 {
        let endpoint = bind_known(&format!("spoke {n}"), &mut secrets).await;
        let builder = Spoke::builder();
        said.show(&builder);
        let spoke = builder.connect(endpoint, hub.addr()).await;
        spokes.push(spoke.expect("the hub lets us in"));
    }
    let plain = bind_known("a plain spoke", &mut secrets).await;
    let plain = Spoke::builder()
        .protocol(Protocol::Compat)
        .connect(plain, hub.addr());
    let plain = plain.await.expect("the hub lets us in");
    let endpoint = bind_known("a member", &mut secrets).await;
    let mut member = Member::join("a member", endpoint, hub.addr(), &mut secrets).await;
    member.is_told(1, &mut secrets).await;
    until("the spokes are on the topic", || {
        spokes.iter().all(Spoke::is_on_topic)
    })
    .await;

    // All goes well.
    let mut heard: Vec<_> = spokes.iter().map(|spoke| spoke.listen("*")).collect();
    let mut from_spokes = hub.listen("*");
    let receipt = hub.broadcast(numbered(1)).await.expect("the hub is open");
    for heard in &mut heard {
        said.show(&next_event(heard).await);
        said.show(heard);
    }
    said.show(&receipt);
    said.show(&receipt.now());
    let sent = spokes[0]
        .send(numbered(2))
        .await
        .expect("the spoke is open");
    said.show(&next_event(&mut from_spokes).await);
    sent.delivered().await.expect("the hub has it");
    let targeted = hub.send(hub.spokes()[0].id, numbered(3)).await;
    said.show(&targeted.expect("the spoke is there"));
    said.show(&sent);

    // Keys change when somebody is revoked.
    hub.admission().revoke(spokes[2].endpoint().id());
    member.is_told(2, &mut secrets).await;
    said.show(&soon("the end", spokes[2].closed()).await);

    // And then it does not.
    let large = |len| Envelope::new("n", &"x".repeat(len)).expect("a text is JSON");
    let too_large = hub.broadcast(large(200_000)).await;
    said.error(&too_large.expect_err("it is too large"));
    let to_nobody = hub
        .send_with(stranger.id(), numbered(4), SendOptions::default())
        .await;
    said.error(&to_nobody.expect_err("nobody is there"));
    let refused = Spoke::connect(stranger.clone(), hub.addr()).await;
    said.error(&refused.expect_err("it is denied"));
    let too_large = spokes[0].send(large(20 << 20)).await;
    said.error(&too_large.expect_err("it is too large"));
    let unproven = RawPeer::connect_from(member.stream.endpoint.clone(), &hub, GOSSIP).await;
    let mut unproven = unproven.open().await;
    unproven.write([1; 200]).await;
    for bytes in [frame([0xff; 40]), frame([0; 40]), frame([2; 3])] {
        let endpoint = bind_known("a pest", &mut secrets).await;
        let mut pest = Member::join("a pest", endpoint, hub.addr(), &mut secrets).await;
        pest.stream.write(bytes).await;
        pest.stream.finish();
        let closed = timeout(LIMIT, pest.connection.closed()).await;
        said.error(&closed.expect("it is closed"));
    }

    said.show(&hub);
    assert!(
        said.has("SessionId(..)"),
        "sessions are part of what is shown"
    );
    said.show(&hub.admission());
    said.show(&hub.spokes());
    said.show(&hub.health());
    said.show(&hub.ticket());
    said.tell(hub.ticket().to_string());
    said.tell(serde_json::to_string(&hub.health()).expect("JSON"));
    said.show(&spokes);
    said.show(&plain);
    for spoke in &spokes {
        said.show(&spoke.watch());
        said.show(&spoke.status());
        said.metrics(|all| all.register_all(spoke.metrics()));
    }
    said.metrics(|all| {
        all.register_all(hub.metrics());
        all.register_all(hub.endpoint().metrics());
    });
    for config in [&HubLimits::default() as &dyn Debug, &SpokeLimits::default()] {
        said.show(config);
    }
    said.show(&(
        GossipConfig::default(),
        Reconnect::default(),
        ListenOptions::default(),
    ));
    said.show(&(GossipAcceptor::new(), Decision::refuse("no")));
    said.show(&None::<Candidate>);
    spokes[1].shutdown().await;
    while let Ok(Some(change)) = timeout(Duration::ZERO, watch.next()).await {
        said.show(&change);
    }
    said.show(&hub.shutdown().await);
    for spoke in &spokes {
        said.show(&soon("the end", spoke.closed()).await);
        said.show(&spoke);
    }
    assert!(said.has("welcomed"), "logs are kept");
    assert!(
        secrets
            .names()
            .any(|name| name.starts_with("the key of generation 1"))
    );
    said.shows_none_of(&secrets);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_shows_nothing_of_what_its_hub_tells_it() {
    let said = logs();
    let mut secrets = Secrets::default();
    let raw = RawHub::bind(NATIVE).await;
    let good = SecretKey::generate().public();
    let bad = (0..=255).map(|byte| [byte; 32]);
    let bad = bad
        .into_iter()
        .find(|bytes| PublicKey::from_bytes(bytes).is_err());
    let bad = bad.expect("half of all bytes are no point of the curve");
    let keys = |generation: u64, key: [u8; 32], verify: [u8; 32]| {
        [varint(generation), key.to_vec(), verify.to_vec()].concat()
    };
    let key =
        |n: u8| -> [u8; 32] { std::array::from_fn(|at| (at as u8).wrapping_mul(13) ^ (n * 31)) };
    // Keys that are good, and ones that are none, told by a hub that breaks the protocol in the end.
    let topics = [
        (key(1), *good.as_bytes(), key(2), *good.as_bytes()),
        (key(3), bad, key(4), bad),
        (key(5), *good.as_bytes(), key(6), bad),
    ];
    for (n, (topic_key, topic_verify, new_key, new_verify)) in topics.into_iter().enumerate() {
        let session: [u8; 16] = std::array::from_fn(|at| ((n as u8 + 1) * 59) ^ (at as u8 * 11));
        secrets.add(format!("session {n}"), session);
        secrets.add(format!("the topic's key on link {n}"), topic_key);
        secrets.add(format!("the topic's next key on link {n}"), new_key);
        let endpoint = bind_known("a spoke", &mut secrets).await;
        let spoke = Spoke::builder().spawn(endpoint, raw.addr());
        let (connection, mut stream) = raw.accept().await;
        let mut welcome = vec![0, 1, 1];
        welcome.extend(session);
        for number in [0, 7, 1, 0] {
            welcome.extend(varint(number));
        }
        welcome.push(1);
        for number in [16 << 20, 20, 4 << 20] {
            welcome.extend(varint(number));
        }
        stream.write(frame(welcome)).await;
        let topic = [
            vec![4],
            vec![9; 32],
            keys(1, topic_key, topic_verify),
            // No peers; the largest frame; how many there are.
            varint(0),
            varint(65_000),
            varint(3),
        ];
        stream.write(frame(topic.concat())).await;
        // With nobody to evict, nobody revoked, and nothing to confirm.
        let rekey = [vec![9], keys(2, new_key, new_verify), vec![0, 0, 0]];
        stream.write(frame(rekey.concat())).await;
        stream.write(event(0, 0, 1, &body(b"n", b"", b"1"))).await;
        until("the spoke has heard an event", || {
            spoke.position().is_some_and(|position| position.offset > 0)
        })
        .await;
        said.show(&spoke);
        // A frame that does not decode, with a key in it.
        let broken = [vec![9], keys(3, new_key, new_verify)[..50].to_vec()];
        stream.write(frame(broken.concat())).await;
        let closed = timeout(LIMIT, connection.closed()).await;
        said.error(&closed.expect("the spoke closes it"));
        said.show(&soon("the end", spoke.closed()).await);
        said.show(&spoke);
    }
    assert!(said.has("the hub's keys do not fit"), "logs are kept");
    said.shows_none_of(&secrets);
}

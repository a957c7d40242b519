//! What a hostile peer sends to a hub gets a close code, a reason and a counter, and costs no other
//! spoke anything.

mod common;

use std::time::Duration;

use common::{
    raw::{COMPAT, GOSSIP, MAX_FRAME, MAX_PART, NATIVE, RawPeer, code},
    *,
};
use iroh_hub::{
    BroadcastError, CloseCode, Closed, Envelope, FanOut, Hub, HubLimits, Listener, Path, Protocol,
    SendError, Source, Spoke, SpokeChange, SpokeId, SpokeSendError, TryBroadcastError,
};

const MAX_EVENT: usize = 256 * 1024;

/// A hub with honest spokes of both protocols, which must not notice anything.
struct Scene {
    hub: Hub,
    honest: Vec<(Spoke, Listener)>,
    /// What honest spokes send to the hub, and what others do.
    from_honest: Listener,
    from_hostile: Listener,
    rounds: u64,
}

impl Scene {
    async fn new(limits: HubLimits) -> Self {
        let hub = hub(Hub::builder().fan_out(FanOut::Direct).limits(limits)).await;
        let from_honest = hub.listen("n");
        let from_hostile = hub.listen("hostile");
        let mut honest = Vec::new();
        for protocol in [Protocol::Native, Protocol::Compat] {
            let spoke = spoke(&hub, Spoke::builder().protocol(protocol)).await;
            let listener = spoke.listen("*");
            honest.push((spoke, listener));
        }
        until("the honest are there", || hub.spoke_count() == 2).await;
        Self {
            hub,
            honest,
            from_honest,
            from_hostile,
            rounds: 0,
        }
    }

    fn failed(&self) -> u64 {
        self.hub.metrics().direct.links_failed.get()
    }

    /// Every honest spoke hears the next broadcast and nothing else, and is heard.
    async fn goes_on(&mut self) {
        let n = self.rounds;
        self.rounds += 1;
        soon("a broadcast", self.hub.broadcast(numbered(n)))
            .await
            .expect("the hub is open");
        for (spoke, listener) in &mut self.honest {
            assert_eq!(number(&next_event(listener).await), n);
            spoke.send(numbered(n)).await.expect("the link stands");
            let event = next_event(&mut self.from_honest).await;
            assert_eq!(number(&event), n);
            let Source::Spoke(SpokeId { endpoint, .. }) = event.source else {
                panic!("not from a spoke: {event:?}");
            };
            assert_eq!(endpoint, spoke.endpoint().id());
        }
    }

    /// The hostile are gone, and the honest have heard nothing but the broadcasts.
    async fn ends(mut self) {
        self.goes_on().await;
        until("the hostile are gone", || self.hub.spoke_count() == 2).await;
        let drained = self.hub.shutdown().await;
        assert!(drained.behind.is_empty(), "{drained:?}");
        for (spoke, listener) in &mut self.honest {
            assert!(soon("goodbye", spoke.closed()).await.is_goodbye());
            assert_eq!(soon("the end", listener.recv()).await, None);
        }
        assert_eq!(soon("the end", self.from_honest.recv()).await, None);
    }
}

struct Case {
    name: &'static str,
    /// Written after the hello (native) or the first empty frame (compat), or in their place.
    bytes: Vec<u8>,
    finish: bool,
    code: u64,
}

fn case(name: &'static str, code: u64, bytes: impl Into<Vec<u8>>) -> Case {
    Case {
        name,
        bytes: bytes.into(),
        finish: false,
        code,
    }
}

impl Case {
    fn finished(mut self) -> Self {
        self.finish = true;
        self
    }
}

/// Bytes that are wrong on either protocol, and at any place.
fn torn_frames(max_frame: usize) -> Vec<Case> {
    let over = (max_frame as u32 + 1).to_be_bytes();
    vec![
        case("a frame over the limit", code::TOO_LARGE, over),
        case("a length of 4 GiB", code::TOO_LARGE, [0xff; 4]),
        case("a frame that is cut off", code::BAD_FRAME, [0, 0, 0, 9, 1]).finished(),
        case("half a length", code::BAD_FRAME, [0, 0]).finished(),
    ]
}

fn instead_of_a_hello() -> Vec<Case> {
    let mut cases = torn_frames(MAX_FRAME);
    cases.extend([
        case("no frame at all", code::MISBEHAVED, b"").finished(),
        case("an empty frame", code::BAD_FRAME, raw::frame(b"")),
        case("half a hello", code::BAD_FRAME, raw::frame([0, 1])),
        case("JSON", code::MISBEHAVED, raw::frame(br#"{"type":"t"}"#)),
        case(
            "an unknown kind",
            code::MISBEHAVED,
            raw::native(200, &[1], b""),
        ),
        case(
            "a publish",
            code::MISBEHAVED,
            raw::publish(1, 0, 1, &raw::body(b"hostile", b"", b"1")),
        ),
        case("another version", code::VERSION, raw::hello(2)),
        case("version 0", code::VERSION, raw::hello(0)),
        case(
            "a version that is no number",
            code::BAD_FRAME,
            raw::frame([0, 0xff, 0xff, 0xff, 0xff]),
        ),
        case(
            "a start that is none",
            code::BAD_FRAME,
            raw::native(0, &[1, 0, 0, 0, 9], b""),
        ),
    ]);
    cases
}

fn after_a_hello() -> Vec<Case> {
    let good = raw::body(b"hostile", b"", b"1");
    let part = vec![b'x'; MAX_PART];
    let publish = |body: &[u8]| raw::publish(1, 0, 1, body);
    let too_many_parts: Vec<u8> = (0..=4).flat_map(|n| raw::publish(1, n, 5, &part)).collect();
    let long = vec![b'x'; 1025];
    let mut cases = torn_frames(MAX_FRAME);
    cases.extend([
        case("an empty frame", code::BAD_FRAME, raw::frame(b"")),
        case("a second hello", code::MISBEHAVED, raw::hello(1)),
        case("half a publish", code::BAD_FRAME, raw::frame([1, 1])),
        case("half an ack", code::BAD_FRAME, raw::frame([2, 1])),
        case("half a want", code::BAD_FRAME, raw::frame([3])),
        case("half a served", code::BAD_FRAME, raw::frame([4])),
        case(
            "a number of 80 bits",
            code::BAD_FRAME,
            raw::frame([
                4, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
            ]),
        ),
        case("part 3 of 3", code::BAD_FRAME, raw::publish(1, 3, 3, &good)),
        case(
            "a part of none",
            code::BAD_FRAME,
            raw::publish(1, 0, 0, &good),
        ),
        case(
            "a part before the first",
            code::MISBEHAVED,
            raw::publish(1, 1, 2, &good),
        ),
        case(
            "a part twice",
            code::MISBEHAVED,
            [raw::publish(1, 0, 3, b"a"), raw::publish(1, 0, 3, b"a")].concat(),
        ),
        case(
            "another number of parts",
            code::MISBEHAVED,
            [raw::publish(1, 0, 3, b"a"), raw::publish(1, 1, 4, b"b")].concat(),
        ),
        case(
            "a whole event among the parts of another",
            code::MISBEHAVED,
            [raw::publish(1, 0, 3, b"a"), raw::publish(1, 0, 1, &good)].concat(),
        ),
        case(
            "the second event first",
            code::MISBEHAVED,
            raw::publish(2, 0, 1, &good),
        ),
        case(
            "event number 0",
            code::MISBEHAVED,
            raw::publish(0, 0, 1, &good),
        ),
        case(
            "an event of many parts over the limit",
            code::TOO_LARGE,
            too_many_parts,
        ),
        case("no envelope", code::BAD_FRAME, publish(b"nonsense")),
        case("an empty envelope", code::BAD_FRAME, publish(b"")),
        case(
            "an envelope and something behind it",
            code::BAD_FRAME,
            publish(&[&good[..], b"x"].concat()),
        ),
        case(
            "an envelope that is not UTF-8",
            code::BAD_FRAME,
            publish(&raw::body(b"hostile", b"\xff", b"1")),
        ),
        case(
            "a payload that is not JSON",
            code::BAD_FRAME,
            publish(&raw::body(b"hostile", b"", b"{")),
        ),
        case(
            "a payload of two values",
            code::BAD_FRAME,
            publish(&raw::body(b"hostile", b"", b"1 2")),
        ),
        case(
            "an empty type",
            code::BAD_FRAME,
            publish(&raw::body(b"", b"", b"1")),
        ),
        case(
            "a type over its limit",
            code::BAD_FRAME,
            publish(&raw::body(&long, b"", b"1")),
        ),
        case(
            "an id over its limit",
            code::BAD_FRAME,
            publish(&raw::body(b"hostile", &long, b"1")),
        ),
        case(
            "an ack of the future",
            code::MISBEHAVED,
            raw::ack(1_000_000, 0),
        ),
        case(
            "an ack of the end of time",
            code::MISBEHAVED,
            raw::ack(u64::MAX, u64::MAX),
        ),
        case(
            "an ack of a targeted event that was not sent",
            code::MISBEHAVED,
            raw::ack(0, 1),
        ),
        case(
            "a want of the future",
            code::MISBEHAVED,
            raw::want(0, Some(1_000_000)),
        ),
        case(
            "a want that ends before it begins",
            code::MISBEHAVED,
            raw::want(u64::MAX, Some(0)),
        ),
        case(
            "an open want of the future",
            code::MISBEHAVED,
            raw::want(1_000_000, None),
        ),
        case(
            "served the future",
            code::MISBEHAVED,
            raw::served(1_000_000),
        ),
        case(
            "served the end of time",
            code::MISBEHAVED,
            raw::served(u64::MAX),
        ),
        case(
            "a want of the end of time",
            code::MISBEHAVED,
            raw::want(u64::MAX, Some(u64::MAX)),
        ),
        case(
            "an open want of the end of time",
            code::MISBEHAVED,
            raw::want(u64::MAX, None),
        ),
        case(
            "an ack of the last targeted event that there can be",
            code::MISBEHAVED,
            raw::ack(0, u64::MAX),
        ),
        case(
            "the last event that there can be",
            code::MISBEHAVED,
            raw::publish(u64::MAX, 0, 1, &good),
        ),
        case("half a missed", code::BAD_FRAME, raw::frame([5, 1])),
        case(
            "a missed of the future",
            code::MISBEHAVED,
            raw::missed(0, 1_000_000),
        ),
        case(
            "a missed that ends before it begins",
            code::MISBEHAVED,
            raw::missed(u64::MAX, 0),
        ),
        case("half a refusal", code::BAD_FRAME, raw::frame([6])),
        case(
            "a refusal of a targeted event that was not sent",
            code::MISBEHAVED,
            raw::refused(1),
        ),
        case(
            "a refusal of the last targeted event that there can be",
            code::MISBEHAVED,
            raw::refused(u64::MAX),
        ),
    ]);
    cases
}

fn plain_frames() -> Vec<Case> {
    let mut cases = torn_frames(MAX_EVENT + 16 * 1024);
    let mut bad = |name, json: &[u8]| cases.push(case(name, code::BAD_FRAME, raw::frame(json)));
    bad("not UTF-8", b"{\"type\":\"hostile\",\"payload\":\"\xff\"}");
    bad("not JSON", br#"{"type":"hostile","payload":NaN}"#);
    bad("half an object", br#"{"type":"hostile""#);
    bad("two values", br#"{"type":"hostile"} {}"#);
    bad("a list of the fields", br#"["hostile","",1]"#);
    bad("a list", b"[1]");
    bad("a text", br#""hostile""#);
    bad("null", b"null");
    bad("no type", br#"{"payload":1}"#);
    bad("a type that is a number", br#"{"type":1}"#);
    bad("an id that is a number", br#"{"type":"hostile","id":7}"#);
    bad("an id that is null", br#"{"type":"hostile","id":null}"#);
    bad("the type twice", br#"{"type":"hostile","type":"hostile"}"#);
    bad("an empty type", br#"{"type":""}"#);
    bad(
        "a type over its limit",
        format!(r#"{{"type":"{}"}}"#, "x".repeat(1025)).as_bytes(),
    );
    bad("nested beyond reason", &[b'['; 200_000]);
    bad(
        "a text that is nearly as long as a frame can be",
        format!("\"{}\"", "x".repeat(MAX_EVENT)).as_bytes(),
    );
    let payload = format!(
        r#"{{"type":"hostile","payload":"{}"}}"#,
        "x".repeat(MAX_EVENT)
    );
    cases.push(case(
        "an event over the limit in a frame that is not",
        code::TOO_LARGE,
        raw::frame(payload),
    ));
    cases
}

/// Runs a case on a connection of its own, which is closed with the code and a reason; and on one
/// beside a good spoke, where the stream alone is reset, and the good spoke goes on.
async fn run(scene: &mut Scene, alpn: &[u8], greets: bool, case: &Case) {
    let Case {
        name,
        bytes,
        finish,
        code,
    } = case;
    eprintln!("{name}");
    let failed = scene.failed();
    let peer = RawPeer::connect(&scene.hub, alpn).await;
    let misbehave = async |peer: &RawPeer| {
        let mut stream = match greets {
            true => peer.spoke(alpn).await,
            false => peer.open().await,
        };
        stream.write(bytes).await;
        if *finish {
            stream.finish();
        }
        stream
    };
    let _stream = misbehave(&peer).await;
    let (got, reason) = peer.closed().await;
    assert_eq!(got, *code, "{name}: {reason}");
    assert!(
        !reason.is_empty() && reason.len() <= 512,
        "{name}: {reason}"
    );
    until("it is counted", || scene.failed() == failed + 1).await;

    let peer = RawPeer::connect(&scene.hub, alpn).await;
    let mut good = peer.spoke(alpn).await;
    // Heard, so it has joined.
    good.write(message(alpn, 1)).await;
    assert_eq!(number(&next_event(&mut scene.from_hostile).await), 1);
    let mut stream = misbehave(&peer).await;
    let (reset, stopped) = match finish {
        // A stream that was finished cannot be stopped.
        true => (reset_code(&mut stream).await, *code),
        false => stream.reset_codes().await,
    };
    assert_eq!((reset, stopped), (*code, *code), "{name}");
    until("it is counted", || scene.failed() == failed + 2).await;
    good.write(message(alpn, 2)).await;
    assert_eq!(number(&next_event(&mut scene.from_hostile).await), 2);
    assert!(peer.connection.close_reason().is_none(), "{name}");
    peer.leave().await;
}

async fn reset_code(stream: &mut raw::RawStream) -> u64 {
    use iroh::endpoint::ReadError;
    loop {
        match soon("a reset", stream.recv.read_chunk(1 << 20)).await {
            Ok(Some(_)) => {}
            Err(ReadError::Reset(code)) => return code.into_inner(),
            other => panic!("the stream was not reset: {other:?}"),
        }
    }
}

/// A good event of a hostile peer.
fn message(alpn: &[u8], n: u64) -> Vec<u8> {
    match alpn {
        NATIVE => raw::publish(
            n,
            0,
            1,
            &raw::body(b"hostile", b"", n.to_string().as_bytes()),
        ),
        _ => raw::frame(format!(r#"{{"type":"hostile","payload":{n}}}"#)),
    }
}

async fn run_all(alpn: &[u8], greets: bool, cases: Vec<Case>) {
    let limits = hub_limits(|limits| limits.max_event_bytes = MAX_EVENT);
    let mut scene = Scene::new(limits).await;
    for case in &cases {
        run(&mut scene, alpn, greets, case).await;
        scene.goes_on().await;
    }
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_hello_is_refused_with_a_code() {
    run_all(NATIVE, false, instead_of_a_hello()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_frames_that_break_the_rules_end_their_stream_and_no_other() {
    run_all(NATIVE, true, after_a_hello()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_frames_that_are_no_envelopes_end_their_stream_and_no_other() {
    run_all(COMPAT, true, plain_frames()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_never_becomes_a_plain_spoke_is_refused_with_a_code() {
    let mut cases = plain_frames();
    // The first frame makes a spoke, whatever is in it.
    cases.truncate(4);
    cases.push(case("no frame at all", code::MISBEHAVED, b"").finished());
    run_all(COMPAT, false, cases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reason_is_short_however_long_the_frame_that_is_wrong() {
    let mut scene = Scene::new(HubLimits::default()).await;
    let mut changes = scene.hub.watch_spokes();
    let peer = RawPeer::connect(&scene.hub, COMPAT).await;
    let mut stream = peer.spoke(COMPAT).await;
    let text = format!("\"{}\"", "ä".repeat(4 << 20));
    stream.write(raw::frame(text)).await;
    let (code, reason) = peer.closed().await;
    assert_eq!(code, code::BAD_FRAME);
    assert!(
        !reason.is_empty() && reason.len() <= 512,
        "{}",
        reason.len()
    );
    // Nor is the frame kept by who watches.
    loop {
        let change = soon("a change", changes.next())
            .await
            .expect("the hub lives");
        if let SpokeChange::Left { closed, .. } = change.expect("no lag") {
            let Closed::ByUs { code, reason } = closed else {
                panic!("{closed}");
            };
            assert_eq!(code, CloseCode::BadFrame);
            assert!(reason.len() <= 512, "{}", reason.len());
            break;
        }
    }
    scene.goes_on().await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_an_unknown_kind_are_skipped_and_the_link_goes_on() {
    let mut scene = Scene::new(HubLimits::default()).await;
    let peer = RawPeer::connect(&scene.hub, NATIVE).await;
    let mut stream = peer.spoke(NATIVE).await;
    for kind in [50, 100, 255] {
        stream
            .write(raw::native(kind, &[1, 2], b"the future"))
            .await;
        stream.write(raw::frame([kind])).await;
    }
    stream.write(message(NATIVE, 1)).await;
    assert_eq!(number(&next_event(&mut scene.from_hostile).await), 1);
    assert_eq!(scene.hub.metrics().direct.frames_unknown.get(), 6);
    scene.goes_on().await;
    peer.leave().await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_or_stops_in_the_middle_is_closed_in_time() {
    let limits = hub_limits(|limits| {
        limits.hello_timeout = Duration::from_secs(1);
        limits.frame_timeout = Duration::from_millis(300);
    });
    let mut scene = Scene::new(limits).await;
    for alpn in [NATIVE, COMPAT] {
        let failed = scene.failed();
        let silent = RawPeer::connect(&scene.hub, alpn).await;
        let half_a_hello = RawPeer::connect(&scene.hub, alpn).await;
        let mut half = half_a_hello.open().await;
        half.write([0, 0, 0, 4, 0]).await;
        let half_a_frame = RawPeer::connect(&scene.hub, alpn).await;
        let mut stopped = half_a_frame.spoke(alpn).await;
        stopped.write([0, 0, 0, 9, 1]).await;
        let drips = RawPeer::connect(&scene.hub, alpn).await;
        let mut dripping = drips.spoke(alpn).await;
        dripping.write([0, 0, 1, 0]).await;
        let drip = async {
            // Each byte in time does not make the frame so.
            while drips.connection.close_reason().is_none() {
                dripping.write([0]).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon("the end of the drip", drip).await;
        for peer in [&silent, &half_a_hello, &half_a_frame, &drips] {
            let (code, reason) = peer.closed().await;
            assert_eq!(code, code::TIMED_OUT, "{reason}");
            assert!(!reason.is_empty());
        }
        until("all are counted", || scene.failed() == failed + 4).await;
        scene.goes_on().await;
    }
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_a_hundred_streams_gets_as_many_spokes_as_it_may_have() {
    let limits = hub_limits(|limits| limits.max_streams = 8);
    let mut scene = Scene::new(limits).await;
    for alpn in [NATIVE, COMPAT] {
        let refused = scene.hub.metrics().admission.streams_refused.get();
        let peer = RawPeer::connect(&scene.hub, alpn).await;
        let mut spokes = Vec::new();
        for _ in 0..8 {
            spokes.push(peer.spoke(alpn).await);
        }
        until("eight are spokes", || scene.hub.spoke_count() == 10).await;
        let mut more = Vec::new();
        for _ in 8..100 {
            let mut stream = peer.open().await;
            stream.write(raw::hello(1)).await;
            more.push(stream);
        }
        for stream in &mut more {
            assert_eq!(stream.reset_codes().await, (code::TOO_MANY, code::TOO_MANY));
        }
        let metrics = scene.hub.metrics();
        assert_eq!(metrics.admission.streams_refused.get(), refused + 92);
        assert_eq!(scene.hub.spoke_count(), 10);
        scene.goes_on().await;
        drop(more);
        // One that goes makes room for another.
        spokes.pop().expect("a spoke").finish();
        until("one has gone", || scene.hub.spoke_count() == 9).await;
        spokes.push(peer.spoke(alpn).await);
        until("another has come", || scene.hub.spoke_count() == 10).await;
        peer.leave().await;
        until("all are gone", || scene.hub.spoke_count() == 2).await;
    }
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_is_full_says_so() {
    let limits = hub_limits(|limits| limits.max_spokes = 2);
    let mut scene = Scene::new(limits).await;
    for alpn in [NATIVE, COMPAT] {
        let failed = scene.failed();
        let peer = RawPeer::connect(&scene.hub, alpn).await;
        let mut stream = peer.open().await;
        stream
            .write(if alpn == NATIVE {
                raw::hello(1)
            } else {
                raw::frame(b"")
            })
            .await;
        let (code, reason) = peer.closed().await;
        assert_eq!(code, code::TOO_MANY);
        assert!(reason.contains("no more spokes"), "{reason}");
        until("it is counted", || scene.failed() == failed + 1).await;
        scene.goes_on().await;
    }
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_protocol_that_nobody_speaks_is_refused() {
    let mut scene = Scene::new(HubLimits::default()).await;
    let stranger = bind().await;
    let connecting = stranger.connect(scene.hub.addr(), b"what/9");
    assert!(soon("an answer", connecting).await.is_err());
    scene.goes_on().await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_member_gets_nowhere_on_the_topic() {
    // Without a topic there is nothing to be a member of, not even for a spoke.
    let mut scene = Scene::new(HubLimits::default()).await;
    let stranger = RawPeer::connect(&scene.hub, GOSSIP).await;
    let (code, reason) = stranger.closed().await;
    assert_eq!(
        (code, &*reason),
        (code::REFUSED, "this endpoint is not admitted")
    );
    let peer = RawPeer::connect(&scene.hub, NATIVE).await;
    let stream = peer.spoke(NATIVE).await;
    let gossip = RawPeer::connect_from(peer.endpoint.clone(), &scene.hub, GOSSIP).await;
    let (code, reason) = gossip.closed().await;
    assert_eq!((code, &*reason), (code::NOT_A_MEMBER, "there is no topic"));
    drop(stream);
    peer.leave().await;
    scene.goes_on().await;
    scene.ends().await;

    let hub = hub_with(FanOut::Gossip).await;
    let mut honest = Vec::new();
    for _ in 0..3 {
        let spoke = spoke(&hub, Spoke::builder()).await;
        let listener = spoke.listen("n");
        honest.push((spoke, listener));
    }
    until("they are on the tree", || {
        let on_tree = |info: &iroh_hub::SpokeInfo| info.path == Path::Gossip;
        hub.spokes().iter().all(on_tree)
    })
    .await;
    let targets = [hub.addr(), honest[0].0.endpoint().addr()];
    for (n, addr) in targets.into_iter().enumerate() {
        // A proof that proves nothing, and bytes that are none.
        let offers = [[&[1u8][..], &[0; 72]].concat(), vec![0xff; 200]];
        for (bytes, by_spoke) in offers.into_iter().zip([code::NOT_A_MEMBER, code::VERSION]) {
            let stranger = bind().await;
            let connection = soon("an answer", stranger.connect(addr.clone(), GOSSIP)).await;
            let connection = connection.expect("a connection");
            // The hub may have closed it already.
            if let Ok((mut send, _recv)) = connection.open_bi().await {
                let _ = send.write_all(&bytes).await;
                let _ = send.stopped().await;
            }
            let (code, reason) = raw::closed(&connection).await;
            // The hub knows that it is none of its spokes.
            let expected = [code::REFUSED, by_spoke][n];
            assert_eq!(code, expected, "{n}: {reason}");
            assert!(!reason.is_empty());
        }
    }
    assert_eq!(hub.metrics().admission.refused.get(), 2);
    assert_eq!(hub.metrics().gossip.auth_failed.get(), 0);
    assert_eq!(honest[0].0.metrics().gossip.auth_failed.get(), 2);
    for n in 0..100 {
        hub.broadcast(numbered(n)).await.expect("the hub is open");
    }
    for (_, listener) in &mut honest {
        expect_numbers(listener, 0, 100).await;
    }
    assert!(hub.shutdown().await.behind.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_over_the_limit_are_refused_where_they_are_made() {
    let limits = hub_limits(|limits| limits.max_event_bytes = 1000);
    let mut scene = Scene::new(limits).await;
    let large = Envelope::new("n", &"x".repeat(1000)).expect("JSON");
    let error = scene.hub.broadcast(large.clone()).await.unwrap_err();
    assert!(matches!(
        error,
        BroadcastError::TooLarge { limit: 1000, .. }
    ));
    let error = scene.hub.try_broadcast(large.clone()).unwrap_err();
    assert!(matches!(error, TryBroadcastError::Refused { .. }));
    let native = scene.honest[0].0.endpoint().id();
    let error = scene.hub.send(native, large.clone()).await.unwrap_err();
    assert!(matches!(error, SendError::Refused { .. }));
    // The hub's limit is the native spoke's too, by the welcome.
    let error = scene.honest[0].0.send(large).await.unwrap_err();
    assert!(
        matches!(error, SpokeSendError::TooLarge { limit: 1000, .. }),
        "{error:?}"
    );
    scene.goes_on().await;

    let limits = spoke_limits(|limits| limits.max_event_bytes = 100);
    let strict = spoke(&scene.hub, Spoke::builder().limits(limits)).await;
    let event = Envelope::new("n", &"x".repeat(100)).expect("JSON");
    let error = strict.send(event).await.unwrap_err();
    assert!(matches!(error, SpokeSendError::TooLarge { limit: 100, .. }));
    strict.shutdown().await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_peers_of_all_kinds_at_once_cost_the_honest_nothing() {
    let limits = hub_limits(|limits| limits.max_event_bytes = MAX_EVENT);
    let mut scene = Scene::new(limits).await;
    let mut hostile = tokio::task::JoinSet::new();
    for (alpn, greets, cases) in [
        (NATIVE, false, instead_of_a_hello()),
        (NATIVE, true, after_a_hello()),
        (COMPAT, true, plain_frames()),
    ] {
        for case in cases {
            let hub = scene.hub.clone();
            hostile.spawn(async move {
                let peer = RawPeer::connect(&hub, alpn).await;
                let mut stream = match greets {
                    true => peer.spoke(alpn).await,
                    false => peer.open().await,
                };
                stream.write(&case.bytes).await;
                if case.finish {
                    stream.finish();
                }
                assert_eq!(peer.closed().await.0, case.code, "{}", case.name);
            });
        }
    }
    while !hostile.is_empty() {
        scene.goes_on().await;
        while let Some(ended) = hostile.try_join_next() {
            ended.expect("the hub answers with the code");
        }
    }
    scene.ends().await;
}

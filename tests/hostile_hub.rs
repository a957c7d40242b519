//! What a hostile hub sends to a spoke ends the spoke with a typed reason, or is skipped; it never
//! panics and never grows.

mod common;

use std::time::Duration;

use common::{
    raw::{COMPAT, MAX_FRAME, MAX_PART, NATIVE, RawHub, RawStream, code},
    *,
};
use iroh::{Endpoint, endpoint::Connection};
use iroh_hub::{
    CloseCode, Closed, ConnectError, Envelope, Gossip, Incoming, Listener, Missed, Position,
    Protocol, Reconnect, Spoke, SpokeBuilder, SpokeLimits,
};

const EPOCH: u64 = 77;

/// A spoke that ends with its link, so that the end can be seen.
fn builder() -> SpokeBuilder {
    let ends = Spoke::builder().reconnect(Reconnect::never());
    ends.limits(spoke_limits(|limits| {
        limits.max_event_bytes = 128 * 1024;
        limits.max_buffered_bytes = 1 << 20;
        limits.frame_timeout = Duration::from_millis(300);
        limits.first_listener_wait = Duration::from_secs(60);
    }))
}

/// Connects a spoke to a hub that answers its hello with these bytes.
async fn connect(
    builder: SpokeBuilder,
    answer: Vec<u8>,
    finish: bool,
) -> (Result<Spoke, ConnectError>, Connection, RawStream, Endpoint) {
    init_logs();
    let hub = RawHub::bind(NATIVE).await;
    // An endpoint that is dropped tells nobody.
    let endpoint = bind().await;
    let connecting = builder.connect(endpoint.clone(), hub.addr());
    let (spoke, (connection, stream)) = tokio::join!(soon("an end", connecting), async {
        let (connection, mut stream) = hub.accept().await;
        stream.write(answer).await;
        if finish {
            stream.finish();
        }
        (connection, stream)
    });
    (spoke, connection, stream, endpoint)
}

/// A spoke that was welcomed at offset 0 of a log of 0 events.
async fn welcomed() -> (Spoke, Connection, RawStream) {
    let (spoke, connection, stream, _) =
        connect(builder(), raw::welcome(1, EPOCH, 0, 0), false).await;
    (spoke.expect("welcome"), connection, stream)
}

async fn next(listener: &mut Listener) -> Incoming {
    let item = soon("an item", listener.recv()).await;
    item.expect("the spoke lives")
}

fn good(n: u64) -> Vec<u8> {
    raw::body(b"n", b"", n.to_string().as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_no_welcome_is_a_typed_error() {
    let over = (MAX_FRAME as u32 + 1).to_be_bytes().to_vec();
    for (name, answer, finish, expected) in [
        ("nothing", vec![], true, CloseCode::Misbehaved),
        (
            "an empty frame",
            raw::frame(b""),
            false,
            CloseCode::BadFrame,
        ),
        (
            "half a welcome",
            raw::frame([0, 1]),
            false,
            CloseCode::BadFrame,
        ),
        (
            "a frame cut off",
            vec![0, 0, 0, 9, 1],
            true,
            CloseCode::BadFrame,
        ),
        (
            "a frame that stops",
            vec![0, 0, 0, 9, 1],
            false,
            CloseCode::TimedOut,
        ),
        ("a frame over the limit", over, false, CloseCode::TooLarge),
        (
            "a length of 4 GiB",
            vec![0xff; 4],
            false,
            CloseCode::TooLarge,
        ),
        (
            "an event",
            raw::event(0, 0, 1, &good(0)),
            false,
            CloseCode::Misbehaved,
        ),
        (
            "version 2",
            raw::welcome(2, EPOCH, 0, 0),
            false,
            CloseCode::Version,
        ),
    ] {
        let (spoke, connection, _stream, _endpoint) = connect(builder(), answer, finish).await;
        match spoke.expect_err(name) {
            ConnectError::Broken {
                closed: Closed::ByUs { code, reason },
                ..
            } => assert_eq!(code, expected, "{name}: {reason}"),
            other => panic!("{name}: {other:?}"),
        }
        let (code, reason) = raw::closed(&connection).await;
        assert_eq!(code, expected.to_u64(), "{name}");
        assert!(!reason.is_empty() && reason.len() <= 512, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_never_answers_is_given_up_in_time() {
    let limits = spoke_limits(|limits| limits.connect_timeout = Duration::from_secs(1));
    let builder = Spoke::builder().limits(limits);
    let (spoke, ..) = connect(builder.clone(), vec![], false).await;
    assert!(matches!(spoke, Err(ConnectError::TimedOut { .. })));
    // Kinds that nobody knows are passed over, but not for ever.
    let unknown = raw::native(200, &[1], b"");
    let (spoke, ..) = connect(builder, unknown.repeat(100), false).await;
    assert!(matches!(spoke, Err(ConnectError::TimedOut { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_that_is_none_and_a_hub_that_is_not_there_are_typed_errors() {
    for ticket in [
        "nonsense",
        "",
        "endpoint",
        "endpointäöü",
        "\u{0}",
        &"a".repeat(100_000),
    ] {
        let error = Spoke::builder().connect_ticket(bind().await, ticket).await;
        assert!(
            matches!(error, Err(ConnectError::Ticket { .. })),
            "{error:?}"
        );
    }
    let gone = bind().await;
    let addr = gone.addr();
    gone.close().await;
    let limits = spoke_limits(|limits| limits.connect_timeout = Duration::from_secs(1));
    let error = Spoke::builder()
        .limits(limits)
        .connect(bind().await, addr)
        .await;
    assert!(
        matches!(
            error,
            Err(ConnectError::TimedOut { .. } | ConnectError::Unreachable { .. })
        ),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_the_rules_after_the_welcome_ends_the_spoke_with_a_code() {
    let part = vec![b'x'; MAX_PART];
    let misbehaved = CloseCode::Misbehaved;
    let bad_frame = CloseCode::BadFrame;
    let targeted =
        |seq, part: u64, parts, body: &[u8]| raw::targeted(seq, EPOCH, 0, part, parts, body);
    let parts_without_end = |kind: u8| -> Vec<u8> {
        let head: &[u64] = if kind == 3 { &[1, EPOCH, 0] } else { &[0] };
        (0..8u64)
            .flat_map(|n| raw::native(kind, &[head, &[n, 60_000]].concat(), &part))
            .collect()
    };
    let waits = |seq| raw::targeted(seq, EPOCH, 1 << 40, 0, 1, &good(1));
    let cases: Vec<(&str, Vec<u8>, bool, CloseCode)> = vec![
        (
            "a second welcome",
            raw::welcome(1, EPOCH, 0, 0),
            false,
            misbehaved,
        ),
        ("an empty frame", raw::frame(b""), false, bad_frame),
        ("half an event", raw::frame([1, 0]), false, bad_frame),
        ("half a topic", raw::frame([4, 1, 2]), false, bad_frame),
        ("half a rekey", raw::frame([9, 1]), false, bad_frame),
        (
            "a length of 4 GiB",
            vec![0xff; 4],
            false,
            CloseCode::TooLarge,
        ),
        ("a frame cut off", vec![0, 0, 0, 9, 1], true, bad_frame),
        (
            "a frame that stops",
            vec![0, 0, 0, 9, 1],
            false,
            CloseCode::TimedOut,
        ),
        ("part 1 of 1", raw::event(0, 1, 1, b"x"), false, bad_frame),
        ("part 0 of 0", raw::event(0, 0, 0, b"x"), false, bad_frame),
        (
            "another number of parts",
            [raw::event(0, 0, 3, b"x"), raw::event(0, 1, 4, b"x")].concat(),
            false,
            misbehaved,
        ),
        (
            "more parts than an event has",
            raw::event(0, 0, 60_000, b"x"),
            false,
            misbehaved,
        ),
        (
            "the last offset",
            raw::event(u64::MAX, 0, 1, &good(0)),
            false,
            misbehaved,
        ),
        (
            "several events beyond the last offset",
            raw::events(u64::MAX - 1, 2, &good(0)),
            false,
            bad_frame,
        ),
        ("no events", raw::events(0, 0, b""), false, bad_frame),
        (
            "more events than a frame has",
            raw::events(0, 33, &good(0)),
            false,
            bad_frame,
        ),
        (
            "parts of an event without end",
            parts_without_end(1),
            false,
            misbehaved,
        ),
        (
            "parts of a repair without end",
            parts_without_end(2),
            false,
            misbehaved,
        ),
        (
            "a targeted part before the first",
            targeted(1, 1, 2, b"x"),
            false,
            misbehaved,
        ),
        (
            "a targeted part twice",
            [targeted(1, 0, 3, b"x"), targeted(1, 0, 3, b"x")].concat(),
            false,
            misbehaved,
        ),
        (
            "a targeted event among the parts of another",
            [targeted(1, 0, 3, b"x"), targeted(2, 0, 1, &good(1))].concat(),
            false,
            misbehaved,
        ),
        (
            "more targeted events than may wait",
            (1..5000).flat_map(waits).collect(),
            false,
            CloseCode::TooMany,
        ),
        (
            "a targeted event too soon",
            targeted(2, 0, 1, &good(1)),
            false,
            misbehaved,
        ),
        (
            "an ack of what was not sent",
            raw::native(7, &[1], b""),
            false,
            misbehaved,
        ),
    ];
    for (name, bytes, finish, expected) in cases {
        let (spoke, connection, mut stream) = welcomed().await;
        let mut listener = spoke.listen("*");
        stream.write(bytes).await;
        if finish {
            stream.finish();
        }
        match soon(name, spoke.closed()).await {
            Closed::ByUs { code, reason } => assert_eq!(code, expected, "{name}: {reason}"),
            other => panic!("{name}: {other}"),
        }
        let (code, reason) = raw::closed(&connection).await;
        assert_eq!(code, expected.to_u64(), "{name}");
        assert!(!reason.is_empty() && reason.len() <= 512, "{name}");
        // Nothing comes of it.
        assert_eq!(soon("the end", listener.recv()).await, None, "{name}");
        assert!(spoke.send(numbered(1)).await.is_err());
        soon("shutdown", spoke.shutdown()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_over_the_limit_is_an_explicit_hole() {
    let (spoke, _connection, mut stream) = welcomed().await;
    let mut listener = spoke.listen("n");
    let part = vec![b'x'; MAX_PART];
    for n in 0..4 {
        stream.write(raw::event(0, n, 4, &part)).await;
    }
    stream.write(raw::event(1, 0, 1, &good(1))).await;
    let missed = next(&mut listener).await;
    assert!(matches!(missed, Incoming::Missed(_)), "{missed:?}");
    assert_eq!(number(&next_event(&mut listener).await), 1);
    soon("shutdown", spoke.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_that_is_no_event_is_an_explicit_hole() {
    let (spoke, _connection, mut stream) = welcomed().await;
    let mut listener = spoke.listen("n");
    stream.write(raw::event(0, 0, 1, &good(0))).await;
    stream.write(raw::event(1, 0, 1, b"nonsense")).await;
    stream
        .write(raw::event(2, 0, 1, &raw::body(b"n", b"", b"not JSON")))
        .await;
    stream
        .write(raw::targeted(1, EPOCH, 3, 0, 1, b"nonsense"))
        .await;
    stream
        .write(raw::targeted(2, EPOCH, 3, 0, 1, &good(9)))
        .await;
    stream.write(raw::event(3, 0, 1, &good(3))).await;
    assert_eq!(number(&next_event(&mut listener).await), 0);
    for offset in [1, 2] {
        let at = |offset| Position::new(iroh_hub::Epoch::from_u64(EPOCH), offset);
        let (from, to) = (at(offset), at(offset + 1));
        assert_eq!(
            next(&mut listener).await,
            Incoming::Missed(Missed { from, to })
        );
    }
    let event = next_event(&mut listener).await;
    assert!(event.targeted && number(&event) == 9);
    assert_eq!(number(&next_event(&mut listener).await), 3);
    assert_eq!(spoke.metrics().reception.frames_bad.get(), 3);
    assert_eq!(spoke.metrics().reception.events_missed.get(), 2);
    spoke.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_but_breaks_no_rule_is_survived() {
    let (spoke, _connection, mut stream) = welcomed().await;
    let mut listener = spoke.listen("n");
    // Unknown kinds; orders about a topic that there is not; holes that are none.
    for bytes in [
        raw::native(200, &[1, 2], b"the future"),
        raw::native(5, &[], b""),
        // Key and verify key, nobody to cut off, nobody revoked, no answer wanted.
        raw::native(9, &[1], &[0; 67]),
        raw::native(8, &[u64::from(u32::MAX)], b""),
        raw::native(8, &[0], b""),
        raw::native(7, &[0], b""),
        raw::native(6, &[5, 1], b""),
        raw::native(6, &[0, 0], b""),
    ] {
        stream.write(bytes).await;
    }
    // Far more than a spoke holds, far ahead of its turn.
    let large = raw::body(b"n", b"", format!("\"{}\"", "x".repeat(60_000)).as_bytes());
    for n in 0..200 {
        stream.write(raw::event(1000 + n, 0, 1, &large)).await;
    }
    stream.write(raw::event(0, 0, 1, &good(0))).await;
    assert_eq!(number(&next_event(&mut listener).await), 0);
    assert!(spoke.metrics().reception.dropped.get() > 100);
    // The hub gives up everything there will ever be.
    stream.write(raw::native(6, &[1, u64::MAX], b"")).await;
    let mut reached = 0;
    while reached < u64::MAX {
        match next(&mut listener).await {
            Incoming::Missed(missed) => reached = missed.to.offset,
            Incoming::Event(event) => assert_eq!(event.envelope.size(), large.len()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(spoke.is_closed(), None);
    spoke.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_leads_nowhere_leaves_the_direct_link_as_it_is() {
    let (spoke, _connection, mut stream) = welcomed().await;
    let mut listener = spoke.listen("n");
    for (n, max_frame) in [0, 1, u64::from(u32::MAX)].into_iter().enumerate() {
        let n = n as u64;
        // Id, generation, key, a verify key that is none, no peers, frame size, members.
        let mut topic = vec![n as u8; 32];
        topic.extend(raw::varint(1));
        topic.extend([7; 32]);
        topic.extend([2 + n as u8; 32]);
        topic.extend(raw::varint(0));
        topic.extend(raw::varint(max_frame));
        topic.extend(raw::varint(u64::from(u32::MAX)));
        stream.write(raw::native(4, &[], &topic)).await;
        stream.write(raw::event(n, 0, 1, &good(n))).await;
        assert_eq!(number(&next_event(&mut listener).await), n);
    }
    assert!(!spoke.is_on_topic());
    soon("shutdown", spoke.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_closes_is_told_apart_by_its_code() {
    let (spoke, connection, _stream) = welcomed().await;
    connection.close((code::GOODBYE as u32).into(), b"farewell");
    let closed = soon("the end", spoke.closed()).await;
    assert_eq!(
        closed,
        Closed::ByPeer {
            code: CloseCode::Goodbye,
            reason: "farewell".to_owned()
        }
    );
    let (spoke, connection, _stream) = welcomed().await;
    connection.close(999u32.into(), b"\xff\xfe");
    let closed = soon("the end", spoke.closed()).await;
    assert_eq!(closed.code(), Some(CloseCode::Other(999)));
    assert!(!closed.is_goodbye());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_frames_that_are_no_envelopes_end_a_plain_spoke_with_a_code() {
    let over = (17u32 << 20).to_be_bytes().to_vec();
    for (name, bytes, finish, expected) in [
        (
            "not JSON",
            raw::frame(b"nonsense"),
            false,
            CloseCode::BadFrame,
        ),
        (
            "not UTF-8",
            raw::frame(b"{\"type\":\"\xff\"}"),
            false,
            CloseCode::BadFrame,
        ),
        (
            "a list",
            raw::frame(br#"["n","",1]"#),
            false,
            CloseCode::BadFrame,
        ),
        ("no type", raw::frame(b"{}"), false, CloseCode::BadFrame),
        (
            "a frame cut off",
            vec![0, 0, 0, 9, 1],
            true,
            CloseCode::BadFrame,
        ),
        ("a frame over the limit", over, false, CloseCode::TooLarge),
        (
            "a length of 4 GiB",
            vec![0xff; 4],
            false,
            CloseCode::TooLarge,
        ),
    ] {
        let hub = RawHub::bind(COMPAT).await;
        let builder = Spoke::builder()
            .protocol(Protocol::Compat)
            .gossip(Gossip::Off)
            .limits(SpokeLimits::default());
        let (spoke, accepted) =
            tokio::join!(builder.connect(bind().await, hub.addr()), hub.accept());
        let (spoke, (connection, mut stream)) = (spoke.expect("a stream"), accepted);
        let mut listener = spoke.listen("n");
        stream
            .write(raw::frame(br#"{"type":"n","payload":1,"more":true}"#))
            .await;
        stream.write(bytes).await;
        if finish {
            stream.finish();
        }
        assert_eq!(number(&next_event(&mut listener).await), 1, "{name}");
        let closed = soon(name, spoke.closed()).await;
        assert_eq!(closed.code(), Some(expected), "{name}: {closed}");
        assert_eq!(
            raw::closed(&connection).await.0,
            expected.to_u64(),
            "{name}"
        );
        assert_eq!(soon("the end", listener.recv()).await, None);
        let event = Envelope::new("n", &1).expect("JSON");
        assert!(spoke.send(event).await.is_err());
    }
}

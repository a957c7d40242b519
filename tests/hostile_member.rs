//! A member of the topic that does as it likes: it was admitted and has the keys, so it can read; nothing that it says costs
//! the others an event, puts one in their mouths, or sets them against each other.

mod common;

use std::{sync::Arc, time::Duration};

use common::{
    mesh::{Friend, Mesh},
    raw::{self, code},
    raw_member::{RawMember, say},
    *,
};
use iroh::{
    EndpointAddr, EndpointId, SecretKey,
    endpoint::{ConnectionError, QuicTransportConfig, VarInt},
};
use iroh_hub::{GossipConfig, endpoint};

fn flipped(frame: &[u8], at: usize) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at] ^= 1;
    frame
}

/// Makes a message with what a member knows, from a frame of the hub.
type Forge = fn(&RawMember, &[u8]) -> Vec<u8>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_forges_or_alters_a_frame_is_cut_off_by_everyone_and_heard_by_nobody() {
    let mut mesh = Mesh::new(8).await;
    let kinds: [(&str, Forge); 9] = [
        ("of its own making", |member, _| {
            let body = raw::body(b"n", b"", b"666");
            let frame = member.seal(member.epoch, member.secrets().generation, 1 << 40, 3, &body);
            say::data(&frame, 0)
        }),
        ("another counter", |_, frame| {
            say::data(&flipped(frame, 20), 0)
        }),
        ("another offset", |_, frame| {
            say::data(&flipped(frame, 28), 0)
        }),
        ("another count", |_, frame| {
            say::data(&flipped(frame, 30), 0)
        }),
        ("another ciphertext", |_, frame| {
            say::data(&flipped(frame, 40), 0)
        }),
        ("another signature", |_, frame| {
            say::data(&flipped(frame, frame.len() - 1), 0)
        }),
        ("cut short", |_, frame| {
            say::data(&frame[..frame.len() - 1], 0)
        }),
        ("no frame at all", |_, _| say::data(b"", 0)),
        ("under another id", |_, frame| {
            say::data_as([7; 32], frame, 0)
        }),
    ];
    for (n, (kind, make)) in (1..).zip(kinds) {
        let mut friend = Friend::of_all(&mesh).await;
        let frames = friend.takes(&mut mesh).await;
        let member = friend.member;
        let bad = make(&member, &frames[0]);
        mesh.publish(20).await;
        for addr in mesh.addrs() {
            let (closed, reason) = member
                .closed_for(&addr, async |neighbor| {
                    neighbor.insist(std::slice::from_ref(&bad)).await;
                })
                .await;
            assert_eq!(closed, code::MISBEHAVED, "{kind}: {reason}");
            assert!(reason.contains("forged"), "{kind}: {reason}");
            mesh.publish(5).await;
        }
        mesh.all_hear().await;
        // Each has cut off one more, who is the culprit; so nobody blames anyone else.
        assert_eq!(mesh.cut_off(), vec![n; 9], "{kind}");
        assert_eq!(mesh.sum(|m| m.refused_forged.get()), 9 * n, "{kind}");
        // It is kept away for a while.
        let (closed, reason) = match member.try_dial(&mesh.addrs()[0]).await {
            Ok(again) => again.closed().await,
            Err(closed) => closed,
        };
        assert_eq!((closed, &*reason), (code::REFUSED, "cut off for now"));
        member.leave().await;
    }
    mesh.end().await;
}

/// Says the same kind of thing until it is shown the door. Another neighbour may take its place before, as at any time: then it
/// comes again.
async fn flood(
    member: Arc<RawMember>,
    to: EndpointAddr,
    make: impl Fn(u64) -> Vec<u8>,
) -> (u64, String) {
    let mut neighbor = member.befriend(&to).await;
    for n in 0..10_000 {
        let messages: Vec<_> = (n * 100..(n + 1) * 100).map(&make).collect();
        if neighbor.insist(&messages).await {
            continue;
        }
        let closed = neighbor.closed().await;
        if !matches!(closed.0, code::NOT_NEEDED | code::NOT_A_MEMBER) {
            return closed;
        }
        neighbor = member.befriend(&to).await;
    }
    panic!("nobody minds");
}

fn some_id(n: u64) -> [u8; 32] {
    *blake3::hash(&n.to_le_bytes()).as_bytes()
}

fn strangers(count: usize) -> Vec<EndpointId> {
    let strangers = (0..count).map(|_| SecretKey::generate().public());
    strangers.collect()
}

/// What a flood is made of: from a frame of the hub, and a number that is always another one.
type Make = fn(&Means, u64) -> Vec<u8>;

/// What a member says once, with its length.
type Say = fn(&Means) -> Vec<u8>;

struct Means {
    frame: Vec<u8>,
    strangers: Vec<EndpointId>,
}

impl Means {
    fn stranger(&self, n: u64) -> EndpointId {
        self.strangers[n as usize % self.strangers.len()]
    }

    /// The frame with another number at this place of its header.
    fn with_number(&self, at: usize, n: u64) -> Vec<u8> {
        let mut frame = self.frame.clone();
        frame[at..at + 4].copy_from_slice(&(n as u32 + 7).to_be_bytes());
        frame
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_floods_the_topic_is_cut_off_and_nobody_else_is() {
    let mut config = GossipConfig::default();
    // So that a busy machine is fast enough to send too much.
    config.max_messages_per_s = 300;
    let mut mesh = Mesh::with(6, config).await;
    let kinds: [(&str, Make); 12] = [
        ("frames that came before", |means, _| {
            say::data(&means.frame, 0)
        }),
        ("frames of other epochs", |means, n| {
            say::data(&means.with_number(5, n), 0)
        }),
        ("frames of unknown generations", |means, n| {
            say::data(&means.with_number(9, n), 0)
        }),
        ("grafts of frames that nobody has", |_, n| {
            say::graft(Some(some_id(n)), 0)
        }),
        ("grafts of a frame that all have", |means, _| {
            let id = *blake3::hash(&means.frame).as_bytes();
            say::graft(Some(id), 0)
        }),
        ("grafts of nothing", |_, _| say::graft(None, 0)),
        ("prunes", |_, _| say::prune()),
        ("announcements", |_, n| {
            let list: Vec<_> = (0..100).map(|k| (some_id(n * 100 + k), 0)).collect();
            say::ihave(&list)
        }),
        ("joins", |_, _| say::join(None)),
        ("walks of others", |means, n| {
            say::forward_join((means.stranger(n), Some(b"nowhere")), 6)
        }),
        ("requests to be a neighbour", |_, _| {
            say::neighbor(true, None)
        }),
        ("lists of peers", |means, n| {
            let list: Vec<say::Peer<'_>> = (0..16).map(|k| (means.stranger(n + k), None)).collect();
            say::shuffle_reply(&list)
        }),
    ];
    for (n, (kind, make)) in (1..).zip(kinds) {
        let mut friend = Friend::of_all(&mesh).await;
        let frame = friend.takes(&mut mesh).await.remove(0);
        let member = Arc::new(friend.member);
        let addrs = mesh.addrs();
        // A spoke and the hub.
        let victims = [0, addrs.len() - 1];
        let mut floods = Vec::new();
        for victim in victims {
            let means = Means {
                frame: frame.clone(),
                strangers: strangers(64),
            };
            let (member, to) = (member.clone(), addrs[victim].clone());
            let flood = flood(member, to, move |n| make(&means, n));
            floods.push(tokio::spawn(flood));
        }
        while floods.iter().any(|flood| !flood.is_finished()) {
            mesh.publish(5).await;
            mesh.all_hear().await;
        }
        for flood in floods {
            let (closed, reason) = flood.await.expect("a flood that ends");
            assert_eq!(
                (closed, &*reason),
                (code::MISBEHAVED, "floods the topic"),
                "{kind}"
            );
        }
        let mut due = vec![0; addrs.len()];
        for victim in victims {
            due[victim] = n;
        }
        assert_eq!(mesh.cut_off(), due, "{kind}");
        assert_eq!(mesh.sum(|m| m.floods.get()), 2 * n, "{kind}");
        Arc::into_inner(member)
            .expect("the floods are over")
            .leave()
            .await;
    }
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_what_no_honest_member_says_is_cut_off_by_everyone() {
    let mut mesh = Mesh::new(6).await;
    let kinds: Vec<(&str, u64, Say)> = vec![
        ("nothing", code::BAD_FRAME, |_| raw::frame([])),
        ("a kind that there is not", code::BAD_FRAME, |_| {
            raw::frame([2, 0])
        }),
        (
            "a membership message that there is not",
            code::BAD_FRAME,
            |_| raw::frame([0, 6]),
        ),
        ("a tree message that there is not", code::BAD_FRAME, |_| {
            raw::frame([1, 4])
        }),
        ("a priority that there is not", code::BAD_FRAME, |_| {
            raw::frame([0, 4, 2, 0])
        }),
        ("half a message", code::BAD_FRAME, |means| {
            let whole = say::data(&means.frame, 0);
            raw::frame(&whole[..whole.len() / 2])
        }),
        ("a message and a half", code::BAD_FRAME, |_| {
            raw::frame([say::prune(), vec![0]].concat())
        }),
        ("a length that is not there", code::BAD_FRAME, |_| {
            raw::frame([&[0, 0, 1][..], &[0xff; 9], &[1]].concat())
        }),
        ("a list without end", code::BAD_FRAME, |_| {
            raw::frame([&[1, 3][..], &[0xff, 0xff, 0xff, 0xff, 0x0f]].concat())
        }),
        ("too many announcements", code::TOO_LARGE, |_| {
            raw::frame(say::ihave(&[([7; 32], 0)].repeat(2049)))
        }),
        ("too many peers in a shuffle", code::BAD_FRAME, |means| {
            let list: Vec<say::Peer<'_>> = means.strangers.iter().map(|id| (*id, None)).collect();
            raw::frame(say::shuffle(means.strangers[0], &list[..17], 6))
        }),
        ("too many peers in a reply", code::BAD_FRAME, |means| {
            let list: Vec<say::Peer<'_>> = means.strangers.iter().map(|id| (*id, None)).collect();
            raw::frame(say::shuffle_reply(&list))
        }),
        ("a frame for neighbours only", code::BAD_FRAME, |means| {
            raw::frame(say::data_for_neighbors(&means.frame))
        }),
        ("a frame of absurdly many hops", code::BAD_FRAME, |means| {
            raw::frame(say::data(&means.frame, u16::MAX))
        }),
        (
            "an announcement of absurdly many hops",
            code::BAD_FRAME,
            |_| raw::frame(say::ihave(&[([7; 32], 3), ([8; 32], u16::MAX)])),
        ),
        ("a graft of absurdly many hops", code::BAD_FRAME, |_| {
            raw::frame(say::graft(None, u16::MAX))
        }),
        ("a number of hops beyond its type", code::BAD_FRAME, |_| {
            raw::frame([&[1, 2, 0][..], &[0xff, 0xff, 0xff, 0x7f]].concat())
        }),
        ("a walk without end", code::BAD_FRAME, |means| {
            raw::frame(say::forward_join((means.strangers[0], None), u16::MAX))
        }),
        ("a shuffle without end", code::BAD_FRAME, |means| {
            raw::frame(say::shuffle(means.strangers[0], &[], u16::MAX))
        }),
        ("an id that is no key", code::BAD_FRAME, |_| {
            raw::frame([&[0, 1][..], &[2; 32], &[0, 3]].concat())
        }),
        ("a long story about itself", code::BAD_FRAME, |_| {
            raw::frame(say::join(Some(&[7; 513])))
        }),
        ("a long story with a request", code::BAD_FRAME, |_| {
            raw::frame(say::neighbor(false, Some(&[7; 60_000])))
        }),
        ("a long story about another", code::BAD_FRAME, |means| {
            raw::frame(say::forward_join((means.strangers[0], Some(&[7; 513])), 3))
        }),
        ("a long story in a list", code::BAD_FRAME, |means| {
            let peer: say::Peer<'_> = (means.strangers[0], Some(&[7; 513]));
            raw::frame(say::shuffle_reply(&[peer]))
        }),
        ("a message beyond the limit", code::TOO_LARGE, |_| {
            raw::frame(say::data(&[7; 66 * 1024], 0))
        }),
        ("the longest length", code::TOO_LARGE, |_| vec![0xff; 4]),
    ];
    let frame = {
        let mut friend = Friend::of_all(&mesh).await;
        let frame = friend.takes(&mut mesh).await.remove(0);
        friend.leave().await;
        frame
    };
    let means = Means {
        frame,
        strangers: strangers(20),
    };
    let count = mesh.addrs().len() as u64;
    for (n, (kind, due, make)) in (1..).zip(kinds) {
        let member = RawMember::admitted(&mesh.hub).await;
        let bad = make(&means);
        for addr in mesh.addrs() {
            mesh.publish(2).await;
            let (closed, reason) = member
                .closed_for(&addr, async |neighbor| {
                    // Some kinds count only from a neighbour.
                    neighbor.insist(&[]).await;
                    neighbor.write(&bad).await;
                })
                .await;
            assert_eq!(closed, due, "{kind}: {reason}");
            assert!(!reason.is_empty(), "{kind}");
        }
        mesh.all_hear().await;
        until("they have counted it", || {
            mesh.cut_off() == vec![n; count as usize]
        })
        .await;
        let counted = mesh.sum(|m| m.refused_malformed.get() + m.refused_oversize.get());
        assert_eq!(counted, n * count, "{kind}");
        member.leave().await;
    }
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_never_finished_costs_the_connection_and_no_more() {
    let mut config = GossipConfig::default();
    config.message_timeout = Duration::from_millis(500);
    let mut mesh = Mesh::with(3, config).await;
    let count = mesh.addrs().len() as u64;
    for (n, finish) in (1..).zip([false, true]) {
        for begun in [&[0, 0][..], &[0, 0, 0, 10, 1], &[0, 0, 0, 10]] {
            // Only a stream that goes on can be late, and one that ends is cut short.
            let member = RawMember::admitted(&mesh.hub).await;
            for addr in mesh.addrs() {
                mesh.publish(2).await;
                let (closed, reason) = member
                    .closed_for(&addr, async |neighbor| {
                        neighbor.write(begun).await;
                        if finish {
                            neighbor.send.finish().expect("it is open");
                        }
                    })
                    .await;
                let due = [code::TIMED_OUT, code::BAD_FRAME][usize::from(finish)];
                assert_eq!(closed, due, "{begun:?}: {reason}");
                assert!(reason.contains("message"), "{reason}");
            }
            mesh.all_hear().await;
            member.leave().await;
        }
        assert_eq!(mesh.sum(|m| m.refused_unfinished.get()), 3 * n * count);
    }
    assert_eq!(mesh.sum(|m| m.peers_cut_off.get()), 0);
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_more_than_its_one_stream_is_cut_off() {
    let mut mesh = Mesh::new(3).await;
    let spokes = mesh.spokes.len();
    for (n, kind) in (1..).zip(["both ways", "one way", "a datagram"]) {
        let member = RawMember::admitted(&mesh.hub).await;
        // A hub gives its peers no streams one way, and takes no datagrams.
        let all = kind == "both ways";
        let addrs = mesh.addrs().into_iter();
        for addr in addrs.take(spokes + usize::from(all)) {
            mesh.publish(2).await;
            let (closed, reason) = member
                .closed_for(&addr, async |neighbor| {
                    let connection = &neighbor.connection;
                    match kind {
                        "both ways" => {
                            let (mut send, _) = connection.open_bi().await.expect("a stream");
                            let _ = send.write_all(&[7; 1000]).await;
                        }
                        "one way" => {
                            let mut send = connection.open_uni().await.expect("a stream");
                            let _ = send.write_all(&[7; 1000]).await;
                        }
                        _ => {
                            let sent = connection.send_datagram(vec![7; 100].into());
                            sent.expect("datagrams are taken");
                        }
                    }
                })
                .await;
            assert_eq!(closed, code::BAD_FRAME, "{kind}: {reason}");
        }
        mesh.all_hear().await;
        let mut cut_off = vec![n; spokes];
        cut_off.push(1);
        // The connection ends before the node has taken note of why.
        until("they have counted it", || mesh.cut_off() == cut_off).await;
        member.leave().await;
    }
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_are_played_again_late_or_out_of_order_are_heard_once_and_in_order() {
    let mut config = GossipConfig::default();
    config.id_retention = Duration::from_secs(2);
    let mut mesh = Mesh::with(8, config).await;
    let mut friend = Friend::of_all(&mesh).await;
    let old = friend.takes(&mut mesh).await;
    let (all, count) = (mesh.addrs().len(), old.len());
    // While their ids are remembered.
    let again: Vec<_> = old.iter().rev().map(|frame| say::data(frame, 0)).collect();
    friend.says(&again).await;
    until("all have seen them before", || {
        mesh.sum(|m| m.frames_repeated.get()) >= (all * count) as u64
    })
    .await;
    // And once they are forgotten: the counters of the frames are not.
    let mut rounds = 0;
    while mesh.sum(|m| m.refused_stale.get()) < (all * count) as u64 {
        let again: Vec<_> = old.iter().map(|frame| say::data(frame, rounds)).collect();
        friend.says(&again).await;
        rounds += 1;
        assert!(rounds < 500, "they are not forgotten");
        mesh.publish(5).await;
        mesh.all_hear().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // New ones that go by the member come to its neighbours last first, over and over, from further and further away.
    for round in [0, 1, 500, 1001] {
        let new = friend.takes(&mut mesh).await;
        mesh.publish(20).await;
        let again: Vec<_> = new
            .iter()
            .rev()
            .map(|frame| say::data(frame, round))
            .collect();
        friend.says(&again).await;
        mesh.publish(20).await;
        mesh.all_hear().await;
    }
    assert_eq!(mesh.cut_off(), vec![0; all], "nothing of it is forged");
    friend.leave().await;
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_take_everything_and_pass_nothing_on_cost_the_others_no_event() {
    let mut mesh = Mesh::new(8).await;
    let mut holes = Vec::new();
    for _ in 0..3 {
        holes.push(Friend::of_all(&mesh).await);
    }
    // First they are the fastest, as close to the hub as can be, so that the others do without each other.
    let mut passed = vec![0; holes.len()];
    for _ in 0..20 {
        mesh.publish(5).await;
        for (hole, passed) in holes.iter_mut().zip(&mut passed) {
            let frames = hole.member.frames().split_off(*passed);
            *passed += frames.len();
            let frames: Vec<_> = frames.iter().map(|frame| say::data(frame, 0)).collect();
            hole.says(&frames).await;
        }
        mesh.all_hear().await;
    }
    // Then they announce what they have, and keep it.
    let mut announced = passed;
    for _ in 0..20 {
        mesh.publish(5).await;
        for (hole, announced) in holes.iter_mut().zip(&mut announced) {
            let frames = hole.member.frames().split_off(*announced);
            *announced += frames.len();
            let ids = frames
                .iter()
                .map(|frame| (*blake3::hash(frame).as_bytes(), 0));
            let ids: Vec<_> = ids.collect();
            hole.says(&[say::ihave(&ids), say::graft(None, 0)]).await;
        }
        mesh.all_hear().await;
    }
    assert!(mesh.cut_off().iter().all(|count| *count == 0));
    for hole in holes {
        hole.leave().await;
    }
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_reads_nothing_is_replaced() {
    let mut config = GossipConfig::default();
    config.queue_bytes = 1 << 20;
    let mut mesh = Mesh::with(4, config).await;
    // Little is on its way to it before it is in the way.
    let windows = QuicTransportConfig::builder()
        .stream_receive_window(VarInt::from_u32(64 * 1024))
        .build();
    let endpoint = endpoint::local(None).transport_config(windows);
    let member = RawMember::admitted_from(endpoint, &mesh.hub).await;
    let mut neighbors = Vec::new();
    for addr in mesh.addrs() {
        neighbors.push((member.dial(&addr).await, addr));
    }
    let filler = "x".repeat(1000);
    let mut told = false;
    while !told {
        for (neighbor, addr) in &mut neighbors {
            match neighbor.connection.close_reason() {
                None => {}
                Some(ConnectionError::ApplicationClosed(close))
                    if close.error_code.into_inner() == code::FELL_BEHIND =>
                {
                    told = true;
                    continue;
                }
                // Another neighbour has taken its place, as at any time.
                Some(_) => *neighbor = member.dial(addr).await,
            }
            neighbor.insist(&[]).await;
        }
        for _ in 0..200 {
            let event = numbered(mesh.sent).with_id(&filler).expect("an id");
            let sending = mesh.hub.broadcast(event);
            soon("room", sending).await.expect("the hub is open");
            mesh.sent += 1;
        }
        mesh.all_hear().await;
        assert!(mesh.sent < 100_000, "nobody minds");
    }
    assert!(mesh.sum(|m| m.peers_stuck.get()) > 0);
    assert!(mesh.cut_off().iter().all(|count| *count == 0));
    member.leave().await;
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sets_the_mesh_in_motion_costs_nobody_an_event_nor_a_neighbour_for_good() {
    let mut mesh = Mesh::new(8).await;
    let mut friend = Friend::of_all(&mesh).await;
    let addrs = mesh.addrs();
    let strangers = strangers(16);
    for round in 0..20 {
        mesh.publish(5).await;
        let mut messages = Vec::new();
        // Everyone is told to make everyone a neighbour at once,
        for other in &addrs {
            messages.push(say::forward_join((other.id, None), 0));
        }
        // where some are said to live elsewhere,
        let elsewhere = EndpointAddr::new(addrs[0].id).with_ip_addr(([127, 0, 0, 1], 9).into());
        let elsewhere = postcard::to_stdvec(&elsewhere).expect("an address");
        messages.push(say::forward_join((addrs[0].id, Some(&elsewhere)), 3));
        // and there are many who do not exist.
        let list: Vec<say::Peer<'_>> = strangers.iter().map(|id| (*id, None)).collect();
        messages.push(say::shuffle(addrs[round % addrs.len()].id, &list, 6));
        messages.push(say::shuffle_reply(&list));
        messages.push(say::join(None));
        messages.push(say::prune());
        friend.says(&messages).await;
        mesh.all_hear().await;
    }
    // It comes and goes, and each time somebody makes room for it.
    let turned_away = mesh.metrics()[0].refused_visits.get();
    let mut visits = 0;
    loop {
        visits += 1;
        assert!(visits < 10_000, "nobody minds");
        let (closed, reason) = match friend.member.try_dial(&addrs[0]).await {
            Ok(mut neighbor) => {
                neighbor.insist(&[say::disconnect(visits % 2 == 0)]).await;
                if mesh.metrics()[0].refused_visits.get() == turned_away {
                    // It does not wait for the goodbye.
                    continue;
                }
                neighbor.closed().await
            }
            Err(closed) => closed,
        };
        if !matches!(closed, code::NOT_NEEDED | code::NOT_A_MEMBER) {
            assert_eq!(closed, code::TOO_MANY, "{reason}");
            break;
        }
    }
    assert!(mesh.metrics()[0].refused_visits.get() > turned_away);
    mesh.publish(20).await;
    mesh.all_hear().await;
    assert_eq!(mesh.cut_off(), vec![0; addrs.len()]);
    friend.leave().await;
    mesh.end().await;
}

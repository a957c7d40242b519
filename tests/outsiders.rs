//! Who knows the topic's id, and was never admitted: it joins nothing, reads nothing and puts nothing in, whether it dials or is
//! dialled; each attempt is answered with a code and a reason, and counted.

mod common;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use common::{
    mesh::{Friend, Mesh},
    raw::{self, GOSSIP, code},
    raw_member::{Secrets, answer, offer, say},
    *,
};
use iroh::{
    Endpoint, EndpointAddr,
    endpoint::{Connection, ConnectionError, RecvStream, SendStream},
};
use iroh_hub::{GossipConfig, endpoint};
use iroh_metrics::MetricsGroupSet;

/// A mesh in which a proof has to come soon, and a member that knows its secrets.
async fn scene() -> (Mesh, Friend) {
    let mut config = GossipConfig::default();
    config.auth_timeout = Duration::from_secs(1);
    let mesh = Mesh::with(4, config).await;
    let friend = Friend::of_all(&mesh).await;
    (mesh, friend)
}

/// Everything that a hub or a spoke has counted as refused.
fn refused(metrics: &impl MetricsGroupSet) -> u64 {
    let all = metrics.groups().flat_map(|group| group.iter());
    let refused = all.filter(|item| {
        let name = item.name();
        name.contains("refused") || name.contains("auth_failed")
    });
    refused.map(|item| item.value().to_f32() as u64).sum()
}

/// What is said first by who wants to be taken for a member.
struct Attempt {
    name: &'static str,
    bytes: Vec<u8>,
    /// It ends its stream behind that.
    ends: bool,
}

const ATTEMPTS: usize = 13;

fn attempts(
    secrets: &Secrets,
    stolen: &[u8],
    connection: &Connection,
    me: &Endpoint,
) -> Vec<Attempt> {
    let peer = connection.remote_id();
    let with = |change: fn(&mut Secrets)| {
        let mut secrets = *secrets;
        change(&mut secrets);
        offer(&secrets, connection, me.id(), peer)
    };
    // What an outsider can do knowing the topic, and no key.
    let guessed = with(|secrets| secrets.key = [0; 32]);
    let attempt = |name, bytes: Vec<u8>, ends| Attempt { name, bytes, ends };
    vec![
        attempt("nothing", vec![], false),
        attempt("nothing, and ends", vec![], true),
        attempt("half a proof", guessed[..40].to_vec(), false),
        attempt("half a proof, and ends", guessed[..40].to_vec(), true),
        attempt("a guessed key", guessed, false),
        attempt("no proof", [&[1][..], &[0; 72]].concat(), false),
        attempt("another version", [&[2][..], &[0; 72]].concat(), false),
        attempt(
            "an unknown generation",
            with(|secrets| (secrets.generation, secrets.key) = (secrets.generation + 9, [0; 32])),
            false,
        ),
        attempt("the proof of another connection", stolen.to_vec(), false),
        attempt("a message", raw::frame(say::data(&[7; 1000], 0)), false),
        // What only a member can do, for another topic than its own or in another role.
        attempt(
            "a proof for another topic",
            with(|secrets| secrets.topic[0] ^= 1),
            false,
        ),
        attempt(
            "the proof of who was dialled",
            {
                let one = answer(secrets, connection, me.id(), peer);
                [&one[..], &one[1..]].concat()
            },
            false,
        ),
        attempt(
            "a proof from another id",
            offer(secrets, connection, peer, me.id()),
            false,
        ),
    ]
}

/// The code and the reason with which a connection that may not even have been made was closed.
async fn connect(to: &EndpointAddr, from: &Endpoint) -> Result<Connection, (u64, String)> {
    match soon("an answer", from.connect(to.clone(), GOSSIP)).await {
        Ok(connection) => Ok(connection),
        Err(error) => {
            let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
            while let Some(error) = source {
                if let Some(ConnectionError::ApplicationClosed(close)) = error.downcast_ref() {
                    let reason = String::from_utf8_lossy(&close.reason).into_owned();
                    return Err((close.error_code.into_inner(), reason));
                }
                source = error.source();
            }
            panic!("no code: {error:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_proves_nothing_reads_nothing_and_says_nothing_and_is_counted() {
    let (mut mesh, mut friend) = scene().await;
    let frame = friend.takes(&mut mesh).await.remove(0);
    let addrs = mesh.addrs();
    let hub = addrs.len() - 1;
    for victim in [0, hub] {
        let counted = |mesh: &Mesh| match mesh.spokes.get(victim) {
            Some((spoke, _)) => refused(spoke.metrics()),
            None => refused(mesh.hub.metrics()),
        };
        let to = &addrs[victim];
        for n in 0..ATTEMPTS {
            mesh.publish(2).await;
            let outsider = bind().await;
            // A member's proof, taken from where it was said.
            let stolen = {
                let member = &friend.member;
                let connection = soon(
                    "an answer",
                    member.peer.endpoint.connect(to.clone(), GOSSIP),
                );
                let connection = connection.await.expect("a connection");
                offer(&member.secrets(), &connection, member.id(), to.id)
            };
            let before = counted(&mesh);
            let (closed, reason) = match connect(to, &outsider).await {
                // Before it could say anything.
                Err(closed) => closed,
                Ok(connection) => {
                    let secrets = friend.member.secrets();
                    let mut all = attempts(&secrets, &stolen, &connection, &outsider);
                    assert_eq!(all.len(), ATTEMPTS);
                    tries(&connection, all.swap_remove(n), &frame).await
                }
            };
            assert!(
                closed > 1 && !reason.is_empty(),
                "attempt {n}: {closed} {reason}"
            );
            until("it is counted", || counted(&mesh) > before).await;
            mesh.all_hear().await;
            soon("the end", outsider.close()).await;
        }
    }
    assert!(mesh.cut_off().iter().all(|count| *count == 0));
    friend.leave().await;
    mesh.end().await;
}

/// Tries to be taken for a member; everything that it would like to say as one comes along. Nothing may come back.
async fn tries(connection: &Connection, attempt: Attempt, frame: &[u8]) -> (u64, String) {
    let Attempt { name, bytes, ends } = attempt;
    let Ok((mut send, mut recv)) = connection.open_bi().await else {
        return raw::closed(connection).await;
    };
    let _ = send.write_all(&bytes).await;
    if ends {
        let _ = send.finish();
    } else if bytes.len() >= 73 {
        for message in [
            say::join(None),
            say::neighbor(true, None),
            say::data(frame, 0),
        ] {
            let _ = send.write_all(&raw::frame(message)).await;
        }
    }
    let mut read = [0; 1];
    let answered = soon("the end of the stream", recv.read(&mut read)).await;
    assert!(!matches!(answered, Ok(Some(1))), "{name} was answered");
    raw::closed(connection).await
}

/// What an outsider answers who is dialled.
type Answer = fn(&Secrets, &Connection, &[u8]) -> Vec<u8>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_dialled_and_proves_nothing_is_told_nothing() {
    let (mut mesh, mut friend) = scene().await;
    let secrets = friend.member.secrets();
    let answers: [(&str, Answer); 7] = [
        ("nothing", |_, _, _| vec![]),
        ("half an answer", |_, _, _| vec![1, 0, 0, 0]),
        ("no proof", |secrets, _, _| {
            [&[1][..], &secrets.generation.to_be_bytes(), &[0; 32]].concat()
        }),
        ("another version", |_, _, _| vec![9; 37]),
        ("an unknown generation", |_, _, _| {
            [&[1, 9, 9, 9, 9][..], &[0; 32]].concat()
        }),
        ("what was said to it", |_, _, offer| offer[..37].to_vec()),
        ("a guessed key", |secrets, connection, _| {
            let guessed = Secrets {
                key: [0; 32],
                ..*secrets
            };
            answer(
                &guessed,
                connection,
                connection.remote_id(),
                connection.remote_id(),
            )
        }),
    ];
    for (name, make) in answers {
        let builder = endpoint::local(None).alpns(vec![GOSSIP.to_vec()]);
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let outsider = endpoint::bind_at(builder, loopback)
            .await
            .expect("loopback");
        let addr = postcard::to_stdvec(&outsider.addr()).expect("an address");
        let failed = |mesh: &Mesh| mesh.sum(|m| m.auth_failed.get());
        let before = failed(&mesh);
        // A member that does not know better, or does, sends everyone to it.
        let introduction = say::forward_join((outsider.id(), Some(&addr)), 0);
        let dialled = async {
            loop {
                friend.says(std::slice::from_ref(&introduction)).await;
                mesh.publish(1).await;
                let accepted = tokio::time::timeout(Duration::from_secs(1), outsider.accept());
                if let Ok(Some(incoming)) = accepted.await
                    && let Ok(connection) = incoming.await
                {
                    return connection;
                }
            }
        };
        let connection = soon("somebody who dials", dialled).await;
        let accepted = soon("the proof", connection.accept_bi()).await;
        let (mut send, mut recv): (SendStream, RecvStream) = accepted.expect("a stream");
        let mut offered = [0; 73];
        soon("the proof", recv.read_exact(&mut offered))
            .await
            .expect("a proof");
        let _ = send.write_all(&make(&secrets, &connection, &offered)).await;
        // The topic goes on, and nothing of it comes this way.
        mesh.publish(10).await;
        let more = soon("the end", recv.read(&mut [0; 1])).await;
        assert!(
            !matches!(more, Ok(Some(_))),
            "{name}: it was told something"
        );
        let (closed, reason) = raw::closed(&connection).await;
        let due = [code::NOT_A_MEMBER, code::TIMED_OUT, code::VERSION];
        assert!(
            due.contains(&closed) && !reason.is_empty(),
            "{name}: {closed} {reason}"
        );
        assert!(failed(&mesh) > before, "{name}");
        mesh.all_hear().await;
        soon("the end", outsider.close()).await;
    }
    friend.leave().await;
    mesh.end().await;
}

//! A former spoke with all the keys that it ever had, still connected to others, and with friends to whom it gave them:
//! it reads nothing that is dispatched after the hub has revoked it.

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{
    mesh::{Friend, Mesh},
    raw::{self, NATIVE, RawPeer, code},
    raw_member::{Neighbor, RawMember, first_and_count, say},
    *,
};
use iroh::SecretKey;
use iroh_hub::FanOut;
use tokio::time::Instant;

/// Of the frames that came, those with events from `tip` on; none of them is to be opened.
fn opens_none_from(member: &RawMember, frames: &[Vec<u8>], tip: u64) -> usize {
    let after = frames.iter().filter(|frame| {
        let (first, count) = first_and_count(frame);
        count > 0 && first + u64::from(count) > tip
    });
    let mut number = 0;
    for frame in after {
        assert!(!member.opens(frame), "{:?}", first_and_count(frame));
        number += 1;
    }
    number
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_spoke_that_keeps_its_keys_and_its_connections_reads_nothing_more() {
    let mut mesh = Mesh::new(5).await;
    let mut friend = Friend::of_all(&mesh).await;
    let frames = friend.takes(&mut mesh).await;
    assert!(frames.iter().all(|frame| friend.member.opens(frame)));

    // One whom nobody knows has been given the keys, and is a neighbour of every spoke; not of the hub.
    let accomplice = bind().await;
    let mut ears = Vec::new();
    for addr in mesh.addrs() {
        match friend.member.try_dial_from(&accomplice, &addr).await {
            Ok(mut neighbor) => {
                friend.member.listen_to(&mut neighbor);
                neighbor.insist(&[]).await;
                ears.push(neighbor);
            }
            Err((closed, _)) => {
                assert_eq!((closed, addr.id), (code::REFUSED, mesh.hub.id()));
            }
        }
    }
    assert_eq!(ears.len(), mesh.spokes.len());

    let before = friend.member.frames().len();
    let tip = mesh.hub.tip().offset;
    mesh.hub.admission().revoke(friend.member.id());
    mesh.publish(50).await;
    mesh.all_hear().await;
    // It is cut off by its neighbours, when they learn of it.
    let mut evicted = 0;
    for (neighbor, _) in &friend.neighbors {
        match neighbor.closed().await {
            (code::REFUSED, reason) if reason == "a member no more" => evicted += 1,
            // Another one had taken its place before.
            (code::NOT_NEEDED, _) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(evicted > 0);
    // And so are those that only its keys brought in, whoever they are.
    for ear in &ears {
        let closed = raw::closed(&ear.connection);
        tokio::pin!(closed);
        let (closed, reason) = loop {
            tokio::select! {
                closed = &mut closed => break closed,
                () = mesh.publish(3) => mesh.all_hear().await,
            }
        };
        assert!(
            matches!(closed, code::NOT_A_MEMBER | code::NOT_NEEDED),
            "{closed} {reason}"
        );
    }
    let frames = friend.member.frames().split_off(before);
    let after = opens_none_from(&friend.member, &frames, tip);
    assert!(
        after > 0,
        "some were passed on to those who could not read them"
    );

    // Nor does it come back.
    let hub = RawPeer::connect_from(friend.member.peer.endpoint.clone(), &mesh.hub, NATIVE).await;
    assert_eq!(hub.closed().await.0, code::REFUSED);
    for addr in mesh.addrs() {
        for from in [&friend.member.peer.endpoint, &accomplice] {
            let (closed, _) = friend
                .member
                .try_dial_from(from, &addr)
                .await
                .expect_err("its keys are worth nothing");
            let refused = matches!(closed, code::NOT_A_MEMBER | code::REFUSED | code::TOO_MANY);
            assert!(refused, "{closed}");
        }
    }
    assert_eq!(mesh.sum(|m| m.refused_forged.get()), 0);
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sealed_when_a_topic_ends_is_not_for_who_is_revoked_then() {
    for round in 0..6 {
        let mut mesh = Mesh::new(3).await;
        let mut friend = Friend::of_all(&mesh).await;
        friend.takes(&mut mesh).await;
        let before = friend.member.frames().len();
        // The topic ends before, after or while it is revoked, and events come all the time.
        let hub = mesh.hub.clone();
        let ends = tokio::spawn(async move {
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            hub.set_fan_out(FanOut::Direct).await;
        });
        mesh.publish(5).await;
        mesh.hub.admission().revoke(friend.member.id());
        let tip = mesh.hub.tip().offset;
        mesh.publish(20).await;
        soon("the end of the topic", ends).await.expect("no panic");
        mesh.publish(20).await;
        mesh.all_hear().await;
        for (neighbor, _) in &friend.neighbors {
            neighbor.closed().await;
        }
        let frames = friend.member.frames().split_off(before);
        opens_none_from(&friend.member, &frames, tip);
        mesh.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_admitted_again_cannot_open_what_it_kept_from_between() {
    let mut mesh = Mesh::new(4).await;
    let key = SecretKey::generate();
    let member = RawMember::admitted_as(&mesh.hub, key.clone()).await;
    let accomplice = bind().await;
    let spokes: Vec<_> = mesh
        .addrs()
        .into_iter()
        .filter(|addr| addr.id != mesh.hub.id())
        .collect();
    let mut ears = Vec::new();
    for addr in &spokes {
        let ear = member.try_dial_from(&accomplice, addr).await;
        let mut ear = ear.expect("it has the keys");
        member.listen_to(&mut ear);
        // It wants every frame, and not only word of it.
        ear.insist(&[say::graft(None, 0)]).await;
        ears.push(ear);
    }
    let tip = mesh.hub.tip().offset;
    mesh.hub.admission().revoke(member.id());
    // Until it has got something of between.
    let deadline = Instant::now() + LIMIT;
    while opens_none_from(&member, &member.frames(), tip) == 0 {
        assert!(Instant::now() < deadline, "nothing was passed on to it");
        mesh.publish(10).await;
        mesh.all_hear().await;
    }
    let kept = member.frames();
    let readmitted = mesh.hub.tip().offset;
    mesh.hub.admission().allow(member.id());
    drop(ears);
    member.leave().await;

    let again = RawMember::admitted_as(&mesh.hub, key).await;
    let since = friend_hears(&mut mesh, &again).await;
    assert!(since >= readmitted);
    opens_none_from(&again, &kept, tip);
    again.leave().await;
    mesh.end().await;
}

/// Takes frames until it can open one; the first offset of that.
async fn friend_hears(mesh: &mut Mesh, member: &RawMember) -> u64 {
    let mut neighbors = BTreeMap::new();
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        // It is kept away for some seconds after it was revoked, and is not to come too often then.
        for addr in mesh.addrs() {
            let stands = |n: &Neighbor| n.connection.close_reason().is_none();
            if !neighbors.get(&addr.id).is_some_and(stands)
                && let Ok(mut neighbor) = member.try_dial(&addr).await
            {
                member.listen_to(&mut neighbor);
                neighbor.insist(&[say::graft(None, 0)]).await;
                neighbors.insert(addr.id, neighbor);
            }
        }
        mesh.publish(20).await;
        mesh.all_hear().await;
        let opened = member.frames().into_iter().find(|frame| {
            let (_, count) = first_and_count(frame);
            count > 0 && member.opens(frame)
        });
        if let Some(frame) = opened {
            return first_and_count(&frame).0;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("it is on the topic and hears nothing");
}

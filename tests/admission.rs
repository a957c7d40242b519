//! Who is refused learns the code and the reason on either protocol, and who is let in notices nothing.

mod common;

use std::time::Duration;

use common::{
    raw::{COMPAT, NATIVE, RawPeer, code},
    *,
};
use iroh::Endpoint;
use iroh_hub::{Admission, CloseCode, Closed, ConnectError, Decision, Hub, Protocol, Spoke};

const NOT_ADMITTED: &str = "this endpoint is not admitted";

async fn guarded(admission: Admission) -> Hub {
    hub(Hub::builder().admission(admission)).await
}

async fn connect(hub: &Hub, endpoint: &Endpoint) -> Result<Spoke, ConnectError> {
    let connecting = Spoke::builder().connect(endpoint.clone(), hub.addr());
    soon("an answer", connecting).await
}

/// Every kind of peer on this endpoint is refused, with these words.
async fn is_refused(hub: &Hub, endpoint: &Endpoint, words: &str) {
    let before = hub.metrics().admission.refused.get();
    for alpn in [NATIVE, COMPAT] {
        let peer = RawPeer::connect_from(endpoint.clone(), hub, alpn).await;
        assert_eq!(peer.closed().await, (code::REFUSED, words.to_owned()));
    }
    match connect(hub, endpoint).await {
        Err(ConnectError::Refused { code, reason, .. }) => {
            assert_eq!((code, reason.as_str()), (CloseCode::Refused, words));
        }
        other => panic!("not refused: {other:?}"),
    }
    // A plain hub gives no welcome, so the refusal may come after connecting.
    let plain = Spoke::builder().protocol(Protocol::Compat);
    let closed = match plain.connect(endpoint.clone(), hub.addr()).await {
        Ok(spoke) => soon("the refusal", spoke.closed()).await,
        Err(ConnectError::Refused { code, reason, .. }) => Closed::ByPeer { code, reason },
        Err(other) => panic!("not refused: {other:?}"),
    };
    let expected = Closed::ByPeer {
        code: CloseCode::Refused,
        reason: words.to_owned(),
    };
    assert_eq!(closed, expected);
    assert_eq!(hub.metrics().admission.refused.get(), before + 4);
    assert_eq!(hub.metrics().direct.links_failed.get(), 0);
}

/// A spoke that is let in hears what is broadcast while others are turned away.
async fn is_served(hub: &Hub, spoke: &Spoke, n: u64) {
    let mut listener = spoke.listen("n");
    hub.broadcast(numbered(n)).await.expect("the hub is open");
    assert_eq!(number(&next_event(&mut listener).await), n);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everyone_gets_into_an_open_hub() {
    let hub = guarded(Admission::open()).await;
    let spoke = connect(&hub, &bind().await).await.expect("open");
    is_served(&hub, &spoke, 1).await;
    assert_eq!(hub.metrics().admission.refused.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_on_the_allow_list_get_in_and_the_list_changes_while_the_hub_runs() {
    let (friend, stranger) = (bind().await, bind().await);
    let hub = guarded(Admission::allow_list([friend.id()])).await;
    let spoke = connect(&hub, &friend).await.expect("allowed");
    is_refused(&hub, &stranger, NOT_ADMITTED).await;
    is_served(&hub, &spoke, 1).await;
    hub.admission().allow(stranger.id());
    let second = connect(&hub, &stranger).await.expect("allowed now");
    is_served(&hub, &second, 2).await;
    hub.admission().deny(friend.id());
    is_refused(&hub, &friend, NOT_ADMITTED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_on_the_deny_list_do_not_get_in() {
    let (friend, pest) = (bind().await, bind().await);
    let hub = guarded(Admission::deny_list([pest.id()])).await;
    is_refused(&hub, &pest, NOT_ADMITTED).await;
    let spoke = connect(&hub, &friend).await.expect("not denied");
    is_served(&hub, &spoke, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_of_your_own_has_the_last_word_and_a_time_limit() {
    let (friend, stranger, hangs, panics) =
        (bind().await, bind().await, bind().await, bind().await);
    let ids = (friend.id(), hangs.id(), panics.id());
    let admission = Admission::custom(Duration::from_secs(2), move |candidate| async move {
        match candidate.endpoint {
            id if id == ids.0 => Decision::Allow,
            id if id == ids.1 => std::future::pending().await,
            id if id == ids.2 => panic!("this decision fails"),
            _ => Decision::refuse(format!("who are you, {} peer?", candidate.protocol)),
        }
    });
    let hub = guarded(admission).await;
    let spoke = connect(&hub, &friend).await.expect("allowed");
    for (alpn, words) in [
        (NATIVE, "who are you, native peer?"),
        (COMPAT, "who are you, compat peer?"),
    ] {
        let peer = RawPeer::connect_from(stranger.clone(), &hub, alpn).await;
        assert_eq!(peer.closed().await, (code::REFUSED, words.to_owned()));
    }
    is_refused(&hub, &hangs, "admission was not decided in time").await;
    is_refused(&hub, &panics, "admission could not be decided").await;
    is_served(&hub, &spoke, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_many_words_is_cut_where_a_character_ends() {
    let limit = Duration::from_secs(10);
    let wordy = |_| async { Decision::refuse("ä".repeat(1000)) };
    let hub = guarded(Admission::custom(limit, wordy)).await;
    is_refused(&hub, &bind().await, &"ä".repeat(256)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_that_take_long_do_not_hold_up_those_that_do_not() {
    let slow = bind().await;
    let id = slow.id();
    let admission = Admission::custom(LIMIT, move |candidate| async move {
        if candidate.endpoint == id {
            std::future::pending::<()>().await;
        }
        Decision::Allow
    });
    let hub = guarded(admission).await;
    let peer = RawPeer::connect_from(slow, &hub, NATIVE).await;
    for n in 0..5 {
        let spoke = connect(&hub, &bind().await).await.expect("allowed");
        is_served(&hub, &spoke, n).await;
    }
    assert!(peer.connection.close_reason().is_none());
    peer.leave().await;
}

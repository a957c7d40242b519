//! Faults that tests bring about from inside. Not part of the API, and free to change.

use iroh::SecretKey;

use crate::{
    gossip::{FrameGate, GossipNode},
    hub::Hub,
    position::Epoch,
    seal::{Context, Opener, Really},
    spoke::{GossipAcceptor, member::SpokeGate},
};

/// What happens to a hub's node on its topic.
#[derive(Clone, Copy, Debug)]
pub enum TopicFault {
    /// The task that drives it panics.
    Panics,
    /// It ends, as if it had been told to.
    Ends,
}

/// Brings a fault about. Says whether there was a topic.
pub async fn break_topic(hub: &Hub, fault: TopicFault) -> bool {
    let Some(node) = hub.topic_node() else {
        return false;
    };
    match fault {
        TopicFault::Panics => panic_inside(&node).await,
        TopicFault::Ends => {
            node.shutdown().await;
            true
        }
    }
}

/// Makes the task that decides which path serves which spoke panic.
pub async fn break_switchboard(hub: &Hub) {
    hub.panic_switchboard().await;
}

async fn panic_inside<G: FrameGate>(node: &GossipNode<G>) -> bool {
    let panics = |_: &mut G| panic!("a test wants this");
    node.with_gate(panics).await.is_ok()
}

/// Makes a spoke drop whatever comes by the topic that it is on now, and pass nothing on. Says whether it
/// is on one.
pub async fn deafen(acceptor: &GossipAcceptor) -> bool {
    let Some(node) = acceptor.node() else {
        return false;
    };
    let nobody = SecretKey::from_bytes(&[0; 32]).public();
    let keyless = Opener::new(Context::new(nobody, [0; 32]), Epoch::from_u64(0));
    let deafened = move |gate: &mut SpokeGate| *gate = SpokeGate::new(keyless, Really);
    node.with_gate(deafened).await.is_ok()
}

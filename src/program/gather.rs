//! Waits for spokes before the hub begins.

use std::time::Duration;

use iroh_hub::{Hub, Path};
use n0_future::future::now_or_never;
use tokio::time::timeout;

use super::say::say;

/// How often it is said whom the hub waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until `wanted` spokes are there; if `on_tree`, those that can gossip count once the topic
/// serves them. Also returns when the hub is gone.
pub(super) async fn gather(hub: &Hub, wanted: usize, on_tree: bool) {
    if wanted == 0 {
        return;
    }
    let mut watch = hub.watch_spokes();
    loop {
        let there = There::count(hub);
        let ready = if on_tree { there.ready } else { there.welcomed };
        if ready >= wanted {
            say(format_args!("spokes there: {ready}; reading stdin"));
            return;
        }
        match timeout(PATIENCE, watch.next()).await {
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(_) if on_tree => say(format_args!(
                "waiting for {wanted} spokes: {} are welcomed, {ready} are ready",
                there.welcomed
            )),
            Err(_) => say(format_args!(
                "waiting for {wanted} spokes: {ready} are there"
            )),
        }
        // What else has changed, or was lost to a lag, is all in the next count.
        while let Some(Some(_)) = now_or_never(watch.next()) {}
    }
}

struct There {
    welcomed: usize,
    /// Without those that can gossip and are not on the tree.
    ready: usize,
}

impl There {
    fn count(hub: &Hub) -> Self {
        let mut spokes = hub.spokes();
        spokes.retain(|spoke| !spoke.away);
        Self {
            welcomed: spokes.len(),
            ready: spokes
                .iter()
                .filter(|spoke| !spoke.gossip_capable || spoke.path == Path::Gossip)
                .count(),
        }
    }
}

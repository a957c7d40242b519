//! Gossip that does not work.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use iroh::{
    Endpoint,
    endpoint::Connection,
    protocol::{AcceptError, ProtocolHandler, Router},
};
use iroh_hub::{FanOut, GossipAcceptor, Spoke};

use crate::{
    common,
    heard::{Listeners, Receipts},
};

/// Something else that runs on an endpoint.
#[derive(Debug)]
struct Other;

impl ProtocolHandler for Other {
    async fn accept(&self, _: Connection) -> Result<(), AcceptError> {
        Ok(())
    }
}

/// Routers of endpoints that refuse connections for gossip, though their spokes say that they can gossip.
#[derive(Clone, Default)]
struct Refusing(Arc<Mutex<Vec<Router>>>);

impl Refusing {
    fn add(&self, endpoint: &Endpoint) {
        let builder = Router::builder(endpoint.clone());
        let router = builder.accept(b"something/else", Other).spawn();
        self.0.lock().expect("no panic").push(router);
    }

    async fn end(self) {
        let routers = std::mem::take(&mut *self.0.lock().expect("no panic"));
        for router in routers {
            router.shutdown().await.expect("it ends");
        }
    }
}

async fn half_refuse(spokes: usize, events: u64) {
    let hub = common::hub_with(FanOut::Gossip).await;
    let accept = Listeners::connect(spokes / 2, || {
        let hub = hub.clone();
        async move { common::spoke(&hub, Spoke::builder()).await }
    });
    let refusing = Refusing::default();
    let refuse = Listeners::connect(spokes / 2, || {
        let (hub, refusing) = (hub.clone(), refusing.clone());
        async move {
            let endpoint = common::bind().await;
            refusing.add(&endpoint);
            let builder = Spoke::builder().acceptor(GossipAcceptor::new());
            let spoke = builder.connect(endpoint, hub.addr()).await;
            spoke.expect("the hub lets us in")
        }
    });
    let (accept, refuse) = tokio::join!(accept, refuse);
    let mut receipts = Receipts::default();
    // Whether they get on the tree or not.
    let pause = Duration::from_millis(20);
    receipts.broadcast(&hub, 0..events, pause).await;
    accept.all_have(events - 1).await;
    refuse.all_have(events - 1).await;
    hub.shutdown().await;
    let mut heard = accept.end().await;
    heard.append(&mut refuse.end().await);
    refusing.end().await;
    let report = receipts.check(&heard);
    println!("half of {spokes} spokes refuse gossip: {report}");
    println!(
        "  {} by gossip, {} repaired",
        report.by_gossip, report.repaired
    );
    report.assert_ok();
    assert_eq!((report.missed, report.lagged), (0, 0), "{report}");
    assert!(report.by_gossip > 0, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_though_half_of_the_spokes_refuse_gossip() {
    half_refuse(10, 1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn everything_arrives_though_half_of_sixty_spokes_refuse_gossip() {
    half_refuse(60, 10_000).await;
}

//! Of more than twenty spokes, most acknowledge every two seconds at most. Whoever waits for them does not take what they have not said
//! for what they do not have, nor the other way round.

mod common;

use common::*;
use iroh_hub::{FanOut, Hub, HubBuilder, HubLimits, Listener, Path, Spoke, log::LogConfig};
use tokio::task::JoinSet;

/// More than may all acknowledge fast.
const SPOKES: usize = 24;

/// Broadcasts are waited for as long as it takes, so that nobody may be left behind.
fn patient(limits: &mut HubLimits) {
    limits.stall_after = LIMIT;
    limits.patience = LIMIT;
}

/// How often a busy machine may be the reason that something is sent again.
const ROUNDS: usize = 5;

/// A hub and spokes that its strategy serves, each with a listener.
struct Crowd {
    hub: Hub,
    spokes: Vec<(Spoke, Listener)>,
    sent: u64,
}

impl Crowd {
    async fn new(builder: HubBuilder, fan_out: FanOut) -> Self {
        let hub = hub(builder.fan_out(fan_out.clone())).await;
        let mut spokes = Vec::new();
        for _ in 0..SPOKES {
            let spoke = spoke(&hub, Spoke::builder()).await;
            let listener = spoke.listen("n");
            spokes.push((spoke, listener));
        }
        let mut crowd = Self {
            hub,
            spokes,
            sent: 0,
        };
        crowd.moves(fan_out).await;
        crowd.until_most_owe_an_acknowledgement().await;
        crowd
    }

    /// Waits until all are served so.
    async fn moves(&self, fan_out: FanOut) {
        let path = match fan_out {
            FanOut::Direct => Path::Direct,
            _ => Path::Gossip,
        };
        until("all are served as they should be", || {
            self.hub.spokes().iter().all(|spoke| spoke.path == path)
        })
        .await;
    }

    async fn broadcast(&mut self, count: u64) {
        for _ in 0..count {
            let sending = self.hub.broadcast(numbered(self.sent));
            soon("room", sending).await.expect("the hub is open");
            self.sent += 1;
        }
    }

    async fn all_hear(&mut self, count: u64) {
        let first = self.sent - count;
        for (_, listener) in &mut self.spokes {
            expect_numbers(listener, first, count).await;
        }
    }

    /// Broadcasts until most have heard what they have not acknowledged: those do so rarely.
    async fn until_most_owe_an_acknowledgement(&mut self) {
        let most_owe = |hub: &Hub| {
            let (spokes, tip) = (hub.spokes(), hub.tip().offset);
            spokes.iter().filter(|spoke| spoke.acked < tip).count() * 2 > SPOKES
        };
        let owing = async {
            loop {
                self.broadcast(10).await;
                self.all_hear(10).await;
                if most_owe(&self.hub) {
                    return;
                }
            }
        };
        soon("acknowledgements that are rare", owing).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_has_shut_down_has_let_all_have_everything() {
    for fan_out in [FanOut::Direct, FanOut::Gossip] {
        let mut crowd = Crowd::new(Hub::builder(), fan_out).await;
        // Of the last ones nobody has said that it has them.
        let first = crowd.sent;
        crowd.broadcast(300).await;
        let last = crowd.sent;
        for (spoke, _) in &crowd.spokes {
            let sending = crowd.hub.send(spoke.endpoint().id(), numbered(last));
            soon("room", sending).await.expect("it is there");
        }
        let tip = crowd.hub.tip();
        let drained = soon("the end", crowd.hub.shutdown_within(LIMIT)).await;
        // All at once, and not some time after that.
        for (spoke, _) in &crowd.spokes {
            assert_eq!(spoke.position(), Some(tip), "{}", spoke.endpoint().id());
        }
        assert!(drained.behind.is_empty(), "{drained:?}");
        for (spoke, listener) in &mut crowd.spokes {
            expect_numbers(listener, first, 300).await;
            let event = next_event(listener).await;
            assert!(event.targeted && number(&event) == last);
            assert_eq!(soon("the end", listener.recv()).await, None);
            assert!(soon("goodbye", spoke.closed()).await.is_goodbye());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_many_times_the_log_reaches_all_who_are_waited_for() {
    for (fan_out, log) in [(FanOut::Direct, 64), (FanOut::Gossip, 128)] {
        let builder = Hub::builder()
            .log(LogConfig::default().with_max_events(log))
            .limits(hub_limits(patient));
        let mut crowd = Crowd::new(builder, fan_out).await;
        let (first, count) = (crowd.sent, 10 * log as u64);
        let mut hearing = JoinSet::new();
        for (spoke, mut listener) in crowd.spokes.drain(..) {
            hearing.spawn(async move {
                // Panics at a hole.
                expect_numbers(&mut listener, first, count).await;
                spoke
            });
        }
        crowd.broadcast(count).await;
        let spokes = soon("all", hearing.join_all()).await;
        assert_eq!(spokes.len(), SPOKES);
        assert_eq!(crowd.hub.metrics().repair.events_missed.get(), 0);
        assert!(crowd.hub.metrics().events.broadcasts_held.get() > 0);
        assert!(crowd.hub.shutdown_within(LIMIT).await.behind.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_from_the_topic_to_its_stream_is_not_sent_again_what_it_has() {
    let mut crowd = Crowd::new(Hub::builder(), FanOut::Gossip).await;
    let sent_again = |crowd: &Crowd| {
        let metrics = crowd.spokes.iter().map(|(spoke, _)| spoke.metrics());
        metrics.map(|m| m.reception.duplicates.get()).sum::<u64>()
    };
    let rounds = async {
        for _ in 0..ROUNDS {
            crowd.until_most_owe_an_acknowledgement().await;
            let before = sent_again(&crowd);
            crowd.hub.set_fan_out(FanOut::Direct).await;
            crowd.moves(FanOut::Direct).await;
            crowd.broadcast(20).await;
            crowd.all_hear(20).await;
            if sent_again(&crowd) == before {
                return;
            }
            // On a machine that is busy the hub may not wait long enough for them to say where they are.
            crowd.hub.set_fan_out(FanOut::Gossip).await;
            crowd.moves(FanOut::Gossip).await;
        }
        panic!("something is sent again each time");
    };
    soon("the rounds", rounds).await;
    assert!(crowd.hub.shutdown_within(LIMIT).await.behind.is_empty());
}

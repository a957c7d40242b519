//! Packets are lost on every link, between spokes too.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use iroh_hub::{Envelope, FanOut, Hub, Incoming, Source, Spoke, SpokeId};
use serde::{Deserialize, Serialize};
use tokio::{task::JoinHandle, time::sleep};

use crate::{
    checker::{Life, Report, Spoke as Printed, check},
    common::{
        process::{spoke_command, spoke_into, start_hub},
        soon,
    },
    heard::{Listeners, Listening, Receipts, number},
    load::{Clock, Load, Pace},
    net::Net,
    wire::Wire,
};

const PATIENCE: Duration = Duration::from_secs(300);
/// Between ten events and the next ten.
const PAUSE: Duration = Duration::from_millis(10);

struct Plan {
    fan_out: &'static str,
    native: usize,
    plain: usize,
    pace: Pace,
    lasts: Duration,
    percent: u32,
}

/// Runs a load through a network that loses packets from before the first connection on. The reports are
/// those of the native and of the plain spokes.
async fn run(net: &Net, plan: &Plan) -> (Report, Report) {
    net.lose(plan.percent);
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let receipts = path("receipts");
    let all = plan.native + plan.plain;
    let (mut hub, ticket) = start_hub(
        net.program(),
        dir.path(),
        &[
            "--fan-out",
            plan.fan_out,
            "--input",
            "json",
            "--exit-on-eof",
            "--drain-timeout",
            "120",
            "--wait-for",
            &all.to_string(),
            "--receipts",
            receipts.to_str().expect("UTF-8"),
        ],
    )
    .await;
    let mut running = Vec::new();
    for n in 0..all {
        let out = path(&format!("spoke{n}"));
        let options: &[&str] = if n < plan.native { &[] } else { &["--compat"] };
        let command = spoke_command(net.program(), &ticket, options);
        running.push((spoke_into(command, &out).patient(PATIENCE), out));
    }
    let stdin = hub.stdin.take().expect("piped");
    let load = Load::start(stdin, 0, plan.pace, Clock::default());
    sleep(plan.lasts).await;
    let (stdin, next) = load.stop().await;
    let begin = Instant::now();
    drop(stdin);
    hub.patient(PATIENCE).end().await.assert_code(0);
    let drained = begin.elapsed();
    let mut printed = Vec::new();
    for (n, (spoke, out)) in running.into_iter().enumerate() {
        spoke.end().await.assert_code(0);
        let spoke = Printed::new(n, vec![Life::read(&out, false)]);
        printed.push(spoke.begins_at(0).has_all());
    }
    let receipts = [Life::read(&receipts, false)];
    let plain = check(&receipts, &printed.split_off(plan.native));
    let native = check(&receipts, &printed);
    let (packets, lost) = net.packets();
    println!(
        "{} at {}% loss: {next} events; {lost} of {packets} packets lost; drained in {drained:.1?}; {:.1}% by gossip, {} repaired",
        plan.fan_out,
        plan.percent,
        native.by_gossip as f64 * 100.0 / native.events.max(1) as f64,
        native.repaired,
    );
    println!("  native: {native}\n  plain: {plain}");
    native.assert_ok();
    plain.assert_ok();
    assert_eq!((native.missed, native.lagged), (0, 0), "{native}");
    assert_eq!(native.receipts, next);
    let share = lost as f64 * 100.0 / packets as f64;
    let meant = f64::from(plan.percent);
    // Of few packets, the share is what chance makes it.
    let long = plan.lasts >= Duration::from_secs(30);
    let off = if long { 0.2 } else { 0.7 };
    assert!(
        (share - meant).abs() < off * meant,
        "{share:.1}% of the packets were lost"
    );
    // A short run may be over before all are on the tree.
    let half = if long { native.events / 2 } else { 1 };
    if plan.fan_out == "gossip" {
        assert!(
            native.by_gossip >= half,
            "{} of {} by gossip",
            native.by_gossip,
            native.events
        );
    } else {
        assert_eq!(native.by_gossip, 0);
    }
    (native, plain)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn every_event_arrives_though_one_packet_in_twenty_is_lost_on_every_link() {
    let net = Net::new().unwrap_or_else(|why| {
        panic!("no network of our own here ({why}); be root, or allow user namespaces, and install nftables")
    });
    for fan_out in ["direct", "gossip"] {
        let plan = Plan {
            fan_out,
            native: 20,
            plain: 2,
            pace: Pace {
                every: Duration::from_millis(50),
                batch: 10,
                size: 200,
            },
            lasts: Duration::from_secs(60),
            percent: 5,
        };
        run(&net, &plan).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_processes_have_everything_though_packets_are_lost() {
    let net = match Net::new() {
        Ok(net) => net,
        Err(why) => return eprintln!("left out: no network of our own here ({why})"),
    };
    for fan_out in ["direct", "gossip"] {
        let plan = Plan {
            fan_out,
            native: 4,
            plain: 1,
            pace: Pace {
                every: Duration::from_millis(50),
                batch: 10,
                size: 200,
            },
            lasts: Duration::from_secs(2),
            percent: 5,
        };
        run(&net, &plan).await;
    }
}

/// How often there is an event for each spoke alone, and one from each.
const ROUNDS: u64 = 50;

/// An event for one spoke: its number, and that of the last broadcast before it.
#[derive(Serialize, Deserialize)]
struct Down {
    n: u64,
    last: u64,
}

/// Follows what spokes get for themselves: in order, once, and each behind the broadcasts before it.
struct Alone(Vec<JoinHandle<u64>>);

impl Alone {
    fn follow(listeners: &Listeners) -> Self {
        let follow = |one: &Listening| {
            let mut listener = one.spoke.listen("*");
            tokio::spawn(async move {
                let (mut next, mut broadcast) = (0, None);
                while let Some(item) = listener.recv().await {
                    let Incoming::Event(event) = item else {
                        continue;
                    };
                    if event.envelope.event_type() != "down" {
                        broadcast = number(&event);
                        continue;
                    }
                    let Down { n, last } = event.envelope.payload().expect("it is ours");
                    assert_eq!(n, next);
                    assert!(broadcast >= Some(last), "{broadcast:?} of {last}");
                    next += 1;
                }
                next
            })
        };
        Self(listeners.spokes.iter().map(follow).collect())
    }

    /// How many each has got, once all are at their end.
    async fn heard(self) -> Vec<u64> {
        let mut heard = Vec::new();
        for follows in self.0 {
            heard.push(soon("the end", follows).await.expect("in order"));
        }
        heard
    }
}

/// Follows what a hub gets from its spokes: of each in order and once.
struct Up(JoinHandle<BTreeMap<SpokeId, u64>>);

impl Up {
    fn follow(hub: &Hub) -> Self {
        let mut listener = hub.listen("up");
        Self(tokio::spawn(async move {
            let mut next = BTreeMap::new();
            while let Some(item) = listener.recv().await {
                let Incoming::Event(event) = item else {
                    continue;
                };
                let Source::Spoke(spoke) = event.source else {
                    panic!("{:?}", event.source)
                };
                let next = next.entry(spoke).or_insert(0);
                assert_eq!(event.envelope.payload::<u64>().expect("a number"), *next);
                *next += 1;
            }
            next
        }))
    }

    async fn heard(self) -> Vec<u64> {
        let heard = soon("the end", self.0).await.expect("in order");
        heard.into_values().collect()
    }
}

/// The same with nothing of the machine: a hub and spokes on the network inside of the test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_on_a_network_that_loses_packets_have_everything() {
    for fan_out in [FanOut::Direct, FanOut::Gossip] {
        let by_gossip = matches!(fan_out, FanOut::Gossip);
        let wire = Wire::new(7);
        wire.lose(0.05);
        let hub = Hub::builder().fan_out(fan_out).spawn(wire.endpoint().await);
        let hub = hub.expect("a fresh endpoint");
        let listeners = Listeners::connect(6, || {
            let (wire, hub) = (wire.clone(), Wire::addr_of(hub.id()));
            async move {
                let spoke = Spoke::connect(wire.endpoint().await, hub).await;
                spoke.expect("the hub lets us in")
            }
        })
        .await;
        if by_gossip {
            listeners.all_on_topic().await;
        }
        let (alone, up) = (Alone::follow(&listeners), Up::follow(&hub));
        let mut receipts = Receipts::default();
        let mut sent = Vec::new();
        for round in 0..ROUNDS {
            let last = 10 * round + 9;
            receipts.broadcast(&hub, 10 * round..last + 1, PAUSE).await;
            for one in &listeners.spokes {
                let down = Envelope::new("down", &Down { n: round, last }).expect("JSON");
                let id = one.spoke.endpoint().id();
                sent.push(hub.send(id, down).await.expect("it is there"));
                let up = Envelope::new("up", &round).expect("JSON");
                sent.push(one.spoke.send(up).await.expect("it is open"));
            }
        }
        listeners.all_have(10 * ROUNDS - 1).await;
        for receipt in sent {
            soon("a receipt", receipt.delivered())
                .await
                .expect("delivered");
        }
        assert!(hub.shutdown().await.behind.is_empty());
        assert_eq!(alone.heard().await, vec![ROUNDS; 6]);
        assert_eq!(up.heard().await, vec![ROUNDS; 6]);
        let report = receipts.check(&listeners.end().await);
        report.assert_ok();
        assert_eq!((report.missed, report.lagged), (0, 0), "{report}");
        assert_eq!(report.by_gossip > 0, by_gossip, "{report}");
        let (packets, lost) = wire.packets();
        assert!(lost * 30 > packets, "{lost} of {packets} packets lost");
    }
}

//! Packets are lost on every link, between spokes too.

use std::time::{Duration, Instant};

use iroh_hub::{FanOut, Hub, Spoke};
use tokio::time::sleep;

use crate::{
    checker::{Life, Report, Spoke as Printed, check},
    common::process::{spoke_command, spoke_into, start_hub},
    heard::{Listeners, Receipts},
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
    assert!(lost > 0 && native.receipts == next);
    assert_eq!(native.by_gossip > 0, plan.fan_out == "gossip");
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
        let mut receipts = Receipts::default();
        receipts.broadcast(&hub, 0..500, PAUSE).await;
        listeners.all_have(499).await;
        assert!(hub.shutdown().await.behind.is_empty());
        let report = receipts.check(&listeners.end().await);
        report.assert_ok();
        assert_eq!((report.missed, report.lagged), (0, 0), "{report}");
        assert_eq!(report.by_gossip > 0, by_gossip, "{report}");
        let (packets, lost) = wire.packets();
        assert!(lost * 30 > packets, "{lost} of {packets} packets lost");
    }
}

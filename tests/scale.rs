//! The contract at the size of a small deployment, with real processes: minutes of work for a
//! release build, so not part of `cargo test`.
//!
//! ```sh
//! cargo test --release --test scale -- --ignored --nocapture --test-threads 1
//! ```
#![cfg(feature = "cli")]

mod checker;
mod common;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use checker::{Life, Spoke as Printed, check};
use common::{
    expect_numbers,
    process::{Hub, program, spoke_command, spoke_into},
};
use iroh_hub::{Spoke, Via, endpoint};
use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

const LIMIT: Duration = Duration::from_secs(300);

/// Lines of this crate's own sources, as often as it takes.
fn text(lines: usize) -> Vec<String> {
    fn gather(dir: &Path, out: &mut Vec<PathBuf>) {
        let mut entries: Vec<_> = std::fs::read_dir(dir)
            .expect("the sources are there")
            .map(|entry| entry.expect("readable").path())
            .collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                gather(&path, out);
            } else {
                out.push(path);
            }
        }
    }
    let mut files = Vec::new();
    gather(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut files,
    );
    let all: Vec<String> = files
        .iter()
        .flat_map(|file| {
            std::fs::read_to_string(file)
                .expect("text")
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    all.iter().cycle().take(lines).cloned().collect()
}

/// Pipes `lines` through a hub to so many spoke processes, and checks what each printed. Returns the
/// share that came by gossip, over the spokes that can.
async fn pipe(fan_out: &str, native: usize, compat: usize, lines: usize) -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let lines = text(lines);
    let spokes = native + compat;
    let (wait_for, receipts) = (spokes.to_string(), path("receipts"));
    let mut hub = Hub::start(&[
        "--exit-on-eof",
        "--drain-timeout",
        "120",
        "--wait-for",
        &wait_for,
        "--fan-out",
        fan_out,
        "--receipts",
        receipts.to_str().expect("UTF-8"),
    ])
    .await;
    let mut running = Vec::new();
    for n in 0..spokes {
        let out = path(&format!("spoke{n}"));
        let options: &[&str] = if n < native { &[] } else { &["--compat"] };
        let command = spoke_command(program(), &hub.ticket, options);
        running.push((spoke_into(command, &out).patient(LIMIT), out));
    }
    let begin = Instant::now();
    let writing = hub.program.write(lines.join("\n") + "\n");
    drop(writing.await.expect("the hub reads"));
    hub.program.patient(LIMIT).end().await.assert_code(0);
    let took = begin.elapsed();
    let mut printed = Vec::new();
    for (n, (spoke, out)) in running.into_iter().enumerate() {
        spoke.end().await.assert_code(0);
        let spoke = Printed::new(n, vec![Life::read(&out, false)]);
        printed.push(spoke.begins_at(0).has_all());
    }
    let named = std::fs::read_to_string(&receipts).expect("a file");
    let payload = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["payload"].take();
    assert!(
        named
            .lines()
            .map(payload)
            .eq(lines.iter().map(String::as_str))
    );
    let receipts = [Life::read(&receipts, false)];
    let plain = check(&receipts, &printed.split_off(native));
    let report = check(&receipts, &printed);
    plain.assert_ok();
    report.assert_ok();
    assert_eq!((report.missed, report.lagged, plain.lagged), (0, 0, 0));
    let share = report.by_gossip as f64 / report.events.max(1) as f64;
    println!(
        "{fan_out}: {native} native and {compat} plain spokes, {} lines each: {took:.1?}, {:.1}% by gossip",
        lines.len(),
        share * 100.0
    );
    share
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn ten_thousand_lines_reach_twenty_processes_by_gossip() {
    assert!(pipe("gossip", 20, 0, 10_000).await >= 0.95);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn ten_thousand_lines_reach_twenty_processes_directly() {
    assert_eq!(pipe("direct", 20, 0, 10_000).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn ten_thousand_lines_reach_twenty_processes_by_the_automatic_choice() {
    pipe("auto", 20, 0, 10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn ten_thousand_lines_reach_native_and_plain_spokes_at_once() {
    assert!(pipe("gossip", 10, 10, 10_000).await >= 0.95);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn a_hundred_thousand_lines_reach_twenty_processes_by_every_strategy() {
    for fan_out in ["gossip", "direct", "auto"] {
        let share = pipe(fan_out, 20, 0, 100_000).await;
        assert!(fan_out != "gossip" || share >= 0.95, "{share}");
    }
    pipe("gossip", 10, 10, 100_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn three_hundred_spokes_that_join_gossip_at_once_all_receive_everything() {
    const SPOKES: usize = 300;
    const LINES: u64 = 1000;
    let mut hub = Hub::start(&[
        "--exit-on-eof",
        "--drain-timeout",
        "120",
        "--wait-for",
        "300",
        "--fan-out",
        "gossip",
        "--input",
        "json",
    ])
    .await;
    let begin = Instant::now();
    let mut joining = JoinSet::new();
    for _ in 0..SPOKES {
        let ticket = hub.ticket.clone();
        joining.spawn(async move {
            let endpoint = endpoint::bind_local().await.expect("loopback binds");
            let spoke = Spoke::builder()
                .connect_ticket(endpoint, &ticket)
                .await
                .expect("welcome");
            let listener = spoke.listen("n");
            (spoke, listener)
        });
    }
    let spokes = joining.join_all().await;
    println!("all welcomed after {:.1?}", begin.elapsed());
    while !spokes.iter().all(|(spoke, _)| spoke.is_on_topic()) {
        assert!(begin.elapsed() < LIMIT, "all get on the tree");
        sleep(Duration::from_millis(20)).await;
    }
    println!("all on the tree after {:.1?}", begin.elapsed());
    let lines: String = (0..LINES)
        .map(|n| format!("{{\"type\":\"n\",\"payload\":{n}}}\n"))
        .collect();
    drop(hub.program.write(lines).await.expect("the hub reads"));
    let mut reading = JoinSet::new();
    for (spoke, mut listener) in spokes {
        reading.spawn(async move {
            let events = expect_numbers(&mut listener, 0, LINES).await;
            let by_gossip = events.iter().filter(|e| e.via == Some(Via::Gossip)).count();
            (spoke, by_gossip)
        });
    }
    let read = timeout(LIMIT, reading.join_all()).await.expect("in time");
    let by_gossip: usize = read.iter().map(|(_, by_gossip)| by_gossip).sum();
    let share = by_gossip as f64 / (SPOKES as f64 * LINES as f64);
    println!(
        "all have everything after {:.1?}, {:.1}% by gossip",
        begin.elapsed(),
        share * 100.0
    );
    hub.program.patient(LIMIT).end().await.assert_code(0);
}

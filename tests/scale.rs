//! The contract at the size of a small deployment, with real processes: minutes of work for a
//! release build, so not part of `cargo test`.
//!
//! ```sh
//! cargo test --release --test scale -- --ignored --nocapture --test-threads 1
//! ```
#![cfg(feature = "cli")]

mod common;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use common::expect_numbers;
use iroh_hub::{Spoke, Via, endpoint};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt},
    process::{Child, Command},
    task::JoinSet,
    time::{sleep, timeout},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_iroh-hub");
const LIMIT: Duration = Duration::from_secs(300);

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(args).kill_on_drop(true);
    command
}

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

async fn ticket(path: &Path) -> String {
    let begin = Instant::now();
    loop {
        if let Ok(ticket) = std::fs::read_to_string(path) {
            return ticket.trim().to_owned();
        }
        assert!(begin.elapsed() < LIMIT, "the hub writes its ticket");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Pipes `lines` through a hub to twenty spoke processes, and checks what each printed. Returns the
/// share that came by gossip, over the spokes that can.
async fn pipe(fan_out: &str, native: usize, compat: usize, lines: usize) -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let lines = text(lines);
    let input = dir.path().join("input");
    std::fs::write(&input, lines.join("\n") + "\n").expect("written");
    let ticket_file = dir.path().join("ticket");
    let spokes = native + compat;
    let mut hub = program(&["hub", "--local", "--exit-on-eof", "--drain-timeout", "120"])
        .args(["--wait-for", &spokes.to_string(), "--fan-out", fan_out])
        .arg("--ticket")
        .arg(&ticket_file)
        .stdin(File::open(&input).expect("readable"))
        .stdout(Stdio::null())
        .spawn()
        .expect("the hub starts");
    let ticket = ticket(&ticket_file).await;
    let mut children: Vec<(Child, PathBuf)> = Vec::new();
    for n in 0..spokes {
        let out = dir.path().join(format!("spoke{n}"));
        let mut spoke = program(&["spoke", &ticket, "--local"]);
        if n >= native {
            spoke.arg("--compat");
        }
        let child = spoke
            .stdin(Stdio::null())
            .stdout(File::create(&out).expect("created"))
            .spawn()
            .expect("a spoke starts");
        children.push((child, out));
    }
    let begin = Instant::now();
    let status = timeout(LIMIT, hub.wait())
        .await
        .expect("in time")
        .expect("waited");
    assert!(status.success(), "hub: {status}");
    let took = begin.elapsed();
    let (mut by_gossip, mut all) = (0usize, 0usize);
    for (n, (mut child, out)) in children.into_iter().enumerate() {
        let status = timeout(LIMIT, child.wait())
            .await
            .expect("in time")
            .expect("waited");
        assert!(status.success(), "spoke {n}: {status}");
        let mut vias = BTreeMap::<String, usize>::new();
        let mut count = 0;
        for (line, expected) in BufReader::new(File::open(&out).expect("there"))
            .lines()
            .zip(&lines)
        {
            let event: serde_json::Value =
                serde_json::from_str(&line.expect("text")).expect("JSON");
            assert_eq!(
                event["payload"],
                expected.as_str(),
                "spoke {n}, line {count}"
            );
            if n < native {
                assert_eq!(event["position"]["offset"], count, "spoke {n}");
            }
            *vias
                .entry(event["via"].as_str().expect("a path").to_owned())
                .or_default() += 1;
            count += 1;
        }
        let printed = BufReader::new(File::open(&out).expect("there"))
            .lines()
            .count();
        assert_eq!((count, printed), (lines.len(), lines.len()), "spoke {n}");
        if n < native {
            by_gossip += vias.get("gossip").copied().unwrap_or_default();
            all += count;
        }
    }
    let share = by_gossip as f64 / all.max(1) as f64;
    println!(
        "{fan_out}: {native} native and {compat} plain spokes, {} lines each: {took:.1?} with starting, {:.1}% by gossip",
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

/// Says how long the longest pause between two lines of each spoke was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn one_of_thirty_gossiping_processes_is_stopped_and_the_others_go_on() {
    const SPOKES: usize = 30;
    let dir = tempfile::tempdir().expect("a directory");
    let ticket_file = dir.path().join("ticket");
    let mut hub = program(&["hub", "--local", "--exit-on-eof", "--drain-timeout", "60"])
        .args(["--wait-for", &SPOKES.to_string(), "--fan-out", "gossip"])
        .arg("--ticket")
        .arg(&ticket_file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the hub starts");
    let ticket = ticket(&ticket_file).await;
    let mut readers = JoinSet::new();
    let mut pids = Vec::new();
    for n in 0..SPOKES {
        let mut child = program(&["spoke", &ticket, "--local", "--output", "payload"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a spoke starts");
        pids.push(child.id().expect("it runs"));
        let mut lines = tokio::io::BufReader::new(child.stdout.take().expect("piped")).lines();
        readers.spawn(async move {
            // It would be killed if it were dropped.
            let _child = child;
            let (mut next, mut longest, mut last) = (0u64, Duration::ZERO, None::<Instant>);
            while let Some(line) = lines.next_line().await.expect("text") {
                assert_eq!(line, next.to_string(), "spoke {n}: in order, once each");
                next += 1;
                if let Some(last) = last {
                    longest = longest.max(last.elapsed());
                }
                last = Some(Instant::now());
            }
            (n, next, longest)
        });
    }
    let mut stdin = hub.stdin.take().expect("piped");
    let stopped = 7;
    let signal = |name: &str| {
        let status = std::process::Command::new("kill")
            .args([format!("-{name}"), pids[stopped].to_string()])
            .status();
        assert!(status.expect("kill runs").success());
    };
    // 500 lines a second for twelve seconds; one spoke is stopped from the second to the tenth.
    let lines = 6000;
    let begin = Instant::now();
    for n in 0..lines {
        if n == 1000 {
            signal("STOP");
        }
        if n == 5000 {
            signal("CONT");
        }
        stdin
            .write_all(format!("{n}\n").as_bytes())
            .await
            .expect("the hub reads");
        let due = begin + Duration::from_millis(2 * (n + 1));
        sleep(due.saturating_duration_since(Instant::now())).await;
    }
    drop(stdin);
    let status = timeout(LIMIT, hub.wait())
        .await
        .expect("in time")
        .expect("waited");
    assert!(status.success(), "hub: {status}");
    let mut worst = Duration::ZERO;
    while let Some(read) = timeout(LIMIT, readers.join_next()).await.expect("in time") {
        let (n, count, longest) = read.expect("in order");
        assert_eq!(count, lines, "spoke {n}");
        if n == stopped {
            println!("the stopped spoke: longest pause {longest:.2?}");
        } else {
            worst = worst.max(longest);
        }
    }
    println!("the other {}: longest pause {worst:.2?}", SPOKES - 1);
    assert!(worst < Duration::from_secs(1), "a break of {worst:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see the module"]
async fn three_hundred_spokes_that_join_gossip_at_once_all_receive_everything() {
    const SPOKES: usize = 300;
    const LINES: u64 = 1000;
    let dir = tempfile::tempdir().expect("a directory");
    let ticket_file = dir.path().join("ticket");
    let mut hub = program(&["hub", "--local", "--exit-on-eof", "--drain-timeout", "120"])
        .args(["--wait-for", &SPOKES.to_string(), "--fan-out", "gossip"])
        .args(["--input", "json"])
        .arg("--ticket")
        .arg(&ticket_file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the hub starts");
    let ticket = ticket(&ticket_file).await;
    let begin = Instant::now();
    let mut joining = JoinSet::new();
    for _ in 0..SPOKES {
        let ticket = ticket.clone();
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
    let mut stdin = hub.stdin.take().expect("piped");
    let lines: String = (0..LINES)
        .map(|n| format!("{{\"type\":\"n\",\"payload\":{n}}}\n"))
        .collect();
    stdin
        .write_all(lines.as_bytes())
        .await
        .expect("the hub reads");
    drop(stdin);
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
    let status = timeout(LIMIT, hub.wait())
        .await
        .expect("in time")
        .expect("waited");
    println!("hub: {status}");
}

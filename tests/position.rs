#![cfg(unix)]
//! The program with `--position FILE`: killed at any moment and started again, it loses no broadcast and
//! prints one twice at most.

mod checker;
mod common;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use checker::{Life, Spoke as Printed, check};
use common::{
    process::{Program, program, spoke_command, spoke_into, start_hub},
    until,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, process::ChildStdin};

/// A hub that can be started again, and the files of its spokes.
struct World {
    dir: TempDir,
    /// Where the hub listens, once it did.
    bind: Option<String>,
    hub: Option<Program>,
    ticket: String,
}

impl World {
    async fn start() -> Self {
        let mut world = Self {
            dir: tempfile::tempdir().expect("a directory"),
            bind: None,
            hub: None,
            ticket: String::new(),
        };
        world.start_hub().await;
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn arg(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// With the same key, log and address as before.
    async fn start_hub(&mut self) {
        let (key, log, receipts) = (self.arg("key"), self.arg("log"), self.arg("receipts"));
        let mut args = vec!["--key", &key, "--log", &log, "--receipts", &receipts];
        if let Some(bind) = &self.bind {
            args.extend(["--bind", bind]);
        }
        let (hub, ticket) = start_hub(program(), self.dir.path(), &args).await;
        let parsed: iroh_tickets::endpoint::EndpointTicket = ticket.parse().expect("a ticket");
        let addr = parsed.endpoint_addr().ip_addrs().next().copied();
        self.bind = addr.map(|addr| addr.to_string());
        (self.hub, self.ticket) = (Some(hub), ticket);
    }

    fn stdin(&mut self) -> ChildStdin {
        let hub = self.hub.as_mut().expect("it runs");
        hub.stdin.take().expect("stdin is open")
    }

    /// A spoke that keeps its position, and prints into a file.
    fn spoke_into(&self, out: &str, args: &[&str]) -> Program {
        spoke_into(self.command(args), &self.path(out))
    }

    fn spoke(&self, args: &[&str]) -> Program {
        Program::run(&mut self.command(args), Stdio::piped())
    }

    fn command(&self, args: &[&str]) -> tokio::process::Command {
        let position = self.arg("position");
        let args = [&["--position", &position], args].concat();
        spoke_command(program(), &self.ticket, &args)
    }
}

async fn feed(stdin: &mut ChildStdin, text: impl std::fmt::Display) {
    let line = format!("{text}\n");
    let written = stdin.write_all(line.as_bytes()).await;
    written.expect("the hub reads");
}

fn lines(path: &Path) -> usize {
    let text = std::fs::read(path).unwrap_or_default();
    text.iter().filter(|byte| **byte == b'\n').count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_a_spoke_loses_nothing_and_repeats_one_line_at_most() {
    const EVENTS: u64 = 5_000;
    let mut rng = StdRng::seed_from_u64(5);
    let mut world = World::start().await;
    let mut stdin = world.stdin();
    let feeding = tokio::spawn(async move {
        for n in 0..EVENTS {
            // Now and then one that is not written at once.
            match n % 500 {
                0 => feed(&mut stdin, "x".repeat(100_000)).await,
                _ => feed(&mut stdin, n).await,
            }
            if n % 10 == 0 {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
        stdin
    });
    let mut lives = Vec::new();
    for life in 0..8 {
        let out = format!("life-{life}");
        let spoke = world.spoke_into(&out, &["--from", "earliest"]);
        let at_least = rng.random_range(0..400);
        until("it prints", || lines(&world.path(&out)) >= at_least).await;
        spoke.kill().await;
        lives.push(Life::read(&world.path(&out), true));
    }
    let _stdin = feeding.await.expect("no panic");
    let last = world.spoke_into("last", &["--from", "earliest"]);
    // The position is saved behind the last line.
    let end = format!("/{EVENTS} ");
    let saved = || std::fs::read_to_string(world.path("position")).unwrap_or_default();
    until("everything is printed", || saved().contains(&end)).await;
    last.kill().await;
    lives.push(Life::read(&world.path("last"), true));
    let spoke = Printed::new("the spoke", lives).begins_at(0).has_all();
    let report = check(&[Life::read(&world.path("receipts"), false)], &[spoke]);
    report.assert_ok();
    assert_eq!((report.events, report.missed), (EVENTS, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_a_kill_before_the_first_event_is_not_lost() {
    let mut world = World::start().await;
    let mut stdin = world.stdin();
    feed(&mut stdin, "before").await;
    until("it is broadcast", || lines(&world.path("receipts")) == 1).await;
    let spoke = world.spoke(&[]);
    until("it has a position", || world.path("position").exists()).await;
    spoke.kill().await;
    feed(&mut stdin, "between").await;
    until("it is broadcast", || lines(&world.path("receipts")) == 2).await;
    let mut spoke = world.spoke(&[]);
    assert_eq!(spoke.next_json().await["payload"], "between");
    let recovered = json!({"status": "recovered", "wholly": true});
    assert_eq!(spoke.next_json().await, recovered);
    // With a filter, the position goes over what is not printed too.
    spoke.kill().await;
    let mut spoke = world.spoke(&["--filter", "none", "--count", "1"]);
    assert_eq!(spoke.next_json().await, recovered);
    for n in 0..10 {
        feed(&mut stdin, n).await;
    }
    let saved = || std::fs::read_to_string(world.path("position")).unwrap_or_default();
    until("it is saved", || saved().contains("/12 ")).await;
    spoke.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_waits_for_its_hub_and_comes_back_to_it_and_says_so() {
    let mut world = World::start().await;
    let mut stdin = world.stdin();
    feed(&mut stdin, "first").await;
    until("it is broadcast", || lines(&world.path("receipts")) == 1).await;
    let killed = world.hub.take().expect("it runs");
    killed.kill().await;
    let mut spoke = world.spoke(&["--from", "earliest"]);
    let trying = spoke.next_json().await;
    assert_eq!(trying["status"], "reconnecting");
    assert_eq!(trying["attempt"], 1);
    spoke.said("no link to the hub yet").await;
    world.start_hub().await;
    loop {
        let line = spoke.next_json().await;
        match line["status"].as_str() {
            Some("reconnecting") => {}
            Some(status) => assert_eq!(status, "connected"),
            None => {
                assert_eq!(line["payload"], "first");
                break;
            }
        }
    }
    // A hub that ends in order ends its spoke; started again, that goes on.
    let hub = world.hub.take().expect("it runs");
    hub.signal(rustix::process::Signal::INT);
    hub.end().await.assert_code(0);
    spoke.end().await.assert_code(0);
    world.start_hub().await;
    let mut stdin = world.stdin();
    feed(&mut stdin, "second").await;
    let mut spoke = world.spoke(&["--output", "payload", "--count", "1"]);
    assert_eq!(spoke.next_line().await, "second");
    spoke.end().await.assert_code(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_used_is_an_error_and_left_alone() {
    let world = World::start().await;
    let path = world.path("position");
    for text in ["", "notes of mine\n"] {
        std::fs::write(&path, text).expect("written");
        let ended = world.spoke(&[]).end().await;
        ended.assert_fails_with(1, "no position file");
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), text);
    }
    std::fs::remove_file(&path).expect("removed");
    let spoke = world.spoke(&[]);
    until("it has a position", || path.exists()).await;
    world.spoke(&[]).end().await.assert_fails_with(1, "in use");
    spoke.kill().await;
    let other = World::start().await;
    std::fs::copy(&path, other.path("position")).expect("copied");
    let ended = other.spoke(&[]).end().await;
    ended.assert_fails_with(1, "another hub");
    let plain = world.spoke(&["--compat"]).end().await;
    plain.assert_code(2);
}

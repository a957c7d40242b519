//! A log in a file: what a hub that was shut down, dropped, or killed has left of it, and what it refuses.

mod checker;
mod common;

use std::{fs, path::Path, process::Stdio};

use checker::{Life, Spoke as Printed, check};
use common::{
    LIMIT, bind, expect_numbers, init_logs, number, numbered, process,
    raw::{self, RawPeer, code},
    soon, until,
};
use iroh::{Endpoint, EndpointAddr, SecretKey};
use iroh_hub::{
    BroadcastError, FanOut, From, Hub, HubBuilder, HubError, Incoming, Position, Spoke,
    TryBroadcastError, endpoint,
    log::{LogConfig, OpenLogError},
};
use n0_future::{BufferedStreamExt, StreamExt, stream};
use tokio::time::timeout;

fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

async fn bind_as(key: SecretKey) -> Endpoint {
    init_logs();
    let addr = ([127, 0, 0, 1], 0).into();
    endpoint::bind_at(endpoint::local(Some(key)), addr)
        .await
        .expect("loopback binds")
}

async fn try_hub(path: &Path, builder: HubBuilder) -> Result<Hub, HubError> {
    builder.durable_log(path).spawn(bind_as(key(1)).await)
}

async fn hub(path: &Path) -> Hub {
    try_hub(path, Hub::builder()).await.expect("the log opens")
}

async fn spoke_from(addr: EndpointAddr, from: From) -> Spoke {
    let connecting = Spoke::builder().from(from).connect(bind().await, addr);
    soon("a welcome", connecting)
        .await
        .expect("the hub lets us in")
}

#[tokio::test]
async fn a_hub_that_is_started_again_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let first = hub(&path).await;
    for n in 0..10 {
        first.broadcast(numbered(n)).await.unwrap();
    }
    let tip = first.tip();
    assert_eq!(tip.offset, 10);
    first.shutdown().await;

    let second = hub(&path).await;
    assert_eq!(second.tip(), tip);
    let at = Position::new(tip.epoch, 7);
    let resumed = spoke_from(second.addr(), From::Position(at)).await;
    let mut resumed_events = resumed.listen("*");
    let earliest = spoke_from(second.addr(), From::Earliest).await;
    let mut all = earliest.listen("*");
    let receipt = second.broadcast(numbered(10)).await.unwrap();
    assert_eq!(receipt.position(), tip);
    let events = expect_numbers(&mut resumed_events, 7, 4).await;
    assert_eq!(events[0].position, Some(at));
    expect_numbers(&mut all, 0, 11).await;
    second.shutdown().await;
}

#[tokio::test]
async fn what_was_appended_is_synced_before_a_hub_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let first = hub(&path).await;
    let spoke = spoke_from(first.addr(), From::Tip).await;
    let mut events = spoke.listen("*");
    for n in 0..1000 {
        first.append(numbered(n)).await.unwrap();
    }
    let drained = first.shutdown().await;
    assert!(drained.behind.is_empty());
    expect_numbers(&mut events, 0, 1000).await;
    assert!(matches!(
        first.broadcast(numbered(0)).await,
        Err(BroadcastError::Closed { .. })
    ));
    let second = hub(&path).await;
    assert_eq!(second.tip().offset, 1000);
    // A hub that is only dropped syncs too, in the background, and then lets go of the file.
    for n in 0..100 {
        second.append(numbered(n)).await.unwrap();
    }
    drop(second);
    let third = loop {
        match try_hub(&path, Hub::builder()).await {
            Ok(hub) => break hub,
            Err(HubError::Log {
                source: OpenLogError::InUse { .. },
                ..
            }) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(third.tip().offset, 1100);
    third.shutdown().await;
}

#[tokio::test]
async fn broadcasts_that_wait_together_share_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(&dir.path().join("log")).await;
    let spoke = spoke_from(hub.addr(), From::Tip).await;
    let mut events = spoke.listen("*");
    let receipts: Vec<_> = stream::iter(0..500)
        .map(|n| hub.broadcast(numbered(n)))
        .buffered_unordered(500)
        .collect()
        .await;
    assert!(receipts.iter().all(Result::is_ok));
    let commits = hub.metrics().log.commit_seconds.count();
    assert!(commits < 250, "{commits} commits");
    assert_eq!(hub.metrics().log.events_synced.get(), 500);
    for _ in 0..500 {
        common::next_event(&mut events).await;
    }
    // At once, and a spoke has it when it is synced.
    let receipt = loop {
        match hub.try_broadcast(numbered(500)) {
            Ok(receipt) => break receipt,
            Err(TryBroadcastError::Behind { .. }) => tokio::task::yield_now().await,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(receipt.durable().await.unwrap(), receipt.position());
    assert_eq!(number(&common::next_event(&mut events).await), 500);
    hub.shutdown().await;
}

#[tokio::test]
async fn the_bounds_of_the_log_are_those_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let bounded = || Hub::builder().log(LogConfig::default().with_max_events(50));
    let mut largest = Vec::new();
    for life in 0..4u64 {
        let hub = try_hub(&path, bounded()).await.unwrap();
        for n in 0..500 {
            let receipt = hub.append(numbered(n)).await.unwrap();
            assert_eq!(receipt.position().offset, life * 500 + n);
        }
        hub.shutdown().await;
        largest.push(fs::metadata(&path).unwrap().len());
    }
    assert!(largest[3] <= largest[1].max(1 << 20), "{largest:?}");
    let hub = try_hub(&path, Hub::builder()).await.unwrap();
    let spoke = spoke_from(hub.addr(), From::Earliest).await;
    let mut events = spoke.listen("*");
    let first = common::next_event(&mut events).await;
    assert_eq!(first.position.map(|position| position.offset), Some(1950));
    assert_eq!(number(&first), 450);
    hub.shutdown().await;
}

/// A hello that asks for a position.
fn hello_at(position: Position) -> Vec<u8> {
    let numbers = [1, 0, 0, 0, 2, position.epoch.to_u64(), position.offset];
    raw::native(0, &numbers, b"")
}

#[tokio::test]
async fn a_spoke_from_beyond_the_tip_makes_a_new_epoch_and_the_others_connect_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let hub = try_hub(&path, Hub::builder().fan_out(FanOut::Direct))
        .await
        .unwrap();
    for n in 0..10 {
        hub.broadcast(numbered(n)).await.unwrap();
    }
    let old = hub.tip();
    let there = RawPeer::connect(&hub, raw::NATIVE).await;
    let _stream = there.spoke(raw::NATIVE).await;
    let plain = RawPeer::connect(&hub, raw::COMPAT).await;
    let mut plain_stream = plain.spoke(raw::COMPAT).await;

    // The file was put back to an older state: this spoke has five events more.
    let beyond = RawPeer::connect(&hub, raw::NATIVE).await;
    let mut stream = beyond.open().await;
    let ahead = Position::new(old.epoch, 15);
    stream.write(hello_at(ahead)).await;
    assert_eq!(stream.frame().await.expect("a welcome").first(), Some(&0));
    let new = hub.tip();
    assert_eq!(new.offset, old.offset);
    assert_ne!(new.epoch, old.epoch);
    let (closed, _) = there.closed().await;
    assert_eq!(closed, code::NEW_EPOCH);
    // Plain spokes have no positions, and stay.
    let receipt = hub.broadcast(numbered(10)).await.unwrap();
    assert_eq!(receipt.position(), new);
    assert_eq!(plain_stream.json().await["payload"], 10);

    // Up to the fork the two epochs are one.
    for at in [4, 10] {
        let known = spoke_from(hub.addr(), From::Position(Position::new(old.epoch, at))).await;
        let mut events = known.listen("*");
        let first = common::next_event(&mut events).await;
        assert_eq!(first.position, Some(Position::new(new.epoch, at)));
        known.shutdown().await;
    }

    // Nobody can make it begin another one.
    let again = RawPeer::connect(&hub, raw::NATIVE).await;
    let mut stream = again.open().await;
    stream.write(hello_at(Position::new(new.epoch, 1000))).await;
    assert_eq!(stream.frame().await.expect("a welcome").first(), Some(&0));
    assert_eq!(hub.tip().epoch, new.epoch);
    assert_eq!(hub.metrics().log.epochs_begun.get(), 1);
    hub.shutdown().await;

    let hub = try_hub(&path, Hub::builder()).await.unwrap();
    assert_eq!(hub.tip(), new.next());
    hub.shutdown().await;
}

#[tokio::test]
async fn a_spoke_that_gossips_goes_on_in_a_new_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let builder = Hub::builder().fan_out(FanOut::Gossip);
    let hub = try_hub(&path, builder).await.unwrap();
    let spoke = spoke_from(hub.addr(), From::Tip).await;
    let mut events = spoke.listen("*");
    until("it is on the topic", || {
        hub.spokes()
            .iter()
            .any(|spoke| spoke.path == iroh_hub::Path::Gossip)
    })
    .await;
    for n in 0..20 {
        hub.broadcast(numbered(n)).await.unwrap();
    }
    expect_numbers(&mut events, 0, 20).await;
    let position = spoke.position().expect("it has events");
    let old = hub.tip();
    let beyond = RawPeer::connect(&hub, raw::NATIVE).await;
    let mut stream = beyond.open().await;
    stream.write(hello_at(Position::new(old.epoch, 100))).await;
    stream.frame().await.expect("a welcome");
    hub.broadcast(numbered(20)).await.unwrap();
    until("a topic of the new epoch begins", || {
        hub.metrics().topic.started.get() == 2
    })
    .await;
    drop(spoke);
    // Whether it connects again by itself or not: where it goes on, nothing is lost or comes twice.
    let spoke = spoke_from(hub.addr(), From::Position(position)).await;
    let mut events = spoke.listen("*");
    let event = common::next_event(&mut events).await;
    assert_eq!(number(&event), 20);
    assert_eq!(event.position, Some(Position::new(hub.tip().epoch, 20)));
    until("it is on the new topic", || {
        hub.spokes()
            .iter()
            .any(|spoke| spoke.path == iroh_hub::Path::Gossip)
    })
    .await;
    // That is no failure.
    let topic = &hub.metrics().topic;
    assert_eq!((topic.failed.get(), topic.rebuilt.get()), (0, 0));
    hub.shutdown().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_makes_no_hub() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let first = hub(&path).await;
    first.broadcast(numbered(1)).await.unwrap();
    let in_use = try_hub(&path, Hub::builder()).await.unwrap_err();
    let HubError::Log { source, .. } = in_use else {
        panic!("{in_use}");
    };
    assert!(matches!(source, OpenLogError::InUse { .. }), "{source}");
    first.shutdown().await;

    let other = Hub::builder()
        .durable_log(&path)
        .spawn(bind_as(key(2)).await)
        .unwrap_err();
    assert!(
        matches!(
            other,
            HubError::Log {
                source: OpenLogError::OtherHub { .. },
                ..
            }
        ),
        "{other}"
    );
    fs::write(&path, "something else").unwrap();
    let foreign = try_hub(&path, Hub::builder()).await.unwrap_err();
    assert!(
        matches!(
            foreign,
            HubError::Log {
                source: OpenLogError::NotALog { .. },
                ..
            }
        ),
        "{foreign}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"something else");
}

/// A free port, so that a ticket holds for all lives of a hub.
fn port() -> u16 {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_is_killed_under_load_loses_nothing_that_it_gave_a_receipt_for() {
    const LIVES: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: String| dir.path().join(name);
    let text = |name: &str| path(name.to_owned()).to_str().unwrap().to_owned();
    let bind = format!("127.0.0.1:{}", port());
    let (mut receipts, mut printed) = (Vec::new(), Vec::new());
    for life in 0..=LIVES {
        let file = text(&format!("receipts-{life}"));
        let (key, log) = (text("key"), text("log"));
        let args = [
            "--bind",
            &bind,
            "--key",
            &key,
            "--log",
            &log,
            "--receipts",
            &file,
        ];
        let (mut hub, ticket) = process::start_hub(process::program(), dir.path(), &args).await;
        let out = path(format!("spoke-{life}"));
        let args = ["--from", "earliest"];
        let command = process::spoke_command(process::program(), &ticket, &args);
        let spoke = process::spoke_into(command, &out);
        let lines: String = (0..200_000).map(|n| format!("{life}/{n}\n")).collect();
        let lines = if life < LIVES { &lines } else { "the end\n" };
        let _stdin = hub.write(lines);
        let written = |file: &str, times: u64| {
            let len = fs::metadata(file).map(|file| file.len()).unwrap_or(0);
            len > times * 20_000
        };
        if life < LIVES {
            let printing = out.to_str().unwrap();
            until("there are receipts and lines", || {
                written(&file, 1 + life as u64) && written(printing, 1 + life as u64)
            })
            .await;
            hub.kill().await;
            receipts.push(Life::read(Path::new(&file), true));
            spoke.kill().await;
            let lives = vec![Life::read(&out, true)];
            printed.push(Printed::new(format!("spoke {life}"), lives).begins_at(0));
        } else {
            until("the end is printed", || {
                fs::read_to_string(&out).is_ok_and(|text| text.contains("the end"))
            })
            .await;
            hub.signal(rustix::process::Signal::TERM);
            hub.end().await.assert_code(0);
            spoke.end().await.assert_code(0);
            receipts.push(Life::read(Path::new(&file), false));
            let lives = vec![Life::read(&out, false)];
            let last = Printed::new("the last spoke", lives);
            printed.push(last.begins_at(0).has_all());
        }
    }
    let report = check(&receipts, &printed);
    report.assert_ok();
    assert!(report.receipts > 1000, "{report}");
    let text = fs::read_to_string(path(format!("spoke-{LIVES}"))).unwrap();
    let epochs: std::collections::BTreeSet<_> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| line["position"]["epoch"].to_string())
        .collect();
    assert_eq!(epochs.len(), 1, "the epoch is kept");
}

#[tokio::test]
async fn the_program_refuses_a_log_in_use_or_of_another_key_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let text = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (key, other, log) = (text("key"), text("other"), text("log"));
    let args = ["--key", &key, "--log", &log];
    let (hub, _) = process::start_hub(process::program(), dir.path(), &args).await;
    let run = |key: &str| {
        let args = ["hub", "--local", "--key", key, "--log", &log];
        process::Program::start(args)
    };
    run(&key)
        .end()
        .await
        .assert_fails_with(1, "in use by another hub");
    hub.kill().await;
    let before = fs::read(&log).unwrap();
    run(&other)
        .end()
        .await
        .assert_fails_with(1, "give the key that belongs");
    assert!(fs::read(&log).unwrap() == before, "it was not touched");
    let without = process::Program::start(["hub", "--local", "--log", &log]);
    without.end().await.assert_code(2);
    fs::write(&log, b"notes").unwrap();
    run(&key)
        .end()
        .await
        .assert_fails_with(1, "is not the log of a hub");
    assert_eq!(fs::read(&log).unwrap(), b"notes");
}

#[tokio::test]
async fn the_program_refuses_a_damaged_log_and_does_not_change_it() {
    for killed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let text = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (key, log, receipts) = (text("key"), text("log"), text("receipts"));
        let args = ["--key", &key, "--log", &log];
        let all = [&args[..], &["--receipts", &receipts]].concat();
        let (mut hub, _) = process::start_hub(process::program(), dir.path(), &all).await;
        let _stdin = hub.write("precious\n".repeat(100));
        until("all have receipts", || {
            fs::read_to_string(&receipts).is_ok_and(|named| named.lines().count() == 100)
        })
        .await;
        if killed {
            hub.kill().await;
        } else {
            hub.signal(rustix::process::Signal::TERM);
            hub.end().await.assert_code(0);
        }
        let mut bytes = fs::read(&log).unwrap();
        let events: Vec<_> = (0..bytes.len())
            .filter(|at| bytes[*at..].starts_with(b"precious"))
            .collect();
        assert!(events.len() >= 100);
        for at in events {
            bytes[at] ^= 1;
        }
        fs::write(&log, &bytes).unwrap();
        let beside = fs::read(text("log.tip")).unwrap();
        let again = [&["hub", "--local"], &args[..]].concat();
        let refused = process::Program::start(again).end().await;
        refused.assert_fails_with(1, "is damaged");
        let last = refused.stderr.lines().last().unwrap();
        assert!(last.contains(&log) && last.contains("restore"), "{last}");
        assert!(fs::read(&log).unwrap() == bytes, "it was changed");
        assert_eq!(fs::read(text("log.tip")).unwrap(), beside);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn the_program_says_when_the_log_is_a_link_that_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let text = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (key, log) = (text("key"), text("log"));
    std::os::unix::fs::symlink(text("away/log"), &log).unwrap();
    let args = ["hub", "--local", "--key", &key, "--log", &log];
    let refused = process::Program::start(args).end().await;
    refused.assert_fails_with(1, "a link to a file that does not exist");
    assert!(fs::symlink_metadata(&log).unwrap().is_symlink());
}

/// A backup that was copied over the log: the same inode, and as many events come as were lost before anyone is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_put_back_in_place_gives_no_offset_to_two_events_and_says_what_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let text = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (key, log, position) = (text("key"), text("log"), text("position"));
    let bind = format!("127.0.0.1:{}", port());
    let (mut receipts, mut printed) = (Vec::new(), Vec::new());
    let mut backup = Vec::new();
    for (life, lines) in [("first", 10), ("lost", 10), ("other", 20)] {
        if life == "lost" {
            backup = fs::read(&log).unwrap();
        } else if life == "other" {
            fs::write(&log, &backup).unwrap();
        }
        let named = text(&format!("receipts-{life}"));
        let args = [
            "--bind",
            &bind,
            "--key",
            &key,
            "--log",
            &log,
            "--receipts",
            &named,
        ];
        let (mut hub, ticket) = process::start_hub(process::program(), dir.path(), &args).await;
        let events: String = (0..lines).map(|n| format!("{life} {n}\n")).collect();
        let _stdin = hub.write(events);
        until("all have receipts", || {
            fs::read_to_string(&named).is_ok_and(|named| named.lines().count() == lines)
        })
        .await;
        let out = dir.path().join(format!("spoke-{life}"));
        let args = ["--position", &position, "--from", "earliest"];
        let command = process::spoke_command(process::program(), &ticket, &args);
        let spoke = process::spoke_into(command, &out);
        let last = format!("\"{life} {}\"", lines - 1);
        until("the last is printed", || {
            fs::read_to_string(&out).is_ok_and(|text| text.contains(&last))
        })
        .await;
        hub.kill().await;
        spoke.kill().await;
        receipts.push(Life::read(Path::new(&named), true));
        printed.push(Life::read(&out, true));
    }
    let spoke = Printed::new("spoke", printed).begins_at(0).has_all();
    let report = check(&receipts, &[spoke]);
    report.assert_ok();
    assert_eq!(report.epochs, 2, "{report}");
    let told = fs::read_to_string(text("spoke-other")).unwrap();
    assert!(told.starts_with("{\"missed\":"), "{told}");
}

#[tokio::test]
async fn a_hub_whose_disk_is_full_says_so_and_gives_no_receipts_that_do_not_hold() {
    let dir = tempfile::tempdir().unwrap();
    let text = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (key, log, receipts) = (text("key"), text("log"), text("receipts"));
    // Files of up to 2 MiB; beyond, a write fails as on a full disk. Receipts are short, events long.
    let shell = "trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\"";
    let mut limited = tokio::process::Command::new("sh");
    limited.args(["-c", shell, env!("CARGO_BIN_EXE_iroh-hub")]);
    let args = [
        "--key",
        &key,
        "--log",
        &log,
        "--receipts",
        &receipts,
        "--input",
        "json",
    ];
    let (mut hub, _) = process::start_hub(limited, dir.path(), &args).await;
    let long = "x".repeat(4000);
    let lines = |numbers: std::ops::Range<u32>| {
        let line = |n| format!("{{\"type\":\"n\",\"id\":\"{n}\",\"payload\":\"{long}\"}}\n");
        numbers.map(line).collect::<String>()
    };
    hub.stdin = hub.write(lines(0..100)).await.ok();
    until("the first have receipts", || {
        let named = fs::read_to_string(&receipts);
        named.is_ok_and(|named| named.lines().count() == 100)
    })
    .await;
    // Its stdin stays open: that the disk is full is what ends it.
    let _stdin = hub.write(lines(100..4000));
    let ended = timeout(LIMIT, hub.end()).await.expect("it ends");
    ended.assert_fails_with(1, "the log cannot be written");

    let named = fs::read_to_string(&receipts).unwrap().lines().count();
    assert!(named >= 100, "{named}");
    let args = ["--key", &key, "--log", &log];
    let (hub, ticket) = process::start_hub(process::program(), dir.path(), &args).await;
    let args = ["--from", "earliest", "--count", &named.to_string()];
    let mut command = process::spoke_command(process::program(), &ticket, &args);
    let spoke = process::Program::run(&mut command, Stdio::piped())
        .end()
        .await;
    spoke.assert_code(0);
    let receipts = vec![Life::read(Path::new(&receipts), false)];
    let printed = Life::ended(spoke.lines.join("\n") + "\n");
    let printed = Printed::new("spoke", vec![printed]).begins_at(0).has_all();
    check(&receipts, &[printed]).assert_ok();
    hub.kill().await;
}

#[tokio::test]
async fn an_event_to_one_spoke_comes_after_the_broadcasts_that_wait_for_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(&dir.path().join("log")).await;
    let spoke = spoke_from(hub.addr(), From::Tip).await;
    let mut events = spoke.listen("*");
    until("the hub sees it", || hub.spoke_count() == 1).await;
    let id = hub.spokes()[0].id;
    for n in 0..50 {
        hub.append(numbered(2 * n)).await.unwrap();
        hub.send(id, numbered(2 * n + 1)).await.unwrap();
    }
    for n in 0..100 {
        let event = match timeout(LIMIT, events.recv()).await {
            Ok(Some(Incoming::Event(event))) => event,
            other => panic!("{other:?}"),
        };
        assert_eq!(number(&event), n);
    }
    hub.shutdown().await;
}

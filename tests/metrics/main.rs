//! Metrics as those meet them who scrape the program: real processes, plain HTTP.

#[path = "../common/mod.rs"]
mod common;
mod open_metrics;

use std::{path::Path, time::Duration};

use common::process::{Hub, LIMIT, Program};
use iroh::SecretKey;
use open_metrics::Scrape;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

const SERVED: &[&str] = &["--metrics", "127.0.0.1:0"];

/// The address that a program says, and what is behind it.
async fn address(program: &mut Program) -> String {
    let url = program.said("metrics: ").await;
    let addr = url.strip_prefix("http://");
    let addr = addr.and_then(|addr| addr.strip_suffix("/metrics"));
    addr.expect("a URL").to_owned()
}

/// Sends these bytes, and reads the answer to its end.
async fn ask(addr: &str, request: &[u8]) -> String {
    let asking = async {
        let mut stream = TcpStream::connect(addr).await.expect("it listens");
        stream.write_all(request).await.expect("it reads");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .await
            .expect("the answer is whole");
        answer
    };
    timeout(LIMIT, asking).await.expect("an answer in time")
}

/// Scrapes, and takes the text apart.
async fn scrape(addr: &str) -> Scrape {
    let request = "GET /metrics HTTP/1.1\r\nHost: hub\r\nAccept: */*\r\n\r\n";
    let answer = ask(addr, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let len = format!("\r\nContent-Length: {}\r\n", body.len());
    assert!(head.contains(&len), "{head}");
    let kind = "\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(head.contains(kind), "{head}");
    Scrape::parse(body)
}

/// Scrapes until a value is this.
async fn until(addr: &str, name: &str, value: f64) -> Scrape {
    let mut last = None;
    let waiting = async {
        loop {
            let scrape = scrape(addr).await;
            if scrape.value(name) == value {
                return scrape;
            }
            last = Some(scrape.value(name));
            sleep(Duration::from_millis(20)).await;
        }
    };
    match timeout(LIMIT, waiting).await {
        Ok(scrape) => scrape,
        Err(_) => panic!("{name} did not become {value}, it is {last:?}"),
    }
}

/// The key that a program made in this file.
fn key(path: &Path) -> SecretKey {
    let text = std::fs::read_to_string(path).expect("the program made it");
    text.trim().parse().expect("a key")
}

/// Whoever reads it learns of nobody.
fn assert_names_nobody(scrape: &Scrape, keys: &[SecretKey]) {
    let text = scrape.text().to_lowercase();
    for key in keys {
        let id = key.public();
        let short = id.fmt_short().to_string();
        for form in [id.to_string(), id.to_z32(), short] {
            assert!(!text.contains(&form.to_lowercase()), "{form}");
        }
    }
    // Nor of anybody else, nor of keys and epochs.
    let is_hex = |word: &&str| word.bytes().all(|b| b.is_ascii_hexdigit());
    let is_number = |word: &&str| word.bytes().all(|b| b.is_ascii_digit());
    let strange: Vec<_> = text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| word.len() >= 10 && is_hex(word) && !is_number(word))
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_scraped_moves_with_what_happens_and_names_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let [hub_key, spoke_key] = ["hub", "spoke"].map(|name| dir.path().join(name));
    let [hub_file, spoke_file] = [&hub_key, &spoke_key].map(|path| path.to_str().expect("UTF-8"));
    let gossip = ["--fan-out", "gossip", "--wait-for", "2", "--input", "json"];
    let mut hub = Hub::start(&[SERVED, &gossip, &["--key", hub_file]].concat()).await;
    let hub_at = address(&mut hub.program).await;
    let fresh = scrape(&hub_at).await;
    assert_eq!(fresh.value("iroh_hub_spokes_connected"), 0.0);
    assert_eq!(fresh.value("iroh_hub_events_broadcast_total"), 0.0);

    let args = [SERVED, &["--input", "json", "--key", spoke_file]].concat();
    let mut spoke = hub.spoke(&args);
    let mut direct = hub.spoke(&["--gossip=off"]);
    let spoke_at = address(&mut spoke).await;
    until(&hub_at, "iroh_hub_spokes_connected", 2.0).await;

    let sent = spoke.write(r#"{"type":"t","payload":"from a spoke"}"#.to_owned() + "\n");
    until(&hub_at, "iroh_hub_events_received_total", 1.0).await;
    let events = 100;
    let line = r#"{"type":"t","payload":"to all"}"#.to_owned() + "\n";
    let written = hub.program.write(line.repeat(events));
    for _ in 0..events {
        spoke.next_line().await;
        direct.next_line().await;
    }
    let at_hub = scrape(&hub_at).await;
    let at_spoke = scrape(&spoke_at).await;
    assert_eq!(at_hub.value("iroh_hub_events_broadcast_total"), 100.0);
    assert_eq!(at_hub.value("iroh_hub_topic_started_total"), 1.0);
    assert!(at_hub.value("iroh_hub_gossip_frames_sent_total") > 0.0);
    assert!(at_hub.value("iroh_hub_broadcast_bytes_total") > 100.0 * 8.0);
    assert!(at_hub.value("iroh_socket_recv_datagrams_total") > 0.0);
    let ways = ["direct", "gossip", "repaired"]
        .map(|way| at_spoke.value(&format!("iroh_hub_spoke_events_{way}_total")));
    assert_eq!(ways.iter().sum::<f64>(), 100.0, "{ways:?}");
    assert!(at_spoke.value("iroh_socket_recv_datagrams_total") > 0.0);

    let keys = [key(&hub_key), key(&spoke_key)];
    assert_names_nobody(&at_hub, &keys);
    assert_names_nobody(&at_spoke, &keys);

    drop(sent.await.expect("written"));
    spoke.signal(rustix::process::Signal::TERM);
    spoke.end().await.assert_code(0);
    until(&hub_at, "iroh_hub_spokes_connected", 1.0).await;
    drop(written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_shows_how_full_it_is_and_what_is_synced() {
    let dir = tempfile::tempdir().expect("a directory");
    let [key, log] = ["key", "log"].map(|name| dir.path().join(name));
    let [key, log] = [&key, &log].map(|path| path.to_str().expect("UTF-8"));
    let args = [SERVED, &["--key", key, "--log", log]].concat();
    let mut hub = Hub::start(&args).await;
    let addr = address(&mut hub.program).await;
    let written = hub.program.write("line\n".repeat(100));
    until(&addr, "iroh_hub_log_events", 100.0).await;
    let scrape = until(&addr, "iroh_hub_log_events_synced_total", 100.0).await;
    assert!(scrape.value("iroh_hub_log_bytes") > 400.0);
    assert!(scrape.value("iroh_hub_log_file_bytes") > 400.0);
    assert!(scrape.value("iroh_hub_log_commit_seconds_count") > 0.0);
    assert_eq!(scrape.value("iroh_hub_log_failed"), 0.0);
    drop(written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_is_counted() {
    let stranger = "ae58ff8833241ac82d6ff7611046ed67b5072d142c588d0063e942d9a75502b6";
    let mut hub = Hub::start(&[SERVED, &["--allow", stranger]].concat()).await;
    let addr = address(&mut hub.program).await;
    hub.spoke(&[]).end().await.assert_code(3);
    until(&addr, "iroh_hub_admission_refused_total", 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_taken_ends_the_program_with_words() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let addr = taken.local_addr().expect("an address").to_string();
    let args = ["hub", "--local", "--metrics", &addr];
    let ended = Program::start(args).end().await;
    ended.assert_fails_with(1, &format!("--metrics {addr} cannot be bound"));
    let ended = Program::start(["hub", "--local", "--metrics", "here"])
        .end()
        .await;
    ended.assert_code(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_none_get_an_answer_each() {
    let mut hub = Hub::start(SERVED).await;
    let addr = address(&mut hub.program).await;
    let long = format!(
        "GET /metrics HTTP/1.1\r\nA: {}\r\n\r\n",
        "a".repeat(100_000)
    );
    let asked: [(&[u8], &str); 6] = [
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", "405"),
        (
            b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "405",
        ),
        (b"\x16\x03\x01\x00\xff", "400"),
        (b"GET /metrics SMTP\r\n\r\n", "400"),
        (long.as_bytes(), "431"),
    ];
    for (request, status) in asked {
        let answer = ask(&addr, request).await;
        let words = answer.split(' ').nth(1);
        assert_eq!(words, Some(status), "{answer}");
    }
    let head = ask(&addr, b"HEAD /metrics HTTP/1.1\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    scrape(&addr).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scrapers_that_never_ask_hold_up_neither_events_nor_for_ever_other_scrapers() {
    let args = [SERVED, &["--wait-for", "1", "--exit-on-eof"]].concat();
    let mut hub = Hub::start(&args).await;
    let addr = address(&mut hub.program).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(&addr).await.expect("it listens");
        stream.write_all(b"GET /met").await.expect("it reads");
        silent.push(stream);
    }
    let mut spoke = hub.spoke(&["--output", "payload"]);
    let stdin = hub.program.write("one\ntwo\n").await.expect("written");
    assert_eq!(spoke.next_line().await, "one");
    assert_eq!(spoke.next_line().await, "two");
    let scrape = scrape(&addr).await;
    assert_eq!(scrape.value("iroh_hub_events_broadcast_total"), 2.0);
    // New ones are there when it ends, and do not keep it.
    silent.push(TcpStream::connect(&addr).await.expect("it listens"));
    drop(stdin);
    hub.program.end().await.assert_code(0);
    spoke.end().await.assert_code(0);
}

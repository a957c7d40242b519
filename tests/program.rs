//! The `iroh-hub` program as its users run it: real processes, files and pipes.

mod common;

use std::{collections::BTreeSet, path::Path, process::Stdio, time::Duration};

use common::process::{Hub, LIMIT, Program};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::ChildStdin, time::timeout};

fn texts(count: usize) -> Vec<String> {
    (0..count)
        .map(|n| format!("line {n} with \"quotes\" and ü"))
        .collect()
}

fn payloads(lines: &[Value]) -> Vec<&str> {
    lines
        .iter()
        .map(|line| line["payload"].as_str().expect("a text"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_spoke_prints_every_line_of_stdin_in_order_once() {
    let mut hub = Hub::start(&["--fan-out", "gossip", "--wait-for", "3", "--exit-on-eof"]).await;
    let spokes = [
        hub.spoke(&["--gossip=off"]),
        hub.spoke(&[]),
        hub.spoke(&["--compat"]),
    ];
    let texts = texts(2000);
    let writing = hub.program.write(texts.join("\n"));
    let ending = spokes.map(|spoke| tokio::spawn(spoke.end()));
    drop(writing.await.expect("the hub reads"));
    let ended = hub.program.end().await;
    ended.assert_code(0);
    for (n, ending) in ending.into_iter().enumerate() {
        let spoke = ending.await.expect("it ends");
        spoke.assert_code(0);
        let lines = spoke.json();
        assert_eq!(payloads(&lines), texts, "spoke {n}");
        for (offset, line) in lines.iter().enumerate() {
            assert_eq!(line["type"], "line");
            assert_eq!(line["id"], "");
            assert_eq!(line.get("targeted"), None);
            if n == 2 {
                assert_eq!(line["position"], Value::Null);
            } else {
                assert_eq!(line["position"]["offset"], offset);
            }
        }
        let ways: BTreeSet<_> = lines.iter().map(|l| l["via"].as_str()).collect();
        if n == 1 {
            assert!(ways.contains(&Some("gossip")), "{ways:?}");
        } else {
            assert_eq!(ways, BTreeSet::from([Some("direct")]), "spoke {n}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_is_not_allowed_is_told_so() {
    let stranger = "ae58ff8833241ac82d6ff7611046ed67b5072d142c588d0063e942d9a75502b6";
    let hub = Hub::start(&["--allow", stranger]).await;
    for args in [&[][..], &["--compat"]] {
        let spoke = hub.spoke(args).end().await;
        spoke.assert_fails_with(3, "refused");
        assert!(spoke.lines.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_on_the_list_of_allowed_ones_is_let_in_by_its_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let key = dir.path().join("key");
    let key = key.to_str().expect("UTF-8");
    // Any hub makes it say who it is.
    let other = Hub::start(&[]).await;
    let mut spoke = other.spoke(&["--key", key, "--count", "1"]);
    let mut feeding = other;
    let _writing = feed_until_heard(&mut feeding, &mut spoke).await;
    let stderr = spoke.end().await.stderr;
    let id = stderr
        .lines()
        .find_map(|line| line.strip_prefix("this spoke is "))
        .expect("it says who it is");

    let list = dir.path().join("allowed");
    std::fs::write(&list, format!("# ours\n\n {id} # the one\n")).expect("a file");
    let list = list.to_str().expect("UTF-8");
    let mut hub = Hub::start(&["--allow-file", list, "--wait-for", "1", "--exit-on-eof"]).await;
    let spoke = hub.spoke(&["--key", key, "--output", "payload"]);
    drop(hub.program.write("welcome\n").await.expect("written"));
    let spoke = spoke.end().await;
    spoke.assert_code(0);
    assert_eq!(spoke.lines, ["welcome"]);
}

/// Feeds a line every little while until the spoke has ended; for hubs that do not wait for it.
async fn feed_until_heard(hub: &mut Hub, spoke: &mut Program) -> ChildStdin {
    let mut stdin = hub.program.stdin.take().expect("stdin is open");
    let feeding = async {
        while spoke.child.try_wait().expect("it is ours").is_none() {
            stdin.write_all(b"x\n").await.expect("the hub reads");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, feeding).await.expect("it hears one in time");
    stdin
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_is_told_of_a_thin_uplink_goes_to_gossip() {
    let mut hub = Hub::start(&["--uplink", "1KB"]).await;
    let mut spokes: Vec<_> = (0..8).map(|_| hub.spoke(&[])).collect();
    let mut stdin = hub.program.stdin.take().expect("stdin is open");
    let feeding = tokio::spawn(async move {
        while stdin.write_all(b"x\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let by_gossip = async { while spokes[0].next_json().await["via"] != "gossip" {} };
    timeout(LIMIT, by_gossip).await.expect("it does in time");
    feeding.abort();
}

#[tokio::test]
async fn an_uplink_of_nothing_is_a_mistake_of_the_command_line() {
    for (uplink, words) in [("0", "at least one byte"), ("fast", "12.5MB")] {
        let hub = Program::start(["hub", "--local", "--uplink", uplink]);
        let ended = hub.end().await;
        ended.assert_code(2);
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn what_is_no_ticket_is_a_mistake_of_the_command_line() {
    for ticket in ["nonsense", "", "endpointaaaa"] {
        let spoke = Program::start(["spoke", ticket, "--local"]).end().await;
        spoke.assert_fails_with(2, "ticket");
    }
}

#[tokio::test]
async fn relays_only_on_this_machine_only_is_a_mistake_of_the_command_line() {
    let key = iroh::SecretKey::from_bytes(&[7; 32]).public();
    let ticket = iroh_tickets::endpoint::EndpointTicket::new(key.into()).to_string();
    let spoke = Program::start(["spoke", &ticket, "--local", "--gossip", "relay-only"]);
    spoke.end().await.assert_fails_with(2, "relay");
}

#[tokio::test]
async fn a_key_file_that_is_none_ends_the_program() {
    let dir = tempfile::tempdir().expect("a directory");
    let words = dir.path().join("words");
    std::fs::write(&words, "these are no key").expect("a file");
    private(&words);
    let missing = dir.path().join("nowhere").join("key");
    for path in [words.as_path(), dir.path(), &missing] {
        let path = path.to_str().expect("UTF-8");
        let hub = Program::start(["hub", "--local", "--key", path])
            .end()
            .await;
        hub.assert_fails_with(1, "key file");
        assert!(!hub.stderr.contains("these are no key"), "{}", hub.stderr);
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_made_for_its_owner_alone_and_one_that_others_can_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("key");
    let path = path.to_str().expect("UTF-8");
    let hub = Hub::start(&["--key", path]).await;
    let mode = std::fs::metadata(path).expect("it is made").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let again = Hub::start(&["--key", path]).await;
    let id = |hub: &Hub| {
        let ticket: iroh_tickets::endpoint::EndpointTicket = hub.ticket.parse().expect("a ticket");
        ticket.endpoint_addr().id
    };
    assert_eq!(id(&hub), id(&again));
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(path, open).expect("it is ours");
    let advice = format!("chmod 600 {path}");
    for args in [vec!["hub"], vec!["spoke", &hub.ticket]] {
        let program = Program::start(args.into_iter().chain(["--local", "--key", path]));
        program.end().await.assert_fails_with(1, &advice);
    }
}

#[cfg(unix)]
fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
}

#[cfg(not(unix))]
fn private(_: &Path) {}

#[tokio::test]
async fn a_port_in_use_ends_the_program() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback binds");
    let addr = socket.local_addr().expect("it is bound").to_string();
    let hub = Program::start(["hub", "--local", "--bind", &addr])
        .end()
        .await;
    hub.assert_fails_with(1, "in use");
    assert!(hub.stderr.contains(&addr), "{}", hub.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_lines_are_named_and_skipped_and_the_rest_is_delivered() {
    let mut hub = Hub::start(&["--input", "json", "--wait-for", "1", "--exit-on-eof"]).await;
    let spoke = hub.spoke(&[]);
    let nobody = "ae58ff8833241ac82d6ff7611046ed67b5072d142c588d0063e942d9a75502b6";
    let mut input = Vec::new();
    for line in [
        r#"{"type":"a","payload":1}"#,
        r#"{"type":"a","payload":"#,
        "",
        r#"{"type":"","payload":2}"#,
        r#"{"type":"b","id":"7","payload":{"x":[1,2.50]}}"#,
        &format!(r#"{{"type":"c","payload":3,"to":"{nobody}"}}"#),
        r#"{"type":"d","payload":null}"#,
    ] {
        input.extend_from_slice(line.as_bytes());
        input.push(b'\n');
    }
    input.extend_from_slice(b"\"not UTF-8: \xff\"\n{\"type\":\"e\",\"payload\":4}");
    // Line 10: longer than any event, and never held whole.
    input.extend_from_slice(b"\n\"");
    input.resize(input.len() + (17 << 20), b'x');
    input.extend_from_slice(b"\"\n{\"type\":\"f\",\"payload\":5}\n");
    let writing = hub.program.write(input);
    let spoke = tokio::spawn(spoke.end());
    drop(writing.await.expect("written"));
    let hub = hub.program.end().await;
    hub.assert_code(6);
    for number in [2, 3, 4, 6, 8, 10] {
        let error = format!("error: line {number} of stdin is skipped: ");
        assert!(hub.stderr.contains(&error), "{}", hub.stderr);
    }
    assert!(hub.stderr.contains(nobody), "{}", hub.stderr);
    let spoke = spoke.await.expect("it ends");
    spoke.assert_code(0);
    let heard: Vec<_> = spoke
        .json()
        .into_iter()
        .map(|line| json!([line["type"], line["id"], line["payload"]]))
        .collect();
    assert_eq!(
        heard,
        [
            json!(["a", "", 1]),
            json!(["b", "7", {"x": [1, 2.5]}]),
            json!(["d", "", null]),
            json!(["e", "", 4]),
            json!(["f", "", 5])
        ]
    );
    assert!(
        spoke.lines[1].contains(r#"{"x":[1,2.50]}"#),
        "as it was written"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spokes_talk_to_the_hub_and_the_hub_answers_one_of_them() {
    let mut hub = Hub::start(&["--input", "json", "--exit-on-eof"]).await;
    let mut asking = hub.spoke(&[]);
    let mut plain = hub.spoke(&["--compat", "--input", "json"]);
    let _asking_stdin = asking.write("what is it?\n").await.expect("written");
    let question = hub.program.next_json().await;
    assert_eq!(question["type"], "line");
    assert_eq!(question["payload"], "what is it?");
    let _plain_stdin = plain
        .write("{\"type\":\"q\",\"id\":\"9\",\"payload\":[true]}\n")
        .await
        .expect("written");
    let other = hub.program.next_json().await;
    assert_eq!(other["type"], "q");
    assert_eq!(other["id"], "9");
    assert_eq!(other["payload"], json!([true]));
    assert_ne!(other["from"], question["from"]);

    let answers = [
        json!({"type": "before", "payload": 1}),
        json!({"type": "answer", "id": "1", "payload": "that", "to": question["from"]}),
        json!({"type": "after", "payload": 2}),
    ];
    let answers: String = answers.iter().map(|a| format!("{a}\n")).collect();
    drop(hub.program.write(answers).await.expect("written"));
    let (asking, plain) = tokio::join!(asking.end(), plain.end());
    hub.program.end().await.assert_code(0);
    asking.assert_code(0);
    plain.assert_code(0);
    let heard = asking.json();
    let types: Vec<_> = heard.iter().map(|line| line["type"].as_str()).collect();
    assert_eq!(types, [Some("before"), Some("answer"), Some("after")]);
    assert_eq!(heard[1]["targeted"], true);
    assert_eq!(heard[1]["position"], Value::Null);
    assert_eq!(heard[1]["id"], "1");
    assert_eq!(heard[1]["payload"], "that");
    assert_eq!(plain.json().len(), 2, "the answer is not for all");
    let id = asking
        .stderr
        .lines()
        .find_map(|line| line.strip_prefix("this spoke is "));
    assert_eq!(question["from"].as_str(), id, "the id is the proven one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_say_what_was_broadcast_and_where() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("receipts");
    let path = file.to_str().expect("UTF-8");
    let mut hub = Hub::start(&["--receipts", path, "--wait-for", "1", "--exit-on-eof"]).await;
    let spoke = tokio::spawn(hub.spoke(&[]).end());
    let writing = hub.program.write(texts(500).join("\n"));
    drop(writing.await.expect("written"));
    hub.program.end().await.assert_code(0);
    let printed: Vec<_> = spoke
        .await
        .expect("it ends")
        .json()
        .into_iter()
        .map(|line| json!([line["position"], line["type"], line["id"], line["payload"]]))
        .collect();
    let receipts: Vec<_> = std::fs::read_to_string(&file)
        .expect("a file")
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"))
        .map(|line| json!([line["position"], line["type"], line["id"], line["payload"]]))
        .collect();
    assert_eq!(receipts.len(), 500);
    assert_eq!(receipts, printed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_ends_well_after_so_many_events_and_the_hub_goes_on() {
    let mut hub = Hub::start(&["--wait-for", "2", "--exit-on-eof"]).await;
    let few = tokio::spawn(hub.spoke(&["--count", "3", "--output", "payload"]).end());
    let all = tokio::spawn(hub.spoke(&["--output", "payload"]).end());
    let texts = texts(300);
    drop(hub.program.write(texts.join("\n")).await.expect("written"));
    let few = few.await.expect("it ends");
    few.assert_code(0);
    assert_eq!(few.lines, texts[..3]);
    assert_eq!(all.await.expect("it ends").lines, texts);
    hub.program.end().await.assert_code(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_and_an_early_start_choose_what_is_printed() {
    let mut hub = Hub::start(&["--input", "json"]).await;
    let mut first = hub.spoke(&["--from", "earliest", "--filter", "order.*"]);
    let lines: String = ["order.new", "price", "order.paid"]
        .iter()
        .map(|kind| format!("{}\n", json!({"type": kind, "payload": {}})))
        .collect();
    let _stdin = hub.program.write(lines).await.expect("written");
    for kind in ["order.new", "order.paid"] {
        assert_eq!(first.next_json().await["type"], kind);
    }
    let mut late = hub.spoke(&["--from", "earliest"]);
    for kind in ["order.new", "price", "order.paid"] {
        assert_eq!(late.next_json().await["type"], kind);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_whose_reader_has_enough_ends_quietly() {
    let mut hub = Hub::start(&["--wait-for", "1"]).await;
    let mut spoke = hub.spoke(&[]);
    let mut stdin = hub.program.stdin.take().expect("stdin is open");
    stdin.write_all(b"one\n").await.expect("the hub reads");
    spoke.next_line().await;
    let Program {
        mut child,
        stdin: _spoke_stdin,
        stdout,
        stderr,
        ..
    } = spoke;
    drop(stdout);
    let ending = async {
        loop {
            stdin.write_all(b"more\n").await.expect("the hub reads");
            if let Some(status) = child.try_wait().expect("it is ours") {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let status = timeout(LIMIT, ending).await.expect("it ends in time");
    assert_eq!(status.code(), Some(0));
    let stderr = stderr.await.expect("stderr is read");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_whose_reader_has_enough_is_no_failure() {
    let simulate = ["simulate", "--spokes", "5", "--events", "10"];
    let json = [&simulate[..], &["--json"]].concat();
    let compare = [
        "compare",
        "--strategies=direct",
        "--spokes=1",
        "--events=20",
    ];
    for args in [&simulate[..], &json, &compare, &["simulate", "--help"]] {
        let mut program = Program::start(args);
        program.stdout = None;
        let ended = program.end().await;
        ended.assert_code(0);
        for words in ["panicked", "error", "roken pipe"] {
            assert!(!ended.stderr.contains(words), "{args:?}: {}", ended.stderr);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reads_what_is_logged_and_the_hub_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let ticket = dir.path().join("ticket");
    let mut hub = common::process::program()
        .args(["hub", "--local", "--wait-for", "1", "--exit-on-eof"])
        .arg("--ticket")
        .arg(&ticket)
        .env("RUST_LOG", "trace")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program is built");
    drop(hub.stderr.take());
    common::until("the hub can be reached", || ticket.exists()).await;
    let ticket = std::fs::read_to_string(&ticket).expect("it is whole");
    let mut spoke = Program::start(["spoke", ticket.trim_end(), "--local"]);
    let mut stdin = hub.stdin.take().expect("piped");
    stdin.write_all(b"there?\n").await.expect("the hub reads");
    assert_eq!(spoke.next_json().await["payload"], "there?");
    drop(stdin);
    let status = timeout(LIMIT, hub.wait()).await.expect("it ends in time");
    assert_eq!(status.expect("it is ours").code(), Some(0));
    spoke.end().await.assert_code(0);
}

#[tokio::test]
async fn receipts_that_cannot_be_written_end_the_hub() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("UTF-8");
    let hub = Program::start(["hub", "--local", "--receipts", path])
        .end()
        .await;
    hub.assert_fails_with(1, "receipts");
}

#[cfg(unix)]
mod signals {
    use rustix::process::Signal;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_interrupted_hub_says_goodbye_to_its_spokes() {
        for signal in [Signal::INT, Signal::TERM] {
            let mut hub = Hub::start(&["--wait-for", "3"]).await;
            let mut spokes = [
                hub.spoke(&["--gossip=off"]),
                hub.spoke(&[]),
                hub.spoke(&["--compat"]),
            ];
            let _stdin = hub.program.write("there?\n").await.expect("written");
            for spoke in &mut spokes {
                assert_eq!(spoke.next_json().await["payload"], "there?");
            }
            hub.program.signal(signal);
            hub.program.end().await.assert_code(0);
            for spoke in spokes {
                spoke.end().await.assert_code(0);
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_interrupted_spoke_leaves_in_order() {
        let mut hub = Hub::start(&["--wait-for", "1"]).await;
        let mut spoke = hub.spoke(&[]);
        let _stdin = hub.program.write("there?\n").await.expect("written");
        spoke.next_line().await;
        spoke.signal(Signal::INT);
        spoke.end().await.assert_code(0);
        hub.program.signal(Signal::INT);
        let hub = hub.program.end().await;
        hub.assert_code(0);
        assert!(!hub.stderr.contains("lost"), "{}", hub.stderr);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_spoke_that_takes_nothing_is_named_when_the_hub_ends() {
        for args in [&["--gossip=off", "--no-reconnect"][..], &["--compat"]] {
            let mut hub =
                Hub::start(&["--wait-for", "2", "--exit-on-eof", "--drain-timeout", "2"]).await;
            let mut stuck = hub.spoke(args);
            let well = hub.spoke(&[]);
            let mut stdin = hub.program.stdin.take().expect("stdin is open");
            stdin.write_all(b"there?\n").await.expect("the hub reads");
            stuck.next_line().await;
            stuck.signal(Signal::STOP);
            stdin
                .write_all(b"still there?\n")
                .await
                .expect("the hub reads");
            drop(stdin);
            let ended = hub.program.end().await;
            ended.assert_code(7);
            let named = |line: &&str| line.contains("did not get everything");
            assert_eq!(
                ended.stderr.lines().filter(named).count(),
                1,
                "{}",
                ended.stderr
            );
            let well = well.end().await;
            well.assert_code(0);
            assert_eq!(well.lines.len(), 2);
            // It takes the end for a goodbye only if everything had reached it by then.
            stuck.signal(Signal::CONT);
            let stuck = stuck.end().await;
            if stuck.code() == 0 {
                assert_eq!(args, ["--compat"], "nothing of that is confirmed");
                assert_eq!(stuck.lines.len(), 1);
            } else {
                stuck.assert_fails_with(5, "without a goodbye");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn events_for_one_spoke_that_it_may_not_have_got_are_named_when_the_hub_ends() {
        let args = ["--input", "json", "--exit-on-eof", "--drain-timeout", "2"];
        let mut hub = Hub::start(&args).await;
        let mut stuck = hub.spoke(&["--gossip=off", "--no-reconnect"]);
        let _stdin = stuck.write("here\n").await.expect("written");
        let here = hub.program.next_json().await;
        let to = here["from"].as_str().expect("an id");
        let event = |n: u64| format!("{{\"type\":\"t\",\"payload\":{n},\"to\":\"{to}\"}}\n");
        let mut stdin = hub.program.stdin.take().expect("stdin is open");
        stdin.write_all(event(1).as_bytes()).await.expect("read");
        assert_eq!(stuck.next_json().await["payload"], 1);
        stuck.signal(Signal::STOP);
        for n in 2..4 {
            stdin.write_all(event(n).as_bytes()).await.expect("read");
        }
        drop(stdin);
        let ended = hub.program.end().await;
        ended.assert_code(7);
        let named = |line: usize| format!("line {line} of stdin, for {to}: ");
        for line in 2..4 {
            let said = ended
                .stderr
                .lines()
                .find(|said| said.starts_with(&named(line)));
            assert!(
                said.is_some_and(|said| said.contains("may have been delivered")),
                "{}",
                ended.stderr
            );
        }
        // How it finds out is not what this is about.
        stuck.child.kill().await.expect("it is ours");
    }

    /// QUIC gives a silent peer half a minute.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_spoke_of_a_killed_hub_says_that_it_is_gone() {
        let mut hub = Hub::start(&["--wait-for", "1"]).await;
        let mut spoke = hub.spoke(&["--no-reconnect"]);
        let _stdin = hub.program.write("there?\n").await.expect("written");
        spoke.next_line().await;
        hub.program.child.kill().await.expect("it is ours");
        spoke.end().await.assert_fails_with(5, "gone");
    }
}

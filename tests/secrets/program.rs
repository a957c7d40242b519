//! What the program prints, logs and serves.

use std::{io, os::unix::fs::PermissionsExt, path::Path, process::Stdio};

use data_encoding::HEXLOWER;
use iroh::SecretKey;
use iroh_tickets::endpoint::EndpointTicket;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::timeout,
};

use crate::{
    Member, Said, bind_known,
    common::{
        LIMIT,
        process::{Program, spoke_command, start_hub},
    },
    leaks::Secrets,
};

/// Runs the program with everything logged.
fn loud() -> Command {
    // The tests' own helper takes RUST_LOG away.
    let mut command = Command::new("env");
    command.args(["RUST_LOG=iroh_hub=trace", env!("CARGO_BIN_EXE_iroh-hub")]);
    command
}

/// A file with a new key, which is among the secrets.
fn key_file(dir: &Path, name: &str, secrets: &mut Secrets) -> (String, SecretKey) {
    let key = SecretKey::generate();
    secrets.add(format!("the key file of {name}"), key.to_bytes());
    let path = dir.join(name);
    std::fs::write(&path, HEXLOWER.encode(&key.to_bytes())).expect("it can be written");
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&path, mode).expect("it is ours");
    (path.to_str().expect("UTF-8").to_owned(), key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_prints_and_logs_no_secret() {
    let said = Said::default();
    let mut secrets = Secrets::default();
    let dir = tempfile::tempdir().expect("a directory");
    let (hub_key, _) = key_file(dir.path(), "hub", &mut secrets);
    let args = [
        "--key",
        &hub_key,
        "--fan-out",
        "gossip",
        "--metrics",
        "127.0.0.1:0",
        "--exit-on-eof",
    ];
    let (mut hub, ticket) = start_hub(loud(), dir.path(), &args).await;
    let url = hub.said("metrics: http://").await;
    let ticket_addr: EndpointTicket = ticket.parse().expect("a ticket");
    let mut spokes = Vec::new();
    for n in 0..2 {
        let (key, _) = key_file(dir.path(), &format!("spoke {n}"), &mut secrets);
        let metrics = "127.0.0.1:0";
        let command = spoke_command(loud(), &ticket, &["--key", &key, "--metrics", metrics]);
        spokes.push(Program::run(&mut { command }, Stdio::piped()));
    }
    let endpoint = bind_known("a member", &mut secrets).await;
    let addr = ticket_addr.endpoint_addr().clone();
    let mut member = Member::join("a member", endpoint, addr, &mut secrets).await;
    member.is_told(1, &mut secrets).await;
    for spoke in &mut spokes {
        let stdin = spoke.write("here\n").await.expect("written");
        spoke.stdin = Some(stdin);
        hub.next_line().await;
    }
    let stdin = hub.write("one\ntwo\n").await.expect("written");
    for spoke in &mut spokes {
        said.tell(spoke.next_line().await);
        said.tell(spoke.next_line().await);
        let url = spoke.said("metrics: http://").await;
        said.tell(scraped(&url).await);
    }
    said.tell(scraped(&url).await);
    hub.signal(rustix::process::Signal::USR1);
    said.tell(hub.said("{\"healthy\":").await);
    member.connection.close(1u32.into(), b"goodbye");
    drop(stdin);
    for program in spokes.into_iter().chain([hub]) {
        let ended = program.end().await;
        ended.assert_code(0);
        assert!(
            ended.stderr.contains("TRACE") || ended.stderr.contains("DEBUG"),
            "it is loud"
        );
        said.tell(ended.lines.join("\n"));
        said.tell(&ended.stderr);
    }

    // Files with a key in them that are given for something else, or have more in them than a key.
    let (path, key) = key_file(dir.path(), "extra", &mut secrets);
    let text = HEXLOWER.encode(&key.to_bytes());
    for (text, args) in [
        (format!("{text}00"), ["hub", "--local", "--key", &path]),
        (format!("key = {text}"), ["hub", "--local", "--key", &path]),
        (
            format!("key = {text}"),
            ["hub", "--local", "--allow-file", &path],
        ),
        (format!("{text} # mine"), ["spoke", &ticket, "--key", &path]),
        (
            format!("{text} # mine"),
            ["spoke", &ticket, "--position", &path],
        ),
    ] {
        std::fs::write(&path, text).expect("it can be written");
        let mut command = loud();
        let program = Program::run(command.args(args), Stdio::piped());
        let ended = program.end().await;
        assert_ne!(ended.code(), 0);
        assert!(ended.stderr.contains(&path), "{}", ended.stderr);
        said.tell(&ended.stderr);
    }
    said.shows_none_of(&secrets);
}

/// What the program serves there.
async fn scraped(url: &str) -> String {
    let addr = url.strip_suffix("/metrics").expect("a path");
    let asking = async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = timeout(LIMIT, asking).await.expect("an answer in time");
    let answer = answer.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

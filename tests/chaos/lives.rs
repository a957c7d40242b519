//! Processes that are killed and started again: what each life of a spoke printed, and what each life of a hub named in its
//! receipts.

use std::{
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::{process::ChildStdin, time::sleep};

use crate::{
    checker::{Life, Spoke as Printed},
    common::process::{Program, program, spoke_command, spoke_into, start_hub},
};

/// How long anything may take in a mesh whose links die in silence: half a minute until they are noticed, and the waits before
/// the next attempts.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Whether event `n` of a load is among the last lines of a spoke.
pub fn has_printed(out: &Path, n: u64) -> bool {
    let text = std::fs::read(out).unwrap_or_default();
    let tail = &text[text.len().saturating_sub(4096)..];
    String::from_utf8_lossy(tail).contains(&format!("\"payload\":[{n},"))
}

/// A spoke over its lives.
pub struct SpokeLives {
    name: String,
    dir: PathBuf,
    args: Vec<String>,
    lives: Vec<Life>,
    running: Option<(Program, PathBuf)>,
    kills: u32,
}

impl SpokeLives {
    /// Each life is started with these arguments.
    pub fn new(name: impl Into<String>, dir: &Path, args: &[&str]) -> Self {
        Self {
            name: name.into(),
            dir: dir.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            lives: Vec::new(),
            running: None,
            kills: 0,
        }
    }

    pub fn start(&mut self, ticket: &str) {
        let out = self.dir.join(format!("{}.{}", self.name, self.lives.len()));
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let spoke = spoke_into(spoke_command(program(), ticket, &args), &out);
        self.running = Some((spoke.patient(PATIENCE), out));
    }

    pub async fn kill(&mut self) {
        if let Some((spoke, out)) = self.running.take() {
            spoke.kill().await;
            self.lives.push(Life::read(&out, true));
            self.kills += 1;
        }
    }

    pub fn kills(&self) -> u32 {
        self.kills
    }

    /// Whether its last line is event `n` of a load.
    fn has(&self, n: u64) -> bool {
        let out = self.running.as_ref().map(|(_, out)| out);
        out.is_some_and(|out| has_printed(out, n))
    }

    /// Waits until it has printed event `n` of a load.
    pub async fn until_it_has(&self, n: u64) {
        let begin = Instant::now();
        while !self.has(n) {
            let waited = begin.elapsed();
            assert!(waited < PATIENCE, "{} does not print event {n}", self.name);
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until it has ended with its hub, for the checker.
    pub async fn end(mut self) -> Printed {
        if let Some((spoke, out)) = self.running.take() {
            let ended = spoke.end().await;
            assert_eq!(ended.code(), 0, "{}: {}", self.name, ended.stderr);
            self.lives.push(Life::read(&out, false));
        }
        Printed::new(self.name, self.lives)
    }
}

/// A hub over its lives: the same key, the same port, and so the same ticket.
pub struct HubLives {
    dir: PathBuf,
    args: Vec<String>,
    receipts: Vec<Life>,
    running: Option<(Program, PathBuf)>,
    pub ticket: String,
}

impl HubLives {
    /// Starts its first life.
    pub async fn start(dir: &Path, args: &[&str]) -> Self {
        let key = dir.join("key");
        let mut all = vec![
            "--bind".to_owned(),
            format!("127.0.0.1:{}", free_port()),
            "--key".to_owned(),
            key.to_str().expect("UTF-8").to_owned(),
            "--input".to_owned(),
            "json".to_owned(),
            "--exit-on-eof".to_owned(),
        ];
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let mut hub = Self {
            dir: dir.to_owned(),
            args: all,
            receipts: Vec::new(),
            running: None,
            ticket: String::new(),
        };
        hub.ticket = hub.again().await;
        hub
    }

    /// Starts the next life.
    pub async fn again(&mut self) -> String {
        let receipts = self.dir.join(format!("receipts.{}", self.receipts.len()));
        let mut args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        args.extend(["--receipts", receipts.to_str().expect("UTF-8")]);
        let (program, ticket) = start_hub(program(), &self.dir, &args).await;
        self.running = Some((program.patient(PATIENCE), receipts));
        ticket
    }

    /// The stdin of this life.
    pub fn stdin(&mut self) -> ChildStdin {
        let (hub, _) = self.running.as_mut().expect("it runs");
        hub.stdin.take().expect("once a life")
    }

    pub async fn kill(&mut self) {
        let (hub, receipts) = self.running.take().expect("it runs");
        hub.kill().await;
        self.receipts.push(Life::read(&receipts, true));
    }

    /// Waits until it has ended, which it does once its stdin has; gives back its receipts.
    pub async fn end(self) -> Vec<Life> {
        self.end_with(&[0]).await
    }

    /// The same, where it may end with one of these codes.
    pub async fn end_with(mut self, codes: &[i32]) -> Vec<Life> {
        let (hub, receipts) = self.running.take().expect("it runs");
        let ended = hub.end().await;
        assert!(codes.contains(&ended.code()), "{}", ended.stderr);
        self.receipts.push(Life::read(&receipts, false));
        self.receipts
    }
}

fn free_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback binds");
    socket.local_addr().expect("it is bound").port()
}

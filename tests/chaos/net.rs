//! A network namespace of the test's own, whose loopback loses packets. Everything in it is gone when it is dropped, or with
//! the test.

use std::{
    io::{Read, Write},
    process::{Child, Command as StdCommand, Stdio},
};

use tokio::process::Command;

/// Segments are packets of their own; otherwise many would be lost as one.
const SET_UP: &str =
    "set -e; nft list tables; ip link set lo gso_max_segs 1; ip link set lo up; echo up; exec cat";

pub struct Net {
    /// Holds the namespace, and ends with our end of its stdin.
    holder: Child,
    as_root: bool,
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Net {
    /// # Errors
    ///
    /// Why there is none to be had here.
    pub fn new() -> Result<Self, String> {
        Self::unshare(true).or_else(|as_root| {
            Self::unshare(false).map_err(|as_user| format!("{as_root}; {as_user}"))
        })
    }

    fn unshare(as_root: bool) -> Result<Self, String> {
        let how: &[&str] = match as_root {
            true => &["--net"],
            false => &["--net", "--user", "--map-root-user"],
        };
        let mut holder = StdCommand::new("unshare")
            .args(how)
            .args(["sh", "-c", SET_UP])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut word = [0; 3];
        let mut out = holder.stdout.take().expect("piped");
        if out.read_exact(&mut word).is_ok() && &word == b"up\n" {
            return Ok(Self { holder, as_root });
        }
        let mut why = String::new();
        let mut stderr = holder.stderr.take().expect("piped");
        let _ = stderr.read_to_string(&mut why);
        let _ = holder.wait();
        Err(why.trim().to_owned())
    }

    fn enter(&self) -> Vec<String> {
        let mut args = vec![
            "--net".to_owned(),
            "--target".to_owned(),
            self.holder.id().to_string(),
        ];
        if !self.as_root {
            args.extend(["--user".to_owned(), "--preserve-credentials".to_owned()]);
        }
        args
    }

    /// The program in this namespace. It keeps its process id, so that signals reach it.
    pub fn program(&self) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(self.enter())
            .arg(env!("CARGO_BIN_EXE_iroh-hub"));
        command
    }

    /// Replaces all rules.
    fn rules(&self, rules: &str) {
        let mut nft = StdCommand::new("nsenter")
            .args(self.enter())
            .args(["nft", "--file", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nft runs");
        let mut stdin = nft.stdin.take().expect("piped");
        stdin.write_all(rules.as_bytes()).expect("nft reads");
        drop(stdin);
        let status = nft.wait().expect("nft ends");
        assert!(status.success(), "nft refuses: {rules}");
    }

    /// Loses so many of a hundred packets from now on.
    pub fn lose(&self, percent: u32) {
        self.rules(&format!(
            "flush ruleset
            table inet faults {{
                counter seen {{}}
                counter lost {{}}
                chain in {{
                    type filter hook input priority 0;
                    meta l4proto udp counter name seen
                    meta l4proto udp numgen random mod 100 < {percent} counter name lost drop
                }}
            }}"
        ));
    }

    /// How many packets there were under these rules, and how many of them were lost.
    pub fn packets(&self) -> (u64, u64) {
        let read = |name: &str| {
            let out = StdCommand::new("nsenter")
                .args(self.enter())
                .args(["nft", "list", "counter", "inet", "faults", name])
                .output()
                .expect("nft runs");
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let mut words = text.split_whitespace();
            words.find(|word| *word == "packets");
            words.next().and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        (read("seen"), read("lost"))
    }
}

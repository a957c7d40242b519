//! The `iroh-hub` program as its users run it: processes, pipes and files. All are killed when they are dropped, so also
//! when a test panics.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// How long a test waits for what must come.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The program, to be given arguments.
pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_iroh-hub"))
}

/// A running `iroh-hub`.
pub struct Program {
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    /// `None` if it goes to a file.
    pub stdout: Option<Lines<BufReader<ChildStdout>>>,
    pub stderr: JoinHandle<String>,
    /// What stderr has so far.
    said: watch::Receiver<String>,
    limit: Duration,
}

/// How it ended, and what it had left to say.
pub struct Ended {
    pub status: ExitStatus,
    pub lines: Vec<String>,
    pub stderr: String,
}

impl Program {
    pub fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self::run(program().args(args), Stdio::piped())
    }

    /// Runs a command; it may be one that runs the program elsewhere.
    pub fn run(command: &mut Command, stdout: Stdio) -> Self {
        let mut child = command
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program is built");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (say, said) = watch::channel(String::new());
        Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(|out| BufReader::new(out).lines()),
            stderr: tokio::spawn(async move {
                let mut line = Vec::new();
                while let Ok(1..) = stderr.read_until(b'\n', &mut line).await {
                    say.send_modify(|text| text.push_str(&String::from_utf8_lossy(&line)));
                    line.clear();
                }
                say.borrow().clone()
            }),
            said,
            child,
            limit: LIMIT,
        }
    }

    /// Waits this long for what must come.
    pub fn patient(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Writes to its stdin, in the background if it does not take it at once.
    pub fn write(&mut self, text: impl Into<Vec<u8>>) -> JoinHandle<ChildStdin> {
        let mut stdin = self.stdin.take().expect("stdin is open");
        let text = text.into();
        tokio::spawn(async move {
            // What the program does not read shows in what it does.
            let _ = stdin.write_all(&text).await;
            stdin
        })
    }

    pub async fn next_line(&mut self) -> String {
        let stdout = self.stdout.as_mut().expect("piped");
        timeout(self.limit, stdout.next_line())
            .await
            .expect("a line in time")
            .expect("stdout can be read")
            .expect("a line before the end")
    }

    pub async fn next_json(&mut self) -> Value {
        serde_json::from_str(&self.next_line().await).expect("a line of JSON")
    }

    /// The rest of the line of stderr that begins so, which must come.
    pub async fn said(&mut self, prefix: &str) -> String {
        let is_there = |text: &String| text.lines().any(|line| line.starts_with(prefix));
        let text = timeout(self.limit, self.said.wait_for(is_there))
            .await
            .expect("a line in time")
            .expect("a line before the end")
            .clone();
        let rest = text.lines().find_map(|line| line.strip_prefix(prefix));
        rest.expect("it is there").to_owned()
    }

    /// Waits until it has ended.
    pub async fn end(mut self) -> Ended {
        let ended = async {
            let mut lines = Vec::new();
            if let Some(stdout) = &mut self.stdout {
                while let Some(line) = stdout.next_line().await.expect("stdout can be read") {
                    lines.push(line);
                }
            }
            Ended {
                status: self.child.wait().await.expect("it ends"),
                lines,
                stderr: self.stderr.await.expect("stderr is read"),
            }
        };
        timeout(self.limit, ended).await.expect("it ends in time")
    }

    /// Kills it at once, and waits until it is gone.
    pub async fn kill(mut self) -> Ended {
        self.child.start_kill().expect("it is ours");
        self.end().await
    }

    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    #[cfg(unix)]
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_raw(self.id().cast_signed()).expect("a process");
        rustix::process::kill_process(id, signal).expect("it can be signalled");
    }
}

impl Ended {
    pub fn code(&self) -> i32 {
        self.status.code().expect("it was not killed")
    }

    /// The lines as JSON.
    pub fn json(&self) -> Vec<Value> {
        self.lines
            .iter()
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect()
    }

    #[track_caller]
    pub fn assert_code(&self, code: i32) {
        assert_eq!(self.code(), code, "stderr: {}", self.stderr);
    }

    /// Its last word is an error on one line, and no trace of what it is made of.
    #[track_caller]
    pub fn assert_fails_with(&self, code: i32, words: &str) {
        self.assert_code(code);
        let last = self.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: "), "{}", self.stderr);
        assert!(last.contains(words), "{}", self.stderr);
        for internal in ["panicked", "backtrace", " at src/", "Error {"] {
            assert!(!self.stderr.contains(internal), "{}", self.stderr);
        }
    }
}

/// Waits until a process has written this file, which is renamed into place.
async fn written(path: &Path, program: &mut Program) -> String {
    let waiting = async {
        while !path.exists() {
            if program.child.try_wait().expect("it is ours").is_some() {
                let stderr = (&mut program.stderr).await.expect("stderr is read");
                panic!("it has ended: {stderr}");
            }
            sleep(Duration::from_millis(10)).await;
        }
        std::fs::read_to_string(path).expect("the file is whole")
    };
    timeout(LIMIT, waiting).await.expect("a file in time")
}

/// A hub on loopback with its files.
pub struct Hub {
    pub program: Program,
    pub ticket: String,
    pub dir: TempDir,
}

impl Hub {
    pub async fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (program, ticket) = start_hub(program(), dir.path(), args).await;
        Self {
            program,
            ticket,
            dir,
        }
    }

    /// A spoke whose lines are read here.
    pub fn spoke(&self, args: &[&str]) -> Program {
        Program::run(
            &mut spoke_command(program(), &self.ticket, args),
            Stdio::piped(),
        )
    }

    /// A file of this hub.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Starts a hub that keeps its ticket in `dir`, and waits until it can be reached.
pub async fn start_hub(mut command: Command, dir: &Path, args: &[&str]) -> (Program, String) {
    let file = dir.join("ticket");
    let _ = std::fs::remove_file(&file);
    command.args(["hub", "--local", "--ticket"]).arg(&file);
    let mut program = Program::run(command.args(args), Stdio::piped());
    let ticket = written(&file, &mut program).await;
    (program, ticket.trim_end().to_owned())
}

pub fn spoke_command(mut command: Command, ticket: &str, args: &[&str]) -> Command {
    command.args(["spoke", ticket, "--local"]).args(args);
    command
}

/// A spoke that prints into a file.
pub fn spoke_into(mut command: Command, out: &Path) -> Program {
    let out = File::create(out).expect("the file can be made");
    Program::run(&mut command, out.into())
}

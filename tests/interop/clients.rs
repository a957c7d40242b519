//! Runs the clients in other languages as child processes: Node, Deno and Python.
//!
//! Every wait here has a limit, and a failure says what the client wrote to stderr. A client that is
//! dropped is killed.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

/// How long a client may take for one step: a line, or its end. Generous, for a busy machine.
const STEP: Duration = Duration::from_secs(60);
/// How much of a client's stderr is kept for a failure's message.
const STDERR_KEPT: usize = 16 * 1024;

/// What a client runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    Node,
    Deno,
    Python,
}

impl Runtime {
    pub(crate) const ALL: [Self; 3] = [Self::Node, Self::Deno, Self::Python];

    /// The program: from `NODE`, `DENO` or `PYTHON`, or where `tests/interop/install` puts it, or from `PATH`.
    fn program(self) -> PathBuf {
        let (variable, installed, otherwise) = match self {
            Self::Node => ("NODE", None, "node"),
            Self::Deno => ("DENO", Some("tests/interop/node_modules/.bin/deno"), "deno"),
            Self::Python => ("PYTHON", Some("tests/interop/.venv/bin/python"), "python3"),
        };
        if let Some(program) = env::var_os(variable) {
            return program.into();
        }
        installed
            .map(in_repository)
            .filter(|path| path.exists())
            .unwrap_or_else(|| otherwise.into())
    }

    /// A command that runs the script at `path`, which is relative to the repository.
    fn script(self, path: &str) -> Command {
        let mut command = Command::new(self.program());
        if self == Self::Deno {
            command.args(["run", "--quiet", "--allow-all"]);
        }
        command.arg(in_repository(path));
        command
    }
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A client that runs: a spoke, or the hub in JavaScript.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::UnboundedReceiver<String>,
    stderr: Arc<Mutex<Vec<u8>>>,
    stderr_reader: JoinHandle<()>,
}

impl Client {
    /// Starts a spoke that joins the hub of `ticket` on loopback. `args` are further options of the program.
    pub(crate) fn spoke(runtime: Runtime, ticket: &str, args: &[&str]) -> Self {
        let mut command = runtime.script(match runtime {
            Runtime::Node | Runtime::Deno => "examples/javascript/spoke.mjs",
            Runtime::Python => "examples/python/spoke.py",
        });
        command.args([ticket, "--local"]).args(args);
        Self::start(format!("spoke on {runtime:?}"), command)
    }

    /// Starts the hub in JavaScript on loopback and gives back its ticket with it.
    pub(crate) async fn hub(runtime: Runtime, args: &[&str]) -> (Self, String) {
        assert_ne!(runtime, Runtime::Python, "there is no hub in Python");
        let mut command = runtime.script("examples/javascript/hub.mjs");
        command.arg("--local").args(args);
        let mut hub = Self::start(format!("hub on {runtime:?}"), command);
        let ticket = hub.line().await;
        (hub, ticket)
    }

    fn start(name: String, mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{name}: {command:?} does not start: {error}; run tests/interop/install")
            });
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut stdout = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = stdout.next_line().await {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let stderr = Arc::default();
        let pipe = child.stderr.take().expect("stderr is piped");
        let stderr_reader = tokio::spawn(keep(pipe, Arc::clone(&stderr)));
        Self {
            name,
            child,
            stdin,
            lines,
            stderr,
            stderr_reader,
        }
    }

    /// The next event that it printed.
    pub(crate) async fn event(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line)
            .unwrap_or_else(|error| self.fail(&format!("printed {line:?}: {error}")))
    }

    /// The next `count` events that it printed.
    pub(crate) async fn events(&mut self, count: usize) -> Vec<Value> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            events.push(self.event().await);
        }
        events
    }

    /// Writes a line to its stdin.
    pub(crate) async fn write(&mut self, line: &Value) {
        let Some(stdin) = self.stdin.as_mut() else {
            self.fail("its stdin is closed");
        };
        let line = format!("{line}\n");
        match timeout(STEP, stdin.write_all(line.as_bytes())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail(&format!("does not take a line: {error}")),
            Err(_) => self.fail("takes no line"),
        }
    }

    /// Waits until it ends by itself, with this exit code and without another line on stdout; gives back its stderr.
    pub(crate) async fn exits(mut self, code: i32) -> String {
        match timeout(STEP, self.child.wait()).await {
            Ok(Ok(status)) if status.code() == Some(code) => {}
            Ok(Ok(status)) => self.fail(&format!("ended with {status} rather than {code}")),
            Ok(Err(error)) => self.fail(&format!("cannot be waited for: {error}")),
            Err(_) => self.fail("does not end"),
        }
        match timeout(STEP, self.lines.recv()).await {
            Ok(None) => {}
            Ok(Some(line)) => self.fail(&format!("printed one line too many: {line}")),
            Err(_) => self.fail("leaves its stdout open"),
        }
        match timeout(STEP, &mut self.stderr_reader).await {
            Ok(Ok(())) => self.stderr(),
            Ok(Err(error)) => self.fail(&format!("its stderr was not read: {error}")),
            Err(_) => self.fail("leaves its stderr open"),
        }
    }

    async fn line(&mut self) -> String {
        match timeout(STEP, self.lines.recv()).await {
            Ok(Some(line)) => line,
            Ok(None) => self.fail("ended before its next line"),
            Err(_) => self.fail("printed no line for too long"),
        }
    }

    fn stderr(&self) -> String {
        let stderr = self
            .stderr
            .lock()
            .expect("nothing panics while it holds this");
        String::from_utf8_lossy(&stderr).into_owned()
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        panic!("{}: {what}; its stderr: {}", self.name, self.stderr())
    }
}

/// Reads a pipe to its end and keeps the first part.
async fn keep(mut pipe: impl AsyncRead + Unpin, kept: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        let mut kept = kept.lock().expect("nothing panics while it holds this");
        let room = STDERR_KEPT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
}

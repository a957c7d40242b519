//! A child process of `compare`, seen from both ends: the parent's handle on it, and the loop that it runs.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, anyhow, bail};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, stdin, stdout},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::protocol::Answer;

/// How long a child may take to exit after it has answered the last command.
const EXIT_LIMIT: Duration = Duration::from_secs(2);

/// The parent's handle. Dropping it kills the child.
#[derive(Debug)]
pub(crate) struct Worker {
    name: &'static str,
    child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts this very program again, with a hidden subcommand.
    pub(crate) fn spawn(name: &'static str, subcommand: &str) -> anyhow::Result<Self> {
        let program =
            std::env::current_exe().context("cannot find this program to start it again")?;
        let mut child = Command::new(program)
            .arg(subcommand)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the process of the {name}"))?;
        let (Some(commands), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the process of the {name} has no pipes");
        };
        Ok(Self {
            name,
            child,
            commands,
            answers: BufReader::new(answers).lines(),
        })
    }

    /// Sends a command and waits for its answer.
    pub(crate) async fn ask<C: Serialize, R: DeserializeOwned>(
        &mut self,
        command: &C,
        limit: Duration,
    ) -> anyhow::Result<R> {
        let name = self.name;
        let exchange = async {
            let mut line = serde_json::to_vec(command)?;
            line.push(b'\n');
            self.commands.write_all(&line).await?;
            self.commands.flush().await?;
            anyhow::Ok(self.answers.next_line().await?)
        };
        let line = timeout(limit, exchange)
            .await
            .map_err(|_| anyhow!("the {name} gave no answer within {} s", limit.as_secs()))?
            .with_context(|| format!("cannot talk to the process of the {name}"))?
            .ok_or_else(|| anyhow!("the process of the {name} ended early"))?;
        let answer: Answer<R> = serde_json::from_str(&line)
            .with_context(|| format!("the {name} gave an answer that cannot be read"))?;
        answer.map_err(|reason| anyhow!("{name}: {reason}"))
    }

    /// Waits for the child to exit, and kills it if it does not.
    pub(crate) async fn exit(mut self) -> anyhow::Result<()> {
        drop(self.commands);
        if timeout(EXIT_LIMIT, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }
}

/// The child's loop: answers commands until it is told to stop, or its parent is gone.
///
/// `handle` returns the answer, and whether it was the last.
pub(crate) async fn serve<C, R>(
    mut handle: impl AsyncFnMut(C) -> (Answer<R>, bool),
) -> anyhow::Result<()>
where
    C: DeserializeOwned,
    R: Serialize,
{
    let mut commands = BufReader::new(stdin()).lines();
    let mut answers = stdout();
    while let Some(line) = commands.next_line().await? {
        let (answer, last) = match serde_json::from_str(&line) {
            Ok(command) => tokio::select! {
                answered = handle(command) => answered,
                // The parent sends nothing before it has its answer, so this is its end.
                _ = commands.next_line() => break,
            },
            Err(error) => (Err(format!("cannot read the command: {error}")), false),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        answers.write_all(&line).await?;
        answers.flush().await?;
        if last {
            break;
        }
    }
    Ok(())
}

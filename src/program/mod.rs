//! The parts of the `iroh-hub` program.
//!
//! One module a command ([`hub`], [`spoke`]), and one a thing that commands share. What a hub or a
//! spoke does is the library's business; here are only files, pipes, signals and exit codes.

mod admitted;
mod args;
mod compare;
mod exit;
mod feed;
mod file;
mod gather;
mod hub;
mod id_file;
mod input;
mod kept;
mod key;
mod network;
mod output;
mod position;
mod receipts;
mod request;
mod say;
mod scrape;
mod sent;
mod simulate;
mod spoke;
mod stop;
mod telling;
mod ticket;

use std::{io::IsTerminal, process::ExitCode};

use anyhow::{Context, anyhow};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use self::{
    exit::{Exit, Failure},
    say::say,
    stop::Stop,
};

/// One hub, many spokes, over iroh: every event in order and once, by gossip or by direct streams.
#[derive(Debug, Parser)]
#[command(name = "iroh-hub", version, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Hub(args::HubArgs),
    Spoke(args::SpokeArgs),
    Compare(compare::CompareArgs),
    Simulate(simulate::SimulateArgs),
    /// The hub's process of `compare`.
    #[command(hide = true)]
    CompareHub,
    /// The spokes' process of `compare`.
    #[command(hide = true)]
    CompareSpokes,
}

/// What is logged unless `RUST_LOG` says otherwise. iroh warns of connections that merely end.
const LOGGED: &str = "iroh_hub=warn";

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would say on stderr that stderr cannot be written, and panic.
        .log_internal_errors(false)
        .init();
    match run(cli.command) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            say(format_args!("error: {failure}"));
            failure.exit().into()
        }
    }
}

fn run(command: Command) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the program's threads do not start")?;
    let ran = runtime.block_on(async {
        let stop = || Stop::on_signals().context("signals cannot be caught");
        match command {
            Command::Hub(args) => hub::run(args, stop()?).await,
            Command::Spoke(args) => spoke::run(args, stop()?).await,
            Command::Compare(args) => {
                let stop = stop()?;
                tokio::select! {
                    ran = compare::run(args) => done(ran),
                    () = stop.requested() => Err(anyhow!("interrupted").into()),
                }
            }
            // One thread, this one, for as long as it takes.
            Command::Simulate(args) => simulate::run(&args),
            // These end with their parent, however that ends.
            Command::CompareHub => done(compare::hub_child().await),
            Command::CompareSpokes => done(compare::spokes_child().await),
        }
    });
    // A thread that still reads stdin cannot be ended; it must not hold the program.
    runtime.shutdown_background();
    ran
}

fn done(ran: anyhow::Result<()>) -> Result<Exit, Failure> {
    Ok(ran.map(|()| Exit::Ok)?)
}

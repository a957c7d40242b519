//! The `iroh-hub` program.

mod program;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use program::compare;

/// One hub, many spokes, over iroh.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compare(compare::CompareArgs),
    /// The hub's process of `compare`.
    #[command(hide = true)]
    CompareHub,
    /// The spokes' process of `compare`.
    #[command(hide = true)]
    CompareSpokes,
}

#[tokio::main]
async fn main() -> ExitCode {
    let ran = match Cli::parse().command {
        Command::Compare(args) => tokio::select! {
            ran = compare::run(args) => ran,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        },
        Command::CompareHub => compare::hub_child().await,
        Command::CompareSpokes => compare::spokes_child().await,
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

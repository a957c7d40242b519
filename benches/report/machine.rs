//! What the figures were measured on.

use std::{fs, path::Path, process::Command};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::results::{field, processor};

const FILE: &str = "machine.json";
/// Whose versions matter.
const CRATES: [&str; 6] = [
    "iroh-hub",
    "iroh",
    "noq",
    "iroh-gossip",
    "tokio",
    "ed25519-dalek",
];

#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory: String,
    pub system: String,
    pub compiler: String,
    pub crates: Vec<String>,
}

/// As it was when results were taken over last.
pub fn read(results: &Path) -> anyhow::Result<Option<Machine>> {
    let path = results.join(FILE);
    if !path.exists() {
        return Ok(None);
    }
    let machine = serde_json::from_str(&fs::read_to_string(&path)?);
    machine.with_context(|| path.display().to_string())
}

/// Notes this machine.
pub fn write(root: &Path, results: &Path) -> anyhow::Result<()> {
    let machine = Machine {
        processor: processor().unwrap_or("unknown").to_owned(),
        cores: std::thread::available_parallelism()?.get(),
        memory: field("/proc/meminfo", "MemTotal")
            .map_or_else(|| "unknown".to_owned(), |kib| gib(&kib)),
        system: kernel(&said_by("uname", "-sr")),
        compiler: said_by("rustc", "--version"),
        crates: versions(&fs::read_to_string(root.join("Cargo.lock"))?),
    };
    let text = serde_json::to_string_pretty(&machine)?;
    Ok(fs::write(results.join(FILE), text + "\n")?)
}

/// Without what only its builder understands.
fn kernel(name: &str) -> String {
    let (name, _) = name.split_once('-').unwrap_or((name, ""));
    name.to_owned()
}

fn gib(kib: &str) -> String {
    let number: Option<f64> = kib
        .split_whitespace()
        .next()
        .and_then(|kib| kib.parse().ok());
    number.map_or_else(
        || kib.to_owned(),
        |kib| format!("{:.0} GiB", kib / 1024.0 / 1024.0),
    )
}

fn said_by(program: &str, arg: &str) -> String {
    let output = Command::new(program).arg(arg).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|_| "unknown".to_owned())
}

fn versions(lock: &str) -> Vec<String> {
    let version = |name: &str| {
        let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
        let (version, _) = rest.split_once('"')?;
        Some(format!("{name} {version}"))
    };
    CRATES.iter().filter_map(|name| version(name)).collect()
}

//! What a bench measured, as lines of JSON that the plots are made from: `target/bench-results/NAME.TIME.jsonl`.
//!
//! One line for each alternative in each case, and one for each ratio between two of them.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    process::Command,
    sync::OnceLock,
    time::SystemTime,
};

use serde::Serialize;

/// Median and spread of some measurements.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Spread {
    /// Half of the measurements are below.
    pub median: f64,
    /// A tenth of the measurements are below.
    pub p10: f64,
    /// A tenth of the measurements are above.
    pub p90: f64,
    /// How many measurements there are.
    pub n: usize,
}

impl Spread {
    /// Of these; all zero if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let at = |share: f64| {
            let rank = (share * n.saturating_sub(1) as f64).round() as usize;
            values.get(rank).copied().unwrap_or_default()
        };
        Self {
            median: at(0.5),
            p10: at(0.1),
            p90: at(0.9),
            n,
        }
    }

    /// Of the ratios of pairs.
    pub fn of_ratios(pairs: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self::of(pairs.into_iter().map(|(a, b)| a / b))
    }
}

/// What a row is about.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Row<'a> {
    /// What is measured, within a bench.
    pub case: &'a str,
    /// How many spokes.
    pub spokes: usize,
    /// Bytes of an event.
    pub size: Option<usize>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum What<'a> {
    Measured { alternative: &'a str, unit: &'a str },
    Ratio { ratio: &'a str },
}

#[derive(Serialize)]
struct Line<'a> {
    bench: &'a str,
    #[serde(flatten)]
    row: Row<'a>,
    #[serde(flatten)]
    what: What<'a>,
    #[serde(flatten)]
    spread: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processor: Option<&'static str>,
}

/// The last commit that changed what is measured, or what measures it; none outside of a clone.
pub fn commit() -> Option<&'static str> {
    static COMMIT: OnceLock<Option<String>> = OnceLock::new();
    let git = |args: &[&str]| {
        let said = Command::new("git")
            .args(args)
            .args(["--", "src", "benches/*.rs", "Cargo.toml", "Cargo.lock"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output();
        let said = String::from_utf8(said.ok()?.stdout).ok()?;
        Some(said.trim().to_owned()).filter(|said| !said.is_empty())
    };
    let of_code = || {
        let commit = git(&["log", "-1", "--format=%h", "--abbrev=8"])?;
        Some(match git(&["status", "--porcelain"]) {
            Some(_) => format!("{commit}, changed"),
            None => commit,
        })
    };
    COMMIT.get_or_init(of_code).as_deref()
}

/// What this machine computes with, where the system says so.
pub fn processor() -> Option<&'static str> {
    static PROCESSOR: OnceLock<Option<String>> = OnceLock::new();
    let of_machine = || field("/proc/cpuinfo", "model name");
    PROCESSOR.get_or_init(of_machine).as_deref()
}

/// What the system says under this name in a file of its own.
pub fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let (_, value) = line.split_once(':')?;
    Some(value.trim().to_owned())
}

/// The results of one bench. Prints each row, and writes it to a file unless it is a smoke run.
#[derive(Debug)]
pub struct Results {
    bench: String,
    smoke: bool,
    file: Option<File>,
}

impl Results {
    /// Of a run of this bench. A smoke run writes nothing.
    pub fn new(bench: impl Into<String>, smoke: bool) -> Self {
        Self {
            bench: bench.into(),
            smoke,
            file: None,
        }
    }

    /// What one alternative came to.
    pub fn measured(&mut self, row: Row<'_>, alternative: &str, unit: &str, spread: Spread) {
        self.print(row, &format!("{alternative}, {unit}"), spread);
        self.write(row, What::Measured { alternative, unit }, spread);
    }

    /// How many times the second of two is the first, as in `gossip/direct`.
    pub fn ratio(&mut self, row: Row<'_>, ratio: &str, spread: Spread) {
        self.print(row, ratio, spread);
        self.write(row, What::Ratio { ratio }, spread);
    }

    fn print(&self, row: Row<'_>, what: &str, spread: Spread) {
        let size = row.size.map(|size| format!(", {size} B"));
        let size = size.unwrap_or_default();
        let Spread {
            median,
            p10,
            p90,
            n,
        } = spread;
        println!(
            "{} {}, {} spokes{size}: {what}: {median:.4} (p10-p90 {p10:.4}-{p90:.4}, n {n})",
            self.bench, row.case, row.spokes
        );
    }

    fn write(&mut self, row: Row<'_>, what: What<'_>, spread: Spread) {
        // Of nothing there is nothing to say.
        if self.smoke || spread.n == 0 {
            return;
        }
        let line = Line {
            bench: &self.bench,
            row,
            what,
            spread,
            commit: commit(),
            processor: processor(),
        };
        let file = match &mut self.file {
            Some(file) => Ok(file),
            none => create(&self.bench).map(|file| none.insert(file)),
        };
        let written = file.and_then(|file| writeln!(file, "{}", serde_json::to_string(&line)?));
        if let Err(error) = written {
            eprintln!("{}: a result could not be written: {error}", self.bench);
        }
    }
}

fn create(bench: &str) -> io::Result<File> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench-results");
    fs::create_dir_all(&folder)?;
    // Several runs may have measured a part each.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_millis();
    File::create(folder.join(format!("{bench}.{now}.jsonl")))
}

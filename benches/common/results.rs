//! What a bench measured, as lines of JSON that the plots are made from: `target/bench-results/NAME.jsonl`.
//!
//! One line for each alternative in each case, and one for each ratio between two of them.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
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
}

/// The results of one bench. Prints each row, and writes it to a file unless it is a smoke run.
#[derive(Debug)]
pub struct Results {
    bench: &'static str,
    file: Option<File>,
}

impl Results {
    /// Replaces the results of an earlier run.
    ///
    /// # Errors
    ///
    /// If the file cannot be made.
    pub fn create(bench: &'static str, smoke: bool) -> std::io::Result<Self> {
        let file = match smoke {
            true => None,
            false => {
                let target = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench-results");
                fs::create_dir_all(&target)?;
                Some(File::create(target.join(format!("{bench}.jsonl")))?)
            }
        };
        Ok(Self { bench, file })
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
        let Some(file) = &mut self.file else { return };
        let line = Line {
            bench: self.bench,
            row,
            what,
            spread,
        };
        let written = serde_json::to_string(&line).map(|line| writeln!(file, "{line}"));
        if !matches!(written, Ok(Ok(()))) {
            eprintln!("{}: a result could not be written", self.bench);
        }
    }
}

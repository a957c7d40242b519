//! The results, as the benches wrote them.

use std::{fs, path::Path};

use anyhow::Context;
use serde::Deserialize;

/// One figure, or one ratio of two.
#[derive(Debug, Clone, Deserialize)]
pub struct Row {
    pub bench: String,
    pub case: String,
    pub alternative: Option<String>,
    pub unit: Option<String>,
    pub ratio: Option<String>,
    pub spokes: usize,
    pub size: Option<usize>,
    pub median: f64,
    pub p10: f64,
    pub p90: f64,
    pub n: usize,
    /// Of the code that it was measured with.
    pub commit: Option<String>,
    /// Of the machine that it was measured on.
    pub processor: Option<String>,
}

/// Whether a file has results.
pub fn is_results(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "jsonl")
}

/// All results in a folder; none if there is no such folder.
pub fn read(folder: &Path) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    if !folder.exists() {
        return Ok(rows);
    }
    let mut paths = Vec::new();
    for file in fs::read_dir(folder)? {
        paths.push(file?.path());
    }
    paths.sort();
    for path in paths.iter().filter(|path| is_results(path)) {
        let text = fs::read_to_string(path)?;
        for row in parse(&text) {
            let (_, row) = row.with_context(|| path.display().to_string())?;
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Each line, and what it says.
pub fn parse(text: &str) -> impl Iterator<Item = anyhow::Result<(&str, Row)>> {
    text.lines().map(|line| {
        let row = serde_json::from_str(line);
        Ok((line, row.with_context(|| line.to_owned())?))
    })
}

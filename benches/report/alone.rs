//! What the benches of the core measured, of what criterion left: each iteration's time, as a line of results.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::Deserialize;
use serde_json::json;

use super::{
    results::{Spread, commit, processor},
    rows::{self, Row},
};

/// The groups of `codec`, `seal`, `inbox` and `log`.
const GROUPS: [&str; 11] = [
    "envelope",
    "native",
    "compat",
    "seal",
    "refuse",
    "inbox",
    "memory",
    "sync",
    "commit",
    "broadcast",
    "open",
];

#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
    value_str: Option<String>,
    throughput: Option<Throughput>,
}

#[derive(Deserialize)]
enum Throughput {
    Elements(u64),
}

#[derive(Deserialize)]
struct Sample {
    iters: Vec<f64>,
    times: Vec<f64>,
}

/// All of it as lines, but for what is in `known`: criterion keeps its last run, which may have been taken over long ago, and is
/// of the code of then.
pub fn lines(root: &Path, known: &[Row]) -> anyhow::Result<String> {
    let mut lines = String::new();
    for group in GROUPS {
        for folder in runs(&root.join("target/criterion").join(group))? {
            let line = line(&folder).with_context(|| folder.display().to_string())?;
            let (_, row) = rows::parse(&line).next().context("a line")??;
            let figures = |row: &Row| (row.median, row.p10, row.p90, row.n);
            let of = |row: &Row| (row.case.clone(), row.size, figures(row));
            if !known.iter().any(|known| of(known) == of(&row)) {
                lines += &line;
            }
        }
    }
    Ok(lines)
}

/// Where the last runs of a group are: a level down, or two for those that have a parameter.
fn runs(group: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut runs = Vec::new();
    let mut todo = vec![group.to_owned()];
    while let Some(folder) = todo.pop() {
        if !folder.is_dir() {
            continue;
        }
        if folder.join("new/sample.json").exists() {
            runs.push(folder.join("new"));
            continue;
        }
        for inner in fs::read_dir(folder)? {
            todo.push(inner?.path());
        }
    }
    // Of one function, 9 before 10.
    runs.sort_by_key(|run| {
        let parts = run.iter().map(|part| part.to_string_lossy().into_owned());
        let parts = parts.map(|part| (part.parse::<u64>().unwrap_or_default(), part));
        parts.collect::<Vec<_>>()
    });
    Ok(runs)
}

fn line(run: &Path) -> anyhow::Result<String> {
    let benchmark = fs::read_to_string(run.join("benchmark.json"))?;
    let Benchmark {
        full_id,
        value_str,
        throughput,
    } = serde_json::from_str(&benchmark)?;
    let Sample { iters, times } =
        serde_json::from_str(&fs::read_to_string(run.join("sample.json"))?)?;
    let Throughput::Elements(events) = throughput.unwrap_or(Throughput::Elements(1));
    let each = times.iter().zip(&iters);
    let spread = Spread::of(each.map(|(time, rounds)| time / rounds / events as f64));
    let Spread {
        median,
        p10,
        p90,
        n,
    } = spread;
    // In these groups the parameter is the size of an event.
    let sized = ["envelope", "native", "compat", "seal", "refuse"];
    let size = value_str.and_then(|value| value.parse::<usize>().ok());
    let size = size.filter(|_| sized.iter().any(|group| full_id.starts_with(group)));
    let case = match size {
        Some(size) => full_id.trim_end_matches(&format!("/{size}")),
        None => &full_id,
    };
    let mut line = json!({
        "bench": "core", "case": case, "spokes": 0, "size": size,
        "alternative": "the core alone", "unit": "ns_per_event",
        "median": median, "p10": p10, "p90": p90, "n": n,
    });
    if let Some(commit) = commit() {
        line["commit"] = commit.into();
    }
    if let Some(processor) = processor() {
        line["processor"] = processor.into();
    }
    Ok(format!("{line}\n"))
}

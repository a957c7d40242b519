//! Makes `benches/README.md` and its plots of what the other benches measured. Measures nothing.
//!
//! `cargo bench --bench report` takes what is new in `target/bench-results` and `target/criterion` into `benches/results`, with
//! the machine that it was measured on beside it, and writes the page and the plots again from all that is there. So one
//! bench can be measured again by itself, or a part of it: what was not measured again stays. Without `--bench`, as in tests, it
//! makes the page of what is in `benches/results` and throws it away.

mod alone;
mod machine;
mod merge;
mod page;
mod plot;
// Of it, only the spread is of use here.
#[allow(dead_code)]
#[path = "../common/results.rs"]
mod results;
mod rows;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let results = root.join("benches/results");
    let writes = std::env::args().any(|arg| arg == "--bench");
    if writes {
        take_over(&root, &results)?;
    }
    let rows = rows::read(&results)?;
    let machine = machine::read(&results)?;
    let page = page::make(&rows, machine.as_ref())?;
    println!("{} results, {} plots", rows.len(), page.plots.len());
    if !writes {
        return check(&results);
    }
    let plots = root.join("benches/plots");
    if plots.exists() {
        fs::remove_dir_all(&plots)?;
    }
    fs::create_dir_all(&plots)?;
    for (name, svg) in &page.plots {
        fs::write(plots.join(name), svg)?;
    }
    fs::write(root.join("benches/README.md"), page.text).context("the page cannot be written")
}

fn check(results: &Path) -> anyhow::Result<()> {
    for file in fs::read_dir(results)? {
        let path = file?.path();
        if rows::is_results(&path) {
            merge::check(&path)?;
        }
    }
    Ok(())
}

/// Takes new results into the repository.
fn take_over(root: &Path, results: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(results)?;
    let known = rows::read(results)?;
    let mut any = merge::merge(&alone::lines(root, &known)?, &results.join("core.jsonl"))?;
    let new = root.join("target/bench-results");
    let mut paths = Vec::new();
    if new.exists() {
        for file in fs::read_dir(new)? {
            paths.push(file?.path());
        }
    }
    // By bench, and each by time.
    paths.sort();
    for path in paths.iter().filter(|path| rows::is_results(path)) {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some((bench, _)) = name.and_then(|name| name.split_once('.')) else {
            continue;
        };
        let into = results.join(format!("{bench}.jsonl"));
        any |= merge::merge(&fs::read_to_string(path)?, &into)?;
        fs::remove_file(path)?;
    }
    if any {
        machine::write(root, results)?;
    }
    Ok(())
}

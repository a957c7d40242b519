//! Makes `benches/README.md` and its plots of what the other benches measured. Measures nothing.
//!
//! `cargo bench --bench report` takes what is new in `target/bench-results` into `benches/results`, with the machine that it was
//! measured on beside it, and writes the page and the plots again from all that is there; so one bench can be
//! measured again by itself, or a part of it: what was not measured again stays. Without `--bench`, as in tests, it makes the page of what is in `benches/results` and throws it away.

mod core;
mod machine;
mod merge;
mod page;
mod plot;
// To read, not to write.
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
        return Ok(());
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

/// Takes new results into the repository.
fn take_over(root: &Path, results: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(results)?;
    let core = core::lines(root)?;
    let mut any = !core.is_empty();
    if any {
        merge::merge(&core, &results.join("core.jsonl"))?;
    }
    let new = root.join("target/bench-results");
    let files = match new.exists() {
        true => Some(fs::read_dir(new)?),
        false => None,
    };
    for file in files.into_iter().flatten() {
        let path = file?.path();
        let Some(name) = path.file_name().filter(|_| rows::is_results(&path)) else {
            continue;
        };
        merge::merge(&fs::read_to_string(&path)?, &results.join(name))?;
        fs::remove_file(&path)?;
        any = true;
    }
    if any {
        machine::write(root, results)?;
    }
    Ok(())
}

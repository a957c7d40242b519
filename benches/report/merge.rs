//! Takes new results into a file of earlier ones: what was measured again is replaced, and what was not stays.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::Context;

use super::rows::{self, Row};

/// What a line says, other than its figures.
type Key = (String, usize, Option<usize>, [Option<String>; 3]);

fn key(row: &Row) -> Key {
    let names = [&row.alternative, &row.unit, &row.ratio].map(Clone::clone);
    (row.case.clone(), row.spokes, row.size, names)
}

/// Puts the lines of `new` into the file `into`, by case, number of spokes and size.
pub fn merge(new: &str, into: &Path) -> anyhow::Result<()> {
    let old = match into.exists() {
        true => fs::read_to_string(into)?,
        false => String::new(),
    };
    fs::write(into, merged(&old, new)?).with_context(|| into.display().to_string())
}

fn merged(old: &str, new: &str) -> anyhow::Result<String> {
    let parse = |text| {
        rows::parse(text)
            .map(|row| row.map(|(line, row)| (line, key(&row))))
            .collect::<anyhow::Result<Vec<_>>>()
    };
    let (old, new) = (parse(old)?, parse(new)?);
    let again: BTreeSet<&Key> = new.iter().map(|(_, key)| key).collect();
    let kept = old.iter().filter(|(_, key)| !again.contains(key));
    let mut lines: Vec<&(&str, Key)> = kept.chain(&new).collect();
    let mut cases: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, (case, ..)) in old.iter().chain(&new) {
        let next = cases.len();
        cases.entry(case).or_insert(next);
    }
    // Lines of one cell stay in the order in which they were written.
    lines.sort_by(|(_, a), (_, b)| {
        let place = |(case, spokes, size, _): &Key| (cases.get(case.as_str()), *spokes, *size);
        let order: Ordering = place(a).cmp(&place(b));
        order
    });
    Ok(lines.iter().map(|(line, _)| format!("{line}\n")).collect())
}

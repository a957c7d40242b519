//! Takes new results into a file of earlier ones: what was measured again is replaced, and what was not stays.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;

use super::rows::{self, Row};

/// What a line says, other than its figures.
type Key = (String, usize, Option<usize>, [Option<String>; 3]);

fn key(row: &Row) -> Key {
    let names = [&row.alternative, &row.unit, &row.ratio].map(Clone::clone);
    (row.case.clone(), row.spokes, row.size, names)
}

/// Puts the lines of `new` into the file `into`, by case, number of spokes and size, and says whether that changed it. Lines of
/// what is not measured any more stay until someone deletes them there.
pub fn merge(new: &str, into: &Path) -> anyhow::Result<bool> {
    let old = match into.exists() {
        true => fs::read_to_string(into)?,
        false => String::new(),
    };
    let both = merged(&old, new).with_context(|| into.display().to_string())?;
    if both == old {
        return Ok(false);
    }
    fs::write(into, both)?;
    Ok(true)
}

/// That a file would have the same lines if all of it had just been measured again.
pub fn check(file: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(file)?;
    let again = merged("", &text)?;
    let lines = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let same = lines(&again) == lines(&text);
    anyhow::ensure!(same, "{}: taking it over would change it", file.display());
    Ok(())
}

fn merged(old: &str, new: &str) -> anyhow::Result<String> {
    // Several lines may say the same of turns with different others.
    let mut lines: Vec<(Key, [Vec<&str>; 2])> = Vec::new();
    let mut places: BTreeMap<Key, usize> = BTreeMap::new();
    let mut cases: BTreeMap<String, usize> = BTreeMap::new();
    for (age, text) in [old, new].into_iter().enumerate() {
        for row in rows::parse(text) {
            let (line, row) = row?;
            let key = key(&row);
            let next = cases.len();
            cases.entry(row.case).or_insert(next);
            let place = *places.entry(key.clone()).or_insert(lines.len());
            if place == lines.len() {
                lines.push((key, Default::default()));
            }
            lines[place].1[age].push(line);
        }
    }
    // Those of one cell stay in the order in which they were written first.
    lines.sort_by_key(|((case, spokes, size, _), _)| (cases.get(case), *spokes, *size));
    let lines = lines
        .iter()
        .flat_map(|(_, [old, new])| if new.is_empty() { old } else { new });
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

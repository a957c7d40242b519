//! The threat model promises nothing without a test.

use std::{collections::BTreeMap, path::Path};

const PAGE: &str = include_str!("../docs/threat-model.md");

#[test]
fn each_promise_names_a_test_that_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let mut named = 0;
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| "));
    for row in rows.filter(|row| !row.starts_with("promise ")) {
        let cells: Vec<_> = row.trim_end_matches('|').split(" | ").collect();
        let [_, tests] = cells[..] else {
            panic!("not two cells: {row}");
        };
        if tests.trim() == "iroh's own" {
            continue;
        }
        for test in tests.split(", ") {
            let test = test.trim().trim_matches('`');
            let (path, name) = test.split_once("::").expect(test);
            let file = files.entry(path).or_insert_with(|| {
                let file = std::fs::read_to_string(root.join(path));
                file.unwrap_or_else(|error| panic!("{path}: {error}"))
            });
            assert!(file.contains(&format!("fn {name}(")), "{test}");
            named += 1;
        }
    }
    assert!(named > 30, "{named}");
}

//! Reads OpenMetrics text, and takes nothing that is none.

use std::collections::{BTreeMap, BTreeSet};

/// What one scrape says.
pub struct Scrape {
    text: String,
    values: BTreeMap<String, f64>,
}

/// The lines of one metric, which belong together.
struct Family<'a> {
    name: &'a str,
    kind: Option<&'a str>,
}

impl Scrape {
    /// Panics on what is not OpenMetrics text of counters, gauges and histograms.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF");
        let mut values = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut family: Option<Family<'_>> = None;
        for line in body.lines() {
            if let Some(line) = line.strip_prefix("# ") {
                let mut words = line.splitn(3, ' ');
                let mut word = || words.next().expect(line);
                let (keyword, name, rest) = (word(), word(), word());
                assert!(is_name(name), "{line}");
                if family.as_ref().is_none_or(|family| family.name != name) {
                    assert!(seen.insert(name), "{name} is there twice");
                    family = Some(Family { name, kind: None });
                }
                match (keyword, &mut family) {
                    ("HELP", _) => assert!(!rest.is_empty(), "{name} is not explained"),
                    ("TYPE", Some(family)) => {
                        assert_eq!(family.kind.replace(rest), None, "{name} has two types");
                    }
                    _ => panic!("{line}"),
                }
                continue;
            }
            let (metric, value) = line.rsplit_once(' ').expect(line);
            let (name, labels) = match metric.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').expect(line)),
                None => (metric, ""),
            };
            assert!(labels.is_empty() || labels.ends_with('"'), "{line}");
            let family = family.as_ref().expect("a sample has a family");
            let suffix = name.strip_prefix(family.name).expect(line);
            match (family.kind, suffix) {
                (Some("counter"), "_total") => {}
                (Some("gauge"), "") => {}
                (Some("histogram"), "_bucket" | "_sum" | "_count") => {}
                (kind, _) => panic!("{kind:?}: {line}"),
            }
            let value = value.parse().expect(line);
            let before = values.insert(metric.to_owned(), value);
            assert_eq!(before, None, "{metric} has two values");
        }
        assert!(!values.is_empty());
        Self {
            text: text.to_owned(),
            values,
        }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value of a sample, by its whole name.
    #[track_caller]
    pub fn value(&self, metric: &str) -> f64 {
        match self.values.get(metric) {
            Some(value) => *value,
            None => panic!("there is no {metric} in {}", self.text),
        }
    }
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

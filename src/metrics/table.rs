//! Keeps docs/metrics.md true: it is made from what the registries encode and from the events named.

use std::{fmt::Write, sync::Arc};

use iroh_metrics::{MetricsGroup, MetricsGroupSet, MetricsSource, Registry};

use super::{GossipMetrics, HubMetrics, SpokeMetrics, events};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");

fn page() -> String {
    let mut page = String::from(
        "# All metrics\n\nThe program serves them with `--metrics ADDR`, and beside them those of its iroh endpoint, \
         whose names begin with `iroh_socket`, `iroh_net_report` and `iroh_address_lookup`. Counters begin at zero \
         with the process.\n",
    );
    // What a node on the topic counts is the same at a hub and at a spoke, and listed once.
    let mut node = Registry::default();
    node.register(Arc::new(GossipMetrics::default()));
    let sections = [
        ("A hub", of_its_own(&HubMetrics::default())),
        ("A spoke", of_its_own(&SpokeMetrics::default())),
        ("The node on the topic, of a hub or a spoke", node),
    ];
    for (title, registry) in sections {
        write!(
            page,
            "\n## {title}\n\n| metric | type | what it says |\n|---|---|---|\n"
        )
        .unwrap();
        page.push_str(&rows(&registry));
    }
    page.push_str(
        "\n# All events\n\nFor each important change of state there is a [tracing](https://docs.rs/tracing) event at \
         level debug with a target of its own and no text, so that it can be matched; with the program, for example \
         `RUST_LOG=iroh_hub::_events=debug`. Ids of endpoints and spokes are in their short forms.\n\n\
         | target | fields | what it says |\n|---|---|---|\n",
    );
    for (target, fields, words) in events::ALL {
        let fields: Vec<_> = fields.iter().map(|field| format!("`{field}`")).collect();
        writeln!(
            page,
            "| `{target}` | {} | {} |",
            fields.join(", "),
            words.trim()
        )
        .unwrap();
    }
    page
}

/// All groups but that of the node on the topic, which must be there.
fn of_its_own(groups: &impl MetricsGroupSet) -> Registry {
    let node = GossipMetrics::default().name();
    let mut registry = Registry::default();
    let mut nodes = 0;
    for group in groups.groups_cloned() {
        if group.name() == node {
            nodes += 1;
        } else {
            registry.register(group);
        }
    }
    assert_eq!(nodes, 1);
    registry
}

/// A row for each metric that is encoded, by the name that one asks for.
fn rows(registry: &Registry) -> String {
    let text = registry.encode_openmetrics_to_string().unwrap();
    let lines = |keyword: &'static str| {
        let of_keyword = move |line: &'_ str| {
            let (name, rest) = line.strip_prefix(keyword)?.split_once(' ')?;
            Some((name.to_owned(), rest.to_owned()))
        };
        text.lines().filter_map(of_keyword).collect::<Vec<_>>()
    };
    let (help, types) = (lines("# HELP "), lines("# TYPE "));
    assert_eq!(
        help.len(),
        types.len(),
        "each has an explanation and a type"
    );
    let mut rows = String::new();
    for ((name, words), (of, kind)) in help.into_iter().zip(types) {
        assert_eq!(name, of);
        let suffix = if kind == "counter" { "_total" } else { "" };
        writeln!(rows, "| `{name}{suffix}` | {kind} | {words} |").unwrap();
    }
    rows
}

#[test]
fn the_docs_list_every_metric_and_every_event() {
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PATH, &page).unwrap();
    }
    let written = std::fs::read_to_string(PATH).unwrap();
    assert!(
        page == written,
        "docs/metrics.md is out of date; run `UPDATE_DOCS=1 cargo test --lib metrics` and look at the change"
    );
}

#[test]
fn every_metric_is_explained_once_in_a_sentence() {
    let page = page();
    let mut names = std::collections::BTreeSet::new();
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    for row in rows {
        let columns: Vec<_> = row.split(" | ").collect();
        let [name, _, words] = columns.as_slice() else {
            panic!("{row}");
        };
        assert!(names.insert(name.to_owned()), "{name} is there twice");
        let words = words.trim_end_matches(" |");
        assert!(words.ends_with('.') && !words.contains('['), "{row}");
    }
    assert!(names.len() > 50);
}

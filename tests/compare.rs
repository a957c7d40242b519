//! `iroh-hub compare`, run as a user runs it.

use std::process::{Command, Output};

fn compare(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_iroh-hub"))
        .arg("compare")
        .args(args)
        .output()
        .expect("the program runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_cell_has_a_row_and_the_page_shows_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (json, html) = (dir.path().join("rows.json"), dir.path().join("report.html"));
    let output = compare(&[
        "--spokes",
        "2",
        "--size",
        "64B",
        "--events",
        "40",
        "--json",
        json.to_str().expect("UTF-8"),
        "--report",
        html.to_str().expect("UTF-8"),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));

    let rows = std::fs::read(json).expect("written");
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&rows).expect("an array");
    let cells: Vec<_> = rows
        .iter()
        .map(|row| (row["spokes"].as_u64(), row["strategy"].as_str()))
        .collect();
    let two = Some(2);
    assert_eq!(
        cells,
        [
            (two, Some("direct")),
            (two, Some("gossip")),
            (two, Some("auto"))
        ]
    );
    for row in &rows {
        assert_eq!(row["size"], 64);
        assert_eq!(
            row["expected"].as_u64(),
            row["spokes"].as_u64().map(|n| n * 40)
        );
        assert_eq!(row["delivered"], row["expected"], "{row}");
        for figure in [
            "deliveries_per_s",
            "last_p50_ms",
            "last_p99_ms",
            "hub_bytes_per_broadcast",
            "hub_cpu_us_per_broadcast",
            "total_cpu_us_per_broadcast",
        ] {
            assert!(row[figure].as_f64() > Some(0.0), "{figure} of {row}");
        }
    }

    let page = std::fs::read_to_string(html).expect("written");
    assert!(page.contains("--report") && page.contains("</html>"));
    let table = String::from_utf8_lossy(&output.stdout);
    for strategy in ["direct", "gossip", "auto"] {
        assert!(table.contains(strategy), "{table}");
    }
}

#[test]
fn the_lines_of_a_file_are_sent_as_they_are() {
    let dir = tempfile::tempdir().expect("a directory");
    let (text, json) = (dir.path().join("text"), dir.path().join("rows.json"));
    std::fs::write(&text, "one\n\n\"three\"\nfünf").expect("written");
    let output = compare(&[
        "--spokes",
        "2",
        "--strategies",
        "direct",
        "--input",
        text.to_str().expect("UTF-8"),
        "--json",
        json.to_str().expect("UTF-8"),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let rows = std::fs::read(json).expect("written");
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&rows).expect("an array");
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["delivered"], 8);
    assert_eq!(rows[0]["expected"], 8);
}

#[test]
fn what_cannot_be_measured_is_refused_in_a_line_that_says_why() {
    for (args, reason) in [
        (["--size", "10B"], "too small"),
        (["--size", "1GiB"], "too large"),
        (["--size", "big"], "1KiB"),
        (["--spokes", "0"], "at least one spoke"),
        (["--spokes", "10,x"], "no number of spokes"),
        (["--input", "/does/not/exist"], "cannot open"),
        (["--report", "/does/not/exist.html"], "cannot write"),
        (["--events", "0"], "--events"),
        (["--uplink", "0"], "at least one byte"),
        (["--uplink", "fast"], "12.5MB"),
    ] {
        let output = compare(&args);
        assert!(!output.status.success(), "{args:?}");
        assert!(
            stderr(&output).contains(reason),
            "{args:?}: {}",
            stderr(&output)
        );
    }
}

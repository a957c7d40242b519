//! The table that `compare` prints.

use comfy_table::{Cell as Field, CellAlignment, Table, presets::UTF8_BORDERS_ONLY};

use super::{row::Row, stats};

/// The columns, each with what a row shows in it.
type Column = (&'static str, fn(&Row) -> String);

/// What the table and the report's table show of a row.
pub(crate) const COLUMNS: [Column; 10] = [
    ("spokes", |row| row.spokes.to_string()),
    ("strategy", |row| row.strategy.name().to_owned()),
    ("size", |row| stats::bytes(row.size as f64)),
    ("delivered", delivered),
    ("deliveries/s", |row| stats::count(row.deliveries_per_s)),
    ("last p50", |row| millis(row.last_p50_ms)),
    ("last p99", |row| millis(row.last_p99_ms)),
    ("hub sends", |row| stats::bytes(row.hub_bytes_per_broadcast)),
    ("hub CPU", |row| stats::micros(row.hub_cpu_us_per_broadcast)),
    ("all CPU", |row| {
        stats::micros(row.total_cpu_us_per_broadcast)
    }),
];

/// What the columns mean, for below the table.
pub(crate) const CAPTION: &str = "\
delivered, deliveries/s: a burst, sent as fast as the mesh takes it.
last p50/p99: a lone event, from its send to its arrival at the last spoke; 50 ms apart, to many spokes 0.75 ms for each.
hub sends, hub CPU, all CPU: per lone event, idle traffic included; in a burst events share writes, and each costs less.";

/// The rows as a table for a terminal or a file.
pub(crate) fn render<'a>(rows: impl IntoIterator<Item = &'a Row>) -> String {
    let mut table = Table::new();
    table
        .load_style(UTF8_BORDERS_ONLY)
        .set_header(COLUMNS.iter().map(|(title, _)| Field::new(title)));
    for row in rows {
        table.add_row(COLUMNS.iter().map(|(_, show)| Field::new(show(row))));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        if index != 1 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

fn delivered(row: &Row) -> String {
    if row.delivered == row.expected {
        format!("all {}", row.expected)
    } else {
        format!("{} of {}", row.delivered, row.expected)
    }
}

fn millis(ms: Option<f64>) -> String {
    ms.map_or_else(|| "never".to_owned(), |ms| stats::micros(ms * 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::compare::row::{Strategy, tests::cell};

    #[test]
    fn the_table_shows_each_row_in_human_units() {
        let mut lossy = cell(100, Strategy::Gossip, 64).row;
        lossy.delivered -= 3;
        lossy.last_p99_ms = None;
        let text = render([&cell(10, Strategy::Direct, 1024).row, &lossy]);
        for part in [
            "direct",
            "1 KiB",
            "all 5000",
            "110k",
            "3.40 ms",
            "102.5 KiB",
            "3.10 ms",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        for part in ["gossip", "64 B", "49997 of 50000", "never"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}

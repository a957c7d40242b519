//! The page: for each bench what it asks, plots, figures and ratios.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use super::{
    machine::Machine,
    plot::{self, Across, Line, Point, short},
    rows::Row,
};

/// The page and its plots, by file name.
#[derive(Debug)]
pub struct Page {
    pub text: String,
    pub plots: BTreeMap<String, String>,
}

/// A bench, its title, and what it asks. In the order of the page; a bench that is not here comes last.
const ABOUT: [(&str, &str, &str); 12] = [
    (
        "fan_out_burst",
        "Burst: as fast as the mesh takes them",
        "Deliveries a second (events times spokes), all nodes in one process. Bare gossip loses and reorders; what it lost is not counted as delivered. Here and in the next two, auto is told that nothing limits the uplink; auto_untold is the default, which takes it for 100 Mbit/s.",
    ),
    (
        "fan_out_lone",
        "Lone event: how long until the last spoke has it",
        "One event over an idle mesh, all nodes in one process. Before ba41cc1 they were 20 ms apart, so that QUIC's acknowledgements of the event before (after 25 ms) came along with some; since then 60 ms.",
    ),
    (
        "fan_out_paced",
        "Paced: fifty events a second",
        "Each event's time until the last spoke has it, all nodes in one process. 256 KiB to 100 and to 300 spokes are left out: 1.3 and 3.9 GB a second are more than two cores carry by any way.",
    ),
    (
        "fan_out_sealing",
        "What sealing costs the topic",
        "The same frames through the same driver, sealed and not, in turns.",
    ),
    (
        "fan_out_packing",
        "How full a frame is best packed",
        "The same events over one mesh of the driver, packed into frames of so many bytes, in turns; the ratios are of times.",
    ),
    (
        "hub_cost",
        "What a hub pays",
        "The hub alone in its process, its spokes in another.",
    ),
    (
        "uplink",
        "A thin uplink",
        "The hub's uplink limited to 10 Mbit/s: one event over an idle mesh, until the last spoke has it.",
    ),
    (
        "uplink_kernel",
        "A thin uplink, made by the kernel",
        "The same with a token bucket of the kernel's on loopback, without a delay: `cargo bench --bench uplink -- --kernel`, as root.",
    ),
    (
        "layout",
        "Streams, connections and datagrams",
        "Several spokes of one process on one connection, or on one each; streams against datagrams.",
    ),
    (
        "connect",
        "All arrive at once",
        "Until all that connect at the same moment are welcomed.",
    ),
    (
        "simulate",
        "Beyond this machine",
        "`iroh-hub simulate`: the code that ships, in virtual time. Time and memory of the run are this machine's. What the hub sends does not grow with the spokes, since one that joins is told of a few random spokes that are on the tree, and only the first few of the hub: it has as many neighbours among 100,000 as among 100.",
    ),
    (
        "core",
        "The core alone",
        "Without a network, on one core: `codec` (`envelope`, `native`, `compat`), `seal` (and `refuse`), `inbox`, and `log` (`memory`, `sync`, `commit`, `broadcast`, `open`). A number behind `sync`, `commit` and `broadcast` is how many events share a sync, and behind `open` how many the log has.",
    ),
];

const HEAD: &str = "# What was measured

This page is made by `cargo bench --bench report` from the files in `results`, into which it takes what the benches have measured since:
`cargo bench` runs them all, in several hours (this one before the last three, so once more behind them), `cargo bench --bench NAME` one of them. What was not measured again stays, so each section says of
which code it is, and of which processor. What each proves, and how, is in the head of its source. Figures are medians, with the tenth and
the ninetieth percentile in brackets; ratios are those of rounds that took turns in one run, and say more than two figures that did not: the
machine's speed varies by the hour, and earlier runs were on others of two cores, and of a way that took turns with several others the figures are of the first run. In one row they may be of different machines: ratios never are. Loopback has no uplink to fill and no
loss: compare the ways with each other, and take no figure for a promise.
";

/// Makes the page.
pub fn make(rows: &[Row], machine: Option<&Machine>) -> anyhow::Result<Page> {
    let mut page = Page {
        text: HEAD.to_owned(),
        plots: BTreeMap::new(),
    };
    if let Some(machine) = machine {
        let Machine {
            processor,
            cores,
            memory,
            system,
            compiler,
            crates,
        } = machine;
        writeln!(
            page.text,
            "\nMachine of the last run: {cores} cores of {processor}, {memory}, {system}; {compiler}; {}.",
            crates.join(", ")
        )?;
    }
    let known = ABOUT.map(|(bench, _, _)| bench);
    let others: BTreeSet<&str> = rows.iter().map(|row| row.bench.as_str()).collect();
    let others = others.into_iter().filter(|bench| !known.contains(bench));
    let others = others.map(|bench| (bench, bench, ""));
    for (bench, title, about) in ABOUT.into_iter().chain(others) {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.bench == bench).collect();
        if rows.is_empty() {
            continue;
        }
        writeln!(page.text, "\n## {title}\n\n{about}\n\n{}", origin(&rows))?;
        plots(&mut page, bench, &rows)?;
        figures(&mut page.text, &rows)?;
        ratios(&mut page.text, &rows)?;
    }
    Ok(page)
}

/// Of which code these figures are, and of which machines.
fn origin(rows: &[&Row]) -> String {
    let code = shares(rows, "earlier code", |row| row.commit.as_deref());
    let machines = shares(rows, "not noted", |row| row.processor.as_deref());
    format!("Code: {code}. Processor: {machines}.")
}

/// Each value, with the number of rows that have it unless all do.
fn shares<'a>(
    rows: &[&'a Row],
    unknown: &'a str,
    value: impl Fn(&'a Row) -> Option<&'a str>,
) -> String {
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        *lines.entry(value(row).unwrap_or(unknown)).or_default() += 1;
    }
    let of = lines.iter().map(|(value, lines)| match lines {
        _ if *lines == rows.len() => (*value).to_owned(),
        _ => format!("{value} ({lines} of {} lines)", rows.len()),
    });
    of.collect::<Vec<_>>().join(", ")
}

/// What one plot, or one row of figures, is about.
type Subject<'a> = (&'a str, Option<usize>, &'a str);

fn size_of(size: Option<usize>) -> String {
    match size {
        None => String::new(),
        Some(size) if size >= 1024 && size.is_multiple_of(1024) => format!("{} KiB", size / 1024),
        Some(size) => format!("{size} B"),
    }
}

/// Those of one subject, one list for each alternative, in the order in which they were measured.
fn by_alternative<'a>(rows: &[&'a Row], subject: Subject<'_>) -> Vec<(&'a str, Vec<&'a Row>)> {
    let mut all: Vec<(&str, Vec<&Row>)> = Vec::new();
    for row in rows {
        let (Some(alternative), Some(unit)) = (row.alternative.as_deref(), row.unit.as_deref())
        else {
            continue;
        };
        if (row.case.as_str(), row.size, unit) != subject {
            continue;
        }
        match all.iter_mut().find(|(name, _)| *name == alternative) {
            // Measured again beside something else: the first stands.
            Some((_, of)) if of.iter().any(|known| known.spokes == row.spokes) => {}
            Some((_, of)) => of.push(row),
            None => all.push((alternative, vec![row])),
        }
    }
    all
}

fn subjects<'a>(rows: &[&'a Row]) -> Vec<Subject<'a>> {
    let mut subjects = Vec::new();
    for row in rows {
        if let Some(unit) = row.unit.as_deref() {
            let subject = (row.case.as_str(), row.size, unit);
            if !subjects.contains(&subject) {
                subjects.push(subject);
            }
        }
    }
    subjects
}

fn point(row: &Row, at: f64) -> Point {
    Point {
        at,
        median: row.median,
        p10: row.p10,
        p90: row.p90,
    }
}

/// Each subject against the number of spokes; what was measured with one number only, case by case.
fn plots(page: &mut Page, bench: &str, rows: &[&Row]) -> anyhow::Result<()> {
    let mut text = String::new();
    let mut draw = |(case, size, unit): Subject<'_>, across: Across<'_>, lines: &[Line]| {
        let title = [case.to_owned(), size_of(size)].join(" ");
        let title = title.trim();
        let Some(svg) = plot::draw((title, &unit.replace('_', " ")), across, lines)? else {
            return Ok(());
        };
        let name = [bench, case, &size_of(size), unit].join("-");
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        writeln!(text, "![{title}, {unit}](plots/{name}.svg)")?;
        page.plots.insert(format!("{name}.svg"), svg);
        anyhow::Ok(())
    };
    let subjects = subjects(rows);
    for subject in &subjects {
        let lines = by_alternative(rows, *subject).into_iter();
        let lines = lines.map(|(name, rows)| Line {
            name: name.to_owned(),
            points: rows
                .iter()
                .map(|row| point(row, row.spokes as f64))
                .collect(),
        });
        draw(*subject, Across::Spokes, &lines.collect::<Vec<_>>())?;
    }
    let numbers: BTreeSet<usize> = rows.iter().map(|row| row.spokes).collect();
    if numbers.len() == 1 && !numbers.contains(&0) {
        let alike: BTreeSet<_> = subjects
            .iter()
            .map(|(_, size, unit)| (size, unit))
            .collect();
        for (size, unit) in alike {
            let cases = subjects.iter().filter(|of| (&of.1, &of.2) == (size, unit));
            let cases: Vec<String> = cases.map(|(case, ..)| (*case).to_owned()).collect();
            let mut lines: Vec<Line> = Vec::new();
            for (at, case) in cases.iter().enumerate() {
                for (name, rows) in by_alternative(rows, (case, *size, unit)) {
                    let points = rows.iter().map(|row| point(row, at as f64));
                    match lines.iter_mut().find(|line| line.name == name) {
                        Some(line) => line.points.extend(points),
                        None => lines.push(Line {
                            name: name.to_owned(),
                            points: points.collect(),
                        }),
                    }
                }
            }
            draw(("", *size, unit), Across::Cases(&cases), &lines)?;
        }
    }
    if !text.is_empty() {
        write!(page.text, "\n{text}")?;
    }
    Ok(())
}

fn spread(row: &Row) -> String {
    let [median, p10, p90] = [row.median, row.p10, row.p90].map(short);
    match row.n {
        0 | 1 => median,
        _ => format!("{median} ({p10}-{p90})"),
    }
}

fn figures(text: &mut String, rows: &[&Row]) -> anyhow::Result<()> {
    let mut alternatives: Vec<&str> = Vec::new();
    for row in rows {
        if let Some(name) = row
            .alternative
            .as_deref()
            .filter(|n| !alternatives.contains(n))
        {
            alternatives.push(name);
        }
    }
    if alternatives.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "\n| | event | spokes | {} |",
        alternatives.join(" | ")
    )?;
    writeln!(text, "|---|---|---|{}", "---|".repeat(alternatives.len()))?;
    for subject in subjects(rows) {
        let of = by_alternative(rows, subject);
        let spokes: BTreeSet<usize> = of
            .iter()
            .flat_map(|(_, rows)| rows.iter().map(|row| row.spokes))
            .collect();
        let (case, size, unit) = subject;
        for spokes in spokes {
            let cell = |name: &&str| {
                let rows = of.iter().find(|(of, _)| of == name);
                let row = rows.and_then(|(_, rows)| rows.iter().find(|row| row.spokes == spokes));
                row.map_or_else(String::new, |row| spread(row))
            };
            let cells: Vec<String> = alternatives.iter().map(cell).collect();
            let unit = unit.replace('_', " ");
            let size = size_of(size);
            // The core has none.
            let spokes = Some(spokes).filter(|spokes| *spokes > 0);
            let spokes = spokes.map_or_else(String::new, |spokes| spokes.to_string());
            writeln!(
                text,
                "| {case}, {unit} | {size} | {spokes} | {} |",
                cells.join(" | ")
            )?;
        }
    }
    Ok(())
}

fn ratios(text: &mut String, rows: &[&Row]) -> anyhow::Result<()> {
    let rows: Vec<_> = rows
        .iter()
        .filter_map(|row| Some((row.ratio.as_deref()?, row)))
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "\n| ratio | | event | spokes | median (p10-p90) | pairs |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|")?;
    for (ratio, row) in rows {
        let (case, size, spokes, n) = (&row.case, size_of(row.size), row.spokes, row.n);
        writeln!(
            text,
            "| {ratio} | {case} | {size} | {spokes} | {} | {n} |",
            spread(row)
        )?;
    }
    Ok(())
}

//! `--report`: one HTML page with the plots, the figures, the machine, and the crossover in words.
//!
//! Nothing in it is fetched from anywhere. All text that is not ours goes through [`escape`].

use std::{collections::BTreeSet, fmt::Write};

use super::{
    crossover::{Metric, Verdict, sentence, verdict},
    machine::Machine,
    plot,
    row::{Cell, Strategy},
    stats,
    table::{CAPTION, COLUMNS},
};

/// What is plotted and compared.
pub(crate) const METRICS: [Metric; 6] = [
    Metric {
        title: "Deliveries per second",
        better: "delivers more a second in a burst",
        more_is_better: true,
        binary: false,
        noise: 0.25,
        value: |row| Some(row.deliveries_per_s),
        show: stats::count,
    },
    Metric {
        title: "Time to the last spoke, p50",
        better: "reaches the last spoke sooner (p50)",
        more_is_better: false,
        binary: false,
        noise: 0.25,
        value: |row| row.last_p50_ms.map(|ms| ms * 1e3),
        show: stats::micros,
    },
    Metric {
        title: "Time to the last spoke, p99",
        better: "reaches the last spoke sooner (p99)",
        more_is_better: false,
        binary: false,
        noise: 0.5,
        value: |row| row.last_p99_ms.map(|ms| ms * 1e3),
        show: stats::micros,
    },
    Metric {
        title: "Hub bytes per broadcast",
        better: "has the hub send less",
        more_is_better: false,
        binary: true,
        noise: 0.05,
        value: |row| Some(row.hub_bytes_per_broadcast),
        show: stats::bytes,
    },
    Metric {
        title: "Hub CPU per broadcast",
        better: "costs the hub less CPU",
        more_is_better: false,
        binary: false,
        noise: 0.2,
        value: |row| Some(row.hub_cpu_us_per_broadcast),
        show: stats::micros,
    },
    Metric {
        title: "CPU of all nodes per broadcast",
        better: "costs all nodes together less CPU",
        more_is_better: false,
        binary: false,
        noise: 0.2,
        value: |row| Some(row.total_cpu_us_per_broadcast),
        show: stats::micros,
    },
];

const STYLE: &str = include_str!("report.css");

/// The page.
pub(crate) fn page(cells: &[Cell], failed: &[String], machine: &Machine) -> anyhow::Result<String> {
    let sizes: BTreeSet<u64> = cells.iter().map(|cell| cell.row.size).collect();
    let strategies: BTreeSet<Strategy> = cells.iter().map(|cell| cell.row.strategy).collect();
    let mut out = String::new();
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>iroh-hub: direct, gossip and auto compared</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>Ways to fan out, compared</h1>\n\
         <p>A hub in one process broadcasts to spokes in another, over loopback. A burst gives the deliveries per second; \
         lone events, one at a time over an idle mesh, give the rest.</p>\n"
    )?;
    for warning in machine.warnings() {
        writeln!(out, "<p class=\"warning\">Note: {}.</p>", escape(&warning))?;
    }
    crossovers(&mut out, cells, &sizes)?;
    for &size in &sizes {
        plots(&mut out, cells, size, &strategies)?;
    }
    figures(&mut out, cells, failed)?;
    out.push_str("<h2>Measured on</h2>\n<dl>\n");
    for (name, value) in machine.facts() {
        writeln!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(&value))?;
    }
    out.push_str("</dl>\n</main>\n</body>\n</html>\n");
    Ok(out)
}

/// The sentences on direct against gossip, for the terminal and the page. None if they were not both measured.
pub(crate) fn words(cells: &[Cell], size: u64) -> Vec<String> {
    let (a, b) = (Strategy::Direct, Strategy::Gossip);
    let spokes: Vec<usize> = cells
        .iter()
        .filter(|cell| cell.row.size == size)
        .map(|cell| cell.row.spokes)
        .collect();
    METRICS
        .iter()
        .map(|metric| (metric, verdict(cells, size, metric, a, b)))
        .filter(|(_, verdict)| *verdict != Verdict::Unknown)
        .map(|(metric, verdict)| sentence(verdict, metric, a, b, &spokes))
        .collect()
}

fn crossovers(out: &mut String, cells: &[Cell], sizes: &BTreeSet<u64>) -> anyhow::Result<()> {
    if sizes.iter().all(|&size| words(cells, size).is_empty()) {
        out.push_str(
            "<p>Direct and gossip were not both measured, so no crossover can be given.</p>\n",
        );
        return Ok(());
    }
    out.push_str("<h2>Direct or gossip?</h2>\n");
    for &size in sizes {
        writeln!(
            out,
            "<h3>Events of {}</h3>\n<ul>",
            escape(&stats::bytes(size as f64))
        )?;
        for line in words(cells, size) {
            writeln!(out, "<li>{}</li>", escape(&line))?;
        }
        out.push_str("</ul>\n");
    }
    out.push_str(
        "<p class=\"note\">Crossovers are interpolated between the numbers of spokes that were measured. \
         All nodes share one machine and its loopback; over a slower uplink, what the hub sends counts for more.</p>\n",
    );
    Ok(())
}

fn plots(
    out: &mut String,
    cells: &[Cell],
    size: u64,
    strategies: &BTreeSet<Strategy>,
) -> anyhow::Result<()> {
    write!(
        out,
        "<h2>Events of {}</h2>\n<p class=\"legend\">",
        escape(&stats::bytes(size as f64))
    )?;
    for &strategy in strategies {
        let plotters::style::RGBColor(r, g, b) = plot::colour(strategy);
        let mark = match strategy {
            Strategy::Direct => "<circle cx=\"14\" cy=\"7\" r=\"4\"/>",
            Strategy::Gossip => "<path d=\"M14 2l5 9h-10z\"/>",
            Strategy::Auto => "<path d=\"M10 3l8 8m0-8l-8 8\"/>",
        };
        write!(
            out,
            "<span><svg width=\"28\" height=\"14\" viewBox=\"0 0 28 14\" stroke=\"rgb({r},{g},{b})\" \
             fill=\"rgb({r},{g},{b})\" stroke-width=\"2\" aria-hidden=\"true\"><path d=\"M0 7h28\"/>{mark}</svg>{}</span> ",
            strategy.name()
        )?;
    }
    out.push_str("</p>\n<div class=\"plots\">\n");
    for metric in &METRICS {
        let title = escape(metric.title);
        match plot::draw(cells, size, metric)? {
            Some(plot) => {
                let scale = if plot.logarithmic { ", log scale" } else { "" };
                let which = if metric.more_is_better {
                    "more is better"
                } else {
                    "less is better"
                };
                // Plots of one page must not share ids, and an image needs words.
                let svg = plot.svg.replacen(
                    "<svg ",
                    &format!("<svg role=\"img\" aria-label=\"{title}\" "),
                    1,
                );
                writeln!(
                    out,
                    "<figure><figcaption>{title} <small>{which}{scale}</small></figcaption>\n{svg}</figure>"
                )?;
            }
            None => writeln!(
                out,
                "<figure><figcaption>{title} <small>nothing was measured</small></figcaption></figure>"
            )?,
        }
    }
    out.push_str("</div>\n");
    Ok(())
}

fn figures(out: &mut String, cells: &[Cell], failed: &[String]) -> anyhow::Result<()> {
    out.push_str("<h2>Figures</h2>\n<div class=\"wide\"><table>\n<thead><tr>");
    for (title, _) in COLUMNS {
        write!(out, "<th>{}</th>", escape(title))?;
    }
    for title in [
        "hub sends in burst",
        "hub CPU in burst",
        "out of order",
        "repeated",
        "lone lost",
        "hub memory",
    ] {
        write!(out, "<th>{title}</th>")?;
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for cell in cells {
        out.push_str("<tr>");
        for (_, show) in COLUMNS {
            write!(out, "<td>{}</td>", escape(&show(&cell.row)))?;
        }
        let memory = cell
            .hub_peak_bytes
            .map_or_else(|| "unknown".into(), |b| stats::bytes(b as f64));
        for text in [
            stats::bytes(cell.hub_bytes_in_burst),
            stats::micros(cell.hub_cpu_us_in_burst),
            cell.out_of_order.to_string(),
            cell.repeated.to_string(),
            cell.lone_incomplete.to_string(),
            memory,
        ] {
            write!(out, "<td>{}</td>", escape(&text))?;
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n");
    writeln!(out, "<p class=\"note\">{}</p>", escape(CAPTION))?;
    if !failed.is_empty() {
        out.push_str("<h3>Not measured</h3>\n<ul>\n");
        for reason in failed {
            writeln!(out, "<li>{}</li>", escape(reason))?;
        }
        out.push_str("</ul>\n");
    }
    Ok(())
}

/// Text as HTML text or as the value of a quoted attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::compare::row::tests::cell;

    fn machine() -> Machine {
        Machine {
            cores: 2,
            cpu: Some("<b>CPU</b>".into()),
            os: "linux".into(),
            version: "0.1.0",
            optimized: true,
            load: Some(0.1),
            command: "iroh-hub compare --input '<script>alert(1)</script> & \"x\".txt'".into(),
        }
    }

    #[test]
    fn text_from_outside_is_escaped() {
        let cells = [cell(10, Strategy::Direct, 1024)];
        let page = page(&cells, &["<img src=x> failed".into()], &machine()).expect("a page");
        assert!(!page.contains("<script"));
        assert!(!page.contains("<b>CPU"));
        assert!(!page.contains("<img"));
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;x&quot;.txt"));
    }

    #[test]
    fn the_page_fetches_nothing() {
        let cells = [
            cell(10, Strategy::Direct, 64),
            cell(10, Strategy::Gossip, 64),
        ];
        let page = page(&cells, &[], &machine()).expect("a page");
        for reference in ["src=", "href=", "@import", "url(", "<script"] {
            assert!(!page.contains(reference), "{reference}");
        }
        let namespaces = page.replace("http://www.w3.org/2000/svg", "");
        assert!(
            !namespaces.contains("http"),
            "no address but the SVG namespace"
        );
    }

    #[test]
    fn every_metric_is_plotted_for_every_size() {
        let cells: Vec<_> = [10, 50, 100]
            .into_iter()
            .flat_map(|spokes| {
                [64, 1024].into_iter().flat_map(move |size| {
                    [Strategy::Direct, Strategy::Gossip]
                        .map(|strategy| cell(spokes, strategy, size))
                })
            })
            .collect();
        let page = page(&cells, &[], &machine()).expect("a page");
        assert_eq!(page.matches("<figure>").count(), 2 * METRICS.len());
        assert_eq!(page.matches("aria-label").count(), 2 * METRICS.len());
        assert!(page.contains("Events of 64 B") && page.contains("Events of 1 KiB"));
    }

    #[test]
    fn a_comparison_in_which_nothing_arrived_still_makes_a_page() {
        let mut none = cell(10, Strategy::Gossip, 64);
        none.row.delivered = 0;
        none.row.deliveries_per_s = 0.0;
        none.row.last_p50_ms = None;
        none.row.last_p99_ms = None;
        let text = page(&[none], &[], &machine()).expect("a page");
        assert!(text.contains("nothing was measured"));
        assert!(
            page(&[], &["all failed".into()], &machine())
                .expect("a page")
                .contains("all failed")
        );
    }
}

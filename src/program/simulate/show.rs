//! A report for people.

use std::fmt::Write as _;

use bytesize::ByteSize;
use iroh_hub::sim::{Report, ResumeReport, Traffic};

/// A line for each figure, or for a few that belong together.
pub(super) fn table(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |name: &str, words: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name:<22} {words}");
    };
    let verdict = &report.verdict;
    line(
        "contract",
        if report.is_kept() {
            "kept".to_owned()
        } else {
            "BROKEN".to_owned()
        },
    );
    line(
        "deliveries",
        format!(
            "{} of {} events to {} spokes",
            verdict.deliveries, report.events, report.spokes
        ),
    );
    line(
        "lost",
        format!(
            "{}   repeated {}   out of order {}   altered {}   false recoveries {}",
            verdict.lost,
            verdict.repeated,
            verdict.disordered,
            verdict.altered,
            verdict.false_recoveries
        ),
    );
    line(
        "missed",
        format!(
            "{} told, {} of them still in the log",
            verdict.missed, verdict.missed_in_window
        ),
    );
    line(
        "frames",
        format!(
            "{}   sent again {}   beacons {}",
            report.frames, report.frames_again, report.beacons
        ),
    );
    line(
        "hub copies a frame",
        format!(
            "{:.2} on average, {} at most",
            report.hub_copies, report.hub_copies_max
        ),
    );
    line(
        "direct copies an event",
        format!(
            "{:.2}   fallback copies an event {:.2}",
            report.direct_copies, report.fallback_copies
        ),
    );
    line(
        "hub bytes an event",
        format!(
            "{:.0}, with repairs {:.0}",
            report.hub_bytes_per_event, report.hub_bytes_per_event_in_all
        ),
    );
    line("hub sends for repair", report.hub_repair_sends.to_string());
    for (name, traffic) in [
        ("hub: topic", report.hub_topic),
        ("hub: beacons", report.hub_beacons),
        ("hub: topic again", report.hub_again),
        ("hub: topic upkeep", report.hub_control),
        ("hub: links", report.hub_direct),
        ("hub: links, fallback", report.hub_fallback),
        ("hub: links, repairs", report.hub_repairs),
        ("spokes: topic", report.spokes_topic),
        ("spokes: topic upkeep", report.spokes_control),
        ("spokes: links", report.to_hub),
    ] {
        line(name, sent(traffic));
    }
    line(
        "gossip messages",
        format!(
            "{}   lost {}   dropped {}",
            report.gossip_messages, report.gossip_messages_lost, report.gossip_messages_dropped
        ),
    );
    line(
        "duplicates",
        format!(
            "{} frames at nodes, {} events or parts at inboxes",
            report.frames_repeated, report.duplicates
        ),
    );
    line("wants", report.wants.to_string());
    line(
        "links",
        format!(
            "{}   lost {}   misbehaved {}",
            report.links, report.links_lost, report.misbehaved
        ),
    );
    line(
        "topics",
        format!(
            "{}   given up {}   joined again {}   spokes served around {}",
            report.topics, report.topics_failed, report.topics_rejoined, report.served_around
        ),
    );
    if let Some(share) = report.rekeyed_within_1s {
        line(
            "revoked",
            format!(
                "{}   could open {} frames dispatched afterwards, {} messages reached them   {:.1}% of the others had \
                 the new keys within 1 s",
                report.revoked,
                report.read_after_revoked,
                report.messages_to_revoked,
                100.0 * share
            ),
        );
    }
    let hops = report.last_hop;
    line(
        "last hop",
        format!(
            "p50 {:.0}   p99 {:.0}   max {:.0}",
            hops.p50, hops.p99, hops.max
        ),
    );
    let times = report.last_spoke_ms;
    line(
        "last spoke, ms",
        format!(
            "p50 {:.1}   p99 {:.1}   max {:.1}",
            times.p50, times.p99, times.max
        ),
    );
    line(
        "virtual time",
        format!(
            "{:.1} s to form the mesh, {:.1} s from the first event",
            report.warm_up_s, report.ran_s
        ),
    );
    line("steps", report.steps.to_string());
    line("seed", report.seed.to_string());
    out.trim_end().to_owned()
}

/// The same of resume cases.
pub(super) fn cases(report: &ResumeReport) -> String {
    let mut out = String::new();
    let mut line = |name: &str, words: String| {
        let _ = writeln!(out, "{name:<22} {words}");
    };
    let counts = &report.counts;
    line(
        "contract",
        if report.is_kept() {
            "kept".to_owned()
        } else {
            "BROKEN".to_owned()
        },
    );
    line(
        "cases",
        format!("{}, seeds from {} on", report.cases, report.seed),
    );
    line(
        "claims of recovery",
        format!(
            "{} wholly, {} with holes, {} false",
            counts.recovered_wholly, counts.recovered_with_holes, counts.false_claims
        ),
    );
    line(
        "losses",
        format!(
            "{} real, {} reported, {} not; {} reported that were none",
            counts.losses + counts.losses_unreported,
            counts.losses_reported,
            counts.losses_unreported,
            counts.false_losses
        ),
    );
    line(
        "broadcasts",
        format!("{}, delivered {}", counts.broadcasts, counts.deliveries),
    );
    line(
        "to the spoke alone",
        format!(
            "{}, seen {}; receipts: delivered {}, not {}, perhaps {}",
            counts.targeted,
            counts.targeted_seen,
            counts.targeted_delivered,
            counts.targeted_not_delivered,
            counts.targeted_unknown
        ),
    );
    line(
        "to the hub",
        format!("{}, seen {}", counts.published, counts.published_seen),
    );
    line("false receipts", counts.false_receipts.to_string());
    line(
        "links",
        format!(
            "{}, of a session before {}, fenced off {}, sessions given up {}",
            counts.links, counts.resumed, counts.fenced, counts.expired
        ),
    );
    line(
        "hub",
        format!(
            "{} new lives, {} with an older log, {} events lost before they could be read, {} epochs, {} trims",
            counts.hub_restarts, counts.restored, counts.unsynced, counts.epochs, counts.trims
        ),
    );
    line(
        "spoke",
        format!(
            "{} new lives, {} with a made-up position",
            counts.spoke_restarts, counts.false_positions
        ),
    );
    for (seed, words) in &report.broken {
        line(&format!("seed {seed}"), words.clone());
    }
    out.trim_end().to_owned()
}

fn sent(traffic: Traffic) -> String {
    format!("{} sends, {}", traffic.sends, ByteSize::b(traffic.bytes))
}

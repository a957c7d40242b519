//! The simulator: small runs with every kind of fault, and cores that are broken on purpose.
//!
//! The large runs are ignored: they take minutes each, and at most 10 minutes and 6 GB. One command runs them, and with them
//! the long tests over real links:
//!
//! ```sh
//! cargo test --release --test chaos --test simulate -- --ignored --nocapture --test-threads 1
//! ```

use std::time::Duration;

use iroh_hub::{
    AutoFanOut, FanOut,
    sim::{self, Breakage, Churn, Links, Options, Partition, Report, Restart, Revocation, Stall},
};

const S: Duration = Duration::from_secs(1);

/// Twenty spokes on the topic, 100 events in two seconds.
fn options() -> Options {
    Options {
        seed: 7,
        spokes: 20,
        fan_out: FanOut::Gossip,
        events: 100,
        rate: 50.0,
        ..Options::default()
    }
}

fn lossy(loss: f64) -> Links {
    Links {
        loss,
        ..Links::default()
    }
}

fn run(options: Options) -> Report {
    sim::run(options, |_| {})
}

/// Runs with two seeds; every one keeps the contract.
fn kept(options: &Options) -> Vec<Report> {
    let seeds = options.seed..options.seed + 2;
    let with = |seed| Options {
        seed,
        ..options.clone()
    };
    let reports: Vec<Report> = seeds.map(|seed| run(with(seed))).collect();
    for report in &reports {
        assert!(report.is_kept(), "{report:#?}");
    }
    reports
}

/// Every event reached every spoke.
fn all_arrive(options: &Options) -> Vec<Report> {
    let reports = kept(options);
    for report in &reports {
        let all = u64::from(options.spokes) * options.events;
        assert_eq!(report.verdict.deliveries, all, "{report:#?}");
        assert_eq!(report.verdict.missed, 0);
    }
    reports
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let options = Options {
        links: lossy(0.1),
        churn: Churn {
            per_s: 0.1,
            crash: 0.5,
        },
        ..options()
    };
    let json = |seed| {
        let options = Options {
            seed,
            ..options.clone()
        };
        serde_json::to_string(&run(options)).unwrap()
    };
    assert_eq!(json(7), json(7));
    assert_ne!(json(7), json(8));
}

#[test]
fn every_event_reaches_every_spoke_along_the_topic() {
    for report in all_arrive(&options()) {
        assert_eq!(report.frames, 100);
        // One to each neighbour, and what little is asked for.
        assert!(report.hub_copies <= 4.2, "{report:#?}");
        assert!(report.last_hop.max >= 2.0);
        assert_eq!((report.hub_repair_sends, report.served_around), (0, 0));
    }
}

#[test]
fn every_event_reaches_every_spoke_directly_and_with_both_kinds_of_spokes() {
    let direct = Options {
        fan_out: FanOut::Direct,
        links: lossy(0.2),
        ..options()
    };
    for report in all_arrive(&direct) {
        assert_eq!((report.frames, report.topics), (0, 0));
    }
    all_arrive(&Options {
        direct_spokes: 5,
        ..options()
    });
}

#[test]
fn a_topic_that_dies_is_given_up_and_another_one_serves() {
    for report in all_arrive(&Options {
        breakage: Breakage::DeadTopic,
        events: 600,
        ..options()
    }) {
        assert_eq!((report.topics_failed, report.topics), (1, 2), "{report:#?}");
        // The time to notice it is at most two seconds, beside the one to fall behind.
        assert!(report.last_spoke_ms.max < 2500.0, "{report:#?}");
        assert!(report.frames > 100, "the second one is used: {report:#?}");
    }
}

#[test]
fn what_the_network_loses_is_repaired() {
    for report in all_arrive(&Options {
        links: Links {
            loss: 0.2,
            duplicate: 0.1,
            reorder: 0.1,
            ..Links::default()
        },
        ..options()
    }) {
        assert!(
            report.wants > 0 && report.hub_repair_sends > 0,
            "{report:#?}"
        );
        assert!(report.gossip_messages_lost > 0);
    }
}

#[test]
fn spokes_that_come_and_go_see_all_that_is_broadcast_while_they_are_there() {
    for report in kept(&Options {
        churn: Churn {
            per_s: 0.1,
            crash: 0.5,
        },
        ..options()
    }) {
        assert!(report.spokes > 22, "{report:#?}");
        assert_eq!(report.verdict.missed, 0);
    }
}

#[test]
fn a_spoke_that_is_gone_before_its_hello_comes_has_lost_nothing() {
    for report in kept(&Options {
        spokes: 50,
        events: 40,
        rate: 10.0,
        churn: Churn {
            per_s: 0.4,
            crash: 0.5,
        },
        ..options()
    }) {
        assert!(report.spokes > 100, "{report:#?}");
    }
}

#[test]
fn who_was_cut_off_catches_up() {
    for (lasts, lost) in [(2 * S, false), (40 * S, true)] {
        for report in all_arrive(&Options {
            partitions: vec![Partition {
                at: S / 2,
                lasts,
                share: 0.4,
            }],
            ..options()
        }) {
            assert_eq!(report.links_lost > 0, lost, "{report:#?}");
        }
    }
}

/// The log keeps a fraction of what is broadcast in ten seconds, and so does the stream to a spoke.
fn overrun(options: Options) -> Options {
    Options {
        fan_out: FanOut::Direct,
        events: 200,
        rate: 20.0,
        size: 16_000,
        log_events: 20,
        ..options
    }
}

#[test]
fn who_is_revoked_reads_nothing_more_and_the_others_miss_nothing() {
    for loss in [0.0, 0.05] {
        // One by one, several at once, and again before the first is over.
        let at = |at, spokes| Revocation { at, spokes };
        for report in kept(&Options {
            spokes: 40,
            links: lossy(loss),
            revocations: vec![at(S / 2, 1), at(S * 55 / 100, 1), at(S, 4)],
            ..options()
        }) {
            assert_eq!((report.revoked, report.read_after_revoked), (6, 0));
            assert!(report.messages_to_revoked > 0, "they were still connected");
            assert_eq!(report.verdict.missed, 0, "{report:#?}");
            assert_eq!(report.topics_failed, 0, "{report:#?}");
            assert!(
                report.rekeyed_within_1s.is_some_and(|share| share >= 0.97),
                "{report:#?}"
            );
        }
    }
}

#[test]
fn who_was_stopped_catches_up_or_is_told_what_it_missed() {
    let stopped = Options {
        stalls: vec![Stall {
            at: S / 2,
            lasts: 10 * S,
            spokes: 3,
        }],
        ..options()
    };
    all_arrive(&stopped);
    for report in kept(&overrun(stopped)) {
        assert!(report.verdict.missed > 0, "{report:#?}");
    }
}

#[test]
fn a_hub_that_comes_back_goes_on_where_it_was_or_says_that_it_cannot() {
    let restart = |durable| Options {
        events: 200,
        restarts: vec![Restart {
            at: 2 * S,
            lasts: S,
            durable,
        }],
        ..options()
    };
    all_arrive(&restart(true));
    for report in kept(&restart(false)) {
        assert!(report.links >= 40, "{report:#?}");
    }
}

#[test]
fn a_frame_that_never_left_the_hub_is_repaired() {
    for report in all_arrive(&Options {
        lose_root_frame: Some(50),
        ..options()
    }) {
        assert!(report.hub_repair_sends > 0, "{report:#?}");
    }
}

#[test]
fn a_frame_that_never_left_the_hub_goes_on_the_topic_again_and_costs_no_link() {
    // While more are on their way, and while there is nothing behind it but beacons.
    for (spokes, events, rate, lost) in [
        (20, 200, 100.0, 100),
        (150, 200, 100.0, 100),
        (150, 3, 0.4, 2),
    ] {
        let report = run(Options {
            spokes,
            events,
            rate,
            lose_root_frame: Some(lost),
            ..options()
        });
        assert!(report.is_kept(), "{report:#?}");
        assert_eq!(report.verdict.deliveries, u64::from(spokes) * events);
        assert_eq!(
            (report.topics_failed, report.served_around),
            (0, 0),
            "{report:#?}"
        );
        assert!(report.frames_again >= 1, "{report:#?}");
        assert!(report.hub_repair_sends <= 12, "{report:#?}");
    }
}

#[test]
fn auto_begins_a_topic_where_the_hub_would() {
    // Over a thin uplink, or on a short way; not where the hops take longer than what the uplink is spared.
    for (bandwidth, delay_ms, topics) in [
        (Some(1_250_000), 20, 1),
        (None, 0, 1),
        (None, 20, 0),
        (Some(1_250_000_000), 0, 0),
    ] {
        for report in all_arrive(&Options {
            fan_out: FanOut::Auto(AutoFanOut::default()),
            spokes: 50,
            events: 20,
            rate: 1.0,
            size: 16_000,
            links: Links {
                delay: Duration::from_millis(delay_ms),
                bandwidth,
                ..Links::default()
            },
            ..options()
        }) {
            assert_eq!(report.topics, topics, "{report:#?}");
        }
    }
}

#[test]
fn little_bandwidth_delays_events_and_loses_none() {
    all_arrive(&Options {
        size: 4000,
        links: Links {
            bandwidth: Some(1_000_000),
            ..Links::default()
        },
        ..options()
    });
}

/// A run in which a lot has to be repaired, with a core that is broken in some way.
fn broken(breakage: Breakage) -> Report {
    let report = run(Options {
        breakage,
        links: lossy(0.2),
        events: 200,
        settle: 20 * S,
        ..options()
    });
    assert!(!report.is_kept(), "{report:#?}");
    report
}

#[test]
fn a_core_that_wants_nothing_is_found_out() {
    let verdict = broken(Breakage::NoWants).verdict;
    assert!(verdict.lost > 0 && verdict.repeated == 0, "{verdict:?}");
}

#[test]
fn a_core_that_repeats_swaps_or_alters_events_is_found_out() {
    assert!(broken(Breakage::Repeats).verdict.repeated >= 20);
    assert!(broken(Breakage::Disorders).verdict.disordered >= 20);
    assert!(broken(Breakage::Alters).verdict.altered >= 20);
}

#[test]
fn a_core_that_hides_what_is_missed_is_found_out() {
    let report = run(overrun(Options {
        breakage: Breakage::HidesMissed,
        stalls: vec![Stall {
            at: S / 2,
            lasts: 10 * S,
            spokes: 3,
        }],
        settle: 20 * S,
        ..options()
    }));
    assert!(report.verdict.lost > 0 && !report.is_kept(), "{report:#?}");
}

#[test]
fn links_logs_hubs_and_spokes_may_go_at_any_moment_and_every_claim_is_true() {
    let report = sim::resume_cases(400, 1, Breakage::None, |_| {});
    assert!(report.is_kept(), "{report:#?}");
    let counts = &report.counts;
    assert!(counts.recovered_wholly > 50 && counts.recovered_with_holes > 50);
    assert!(counts.losses > 50 && counts.losses_reported == counts.losses);
    assert!(counts.resumed > 50 && counts.fenced > 10 && counts.expired > 5);
    assert!(counts.targeted_delivered > 100 && counts.published_seen > 100);
    let again = sim::resume_cases(400, 1, Breakage::None, |_| {});
    assert_eq!(report, again);
}

#[cfg(feature = "cli")]
fn simulate(args: &[&str]) -> std::process::Output {
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_iroh-hub"));
    program.arg("simulate").args(args).output().unwrap()
}

#[cfg(feature = "cli")]
#[test]
fn the_program_prints_the_same_twice_byte_for_byte() {
    for form in [&[][..], &["--json"]] {
        let faults = "--spokes 30 --fan-out gossip --events 60 --rate 20 --loss 10% --churn 5% \
            --partition 0.5:1:20% --stall 1:1:3";
        let args: Vec<&str> = faults
            .split_whitespace()
            .chain(form.iter().copied())
            .collect();
        let (one, two) = (simulate(&args), simulate(&args));
        assert_eq!(one.status.code(), Some(0));
        assert!(one.stdout.len() > 500 && one.stdout == two.stdout);
    }
}

#[cfg(feature = "cli")]
#[test]
fn the_program_refuses_partitions_that_overlap() {
    let overlap = simulate(&["--partition", "5:3:10%", "--partition", "7:1:10%"]);
    assert_eq!(overlap.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&overlap.stderr).contains("overlap"));
}

#[cfg(feature = "cli")]
#[test]
fn the_program_simulates_a_topic_and_says_when_a_fault_of_it_does_nothing() {
    let few = ["--spokes", "5", "--events", "5", "--lose-root-frame", "2"];
    let said = |fan_out: &[&str]| {
        let output = simulate(&[&few[..], fan_out].concat());
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code();
        (code, text(&output.stdout), text(&output.stderr))
    };
    let (code, stdout, stderr) = said(&[]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("frames                 5"), "{stdout}");
    assert!(!stderr.contains("note"), "{stderr}");
    let (code, _, stderr) = said(&["--fan-out", "auto"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("--lose-root-frame did nothing"), "{stderr}");
    let (code, _, stderr) = said(&["--fan-out", "direct"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("--lose-root-frame"), "{stderr}");
}

#[test]
fn one_partition_may_follow_another_at_once() {
    let second = |at| Partition {
        at,
        lasts: 2 * S,
        share: 0.4,
    };
    let lost = |at| {
        let both = Options {
            partitions: vec![
                Partition {
                    at: S / 2,
                    lasts: S / 2,
                    share: 0.05,
                },
                second(at),
            ],
            ..options()
        };
        all_arrive(&both)[0].gossip_messages_lost
    };
    // The end of the first one does not end the second.
    assert!(lost(S) * 2 > lost(S + S / 100));
}

#[test]
fn what_a_hub_that_never_comes_back_had_is_not_forgotten() {
    let report = run(Options {
        direct_spokes: 20,
        links: Links {
            delay: S,
            ..Links::default()
        },
        restarts: vec![Restart {
            at: 2 * S,
            lasts: 1000 * S,
            durable: true,
        }],
        settle: S / 10,
        ..options()
    });
    assert!(report.verdict.lost > 0, "{report:#?}");
}

#[test]
fn false_claims_are_found_out() {
    for breakage in [
        Breakage::SaysContinues,
        Breakage::HidesMissed,
        Breakage::ForgetsHeard,
        Breakage::AcksAhead,
    ] {
        let report = sim::resume_cases(200, 1, breakage, |_| {});
        assert!(!report.is_kept(), "{breakage:?}");
    }
}

/// What a run must not exceed.
const MOST_SECONDS: u64 = 600;
const MOST_KIB: u64 = 6 << 20;

/// Runs a large simulation, and says what came of it.
fn long(what: &str, options: Options) -> Report {
    let begin = std::time::Instant::now();
    let report = run(options);
    let took = begin.elapsed();
    println!(
        "\n{what}: {took:.0?}, at most {} MiB so far",
        peak_kib() / 1024
    );
    println!("{report:#?}");
    assert!(report.is_kept());
    assert!(took.as_secs() <= MOST_SECONDS && peak_kib() <= MOST_KIB);
    report
}

/// The most memory that this process has had, where the system says so.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).unwrap_or_default()
}

#[test]
#[ignore = "takes minutes; see the module"]
fn ten_million_deliveries_over_links_that_lose_much() {
    for loss in [0.05, 0.2] {
        let report = long(
            &format!("1,000 spokes, 10,000 events, {loss} lost"),
            Options {
                seed: 1,
                spokes: 1000,
                events: 10_000,
                burst: 2,
                rate: 200.0,
                links: lossy(loss),
                ..options()
            },
        );
        assert_eq!(report.verdict.deliveries, 10_000_000);
        assert_eq!(report.verdict.missed, 0);
        assert!(report.frames >= 5000);
    }
}

#[test]
#[ignore = "takes minutes; see the module"]
fn a_thousand_spokes_have_new_keys_within_a_second_of_a_revocation() {
    for loss in [0.0, 0.05] {
        let report = long(
            &format!("1,000 spokes, of which some are revoked, {loss} lost"),
            Options {
                seed: 1,
                spokes: 1000,
                events: 500,
                rate: 100.0,
                links: lossy(loss),
                revocations: vec![
                    Revocation { at: S, spokes: 1 },
                    Revocation {
                        at: 3 * S,
                        spokes: 100,
                    },
                ],
                ..options()
            },
        );
        assert_eq!((report.revoked, report.read_after_revoked), (101, 0));
        assert!(report.rekeyed_within_1s.is_some_and(|share| share >= 0.99));
        assert_eq!(report.verdict.missed, 0);
    }
}

#[test]
#[ignore = "takes minutes; see the module"]
fn ten_thousand_spokes_of_which_one_in_a_hundred_is_replaced_every_second() {
    let report = long(
        "10,000 spokes, 1% replaced a second",
        Options {
            seed: 1,
            spokes: 10_000,
            events: 600,
            rate: 10.0,
            churn: Churn {
                per_s: 0.01,
                crash: 0.5,
            },
            ..options()
        },
    );
    assert_eq!(report.verdict.missed, 0);
    assert!(report.hub_copies <= 4.2);
}

#[test]
#[ignore = "takes minutes; see the module"]
fn a_frame_that_never_left_the_hub_of_ten_thousand_spokes_is_sent_again_once() {
    let report = long(
        "10,000 spokes, one frame lost at the root",
        Options {
            seed: 1,
            spokes: 10_000,
            events: 50,
            rate: 10.0,
            lose_root_frame: Some(20),
            ..options()
        },
    );
    assert_eq!(report.verdict.deliveries, 500_000);
    assert!(
        report.hub_repair_sends <= 200,
        "{}",
        report.hub_repair_sends
    );
    assert_eq!((report.served_around, report.topics_failed), (0, 0));
}

#[test]
#[ignore = "takes minutes; see the module"]
fn a_hundred_thousand_lives_make_no_false_claim() {
    let report = sim::resume_cases(100_000, 1, Breakage::None, |_| {});
    println!("\n{report:#?}");
    assert!(report.is_kept());
    let counts = report.counts;
    assert_eq!(counts.losses_unreported + counts.false_claims, 0);
    assert!(counts.losses > 1000 && counts.losses_reported == counts.losses);
}
